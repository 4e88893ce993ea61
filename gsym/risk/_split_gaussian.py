"""A Gaussian along clusters, of which nothing is nodes by nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, cholesky
from scipy.sparse import csr_array

from gsym.risk.left_out import how_many

# Numbers in one block of nodes.
BLOCK = 2**22


@dataclass(frozen=True)
class Factor:
    """Signals less their mean times a scale, as a matrix ``[n, t]`` made where it is read.

    Of many nodes it would be a copy of all signals.

    Attributes:
        x: Signals ``[t, m]``.
        mean: Their mean, ``[m]``.
        scale: The scale.
        nodes: Which of the m nodes are rows, ``[n]``; all if ``None``.
    """

    x: NDArray
    mean: NDArray
    scale: float
    nodes: NDArray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of nodes and of signals."""
        return (self.x.shape[1] if self.nodes is None else len(self.nodes)), len(self.x)

    def __getitem__(self, rows: slice | NDArray) -> NDArray:
        """Some rows, as an array of their own."""
        nodes = rows if self.nodes is None else self.nodes[rows]
        part = self.x[:, nodes] - self.mean[nodes]
        part *= self.scale
        return part.T

    def restricted(self, kept: NDArray) -> Factor:
        """The same of some rows."""
        return replace(self, nodes=kept if self.nodes is None else self.nodes[kept])

    def scaled(self, root: float) -> Factor:
        """The same times a number."""
        return replace(self, scale=root * self.scale)


