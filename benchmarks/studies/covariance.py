"""Filling gaps of real signals: SymmetricCovariance beside estimators that know no symmetry."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import t as student
from sklearn.covariance import OAS, LedoitWolf
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from benchmarks.data import load_images
from benchmarks.kernels.measure import commit
from benchmarks.suite.errors import BenchmarkError
from benchmarks.suite.report.markdown import markdown_table, write_page
from benchmarks.suite.study_tables import read_records, write_records
from benchmarks.tasks.skeleton import Skeleton, reflection, skeleton_groups
from benchmarks.tasks.traffic import metr_la
from gsym import Partition, SymmetricCovariance
from gsym.risk._terms import read_terms

ROWS, PAGE = "covariance.csv", "covariance.md"
# Draws of earlier trials had smaller seeds.
FIRST_SEED = 3000
HELD = 100
# Up to so many signals, some fills also learn from those that they fill.
_MOST_TAUGHT = 25
OURS, TAUGHT = "SymmetricCovariance", "SymmetricCovariance, transductive"

Fill = Callable[[NDArray, NDArray], NDArray]


@dataclass(frozen=True)
class Filled:
    """What one fill errs in one draw of a cell.

    Attributes:
        data: Name of the signals.
        signals: Number of signals to learn from.
        hidden: Share of nodes that are hidden at random, or ``"hole"``.
        seed: Of the draw.
        unit: Of the error.
        commit: Source revision.
        fill: Name of the fill.
        error: Of hidden nodes.
    """

    data: str
    signals: int
    hidden: str
    seed: int
    unit: str
    commit: str
    fill: str
    error: float

    @property
    def cell(self) -> tuple[str, int, str]:
        """Data, number of signals, and what is hidden."""
        return self.data, self.signals, self.hidden


@dataclass(frozen=True)
class Source:
    """Signals to draw from, and what is known of their nodes.

    Attributes:
        train: Signals to learn from ``[s, n, c]``.
        test: Signals to be filled.
        unit: Of the error.
        error: From differences ``[..., c]`` of hidden nodes.
        known: Parameters of the estimator.
        levels: Levels of the estimator.
        hole: Which nodes a stretch of failures hides, from a random node.
    """

    train: NDArray
    test: NDArray
    unit: str
    error: Callable[[NDArray], float]
    known: Mapping[str, Any]
    hole: Callable[[int], NDArray]
    levels: Any = "auto"
    extra: tuple[str, ...] = field(default=())


def _traffic(data: Path) -> Source:
    recording = metr_la(data)
    speed = recording.speed.numpy().astype(np.float64)
    end = int(0.7 * len(speed))
    whole = np.asarray((speed > 0).all(1))
    positions = np.asarray(recording.positions)
    apart = ((positions[:, None] - positions[None]) ** 2).sum(-1)
    return Source(
        speed[:end][whole[:end]][:, :, None],
        speed[end:][whole[end:]][:, :, None],
        "MAE, mph",
        lambda e: float(np.abs(e).mean()),
        {"positions": positions},
        lambda node: np.argsort(apart[node])[: round(0.3 * len(positions))],
        extra=(TAUGHT, "IterativeImputer, both"),
    )


def _poses(data: Path) -> Source:
    problem = Skeleton().load(data, "standard", 0)
    mirror = skeleton_groups()["mirror S_2"]
    n = mirror.num_nodes
    levels = [Partition.singletons(n), Partition.single(n), (mirror, reflection(mirror)[1])]
    return Source(
        problem.train.targets.double().numpy(),
        problem.test.targets.double().numpy(),
        "mean joint error, mm",
        lambda e: float(1000 * np.linalg.norm(e, axis=-1).mean()),
        {"edge_index": problem.edge_index},
        lambda node: np.array([node]),
        levels=levels,
    )


def _images(data: Path, name: str) -> Source:
    images = load_images(data, name)
    side = 14

    def pooled(x: NDArray) -> NDArray:
        small = x.reshape(-1, side, 2, side, 2).mean((2, 4)) / 255
        return np.asarray(small.reshape(-1, side * side, 1))

    place = np.stack(np.divmod(np.arange(side * side), side), axis=1)

    def hole(node: int) -> NDArray:
        corner = np.minimum(place[node], side - 9)
        return np.flatnonzero(((place >= corner) & (place < corner + 9)).all(1))

    return Source(
        pooled(images.x_train[:20000]),
        pooled(images.x_test),
        "RMSE, grey of 0 to 1",
        lambda e: float(np.sqrt((e**2).mean())),
        {"positions": place},
        hole,
    )


SOURCES: dict[str, Callable[[Path], Source]] = {
    "METR-LA": _traffic,
    "CMU": _poses,
    "Fashion-MNIST 14 x 14": lambda data: _images(data, "fashion-mnist"),
    "MNIST 14 x 14": lambda data: _images(data, "mnist"),
}
# Data, signals to learn from, share hidden at random or "hole".
CELLS: tuple[tuple[str, int, float | str], ...] = (
    ("METR-LA", 25, 0.4),
    ("METR-LA", 100, 0.4),
    ("METR-LA", 100, "hole"),
    ("CMU", 25, 0.1),
    ("CMU", 25, 0.4),
    ("CMU", 100, 0.4),
    ("Fashion-MNIST 14 x 14", 25, "hole"),
    ("Fashion-MNIST 14 x 14", 100, 0.4),
    ("MNIST 14 x 14", 25, "hole"),
    ("MNIST 14 x 14", 100, 0.4),
)


def _masks(source: Source, kind: float | str, count: int, rng: np.random.Generator) -> NDArray:
    """Which nodes are seen, ``[count, n]``."""
    n = source.train.shape[1]
    seen = np.ones((count, n), dtype=bool)
    for mask in seen:
        if isinstance(kind, str):
            mask[source.hole(int(rng.integers(n)))] = False
        else:
            mask[rng.choice(n, max(1, round(kind * n)), replace=False)] = False
    return seen


def contestants(
    source: Source, train: NDArray, test: NDArray, seen: NDArray, patterns: NDArray
) -> dict[str, Callable[[], NDArray]]:
    """Ways to fill the test signals, by name; each is fitted when called."""
    s, n, c = train.shape
    flat, wide = train.reshape(s, -1), np.repeat(seen, c, axis=1)
    gaps = np.where(wide, test.reshape(len(test), -1), np.nan)
    ends = [Partition.singletons(n), Partition.single(n)]
    kernels = {**source.known}

    def ours(levels: Any, objective: Any, known: Mapping[str, Any], taught: bool = False) -> Any:
        def fill() -> NDArray:
            cov = SymmetricCovariance(
                levels, objective=objective, patterns=patterns, block=1, **known
            ).fit(train)
            return cov.impute(test, seen, transductive=taught)

        return fill

    def gaussian(estimator: Any) -> Callable[[], NDArray]:
        def fill() -> NDArray:
            cov = estimator.fit(flat)
            out = gaps.copy()
            for row, kept in zip(out, wide, strict=True):
                S = cov.covariance_ + 1e-9 * np.trace(cov.covariance_) / n * np.eye(n * c)
                B = np.linalg.solve(S[np.ix_(kept, kept)], S[np.ix_(kept, ~kept)])
                row[~kept] = cov.location_[~kept] + (row[kept] - cov.location_[kept]) @ B
            return out

        return fill

    def kernel_mean() -> NDArray:
        terms = read_terms(
            ends, (), kernels.get("positions"), kernels.get("edge_index"), None, n, 1
        )
        K = terms.fixed[2].kernel  # type: ignore[union-attr]
        mean = train.mean(0)
        out = np.empty_like(test)
        for i, kept in enumerate(seen):
            weight = K[:, kept] + 1e-12
            out[i] = mean + weight @ (test[i] - mean)[kept] / weight.sum(1, keepdims=True)
        return out

    def imputer(estimator: Any, both: bool) -> Callable[[], NDArray]:
        def fill() -> NDArray:
            estimator.fit(np.vstack([flat, gaps]) if both else flat)
            return np.asarray(estimator.transform(gaps))

        return fill

    chained = {"n_nearest_features": 20, "max_iter": 5, "random_state": 0}
    found = {
        OURS: ours(source.levels, "auto", kernels),
        TAUGHT: ours(source.levels, "auto", kernels, True),
        "its likelihood alone": ours(source.levels, "likelihood", kernels),
        "two-level, kernel": ours(ends, "likelihood", kernels),
        "trivial, kernel": ours(ends[:1], "likelihood", kernels),
        "S_n, kernel": ours(ends[1:], "likelihood", kernels),
        "two-level": ours(ends, "likelihood", {}),
        "Ledoit-Wolf": gaussian(LedoitWolf()),
        "OAS": gaussian(OAS()),
        "5 nearest": imputer(KNNImputer(n_neighbors=5), False),
        "15 nearest": imputer(KNNImputer(n_neighbors=min(15, s)), False),
        "IterativeImputer": imputer(IterativeImputer(**chained), False),
        "IterativeImputer, both": imputer(IterativeImputer(**chained), True),
        "kernel mean": kernel_mean,
        "mean of each node": lambda: np.broadcast_to(train.mean(0), test.shape),
    }
    for name in (TAUGHT, "IterativeImputer, both"):
        # They take a minute each on a slow machine.
        if name not in source.extra or s > _MOST_TAUGHT:
            del found[name]
    return found


def run_cell(source: Source, count: int, kind: float | str, seed: int) -> dict[str, float]:
    """Error of every contestant on one draw."""
    rng = np.random.default_rng([seed, count])
    train = source.train[rng.choice(len(source.train), count, replace=False)]
    test = source.test[rng.choice(len(source.test), HELD, replace=False)]
    seen, patterns = (_masks(source, kind, m, rng) for m in (HELD, 8))
    errors = {}
    for name, fill in contestants(source, train, test, seen, patterns).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filled = np.asarray(fill()).reshape(test.shape)
        errors[name] = source.error((filled - test)[~seen])
    return errors


def main(out: Path, data: Path | None, seeds: int, console: Console) -> Path:
    """Run the cells that are missing, and write the page.

    Args:
        out: Folder of the rows and the page.
        data: Folder of downloaded data.
        seeds: Number of draws of every cell.
        console: Where to tell the progress.

    Raises:
        BenchmarkError: No data.
    """
    if data is None:
        raise BenchmarkError("covariance needs real signals: --data DIR")
    path = out / ROWS
    rows = read_records(path, Filled)
    done = {(*row.cell, row.seed) for row in rows}
    sources: dict[str, Source] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for name, count, kind in CELLS:
            if (name, count, str(kind), seed) in done:
                continue
            source = sources.setdefault(name, sources.get(name) or SOURCES[name](data))
            errors = run_cell(source, count, kind, seed)
            console.print(f"{name}, {count} signals, {kind}, seed {seed}: {errors[OURS]:.4g}")
            rows += [
                Filled(name, count, str(kind), seed, source.unit, commit(), fill, error)
                for fill, error in errors.items()
            ]
            # All fills of a cell at once: one that was killed half-way is run again.
            write_records(path, Filled, rows, digits=6)
    return report(out)


def _against(ours: NDArray, theirs: NDArray) -> str:
    """By how many per cent ours is above theirs, paired, with its 95 % interval."""
    ratio = 100 * (ours - theirs) / theirs.mean()
    reach = float("nan")
    if len(ratio) > 1:
        reach = student.ppf(0.975, len(ratio) - 1) * ratio.std(ddof=1) / np.sqrt(len(ratio))
    return f"{ratio.mean():+.1f} ± {reach:.1f}"


def report(out: Path) -> Path:
    """Write the page from the rows.

    Raises:
        BenchmarkError: There are none.
    """
    rows = read_records(out / ROWS, Filled)
    if not rows:
        raise BenchmarkError(f"no results in {out / ROWS}")
    parts = [
        "# Filling gaps",
        "What is hidden of real signals is filled by `SymmetricCovariance` and by others, from few "
        "signals to learn from. Draws are random signals, those to be filled from a later part or "
        "another set; each draw hides nodes at random, or a hole: the nearest 30 % of sensors, or "
        "9 x 9 pixels. Ours is told the kind of gaps by 8 patterns of other draws, and the places "
        "of nodes or the skeleton; on poses its levels are the trivial group, S_16 and the mirror "
        "with the sign of the lateral coordinate. Names with *kernel* are the same sum with fewer "
        "levels and weights by likelihood. *Transductive* and *both* also learn from what is seen "
        "of the signals to be filled, up to 25 signals. IterativeImputer uses 20 nodes for each "
        "and 5 rounds.",
    ]
    cells = list(dict.fromkeys(row.cell for row in rows))
    verdicts, taught = [], []
    for cell in cells:
        here = [row for row in rows if row.cell == cell]
        errors: dict[str, list[float]] = {}
        for row in here:
            errors.setdefault(row.fill, []).append(row.error)
        values = {name: np.array(v) for name, v in errors.items()}
        rivals = [name for name in values if name not in (OURS, TAUGHT, "its likelihood alone")]
        rivals = [name for name in rivals if "both" not in name]
        best = min(rivals, key=lambda name: values[name].mean())
        against = [
            _against(values[OURS], values[name])
            for name in (best, "Ledoit-Wolf", "two-level, kernel")
        ]
        verdicts.append([cell[0], str(cell[1]), _hidden(cell[2]), best, *against])
        body = [
            [name, f"{v.mean():.4g}", "" if name == OURS else _against(values[OURS], v)]
            for name, v in sorted(values.items(), key=lambda item: item[1].mean())
        ]
        if TAUGHT in values:
            both = _against(values[TAUGHT], values["IterativeImputer, both"])
            taught.append(f"{cell[0]}, {cell[1]} signals: {both} %")
        title = f"## {cell[0]}, {cell[1]} signals, {_hidden(cell[2])}"
        head = ["fill", here[0].unit, "ours against it, %"]
        parts += [title, markdown_table(head, body)]
    head = ["data", "signals", "hidden", "best rival", "ours against it, %",
            "against Ledoit-Wolf, %", "against two-level with kernel, %"]  # fmt: skip
    lost = [v for v in verdicts if float(v[4].split()[0]) > 5]
    said = (
        "Nowhere is ours more than 5 % above the best rival."
        if not lost
        else "More than 5 % above the best rival: "
        + "; ".join(f"{v[0]}, {v[1]} signals, {v[2]} ({v[4]} %)" for v in lost)
        + "."
    )
    if taught:
        said += " Ours, transductive, against IterativeImputer that learns from both: "
        said += "; ".join(taught) + "."
    parts[2:2] = ["## Against the best rival of each cell", markdown_table(head, verdicts), said]
    draws = len({row.seed for row in rows})
    commits = ", ".join(sorted({row.commit for row in rows}))
    parts.append(
        f"Mean over {draws} draws with seeds from {FIRST_SEED} up; differences are paired by draw, "
        "with the 95 % interval of Student's t. Made with `python -m benchmarks covariance --data "
        f"DIR --seeds {draws}` at commit {commits}; rows in [{ROWS}]({ROWS})."
    )
    return write_page(out / PAGE, parts)


def _hidden(kind: str) -> str:
    return "a hole" if kind == "hole" else f"{100 * float(kind):g} % hidden"
