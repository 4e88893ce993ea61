"""EGNNConv and EGNN: message passing that commutes with rotations, reflections and translations."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsym import kernels
from gsym._validate import (
    SignalError,
    check_clamp,
    check_edge_attr,
    check_edge_index,
    check_like_weights,
    check_positions,
    check_signal,
)
from gsym.groups import PermutationGroup
from gsym.nn._batch import unstack, unstack_rows
from gsym.nn._graph import LastGraph
from gsym.nn.linear import TiedLayer

AGGREGATIONS = ("mean", "sum")

# Of the last map of whatever moves coordinates or is added to the features of a node.
SMALL_GAIN = 0.001


@dataclass
class EdgeGraph:
    """What the layers derive from a graph: its edges sorted by target."""

    num_edges: int
    order: Tensor | None  # [e] given edge at every sorted place; None if they came sorted
    rank: Tensor | None  # [e] its inverse
    source: kernels.Segments
    target: kernels.Segments
    degree: Tensor  # [n, 1] incoming edges, at least 1

    @classmethod
    def build(cls, edge_index: Tensor, num_nodes: int) -> EdgeGraph:
        """Sort the edges of a graph on ``num_nodes`` nodes."""
        source, target = check_edge_index(edge_index, num_nodes)
        order = torch.argsort(target, stable=True)
        came_sorted = bool((target.diff() >= 0).all())
        segments = kernels.Segments(target[order], num_nodes)
        return cls(
            num_edges=order.numel(),
            order=None if came_sorted else order,
            rank=None if came_sorted else torch.argsort(order),
            source=kernels.Segments(source[order], num_nodes),
            target=segments,
            degree=segments.pointers.diff().clamp(min=1)[:, None],
        )

    def sort(self, edge_attr: Tensor) -> Tensor:
        """Attributes ``[..., e, a]`` of the given edges in the order of the sorted ones."""
        if self.order is None or self.rank is None:
            return edge_attr
        return kernels.permute_rows(edge_attr, self.order, self.rank)


@dataclass
class Context:
    """What all layers of a stack see alike, checked and sorted."""

    graph: EdgeGraph
    edge_attr: Tensor | None
    velocity: Tensor | None
    alpha: float | Tensor = 1.0  # how Euclidean the layers of PEnGUiN are


class NodeLinear(nn.Module):
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
        self.tiles: kernels.Tiles | None = None
        count = 1
        if group is not None:
            orbits = group.node_orbits()
            count = orbits.num_orbits
            if count > 1:
                segments = kernels.Segments(orbits.index, count)
                self.tiles = kernels.Tiles(segments, in_channels, out_channels)
        self.weight = nn.Parameter(torch.empty(count, in_channels, out_channels))
        if bias:
            self.bias = nn.Parameter(torch.empty(count, out_channels))
        else:
            self.register_parameter("bias", None)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform within ``1 / sqrt(fan_in)``."""
        bound = 1 / math.sqrt(max(self.fan_in, 1))
        self.weight.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., n, in_channels]`` to ``[..., n, out_channels]``."""
        if self.tiles is not None:
            return kernels.indexed_linear(x, self.weight, self.tiles.to(x.device), self.bias)
        # One product of all rows; F.linear would turn the weight there and back and reshape more.
        rows, weight = x.flatten(0, -2), self.weight.squeeze(0)
        y = rows.mm(weight) if self.bias is None else torch.addmm(self.bias, rows, weight)
        return y.reshape(*x.shape[:-1], self.out_channels)

    def extra_repr(self) -> str:
        """Channels and orbits, for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}, orbits={self.weight.size(0)}"


def _are_shared(*maps: NodeLinear) -> bool:
    """Whether all nodes share these maps, and nobody has put hooks on them or others in place."""
    return all(
        type(part) is NodeLinear
        and part.tiles is None
        and not (part._forward_hooks or part._forward_pre_hooks)
        and not (part._backward_hooks or part._backward_pre_hooks)
        for part in maps
    )


