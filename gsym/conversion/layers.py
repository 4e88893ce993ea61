"""What takes the place of parts of a model: called as they were, tied along a chain of groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsym._validate import check_edge_index_type
from gsym.conversion._projecting import TiedMap, write_map
from gsym.errors import GraphError, SignalError
from gsym.groups import Orbits, PermutationGroup
from gsym.nn import OrbitEmbedding, OrbitLinear
from gsym.nn._last_graph import LastGraph
from gsym.nn._modules import TabledModule, Tables
from gsym.nn._orbit_rows import OrbitRows, nearest_rows
from gsym.nn._tied import ChainLayer


class NodeMap(nn.Module):
    """A linear map across nodes, the same for every channel: tied, or a sum along a chain.

    Args:
        maps: One for each group.
        groups: The groups.
        like: Its type and device are those of the weights.
    """

    def __init__(
        self, maps: Sequence[TiedMap], groups: Sequence[PermutationGroup], like: Tensor
    ) -> None:
        super().__init__()
        self.num_nodes = groups[0].num_nodes
        if len(groups) == 1:
            self.map = OrbitLinear(1, 1, groups[0], bias=False).double()
            write_map(self.map, maps[0])
        else:
            self.map = OrbitLinear(1, 1, levels=groups, bias=False).double()
            soft, by_group = self.map.soft, dict(zip(groups, maps, strict=True))
            assert soft is not None
            soft.scale.fill_(1)
            for part, group in zip(soft.parts, self.map.levels, strict=True):
                assert isinstance(part, OrbitLinear)
                write_map(part, by_group[group])
        self.map.to(like)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., n]``."""
        y: Tensor = self.map(x.unsqueeze(-1))
        return y.squeeze(-1)

    def along(self, x: Tensor) -> Tensor:
        """Map ``[..., n, c]``."""
        return self(x.mT).mT


