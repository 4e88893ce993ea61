"""Where the joints of a moving body go: EGNN, PEnGUiN, a plain network, and doing nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn

from gsym.nn import EGNN, Penguin
from gsym_bench.models.gnn import GNN
from gsym_bench.simulators.gait import FRAME_RATE, JOINT_NAMES, SKELETON_EDGES, simulate_gait
from gsym_bench.studies.motion import Model, Part, Setting, lines, run, score, short
from gsym_bench.suite.errors import BenchmarkError, check_names
from gsym_bench.suite.report.draw import save
from gsym_bench.suite.report.markdown import made_with, markdown_table, write_page
from gsym_bench.suite.report.tables import Line
from gsym_bench.suite.results import read_rows
from gsym_bench.suite.task import Schedule
from gsym_bench.tasks.skeleton import FRONT_VIEW, cmu_sequences

RESULTS, PAGE, PICTURE = "motion.csv", "motion.md", "motion.png"
MILLISECONDS = (80, 160, 320, 400, 560, 1000)
STEP = 80  # milliseconds between the two poses that tell velocities
ERROR, ALPHA = "MPJPE (mm)", "alpha of "
CMU_RATE = 60.0
PRICE = 1e-4
N = len(JOINT_NAMES)
_ONE_WAY = torch.tensor(SKELETON_EDGES).T
EDGE_INDEX = torch.cat([_ONE_WAY, _ONE_WAY.flip(0)], dim=1)


@dataclass(frozen=True)
class Size:
    """What a profile sees: windows of the three parts, and epochs."""

    parts: tuple[int, int, int]
    epochs: int


SIZES = {"quick": Size((300, 100, 400), 10), "standard": Size((1000, 300, 1000), 20)}


class Still(nn.Module):
    """Every joint stays where it is (``rate=0``), or goes on as it did.

    Args:
        rate: Frames ahead over those between the two poses that tell velocities.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(
        self, x: Tensor, pos: Tensor, velocity: Tensor, **_: Tensor
    ) -> tuple[Tensor, Tensor]:
        return x, pos + self.rate * velocity


def walks() -> dict[str, list[Tensor]]:
    """Simulated walks ``[t, 16, 3]`` by part."""
    sequences = simulate_gait(360, 40, seed=0)
    return dict(
        zip(("train", "val", "test"), map(list, sequences.split([240, 60, 60])), strict=True)
    )


@cache
def captured(data: Path) -> dict[str, list[Tensor]]:
    """Sequences of CMU motion capture by part."""
    return {
        part: [sequence for own in actions.values() for sequence in own]
        for part, actions in cmu_sequences(data).items()
    }


def windows(
    sequences: Sequence[Tensor], rate: float, milliseconds: int, count: int, seed: int
) -> Part:
    """Random windows: a pose and how it moves, and the pose some time later.

    Joints are relative to the hip of the same moment, in metres; a velocity is how far a joint went
    in the last 80 ms. Features are the number of the joint, one-hot, and its speed.

    Args:
        sequences: Joint positions ``[t, 16, 3]``.
        rate: Frames per second; a time is that of the nearest frame.
        milliseconds: How far ahead.
        count: Number of windows.
        seed: The same seed draws the same ones.

    Raises:
        BenchmarkError: No sequence is long enough.
    """
    back, ahead = _frames(STEP, rate), _frames(milliseconds, rate)
    # Windows of all horizons begin alike, so that errors belong to the same poses.
    latest = _frames(max(MILLISECONDS), rate)
    places = [
        (number, time)
        for number, sequence in enumerate(sequences)
        for time in range(back, len(sequence) - latest)
    ]
    if not places:
        raise BenchmarkError(f"no sequence has the {back + latest + 1} frames of a window")
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(places), count, replace=len(places) < count)
    chosen = [places[i] for i in drawn]
    before, now, later = (
        torch.stack([sequences[number][time + shift] for number, time in chosen])
        for shift in (-back, 0, ahead)
    )
    before, now, later = (pose - pose[:, :1] for pose in (before, now, later))
    velocity = now - before
    speed = velocity.norm(dim=-1, keepdim=True)
    x = torch.cat([torch.eye(N).expand(count, -1, -1), speed], dim=-1)
    return Part({"x": x, "pos": now, "velocity": velocity}, later)


def _frames(milliseconds: int, rate: float) -> int:
    """The nearest number of frames, 1 or more."""
    return max(1, round(milliseconds * rate / 1000))


def settings(profile: str, data: Path | None) -> list[Setting]:
    """One table for each horizon."""
    size = SIZES[profile]
    schedule = Schedule(size.epochs, batch_size=50, lr=2e-3, cosine=True, clip=5.0)
    rate = FRAME_RATE if data is None else CMU_RATE
    dataset = "gait (simulated)" if data is None else "cmu-mocap"

    def load(seed: int, *, milliseconds: int) -> tuple[Part, Part, Part]:
        found = walks() if data is None else captured(data)
        # A seed draws the training windows; the others are the same for all.
        train, val, test = (
            windows(found[part], rate, milliseconds, count, place)
            for part, count, place in zip(
                ("train", "val", "test"), size.parts, (10 + seed, 1, 2), strict=True
            )
        )
        return train, val, test

    def models(milliseconds: int) -> dict[str, Model]:
        shape: dict[str, Any] = {"velocity": True, "dim": 3}
        steps = _frames(milliseconds, rate) / _frames(STEP, rate)
        return {
            "EGNN": Model(lambda _: EGNN(N + 1, None, 32, 3, **shape), schedule),
            "Penguin, alpha by joint": Model(
                lambda _: Penguin(N + 1, None, 32, 3, alpha="node", **shape), schedule, PRICE
            ),
            "GNN": Model(
                lambda _: GNN(N + 1, 0, 32, 3, dim=3, velocity=True), schedule, baseline=True
            ),
            "last pose (zero velocity)": Model(lambda _: Still(0.0), None, baseline=True),
            "constant velocity": Model(lambda _: Still(steps), None, baseline=True),
        }

    return [
        Setting(
            f"motion, {m} ms, {dataset}",
            EDGE_INDEX,
            partial(load, milliseconds=m),
            models(m),
            _probe,
            dataset,
            "embedded" if data is None else "files",
        )
        for m in MILLISECONDS
    ]


