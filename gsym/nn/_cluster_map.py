"""Linear maps of signals by clusters: on finer clusters, averaged over a group, in a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsym.groups import ClusterGroup, Partition, PermutationGroup
from gsym.nn._levels import parents
from gsym.nn._mixing import FullMixing


@dataclass(frozen=True)
class ClusterMap:
    """A linear map of signals by clusters: ``y_i = x_i D_c(i) + sum_s m_s W_s,c(i)``.

    Attributes:
        partition: The clusters.
        own: D, ``[k, in, out]``.
        mixed: W from the mean of s to all of t, ``[k (s), in, k (t), out]``.
        bias: ``[k, out]``.
    """

    partition: Partition
    own: Tensor
    mixed: Tensor
    bias: Tensor

    def on(self, fine: Partition) -> ClusterMap:
        """The same map on a partition that refines this one."""
        if fine == self.partition:
            return self
        up = parents(fine, self.partition).to(self.own.device)
        share = self._sizes(fine) / self._sizes(self.partition)[up]
        mixed = self.mixed[up][:, :, up] * share[:, None, None, None]
        return ClusterMap(fine, self.own[up], mixed, self.bias[up])

    def minus(self, other: ClusterMap) -> ClusterMap:
        """The difference to another map, on what refines the clusters of both."""
        fine = self.partition
        if not fine.refines(other.partition):
            fine = fine.meet(other.partition)
        one, other = self.on(fine), other.on(fine)
        return one + other.scaled(-1.0)

    def __add__(self, other: ClusterMap) -> ClusterMap:
        """The sum with a map on the same clusters."""
        return ClusterMap(
            self.partition, self.own + other.own, self.mixed + other.mixed, self.bias + other.bias
        )

    def scaled(self, scale: Tensor | float) -> ClusterMap:
        """A multiple of the map."""
        return ClusterMap(self.partition, scale * self.own, scale * self.mixed, scale * self.bias)

    def average(self, group: PermutationGroup) -> ClusterMap:
        """The mean of ``g A g^-1`` over a group: orbit means of the entries of the matrix A.

        On clusters, an orbit is a block less its diagonal, or a diagonal; swaps unite them.
        """
        clusters = group.as_clusters()
        target = clusters.partition
        fine = self.on(self.partition.meet(target))
        device, k = self.own.device, target.num_clusters
        up = parents(fine.partition, target).to(device)
        few, size = self._sizes(fine.partition), self._sizes(target)
        every, fine_every = (torch.arange(count, device=device) for count in (k, up.numel()))
        # Sums of the entries of blocks, and of those on their diagonals.
        rows = summed(fine.mixed * few[:, None], up, 0, k)
        total = summed(rows, up, 2, k)
        inner = fine.mixed[fine_every, :, fine_every, :]
        total = _with_diagonal(total, total[every, :, every, :] - summed(inner, up, 0, k))
        trace = summed(fine.own * few[:, None, None] + inner, up, 0, k)
        bias = summed(fine.bias * few[:, None], up, 0, k)
        area = torch.outer(size, size) - torch.diag(size)
        count = size
        if clusters.swaps is not None:
            # Source first: the pair (t, s) stands in row t of the orbits.
            pairs = clusters.cluster_pair_orbits().index.t().reshape(-1).to(device)
            nodes = clusters.cluster_orbits().index.to(device)
            by_pair = total.transpose(1, 2).flatten(0, 1)
            total = _united(by_pair, pairs).unflatten(0, (k, k)).transpose(1, 2)
            area = _united(area.flatten(), pairs).view(k, k)
            trace, bias, count = (_united(v, nodes) for v in (trace, bias, count))
        mixed = total / area.clamp(min=1)[:, None, :, None] * size[:, None, None, None]
        diagonal = trace / count[:, None, None]
        alone = (size == 1)[:, None, None]
        beside = mixed[every, :, every, :] / size[:, None, None]
        inner = torch.where(alone, diagonal, mixed[every, :, every, :])
        mixed = _with_diagonal(mixed, inner)
        own = torch.where(alone, 0, diagonal - beside)
        return ClusterMap(target, own, mixed, bias / count[:, None])

    def square(self) -> Tensor:
        """Squared norm of the whole matrix."""
        size = self._sizes(self.partition)
        every = torch.arange(size.numel(), device=size.device)
        # Entries beside the diagonal, and those on it, where D and W add up.
        area = size * (size[:, None] - torch.eye(size.numel()).to(size))
        entries = self.mixed / size[:, None, None, None]
        inner = entries[every, :, every, :]
        beside = (entries.square().sum(dim=(1, 3)) * area).sum()
        return beside + ((self.own + inner).square().sum(dim=(1, 2)) * size).sum()

    def bias_square(self) -> Tensor:
        """Squared norm of the bias of all nodes."""
        return (self.bias.square() * self._sizes(self.partition)[:, None]).sum()

    def _sizes(self, partition: Partition) -> Tensor:
        return sizes_of(partition).to(self.own)


def sizes_of(partition: Partition) -> Tensor:
    """Nodes of every cluster, float64 ``[k]``."""
    return torch.tensor(partition.sizes, dtype=torch.float64)


def summed(values: Tensor, index: Tensor, axis: int, count: int) -> Tensor:
    """Sums of slices along an axis, by index."""
    shape = list(values.shape)
    shape[axis] = count
    return values.new_zeros(shape).index_add_(axis, index, values)


def _with_diagonal(blocks: Tensor, diagonal: Tensor) -> Tensor:
    """Blocks ``[k, in, k, out]`` with other ones ``[k, in, out]`` on the diagonal."""
    every = torch.arange(blocks.size(0), device=blocks.device)
    rows = blocks.transpose(1, 2).index_put((every, every), diagonal)
    return rows.transpose(1, 2)


def _united(values: Tensor, orbit: Tensor) -> Tensor:
    """Every row replaced by the sum over its orbit."""
    return summed(values, orbit, 0, int(orbit.max()) + 1)[orbit]


def read(layer: Any, num_nodes: int, take: Callable[[Tensor], Tensor] | None = None) -> ClusterMap:
    """The map of an ``OrbitLinear``; of S_n on any number of nodes, that on these.

    ``take`` says what becomes of its weights: by default the numbers alone, on the CPU, in float64.
    """
    take = on_host if take is None else take
    if layer.soft is not None:
        chain = layer.soft.chain
        total: ClusterMap | None = None
        for scale, part in zip(take(layer.soft.scale).unbind(), layer.soft.parts, strict=True):
            form = read(part, num_nodes, take).on(chain.partition).scaled(scale)
            total = form if total is None else total + form
        assert total is not None
        return total
    clusters = on_nodes(layer.group, num_nodes)
    k, (a, b) = clusters.partition.num_clusters, (layer.in_channels, layer.out_channels)
    like = next(layer.parameters(), torch.empty(0))
    tables = layer._tables(like.device)
    zeros = take(like).new_zeros
    own = zeros(k, a, b)
    if layer.weight_self is not None:
        own = take(layer._own_weight(tables)).expand(k, -1, -1)
    if layer.mixing is None:
        mixed = zeros(k, a, k, b)
    elif hasattr(layer.mixing, "matrix"):
        mixed = take(layer.mixing.matrix()).view(k, a, k, b)
    else:  # the images of a basis
        basis = torch.eye(k * a, dtype=like.dtype, device=like.device).view(k * a, k, a)
        mixed = take(layer.mixing(basis)).view(k, a, k, b)
    bias = zeros(k, b)
    if layer.bias is not None:
        bias = take(layer._bias_of(layer.bias, tables)).expand(k, -1)
    return ClusterMap(clusters.partition, own, mixed, bias)


@torch.no_grad()
def write(layer: Any, form: ClusterMap) -> None:
    """Give an ``OrbitLinear`` of one group this map, which is tied as its weights are."""
    cpu = torch.device("cpu")
    tables, k = layer._tables(cpu), form.own.size(0)
    own, mixed, every = form.own, form.mixed.clone(), torch.arange(k)
    count = 0 if layer.weight_self is None else layer.weight_self.size(0)
    if layer.mixing is None:  # D serves nodes that are alone, too
        alone = sizes_of(form.partition) == 1
        own = own + torch.where(alone[:, None, None], mixed[every, :, every, :], 0)
    else:
        bare = tables.own_index >= count
        mixed[every[bare], :, every[bare], :] += own[bare]
    if count:
        _, first = np.unique(tables.own_index.numpy(), return_index=True)
        layer.weight_self.copy_(own[torch.from_numpy(first)[:count]])
    if isinstance(layer.mixing, FullMixing):
        weight, place = layer.mixing.weight, layer.mixing._tables(cpu).first
        tied = mixed if place is None else mixed.transpose(1, 2).flatten(0, 1)[place]
        weight.copy_(tied)
    if layer.bias is not None:
        _, first = np.unique(tables.cluster_orbit.numpy(), return_index=True)
        layer.bias.copy_(form.bias[torch.from_numpy(first)])


def on_nodes(group: PermutationGroup | None, num_nodes: int) -> ClusterGroup:
    """The group as clusters; S_n on any number of nodes is that on these."""
    return ClusterGroup(Partition.single(num_nodes)) if group is None else group.as_clusters()


def on_host(x: Tensor) -> Tensor:
    """The numbers alone, on the CPU, in float64."""
    return x.detach().cpu().double()
