"""Turn the results file into a page with tables and pictures; no number is typed by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table as RichTable
from scipy import stats

from benchmarks.data import read_npz, replacing
from benchmarks.suite.store import RESULTS, BenchmarkError, Row, file_stem, graph_path, read_rows

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

# Okabe and Ito's palette, distinguishable with the common colour-vision deficiencies.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


_GRAPH = ("title", "truth", "names", "clusters", "orbits", "edge_index", "positions")


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


@dataclass(frozen=True)
class Line:
    """One line of a table: a group or a baseline over all its seeds."""

    name: str
    rows: tuple[Row, ...]

    @property
    def is_baseline(self) -> bool:
        """Whether the line stands for a baseline, not for a group."""
        return self.rows[0].is_baseline

    @property
    def finished(self) -> list[Row]:
        """The rows that have metrics, by seed."""
        return [row for row in self.rows if row.status == "ok"]

    def count(self, status: str) -> int:
        """Number of seeds that ended with ``status``."""
        return sum(row.status == status for row in self.rows)

    def values(self, column: str) -> list[float]:
        """A numeric column over the finished seeds."""
        return [getattr(row, column) for row in self.finished]


@dataclass(frozen=True)
class Table:
    """The lines of one task, data set and profile: groups from S_n to trivial, then baselines.

    Attributes:
        task: Name of the task.
        dataset: Name of the data.
        profile: Name of the profile.
        lines: Groups by growing number of free weights, then baselines.
        superseded: Number of rows that later settings replaced.
    """

    task: str
    dataset: str
    profile: str
    lines: tuple[Line, ...]
    superseded: int = 0

    @property
    def groups(self) -> list[Line]:
        """Lines that stand for groups, by growing number of free weights."""
        return [line for line in self.lines if not line.is_baseline]

    @property
    def baselines(self) -> list[Line]:
        """Lines that stand for baselines."""
        return [line for line in self.lines if line.is_baseline]

    @property
    def first(self) -> Row:
        """Any row, for what all rows share."""
        return self.lines[0].rows[0]

    @property
    def full(self) -> Line | None:
        """The line of the full symmetric group: the only one with at most two free weights."""
        return next((g for g in self.groups if (g.rows[0].commutant_dim or 0) <= 2), None)

    @property
    def trivial(self) -> Line | None:
        """The line of the trivial group: the only one of order one."""
        return next((g for g in self.groups if (g.rows[0].group_order_log or 0) < 1e-9), None)

    @property
    def stem(self) -> str:
        """How the names of the table's files begin."""
        return file_stem(self.task, self.dataset, self.profile)


def tabulate(rows: Iterable[Row]) -> list[Table]:
    """Sort rows into tables: one for each task, data set and profile.

    Means over different settings say nothing, so only rows with the schedule of a table's newest
    row count, and of two rows for one seed the newer one.
    """
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.task, row.dataset, row.profile), []).append(row)
    tables = []
    for (task, dataset, profile), own in cells.items():
        lines: dict[str, dict[int, Row]] = {}
        for row in own:
            if row.schedule == own[-1].schedule:
                lines.setdefault(row.name, {})[row.seed] = row
        sorted_lines = sorted(
            (Line(name, tuple(seeds[s] for s in sorted(seeds))) for name, seeds in lines.items()),
            key=lambda line: (line.is_baseline, line.rows[0].commutant_dim or 0),
        )
        superseded = len(own) - sum(map(len, lines.values()))
        tables.append(Table(task, dataset, profile, tuple(sorted_lines), superseded))
    return tables


def select(table: Table) -> Line | None:
    """The group of best mean validation metric; the test split has no say.

    A group without metrics for a seed that another group ran, be it diverged or not run yet, is
    no candidate: its mean would leave that seed out. ``None`` if no group is left.
    """
    seeds = {row.seed for line in table.groups for row in line.rows}
    candidates = [line for line in table.groups if {row.seed for row in line.finished} == seeds]
    return min(candidates, key=lambda line: mean(line.values("val")), default=None)


def compare(line: Line, reference: Line | None) -> Interval | None:
    """Mean difference of the test metric over common seeds, with its paired t interval.

    Returns:
        ``None`` without a reference, for the reference itself, and below two common seeds.
    """
    if reference is None or line is reference:
        return None
    own = {row.seed: row.test for row in line.finished}
    other = {row.seed: row.test for row in reference.finished}
    seeds = sorted(own.keys() & other.keys())
    if len(seeds) < 2:
        return None
    x, y = np.array([own[s] for s in seeds]), np.array([other[s] for s in seeds])
    difference = float(np.mean(x - y))
    if np.ptp(x - y) == 0:
        return Interval(difference, difference, difference)
    low, high = stats.ttest_rel(x, y).confidence_interval(0.95)
    return Interval(difference, float(low), float(high))