class NodeMLP(nn.Module):
    """Two linear maps of every node with SiLU between, one pair per node orbit."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        group: PermutationGroup | None,
    ) -> None:
        super().__init__()
        self.first = NodeLinear(in_channels, hidden_channels, group)
        self.last = NodeLinear(hidden_channels, out_channels, group)

    def reset_parameters(self, gain: float | None = None) -> None:
        """Draw both maps; a gain replaces the last by Xavier's rule times it, without bias."""
        self.first.reset_parameters()
        self.last.reset_parameters()
        if gain is not None:
            for weight in self.last.weight.detach():
                nn.init.xavier_uniform_(weight, gain=gain)
            nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """Map ``[..., n, in_channels]``, or two parts of that, to ``[..., n, out_channels]``."""
        first, last = self.first, self.last
        if _are_shared(first, last):
            maps = (first.weight, first.bias), (last.weight, last.bias)
            return kernels.row_mlp(x, *maps, beside)
        return last(F.silu(first(x if beside is None else torch.cat([x, beside], dim=-1))))


class EdgeMLP(nn.Module):
    """The messages of both branches: the weights of :func:`gsym.kernels.edge_mlp_sum`.

    The first linear map is kept in parts, one for either end of the edge, so that nodes are
    projected before they are gathered: n products instead of e.

    Args:
        in_channels: Channels of either end.
        hidden_channels: Channels of a message.
        edge_dim: Attributes per edge.
        group: Its node orbits get their own projections.
        invariant: Add the squared distance, and move the coordinates.
        attention: Weigh every message by a learned gate.
        options: Of :func:`gsym.kernels.edge_mlp_sum`.
    """

    distance: nn.Parameter | None
    attr: nn.Parameter | None
    coord: nn.Linear | None
    coord_last: nn.Linear | None

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        edge_dim: int,
        group: PermutationGroup | None,
        *,
        invariant: bool = False,
        attention: bool = False,
        **options: bool | float | None,
    ) -> None:
        super().__init__()
        self.options = options
        self.fan_in = fan_in = 2 * in_channels + edge_dim + invariant
        self.target = NodeLinear(in_channels, hidden_channels, group, fan_in=fan_in)
        self.source = NodeLinear(in_channels, hidden_channels, group, bias=False, fan_in=fan_in)
        self.register_parameter("distance", None)
        self.register_parameter("attr", None)
        if invariant:
            self.distance = nn.Parameter(torch.empty(hidden_channels))
        if edge_dim:
            self.attr = nn.Parameter(torch.empty(hidden_channels, edge_dim))
        self.second = nn.Linear(hidden_channels, hidden_channels)
        self.gate = nn.Linear(hidden_channels, 1) if attention else None
        self.coord = self.coord_last = None
        if invariant:
            self.coord = nn.Linear(hidden_channels, hidden_channels)
            self.coord_last = nn.Linear(hidden_channels, 1, bias=False)

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
        if self.coord_last is not None:
            nn.init.xavier_uniform_(self.coord_last.weight, gain=gain)

    def forward(
        self,
        x: Tensor,
        context: Context,
        pos: Tensor | None = None,
        height: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Messages summed ``[..., n, h]`` and moves ``[..., n, d]``.

        ``height`` ``[..., n, h]`` enters by the difference of the two ends.
        """
        if _are_shared(self.target, self.source):
            maps = self.target.weight, self.target.bias, self.source.weight
            target, source = kernels.linear_pair(x, *maps)
        else:
            target, source = self.target(x), self.source(x)
        if height is not None:
            target, source = target + height, source - height
        graph, attr, coord = context.graph, None, None
        if context.edge_attr is not None and self.attr is not None:
            attr = (context.edge_attr, self.attr)
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
            distance=self.distance,
            edge_attr=attr,
            gate=None if self.gate is None else (self.gate.weight, self.gate.bias),
            coord=coord,
            **self.options,  # type: ignore[arg-type]
        )


class GeometricLayer(TiedLayer):
    """Checks and prepares what all layers on coordinates take, and leaves the rest to ``step``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        group: PermutationGroup | None,
        *,
        dim: int | None,
        edge_dim: int,
        velocity: bool,
    ) -> None:
        super().__init__(group)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.dim, self.edge_dim, self.velocity = dim, edge_dim, velocity
        self.num_nodes = None if group is None else group.num_nodes
        self._graph = LastGraph[EdgeGraph]()

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        *,
        velocity: Tensor | None = None,
        batch_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """New features and coordinates; see the class for shapes.

        Args:
            x: Features ``[..., n, in_channels]``.
            pos: Coordinates ``[..., n, d]``.
            edge_index: The graph, ``[2, e]``.
            edge_attr: Attributes ``[e, edge_dim]`` or ``[..., e, edge_dim]``.
            velocity: Velocities ``[..., n, d]``, if the layer has ``velocity=True``.
            batch_size: Number of graphs in a stacked batch ``[b*n, c]``.
        """
        x, pos, context = self._prepare(x, pos, edge_index, edge_attr, velocity, batch_size)
        x, pos = self.step(x, pos, context)
        return (x, pos) if batch_size is None else (x.flatten(0, 1), pos.flatten(0, 1))

    def step(self, x: Tensor, pos: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The layer itself, on checked input and sorted edges."""
        raise NotImplementedError

    def _prepare(
        self,
        x: Tensor,
        pos: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor | None,
        velocity: Tensor | None,
        batch_size: int | None,
    ) -> tuple[Tensor, Tensor, Context]:
        if (velocity is None) == self.velocity:
            needs = "needs velocity" if self.velocity else "takes no velocity"
            raise TypeError(f"a layer with velocity={self.velocity} {needs}")
        if batch_size is not None:
            x = unstack(x, batch_size, self.num_nodes)
            pos = unstack(pos, batch_size, self.num_nodes)
            if velocity is not None:
                velocity = unstack(velocity, batch_size, self.num_nodes)
        check_signal(x, self.num_nodes, self.in_channels)
        check_positions(pos, x, self.dim)
        if velocity is not None:
            check_positions(velocity, x, pos.size(-1), "velocity")
        graph = self._graph.get(edge_index, x, batch_size, EdgeGraph.build)
        edge_attr = unstack_rows(edge_attr, batch_size, graph.num_edges)
        check_edge_attr(edge_attr, x, graph.num_edges, self.edge_dim)
        check_like_weights(self, x=x, pos=pos, edge_attr=edge_attr, velocity=velocity)
        if edge_attr is not None:
            edge_attr = graph.sort(edge_attr)
        return x, pos, Context(graph, edge_attr, velocity)

    def extra_repr(self) -> str:
        """Channels and group, for ``repr``."""
        return f"{self.in_channels}, {self.out_channels}, group={self.group or 'S_n'}"


class EGNNConv(GeometricLayer):
    r"""Equivariant message passing on features and coordinates (EGNN).

    With :math:`r_{ij} = x_i - x_j` on the edge from j to i,

    .. math::
        m_{ij} = \phi_e(h_i, h_j, |r_{ij}|^2, a_{ij}), \qquad
        x_i' = x_i + \mathrm{mean}_j\, r_{ij}\, \phi_x(m_{ij}), \qquad
        h_i' = h_i + \phi_h(h_i, \textstyle\sum_j m_{ij}).

    Coordinates are moved by differences of coordinates times invariant numbers, which is why the
    layer commutes with every rotation, reflection and translation.

    Of PyG's conventions for message passing it keeps the names, the arguments ``x, pos,
    edge_index, edge_attr`` in this order, and the direction: messages go from ``edge_index[0]`` to
    ``edge_index[1]``, where they are aggregated. It is no ``MessagePassing``, which would store
    every message: there are no ``message`` and ``propagate`` to override or to hang hooks on,
    hence no ``torch_geometric.explain`` through them, no ``flow``, no bipartite graphs and no
    sparse adjacency.

    Args:
        in_channels: Features per node of the input.
        out_channels: Features per node of the output.
        hidden_channels: Width of all hidden layers and of the messages.
        edge_dim: Attributes per edge.
        group: Every node orbit gets its own weights of the nodes: both projections of
            :math:`\phi_e`, :math:`\phi_h` and :math:`\phi_v`; those of the edges are shared.
            ``None`` shares all.
        residual: Add the input features; by default where the widths agree.
        attention: Multiply every message by a learned gate in 0..1.
        normalize: Use the direction of :math:`r_{ij}` in place of :math:`r_{ij}`.
        coord_aggr: ``"mean"`` or ``"sum"`` of the moves of a node.
        tanh: Bound :math:`\phi_x` by 1.
        clamp: Longest move along one edge, in units of ``pos``. The published code cuts every
            coordinate by itself, which rotations do not respect; this shortens the vector.
        velocity: Add :math:`\phi_v(h_i) v_i` to the coordinates, the velocities being given.
        extra_vectors: Directions that break the symmetry, ``[k, d]``, such as gravity. Messages
            see the component of :math:`r_{ij}` along each, and nodes move along them.
        learn_axis: One more such direction, learned; needs ``dim``.
        dim: Number of coordinates d; any if left out.

    Shapes:
        - input: ``x [..., n, in_channels]``, ``pos [..., n, d]``, ``edge_index [2, e]``,
          ``edge_attr [e, edge_dim]`` or ``[..., e, edge_dim]``, ``velocity [..., n, d]``; or PyG's
          stacked batch of one graph with ``batch_size=b``
        - output: ``[..., n, out_channels]`` and ``[..., n, d]``

    Symmetry:
        Coordinates: exact for E(d), rotations, reflections and translations, velocities turning
        along. With ``extra_vectors`` or a learned axis exact for translations and for the
        rotations and reflections that leave each of these vectors where it is. Their weights
        start at zero, so an untrained layer has all of E(d).
        Nodes: exact for each permutation that preserves ``edge_index``, ``edge_attr`` and the node
        orbits of ``group``; so for ``group`` when it preserves the graph. Relabelling everything
        together commutes with ``group=None`` always.

    Raises:
        GraphError: An ``edge_index`` that is out of range, not int64 or not ``[2, e]``;
            ``edge_attr`` of another shape.
        SignalError: Features or coordinates of another shape or type, coordinates or velocities
            that are not finite. On CUDA and in compiled code values are not read.
        GroupError: Loading a checkpoint of another group.

    Cost:
        ``O(n d h + e h^2)`` for width h. The edges run through
        :func:`gsym.kernels.edge_mlp_sum`, which stores nothing per edge and hidden channel. The
        graph is prepared as in :class:`GNetConv`: once, and before
        ``torch.compile(fullgraph=True)``.

    Example:
        >>> conv = EGNNConv(8, 8, hidden_channels=16)
        >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
        >>> x, pos = conv(torch.randn(5, 3, 8), torch.randn(5, 3, 3), edge_index)
        >>> x.shape, pos.shape
        (torch.Size([5, 3, 8]), torch.Size([5, 3, 3]))

    Reference:
        Satorras, Hoogeboom, Welling, arXiv 2102.09844, equations 3 to 6, and 7 with ``velocity``.
        Their code draws :math:`\phi_h` by PyTorch's defaults; ours starts as small as their
        moves, and in a stack both are divided by its depth, so that deep stacks on dense graphs
        stay finite. The zero-initialised axis follows ESNN, arXiv 2608.28853, as its author
        describes it; that nodes move along it is ours.
    """

    axis: nn.Parameter | None
    extra_vectors: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        edge_dim: int = 0,
        *,
        group: PermutationGroup | None = None,
        residual: bool | None = None,
        attention: bool = False,
        normalize: bool = False,
        coord_aggr: str = "mean",
        tanh: bool = False,
        clamp: float | None = None,
        velocity: bool = False,
        extra_vectors: Tensor | None = None,
        learn_axis: bool = False,
        dim: int | None = None,
    ) -> None:
        vectors = None if extra_vectors is None else _check_vectors(extra_vectors, dim)
        dim = dim if vectors is None else vectors.size(1)
        super().__init__(
            in_channels, out_channels, group, dim=dim, edge_dim=edge_dim, velocity=velocity
        )
        if coord_aggr not in AGGREGATIONS:
            raise ValueError(f"coord_aggr must be one of mean, sum; got {coord_aggr!r}")
        check_clamp(clamp)
        self.residual = check_residual(residual, in_channels, out_channels)
        self.hidden_channels = hidden_channels
        self.edges = EdgeMLP(
            in_channels,
            hidden_channels,
            edge_dim,
            group,
            invariant=True,
            attention=attention,
            normalize=normalize,
            tanh=tanh,
            clamp=clamp,
            mean=coord_aggr == "mean",
        )
        self.update = NodeMLP(in_channels + hidden_channels, hidden_channels, out_channels, group)
        self.velocity_mlp = NodeMLP(in_channels, hidden_channels, 1, group) if velocity else None
        self.register_buffer("extra_vectors", vectors)
        self.register_parameter("axis", None)
        if learn_axis:
            if dim is None:
                raise ValueError("learn_axis=True needs dim, the number of coordinates")
            self.axis = nn.Parameter(torch.empty(dim))
        count = learn_axis + (0 if vectors is None else vectors.size(0))
        self.register_parameter("height", None)
        self.fall = None
        if count:
            self.height = nn.Parameter(torch.empty(count, hidden_channels))
            self.fall = NodeMLP(in_channels, hidden_channels, count, group)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, depth: int = 1) -> None:
        """PyTorch's defaults, but small moves and residuals; what breaks the symmetry is zero.

        Sums over many neighbours make a deep stack explode unless it starts small: ``depth``
        layers on each other together move as far as one.
        """
        gain = SMALL_GAIN / depth
        self.edges.reset_parameters(gain)
        self.update.reset_parameters(gain if self.residual else None)
        if self.velocity_mlp is not None:
            self.velocity_mlp.reset_parameters()
        if self.fall is not None and self.height is not None:
            self.fall.reset_parameters(0)
            self.height.zero_()
        if self.axis is not None:
            self.axis.copy_(F.normalize(torch.randn_like(self.axis), dim=0))

    def step(self, x: Tensor, pos: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The layer itself, on checked input and sorted edges."""
        vectors, height = self._vectors(), None
        if vectors is not None:
            # The component of r_ij is a difference of two nodes, so it costs nothing on edges.
            # Centring keeps the difference and avoids cancellation far from the origin.
            height = (pos - pos.mean(-2, keepdim=True)) @ vectors.t() @ self.height
        messages, moves = self.edges(x, context, pos, height)
        new_pos = pos + moves
        if context.velocity is not None and self.velocity_mlp is not None:
            new_pos = new_pos + self.velocity_mlp(x) * context.velocity
        if vectors is not None and self.fall is not None:
            new_pos = new_pos + self.fall(x) @ vectors
        new = self.update(x, messages)
        return x + new if self.residual else new, new_pos

    def _options(self) -> dict[str, object]:
        """What ``repr`` says of the layer: its options by name."""
        edges, vectors = self.edges, self.extra_vectors
        return {
            "hidden_channels": self.hidden_channels,
            "edge_dim": self.edge_dim,
            "group": self.group,
            "residual": None if self.residual == (self.in_channels == self.out_channels) else False,
            "attention": edges.gate is not None,
            "normalize": edges.options["normalize"],
            "coord_aggr": "mean" if edges.options["mean"] else "sum",
            "tanh": edges.options["tanh"],
            "clamp": edges.options["clamp"],
            "velocity": self.velocity,
            "extra_vectors": None if vectors is None else list(vectors.shape),
            "learn_axis": self.axis is not None,
            "dim": self.dim if vectors is None else None,
        }

    def __repr__(self) -> str:
        """As PyG writes its layers, with the options that are not the default."""
        return short_repr(self, EGNNConv, self._options())

    def _vectors(self) -> Tensor | None:
        """All directions that break the symmetry, ``[k, d]``."""
        if self.axis is None:
            return self.extra_vectors
        axis = self.axis[None]
        return axis if self.extra_vectors is None else torch.cat([self.extra_vectors, axis])


class GeometricStack(GeometricLayer):
    """Layers of one width between two maps of the features; a learned axis is shared by all."""

    first: NodeLinear
    convs: nn.ModuleList
    last: NodeLinear | None

    def _set_layers(
        self,
        conv: Callable[..., GeometricLayer],
        hidden_channels: int,
        out_channels: int | None,
        num_layers: int,
        options: dict[str, Any],
    ) -> None:
        """Make ``num_layers`` of ``conv``, and the maps before and behind them."""
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1; got {num_layers}")
        self.first = NodeLinear(self.in_channels, hidden_channels, self.group)
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
        self.convs = nn.ModuleList(convs)
        self.last = None
        if out_channels is not None:
            self.last = NodeLinear(hidden_channels, out_channels, self.group)
        _share_axis(self)
        # With assign=True every layer gets a parameter of its own.
        self.register_load_state_dict_post_hook(_share_axis)

    def _reset(self, *parts: nn.Module | None) -> None:
        """Draw the parts in this order; the layers move as far as one."""
        for part in parts:
            if isinstance(part, GeometricLayer):
                part.reset_parameters(depth=len(self.convs))  # type: ignore[operator]
            elif part is not None:
                part.reset_parameters()  # type: ignore[operator]

    def step(self, x: Tensor, pos: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The layers in turn."""
        x = self.first(x)
        for conv in self.convs:
            x, pos = conv.step(x, pos, context)  # type: ignore[operator]
        return x if self.last is None else self.last(x), pos


def _share_axis(stack: nn.Module, _: object = None) -> None:
    """Give all layers the axis of the first: with several they would have fewer symmetries."""
    convs = [part for part in stack.modules() if isinstance(part, EGNNConv)]
    for conv in convs:
        conv.axis = convs[0].axis


class EGNN(GeometricStack):
    """A stack of :class:`EGNNConv` between two linear maps of the features.

    Args:
        in_channels: Features per node of the input.
        out_channels: Features per node of the output; ``None`` leaves out the last linear map and
            returns ``hidden_channels``.
        hidden_channels: Width of all layers.
        num_layers: Number of layers.
        edge_dim: Attributes per edge.
        group: As in :class:`EGNNConv`; the linear maps are tied along node orbits as well.
        dim: As in :class:`EGNNConv`.
        velocity: As in :class:`EGNNConv`; each layer sees the same, initial velocities.
        **options: Further options of every :class:`EGNNConv`. A learned axis is shared by all.

    Shapes:
        - input: as :class:`EGNNConv`
        - output: as :class:`EGNNConv`

    Symmetry:
        That of :class:`EGNNConv`, for coordinates and nodes.

    Example:
        >>> net = EGNN(1, None, velocity=True, edge_dim=2)
        >>> sum(p.numel() for p in net.parameters())
        134020

    Reference:
        Satorras, Hoogeboom, Welling, arXiv 2102.09844, section 3. The example is their network
        for the n-body task.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None,
        hidden_channels: int = 64,
        num_layers: int = 4,
        *,
        edge_dim: int = 0,
        group: PermutationGroup | None = None,
        dim: int | None = None,
        velocity: bool = False,
        **options,
    ) -> None:
        width = hidden_channels if out_channels is None else out_channels
        super().__init__(in_channels, width, group, dim=dim, edge_dim=edge_dim, velocity=velocity)
        self._set_layers(EGNNConv, hidden_channels, out_channels, num_layers, options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all layers."""
        self._reset(self.first, *self.convs, self.last)


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


def check_residual(residual: bool | None, in_channels: int, out_channels: int) -> bool:
    """Whether to add the input features; refused where the widths differ."""
    if residual and in_channels != out_channels:
        raise ValueError(
            f"residual=True needs as many channels out as in; got {in_channels} and {out_channels}"
        )
    return in_channels == out_channels if residual is None else residual


def _check_vectors(vectors: Tensor, dim: int | None) -> Tensor:
    vectors = torch.as_tensor(vectors, dtype=torch.get_default_dtype())
    if vectors.dim() != 2 or vectors.size(0) == 0:
        raise SignalError(f"extra_vectors must be [k, d]; got {list(vectors.shape)}")
    if dim is not None and vectors.size(1) != dim:
        raise SignalError(f"extra_vectors must be [k, {dim}]; got {list(vectors.shape)}")
    if not bool(vectors.isfinite().all()):
        raise SignalError("extra_vectors must be finite")
    return vectors.clone()
