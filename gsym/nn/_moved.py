"""Maps of nodes by themselves and of hidden channels, for groups that move channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsym import kernels
from gsym.errors import GroupError
from gsym.groups import PermutationGroup, Representation
from gsym.groups.coordinates import map_orbits
from gsym.nn._activations import Function, describe_activation
from gsym.nn._modules import TabledModule, Tables
from gsym.nn._nodewise import NodeLinear, NodeMap, NodeMLP
from gsym.nn._signs import Channels, SignedTie, Tie, bias_tie, hidden_rep, own_matrices, own_tie
from gsym.nn._tied import as_clusters


@dataclass(frozen=True)
class _MovedTables(Tables):
    tiles: kernels.Tiles
    own: tuple[Tie, ...]  # of every part of the input
    bias: Tie

    def to(self, device: torch.device) -> Self:
        """The same tables on another device."""
        return replace(super().to(device), own=tuple(tie.to(device) for tie in self.own))


class MovedLinear(NodeMap[_MovedTables]):
    """A linear map of every node, tied along a group that moves channels, too.

    What :class:`NodeLinear` is where they stay: its weights commute with the group, and span all
    maps that do so and take nothing from other nodes.

    Args:
        into: The channels of the input, in parts that stand side by side.
        out: Those of the output.
        group: The group.
        bias: Add one learned vector per cluster, tied as well.
        fan_in: Inputs that the initialisation counts, if this is part of a wider map.
    """

    def __init__(
        self,
        into: Sequence[Channels],
        out: Channels,
        group: PermutationGroup,
        *,
        bias: bool = True,
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = sum(part.channels for part in into), out.channels
        self.fan_in = fan_in or self.in_channels
        self.group, self.into, self.out = group, tuple(into), out
        tables = self._tables(torch.device("cpu"))
        self._names = tuple(f"weight_{i}" if i else "weight" for i in range(len(into)))
        for name, part, tie in zip(self._names, self.into, tables.own, strict=True):
            weight = torch.empty(tie.free, part.copies, out.copies)
            self.register_parameter(name, nn.Parameter(weight))
        if bias:
            self.bias = nn.Parameter(torch.empty(tables.bias.free, out.copies))
        else:
            self.register_parameter("bias", None)

    def _build_tables(self) -> _MovedTables:
        clusters = as_clusters(self.group)
        k = clusters.partition.num_clusters
        rows = kernels.Segments(clusters.partition.labels, k)
        tiles = kernels.Tiles(rows, self.in_channels, self.out_channels)
        all_own = torch.ones(k, dtype=torch.bool)
        own = tuple(own_tie(clusters, part, self.out, all_own) for part in self.into)
        return _MovedTables(tiles, own, bias_tie(clusters, self.out))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform within ``1 / sqrt(fan_in)``."""
        bound = 1 / math.sqrt(max(self.fan_in, 1))
        self.draw(bound)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    @torch.no_grad()
    def draw(self, bound: float) -> None:
        """Draw the weights uniformly within a bound."""
        for name in self._names:
            getattr(self, name).uniform_(-bound, bound)

    @torch.no_grad()
    def reset_small(self, gain: float) -> None:
        """Xavier's rule times a gain, without bias."""
        self.draw(gain * math.sqrt(6 / (self.in_channels + self.out_channels)))
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., n, in_channels]`` to ``[..., n, out_channels]``."""
        tables = self._tables(x.device)
        parts = [
            own_matrices(tie, getattr(self, name), part, self.out)
            for name, part, tie in zip(self._names, self.into, tables.own, strict=True)
        ]
        weight = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        bias = None
        if self.bias is not None:
            bias = tables.bias.expand(self.bias).view(-1, self.out_channels)
        return kernels.indexed_linear(x, weight, tables.tiles, bias)

    def extra_repr(self) -> str:
        """Channels, for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}"


@dataclass(frozen=True)
class _InvariantTables(Tables):
    tie: SignedTie


@dataclass(frozen=True)
class _HiddenTables(Tables):
    entries: SignedTie
    offsets: SignedTie


