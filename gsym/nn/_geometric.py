"""What layers on coordinates share: checks, one prepared graph, and stacks of layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gsym._validate import (
    check_edge_attr,
    check_like_weights,
    check_positions,
    check_signal,
    check_widths,
)
from gsym.errors import GroupError
from gsym.groups import PermutationGroup, Representation
from gsym.nn._activations import Activation, resolve_activation
from gsym.nn._batch import check_batch, count_graphs, unstack, unstack_rows
from gsym.nn._last_graph import LastGraph
from gsym.nn._messages import EdgeGraph
from gsym.nn._modules import Tables, draw_again, own_parameter
from gsym.nn._moved import Maps
from gsym.nn._nodewise import NodeMap
from gsym.nn._signs import Channels
from gsym.nn._tied import TiedLayer, check_group


@dataclass(frozen=True)
class Inputs:
    """What a layer was given, checked, unstacked and sorted."""

    x: Tensor
    pos: Tensor
    graph: EdgeGraph
    edge_attr: Tensor | None  # in the order of the graph's edges
    velocity: Tensor | None
    batch_size: int | None  # of a stacked batch

    def stack(self, x: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs as the inputs came."""
        return (x, pos) if self.batch_size is None else (x.flatten(0, 1), pos.flatten(0, 1))


class GeometricLayer(TiedLayer[Tables]):
    """A layer that takes features and coordinates of nodes on a graph."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        group: PermutationGroup | None,
        *,
        in_rep: Representation | None,
        out_rep: Representation | None,
        hidden: str | Representation | None,
        dim: int | None,
        edge_dim: int,
        velocity: bool,
        pos_rep: Representation | None = None,
        act: Activation = "silu",
    ) -> None:
        super().__init__(check_group(group), in_rep, out_rep)
        check_widths(in_channels=in_channels, out_channels=out_channels)
        check_widths(hidden_channels=hidden_channels)
        self.hidden, self.pos_rep = hidden, pos_rep
        if hidden is None:
            moves = any(rep is not None for rep in (in_rep, out_rep, pos_rep))
            hidden = "regular" if moves else "trivial"
        function = resolve_activation(act, hidden_channels)
        self._maps = Maps(group, hidden, hidden_channels, function)
        self._into = Channels.of(in_rep, in_channels, group, "in_rep")
        self._out = Channels.of(out_rep, out_channels, group, "out_rep")
        check_widths(0, edge_dim=edge_dim)
        if dim is not None:
            check_widths(dim=dim)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.dim, self.edge_dim, self.velocity = dim, edge_dim, velocity
        self.num_nodes = None if group is None else group.num_nodes
        self._graph = LastGraph[EdgeGraph]()
        self._reads_values = True

    def _reps(self) -> tuple[Representation | None, Representation | None]:
        if self.pos_rep is None or self.group is None:
            return self.in_rep, self.out_rep
        first = self.in_rep or Representation.trivial(self.group, self.in_channels)
        return first + self.pos_rep, self.out_rep

    def _join(self, graph: LastGraph[EdgeGraph]) -> None:
        """Become part of a layer, which checks the values that it is given, and share its graph.

        Layers within are called as anyone calls them, so that hooks and wrappers see that; they
        recognise the graph by its values, as ever.
        """
        self._graph, self._reads_values = graph, False

    def _like(self) -> Tensor | None:
        """A weight whose device and type the inputs must have."""
        raise NotImplementedError

    def _prepare(
        self,
        x: Tensor,
        pos: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None,
        velocity: Tensor | None,
        batch: Tensor | None,
        batch_size: int | None,
    ) -> Inputs:
        if (velocity is None) == self.velocity:
            needs = "needs velocity" if self.velocity else "takes no velocity"
            raise TypeError(f"a layer with velocity={self.velocity} {needs}")
        batch_size = self._count_graphs(x, edge_index, batch, batch_size)
        if batch_size is not None:
            x = unstack(x, batch_size, self.num_nodes)
            pos = unstack(pos, batch_size, self.num_nodes)
            if velocity is not None:
                velocity = unstack(velocity, batch_size, self.num_nodes)
        check_signal(x, self.num_nodes, self.in_channels)
        check_positions(pos, x, self.dim, values=self._reads_values)
        if velocity is not None:
            check_positions(velocity, x, pos.size(-1), "velocity", values=self._reads_values)
        graph = self._graph.get(edge_index, x, batch_size, EdgeGraph.build, EdgeGraph.trace)
        edge_attr = unstack_rows(edge_attr, batch_size, graph.num_edges)
        check_edge_attr(edge_attr, x, graph.num_edges, self.edge_dim)
        if not self.edge_dim:
            edge_attr = None  # PyG gives edges without features as [e, 0]
        check_like_weights(self._like(), x=x, pos=pos, edge_attr=edge_attr, velocity=velocity)
        if edge_attr is not None:
            edge_attr = graph.sort(edge_attr)
        return Inputs(x, pos, graph, edge_attr, velocity, batch_size)

    def _count_graphs(
        self, x: Tensor, edge_index: Tensor, batch: Tensor | None, batch_size: int | None
    ) -> int | None:
        """The number of graphs of one size, or None where all are one large graph.

        Without a group nothing but messages passes between nodes, so graphs of any sizes are one
        large graph, unless ``edge_index`` is that of one graph for all.
        """
        if batch is None or self.group is not None or batch_size is not None:
            return count_graphs(x, batch, batch_size, self.num_nodes)
        check_batch(batch, x)
        if torch.compiler.is_compiling() or not batch.numel() or not edge_index.numel():
            return None
        count = int(batch.max()) + 1
        one_for_all = count > 1 and int(edge_index.max()) < x.size(0) // count
        return count_graphs(x, batch, None, None) if one_for_all else None

    def extra_repr(self) -> str:
        """Channels and group, for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}, group={self.group or 'S_n'}"


