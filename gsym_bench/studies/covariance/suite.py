"""Filling gaps of real signals, cell by cell and draw by draw."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

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
        known = {row.key for row in read_rows(out, page.ROWS)}
        sources: dict[str, Source] = {}
        last: tuple[object, Draw] | None = None
        for cell, seed, name in plan(seeds):
            key = f"{cell.data}; {cell.signals}; {cell.hidden}; {cell.drawn}; {name}; seed {seed}"
            if key in known or (only and cell.data not in only):
                continue
            if time.monotonic() > end:
                console.print(f"{minutes:g} minutes are over; the same command goes on from here")
                break
            if cell.data not in sources:
                sources[cell.data] = SOURCES[cell.data](data)
            source = sources[cell.data]
            if WAYS[name].learns_from_both and (cell.signals > source.taught or cell.hidden != 0.4):
                continue
            if last is None or last[0] != (cell, seed):
                last = (cell, seed), draw(source, cell, seed)
            row = run(key, cell, last[1], seed, name)
            append_row(out, row, page.ROWS)
            console.print(f"{cell}, seed {seed}, {name}: {row.test or row.status}")
        return page.report(out)


def plan(seeds: int) -> Iterator[tuple[Cell, int, str]]:
    """Everything in the order in which it is run: draw by draw, slow fills last of all."""
    for is_slow in (False, True):
        names = [name for name, way in WAYS.items() if way.is_slow == is_slow]
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            for cell in CELLS:
                for name in names:
                    yield cell, seed, name


def run(key: str, cell: Cell, given: Draw, seed: int, name: str) -> Row:
    """One fill of one draw."""
    start, values = time.perf_counter(), []
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
