"""The n-body benchmark: EGNN, PEnGUiN and baselines on charged particles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from gsym.nn import EGNN, Penguin
from gsym_bench.models.gnn import GNN
from gsym_bench.simulators.nbody import DIM, HORIZON, NUM_PARTICLES, advance, simulate_motions
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
from gsym_bench.suite.errors import BenchmarkError, check_names
from gsym_bench.suite.report.draw import PALETTE, save
from gsym_bench.suite.report.markdown import made_with, markdown_table, write_page
from gsym_bench.suite.report.tables import Line
from gsym_bench.suite.results import read_rows
from gsym_bench.suite.task import Schedule

RESULTS, PAGE, PICTURE = "nbody.csv", "nbody.md", "nbody.png"
EDGE_INDEX = torch.tensor(list(permutations(range(NUM_PARTICLES), 2))).T
SIZES = {"quick": (500, 500, 500), "standard": (3000, 2000, 2000)}
EPOCHS = {
    "quick": {"n-body": 10, "n-body with gravity": 10},
    "standard": {"n-body": 100, "n-body with gravity": 30},
}
GRAVITY = 1.0
ALPHA = "alpha"
# As the author of ESNN (arXiv 2608.28853) quotes them, for 10,000 epochs.
PUBLISHED = {"EGNN": 0.0071, "GNN": 0.0107, "TFN": 0.0155, "SE(3)-Transformer": 0.0244}


class LinearMotion(nn.Module):
    """Places plus a time times velocities plus a shift, fitted by least squares."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        velocity = part.inputs["velocity"].flatten(0, 1)
        move = (part.pos - part.inputs["pos"]).flatten(0, 1)
        centred = velocity - velocity.mean(0)
        time = (centred * move).sum() / centred.square().sum()
        self.time = nn.Parameter(time)
        self.shift = nn.Parameter(move.mean(0) - time * velocity.mean(0))

    def forward(
        self, x: Tensor, pos: Tensor, velocity: Tensor, **_: Tensor
    ) -> tuple[Tensor, Tensor]:
        return x, pos + self.time * velocity + self.shift


def load(seed: int, *, sizes: Sequence[int], gravity: float) -> tuple[Part, Part, Part]:
    """Training, validation and test part, float32.

    A node has its speed as feature; an edge the product of charges and the squared distance.
    """
    motion = simulate_motions(seed, sum(sizes), gravity=gravity)
    loc, vel, charge, target = (
        torch.from_numpy(np.ascontiguousarray(array)).float()
        for array in (motion.loc, motion.vel, motion.charge, motion.target)
    )
    source, end = EDGE_INDEX
    product = charge[:, source] * charge[:, end]
    square = (loc[:, source] - loc[:, end]).square().sum(-1)
    inputs = {
        "x": vel.norm(dim=-1, keepdim=True),
        "pos": loc,
        "edge_attr": torch.stack([product, square], dim=-1),
        "velocity": vel,
    }
    whole = Part(inputs, target)
    train, val, test = torch.arange(sum(sizes)).split(list(sizes))
    return whole.batch(train), whole.batch(val), whole.batch(test)


def settings(profile: str) -> dict[str, Setting]:
    """The two tables of a profile by name, without and with gravity."""
    shape: dict[str, Any] = {"velocity": True, "edge_dim": 2}
    down = torch.tensor([[0.0, 0.0, -1.0]])

    def egnn(_: Part, **options) -> nn.Module:
        return EGNN(1, None, **shape, **options)

    def penguin(_: Part, alpha: str) -> nn.Module:
        return Penguin(1, None, alpha=alpha, **shape)

    def gnn(_: Part) -> nn.Module:
        return GNN(1, 0, 64, 4, dim=DIM, **shape)

    found = {}
    for name, epochs in EPOCHS[profile].items():
        slow = Schedule(epochs, batch_size=100, lr=5e-4, eval_every=5)
        fast = Schedule(epochs, batch_size=100, lr=1e-3, eval_every=5)
        gravity = GRAVITY if "gravity" in name else 0.0
        baselines = {
            "GNN": Model(gnn, fast, baseline=True),
            "linear": Model(LinearMotion, None, baseline=True),
        }
        models = {"EGNN": Model(egnn, slow, baseline=bool(gravity)), **baselines}
        if gravity:
            models = {
                "EGNN, gravity given": Model(partial(egnn, extra_vectors=down), slow),
                "EGNN, axis learned": Model(partial(egnn, learn_axis=True, dim=DIM), slow),
                "Penguin, one alpha": Model(partial(penguin, alpha="learned"), slow),
                "Penguin, alpha by node": Model(partial(penguin, alpha="node"), slow),
                **models,
            }
        parts = partial(load, sizes=SIZES[profile], gravity=gravity)
        found[name] = Setting(name, EDGE_INDEX, parts, models, _probe)
    return found


def main(out: Path, profile: str, gravity: bool, seeds: int, console: Console) -> Path:
    """Run one of the two tables, then write the page and the picture of all that is there.

    Args:
        out: Folder of results.
        profile: quick or standard.
        gravity: Which table.
        seeds: Number of seeds.
        console: Where to tell the progress.

    Returns:
        Path of the page.
    """
    check_names("profile", [profile], EPOCHS)
    setting = list(settings(profile).values())[gravity]
    run([setting], out=out, name=RESULTS, profile=profile, seeds=seeds, console=console)
    return report(out)


