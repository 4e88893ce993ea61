"""Run cells: what is finished is kept, an interrupted cell goes on, and every row is stored."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from rich.console import Console

from gsym_bench.suite.display import Display
from gsym_bench.suite.errors import BenchmarkError, check_names
from gsym_bench.suite.folder import locked
from gsym_bench.suite.memory import peak_memory
from gsym_bench.suite.provenance import device_name, provenance
from gsym_bench.suite.results import RESULTS, Row, Value, append_row, read_rows, recover
from gsym_bench.suite.train import CHECKPOINT_SECONDS, Fit, Trainer

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Job:
    """A cell that is to be run.

    Attributes:
        label: What it is called while it runs.
        columns: Who it is: the columns of `results.Cell` that do not depend on how it goes.
        metric: Name of the headline metric.
        unit: Its unit.
        fit: Trains, or fits in closed form.
        measure: The values of what was fitted. This is the only look at the test split: every
            choice within the cell has been made.
        trained: Whether it runs on the device; closed forms run on the CPU.
        facts: Values known beforehand; they stand in the row however it goes.
    """

    label: str
    columns: Mapping[str, Any]
    metric: str
    unit: str
    fit: Callable[[Trainer], Fit]
    measure: Callable[[Fit], Sequence[Value]]
    trained: bool = True
    facts: Sequence[Value] = ()

    @property
    def key(self) -> str:
        """What its row is found by."""
        return self.columns["key"]


@dataclass(frozen=True)
class Engine:
    """Runs jobs one after another, and stores their rows.

    Attributes:
        out: Folder of results, created if absent.
        name: Name of the results file in it.
        device: One of `DEVICES`; ``"auto"`` takes CUDA where there is a device.
        checkpoint_seconds: Shortest time between two checkpoints.
        console: Where to say what is going on; standard output by default.
    """

    out: Path
    name: str = RESULTS
    device: str = "cpu"
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    console: Console | None = None

    def run(self, plan: Callable[[], tuple[int, Iterable[Job]]]) -> list[Row]:
        """Run every job that the results do not hold yet.

        Args:
            plan: Called once the folder is known to be ours; gives the number of jobs and the jobs.

        Returns:
            The rows of the jobs, those found finished included.

        Raises:
            BenchmarkError: No such device, or an ``out`` that cannot be written, that another
                process writes to, or that holds results of other code.
        """
        fabric = _fabric(self.device)
        console = self.console or Console()
        with locked(self.out):
            self._clear(console)
            finished = {row.key: row for row in read_rows(self.out, self.name)}
            origin = provenance()
            rows = []
            total, jobs = plan()
            with Display(console, total) as display:
                for job in jobs:
                    if job.key in finished:
                        display.finish(f"{job.label}: already in the results", trained=False)
                        rows.append(finished[job.key])
                        continue
                    row = self._row(job, fabric, origin, display)
                    append_row(self.out, row, self.name)
                    finished[job.key] = row
                    rows.append(row)
                    display.finish(f"{job.label}: {_told(row)}, {row.seconds:.1f} s")
        return rows

    def _row(self, job: Job, fabric: Fabric, origin: Mapping[str, Any], display: Display) -> Row:
        # Keys may be words, which are no names of files.
        name = f"{job.key if job.key.isalnum() else digest(job.key)}.pt"
        device = fabric.device if job.trained else torch.device("cpu")
        trainer = Trainer(
            fabric,
            self.out / "checkpoints" / name,
            self.out / "diverged" / name,
            self.checkpoint_seconds,
            lambda epoch, epochs, best: display.epoch(
                f"{job.label}: validation {job.metric} {best:.4g}", epoch, epochs
            ),
        )
        peak = peak_memory(device)
        fit = job.fit(trainer)
        memory = peak()
        status, values = fit.status, []
        if status == "ok":
            values = list(job.measure(fit))
            if not all(value.value is not None and math.isfinite(value.value) for value in values):
                status, values = "diverged", []
        if not values:
            values = [Value(split, job.metric, job.unit, None) for split in ("val", "test")]
        return Row(
            **origin,
            **job.columns,
            device=device_name(device),
            threads=torch.get_num_threads(),
            status=status,
            seconds=fit.seconds,
            peak_memory_mib=memory,
            parameters=fit.parameters,
            epochs=fit.epochs,
            best_epoch=fit.best_epoch,
            values=(*values, *job.facts),
        )

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
    """Refuse an unknown profile, and fewer seeds than one.

    Raises:
        BenchmarkError: Says what is wrong.
    """
    check_names("profile", [profile], profiles)
    if seeds < 1:
        raise BenchmarkError(f"expected at least one seed; got --seeds {seeds}")


def digest(config: Any) -> str:
    """A short name of what JSON can hold."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _told(row: Row) -> str:
    """What came out, without a look at the test split where there is a validation split."""
    if row.status != "ok":
        return row.status
    split, value = ("test", row.test) if row.val is None else ("validation", row.val)
    return f"{split} {row.metric} {value:.4g}"


def _fabric(device: str) -> Fabric:
    check_names("device", [device], DEVICES)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError(
            f"--device cuda, but torch {torch.__version__} sees no CUDA device; use --device cpu"
        )
    return Fabric(accelerator=device, devices=1, precision="32-true")
