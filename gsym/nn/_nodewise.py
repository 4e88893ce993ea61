"""Maps of every node by itself, one per node orbit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gsym import kernels
from gsym.groups import PermutationGroup
from gsym.nn._activations import Function, on_rows, reset_activation
from gsym.nn._modules import T, TabledModule, Tables, is_plain


@dataclass(frozen=True)
class _NodeTables(Tables):
    tiles: kernels.Tiles | None


class NodeMap(TabledModule[T]):
    """A linear map of every node by itself."""

    in_channels: int
    out_channels: int
    weight: nn.Parameter
    bias: nn.Parameter
    # Whether all nodes have the same.
    is_shared: bool = False

    def reset_parameters(self) -> None:
        """Uniform within ``1 / sqrt(fan_in)``."""
        raise NotImplementedError

    def reset_small(self, gain: float) -> None:
        """Xavier's rule times a gain, without bias."""
        raise NotImplementedError


class NodeLinear(NodeMap[_NodeTables]):
    """A linear map of every node, one per node orbit, drawn as ``nn.Linear`` draws its own.

    Args:
        in_channels: Channels per node of the input.
        out_channels: Channels per node of the output.
        group: Its node orbits get one map each; ``None`` gives all nodes the same.
        bias: Add one learned vector per node orbit.
        fan_in: Inputs that the initialisation counts, if this is part of a wider map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        group: PermutationGroup | None = None,
        *,
        bias: bool = True,
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.fan_in = fan_in or in_channels
        self.group = group
        tiles = self._tables(torch.device("cpu")).tiles
        self.is_shared = tiles is None
        count = 1 if tiles is None else tiles.segments.num_segments
        self.weight = nn.Parameter(torch.empty(count, in_channels, out_channels))
        if bias:
            self.bias = nn.Parameter(torch.empty(count, out_channels))
        else:
            self.register_parameter("bias", None)

    def _build_tables(self) -> _NodeTables:
        if self.group is None:
            return _NodeTables(None)
        orbits = self.group.node_orbits()
        if orbits.num_orbits == 1:
            return _NodeTables(None)
        segments = kernels.Segments(orbits.index, orbits.num_orbits)
        return _NodeTables(kernels.Tiles(segments, self.in_channels, self.out_channels))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform within ``1 / sqrt(fan_in)``."""
        bound = 1 / math.sqrt(max(self.fan_in, 1))
        self.weight.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    @torch.no_grad()
    def reset_small(self, gain: float) -> None:
        """Xavier's rule times a gain, without bias."""
        for weight in self.weight:
            nn.init.xavier_uniform_(weight, gain=gain)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., n, in_channels]`` to ``[..., n, out_channels]``."""
        tiles = self._tables(x.device).tiles
        if tiles is not None:
            return kernels.indexed_linear(x, self.weight, tiles, self.bias)
        # One product of all rows; F.linear would turn the weight there and back and reshape more.
        rows, weight = x.flatten(0, -2), self.weight.squeeze(0)
        y = rows.mm(weight) if self.bias is None else torch.addmm(self.bias, rows, weight)
        return y.reshape(*x.shape[:-1], self.out_channels)

    def extra_repr(self) -> str:
        """Channels and orbits, for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}, orbits={self.weight.size(0)}"


def may_be_read(*maps: NodeMap[Any]) -> bool:
    """Whether all nodes share these maps and nobody notices that they are not called."""
    if not is_plain(NodeLinear, *maps):
        return False
    for part in maps:  # noqa: SIM110  a generator takes as long as all of this
        if not part.is_shared:
            return False
    return True


class NodeMLP(nn.Module):
    """Two linear maps of every node with an activation between, one pair per node orbit.

    Args:
        first: To the hidden channels.
        last: From these.
        act: The activation; ``None`` is SiLU.
    """

    act: Function | None

    def __init__(
        self, first: NodeMap[Any], last: NodeMap[Any], act: Function | None = None
    ) -> None:
        super().__init__()
        self.first, self.last, self.act = first, last, act

    @torch.no_grad()
    def reset_parameters(self, gain: float | None = None) -> None:
        """Draw both maps; a gain replaces the last by Xavier's rule times it, without bias."""
        self.first.reset_parameters()
        self.last.reset_parameters()
        reset_activation(self.act)
        if gain is not None:
            self.last.reset_small(gain)

    def may_be_read(self) -> bool:
        """Whether it has SiLU, and nobody notices that neither map is called, nor this module."""
        return self.act is None and is_plain(NodeMLP, self) and may_be_read(self.first, self.last)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Map ``[..., n, in_channels]``, or two parts of that, to ``[..., n, out_channels]``."""
        first, last = self.first, self.last
        if self.act is None and may_be_read(first, last):
            maps = (first.weight, first.bias), (last.weight, last.bias)
            return kernels.row_mlp(x, *maps, extra)
        hidden = first(x if extra is None else torch.cat([x, extra], dim=-1))
        return last(on_rows(self.act, hidden))