class TiedTensor(ChainLayer[OrbitRows]):
    """A parametrisation of a tensor with axes of nodes: equal along orbits, or a sum over levels.

    One axis is tied by the orbits of nodes, two by those of pairs. Under
    ``torch.nn.utils.parametrize`` the tensor is learnt as one row per orbit, and whoever reads it
    finds it whole.

    Args:
        levels: The groups.
        shape: Of the tensor.
        axes: One or two axes of nodes.
    """

    def __init__(
        self, levels: Sequence[PermutationGroup], shape: Sequence[int], axes: Sequence[int]
    ) -> None:
        super().__init__(levels)
        self.axes, self.front = tuple(axes), tuple(range(len(axes)))
        rest = [size for axis, size in enumerate(shape) if axis not in self.axes]
        self.shape = *(shape[axis] for axis in self.axes), *rest
        self._tables(torch.device("cpu"))

    def _orbits(self) -> list[Orbits]:
        pairs = len(self.axes) == 2
        return [g.pair_orbits() if pairs else g.node_orbits() for g in self.levels]

    def _build_tables(self) -> OrbitRows:
        return OrbitRows.of(self._orbits())

    def forward(self, rows: Tensor) -> Tensor:
        """The tensor, from rows ``[r, ...]``."""
        values = self._tables(rows.device).expand(rows)
        return values.view(self.shape).movedim(self.front, self.axes)

    def right_inverse(self, tensor: Tensor) -> Tensor:
        """Rows of the nearest tensor that is tied."""
        return self.nearest(tensor)[0].to(tensor)

    def nearest(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the nearest tensor that is tied, and what they miss, float64."""
        points = math.prod(self.shape[: len(self.axes)])
        moved = tensor.detach().movedim(self.axes, self.front)
        return nearest_rows(self._orbits(), moved.reshape(points, -1))

    def extra_repr(self) -> str:
        """Shape and axes, for ``repr``."""
        return f"{list(self.shape)}, axes={list(self.axes)}"


class TiedNodeLinear(nn.Module):
    """What was an ``nn.Linear(n, n)`` on the axis of nodes, ``[..., n]``.

    Symmetry: exact for the group of its map, bias included.
    """

    def __init__(self, mix: NodeMap, bias: OrbitEmbedding | None) -> None:
        super().__init__()
        self.in_features = self.out_features = mix.num_nodes
        self.mix = mix
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., n]``."""
        if not isinstance(x, Tensor) or x.dim() < 1 or x.size(-1) != self.in_features:
            came = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise SignalError(f"x must be [..., {self.in_features}], nodes last; got {came}")
        y: Tensor = self.mix(x)
        return y if self.bias is None else y + self.bias().squeeze(-1)


@dataclass(frozen=True)
class _Edges(Tables):
    keys: Tensor  # of the edges, sorted: target times n plus source
    weight: Tensor  # of the edges in this order
    place: Tensor  # of each edge among the pairs of nodes that have edges


@dataclass(frozen=True)
class _Found:
    order: Tensor  # the edges that were given, sorted as those of the layer


def _sorted(edge_index: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Edges as numbers, by target and then source, and the order that sorts them."""
    keys, order = torch.sort(edge_index[1] * n + edge_index[0], stable=True)
    return keys, order


class OnGraph(TabledModule[_Edges]):
    """A graph convolution on one graph, whose propagation is a tied map across nodes.

    It takes what the convolution took: one signal ``[n, c]``, several ``[..., n, c]``, or PyG's
    stacked batch ``[b*n, c]`` with the edges of all copies. The graph must be the one that the
    model was converted for, its edges in any order: the map is learnt, and another graph would
    not change it.

    Args:
        mix: The propagation.
        edge_index: The graph, ``[2, e]``.
        edge_weight: Its weights ``[e]``.
    """

    def __init__(self, mix: NodeMap, edge_index: Tensor, edge_weight: Tensor | None) -> None:
        super().__init__()
        self.mix, self.num_nodes = mix, mix.num_nodes
        self._edges = edge_index.cpu()
        self._weight = None if edge_weight is None else edge_weight.detach().cpu().double()
        self._graph = LastGraph[_Found]()
        self._tables(torch.device("cpu"))

    def _build_tables(self) -> _Edges:
        keys, order = _sorted(self._edges, self.num_nodes)
        weight = torch.ones(keys.shape) if self._weight is None else self._weight[order]
        place = torch.unique_consecutive(keys, return_inverse=True)[1]
        return _Edges(keys, weight.double(), place)

    def _unstack(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> tuple[Tensor, bool]:
        """Signals ``[..., n, c]`` of a call on the graph, and whether they came stacked."""
        n = self.num_nodes
        if not isinstance(x, Tensor) or x.dim() < 2:
            came = list(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise SignalError(f"x must be one tensor of signals [..., {n}, c]; got {came}")
        stacked = x.dim() == 2 and x.size(0) != n
        copies = x.size(0) // n if stacked else 1
        if x.size(-2) != n and (not stacked or copies * n != x.size(0)):
            raise SignalError(
                f"the model was converted for one graph of {n} nodes, so x must be [..., {n}, c], "
                f"or [b*{n}, c] of a batch of it; got {list(x.shape)}"
            )
        if stacked:
            x = x.reshape(copies, n, x.size(-1))
        check_edge_index_type(edge_index)
        found = self._graph.get(edge_index, x, copies if stacked else None, self._same, self._trace)
        self._check_weight(edge_weight, found, copies)
        return x, stacked

    def _same(self, edge_index: Tensor, n: int) -> _Found:
        tables = self._tables(edge_index.device)
        keys, order = _sorted(edge_index, n)
        if not torch.equal(keys, tables.keys):
            raise GraphError(
                f"the model was converted for a graph of {tables.keys.numel()} edges on {n} nodes; "
                f"this call has another of {keys.numel()} edges; convert the model for it"
            )
        return _Found(order)

    def _trace(self, edge_index: Tensor, n: int) -> _Found:
        tables = self._tables(edge_index.device)
        keys, order = _sorted(edge_index, n)
        torch._assert_async((keys == tables.keys).all(), "not the graph of the conversion")
        return _Found(order)

    def _check_weight(self, given: Tensor | None, found: _Found, copies: int) -> None:
        if given is None and self._weight is None:
            return
        tables = self._tables(found.order.device)
        own = tables.weight
        if given is None:
            raise GraphError("the model was converted with edge_weight; pass it in the call too")
        if given.shape not in (own.shape, (copies * own.numel(),)):
            raise GraphError(
                f"edge_weight must be [{own.numel()}], a weight per edge; got {list(given.shape)}"
            )
        sorted_ = given.detach().view(-1, own.numel())[:, found.order]
        # Parallel edges come in any order, so their sums are compared.
        weights = torch.cat([sorted_, own.to(given.dtype)[None]]).to(own.dtype)
        sums = torch.zeros_like(weights).index_add(1, tables.place, weights)
        close = torch.isclose(sums[:-1], sums[-1]).all()
        message = (
            "edge_weight differs from that of the conversion: pass edge_weight= to gsym.convert"
        )
        if torch.compiler.is_compiling() or given.is_cuda:
            torch._assert_async(close, message)
        elif not bool(close):
            raise GraphError(message)

    def _spread(self, x: Tensor) -> Tensor:
        return self.mix.along(x)


class TiedGCNConv(OnGraph):
    """What was a ``GCNConv``: its normalised adjacency is a tied map, its weights are the same."""

    bias: nn.Parameter | None

    def __init__(self, conv: Any, mix: NodeMap, edge_index: Tensor, edge_weight: Tensor | None):
        super().__init__(mix, edge_index, edge_weight)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.lin = conv.lin
        self.register_parameter("bias", conv.bias)

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """As ``GCNConv.forward``."""
        x, stacked = self._unstack(x, edge_index, edge_weight)
        y = self._spread(self.lin(x))
        y = y if self.bias is None else y + self.bias
        return y.flatten(0, 1) if stacked else y


class TiedSAGEConv(OnGraph):
    """What was a ``SAGEConv`` of means or sums: they are a tied map, its weights are the same."""

    def __init__(self, conv: Any, mix: NodeMap, edge_index: Tensor):
        super().__init__(mix, edge_index, None)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.normalize = conv.normalize
        self.lin = conv.lin if conv.project else None
        self.lin_l = conv.lin_l
        self.lin_r = conv.lin_r if conv.root_weight else None

    def forward(self, x: Tensor, edge_index: Tensor, size: None = None) -> Tensor:
        """As ``SAGEConv.forward``, of one tensor of signals."""
        _refuse_size(size)
        x, stacked = self._unstack(x, edge_index)
        sent = x if self.lin is None else self.lin(x).relu()
        y = self.lin_l(self._spread(sent))
        y = y if self.lin_r is None else y + self.lin_r(x)
        y = F.normalize(y, p=2.0, dim=-1) if self.normalize else y
        return y.flatten(0, 1) if stacked else y


class TiedGINConv(OnGraph):
    """What was a ``GINConv``: its sum over neighbours is a tied map, its net the same."""

    def __init__(self, conv: Any, mix: NodeMap, edge_index: Tensor):
        super().__init__(mix, edge_index, None)
        self.nn = conv.nn

    def forward(self, x: Tensor, edge_index: Tensor, size: None = None) -> Tensor:
        """As ``GINConv.forward``, of one tensor of signals."""
        _refuse_size(size)
        x, stacked = self._unstack(x, edge_index)
        y = self._spread(x)
        # Norms within the net take rows as they were given.
        return self.nn(y.flatten(0, 1) if stacked else y)


@dataclass(frozen=True)
class _Dense(Tables):
    adjacency: Tensor


class TiedDenseGCNConv(TabledModule[_Dense]):
    """What was a ``DenseGCNConv``: its normalised adjacency is a tied map, its weights the same."""

    bias: nn.Parameter | None

    def __init__(self, conv: Any, mix: NodeMap, adjacency: Tensor):
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.mix, self.lin = mix, conv.lin
        self.register_parameter("bias", conv.bias)
        self._adjacency = adjacency
        self._tables(torch.device("cpu"))

    def _build_tables(self) -> _Dense:
        return _Dense(self._adjacency)

    def forward(
        self, x: Tensor, adj: Tensor, mask: Tensor | None = None, add_loop: bool = True
    ) -> Tensor:
        """As ``DenseGCNConv.forward``."""
        n = self.mix.num_nodes
        if not add_loop:
            raise ValueError("the model was converted with self-loops; add_loop must be True")
        if x.size(-2) != n or adj.shape[-2:] != (n, n):
            raise SignalError(
                f"the model was converted for {n} nodes; got x {list(x.shape)} and adj "
                f"{list(adj.shape)}"
            )
        # The diagonal is set by the convolution, whatever it was.
        loop = torch.eye(n, dtype=torch.bool, device=adj.device)
        same = ((adj == self._tables(adj.device).adjacency.to(adj.dtype)) | loop).all()
        if torch.compiler.is_compiling() or adj.is_cuda:
            torch._assert_async(same, "adj is not the graph of the conversion")
        elif not bool(same):
            raise GraphError("adj is not the graph of the conversion; convert the model for it")
        y = self.mix.along(self.lin(x.unsqueeze(0) if x.dim() == 2 else x))
        y = y if self.bias is None else y + self.bias
        return y if mask is None else y * mask.view(-1, n, 1).to(y.dtype)


def _refuse_size(size: object) -> None:
    if size is not None:
        raise GraphError("size= is of graphs between two sets of nodes; this layer is on one graph")
