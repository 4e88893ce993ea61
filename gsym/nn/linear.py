"""OrbitLinear: the linear map that commutes with a permutation group."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from gsym import kernels
from gsym._validate import GroupError, check_edge_index, check_like_weights, check_signal
from gsym.groups import ClusterGroup, Partition, PermutationGroup
from gsym.kernels._dispatch import chosen
from gsym.kernels.segments import BLOCK_ROWS

# Full mixing above this is refused: its k^2 weight matrices outgrow any activation.
MAX_MIXING_BYTES = 2**30

MIXINGS = ("full", "low_rank", "quotient", "none")


class TiedLayer(nn.Module):
    """A layer whose checkpoints carry the fingerprint of its group and fit no other group."""

    def __init__(self, group: PermutationGroup | None) -> None:
        super().__init__()
        self.group = group

    def get_extra_state(self) -> Tensor:
        """The fingerprint of the group, uint8 ``[32]``, which travels in the ``state_dict``."""
        return fingerprint(self.group)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing to do: the fingerprint was compared before this layer's parameters came."""

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state = state_dict.get(f"{prefix}_extra_state")
        if state is not None:
            check_fingerprint(state, self.group)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class OrbitLinear(TiedLayer):
    r"""Linear map of node signals that commutes with a permutation group.

    For the group of a partition into clusters :math:`1..k` it is

    .. math::
        y_n = D_{c(n)} x_n + \sum_{c'} W_{c(n), c'} m_{c'} + b_{c(n)},
        \qquad m_c = \text{mean of } x \text{ over cluster } c,

    with D, W and b tied over the orbits of the group's ``swaps``, and D left out where a cluster
    has one node, because W covers it there. No matrix of n x n blocks is ever built. A general
    :class:`~gsym.PermutationGroup` ties one matrix per pair orbit.

    Args:
        in_channels: Channels per node of the input.
        out_channels: Channels per node of the output.
        group: Group to commute with; ``None`` is the full symmetric group on any number of nodes.
        bias: Add one learned vector per node orbit.
        mixing: How clusters talk. ``"full"``: every pair, ``k^2`` matrices, the complete space of
            equivariant maps. ``"low_rank"``: ``W[c, c'] = sum_r u_r[c] v_r[c'] M_r`` with ``rank``
            terms. ``"quotient"``: only the pairs in ``cluster_edge_index`` and each cluster with
            itself. ``"none"``: not at all; D then covers every cluster.
        rank: Number of terms of ``"low_rank"``.
        cluster_edge_index: Coarse graph of ``"quotient"``, ``[2, q]``, messages from row 0 to
            row 1, as :meth:`gsym.Partition.quotient` returns it.

    Shapes:
        - input: ``[..., n, in_channels]``
        - output: ``[..., n, out_channels]``

    Symmetry:
        Nodes: exact for ``group``, at every value of the parameters, and with ``mixing="full"``
        the parameters span all equivariant maps: ``group.commutant_dim()`` per channel pair.

    Raises:
        ValueError: ``mixing="full"`` with more than a GiB of weights; the message names the ways
            out.
        GroupError: Loading a checkpoint of another group.

    Cost:
        Per signal ``O(n d)`` to pool, ``O(n d d')`` for D, ``O(k^2 d d')`` to mix; memory
        ``O(n d + k^2 d d')``. A general group costs ``O(n^2 d d')``.

    Example:
        >>> group = ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1]))
        >>> layer = OrbitLinear(2, 3, group)
        >>> layer(torch.randn(8, 5, 2)).shape
        torch.Size([8, 5, 3])

    Reference:
        Huang, Levie, Villar, arXiv 2308.10436 (the complete map; their irregular clusters lose D).
        The scaled initialisation is ours.
    """

    _sizes: Tensor
    _cluster_orbit: Tensor
    _own_index: Tensor
    _order: Tensor
    _rank: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        group: PermutationGroup | None = None,
        *,
        bias: bool = True,
        mixing: str = "full",
        rank: int | None = None,
        cluster_edge_index: Tensor | None = None,
    ) -> None:
        super().__init__(group)
        _check_options(mixing, rank, cluster_edge_index)
        if min(in_channels, out_channels) < 1:
            raise ValueError(f"channels must be at least 1; got {in_channels} to {out_channels}")
        clusters = as_clusters(group)
        sizes = torch.tensor(clusters.partition.sizes)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_nodes = None if group is None else clusters.num_nodes
        self.register_buffer("_sizes", sizes, persistent=False)

        # Equal clusters are sorted into runs, which views and batched products can take, unless
        # the products would be small or the sorting would pass through memory once more. Others
        # are gathered tile by tile, samples side by side. Compiled loops on the CPU take every row
        # where it lies.
        order, labels = clusters.partition.order, clusters.partition.labels
        size, area = int(sizes[0]), in_channels * out_channels
        alone = size == 1 and mixing not in ("low_rank", "none")
        fit = size >= 8 and size * (in_channels + out_channels) >= area
        simple = len(sizes) == 1 or alone or min(in_channels, out_channels) == 1
        came_sorted = torch.equal(order, torch.arange(order.numel()))
        fit = fit and (came_sorted or order.numel() <= BLOCK_ROWS)
        runs = bool((sizes == size).all()) and (simple or fit)
        self.in_place = not runs or came_sorted
        self.register_buffer("_order", order, persistent=False)
        self.register_buffer("_rank", torch.argsort(order), persistent=False)
        self._has_runs = runs

        orbits = clusters.cluster_orbits()
        self.register_buffer("_cluster_orbit", orbits.index, persistent=False)
        # W alone serves a cluster of one node; S_n on any number of nodes has D all the same.
        has_own = (sizes > 1) | (mixing in ("low_rank", "none")) | (group is None)
        self._all_own = bool(has_own.all())
        used, own = torch.unique(orbits.index[has_own], return_inverse=True)
        own_index = torch.full((sizes.numel(),), used.numel())
        own_index[has_own] = own
        self.register_buffer("_own_index", own_index, persistent=False)
        self.tiles: kernels.Tiles | None = None
        if used.numel():
            self.weight_self = nn.Parameter(torch.empty(used.numel(), in_channels, out_channels))
            # With one channel the views of runs are the fastest everywhere.
            if group is not None and not (runs and min(in_channels, out_channels) == 1):
                segments = kernels.Segments(labels, sizes.numel())
                self.tiles = kernels.Tiles(segments, in_channels, out_channels)
        else:
            self.register_parameter("weight_self", None)

        self.mixing: _FullMixing | _LowRankMixing | _QuotientMixing | None = None
        if mixing == "full":
            self.mixing = _FullMixing(in_channels, out_channels, clusters)
        elif mixing == "low_rank" and rank is not None:
            self.mixing = _LowRankMixing(in_channels, out_channels, clusters, rank)
        elif mixing == "quotient" and cluster_edge_index is not None:
            self.mixing = _QuotientMixing(in_channels, out_channels, clusters, cluster_edge_index)
        if bias:
            self.bias = nn.Parameter(torch.empty(orbits.num_orbits, out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, gain: float = math.sqrt(2)) -> None:
        """Draw weights that keep the size of a signal, whatever the group.

        With ``mixing="full"`` the mean square over nodes and channels of the output is, on
        average over the weights, ``gain^2`` times that of the input (times ``in_channels`` over
        ``out_channels`` summed), for every input and every partition: what deviates from the
        cluster means passes through D alone, and the means pass through the random W alone,
        because D is taken off W's diagonal. The default gain is that of a ReLU which follows.
        """
        variance = gain**2 / self.in_channels
        if isinstance(self.mixing, _LowRankMixing):
            # W of low rank cannot take D off the means, so the two share the variance.
            variance /= 2
        if self.weight_self is not None:
            self.weight_self.normal_(std=math.sqrt(variance))
        if self.mixing is not None:
            self.mixing.reset_parameters(variance)
        if self.weight_self is not None and isinstance(self.mixing, _FullMixing | _QuotientMixing):
            self.mixing.subtract(self._own_weight().expand(self._sizes.numel(), -1, -1))
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map signals ``[..., n, in_channels]`` to ``[..., n, out_channels]``."""
        check_signal(x, self.num_nodes, self.in_channels)
        check_like_weights(self, x=x)
        return self.from_layout(self.map_in_layout(self.to_layout(x)))

    def keeps_order(self, x: Tensor) -> bool:
        """Whether the map of this signal takes nodes in their order, so that nothing is sorted."""
        return self.in_place or self._tiles_of(x) is not None

    def to_layout(self, x: Tensor) -> Tensor:
        """Sort the node axis by cluster, if the map works on sorted nodes."""
        return x if self.keeps_order(x) else kernels.permute_rows(x, self._order, self._rank)

    def from_layout(self, x: Tensor) -> Tensor:
        """Undo :meth:`to_layout`."""
        return x if self.keeps_order(x) else kernels.permute_rows(x, self._rank, self._order)

    def map_in_layout(self, x: Tensor) -> Tensor:
        """The map itself between signals from :meth:`to_layout`.

        A stack of layers on one group sorts only where ``keeps_order`` differs: see
        :class:`gsym.nn.GNet`.
        """
        bias = None if self.bias is None else self._untie(self.bias, self._cluster_orbit)
        tiles = self._tiles_of(x)
        if (
            self.num_nodes is not None
            and self.weight_self is not None
            and isinstance(self.mixing, _FullMixing)
        ):
            sizes = self._sizes.to(torch.promote_types(x.dtype, torch.float32))
            if bias is None:
                bias = x.new_zeros(sizes.numel(), self.out_channels)
            weight, matrix = self._own_weight(), self.mixing.matrix()
            return kernels.cluster_linear(x, weight, matrix, bias, sizes, tiles)
        shared = bias
        if self.mixing is not None:
            shared = self.mixing(self._means(x))
            shared = shared if bias is None else shared + bias
        if self.weight_self is None:
            assert shared is not None and x.size(-2) <= max(self._sizes.numel(), 1)
            return shared
        if tiles is not None:
            return kernels.indexed_linear(x, self._own_weight(), tiles, shared)
        return kernels.grouped_linear(self._runs(x), self._own_weight(), shared).flatten(-3, -2)

    def _tiles_of(self, x: Tensor) -> kernels.Tiles | None:
        """The tables of the map if it takes the rows of ``x`` in the order of the nodes."""
        if self.tiles is None or (self._has_runs and chosen(x) != "cpp"):
            return None
        return self.tiles.to(x.device)

    def _runs(self, x: Tensor) -> Tensor:
        """Split the rows of equal clusters, ``[..., k, c, in]``."""
        k = self._sizes.numel()
        return x.unflatten(-2, (k, x.size(-2) // k))

    def _means(self, x: Tensor) -> Tensor:
        """Mean of every cluster, ``[..., k, in]``."""
        tiles = self._tiles_of(x)
        if tiles is None:
            runs = self._runs(x)
            wide = torch.promote_types(x.dtype, torch.float32)
            return (runs.sum(dim=-2, dtype=wide) / runs.size(-2)).to(x.dtype)
        return kernels.segment_mean(x, tiles.segments)

    def _own_weight(self) -> Tensor:
        """D of every cluster, ``[k, in, out]``, 0 where it has none, or one for all."""
        assert self.weight_self is not None
        if not self._all_own:
            padded = nn.functional.pad(self.weight_self, (0, 0, 0, 0, 0, 1))
            return padded.index_select(0, self._own_index)
        # One matrix for all clusters is passed on as it is.
        one = self.weight_self.size(0) == 1
        return self.weight_self if one else self._untie(self.weight_self, self._own_index)

    def _untie(self, weight: Tensor, orbit: Tensor) -> Tensor:
        """One copy per cluster of the weights of its orbit."""
        return weight if weight.size(0) == orbit.numel() else weight.index_select(0, orbit)

    def extra_repr(self) -> str:
        """Channels and group, for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}, group={self.group or 'S_n'}"


