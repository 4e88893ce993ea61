"""Multilevel matching: merge neighbours in pairs, level by level, by what a merge costs.

Two costs: local variation (Loukas, arXiv 1808.10650), which keeps the low end of the spectrum, and
the normalised cut of Graclus (Dhillon, Guan, Kulis, PAMI 2007), which keeps heavy edges.

Conventions differ between that paper, its code and others, so they are named here. A level merges
nodes i of mass ``m_i`` (how many original nodes they stand for) into clusters r of mass ``M_r``.
The **averaging** P has entries ``m_i / M_r``; composed over levels that is ``1 / n_r`` on original
nodes, the plain mean (a level-wise ``1 / |r|`` would weigh nodes unequally). Coarse weights are
sums, so the coarse Laplacian is ``P^+T L P^+`` with the indicator ``P^+``. With the **restriction**
C of entries ``1 / sqrt(n_r)`` the same graph has ``C L C^T``, whose eigenvalues compare with those
of L. The projection ``P^+ P = C^T C`` is the same for both.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array, triu

from gsym.coarsening._graph import by_component, energy_basis, laplacian_of
from gsym.coarsening._request import Method, Request
from gsym.coarsening.hierarchy import Hierarchy

# Eigenvectors whose span a coarsening by local variation should keep.
_EIGENVECTORS = 10
# Weights below 2^this add up to finite numbers.
_HEADROOM = 960


class Matching:
    """The current graph of a multilevel matching, and the merges that led to it.

    Attributes:
        A: Symmetric adjacency of the current nodes, weights summed, without loops.
        mass: How many original nodes each stands for.
        merges: Pairs merged so far, in SciPy's numbering.
    """

    def __init__(self, A: csr_array) -> None:
        self.A = A
        self.mass = np.ones(A.shape[0])
        self.merges: list[np.ndarray] = []
        self._names = np.arange(A.shape[0])
        self._made = A.shape[0]

    def edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every edge once: two ends and weight."""
        upper = triu(self.A, format="coo")
        return upper.row, upper.col, upper.data

    def match(self, cost: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A maximal matching, cheapest of the edges first, equal costs in random order."""
        left, right, _ = self.edges()
        order = rng.permutation(cost.size)
        order = order[np.argsort(cost[order], kind="stable")]
        free, chosen = [True] * self.A.shape[0], []
        ends = zip(order.tolist(), left[order].tolist(), right[order].tolist(), strict=True)
        for edge, i, j in ends:
            if free[i] and free[j]:
                free[i] = free[j] = False
                chosen.append(edge)
        return np.array(chosen)

    def merge(self, left: np.ndarray, right: np.ndarray) -> csr_array:
        """Merge disjoint pairs of nodes; returns the averaging P of this level."""
        n, m = self.A.shape[0], left.size
        kept = np.ones(n, dtype=bool)
        kept[right] = False
        labels = np.cumsum(kept) - 1
        labels[right] = labels[left]
        self.merges.append(np.column_stack([self._names[left], self._names[right]]))
        self._names[left] = self._made + np.arange(m)
        self._names, self._made = self._names[kept], self._made + m

        mass = np.bincount(labels, self.mass)
        averages = (self.mass / mass[labels], (labels, np.arange(n)))
        coo = self.A.tocoo()
        row, column = labels[coo.row], labels[coo.col]
        between = row != column
        self.mass = mass
        self.A = coo_array(
            (coo.data[between], (row[between], column[between])), shape=(n - m, n - m)
        ).tocsr()
        return coo_array(averages, shape=(n - m, n)).tocsr()


def local_variation_merges(A: csr_array, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Merges of a connected graph by local variation, pairs of neighbours as candidates.

    What should survive is the span of the first 10 eigenvectors ``U`` of ``L = D - A`` after the
    constant. With ``B = P U Lambda^(-1/2)``, every level has rows ``X = B (B^T L_l B)^(+1/2)``,
    and merging two nodes costs the local variation of theirs. A level
    merges away a quarter of its nodes at most, cheapest pairs first, no node twice.

    Args:
        A: Symmetric adjacency of a connected graph, float64 ``[n, n]``.
        seed: Seed of the order among equal costs.

    Returns:
        Merges ``[n - 1, 2]`` as in a SciPy linkage, and heights: the costs summed so far.

    Cost:
        One sparse factorisation, then ``O((e + n K) K)`` in all for K eigenvectors.

    Reference:
        Loukas, arXiv 1808.10650, section 4, the edge family; node masses are ours.
    """
    B = energy_basis(A, _EIGENVECTORS)
    rng = np.random.default_rng(seed)
    levels, costs = Matching(A), []
    while (nodes := levels.A.shape[0]) > 1:
        left, right, _ = edges = levels.edges()
        cost = pair_variation(levels.A, levels.mass, _orthonormal(levels.A, B), *edges)
        chosen = levels.match(cost, rng)[: max(1, nodes // 4)]
        B = levels.merge(left[chosen], right[chosen]) @ B
        costs.append(cost[chosen])
    return np.concatenate(levels.merges), np.cumsum(np.concatenate(costs))


def normalised_cut_merges(A: csr_array, *, seed: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Merges by heavy edges: each level is a maximal matching by ``w (1 / d_i + 1 / d_j)``.

    Components that no edge joins are merged last, at infinite height.

    Args:
        A: Symmetric adjacency, float64 ``[n, n]``.
        seed: Seed of the order among equal edges.

    Returns:
        Merges ``[n - 1, 2]`` as in a SciPy linkage, heights (the number of the level, from 1) and
        the number of nodes of each level.

    Cost:
        ``O(e log e)``.

    Reference:
        Dhillon, Guan, Kulis, PAMI 2007, the coarsening phase of Graclus. PyG's ``graclus``
        visits nodes in random order; here the heaviest edge comes first.
    """
    rng = np.random.default_rng(seed)
    levels, heights = Matching(_with_headroom(A)), []
    counts = [A.shape[0]]
    while levels.A.nnz:
        left, right, weight = levels.edges()
        degree = np.asarray(levels.A.sum(axis=1)).reshape(-1)
        # Quotients lie below 1, where the inverse of a degree need not be a number.
        chosen = levels.match(-(weight / degree[left] + weight / degree[right]), rng)
        levels.merge(left[chosen], right[chosen])
        heights.append(np.full(chosen.size, float(len(counts))))
        counts.append(levels.A.shape[0])
    while (nodes := levels.A.shape[0]) > 1:
        half = nodes // 2
        levels.merge(np.arange(half), half + np.arange(half))
        heights.append(np.full(half, np.inf))
    return np.concatenate(levels.merges), np.concatenate(heights), counts


def _with_headroom(A: csr_array) -> csr_array:
    """The matrix over a power of two such that sums of its entries are finite."""
    _, exponent = np.frexp(A.data.max(initial=0.0))
    if exponent <= _HEADROOM:
        return A
    weight = np.maximum(np.ldexp(A.data, _HEADROOM - exponent), np.nextafter(0, 1))
    return csr_array((weight, A.indices, A.indptr), shape=A.shape)


def pair_variation(
    A: csr_array,
    mass: np.ndarray,
    X: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    weight: np.ndarray,
) -> np.ndarray:
    """Local variation of merging the ends of each edge, ``[m]``, for a set of two.

    A merge moves the rows of ``X`` apart by ``x = d m_j / M`` and ``-d m_i / M`` with
    ``d = x_i - x_j``. In the local Laplacian, which counts edges that leave the pair twice, that
    is ``|d|^2 (w + 2 (d_i - w) (m_j / M)^2 + 2 (d_j - w) (m_i / M)^2)``.

    Args:
        A: Symmetric adjacency ``[n, n]``.
        mass: Masses ``[n]``.
        X: Rows ``[n, K]``.
        left: One end of each edge, ``[m]``.
        right: The other end.
        weight: Weights ``[m]``.
    """
    degree = np.asarray(A.sum(axis=1)).reshape(-1)
    distance = ((X[left] - X[right]) ** 2).sum(axis=1)
    share = mass[left] / (mass[left] + mass[right])
    leaving_left = 2 * (degree[left] - weight) * (1 - share) ** 2
    leaving_right = 2 * (degree[right] - weight) * share**2
    return distance * (weight + leaving_left + leaving_right)


def _orthonormal(A: csr_array, B: np.ndarray) -> np.ndarray:
    """``B (B^T L B)^(+1/2)``: the span of B with unit energy in every direction."""
    energy = B.T @ (laplacian_of(A) @ B)
    values, vectors = np.linalg.eigh((energy + energy.T) / 2)
    kept = values > 1e-10 * values.max(initial=0)
    return B @ (vectors[:, kept] / np.sqrt(values[kept]))


def _local_variation(request: Request) -> Hierarchy:
    return request.tree(
        by_component(request.graph, lambda A, _: local_variation_merges(A, seed=request.seed))
    )


def _graclus(request: Request) -> Hierarchy:
    merges, heights, levels = normalised_cut_merges(request.similarities, seed=request.seed)
    h = Hierarchy.from_merges(request.num_nodes, merges, heights, levels=levels)
    return request.chain(h)


METHODS = {
    "local_variation": Method(
        _local_variation, "matching by local variation, Loukas", "nested", needs=("edge_index",)
    ),
    "graclus": Method(
        _graclus, "matching by normalised cut, Dhillon et al.", "nested", needs=("edge_index",)
    ),
}
