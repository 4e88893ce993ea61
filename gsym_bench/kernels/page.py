"""The page of the kernels from their rows; no number is typed by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gsym_bench.data import replacing
from gsym_bench.kernels.bars import (
    BARS,
    BOTH,
    CHANNELS,
    EDGES,
    FORWARD,
    GOALS,
    HELD_BACK,
    HUGE,
    SETTINGS,
    SWEEP,
    Goal,
)
from gsym_bench.kernels.cases import CASES
from gsym_bench.kernels.measure import COPY, GROWTH, LEAST_ROUNDS, PROCESSES, PRODUCT, TURN
from gsym_bench.kernels.rows import FILE, Row, read_rows
from gsym_bench.kernels.work import OURS, READING
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.markdown import markdown_table

COMMAND = "gsym-bench kernels"
MISSING = "not measured"
_COLUMNS = 4
_COLORS = [colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]


@dataclass(frozen=True)
class Picture:
    """One small plot per case, all variants of it.

    Attributes:
        name: Of the file.
        title: What it shows.
        mode: Forward, or forward and backward.
        column: Of the rows, upwards.
        along: Of the rows, to the right: ``"n"`` at `CHANNELS`, or ``"channels"`` at `EDGES`.
    """

    name: str
    title: str
    mode: str
    column: str
    along: str = "n"


PICTURES = (
    Picture("time", "Time of a forward pass in ms against n", FORWARD, "median_ms"),
    Picture("training", "Time of both passes in ms against n", BOTH, "median_ms"),
    Picture("memory", "Memory of both passes in MiB against n", BOTH, "memory_mib"),
    Picture(
        "roofline",
        "Share of the roofline that a forward pass reaches, against n",
        FORWARD,
        "roofline",
    ),
    Picture(
        "channels",
        "Time of a forward pass in ms against channels",
        FORWARD,
        "median_ms",
        "channels",
    ),
)


def write_page(out: Path) -> Path:
    """Write ``kernels.md`` and its pictures from ``kernels.csv``.

    Raises:
        BenchmarkError: There are no rows.
    """
    rows = read_rows(out)
    if not rows:
        raise BenchmarkError(f"no rows in {out / FILE}; make some with {COMMAND}")
    lines = ["# Speed and memory of kernels and layers", "", *_introduction(out, rows)]
    for device, name in (("cpu", "CPU"), ("cuda", "GPU")):
        own = [row for row in rows if row.device == device]
        goals = [goal for goal in GOALS if goal.device == device]
        if not own:
            lines += ["", f"## Bars on the {name}", "", *_bars(goals, own)]
            continue
        # The processor of most rows first; what no processor has measured stands there.
        machines = [machine for machine, _ in Counter(row.machine for row in own).most_common()]
        missing = [goal for goal in goals if not _has(own, goal)]
        for machine in machines:
            where = f"{name}, {machine}" if len(machines) > 1 else name
            here = [row for row in own if row.machine == machine]
            left = missing if machine == machines[0] else []
            shown = [goal for goal in goals if goal in left or _has(here, goal)]
            if shown:
                lines += ["", f"## Bars on the {where}", "", *_bars(shown, here)]
        swept = [row for row in own if row.machine == machines[0]]
        for picture in PICTURES:
            drawn = _draw(out, device, swept, picture)
            lines += [f"\n![{picture.title}]({drawn})"] if drawn else []
        lines += _tables(name, own)
    page = out / "kernels.md"
    with replacing(page) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return page


def _introduction(out: Path, rows: Sequence[Row]) -> list[str]:
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        threads = f" ({row.threads} threads)" if row.device == "cpu" else ""
        where = f"on {row.machine}{threads} with torch {row.torch} at commit {row.commit}"
        runs.setdefault((where, row.profile), []).append(row)
    brief = sorted({goal.bar for goal in GOALS if goal.brief})
    made = (f"by `{_command(out, own)}` {where}" for (where, _), own in sorted(runs.items()))
    return [
        f"Made {'; '.join(made)}. All rows stand in "
        f"[{FILE}]({FILE}), this page shows those of the bars and the largest of every other case.",
        "",
        "Every round times the variants in an order drawn anew, float32, each after one call that "
        "does not count (after none where a step takes more than a second), "
        f"and a step that is shorter than {TURN:g} ms as often as fits into that "
        "time; a *ratio* is the median over rounds of the time over that of gsym, with its "
        "quartiles, so above 1 gsym is faster. In the row of "
        "the *copy* it is the bandwidth of gsym over that of the copy, in the row of the *matrix "
        "product* its arithmetic over that of the product, both of the same rounds. Before it is "
        "timed, every variant is found equal to gsym in values and gradients, but for nn.Linear "
        "and the sum of all entries, which do less. *Memory* is the rise of the peak over one "
        "call, above signals, weights "
        "and the gradients of the call before; on the CPU it is measured in a process whose C "
        "library returns freed memory at once. The *roofline* is the "
        "shortest time that the copy and the matrix product of the same round allow for what must "
        "move (inputs and outputs, once; the gradients as much again) and be multiplied (with "
        "gradients three times as much); small cases may beat it from the cache. Absolute times "
        "depend on the machine and its load: read the ratios.",
        "",
        "*THP* are transparent huge pages for torch (`THP_MEM_ALLOC_ENABLE`): with them a fresh "
        "large tensor costs fewer page faults, which helps code that makes many. gsym has them "
        "from NumPy, in either setting, where a result has 4 MiB or more. Each case has a process "
        f"of its own, and where it carries a bar {PROCESSES}, which share the rounds; of "
        f"{', '.join(brief)}, whose peers take seconds a call, one measures {LEAST_ROUNDS} rounds.",
    ]


def _command(out: Path, rows: Sequence[Row]) -> str:
    """What measured the rows of one run: some bars, all else, or everything."""
    device = f" --device {rows[0].device}" if rows[0].device != "cpu" else ""
    profile = f" --profile {rows[0].profile}" if rows[0].profile != "standard" else ""
    judged, only = {row.key for row in rows if row.bar}, ""
    if not judged:
        only = f" --only {SWEEP}"
    elif all(row.key in judged for row in rows):
        bars = {row.bar for row in rows}
        only = f" --only {','.join(bar for bar in BARS if bar in bars)}"
    return f"{COMMAND}{profile}{device}{only} --out {out.as_posix()}"


def _has(rows: Iterable[Row], goal: Goal) -> bool:
    place = goal.case, goal.size, goal.mode, goal.peer
    return any((row.case, row.size, row.mode, row.variant) == place for row in rows)


def _bars(goals: Sequence[Goal], rows: Sequence[Row]) -> list[str]:
    """One line per goal, whether measured or not; the rows are those of one processor."""
    found = {(r.setting, r.case, r.size, r.mode, r.variant): r for r in rows}
    settings = list(dict.fromkeys(setting for goal in goals for setting in goal.settings))
    heading = ["bar", "case", "n", "k", "channels", "mode", "against", "least ratio", "stretch"]
    heading += ["least memory ratio"]
    for setting in settings:
        heading += [f"ratio (quartiles), {setting}", "limit", "memory ratio", "met"]
    body: list[list[str]] = []
    measured: dict[str, list[str]] = {goal.bar: [] for goal in goals}
    short = {row.bar for row in rows if row.ratio < row.stretch or row.met == "no"}
    for goal in goals:
        least = _number(goal.least)
        if goal.huge is not None:
            least += f" ({_number(goal.huge)} with {HUGE})"
        cells = [goal.bar, goal.case, f"{goal.size.n:,}", f"{goal.size.k:,}"]
        cells += [str(goal.size.channels), goal.mode, goal.peer]
        cells += [least, _number(goal.stretch), _number(goal.memory)]
        for setting in settings:
            row = found.get((setting, goal.case, goal.size, goal.mode, goal.peer))
            ours = found.get((setting, goal.case, goal.size, goal.mode, OURS))
            if setting not in goal.settings:
                cells += ["-"] * 4
            elif row is None:
                cells += [MISSING] * 4
            else:
                read = None
                if goal.mode == FORWARD:  # a backward pass moves more than it reads
                    read = found.get((setting, goal.case, goal.size, goal.mode, READING))
                limit = _limit(row, ours, read)
                # The roofline excuses nothing: what lies in the cache may beat it.
                enough = read is not None and goal.is_met(setting, math.inf, row.memory_ratio)
                beyond = enough and row.ratio <= limit < goal.least_in(setting)
                cells += [_ratio(row), _number(limit), _number(row.memory_ratio), row.met]
                measured[goal.bar].append("beyond" if beyond else row.met)
        body.append(cells)
    words = [f"{bar} {_verdict(results)}" for bar, results in measured.items()]
    text = (
        f"A bar is met when each of its lines that was measured is: {', '.join(words)}. The "
        "*limit* is the ratio that gsym would have at the roofline or, where that was measured, in "
        f"the time of the {READING} entries, which reads as much and writes nothing."
    )
    notes = [f"- {bar}: {why}" for bar, why in HELD_BACK.items() if bar in short]
    if notes:
        told = "What holds back a bar that is missed or falls short of its stretch:"
        notes = ["", told, "", *notes]
    return [text, "", markdown_table(heading, body), *notes]


def _limit(row: Row, ours: Row | None, read: Row | None) -> float:
    """The ratio that gsym would have in the time of the reading, or else at the roofline."""
    if row.variant == COPY:
        return math.nan
    if read is not None:
        return row.ratio / read.ratio
    return math.nan if ours is None else row.ratio / ours.roofline


def _verdict(results: Sequence[str]) -> str:
    if not results:
        return MISSING
    if "no" in results:
        return "missed"
    return "missed where the limit lies below it" if "beyond" in results else "met"


def _ratio(row: Row) -> str:
    if math.isnan(row.ratio):
        return "-"
    return f"{_number(row.ratio)} ({_number(row.ratio_low)} to {_number(row.ratio_high)})"


def _tables(device: str, rows: Sequence[Row]) -> list[str]:
    """One table per case: the first setting in full, time and ratio in the other ones."""
    lines: list[str] = []
    many = len({row.machine for row in rows}) > 1
    names = [name for name in CASES if any(row.case == name for row in rows)]
    for name in names:
        own = [row for row in rows if row.case == name]
        shown = {row.size for row in own if row.bar}
        if not shown:
            shown = (
                {row.size for row in own} if name.endswith("dense") else {max(r.size for r in own)}
            )
        own = [row for row in own if row.size in shown]
        settings = [s for s in SETTINGS[own[0].device] if any(r.setting == s for r in own)]
        found = {(r.setting, r.machine, r.size, r.mode, r.variant): r for r in own}
        heading = ["processor"] if many else []
        heading += ["n", "k", "channels", "batch", "mode", "variant", "setting", "rounds", "ms"]
        heading += ["GB/s", "GFLOP/s", "MiB", "ratio (quartiles)", "memory ratio", "roofline"]
        heading += [f"{word}, {setting}" for setting in settings[1:] for word in ("ms", "ratio")]
        body = []
        for key in dict.fromkeys((r.machine, r.size, r.mode, r.variant) for r in own):
            row = next(found[s, *key] for s in settings if (s, *key) in found)
            cells = [row.machine] if many else []
            cells += [str(number) for number in row.size]
            cells += [row.mode, row.variant, row.setting, str(row.rounds), _number(row.median_ms)]
            cells += [_number(_rate(amount, row)) for amount in (row.gigabytes, row.gflop)]
            cells += [_number(row.memory_mib), _ratio(row), _number(row.memory_ratio)]
            cells += [_percent(row.roofline)]
            for setting in settings[1:]:
                other = found.get((setting, *key))
                cells += ["-", "-"] if other is None else [_number(other.median_ms), _ratio(other)]
            body.append(cells)
        lines += ["", f"## {CASES[name].title} ({device})", "", markdown_table(heading, body)]
    growth = [row for row in rows if row.case == GROWTH]
    if growth:
        lines += ["", "## Growth of OrbitLinear with the number of nodes", ""]
        lines += ["Channels 16 to 16; the ratio is the time over that of a tenth of the nodes."]
        lines += ["A large tensor from fresh memory costs a page fault per page; *memory kept*"]
        lines += ["tells the C library to use freed memory again, as caching allocators do.", ""]
        body = [
            [
                *([row.machine] if many else []),
                *(str(row.n), str(row.k), row.setting, row.variant),
                *(_number(row.median_ms), _number(row.memory_mib), _ratio(row)),
            ]
            for row in growth
        ]
        heading = ["processor"] if many else []
        heading += ["n", "k", "setting", "variant", "ms", "MiB", "ratio (quartiles)"]
        lines.append(markdown_table(heading, body))
    return lines


def _rate(amount: float, row: Row) -> float:
    """Per second; nothing where nothing of the kind is needed."""
    return amount / row.median_ms * 1e3 if amount > 0 else math.nan


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"


def _draw(out: Path, device: str, rows: Sequence[Row], picture: Picture) -> str | None:
    """Draw a picture of a device's rows; returns the name of the file, if there is anything."""
    column, along = picture.column, picture.along
    fixed, value = ("channels", CHANNELS) if along == "n" else ("n", EDGES)
    swept = {name for name, case in CASES.items() if case.segments is not None}
    chosen = [
        row
        for row in rows
        if row.setting == SETTINGS[device][0]
        and row.mode == picture.mode
        and getattr(row, fixed) == value
        and row.batch == 1
        and row.variant not in (COPY, PRODUCT)
        and row.case in swept
    ]
    places = {name: {getattr(r, along) for r in chosen if r.case == name} for name in CASES}
    cases = [name for name in CASES if len(places[name]) > 2]  # others make no curve
    if not cases:
        return None
    chosen = [row for row in chosen if row.case in cases]
    ticks = sorted(set().union(*(places[name] for name in cases)))
    variants = sorted({row.variant for row in chosen}, key=lambda v: (v != OURS, v))
    colors = dict(zip(variants, itertools.cycle(_COLORS), strict=False))
    margin = (ticks[-1] / ticks[0]) ** 0.05
    height = max(math.ceil(len(cases) / _COLUMNS), 1)
    figure = Figure(figsize=(12, 2.6 * height + 1), layout="constrained")
    grid = figure.subplots(height, _COLUMNS, squeeze=False).flat
    handles = {}
    for axes, name in itertools.zip_longest(grid, cases):
        if name is None:
            axes.set_axis_off()
            continue
        for variant in variants:
            own = (row for row in chosen if (row.case, row.variant) == (name, variant))
            points = sorted({getattr(r, along): getattr(r, column) for r in own}.items())
            if points:
                width = 2.2 if variant == OURS else 1.2
                style = {"color": colors[variant], "linewidth": width, "marker": "o"}
                handles[variant] = axes.plot(*zip(*points, strict=True), markersize=3, **style)[0]
        axes.set_xscale("log")
        axes.set_xlim(ticks[0] / margin, ticks[-1] * margin)
        if along == "channels":
            axes.set_xticks(ticks, [str(place) for place in ticks], minor=False)
            axes.set_xticks([], minor=True)
        if column == "roofline":
            axes.set_ylim(0, 1.2)
            axes.axhline(1, color="0.7", linewidth=0.8)
        else:
            axes.set_yscale("log")
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    where = f"{CHANNELS} channels" if along == "n" else f"n = {EDGES:,}"
    figure.suptitle(f"{picture.title}, {where}, {SETTINGS[device][0]}")
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False
    )
    FigureCanvasAgg(figure)
    name = f"kernels_{picture.name}_{device}.png"
    with replacing(out / name) as file:
        figure.savefig(file, format="png", dpi=110)
    return name
