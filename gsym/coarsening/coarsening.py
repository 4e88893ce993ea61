"""A coarsening: one partition of a graph, its coarse graph, and what it costs.

Three maps go with a partition into clusters of sizes ``n_1..n_k``; the names matter, because the
literature mixes them up:

- the **indicator** ``[n, k]`` repeats a value of a cluster at its nodes (the blow-up);
- the **averaging** ``P = [k, n]`` with entries ``1 / n_i`` takes the mean over a cluster; the
  quotient graph is ``P A P^T``, and the indicator is its pseudo-inverse;
- the **restriction** ``C = [k, n]`` with entries ``1 / sqrt(n_i)`` has orthonormal rows, so that
  ``C L C^T`` is the Laplacian whose eigenvalues can be compared with those of ``L``.

Both give the same projection ``C^T C = P^+ P``: the mean over every cluster, at every node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gsym._graphs import Graph, as_graph
from gsym.coarsening._graph import (
    laplacian,
    relative_adjacency,
    restriction,
    smallest_eigenpairs,
)
from gsym.errors import ClusteringError
from gsym.groups import Partition, PermutationGroup, automorphisms

# Blow-ups with more entries than this are refused rather than built.
_MAX_BLOW_UP_ENTRIES = 2**28
# Coarse graphs with more nodes than this are not searched for symmetries.
_MAX_SWAPPED = 512


@dataclass(frozen=True, eq=False, repr=False)
class Coarsening:
    """One partition of the nodes of a graph, its coarse graph, and what the coarsening costs.

    Attributes:
        partition: The clusters.
        edge_index: The fine graph, int64 ``[2, e]``; ``None`` where there was none. It is made
            from what :func:`gsym.as_graph` reads.
        edge_weight: Its weights ``[e]``; 1 where ``None``.

    Raises:
        GraphError: The graph names a node that the partition does not have.

    Example:
        >>> square = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0], [1, 0, 2, 1, 3, 2, 0, 3]])
        >>> c = Coarsening(Partition.from_labels([0, 0, 1, 1]), square)
        >>> c
        Coarsening(4 nodes in 2 clusters of 2, cost 0.707)
        >>> c.quotient[1].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """

    partition: Partition
    edge_index: Tensor | None = None
    edge_weight: Tensor | None = None

    def __post_init__(self) -> None:
        if self.edge_index is not None:
            graph = as_graph(self.edge_index, self.partition.num_nodes, self.edge_weight)
            object.__setattr__(self, "edge_index", graph.edge_index)
            object.__setattr__(self, "edge_weight", graph.edge_weight)

    @cached_property
    def quotient(self) -> tuple[Tensor, Tensor]:
        """The coarse graph ``P A P^T``: ``edge_index`` ``[2, q]`` and mean weights ``[q]``.

        Self-loops hold the mean over a cluster's own block; see :meth:`gsym.Partition.quotient`.
        """
        return self.partition.quotient(self._graph())

    def blow_up(self) -> tuple[Tensor, Tensor]:
        """The coarse graph carried back to the nodes: every pair has the mean of its block.

        Returns:
            ``edge_index`` ``[2, b]`` and weights ``[b]``, where b sums ``c_i c_j`` over the coarse
            edges; pairs of a node with itself are included, as in the mean.

        Raises:
            ClusteringError: More than ``2**28`` entries; :attr:`cost` needs none of them.
        """
        (rows, columns), weight = self.quotient
        sizes = torch.tensor(self.partition.sizes)
        area = sizes[rows] * sizes[columns]
        total = int(area.sum())
        if total > _MAX_BLOW_UP_ENTRIES:
            raise ClusteringError(
                f"the blow-up has {total} entries, more than {_MAX_BLOW_UP_ENTRIES}; use the "
                "quotient graph and the partition, or cost, which need no blow-up"
            )
        start = torch.cumsum(sizes, 0) - sizes
        block = torch.repeat_interleave(torch.arange(rows.numel()), area)
        within = torch.arange(total) - (torch.cumsum(area, 0) - area)[block]
        width = sizes[columns][block]
        order = self.partition.order
        source = order[start[rows][block] + within // width]
        target = order[start[columns][block] + within % width]
        return torch.stack([source, target]), weight[block]

    @cached_property
    def cost(self) -> float:
        """Relative distance ``||A - B||_F / ||A||_F`` between the graph and its blow-up ``B``.

        0 when every block is constant, below 1 otherwise; 0 for a graph without edges. The
        diagonal counts: the clusters of a complete graph cost something although its nodes are
        all alike, because no node is its own neighbour.

        Cost:
            ``O(e log e)`` in float64; no ``n x n`` matrix: a block of ``area`` entries with mean
            ``m`` adds ``sum (a - m)^2`` over its edges and ``m^2`` for every other pair.
        """
        A = relative_adjacency(self._graph())
        norm = float(np.linalg.norm(A.data))
        if norm == 0:
            return 0.0
        k = self.partition.num_clusters
        labels = self.partition.labels.numpy()
        sizes = np.bincount(labels).astype(np.float64)
        blocks, inverse, count = np.unique(
            labels[A.row] * k + labels[A.col], return_inverse=True, return_counts=True
        )
        area = sizes[blocks // k] * sizes[blocks % k]
        mean = np.bincount(inverse, A.data) / area
        scatter = ((A.data - mean[inverse]) ** 2).sum() + (mean**2 * (area - count)).sum()
        return math.sqrt(scatter) / norm

    def eigenvalue_shift(self, k: int) -> Tensor:
        """How far each of the first ``k`` Laplacian eigenvalues moves up, float64 ``[k]``.

        The difference between the i-th smallest eigenvalues of ``C L C^T`` and of ``L``, with
        ``L = D - A`` of the symmetrised graph and the restriction ``C`` of entries
        ``1 / sqrt(n_i)``. ``C`` has orthonormal rows, so no eigenvalue moves down (Cauchy). Units
        are those of the edge weights.

        Args:
            k: Number of eigenvalues, at most the number of clusters.

        Raises:
            ClusteringError: ``k`` out of range, or negative weights.

        Reference:
            Loukas, arXiv 1808.10650, section 3.1 (interlacing); his ``C`` is ours.
        """
        clusters = self.partition.num_clusters
        if not 1 <= k <= clusters:
            raise ClusteringError(f"k must lie in 1..{clusters}, the number of clusters; got {k}")
        L, unit = laplacian(self._graph())
        C = restriction(self.partition)
        fine, _ = smallest_eigenpairs(L, k)
        coarse, _ = smallest_eigenpairs((C @ L @ C.T).tocsr(), k)
        return torch.from_numpy((coarse - fine) * unit)

    def restricted_approximation(self, k: int) -> float:
        """Restricted spectral approximation error of the first ``k`` eigenvectors.

        The smallest ``epsilon`` with ``|x - C^T C x|_L <= epsilon |x|_L`` for every x in the span
        of the first ``k`` eigenvectors of L that are not constant on components, where
        ``|x|_L^2 = x^T L x``. ``C^T C`` is the mean over clusters (also ``P^+ P``).

        Args:
            k: Dimension of the span, at most n minus the number of connected components.

        Raises:
            ClusteringError: ``k`` out of range, or negative weights.

        Cost:
            One sparse factorisation and ``O(e k + n k^2)``.

        Reference:
            Loukas, arXiv 1808.10650, definition 11 (restricted spectral approximation).
        """
        L, _ = laplacian(self._graph())
        constant, _ = connected_components(L, directed=False)
        most = L.shape[0] - constant
        if not 1 <= k <= most:
            raise ClusteringError(
                f"k must lie in 1..{most}, nodes minus connected components; got {k}"
            )
        values, vectors = smallest_eigenpairs(L, constant + k)
        basis = vectors[:, constant:] / np.sqrt(values[constant:])
        C = restriction(self.partition)
        blurred = basis - C.T @ (C @ basis)
        return math.sqrt(max(0.0, float(np.linalg.eigvalsh(blurred.T @ (L @ blurred))[-1])))

    def _graph(self) -> Graph:
        if self.edge_index is None:
            raise ClusteringError("this coarsening has no graph; build it with edge_index=")
        return Graph(self.edge_index, self.edge_weight, self.partition.num_nodes)

    def __repr__(self) -> str:
        what = repr(self.partition).removeprefix("Partition(").removesuffix(")")
        cost = "no graph" if self.edge_index is None else f"cost {self.cost:.3g}"
        return f"Coarsening({what}, {cost})"


def swap_group(coarsening: Coarsening) -> PermutationGroup | None:
    """Exchanges of whole clusters that are symmetries of the blow-up, as ``swaps`` of a group.

    The exact automorphisms of the coarse graph that keep cluster sizes, so that
    ``ClusterGroup(coarsening.partition, swaps=...)`` preserves the blow-up of the coarse graph
    (up to the tolerance on weights), as each ``S_c`` does already.

    Args:
        coarsening: Partition and graph. Mean weights of blocks that differ by less than ``1e-9``
            of the largest count as equal, because sums in another order round differently.

    Returns:
        The group on the clusters, or ``None`` where there is nothing to exchange: only the
        identity, no graph, more than 512 clusters, or a search that ran out of time.

    Example:
        >>> path = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
        >>> both = torch.cat([path, path.flip(0)], dim=1)
        >>> swaps = swap_group(Coarsening(Partition.from_labels([0, 0, 1, 1, 2, 2]), both))
        >>> swaps.order(), swaps.node_orbits().index.tolist()
        (2, [0, 1, 0])

    Reference:
        The factor ``A_G'`` of Huang, Levie, Villar, arXiv 2308.10436.
    """
    k = coarsening.partition.num_clusters
    if coarsening.edge_index is None or not 1 < k <= _MAX_SWAPPED:
        return None
    weight = coarsening.edge_weight
    exact = Coarsening(
        coarsening.partition, coarsening.edge_index, None if weight is None else weight.double()
    )
    coarse, mean = exact.quotient
    values, order = torch.sort(mean.double())
    kind = torch.zeros(values.numel(), dtype=torch.float64)
    tolerance = 1e-9 * float(values.abs().max()) if values.numel() else 0.0
    kind[order] = torch.cumsum(values.diff(prepend=values[:1]) > tolerance, 0).double()
    group = automorphisms(coarse, k, 1 + kind, torch.tensor(coarsening.partition.sizes))
    if not group.exact or group.order() == 1:
        return None
    return group