def report(out: Path) -> Path:
    """Write the page and the picture from the results file."""
    rows = read_rows(out, RESULTS)
    parts = [
        "# Charged particles",
        "Five particles with charges of 1 or -1 attract and repel each other in space. Given their "
        "places and velocities, where are they one unit of time later? The task of the EGNN paper "
        "(arXiv 2102.09844, section 5.1), on our own simulator. The error is the mean squared "
        "error of a coordinate; ± is the standard deviation over seeds, each with its own data. "
        "Differences are paired by seed, with the 95 % interval of Student's t. Validation selects "
        "the epoch and the best baseline; the test part is read once.",
    ]
    tables: dict[str, tuple[Setting, list[Line]]] = {}
    for profile in EPOCHS:
        for name, setting in settings(profile).items():
            table = lines(rows, setting, profile)
            if table:
                tables[f"{name}, {profile}"] = setting, table
    if not tables:
        raise BenchmarkError(f"no results in {out / RESULTS}; make some with gsym-bench nbody")
    for title, (setting, table) in tables.items():
        parts += _section(title, setting, table)
    parts.append(f"![test error by model]({_draw(out, tables)})")
    return write_page(out / PAGE, parts)


def _probe(net: nn.Module, part: Part, edge_index: Tensor) -> dict[str, float]:
    with torch.no_grad():
        alpha = score(net, part, edge_index)
    return {} if alpha is None else {ALPHA: alpha.mean().item()}


def _section(title: str, setting: Setting, table: Sequence[Line]) -> list[str]:
    first = table[0].rows[0]
    gravity = "gravity" in setting.name
    profile, command = first.profile, f"gsym-bench nbody --profile {first.profile}"
    train, val, test = (f"{size:,}" for size in SIZES[profile])
    said = [
        f"## {title[0].upper()}{title[1:]}",
        f"{train} training, {val} validation and {test} test systems, {first.epochs} epochs of "
        "batches of 100 with Adam at a rate of 0.0005, the GNN at 0.001; 64 channels, 4 layers.",
    ]
    if gravity:
        floor = _fall() ** 2 / DIM
        said.append(
            f"Gravity of {GRAVITY:g} along -z is switched on at the input, so nothing that the "
            f"networks see tells of it, and all particles fall by {_fall():.4f} more. A map that "
            "commutes with rotations cannot know where down is: whatever it predicts, its expected "
            f"error exceeds that of the same map without gravity by {floor:.4f}. Penguin blends an "
            "equivariant and a free branch; its learned alpha is 1 where it is equivariant. Here "
            "nothing but the training error shapes it."
        )
    head, body = table_rows(table, setting)
    if gravity:
        head.append("alpha")
        for line, cells in zip(table, body, strict=True):
            cells.append(short(line.values("test", ALPHA)))
    said.append(markdown_table(head, body))
    if not gravity:
        quoted = ", ".join(f"{name} {value}" for name, value in PUBLISHED.items())
        said.append(
            f"Published, for 10,000 epochs: {quoted}. They are quoted second-hand, from the "
            "author of ESNN (arXiv 2608.28853), and not checked against the papers."
        )
    seeds = max(row.seed for line in table for row in line.rows) + 1
    made = f"{command} {'--gravity ' * gravity}--seeds {seeds}"
    rows = [row for line in table for row in line.rows]
    return [*said, f"{made_with(made, rows)}; the seconds include the load of the machine."]


def _fall() -> float:
    """How far gravity moves a particle between input and target, in the simulator's steps."""
    loc = vel = np.zeros((1, 1, DIM))
    end, _ = advance(loc, vel, np.ones((1, 1)), HORIZON, gravity=GRAVITY)
    return -float(end[0, 0, -1])


def _draw(out: Path, tables: Mapping[str, tuple[Setting, list[Line]]]) -> str:
    """Test errors of all seeds, one panel per table."""
    height = sum(len(table) + 2 for _, table in tables.values())
    figure = Figure(figsize=(7, 0.42 * height + 0.6), layout="constrained")
    ratios = [len(table) + 1 for _, table in tables.values()]
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axes, (title, (setting, table)) in zip(panels, tables.items(), strict=True):
        for place, line in enumerate(table):
            color = PALETTE[7] if setting.models[line.name].baseline else PALETTE[0]
            values = line.values("test")
            axes.scatter(values, [place] * len(values), s=26, color=color, alpha=0.7, zorder=3)
            if values:
                axes.scatter(mean(values), place, s=200, marker="|", color=color, zorder=4)
        axes.set_yticks(range(len(table)), [line.name for line in table])
        axes.set_ylim(len(table) - 0.4, -1.1)
        axes.set_xscale("log")
        largest = max((v for line in table for v in line.values("test")), default=0.0)
        axes.set_xlim(0.0032, max(0.15, 1.2 * largest))
        axes.set_xticks([0.005, 0.01, 0.02, 0.05, 0.1], ["0.005", "0.01", "0.02", "0.05", "0.1"])
        axes.minorticks_off()
        if "gravity" in setting.name:
            marks = {"what gravity costs any equivariant map ": (_fall() ** 2 / DIM, "right")}
        else:
            marks = {
                "EGNN, published ": (PUBLISHED["EGNN"], "right"),
                " GNN, published": (PUBLISHED["GNN"], "left"),
            }
        for words, (value, side) in marks.items():
            axes.axvline(value, color=PALETTE[5], linestyle=(0, (4, 2)), linewidth=1, zorder=1)
            axes.annotate(words, (value, -0.7), ha=side, fontsize=8, color=PALETTE[5])
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
    panels[-1].set_xlabel("test error (mean squared); dots are seeds, bars their mean")
    return save(figure, out / PICTURE)
