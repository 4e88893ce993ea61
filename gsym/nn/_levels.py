"""Soft symmetry: a chain of groups, and the sum of the tied maps of all of them in one pass."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gsym import kernels
from gsym._validate import warn
from gsym.groups import ClusterGroup, Partition, PermutationGroup
from gsym.groups.levels import read_levels
from gsym.nn._mixing import check_mixing_memory
from gsym.nn._modules import TabledModule, Tables, is_plain


@dataclass(frozen=True)
class Chain:
    """Groups of one node set, the finest first.

    Attributes:
        groups: The levels, those with the most free weights first, of these the smallest group.
        group: What commutes with every map of every level: the finest level of nested ones; of
            others the permutations within the meet of all clusters.
        partition: The coarsest partition that refines the clusters of all levels.
        nested: Whether every level is a subgroup of the next.
    """

    groups: tuple[PermutationGroup, ...]
    group: PermutationGroup
    partition: Partition
    nested: bool

    @classmethod
    def of(cls, levels: object, group: PermutationGroup | None = None) -> Chain | None:
        """The chain that a layer is given, if it is given one.

        Args:
            levels: A :class:`gsym.Hierarchy` (7 of many levels), or partitions and groups in any
                order.
            group: What the layer is given besides, which must be nothing.

        Raises:
            TypeError: Something else among the levels.
            ValueError: A group besides.
            GroupError: No level, a level twice, or levels on different numbers of nodes.
        """
        if levels is None:
            return None
        if group is not None:
            raise ValueError("give either group or levels; one group is a chain of one level")
        if isinstance(levels, Chain):
            return levels
        groups = list(read_levels(levels))
        dims = {group: group.commutant_dim() for group in groups}
        counts = Counter(dims.values())
        # Groups with the same maps, as all that are 2-transitive, differ in their order alone,
        # which may take a search.
        groups.sort(key=lambda g: (-dims[g], g.log_order() if counts[dims[g]] > 1 else 0.0))
        partition = groups[0].as_clusters().partition
        for other in groups[1:]:
            coarse = other.as_clusters().partition
            if not partition.refines(coarse):
                partition = partition.meet(coarse)
        nested = all(is_subgroup(fine, coarse) for fine, coarse in pairwise(groups))
        common: PermutationGroup = groups[0] if nested else ClusterGroup(partition)
        if not nested:
            warn(
                f"levels are not nested; the sum of their maps commutes with {common}, and the "
                "share of a level in it depends on the order of the levels"
            )
        return cls(tuple(groups), common, partition, nested)

    def find(self, level: object) -> PermutationGroup:
        """The level of so many clusters, or the one given, if it is a level."""
        counts = [g.as_clusters().partition.num_clusters for g in self.groups]
        if isinstance(level, int) and not isinstance(level, bool):
            found = [g for g, k in zip(self.groups, counts, strict=True) if k == level]
        else:
            [wanted] = read_levels([level])
            found = [g for g in self.groups if g == wanted]
        if len(found) == 1:
            return found[0]
        said = ", ".join(f"{k} ({g})" for g, k in zip(self.groups, counts, strict=True))
        many = "several levels have that many clusters, so name the group" if found else "none is"
        raise ValueError(
            f"level {level!r:.80} must be one of the chain, by its number of clusters or as a "
            f"group: {said}; {many}"
        )


def is_subgroup(fine: PermutationGroup, coarse: PermutationGroup) -> bool:
    """Whether every element of ``fine`` belongs to ``coarse``."""
    clusters = coarse.as_clusters()
    if clusters.swaps is None:
        orbits = Partition(fine.node_orbits().index)
        return orbits.refines(clusters.partition)
    own = fine.as_clusters()
    if own.partition.refines(clusters.partition):
        # Permutations within clusters are in; so only whole clusters are left to look at.
        if own.swaps is None:
            return True
        return all(coarse.contains(own.lift(swap)) for swap in own.swaps.generators)
    return all(coarse.contains(perm) for perm in fine.generators)


def parents(fine: Partition, coarse: Partition) -> Tensor:
    """The cluster of ``coarse`` that every cluster of ``fine`` lies in, ``[k]``."""
    found = torch.empty(fine.num_clusters, dtype=torch.int64, device="cpu")
    found[fine.labels] = coarse.labels
    return found


@dataclass(frozen=True)
class _Pool(Tables):
    below: int  # the pool whose means this one pools
    up: kernels.Segments  # its cluster for every cluster below
    share: Tensor  # of the nodes of its cluster that every cluster below has, float64 [k, 1]


@dataclass(frozen=True)
class _Pools:
    """Pools of all levels behind the finest, each of the means of one before it."""

    all: tuple[_Pool, ...]

    def to(self, device: torch.device) -> _Pools:
        return _Pools(tuple(pool.to(device) for pool in self.all))


@dataclass(frozen=True)
class _LevelTables(Tables):
    pools: _Pools


class LevelSum(TabledModule[_LevelTables]):
    """The sum over levels of ``scale[l]`` times the tied map of the level.

    :meth:`define` says it in one line. The forward pass takes one pass over the signal for the
    means of the finest clusters, pools these for the coarser levels, and adds up what the levels
    make of their means, and their matrices, from coarse to fine.

    Args:
        parts: The map of every level, an ``OrbitLinear`` of its group.
        chain: The levels.
    """

    def __init__(self, parts: Sequence[nn.Module], chain: Chain) -> None:
        super().__init__()
        self.chain, self._kind = chain, type(parts[0])
        # Not a list of modules, as stacks are: that is wrapped layer by layer.
        self.levels = nn.ModuleDict({str(i): part for i, part in enumerate(parts)})
        self.scale = nn.Parameter(torch.empty(len(parts)))
        self._tables(torch.device("cpu"))

    @property
    def parts(self) -> list[Any]:
        """The map of every level, finest first."""
        return list(self.levels.values())

    def _build_tables(self) -> _LevelTables:
        partitions = [group.as_clusters().partition for group in self.chain.groups]
        if partitions[0] != self.chain.partition:
            partitions.insert(0, self.chain.partition)
        pools = []
        for i, coarse in enumerate(partitions[1:], start=1):
            # The last one before that refines it: of a nested chain, the level below.
            below = next(b for b in reversed(range(i)) if partitions[b].refines(coarse))
            up = parents(partitions[below], coarse)
            size, whole = (torch.tensor(p.sizes).double() for p in (partitions[below], coarse))
            share = (size / whole[up])[:, None]
            pools.append(_Pool(below, kernels.Segments(up, coarse.num_clusters), share))
        return _LevelTables(_Pools(tuple(pools)))

    @torch.no_grad()
    def reset_parameters(self, gain: float) -> None:
        """Draw every level alone; independent maps then share the variance equally."""
        parts = self.parts
        for part in parts:
            part.reset_parameters(gain)
        self.scale.fill_(1 / math.sqrt(len(parts)))

    def define(self, x: Tensor) -> Tensor:
        """What :meth:`forward` computes, level by level."""
        maps = zip(self.scale.unbind(), self.parts, strict=True)
        return torch.stack([scale * part(x) for scale, part in maps]).sum(0)

    def forward(self, x: Tensor, clusters: kernels.Clusters, is_sorted: bool = False) -> Tensor:
        """Map signals ``[..., n, in]``, which may come and leave sorted by cluster."""
        parts = self.parts
        if not is_plain(self._kind, *parts):  # somebody listens to a part, or changes it
            order, rank = clusters.order, clusters.rank
            if not is_sorted:
                return self.define(x)
            y = self.define(kernels.permute_rows(x, rank, order))
            return kernels.permute_rows(y, order, rank)
        pools, scale = self._tables(x.device).pools.all, self.scale.unbind()
        tables = [part._tables(x.device) for part in parts]
        extra = len(pools) + 1 - len(parts)  # 1 if no level has the finest clusters
        # Own matrices, and what the means give, of every pool.
        own: list[Tensor | None] = [None] * extra
        for s, part, table in zip(scale, parts, tables, strict=True):
            has = part.weight_self is not None
            own.append(s * part._own_weight(table).flatten(1) if has else None)

        def mix(means: Tensor) -> Tensor:
            pooled = [means]
            for pool in pools:
                rows = pooled[pool.below] * pool.share.to(means.dtype)
                pooled.append(kernels.segment_sum(rows, pool.up))
            mixed: list[Tensor | None] = [None] * extra
            for s, part, table, rows in zip(scale, parts, tables, pooled[extra:], strict=True):
                y = None if part.mixing is None else part.mixing(rows)
                if part.bias is not None:
                    bias = part._bias_of(part.bias, table)
                    y = bias if y is None else y + bias
                mixed.append(None if y is None else s * y)
            total = _handed_down(mixed, pools)
            if total is None:
                total = means.new_zeros(1, parts[0].out_channels)
            return total.expand(*total.shape[:-2], clusters.num_clusters, -1)

        matrices = _handed_down(own, pools)
        if matrices is not None:
            shape = parts[0].in_channels, parts[0].out_channels
            matrices = matrices.unflatten(1, shape)
            return kernels.mix_clusters(x, matrices, mix, clusters, is_sorted)
        # Every node is alone at every level, and its own mean.
        if is_sorted or clusters.is_sorted:
            return mix(x)
        means = kernels.segment_mean(x, clusters.segments)
        return kernels.segment_gather(mix(means), clusters.segments)


def _handed_down(rows: list[Tensor | None], pools: Sequence[_Pool]) -> Tensor | None:
    """The sum over pools of rows ``[..., k, c]``, each on the finest clusters.

    Every pool hands its sum down to the one below. One row for all clusters stays one row.
    """
    rows = list(rows)
    for i in reversed(range(1, len(rows))):
        row, pool = rows[i], pools[i - 1]
        if row is None:
            continue
        if row.size(-2) > 1:
            row = kernels.segment_gather(row, pool.up)
        below = rows[pool.below]
        rows[pool.below] = row if below is None else below + row
    return rows[0]


def check_options(chain: Chain, mixing: str, signed: bool, widths: tuple[int, int]) -> None:
    """Refuse what has no form along a chain, and more weights than one layer may have."""
    if signed:
        raise ValueError(
            "levels have no form with representations on channels; sum OrbitLinear layers, one "
            "for each group with its in_rep and out_rep"
        )
    if mixing == "quotient":
        raise ValueError(
            'mixing="quotient" needs one coarse graph per level, which levels do not have; use '
            '"full", "low_rank" or "none"'
        )
    if mixing == "full":
        counts = [g.as_clusters().partition.num_clusters for g in chain.groups]
        largest = chain.groups[0].as_clusters()
        check_mixing_memory(sum(k * k for k in counts), *widths, largest)