def report(out: Path, embed: Path | None = None) -> Path:
    """Write ``out/report.md`` and its pictures from ``out/results.csv``.

    Args:
        out: Folder of results.
        embed: Markdown file whose text between ``<!-- results:begin -->`` and
            ``<!-- results:end -->`` becomes a short table; ``None`` changes no other file.

    Returns:
        Path of the page.

    Raises:
        BenchmarkError: There are no results, or ``embed`` lacks the two marks.
    """
    tables = tabulate(read_rows(out))
    if not tables:
        raise BenchmarkError(
            f"no results in {out / RESULTS}; make some with python -m benchmarks run"
        )
    if embed is not None:
        _embed(embed, tables)
    sections = [_section(out, table) for table in tables]
    page = "\n\n".join(["# Results", *(_provenance(tables)), *sections]) + "\n"
    with replacing(out / "report.md") as file:
        file.write(page.encode())
    return out / "report.md"


def rich_tables(rows: Iterable[Row]) -> list[RichTable]:
    """The tables of the page in short, for a terminal."""
    shown = []
    for table in tabulate(rows):
        first = table.first
        view = RichTable(
            title=f"{table.task}, {table.dataset}, {table.profile}: {first.metric} ({first.unit})",
            title_justify="left",
            caption="* chosen by validation",
            caption_justify="left",
        )
        chosen = select(table)
        for heading in ("group or baseline", "dim", "seeds", "validation", "test", "seconds"):
            view.add_column(heading, justify="left" if heading[0] == "g" else "right")
        for line in table.lines:
            view.add_row(
                f"{_name(line)} *" if line is chosen else _name(line),
                _count(line.rows[0].commutant_dim),
                _seeds(line),
                _spread(line.values("val")),
                _spread(line.values("test")),
                f"{mean(row.seconds for row in line.rows):.1f}",
            )
        shown.append(view)
    return shown


def _section(out: Path, table: Table) -> str:
    """One table with its sentences and pictures."""
    first = table.first
    graph = _load_graph(out, table)
    title = str(graph["title"]) if graph else table.task
    parts = [
        f"## {title}: {table.dataset}, {table.profile}",
        f"{first.metric} ({first.unit}); lower is better. Mean over seeds ± sample standard "
        "deviation. Differences are paired by seed, with the 95 % interval of Student's t. "
        "`dim` counts the free weights per pair of channels.",
        _full_table(table),
        *_sentences(table, str(graph["truth"]) if graph else ""),
        f"![error by group]({_draw_errors(out, table)})",
    ]
    if graph:
        parts.append(f"![candidate groups on the graph]({_draw_graph(out, table, graph)})")
    parts.append(f"Made with `{_command([table])}`.")
    return "\n\n".join(parts)


def _full_table(table: Table) -> str:
    first, chosen = table.first, select(table)
    second = [f"test {first.metric_2}"] if first.metric_2 else []
    head = ["group", "dim", "parameters", "seeds", "validation", "test", *second]
    head += ["against S_n", "against trivial", "diverged", "out of memory", "seconds", "MiB"]
    body = []
    for line in table.lines:
        body.append(
            [
                f"**{_name(line)}**" if line is chosen else _name(line),
                _count(line.rows[0].commutant_dim),
                _count(next((r.parameters for r in line.rows if r.parameters), None)),
                _seeds(line),
                _spread(line.values("val"), deviation=False),
                _spread(line.values("test")),
                *([_spread(line.values("test_2"))] if second else []),
                str(compare(line, table.full) or "-"),
                str(compare(line, table.trivial) or "-"),
                str(line.count("diverged")),
                str(line.count("oom")),
                f"{mean(row.seconds for row in line.rows):.1f}",
                f"{mean(row.peak_memory_mib for row in line.rows):.0f}",
            ]
        )
    return markdown(head, body)


def _sentences(table: Table, truth: str) -> list[str]:
    """What the table says, in words."""
    said = []
    unit = table.first.metric
    chosen = select(table)
    if chosen is None:
        said.append("No group finished every seed, so validation selects none.")
    else:
        said.append(
            f"Validation selects **{chosen.name}** (bold); its test {unit} is "
            f"{_spread(chosen.values('test'))}."
        )
    if truth:
        answer = "selected" if chosen and chosen.name == truth else "not selected"
        said.append(f"The data were simulated with the group {truth}, which is {answer}.")
    winner = _unbeaten_baseline(table)
    if winner is not None:
        said.append(
            f"The baseline {winner.name} beats every group: test {unit} "
            f"{_spread(winner.values('test'))}."
        )
    if table.superseded:
        said.append(f"Left out: {table.superseded} results of earlier settings.")
    return said


def _unbeaten_baseline(table: Table) -> Line | None:
    """The best baseline, if its mean test metric is below that of every group."""
    groups = [mean(line.values("test")) for line in table.groups if line.finished]
    baselines = [line for line in table.baselines if line.finished]
    best = min(baselines, key=lambda line: mean(line.values("test")), default=None)
    if best is None or not groups or mean(best.values("test")) >= min(groups):
        return None
    return best