class _FullMixing(nn.Module):
    """Every ordered pair of clusters has a matrix, tied along the orbits of the swaps.

    Without swaps ``weight[s, :, t, :]`` carries the mean of cluster s to cluster t, stored as the
    one matrix that the product needs. With swaps there is one ``weight[orbit]`` per pair orbit.
    """

    sizes: Tensor

    def __init__(self, in_channels: int, out_channels: int, group: ClusterGroup) -> None:
        super().__init__()
        k = group.partition.num_clusters
        check_mixing_memory(k * k, in_channels, out_channels, group)
        self.num_clusters = k
        self.register_buffer("sizes", torch.tensor(group.partition.sizes), persistent=False)
        self.pairs: kernels.Segments | None = None
        if group.swaps is None:
            self.weight = nn.Parameter(torch.empty(k, in_channels, k, out_channels))
        else:
            orbits = group.cluster_pair_orbits()
            # Source first: pair (t, s) is read at position s * k + t.
            self.pairs = kernels.Segments(orbits.index.t().reshape(-1), orbits.num_orbits)
            self.weight = nn.Parameter(torch.empty(orbits.num_orbits, in_channels, out_channels))

    def matrix(self) -> Tensor:
        """The map from all means to all clusters, ``[k * in, k * out]``."""
        if self.pairs is None:
            return self.weight.flatten(2).flatten(0, 1)
        k = self.num_clusters
        table = kernels.segment_gather(self.weight.flatten(1), self.pairs.to(self.weight.device))
        blocks = table.view(k, k, *self.weight.shape[1:])
        return blocks.transpose(1, 2).flatten(2).flatten(0, 1)

    def forward(self, means: Tensor) -> Tensor:
        return (means.flatten(-2) @ self.matrix()).unflatten(
            -1, (self.num_clusters, self.weight.size(-1))
        )

    def reset_parameters(self, variance: float) -> None:
        k = self.num_clusters
        share = (self.sizes / self.sizes.sum()).to(self.weight)
        if self.pairs is None:
            scale = torch.sqrt(variance * share)
            self.weight.normal_().mul_(scale.view(k, 1, 1, 1))
            return
        # Tied entries add up coherently. Multiplying by the inverse root of the mean Gram matrix,
        # which lies in the commutant too, makes the random map an isometry on average.
        pairs = self.pairs.index.to(share.device)
        root = _inverse_root(_gram(pairs.view(k, k).t(), share)).to(share)
        draw = torch.randn_like(self.weight).flatten(1) * math.sqrt(variance)
        full = torch.einsum("utf,us->stf", draw[pairs].view(k, k, -1), root)
        full = full * share.sqrt().view(k, 1, 1)
        self.weight.copy_(full.flatten(0, 1)[self._first].view_as(self.weight))

    def subtract(self, own: Tensor) -> None:
        """Take matrices ``[k, in, out]``, constant on orbits, off each cluster's own pair."""
        every = torch.arange(self.num_clusters, device=own.device)
        if self.pairs is None:
            self.weight[every, :, every, :] -= own
        else:
            orbit = self.pairs.index.to(own.device).view(self.num_clusters, -1).diagonal()
            first = own.new_zeros(self.weight.shape)
            first[orbit] = own
            self.weight.sub_(first)

    @property
    def _first(self) -> Tensor:
        """One position of each pair orbit."""
        assert self.pairs is not None
        return self.pairs.order[self.pairs.pointers[:-1]].to(self.weight.device)


