"""The soft choice: predicted numbers of signals against found ones, and what the mixture gains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import binomtest

from gsym import ClusterGroup, Partition, choose_group, coarsen
from gsym.risk.mixture import RidgeMixture
from gsym.risk.ridge import fit_group
from gsym.risk.samples import Samples
from gsym_bench.studies.joint import JointRidge
from gsym_bench.suite.engine import check_seeds
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.folder import locked
from gsym_bench.suite.provenance import commit
from gsym_bench.suite.report.markdown import markdown_table, write_page
from gsym_bench.suite.report.statistics import mean_interval
from gsym_bench.suite.study_tables import read_records, write_records
from gsym_bench.tasks.traffic import metr_la

PAGE = "overtaking.md"
CURVES, CLAIMS, SCORES = "overtaking_curves.csv", "overtaking.csv", "overtaking_scores.csv"
JOINT_SCORES = "overtaking_joint.csv"
TRUTHS, NODES = 4, 48
# The definition of the sum of penalties is dense in all targets.
JOINT, JOINT_NODES, JOINT_COUNTS = "sum of penalties", 12, (12, 24, 48)
MIXTURE, BEST = "mixture", "chosen group"

Row = TypeVar("Row", "Claim", "Score")


@dataclass(frozen=True)
class Point:
    """Mean test error of a level fitted to so many signals."""

    data: str
    clusters: int
    signals: int
    error: float
    draws: int
    commit: str


@dataclass(frozen=True)
class Claim:
    """From how many signals a level overtakes another, as one draw has it, and as refits do.

    Attributes:
        data: Name of the signals.
        signals: Number of signals of the draw.
        seed: Of the draw.
        before: Clusters of the level that is best now.
        after: Clusters of the one that overtakes it, 0 for none.
        predicted: Number of signals, infinite for never.
        low: Lower end of the interval.
        high: Upper end.
        found: Where the curves of refits cross; infinite beyond the last.
        commit: Source revision.
    """

    data: str
    signals: int
    seed: int
    before: int
    after: int
    predicted: float
    low: float
    high: float
    found: float
    commit: str


@dataclass(frozen=True)
class Score:
    """Left-out and test error of a predictor of one draw."""

    data: str
    signals: int
    seed: int
    predictor: str
    left_out: float
    test: float
    commit: str


@dataclass(frozen=True)
class Source:
    """Pairs of signals to draw from.

    Attributes:
        levels: Candidates, fine to coarse.
        draw: Inputs and targets, by number and generator.
        test: Inputs and targets to judge by.
        sizes: Numbers of signals of the curves.
        repeats: Draws that each of their points is the mean of.
        counts: Numbers of signals to predict from.
    """

    levels: Sequence[Partition]
    draw: Callable[[int, np.random.Generator], tuple[NDArray, NDArray]]
    test: tuple[NDArray, NDArray]
    sizes: Sequence[int]
    repeats: int
    counts: Sequence[int]


def truth(seed: int, nodes: int = NODES, chain: Sequence[int] = (48, 24, 12, 4, 1)) -> Source:
    """A linear map with a part in every level of a chain, and inputs that are correlated."""
    rng = np.random.default_rng([seed, 7])
    levels = [Partition([i * k // nodes for i in range(nodes)]) for k in chain]
    W = np.zeros((nodes, nodes))
    # From coarse to fine, each level adds less, and by chance more or less so.
    for step, level in enumerate(reversed(levels)):
        part = torch.from_numpy(rng.standard_normal((nodes, nodes)))
        made = ClusterGroup(level).project(part).numpy()
        W += 2.0 * 0.45**step * rng.lognormal(sigma=0.5) * made / np.linalg.norm(made) * nodes**0.5
    common = rng.standard_normal((6, nodes)) * 0.5

    def draw(count: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        x = rng.standard_normal((count, nodes)) + rng.standard_normal((count, 6)) @ common
        return x, x @ W.T + rng.standard_normal((count, nodes))

    sizes = np.unique(np.geomspace(20, 3000, 11).astype(int)).tolist()
    return Source(levels, draw, draw(3000, rng), sizes, 3, (40, 80, 160))


def traffic(data: Path) -> Source:
    """Speeds of METR-LA half an hour later, from those of now; every sensor in its own units."""
    recording = metr_la(data)
    speed = recording.speed.numpy().astype(np.float64)
    whole = (speed[:-6] > 0).all(1) & (speed[6:] > 0).all(1)
    starts = np.flatnonzero(whole)
    cut = int(0.7 * len(speed))
    early, late = starts[starts < cut], starts[starts >= cut]
    # Clusters come from times of their own.
    rng = np.random.default_rng(0)
    early = rng.permutation(early)
    own, early = early[:400], early[400:]
    mean, std = speed[own].mean(0), speed[own].std(0)
    speed = (speed - mean) / std
    h = coarsen(signals=speed[own], method="ward")
    levels = [h[k] for k in (speed.shape[1], 80, 32, 12, 4, 1)]

    def pairs(times: NDArray) -> tuple[NDArray, NDArray]:
        return speed[times], speed[times + 6]

    def draw(count: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        return pairs(rng.choice(early, count, replace=False))

    sizes = np.unique(np.geomspace(25, 1600, 9).astype(int)).tolist()
    return Source(levels, draw, pairs(late), sizes, 2,
                  (100, 400))  # fmt: skip


def learn(name: str, source: Source) -> list[Point]:
    """Test errors of every level at every size, each the mean of some draws."""
    points = []
    for size in source.sizes:
        errors = np.zeros(len(source.levels))
        for repeat in range(source.repeats):
            data = Samples(*source.draw(size, np.random.default_rng([size, repeat, 1])))
            errors += [
                _test(fit_group(data, level), source) / source.repeats for level in source.levels
            ]
        points += [
            Point(name, level.num_clusters, size, float(error), source.repeats, commit())
            for level, error in zip(source.levels, errors, strict=True)
        ]
    return points


def _test(fit: object, source: Source) -> float:
    x, y = source.test
    found = fit.predict(x).numpy()[..., 0]  # type: ignore[attr-defined]
    return float(((found - y) ** 2).mean())


def cross(points: Sequence[Point], before: int, after: int) -> float:
    """From how many signals one level errs less than another, on straight lines in the logarithm.

    Returns:
        The smallest size where it always does; infinite where it does not at the largest one.
    """
    errors: dict[int, dict[int, float]] = {}
    for point in points:
        errors.setdefault(point.signals, {})[point.clusters] = point.error
    sizes = sorted(errors)
    gaps = np.array([errors[size][after] - errors[size][before] for size in sizes])
    behind = np.flatnonzero(gaps >= 0)
    if not behind.size:
        return float(sizes[0])
    last = int(behind[-1])
    if last + 1 == len(sizes):
        return float("inf")
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    logs = np.log(sizes[last : last + 2])
    return float(np.exp(logs[0] + share * (logs[1] - logs[0])))


def overtaken(points: Sequence[Point], before: int) -> float:
    """From how many signals any finer level errs less than one."""
    finer = {point.clusters for point in points if point.clusters > before}
    return min((cross(points, before, after) for after in finer), default=float("inf"))


def judge(
    name: str, source: Source, points: Sequence[Point], count: int, seed: int
) -> tuple[list[Claim], list[Score]]:
    """What the soft choice says of one draw, and what is found."""
    x, y = source.draw(count, np.random.default_rng([seed, count, 2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        choice = choose_group(source.levels, x, y, soft=True, seed=seed)
    soft = choice.soft
    assert soft is not None
    claims = []
    if soft.outlook is not None:
        at = soft.levels[soft.outlook.now].num_clusters
        for crossing in soft.crossings[:1]:
            after = soft.levels[crossing.after].num_clusters
            numbers = crossing.signals, crossing.low, crossing.high
            found = cross(points, at, after)
            claims.append(Claim(name, count, seed, at, after, *numbers, found, commit()))
        if not claims:
            never = float("inf")
            numbers = never, soft.outlook.earliest, never
            claims.append(
                Claim(name, count, seed, at, 0, *numbers, overtaken(points, at), commit())
            )
    data = Samples(x, y)
    rows = [(MIXTURE, soft.score, _test(soft.predictor, source))]
    for candidate in choice.candidates:
        fit = fit_group(data, candidate.group)
        test = _test(fit, source)
        rows.append((f"{candidate.num_clusters} clusters", candidate.score, test))
        if candidate is choice.best:
            rows.append((BEST, candidate.score, test))
    return claims, [Score(name, count, seed, *row, commit()) for row in rows]


def judge_joint(count: int, seed: int) -> list[Score]:
    """The sum of penalties, the mixture and every level on one small map."""
    source = truth(seed, JOINT_NODES, (12, 4, 1))
    x, y = source.draw(count, np.random.default_rng([seed, count, 3]))
    data = Samples(x, y)
    fits = [fit_group(data, level) for level in source.levels]
    mixture = RidgeMixture(data, fits)
    joint = JointRidge([ClusterGroup(level) for level in source.levels], x, y)
    test = float(((joint.predict(source.test[0]) - source.test[1]) ** 2).mean())
    rows = [(MIXTURE, mixture.risk, _test(mixture, source)), (JOINT, joint.risk, test)]
    for level, fit in zip(source.levels, fits, strict=True):
        rows.append((f"{level.num_clusters} clusters", fit.risk, _test(fit, source)))
    return [Score("map", count, seed, *row, commit()) for row in rows]


def sources(data: Path | None) -> dict[str, Callable[[], Source]]:
    """Ways to make every source, by name."""
    found: dict[str, Callable[[], Source]] = {
        f"map {seed}": partial(truth, seed) for seed in range(TRUTHS)
    }
    if data is not None:
        found["METR-LA"] = partial(traffic, data)
    return found


def main(out: Path, data: Path | None, seeds: int, console: Console) -> Path:
    """Run the cells that are missing, and write the page.

    Args:
        out: Folder of the rows and the page.
        data: Folder of downloaded data; made-up maps alone without it.
        seeds: Draws of every cell.
        console: Where to tell the progress.
    """
    check_seeds(seeds)
    with locked(out):
        return _run(out, data, seeds, console)


def _run(out: Path, data: Path | None, seeds: int, console: Console) -> Path:
    points = read_records(out / CURVES, Point)
    scores = read_records(out / SCORES, Score)
    done = {(row.data, row.signals, row.seed) for row in scores}
    # Of a cell that was stopped between its two files, the claims are made again.
    claims = [r for r in read_records(out / CLAIMS, Claim) if (r.data, r.signals, r.seed) in done]
    for name, make in sources(data).items():
        source = make()
        if name not in {point.data for point in points}:
            points += learn(name, source)
            write_records(out / CURVES, Point, points, digits=6)
            points = read_records(out / CURVES, Point)  # as a run that goes on has them
            console.print(f"{name}: curves of {len(source.levels)} levels")
        own = [point for point in points if point.data == name]
        for count in source.counts:
            for seed in range(seeds):
                if (name, count, seed) in done:
                    continue
                claimed, scored = judge(name, source, own, count, seed)
                claims += claimed
                scores += scored
                # Claims first: a cell without scores is run again.
                write_records(out / CLAIMS, Claim, claims, digits=6)
                write_records(out / SCORES, Score, scores, digits=6)
            console.print(f"{name}, {count} signals: {seeds} draws")
    joint = read_records(out / JOINT_SCORES, Score)
    for count in JOINT_COUNTS:
        for seed in range(seeds):
            if (count, seed) not in {(row.signals, row.seed) for row in joint}:
                joint += judge_joint(count, seed)
                write_records(out / JOINT_SCORES, Score, joint, digits=6)
        console.print(f"{JOINT}, {count} signals: {seeds} draws")
    return report(out)


def _kind(name: str) -> str:
    return "made-up maps" if name.startswith("map ") else name


def _share(hits: int, count: int) -> str:
    interval = binomtest(hits, count).proportion_ci()
    return f"{100 * hits / count:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def _claim_row(rows: Sequence[Claim]) -> list[str]:
    """One line of the table of claims."""
    said = [row for row in rows if np.isfinite(row.predicted)]
    both = [row for row in said if np.isfinite(row.found)]
    ratio = np.array([row.predicted / max(row.found, row.signals) for row in both])
    spread = "-"
    if len(ratio):
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        spread = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    inside = sum(row.low <= max(row.found, row.signals) <= row.high for row in rows)
    silent = [row for row in rows if not np.isfinite(row.predicted)]
    right = sum(not np.isfinite(row.found) for row in silent)
    return [
        _kind(rows[0].data),
        str(rows[0].signals),
        str(len(rows)),
        spread,
        _share(inside, len(rows)),
        f"{right} of {len(silent)}",
    ]


def _against(scores: Sequence[Score], rival: Callable[[dict[str, float]], float]) -> str:
    """By how many per cent the mixture's test error is above another, with its 95 % interval."""
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for row in scores:
        cells.setdefault((row.data, row.seed), {})[row.predictor] = row.test
    found = mean_interval([100 * (cell[MIXTURE] / rival(cell) - 1) for cell in cells.values()])
    reach = found.high - found.mean if len(cells) > 1 else float("nan")
    return f"{found.mean:+.1f} ± {reach:.1f}"


