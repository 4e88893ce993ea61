r"""Covariances along partitions, split into deviations within clusters and means of clusters.

With U ``[n, k]`` the normalised indicators of the finest partition (of the meet of all, where
they do not nest), every average over clusters is a multiple of the identity on the deviations
within a cluster, and a ``k x k`` matrix on the means. So the sum of all levels but the trivial one
is ``A = d_c`` on deviations and N on means, and the trivial level adds a matrix of the rank of the
signals:

.. math:: \Sigma = D + U (N - D) U^T + B B^T

Signals enter by their products ``G_c [s, s]`` of deviations in each cluster and by their means
``[s, k]``; that is all that n costs. Both parts are positive definite and variances of deviations
are sums of squares, never differences, so nothing cancels at a small ridge.

The split is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from gsym.groups import Partition
from gsym.risk._fit_weights import FLOOR, Loss, Value
from gsym.risk._inverses import inverse_and_log_det
from gsym.risk._split_gaussian import BLOCK, Factor, SplitGaussian
from gsym.risk.left_out import how_many


@dataclass(frozen=True)
class Products:
    """Signals in the form that a fit needs: nothing in it grows with n.

    Attributes:
        fine: The finest partition.
        deviations: Products of deviations within every cluster: their lower triangles, row by row,
            ``[k, s (s + 1) / 2]``.
        means: Means of clusters times the root of their size, ``[s, k]``.
    """

    fine: Partition
    deviations: NDArray
    means: NDArray

    @classmethod
    def of(cls, x: NDArray, fine: Partition) -> Products:
        """From signals ``[s, n]``, of which a block of nodes is copied at a time.

        Cost:
            ``O(n s^2)`` time, ``4 k s^2`` bytes.
        """
        s = len(x)
        order, sizes = fine.order.numpy(), np.array(fine.sizes)
        # Off from the start, because a large mean would cost digits.
        center = x.mean(0)
        lower = np.tril_indices(s)
        means = np.empty((s, len(sizes)))
        deviations = np.zeros((len(sizes), len(lower[0])))
        width = how_many(BLOCK, s)

        def errors(nodes: NDArray) -> NDArray:
            first, last = int(nodes[0]), int(nodes[-1])
            # Nodes that stand together are read as they stand.
            rows = slice(first, last + 1) if last - first == len(nodes) - 1 else nodes
            return np.asarray(x[:, rows] - center[rows])

        for c, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
            nodes = order[end - size : end]
            blocks = [nodes[i : i + width] for i in range(0, size, width)]
            first = errors(blocks[0])
            mean = (first.sum(1) + sum(errors(block).sum(1) for block in blocks[1:])) / size
            means[:, c] = mean * math.sqrt(size)
            if size > 1:
                square = np.zeros((s, s))
                for i, block in enumerate(blocks):
                    part = errors(block) if i else first
                    part -= mean[:, None]
                    square += part @ part.T
                deviations[c] = square[lower]
        return cls(fine, deviations, means)

    def weighted(self, factors: NDArray) -> NDArray:
        """Sums over clusters of products times factors ``[f, k]``: ``[f, s, s]``."""
        s = len(self.means)
        rows, columns, _ = self._triangle
        flat, out = factors @ self.deviations, np.empty((len(factors), s, s))
        out[:, rows, columns] = flat
        out[:, columns, rows] = flat
        return out

    def contracted(self, matrices: NDArray) -> NDArray:
        """Inner products of symmetric matrices ``[f, s, s]`` with every cluster's: ``[f, k]``."""
        rows, columns, times = self._triangle
        return np.asarray((matrices[:, rows, columns] * times) @ self.deviations.T)

    @cached_property
    def _triangle(self) -> tuple[NDArray, NDArray, NDArray]:
        """Places of the lower triangle, and how often each number in it stands in the matrix."""
        rows, columns = np.tril_indices(len(self.means))
        return rows, columns, np.where(rows == columns, 1.0, 2.0)


@dataclass(frozen=True)
class Parts:
    """A sum of levels.

    Attributes:
        d: Variances of deviations, ``[k]``.
        N: Matrix of means, ``[k, k]``.
        trivial: The weight of the trivial level.
    """

    d: NDArray
    N: NDArray
    trivial: float


