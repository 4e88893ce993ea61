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
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, cholesky
from scipy.sparse import csr_array

from gsym.groups import Partition
from gsym.risk._mixture import FLOOR, Loss, inverse_and_log_det

# Numbers in one block of nodes.
_BLOCK = 2**22


@dataclass(frozen=True)
class Products:
    """Signals in the form that a fit needs: nothing in it grows with n.

    Attributes:
        fine: The finest partition.
        deviations: Products of deviations within every cluster, ``[k, s, s]``.
        means: Means of clusters times the root of their size, ``[s, k]``.
    """

    fine: Partition
    deviations: NDArray
    means: NDArray

    @classmethod
    def of(cls, x: NDArray, fine: Partition) -> Products:
        """From signals ``[s, n]``.

        Cost:
            ``O(n s^2)`` time, ``8 k s^2`` bytes.
        """
        s = len(x)
        order, sizes = fine.order.numpy(), np.array(fine.sizes)
        # Off from the start, because a large mean would cost digits.
        center = x.mean(0)
        starts = np.cumsum(sizes) - sizes
        means = np.empty((s, len(sizes)))
        deviations = np.zeros((len(sizes), s, s))
        width = max(1, _BLOCK // s)
        for c, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            nodes = order[start : start + size]
            blocks = [nodes[i : i + width] for i in range(0, size, width)]
            mean = sum((x[:, block] - center[block]).sum(1) for block in blocks) / size
            means[:, c] = mean * math.sqrt(size)
            if size > 1:
                for block in blocks:
                    part = x[:, block] - center[block] - mean[:, None]
                    deviations[c] += part @ part.T
        return cls(fine, deviations, means)


class SplitFold:
    """Terms of the signals that a fold trains on, and the products with those held out.

    Args:
        products: Of all signals.
        levels: Partitions of the levels, ``None`` for the trivial one.
        train: Numbers of the signals to train on.
        held: Those held out; may be none.
    """

    def __init__(
        self,
        products: Products,
        levels: Sequence[Partition | None],
        train: NDArray,
        held: NDArray,
    ) -> None:
        self.products, self.levels, self.train, self.held = products, levels, train, held
        sizes = np.array(products.fine.sizes, dtype=np.float64)
        s, self.k = products.means.shape
        self.sizes = sizes
        # Rows of J take off the mean of the signals to train on.
        self.J = np.eye(s)
        self.J[:, train] -= 1 / len(train)
        self.means = self.J @ products.means
        seen = self.J[train]
        within = np.einsum("ai,cij,aj->c", seen, products.deviations, seen, optimize=True)
        within /= len(train)
        Y = self.means[train] / math.sqrt(len(train))
        self.tau = float(within.sum() + (Y**2).sum()) / float(sizes.sum())
        made = [self._level(level, within, Y) for level in levels if level is not None]
        ridge = np.full(self.k, self.tau), self.tau * np.eye(self.k)
        self.d_terms = np.stack([d for d, _ in (*made, ridge)])
        self.N_terms = np.stack([N for _, N in (*made, ridge)])
        # Where the terms stand among all weights, of which the ridge is the last.
        self.place = [i for i, level in enumerate(levels) if level is not None] + [len(levels)]
        self.trivial = [i for i, level in enumerate(levels) if level is None]

    def _level(self, level: Partition, within: NDArray, Y: NDArray) -> tuple[NDArray, NDArray]:
        """Variance of deviations ``[k]`` and matrix of means ``[k, k]`` of one level."""
        fine = self.products.fine
        first = fine.order.numpy()[np.cumsum([0, *fine.sizes[:-1]])]
        coarse = level.labels.numpy()[first]
        count = np.array(level.sizes, dtype=np.float64)
        W = np.zeros((self.k, len(count)))
        W[np.arange(self.k), coarse] = np.sqrt(self.sizes / count[coarse])
        top = Y @ W
        square = np.bincount(coarse, within + ((Y - top @ W.T) ** 2).sum(0), len(count))
        delta = square / np.maximum(count - 1, 1)
        N = W @ (top.T @ top - np.diag(delta)) @ W.T + np.diag(delta[coarse])
        return delta[coarse], N

    def parts(self, weights: NDArray) -> tuple[NDArray, NDArray, float]:
        """Variances of deviations ``[k]``, matrix of means, and the weight of the trivial level."""
        inner = weights[self.place]
        trivial = float(weights[self.trivial].sum())
        return inner @ self.d_terms, np.tensordot(inner, self.N_terms, 1), trivial

    def gaussian(self, weights: NDArray, x: NDArray) -> SplitGaussian:
        """The Gaussian of these weights.

        Args:
            weights: Of every term.
            x: Signals to train on, ``[t, n]``.
        """
        d, N, trivial = self.parts(weights)
        # At its floor the trivial level is nothing, and its factor would be a copy of the signals.
        B = np.zeros((x.shape[1], 0))
        if trivial > 10 * FLOOR:
            errors = x - x.mean(0)
            errors *= math.sqrt(trivial / len(x))
            B = errors.T
        return SplitGaussian(self.products.fine.labels.numpy(), d, N, B)

    def loss(self, weights: NDArray) -> tuple[float, NDArray]:
        """Minus log density of the held-out signals, without constants, and its gradient."""
        d, N, trivial = self.parts(weights)
        t, h = len(self.train), len(self.held)
        beta = trivial / t
        inverse, log_det = inverse_and_log_det(N)
        G = self.products.deviations
        k, s = len(G), G.shape[1]
        dev = (1 / d) @ G.reshape(k, -1)
        half = self.means @ inverse
        F = self.J @ dev.reshape(s, s) @ self.J.T + half @ self.means.T
        F_tt, F_th = F[np.ix_(self.train, self.train)], F[np.ix_(self.train, self.held)]
        K_inverse, log_det_K = inverse_and_log_det(np.eye(t) + beta * F_tt)
        C = K_inverse @ F_th
        value = h * (float(((self.sizes - 1) * np.log(d)).sum()) + log_det + log_det_K)
        value += float(np.trace(F[np.ix_(self.held, self.held)])) - beta * float(np.vdot(F_th, C))
        # What Sigma^-1 adds to that of A, and Sigma^-1 E, both in coefficients of signals.
        Q = np.zeros((s, s))
        Q[np.ix_(self.train, self.train)] = h * beta * K_inverse + beta**2 * C @ C.T
        Q[np.ix_(self.held, self.held)] = np.eye(h)
        Q[np.ix_(self.train, self.held)] = -beta * C
        Q[np.ix_(self.held, self.train)] = -beta * C.T
        spread = G.reshape(k, -1) @ (self.J.T @ Q @ self.J).ravel()
        d_slope = h * (self.sizes - 1) / d - spread / d**2
        N_slope = h * inverse - half.T @ Q @ half
        slope = np.zeros(len(weights))
        inner = self.d_terms @ d_slope + self.N_terms.reshape(-1, k * k) @ N_slope.ravel()
        np.add.at(slope, self.place, inner)
        own = (h * float(np.vdot(K_inverse, F_tt)) - float((C**2).sum())) / t
        slope[self.trivial] += own
        return value / 2, slope / 2


def split_likelihood(folds: Sequence[SplitFold]) -> Loss:
    """As :func:`gsym.risk._mixture.likelihood`, at a cost without n.

    Cost:
        ``O(k s^2 + k^3 + s^3)`` for every fold and step.
    """
    entries = sum(len(fold.held) * float(fold.sizes.sum()) for fold in folds)

    def loss(weights: NDArray) -> tuple[float, NDArray]:
        results = [fold.loss(weights) for fold in folds]
        value, slope = sum(r[0] for r in results), sum(r[1] for r in results)
        return value / entries, np.asarray(slope / entries)

    return loss


def meet_of(levels: Sequence[Partition | None], n: int) -> Partition:
    """The finest partition that all levels but the trivial one are made of."""
    fine = Partition.single(n)
    for level in levels:
        fine = fine if level is None else fine.meet(level)
    return fine


class SplitGaussian:
    """A Gaussian of covariance ``D + U (N - D) U^T + B B^T``, as :class:`DenseGaussian`.

    Args:
        labels: Cluster of every node, ``[n]``.
        d: Variance of deviations within each cluster, ``[k]``.
        N: Covariance of means times the root of the size, ``[k, k]``.
        B: Factor of the rest, ``[n, t]``.

    Cost:
        ``O(n t^2 + k^3 + t^3)`` for a density or a conditional.
    """

    def __init__(self, labels: NDArray, d: NDArray, N: NDArray, B: NDArray) -> None:
        self.labels, self.d, self.N, self.B = labels, d, N, B
        self.sizes = np.bincount(labels, minlength=len(d)).astype(np.float64)
        self._unit = 1 / np.sqrt(self.sizes)
        ones = np.ones(len(labels)), (labels, np.arange(len(labels)))
        self._sum = csr_array(ones, shape=(len(d), len(labels)))

    def restricted(self, kept: NDArray) -> SplitGaussian:
        """The marginal of the nodes numbered ``kept``: a Gaussian of the same form."""
        count = np.bincount(self.labels[kept], minlength=len(self.d))
        present = np.flatnonzero(count)
        share = (count / self.sizes)[present]
        root = np.sqrt(share)
        N = root[:, None] * self.N[np.ix_(present, present)] * root
        N += np.diag(self.d[present] * (1 - share))
        renumbered = np.cumsum(count > 0) - 1
        return SplitGaussian(renumbered[self.labels[kept]], self.d[present], N, self.B[kept])

    def scaled(self, factor: float) -> SplitGaussian:
        """The same with its covariance times a factor."""
        root = math.sqrt(factor)
        return SplitGaussian(self.labels, factor * self.d, factor * self.N, root * self.B)

    def dense(self) -> NDArray:
        """The covariance, ``[n, n]``."""
        both = (self.N - np.diag(self.d)) * self._unit[:, None] * self._unit
        Sigma = both[np.ix_(self.labels, self.labels)] + self.B @ self.B.T
        Sigma[np.diag_indices(len(Sigma))] += self.d[self.labels]
        return Sigma

    def diagonal(self) -> NDArray:
        """Variances, ``[n]``."""
        own = self.d + (np.diagonal(self.N) - self.d) / self.sizes
        return np.asarray(own[self.labels] + (self.B**2).sum(1))

    def squares(self, errors: NDArray) -> NDArray:
        """Squared Mahalanobis lengths of rows ``[h, n]``."""
        return np.asarray((errors * self._solve(errors)).sum(1))

    def log_density(self, errors: NDArray) -> NDArray:
        """Log density of rows ``[h, n]``."""
        log_det = float(((self.sizes - 1) * np.log(self.d)).sum())
        for root, _ in (self._N_root, self._K_root):
            log_det += 2 * float(np.log(np.diagonal(root)).sum())
        constant = len(self.labels) * math.log(2 * math.pi)
        return -0.5 * (self.squares(errors) + log_det + constant)

    def conditional(
        self, errors: NDArray, seen: NDArray, hidden: NDArray
    ) -> tuple[NDArray, NDArray]:
        """Mean ``[h, u]`` and variances ``[u]`` of hidden nodes, as those of a dense one."""
        part = self.restricted(seen)
        Z = part._solve(errors)
        unit, labels = self._unit, self.labels
        k, u, B = len(self.d), labels[hidden], self.B[hidden]
        between = self.N - np.diag(self.d)
        sums = np.asarray((self._sum[:, seen] @ Z.T).T)
        mean = ((sums * unit) @ between * unit)[:, u] + (Z @ part.B) @ B.T
        # Sigma_uo V^+ Sigma_oo^-1 V Sigma_ou with V = [U_o, B_o]: only products of V are needed.
        present = np.flatnonzero(np.bincount(labels[seen], minlength=k))
        root = np.zeros((k, len(part.d)))
        root[present, np.arange(len(present))] = np.sqrt(part.sizes / self.sizes[present])
        ways = np.hstack([root.T, part._means(part.B.T).T])
        M = ways.T @ cho_solve(part._N_root, ways)
        M[k:, k:] += part._deviation_products()
        M -= M[:, k:] @ cho_solve(part._K_root, M[k:])
        across = between @ M[:k, :k] @ between
        lost = np.diagonal(across)[u] * unit[u] ** 2
        lost = lost + 2 * (B * (M[k:, :k] @ between).T[u]).sum(1) * unit[u]
        lost = lost + ((B @ M[k:, k:]) * B).sum(1)
        own = self.diagonal()[hidden]
        return mean, np.maximum(own - lost, 1e-15 * own)

    def sample(self, rows: int, rng: np.random.Generator) -> NDArray:
        """Random rows, ``[rows, n]``."""
        z = rng.standard_normal((rows, len(self.labels)))
        z -= (self._means(z) * self._unit)[:, self.labels]
        z *= np.sqrt(self.d)[self.labels]
        means = rng.standard_normal((rows, len(self.d))) @ cholesky(self.N, lower=True).T
        z += (means * self._unit)[:, self.labels]
        return np.asarray(z + rng.standard_normal((rows, self.B.shape[1])) @ self.B.T)

    def _means(self, rows: NDArray) -> NDArray:
        """Means of clusters times the root of their size, ``[h, k]``."""
        return np.asarray((self._sum @ rows.T).T * self._unit)

    def _solve_within(self, rows: NDArray) -> NDArray:
        """Rows times the inverse of the part without B."""
        means = self._means(rows)
        out = (rows - (means * self._unit)[:, self.labels]) / self.d[self.labels]
        return np.asarray(out + (cho_solve(self._N_root, means.T).T * self._unit)[:, self.labels])

    def _solve(self, rows: NDArray) -> NDArray:
        """Rows times the inverse of the covariance."""
        out = self._solve_within(rows)
        inner = cho_solve(self._K_root, self.B.T @ out.T)
        return out - self._solve_within(inner.T @ self.B.T)

    def _deviation_products(self) -> NDArray:
        """``B^T D^-1 B`` on the deviations within clusters, ``[t, t]``."""
        within = self.B - (self._means(self.B.T) * self._unit).T[self.labels]
        within /= np.sqrt(self.d)[self.labels][:, None]
        return np.asarray(within.T @ within)

    @cached_property
    def _N_root(self) -> tuple[NDArray, bool]:  # noqa: N802
        return cho_factor(self.N, lower=True)  # type: ignore[no-any-return]

    @cached_property
    def _K_root(self) -> tuple[NDArray, bool]:  # noqa: N802
        means = self._means(self.B.T)
        K = self._deviation_products() + means @ cho_solve(self._N_root, means.T)
        K[np.diag_indices(len(K))] += 1
        return cho_factor(K, lower=True)  # type: ignore[no-any-return]
