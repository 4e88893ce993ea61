"""Measure what every cell costs, for the forecast of a run."""

from __future__ import annotations

import csv
import gc
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from torch import nn

from gsym_bench.data import replacing
from gsym_bench.suite.cores import use_threads
from gsym_bench.suite.engine import Job
from gsym_bench.suite.forecast import KIND, Kind, kind_of, work
from gsym_bench.suite.loaded import Loaded
from gsym_bench.suite.processes import fabric
from gsym_bench.suite.results import VARIANT
from gsym_bench.suite.run import Cells, quoted_model
from gsym_bench.suite.task import Schedule, Task
from gsym_bench.suite.train import Fit, Measured, Trainer, Training

# A training is measured over steps that take so many seconds in all, at least three.
_ENOUGH = 0.5
# Processes that each load the data of a seed and prepare what its cells share.
_PROCESSES = 2

Costs = Iterator[tuple[Kind, float]]
"""Kinds of cells and seconds of a processor, as they are measured."""


class Sampler(Trainer):
    """Trains for a few steps, and reckons how much longer all of them would take."""

    def __init__(self, folder: Path) -> None:
        super().__init__(fabric("cpu"), folder / "checkpoint", folder / "diverged", math.inf)
        self.longer: list[float]
        object.__setattr__(self, "longer", [])  # the class is frozen

    def fit(self, training: Training, schedule: Schedule, seed: int) -> Fit:
        """The fit of the few steps."""
        start = time.process_time()
        batches, validate = training.batches, training.validate
        looks: list[float] = []

        def look(model: nn.Module) -> Measured:
            seconds, found = _timed(partial(validate, model))
            looks.append(seconds)
            return found

        def train(epochs: int, steps: int) -> tuple[float, Fit]:
            """Seconds beside those of validation, and the fit."""
            vars(training).update(batches=lambda: islice(batches(), steps), validate=look)
            few = replace(schedule, epochs=epochs, eval_every=epochs)
            looks.clear()
            seconds, fit = _timed(partial(super(Sampler, self).fit, training, few, seed))
            return seconds - sum(looks), fit

        first, _ = train(1, 1)
        steps = sum(1 for _ in batches())
        count = max(3, int(_ENOUGH / max(first, 1e-3)))
        epochs, each = (1, min(count, steps)) if steps > 1 else (min(count, schedule.epochs), 1)
        some, fit = train(epochs, each)
        whole = scaled(first, some, epochs * each, schedule.epochs * steps)
        whole += math.ceil(schedule.epochs / schedule.eval_every) * looks[0]
        self.longer.append(whole - (time.process_time() - start))
        return fit


def scaled(first: float, some: float, count: int, steps: int) -> float:
    """Seconds of a training of many steps, from those of one step and of a few."""
    return first + max(some - first, 0.0) / max(count - 1, 1) * (steps - 1)


def of_tasks(
    tasks: Iterable[Task], profile: str, data: Path | None, groups: Sequence[str] = ()
) -> Costs:
    """What each cell of the first seed takes, with its share of what several cells need."""
    for task in tasks:
        cells = Cells(task, Loaded(task, data, profile, 0))
        loading, _ = _timed(partial(getattr, cells.loaded, "checksum"))
        quoted = {quoted_model(name) for name in cells.problem.published}
        jobs = [job for job in cells.jobs(groups) if job.columns["model"] not in quoted]
        by_model = Counter(job.columns["model"] for job in jobs)
        views = {
            f"{task.model_name}{VARIANT}{name}": _timed(
                partial(task.view, name, cells.problem, profile)
            )[0]
            for name in task.variants(cells.problem, profile)
        }
        for kind, seconds in of_jobs(jobs):
            model = kind[KIND.index("model")]
            shared = loading / len(jobs) + views.get(model, 0.0) / by_model[model]
            yield kind, seconds + _PROCESSES * shared


def of_jobs(jobs: Iterable[Job]) -> Costs:
    """What each of these takes: few steps of a training, scaled up, and all else whole."""
    for job in jobs:
        with tempfile.TemporaryDirectory() as folder:
            sampler = Sampler(Path(folder))
            fitting, fit = _timed(partial(job.fit, sampler))
            measuring, _ = _timed(partial(job.measure, fit))
        yield kind_of(job.columns), fitting + sum(sampler.longer) + measuring
        del fit
        gc.collect()


def write_costs(path: Path, found: Sequence[tuple[Kind, float]]) -> None:
    """Put costs, in pieces of work, into a table, in the place of older ones of the same cells."""
    rows: dict[Kind, str] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = {kind_of(row): row["work"] for row in csv.DictReader(file)}
    rows |= {kind: f"{cost:.4g}" for kind, cost in found}
    with replacing(path) as file:
        lines = [(*KIND, "work"), *((*kind, rows[kind]) for kind in sorted(rows))]
        quoted = (",".join(f'"{c}"' if "," in c else c for c in line) for line in lines)
        file.write("".join(f"{line}\n" for line in quoted).encode())


def main(found: Costs, path: Path, console: Console) -> None:
    """Measure, tell and write."""
    use_threads(1)
    work()
    for kind, seconds in found:
        # As speed changes with what else the machine does, each cell has a measure of its own.
        cost = seconds / median(_timed(work)[0] for _ in range(5))
        text = f"{seconds:8.1f} s {cost:9.1f}  {', '.join(filter(None, kind))}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        write_costs(path, [(kind, cost)])


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor that a call takes, and what comes out."""
    start = time.process_time()
    found = call()
    return time.process_time() - start, found
