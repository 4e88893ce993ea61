"""Fill a square hole in a flow: nodes are cells of a grid, channels are velocities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from gsym.groups import Representation
from gsym.nn import GNet
from gsym_bench.simulators.plume import simulate_plumes
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.task import (
    Predictor,
    Problem,
    Schedule,
    Split,
    generator_of,
    register,
    with_images,
)
from gsym_bench.tasks.filling import cut, draw_holes, fit_ridge, many_holes
from gsym_bench.tasks.inpainting import (
    FILL,
    Filler,
    Inpainting,
    grid_edges,
    grid_positions,
    patch_groups,
)

SIZE, HOLE, WIDTH = 8, 4, 16
MIRROR = "S_2 (mirror)"
REFLECTION = "S_2 (mirror), reflected"
COUNTS = (100, 100, 1000)  # of training, validation and test


@register
class FlowInpainting(Inpainting):
    """A twin of the inpainting of images whose true symmetry is known, and moves channels.

    Data are simulated flows on an 8 x 8 grid, another hundred for every seed, with holes of side
    4. The left-right mirror is a symmetry of them if it also reverses the horizontal velocity, and
    of nothing that is measured if it does not. There are no files: with ``data`` and in both
    profiles the task is the same.

    The net is `gsym.nn.GNet`, with 16 channels between: 8 pairs that the reflecting mirror
    exchanges.
    """

    name: ClassVar[str] = "inpainting-flow"
    title: ClassVar[str] = "Inpainting of a flow"
    unit: ClassVar[str] = "x 1e-2, squared velocity"
    model_name: ClassVar[str] = "GNet"
    profiles: ClassVar[tuple[str, ...]] = ("quick", "standard")
    seeds: ClassVar[Mapping[str, int]] = {"quick": 5, "standard": 5}
    shown: ClassVar[tuple[int, ...]] = (0, 1, 2)

    def load(self, data: Path | None, profile: str, seed: int) -> Problem:
        """Build one seed: which flows, which holes."""
        return self.load_few(data, profile, seed, COUNTS[0])

    def load_few(self, data: Path | None, profile: str, seed: int, signals: int) -> Problem:
        """As many flows for training as are asked for."""
        if signals < 1:
            raise BenchmarkError(f"expected a positive number of signals; got --signals {signals}")
        groups = patch_groups(SIZE, (SIZE, 2, 1), (1,))
        mirror = groups[MIRROR]
        velocity = Representation.from_signs(mirror, [[-1, 1]])
        told = Representation.from_signs(mirror, [[-1, 1, 1]])
        counts = {"train": signals, "val": COUNTS[1], "test": COUNTS[2]}
        train, val, test = (_split(part, count, seed) for part, count in counts.items())
        return Problem(
            dataset="plumes (simulated)",
            train=train,
            val=val,
            test=test,
            edge_index=grid_edges(SIZE),
            positions=grid_positions(SIZE),
            groups=groups | {REFLECTION: mirror},
            representations={REFLECTION: (told, velocity)},
            truth=REFLECTION,
        )

    def schedule(self, profile: str, data: Path | None) -> Schedule:
        return Schedule(epochs=100, lr=5e-3, cosine=True, eval_every=5)

    def variants(
        self, problem: Problem, profile: str, as_published: bool = False
    ) -> Mapping[str, Sequence[str]]:
        return {FILL: [REFLECTION, "trivial"]}

    def variant(self, name: str, problem: Problem, group: str, profile: str) -> nn.Module:
        in_rep, out_rep = problem.representations.get(group, (None, None))
        if name == FILL and in_rep is not None:
            in_rep = Representation.from_signs(problem.groups[group], [[-1, 1, 1, -1, 1]])
        net = GNet(
            [problem.train.inputs.size(-1), WIDTH, 2],
            problem.groups[group],
            propagate="none",
            in_rep=in_rep,
            out_rep=out_rep,
        )
        if name == FILL:
            # Training begins at the fill itself.
            for parameter in net.convs[-1].parameters():
                nn.init.zeros_(parameter)
        return Filler(net, 2)

    def levels(self, problem: Problem) -> list[Any]:
        """The chain of patches, and the mirror that reverses the horizontal velocity."""
        chain = super().levels(problem)
        return [*chain, (problem.groups[REFLECTION], problem.representations[REFLECTION][1])]

    def picture(self, samples: Split, predictions: Mapping[str, Tensor]) -> Figure:
        """Arrows of the flow; inside the hole they are those of each method."""
        panels = {"truth": samples.targets, **predictions}
        figure = Figure(figsize=(1.5 * len(panels), 1.5 * len(samples) + 0.4), layout="constrained")
        axes = figure.subplots(len(samples), len(panels), squeeze=False)
        column, row = grid_positions(SIZE).unbind(1)
        scale = 12 * samples.targets.square().sum(-1).mean().sqrt().item()
        for place, (name, values) in enumerate(panels.items()):
            axes[0, place].set_title(fill(name, 16, break_long_words=False), fontsize=7)
            for number, flow in enumerate(values):
                hole = samples.aux["hole"][number, :, 0].tolist()
                colors = ["#D55E00" if inside else "0.6" for inside in hole]
                axes[number, place].quiver(
                    column, row, flow[:, 0], flow[:, 1], color=colors, scale=scale, width=0.012
                )
                axes[number, place].set(aspect="equal", xlim=(-1, SIZE), ylim=(-SIZE, 1))
                axes[number, place].set_axis_off()
        return figure

    def baselines(self) -> Mapping[str, Callable[[Problem], Predictor]]:
        return {
            **super().baselines(),
            "ridge, reflected": lambda problem: fit_ridge(
                with_images(many_holes(problem), REFLECTION)
            ),
        }


def _split(part: str, count: int, seed: int) -> Split:
    """Draw flows and cut the holes, where nothing moves; fewer are among the more."""
    flows = generator_of(f"flows of {part}", seed)
    hundreds = [simulate_plumes(100, SIZE, flows) for _ in range(0, count, 100)]
    targets = torch.cat(hundreds)[:count]
    hole = draw_holes(count, SIZE, HOLE, generator_of(f"holes of {part}", seed))[..., None]
    return Split(cut(targets, hole), targets, aux={"hole": hole})
