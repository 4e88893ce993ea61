"""Maps across nodes, projected on the maps that a group or a chain of groups leaves free.

A map of the commutant is a number for every pair of clusters and one more on the diagonal of each
cluster of several nodes, both tied along the exchanges of clusters. So a map is known by its sums
over pairs of clusters and its traces over clusters, and nothing here is as large as its number of
entries, unless clusters are single nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from gsym.groups import PermutationGroup
from gsym.nn import OrbitLinear
from gsym.nn._cluster_map import ClusterMap, write

# A chain of nested levels needs one sweep, and another that finds nothing left.
_SWEEPS, _LEFT = 1000, 1e-14


@dataclass(frozen=True)
class Entries:
    """A map across nodes: ``value[e]`` from node ``column[e]`` to node ``row[e]``, each pair once.

    Attributes:
        row: int64 ``[e]``.
        column: int64 ``[e]``.
        value: float64 ``[e]``.
        num_nodes: Number of nodes n.
    """

    row: Tensor
    column: Tensor
    value: Tensor
    num_nodes: int

    @classmethod
    def of(cls, row: Tensor, column: Tensor, value: Tensor, num_nodes: int) -> Entries:
        """Entries of one pair are added up."""
        pair, place = torch.unique(row * num_nodes + column, return_inverse=True)
        total = torch.zeros(pair.numel(), dtype=torch.float64, device="cpu")
        total.index_add_(0, place, value.detach().to("cpu", torch.float64))
        return cls(pair // num_nodes, pair % num_nodes, total, num_nodes)

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> Entries:
        """All entries of a matrix ``[n, n]``."""
        n = matrix.size(0)
        node = torch.arange(n, device="cpu")
        value = matrix.detach().to("cpu", torch.float64).reshape(-1)
        return cls(node.repeat_interleave(n), node.repeat(n), value, n)

    def norm(self) -> float:
        """Its Frobenius norm."""
        return float(self.value.norm())


@dataclass(frozen=True)
class TiedMap:
    """``pair[c(i), c(j)]`` from node j to node i, and ``own[c(i)]`` more from i to itself.

    Clusters of one node have 0 of their own.
    """

    own: Tensor  # float64 [k]
    pair: Tensor  # float64 [k, k], to and from


class _Level:
    """One group of a chain, and sums of what is left of a map over its clusters."""

    def __init__(self, group: PermutationGroup, left: Entries) -> None:
        clusters = group.as_clusters()
        self.clusters, self.labels = clusters, clusters.partition.labels
        self.sizes = torch.tensor(clusters.partition.sizes, dtype=torch.float64, device="cpu")
        k = self.k = self.sizes.numel()
        self.large = self.sizes > 1
        to, source = self.labels[left.row], self.labels[left.column]
        self.block = torch.bincount(to * k + source, left.value, k * k).view(k, k)
        loop = left.row == left.column
        self.trace = torch.bincount(to[loop], left.value[loop], k)
        self.map = TiedMap(torch.zeros_like(self.trace), torch.zeros_like(self.block))

    def project(self) -> TiedMap:
        """The map of the commutant that is nearest to what is left."""
        aside = self.trace * self.large
        block = self.block - torch.diag(aside)
        area = torch.outer(self.sizes, self.sizes) - torch.diag(self.sizes * self.large)
        trace, sizes = self.trace, self.sizes
        if self.clusters.swaps is not None:
            pairs = self.clusters.cluster_pair_orbits().index
            nodes = self.clusters.cluster_orbits().index
            block, area = _over(pairs, block), _over(pairs, area)
            trace, sizes = _over(nodes, trace), _over(nodes, sizes)
        pair = block / area
        return TiedMap((trace / sizes - pair.diagonal()) * self.large, pair)

    def take(self, found: TiedMap, of: _Level) -> None:
        """What is left becomes less by a map of a level."""
        if of is self:
            self.map = TiedMap(self.map.own + found.own, self.map.pair + found.pair)
        # How many nodes every two clusters share: one entry a node, at most.
        one = np.ones(self.labels.numel())
        shape, place = (self.k, of.k), (self.labels.numpy(), of.labels.numpy())
        shared = csr_array((one, place), shape=shape)
        own = torch.from_numpy(shared @ found.own.numpy())
        block = torch.from_numpy(shared @ found.pair.numpy() @ shared.T)
        self.block = self.block - block - torch.diag(own)
        self.trace = self.trace - own - torch.from_numpy(shared @ found.pair.diagonal().numpy())


def project(groups: Sequence[PermutationGroup], entries: Entries) -> tuple[list[TiedMap], float]:
    """Tied maps, one per group, whose sum is nearest to a map, and the norm of what is lost.

    Coarse levels take what they can and leave the rest to finer ones. For nested levels the parts
    are orthogonal.

    Cost:
        ``O(e + k^3)`` for e entries and the k clusters of the finest level.
    """
    levels = [_Level(group, entries) for group in groups]
    by_size = sorted(levels, key=lambda level: level.clusters.commutant_dim())
    largest = float(entries.value.abs().max()) if entries.value.numel() else 0.0
    for _ in range(_SWEEPS if len(levels) > 1 else 1):
        most = 0.0
        for level in by_size:
            found = level.project()
            for other in levels:
                other.take(found, level)
            most = max(most, float(found.pair.abs().max()), float(found.own.abs().max()))
        if most <= _LEFT * largest:
            break
    return [level.map for level in levels], _lost(levels, entries)


def _lost(levels: Sequence[_Level], entries: Entries) -> float:
    """Norm of the difference between entries and the sum of maps, without cancelling squares."""
    fine = levels[0].clusters.partition
    for level in levels[1:]:
        fine = fine.meet(level.clusters.partition)
    keys = fine.labels
    sizes = torch.bincount(keys)
    k = sizes.numel()
    first = torch.empty(k, dtype=torch.int64, device="cpu")
    first[keys] = torch.arange(keys.numel(), device="cpu")
    pair = torch.zeros(k, k, dtype=torch.float64, device="cpu")
    own = torch.zeros(k, dtype=torch.float64, device="cpu")
    for level in levels:
        part = level.labels[first]
        pair += level.map.pair[part][:, part]
        own += level.map.own[part]
    loop = entries.row == entries.column
    to, source = keys[entries.row], keys[entries.column]
    value = pair[to, source] + own[to] * loop
    # Pairs of nodes without an entry, counted by the clusters that they are of.
    apart = torch.bincount((to * k + source)[~loop], minlength=k * k).view(k, k)
    rest = torch.outer(sizes, sizes) - torch.diag(sizes) - apart
    alone = sizes - torch.bincount(to[loop], minlength=k)
    square = (entries.value - value).square().sum() + (rest * pair.square()).sum()
    return float((square + (alone * (pair.diagonal() + own).square()).sum()).sqrt())


def _over(index: Tensor, values: Tensor) -> Tensor:
    """Sums over orbits, spread over them again."""
    flat = index.reshape(-1)
    return torch.bincount(flat, values.reshape(-1))[flat].view(values.shape)


def write_map(layer: OrbitLinear, tied: TiedMap) -> None:
    """Set the weights of an ``OrbitLinear(1, 1, group)`` so that it is this map."""
    assert layer.group is not None
    partition = layer.group.as_clusters().partition
    # The layer multiplies means, the map sums.
    mixed = tied.pair * torch.tensor(partition.sizes, device="cpu")
    own, bias = tied.own[:, None, None], torch.zeros_like(tied.own)[:, None]
    write(layer, ClusterMap(partition, own, mixed.T[:, None, :, None], bias))
