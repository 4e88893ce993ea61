"""Nets with levels beside one level and beside published ways to soften a symmetry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from gsym.groups import PermutationGroup
from gsym.nn import OrbitLinear
from gsym.nn.soft import (
    ConstrainedRelaxation,
    EquivarianceRegulariser,
    RelaxedOrbitLinear,
    ResidualPathway,
)
from gsym_bench.suite.engine import Engine, Job, check_request
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.draw import PALETTE, save
from gsym_bench.suite.report.markdown import made_with, markdown_table, write_page
from gsym_bench.suite.report.tables import Line, compare, spread, thousands
from gsym_bench.suite.results import Row, Value, read_rows
from gsym_bench.suite.task import Problem, Schedule, Split
from gsym_bench.suite.train import Fit, Measured, Trainer, Training
from gsym_bench.tasks.inpainting import Inpainting
from gsym_bench.tasks.traffic import Traffic

RESULTS, PAGE, PICTURE = "softlayers.csv", "softlayers.md", "softlayers.png"
PROFILE = "standard"
HIDDEN = 28
# Of the penalties, which validation chooses from; of the dual steps likewise.
STRENGTHS = (1e-5, 1e-4, 1e-3)
DUAL_RATES = (1e-3, 1e-2)
# A free map is this much dearer than a tied one, as in the authors' code.
RATIO = 1e5
TUNED_AT = 0.25  # share of the epochs after which the regulariser's strengths are tuned
SUM, FINEST = "sum of levels", "finest level"
SINGLE, RELAXED, RESIDUAL = "level", "relaxed weight sharing", "residual pathway"
CONSTRAINED, REGULARISED = "constrained relaxation", "equivariance regulariser"
PUBLISHED = (RELAXED, RESIDUAL, CONSTRAINED, REGULARISED)
LEVELS = {
    "digits": ("(S_4)^16", "(S_16)^4", "S_64"),
    "fashion-mnist": ("(S_4)^196", "(S_16)^49", "S_784"),
    "freeway (simulated)": ("12 stations", "3 segments", "S_48"),
    "metr-la": ("32 clusters", "9 clusters", "S_207"),
}


@dataclass(frozen=True)
class Data:
    """A seed of a task, as signals ``[b, n, c]`` with channels of every node.

    Attributes:
        dataset: Name of the data.
        parts: Training, validation and test part.
        levels: Groups by name, fine to coarse.
        finish: What becomes of the net's result and its inputs: the prediction.
        metric: Name of the error.
        unit: Its unit.
        schedule: How a net is trained.
        squared: Whether the error is squared, else absolute.
        factor: By which the loss is multiplied to be in the unit.
        draws: How seeds draw them, see `gsym_bench.suite.task.Task`.
    """

    dataset: str
    parts: tuple[Split, Split, Split]
    levels: Mapping[str, PermutationGroup]
    finish: Callable[[Tensor, Tensor], Tensor]
    metric: str
    unit: str
    schedule: Schedule
    squared: bool
    factor: float
    draws: str = ""

    def error(self, model: nn.Module, part: Split) -> Tensor:
        """Mean error where the targets count."""
        wrong = self.finish(model(part.inputs), part.inputs) - part.targets
        wrong = wrong.square() if self.squared else wrong.abs()
        if part.mask is None:
            return wrong.mean()
        return torch.where(part.mask, wrong, 0).sum() / part.mask.sum().clamp(min=1)


def inpainting(data: Path | None, seed: int) -> Data:
    """Holes in images; the net sees where they are, and what is outside stays."""
    problem = Inpainting().load(data, PROFILE, seed)

    def part(split: Split) -> Split:
        return Split(split.inputs, split.targets)

    def finish(y: Tensor, x: Tensor) -> Tensor:
        return torch.where(x[..., 1:] > 0, y, x[..., :1])

    schedule = Schedule(120 if data is None else 400, lr=1e-2)
    parts = part(problem.train), part(problem.val), part(problem.test)
    names = "MSE", "x 1e-2, normalised grey"
    levels, draws = _levels(problem), Inpainting.draws
    return Data(problem.dataset, parts, levels, finish, *names, schedule, True, 100.0, draws)


def traffic(data: Path | None, seed: int) -> Data:
    """The next three speeds as changes of the last standardised one, in mph."""
    problem = Traffic().load(data, PROFILE, seed)
    mean_, std = problem.extra["mean"], problem.extra["std"]

    def part(split: Split) -> Split:
        inputs = split.inputs.permute(0, 2, 1, 3).flatten(2)
        mask = None if split.mask is None else split.mask.transpose(1, 2)
        return Split(inputs, split.targets.transpose(1, 2), mask)

    def finish(y: Tensor, x: Tensor) -> Tensor:
        return mean_ + std * (x[..., -2:-1] + y)

    schedule = Schedule(60, 64, lr=1e-2)
    parts = part(problem.train), part(problem.val), part(problem.test)
    names = "masked MAE", "mph"
    return Data(problem.dataset, parts, _levels(problem), finish, *names, schedule, False, 1.0)


TASKS = {"inpainting": inpainting, "traffic": traffic}


def _levels(problem: Problem) -> dict[str, PermutationGroup]:
    return {name: problem.groups[name] for name in LEVELS[problem.dataset]}


@dataclass(frozen=True)
class Way:
    """How the two linear maps of a net are tied, and what its loss has besides.

    Attributes:
        title: What the page calls it; several with one title are chosen from by validation.
        choice: What they differ in.
        kind: One of the ways above.
        value: The choice as a number or the name of a level.
    """

    title: str
    choice: str
    kind: str
    value: Any = None

    @property
    def name(self) -> str:
        """What its rows are found by."""
        return f"{self.title}: {self.choice}" if self.choice else self.title


def ways(names: Sequence[str]) -> list[Way]:
    """All of them, for levels of these names."""
    found = [Way(SUM, "", SUM), Way(FINEST, "", SINGLE, names[0])]
    found += [Way("best single level", name, SINGLE, name) for name in names[1:]]
    found.append(Way(RELAXED, "", RELAXED))
    for kind in (RESIDUAL, REGULARISED):
        found += [Way(kind, f"strength {s:g}", kind, s) for s in STRENGTHS]
    found += [Way(CONSTRAINED, f"dual rate {s:g}", CONSTRAINED, s) for s in DUAL_RATES]
    return found


class Net(nn.Module):
    """Two tied maps with ReLU between."""

    def __init__(self, way: Way, levels: Mapping[str, PermutationGroup], widths: Sequence[int]):
        super().__init__()
        a, b = widths
        self.first, self.last = (_layer(way, levels, *w) for w in ((a, HIDDEN), (HIDDEN, b)))
        self.last.reset_parameters(gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x).relu())
        return y


def _layer(
    way: Way, levels: Mapping[str, PermutationGroup], in_channels: int, out_channels: int
) -> Any:
    """One map. The published ways relax the coarsest level as far as the finest one allows."""
    widths = in_channels, out_channels
    fine, middle, coarse = levels.values()
    if way.kind == SUM:
        return OrbitLinear(*widths, levels=list(levels.values()))
    if way.kind == SINGLE:
        return OrbitLinear(*widths, levels[way.value])
    if way.kind == RELAXED:
        return RelaxedOrbitLinear(*widths, middle)
    if way.kind == RESIDUAL:
        return ResidualPathway(*widths, coarse, finer=fine)
    if way.kind == CONSTRAINED:
        return ConstrainedRelaxation(*widths, coarse, finer=fine, rho=1.0)
    return OrbitLinear(*widths, fine)


class SoftTraining(Training):
    """A net of one of the ways, with its penalty in the loss."""

    def __init__(self, way: Way, data: Data) -> None:
        self.way, self.data, self.epoch = way, data, 0
        self.term: EquivarianceRegulariser | None = None

    def model(self) -> nn.Module:
        train = self.data.parts[0]
        widths = train.inputs.size(-1), train.targets.size(-1)
        net = Net(self.way, self.data.levels, widths)
        if self.way.kind == REGULARISED:
            coarser = list(self.data.levels.values())[1:]
            self.term = EquivarianceRegulariser(net, coarser, self.way.value)
        return net

    def parameters(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def batches(self) -> Iterator[Split]:
        self.epoch += 1
        if self.term is not None:
            self.term.observe()
            if self.epoch == int(TUNED_AT * self.data.schedule.epochs):
                self.term.tune()
        train = self.data.parts[0]
        for index in torch.randperm(len(train)).split(self.data.schedule.batch_size or len(train)):
            yield train.batch(index)

    def loss(self, model: nn.Module, batch: Split) -> Tensor:
        loss = self.data.error(model, batch)
        for layer in (model.first, model.last):
            if isinstance(layer, ConstrainedRelaxation):
                layer.dual_step(self.way.value)
                loss = loss + layer.penalty()
            elif isinstance(layer, ResidualPathway):
                loss = loss + layer.penalty(self.way.value, self.way.value / RATIO)
        return loss if self.term is None else loss + self.term.penalty()

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Measured:
        error = self.data.factor * self.data.error(model, self.data.parts[1])
        return {self.data.metric: float(error)}

    def contents(self, batch: Split) -> dict[str, Any]:
        return {"inputs": batch.inputs, "targets": batch.targets}


def main(out: Path, data: Path | None, tasks: Sequence[str], seeds: int, console: Console) -> Path:
    """Train all ways on all seeds, then write the page; finished cells are kept.

    Args:
        out: Folder of results.
        data: Folder of downloaded data; embedded and simulated data without it.
        tasks: Names of tasks; all if none is given.
        seeds: Number of seeds.
        console: Where to tell the progress.

    Returns:
        Path of the page.
    """
    check_request(PROFILE, [PROFILE], seeds)
    unknown = [name for name in tasks if name not in TASKS]
    if unknown:
        raise BenchmarkError(f"tasks are {', '.join(TASKS)}; got {unknown[0]!r}")

    def jobs() -> Iterator[Job]:
        for seed in range(seeds):
            for task in tasks or TASKS:
                load = cache(partial(TASKS[task], data, seed))
                for way in ways(list(load().levels)):
                    yield _job(task, way, seed, data, load)

    def plan() -> tuple[list[Job], list[Job]]:
        every = list(jobs())
        return every, every

    # A cell is short, and what tunes a penalty is no part of a checkpoint.
    Engine(out, RESULTS, checkpoint_seconds=math.inf, console=console).run(plan)
    return report(out)


def _job(task: str, way: Way, seed: int, files: Path | None, load: Callable[[], Data]) -> Job:
    data = load()

    def fit(trainer: Trainer) -> Fit:
        return trainer.fit(SoftTraining(way, data), data.schedule, seed)

    @torch.no_grad()
    def measure(fit: Fit) -> list[Value]:
        net, (_, val, test) = fit.model.eval(), data.parts
        values = [
            Value(split, data.metric, data.unit, data.factor * float(data.error(net, part)))
            for split, part in (("val", val), ("test", test))
        ]
        if way.kind == SUM:
            shares = torch.stack([net.first.energy(), net.last.energy()]).tolist()
            for layer, row in zip(("first", "last"), shares, strict=True):
                for level, share in zip(data.levels, row, strict=True):
                    values.append(Value("test", _energy(layer, level), "1", share))
        return values

    setting = f"{data.schedule}; {data.draws}" if data.draws else str(data.schedule)
    columns = {
        "key": f"{data.dataset}; {way.name}; seed {seed}; {setting}",
        "task": task,
        "dataset": data.dataset,
        "source": "files" if files else "embedded",
        "profile": PROFILE,
        "schedule": setting,
        "model": way.name,
        "group": "",
        "group_order_log": None,
        "commutant_dim": None,
        "seed": seed,
        "fold": None,
    }
    return Job(
        f"{data.dataset}, {way.name}, seed {seed}", columns, data.metric, data.unit, fit, measure
    )


def _energy(layer: str, level: str) -> str:
    return f"energy of {level} in the {layer} layer"


def chosen(rows: Sequence[Row], names: Sequence[str]) -> list[Line]:
    """One line per title: of several choices the one of least mean validation error."""
    lines: list[Line] = []
    for title in dict.fromkeys(way.title for way in ways(names)):
        options = []
        for way in ways(names):
            # The finest level is a single level, too.
            if way.title == title or (title == "best single level" and way.title == FINEST):
                own = sorted((r for r in rows if r.model == way.name), key=lambda r: r.seed)
                if own and all(row.status == "ok" for row in own):
                    options.append(Line(way.name, tuple(own)))
        if options:
            best = min(options, key=lambda line: mean(line.values("val")))
            lines.append(Line(title, best.rows))
    return lines


def report(out: Path) -> Path:
    """Write the page and the picture from the results file."""
    rows = read_rows(out, RESULTS)
    if not rows:
        raise BenchmarkError(f"no results in {out / RESULTS}; run gsym-bench softlayers")
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    newest = {row.dataset: row.schedule for row in rows}
    rows = [row for row in rows if row.schedule == newest[row.dataset]]
    seeds = max(row.seed for row in rows) + 1
    parts = [
        "# Soft layers",
        "Nets of two tied maps with ReLU between: the sum of three levels beside its finest level, "
        "the best single level and four published ways to soften a symmetry, from the coarsest "
        f"level to the finest. Every net has {HIDDEN} channels between and is trained to the "
        "minimum of its own validation curve: the epoch is chosen by validation, and so are the "
        "strength of a penalty and the single level. A minimum in the last tenth of the epochs is "
        "counted as late: such a net might have improved. Errors are means and standard "
        "deviations over seeds; differences to the sum of levels are paired by seed, with the "
        "95 % interval of Student's t.",
    ]
    for dataset in datasets:
        parts += _section([row for row in rows if row.dataset == dataset], dataset)
    parts.append(f"## Energy\n\n![energy by level]({_draw(out, rows, datasets)})")
    parts.append(
        "How much of the map of each layer belongs to which level, for the sum of levels: bars are "
        "means over seeds."
    )
    source = " --data DIR" if any(row.source == "files" for row in rows) else ""
    done = [task for task in TASKS if any(row.task == task for row in rows)]
    named = "" if len(done) == len(TASKS) else " " + " ".join(done)
    command = f"gsym-bench softlayers{named}{source} --seeds {seeds}"
    parts.append(f"{made_with(command, rows)}; the rows stand in [{RESULTS}]({RESULTS}).")
    return write_page(out / PAGE, parts)


def _section(rows: Sequence[Row], dataset: str) -> list[str]:
    lines = {line.name: line for line in chosen(rows, LEVELS[dataset])}
    ours = lines.get(SUM)
    head = ["net", "chosen", "parameters", "test", f"less {SUM}", "best epoch", "late", "seconds"]
    body = []
    for title, line in lines.items():
        first = line.rows[0]
        difference = compare(line, ours) if ours is not None and line is not ours else None
        epochs = [row.best_epoch or 0 for row in line.rows]
        late = sum(
            best > 0.9 * (row.epochs or 0) for best, row in zip(epochs, line.rows, strict=True)
        )
        body.append(
            [
                title,
                first.model.partition(": ")[2] or "-",
                thousands(first.parameters),
                spread(line.values("test"), digits=4, deviation_digits=2),
                str(difference or "-"),
                f"{mean(epochs):.0f}",
                f"{late} of {len(epochs)}",
                f"{mean(row.seconds for row in line.rows):.0f}",
            ]
        )
    return [
        f"## {dataset}",
        f"{rows[0].metric} in {rows[0].unit}; {_verdict(lines)}",
        markdown_table(head, body),
    ]


def _verdict(lines: Mapping[str, Line]) -> str:
    """Whether the sum of levels gains, in words that follow from the numbers."""
    ours, said = lines.get(SUM), []
    if ours is None:
        return "the sum of levels is missing."
    for title, line in lines.items():
        found = compare(line, ours)
        if line is ours or found is None:
            continue
        if found.low > 0:
            said.append(f"better than {title}")
        elif found.high < 0:
            said.append(f"worse than {title}")
        else:
            said.append(f"not distinguishable from {title}")
    return "the sum of levels is " + ", ".join(said) + "."


def _draw(out: Path, rows: Sequence[Row], datasets: Sequence[str]) -> str:
    """Shares by level, one bar per layer and data set."""
    figure = Figure(figsize=(3.4 * len(datasets) + 1, 3.4), layout="constrained")
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    for axes, dataset in zip(panels, datasets, strict=True):
        own = [row for row in rows if row.dataset == dataset and row.model == SUM]
        for place, layer in enumerate(("first", "last")):
            below = 0.0
            for colour, level in zip(PALETTE, LEVELS[dataset], strict=False):
                values = [row.value("test", _energy(layer, level)) for row in own]
                share = mean([value for value in values if value is not None] or [0.0])
                label = level if place == 0 else None
                axes.bar(place, share, 0.6, bottom=below, color=colour, label=label)
                below += share
        axes.set_xticks(range(2), ["first layer", "last layer"])
        axes.set_title(dataset, fontsize=10, loc="left")
        axes.set_ylabel("share of the map")
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        axes.spines[["top", "right"]].set_visible(False)
    return save(figure, out / PICTURE)
