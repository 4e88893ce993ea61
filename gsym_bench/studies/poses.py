"""Which symmetry of the body pays at how many poses: lifting 2D joints to 3D from few examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import ClassVar

import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from gsym_bench.models.pose import PoseNet
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.draw import PALETTE, save
from gsym_bench.suite.report.markdown import Highlight, made_with, markdown_table, write_page
from gsym_bench.suite.report.statistics import Interval
from gsym_bench.suite.report.tables import Line, Table, compare, tabulate
from gsym_bench.suite.results import RESULTS, read_rows
from gsym_bench.suite.run import run
from gsym_bench.suite.task import Predictor, Problem, Schedule
from gsym_bench.tasks.skeleton import REFLECTION, Skeleton

FOLDER, PAGE, PICTURE = "poses", "poses.md", "poses.png"
# Steps of the optimiser by number of training poses; 0 stands for all of them.
STEPS = {50: 600, 100: 600, 200: 700, 400: 800, 1600: 1200, 0: 2200}
GROUPS = ("trivial", "mirror S_2", REFLECTION)
RIDGES = ("quadratic ridge", "quadratic ridge, reflected")
_CHECKS = 10
# How much faster than the other layers the first one learns: it has two inputs per joint where they
# have 64, so that one step of Adam turns its maps by less. Chosen by validation poses at 400 poses,
# on seeds that the page does not use; it helps both nets.
FIRST = 10
# By how much the net with the reflection should lie below the one without symmetry, in per cent.
AIMS = {100: 12.0, 400: 10.0, 1600: 7.0}
# Numbers of poses that the front page shows.
FRONT = (100, 400)


class FewPoses(Skeleton):
    """The skeleton task with a random part of its training poses, another for every seed.

    Validation and test poses are those of the whole task.
    """

    name: ClassVar[str] = "poses"
    title: ClassVar[str] = "2D to 3D human pose from few poses"
    model_name: ClassVar[str] = f"PoseNet, first layer at {FIRST} times the rate"

    def __init__(self, poses: int) -> None:
        self.poses, self.available = poses, 0

    def load(self, data: Path | None, profile: str, seed: int) -> Problem:
        whole = super().load(data, profile, seed)
        self.available = len(whole.train)
        count = self.poses or self.available
        if count > self.available:
            raise BenchmarkError(
                f"{whole.dataset} has {self.available:,} training poses; asked for {count:,}"
            )
        random = torch.Generator().manual_seed(seed)
        kept = torch.randperm(self.available, generator=random)[:count]
        name = f"{whole.dataset}, {count:,} poses"
        return replace(whole, dataset=name, train=whole.train.batch(kept.sort().values))

    def schedule(self, profile: str, data: Path | None) -> Schedule:
        """As many epochs as make the steps, and ten looks at validation."""
        if not self.available:
            self.load(data, profile, 0)
        batches = math.ceil((self.poses or self.available) / 64)
        epochs = math.ceil(STEPS[self.poses] / batches)
        every = max(1, epochs // _CHECKS)
        return Schedule(epochs, batch_size=64, lr=1e-3, cosine=True, eval_every=every)

    def model(self, problem: Problem, group: str, profile: str) -> nn.Module:
        """The net of the whole task, whose first layer starts smaller.

        A norm follows it, which takes the size out, so that Adam's steps are larger relative to
        the weights and nothing else changes.
        """
        net = super().model(problem, group, profile)
        assert isinstance(net, PoseNet)
        net.first.conv.reset_parameters(gain=math.sqrt(2) / FIRST)
        return net

    def baselines(self) -> Mapping[str, Callable[[Problem], Predictor]]:
        return {name: fit for name, fit in super().baselines().items() if name in RIDGES}


def main(
    out: Path,
    data: Path | None,
    counts: Sequence[int],
    seeds: int,
    console: Console,
    workers: int = 1,
) -> Path:
    """Train every net and ridge at every number of poses, then write the page.

    Args:
        out: Folder of the page; results go to ``out/poses``.
        data: Folder of downloaded data, or ``None`` for simulated walks.
        counts: Numbers of training poses, of :data:`STEPS`; 0 takes all.
        seeds: Number of seeds, each with its own poses.
        console: Where to tell the progress.
        workers: Processes that run cells.

    Returns:
        Path of the page.

    Raises:
        BenchmarkError: A number of poses that is not in :data:`STEPS`.
    """
    unknown = [count for count in counts if count not in STEPS]
    if unknown:
        raise BenchmarkError(
            f"expected numbers of poses among {', '.join(map(str, STEPS))}; got {unknown[0]}"
        )
    tasks = [FewPoses(count) for count in counts]
    rows = out / FOLDER
    run(
        tasks,
        out=rows,
        profile="standard",
        data=data,
        groups=GROUPS,
        seeds=seeds,
        console=console,
        workers=workers,
    )
    return report(out)


def report(out: Path) -> Path:
    """Write the page and the picture from the results file."""
    tables = _tables(out)
    if not tables:
        raise BenchmarkError(
            f"no results in {out / FOLDER / RESULTS}; make some with gsym-bench poses"
        )
    parts = [
        "# Few poses",
        "2D joints of a person are lifted to 3D. Exchanging left and right joints also reflects "
        "the body, so a mirror that moves joints alone is the wrong symmetry, and one that changes "
        "the sign of the lateral coordinate too is the right one. Each seed draws its own training "
        "poses; validation chooses the epoch and the strength of a ridge; test poses are those of "
        "the whole skeleton task and are read once. MPJPE in mm, mean over seeds; differences are "
        "paired by seed, with the 95 % interval of Student's t.",
    ]
    for title, names in (("Net", GROUPS), ("Quadratic ridge", RIDGES)):
        head = ["poses", "seeds", *names, "reflected against none", "diverged"]
        body = [cells for t in tables if (cells := _cells(t.lines, _count(t.dataset), names))]
        parts += [f"## {title}", markdown_table(head, body)]
        if title == "Net":
            parts += _judged(tables)
    weights = {
        line.name: line.rows[0].parameters for line in tables[-1].lines if not line.is_baseline
    }
    parts.append(
        "Weights of the nets: "
        + ", ".join(f"{name} {weights[name]:,}" for name in GROUPS if weights.get(name))
        + ". All have width 64; that of the reflected mirror is 32 copies of two channels that "
        "the mirror exchanges. The reflected ridge sees every pose and its mirror image, which "
        "ties it exactly."
    )
    parts.append(f"![test error by number of poses]({_draw(out, tables)})")
    rows = [row for table in tables for line in table.lines for row in line.rows]
    model = next(row.model for row in rows if not row.is_baseline)
    counts = [_count(table.dataset) for table in tables]
    asked = [_asked(count) for count in counts]
    parts.append(
        f"{made_with(_command(tables), rows)}; {model}; Adam at a rate of 0.001 along a cosine, "
        "batches of 64, as many epochs as make "
        + ", ".join(
            f"{STEPS[key]:,} steps for {count:,} poses"
            for key, count in zip(asked, counts, strict=True)
        )
        + f", {_CHECKS} looks at validation."
    )
    return write_page(out / PAGE, parts)


def highlights(out: Path) -> list[Highlight]:
    """What the front page shows of the results in ``out``, if there are any."""
    tables = [table for table in _tables(out) if _count(table.dataset) in FRONT]
    return [Highlight(_command(tables), tables)] if tables else []


def _tables(out: Path) -> list[Table]:
    """The tables of the study, by number of poses."""
    rows = [row for row in read_rows(out / FOLDER) if row.task == FewPoses.name]
    # Of nets that were trained in several ways, those of the last one count.
    last = next((row.model for row in reversed(rows) if not row.is_baseline), "")
    tables = tabulate(row for row in rows if row.is_baseline or row.model == last)
    return sorted(tables, key=lambda table: _count(table.dataset))


def _command(tables: Sequence[Table]) -> str:
    """The command that makes these tables."""
    asked = " ".join(str(_asked(_count(table.dataset))) for table in tables)
    source = "" if tables[0].first.source == "embedded" else " --data DIR"
    seeds = 1 + max(row.seed for t in tables for line in t.lines for row in line.rows)
    return f"gsym-bench poses {asked}{source} --seeds {seeds}"


def _asked(count: int) -> int:
    """How the command line asks for so many poses."""
    return count if count in STEPS else 0


def _judged(tables: Sequence[Table]) -> list[str]:
    """Which aims the net with the reflection reaches, and whether it wins with all poses."""
    said = []
    for table in tables:
        count = _count(table.dataset)
        lines = {line.name: line for line in table.lines}
        reflected, plain = lines.get(GROUPS[-1]), lines.get(GROUPS[0])
        if reflected is None or plain is None:
            continue
        difference = compare(reflected, plain)
        if difference is None:
            continue
        scale = 100 / mean(plain.values("test"))
        share, low, high = (
            scale * value for value in (difference.mean, difference.low, difference.high)
        )
        if count in AIMS:
            aim, met = f"{AIMS[count]:g} % at {count:,} poses", -share >= AIMS[count]
        elif not _asked(count):
            aim, met = f"an interval below 0 with all {count:,} poses", difference.high < 0
        else:
            continue
        how = f"{share:+.1f} %, interval {low:+.1f} to {high:+.1f} %"
        said.append(f"{aim}, {'reached' if met else 'missed'} ({how})")
    if not said:
        return []
    return [
        "Aims of the net with the reflection against the one without symmetry: "
        + "; ".join(said)
        + "."
    ]


def _count(dataset: str) -> int:
    """How many poses the name of a data set says."""
    return int(dataset.rsplit(", ", 1)[1].split()[0].replace(",", ""))


def _cells(lines: Sequence[Line], count: int, names: Sequence[str]) -> list[str]:
    found = {line.name: line for line in lines if line.name in names}
    if len(found) < len(names):
        return []
    shown = [f"{mean(found[n].values('test')):.2f}" if found[n].finished else "-" for n in names]
    difference = compare(found[names[-1]], found[names[0]])
    diverged = sum(row.status == "diverged" for n in names for row in found[n].rows)
    seeds = max(len(found[name].rows) for name in names)
    plain = mean(found[names[0]].values("test"))
    return [f"{count:,}", str(seeds), *shown, _said(difference, plain), str(diverged)]


def _said(difference: Interval | None, plain: float) -> str:
    if difference is None:
        return "-"
    share = 100 * difference.mean / plain
    return f"{difference} ({share:+.1f} %)"


def _draw(out: Path, tables: Sequence[Table]) -> str:
    """Test error by number of poses, a dot per seed and a line through the means."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate((*GROUPS, *RIDGES)):
        points = [
            (_count(t.dataset), value)
            for t in tables
            for line in t.lines
            if line.name == name
            for value in line.values("test")
        ]
        if not points:
            continue
        counts = sorted({count for count, _ in points})
        means = [mean(v for c, v in points if c == count) for count in counts]
        style = "--" if name in RIDGES else "-"
        axes.plot(counts, means, style, color=PALETTE[i], label=name)
        axes.plot(*zip(*points, strict=True), ".", color=PALETTE[i], alpha=0.5, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="training poses", ylabel="test MPJPE (mm)")
    axes.legend()
    save(figure, out / PICTURE)
    return PICTURE
