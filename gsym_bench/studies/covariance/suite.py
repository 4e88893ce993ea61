"""Filling gaps of real signals, cell by cell and draw by draw."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console

from gsym_bench.models.fills import COVERAGE, WAYS, Draw, Source, covered
from gsym_bench.studies.covariance import page
from gsym_bench.studies.covariance.sources import CELLS, SOURCES, Cell, draw
from gsym_bench.suite.engine import check_seeds
from gsym_bench.suite.errors import BenchmarkError, check_names
from gsym_bench.suite.folder import locked
from gsym_bench.suite.results import Row, Value, append_row, fitted_row, read_rows, recover

# Draws of earlier trials had smaller seeds.
FIRST_SEED = 3000
# So many fills of a kind say how long the next takes.
_RECENT = 3
CORE = "core seconds"
# A cell, a seed and the name of a fill.
Job = tuple[Cell, int, str]


def main(
    out: Path,
    data: Path | None,
    seeds: int,
    console: Console,
    minutes: float | None = None,
    only: Sequence[str] = (),
) -> Path:
    """Run the fills that are missing, and write the page.

    Args:
        out: Folder of the rows and the page.
        data: Folder of downloaded data.
        seeds: Number of draws of every cell.
        console: Where to tell the progress.
        minutes: After which no further fill is begun.
        only: Names of data sets to run; all if there are none.

    Returns:
        Path of the page.

    Raises:
        BenchmarkError: No data, a data set of another name, or a number of draws that cannot be
            meant.
    """
    check_seeds(seeds)
    if data is None:
        raise BenchmarkError("covariance needs real signals: --data DIR")
    check_names("data set", only, SOURCES)
    end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    with locked(out):
        recover(out / page.ROWS)
        rows = read_rows(out, page.ROWS)
        known = {row.key for row in rows}
        wanted = [cell for cell in CELLS if not only or cell.data in only]
        sources = {name: SOURCES[name](data) for name in dict.fromkeys(c.data for c in wanted)}
        todo = [
            (cell, seed, name)
            for cell, seed, name in plan(seeds, wanted)
            if key_of(cell, seed, name) not in known and runs(name, cell, sources[cell.data])
        ]
        first = probes(todo, rows)
        if first:
            console.print(f"{len(first)} fills tell how long all {len(todo):,} will take")
        todo = list(dict.fromkeys([*first, *todo]))
        last: tuple[object, Draw] | None = None
        for i, (cell, seed, name) in enumerate(todo):
            if i == len(first):
                console.print(forecast(todo[i:], rows))
            if time.monotonic() > end:
                console.print(f"{minutes:g} minutes are over; the same command goes on from here")
                break
            if last is None or last[0] != (cell, seed):
                last = (cell, seed), draw(sources[cell.data], cell, seed)
            row = run(key_of(cell, seed, name), cell, last[1], seed, name)
            append_row(out, row, page.ROWS)
            rows.append(row)
            console.print(f"{cell}, seed {seed}, {name}: {row.test or row.status}")
        return page.report(out)


def key_of(cell: Cell, seed: int, name: str) -> str:
    """What tells one fill of one draw from others."""
    return f"{cell.data}; {cell.signals}; {cell.hidden}; {cell.drawn}; {name}; seed {seed}"


def plan(seeds: int, cells: Sequence[Cell] = CELLS) -> Iterator[Job]:
    """Everything in the order in which it is run: draw by draw, slow fills last of all."""
    for is_slow in (False, True):
        names = [name for name, way in WAYS.items() if way.is_slow == is_slow]
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            for cell in cells:
                for name in names:
                    yield cell, seed, name


def runs(name: str, cell: Cell, source: Source) -> bool:
    """Whether a fill is run in a cell."""
    both = WAYS[name].learns_from_both
    return not both or (cell.signals <= source.taught and cell.hidden == 0.4)


def probes(todo: Sequence[Job], rows: Sequence[Row]) -> list[Job]:
    """Fills that tell how long others will take: of the fewest and of the most signals.

    Args:
        todo: What is left.
        rows: What is done, of which data and fills that some row times need no further one.
    """
    timed = {(row.dataset, row.model) for row in rows if row.value("train", CORE) is not None}
    kinds: dict[tuple[str, str], list[Job]] = {}
    for job in todo:
        kinds.setdefault((job[0].data, job[2]), []).append(job)
    ends = [
        end(jobs, key=lambda job: job[0].signals)
        for kind, jobs in kinds.items()
        if kind not in timed
        for end in (min, max)
    ]
    return list(dict.fromkeys(ends))


def forecast(todo: Sequence[Job], rows: Sequence[Row]) -> str:
    """How long fills will take, in words: as the last ones of these data and signals did.

    Where none was of as many signals, by those of the nearest number.
    """
    taken: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows:
        core = row.value("train", CORE)
        if core is not None:
            kind = taken.setdefault((row.dataset, row.model), {})
            kind.setdefault(page.cell_of(row).signals, []).append(core)
    seconds, guessed, unknown = 0.0, 0, 0
    for cell, _, name in todo:
        known = taken.get((cell.data, name))
        if known is None:
            unknown += 1
            continue
        nearest = min(known, key=lambda s: abs(math.log(s / cell.signals)))
        guessed += nearest != cell.signals
        seconds += median(known[nearest][-_RECENT:])
    return (
        f"{len(todo):,} fills remain, about {seconds / 60:,.0f} minutes of one core; "
        f"{guessed:,} of them by how long those of other numbers of signals took"
        + (f"; and {unknown:,} that none tells of" if unknown else "")
        + "."
    )


def run(key: str, cell: Cell, given: Draw, seed: int, name: str) -> Row:
    """One fill of one draw."""
    start, core, values = time.perf_counter(), time.process_time(), []
    status = "ok"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filled, variance = WAYS[name].fill(given)
        error = given.source.error((filled - given.test)[~given.seen])
        values.append(Value("test", page.ERROR, given.source.unit, error))
        if variance is not None:
            values.append(Value("test", COVERAGE, "", covered(given, filled, variance)))
    except (FloatingPointError, np.linalg.LinAlgError) as cause:
        status = "diverged"
        values = [Value("test", page.ERROR, given.source.unit, None, str(cause)[:80])]
    values.append(Value("train", CORE, "s", time.process_time() - core))
    return fitted_row(
        key,
        values,
        task="filling gaps",
        dataset=cell.data,
        source="files",
        schedule=f"{cell.signals}; {cell.hidden}; {cell.drawn}",
        model=name,
        seed=seed,
        status=status,
        seconds=round(time.perf_counter() - start, 3),
    )
