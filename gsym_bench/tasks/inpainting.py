"""Fill a square hole in an image: nodes are pixels, the graph is the grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from gsym import SymmetricCovariance
from gsym.groups import ClusterGroup, Partition, PermutationGroup
from gsym.nn import OrbitLinear
from gsym_bench.suite.results import AS_PUBLISHED
from gsym_bench.suite.task import (
    Predictor,
    Problem,
    Schedule,
    Split,
    Task,
    generator_of,
    register,
)
from gsym_bench.tasks.filling import (
    cut,
    draw_holes,
    every_hole,
    fill_every_hole,
    fit_copy,
    fit_covariance,
    fit_harmonic,
    fit_ledoit_wolf,
    fit_mean,
    fit_ridge,
    impute,
    many_holes,
    sides,
)
from gsym_bench.tasks.images import (
    DIGITS,
    FASHION,
    FLIPPED,
    MNIST,
    TRAIN,
    ImageSet,
    choose_images,
)

HIDDEN = 28
# Variants: what the net sees, how it is tied, how large it is.
FILL, LEVELS, MATCHED = "fill", "sum of levels", "matched size"
LINEAR, PUBLISHED = "linear", AS_PUBLISHED
LINEAR_PUBLISHED = f"{LINEAR}, {PUBLISHED}"


@register
class Inpainting(Task):
    """Fill a square hole in an image, learnt from eighty images.

    Every method is told where the hole is, and what is known outside of it stays: the error counts
    the hole alone. Nets see the hole as a channel of their input, and other holes in every epoch;
    the holes of validation and test are fixed. The other methods learn from the images without
    holes, or (ridge) from many holes for each image.

    The variant "fill" sees the image with its hole filled by `SymmetricCovariance`, and learns
    what to add. The covariance that fills an image in training has not seen it.

    Embedded data are scikit-learn's 8 x 8 digits, other ones for every seed. Files hold 28 x 28
    images: the same 100 for training and validation and 1,000 for the test for every seed,
    stratified by class, with holes of side 20 (Fashion-MNIST) or 14 (MNIST), set to 0 after
    normalisation. At every number of training images those of a seed for validation and test are
    the same, with the same holes, and fewer training images are among the more.

    The profile "paper" is the published protocol: one fixed hole for each image, which the net is
    not told and which counts like the rest of the image. Three things differ: each seed draws
    its holes from a generator of its own, a hole may also touch the right and lower border, and
    the 80/20 split for validation is stratified too. Linear maps are a variant. Variants
    "as published" have neither the last two nor the initial weights that fit their size (linear
    maps start uniform in [0, 1]).

    Reference:
        Huang, Levie, Villar, arXiv 2308.10436, section on image inpainting. The covariance fill as
        an input is ours.
    """

    name: ClassVar[str] = "inpainting"
    title: ClassVar[str] = "Image inpainting"
    metric: ClassVar[str] = "MSE"
    unit: ClassVar[str] = "x 1e-2, normalised grey"
    model_name: ClassVar[str] = "G-Net"
    draws: ClassVar[str] = "each part by itself"
    profiles: ClassVar[tuple[str, ...]] = ("quick", "standard", "paper")
    superseded: ClassVar[tuple[str, ...]] = ("paper",)
    seeds: ClassVar[Mapping[str, int]] = {"quick": 10, "standard": 5, "paper": 5}
    shown: ClassVar[tuple[int, ...]] = (0, 1, 2, 3, 4, 5)
    # Own values say nothing of a hole.
    choosing: ClassVar[Mapping[str, Any]] = {"shared": False}
    files: ClassVar[ImageSet] = FASHION

    # The last problem whose fills were computed, with what came out. Of the class, because every
    # cell brings a task of its own to the process that it is sent to, but shares the problem.
    _seen: ClassVar[tuple[Problem, Problem] | None] = None
    _fitted: ClassVar[tuple[Problem, SymmetricCovariance] | None] = None

    def load(self, data: Path | None, profile: str, seed: int) -> Problem:
        """Build one seed: which images, which holes.

        Args:
            data: Folder with the 28 x 28 images, or ``None`` for the embedded digits.
            profile: In ``"paper"`` inputs do not say where the hole is.
            seed: Seeds the 80/20 split and the holes, and for the digits the choice of images.
        """
        return self.load_few(data, profile, seed, TRAIN)

    def load_few(self, data: Path | None, profile: str, seed: int, signals: int) -> Problem:
        """The problem with this many training images; validation and test keep their numbers."""
        images = DIGITS if data is None else self.files
        size, parts = 0, {}
        for part, pixels in choose_images(images, data, seed, signals).items():
            size = pixels.size(-1)
            holes = generator_of(f"holes of {part}", seed)
            hole = draw_holes(len(pixels), size, images.hole, holes)[..., None]
            parts[part] = _holed(pixels.flatten(1)[..., None], hole, profile)
        return Problem(
            dataset=f"{images.name}, flipped" if images.flipped else images.name,
            train=parts["train"],
            val=parts["val"],
            test=parts["test"],
            edge_index=grid_edges(size),
            positions=grid_positions(size),
            groups=patch_groups(size, images.patches, images.mirrored),
            extra={"seed": torch.tensor(seed)},
        )

    def schedule(self, profile: str, data: Path | None) -> Schedule:
        """Full batch, Adam at 0.01; as published 500 epochs at a constant rate."""
        if profile == "paper":
            return Schedule(epochs=500, lr=1e-2)
        if profile == "quick":
            return Schedule(epochs=60 if data is None else 50, lr=1e-2, cosine=True, eval_every=2)
        return Schedule(epochs=250, lr=1e-2, cosine=True, eval_every=2)

    def model(self, problem: Problem, group: str, profile: str) -> nn.Module:
        """The published net, two layers with ReLU between and no messages."""
        return self.variant("", problem, group, profile)

    def variants(
        self, problem: Problem, profile: str, as_published: bool = False
    ) -> Mapping[str, Sequence[str]]:
        """Nets that correct a fill, a sum of levels, the trivial group at the size of another."""
        plain = [name for name in problem.groups if "x|" not in name and "mirror" not in name]
        if profile == "paper":
            faulty = {PUBLISHED: plain, LINEAR_PUBLISHED: plain} if as_published else {}
            return {LINEAR: plain, **faulty}
        return {FILL: plain, LEVELS: [plain[-2]], MATCHED: ["trivial"]}

    def variant(self, name: str, problem: Problem, group: str, profile: str) -> nn.Module:
        tied = problem.groups[group]
        assert isinstance(tied, ClusterGroup)
        channels, outputs = problem.train.inputs.size(-1), problem.train.targets.size(-1)
        if name in (LINEAR, LINEAR_PUBLISHED):
            linear = PublishedLayer(channels, outputs, tied)
            if name == LINEAR_PUBLISHED:
                for parameter in linear.parameters():
                    nn.init.uniform_(parameter)
            return linear
        hidden = HIDDEN
        if name == MATCHED:
            finest = _plain(problem)[1]
            hidden = max(round(HIDDEN * finest.commutant_dim() / tied.commutant_dim()), 1)
        layers: list[nn.Module] = [
            PublishedLayer(channels, hidden, tied),
            PublishedLayer(hidden, outputs, tied),
        ]
        if name == LEVELS:
            levels = _chain(_plain(problem)[1:])
            layers = [
                OrbitLinear(channels, hidden, levels=levels),
                OrbitLinear(hidden, outputs, levels=levels),
            ]
        net = nn.Sequential(layers[0], nn.ReLU(), layers[1])
        if name == FILL:
            # Training begins at the fill itself.
            for parameter in layers[1].parameters():
                nn.init.zeros_(parameter)
        return net if profile == "paper" else Filler(net, outputs)

    def told(self, profile: str) -> str:
        if profile == "paper":
            return (
                "Baselines are told where the hole is and keep what is known; nets, as published, "
                "are told neither and see 0 in the hole, so that their errors count known pixels "
                "too; and those “as published” are trained and tested on holes of their own, which "
                "never touch the right and the lower border."
            )
        return (
            "Every method is told where the hole is and keeps what is known: nets see another hole "
            "in every epoch, ridge learns from many holes of each signal, and covariances from "
            "signals without holes."
        )

    def levels(self, problem: Problem) -> list[Any]:
        """What `SymmetricCovariance` mixes: a chain of patches."""
        return list(_chain(_plain(problem)))

    def view(self, variant: str, problem: Problem, profile: str) -> Problem:
        """Fills as further channels, or the published holes and split."""
        if variant in (PUBLISHED, LINEAR_PUBLISHED):
            return _as_published(problem)
        if variant != FILL:
            return problem
        seen = Inpainting._seen
        if seen is None or seen[0] is not problem:
            seen = Inpainting._seen = problem, self._filled(problem)
        return seen[1]

    def epoch(self, train: Split, profile: str) -> Split:
        """New holes, but in the published protocol."""
        if profile == "paper":
            return train
        size, side = sides(train.aux["hole"])
        place = torch.randint((size - side + 1) ** 2, (len(train),))
        hole = every_hole(size, side)[place][..., None].to(train.targets.device)
        inputs = cut(train.targets, hole)
        if "fills" in train.aux:
            row = torch.arange(len(train))
            inputs = torch.cat([inputs, train.aux["fills"][row, place]], dim=-1)
        return Split(inputs, train.targets, aux={"hole": hole})

    def loss(self, prediction: Tensor, batch: Split) -> Tensor:
        return F.mse_loss(prediction, batch.targets)

    def metrics(self, prediction: Tensor, split: Split, problem: Problem) -> dict[str, float]:
        """MSE over all nodes and over the hole alone, both times 100."""
        error = (prediction - split.targets).square()
        return {
            "MSE": 100 * error.mean().item(),
            "MSE in the hole": 100 * error[split.aux["hole"].expand_as(error)].mean().item(),
        }

    def baselines(self) -> Mapping[str, Callable[[Problem], Predictor]]:
        """What is outside the hole is known, so every baseline keeps it."""
        return {
            "copy": fit_copy,
            "training mean": fit_mean,
            "harmonic": fit_harmonic,
            "ridge": lambda problem: fit_ridge(many_holes(problem)),
            "Ledoit-Wolf": fit_ledoit_wolf,
            "trivial covariance": lambda problem: self._fit_levels(problem, 1),
            "two-level covariance": lambda problem: self._fit_levels(problem, 2),
            "SymmetricCovariance": self._fit_symmetric,
        }

    def picture(self, samples: Split, predictions: Mapping[str, Tensor]) -> Figure:
        """The truth, the image with its hole, and what each method puts there."""
        size, _ = sides(samples.aux["hole"])
        known = torch.where(samples.aux["hole"], torch.nan, samples.targets)
        panels = {"truth": samples.targets, "known": known, **predictions}
        figure = Figure(figsize=(0.95 * len(panels), 0.95 * len(samples) + 0.6))
        axes = figure.subplots(len(samples), len(panels), squeeze=False)
        figure.subplots_adjust(0, 0, 1, 1 - 0.6 / figure.get_figheight(), 0.05, 0.05)
        low, high = samples.targets.min().item(), samples.targets.max().item()
        grey = colormaps["gray"].with_extremes(bad="#56B4E9")
        for column, (name, values) in enumerate(panels.items()):
            axes[0, column].set_title(fill(name, 14, break_long_words=False), fontsize=6)
            for row, image in enumerate(values[..., 0].view(-1, size, size)):
                axes[row, column].imshow(image, cmap=grey, vmin=low, vmax=high)
                axes[row, column].set_axis_off()
        return figure

    def _fit_levels(self, problem: Problem, count: int) -> Predictor:
        """Weights of the trivial group, and of the full one if ``count`` is 2, by likelihood."""
        chain = _chain(_plain(problem))
        ends = [chain[0], chain[-1]][:count]
        model = fit_covariance(problem.train.targets, ends, None)
        return lambda split: impute(model, split)

    def _fit_symmetric(self, problem: Problem) -> Predictor:
        model = self._covariance(problem)
        return lambda split: impute(model, split)

    def _covariance(self, problem: Problem) -> SymmetricCovariance:
        """The mixture of all levels with the weights that are best for such holes."""
        fitted = Inpainting._fitted
        if fitted is None or fitted[0] is not problem:
            _, side = sides(problem.train.aux["hole"])
            model = fit_covariance(problem.train.targets, self.levels(problem), side)
            fitted = Inpainting._fitted = problem, model
        return fitted[1]

    def _filled(self, problem: Problem) -> Problem:
        """The problem whose inputs also hold fills."""
        train, levels = problem.train, self.levels(problem)
        _, side = sides(train.aux["hole"])
        fills = fill_every_hole(
            train.targets, side, lambda signals: fit_covariance(signals, levels, side)
        )
        model = self._covariance(problem)

        def with_fill(split: Split) -> Split:
            return replace(split, inputs=torch.cat([split.inputs, impute(model, split)], dim=-1))

        return replace(
            problem,
            train=replace(with_fill(train), aux={**train.aux, "fills": fills}),
            val=with_fill(problem.val),
            test=with_fill(problem.test),
        )


@register
class InpaintingMNIST(Inpainting):
    """The same task on MNIST, which has to be on disk."""

    name: ClassVar[str] = "inpainting-mnist"
    title: ClassVar[str] = "Image inpainting, MNIST"
    needs_data: ClassVar[bool] = True
    files: ClassVar[ImageSet] = MNIST


@register
class InpaintingFlipped(Inpainting):
    """The published ablation of the mirror: Fashion-MNIST, every image mirrored or not."""

    name: ClassVar[str] = "inpainting-flipped"
    title: ClassVar[str] = "Image inpainting, mirrored at random"
    needs_data: ClassVar[bool] = True
    files: ClassVar[ImageSet] = FLIPPED


class Filler(nn.Module):
    """A net that fills holes, and leaves what is known.

    Inputs are the signal with 0 in the hole, the hole, and, if there are more channels, a fill, to
    which the net adds.

    Args:
        net: From all channels of the input to those of the signal.
        channels: Number of the signal's channels.

    Shapes:
        - input: ``[b, n, channels + 1]`` or ``[b, n, 2 channels + 1]``
        - output: ``[b, n, channels]``

    Symmetry:
        Nodes: that of ``net``.
    """

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.net, self.channels = net, channels

    def forward(self, x: Tensor) -> Tensor:
        c = self.channels
        y = self.net(x)
        if x.size(-1) > c + 1:
            y = y + x[..., c + 1 :]
        return torch.where(x[..., c : c + 1] > 0, y, x[..., :c])


class PublishedLayer(nn.Module):
    """`OrbitLinear` with the scale and the initial weights of the published inpainting net.

    There, W acts on cluster means divided by the number of clusters, and all weights start uniform
    in +-1/sqrt(out_channels). The maps that can be represented are the same, but Adam moves every
    weight by about its learning rate whatever the scale: without the division the published rate
    of 0.01 overshoots on hundreds of clusters, and the published errors are out of reach.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        group: Group of the layer.

    Shapes:
        - input: ``[b, n, in_channels]``
        - output: ``[b, n, out_channels]``

    Symmetry:
        Nodes: exact for ``group``.
    """

    def __init__(self, in_channels: int, out_channels: int, group: ClusterGroup) -> None:
        super().__init__()
        self.linear = OrbitLinear(in_channels, out_channels, group)
        # The published layer keeps D on single nodes too, where W could serve alone.
        self.own = (
            OrbitLinear(in_channels, out_channels, group, bias=False, mixing="none")
            if self.linear.weight_self is None
            else None
        )
        assert self.linear.mixing is not None
        # Of means and weights the means are fewer, so these are divided.
        self.linear.mixing.register_forward_pre_hook(_Divide(group.partition.num_clusters))
        bound = out_channels**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y if self.own is None else y + self.own(x)


@dataclass(frozen=True)
class _Divide:
    """Divides by a number what a module is called with."""

    divisor: int

    def __call__(self, module: nn.Module, args: tuple[Tensor]) -> Tensor:
        return args[0] / self.divisor


def patch_groups(
    size: int, patches: tuple[int, ...], mirrored: tuple[int, ...]
) -> dict[str, PermutationGroup]:
    """Groups that exchange the pixels within square patches, largest commutant last.

    Args:
        size: Side of the image in pixels.
        patches: Sides of the patches; each must divide ``size``.
        mirrored: Patches that also come with the left-right mirror as a swap of patches.

    Returns:
        Groups by name, such as ``"(S_16)^4 x| S_2"``, by growing number of free weights.
    """
    groups: dict[str, PermutationGroup] = {}
    for patch in patches:
        partition = Partition.grid(size, size, patch)
        count, side = (size // patch) ** 2, size // patch
        if patch == 1:
            name = "trivial"
        else:
            name = f"S_{patch**2}" if count == 1 else f"(S_{patch**2})^{count}"
        if patch in mirrored:
            mirror = torch.arange(count).view(side, side).flip(1).reshape(1, -1)
            swaps = PermutationGroup(count, mirror)
            with_mirror = "S_2 (mirror)" if patch == 1 else f"{name} x| S_2"
            groups[with_mirror] = ClusterGroup(partition, swaps=swaps)
        groups[name] = ClusterGroup(partition)
    return groups


def grid_edges(size: int) -> Tensor:
    """Both directions of the 4-neighbour grid, row-major nodes, ``[2, 4 size (size - 1)]``."""
    node = torch.arange(size * size).view(size, size)
    right = torch.stack([node[:, :-1].flatten(), node[:, 1:].flatten()])
    down = torch.stack([node[:-1].flatten(), node[1:].flatten()])
    return torch.cat([right, right.flip(0), down, down.flip(0)], dim=1)


def grid_positions(size: int) -> Tensor:
    """Where to draw the nodes of a grid, row-major from the upper left, ``[size * size, 2]``."""
    row, column = torch.cartesian_prod(torch.arange(size), torch.arange(size)).unbind(1)
    return torch.stack([column, -row], dim=1).float()


def _plain(problem: Problem) -> list[ClusterGroup]:
    """The groups that exchange nodes within clusters alone, the trivial one first."""
    groups = dict.fromkeys(problem.groups.values())
    plain = [g for g in groups if isinstance(g, ClusterGroup) and g.swaps is None]
    return sorted(plain, key=lambda g: -g.partition.num_clusters)


def _chain(groups: Sequence[ClusterGroup]) -> list[ClusterGroup]:
    """From the finest on, every group whose clusters hold those of the one before."""
    chain = list(groups[:1])
    for group in groups[1:]:
        if chain[-1].partition.refines(group.partition):
            chain.append(group)
    return chain


def _holed(targets: Tensor, hole: Tensor, profile: str) -> Split:
    inputs = cut(targets, hole)
    if profile == "paper":
        inputs = inputs[..., : targets.size(-1)]
    return Split(inputs, targets, aux={"hole": hole})


def _as_published(problem: Problem) -> Problem:
    """Validation images of any class, and holes that never touch the right and lower border."""
    seed = int(problem.extra["seed"])
    images = torch.cat([problem.train.targets, problem.val.targets])
    images = images[torch.randperm(len(images), generator=generator_of("faulty split", seed))]
    size, side = sides(problem.train.aux["hole"])
    count = len(problem.train)
    parts = {"train": images[:count], "val": images[count:], "test": problem.test.targets}
    train, val, test = (
        _holed(
            targets,
            draw_holes(
                len(targets), size, side, generator_of(f"faulty holes of {part}", seed), last=False
            )[..., None],
            "paper",
        )
        for part, targets in parts.items()
    )
    return replace(problem, train=train, val=val, test=test)
