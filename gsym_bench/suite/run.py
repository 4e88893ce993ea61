"""The cells of tasks: one task, one group or baseline, one seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from gsym.groups import ClusterGroup, PermutationGroup, Representation
from gsym_bench.data import write_npz
from gsym_bench.suite.crossover import (
    Prediction,
    crossover_path,
    predict,
    read_predictions,
    write_predictions,
)
from gsym_bench.suite.engine import Engine, Job, check_means, check_request, digest
from gsym_bench.suite.errors import BenchmarkError, check_names
from gsym_bench.suite.loaded import Loaded
from gsym_bench.suite.processes import leads
from gsym_bench.suite.provenance import version
from gsym_bench.suite.report.draw import drawn_with, save
from gsym_bench.suite.results import (
    AS_PUBLISHED,
    RESULTS,
    SIGNALS,
    TOGETHER,
    VARIANT,
    Row,
    Value,
    example_path,
    file_stem,
    graph_path,
    samples_path,
    shown_path,
)
from gsym_bench.suite.task import Predictor, Problem, Schedule, Split, Task
from gsym_bench.suite.train import CHECKPOINT_SECONDS, Fit, Measured, Trainer, Training, closed_form
from gsym_bench.suite.work import Unit

PROFILES = ("quick", "standard", "paper")


def run(
    tasks: Sequence[Task],
    *,
    out: Path,
    profile: str = "quick",
    data: Path | None = None,
    groups: Sequence[str] = (),
    seeds: int | None = None,
    signals: Sequence[int] = (),
    as_published: bool = False,
    device: str = "auto",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    console: Console | None = None,
    workers: int = 1,
    engine: str = "local",
    address: str | None = None,
    devices: int = 1,
    batched_seeds: bool = False,
) -> list[Row]:
    """Run every cell that ``out/results.csv`` does not hold yet.

    A cell that was interrupted goes on from its checkpoint in ``out/checkpoints``.

    Args:
        tasks: What to run.
        out: Folder of results, created if absent.
        profile: One of `PROFILES`.
        data: Folder of downloaded data, or ``None`` for embedded data.
        groups: Names of groups to run; all if empty. A task runs those that it has.
        seeds: Number of seeds of every cell: 0, 1, ...; ``None`` takes that of the task.
        signals: Numbers of training signals, for each of which every cell is run; the number that
            belongs to the profile if empty.
        as_published: Whether to add faulty models and data as they were published.
        device: ``"auto"`` takes CUDA where there is a device.
        checkpoint_seconds: Shortest time between two checkpoints.
        console: Where to say what is going on; standard output by default.
        workers: Processes of this machine that run cells.
        engine: ``"local"``, or ``"ray"`` for a Ray cluster that is running.
        address: Of the head of the cluster, ``host:port``; found by itself on this machine.
        devices: Devices, or processes on the CPU, that share each batch of a model.
        batched_seeds: Whether the seeds of a cell train together, as one model of stacked weights;
            where a model does not allow that they train one by one.

    Returns:
        The rows of this run's cells, those found finished included.

    Raises:
        BenchmarkError: An unknown profile, group or device, a task that needs ``data``, a number
            of seeds or workers below one, a cluster that does not answer, an ``out`` that cannot be
            written, that another process writes to, or that holds results of other code.
    """
    check_request(profile, PROFILES, 1 if seeds is None else seeds)
    check_means(engine, address, workers, devices, batched_seeds)
    how: dict[str, Any] = {"devices": devices} if devices > 1 else {}
    how |= {"batched seeds": True} if batched_seeds else {}
    if as_published and profile != "paper":
        raise BenchmarkError(
            f"--as-published adds models to the published protocol alone; got --profile {profile}: "
            "add --profile paper"
        )
    for task in tasks:
        if profile not in task.profiles:
            raise BenchmarkError(
                f"task {task.name!r} has no profile {profile!r}; it has {', '.join(task.profiles)}"
            )
        if task.needs_data and data is None:
            raise BenchmarkError(
                f"task {task.name!r} needs files; name their folder with --data DIR"
            )

    def count(task: Task) -> int:
        return task.seeds[profile] if seeds is None else seeds

    def cells(task: Task, seed: int) -> Iterator[Cells]:
        for few in signals or (None,):
            loaded = Loaded(task, data, profile, seed, few)
            yield Cells(task, loaded, as_published, out.resolve(), how)

    firsts: list[Cells] = []

    def plan() -> tuple[list[Job], Iterator[Job | Unit]]:
        firsts.extend(own for task in tasks for own in cells(task, 0))
        known = dict.fromkeys(name for first in firsts for name in first.problem.groups)
        check_names("group", groups, known)
        for first in firsts if leads() else ():
            _save_graph(out, first.task, first.problem, profile)
            _save_shown(out, first)
        for task in tasks if signals and leads() else ():
            _predict(out, [first for first in firsts if first.task is task])
        planned: list[Job] = []
        for first in firsts:
            quoted = {quoted_model(name) for name in first.problem.published}
            for job in first.jobs(groups):
                # Other seeds have the same cells; what is quoted comes once.
                seeded = range(1 if job.columns["model"] in quoted else count(first.task))
                planned += [replace(job, columns={**job.columns, "seed": s}) for s in seeded]
        return planned, jobs()

    def jobs() -> Iterator[Job | Unit]:
        if batched_seeds:
            for first in firsts:
                others = [cells(first.task, seed) for seed in range(1, count(first.task))]
                same = [next(c for c in own if c.signals == first.signals) for own in others]
                for unit in _units([first, *same], groups):
                    yield from [unit] if unit[0].recipe else unit
            return
        for task in tasks:
            for seed in range(count(task)):
                own = cells(task, seed) if seed else [f for f in firsts if f.task is task]
                for each in own:
                    yield from each.jobs(groups)

    rows = Engine(
        out,
        RESULTS,
        device,
        checkpoint_seconds,
        console,
        workers=workers,
        engine=engine,
        address=address,
        devices=devices,
    ).run(plan)
    of_tasks = {id(first.task): first for first in reversed(firsts)}
    for first in of_tasks.values() if leads() else ():
        _save_example(out, first)
    return rows


def quoted_model(name: str) -> str:
    """What rows call a model whose numbers are quoted."""
    return f"{name}, {AS_PUBLISHED}"


def _units(seeds: Sequence[Cells], groups: Sequence[str]) -> Iterator[tuple[Job, ...]]:
    """The same cell of all seeds; rows that are quoted belong to the first seed alone."""
    units: dict[tuple[str, str], list[Job]] = {}
    for own in seeds:
        for job in own.jobs(groups):
            units.setdefault((job.columns["model"], job.columns["group"]), []).append(job)
    yield from map(tuple, units.values())


@dataclass(frozen=True)
class Cells:
    """The jobs of one task and seed.

    Attributes:
        task: The task.
        loaded: Its problem of this seed, and where it comes from.
        as_published: Whether faulty models and data as they were published are among them.
        out: Folder of results, where predictions are kept that the report shows.
        how: What else stands in the keys of trained cells: ways to train that change the last
            digits.
    """

    task: Task
    loaded: Loaded
    as_published: bool = False
    out: Path | None = None
    how: Mapping[str, Any] = field(default_factory=dict)

    @property
    def problem(self) -> Problem:
        """The problem."""
        return self.loaded.problem

    @property
    def profile(self) -> str:
        """Name of the profile."""
        return self.loaded.profile

    @property
    def data(self) -> Path | None:
        """Folder of downloaded data."""
        return self.loaded.data

    @property
    def seed(self) -> int:
        """The seed."""
        return self.loaded.seed

    @property
    def signals(self) -> int | None:
        """Number of training signals, if it was asked for."""
        return self.loaded.signals

    def jobs(self, groups: Sequence[str]) -> Iterator[Job]:
        """All baselines, then the groups of these names; all groups if there are none."""
        yield from map(self.baseline, self.task.baselines())
        if self.seed == 0 and self.signals is None:
            yield from map(self.published, self.problem.published)
        variants = self.task.variants(self.problem, self.profile, self.as_published)
        for variant, names in {"": list(self.problem.groups), **variants}.items():
            for name in names:
                if not groups or name in groups:
                    yield self.group(name, variant)

    @property
    def schedule(self) -> Schedule:
        """How models are trained: that of the profile, in as many steps with fewer signals."""
        schedule = self.task.schedule(self.profile, self.data)
        if self.signals is None or schedule.batch_size is None or not schedule.epochs:
            return schedule
        usual = len(self.task.load(self.data, self.profile, self.seed).train)
        steps, now = (math.ceil(count / schedule.batch_size) for count in (usual, self.signals))
        epochs, every = (
            max(round(count * steps / now), 1) for count in (schedule.epochs, schedule.eval_every)
        )
        return replace(schedule, epochs=epochs, eval_every=every)

    def baseline(self, name: str) -> Job:
        """The job of a baseline."""
        return self._job(
            name,
            "",
            lambda trainer: closed_form(lambda: self.task.baselines()[name](self.problem)),
            lambda fit: (fit.model, self.problem),
        )

    def published(self, name: str) -> Job:
        """The row of a model whose numbers are quoted."""

        def quoted(fit: Fit) -> list[Value]:
            found = self.problem.published[name].items()
            return [Value("test", metric, self._unit(metric), value) for metric, value in found]

        job = self._job(
            quoted_model(name),
            "",
            lambda trainer: closed_form(lambda: None),
            lambda fit: (fit.model, self.problem),
        )
        return replace(job, measure=quoted)

    def group(self, name: str, variant: str = "") -> Job:
        """The job of the task's model, or of a variant of it, tied along a group."""
        task = self.task

        def recipe(device: torch.device) -> tuple[TaskTraining, Schedule, int]:
            schedule, seen = self.schedule, task.view(variant, self.problem, self.profile)
            training = TaskTraining(task, seen, name, self.profile, schedule, device, variant)
            return training, schedule, self.seed

        def fit(trainer: Trainer) -> Fit:
            training, schedule, seed = recipe(trainer.fabric.device)
            if not schedule.epochs:
                return closed_form(training.model, epochs=0)
            return trainer.fit(training, schedule, seed)

        def found(fit: Fit) -> tuple[Predictor, Problem]:
            seen = task.view(variant, self.problem, self.profile)
            return predictor(fit.model, task.schedule(self.profile, self.data)), seen

        model = f"{task.model_name}{VARIANT}{variant}" if variant else task.model_name
        fitted = not task.schedule(self.profile, self.data).epochs
        return self._job(model, name, fit, found, None if fitted else recipe)

    def _job(
        self,
        model: str,
        group: str,
        fit: Callable[[Trainer], Fit],
        found: Callable[[Fit], tuple[Predictor, Problem]],
        recipe: Callable[[torch.device], tuple[TaskTraining, Schedule, int]] | None = None,
    ) -> Job:
        task, problem = self.task, self.problem
        symmetry = problem.groups[group] if group else None
        reps = problem.representations.get(group, ())
        fingerprint = symmetry.fingerprint().hex() if symmetry else ""
        fingerprint += "".join(rep.fingerprint().hex() for rep in reps)
        draws = {"draws": task.draws} if task.draws else {}
        config: dict[str, Any] = {
            "task": task.name,
            "dataset": problem.dataset,
            "checksum": self.loaded.checksum,
            "source": "embedded" if self.data is None else "files",
            "profile": self.profile,
            "schedule": digest(asdict(task.schedule(self.profile, self.data)) | draws),
            "model": model,
            "group": group,
            "fingerprint": digest(fingerprint) if group else "",
            "seed": self.seed,
        }
        identity = {**config, "gsym": version(), "threads": torch.get_num_threads()}
        identity |= self.how if group else {}
        facts = [Value("train", TOGETHER, "1", 1)] if group and "batched seeds" in self.how else []
        label = f"{task.name}, {problem.dataset}, {group or model}"
        if VARIANT in model and group:
            label += f"{VARIANT}{model.partition(VARIANT)[2]}"
        if self.signals is not None:
            identity["signals"] = self.signals
            facts.append(Value("train", SIGNALS, "1", self.signals))
            label += f", {self.signals} signals"
        key = digest(identity)
        columns = config | {
            "key": key,
            "fold": None,
            "group_order_log": symmetry.log_order() if symmetry else None,
            "commutant_dim": _free_weights(symmetry, *reps) if symmetry else None,
        }
        label += f", seed {self.seed}"

        def measure(fit: Fit) -> list[Value]:
            return self._values(*found(fit), key)

        return Job(
            label,
            columns,
            task.metric,
            task.unit,
            fit,
            measure,
            trained=bool(group),
            recipe=recipe,
            facts=facts,
        )

    def _values(self, predict: Predictor, problem: Problem, key: str) -> list[Value]:
        task = self.task
        predictions = {split: predict(getattr(problem, split)) for split in ("val", "test")}
        val, test = (
            task.metrics(predictions[split], getattr(problem, split), problem)
            for split in ("val", "test")
        )
        if self.out is not None and self.seed == 0 and task.shown:
            some = torch.tensor(task.shown)
            shown_path(self.out, key).parent.mkdir(parents=True, exist_ok=True)
            write_npz(shown_path(self.out, key), prediction=predictions["test"][some].numpy())
        return [
            Value(split, name, self._unit(name), found[name])
            for name in val
            for split, found in (("val", val), ("test", test))
        ]

    def _unit(self, metric: str) -> str:
        return self.task.units.get(metric, self.task.unit)


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
        variant: str = "",
    ) -> None:
        self.variant = variant
        self.task, self.problem, self.group, self.profile = task, problem, group, profile
        self.schedule, self.device = schedule, device

    def model(self) -> nn.Module:
        self._train = self.problem.train.to(self.device)
        if self.variant:
            return self.task.variant(self.variant, self.problem, self.group, self.profile)
        return self.task.model(self.problem, self.group, self.profile)

    def batches(self) -> Iterator[Split]:
        """The whole split, or its samples in random order."""
        train = self.task.epoch(self._train, self.profile)
        if self.schedule.batch_size is None:
            yield train
        else:
            order = torch.randperm(len(train)).to(train.inputs.device)
            for index in order.split(self.schedule.batch_size):
                yield train.batch(index)

    def loss(self, model: Any, batch: Split) -> Tensor:
        return self.task.loss(model(batch.inputs), batch)

    def inputs(self, batch: Split | None) -> Tensor:
        return self.problem.val.inputs if batch is None else batch.inputs

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


