"""Does the regret bound of `choose_group` hold where data are as people bring them?

Many channels for few signals, slowly drifting inputs and errors, baselines of nodes, missing
entries, and traffic speeds. The truth is the error of each candidate, fitted as the choice fits
it, on signals that are drawn anew or of other days. The bound speaks of more signals of the same
process, so traffic comes twice: from one day, and from days drawn out of those of the truth.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.stats import binomtest

from gsym import ClusterGroup, Partition
from gsym.choosing.choose import choose_group
from gsym.coarsening import coarsen
from gsym.risk.ridge import fit_to_all
from gsym.risk.samples import Samples
from gsym_bench.suite.study_tables import append_record, read_records

FILE = "choosing_conditions.csv"
Data = tuple[NDArray, NDArray]

ONE_DAY, MORE_DAYS = "METR-LA, one day", "METR-LA, 12 days"
DAY, HOUR, AHEAD = 288, 12, 3
REAL_TRIALS = 30


@dataclass(frozen=True)
class Condition:
    """One choice under one condition.

    Attributes:
        condition: What is hard about the data.
        options: What `choose_group` was told.
        seed: Seed.
        hit: Whether the truly best candidate was chosen, 1 or 0.
        excess: True risk of the chosen candidate less that of the best.
        spread: True risk of the worst candidate less that of the best.
        bound: Regret bound.
        block: Signals left out together.
        gap: Signals left out around them.
        warned: Number of warnings.
        short: Whether a warning said that the series is too short or changes, 1 or 0.
        commit: Of the code.
    """

    condition: str
    options: str
    seed: int
    hit: int
    excess: float
    spread: float
    bound: float
    block: int
    gap: int
    warned: int
    short: int
    commit: str


def _drift(rng: np.random.Generator, steps: int, nodes: int) -> NDArray:
    x = np.zeros((steps, nodes))
    x[0] = rng.standard_normal(nodes)
    for t in range(1, steps):
        x[t] = 0.95 * x[t - 1] + np.sqrt(1 - 0.95**2) * rng.standard_normal(nodes)
    return x


def _planted(rng: np.random.Generator, signals: int, own: NDArray, mix: NDArray) -> Data:
    labels = np.arange(24) % 3
    x = rng.standard_normal((signals, 24))
    y = x * own[labels] + (x @ (np.eye(3)[labels] / 8) @ mix)[:, labels]
    return x, y + rng.standard_normal(x.shape)


def many_channels(seed: int) -> tuple[list[Partition], Data, list[Data]]:
    """Fifteen signals of three nodes with nine channels."""
    rng = np.random.default_rng([seed, 0])
    true = rng.standard_normal((9, 1)) / 3
    x = rng.standard_normal((3015, 3, 9))
    signal = np.repeat(x.mean(1, keepdims=True) * np.sqrt(3) @ true, 3, axis=1)
    y = signal + rng.standard_normal(signal.shape)
    levels = [Partition.singletons(3), Partition([0, 1, 0]), Partition.single(3)]
    return levels, (x[:15], y[:15]), [(x[15:], y[15:])]


def drifting(seed: int, steps: int) -> tuple[list[Partition], Data, list[Data]]:
    """AR(1) inputs and errors with correlation 0.95."""
    rng = np.random.default_rng([seed, 1, steps])
    labels = np.repeat(np.arange(4), 4)

    def sample(length: int) -> Data:
        x = _drift(rng, length, 16)
        means = np.stack([x[:, labels == c].mean(1) for c in range(4)], 1)[:, labels]
        return x, 0.5 * x + means + _drift(rng, length, 16)

    levels = [Partition.singletons(16), Partition(labels), Partition.single(16)]
    return levels, sample(steps), [sample(400) for _ in range(4)]


def baselines(seed: int) -> tuple[list[Partition], Data, list[Data]]:
    """A constant of one standard deviation per node on inputs and targets."""
    rng = np.random.default_rng([seed, 2])
    own, mix = rng.standard_normal(3), 3 * rng.standard_normal((3, 3))
    labels = np.arange(24) % 3
    levels = [Partition.singletons(24), Partition(labels), Partition.single(24)]
    offset = rng.standard_normal((2, 24))
    both = [_planted(rng, s, own, mix) for s in (60, 2000)]
    scale = both[1][1].std()
    train, test = [(x + offset[0], y + scale * offset[1]) for x, y in both]
    return levels, train, [test]


def missing(seed: int) -> tuple[list[Partition], Data, list[Data]]:
    """A tenth of inputs and targets is 0 instead of what was there, about 60."""
    rng = np.random.default_rng([seed, 3])
    own, mix = rng.standard_normal(3), 3 * rng.standard_normal((3, 3))
    levels = [Partition.singletons(24), Partition(np.arange(24) % 3), Partition.single(24)]

    def hidden(signals: int) -> Data:
        x, y = (v + 60 for v in _planted(rng, signals, own, mix))
        return x * (rng.random(x.shape) > 0.1), y * (rng.random(y.shape) > 0.1)

    return levels, hidden(60), [hidden(2000)]


@cache
def _speeds(data: Path) -> tuple[NDArray, tuple[Partition, ...]]:
    """Speeds ``[steps, sensors]`` every five minutes, and levels of clusters of the road graph."""
    with np.load(data) as file:
        speed, adj = file["speed"].astype(float), file["adj"]
    edges = torch.from_numpy(np.stack(np.nonzero((adj + adj.T) * (1 - np.eye(len(adj))))))
    n = speed.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        h = coarsen(edges, n, method="ward")
    return speed, tuple(h[k] for k in (n, 64, 16, 4, 1))


def one_day(seed: int, data: Path) -> tuple[list[Partition], Data, list[Data]]:
    """Speeds 15 minutes ahead, from 24 hours at a random place; truth weeks around it."""
    rng = np.random.default_rng([seed, 4])
    speed, levels = _speeds(data)
    start = int(rng.integers(0, len(speed) - DAY - AHEAD))
    far = [
        t
        for t in rng.integers(0, len(speed) - DAY - AHEAD, size=60)
        # On some days no sensor reported.
        if (t + DAY + AHEAD < start - 7 * DAY or t > start + 8 * DAY) and speed[t : t + DAY].any()
    ][:8]

    def cut(t: int) -> Data:
        return speed[t : t + DAY], speed[t + AHEAD : t + DAY + AHEAD]

    return list(levels), cut(start), [cut(int(t)) for t in far]


def more_days(seed: int, data: Path) -> tuple[list[Partition], Data, list[Data]]:
    """Speeds 15 minutes ahead, every hour of 12 days at random; truth all other days."""
    rng = np.random.default_rng([seed, 5])
    speed, levels = _speeds(data)
    days = rng.permutation(len(speed) // DAY)

    def hours(of: NDArray) -> Data:
        steps = (np.sort(of)[:, None] * DAY + np.arange(0, DAY, HOUR)).reshape(-1)
        return speed[steps], speed[steps + AHEAD]

    return list(levels), hours(days[:12]), [hours(days[12:])]


CONDITIONS: dict[str, Callable[[int], tuple[list[Partition], Data, list[Data]]]] = {
    "many channels": many_channels,
    "AR(1), 150 signals": lambda seed: drifting(seed, 150),
    "AR(1), 400 signals": lambda seed: drifting(seed, 400),
    "baselines": baselines,
    "missing": missing,
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "many channels": [{}],
    "AR(1), 150 signals": [{}, {"block": 50}, {"block": "auto"}],
    "AR(1), 400 signals": [{}, {"block": "auto"}],
    "baselines": [{}, {"standardize": "node"}],
    "missing": [{}, {"missing": 0}],
    ONE_DAY: [{"missing": 0}, {"missing": 0, "block": "auto"}],
    MORE_DAYS: [{"missing": 0}, {"missing": 0, "block": "auto"}, {"missing": 0, "block": 24}],
}
REAL: dict[str, Callable[[int, Path], tuple[list[Partition], Data, list[Data]]]] = {
    ONE_DAY: one_day,
    MORE_DAYS: more_days,
}


def run(
    condition: str, options: dict[str, Any], seed: int, commit: str, data: Path | None = None
) -> Condition:
    """Draw data, choose, and measure every candidate on other signals."""
    made = CONDITIONS[condition](seed) if data is None else REAL[condition](seed, data)
    levels, (x, y), tests = made
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        choice = choose_group(levels, x, y, swaps=None, **{"block": 1, **options})
    kept = {k: v for k, v in options.items() if k in ("missing", "standardize")}
    risks = []
    # Penalties are chosen as the choice did: those of single signals would not be its predictors.
    signals = Samples(x, y, block=choice.block, gap=choice.gap, **kept)
    for partition in levels:
        fit = fit_to_all(signals, ClusterGroup(partition))
        scale = np.squeeze(fit.units[..., 0]) if kept.get("standardize") else 1.0
        total = count = 0.0
        for a, b in tests:
            error = fit.predict(a, missing=options.get("missing"))[..., 0].numpy() - b.reshape(
                len(b), -1
            )
            known = b.reshape(len(b), -1) != 0 if "missing" in options else np.ones_like(error) > 0
            total += float(((error / scale) ** 2)[known].sum())
            count += float(known.sum())
        risks.append(total / count)
    chosen = levels.index(choice.partition)  # type: ignore[arg-type]
    return Condition(
        condition,
        _told(options),
        seed,
        int(chosen == int(np.argmin(risks))),
        risks[chosen] - min(risks),
        max(risks) - min(risks),
        choice.regret_bound,
        choice.block,
        choice.gap,
        len(told),
        int(any("take signals from" in str(warning.message) for warning in told)),
        commit,
    )


def measure(out: Path, trials: int, data: Path | None, commit: str, console: Console) -> Path:
    """Run what is not yet in ``choosing_conditions.csv``, a line at a time."""
    path = out / FILE
    done = {(r.condition, r.options, r.seed) for r in read_records(path, Condition)}
    jobs = [
        (c, o, s)
        for c in OPTIONS
        for s in range(min(trials, REAL_TRIALS) if c in REAL else trials)
        for o in OPTIONS[c]
    ]
    for condition, options, seed in track(jobs, "conditions", console=console):
        real = condition in REAL
        if (condition, _told(options), seed) in done or (real and data is None):
            continue
        row = run(condition, options, seed, commit, data if real else None)
        append_record(path, row, digits=6)
    return path


def _told(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items()) or "-"


def lines(out: Path, command: str) -> list[str]:
    """The section of the page."""
    rows = read_records(out / FILE, Condition)
    if not rows:
        return []
    most = max(r.seed for r in rows) + 1
    data = " --data DIR" if any(r.condition in REAL for r in rows) else ""
    text = [
        "",
        "## Where data are hard",
        "",
        f"Made by `{command} --only conditions --trials {most}{data}` at commit "
        f"{', '.join(dict.fromkeys(r.commit for r in rows))}. It goes on where it was stopped: the "
        "column says how many trials a row has.",
        "",
        "*Many channels*: 15 signals of 3 nodes with 9 channels. *AR(1)*: inputs and errors with "
        "correlation 0.95 from one signal to the next. *Baselines*: one standard deviation of "
        "constant offset per node. *Missing*: a tenth of inputs and targets is 0 where 60 would "
        "be usual. Where no block is named, single signals are left out. *METR-LA*: speeds 15 "
        f"minutes ahead. *One day* is {DAY} signals in a row from a random time, and"
        " the truth 8 days at least a week away. *12 days* are as many signals, "
        f"every hour of days at random, and the truth all other days; a day is a block of "
        f"{DAY // HOUR}.",
        "",
        "The truth is the error of each candidate's ridge predictor, its penalties chosen with the "
        "same block and gap as in the choice. The bound is about more signals of the process that "
        "the given ones are a sample of. That is what the truth is in every row but that of one "
        "day: the days weeks away are of another mixture of weather, weekends and faults, and "
        "nothing within a day says how much they differ. There the bound holds by its width, not "
        "by right; *few* is how often a warning said that so short a series says nothing of other "
        "times.",
        "",
        "Excess is a share of the distance between the best and the worst candidate; coverage is "
        "how often the excess stays within the regret bound, with its 95 % interval (Clopper and "
        "Pearson). Distance is the median of that distance, in squared units of the targets: "
        "penalties that suit single signals drive the candidates of a series apart, those of "
        "blocks bring them together. Width is the median bound as a share of it. Warned: share of "
        "choices that gave any warning.",
        "",
        "| data | options | trials | best level chosen | distance | excess | within bound | "
        "width | warned | few | block and gap |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for condition, options in dict.fromkeys((r.condition, r.options) for r in rows):
        own = [r for r in rows if (r.condition, r.options) == (condition, options)]
        held = sum(r.excess <= r.bound for r in own)
        span = binomtest(held, len(own)).proportion_ci()
        spread = max(float(np.median([r.spread for r in own])), 1e-300)
        excess = sum(r.excess for r in own) / max(sum(r.spread for r in own), 1e-300)
        text.append(
            f"| {condition} | {options} | {len(own)} | {np.mean([r.hit for r in own]):.0%} | "
            f"{spread:.2g} | {excess:.1%} | "
            f"{held / len(own):.1%} ({span.low:.1%} to {span.high:.1%}) | "
            f"{np.median([r.bound for r in own]) / spread:.1f} | "
            f"{np.mean([r.warned > 0 for r in own]):.0%} | {np.mean([r.short for r in own]):.0%} | "
            f"{np.median([r.block for r in own]):.0f}, {np.median([r.gap for r in own]):.0f} |"
        )
    return text