def _provenance(tables: Sequence[Table]) -> list[str]:
    """Where the numbers come from."""
    rows = [row for table in tables for line in table.lines for row in line.rows]
    facts = {
        "Commit": {row.commit for row in rows},
        "Device": {f"{row.device}, torch threads: {row.threads}" for row in rows},
        "Versions": {f"gsym {row.gsym}, torch {row.torch}, Python {row.python}" for row in rows},
    }
    lines = [f"- {name}: {'; '.join(sorted(values))}" for name, values in facts.items()]
    return [f"Made with `{_command(tables)}`.", "\n".join(lines)]


def _command(tables: Sequence[Table]) -> str:
    """The command that makes these tables."""
    commands = []
    for profile in dict.fromkeys(table.profile for table in tables):
        own = [table for table in tables if table.profile == profile]
        for source in dict.fromkeys(table.first.source for table in own):
            same = [table for table in own if table.first.source == source]
            seeds = max(row.seed for t in same for line in t.lines for row in line.rows) + 1
            words = ["python -m benchmarks run", *dict.fromkeys(table.task for table in same)]
            words.append(f"--profile {profile} --seeds {seeds}")
            words += ["--data DIR"] if source == "files" else []
            commands.append(" ".join(words))
    return " && ".join(commands)


def _embed(path: Path, tables: Sequence[Table]) -> None:
    """Put a short table between the two marks of a Markdown file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    start, end = text.find(BEGIN), text.find(END)
    if start < 0 or end < start:
        raise BenchmarkError(f"{path} must hold the line {BEGIN} and, after it, {END}")
    head = ["task", "metric", "S_n", "chosen by validation", "trivial", "best baseline"]
    body = []
    for table in tables:
        chosen = select(table)
        best = min(
            (line for line in table.baselines if line.finished),
            key=lambda line: mean(line.values("val")),
            default=None,
        )
        body.append(
            [
                f"{table.task} ({table.dataset}, {table.profile})",
                f"{table.first.metric} ({table.first.unit})",
                _spread(table.full.values("test")) if table.full else "-",
                f"{_spread(chosen.values('test'))} with {chosen.name}" if chosen else "none",
                _spread(table.trivial.values("test")) if table.trivial else "-",
                f"{_spread(best.values('test'))} with {best.name}" if best else "-",
            ]
        )
    commits = {row.commit for t in tables for line in t.lines for row in line.rows}
    short = ", ".join(sorted(f"{c[:10]}{'+dirty' * c.endswith('+dirty')}" for c in commits))
    note = f"Test error, mean ± standard deviation over seeds. Made with `{_command(tables)}`"
    block = f"{BEGIN}\n{markdown(head, body)}\n\n{note} at commit {short}.\n"
    with replacing(path) as file:
        file.write((text[:start] + block + text[end:]).encode())


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table."""
    # A bar would end the cell; ours stand in names such as "(S_4)^16 x| S_2".
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in lines
    )


def _name(line: Line) -> str:
    return f"{line.name} (baseline)" if line.is_baseline else line.name


def _seeds(line: Line) -> str:
    """Number of seeds with metrics, and of how many if some have none."""
    done, all_seeds = len(line.finished), len(line.rows)
    return str(done) if done == all_seeds else f"{done} of {all_seeds}"


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _spread(values: Sequence[float], *, deviation: bool = True) -> str:
    if not values:
        return "-"
    if len(values) < 2 or not deviation:
        return f"{mean(values):.4g}"
    return f"{mean(values):.4g} ± {stdev(values):.2g}"


def _draw_errors(out: Path, table: Table) -> str:
    """Test error against the group from S_n to trivial; returns the name of the picture."""
    groups = [line for line in table.groups if line.finished]
    figure = Figure(figsize=(1.6 + 1.15 * max(len(groups), 4), 4.2), layout="constrained")
    axes = figure.add_subplot()
    centre = [mean(line.values("test")) for line in groups]
    dots = [value for line in groups for value in line.values("test")]
    axes.plot(centre, color=PALETTE[0], linewidth=2, zorder=3)
    bands = [_mean_interval(line.values("test")) for line in groups]
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
        [f"{line.name}\ndim {_count(line.rows[0].commutant_dim)}" for line in groups],
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


def _mean_interval(values: Sequence[float]) -> Interval:
    """95 % t interval of a mean; a point for a single value."""
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean(values), mean(values), mean(values))
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return Interval(mean(values), float(low), float(high))


def _load_graph(out: Path, table: Table) -> dict[str, NDArray] | None:
    path = graph_path(out, table.stem)
    if not path.exists():
        return None
    return read_npz(path, _GRAPH)


def _draw_graph(out: Path, table: Table, graph: dict[str, NDArray]) -> str:
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
