"""Pictures of a report: errors by group, and the groups on their graph."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from textwrap import fill

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from gsym_bench.data import DataError, read_npz, replacing
from gsym_bench.suite.crossover import Prediction
from gsym_bench.suite.report.statistics import bootstrap
from gsym_bench.suite.report.tables import Line, Table, select, thousands
from gsym_bench.suite.results import graph_path, samples_path, shown_path
from gsym_bench.suite.task import TASKS, Split

# Okabe and Ito's palette, distinguishable with the common colour-vision deficiencies.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


_GRAPH = ("title", "truth", "names", "clusters", "orbits", "edge_index", "positions")


def draw_errors(out: Path, table: Table) -> str:
    """Test error against the group from S_n to trivial; returns the name of the picture."""
    groups = [line for line in table.groups if line.finished]
    sizes = {line.group: line.dim for line in sorted(groups, key=lambda line: line.dim)}
    names = list(sizes)
    figure = Figure(figsize=(1.6 + 1.15 * max(len(names), 4), 4.2), layout="constrained")
    axes = figure.add_subplot()
    models = list(dict.fromkeys(line.model for line in groups))
    chosen = select(table)
    for model, color in zip(models, distinct_colors(len(models)), strict=True):
        own = sorted((g for g in groups if g.model == model), key=lambda g: names.index(g.group))
        xs = [names.index(line.group) for line in own]
        style = "-" if len(own) > 1 else ""
        label = model if len(models) > 1 else None
        axes.plot(xs, [g.test for g in own], style, color=color, lw=2, zorder=3, label=label)
        bands = [bootstrap(line.values("test")) for line in own]
        low, high = [b.low for b in bands], [b.high for b in bands]
        axes.fill_between(xs, low, high, color=color, alpha=0.18, linewidth=0)
        for x, line in zip(xs, own, strict=True):
            values = line.values("test")
            axes.scatter([x] * len(values), values, s=18, color=color, alpha=0.6, zorder=4)
            if line is chosen:
                axes.scatter(x, line.test, s=170, facecolor="none", edgecolor="black", zorder=5)
    dots = [value for line in groups for value in line.values("test")]
    limits = (min(dots), max(dots)) if dots else (0.0, 0.0)
    off_scale = _draw_baselines(axes, table.baselines, limits, len(names))
    axes.set_xticks(
        range(len(names)),
        [f"{name}\ndim {thousands(size)}" for name, size in sizes.items()],
        rotation=30,
        ha="right",
        rotation_mode="anchor",
        fontsize=9,
    )
    axes.set_xlim(-0.4, max(len(names), 1) - 0.6)
    axes.set_ylabel(f"test {table.first.metric} ({table.first.unit})")
    axes.set_title(
        f"{table.task}, {table.dataset}: dots are seeds, band is the 95 % bootstrap interval,\n"
        f"the ring is the choice of validation{off_scale}",
        fontsize=9,
        loc="left",
    )
    if len(models) > 1:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return save(figure, out / f"{table.stem}_error.png")


def draw_phases(out: Path, tables: Sequence[Table], predictions: Sequence[Prediction]) -> str:
    """Test error against the number of signals, and who wins where; returns the picture's name."""
    tables = sorted(tables, key=lambda table: table.signals or 0)
    first = tables[0].first
    lines: dict[str, list[tuple[int, Line]]] = {}
    for table in tables:
        for line in table.lines:
            if line.finished:
                lines.setdefault(line.title, []).append((table.signals or 0, line))
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.add_subplot()
    colors = dict(zip(lines, distinct_colors(len(lines)), strict=True))
    markers = "osD^vP*Xp<>h8d"
    for number, (name, own) in enumerate(lines.items()):
        counts = [count for count, _ in own]
        baseline = own[0][1].is_baseline
        axes.plot(
            counts,
            [line.test for _, line in own],
            linestyle=":" if baseline else "-",
            marker=markers[number % len(markers)],
            markersize=5,
            color=colors[name],
            linewidth=1.4,
            label=name,
        )
        bands = [bootstrap(line.values("test")) for _, line in own]
        axes.fill_between(
            counts,
            [b.low for b in bands],
            [b.high for b in bands],
            color=colors[name],
            alpha=0.15,
            linewidth=0,
        )
    for table in tables:
        done = [line for line in table.lines if line.finished]
        winner = min(done, key=lambda line: line.test, default=None)
        if winner is not None:
            axes.scatter(
                table.signals or 0,
                winner.test,
                s=210,
                facecolor="none",
                edgecolor="black",
                zorder=5,
            )
    counts = [table.signals or 1 for table in tables]
    left, right = 0.85 * min(counts), 1.5 * max(counts)
    told = []
    if predictions:
        start = predictions[0]
        told.append(f"from {start.signals} signals choose_group predicts {start.now}")
        for name, count, low, high in start.crossings:
            told.append(f"{name} from n* = {count:,.0f}")
            axes.axvspan(max(low or left, left), min(high or right, right), color="0.5", alpha=0.08)
            if left < count < right:
                axes.axvline(count, color="0.3", linestyle="--", linewidth=1)
                label = axes.text(count, 0.99, f"n* {name}", transform=axes.get_xaxis_transform())
                label.set(rotation=90, va="top", ha="right", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    ticks = np.geomspace(low, high, 7)[1:-1]
    axes.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_xlabel("training signals")
    axes.set_ylabel(f"test {first.metric} ({first.unit})")
    axes.set_title(
        f"{first.task}, {first.dataset}: bands are 95 % bootstrap intervals over seeds, rings are "
        f"the winners, dots are baselines\n{fill('; '.join(told), 110)}",
        fontsize=9,
        loc="left",
    )
    figure.legend(loc="outside right upper", fontsize=7.5, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return save(figure, out / f"{tables[0].stem}_signals.png")


def _draw_baselines(
    axes: Axes, baselines: Sequence[Line], limits: tuple[float, float], width: int
) -> str:
    """Labelled horizontal lines; those far from the groups are named in words instead."""
    low, high = limits
    margin = 0.35 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - margin, high + margin
    levels = {line.name: mean(line.values("test")) for line in baselines if line.finished}
    reach = 1.5 * (high - low)
    near = {n: v for n, v in levels.items() if low - reach <= v <= high + reach}
    low, high = min([low, *near.values()]), max([high, *near.values()])
    pad = 0.05 * (high - low)
    # Errors are never negative, so neither is the axis.
    axes.set_ylim(max(low - pad, 0.0), high + pad)
    previous = -math.inf
    for number, (name, level) in enumerate(sorted(near.items(), key=lambda item: item[1])):
        color = PALETTE[5 - number % 4]
        axes.axhline(level, color=color, linestyle=(0, (5, 2)), linewidth=1.4, zorder=2)
        # Labels of close lines are pushed apart, so that both can be read.
        previous = max(level, previous + 0.055 * (high - low + 2 * pad))
        axes.annotate(
            f" {name}",
            (width - 0.6, level),
            (width - 0.6, previous),
            color=color,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
    far = [f"{name} {level:.4g}" for name, level in levels.items() if name not in near]
    return f"; off the scale: {', '.join(far)}" if far else ""


def load_graph(out: Path, table: Table) -> dict[str, NDArray] | None:
    """What a run kept of the graph of a table; ``None`` if it kept nothing."""
    path = graph_path(out, table.stem)
    if not path.exists():
        return None
    # Runs once kept no moves, and no command.
    for more in (("moves", "command"), ("moves",)):
        with suppress(DataError):
            return read_npz(path, (*_GRAPH, *more))
    return read_npz(path, _GRAPH)


def draw_graph(out: Path, table: Table, graph: dict[str, NDArray]) -> str:
    """The graph coloured by cluster, one panel per candidate group; returns the picture's name."""
    panels = _panels(graph)
    columns = min(4, len(panels))
    height = math.ceil(len(panels) / columns)
    positions, edges = graph["positions"], graph["edge_index"]
    side = _grid_side(positions)
    width, tall = np.ptp(positions, axis=0)
    aspect = float(np.clip(tall / max(width, 1e-9), 0.25, 1.3))
    figure = Figure(figsize=(2.9 * columns, (2.9 * aspect + 0.6) * height + 0.3))
    figure.set_layout_engine("constrained")
    words = (
        "Candidate groups: one colour per cluster, whose nodes are exchanged at will; arcs of one "
        "colour are one exchange of clusters as a whole"
    )
    figure.suptitle(textwrap.fill(words, 40 * columns), fontsize=9)
    size = float(np.clip(2500 * aspect / len(positions), 3, 60))
    for number, (title, clusters, moves) in enumerate(panels):
        axes = figure.add_subplot(height, columns, number + 1)
        names, labels = np.unique(clusters, return_inverse=True)
        colors = distinct_colors(len(names))
        if side:
            _draw_image(axes, positions, colors[labels], side)
        else:
            segments = LineCollection(positions[edges.T], colors="0.75", linewidths=0.5, zorder=1)
            axes.add_collection(segments)
            x, y = positions.T
            axes.scatter(x, y, s=size, c=colors[labels], zorder=2, lw=0, clip_on=False)
        if 1 < len(names) <= 16 and len(names) < len(labels):
            for cluster in range(len(names)):
                own = positions[labels == cluster]
                # The node nearest to the middle, because clusters need not be convex.
                x, y = own[np.linalg.norm(own - own.mean(0), axis=1).argmin()]
                color = "black" if colors[cluster] @ (0.3, 0.6, 0.1) > 0.5 else "white"
                label = axes.text(x, y, str(cluster + 1), color=color, fontsize=8)
                label.set(ha="center", va="center", zorder=6)
        exchanges = _draw_moves(axes, positions, labels, moves)
        counted = f"{len(names):,} cluster{'s' * (len(names) != 1)}"
        if exchanges:
            counted += f", {exchanges} exchange{'s' * (exchanges != 1)}"
        axes.set_title(f"{title}\n{counted}", fontsize=9)
        axes.set_aspect("equal")
        axes.axis("off")
    return save(figure, out / f"{table.stem}_graph.png")


def _panels(graph: dict[str, NDArray]) -> list[tuple[str, NDArray, NDArray]]:
    """Title, clusters and moves; groups that only differ in what they do to channels share one."""
    n = graph["clusters"].shape[1]
    moves = graph.get("moves", np.full((len(graph["names"]), 0, n), -1))
    found: dict[bytes, tuple[list[str], NDArray, NDArray]] = {}
    for name, clusters, own in zip(graph["names"], graph["clusters"], moves, strict=True):
        # What was drawn before moves were kept shows who is exchanged by orbits alone.
        panel = found.setdefault(clusters.tobytes() + own.tobytes(), ([], clusters, own))
        panel[0].append(str(name))
    return [(" / ".join(names), clusters, own) for names, clusters, own in found.values()]


def _grid_side(positions: NDArray) -> int:
    """The side of a square grid that the nodes fill row by row; 0 if they do not."""
    side = math.isqrt(len(positions))
    if side**2 != len(positions) or side < 4:
        return 0
    row, column = np.divmod(np.arange(len(positions)), side)
    return side if np.array_equal(positions, np.stack([column, -row], axis=1)) else 0


def _draw_image(axes: Axes, positions: NDArray, colors: NDArray, side: int) -> None:
    low, high = positions.min(0) - 0.5, positions.max(0) + 0.5
    axes.imshow(
        colors.reshape(side, side, 3),
        extent=(low[0], high[0], low[1], high[1]),
        interpolation="nearest",
        zorder=1,
    )


# More arcs than this of one exchange would cover the picture.
_MOST_ARCS = 12


def _draw_moves(axes: Axes, positions: NDArray, labels: NDArray, moves: NDArray) -> int:
    """An arc from every cluster to where it is moved, a colour for each exchange; their number."""
    used = [move for move in moves if (move >= 0).any()]
    for number, move in enumerate(used):
        places = np.array([positions[labels == c].mean(0) for c in range(labels.max() + 1)])
        target = np.empty(len(places), int)
        target[labels] = labels[move]
        pairs = [(a, b) for a, b in enumerate(target) if a != b and (b > a or target[b] != a)]
        some = np.linspace(0, len(pairs) - 1, min(len(pairs), _MOST_ARCS)).round().astype(int)
        for a, b in (pairs[i] for i in some):
            axes.annotate(
                "",
                places[b],
                places[a],
                arrowprops={
                    "arrowstyle": "<->" if target[b] == a else "->",
                    "color": ARCS[number % len(ARCS)],
                    "connectionstyle": f"arc3,rad={0.25 + 0.1 * number}",
                    "linewidth": 1.3,
                    "shrinkA": 3,
                    "shrinkB": 3,
                },
                zorder=5,
            )
    return len(used)


ARCS = ("black", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")


def distinct_colors(count: int) -> NDArray:
    """Colours of which no two are alike, ``[count, 3]`` in sRGB.

    The first eight are those of `PALETTE`, told apart with the common colour-vision deficiencies.
    More are spread evenly over hue and lightness of the perceptual space OKLCH, neighbours in the
    numbering far apart.

    Reference:
        Ottosson, A perceptual color space for image processing, 2020; Roberts, The unreasonable
        effectiveness of quasirandom sequences, 2018.
    """
    if count <= len(PALETTE):
        return np.array([to_rgb(color) for color in PALETTE[:count]])
    number = np.arange(1, count + 1)
    # A sequence that fills the plane of hue and lightness evenly however many are taken.
    hue = 2 * np.pi * (number * 0.7548776662 % 1.0)
    lightness = 0.38 + 0.5 * (number * 0.5698402910 % 1.0)
    # Light and dark colours of more chroma are out of what a screen can show.
    chroma = 0.11 - 0.12 * np.abs(lightness - 0.65)
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    to_lms = np.array(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((np.stack([lightness, a, b], 1) @ to_lms.T) ** 3 @ to_linear.T, 0.0, 1.0)
    low = 12.92 * linear
    return np.where(linear <= 0.0031308, low, 1.055 * linear ** (1 / 2.4) - 0.055)


def draw_shown(out: Path, table: Table) -> str | None:
    """What each method makes of a few test samples; ``None`` if the run kept nothing to show.

    A picture that was drawn before stays while the data of the table are those it was drawn of.
    """
    task = TASKS.get(table.task)
    samples = samples_path(out, table.checksum)
    name = f"{table.stem}_shown.png"
    if task is None or not samples.exists():
        return name if table.checksum and drawn_with(out / name, "Data") == table.checksum else None
    with np.load(samples, allow_pickle=False) as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    aux = {key.removeprefix("aux_"): v for key, v in tensors.items() if key.startswith("aux_")}
    split = Split(tensors["inputs"], tensors["targets"], aux=aux)
    predictions = {}
    for line in _worth_showing(table):
        path = shown_path(out, line.rows[0].key)
        if line.rows[0].seed == 0 and path.exists():
            predictions[line.name] = torch.from_numpy(read_npz(path, ["prediction"])["prediction"])
    figure = task.picture(split, predictions) if predictions else None
    return None if figure is None else save(figure, out / name, Data=table.checksum)


def _worth_showing(table: Table) -> list[Line]:
    """All baselines, both ends and, of each model, the group that validation chooses.

    Groups as published may have seen other test samples.
    """
    kept = [line for line in table.baselines if line.finished]
    for model in dict.fromkeys(line.model for line in table.candidates):
        own = [line for line in table.candidates if line.model == model and line.finished]
        best = min(own, key=lambda line: mean(line.values("val")), default=None)
        if best is None:
            continue
        ends = table.ends(best) if model == table.groups[0].model else ()
        kept += [line for line in own if line is best or line in ends]
    return kept


def save(figure: Figure, path: Path, **facts: str) -> str:
    """Write a figure as PNG, with what it was drawn of; returns the name of the file."""
    FigureCanvasAgg(figure)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata=facts)
    return path.name


def drawn_with(path: Path, fact: str) -> str:
    """What a picture says it was drawn of; empty if it does not, or if there is none."""
    if not path.exists():
        return ""
    with Image.open(path) as picture:
        return str(picture.info.get(fact, ""))
