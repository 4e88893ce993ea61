"""Run cells: what is finished is kept, an interrupted cell goes on, and every row is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gsym_bench.suite.display import Display
from gsym_bench.suite.errors import BenchmarkError, check_names
from gsym_bench.suite.executors import Executor, Here, Processes
from gsym_bench.suite.folder import locked
from gsym_bench.suite.forecast import Forecast, expect
from gsym_bench.suite.processes import leads
from gsym_bench.suite.provenance import version
from gsym_bench.suite.results import (
    RESULTS,
    SIGNALS,
    Row,
    Value,
    append_row,
    read_rows,
    recover,
)
from gsym_bench.suite.train import CHECKPOINT_SECONDS
from gsym_bench.suite.work import Job, Unit, Worker, check_device, digest

__all__ = ["ENGINES", "Engine", "Job", "check_means", "check_request", "check_seeds", "digest"]

ENGINES = ("local", "ray")
MOST_SEEDS = 1000


Plan = Callable[[], tuple[Sequence[Job], Iterable[Job | Unit]]]


@dataclass(frozen=True)
class Engine:
    """Runs jobs, here or elsewhere, and stores their rows; this process alone writes them.

    Attributes:
        out: Folder of results, created if absent.
        name: Name of the results file in it.
        device: One of `work.DEVICES`; ``"auto"`` takes CUDA where there is a device.
        checkpoint_seconds: Shortest time between two checkpoints.
        console: Where to say what is going on; standard output by default.
        workers: Processes of this machine that run cells; with one, cells run in this process.
        engine: ``"local"``, or ``"ray"`` for a Ray cluster that is running.
        address: Of the head of the cluster.
        devices: Devices, or processes on the CPU, that share each batch of a model. Each process
            calls `run`; the first alone writes, and the others have no rows.
    """

    out: Path
    name: str = RESULTS
    device: str = "cpu"
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    console: Console | None = None
    workers: int = 1
    engine: str = "local"
    address: str | None = None
    devices: int = 1

    def run(self, plan: Plan) -> list[Row]:
        """Run every job that the results do not hold yet.

        Args:
            plan: Called once the folder is known to be ours; gives all jobs twice. Of the first
                only columns and facts are read, to know what is planned; of the others, those in
                one process at a time come as a tuple.

        Returns:
            The rows of the jobs in their order, those found finished included.

        Raises:
            BenchmarkError: No such device, no such cluster, or an ``out`` that cannot be written,
                that another process writes to, or that holds results of other code.
        """
        console = self.console or Console()
        worker = Worker(
            self.out.resolve(),
            check_device(self.device),
            self.checkpoint_seconds,
            devices=self.devices,
        )
        if self.devices > 1:
            worker.fabric.launch()
        if not leads():
            self._follow(worker, plan)
            return []
        with self._ours(worker, console) as finished:
            executor = self._executor()
            planned, jobs = plan()
            asked: dict[str, Job] = {}  # all jobs in their order, by their keys
            forecast = self._expect(planned, finished, worker)
            with Display(console, len(planned), forecast) as display:

                def on_epoch(unit: Unit, epoch: int, epochs: int, best: float) -> None:
                    text = f"{unit[0].label}: validation {unit[0].metric} {best:.4g}"
                    display.epoch(text, epoch, epochs)

                units = self._unfinished(worker, jobs, finished, asked, display)
                for rows in executor.run(worker, units, on_epoch):
                    for row in rows:
                        if row.key not in finished:
                            append_row(self.out, row, self.name)
                            finished[row.key] = row
                            job = asked[row.key]
                            told = f"{job.label}: {_told(row)}, {row.seconds:.1f} s"
                            display.finish(_place(job.columns, job.facts), told)
                    worker.forget([row.key for row in rows])
        return [finished[key] for key in asked]

    @contextmanager
    def _ours(self, worker: Worker, console: Console) -> Iterator[dict[str, Row]]:
        """The rows in the folder, while no other command writes to it; followers hear of them."""
        told: set[str] | None = None
        try:
            with locked(self.out):
                self._clear(console)
                finished = {row.key: row for row in read_rows(self.out, self.name)}
                told = worker.fabric.broadcast(set(finished))
                yield finished
        except BenchmarkError as error:
            if told is None:
                worker.fabric.broadcast(str(error))
            raise

    def _follow(self, worker: Worker, plan: Plan) -> None:
        """Take part in the trainings of another process."""
        finished: set[str] | str = worker.fabric.broadcast(set())
        if isinstance(finished, str):
            raise BenchmarkError(finished)
        for job in plan()[1]:
            assert isinstance(job, Job)
            if job.key not in finished:
                finished.add(job.key)
                worker.run((job,))

    def _expect(self, planned: Sequence[Job], finished: dict[str, Row], worker: Worker) -> Forecast:
        """How long the jobs take whose rows, as far as columns tell, are not there yet."""
        rows = {_place(vars(row), row.values): row for row in finished.values()}
        now = {"gsym": version(), "threads": worker.threads}
        cells = []
        for job in planned:
            place = _place(job.columns, job.facts)
            same = {"fingerprint": job.columns.get("fingerprint", ""), **now}
            row = rows.get(place)
            if not job.columns.get("checksum"):  # its key is that of its row, whatever the data
                new = job.key not in finished
            else:
                new = row is None or any(getattr(row, k) != value for k, value in same.items())
            if new:
                cells.append((place, job.columns))
        device = worker.device if self.engine == "local" and self.devices == 1 else self.engine
        return expect(cells, self.workers, worker.threads, device)

    def _executor(self) -> Executor:
        if self.engine == "ray":
            from gsym_bench.suite.cluster import Cluster

            return Cluster(self.address)
        return Processes(self.workers) if self.workers > 1 else Here()

    def _unfinished(
        self,
        worker: Worker,
        jobs: Iterable[Job | Unit],
        finished: dict[str, Row],
        asked: dict[str, Job],
        display: Display,
    ) -> Iterator[Unit]:
        """The units that are still to be run, as soon as one is asked for."""
        places = {_place(vars(row), row.values): row for row in finished.values()}
        said: set[str] = set()
        for unit in jobs:
            unit = unit if isinstance(unit, tuple) else (unit,)
            new = tuple(job for job in unit if job.key not in asked and job.key not in finished)
            if all(job.key in finished for job in unit):
                worker.forget([job.key for job in unit])  # if it was killed before it did
            for job in unit:
                if job.key in finished and job.key not in asked:
                    text = f"{job.label}: already in the results"
                    display.finish(_place(job.columns, job.facts), text, trained=False)
                asked[job.key] = job
            for job in new:
                why = _changed(places.get(_place(job.columns, job.facts)), job)
                if why and why not in said:
                    said.add(why)
                    display.say(why)
            if new:
                # Seeds that began together end together, also where some have their rows.
                yield unit if worker.began(unit) else new

    def _clear(self, console: Console) -> None:
        """Make the folders of a run, delete what a killed one was writing, fix its last row."""
        for folder in (self.out, self.out / "checkpoints", self.out / "diverged"):
            try:
                folder.mkdir(exist_ok=True)
            except OSError as cause:
                raise BenchmarkError(
                    f"cannot make the folder {folder} ({cause.strerror}); choose another --out"
                ) from cause
            for path in folder.glob("*.[0-9]*.tmp"):
                path.unlink()
        torn = recover(self.out / self.name)
        if torn is not None:
            console.print(
                f"The last line of {self.out / self.name} was cut off; it was moved to "
                f"{self.name}.torn and its cell is run again: {torn[:60]}...",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def check_request(profile: str, profiles: Iterable[str], seeds: int) -> None:
    """Refuse an unknown profile, and a number of seeds that cannot be meant.

    Raises:
        BenchmarkError: Says what is wrong.
    """
    check_names("profile", [profile], profiles)
    check_seeds(seeds)


def check_seeds(seeds: int, option: str = "--seeds") -> None:
    """Refuse a number of seeds, or of draws, that cannot be meant.

    Raises:
        BenchmarkError: Says how many are allowed.
    """
    if seeds < 1:
        raise BenchmarkError(f"expected at least one seed; got {option} {seeds}")
    if seeds > MOST_SEEDS:
        raise BenchmarkError(f"expected at most {MOST_SEEDS} seeds; got {option} {seeds}")


def check_means(
    engine: str, address: str | None, workers: int, devices: int, batched_seeds: bool
) -> None:
    """Refuse what does not say where cells are to run.

    Raises:
        BenchmarkError: Says what is wrong.
    """
    check_names("engine", [engine], ENGINES)
    if workers < 1:
        raise BenchmarkError(f"expected at least one worker; got --workers {workers}")
    if devices < 1:
        raise BenchmarkError(f"expected at least one device; got --devices {devices}")
    if devices > 1 and (engine == "ray" or workers > 1 or batched_seeds):
        raise BenchmarkError(
            "--devices shares each batch of one model; leave out --engine ray, --workers and "
            "--batched-seeds"
        )
    if engine == "ray" and workers > 1:
        raise BenchmarkError("--workers are processes of --engine local; leave it out with ray")
    if engine != "ray" and address is not None:
        raise BenchmarkError("--address is that of a Ray cluster; add --engine ray")


def _place(columns: Mapping[str, Any], values: Iterable[Value]) -> tuple[Any, ...]:
    """What two rows share that differ in their data, group or code only."""
    names = "task dataset source profile schedule model group seed fold"
    signals = [value.value for value in values if value.metric == SIGNALS]
    return (*(columns[name] for name in names.split()), *signals)


def _changed(row: Row | None, job: Job) -> str:
    """Why a cell that the results hold is run again; empty if they do not hold it."""
    if row is None or not job.columns.get("checksum"):
        return ""
    now = {**job.columns, "gsym": version(), "threads": torch.get_num_threads()}
    words = {
        "checksum": "data of checksum",
        "fingerprint": "groups of fingerprint",
        "gsym": "gsym",
        "threads": "this number of threads:",
    }
    changes = [
        f"{what} {getattr(row, name) or 'unknown'}, now {now[name]}"
        for name, what in words.items()
        if getattr(row, name) != now[name]
    ]
    if not changes:
        return ""
    name = f"{row.task}, {row.dataset}"
    return f"{name}: the results hold {'; '.join(changes)}. Such cells are run again"


def _told(row: Row) -> str:
    """What came out, without a look at the test split where there is a validation split."""
    if row.status != "ok":
        return row.status
    split, value = ("test", row.test) if row.val is None else ("validation", row.val)
    return f"{split} {row.metric} {value:.4g}"