class _LowRankMixing(nn.Module):
    """``W[t, s] = sum_r left[t, r] right[s, r] weight[r]``: ``r (d d' + 2k)`` parameters."""

    orbit: Tensor
    spread: Tensor

    def __init__(self, in_channels: int, out_channels: int, group: ClusterGroup, rank: int) -> None:
        super().__init__()
        orbits = group.cluster_orbits()
        self.register_buffer("orbit", orbits.index, persistent=False)
        sizes = torch.tensor(group.partition.sizes)
        # An orbit of clusters shares its entry of ``right``, so its terms add up coherently.
        spread = sizes / sizes.sum() / orbits.sizes[orbits.index]
        self.register_buffer("spread", spread, persistent=False)
        self.left = nn.Parameter(torch.empty(orbits.num_orbits, rank))
        self.right = nn.Parameter(torch.empty(orbits.num_orbits, rank))
        self.weight = nn.Parameter(torch.empty(rank, in_channels, out_channels))

    def forward(self, means: Tensor) -> Tensor:
        read = torch.einsum("sr,...si->...ri", self.right[self.orbit], means)
        mixed = torch.einsum("...ri,rio->...ro", read, self.weight)
        return torch.einsum("tr,...ro->...to", self.left[self.orbit], mixed)

    def reset_parameters(self, variance: float) -> None:
        self.left.normal_()
        scale = torch.empty_like(self.right[:, 0])
        scale[self.orbit] = self.spread.to(scale).sqrt()
        self.right.normal_().mul_(scale[:, None])
        self.weight.normal_(std=math.sqrt(variance / self.weight.size(0)))