@dataclass(frozen=True)
class Density:
    """Of held-out signals, and what its gradient needs.

    Attributes:
        value: Minus twice the log density, without constants.
        inverse: Of the matrix of means, ``[k, k]``.
        half: Means of signals times it, ``[s, k]``.
        Q: What the inverse of the sum adds to that of its first part, and what it makes of
            held-out signals, both in coefficients of signals: ``[s, s]``.
        trivial: Slope in the weight of the trivial level.
    """

    value: float
    inverse: NDArray
    half: NDArray
    Q: NDArray
    trivial: float


class SplitFold:
    """Terms of the signals that a fold trains on, and the products with those held out.

    Args:
        products: Of all signals.
        levels: Partitions of the levels, ``None`` for the trivial one.
        train: Numbers of the signals to train on.
        held: Those held out; may be none.
        raised: What is added to the variance of each node, ``[n]``; next to a trivial level, such
            nodes are clusters of their own.
    """

    def __init__(
        self,
        products: Products,
        levels: Sequence[Partition | None],
        train: NDArray,
        held: NDArray,
        raised: NDArray,
    ) -> None:
        self.products, self.levels, self.train, self.held = products, levels, train, held
        sizes = np.array(products.fine.sizes, dtype=np.float64)
        s, self.k = products.means.shape
        self.sizes = sizes
        # Shares of signals in the mean of those to train on, which is taken off all.
        self.share = np.zeros(s)
        self.share[train] = 1 / len(train)
        self.means = products.means - self.share @ products.means
        square = np.diag(self.share) - np.outer(self.share, self.share)
        within = np.maximum(products.contracted(square[None])[0], 0.0)
        Y = self.means[train] / math.sqrt(len(train))
        self.tau = float(within.sum() + (Y**2).sum() + raised.sum()) / float(sizes.sum())
        # One node of each cluster.
        self._first = products.fine.order.numpy()[np.cumsum([0, *products.fine.sizes[:-1]])]
        made = {len(levels): (np.full(self.k, self.tau), self.tau * np.eye(self.k))}
        for i, level in enumerate(levels):
            if level is not None:
                made[i] = self._level(level, within, Y, raised)
            elif raised.any():
                made[i] = np.zeros(self.k), np.diag(raised[self._first])
        # Where the terms stand among all weights, of which the ridge is the last.
        self.place = list(made)
        self.d_terms, self.N_terms = map(np.stack, zip(*made.values(), strict=True))
        self.trivial = [i for i, level in enumerate(levels) if level is None]

    def _level(
        self, level: Partition, within: NDArray, Y: NDArray, raised: NDArray
    ) -> tuple[NDArray, NDArray]:
        """Variance of deviations ``[k]`` and matrix of means ``[k, k]`` of one level."""
        labels = level.labels.numpy()
        coarse = labels[self._first]
        count = np.array(level.sizes, dtype=np.float64)
        W = np.zeros((self.k, len(count)))
        W[np.arange(self.k), coarse] = np.sqrt(self.sizes / count[coarse])
        top = Y @ W
        square = np.bincount(coarse, within + ((Y - top @ W.T) ** 2).sum(0), len(count))
        delta = square / np.maximum(count - 1, 1)
        N = W @ (top.T @ top - np.diag(delta)) @ W.T
        # The mean over a cluster of what is added is a multiple of the identity.
        delta = delta + np.bincount(labels, raised, len(count)) / count
        return delta[coarse], N + np.diag(delta[coarse])

    def parts(self, weights: NDArray) -> Parts:
        """The sum that weights make."""
        inner = weights[self.place]
        trivial = float(weights[self.trivial].sum())
        return Parts(inner @ self.d_terms, np.tensordot(inner, self.N_terms, 1), trivial)

    def gaussian(self, weights: NDArray, x: NDArray) -> SplitGaussian:
        """The Gaussian of these weights.

        Args:
            weights: Of every term.
            x: Signals to train on, ``[t, n]``.
        """
        parts = self.parts(weights)
        # At its floor the trivial level is nothing.
        rows = x if parts.trivial > 10 * FLOOR else x[:0]
        B = Factor(rows, x.mean(0), math.sqrt(parts.trivial / len(x)))
        return SplitGaussian(self.products.fine.labels.numpy(), parts.d, parts.N, B)

    def density(self, parts: Parts, within: NDArray) -> Density:
        """Of the held-out signals.

        Args:
            parts: The sum of levels.
            within: Products of deviations over their variances, ``[s, s]``.
        """
        train, held = self.train, self.held
        t, h, s = len(train), len(held), len(within)
        beta = parts.trivial / t
        inverse, log_det = inverse_and_log_det(parts.N)
        half = self.means @ inverse
        off = within @ self.share
        F = within - off[:, None] - off + self.share @ off + half @ self.means.T
        F_tt, F_th = F[np.ix_(train, train)], F[np.ix_(train, held)]
        K_inverse, log_det_K = inverse_and_log_det(np.eye(t) + beta * F_tt)
        C = K_inverse @ F_th
        value = h * (float(((self.sizes - 1) * np.log(parts.d)).sum()) + log_det + log_det_K)
        value += float(F[held, held].sum()) - beta * float(np.vdot(F_th, C))
        Q = np.zeros((s, s))
        Q[np.ix_(train, train)] = h * beta * K_inverse + beta**2 * C @ C.T
        Q[np.ix_(held, held)] = np.eye(h)
        Q[np.ix_(train, held)] = -beta * C
        Q[np.ix_(held, train)] = -beta * C.T
        trivial = (h * float(np.vdot(K_inverse, F_tt)) - float((C**2).sum())) / t
        return Density(value, inverse, half, Q, trivial)

    def uncentred(self, Q: NDArray) -> NDArray:
        """Coefficients of signals less the mean, as those of signals: ``[s, s]``."""
        back = np.outer(Q.sum(0), self.share)
        return np.asarray(Q - back - back.T + Q.sum() * np.outer(self.share, self.share))

    def slope(self, parts: Parts, found: Density, spread: NDArray) -> NDArray:
        """Gradient of a density in all weights.

        Args:
            parts: The sum of levels.
            found: The density.
            spread: Inner products of its uncentred Q with those of deviations, ``[k]``.
        """
        h, k = len(self.held), self.k
        d_slope = h * (self.sizes - 1) / parts.d - spread / parts.d**2
        N_slope = h * found.inverse - found.half.T @ found.Q @ found.half
        slope = np.zeros(len(self.levels) + 1)
        slope[self.place] = (
            self.d_terms @ d_slope + self.N_terms.reshape(-1, k * k) @ N_slope.ravel()
        )
        slope[self.trivial] += found.trivial
        return slope