def _score_row(rows: Sequence[Score]) -> list[str]:
    """One line of the table of mixtures."""
    counts = {row.predictor for row in rows if row.predictor.endswith(" clusters")}
    fine, coarse = (pick(counts, key=lambda p: int(p.split()[0])) for pick in (max, min))
    ours = [row for row in rows if row.predictor == MIXTURE]
    ratio = np.mean([row.left_out / row.test for row in ours])
    return [
        _kind(rows[0].data),
        str(rows[0].signals),
        _against(rows, lambda cell: cell[BEST]),
        _against(rows, lambda cell: min(cell[p] for p in counts)),
        _against(rows, lambda cell: cell[fine]),
        _against(rows, lambda cell: cell[coarse]),
        f"{ratio:.3f}",
    ]


def _joint_row(rows: Sequence[Score]) -> list[str]:
    levels = {row.predictor for row in rows if row.predictor.endswith(" clusters")}
    return [
        str(rows[0].signals),
        _against(rows, lambda cell: cell[JOINT]),
        _against(rows, lambda cell: min(cell[p] for p in levels)),
    ]


def report(out: Path) -> Path:
    """Write the page from the rows.

    Raises:
        BenchmarkError: There are none.
    """
    claims, scores = read_records(out / CLAIMS, Claim), read_records(out / SCORES, Score)
    if not scores:
        raise BenchmarkError(f"no results in {out / SCORES}; run gsym-bench overtaking")

    def grouped(rows: Sequence[Row]) -> list[list[Row]]:
        found: dict[tuple[str, int], list[Row]] = {}
        for row in rows:
            found.setdefault((_kind(row.data), row.signals), []).append(row)
        return [found[key] for key in sorted(found, key=lambda k: (k[0] != "made-up maps", *k))]

    seeds = 1 + max(row.seed for row in scores)
    source = " --data DIR" if any(_kind(row.data) == row.data for row in scores) else ""
    commits = ", ".join(sorted({row.commit for row in scores}))
    joint = grouped(read_records(out / JOINT_SCORES, Score))
    parts = [
        "# When a finer group pays",
        "`choose_group(..., soft=True)` says from how many signals a finer group is better than "
        "the one that is best now, and mixes the groups. Here both are checked against fits to "
        f"more signals and to test signals: {TRUTHS} made-up linear maps on {NODES} nodes that "
        "have a part in every level of a chain of 48, 24, 12, 4 and 1 clusters, and speeds of "
        "METR-LA half an hour later, with clusters by Ward on other times, tested on later weeks "
        "than those that signals are drawn from. Every draw takes other signals.",
        "## Predicted and found",
        "The first crossing that each draw predicts, over that where the mean test errors of "
        "refits cross (or the number of signals at hand, if they did before): median and "
        "quartiles; and how often the 95 % interval holds it, with the interval of Clopper and "
        "Pearson; a draw that predicts none has an interval without end. In the last column, how "
        "many of these are right up to the largest refit.",
        markdown_table(
            ["data", "signals", "draws", "predicted over found", "in the interval",
             "none, rightly"],
            [_claim_row(rows) for rows in grouped(claims)],
        ),
        "## The mixture",
        "Test error of the mixture against others, in per cent with the 95 % interval of "
        "Student's t over draws; below 0 it errs less. The best group in hindsight is that of "
        "least test error in each draw, which no choice can know. Last, its left-out error over "
        "its test error.",
        markdown_table(
            ["data", "signals", "against the chosen group", "the best in hindsight", "the finest",
             "the coarsest", "left-out over test"],
            [_score_row(rows) for rows in grouped(scores)],
        ),
        "## Against a sum of penalties",
        "The mixture weighs fits that were made apart. Ridge with a sum of penalties along the "
        "chain fits all levels at once, with a prior variance for each level's orthogonal "
        "complement, chosen by left-out error, too. With white inputs both are the same; its "
        f"definition, dense in all targets, is run on made-up maps of {JOINT_NODES} nodes. Test "
        "error of the mixture against it and against the best level, in per cent.",
        markdown_table(
            ["signals", "against the sum of penalties", "against the best level in hindsight"],
            [_joint_row(rows) for rows in joint],
        ),
        f"Made with `gsym-bench overtaking{source} --seeds {seeds}` at commit "
        f"{commits}; rows in [{CLAIMS}]({CLAIMS}), [{SCORES}]({SCORES}), "
        f"[{JOINT_SCORES}]({JOINT_SCORES}) and [{CURVES}]({CURVES}).",
    ]  # fmt: skip
    return write_page(out / PAGE, parts)
