"""How fast SymmetricCovariance is fitted, beside scikit-learn's estimators on the same signals."""

from __future__ import annotations

import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from sklearn.covariance import OAS, GraphicalLassoCV, LedoitWolf
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from gsym import Partition, SymmetricCovariance
from gsym.risk._em import Completed
from gsym.risk._folds import make_folds
from gsym.risk._problem import make_problem
from gsym.risk._terms import read_terms, ward_chain
from gsym_bench.data import load_images
from gsym_bench.suite.folder import locked
from gsym_bench.suite.memory import in_new_process
from gsym_bench.suite.provenance import commit, machine
from gsym_bench.suite.report.markdown import markdown_table, write_page
from gsym_bench.suite.study_tables import read_records, write_records
from gsym_bench.tasks.traffic import metr_la

ROWS, PAGE = "soft.csv", "soft.md"
# One thread: its processor time is what a fit takes on a core of its own, whatever else runs.
THREADS, ROUNDS = 1, 3
PIXELS, SENSORS, LARGE = "pixels", "sensors", "many nodes"
OURS, AUTO = "SymmetricCovariance, likelihood", "SymmetricCovariance"
# So slow that one round must do.
ONCE = (AUTO, "GraphicalLassoCV")
# Seconds of processor time that a fit of ours may take by likelihood.
BARS = {PIXELS: 3.0, SENSORS: 3.0}
HELD = 500
# The same and MiB, by number of nodes; levels, and signals.
NODES = {10**4: None, 10**5: (15.0, 1024.0), 10**6: (60.0, 3072.0)}
CLUSTERS, SIGNALS = (256, 32, 4), 200
# A step at the most nodes over one at the fewest.
GROWTH = 1.25


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        case: ``PIXELS``, ``SENSORS`` or ``LARGE``.
        variant: What was fitted.
        source: ``"files"``, or ``"made up"``.
        n: Number of nodes.
        signals: Number of signals.
        levels: Number of levels; 0 for others.
        seconds: Of a fit, the median over rounds.
        cpu_s: Processor time of a fit over all threads; bars are held against it.
        step_ms: Processor time of one evaluation of the likelihood and its gradient.
        memory_mib: Peak of the process, imports and signals included.
        density: Mean log density of held-out signals, per entry.
        met: ``"yes"``, ``"no"``, or nothing where there is no bar.
        threads: Threads.
        commit: Source revision.
        torch: Version of torch.
        machine: Name of the processor.
    """

    case: str
    variant: str
    source: str
    n: int
    signals: int
    levels: int
    seconds: float
    cpu_s: float
    step_ms: float
    memory_mib: float
    density: float
    met: str
    threads: int
    commit: str
    torch: str
    machine: str


def main(out: Path, data: Path | None, console: Console) -> Path:
    """Measure, and write ``soft.csv`` and ``soft.md``.

    Args:
        out: Folder to write to.
        data: Folder of downloaded data; without it signals are made up.
        console: Where every row is told.

    Returns:
        Path of the page.
    """
    with locked(out):
        rows: list[Row] = []
        for n in NODES:
            rows.append(in_new_process(many_nodes, n))
            console.print(rows[-1])
        for case in (PIXELS, SENSORS):
            rows += beside_others(case, data)
            console.print(*rows[-4:])
        write_records(out / ROWS, Row, rows)
        return report(out)


def many_nodes(n: int, signals: int = SIGNALS) -> Row:
    """A fit along clusters of many nodes, and a step of it."""
    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    # Clusters are scattered: nodes that stand together would be read faster.
    labels = {CLUSTERS[0]: rng.permutation(n) % CLUSTERS[0]}
    for coarse in CLUSTERS[1:]:
        labels[coarse] = labels[CLUSTERS[0]] * coarse // CLUSTERS[0]
    x = np.empty((signals, n))
    for row in x:
        rng.standard_normal(n, out=row)
        for count, own in labels.items():
            row += rng.standard_normal(count)[own]
    levels = [Partition.singletons(n), *(Partition.from_labels(own) for own in labels.values())]
    with threadpool_limits(THREADS):
        start, cpu = time.perf_counter(), time.process_time()
        cov = SymmetricCovariance(levels, objective="likelihood").fit(x)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        # Before anything else is computed.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = peak / (2**20 if sys.platform == "darwin" else 2**10)
        step = _step(levels, x, np.array(list(cov.weights_.values())))
    met = ""
    if (bar := NODES.get(n)) is not None:
        met = "yes" if cpu <= bar[0] and memory <= bar[1] else "no"
    numbers = seconds, cpu, step, memory, float("nan")
    return _row(LARGE, OURS, "made up", x, len(levels), numbers, met)


def _step(levels: Sequence[Partition], x: NDArray, weights: NDArray) -> float:
    """Milliseconds of the processor for one evaluation of the likelihood and its gradient."""
    terms = read_terms(levels, (), None, None, None, x.shape[1], 1)
    data = Completed(x, np.broadcast_to(True, x.shape))
    loss = make_problem(terms, data, (x.shape[1], 1), make_folds(x, 1)).likelihood
    loss(weights)
    times = []
    for _ in range(9):
        start = time.process_time()
        loss(weights)
        times.append(1e3 * (time.process_time() - start))
    return median(times)


def beside_others(case: str, data: Path | None, rounds: int = ROUNDS) -> list[Row]:
    """Fits of every estimator to the same signals, in an order that each round draws anew."""
    torch.set_num_threads(THREADS)
    train, held, levels = signals_of(case, data)
    fits: dict[str, Callable[[], Any]] = {
        OURS: lambda: SymmetricCovariance(levels, objective="likelihood"),
        AUTO: lambda: SymmetricCovariance(levels),
        "LedoitWolf": LedoitWolf,
        "OAS": OAS,
    }
    if case == SENSORS:
        fits["GraphicalLassoCV"] = GraphicalLassoCV
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in fits}
    density = {}
    rng = np.random.default_rng(0)
    with threadpool_limits(THREADS), warnings.catch_warnings():
        # The graphical lasso says that it has not converged.
        warnings.simplefilter("ignore")
        LedoitWolf().fit(train)
        for turn in range(rounds):
            for name in map(str, rng.permutation(list(fits))):
                if turn and name in ONCE:
                    continue
                start, cpu = time.perf_counter(), time.process_time()
                found = fits[name]().fit(train)
                taken[name].append((time.perf_counter() - start, time.process_time() - cpu))
                density[name] = float(found.score(held)) / held.shape[1]
    rows = []
    for name, times in taken.items():
        seconds, cpu = (median(column) for column in zip(*times, strict=True))
        met = "" if name != OURS else "yes" if cpu <= BARS[case] else "no"
        count = len(levels) if name in (OURS, AUTO) else 0
        numbers = seconds, cpu, float("nan"), float("nan"), density[name]
        source = "files" if data else "made up"
        rows.append(_row(case, name, source, train, count, numbers, met))
    return rows


def signals_of(case: str, data: Path | None) -> tuple[NDArray, NDArray, list[Partition]]:
    """Signals to fit to and held-out ones, and the levels of a case."""
    rng = np.random.default_rng(0)
    if case == PIXELS:
        count, side = 100, 28
        if data is None:
            x = _field(np.stack(np.divmod(np.arange(side**2), side), 1) / side, count + HELD, rng)
            train, held = x[:count], x[count:]
        else:
            images = load_images(data, "fashion-mnist")
            train, held = (
                part[rng.choice(len(part), size, replace=False)].reshape(size, -1) / 255
                for part, size in ((images.x_train, count), (images.x_test, HELD))
            )
        return train, held, [Partition.grid(side, side, w) for w in (1, 2, 4, 7, 14, 28)]
    n, count = 207, 400
    if data is None:
        x = _field(rng.uniform(size=(n, 2)), count + HELD, rng)
        train, held = x[:count], x[count:]
    else:
        speed = metr_la(data).speed.numpy().astype(np.float64)
        whole = speed[(speed > 0).all(1)]
        x = whole[rng.choice(len(whole), count + HELD, replace=False)]
        train, held = x[:count], x[count:]
    chain = ward_chain(train[:, :, None], (120, 69, 40, 23, 13, 7, 3))
    return train, held, [Partition.singletons(n), *chain, Partition.single(n)]


def _field(place: NDArray, count: int, rng: np.random.Generator) -> NDArray:
    """Signals of nodes that are alike where they are near."""
    apart = ((place[:, None] - place[None]) ** 2).sum(-1)
    covariance = np.exp(-apart / 0.02) + np.exp(-apart / 0.5) + 0.1 * np.eye(len(place))
    return rng.standard_normal((count, len(place))) @ np.linalg.cholesky(covariance).T


def _row(
    case: str,
    variant: str,
    source: str,
    x: NDArray,
    levels: int,
    numbers: Sequence[float],
    met: str,
) -> Row:
    names = "seconds", "cpu_s", "step_ms", "memory_mib", "density"
    return Row(
        case=case,
        variant=variant,
        source=source,
        n=x.shape[1],
        signals=len(x),
        levels=levels,
        **{k: float(f"{v:.4g}") for k, v in zip(names, numbers, strict=True)},
        met=met,
        threads=THREADS,
        commit=commit(),
        torch=torch.__version__,
        machine=machine("cpu"),
    )


def report(out: Path) -> Path:
    """Write the page from the rows."""
    rows = read_records(out / ROWS, Row)
    first = rows[0]
    large = [row for row in rows if row.case == LARGE]
    parts = [
        "# Speed of soft groups",
        "Fits of `SymmetricCovariance`, whose weights are found by L-BFGS to a gradient of 1e-6 "
        "nats per entry over five folds, and of scikit-learn's estimators on the same signals in "
        "the same run. Density is the mean log density of held-out signals per entry, in nats; "
        "higher is better. *Likelihood* finds weights by likelihood alone; without the word, what "
        "fills gaps is fitted, too: weights by imputation error, and shares of other fills. "
        f"{first.threads} thread{'s' * (first.threads > 1)}; bars are held against processor time, "
        "which other work on the machine does not lengthen, and wall time stands beside it.",
    ]
    titles = {
        PIXELS: "images of 28 x 28 pixels, levels of square patches",
        SENSORS: "sensors, levels by Ward's clustering",
    }
    for case, title in titles.items():
        here = [row for row in rows if row.case == case]
        if not here:
            continue
        one = here[0]
        made = {PIXELS: "Fashion-MNIST", SENSORS: "METR-LA"}[case]
        parts += [
            f"## {one.n} {case}",
            f"{one.signals} signals of {made if one.source == 'files' else 'a made-up field'}: "
            f"{title}. The bar of ours by likelihood is {BARS[case]:g} s.",
            markdown_table(
                ["estimator", "levels", "seconds", "CPU s", "held-out density", "met"],
                [
                    [
                        r.variant,
                        str(r.levels or "-"),
                        f"{r.seconds:.3g}",
                        f"{r.cpu_s:.3g}",
                        f"{r.density:.4g}",
                        r.met or "-",
                    ]
                    for r in here
                ],
            ),
        ]
    if large:
        ratio = large[-1].step_ms / large[0].step_ms
        bars = "; ".join(
            f"{n:,} nodes in {bar[0]:g} s and {bar[1]:,.0f} MiB" for n, bar in NODES.items() if bar
        )
        parts += [
            "## Many nodes",
            f"{large[0].signals} made-up signals; the trivial level and "
            f"{', '.join(map(str, CLUSTERS))} clusters of nodes in random order, each number of "
            "nodes in a process of its own, whose peak of memory holds imports and signals, too. "
            f"Bars: {bars}. Estimators that store nodes by nodes would need "
            f"{8 * large[-1].n ** 2 / 2**40:.1f} TiB for the most.",
            markdown_table(
                ["nodes", "seconds", "CPU s", "a step, ms", "signals, MiB", "peak, MiB", "met"],
                [
                    [
                        f"{r.n:,}",
                        f"{r.seconds:.3g}",
                        f"{r.cpu_s:.3g}",
                        f"{r.step_ms:.3g}",
                        f"{8 * r.n * r.signals / 2**20:,.0f}",
                        f"{r.memory_mib:,.0f}",
                        r.met or "-",
                    ]
                    for r in large
                ],
            ),
            f"A step at {large[-1].n:,} nodes takes {ratio:.2f} times as long as one at "
            f"{large[0].n:,}: it does {'not ' if ratio <= GROWTH else ''}grow with the nodes.",
        ]
    missed = [f"{r.n:,} {r.case}" for r in rows if r.met == "no"]
    judged = sum(bool(row.met) for row in rows)
    parts.append(
        f"All {judged} bars are met." if not missed else f"Bars missed: {', '.join(missed)}."
    )
    parts.append(
        f"Made by `gsym-bench soft{' --data DIR' * (rows[-1].source == 'files')}` on "
        f"{first.machine} with torch {first.torch} at commit {first.commit}; rows in "
        f"[{ROWS}]({ROWS})."
    )
    return write_page(out / PAGE, parts)
