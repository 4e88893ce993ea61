"""Fill a square hole in an image: nodes are pixels, the graph is the grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import splu
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gsym.groups import ClusterGroup, Partition, PermutationGroup
from gsym.nn import OrbitLinear
from gsym_bench.data import load_images
from gsym_bench.suite.task import Predictor, Problem, Schedule, Split, Task, register

_TRAIN, _VAL_SHARE, _TEST = 100, 0.2, 1000
_RIDGE_STRENGTHS = tuple(10.0**k for k in range(-2, 5))


@dataclass(frozen=True)
class ImageSet:
    """How one set of images enters the task.

    Attributes:
        name: Name of the data.
        mean: Grey value that becomes 0, in units of white = 1.
        std: Grey range that becomes 1.
        hole: Side of the square hole in pixels.
        patches: Sides of the square patches whose pixels a group may exchange, in pixels.
        mirrored: Which of them also come with the left-right mirror on patches.
    """

    name: str
    mean: float
    std: float
    hole: int
    patches: tuple[int, ...]
    mirrored: tuple[int, ...]


_DIGITS = ImageSet("digits", 0.5, 0.5, 4, (8, 4, 2, 1), (4, 2, 1))
_FASHION = ImageSet("fashion-mnist", 0.5, 0.5, 20, (28, 14, 7, 4, 2, 1), (14, 2))
_MNIST = ImageSet("mnist", 0.1307, 0.3081, 14, (28, 14, 7, 4, 2, 1), (14, 2))


@register
class Inpainting(Task):
    """Image inpainting from one hundred images.

    Embedded data are scikit-learn's 8 x 8 digits. With ``data``, the setting is the published one
    on 28 x 28 images: the same 100 training and 1,000 test images for every seed, stratified by
    class, and holes of side 20 (Fashion-MNIST) or 14 (MNIST), set to 0 after normalisation. Three
    things differ: each seed draws its holes from a generator of its own, a hole may also touch the
    right and lower border, and the 80/20 split for validation is stratified too.

    Reference:
        Huang, Levie, Villar, arXiv 2308.10436, section on image inpainting.
    """

    name: ClassVar[str] = "inpainting"
    title: ClassVar[str] = "Image inpainting"
    metric: ClassVar[str] = "MSE"
    unit: ClassVar[str] = "x 1e-2, normalised grey"
    model_name: ClassVar[str] = "G-Net 1-28-1"
    files: ClassVar[ImageSet] = _FASHION

    def load(self, data: Path | None, profile: str, seed: int) -> Problem:
        """Build one seed: which images, which holes.

        Args:
            data: Folder with the 28 x 28 images, or ``None`` for the embedded digits.
            profile: Not used; both profiles see the same data.
            seed: Seeds the 80/20 split and the holes, and for the digits the choice of images.
        """
        images = _DIGITS if data is None else self.files
        if data is None:
            digits = load_digits()
            grey = digits.images / 16.0
            train, test, label, _ = train_test_split(
                grey,
                digits.target,
                train_size=_TRAIN,
                test_size=_TEST,
                stratify=digits.target,
                random_state=seed,
            )
        else:
            loaded = load_images(data, images.name)
            train, label = _choose(loaded.x_train, loaded.y_train, _TRAIN)
            test, _ = _choose(loaded.x_test, loaded.y_test, _TEST)
            train, test = train / 255.0, test / 255.0
        train, val = train_test_split(
            train, test_size=_VAL_SHARE, stratify=label, random_state=seed
        )
        generator = torch.Generator().manual_seed(seed)
        size = train.shape[-1]
        return Problem(
            dataset=images.name,
            train=_split(train, images, generator),
            val=_split(val, images, generator),
            test=_split(test, images, generator),
            edge_index=grid_edges(size),
            positions=grid_positions(size),
            groups=patch_groups(size, images.patches, images.mirrored),
        )

    def schedule(self, profile: str, data: Path | None) -> Schedule:
        """Full batch, Adam at 0.01; 500 epochs, or 50 of the large images in ``quick``."""
        return Schedule(epochs=50 if profile == "quick" and data is not None else 500, lr=1e-2)

    def model(self, problem: Problem, group: str, profile: str) -> nn.Module:
        """The published 2-layer net: 1 to 28 to 1 channels, ReLU between, no messages."""
        tied = problem.groups[group]
        assert isinstance(tied, ClusterGroup)
        return nn.Sequential(PublishedLayer(1, 28, tied), nn.ReLU(), PublishedLayer(28, 1, tied))

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
            "copy": _fit_copy,
            "mean": _fit_mean,
            "harmonic": _fit_harmonic,
            "ridge": fit_ridge,
        }


@register
class InpaintingMNIST(Inpainting):
    """The same task on MNIST, which has to be on disk."""

    name: ClassVar[str] = "inpainting-mnist"
    title: ClassVar[str] = "Image inpainting, MNIST"
    needs_data: ClassVar[bool] = True
    files: ClassVar[ImageSet] = _MNIST


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
        divide = _Divide(group.partition.num_clusters)
        parametrize.register_parametrization(self.linear.mixing, "weight", divide)
        bound = out_channels**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y if self.own is None else y + self.own(x)


class _Divide(nn.Module):
    """Makes a layer use its weight divided by a number."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, weight: Tensor) -> Tensor:
        return weight / self.divisor


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


