"""Weights that a group with representations ties up to signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from gsym import kernels
from gsym.errors import GroupError
from gsym.groups import ClusterGroup, Orbits, PermutationGroup, Representation
from gsym.nn._matrix_tie import MatrixTie, gram
from gsym.nn._mixing import check_mixing_memory
from gsym.nn._modules import Numbers, TabledModule, Tables
from gsym.nn._tied import as_clusters


@dataclass(frozen=True)
class Channels:
    """Channels as ``copies`` of a smaller representation, channel ``a * copies + t`` being copy t.

    Copies move alike, so that weights between two sets of copies form free matrices: the fewer
    channels the smaller representation has, the larger these are.
    """

    base: Representation | None
    width: int
    copies: int

    @classmethod
    def of(
        cls, rep: Representation | None, channels: int, group: PermutationGroup | None, name: str
    ) -> Channels:
        """The channels of one side of a layer.

        Raises:
            GroupError: A representation of another group or of another number of channels.
            TypeError: No representation.
        """
        if rep is None:
            still = None if group is None else Representation.trivial(as_clusters(group), 1)
            return cls(still, 1, channels)
        if not isinstance(rep, Representation):
            raise TypeError(f"{name} must be a gsym.Representation; got {type(rep).__name__}")
        if group is None:
            raise GroupError(
                f"{name} needs the group that it represents; group=None, all permutations of any "
                "number of nodes, leaves channels alone"
            )
        rep.check_group(group)
        if rep.num_channels != channels:
            raise GroupError(f"{name} has {rep.num_channels} channels; the layer has {channels}")
        base, copies = rep.without_copies()
        return cls(base.on_clusters(as_clusters(group)), base.num_channels, copies)

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.width * self.copies

    @property
    def moves(self) -> bool:
        """Whether the group does anything to them."""
        return self.base is not None and not self.base.is_trivial

    @property
    def mixes(self) -> bool:
        """Whether the group mixes them by matrices."""
        return self.base is not None and self.base.mixes_channels


@dataclass(frozen=True)
class SignedTie(Tables):
    """Which free block, with which sign, lies at every position of a table of blocks."""

    blocks: kernels.Segments | None  # block of every position; None if all are zero
    index: Tensor  # the same as the orbits have it, -1 where nothing may lie
    sign: Numbers  # 1 or -1, 0 there
    first: Tensor  # a position of every block
    free: int  # number of blocks

    @classmethod
    def of(cls, orbits: Orbits) -> Self:
        """The tie of orbits with signs, on the CPU."""
        assert orbits.signs is not None
        index, free = orbits.index.reshape(-1), orbits.num_orbits
        found, places = np.unique(index.numpy(), return_index=True)
        first = torch.from_numpy(places[found >= 0])
        blocks = kernels.Segments(index.clamp(min=0), free) if free else None
        return cls(blocks, orbits.index, Numbers.of(orbits.signs.double()), first, free)

    def expand(self, weight: Tensor) -> Tensor:
        """The table ``[p, ...]`` of the free blocks ``[free, ...]``."""
        if self.blocks is None:
            return weight.new_zeros(self.index.numel(), *weight.shape[1:])
        rows = kernels.segment_gather(weight.flatten(1), self.blocks)
        signs = self.sign.like(weight).to(weight.dtype).view(-1, 1)
        return (rows * signs).unflatten(1, weight.shape[1:])

    def read(self, table: Tensor) -> Tensor:
        """The free blocks of a table that is tied."""
        sign = self.sign.like(table).view(-1)[self.first].to(table.dtype)
        return table[self.first] * sign.view(-1, *[1] * (table.dim() - 1))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the positions."""
        return tuple(self.index.shape)

    def gram(self, place: Tensor, share: Tensor) -> Tensor:
        """As :meth:`MatrixTie.gram`."""
        sign = self.sign.double.reshape(-1)
        position = sign.nonzero()[:, 0]
        return gram(place, share, position, self.index.reshape(-1)[position], sign[position])


Tie = SignedTie | MatrixTie


def isometric(draw: Tensor, tie: Tie, place: Tensor, share: Tensor) -> Tensor:
    """Random tied maps, scaled so that they keep lengths on average.

    Args:
        draw: Independent normal blocks, ``[free, f]``.
        tie: How the entries of some maps follow from them.
        place: Position of every entry, int64 ``[..., t, s]``.
        share: Weight of every row in the squared length, float64 ``[t]``.

    Returns:
        Entries ``[..., t, s, f]``, tied as before: the mean of ``W^T diag(share) W`` is the
        identity where the maps do not vanish, and that root commutes with the group.
    """
    values, vectors = torch.linalg.eigh(tie.gram(place, share))
    kept = values > 1e-9 * values.amax(dim=-1, keepdim=True).clamp(min=1e-300)
    inverse = torch.where(kept, values, 1).rsqrt() * kept
    root = vectors @ torch.diag_embed(inverse) @ vectors.mT
    full = tie.expand(draw.double())[place]
    return torch.einsum("...tuf,...us->...tsf", full, root)


