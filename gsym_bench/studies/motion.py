"""Networks that say where nodes go: how ``nbody`` and ``penguin`` train them and keep the results.

They differ from the tasks of ``run`` in what they vary: not the group of node permutations but how
much Euclidean symmetry of the coordinates a network has.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from gsym_bench.suite.engine import Engine, Job, check_request
from gsym_bench.suite.report.tables import Line, compare, spread, thousands
from gsym_bench.suite.results import Row, Value
from gsym_bench.suite.task import Schedule
from gsym_bench.suite.train import Fit, Measured, Trainer, Training, closed_form

METRIC = "MSE"
# The estimator of alpha learns faster than what it blends, or a short training hardly moves it.
ALPHA_RATE = 3.0


@dataclass(frozen=True)
class Part:
    """One part of a data set; the first axis of every tensor counts samples.

    Attributes:
        inputs: What a layer on coordinates takes, by name of the argument: ``x``, ``pos`` and
            perhaps ``edge_attr`` and ``velocity``.
        pos: Where the nodes go, ``[b, n, d]``.
        x: Features to predict besides, ``[b, n, c]``, or ``None``.
    """

    inputs: Mapping[str, Tensor]
    pos: Tensor
    x: Tensor | None = None

    def batch(self, index: Tensor) -> Part:
        """The samples at ``index``."""
        inputs = {name: value[index] for name, value in self.inputs.items()}
        return Part(inputs, self.pos[index], None if self.x is None else self.x[index])


@dataclass(frozen=True)
class Model:
    """A network and how it is trained.

    Attributes:
        make: Builds a fresh one; sees the training part, for what is fitted in closed form.
        schedule: ``None`` where ``make`` leaves nothing to train.
        price: Of freedom: what ``1 - alpha``, averaged, costs in the training loss.
        baseline: Whether the others are compared with it.
    """

    make: Callable[[Part], nn.Module]
    schedule: Schedule | None
    price: float = 0.0
    baseline: bool = False


@dataclass(frozen=True)
class Setting:
    """One table: data and models.

    Attributes:
        name: Written to every row.
        edge_index: The graph, ``[2, e]``.
        load: Training, validation and test part of a seed.
        models: By name.
        probe: Numbers to keep of a trained network by name, such as its learned alpha.
        dataset: Name of the data.
        source: ``"embedded"``, or ``"files"``.
    """

    name: str
    edge_index: Tensor
    load: Callable[[int], tuple[Part, Part, Part]]
    models: Mapping[str, Model]
    probe: Callable[[nn.Module, Part, Tensor], Mapping[str, float]]
    dataset: str = "simulated"
    source: str = "embedded"


class Drawn:
    """The parts of a seed, drawn when they are first asked for, in each process by itself.

    Jobs that share them follow each other, so that a process keeps the last ones only.

    Args:
        load: Draws training, validation and test part.
    """

    _last: ClassVar[tuple[str, tuple[Part, Part, Part]] | None] = None

    def __init__(self, load: Callable[[], tuple[Part, Part, Part]]) -> None:
        self._load, self._token = load, uuid.uuid4().hex

    def __call__(self) -> tuple[Part, Part, Part]:
        if Drawn._last is None or Drawn._last[0] != self._token:
            Drawn._last = self._token, self._load()
        return Drawn._last[1]


def error(net: nn.Module, part: Part, edge_index: Tensor) -> Tensor:
    """Mean squared error of the coordinates and, if there are any to predict, the features."""
    x, pos = net(edge_index=edge_index, **part.inputs)
    loss = F.mse_loss(pos, part.pos)
    return loss if part.x is None else loss + F.mse_loss(x, part.x)


def score(net: Any, part: Part, edge_index: Tensor) -> Tensor | None:
    """The network's alpha on these inputs, if it learns one."""
    if getattr(net, "estimator", None) is None:
        return None
    return net.symmetry_score(part.inputs["x"], part.inputs["pos"], edge_index)


class MotionTraining(Training):
    """A network on coordinates, with the price of freedom in its loss."""

    def __init__(self, model: Model, parts: tuple[Part, Part], edge_index: Tensor) -> None:
        self.recipe, self.parts, self.edge_index = model, parts, edge_index

    def model(self) -> nn.Module:
        return self.recipe.make(self.parts[0])

    def parameters(self, model: nn.Module) -> list[dict[str, Any]]:
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, parameter in model.named_parameters():
            groups[name.startswith("estimator.")].append(parameter)
        return [{"params": groups[False]}, {"params": groups[True], "scale": ALPHA_RATE}]

    def batches(self) -> Iterator[Part]:
        data = self.parts[0]
        assert self.recipe.schedule is not None
        count = len(data.pos)
        for index in torch.randperm(count).split(self.recipe.schedule.batch_size or count):
            yield data.batch(index)

    def loss(self, model: nn.Module, batch: Part) -> Tensor:
        loss = error(model, batch, self.edge_index)
        alpha = score(model, batch, self.edge_index) if self.recipe.price else None
        return loss if alpha is None else loss + self.recipe.price * (1 - alpha).mean()

    def validate(self, model: nn.Module) -> Measured:
        return {METRIC: error(model, self.parts[1], self.edge_index).item()}

    def contents(self, batch: Part) -> dict[str, Any]:
        return {"inputs": dict(batch.inputs), "pos": batch.pos, "x": batch.x}