class GeometricStack(GeometricLayer):
    """Layers of one width between two maps of the features; a learned axis is shared by all."""

    first: NodeMap[Any]
    convs: nn.ModuleList
    last: NodeMap[Any] | None
    axis: nn.Parameter | None

    def _set_layers(
        self,
        conv: Callable[..., GeometricLayer],
        hidden_channels: int,
        out_channels: int | None,
        num_layers: int,
        options: dict[str, Any],
    ) -> None:
        """Make ``num_layers`` of ``conv``, and the maps before and behind them."""
        check_widths(num_layers=num_layers)
        # Several axes would leave fewer symmetries than one. The stack owns it and hands it on.
        learns_axis = options.get("learn_axis", False) is True
        if learns_axis:
            options = options | {"learn_axis": "given"}
        maps = self._maps
        self.first = maps.linear([self._into], maps.hidden)
        between = maps.hidden_rep
        if between is not None:
            options = options | {"in_rep": between, "out_rep": between, "hidden": between}
        elif self.hidden is not None:
            options = options | {"hidden": self.hidden}
        convs = [
            conv(
                hidden_channels,
                hidden_channels,
                hidden_channels,
                self.edge_dim,
                group=self.group,
                dim=self.dim,
                velocity=self.velocity,
                **options,
            )
            for _ in range(num_layers)
        ]
        self.dim = convs[0].dim
        for layer in convs:
            layer._join(self._graph)
        self.convs = nn.ModuleList(convs)
        self.last = None
        if out_channels is None:
            if self.out_rep is not None and self.out_rep != between:
                raise GroupError(
                    "out_channels=None returns hidden channels, which move as hidden= says; leave "
                    "out_rep out, or give out_channels"
                )
            self.out_rep = between
        else:
            self.last = maps.linear([maps.hidden], self._out)
        self.register_parameter("axis", None)
        if learns_axis and self.dim is not None:
            self.axis = nn.Parameter(torch.empty(self.dim))

    def _join(self, graph: LastGraph[EdgeGraph]) -> None:
        super()._join(graph)
        for layer in self.convs:
            assert isinstance(layer, GeometricLayer)
            layer._join(graph)

    def _like(self) -> Tensor | None:
        return own_parameter(self.first, "weight")

    @torch.no_grad()
    def _reset(self, *parts: nn.Module | None) -> None:
        """Draw the parts in this order; the layers move as far as one."""
        for part in parts:
            if isinstance(part, GeometricLayer):
                draw_again(part, depth=len(self.convs))
            elif part is not None:
                draw_again(part)
        if self.axis is not None:
            draw_direction(self.axis)

    def _run(
        self, given: Inputs, edge_index: Tensor, edge_attr: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """The layers in turn, each called as anyone would call it.

        Args:
            given: The checked inputs, velocities among them.
            edge_index: The graph as it was given.
            edge_attr: Attributes as they were given.
            **options: Further arguments of every layer, left out where they are ``None``.
        """
        x, pos = given.stack(self.first(given.x), given.pos)
        if given.velocity is not None:
            options["velocity"] = given.stack(given.velocity, given.velocity)[0]
        options |= {"axis": self.axis, "batch_size": given.batch_size}
        options = {name: value for name, value in options.items() if value is not None}
        for conv in self.convs:
            x, pos = conv(x, pos, edge_index, edge_attr, **options)
        if self.last is None:
            return x, pos
        if given.batch_size is None:
            return self.last(x), pos
        return self.last(unstack(x, given.batch_size, self.num_nodes)).flatten(0, 1), pos


@torch.no_grad()
def draw_direction(axis: Tensor) -> None:
    """A random unit vector."""
    axis.copy_(nn.functional.normalize(torch.randn_like(axis), dim=0))


def short_repr(layer: GeometricLayer, cls: type, options: dict[str, object]) -> str:
    """``Name(in, out, option=value)`` with the options that are not the default of ``cls``."""
    defaults = inspect.signature(cls).parameters
    given = [
        f"{name}={value!r}"
        for name, value in options.items()
        if name not in defaults or value != defaults[name].default
    ]
    channels = str(layer.in_channels), str(layer.out_channels)
    return f"{type(layer).__name__}({', '.join((*channels, *given))})"


def check_residual(layer: GeometricLayer, residual: bool | None) -> bool:
    """Whether to add the input features; refused where the sides differ."""
    into, out = layer.in_channels, layer.out_channels
    if residual and into != out:
        raise ValueError(f"residual=True needs as many channels out as in; got {into} and {out}")
    sides = [None if r is None or r.is_trivial else r for r in (layer.in_rep, layer.out_rep)]
    if residual and sides[0] != sides[1]:
        raise ValueError(
            "residual=True adds the input features, so the group must move both sides alike; got "
            f"in_rep={layer.in_rep!r} and out_rep={layer.out_rep!r}"
        )
    return into == out and sides[0] == sides[1] if residual is None else residual
