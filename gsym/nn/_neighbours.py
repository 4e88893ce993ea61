"""A graph with self-loops, and weights of its edges that sum to 1 at every node."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from gsym import kernels
from gsym._validate import check_edge_index, check_edge_weight
from gsym.errors import GraphError
from gsym.groups import PermutationGroup
from gsym.kernels.transforms import undisturbed
from gsym.nn._batch import count_blocks
from gsym.nn._mixing import check_mixing_memory
from gsym.nn._modules import Tables
from gsym.nn._tied import as_clusters

# By how much an edge of weight 0 may lie above the others before its exponential, which is
# multiplied by 0, is cut: below it float32 does not overflow.
_LARGEST_EXPONENT = 80.0


@dataclass(frozen=True)
class PairTable(Tables):
    """Pair orbit of given node pairs, without a table over all of them."""

    labels: Tensor  # cluster of every node
    pairs: Tensor | None  # orbit of every pair of clusters, where some are exchanged
    own: Tensor  # orbit of the pairs of a node with itself, by cluster; -1 where W covers it
    any_size: bool
    num_orbits: int

    @classmethod
    def build(cls, group: PermutationGroup | None) -> PairTable:
        """The table of a group, on the CPU."""
        clusters = as_clusters(group)
        k, pairs = clusters.partition.num_clusters, None
        num_pairs = k**2
        if clusters.swaps is not None:
            check_mixing_memory(k**2, 1, 1, clusters)
            orbits = clusters.cluster_pair_orbits()
            pairs, num_pairs = orbits.index, orbits.num_orbits
        orbit = clusters.cluster_orbits().index
        large = torch.tensor(clusters.partition.sizes) > 1
        if group is None:
            large = torch.ones_like(large)
        own = torch.full_like(orbit, -1)
        used, inverse = torch.unique(orbit[large], return_inverse=True)
        own[large] = num_pairs + inverse
        any_size = group is None
        return cls(clusters.partition.labels, pairs, own, any_size, num_pairs + used.numel())

    def orbits(self, first: Tensor, second: Tensor) -> Tensor:
        """Orbit of each pair: clusters first, then the diagonals of the larger ones."""
        if self.any_size:
            return (first == second).long()
        a, b = self.labels.index_select(0, first), self.labels.index_select(0, second)
        k = self.own.size(0)
        orbit = a * k + b
        if self.pairs is not None:
            orbit = self.pairs.view(-1).index_select(0, orbit)
        own = self.own.index_select(0, a)
        return torch.where((first == second) & (own >= 0), own, orbit)


@dataclass
class NeighbourGraph:
    """What a layer derives from one graph: its edges, self-loops included, sorted by target."""

    num_edges: int
    order: Tensor | None  # [f] position of every edge among the given ones and n loops; as they are
    has_loop: Tensor  # [n]
    source: kernels.Segments
    target: kernels.Segments
    tie: kernels.Segments  # pair orbit of every edge
    tiles: kernels.Tiles | None  # for products with one matrix per pair orbit
    num_blocks: int = 1  # which several stacked graphs are seen from, where that matters
    _mean: dict[torch.dtype, Tensor] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        edge_index: Tensor,
        num_nodes: int,
        ties: PairTable | None,
        widths: tuple[int, int] | None,
        *,
        counts_blocks: bool,
    ) -> Self:
        """Prepare a graph.

        Args:
            edge_index: The graph.
            num_nodes: Its number of nodes.
            ties: Pair orbits of a group; ``None`` where all edges are alike.
            widths: Channels before and behind products with one matrix per pair orbit, if any.
            counts_blocks: Whether to look for several stacked graphs.
        """
        source, target = check_edge_index(edge_index, num_nodes)
        num_blocks = count_blocks(source, target, num_nodes) if counts_blocks else 1
        has_loop = torch.zeros(num_nodes, dtype=torch.bool, device=edge_index.device)
        has_loop[source[source == target]] = True
        nodes = torch.arange(num_nodes, device=edge_index.device)
        missing = nodes[~has_loop]
        source, target = torch.cat([source, missing]), torch.cat([target, missing])
        num_edges = edge_index.size(1)
        kept = torch.cat([torch.arange(num_edges, device=edge_index.device), num_edges + missing])
        order = torch.argsort(target, stable=True)
        source, target = source[order], target[order]
        tie = torch.zeros_like(source) if ties is None else ties.orbits(target, source)
        tied = kernels.Segments(tie, 1 if ties is None else ties.num_orbits)
        return cls(
            num_edges=num_edges,
            order=kept[order],
            has_loop=has_loop,
            source=kernels.Segments(source, num_nodes),
            target=kernels.Segments(target, num_nodes),
            tie=tied,
            tiles=None if widths is None else kernels.Tiles(tied, *widths),
            num_blocks=num_blocks,
        )

    @classmethod
    def trace(
        cls, edge_index: Tensor, num_nodes: int, ties: PairTable | None, *, has_tiles: bool
    ) -> Self:
        """The graph as an input of compiled code: no value is read, and every node gets a loop.

        The weight of a loop that is there already is 0, which ``has_loop`` tells.
        """
        source, target = edge_index.unbind()
        nodes = torch.arange(num_nodes, device=edge_index.device)
        loops = torch.zeros_like(nodes).index_add(0, target, (source == target).long())
        source, target = torch.cat([source, nodes]), torch.cat([target, nodes])
        tie = torch.zeros_like(source) if ties is None else ties.orbits(target, source)
        tied = kernels.Segments.traced(tie, 1 if ties is None else ties.num_orbits)
        return cls(
            num_edges=edge_index.size(1),
            order=None,
            has_loop=loops > 0,
            source=kernels.Segments.traced(source, num_nodes),
            target=kernels.Segments.traced(target, num_nodes),
            tie=tied,
            tiles=kernels.Tiles.traced(tied) if has_tiles else None,
        )

    def weights(
        self,
        edge_weight: Tensor | None,
        edge_logit: Tensor | None,
        x: Tensor,
        batch_size: int | None,
    ) -> Tensor:
        """Weights ``[f, 1]`` or ``[b, f, 1]`` of the sorted edges; each neighbourhood sums to 1.

        In float32 at least. What is divided by the largest of a neighbourhood first cannot
        overflow, whatever the weights and however many there are.
        """
        target = self.target
        if edge_weight is None and edge_logit is None and not target.is_traced:
            return self._of_mean(torch.promote_types(x.dtype, torch.float32))
        given = self._given(edge_weight, x, batch_size)
        loops = (~self.has_loop).to(given.dtype).expand(*given.shape[:-1], -1)
        weight = torch.cat([given, loops], dim=-1)
        weight = (weight if self.order is None else weight.index_select(-1, self.order))[..., None]
        if edge_weight is not None:
            largest = kernels.segment_max(weight.detach().abs(), target)
            weight = weight / kernels.segment_gather(torch.where(largest == 0, 1, largest), target)
        if edge_logit is not None:
            logits = edge_logit.to(weight.dtype)
            logit = kernels.segment_gather(logits[:, None], self.tie)
            # An edge of weight 0 takes no part: it must not push the others down to 0 either.
            counted = logit.detach().masked_fill(weight.detach() == 0, -math.inf)
            highest = kernels.segment_max(counted, target).nan_to_num(neginf=0.0)
            above = logit - kernels.segment_gather(highest, target)
            weight = weight * above.clamp(max=_LARGEST_EXPONENT).exp()
        total = kernels.segment_sum(weight, target)
        total = torch.where(total == 0, 1, total)
        return weight / kernels.segment_gather(total, target)

    def _of_mean(self, dtype: torch.dtype) -> Tensor:
        """Weights ``[f, 1]`` of the mean over a node and its neighbours, made once per type."""
        weight = self._mean.get(dtype)
        if weight is not None:
            return weight
        if torch.compiler.is_compiling():
            return self._shares(dtype)
        with undisturbed():
            weight = self._mean[dtype] = self._shares(dtype)
        return weight

    def _shares(self, dtype: torch.dtype) -> Tensor:
        share = 1 / self.target.pointers.diff().to(dtype)
        return share.index_select(0, self.target.index)[:, None]

    def _given(self, edge_weight: Tensor | None, x: Tensor, batch_size: int | None) -> Tensor:
        """The caller's weights ``[e]``, or ``[b, e]`` where a stacked batch has its own."""
        wide = torch.promote_types(x.dtype, torch.float32)
        if edge_weight is None:
            return x.new_ones(self.num_edges, dtype=wide)
        copies = batch_size or 1
        check_edge_weight(edge_weight, self.num_edges, copies)
        if edge_weight.device != x.device:
            raise GraphError(
                f"edge_weight is on {edge_weight.device} but x on {x.device}; move one of them"
            )
        weight = edge_weight.to(wide)
        return weight if weight.numel() == self.num_edges else weight.view(copies, -1)
