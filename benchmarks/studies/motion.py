"""Networks that say where nodes go: how ``nbody`` and ``penguin`` train them and keep the results.

They differ from the tasks of ``run`` in what they vary: not the group of node permutations but how
much Euclidean symmetry of the coordinates a network has.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from benchmarks.suite.errors import BenchmarkError
from benchmarks.suite.folder import locked
from benchmarks.suite.memory import peak_memory
from benchmarks.suite.report.tables import Line, compare, spread
from benchmarks.suite.run import provenance
from benchmarks.suite.store import Row, Value, append_row, read_rows, recover
from benchmarks.suite.task import Schedule
from gsym.nn import Penguin, PenguinConv

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
        make: Builds it anew; sees the training part, for what is fitted in closed form.
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
    """

    name: str
    edge_index: Tensor
    load: Callable[[int], tuple[Part, Part, Part]]
    models: Mapping[str, Model]
    probe: Callable[[nn.Module, Part, Tensor], Mapping[str, float]]


def error(net: nn.Module, part: Part, edge_index: Tensor) -> Tensor:
    """Mean squared error of the coordinates and, if there are any to predict, the features."""
    x, pos = net(edge_index=edge_index, **part.inputs)
    loss = F.mse_loss(pos, part.pos)
    return loss if part.x is None else loss + F.mse_loss(x, part.x)


def score(net: nn.Module, part: Part, edge_index: Tensor) -> Tensor | None:
    """The network's alpha on these inputs, if it learns one."""
    if not isinstance(net, Penguin | PenguinConv) or net.estimator is None:
        return None
    return net.symmetry_score(part.inputs["x"], part.inputs["pos"], edge_index)


def train(
    net: nn.Module,
    parts: tuple[Part, Part],
    edge_index: Tensor,
    schedule: Schedule,
    price: float,
    on_epoch: Callable[[int, float], None],
) -> int | None:
    """Train with Adam and load the weights of the best validation epoch.

    Args:
        net: The network; takes ``edge_index`` and what ``Part.inputs`` names.
        parts: Training and validation part.
        edge_index: The graph, ``[2, e]``.
        schedule: Epochs, batches and learning rate.
        price: As in :class:`Model`.
        on_epoch: Called after each validation with the epoch and the best error so far.

    Returns:
        The best epoch, or ``None`` if the loss or the validation error was no finite number.
    """
    data, val = parts
    faster = [p for name, p in net.named_parameters() if name.startswith("estimator.")]
    rest = [p for name, p in net.named_parameters() if not name.startswith("estimator.")]
    groups: list[dict[str, Any]] = [
        {"params": rest},
        {"params": faster, "lr": ALPHA_RATE * schedule.lr},
    ]
    optimiser = torch.optim.Adam(groups, lr=schedule.lr)
    best, best_epoch, weights = math.inf, 0, copy.deepcopy(net.state_dict())
    count = len(data.pos)
    for epoch in range(1, schedule.epochs + 1):
        for index in torch.randperm(count).split(schedule.batch_size or count):
            batch = data.batch(index)
            optimiser.zero_grad()
            loss = error(net, batch, edge_index)
            alpha = score(net, batch, edge_index) if price else None
            if alpha is not None:
                loss = loss + price * (1 - alpha).mean()
            if not loss.isfinite():
                return None
            loss.backward()
            optimiser.step()
        if epoch % schedule.eval_every == 0 or epoch == schedule.epochs:
            with torch.no_grad():
                now = error(net, val, edge_index).item()
            if not math.isfinite(now):
                return None
            if now < best:
                best, best_epoch, weights = now, epoch, copy.deepcopy(net.state_dict())
            on_epoch(epoch, best)
    net.load_state_dict(weights)
    return best_epoch


def run(
    settings: Sequence[Setting],
    *,
    out: Path,
    name: str,
    profile: str,
    seeds: int,
    console: Console,
) -> None:
    """Train every model of every setting on every seed; finished cells are kept.

    Args:
        settings: The tables.
        out: Folder of results.
        name: Name of the results file in it.
        profile: Written to every row.
        seeds: Number of seeds.
        console: Where to tell the progress.

    Raises:
        BenchmarkError: There are no seeds, or the results cannot be read or written.
    """
    if seeds < 1:
        raise BenchmarkError(f"expected at least one seed; got --seeds {seeds}")
    with locked(out):
        torn = recover(out / name)
        if torn is not None:
            console.print(
                f"The last line of {out / name} was cut off; it was moved to {name}.torn and its "
                f"cell is run again: {torn[:60]}...",
                markup=False,
                soft_wrap=True,
            )
        _run_cells(settings, out, name, profile, seeds, console)


def _run_cells(
    settings: Sequence[Setting], out: Path, name: str, profile: str, seeds: int, console: Console
) -> None:
    finished = {row.key for row in read_rows(out, name)}
    with Progress(console=console, transient=True) as progress:
        cells = progress.add_task("cells", total=seeds * sum(len(s.models) for s in settings))
        for seed in range(seeds):
            for setting in settings:
                parts: tuple[Part, Part, Part] | None = None
                for title, model in setting.models.items():
                    key = _key(setting, title, model, profile, seed)
                    if key not in finished:
                        parts = parts or setting.load(seed)
                        row = _cell(setting, title, model, parts, profile, seed, key, progress)
                        append_row(out, row, name)
                        test = "diverged" if row.test is None else f"test {row.test:.4g}"
                        progress.print(
                            f"{setting.name}, {title}, seed {seed}: {test}, {row.seconds:.0f} s"
                        )
                    progress.advance(cells)


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
                f"{line.rows[0].parameters:,}",
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


def _cell(
    setting: Setting,
    title: str,
    model: Model,
    parts: tuple[Part, Part, Part],
    profile: str,
    seed: int,
    key: str,
    progress: Progress,
) -> Row:
    """Fit one model and test it once."""
    training, val, test = parts
    epochs = model.schedule.epochs if model.schedule else 0
    bar = progress.add_task(f"{setting.name}, {title}, seed {seed}", total=epochs or 1)
    torch.manual_seed(seed)
    peak, start = peak_memory(torch.device("cpu")), time.perf_counter()
    net = model.make(training)
    best: int | None = 0
    if model.schedule:
        best = train(
            net,
            (training, val),
            setting.edge_index,
            model.schedule,
            model.price,
            lambda epoch, _: progress.update(bar, completed=epoch),
        )
    seconds = time.perf_counter() - start
    values = [Value(split, "MSE", "1", None) for split in ("val", "test")]
    if best is not None:
        with torch.no_grad():
            errors = [error(net, part, setting.edge_index).item() for part in (val, test)]
            probes = setting.probe(net, test, setting.edge_index)
        values = [replace(v, value=e) for v, e in zip(values, errors, strict=True)]
        values += [Value("test", name, "1", value) for name, value in probes.items()]
    progress.remove_task(bar)
    return Row(
        key=key,
        **provenance(),
        device="cpu",
        threads=torch.get_num_threads(),
        task=setting.name,
        dataset="simulated",
        source="embedded",
        profile=profile,
        schedule=str(model.schedule),
        model=title,
        group="",
        group_order_log=None,
        commutant_dim=None,
        seed=seed,
        status="diverged" if best is None else "ok",
        seconds=round(seconds, 2),
        peak_memory_mib=round(peak(), 1),
        parameters=sum(p.numel() for p in net.parameters()),
        epochs=epochs,
        best_epoch=best,
        fold=None,
        values=tuple(values),
    )
