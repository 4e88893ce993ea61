"""The page of fills of real signals: every cell, and where an aim holds and where it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsym_bench.models.fills import (
    CHAINED,
    COVERAGE,
    LEDOIT_WOLF,
    LIKELIHOOD,
    OURS,
    TAUGHT,
    TWO_LEVEL,
    WAYS,
)
from gsym_bench.studies.covariance.sources import CELLS, HOLE, SCATTERED, UNTUNED, Cell
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.markdown import made_with, markdown_table, write_page
from gsym_bench.suite.report.statistics import mean_interval
from gsym_bench.suite.results import Row, read_rows

ROWS, PAGE = "covariance.csv", "covariance.md"
ERROR = "error"
# Draws that were asked for.
DRAWS = 10

# Errors by name of the fill and by seed.
Errors = Mapping[str, Mapping[int, float]]


def cell_of(row: Row) -> Cell:
    """The cell that a row belongs to."""
    signals, hidden, drawn = row.schedule.split("; ")
    return Cell(row.dataset, int(signals), hidden if hidden == HOLE else float(hidden), drawn)


def errors_of(rows: Sequence[Row]) -> dict[Cell, dict[str, dict[int, float]]]:
    """Errors by cell, fill and seed; cells in the order in which they are run."""
    found: dict[Cell, dict[str, dict[int, float]]] = {}
    for row in rows:
        if row.test is not None:
            found.setdefault(cell_of(row), {}).setdefault(row.model, {})[row.seed] = row.test
    order = {cell: i for i, cell in enumerate(CELLS)}
    return {cell: found[cell] for cell in sorted(found, key=lambda c: order.get(c, len(order)))}


def against(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float, int]:
    """By how many per cent ours is above theirs on the draws of both, paired.

    Returns:
        The mean, its 95 % reach (NaN of one draw), and the number of draws.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return float("nan"), float("nan"), 0
    a, b = (np.array([side[seed] for seed in seeds]) for side in (ours, theirs))
    ratio: NDArray = 100 * (a - b) / b.mean()
    found = mean_interval(ratio)
    return found.mean, found.high - found.mean if len(ratio) > 1 else float("nan"), len(ratio)


def _said(mean: float, reach: float, draws: int) -> str:
    if not draws:
        return "-"
    return f"{mean:+.1f}" + (f" ± {reach:.1f}" if draws > 1 else "")


def worst_of(errors: Errors, *, gaussian: bool) -> tuple[str, tuple[float, float, int]]:
    """The rival that ours is least below, or most above, on the draws of both."""
    rivals = [
        name
        for name, way in WAYS.items()
        if name in errors
        and name not in (OURS, LIKELIHOOD)
        and not way.learns_from_both
        and (way.is_gaussian or not gaussian)
    ]
    found = {name: against(errors[OURS], errors[name]) for name in rivals}
    found = {name: pair for name, pair in found.items() if pair[2]}
    if not found:
        return "-", (float("nan"), float("nan"), 0)
    name = max(found, key=lambda rival: found[rival][0])
    return name, found[name]


def aims(cells: Mapping[Cell, Errors]) -> list[str]:
    """A line for every aim: whether it holds, and where it fails."""
    lines = []
    for limit, gaussian, words in (
        (2.0, True, "the best Gaussian rival"),
        (5.0, False, "any rival"),
    ):
        found = {cell: worst_of(errors, gaussian=gaussian) for cell, errors in cells.items()}
        failed = [
            f"{cell} ({_said(*pair)} % against {name})"
            for cell, (name, pair) in found.items()
            if pair[0] > limit
        ]
        lines.append(_line(f"Never more than {limit:g} % above {words}", len(found), failed))
    few = {cell: errors for cell, errors in cells.items() if cell.signals <= 100}
    gained = _pairs(few, OURS, LEDOIT_WOLF)
    less = _above(gained, -8.0)
    enough = len(gained) - len(less)
    lines.append(
        "8 % below Ledoit-Wolf in three quarters of the cells of up to 100 signals: "
        f"**{'holds' if enough >= 0.75 * len(gained) else 'fails'}**, in {enough} of {len(gained)}"
        + (f"; not in {'; '.join(less)}." if less else ".")
    )
    traffic = {
        cell: errors
        for cell, errors in few.items()
        if (cell.data, cell.hidden, cell.drawn) == ("METR-LA", 0.4, SCATTERED)
    }
    poses = {cell: errors for cell, errors in few.items() if cell.data == "CMU"}
    for some, least, where in (
        (traffic, 2.0, "METR-LA with sensors hidden at random, of up to 100 signals"),
        (poses, 5.0, "poses of up to 100 signals"),
    ):
        pairs = _pairs(some, OURS, TWO_LEVEL)
        aim = f"{least:g} % below two-level with kernel on {where}"
        lines.append(_line(aim, len(pairs), _above(pairs, -least)))
    both = _pairs(traffic, TAUGHT, CHAINED)
    aim = (
        "Taught by the signals to be filled, 5 % below IterativeImputer that is, too, at 25 and "
        "100 steps of METR-LA"
    )
    done = "; ".join(f"{cell} {_said(*pair)} %" for cell, pair in both.items())
    lines.append(_line(aim, len(both), _above(both, -5.0)) + f" Measured: {done}." * bool(both))
    return lines


def _pairs(
    cells: Mapping[Cell, Errors], one: str, other: str
) -> dict[Cell, tuple[float, float, int]]:
    """By how many per cent one fill is above another, where both were run on a draw."""
    found = {
        cell: against(errors.get(one, {}), errors.get(other, {})) for cell, errors in cells.items()
    }
    return {cell: pair for cell, pair in found.items() if pair[2]}