@dataclass(frozen=True)
class _SignedRows(Tables):
    """Which row of the weights, with which sign, every row of copies in a matrix is."""

    source: kernels.Segments
    target: kernels.Segments
    sign: Numbers

    @classmethod
    def of(cls, tie: SignedTie, copies: int) -> Self:
        """Of entries ``[t, s, out, in]``, for rows ``[s, in, copy, t, out]``."""
        index, sign = (v.permute(1, 3, 0, 2).unsqueeze(2) for v in (tie.index, tie.sign.double))
        copy = torch.arange(copies, device="cpu").view(-1, 1, 1)
        rows = (index * copies + copy).reshape(-1)
        signs = sign.expand(*sign.shape[:2], copies, *sign.shape[3:]).reshape(-1)
        kept = signs != 0
        return cls(
            kernels.Segments(rows[kept], tie.free * copies),
            kernels.Segments(kept.nonzero()[:, 0], kept.numel()),
            Numbers.of(signs[kept]),
        )

    def lay(self, weight: Tensor) -> Tensor:
        """The rows, of blocks ``[free, copies, copies]``."""
        sign = self.sign.like(weight)
        return kernels.gather_segment_sum(weight.flatten(0, 1), self.source, self.target, sign)


@dataclass(frozen=True)
class _MixingTables(Tables):
    tie: Tie  # of entries [t, s, out, in] with base channels
    share: Tensor  # of the nodes that every cluster has, float64 [k]
    rows: _SignedRows | None  # where copies are many: laid at once where the matrix has them


# From so many copies on, a row of them is worth an index.
_MANY = 8


class SignedMixing(TabledModule[_MixingTables]):
    """Every ordered pair of clusters has a matrix, tied along the swaps that move channels too.

    ``weight[orbit, i, o]`` carries copy i of one base channel to copy o of another.
    """

    def __init__(self, into: Channels, out: Channels, group: ClusterGroup) -> None:
        super().__init__()
        k = group.partition.num_clusters
        check_mixing_memory(k * k, into.width * into.copies, out.width * out.copies, group)
        self.group, self.into, self.out, self.num_clusters = group, into, out, k
        free = self._tables(torch.device("cpu")).tie.free
        self.weight = nn.Parameter(torch.empty(free, into.copies, out.copies))

    def _build_tables(self) -> _MixingTables:
        tie = pair_tie(self.group, self.into, self.out)
        rows = None
        if isinstance(tie, SignedTie) and tie.free and self.out.copies >= _MANY:
            rows = _SignedRows.of(tie, self.into.copies)
        sizes = torch.tensor(self.group.partition.sizes).double()
        return _MixingTables(tie, sizes / sizes.sum(), rows)

    def _entries(self, table: Tensor) -> Tensor:
        """Blocks ``[t, s, out, in]`` of copies as matrices ``[s, in, t, out]`` of channels."""
        k, a, b = self.num_clusters, self.out.width, self.into.width
        blocks = table.view(k, k, a, b, *table.shape[1:]).permute(1, 3, 4, 0, 2, 5)
        return blocks.flatten(4, 5).flatten(1, 2)

    def matrix(self) -> Tensor:
        """The map from all means to all clusters, ``[k * in, k * out]``."""
        tables, k = self._tables(self.weight.device), self.num_clusters
        if tables.rows is not None:
            return tables.rows.lay(self.weight).view(k * self.into.width * self.into.copies, -1)
        full = self._entries(tables.tie.expand(self.weight))
        return full.flatten(2).flatten(0, 1)

    def forward(self, means: Tensor) -> Tensor:
        """Mix means ``[..., k, in]`` to ``[..., k, out]``."""
        width = self.out.width * self.out.copies
        return (means.flatten(-2) @ self.matrix()).unflatten(-1, (-1, width))

    def reset_parameters(self, variance: float) -> None:
        """Draw weights that give a random signal this much of its variance."""
        if self.weight.is_meta or not self.weight.numel():
            return
        tables, a, b = self._tables(self.weight.device), self.out.width, self.into.width
        k = tables.share.numel()
        draw = torch.randn_like(self.weight).flatten(1) * math.sqrt(variance * a)
        share = tables.share.repeat_interleave(a)
        # Rows are (t, out), columns (s, in).
        place = torch.arange(k * k * a * b, device=draw.device).view(k, k, a, b)
        place = place.transpose(1, 2).reshape(k * a, k * b)
        full = isometric(draw, tables.tie, place, share).view(k, a, k, b, -1)
        full = full * tables.share.sqrt().view(1, 1, k, 1, 1)
        full = full.transpose(1, 2).flatten(0, 3)
        self.weight.copy_(tables.tie.read(full).view_as(self.weight))

    def subtract(self, own: Tensor) -> None:
        """Take matrices ``[k, in, out]``, tied as the diagonal is, off each cluster's own pair."""
        k, (a, b) = own.size(0), (self.out.width, self.into.width)
        every = torch.arange(k, device=own.device)
        table = own.new_zeros(k, k, a, b, self.into.copies, self.out.copies)
        own = own.view(k, b, self.into.copies, a, self.out.copies)
        table[every, every] = own.permute(0, 3, 1, 2, 4)
        self.weight.sub_(self._tables(own.device).tie.read(table.flatten(0, 3)))


