"""Mixing between clusters: every pair, at low rank, or along a coarse graph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gsym import kernels
from gsym._validate import check_edge_index
from gsym.errors import GroupError
from gsym.groups import ClusterGroup
from gsym.nn._blocks import BlockTables
from gsym.nn._modules import TabledModule, Tables

# Full mixing above this is refused: its k^2 weight matrices outgrow any activation.
MAX_MIXING_BYTES = 2**30

# Gradients pass over rows more often where blocks are a call of their own. From so many numbers on
# that takes longer than a dense product, unless this multiplies so many times as many numbers as a
# signal has.
LARGE = 2**25
OUTWEIGHS = 32

MIXINGS = ("full", "low_rank", "quotient", "none")


@dataclass(frozen=True)
class _FullTables(Tables):
    share: Tensor  # of the nodes that every cluster has, float64 [k]
    pairs: kernels.Segments | None
    first: Tensor | None  # one position of each pair orbit
    blocks: BlockTables | None  # where they are faster than the matrix


class FullMixing(TabledModule[_FullTables]):
    """Every ordered pair of clusters has a matrix, tied along the orbits of the swaps.

    Without swaps ``weight[s, :, t, :]`` carries the mean of cluster s to cluster t, stored as the
    one matrix that the product needs. With swaps there is one ``weight[orbit]`` per pair orbit,
    whichever way the product takes: the blocks of an adapted basis, which follow from these
    weights, are no parameters, and training follows the weights per orbit.
    """

    def __init__(self, in_channels: int, out_channels: int, group: ClusterGroup) -> None:
        super().__init__()
        k = group.partition.num_clusters
        check_mixing_memory(k * k, in_channels, out_channels, group)
        self.num_clusters, self.group = k, group
        self._channels = in_channels, out_channels
        tables = self._tables(torch.device("cpu"))
        pairs = tables.pairs
        self._has_blocks = tables.blocks is not None
        if pairs is None:
            self.weight = nn.Parameter(torch.empty(k, in_channels, k, out_channels))
        else:
            self.weight = nn.Parameter(torch.empty(pairs.num_segments, in_channels, out_channels))

    def _build_tables(self) -> _FullTables:
        sizes = torch.tensor(self.group.partition.sizes).double()
        pairs = first = blocks = None
        if self.group.swaps is not None:
            orbits = self.group.cluster_pair_orbits()
            # Source first: pair (t, s) is read at position s * k + t.
            pairs = kernels.Segments(orbits.index.t().reshape(-1), orbits.num_orbits)
            first = pairs.order[pairs.pointers[:-1]]
            fused = self.group.partition.num_nodes > self.num_clusters
            blocks = BlockTables.of(self.group.swaps, *self._channels, fused=fused)
        return _FullTables(sizes / sizes.sum(), pairs, first, blocks)

    def takes_blocks(self, x: Tensor) -> bool:
        """Whether means of rows ``x`` are better mixed block by block than by the matrix."""
        if not self._has_blocks or torch.compiler.is_compiling():
            return self._has_blocks
        derived = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if not derived or x.numel() < LARGE:
            return True
        a, b = self._channels
        return self.num_clusters**2 * a * b >= OUTWEIGHS * x.size(-2) * (a + b)

    def matrix(self) -> Tensor:
        """The map from all means to all clusters, ``[k * in, k * out]``."""
        if self.weight.dim() == 4:  # without swaps
            return self.weight.flatten(2).flatten(0, 1)
        pairs, k = self._tables(self.weight.device).pairs, self.num_clusters
        assert pairs is not None
        table, (_, a, b) = kernels.segment_gather(self.weight.flatten(1), pairs), self.weight.shape
        return table.view(k, k, a, b).transpose(1, 2).reshape(k * a, k * b)

    def forward(self, means: Tensor) -> Tensor:
        """Mix means ``[..., k, in]`` to ``[..., k, out]``."""
        blocks = self._tables(means.device).blocks
        mixed = None if blocks is None else blocks.apply(means, self.weight)
        if mixed is not None:
            return mixed
        return (means.flatten(-2) @ self.matrix()).unflatten(
            -1, (self.num_clusters, self.weight.size(-1))
        )

    def reset_parameters(self, variance: float) -> None:
        """Draw weights that give a random signal this much of its variance."""
        k, tables = self.num_clusters, self._tables(self.weight.device)
        share = tables.share.to(self.weight.dtype)
        if tables.pairs is None or tables.first is None:
            scale = torch.sqrt(variance * share)
            self.weight.normal_().mul_(scale.view(k, 1, 1, 1))
            return
        if self.weight.is_meta:
            return
        # Tied entries add up coherently. Multiplying by the inverse root of the mean Gram matrix,
        # which lies in the commutant too, makes the random map an isometry on average.
        orbit = tables.pairs.index
        root = _inverse_root(_gram(orbit.view(k, k).t(), share)).to(share)
        draw = torch.randn_like(self.weight).flatten(1) * math.sqrt(variance)
        full = torch.einsum("utf,us->stf", draw[orbit].view(k, k, -1), root)
        full = full * share.sqrt().view(k, 1, 1)
        self.weight.copy_(full.flatten(0, 1)[tables.first].view_as(self.weight))

    def subtract(self, own: Tensor) -> None:
        """Take matrices ``[k, in, out]``, constant on orbits, off each cluster's own pair."""
        pairs = self._tables(own.device).pairs
        if pairs is None:
            every = torch.arange(self.num_clusters, device=own.device)
            self.weight[every, :, every, :] -= own
        else:
            orbit = pairs.index.view(self.num_clusters, -1).diagonal()
            first = own.new_zeros(self.weight.shape)
            first[orbit] = own
            self.weight.sub_(first)


