"""Pictures of a report: errors by group, and the groups on their graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gsym_bench.data import read_npz, replacing
from gsym_bench.suite.report.tables import Line, Table, mean_interval, select, thousands
from gsym_bench.suite.results import graph_path

# Okabe and Ito's palette, distinguishable with the common colour-vision deficiencies.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


_GRAPH = ("title", "truth", "names", "clusters", "orbits", "edge_index", "positions")


def draw_errors(out: Path, table: Table) -> str:
    """Test error against the group from S_n to trivial; returns the name of the picture."""
    groups = [line for line in table.groups if line.finished]
    figure = Figure(figsize=(1.6 + 1.15 * max(len(groups), 4), 4.2), layout="constrained")
    axes = figure.add_subplot()
    centre = [mean(line.values("test")) for line in groups]
    dots = [value for line in groups for value in line.values("test")]
    axes.plot(centre, color=PALETTE[0], linewidth=2, zorder=3)
    bands = [mean_interval(line.values("test")) for line in groups]
    low, high = [b.low for b in bands], [b.high for b in bands]
    axes.fill_between(range(len(groups)), low, high, color=PALETTE[0], alpha=0.18, linewidth=0)
    for x, line in enumerate(groups):
        values = line.values("test")
        axes.scatter([x] * len(values), values, s=18, color=PALETTE[0], alpha=0.6, zorder=4)
    chosen = select(table)
    if chosen in groups:
        x = groups.index(chosen)
        axes.scatter(x, centre[x], s=170, facecolor="none", edgecolor="black", zorder=5)
    limits = (min(dots), max(dots)) if dots else (0.0, 0.0)
    off_scale = _draw_baselines(axes, table.baselines, limits, len(groups))
    axes.set_xticks(
        range(len(groups)),
        [f"{line.name}\ndim {thousands(line.rows[0].commutant_dim)}" for line in groups],
        rotation=30,
        ha="right",
        rotation_mode="anchor",
        fontsize=9,
    )
    axes.set_xlim(-0.4, max(len(groups), 1) - 0.6)
    axes.set_ylabel(f"test {table.first.metric} ({table.first.unit})")
    axes.set_title(
        f"{table.task}, {table.dataset}: dots are seeds, band is the 95 % interval of the mean,\n"
        f"the ring is the choice of validation{off_scale}",
        fontsize=9,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return save(figure, out / f"{table.stem}_error.png")


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
    return read_npz(path, _GRAPH)


def draw_graph(out: Path, table: Table, graph: dict[str, NDArray]) -> str:
    """The graph coloured by cluster, one panel per candidate group; returns the picture's name."""
    names = [str(name) for name in graph["names"]]
    columns = min(4, len(names))
    height = math.ceil(len(names) / columns)
    positions, edges = graph["positions"], graph["edge_index"]
    width, tall = np.ptp(positions, axis=0)
    aspect = float(np.clip(tall / max(width, 1e-9), 0.25, 1.3))
    figure = Figure(figsize=(2.9 * columns, (2.9 * aspect + 0.5) * height + 0.3))
    figure.set_layout_engine("constrained")
    figure.suptitle(
        "Candidate groups: one colour per cluster; shades of one colour are exchanged as a whole",
        fontsize=9,
    )
    segments = positions[edges.T]
    size = float(np.clip(2500 * aspect / len(positions), 3, 60))
    for number, name in enumerate(names):
        axes = figure.add_subplot(height, columns, number + 1)
        axes.add_collection(LineCollection(segments, colors="0.75", linewidths=0.5, zorder=1))
        colors = _colors(graph["clusters"][number], graph["orbits"][number])
        axes.scatter(
            positions[:, 0],
            positions[:, 1],
            s=size,
            c=colors,
            zorder=2,
            linewidths=0,
            clip_on=False,
        )
        clusters = len(np.unique(graph["clusters"][number]))
        axes.set_title(f"{name}\n{clusters:,} cluster{'s' * (clusters != 1)}", fontsize=9)
        axes.set_aspect("equal")
        axes.axis("off")
    return save(figure, out / f"{table.stem}_graph.png")


def _colors(clusters: NDArray, orbits: NDArray) -> NDArray:
    """One colour per orbit, in two shades where the group exchanges clusters; ``[n, 3]``."""
    number = int(orbits.max()) + 1
    if number <= len(PALETTE):
        base = np.array([to_rgb(color) for color in PALETTE[:number]])
    else:
        # Steps by the golden ratio keep neighbours in the numbering far apart in colour.
        base = colormaps["viridis"](np.arange(number) * 0.618034 % 1.0)[:, :3]
    colors = base[orbits]
    for orbit in range(number):
        nodes = orbits == orbit
        within = np.unique(clusters[nodes], return_inverse=True)[1]
        shade = 0.6 * within / max(within.max(), 1)
        colors[nodes] += shade[:, None] * (1 - colors[nodes])
    return colors


def save(figure: Figure, path: Path) -> str:
    """Write a figure as PNG; returns the name of the file."""
    FigureCanvasAgg(figure)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return path.name