def _groups(problem: Problem) -> str:
    """A short name of the groups of a problem, and of how they act."""
    return digest(
        [
            [name, group.fingerprint().hex()]
            + [rep.fingerprint().hex() for rep in problem.representations.get(name, ())]
            for name, group in problem.groups.items()
        ]
    )


def _predict(out: Path, firsts: Sequence[Cells]) -> None:
    """Keep what `choose_group` predicts from each number of signals, once for the same data."""
    first = firsts[0]
    path = crossover_path(out, file_stem(first.task.name, first.problem.dataset, first.profile))
    kept = {one.signals: one for one in read_predictions(path)}
    for cells in firsts:
        of = cells.loaded.checksum, digest([_groups(cells.problem), repr(first.task.choosing)])
        count = len(cells.problem.train)
        if count not in kept or (kept[count].checksum, kept[count].groups) != of:
            found = predict(cells.problem, first.task.choosing) or Prediction(count, "", (), "")
            kept[count] = replace(found, checksum=of[0], groups=of[1])
    write_predictions(path, [kept[count] for count in sorted(kept)])


def _save_shown(out: Path, cells: Cells) -> None:
    """Keep the test samples that the report shows beside predictions."""
    shown = cells.task.shown
    if shown:
        some = cells.problem.test.batch(torch.tensor(shown))
        path = samples_path(out, cells.loaded.checksum)
        path.parent.mkdir(exist_ok=True)
        arrays = {f"aux_{name}": value.numpy() for name, value in some.aux.items()}
        write_npz(path, inputs=some.inputs.numpy(), targets=some.targets.numpy(), **arrays)