def run(
    settings: Sequence[Setting],
    *,
    out: Path,
    name: str,
    profile: str,
    seeds: int,
    console: Console | None,
    workers: int = 1,
) -> list[Row]:
    """Train every model of every setting on every seed; finished cells are kept.

    Args:
        settings: The tables.
        out: Folder of results.
        name: Name of the results file in it.
        profile: Written to every row.
        seeds: Number of seeds.
        console: Where to tell the progress.
        workers: Processes that run cells.

    Returns:
        The rows, those found finished included.

    Raises:
        BenchmarkError: There are no seeds, or the results cannot be read or written.
    """
    check_request(profile, [profile], seeds)

    def every() -> Iterator[Job]:
        return jobs(settings, profile, seeds)

    # Those that are read for the plan load nothing.
    engine = Engine(out, name, console=console, workers=workers)
    return engine.run(lambda: (list(every()), every()))


def jobs(settings: Sequence[Setting], profile: str, seeds: int) -> Iterator[Job]:
    """Every model of every setting on every seed; those of a seed share its data."""
    for seed in range(seeds):
        for setting in settings:
            load = Drawn(partial(setting.load, seed))
            for title in setting.models:
                yield _job(setting, title, profile, seed, load)


def _job(
    setting: Setting,
    title: str,
    profile: str,
    seed: int,
    load: Drawn,
) -> Job:
    model = setting.models[title]

    def fit(trainer: Trainer) -> Fit:
        training, val, _ = load()
        if model.schedule is None:
            return closed_form(lambda: model.make(training), epochs=0)
        parts = training, val
        return trainer.fit(MotionTraining(model, parts, setting.edge_index), model.schedule, seed)

    @torch.no_grad()
    def measure(fit: Fit) -> list[Value]:
        _, val, test = load()
        net, edge_index = fit.model.eval(), setting.edge_index
        values = [
            Value(split, METRIC, "1", error(net, part, edge_index).item())
            for split, part in (("val", val), ("test", test))
        ]
        probes = setting.probe(net, test, edge_index)
        return values + [Value("test", name, "1", value) for name, value in probes.items()]

    columns = {
        "key": _key(setting, title, model, profile, seed),
        "task": setting.name,
        "dataset": setting.dataset,
        "source": setting.source,
        "profile": profile,
        "schedule": str(model.schedule),
        "model": title,
        "group": "",
        "group_order_log": None,
        "commutant_dim": None,
        "seed": seed,
        "fold": None,
    }
    return Job(f"{setting.name}, {title}, seed {seed}", columns, METRIC, "1", fit, measure)


def lines(rows: Sequence[Row], setting: Setting, profile: str) -> list[Line]:
    """The rows of a setting by model, each with its seeds; those of earlier settings left out."""
    table = []
    for title, model in setting.models.items():
        own = [r for r in rows if r.key == _key(setting, title, model, profile, r.seed)]
        if own:
            table.append(Line(title, tuple(sorted(own, key=lambda row: row.seed))))
    return table


def best_baseline(table: Sequence[Line], setting: Setting) -> Line | None:
    """The baseline of least mean validation error among those that finished every seed."""
    able = [
        line
        for line in table
        if setting.models[line.name].baseline and len(line.finished) == len(line.rows)
    ]
    return min(able, key=lambda line: mean(line.values("val")), default=None)


def table_rows(table: Sequence[Line], setting: Setting) -> tuple[list[str], list[list[str]]]:
    """Head and body of a table of errors, paired differences, parameters and seconds."""
    reference = best_baseline(table, setting)
    against = f"against {reference.name}" if reference else "against the best baseline"
    head = ["model", "parameters", "test", against, "diverged", "seeds", "best epoch", "seconds"]
    body = []
    for line in table:
        seconds = mean(row.seconds for row in line.rows)
        trained = setting.models[line.name].schedule is not None
        epochs = ", ".join(str(row.best_epoch) for row in line.finished) if trained else ""
        body.append(
            [
                f"{line.name} (baseline)" if setting.models[line.name].baseline else line.name,
                thousands(next((r.parameters for r in line.rows if r.parameters), None)),
                short(line.values("test")),
                str(compare(line, reference) or "-"),
                str(line.count("diverged")),
                str(len(line.finished)),
                epochs or "-",
                f"{seconds:.1f}",
            ]
        )
    return head, body


def short(values: Sequence[float]) -> str:
    """Mean and standard deviation in few digits."""
    return spread(values, digits=3, deviation_digits=1)


def _key(setting: Setting, title: str, model: Model, profile: str, seed: int) -> str:
    how = model.schedule and asdict(model.schedule)
    return f"{setting.name}; {title}; {profile}; seed {seed}; {how}; price {model.price}"
