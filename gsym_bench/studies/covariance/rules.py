"""How to choose between weights by likelihood, weights by imputation error, and other fills.

No downloads needed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.optimize import nnls
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from gsym.risk._em import Completed
from gsym.risk._fit_weights import fit_weights, imputation, likelihood
from gsym.risk._folds import make_folds
from gsym.risk._problem import make_fold
from gsym.risk._terms import read_terms, stack
from gsym_bench.simulators.freeway import simulate_freeway
from gsym_bench.simulators.gait import SKELETON_EDGES, simulate_gait
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.folder import locked
from gsym_bench.suite.report.markdown import made_with, markdown_table, write_page
from gsym_bench.suite.results import Row, Value, append_row, fitted_row, read_rows, recover

ROWS, PAGE = "covariance_rules.csv", "covariance_rules.md"
COUNTS, SEEDS, HELD = (25, 100), range(3), 150
# The ridge that a floored likelihood adds to every held-out density, in mean variances.
_FLOOR = 0.01

RULES = ("choice", "stacking", "nested choice", "nested stacking")
UNFLOORED, NESTED = "no least variance", "seconds with nested folds"
Fill = Callable[[NDArray, NDArray], NDArray]


@dataclass(frozen=True)
class Data:
    """Signals to draw from ``[s, n]`` or ``[s, n, c]``, and what is known of the nodes."""

    x: NDArray
    known: Mapping[str, object] = field(default_factory=dict)


def _scaled(x: NDArray) -> NDArray:
    return (x - x.mean(0)) / x.std(0)


def _nearly_constant(rng: np.random.Generator) -> NDArray:
    """Correlated nodes, a third of which are still but for a rare jump."""
    place = rng.uniform(size=(36, 1))
    x = rng.multivariate_normal(np.zeros(36), np.exp(-((place - place.T) ** 2) / 0.02), size=2000)
    jump = rng.uniform(size=(2000, 1)) < 0.04
    return np.where(np.arange(36) % 3 > 0, x, 1e-3 * x + 3 * jump * np.abs(x))


def _heavy(rng: np.random.Generator) -> NDArray:
    place = rng.uniform(size=(30, 1))
    x = rng.multivariate_normal(np.zeros(30), np.exp(-((place - place.T) ** 2) / 0.02), size=2000)
    return x / np.sqrt(rng.chisquare(3, size=(2000, 1)) / 3)


def data_sets() -> dict[str, Data]:
    """Sets that played no part in the design of the estimator."""
    rng = np.random.default_rng(0)
    walks = simulate_gait(200, 30, 0).numpy()[:, ::6].reshape(-1, 16, 3)
    road = simulate_freeway(0, days=12)
    whole = (road.speed > 0).all(1)
    bones = torch.tensor(SKELETON_EDGES).T
    cancer = load_breast_cancer().data
    return {
        "diabetes": Data(_scaled(load_diabetes().data)),
        "wine": Data(_scaled(load_wine().data)),
        "breast cancer": Data(_scaled(cancer)),
        "breast cancer, logarithms": Data(np.log(cancer + cancer[cancer > 0].min())),
        "nearly constant nodes": Data(_nearly_constant(rng)),
        "heavy tails": Data(_heavy(rng), {"positions": np.arange(30)}),
        "simulated walks": Data(walks, {"edge_index": bones}),
        "simulated freeway": Data(road.speed[whole], {"positions": road.positions}),
    }


def masks(kind: str, n: int, count: int, rng: np.random.Generator) -> NDArray:
    """What is seen, ``[count, n]``: 40 % hidden at random, or a stretch of 30 %."""
    seen = np.ones((count, n), dtype=bool)
    for mask in seen:
        if kind == "random":
            mask[rng.choice(n, round(0.4 * n), replace=False)] = False
        else:
            width = round(0.3 * n)
            start = int(rng.integers(n - width + 1))
            mask[start : start + width] = False
    return seen


def _neighbours(flat: NDArray, count: int) -> Fill:
    def fill(rows: NDArray, seen: NDArray) -> NDArray:
        squares = ((rows[:, None, seen] - flat[None][:, :, seen]) ** 2).sum(-1)
        near = np.argpartition(squares, min(count, len(flat) - 1), axis=1)[:, :count]
        return np.asarray(flat[near].mean(1)[:, ~seen])

    return fill


def _gaussian(mean: NDArray, covariance: NDArray) -> Fill:
    def fill(x: NDArray, seen: NDArray) -> NDArray:
        B = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[np.ix_(seen, ~seen)])
        return np.asarray(mean[~seen] + (x - mean)[:, seen] @ B)

    return fill


@dataclass(frozen=True)
class Trained:
    """Fills of one set of signals, and those of its folds with the weights of the whole set.

    Attributes:
        fills: By name.
        folds: Rows held out, and the fills of the others.
    """

    fills: dict[str, Fill]
    folds: list[tuple[NDArray, dict[str, Fill]]]


def candidates(train: NDArray, known: Mapping[str, object], patterns: NDArray) -> Trained:
    """Every fill, fitted to signals ``[s, n, c]``."""
    s, n, c = train.shape
    flat = train.reshape(s, -1)
    given = {key: known.get(key) for key in ("positions", "edge_index")}
    terms = read_terms("auto", (), given["positions"], given["edge_index"], None, n, c)
    rows = make_folds(flat - flat.mean(0), 1)
    data = Completed(flat, np.ones(flat.shape, dtype=bool))
    folds = [make_fold(terms, data, (n, c), kept, held) for kept, held in rows]
    ridge = np.zeros(len(terms.names) + 1)
    ridge[-1] = _FLOOR
    density = likelihood(folds)
    weights = {"likelihood": fit_weights(density, np.full(len(ridge), 1 / len(ridge))).weights}
    weights["floored"] = (
        ridge + fit_weights(lambda w: density(w + ridge), weights["likelihood"]).weights
    )
    near = np.maximum(weights["likelihood"], 1e-3 * weights["likelihood"].sum())
    weights["imputation"] = fit_weights(imputation(folds, list(patterns)), near).weights

    def fills(kept: NDArray, stacked: NDArray) -> dict[str, Fill]:
        mean = flat[kept].mean(0)
        made = {key: _gaussian(mean, np.tensordot(w, stacked, 1)) for key, w in weights.items()}
        lw = LedoitWolf().fit(flat[kept])
        made["Ledoit-Wolf"] = _gaussian(mean, lw.covariance_)
        for count in (5, 15):
            made[f"{count} nearest"] = _neighbours(flat[kept], count)
        return made

    errors = flat - flat.mean(0)
    made = terms.of(train)
    whole = fills(np.arange(s), stack(made, data.covariance(np.arange(s))[1]))
    bare = np.tensordot(weights["likelihood"], stack(made, errors.T @ errors / s), 1)
    # Not offered to the rules.
    whole[UNFLOORED] = _gaussian(flat.mean(0), bare)
    return Trained(
        whole,
        [(held, fills(kept, f.terms)) for (kept, held), f in zip(rows, folds, strict=True)],
    )


def _offered(trained: Trained) -> dict[str, Fill]:
    return {name: trained.fills[name] for name in trained.folds[0][1]}


def _stacked(truth: NDArray, guesses: NDArray) -> NDArray:
    """Shares of the fills that come closest together, at least 0 and 1 in all."""
    heavy = 1e3 * np.abs(truth).max() * np.sqrt(len(truth))
    shares, _ = nnls(
        np.vstack([guesses, heavy * np.ones(guesses.shape[1])]), np.append(truth, heavy)
    )
    return np.asarray(shares / shares.sum())


def _judged(
    flat: NDArray, patterns: NDArray, folds: Iterable[tuple[NDArray, dict[str, Fill]]]
) -> tuple[int, NDArray]:
    """The fill of the least held-out error, and the shares of a stack."""
    truth, guesses = [], []
    for held, fills in folds:
        for seen in patterns:
            truth.append(flat[held][:, ~seen].ravel())
            guesses.append(np.stack([f(flat[held], seen).ravel() for f in fills.values()], axis=1))
    wanted, offered = np.concatenate(truth), np.concatenate(guesses)
    best = int(((offered - wanted[:, None]) ** 2).mean(0).argmin())
    return best, _stacked(wanted, offered)


def run_cell(data: Data, count: int, kind: str, seed: int) -> tuple[list[Value], float]:
    """Errors of every fill and rule, relative to the variance of what is hidden, and seconds."""
    rng = np.random.default_rng([seed, count])
    x = data.x if data.x.ndim == 3 else data.x[:, :, None]
    n, c = x.shape[1:]
    rows = rng.choice(len(x), min(count + HELD, len(x)), replace=False)
    train, test = x[rows[:count]], x[rows[count:]].reshape(-1, n * c)
    patterns, new = (np.repeat(masks(kind, n, m, rng), c, axis=1) for m in (6, 8))
    flat = train.reshape(count, -1)
    began = time.perf_counter()
    whole = candidates(train, data.known, patterns)
    shared = _judged(flat, patterns, whole.folds)
    shared_time = time.perf_counter() - began
    outer = [
        (held, _offered(candidates(train[kept], data.known, patterns)))
        for kept, held in make_folds(flat - flat.mean(0), 1)
    ]
    nested = _judged(flat, patterns, outer)
    nested_time = time.perf_counter() - began
    names = list(whole.fills)
    offered = len(whole.folds[0][1])
    middle, variance = flat.mean(0), 0.0
    errors = dict.fromkeys((*names, *RULES), 0.0)
    for seen in new:
        hidden = test[:, ~seen]
        filled = np.stack([fill(test, seen) for fill in whole.fills.values()], axis=-1)
        variance += float(((hidden - middle[~seen]) ** 2).sum())
        guesses = [filled[..., i] for i in range(len(names))]
        guesses += [filled[..., shared[0]], filled[..., :offered] @ shared[1]]
        guesses += [filled[..., nested[0]], filled[..., :offered] @ nested[1]]
        for key, guess in zip(errors, guesses, strict=True):
            errors[key] += float(((guess - hidden) ** 2).sum())
    values = [
        Value("test", key, "", round(float(np.sqrt(value / variance)), 5))
        for key, value in errors.items()
    ]
    values.append(Value("test", NESTED, "s", round(nested_time, 2)))
    return values, round(shared_time, 2)


def main(out: Path, console: Console) -> Path:
    """Run the cells that the rows lack, and write the page."""
    with locked(out):
        recover(out / ROWS)
        done = {row.key for row in read_rows(out, ROWS)}
        for name, data in data_sets().items():
            for seed in SEEDS:
                for count in COUNTS:
                    for kind in ("random", "stretch"):
                        key = f"{name}; {count}; {kind}; seed {seed}"
                        if key in done:
                            continue
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            values, seconds = run_cell(data, count, kind, seed)
                        append_row(out, make_row(key, values, seconds), ROWS)
                        console.print(key)
        return report(out)


def make_row(key: str, values: Sequence[Value], seconds: float) -> Row:
    """The row of a cell."""
    name, count, kind, seed = key.split("; ")
    return fitted_row(
        key,
        values,
        task="weights of a covariance",
        dataset=name,
        source="embedded",
        schedule=f"{count}; {kind}",
        model="every fill and rule",
        seed=int(seed.removeprefix("seed ")),
        seconds=seconds,
    )


def report(out: Path) -> Path:
    """Write the page from the rows.

    Raises:
        BenchmarkError: There are none.
    """
    rows = read_rows(out, ROWS)
    if not rows:
        raise BenchmarkError(f"no results in {out / ROWS}")
    keys = [key for key in rows[0].metrics if key != NESTED]
    fills = [k for k in keys if k not in (*RULES, UNFLOORED)]
    body, worst = [], dict.fromkeys(keys, 0.0)
    above: dict[str, list[float]] = {k: [] for k in keys}
    for cell in dict.fromkeys((row.dataset, row.schedule) for row in rows):
        here = [row for row in rows if (row.dataset, row.schedule) == cell]
        means = {k: float(np.mean([row.value("test", k) for row in here])) for k in keys}  # type: ignore[arg-type]
        best = min(means[k] for k in fills)
        for k in keys:
            above[k].append(100 * (means[k] / best - 1))
            worst[k] = max(worst[k], above[k][-1])
        body.append([cell[0], *cell[1].split("; "), *(f"{means[k]:.3f}" for k in keys)])
    summary = [
        [k, f"{np.mean(above[k]):.1f} %", f"{np.median(above[k]):.1f} %", f"{worst[k]:.1f} %"]
        for k in keys
    ]
    nested = np.mean([(row.value("test", NESTED) or 0.0) / row.seconds for row in rows])
    made = made_with("gsym-bench covariance --rules", rows)
    return write_page(out / PAGE, [
        "# Choosing between weights of a covariance",
        "Root mean square error of hidden entries over that of the mean of each node, on data sets "
        "that played no part in the design: mean over draws. *Floored* are weights by the "
        "likelihood of held-out signals with noise of 1 % of the mean variance, which nodes that "
        "are nearly constant cannot dominate, and the noise stays. In all three no "
        "node has less than a quarter of the mean variance over the number of signals; *no least "
        "variance* is the likelihood without that. *Choice* takes the fill of the least "
        "cross-validated error; *stacking* combines the conditional means with shares of at least "
        "0. Both judge by the folds that the weights were fitted on; *nested*, by weights fitted "
        "anew without each outer fold.",
        "## Above the best single fill of each cell",
        markdown_table(["rule", "mean", "median", "worst"], summary),
        "## Cells",
        markdown_table(["data", "signals", "hidden", *keys], body),
        f"Nested folds take {nested:.1f} times as long as one fit of all. {made}, "
        f"{len({row.seed for row in rows})} draws; rows in [{ROWS}]({ROWS}).",
    ])  # fmt: skip
