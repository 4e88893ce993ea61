"""The edges of a graph, sorted by receiver, and the messages along them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsym import kernels
from gsym._validate import check_edge_index
from gsym.kernels.edges import EdgeMaps, EdgeOptions, EdgeStage, Rows, compose_edges
from gsym.nn._activations import Function, on_rows, reset_activation
from gsym.nn._modules import is_plain
from gsym.nn._moved import HiddenLinear, Invariant, Maps
from gsym.nn._nodewise import may_be_read
from gsym.nn._signs import Channels

# Of the last map of whatever moves coordinates or is added to the features of a node.
SMALL_GAIN = 0.001


@dataclass(frozen=True)
class EdgeGraph:
    """What the layers derive from a graph: its edges sorted by target."""

    num_edges: int
    order: Tensor | None  # [e] given edge at every sorted place; None if they came sorted
    rank: Tensor | None  # [e] its inverse
    source: kernels.Segments
    target: kernels.Segments

    @classmethod
    def build(cls, edge_index: Tensor, num_nodes: int) -> EdgeGraph:
        """Sort the edges of a graph on ``num_nodes`` nodes."""
        source, target = check_edge_index(edge_index, num_nodes)
        order = torch.argsort(target, stable=True)
        came_sorted = bool((target.diff() >= 0).all())
        return cls(
            num_edges=order.numel(),
            order=None if came_sorted else order,
            rank=None if came_sorted else torch.argsort(order),
            source=kernels.Segments(source[order], num_nodes),
            target=kernels.Segments(target[order], num_nodes),
        )

    @classmethod
    def trace(cls, edge_index: Tensor, num_nodes: int) -> EdgeGraph:
        """The edges as they come, while a compiler traces; values are not read."""
        source, target = (kernels.Segments.traced(end, num_nodes) for end in edge_index.unbind())
        return cls(edge_index.size(1), None, None, source, target)

    def sort(self, edge_attr: Tensor) -> Tensor:
        """Attributes ``[..., e, a]`` of the given edges in the order of the sorted ones."""
        if self.order is None or self.rank is None:
            return edge_attr
        return kernels.permute_rows(edge_attr, self.order, self.rank)


class EdgeMLP(nn.Module):
    """The messages of both branches: the weights of :func:`gsym.kernels.edge_mlp_sum`.

    The first linear map is kept in parts, one for either end of the edge, so that nodes are
    projected before they are gathered: n products instead of e.

    Args:
        maps: Makes the maps, and says which activation; a message has its hidden channels.
        into: Channels of either end, in parts.
        edge_dim: Attributes per edge.
        invariant: Add the squared distance.
        moves: Move the coordinates, too.
        attention: Weigh every message by a learned gate.
        normalize: As in :func:`gsym.kernels.edge_mlp_sum`, like the others.
        tanh: Bound the factor of a move.
        clamp: Maximum coordinate update per edge.
        mean: Average the moves of a node.
    """

    distance: nn.Parameter | None
    attr: nn.Parameter | None
    coord: nn.Linear | HiddenLinear | None
    coord_last: nn.Linear | HiddenLinear | None
    act: Function | None

    def __init__(
        self,
        maps: Maps,
        into: Sequence[Channels],
        edge_dim: int,
        *,
        invariant: bool = False,
        moves: bool = True,
        attention: bool = False,
        normalize: bool = False,
        tanh: bool = False,
        clamp: float | None = None,
        mean: bool = True,
    ) -> None:
        super().__init__()
        self.options = EdgeOptions(normalize, tanh, clamp, mean)
        in_channels, hidden, one = sum(part.channels for part in into), maps.hidden, maps.still(1)
        self.fan_in = fan_in = 2 * in_channels + edge_dim + invariant
        self.target = maps.linear(into, hidden, fan_in=fan_in)
        self.source = maps.linear(into, hidden, bias=False, fan_in=fan_in)
        # Exchanges of hidden channels tie what all edges share.
        self.widen = Invariant(hidden) if hidden.moves else None
        free = self.num_free = hidden.channels if self.widen is None else self.widen.num_free
        self.register_parameter("distance", None)
        self.register_parameter("attr", None)
        if invariant:
            self.distance = nn.Parameter(torch.empty(free))
        if edge_dim:
            self.attr = nn.Parameter(torch.empty(free, edge_dim))
        self.second = maps.shared(hidden, hidden)
        self.gate = maps.shared(hidden, one) if attention else None
        self.act = maps.act
        self.coord = self.coord_last = None
        if invariant and moves:
            self.coord = maps.shared(hidden, hidden)
            self.coord_last = maps.shared(hidden, one, bias=False)

    @torch.no_grad()
    def reset_parameters(self, gain: float = SMALL_GAIN) -> None:
        """PyTorch's defaults of the whole first map; ``gain`` is that of the moves."""
        bound = 1 / math.sqrt(self.fan_in)
        for parameter in (self.distance, self.attr):
            if parameter is not None:
                parameter.uniform_(-bound, bound)
        for part in (self.target, self.source, self.second, self.gate, self.coord):
            if part is not None:
                part.reset_parameters()
        reset_activation(self.act)
        if isinstance(self.coord_last, HiddenLinear):
            self.coord_last.draw(gain * math.sqrt(6 / (self.target.out_channels + 1)))
        elif self.coord_last is not None:
            nn.init.xavier_uniform_(self.coord_last.weight, gain=gain)

    def forward(
        self,
        x: Tensor,
        graph: EdgeGraph,
        edge_attr: Tensor | None = None,
        pos: Tensor | None = None,
        axis_part: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Messages summed ``[..., n, h]`` and moves ``[..., n, d]``.

        ``edge_attr`` is sorted as the graph is, and ``axis_part`` ``[..., n, h]`` enters by the
        difference of the two ends.
        """
        if may_be_read(self.target, self.source):
            maps = self.target.weight, self.target.bias, self.source.weight
            target, source = kernels.linear_pair(x, *maps)
        else:
            target, source = self.target(x), self.source(x)
        if axis_part is not None:
            target, source = target + axis_part, source - axis_part
        if self._may_be_fused():
            return self._fused(target, source, graph, edge_attr, pos)
        return self._by_modules(target, source, graph, edge_attr, pos)

    def may_be_read(self) -> bool:
        """Whether nobody notices that no map is called, nor this module, but all weights read."""
        return (
            is_plain(EdgeMLP, self)
            and may_be_read(self.target, self.source)
            and self._may_be_fused()
        )

    def tensors(self, edge_attr: Tensor | None) -> dict[str, Tensor]:
        """All weights, and the sorted attributes, as :class:`gsym.kernels.edges.Step` names them.

        Of an edge stage that moves coordinates.
        """
        assert self.distance is not None and self.coord is not None and self.coord_last is not None
        found = {
            "target": self.target.weight,
            "target_bias": self.target.bias,
            "source": self.source.weight,
            "weight": self.second.weight,
            "bias": self.second.bias,
            "distance": self.wide(self.distance),
            "coord": self.coord.weight,
            "coord_bias": self.coord.bias,
            "coord_last": self.coord_last.weight,
        }
        if edge_attr is not None and self.attr is not None:
            found |= {"attr": edge_attr, "attr_weight": self.wide(self.attr)}
        if self.gate is not None:
            found |= {"gate": self.gate.weight, "gate_bias": self.gate.bias}
        return found

    def _may_be_fused(self) -> bool:
        """Whether kernels have the activation, and nobody notices that no map is called."""
        if self.act is not None:
            return False
        parts: list[nn.Module] = [self.second]
        if self.gate is not None:
            parts.append(self.gate)
        if self.coord is not None and self.coord_last is not None:
            parts += self.coord, self.coord_last
        return is_plain(nn.Linear if self.widen is None else HiddenLinear, *parts)

    def wide(self, weight: Tensor) -> Tensor:
        """Weights ``[h, ...]`` of the hidden channels, which exchanges of these may tie."""
        return weight if self.widen is None else self.widen(weight)

    def _fused(
        self,
        target: Tensor,
        source: Tensor,
        graph: EdgeGraph,
        edge_attr: Tensor | None,
        pos: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        attr = coord = None
        if edge_attr is not None and self.attr is not None:
            attr = (edge_attr, self.wide(self.attr))
        if self.coord is not None and self.coord_last is not None:
            coord = (self.coord.weight, self.coord.bias, self.coord_last.weight)
        return kernels.edge_mlp_sum(
            target,
            source,
            graph.source,
            graph.target,
            self.second.weight,
            self.second.bias,
            pos=pos,
            distance=None if self.distance is None else self.wide(self.distance),
            edge_attr=attr,
            gate=None if self.gate is None else (self.gate.weight, self.gate.bias),
            coord=coord,
            **self.options._asdict(),
        )

    def _by_modules(
        self,
        target: Tensor,
        source: Tensor,
        graph: EdgeGraph,
        edge_attr: Tensor | None,
        pos: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The same with another activation, or where somebody listens to a map.

        What is called is called in the type of its input.
        """
        tensors, act = {"receiver": target, "sender": source}, self.act
        if edge_attr is not None and self.attr is not None:
            tensors |= {"attr": edge_attr, "attr_weight": self.wide(self.attr)}
        if pos is not None and self.distance is not None:
            tensors |= {"pos": pos, "distance": self.wide(self.distance)}

        def called(part: nn.Module | None) -> Rows | None:
            return None if part is None else lambda x: part(x.to(target.dtype)).to(x.dtype)

        ends = graph.target, graph.source
        total, moved = compose_edges(
            EdgeStage(tensors, self.options),
            lambda x: kernels.segment_gather(x, ends[0]),
            lambda x: kernels.segment_gather(x, ends[1]),
            lambda x: kernels.segment_sum(x, ends[0]),
            lambda x: kernels.segment_mean(x, ends[0]),
            EdgeMaps(
                lambda x: self.second(x.to(target.dtype)).to(x.dtype),
                called(self.gate),
                called(self.coord),
                called(self.coord_last),
                F.silu if act is None else lambda x: on_rows(act, x.to(target.dtype)).to(x.dtype),
            ),
        )
        return total, None if self.coord is None else moved