def split_likelihood(folds: Sequence[SplitFold]) -> Loss:
    """As :func:`gsym.risk._fit_weights.likelihood`, at a cost without n.

    Products that folds share are read once for all of them.

    Cost:
        ``O(k s^2 + k^3 + s^3)`` for every fold and step.
    """
    entries = sum(len(fold.held) * float(fold.sizes.sum()) for fold in folds)
    alike: dict[int, list[SplitFold]] = {}
    for fold in folds:
        alike.setdefault(id(fold.products), []).append(fold)

    def loss(weights: NDArray) -> Value:
        value, slope = 0.0, np.zeros(len(weights))
        for some in alike.values():
            products = some[0].products
            parts = [fold.parts(weights) for fold in some]
            within = products.weighted(np.stack([1 / part.d for part in parts]))
            found = [f.density(p, w) for f, p, w in zip(some, parts, within, strict=True)]
            back = [fold.uncentred(one.Q) for fold, one in zip(some, found, strict=True)]
            spread = products.contracted(np.stack(back))
            for fold, part, one, own in zip(some, parts, found, spread, strict=True):
                slope += fold.slope(part, one, own)
                value += one.value
        return Value(value / (2 * entries), slope / (2 * entries))

    return loss


def meet_of(levels: Sequence[Partition | None], still: NDArray) -> Partition:
    """The finest partition that all levels but the trivial one are made of.

    Args:
        levels: Partitions of the levels, ``None`` for the trivial one.
        still: Nodes whose variance is raised, ``[n]``: alone where there is a trivial level, whose
            average does not spread what is added.
    """
    fine = Partition.single(len(still))
    for level in levels:
        fine = fine if level is None else fine.meet(level)
    if still.any() and any(level is None for level in levels):
        labels = fine.labels.numpy()
        alone = np.where(still, len(still) + np.arange(len(still)), labels)
        fine = Partition.from_labels(torch.from_numpy(alone), relabel=True)
    return fine
