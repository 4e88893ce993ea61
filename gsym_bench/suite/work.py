"""One cell of work: who it is, how it is fitted and measured, and the row that comes out."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from gsym_bench.suite.errors import BenchmarkError, check_names
from gsym_bench.suite.folder import HOLDER
from gsym_bench.suite.memory import peak_memory
from gsym_bench.suite.processes import fabric
from gsym_bench.suite.provenance import device_name, provenance
from gsym_bench.suite.results import TOGETHER, Row, Value
from gsym_bench.suite.task import Schedule
from gsym_bench.suite.together import NotTogetherError, fit_together
from gsym_bench.suite.train import CHECKPOINT_SECONDS, Fit, Trainer, Training

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
        recipe: What ``fit`` trains on a device, how and from which seed; for jobs that may train
            together with others.
        facts: Values known beforehand; they stand in the row however it goes.
    """

    label: str
    columns: Mapping[str, Any]
    metric: str
    unit: str
    fit: Callable[[Trainer], Fit]
    measure: Callable[[Fit], Sequence[Value]]
    trained: bool = True
    recipe: Callable[[torch.device], tuple[Training, Schedule, int]] | None = None
    facts: Sequence[Value] = ()

    @property
    def key(self) -> str:
        """What its row is found by."""
        return self.columns["key"]


Unit = tuple[Job, ...]
"""What one process runs at a time: a job, or the seeds of a cell that train together."""


@dataclass(frozen=True)
class Worker:
    """Runs jobs in the process that it is in; travels to other processes.

    Attributes:
        out: Folder of results; checkpoints lie in it.
        device: ``"cpu"`` or ``"cuda"``.
        checkpoint_seconds: Shortest time between two checkpoints.
        threads: Threads of torch on the CPU.
        devices: Devices, or processes on the CPU, that share each batch of a model.
        origin: The columns of `results.Cell` that say which source and which versions ran.
    """

    out: Path
    device: str = "cpu"
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    threads: int = field(default_factory=torch.get_num_threads)
    devices: int = 1
    origin: Mapping[str, Any] = field(default_factory=provenance)

    @cached_property
    def fabric(self) -> Fabric:
        """Device, precision, and the processes that share a batch."""
        return fabric(self.device, self.devices)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "fabric"}

    def run(
        self, unit: Unit, on_epoch: Callable[[int, int, float], None] = lambda *_: None
    ) -> list[Row]:
        """Fit and measure; of several processes that share the work, the first one has the rows."""
        job = unit[0]
        if not (job.trained or self.fabric.is_global_zero):
            return []
        keys = [job.key for job in unit]
        device = self.fabric.device if job.trained else torch.device("cpu")
        trainer = Trainer(
            self.fabric,
            self._path("checkpoints", keys),
            self._path("diverged", keys),
            self.checkpoint_seconds,
            on_epoch,
        )
        peak = peak_memory(device)
        if len(unit) == 1:
            fits = [job.fit(trainer)]
        else:
            try:
                fits = fit_together(trainer, [self._recipe(job) for job in unit])
            except NotTogetherError as why:
                warnings.warn(f"{job.label}: its seeds train one by one: {why}", stacklevel=2)
                return [row for job in unit for row in self.run((job,), on_epoch)]
        memory = peak()
        if not self.fabric.is_global_zero:
            return []
        rows = [
            self._row(job, fit, device, memory, len(unit))
            for job, fit in zip(unit, fits, strict=True)
        ]
        if not (self.out / HOLDER).exists():
            # A disk of this machine alone: who keeps the rows cannot reach it.
            self.forget(keys)
        return rows

    def began(self, unit: Unit) -> bool:
        """Whether a training of these was interrupted."""
        return self._path("checkpoints", [job.key for job in unit]).exists()

    def forget(self, keys: Sequence[str]) -> None:
        """Delete the checkpoints of cells whose rows are kept, together and one by one."""
        for own in (keys, *([key] for key in keys)):
            self._path("checkpoints", own).unlink(missing_ok=True)

    def _recipe(self, job: Job) -> tuple[Training, Schedule, int]:
        assert job.recipe is not None
        return job.recipe(self.fabric.device)

    def _row(self, job: Job, fit: Fit, device: torch.device, memory: float, seeds: int) -> Row:
        """Measure what was fitted, by so many seeds at once; no finite number is a divergence."""
        status, values = fit.status, []
        if status == "ok":
            values = list(job.measure(fit))
            if not all(value.value is not None and math.isfinite(value.value) for value in values):
                status, values = "diverged", []
        if not values:
            values = [Value(split, job.metric, job.unit, None) for split in ("val", "test")]
        facts = [replace(f, value=seeds) if f.metric == TOGETHER else f for f in job.facts]
        return Row(
            **self.origin,
            **job.columns,
            device=f"{self.devices} x " * (self.devices > 1 and job.trained) + device_name(device),
            threads=self.threads,
            status=status,
            seconds=fit.seconds,
            peak_memory_mib=memory,
            parameters=fit.parameters,
            epochs=fit.epochs,
            best_epoch=fit.best_epoch,
            values=(*values, *facts),
        )

    def _path(self, folder: str, keys: Sequence[str]) -> Path:
        # Keys may be words, which are no names of files.
        key = keys[0] if len(keys) == 1 else digest(list(keys))
        return self.out / folder / f"{key if key.isalnum() else digest(key)}.pt"


def digest(config: Any) -> str:
    """A short name of what JSON can hold."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def on_gpu(device: str) -> bool:
    """Whether cells run on a GPU, as far as the name tells."""
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def check_device(device: str) -> str:
    """The kind of device to use: ``"auto"`` takes CUDA where there is a device.

    Raises:
        BenchmarkError: An unknown name, or no such device.
    """
    check_names("device", [device], DEVICES)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError(
            f"--device cuda, but torch {torch.__version__} sees no CUDA device; use --device cpu"
        )
    return device