@dataclass(frozen=True)
class _LowRankTables(Tables):
    orbit: Tensor  # of every cluster
    spread: Tensor  # share of the variance, float64 [k]


class LowRankMixing(TabledModule[_LowRankTables]):
    """``W[t, s] = sum_r left[t, r] right[s, r] weight[r]``: ``r (d d' + 2k)`` parameters."""

    def __init__(self, in_channels: int, out_channels: int, group: ClusterGroup, rank: int) -> None:
        super().__init__()
        self.group = group
        num_orbits = group.cluster_orbits().num_orbits
        self._tables(torch.device("cpu"))
        self.left = nn.Parameter(torch.empty(num_orbits, rank))
        self.right = nn.Parameter(torch.empty(num_orbits, rank))
        self.weight = nn.Parameter(torch.empty(rank, in_channels, out_channels))

    def _build_tables(self) -> _LowRankTables:
        orbits = self.group.cluster_orbits()
        sizes = torch.tensor(self.group.partition.sizes).double()
        # An orbit of clusters shares its entry of ``right``, so its terms add up coherently.
        return _LowRankTables(orbits.index, sizes / sizes.sum() / orbits.sizes[orbits.index])

    def forward(self, means: Tensor) -> Tensor:
        """Mix means ``[..., k, in]`` to ``[..., k, out]``."""
        orbit = self._tables(means.device).orbit
        right, left = self.right.index_select(0, orbit), self.left.index_select(0, orbit)
        read = torch.einsum("sr,...si->...ri", right, means)
        mixed = torch.einsum("...ri,rio->...ro", read, self.weight)
        return torch.einsum("tr,...ro->...to", left, mixed)

    def reset_parameters(self, variance: float) -> None:
        """Draw weights that give a random signal this much of its variance."""
        tables = self._tables(self.weight.device)
        self.left.normal_()
        scale = torch.empty_like(self.right[:, 0])
        scale[tables.orbit] = tables.spread.to(scale.dtype).sqrt()
        self.right.normal_().mul_(scale[:, None])
        self.weight.normal_(std=math.sqrt(variance / self.weight.size(0)))


@dataclass(frozen=True)
class _QuotientTables(Tables):
    source: kernels.Segments
    target: kernels.Segments
    pairs: kernels.Segments  # orbit of every coarse edge
    spread: Tensor  # share of the variance, float64 [q]


