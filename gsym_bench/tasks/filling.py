"""Ways to fill a hole of a signal on a grid that need no training: rules, ridge, covariances."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import splu
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import Ridge
from torch import Tensor

from gsym import SymmetricCovariance
from gsym_bench.suite.task import Predictor, Problem, Split

_RIDGE_STRENGTHS = tuple(10.0**k for k in range(-2, 5))
# Holes of each training image that ridge sees; nets see one in every epoch.
_HOLES_OF_RIDGE = 16
_FOLDS = 5


def draw_holes(
    count: int, size: int, side: int, generator: torch.Generator | None, last: bool = True
) -> Tensor:
    """Square holes at uniform places wholly inside the image, bool ``[count, size * size]``.

    Args:
        count: Number of holes.
        size: Side of the image.
        side: Side of the holes.
        generator: Draws them; with the same one the first holes of more are those of fewer.
        last: Whether a hole may touch the right and the lower border.
    """
    places = size - side + last
    top, left = torch.randint(0, places, (count, 2), generator=generator).unbind(1)
    return every_hole(size, side)[top * (size - side + 1) + left]


def every_hole(size: int, side: int) -> Tensor:
    """The hole at each of its places, row by row, bool ``[(size - side + 1)^2, size * size]``."""
    start = torch.arange(size - side + 1)[:, None]
    line = torch.arange(size)
    inside = (line >= start) & (line < start + side)
    return (inside[:, None, :, None] & inside[None, :, None, :]).flatten(2).flatten(0, 1)


def sides(hole: Tensor) -> tuple[int, int]:
    """Sides of the image and of the holes of ``hole [b, n, 1]``."""
    return math.isqrt(hole.size(1)), math.isqrt(int(hole[0].sum()))


def cut(targets: Tensor, hole: Tensor) -> Tensor:
    """What a model is told: the signal with 0 in the hole, and where the hole is.

    Shapes:
        - targets: ``[b, n, c]``
        - hole: bool ``[b, n, 1]``
        - output: ``[b, n, c + 1]``
    """
    return torch.cat([targets.masked_fill(hole, 0.0), hole.to(targets)], dim=-1)


def paste(prediction: Tensor, split: Split) -> Tensor:
    """The prediction inside the holes, and what is known outside."""
    known = split.inputs[..., : prediction.size(-1)]
    return torch.where(split.aux["hole"], prediction, known)


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
    # Few patterns serve many images, so each is factorised once.
    for pattern, rows in _by_pattern(hole):
        known = filled[np.ix_(rows, ~pattern)].swapaxes(0, 1)
        boundary = laplacian[pattern][:, ~pattern] @ known.reshape(len(known), -1)
        solved = -splu(laplacian[pattern][:, pattern].tocsc()).solve(boundary)
        filled[np.ix_(rows, pattern)] = solved.reshape(pattern.sum(), -1, c).swapaxes(0, 1)
    return torch.from_numpy(filled).to(values.dtype)


def conditional_fill(values: Tensor, hole: Tensor, mean: NDArray, covariance: NDArray) -> Tensor:
    """Replace each hole by the conditional mean of a Gaussian.

    Args:
        values: Signals ``[b, n, c]``; what stands in the hole is ignored.
        hole: Where to fill, bool ``[b, n, 1]``.
        mean: Mean of the coordinates, channels innermost, ``[n c]``.
        covariance: Their covariance, ``[n c, n c]``.

    Returns:
        Signals ``[b, n, c]`` equal to ``values`` outside the hole.
    """
    flat = values.double().flatten(1).numpy().copy()
    for pattern, rows in _by_pattern(hole.expand_as(values).flatten(1)[..., None]):
        gain = np.linalg.solve(
            covariance[np.ix_(~pattern, ~pattern)], covariance[~pattern][:, pattern]
        )
        known = flat[np.ix_(rows, ~pattern)] - mean[~pattern]
        flat[np.ix_(rows, pattern)] = mean[pattern] + known @ gain
    return torch.from_numpy(flat).to(values.dtype).view_as(values)


def _by_pattern(hole: Tensor) -> list[tuple[NDArray, NDArray]]:
    """Each distinct hole of ``[b, n, 1]`` as ``[n]``, and which signals have it, ``[b]``."""
    patterns, which = torch.unique(hole[..., 0], dim=0, return_inverse=True)
    return [(p, (which == k).numpy()) for k, p in enumerate(patterns.numpy())]


def fit_copy(problem: Problem) -> Predictor:
    """Leave what stands in the hole."""
    channels = problem.train.targets.size(-1)
    return lambda split: split.inputs[..., :channels]


def fit_mean(problem: Problem) -> Predictor:
    """The mean of the training signals."""
    mean = problem.train.targets.mean(dim=0)
    return lambda split: paste(mean.expand_as(split.targets), split)


def fit_harmonic(problem: Problem) -> Predictor:
    """See `harmonic_fill`."""
    channels = problem.train.targets.size(-1)

    def predict(split: Split) -> Tensor:
        known = split.inputs[..., :channels]
        return harmonic_fill(known, split.aux["hole"], problem.edge_index)

    return predict


def many_holes(problem: Problem) -> Problem:
    """The problem with many holes for each training signal; as it is if inputs do not tell them."""
    x, y = problem.train.inputs, problem.train.targets
    if x.size(-1) == y.size(-1):
        return problem
    size, side = sides(problem.train.aux["hole"])
    generator = torch.Generator().manual_seed(len(x))
    y = y.repeat(_HOLES_OF_RIDGE, 1, 1)
    hole = draw_holes(len(y), size, side, generator)[..., None]
    return replace(problem, train=Split(cut(y, hole), y, aux={"hole": hole}))


def fit_ridge(problem: Problem) -> Predictor:
    """Ridge from all inputs to all targets, of one strength chosen on validation."""
    features, wanted = (
        values.double().flatten(1).numpy()
        for values in (problem.train.inputs, problem.train.targets)
    )

    def predictor(strength: float) -> Predictor:
        ridge = Ridge(strength).fit(features, wanted)

        def predict(split: Split) -> Tensor:
            flat = torch.from_numpy(ridge.predict(split.inputs.double().flatten(1).numpy()))
            return paste(flat.to(split.targets).view_as(split.targets), split)

        return predict

    def error(predict: Predictor) -> float:
        return F.mse_loss(predict(problem.val), problem.val.targets).item()

    return min(map(predictor, _RIDGE_STRENGTHS), key=error)


def fit_ledoit_wolf(problem: Problem) -> Predictor:
    """The conditional mean under the covariance of Ledoit and Wolf."""
    channels = problem.train.targets.size(-1)
    model = LedoitWolf().fit(problem.train.targets.double().flatten(1).numpy())

    def predict(split: Split) -> Tensor:
        known = split.inputs[..., :channels]
        return conditional_fill(known, split.aux["hole"], model.location_, model.covariance_)

    return predict


def fit_covariance(signals: Tensor, levels: Sequence[Any], side: int | None) -> SymmetricCovariance:
    """The mixture of averages over groups.

    Args:
        signals: ``[s, n, c]``.
        levels: See `SymmetricCovariance`.
        side: Side of the holes for which weights are chosen; by likelihood if ``None``.
    """
    x = signals.double().numpy()
    with warnings.catch_warnings():
        # Corners of digits are black in most images.
        warnings.filterwarnings("ignore", ".* coordinates never vary")
        if side is None:
            return SymmetricCovariance(levels, objective="likelihood").fit(x)
        holes = every_hole(math.isqrt(x.shape[1]), side).numpy()
        return SymmetricCovariance(levels, objective="imputation", patterns=~holes).fit(x)


def impute(model: SymmetricCovariance, split: Split) -> Tensor:
    """The signals of a split, filled."""
    observed = ~split.aux["hole"].expand_as(split.targets).numpy()
    known = split.inputs[..., : split.targets.size(-1)].double().numpy()
    return torch.from_numpy(model.impute(known, observed)).to(split.targets)


def fill_every_hole(
    signals: Tensor, side: int, fit: Callable[[Tensor], SymmetricCovariance]
) -> Tensor:
    """Each signal with each hole filled by a covariance that has not seen the signal.

    A net that corrects fills has to see in training what it will see afterwards, and a covariance
    fills signals of its own fit too well.

    Args:
        signals: ``[s, n, c]``.
        side: Side of the holes.
        fit: Fits a covariance to signals.

    Returns:
        Filled signals by signal and place of the hole, ``[s, p, n, c]``.
    """
    s, n, c = signals.shape
    holes = every_hole(math.isqrt(n), side)[:, :, None].expand(-1, -1, c)
    filled = signals.new_empty(s, len(holes), n, c)
    order = torch.randperm(s, generator=torch.Generator().manual_seed(s))
    for held in order.chunk(_FOLDS):
        model = fit(signals[np.setdiff1d(np.arange(s), held.numpy())])
        for place, hole in enumerate(holes):
            found = model.impute(signals[held].double().numpy(), ~hole.numpy())
            filled[held, place] = torch.from_numpy(found).to(signals)
    return filled
