"""The cells of tasks: one task, one group or baseline, one seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from gsym.groups import ClusterGroup, PermutationGroup, Representation
from gsym_bench.data import write_npz
from gsym_bench.suite.engine import Engine, Job, check_request, digest
from gsym_bench.suite.errors import BenchmarkError, check_names
from gsym_bench.suite.results import RESULTS, Row, Value, file_stem, graph_path
from gsym_bench.suite.task import Predictor, Problem, Schedule, Split, Task
from gsym_bench.suite.train import CHECKPOINT_SECONDS, Fit, Measured, Trainer, Training, closed_form

PROFILES = ("quick", "standard")


def run(
    tasks: Sequence[Task],
    *,
    out: Path,
    profile: str = "quick",
    data: Path | None = None,
    groups: Sequence[str] = (),
    seeds: int = 3,
    device: str = "auto",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    console: Console | None = None,
) -> list[Row]:
    """Run every cell that ``out/results.csv`` does not hold yet.

    A cell that was interrupted goes on from its checkpoint in ``out/checkpoints``.

    Args:
        tasks: What to run.
        out: Folder of results, created if absent.
        profile: ``"quick"`` or ``"standard"``.
        data: Folder of downloaded data, or ``None`` for embedded data.
        groups: Names of groups to run; all if empty. A task runs those that it has.
        seeds: Number of seeds of every cell: 0, 1, ...
        device: ``"auto"`` takes CUDA where there is a device.
        checkpoint_seconds: Shortest time between two checkpoints.
        console: Where to say what is going on; standard output by default.

    Returns:
        The rows of this run's cells, those found finished included.

    Raises:
        BenchmarkError: An unknown profile, group or device, a task that needs ``data``, a number
            of seeds below one, an ``out`` that cannot be written, that another process writes to,
            or that holds results of other code.
    """
    check_request(profile, PROFILES, seeds)
    for task in tasks:
        if task.needs_data and data is None:
            raise BenchmarkError(
                f"task {task.name!r} needs files; name their folder with --data DIR"
            )

    def plan() -> tuple[int, Iterator[Job]]:
        firsts = [Cells(task, task.load(data, profile, 0), profile, data, 0) for task in tasks]
        known = dict.fromkeys(name for first in firsts for name in first.problem.groups)
        check_names("group", groups, known)
        for first in firsts:
            _save_graph(out, first.task, first.problem, profile)
        return seeds * sum(len(list(first.jobs(groups))) for first in firsts), jobs(firsts)

    def jobs(firsts: Sequence[Cells]) -> Iterator[Job]:
        for cells in firsts:
            for seed in range(seeds):
                if seed:
                    problem = cells.task.load(data, profile, seed)
                    cells = replace(cells, problem=problem, seed=seed)
                yield from cells.jobs(groups)

    engine = Engine(out, RESULTS, device, checkpoint_seconds, console)
    return engine.run(plan)


@dataclass(frozen=True)
class Cells:
    """The jobs of one task and seed."""

    task: Task
    problem: Problem
    profile: str
    data: Path | None
    seed: int

    def jobs(self, groups: Sequence[str]) -> Iterator[Job]:
        """All baselines, then the groups of these names; all groups if there are none."""
        yield from map(self.baseline, self.task.baselines())
        for name in self.problem.groups:
            if not groups or name in groups:
                yield self.group(name)

    def baseline(self, name: str) -> Job:
        """The job of a baseline."""
        return self._job(
            name,
            "",
            lambda trainer: closed_form(lambda: self.task.baselines()[name](self.problem)),
            lambda fit: self._values(fit.model),
        )

    def group(self, name: str) -> Job:
        """The job of the task's model, tied along a group."""
        schedule = self.task.schedule(self.profile, self.data)

        def fit(trainer: Trainer) -> Fit:
            if not schedule.epochs:
                make = self.task.model
                return closed_form(lambda: make(self.problem, name, self.profile), epochs=0)
            device = trainer.fabric.device
            training = TaskTraining(self.task, self.problem, name, self.profile, schedule, device)
            return trainer.fit(training, schedule, self.seed)

        def measure(fit: Fit) -> list[Value]:
            return self._values(predictor(fit.model, schedule))

        return self._job(self.task.model_name, name, fit, measure)

    def _job(self, model: str, group: str, fit: Any, measure: Any) -> Job:
        task, problem = self.task, self.problem
        config: dict[str, Any] = {
            "task": task.name,
            "dataset": problem.dataset,
            "source": "embedded" if self.data is None else "files",
            "profile": self.profile,
            "schedule": digest(asdict(task.schedule(self.profile, self.data))),
            "model": model,
            "group": group,
            "seed": self.seed,
        }
        symmetry = problem.groups[group] if group else None
        reps = problem.representations.get(group, ())
        fingerprint = symmetry.fingerprint().hex() if symmetry else ""
        fingerprint += "".join(rep.fingerprint().hex() for rep in reps)
        columns = config | {
            "key": digest({**config, "fingerprint": fingerprint}),
            "fold": None,
            "group_order_log": symmetry.log_order() if symmetry else None,
            "commutant_dim": _free_weights(symmetry, *reps) if symmetry else None,
        }
        label = f"{task.name}, {problem.dataset}, {group or model}, seed {self.seed}"
        return Job(label, columns, task.metric, task.unit, fit, measure, trained=bool(group))

    def _values(self, predict: Predictor) -> list[Value]:
        task, problem = self.task, self.problem
        val, test = (
            task.metrics(predict(split), split, problem) for split in (problem.val, problem.test)
        )
        return [
            Value(split, name, task.unit, found[name])
            for name in val
            for split, found in (("val", val), ("test", test))
        ]