def draw_holes(count: int, size: int, side: int, generator: torch.Generator) -> Tensor:
    """Square holes at uniform places wholly inside the image, bool ``[count, size * size]``."""
    top, left = torch.randint(0, size - side + 1, (2, count, 1), generator=generator)
    line = torch.arange(size)
    rows = (line >= top) & (line < top + side)
    columns = (line >= left) & (line < left + side)
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def harmonic_fill(values: Tensor, hole: Tensor, edge_index: Tensor) -> Tensor:
    """Replace each hole by the solution of Laplace's equation with its surroundings given.

    Every node of the hole becomes the mean of its neighbours.

    Args:
        values: Signals ``[b, n, c]``, filled channel by channel; what stands in the hole is
            ignored.
        hole: Where to fill, bool ``[b, n, 1]``; never a whole connected component.
        edge_index: Symmetric graph ``[2, e]``.

    Returns:
        Signals ``[b, n, c]`` equal to ``values`` outside the hole.
    """
    _, n, c = values.shape
    source, target = edge_index.numpy()
    adjacency = csr_array(coo_array((np.ones(source.size), (target, source)), shape=(n, n)))
    laplacian = csr_array(diags_array(adjacency.sum(axis=1)) - adjacency)
    filled = values.double().numpy().copy()
    patterns, which = torch.unique(hole[..., 0], dim=0, return_inverse=True)
    # Few patterns serve many images, so each is factorised once.
    for number, pattern in enumerate(patterns.numpy()):
        rows = (which == number).numpy()
        known = filled[np.ix_(rows, ~pattern)].swapaxes(0, 1)
        boundary = laplacian[pattern][:, ~pattern] @ known.reshape(len(known), -1)
        solved = -splu(laplacian[pattern][:, pattern].tocsc()).solve(boundary)
        filled[np.ix_(rows, pattern)] = solved.reshape(pattern.sum(), -1, c).swapaxes(0, 1)
    return torch.from_numpy(filled).to(values.dtype)


def _choose(x: NDArray, y: NDArray, count: int) -> tuple[NDArray, NDArray]:
    """The published choice of images: stratified, with the published random state."""
    chosen, _ = train_test_split(np.arange(len(y)), train_size=count, stratify=y, random_state=999)
    return np.asarray(x)[chosen], np.asarray(y)[chosen]


def _split(grey: NDArray, images: ImageSet, generator: torch.Generator) -> Split:
    """Normalise ``[b, h, w]`` and cut the holes."""
    targets = torch.from_numpy((grey - images.mean) / images.std).float().flatten(1)[..., None]
    hole = draw_holes(len(grey), grey.shape[-1], images.hole, generator)[..., None]
    return Split(targets.masked_fill(hole, 0.0), targets, aux={"hole": hole})


def _fit_copy(problem: Problem) -> Predictor:
    return lambda split: split.inputs


def _fit_mean(problem: Problem) -> Predictor:
    mean = problem.train.targets.mean(dim=0)
    return lambda split: torch.where(split.aux["hole"], mean, split.inputs)


def _fit_harmonic(problem: Problem) -> Predictor:
    return lambda split: harmonic_fill(split.inputs, split.aux["hole"], problem.edge_index)


def fit_ridge(problem: Problem) -> Predictor:
    """Ridge from all inputs to all targets, of one strength chosen on validation."""
    train = problem.train

    def predictor(strength: float) -> Predictor:
        ridge = Ridge(strength).fit(
            train.inputs.flatten(1).numpy(), train.targets.flatten(1).numpy()
        )

        def predict(split: Split) -> Tensor:
            flat = torch.from_numpy(ridge.predict(split.inputs.flatten(1).numpy()))
            filled = flat.to(split.inputs).view_as(split.inputs)
            return torch.where(split.aux["hole"], filled, split.inputs)

        return predict

    def error(predict: Predictor) -> float:
        return F.mse_loss(predict(problem.val), problem.val.targets).item()

    return min(map(predictor, _RIDGE_STRENGTHS), key=error)
