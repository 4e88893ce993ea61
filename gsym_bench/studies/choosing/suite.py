"""Does `choose_group` find the right group? Trials on made-up data, and on the suite's tasks."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import track

from gsym_bench.studies.choosing.conditions import measure as measure_conditions
from gsym_bench.studies.choosing.page import CHOSEN, LEVELS, PARTITIONS, REAL, SIGNALS, report
from gsym_bench.studies.choosing.trials import (
    Real,
    Recovery,
    Trial,
    run_real,
    run_recovery,
    run_trial,
)
from gsym_bench.studies.choosing.twins import INPUTS, TRUTHS
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.provenance import provenance
from gsym_bench.suite.results import read_rows
from gsym_bench.suite.study_tables import write_records

METR_LA = Path("traffic") / "metr_la.npz"
PARTS = ("levels", "partitions", "conditions", "real")
RECOVERY = ((60, 4), (100, 10), (200, 5), (200, 20))
RECOVERY_TRIALS = 10
DIGITS = 6


def main(
    out: Path,
    trials: int,
    data: Path | None = None,
    console: Console | None = None,
    only: str | None = None,
) -> Path:
    """Run all trials, write their CSV files and the page ``choosing.md`` to ``out``.

    Args:
        out: Folder to write to, and to read the suite's results from.
        trials: Trials per cell.
        data: Folder of downloaded data; without it the rows on real data stay as they are.
        console: Where progress goes.
        only: One of :data:`PARTS`, to run that part alone; ``None`` for all.

    Returns:
        Path of the page.
    """
    if trials < 1:
        raise BenchmarkError(f"--trials must be at least 1; got {trials}")
    console = console or Console()
    commit = provenance()["commit"]
    if only in (None, "levels"):
        cells = [(t, i, s) for t in TRUTHS for i in INPUTS for s in SIGNALS]
        jobs = [(*cell, seed) for cell in cells for seed in range(trials)]
        rows = [run_trial(*job, commit) for job in track(jobs, "choosing", console=console)]
        write_records(out / LEVELS, Trial, rows, DIGITS)
    if only in (None, "partitions"):
        cases = [(t, i, *size) for t in TRUTHS[:2] for i in INPUTS for size in RECOVERY]
        searches = [(*case, seed) for case in cases for seed in range(min(trials, RECOVERY_TRIALS))]
        found = [run_recovery(*job, commit) for job in track(searches, "recovery", console=console)]
        write_records(out / PARTITIONS, Recovery, found, DIGITS)
    if only in (None, "conditions"):
        real = None if data is None else data / METR_LA
        measure_conditions(out, trials, real, commit, console)
    if only in (None, "real") and data is not None:
        write_real(out, data, console)
    return report(out)


def write_real(out: Path, data: Path, console: Console) -> None:
    """Choose on the data of every run of :data:`CHOSEN` in the suite's results."""
    commit = provenance()["commit"]
    cells = dict.fromkeys(
        (row.task, row.profile, row.seed)
        for row in read_rows(out)
        if row.group and row.source == "files" and row.task in CHOSEN
    )
    rows = []
    for task, profile, seed in track(list(cells), "real data", console=console):
        rows += run_real(task, data, profile, seed, commit)
    if rows:
        write_records(out / REAL, Real, rows, DIGITS)