class SplitGaussian:
    """A Gaussian of covariance ``D + U (N - D) U^T + B B^T``, as :class:`DenseGaussian`.

    Args:
        labels: Cluster of every node, ``[n]``.
        d: Variance of deviations within each cluster, ``[k]``.
        N: Covariance of means times the root of the size, ``[k, k]``.
        B: Factor of the rest, ``[n, t]``; read block by block.

    Cost:
        ``O(n t^2 + k^3 + t^3)`` for a density or a conditional.
    """

    def __init__(self, labels: NDArray, d: NDArray, N: NDArray, B: Factor) -> None:
        self.labels, self.d, self.N, self.B = labels, d, N, B
        self.sizes = np.bincount(labels, minlength=len(d)).astype(np.float64)
        self._unit = 1 / np.sqrt(self.sizes)

    def restricted(self, kept: NDArray) -> SplitGaussian:
        """The marginal of the nodes numbered ``kept``: a Gaussian of the same form."""
        count = np.bincount(self.labels[kept], minlength=len(self.d))
        present = np.flatnonzero(count)
        share = (count / self.sizes)[present]
        root = np.sqrt(share)
        N = root[:, None] * self.N[np.ix_(present, present)] * root
        N += np.diag(self.d[present] * (1 - share))
        renumbered = np.cumsum(count > 0) - 1
        labels = renumbered[self.labels[kept]]
        return SplitGaussian(labels, self.d[present], N, self.B.restricted(kept))

    def scaled(self, factor: float) -> SplitGaussian:
        """The same with its covariance times a factor."""
        B = self.B.scaled(math.sqrt(factor))
        return SplitGaussian(self.labels, factor * self.d, factor * self.N, B)

    def dense(self) -> NDArray:
        """The covariance, ``[n, n]``."""
        both = (self.N - np.diag(self.d)) * self._unit[:, None] * self._unit
        B = self.B[:]
        Sigma = both[np.ix_(self.labels, self.labels)] + B @ B.T
        Sigma[np.diag_indices(len(Sigma))] += self.d[self.labels]
        return Sigma

    def diagonal(self) -> NDArray:
        """Variances, ``[n]``."""
        own = self.d + (np.diagonal(self.N) - self.d) / self.sizes
        rest = [(B**2).sum(1) for _, B in self._blocks()]
        return np.asarray(own[self.labels] + np.concatenate(rest))

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
        part, rest = self.restricted(seen), self.restricted(hidden)
        Z = part._solve(errors)
        unit, u = self._unit, self.labels[hidden]
        k = len(self.d)
        between = self.N - np.diag(self.d)
        sums = np.zeros((len(Z), k))
        present = np.flatnonzero(np.bincount(self.labels[seen], minlength=k))
        sums[:, present] = part._sums(Z)
        mean = ((sums * unit) @ between * unit)[:, u] + rest._spread(part._gathered(Z))
        # Sigma_uo V^+ Sigma_oo^-1 V Sigma_ou with V = [U_o, B_o]: only products of V are needed.
        root = np.zeros((k, len(part.d)))
        root[present, np.arange(len(present))] = np.sqrt(part.sizes / self.sizes[present])
        ways = np.hstack([root.T, part._B_means.T])
        M = ways.T @ cho_solve(part._N_root, ways)
        M[k:, k:] += part._deviation_products
        M -= M[:, k:] @ cho_solve(part._K_root, M[k:])
        across, mixed = between @ M[:k, :k] @ between, (M[k:, :k] @ between).T
        own = self.d + (np.diagonal(self.N) - self.d) / self.sizes
        variance, lost = own[u], np.diagonal(across)[u] * unit[u] ** 2
        for nodes, B in rest._blocks():
            cluster = u[nodes]
            variance[nodes] += (B**2).sum(1)
            lost[nodes] += 2 * (B * mixed[cluster]).sum(1) * unit[cluster]
            lost[nodes] += ((B @ M[k:, k:]) * B).sum(1)
        return mean, np.maximum(variance - lost, 1e-15 * variance)

    def sample(self, rows: int, rng: np.random.Generator) -> NDArray:
        """Random rows, ``[rows, n]``."""
        z = rng.standard_normal((rows, len(self.labels)))
        z -= (self._means(z) * self._unit)[:, self.labels]
        z *= np.sqrt(self.d)[self.labels]
        means = rng.standard_normal((rows, len(self.d))) @ cholesky(self.N, lower=True).T
        z += (means * self._unit)[:, self.labels]
        return np.asarray(z + self._spread(rng.standard_normal((rows, self.B.shape[1]))))

    def _blocks(self) -> Iterator[tuple[slice, NDArray]]:
        """The factor, block by block of nodes."""
        n, t = self.B.shape
        width = how_many(BLOCK, t)
        for start in range(0, n, width):
            nodes = slice(start, min(start + width, n))
            yield nodes, self.B[nodes]

    def _gathered(self, rows: NDArray) -> NDArray:
        """Rows times the factor, ``[h, t]``."""
        out = np.zeros((len(rows), self.B.shape[1]))
        for nodes, B in self._blocks():
            out += rows[:, nodes] @ B
        return out

    def _spread(self, inner: NDArray) -> NDArray:
        """Rows ``[h, t]`` times the factor turned over, ``[h, n]``."""
        out = np.zeros((len(inner), len(self.labels)))
        for nodes, B in self._blocks():
            out[:, nodes] = inner @ B.T
        return out

    def _sums(self, rows: NDArray, nodes: slice = slice(None)) -> NDArray:
        """Sums over clusters of rows of some nodes, ``[h, k]``."""
        labels = self.labels[nodes]
        ones = np.ones(len(labels)), (labels, np.arange(len(labels)))
        return np.asarray((csr_array(ones, shape=(len(self.d), len(labels))) @ rows.T).T)

    def _means(self, rows: NDArray) -> NDArray:
        """Means of clusters times the root of their size, ``[h, k]``."""
        return self._sums(rows) * self._unit

    def _solve_within(self, rows: NDArray) -> NDArray:
        """Rows times the inverse of the part without B."""
        means = self._means(rows)
        out = (rows - (means * self._unit)[:, self.labels]) / self.d[self.labels]
        return np.asarray(out + (cho_solve(self._N_root, means.T).T * self._unit)[:, self.labels])

    def _solve(self, rows: NDArray) -> NDArray:
        """Rows times the inverse of the covariance."""
        out = self._solve_within(rows)
        inner = cho_solve(self._K_root, self._gathered(out).T)
        return out - self._solve_within(self._spread(inner.T))

    @cached_property
    def _B_means(self) -> NDArray:  # noqa: N802
        """Means of clusters of the factor, ``[t, k]``."""
        out = np.zeros((self.B.shape[1], len(self.d)))
        for nodes, B in self._blocks():
            out += self._sums(B.T, nodes)
        return out * self._unit

    @cached_property
    def _deviation_products(self) -> NDArray:
        """``B^T D^-1 B`` on the deviations within clusters, ``[t, t]``."""
        t = self.B.shape[1]
        out, means = np.zeros((t, t)), (self._B_means * self._unit).T
        for nodes, B in self._blocks():
            labels = self.labels[nodes]
            within = (B - means[labels]) / np.sqrt(self.d)[labels][:, None]
            out += within.T @ within
        return out

    @cached_property
    def _N_root(self) -> tuple[NDArray, bool]:  # noqa: N802
        root: tuple[NDArray, bool] = cho_factor(self.N, lower=True)
        return root

    @cached_property
    def _K_root(self) -> tuple[NDArray, bool]:  # noqa: N802
        means = self._B_means
        K = self._deviation_products + means @ cho_solve(self._N_root, means.T)
        K[np.diag_indices(len(K))] += 1
        root: tuple[NDArray, bool] = cho_factor(K, lower=True)
        return root