class _QuotientMixing(nn.Module):
    """One matrix per edge of the coarse graph and per cluster, tied along orbits of the swaps."""

    spread: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, group: ClusterGroup, edge_index: Tensor
    ) -> None:
        super().__init__()
        k = group.partition.num_clusters
        source, target = check_edge_index(edge_index, k).cpu()
        keys = torch.cat([target * k + source, torch.arange(k) * (k + 1)])
        keys = torch.unique(keys)
        target, source = keys // k, keys % k
        pairs = torch.stack([target, source])
        if group.swaps is None:
            orbit, num_orbits = torch.arange(keys.numel()), keys.numel()
        elif not group.swaps.preserves(pairs):
            raise GroupError(
                "cluster_edge_index must be preserved by the swaps of the group; add the images "
                "of its edges, or leave the swaps out"
            )
        else:
            orbits = group.swaps.edge_orbits(pairs)
            orbit, num_orbits = orbits.index, orbits.num_orbits
        check_mixing_memory(keys.numel(), in_channels, out_channels, group)
        self.source = kernels.Segments(source, k)
        self.target = kernels.Segments(target, k)
        self.pairs = kernels.Segments(orbit, num_orbits)
        sizes = torch.tensor(group.partition.sizes)
        reached = torch.zeros_like(sizes).index_add_(0, target, sizes[source])
        coherent = torch.bincount(target * num_orbits + orbit, minlength=k * num_orbits)
        spread = sizes[source] / reached[target] / coherent[target * num_orbits + orbit]
        self.register_buffer("spread", spread, persistent=False)
        self.weight = nn.Parameter(torch.empty(num_orbits, in_channels, out_channels))

    def forward(self, means: Tensor) -> Tensor:
        source, target, pairs = (s.to(means.device) for s in (self.source, self.target, self.pairs))
        sent = kernels.segment_gather(means, source)
        weight = kernels.segment_gather(self.weight.flatten(1), pairs)
        weight = weight.unflatten(-1, self.weight.shape[1:])
        return kernels.segment_sum(torch.einsum("...qi,qio->...qo", sent, weight), target)

    def reset_parameters(self, variance: float) -> None:
        scale = self.weight.new_empty(self.weight.size(0))
        scale[self.pairs.index.to(scale.device)] = torch.sqrt(variance * self.spread.to(scale))
        self.weight.normal_().mul_(scale[:, None, None])

    def subtract(self, own: Tensor) -> None:
        """Take matrices ``[k, in, out]``, constant on orbits, off each cluster's own pair."""
        source, target, pairs = (
            s.index.to(own.device) for s in (self.source, self.target, self.pairs)
        )
        loop = source == target
        first = own.new_zeros(self.weight.shape)
        first[pairs[loop]] = own[source[loop]]
        self.weight.sub_(first)