class QuotientMixing(TabledModule[_QuotientTables]):
    """One matrix per edge of the coarse graph and per cluster, tied along orbits of the swaps."""

    def __init__(
        self, in_channels: int, out_channels: int, group: ClusterGroup, edge_index: Tensor
    ) -> None:
        super().__init__()
        k = group.partition.num_clusters
        source, target = check_edge_index(edge_index, k).cpu()
        keys = torch.cat([target * k + source, torch.arange(k, device="cpu") * (k + 1)])
        keys = torch.unique(keys)
        self.group, self.coarse = group, torch.stack([keys // k, keys % k])
        if group.swaps is not None and not group.swaps.preserves(self.coarse):
            raise GroupError(
                "cluster_edge_index must be preserved by the swaps of the group; add the images "
                "of its edges, or leave the swaps out"
            )
        check_mixing_memory(keys.numel(), in_channels, out_channels, group)
        num_orbits = self._tables(torch.device("cpu")).pairs.num_segments
        self.weight = nn.Parameter(torch.empty(num_orbits, in_channels, out_channels))

    def _build_tables(self) -> _QuotientTables:
        k, count = self.group.partition.num_clusters, self.coarse.size(1)
        target, source = self.coarse
        if self.group.swaps is None:
            orbit, num_orbits = torch.arange(count), count
        else:
            orbits = self.group.swaps.edge_orbits(self.coarse)
            orbit, num_orbits = orbits.index, orbits.num_orbits
        sizes = torch.tensor(self.group.partition.sizes)
        reached = torch.zeros_like(sizes).index_add_(0, target, sizes[source])
        coherent = torch.bincount(target * num_orbits + orbit, minlength=k * num_orbits)
        spread = sizes[source].double() / reached[target] / coherent[target * num_orbits + orbit]
        return _QuotientTables(
            kernels.Segments(source, k),
            kernels.Segments(target, k),
            kernels.Segments(orbit, num_orbits),
            spread,
        )

    def forward(self, means: Tensor) -> Tensor:
        """Mix means ``[..., k, in]`` to ``[..., k, out]``."""
        tables = self._tables(means.device)
        sent = kernels.segment_gather(means, tables.source)
        weight = kernels.segment_gather(self.weight.flatten(1), tables.pairs)
        weight = weight.unflatten(-1, self.weight.shape[1:])
        return kernels.segment_sum(torch.einsum("...qi,qio->...qo", sent, weight), tables.target)

    def reset_parameters(self, variance: float) -> None:
        """Draw weights that give a random signal this much of its variance."""
        tables = self._tables(self.weight.device)
        scale = self.weight.new_empty(self.weight.size(0))
        scale[tables.pairs.index] = torch.sqrt(variance * tables.spread.to(scale.dtype))
        self.weight.normal_().mul_(scale[:, None, None])

    def subtract(self, own: Tensor) -> None:
        """Take matrices ``[k, in, out]``, constant on orbits, off each cluster's own pair."""
        tables = self._tables(own.device)
        source, orbit = tables.source.index, tables.pairs.index
        loop = source == tables.target.index
        first = own.new_zeros(self.weight.shape)
        first[orbit[loop]] = own[source[loop]]
        self.weight.sub_(first)


def check_mixing_memory(
    matrices: int, in_channels: int, out_channels: int, group: ClusterGroup
) -> None:
    """Refuse more weights than :data:`MAX_MIXING_BYTES`."""
    needed = matrices * in_channels * out_channels * torch.get_default_dtype().itemsize
    if needed > MAX_MIXING_BYTES:
        k = group.partition.num_clusters
        raise ValueError(
            f"{matrices} matrices of {in_channels} x {out_channels} for {k} clusters need "
            f"{needed / 2**30:.1f} GiB, more than {MAX_MIXING_BYTES / 2**30:.0f} GiB; use "
            'mixing="low_rank" with a rank, mixing="quotient" with the coarse graph, '
            'mixing="none", or a coarser partition'
        )


def _gram(orbit: Tensor, share: Tensor) -> Tensor:
    """Mean of ``W^T diag(share) W`` over random W constant on ``orbit``, ``[k, k]`` float64."""
    k = orbit.size(0)
    # One sparse row per (target, orbit) that marks the sources of that orbit.
    row = torch.arange(k)[:, None] * (int(orbit.max()) + 1) + orbit.cpu()
    entry = share.cpu().double().sqrt()[:, None].expand(k, k)
    _, compact = np.unique(row.numpy(), return_inverse=True)
    column = np.tile(np.arange(k), k)
    from scipy.sparse import csr_array

    marks = csr_array((entry.reshape(-1).numpy(), (compact.reshape(-1), column)))
    return torch.from_numpy((marks.T @ marks).toarray())


def _inverse_root(matrix: Tensor) -> Tensor:
    """Inverse square root of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T