class TaskTraining(Training):
    """A task's model on the problem of one seed."""

    def __init__(
        self,
        task: Task,
        problem: Problem,
        group: str,
        profile: str,
        schedule: Schedule,
        device: torch.device,
    ) -> None:
        self.task, self.problem, self.group, self.profile = task, problem, group, profile
        self.schedule, self.device = schedule, device

    def model(self) -> nn.Module:
        self._train = self.problem.train.to(self.device)
        return self.task.model(self.problem, self.group, self.profile)

    def batches(self) -> Iterator[Split]:
        """The whole split, or its samples in random order."""
        if self.schedule.batch_size is None:
            yield self._train
        else:
            order = torch.randperm(len(self._train)).to(self._train.inputs.device)
            for index in order.split(self.schedule.batch_size):
                yield self._train.batch(index)

    def loss(self, model: nn.Module, batch: Split) -> Tensor:
        return self.task.loss(model(batch.inputs), batch)

    def validate(self, model: nn.Module) -> Measured:
        val = self.problem.val
        measured = self.task.metrics(predictor(model, self.schedule)(val), val, self.problem)
        return {self.task.metric: measured[self.task.metric]}

    def contents(self, batch: Split) -> dict[str, Tensor]:
        return {"inputs": batch.inputs, "targets": batch.targets}


def predictor(model: nn.Module, schedule: Schedule) -> Predictor:
    """The model as a function from a split on the CPU to predictions on the CPU."""

    @torch.no_grad()
    def predict(split: Split) -> Tensor:
        model.eval()
        device = next(model.parameters(), torch.empty(0)).device
        parts = split.inputs.split(schedule.eval_batch_size)
        return torch.cat([model(part.to(device)).cpu() for part in parts])

    return predict


def _free_weights(group: PermutationGroup, *reps: Representation) -> int:
    """Free weights of an equivariant map, per pair of channels."""
    pairs = math.prod(rep.num_channels for rep in reps)
    return group.commutant_dim(*reps) // pairs


def _save_graph(out: Path, task: Task, problem: Problem, profile: str) -> None:
    """Keep what the report draws, so that it needs no data."""
    names = list(problem.groups)
    clusters = [
        group.partition.labels if isinstance(group, ClusterGroup) else group.node_orbits().index
        for group in problem.groups.values()
    ]
    write_npz(
        graph_path(out, file_stem(task.name, problem.dataset, profile)),
        title=np.array(task.title),
        truth=np.array(problem.truth or ""),
        names=np.array(names),
        clusters=torch.stack(clusters).numpy(),
        orbits=torch.stack([g.node_orbits().index for g in problem.groups.values()]).numpy(),
        edge_index=problem.edge_index.numpy(),
        positions=problem.positions.numpy(),
    )