def as_clusters(group: PermutationGroup | None) -> ClusterGroup:
    """Any group as clusters with swaps: a general one exchanges single nodes."""
    if group is None:
        return ClusterGroup(Partition.single(1))
    if isinstance(group, ClusterGroup):
        return group
    if not isinstance(group, PermutationGroup):
        raise TypeError(
            f"group must be a PermutationGroup, a ClusterGroup or None; got {type(group).__name__}"
        )
    return ClusterGroup(Partition.singletons(group.num_nodes), swaps=group)


def fingerprint(group: PermutationGroup | None) -> Tensor:
    """The group's fingerprint as uint8 ``[32]``, which every checkpoint format can hold."""
    digest = hashlib.sha256(b"S_n").digest() if group is None else group.fingerprint()
    return torch.tensor(list(digest), dtype=torch.uint8)


def check_fingerprint(state: Tensor, group: PermutationGroup | None) -> None:
    """Refuse a fingerprint other than that of ``group``."""
    if not torch.equal(state.cpu(), fingerprint(group)):
        raise GroupError(
            f"the checkpoint was saved with another group than {group or 'S_n'}: its weights are "
            "tied along other orbits; build the layer with the group of the checkpoint"
        )


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


def _check_options(mixing: str, rank: int | None, cluster_edge_index: Tensor | None) -> None:
    if mixing not in MIXINGS:
        raise ValueError(f"mixing must be one of {', '.join(MIXINGS)}; got {mixing!r}")
    valid = isinstance(rank, int) and rank >= 1
    if (rank is not None) != (mixing == "low_rank") or (rank is not None and not valid):
        raise ValueError(
            f'rank must be given, an integer of at least 1, for mixing="low_rank" alone; got {rank}'
        )
    if (cluster_edge_index is not None) != (mixing == "quotient"):
        raise ValueError('cluster_edge_index must be given for mixing="quotient" alone')


def _gram(orbit: Tensor, share: Tensor) -> Tensor:
    """Mean of ``W^T diag(share) W`` over random W constant on ``orbit``, ``[k, k]`` float64."""
    k = orbit.size(0)
    # One sparse row per (target, orbit) that marks the sources of that orbit.
    row = torch.arange(k)[:, None] * (int(orbit.max()) + 1) + orbit.cpu()
    entry = share.cpu().double().sqrt()[:, None].expand(k, k)
    _, compact = np.unique(row.numpy(), return_inverse=True)
    column = np.tile(np.arange(k), k)
    marks = csr_array((entry.reshape(-1).numpy(), (compact.reshape(-1), column)))
    return torch.from_numpy((marks.T @ marks).toarray())


def _inverse_root(matrix: Tensor) -> Tensor:
    """Inverse square root of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T