def pair_tie(group: ClusterGroup, into: Channels, out: Channels) -> Tie:
    """The tie ``[t, s, out, in]`` of the matrix from every cluster to every other."""
    if into.mixes or out.mixes:
        return MatrixTie.of(group.cluster_pair_maps(into.base, out.base))
    return SignedTie.of(group.cluster_pair_orbits(into.base, out.base))


def own_tie(group: ClusterGroup, into: Channels, out: Channels, has_own: Tensor) -> Tie:
    """The tie ``[k, out, in]`` of the matrix that nodes have for themselves, by cluster.

    Those of clusters that have none are left out.
    """
    if into.mixes or out.mixes:
        return MatrixTie.of(group.cluster_maps(into.base, out.base, has_own))
    found = group.cluster_orbits(into.base, out.base)
    assert found.signs is not None
    index, signs = found.index.clone(), found.signs.clone()
    index[~has_own], signs[~has_own] = -1, 0
    return SignedTie.of(Orbits.from_keys(index, signs))


def bias_tie(group: ClusterGroup, out: Channels) -> Tie:
    """The tie ``[k, out, 1]`` of what is added to the nodes of every cluster."""
    if out.mixes:
        return MatrixTie.of(group.cluster_maps(None, out.base))
    return SignedTie.of(group.cluster_orbits(None, out.base))


def own_matrices(tie: Tie, weight: Tensor, into: Channels, out: Channels) -> Tensor:
    """The matrices ``[k, in, out]`` from their free blocks."""
    blocks = tie.expand(weight).view(-1, out.width, into.width, into.copies, out.copies)
    return blocks.permute(0, 2, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def draw_own(tie: Tie, weight: Tensor, variance: float, width: int) -> None:
    """Fill the free blocks so that every matrix keeps lengths, up to this variance."""
    if weight.is_meta or not weight.numel():
        return
    draw = torch.randn_like(weight).flatten(1) * math.sqrt(variance * width)
    place = torch.arange(math.prod(tie.shape), device=draw.device).view(tie.shape)
    full = isometric(draw, tie, place, torch.ones(width, dtype=torch.float64, device=draw.device))
    weight.copy_(tie.read(full.flatten(0, -2)).view_as(weight))


@dataclass(frozen=True)
class PairTies(Tables):
    """Ties of one matrix per ordered pair of clusters, and of one per cluster for a node itself.

    The second are left out for clusters of one node. Free blocks of the first come first.
    """

    pairs: Tie
    own: Tie
    has_own: Tensor

    @classmethod
    def of(cls, group: ClusterGroup, into: Channels, out: Channels) -> Self:
        """The ties of a group, on the CPU."""
        has_own = torch.tensor(group.partition.sizes) > 1
        return cls(pair_tie(group, into, out), own_tie(group, into, out, has_own), has_own)

    @property
    def free(self) -> int:
        """Number of free blocks."""
        return self.pairs.free + self.own.free

    def matrices(self, weight: Tensor, into: Channels, out: Channels) -> Tensor:
        """The matrices ``[k * k + own, in, out]``, pairs (t, s) target first."""
        pairs, own = weight.split([self.pairs.free, self.own.free])
        alone = own_matrices(self.own, own, into, out)[self.has_own]
        return torch.cat([own_matrices(self.pairs, pairs, into, out), alone])

    def draw(self, weight: Tensor, variance: float, out: Channels) -> None:
        """Fill the free blocks so that every matrix keeps lengths, up to this variance."""
        parts = weight.split([self.pairs.free, self.own.free])
        for tie, part in zip((self.pairs, self.own), parts, strict=True):
            draw_own(tie, part, variance, out.width)


def hidden_rep(
    kind: str | Representation,
    width: int,
    group: PermutationGroup | None,
    activation: str = "ReLU",
) -> Representation | None:
    """How channels between two layers move.

    Raises:
        ValueError: A kind that is unknown.
        GroupError: No group; a width that holds no copies; channels that change signs or mix.
    """
    if isinstance(kind, Representation):
        if group is None:
            raise GroupError("hidden needs the group that it represents; got group=None")
        kind.check_group(group)
        if not kind.is_permutation:
            raise GroupError(
                f"hidden channels pass through {activation}, which acts on each alone and, like "
                "most, is not odd, so the group may exchange them, but neither change their signs "
                "nor mix them; "
                f'got {kind!r}; use hidden="regular", in which every representation lies, or '
                "Representation.from_permutation"
            )
        small, said = kind, "hidden"
    elif kind == "trivial":
        return None
    elif kind != "regular":
        raise ValueError(
            f'hidden must be "trivial", "regular" or a gsym.Representation; got {kind!r:.80}'
        )
    elif group is None:
        raise GroupError('hidden="regular" needs a group; group=None leaves channels alone')
    else:
        small, said = Representation.regular(group), 'hidden="regular"'
    copies, left = divmod(width, small.num_channels)
    if left or not copies:
        raise GroupError(
            f"{said} has {small.num_channels} channels per copy, so hidden widths must be "
            f"multiples of that; got {width}"
        )
    return copies * small