def main(
    out: Path, profile: str, data: Path | None, seeds: int, console: Console, workers: int = 1
) -> Path:
    """Run every horizon, then write the page and the picture.

    Args:
        out: Folder of results.
        profile: quick or standard.
        data: Folder of downloaded data, or ``None`` for simulated walks.
        seeds: Number of seeds.
        console: Where to tell the progress.
        workers: Processes that run cells.

    Returns:
        Path of the page.
    """
    check_names("profile", [profile], SIZES)
    tables = settings(profile, data)
    run(
        tables,
        out=out,
        name=RESULTS,
        profile=profile,
        seeds=seeds,
        console=console,
        workers=workers,
    )
    return report(out, tables, profile)


def report(out: Path, tables: Sequence[Setting], profile: str) -> Path:
    """Write the page of one profile and data set from the rows."""
    rows = read_rows(out, RESULTS)
    found = {setting.name: lines(rows, setting, profile) for setting in tables}
    own = [row for table in found.values() for line in table for row in line.rows]
    if not own:
        raise BenchmarkError(f"no results in {out / RESULTS}; make some with gsym-bench motion")
    head = ["model", "parameters", *(f"{m} ms" for m in MILLISECONDS)]
    body = []
    for name in tables[0].models:
        by_horizon = [next((line for line in t if line.name == name), None) for t in found.values()]
        first = next(line for line in by_horizon if line is not None)
        count = first.rows[0].parameters
        body.append(
            [
                name,
                f"{count:,}" if count else "-",
                *(short(line.values("test", ERROR)) if line else "-" for line in by_horizon),
            ]
        )
    command = f"gsym-bench motion --profile {profile} --seeds {max(r.seed for r in own) + 1}"
    command += " --data DIR" if own[0].source == "files" else ""
    size = SIZES[profile]
    parts = [
        "# Forecasting motion",
        f"Given the joints of a body and how far each went in the last {STEP} ms, where are they "
        "some time later, relative to the hip? Mean distance of joints in millimetres; ± is the "
        "standard deviation over seeds. One network for each horizon; validation selects the "
        f"epoch. {own[0].dataset}: {size.parts[0]:,} training windows drawn by each seed, "
        f"{size.parts[2]:,} test windows of other sequences, {size.epochs} epochs. Times are those "
        "of the nearest frame. A literature that takes every second frame of CMU for 40 ms has "
        "other times, so its tables are not comparable.",
        markdown_table(head, body),
        f"![what each joint keeps of the symmetry]({_draw(out, found)})",
        "Penguin blends a branch that commutes with rotations and a free one. Its alpha, 1 where "
        "it is equivariant, is estimated for every joint; the mean over test windows.",
        f"{made_with(command, own)}.",
    ]
    return write_page(out / PAGE, parts)


def _probe(net: nn.Module, part: Part, edge_index: Tensor) -> dict[str, float]:
    _, pos = net(edge_index=edge_index, **part.inputs)
    found = {ERROR: 1000 * (pos - part.pos).norm(dim=-1).mean().item()}
    alpha = score(net, part, edge_index)
    if alpha is not None:
        by_joint = alpha.reshape(-1, N).mean(0).tolist()
        found |= {f"{ALPHA}{name}": a for name, a in zip(JOINT_NAMES, by_joint, strict=True)}
    return found


def _draw(out: Path, found: Mapping[str, Sequence[Line]]) -> str:
    """The skeleton by horizon, joints coloured by what PEnGUiN keeps of the symmetry there."""
    place = np.array(FRONT_VIEW)
    panels = []
    for name, table in found.items():
        line = next((own for own in table if own.name.startswith("Penguin") and own.finished), None)
        if line is not None:
            alpha = [mean(line.values("test", f"{ALPHA}{joint}")) for joint in JOINT_NAMES]
            panels.append((name.split(", ")[1], alpha))
    figure = Figure(figsize=(1.9 * max(len(panels), 1) + 1, 3.6), layout="constrained")
    low = min((min(alpha) for _, alpha in panels), default=0.0)
    high = max((max(alpha) for _, alpha in panels), default=1.0)
    for column, (title, alpha) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        axes.add_collection(LineCollection(place[np.array(SKELETON_EDGES)], colors="0.7"))
        dots = axes.scatter(
            place[:, 0], place[:, 1], c=alpha, cmap="viridis", vmin=low, vmax=high, s=60, zorder=2
        )
        axes.set_aspect("equal")
        axes.axis("off")
        axes.set_title(title, fontsize=9)
        if column == len(panels) - 1:
            figure.colorbar(dots, ax=figure.axes, label="alpha: 1 equivariant, 0 free", shrink=0.8)
    return save(figure, out / PICTURE)