class HiddenLinear(TabledModule[_HiddenTables]):
    """``nn.Linear`` that all edges share, tied so that it commutes with exchanges of channels.

    Args:
        into: The channels of the input.
        out: Those of the output.
        bias: Add a learned vector, tied as well.
    """

    def __init__(self, into: Channels, out: Channels, *, bias: bool = True) -> None:
        super().__init__()
        self.into, self.out = into, out
        tables = self._tables(torch.device("cpu"))
        self.entries = nn.Parameter(torch.empty(tables.entries.free, into.copies, out.copies))
        if bias:
            self.offsets = nn.Parameter(torch.empty(tables.offsets.free, out.copies))
        else:
            self.register_parameter("offsets", None)

    def _build_tables(self) -> _HiddenTables:
        assert self.into.base is not None and self.out.base is not None
        entries = _at_a_point(self.out.base, self.into.base)
        return _HiddenTables(entries, _at_a_point(self.out.base, None))

    @property
    def weight(self) -> Tensor:
        """The matrix ``[out, in]``."""
        tie, (a, b) = self._tables(self.entries.device).entries, (self.out.width, self.into.width)
        blocks = tie.expand(self.entries).view(a, b, self.into.copies, self.out.copies)
        return blocks.permute(0, 3, 1, 2).reshape(self.out.channels, self.into.channels)

    @property
    def bias(self) -> Any:
        """The bias ``[out]``, or ``None``."""
        if self.offsets is None:
            return None
        return self._tables(self.offsets.device).offsets.expand(self.offsets).flatten()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As ``nn.Linear`` draws its own."""
        bound = 1 / math.sqrt(self.into.channels)
        self.draw(bound)
        if self.offsets is not None:
            self.offsets.uniform_(-bound, bound)

    @torch.no_grad()
    def draw(self, bound: float) -> None:
        """Draw the weights uniformly within a bound."""
        self.entries.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Channels, for ``repr``."""
        return f"{self.into.channels}, {self.out.channels}"


class Invariant(TabledModule[_InvariantTables]):
    """Weights of hidden channels that exchanges of these leave alone, from those that are free.

    It has no parameters, so that whoever has them notices what is hooked to them.
    """

    def __init__(self, hidden: Channels) -> None:
        super().__init__()
        self.hidden = hidden
        self.num_free = self._tables(torch.device("cpu")).tie.free * hidden.copies

    def _build_tables(self) -> _InvariantTables:
        assert self.hidden.base is not None
        return _InvariantTables(_at_a_point(self.hidden.base, None))

    def forward(self, free: Tensor) -> Tensor:
        """``[num_free, ...]`` to ``[hidden, ...]``."""
        tie = self._tables(free.device).tie
        return tie.expand(free.reshape(tie.free, self.hidden.copies, *free.shape[1:])).flatten(0, 1)


def _at_a_point(out: Representation, into: Representation | None) -> SignedTie:
    """The tie ``[1, out, in]`` of maps of channels; of one that stays without ``into``."""
    first = Representation.trivial(out.group, 1) if into is None else into
    # One point that every element leaves alone.
    point = torch.zeros(first.moves.images.size(0), 1, dtype=torch.int64)
    return SignedTie.of(map_orbits(point, first.moves, out.moves))


class Maps:
    """Makes the maps of a layer: of nodes, one per node orbit, and of edges, which share them.

    Channels that the group does not move get ordinary maps.

    Args:
        group: The group; ``None`` leaves everything alone.
        hidden: How the channels move that a pointwise activation acts on: ``"trivial"``,
            ``"regular"`` or a representation by permutations.
        hidden_channels: How many there are.
        act: That activation; ``None`` is SiLU.

    Raises:
        GroupError: As :func:`hidden_rep`; an activation with weights per channel where the group
            exchanges channels.
    """

    def __init__(
        self,
        group: PermutationGroup | None,
        hidden: str | Representation,
        hidden_channels: int,
        act: Function | None = None,
    ) -> None:
        self.group, self.act = group, act
        said = "SiLU" if act is None else f"act={describe_activation(act)!r:.80}"
        self.hidden_rep = hidden_rep(hidden, hidden_channels, group, activation=said)
        self.hidden = Channels.of(self.hidden_rep, hidden_channels, group, "hidden")
        weights = act.parameters() if isinstance(act, nn.Module) else ()
        if self.hidden.moves and any(p.numel() > 1 for p in weights):
            raise GroupError(
                f"the group exchanges hidden channels, which {said} treats each by weights of its "
                'own; use one weight for all channels, or hidden="trivial"'
            )

    def still(self, channels: int) -> Channels:
        """Channels that stay as they are."""
        return Channels.of(None, channels, self.group, "")

    def linear(
        self,
        into: Sequence[Channels],
        out: Channels,
        *,
        bias: bool = True,
        fan_in: int | None = None,
    ) -> NodeMap[Any]:
        """A linear map of every node."""
        if self.group is not None and any(side.moves for side in (*into, out)):
            return MovedLinear(into, out, self.group, bias=bias, fan_in=fan_in)
        channels = sum(part.channels for part in into)
        return NodeLinear(channels, out.channels, self.group, bias=bias, fan_in=fan_in)

    def mlp(self, into: Sequence[Channels], out: Channels) -> NodeMLP:
        """Two linear maps of every node, with the hidden channels between them."""
        first, last = self.linear(into, self.hidden), self.linear([self.hidden], out)
        return NodeMLP(first, last, self.act)

    def shared(
        self, into: Channels, out: Channels, *, bias: bool = True
    ) -> nn.Linear | HiddenLinear:
        """A linear map that all edges share."""
        if into.moves or out.moves:
            return HiddenLinear(into, out, bias=bias)
        return nn.Linear(into.channels, out.channels, bias=bias)
