"""The regressions that make up a ridge regression in a commutant: means, and own values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gsym.risk.left_out import LeftOut
from gsym.risk.orbit_ridge import MEAN_PENALTIES
from gsym.risk.samples import Samples, select

OWN_PENALTIES = np.logspace(-6, 1, 8)


class MeansRidge:
    """Ridge regression of all targets on the same features, for all penalties at once.

    Args:
        features: ``[s * copies, m, c_in]``, the copies of a signal next to each other. All
            ``m c_in`` numbers of a row are features of every target.
        targets: ``[s * copies, m', c_out]``.
        left_out: What is left out together.
        penalty: Ridge penalty, or ``None``.
        alike: For images of each signal: the share of the inputs, and of the targets, that any two
            of them have in the same place, signs counted, ``[copies, copies]`` each; ``None``
            where signals stand for themselves.
        drift: Change of the map ``[blocks, c_in, c_out]`` that is taken off the targets of block
            b, the same for each of m features; ``None`` for none.
    """

    def __init__(
        self,
        features: NDArray,
        targets: NDArray,
        left_out: LeftOut,
        penalty: float | None,
        alike: tuple[NDArray, NDArray] | None = None,
        drift: NDArray | None = None,
    ) -> None:
        alike = (np.ones((1, 1)),) * 2 if alike is None else alike
        rows, copies = len(features), len(alike[1])
        flat, wanted = features.reshape(rows, -1), targets.reshape(rows, -1)
        self._means = flat.mean(0), wanted.mean(0)
        self._x, self._y = flat - self._means[0], wanted - self._means[1]
        self._left, self._squares = spectrum(self._x)
        rank = self._left.shape[1]
        if drift is None:
            drift = np.zeros((len(left_out), 0, self._y.shape[1]))
        self._left_out, self._copies, self._drift = left_out, copies, drift
        self._outputs = targets.shape[1]
        both = _shorten(self._both())
        q = both.shape[1]
        both = both.reshape(rows, -1)
        scores = self._left.T @ both
        scale = self._squares.sum() / rank if rank else 1.0
        grid = scale * MEAN_PENALTIES if penalty is None else np.array([copies * penalty])
        table, training = [], []
        for value in grid:
            shrink = self._squares / (self._squares + value)
            rest = (both - self._left @ (shrink[:, None] * scores)).reshape(rows, q, -1)
            training.append((rest[..., : drift.shape[2]] ** 2).sum() / copies)
            table.append(_left_out(self._left, shrink, rest, left_out, copies, drift) / copies)
        found = np.array(table)
        judged_by, chosen = select(found)
        self.errors = found[judged_by, np.arange(len(left_out))]
        self._judged_under = grid[judged_by]
        self._weight_of_penalty = grid[chosen]
        self.penalty = float(grid[chosen] / copies)
        shrink = self._squares / (self._squares + grid[chosen])
        # The map from targets to their fit, on the signals themselves: a target stands in several
        # images, in the same place of those under which its node stays. Shares of its trace.
        constant, shares = alike[1].mean(), shares_of_trace(self._left, alike[1])
        self.degrees_of_freedom = (constant + shrink @ shares) * wanted.shape[1]
        self._weights_per_output = flat.shape[1] * float((alike[0] * alike[1]).mean())
        # The trace of (I - H)^2, by which pure noise is reduced in the training error.
        free = rows / copies - constant - (1 - (1 - shrink) ** 2) @ shares
        self.residual_variance = training[chosen] / max(free, 1e-9)

    def left_out(self) -> NDArray:
        """Residual of every signal under the fit that judges its block, ``[s, m', c_out]``."""
        blocks_of, copies = self._left_out, self._copies
        both, rows = self._both(), len(self._y)
        m, width, outputs = both.shape[1], both.shape[2], self._drift.shape[2]
        flat = both.reshape(rows, -1)
        scores = self._left.T @ flat
        out = np.empty((blocks_of.signals, m, outputs))
        for value in np.unique(self._judged_under):
            shrink = self._squares / (self._squares + value)
            rest = flat - self._left @ (shrink[:, None] * scores)
            for blocks, error in left_out_residuals(self._left, shrink, rest, blocks_of, copies):
                ours = self._judged_under[blocks] == value
                blocks = blocks[ours]
                # The first image of a signal is the signal itself.
                error = error[ours, ::copies]
                error = error.reshape(*error.shape[:2], m, width)
                rows_of = blocks_of.starts[blocks, None] + np.arange(error.shape[1])
                change = error[..., outputs:] @ self._drift[blocks][:, None]
                out[rows_of] = error[..., :outputs] - change
        return out

    def squares(self) -> NDArray:
        """Squared targets less their mean, summed over each block."""
        signals, copies = self._left_out.signals, self._copies
        squares = (self._y**2).reshape(signals, -1).sum(1) / copies
        return self._left_out.judged(squares)

    @property
    def features(self) -> tuple[float, float]:
        """Weights of each output, and what the fit uses up of them."""
        return self._weights_per_output, float(self.degrees_of_freedom / self._y.shape[1])

    def _both(self) -> NDArray:
        """Targets, and behind them the features if a change of D_0 is to be taken off."""
        rows, m = len(self._y), self._outputs
        if not self._drift.shape[1]:
            return self._y.reshape(rows, 1, -1)
        # The regression for the features as targets says what a change of D_0 does.
        return np.concatenate([v.reshape(rows, m, -1) for v in (self._y, self._x)], axis=2)

    @cached_property
    def weight(self) -> NDArray:
        """``[p, q]``."""
        inner = (self._left.T @ self._y) / (self._squares + self._weight_of_penalty)[:, None]
        return self._x.T @ (self._left @ inner)

    @property
    def bias(self) -> NDArray:
        """``[q]``."""
        return self._means[1] - self._means[0] @ self.weight


def spectrum(x: NDArray) -> tuple[NDArray, NDArray]:
    """Left singular vectors and squared singular values, from the smaller Gram matrix."""
    wide = x.shape[0] <= x.shape[1]
    squares, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    keep = squares > max(squares[-1], 0.0) * max(x.shape) * np.finfo(float).eps
    squares, vectors = squares[keep], vectors[:, keep]
    return (vectors if wide else x @ vectors / np.sqrt(squares)), squares


def images_alike(source: NDArray, sign: NDArray | None = None) -> NDArray:
    """Share of the numbers of a signal that two of its images have in the same place.

    Args:
        source: Where each image takes its numbers from, ``[copies, p]``.
        sign: The sign it takes them with; one kept and one turned cancel.

    Returns:
        ``[copies, copies]``; 1 where there are no numbers, which then stay.

    Example:
        >>> images_alike(np.array([[0, 1, 2], [1, 0, 2]])).round(2).tolist()
        [[1.0, 0.33], [0.33, 1.0]]
    """
    copies, p = source.shape
    if p == 0:
        return np.ones((copies, copies))
    sign = np.ones(source.shape) if sign is None else sign
    # One image after the other: a table of pairs would be copies times as large as the signals.
    return np.stack(
        [((source == row) * sign) @ turned / p for row, turned in zip(source, sign, strict=True)]
    )


def shares_of_trace(left: NDArray, alike: NDArray) -> NDArray:
    """What each column of a hat matrix on images adds to the trace of that on signals.

    Args:
        left: Columns ``[s * copies, r]`` whose products are the hat matrix.
        alike: Share of the targets that two images have in the same place ``[copies, copies]``.

    Returns:
        Per target, ``[r]``: the squared norm of the column if there is one image.
    """
    images = left.reshape(len(left) // len(alike), len(alike), left.shape[1])
    return np.asarray((images * (alike @ images)).sum((0, 1)) / len(alike))


def _shorten(values: NDArray) -> NDArray:
    """Values ``[rows, m, c]`` with the same inner products over m, and m at most ``rows * c``."""
    rows, m, c = values.shape
    if m <= rows * c:
        return values
    left, squares = spectrum(values.transpose(0, 2, 1).reshape(rows * c, m))
    return (left * np.sqrt(squares)).reshape(rows, c, -1).transpose(0, 2, 1)


def _left_out(
    left: NDArray,
    shrink: NDArray,
    rest: NDArray,
    left_out: LeftOut,
    copies: int,
    drift: NDArray,
) -> NDArray:
    """Squared error of each block under the fit to what it does not leave out.

    Args:
        left: Left singular vectors of the features ``[rows, rank]``.
        shrink: Share of each that the fit keeps.
        rest: Residuals of the fit to all rows ``[rows, q, c_out + c_in]``, for the targets and for
            the features as targets.
        left_out: What is left out together.
        copies: Rows per signal.
        drift: Change of the shared map for each block ``[blocks, c_in, c_out]``.
    """
    q, outputs = rest.shape[1], drift.shape[2]
    errors = np.empty(len(left_out))
    for blocks, error in left_out_residuals(left, shrink, rest, left_out, copies):
        error = error.reshape(*error.shape[:2], q, rest.shape[2])
        if drift.shape[1]:
            change = error[..., outputs:] @ drift[blocks][:, None]
            error = error[..., :outputs] - change
        errors[blocks] = (error**2).sum((1, 2, 3))
    return errors


def left_out_residuals(
    left: NDArray,
    shrink: NDArray,
    rest: NDArray,
    left_out: LeftOut,
    copies: int,
    unshrunk: NDArray | None = None,
) -> Iterator[tuple[NDArray, NDArray]]:
    """Residuals of blocks under the fit to what each does not leave out, in batches.

    Args:
        left: Left singular vectors of the centred features ``[rows, rank]``.
        shrink: Share of each that the fit keeps.
        rest: Residuals of the fit to all rows ``[rows, ...]``.
        left_out: What is left out together.
        copies: Rows per signal.
        unshrunk: Columns ``[rows, j]`` whose products are the rest of the hat matrix; a constant by
            default.

    Yields:
        Numbers of blocks of equal shape, and their residuals ``[blocks, judged rows, ...]``, flat
        behind the rows.
    """
    rows = len(rest)
    rest = rest.reshape(rows, -1)
    if unshrunk is None:
        unshrunk = np.full((rows, 1), rows**-0.5)
    for blocks, removed, judged in left_out.batches(copies, left.shape[1] + rest.shape[1]):
        length = removed.shape[1]
        z, own = left[removed], rest[removed]
        # H_bb = B B^T; a penalty of almost zero may leave a hat matrix of one exactly.
        factor = np.concatenate([unshrunk[removed], z * np.sqrt(shrink)], axis=2)
        if length == 1:
            free = np.maximum(1 + 1e-12 - (factor**2).sum(2, keepdims=True), 1e-12)
            error = own / free
        elif length <= factor.shape[2]:
            system = np.eye(length) * (1 + 1e-12) - factor @ factor.transpose(0, 2, 1)
            wanted = np.broadcast_to(np.eye(length)[:, judged], (len(z), length, _count(judged)))
            error = np.linalg.solve(system, wanted).transpose(0, 2, 1) @ own
        else:
            # (I - B B^T)^-1 = I + B (I - B^T B)^-1 B^T, the smaller system.
            turned = factor.transpose(0, 2, 1)
            system = np.eye(factor.shape[2]) * (1 + 1e-12) - turned @ factor
            error = own[:, judged] + factor[:, judged] @ np.linalg.solve(system, turned @ own)
        yield blocks, error


def _count(judged: slice) -> int:
    return int(judged.stop - judged.start)


class OwnRidge:
    """Deviations of y from cluster means on the deviations of x: one D per orbit of clusters."""

    def __init__(
        self,
        data: Samples,
        u: NDArray,
        v: NDArray,
        order: NDArray,
        starts: NDArray,
        sizes: NDArray,
        orbit: NDArray,
        penalty: float | None,
    ) -> None:
        large = sizes > 1
        used, inverse = np.unique(orbit[large], return_inverse=True)
        self._row = np.full(len(sizes), -1)
        self._row[large] = inverse
        found: list[NDArray] = []
        for product, means in zip(data.products, data.moments(u, v), strict=True):
            if len(found) == 3 and not data.left_out.gap:
                # What is left out is what is judged.
                found += found[:2]
                break
            inside = np.add.reduceat(product[:, order], starts, axis=1) - means
            found.append(sum_rows(inside[:, large], inverse, len(used)))
        gram, cross, square, removed, removed_cross = found
        square = np.maximum(square, 0.0)
        freedom = np.bincount(inverse, (sizes - 1)[large])
        # Without a gap every signal is judged once; with one, blocks overlap in what they remove.
        self._gram, self._cross = gram.sum(0), cross.sum(0)
        scale = np.trace(self._gram.sum(0)) / (freedom.sum() * gram.shape[-1])
        grid = (scale if scale > 0 else 1.0) * OWN_PENALTIES
        grid = grid if penalty is None else np.array([penalty])
        eye = np.eye(gram.shape[-1])
        kept, kept_cross = self._gram - removed, self._cross - removed_cross
        table = []
        for value in grid:
            weight = value * freedom[:, None, None]
            # The penalty draws towards D_0 as it is without the block.
            weight = _solve(kept + weight * eye, kept_cross + weight * data.drift[:, None])
            error = square - 2 * (weight * cross).sum((2, 3))
            error += (weight * (gram @ weight)).sum((2, 3))
            table.append(np.maximum(error, 0.0).sum(1))
        errors = np.array(table)
        judged_by, chosen = select(errors)
        self.errors = errors[judged_by, np.arange(len(data.left_out))]
        pull = grid[judged_by][:, None, None, None] * freedom[:, None, None]
        self._without = kept, kept_cross, pull, data.drift[:, None]
        self.penalty = float(grid[chosen])
        added = self.penalty * freedom[:, None, None] * eye
        self._tied = _solve(self._gram + added, self._cross)
        used_up = np.trace(_solve(self._gram + added, self._gram), axis1=1, axis2=2)
        rest = square.sum(0) - (self._tied * self._cross).sum((1, 2))
        rest -= self.penalty * freedom * (self._tied**2).sum((1, 2))
        rows = data.num_signals * freedom
        self.degrees_of_freedom = used_up.sum() * v.shape[-1]
        ratio = freedom / np.maximum(rows - used_up, 1e-9)
        self.residual_variance = float((np.maximum(rest, 0.0) * ratio).sum())

    def left_out_weights(self) -> NDArray:
        """D under which each block is judged ``[blocks, k, c_in, c_out]``, 0 for single nodes."""
        gram, cross, pull, drift = self._without
        tied = _solve(gram + pull * np.eye(gram.shape[-1]), cross + pull * drift)
        return np.concatenate([tied, np.zeros_like(tied[:, :1])], axis=1)[:, self._row]

    @property
    def weight(self) -> NDArray:
        """``[k, c_in, c_out]``, 0 for clusters of one node."""
        padded = np.concatenate([self._tied, np.zeros_like(self._tied[:1])])
        return padded[self._row]


def sum_rows(values: NDArray, row: NDArray, count: int) -> NDArray:
    """Sum the entries of axis 1 that share a row number."""
    if len(row) == count:
        return values[:, np.argsort(row)]
    out = np.zeros((len(values), count, *values.shape[2:]))
    for index, target in enumerate(row):
        out[:, target] += values[:, index]
    return out


def _solve(matrix: NDArray, right: NDArray) -> NDArray:
    """Batched solve; one unknown is a division."""
    return right / matrix if matrix.shape[-1] == 1 else np.linalg.solve(matrix, right)


class SpreadRidge(MeansRidge):
    """An invariant regression with its weights copied to the clusters of each orbit."""

    def __init__(self, ridge: MeansRidge, orbit: NDArray, root: NDArray, channels: int) -> None:
        self.errors, self.residual_variance, self.degrees_of_freedom = (
            ridge.errors,
            ridge.residual_variance,
            ridge.degrees_of_freedom,
        )
        self.penalty, self._ridge = ridge.penalty, ridge
        self._orbit, self._root, self._channels = orbit, root, channels

    @cached_property
    def weight(self) -> NDArray:
        """``[p, q]``, sources first."""
        tied = self._ridge.weight.reshape(len(self._root), self._channels, -1)
        copied = (tied / self._root[:, None, None])[self._orbit]
        return copied.reshape(-1, copied.shape[-1])

    @property
    def bias(self) -> NDArray:
        """``[q]``."""
        return self._ridge.bias

    def left_out(self) -> NDArray:
        """Residual of every signal under the fit that judges its block, ``[s, 1, c_out]``."""
        return self._ridge.left_out()

    def squares(self) -> NDArray:
        """Squared targets less their mean, summed over each block."""
        return self._ridge.squares()

    @property
    def features(self) -> tuple[float, float]:
        """Weights of each output, and what the fit uses up of them."""
        return self._ridge.features