# Of a group with more generators these are enough to draw.
_MOST_MOVES = 6


def _moves(group: PermutationGroup) -> Tensor:
    """How generators move nodes, ``[6, n]``, filled up by -1.

    Of a cluster group only how it exchanges clusters, node by node in their order.
    """
    moves = torch.full((_MOST_MOVES, group.num_nodes), -1)
    if not isinstance(group, ClusterGroup):
        some = group.generators[:_MOST_MOVES]
        moves[: len(some)] = some
    elif group.swaps is not None:
        clusters = group.partition.clusters()
        for row, perm in zip(moves, group.swaps.generators.tolist(), strict=False):
            for source, target in enumerate(perm):
                row[clusters[source]] = clusters[target]
    return moves


def _save_example(out: Path, cells: Cells) -> None:
    """Draw what a task shows besides its errors, unless an earlier run has, of the same."""
    stem = file_stem(cells.task.name, cells.problem.dataset, cells.profile)
    path, groups = example_path(out, stem, cells.loaded.checksum), _groups(cells.problem)
    figure = None if drawn_with(path, "Groups") == groups else cells.task.example(cells.problem)
    if figure is not None:
        save(figure, path, Groups=groups)


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
        command=np.array(task.command),
        truth=np.array(problem.truth or ""),
        names=np.array(names),
        clusters=torch.stack(clusters).numpy(),
        moves=torch.stack([_moves(group) for group in problem.groups.values()]).numpy(),
        orbits=torch.stack([g.node_orbits().index for g in problem.groups.values()]).numpy(),
        edge_index=problem.edge_index.numpy(),
        positions=problem.positions.numpy(),
    )
