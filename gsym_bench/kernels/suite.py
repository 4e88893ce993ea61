"""Which cases are measured, at which sizes, and the processes that do it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gsym_bench.kernels.bars import (
    BARS,
    BOTH,
    CHANNELS,
    EDGES,
    FORWARD,
    GOALS,
    KEPT,
    PLAIN,
    SETTINGS,
    SWEEP,
    Goal,
    Size,
)
from gsym_bench.kernels.cases import CASES
from gsym_bench.kernels.measure import (
    GROWTH,
    LEAST_ROUNDS,
    PROCESSES,
    Job,
    Timed,
    Workload,
    environment,
    make_rows,
)
from gsym_bench.kernels.page import write_page
from gsym_bench.kernels.rows import FILE, Row, merge, read_rows, write_rows
from gsym_bench.kernels.work import OURS
from gsym_bench.suite.errors import BenchmarkError, check_names
from gsym_bench.suite.folder import locked
from gsym_bench.suite.provenance import commit, machine

PROFILES = {
    "quick": "seconds, small sizes: shows that all runs, judges nothing",
    "standard": "all bars, and every case by the number of edges; minutes",
    "full": "every case also to 10^7 edges, from 32 to 256 channels, with gradients and with "
    "torch.compile; hours",
}
ROUNDS = {"quick": 3, "standard": 9, "full": 9}
SECONDS = {"quick": 1.0, "standard": 12.0, "full": 12.0}
PATCHES = (1, 4, 16, 49, 196, 784)
WIDTHS = (32, 128, 256)  # beside CHANNELS

# Entries that torch.compile takes part up to, and rows held in the sweep, where minutes count.
COMPILED_ENTRIES = 64 * 10**6
SWEPT_ROWS = 5 * 10**6


def main(
    out: Path, *, profile: str = "standard", device: str = "cpu", only: Sequence[str] = ()
) -> Path:
    """Measure, and write ``kernels.csv`` and the page ``kernels.md`` with its pictures to ``out``.

    Rows are written as they come and take the place of older ones of the same measurement. Those
    of other processors and devices stay. What this profile has measured at the same commit already
    is not measured again, so that a run that was stopped goes on.

    Args:
        out: Folder to write to.
        profile: One of `PROFILES`.
        device: ``"cpu"`` or ``"cuda"``.
        only: Names of bars to measure, and ``"sweep"`` for all else; everything if empty.

    Returns:
        Path of the page.

    Raises:
        BenchmarkError: An unknown profile, device or bar, a bar of the other device, an ``out``
            that cannot be written or holds rows of other code, or a process that failed.
    """
    check_names("profile", [profile], PROFILES)
    check_names("device", [device], SETTINGS)
    check_names("bar", only, (*BARS, SWEEP))
    for goal in GOALS:
        if goal.bar in only and goal.device != device:
            raise BenchmarkError(f"{goal.bar} is a bar of --device {goal.device}; got {device}")
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("torch finds no CUDA device here; leave --device out for the CPU")
    with locked(out):  # only now: a wrong argument leaves nothing behind
        return _measure(out, profile, device, only)


def _measure(out: Path, profile: str, device: str, only: Sequence[str]) -> Path:
    """Measure what the folder does not hold, and write the page."""
    old = read_rows(out)
    here = device, machine(device)
    new = [row for row in old if (row.device, row.machine) == here and _stands(row, profile)]
    jobs = remaining(plan(profile, device, only), {row.key for row in new})
    console = Console()
    console.print(f"Kernels on {device}, profile {profile}: {PROFILES[profile]}.")
    if new:
        console.print(
            f"{len(new)} rows of this commit stand in {out / FILE}; delete it to measure all anew.",
            soft_wrap=True,
        )
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=sum(len(job.workloads) for job in jobs))
        for job in jobs:
            progress.update(bar, description=job.setting)
            for workload, rows in run(job):
                progress.advance(bar)
                new += rows
                write_rows(out, merge(old, new))
                for line in _summary(workload, rows):
                    console.print(line, highlight=False)
    if not only:
        write_rows(out, merge((row for row in old if (row.device, row.machine) != here), new))
    page = write_page(out)
    console.print(f"The whole report is in {page}", soft_wrap=True)
    return page


def plan(profile: str, device: str, only: Sequence[str] = ()) -> list[Job]:
    """One job per setting: bars, sweeps, then what the pages of the layers are about."""
    sweeps = not only or SWEEP in only
    jobs = []
    for setting in SETTINGS[device]:
        first = setting == SETTINGS[device][0]
        modes: dict[tuple[str, Size], set[str]] = {}
        bars: set[tuple[str, Size]] = set()
        for goal in GOALS:
            if goal.device == device and setting in goal.settings:
                if not only or goal.bar in only:
                    modes.setdefault((goal.case, goal.size), set()).add(goal.mode)
                bars.add((goal.case, goal.size))
        if sweeps and first:
            judged = {(g.case, g.size, g.mode) for g in GOALS if setting in g.settings}
            for key in _swept(profile, device):
                for mode in (FORWARD, BOTH) if profile == "full" else (FORWARD,):
                    if not only or (*key, mode) not in judged:  # which come with their bars
                        modes.setdefault(key, set()).add(mode)
            if device == "cpu":
                for k in PATCHES:
                    modes["GNet, dense", Size(784, k, 28, 64)] = {BOTH}
        if profile == "quick":
            small: dict[tuple[str, Size], set[str]] = {}
            for (case, size), wanted in modes.items():
                small.setdefault((case, _small(case, size)), set()).update(wanted)
            modes = small
        workloads = [
            Workload(
                case,
                size,
                tuple(mode for mode in (FORWARD, BOTH) if mode in wanted),
                compiled=_is_compiled(profile, device, size, (case, size) in bars and first),
            )
            for (case, size), wanted in modes.items()
        ]
        if sweeps and setting in (PLAIN, KEPT) and profile != "quick":
            workloads.append(Workload(GROWTH, Size(10**6, 16, 16), (BOTH,), False))
        if workloads:
            limits = ROUNDS[profile], SECONDS[profile]
            jobs.append(Job(device, setting, profile, *limits, tuple(workloads)))
    return jobs


def remaining(jobs: Sequence[Job], done: Container[tuple[str, str, str, Size, str]]) -> list[Job]:
    """The jobs without what has been measured; ``done`` holds keys of rows."""
    left = []
    for job in jobs:
        workloads = []
        for w in job.workloads:
            keys = ((job.device, job.setting, w.case, w.size, mode) for mode in w.modes)
            modes = tuple(key[-1] for key in keys if key not in done)
            if modes:
                workloads.append(replace(w, modes=modes))
        if workloads:
            left.append(replace(job, workloads=tuple(workloads)))
    return left


def _stands(row: Row, profile: str) -> bool:
    """Whether a row was measured by the same code; of changed files no commit tells."""
    known = commit() != "unknown" and not commit().endswith("+dirty")
    return known and (row.commit, row.profile) == (commit(), profile)


def run(job: Job) -> Iterator[tuple[Workload, list[Row]]]:
    """Measure in new processes: the memory of the CPU in one of its own, see `environment`."""
    # What a device has allocated it says itself, and where freed memory is kept it is not returned.
    apart = job.device == "cpu" and job.setting != KEPT
    with _Worker(environment(job.setting)) as clock, ExitStack() as stack:
        scales = None
        if apart:
            scales = stack.enter_context(_Worker(environment(job.setting, peaks=True)))
        for workload in job.workloads:
            one = replace(job, workloads=(workload,))
            if workload.case == GROWTH:
                yield workload, [Row(**row) for row in clock.ask(one)]
                continue
            if scales is not None:
                memory = scales.ask(replace(one, peaks=True))
                one = replace(job, workloads=(replace(workload, memory=memory),))
            yield workload, _rows(clock, one)


def _rows(clock: _Worker, job: Job) -> list[Row]:
    """The rows of a job of one workload; bars take all rounds, in several processes."""
    (workload,), processes = job.workloads, 1
    goals = _goals(job, workload)
    if any(goal.brief for goal in goals):
        job = replace(job, rounds=LEAST_ROUNDS, seconds=math.inf)
    elif goals:
        processes = PROCESSES
        job = replace(job, rounds=job.rounds // processes, seconds=math.inf)
    found: dict[str, Timed] = {}
    for _ in range(processes):
        for mode, fields in clock.ask(job).items():
            timed = Timed(**fields)
            found[mode] = found[mode] + timed if mode in found else timed
    return [row for mode, timed in found.items() for row in make_rows(job, workload, mode, timed)]


def _goals(job: Job, workload: Workload) -> list[Goal]:
    key = job.device, workload.case, workload.size
    return [g for g in GOALS if (g.device, g.case, g.size) == key and job.setting in g.settings]


class _Worker:
    """A process that measures one job after another."""

    def __init__(self, env: dict[str, str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gsym_bench.kernels.measure"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, job: Job) -> Any:
        """What the process prints on a job of one workload."""
        process, workload = self._process, job.workloads[0]
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # the missing answer says so
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if line:
            return json.loads(line)
        code = process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
        raise BenchmarkError(
            f"measuring {workload.case} at {tuple(workload.size)} with {job.setting} "
            f"ended with code {code}: {last}"
        )


def _swept(profile: str, device: str) -> Iterator[tuple[str, Size]]:
    everything = profile == "full" or device == "cuda"
    edges = [10**power for power in range(3, 8 if everything else 7)]
    for name, case in CASES.items():
        if case.segments is None:
            continue
        places = [(n, CHANNELS) for n in edges if everything or case.held * n <= SWEPT_ROWS]
        if profile == "full":
            places += [(EDGES, channels) for channels in WIDTHS]
        for n, channels in places:
            yield name, Size(n, case.segments(n), channels)


def _is_compiled(profile: str, device: str, size: Size, wanted: bool) -> bool:
    entries = size.n * size.channels * size.batch
    return profile == "full" or (wanted and (device == "cuda" or entries <= COMPILED_ENTRIES))


def _small(case: str, size: Size) -> Size:
    if case.endswith("dense"):
        return Size(16, 4, size.channels, 2)
    if CASES[case].threads == 1:  # a group has the nodes that it has
        return size._replace(channels=8, batch=2)
    factor = max(size.n // 500, 1)
    n, k, channels, batch = size
    return Size(n // factor, max(k // factor, 1), channels, max(batch // factor, 1))


def _summary(workload: Workload, rows: Sequence[Row]) -> Iterator[str]:
    n, k, channels, _ = workload.size
    if not rows:
        yield f"{workload.case} n={n} c={channels}: left out"
    for row in rows:
        if row.variant == OURS:
            others = [r for r in rows if r.mode == row.mode and r.variant != OURS]
            ratios = ", ".join(f"{r.variant} {r.ratio:.2g} {r.met}".strip() for r in others)
            yield f"{row.case} n={n} k={k} c={channels}, {row.mode}, {row.setting}: {ratios}"
