"""How often the signs that belong to a permutation are found: on poses, and on known truths."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, quantiles

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import binomtest

from gsym.choosing import Candidate
from gsym.choosing.signs import sign_patterns
from gsym.groups import PermutationGroup, Representation
from gsym.risk.left_out import LeftOut
from gsym.risk.monomials import MonomialRidge, moves_of
from gsym_bench.suite.engine import check_seeds
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.folder import locked
from gsym_bench.suite.report.markdown import made_with, markdown_table, write_page
from gsym_bench.suite.results import Row, Value, append_row, fitted_row, read_rows, recover
from gsym_bench.tasks.skeleton import REFLECTION, Skeleton

RESULTS, PAGE = "signs.csv", "signs.md"
POSES, TRUTHS = "poses", "truths"
COUNTS = (50, 100, 200, 400)
# Nodes, channels, signals, and the share of noise in the targets of a truth.
NODES, CHANNELS, SIGNALS, NOISE = 10, 2, (50, 100, 200), 0.5
SIGNED, UNSIGNED = "a pattern of signs", "no symmetry"
FOUND, EXCESS, MARGIN = "right", "test error over that of the best pattern", "margin"
TEST_POSES = 1024


def main(out: Path, data: Path | None, draws: int, truths: int, console: Console) -> Path:
    """Find signs on draws of poses and on made-up truths, then write the page.

    Args:
        out: Folder of results and of the page.
        data: Folder of downloaded data; without it the poses are simulated walks.
        draws: Draws of poses at each number of poses.
        truths: Truths at each number of signals, with signs and without symmetry each.
        console: Where to tell the progress.

    Returns:
        Path of the page.
    """
    check_seeds(draws, "--draws")
    check_seeds(truths, "--truths")
    with locked(out):
        recover(out / RESULTS)
        known = {row.key for row in read_rows(out, RESULTS)}
        for row in _cells(data, draws, truths, known):
            append_row(out, row, RESULTS)
            console.print(f"{row.dataset}, {row.model}, seed {row.seed}: {row.test:g}")
        return write(out)


def _cells(data: Path | None, draws: int, truths: int, known: set[str]) -> Iterator[Row]:
    poses = None
    for count in COUNTS:
        for seed in range(draws):
            key = f"{POSES}; {'files' if data else 'embedded'}; {count}; seed {seed}"
            if key not in known:
                poses = poses or _Poses(data)
                yield _row(key, POSES, poses.name, count, SIGNED, seed, data, poses.cell)
    for count in SIGNALS:
        for model, symmetric in ((SIGNED, True), (UNSIGNED, False)):
            for seed in range(truths):
                key = f"{TRUTHS}; {model}; {count}; seed {seed}"
                if key not in known:
                    cell = _Truth(symmetric).cell
                    yield _row(key, TRUTHS, "random maps", count, model, seed, None, cell)


class _Poses:
    """Draws of training poses, and what every pattern errs on test poses."""

    def __init__(self, data: Path | None) -> None:
        problem = Skeleton().load(data, "standard", 0)
        self.name = problem.dataset
        self.true = tuple(rep.signs.tolist() for rep in problem.representations[REFLECTION])
        mirror = problem.groups[REFLECTION]
        self.mirror = PermutationGroup(mirror.num_nodes, mirror.generators)
        self.train = _arrays(problem.train)
        test = _arrays(problem.test)
        step = max(len(test[0]) // TEST_POSES, 1)
        self.test = test[0][::step], test[1][::step]

    def cell(self, count: int, seed: int) -> list[Value]:
        """Whether the true pattern comes first, and what the first one costs on test poses."""
        if count > len(self.train[0]):
            raise BenchmarkError(f"{self.name} has {len(self.train[0]):,} poses; asked for {count}")
        rows = np.random.default_rng((seed, 1)).permutation(len(self.train[0]))[:count]
        x, y = (part[rows] for part in self.train)
        found = sign_patterns(x, y, self.mirror, LeftOut(count, 1))
        errors = self._test_errors(x, y, found)
        assert found[0].in_rep is not None and found[0].out_rep is not None
        right = found[0].in_rep.signs.tolist(), found[0].out_rep.signs.tolist()
        excess = 100 * (errors[0] / min(errors) - 1)
        return [
            Value("test", FOUND, "", float(right == self.true)),
            Value("test", EXCESS, "%", excess),
            Value("test", MARGIN, "standard errors", _margin(found)),
        ]

    def _test_errors(self, x: NDArray, y: NDArray, found: Sequence[Candidate]) -> list[float]:
        """Mean over test poses of the root mean squared error of every pattern."""
        unseen, wanted = self.test
        errors = []
        for pattern in found:
            assert pattern.in_rep is not None
            fit = MonomialRidge(x, y, pattern.in_rep, pattern.out_rep, LeftOut(len(x), 1))
            error = (fit.predict(unseen) - wanted).reshape(len(unseen), -1)
            errors.append(float(np.sqrt((error**2).mean(1)).mean()))
        return errors


class _Truth:
    """Random maps of degree 2 with a random swap of nodes and random signs, or with none."""

    def __init__(self, symmetric: bool) -> None:
        self.symmetric = symmetric

    def cell(self, count: int, seed: int) -> list[Value]:
        """Whether the true pattern comes first, before no symmetry; or no symmetry does."""
        random = np.random.default_rng((seed, 2))
        nodes = random.permutation(NODES).tolist()
        pairs = [(nodes[2 * i], nodes[2 * i + 1]) for i in range(random.integers(1, NODES // 2))]
        group = PermutationGroup.from_cycles(NODES, pairs)
        signs = [random.choice([-1, 1], CHANNELS).tolist() for _ in range(2)]
        reps = [Representation.from_signs(group, [row]) for row in signs]
        x, y = _signals(reps[0], reps[1], count, random, self.symmetric)
        left_out = LeftOut(count, 1)
        [none] = sign_patterns(x, y, PermutationGroup.trivial(NODES), left_out)
        found = sign_patterns(x, y, group, left_out)
        first = found[0] if found[0].errors.mean() < none.errors.mean() else none
        if self.symmetric:
            right = first is not none and [first.in_rep, first.out_rep] == reps
        else:
            right = first is none
        return [
            Value("test", FOUND, "", float(right)),
            Value("test", MARGIN, "standard errors", _margin([*found, none])),
        ]


def _signals(
    in_rep: Representation,
    out_rep: Representation,
    count: int,
    random: np.random.Generator,
    symmetric: bool,
) -> tuple[NDArray, NDArray]:
    """White inputs, and targets by a random map of degree 2 averaged over the group, with noise."""
    moves_in, moves_out = moves_of(in_rep, out_rep)
    width = NODES * CHANNELS
    linear = random.normal(size=(width, width)) / width**0.5
    factors = random.integers(0, width, (2, 3 * width))
    products = random.normal(size=(3 * width, width)) / (3 * width) ** 0.5

    def f(values: NDArray) -> NDArray:
        out: NDArray = values @ linear + (values[:, factors[0]] * values[:, factors[1]]) @ products
        return out

    x = random.normal(size=(count, width))
    y = f(x)
    if symmetric:
        images = moves_in.images(x)  # the swap is its own inverse
        y = np.mean([moves_out.images(f(images[:, e]))[:, e] for e in range(2)], axis=0)
    y = y + NOISE * y.std() * random.normal(size=y.shape)
    return x.reshape(count, NODES, CHANNELS), y.reshape(count, NODES, CHANNELS)


def _margin(found: Sequence[Candidate]) -> float:
    """By how many paired standard errors the lowest error is below the next one."""
    first, second = sorted(found, key=lambda signed: float(signed.errors.mean()))[:2]
    paired = second.errors - first.errors
    return float(paired.mean() / (paired.std(ddof=1) / len(paired) ** 0.5))


def _arrays(split: object) -> tuple[NDArray, NDArray]:
    inputs, targets = (getattr(split, part).double().numpy() for part in ("inputs", "targets"))
    return inputs, targets


def _row(  # type: ignore[no-untyped-def]
    key: str, task: str, dataset: str, count: int, model: str, seed: int, data: Path | None, cell
) -> Row:
    start = time.perf_counter()
    values = cell(count, seed)
    return fitted_row(
        key,
        values,
        task=task,
        dataset=f"{dataset}, {count:,} signals",
        source="files" if data else "embedded",
        model=model,
        seed=seed,
        seconds=round(time.perf_counter() - start, 3),
    )


def write(out: Path) -> Path:
    """Write the page from the results file."""
    rows = read_rows(out, RESULTS)
    if not rows:
        raise BenchmarkError(f"no results in {out / RESULTS}; run gsym-bench signs")
    parts = [
        "# Signs of channels",
        "A mirror of the body exchanges left and right joints *and* reflects the lateral "
        'coordinate. `signs="auto"` looks for the signs that make a permutation of nodes a '
        "symmetry of the data: every pattern of signs of the inputs and of the targets is judged "
        "by the leave-one-out error of ridge on monomials of degree 2 that are tied by the group "
        "with these signs. No network is trained, and no test data are seen by the choice.",
    ]
    poses = [row for row in rows if row.task == POSES]
    truths = [row for row in rows if row.task == TRUTHS]
    if poses:
        parts += [
            "## Poses",
            "Lifting 2D joints to 3D, as in the skeleton task: 4 patterns for the image "
            "coordinates times 8 for the camera's. Each draw takes other training poses. The "
            f"error of a pattern on {TEST_POSES:,} test poses is set against that of the pattern "
            "which is best there; in brackets, the largest of all draws. The margin is how far "
            "the first pattern is ahead of the second, in standard errors of the paired "
            "difference: median and quartiles.",
            markdown_table(
                ["data", "draws", "true pattern", "test error over the best", "margin"],
                [_pose_cells(group) for group in _grouped(poses)],
            ),
        ]
    if truths:
        parts += [
            "## Known truths",
            f"Random maps of degree 2 on {NODES} nodes with {CHANNELS} channels in and out; a "
            "swap of random nodes and random signs are a symmetry of the map, or nothing is. "
            f"Noise has {NOISE:g} times the standard deviation of the targets. Right is the true "
            "pattern, before no symmetry; or no symmetry, before all 16 patterns.",
            markdown_table(
                ["signals", "truth", "truths", "right"],
                [_truth_cells(group) for group in _grouped(truths)],
            ),
        ]
    source = " --data DIR" if any(row.source == "files" for row in rows) else ""
    draws, maps = (max((r.seed + 1 for r in part), default=0) for part in (poses, truths))
    command = f"gsym-bench signs{source} --draws {draws} --truths {maps}"
    parts.append(f"{made_with(command, rows)}; the rows stand in [{RESULTS}]({RESULTS}).")
    return write_page(out / PAGE, parts)


def _grouped(rows: Sequence[Row]) -> list[list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.dataset, row.model), []).append(row)
    return list(found.values())


def _share(rows: Sequence[Row]) -> str:
    """Share of rows that are right, with the 95 % interval of Clopper and Pearson."""
    right = sum(row.value("test", FOUND) == 1.0 for row in rows)
    interval = binomtest(right, len(rows)).proportion_ci()
    share = 100 * right / len(rows)
    return f"{share:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def _pose_cells(rows: Sequence[Row]) -> list[str]:
    excess = [value for row in rows if (value := row.value("test", EXCESS)) is not None]
    margin = [value for row in rows if (value := row.value("test", MARGIN)) is not None]
    low, middle, high = quantiles(margin, n=4) if len(margin) > 1 else margin * 3
    return [
        rows[0].dataset,
        str(len(rows)),
        _share(rows),
        f"{mean(excess):.1f} % ({max(excess):.1f})",
        f"{middle:.1f} ({low:.1f} to {high:.1f})",
    ]


def _truth_cells(rows: Sequence[Row]) -> list[str]:
    count = rows[0].dataset.rsplit(", ", 1)[1].split()[0]
    return [count, rows[0].model, str(len(rows)), _share(rows)]