def _above(pairs: Mapping[Cell, tuple[float, float, int]], limit: float) -> list[str]:
    """Where the mean is above a limit, in words."""
    return [f"{cell} ({_said(*pair)} %)" for cell, pair in pairs.items() if pair[0] > limit]


def _line(aim: str, judged: int, failed: Sequence[str]) -> str:
    if not judged:
        return f"{aim}: **not run**."
    if not failed:
        return f"{aim}: **holds**, in all {judged} cells that were run."
    return f"{aim}: **fails**, in {len(failed)} of {judged} cells: {'; '.join(failed)}."


def _unfinished(cells: Mapping[Cell, Errors]) -> list[str]:
    """What was asked for and not run."""
    missing = [str(cell) for cell in CELLS if cell not in cells or OURS not in cells[cell]]
    lines = []
    if missing:
        lines.append(f"Not run, {len(missing)} of {len(CELLS)} cells: {'; '.join(missing)}.")
    draws = {cell: len(errors[OURS]) for cell, errors in cells.items() if OURS in errors}
    if draws and min(draws.values()) < DRAWS:
        lines.append(
            f"Of the {DRAWS} draws that were asked for, cells have {min(draws.values())} to "
            f"{max(draws.values())}."
        )
    absent = {
        name: sum(name not in errors for errors in cells.values())
        for name, way in WAYS.items()
        if not way.learns_from_both
    }
    said = [f"{name} in {count}" for name, count in absent.items() if count]
    if said:
        lines.append(
            f"Rivals that were not run in all of the {len(cells)} cells: {', '.join(said)}."
        )
    return lines


def report(out: Path) -> Path:
    """Write the page from the rows.

    Raises:
        BenchmarkError: There are none.
    """
    rows = read_rows(out, ROWS)
    if not rows:
        raise BenchmarkError(f"no results in {out / ROWS}")
    found = errors_of(rows)
    cells = {cell: errors for cell, errors in found.items() if OURS in errors}
    units = {cell_of(row): row.unit for row in rows}
    coverage: dict[Cell, list[float]] = {}
    for row in rows:
        value = row.value("test", COVERAGE)
        if row.model == OURS and value is not None:
            coverage.setdefault(cell_of(row), []).append(value)
    diverged = [row for row in rows if row.status == "diverged"]
    body = []
    for cell, errors in cells.items():
        name, pair = worst_of(errors, gaussian=False)
        gaussian, other = worst_of(errors, gaussian=True)
        inside = coverage.get(cell)
        body.append([
            str(cell) + (" *" if cell.data in UNTUNED else ""),
            str(len(errors[OURS])),
            name,
            _said(*pair),
            gaussian,
            _said(*other),
            *(
                _said(*against(errors[OURS], errors.get(rival, {})))
                for rival in (LEDOIT_WOLF, TWO_LEVEL)
            ),
            f"{100 * float(np.mean(inside)):.0f}" if inside else "-",
        ])  # fmt: skip
    head = ["cell", "draws", "best rival", "ours against it, %", "best Gaussian rival",
            "ours against it, %", "against Ledoit-Wolf, %", "against two-level with kernel, %",
            "inside 90 % intervals, %"]  # fmt: skip
    parts = [
        "# Filling gaps",
        "What is hidden of real signals is filled by `SymmetricCovariance` and by others, from few "
        "signals to learn from. Draws are random signals, or a stretch of history; signals "
        "to be filled are from a later part or another set. Each draw hides nodes at random, or a "
        "hole: the nearest 30 % of sensors, or a square of pixels. Ours is told the kind of gaps "
        "by 8 patterns of other draws, and the places of nodes or the skeleton; on poses its "
        "levels are the trivial group, S_16 and the mirror with the sign of the lateral "
        "coordinate. Names with *kernel* are the same sum with fewer levels and weights by "
        "likelihood. *Best hard group* is one level and a ridge, the level that errs least on the "
        "test signals themselves. *Transductive* and *both* also learn from what is seen of the "
        "signals to be filled. IterativeImputer uses 20 nodes for each and 5 rounds; the graphical "
        "lasso has one of five penalties by three folds, on coordinates of unit variance. Nobody "
        "looked at the data sets marked * before the estimator was done.",
        "## Aims",
        "Judged by means over draws, whatever their intervals; a cell of one draw has none.",
        "\n".join(f"- {line}" for line in aims(cells)),
        *_unfinished(cells),
        "## Against the best rival of each cell",
        "The best rival is the one that ours is least below, on the draws that both have. "
        "Intervals are promised for signals like those of the fit, in any order: a stretch of "
        "history does not tell the next one's spread.",
        markdown_table(head, body),
    ]
    if diverged:
        names = sorted({f"{row.model} on {cell_of(row)}" for row in diverged})
        parts.append(f"Did not converge in {len(diverged)} draws: {'; '.join(names)}.")
    for cell, errors in cells.items():
        means = {name: float(np.mean(list(values.values()))) for name, values in errors.items()}
        ranked = sorted(means.items(), key=lambda item: item[1])
        parts += [
            f"## {cell}",
            markdown_table(
                ["fill", units[cell], "draws", "ours against it, %"],
                [
                    [
                        name,
                        f"{mean:.4g}",
                        str(len(errors[name])),
                        "" if name == OURS else _said(*against(errors[OURS], errors[name])),
                    ]
                    for name, mean in ranked
                ],
            ),
        ]
    seeds = sorted({row.seed for row in rows})
    command = f"gsym-bench covariance --data DIR --seeds {len(seeds)}"
    parts.append(
        f"Means over draws with seeds from {seeds[0]} up; differences are paired by draw, with the "
        f"95 % interval of Student's t. {made_with(command, rows)}; rows in [{ROWS}]({ROWS})."
    )
    return write_page(out / PAGE, parts)
