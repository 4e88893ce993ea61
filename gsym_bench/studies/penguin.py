"""Four small worlds, each with part of the Euclidean symmetry, and what PEnGUiN learns of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from gsym.nn import EGNNConv, PenguinConv
from gsym_bench.models.gnn import GNN
from gsym_bench.simulators import partial as worlds
from gsym_bench.studies.motion import (
    Model,
    Part,
    Setting,
    lines,
    run,
    score,
    short,
    table_rows,
)
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.draw import PALETTE, save
from gsym_bench.suite.report.markdown import made_with, markdown_table, write_page
from gsym_bench.suite.report.tables import Line
from gsym_bench.suite.results import read_rows
from gsym_bench.suite.task import Schedule

RESULTS, PAGE, PICTURE = "penguin.csv", "penguin.md", "penguin.png"
PROFILE = "standard"
SIZES = (64, 256, 1000)
SCHEDULE = Schedule(400, lr=0.01, eval_every=10)
PRICE = 0.05
WIDTH = 16
WINDS = (0.0, 0.5, 1.0, 2.0, 3.0)
ACROSS = torch.linspace(-4, 4, 17)  # distances from the wall at which alpha is read
# What is read off a trained network.
ALPHA, COSINE = "alpha", "cosine of axis and vertical"
BY_FEATURE = ("alpha of the feature", "alpha of the places")
AT = [f"alpha at {x:g}" for x in ACROSS.tolist()]


def load(
    seed: int,
    *,
    dim: int,
    move: Callable[[Tensor], Tensor],
    label: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Part, Part, Part]:
    """Training, validation and test part of a world; nodes have no feature but a 1."""
    rng = torch.Generator().manual_seed(seed)

    def part(count: int) -> Part:
        pos = worlds.places(count, dim, rng)
        inputs = {"x": torch.ones(count, worlds.NUM_NODES, 1), "pos": pos}
        return Part(inputs, move(pos), None if label is None else label(pos))

    return part(SIZES[0]), part(SIZES[1]), part(SIZES[2])


def settings() -> dict[str, Setting]:
    """One table for each world, by name; the wind blows at several strengths."""
    learned: dict[str, Any] = {"alpha": "learned"}
    axis: dict[str, Any] = {"learn_axis": True}
    subgroup = {
        "Penguin": learned,
        "Penguin, axis learned": learned | axis,
        "Penguin, hard": learned | {"hard": True},
        "Penguin, hard, axis learned": learned | axis | {"hard": True},
    }
    pull, heights = worlds.pull, worlds.heights
    found = [
        _setting("subgroup", 3, worlds.fall, None, subgroup, _probe_axis),
        _setting("feature-wise", 2, pull, heights, {"Penguin": {"alpha": "feature"}}, _probe_mean),
        _setting("regional", 2, worlds.slide, None, {"Penguin": {"alpha": "node"}}, _probe_wall),
    ]
    for wind in WINDS:
        blow = partial(worlds.blow, wind=wind)
        name = f"approximate, wind {wind:g}"
        found.append(_setting(name, 2, blow, None, {"Penguin": learned}, _probe_mean))
    return {setting.name: setting for setting in found}


def main(out: Path, seeds: int, console: Console) -> Path:
    """Train on all worlds, then write the page and the picture.

    Args:
        out: Folder of results.
        seeds: Number of seeds.
        console: Where to tell the progress.

    Returns:
        Path of the page.
    """
    tables = list(settings().values())
    run(tables, out=out, name=RESULTS, profile=PROFILE, seeds=seeds, console=console)
    return report(out)


def report(out: Path) -> Path:
    """Write the page and the picture from the results file."""
    rows = read_rows(out, RESULTS)
    tables = {
        setting.name: (setting, lines(rows, setting, PROFILE)) for setting in settings().values()
    }
    missing = ", ".join(name for name, (_, table) in tables.items() if not table)
    if missing:
        raise BenchmarkError(
            f"{out / RESULTS} has no results of {missing}; make them with gsym-bench penguin"
        )
    used = [row for _, table in tables.values() for line in table for row in line.rows]
    seeds = max(row.seed for row in used) + 1
    parts = [
        "# Four broken symmetries",
        "Four nodes in a small world go half the way to their centre, which commutes with "
        "rotations, reflections and translations; then each world breaks this in a known way. "
        f"One layer of {WIDTH} channels learns the motion from {SIZES[0]} samples in "
        f"{SCHEDULE.epochs} steps; in the loss, freedom costs {PRICE:g} times the mean of 1 - "
        "alpha. The table gives the mean squared error, mean and standard deviation over seeds, "
        "each with its own data, and differences paired by seed with the 95 % interval of "
        "Student's t. Validation selects the step and the best baseline. What each world is, and "
        "what the picture shows, is told under [Euclidean symmetry by degrees](../penguin.md).",
        f"![learned alpha in four worlds]({_draw(out, tables)})",
    ]
    for name, (setting, table) in tables.items():
        head, body = table_rows(table, setting)
        head.append("learned")
        for line, cells in zip(table, body, strict=True):
            cells.append(_told(name, line))
        parts += [f"## {name[0].upper()}{name[1:]}", markdown_table(head, body)]
    parts.append(made_with(f"gsym-bench penguin --seeds {seeds}", used) + ".")
    return write_page(out / PAGE, parts)


def _setting(
    name: str,
    dim: int,
    move: Callable[[Tensor], Tensor],
    label: Callable[[Tensor], Tensor] | None,
    penguins: Mapping[str, dict[str, Any]],
    probe: Callable[[nn.Module, Part, Tensor], dict[str, float]],
) -> Setting:
    def conv(kind: type[EGNNConv] | type[PenguinConv], **options: Any) -> Model:
        def make(_: Part) -> nn.Module:
            return kind(1, 1, WIDTH, dim=dim, **options)

        price = PRICE if kind is PenguinConv else 0.0
        return Model(make, SCHEDULE, price, baseline=kind is EGNNConv)

    models = {title: conv(PenguinConv, **options) for title, options in penguins.items()}
    models["EGNN"] = conv(EGNNConv)
    if name == "subgroup":
        models["EGNN, axis learned"] = conv(EGNNConv, learn_axis=True)
    models["GNN"] = Model(lambda _: GNN(1, 1, WIDTH, 1, dim=dim), SCHEDULE, baseline=True)
    return Setting(
        name, worlds.EDGE_INDEX, partial(load, dim=dim, move=move, label=label), models, probe
    )


@torch.no_grad()
def _probe_mean(net: nn.Module, part: Part, edge_index: Tensor) -> dict[str, float]:
    """Mean alpha; by feature, that of the coordinates last."""
    alpha = score(net, part, edge_index)
    if alpha is None:
        return {}
    if alpha.dim() == 0:
        return {ALPHA: alpha.item()}
    return dict(zip(BY_FEATURE, alpha.mean((0, 1)).tolist(), strict=True))


@torch.no_grad()
def _probe_axis(net: nn.Module, part: Part, edge_index: Tensor) -> dict[str, float]:
    """Alpha, if there is one, and the cosine of a learned axis with the vertical, if any."""
    axis = getattr(getattr(net, "equivariant", net), "axis", None)
    cosine = {} if axis is None else {COSINE: abs(axis[-1] / axis.norm()).item()}
    return _probe_mean(net, part, edge_index) | cosine


@torch.no_grad()
def _probe_wall(net: nn.Module, part: Part, edge_index: Tensor) -> dict[str, float]:
    """Alpha by first coordinate, averaged over the second."""
    along = torch.linspace(-2, 2, worlds.NUM_NODES)
    pos = torch.cartesian_prod(ACROSS, along).view(len(ACROSS), worlds.NUM_NODES, 2)
    probe = Part({"x": torch.ones(len(ACROSS), worlds.NUM_NODES, 1), "pos": pos}, pos)
    alpha = score(net, probe, edge_index)
    return {} if alpha is None else dict(zip(AT, alpha.mean((1, 2)).tolist(), strict=True))


def _alphas_across(line: Line) -> list[list[float]]:
    """Alpha at all distances from the wall, by seed."""
    found = ([row.value("test", name) for name in AT] for row in line.finished)
    return [[value for value in values if value is not None] for values in found]


def _told(name: str, line: Line) -> str:
    """The probes in words."""
    words = []
    if not line.name.startswith("Penguin") or not line.finished:
        pass
    elif name == "regional":
        seeds = torch.tensor(_alphas_across(line))
        sides = {"left of 0": ACROSS < 0, "beyond the wall": ACROSS > worlds.WALL}
        for side, mask in sides.items():
            words.append(f"alpha {short(seeds[:, mask].mean(1).tolist())} {side}")
    elif name == "feature-wise":
        of_feature, of_places = (short(line.values("test", metric)) for metric in BY_FEATURE)
        words = [f"alpha {of_feature} of the feature", f"{of_places} of the places"]
    else:
        words = [f"alpha {short(line.values('test', ALPHA))}"]
    if "axis" in line.name:
        words.append(f"cosine of axis and vertical {short(line.values('test', COSINE))}")
    return ", ".join(words) or "-"


def _draw(out: Path, tables: Mapping[str, tuple[Setting, list[Line]]]) -> str:
    """Learned alpha in the four worlds, one panel each."""
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    found = {name: {line.name: line for line in table} for name, (_, table) in tables.items()}

    axes = panels[0]
    models = [name for name in found["subgroup"] if name.startswith("Penguin")]
    _dots(
        axes, range(len(models)), [found["subgroup"][name].values("test", ALPHA) for name in models]
    )
    axes.set_xticks(
        range(len(models)), [name.removeprefix("Penguin, ").replace(", ", ",\n") for name in models]
    )
    axes.set_title("subgroup: all fall along one axis", fontsize=10, loc="left")

    axes = panels[1]
    _dots(axes, range(2), [found["feature-wise"]["Penguin"].values("test", m) for m in BY_FEATURE])
    axes.set_xticks(range(2), ["the feature,\nan absolute height", "the places,\npulled together"])
    axes.set_title("feature-wise: the feature breaks it", fontsize=10, loc="left")

    axes = panels[2]
    for alphas in _alphas_across(found["regional"]["Penguin"]):
        axes.plot(ACROSS, alphas, color=PALETTE[0], alpha=0.5)
    axes.axvspan(worlds.WALL, ACROSS[-1], color=PALETTE[1], alpha=0.25, linewidth=0)
    axes.annotate("at the wall", (worlds.WALL + 0.15, 1.0), va="center", fontsize=9)
    axes.set_xlabel("first coordinate of the node")
    axes.set_title("regional: a wall breaks it", fontsize=10, loc="left")

    axes = panels[3]
    _dots(
        axes,
        WINDS,
        [found[f"approximate, wind {wind:g}"]["Penguin"].values("test", ALPHA) for wind in WINDS],
    )
    axes.set_xlabel("strength of the wind")
    axes.set_title("approximate: broken everywhere, by degrees", fontsize=10, loc="left")

    for axes in panels:
        axes.set_ylim(-0.06, 1.06)
        axes.set_ylabel("learned alpha")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    return save(figure, out / PICTURE)


def _dots(axes: Axes, places: Sequence[float], columns: Sequence[Sequence[float]]) -> None:
    """A column of dots per list, side by side in the order of the seeds, and a bar at its mean."""
    span = places[-1] - places[0]
    for x, values in zip(places, columns, strict=True):
        # Rounded scores are equal: one above the other, five dots would look like one.
        beside = (x + 0.016 * span * (i - (len(values) - 1) / 2) for i in range(len(values)))
        axes.scatter(list(beside), values, s=20, color=PALETTE[0], alpha=0.6, zorder=3)
        if values:
            axes.scatter(x, mean(values), s=600, marker="_", color=PALETTE[0], zorder=4)
    axes.set_xlim(places[0] - 0.15 * span, places[-1] + 0.15 * span)
