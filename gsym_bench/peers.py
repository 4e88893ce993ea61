"""What gsym's layers are measured against: the same maps, written as one writes them at first.

Every class takes its weights from a layer of gsym, so that both can be checked equal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter

from gsym import Partition
from gsym.nn import EGNNConv, EquivariantTensorLinear, OrbitLinear, PenguinConv
from gsym.nn._cluster_map import read
from gsym.nn._messages import EdgeMLP
from gsym.nn._mixing import FullMixing
from gsym.nn._nodewise import NodeMLP


class DenseClusterLinear(nn.Module):
    """The cluster map through one materialised weight, as the published code computes it.

    Equal clusters only. Every forward pass expands the tied weights to a matrix of ``(out n)`` by
    ``(in n)``; the arithmetic is that of a dense linear layer whatever the group.
    """

    order: Tensor
    inverse: Tensor

    def __init__(self, layer: OrbitLinear, partition: Partition) -> None:
        super().__init__()
        own, mixing, bias = _orbit_weights(layer, partition)
        self.size = partition.sizes[0]
        self.in_channels, self.out_channels = own.shape[1:]
        self.register_buffer("order", partition.order, persistent=False)
        self.register_buffer("inverse", torch.argsort(partition.order), persistent=False)
        k, pairs = partition.num_clusters, self.in_channels * self.out_channels
        self.weight_diagonal = nn.Parameter(own.permute(2, 1, 0).reshape(pairs, k).contiguous())
        self.weight_block = nn.Parameter(
            mixing.permute(3, 1, 2, 0).reshape(pairs, k, k).contiguous()
        )
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(1)
        diagonal = torch.kron(torch.diag_embed(self.weight_diagonal), torch.eye(self.size).to(x))
        block = torch.kron(self.weight_block, x.new_ones(self.size, self.size) / self.size)
        weight = (diagonal + block).view(self.out_channels, self.in_channels, n, n)
        weight = weight.transpose(1, 2).reshape(self.out_channels * n, self.in_channels * n)
        flat = x.index_select(1, self.order).transpose(1, 2).flatten(1)
        y = (flat @ weight.T).view(-1, self.out_channels, n).transpose(1, 2)
        y = y + self.bias.repeat_interleave(self.size, 0)
        return y.index_select(1, self.inverse)


class DenseOrbitLinear(nn.Module):
    """A map with one block per pair orbit, through the matrix of all pairs of nodes.

    Args:
        layer: The map; a group without clusters of more than a node, and no bias.
        form: How the matrix comes about: ``"gather and product"`` gathers blocks and moves their
            axes, ``"einsum"`` gathers them and leaves the rest to torch, and ``"flat gather"``
            gathers single numbers to where the product wants them.
    """

    index: Tensor

    def __init__(self, layer: OrbitLinear, form: str) -> None:
        super().__init__()
        assert layer.group is not None and isinstance(layer.mixing, FullMixing)
        self.form, orbits = form, layer.group.pair_orbits()
        n, a, b = layer.group.num_nodes, layer.in_channels, layer.out_channels
        index = orbits.index.t()  # source first
        if layer.mixing.weight.dim() == 4:  # nothing is tied
            weight = layer.mixing.weight.transpose(1, 2).reshape(n * n, a, b)
            weight = weight.new_empty(weight.shape).index_copy(0, index.reshape(-1), weight)
        else:
            weight = layer.mixing.weight
        if form == "flat gather":
            channels = torch.arange(a * b).view(a, b)
            index = index[:, None, :, None] * (a * b) + channels[:, None, :]
        self.weight = nn.Parameter(weight.detach().clone())
        self.register_buffer("index", index.reshape(n, -1).contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, (_, a, b) = x.size(-2), self.weight.shape
        rows = self.index.view(-1)
        if self.form == "einsum":
            blocks = self.weight.index_select(0, rows).view(n, n, a, b)
            return torch.einsum("bsi,stio->bto", x, blocks)
        if self.form == "flat gather":
            matrix = self.weight.view(-1).index_select(0, rows).view(n * a, n * b)
        else:
            blocks = self.weight.index_select(0, rows).view(n, n, a, b)
            matrix = blocks.transpose(1, 2).reshape(n * a, n * b)
        return (x.flatten(1) @ matrix).view(-1, n, b)


class NaiveClusterLinear(nn.Module):
    """The cluster map by PyG's scatter and one gathered matrix per node."""

    labels: Tensor

    def __init__(self, layer: OrbitLinear, partition: Partition) -> None:
        super().__init__()
        own, mixing, bias = _orbit_weights(layer, partition)
        self.num_clusters = partition.num_clusters
        self.register_buffer("labels", partition.labels, persistent=False)
        self.own, self.mixing, self.bias = (nn.Parameter(w) for w in (own, mixing, bias))

    def forward(self, x: Tensor) -> Tensor:
        means = scatter(x, self.labels, dim=1, dim_size=self.num_clusters, reduce="mean")
        shared = torch.einsum("bsi,sito->bto", means, self.mixing) + self.bias
        own = torch.einsum("bni,nio->bno", x, self.own.index_select(0, self.labels))
        return own + shared.index_select(1, self.labels)


def _orbit_weights(layer: OrbitLinear, partition: Partition) -> tuple[Tensor, ...]:
    """Copies of D ``[k, in, out]``, W ``[k, in, k, out]`` and b ``[k, out]``."""
    form = read(layer, partition.num_nodes, torch.detach)
    return tuple(weight.clone() for weight in (form.own, form.mixed, form.bias))


class PlainEGNN(nn.Module):
    """EGNN from its formulas: concatenate both ends of every edge, run the networks, add up.

    Args:
        layer: An :class:`EGNNConv` without options, for its widths and weights.

    Reference:
        Satorras, Hoogeboom, Welling, arXiv 2102.09844, equations 3 to 6.
    """

    def __init__(self, layer: EGNNConv) -> None:
        super().__init__()
        self.residual = layer.residual
        self.edge, self.coord, self.node = _egnn_networks(layer)

    def forward(
        self, x: Tensor, pos: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        source, target = edge_index
        r = pos.index_select(0, target) - pos.index_select(0, source)
        s = r.square().sum(-1, keepdim=True)
        parts = [x.index_select(0, target), x.index_select(0, source), s]
        parts += [] if edge_attr is None else [edge_attr]
        message = self.edge(torch.cat(parts, dim=-1))
        move = r * self.coord(message)
        n = x.size(0)
        degree = x.new_zeros(n).index_add(0, target, x.new_ones(target.size(0))).clamp(min=1)
        moves = pos.new_zeros(pos.shape).index_add(0, target, move) / degree[:, None]
        messages = x.new_zeros(n, message.size(-1)).index_add(0, target, message)
        new = self.node(torch.cat([x, messages], dim=-1))
        return x + new if self.residual else new, pos + moves


class PyGEGNN(MessagePassing):
    """EGNN as a PyG user writes it: a subclass of ``MessagePassing``.

    Args:
        layer: As in :class:`PlainEGNN`.
    """

    def __init__(self, layer: EGNNConv) -> None:
        super().__init__()
        self.residual = layer.residual
        self.edge, self.coord, self.node = _egnn_networks(layer)

    def forward(
        self, x: Tensor, pos: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        messages, moves = self.propagate(edge_index, x=x, pos=pos, edge_attr=edge_attr)
        new = self.node(torch.cat([x, messages], dim=-1))
        return x + new if self.residual else new, pos + moves

    def message(
        self, x_i: Tensor, x_j: Tensor, pos_i: Tensor, pos_j: Tensor, edge_attr: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        r = pos_i - pos_j
        parts = [x_i, x_j, r.square().sum(-1, keepdim=True)]
        parts += [] if edge_attr is None else [edge_attr]
        message = self.edge(torch.cat(parts, dim=-1))
        return message, r * self.coord(message)

    def aggregate(
        self, inputs: tuple[Tensor, Tensor], index: Tensor, dim_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        message, move = inputs
        return (
            scatter(message, index, dim_size=dim_size, reduce="sum"),
            scatter(move, index, dim_size=dim_size, reduce="mean"),
        )


class PlainPenguin(nn.Module):
    """Both branches of PEnGUiN as written down, blended by one number.

    Args:
        layer: A :class:`PenguinConv` with ``alpha="learned"`` and no options, for its weights.
    """

    def __init__(self, layer: PenguinConv) -> None:
        super().__init__()
        assert layer.estimator is not None and layer.estimator.logit is not None
        self.equal, self.residual = PlainEGNN(layer.equivariant), layer.free.residual
        self.edge = _edge_network(layer.free.edges)
        self.move, self.node = _node_network(layer.free.move), _node_network(layer.free.update)
        self.logit = nn.Parameter(layer.estimator.logit.detach().clone())

    def forward(self, x: Tensor, pos: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.logit.sigmoid()
        x_equal, pos_equal = self.equal(x, pos, edge_index)
        source, target = edge_index
        place = torch.cat([x, pos], dim=-1)
        ends = place.index_select(0, target), place.index_select(0, source)
        message = self.edge(torch.cat(ends, dim=-1))
        messages = x.new_zeros(x.size(0), message.size(-1)).index_add(0, target, message)
        pos_free = pos + self.move(torch.cat([pos, messages], dim=-1))
        x_free = self.node(torch.cat([x, messages], dim=-1))
        x_free = x + x_free if self.residual else x_free
        return torch.lerp(x_free, x_equal, alpha), torch.lerp(pos_free, pos_equal, alpha)


@torch.no_grad()
def _egnn_networks(layer: EGNNConv) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    """The networks of edges, moves and nodes with copies of the layer's weights."""
    edges = layer.edges
    assert edges.coord is not None and edges.coord_last is not None
    coord = nn.Sequential(
        _linear(edges.coord.weight, edges.coord.bias), nn.SiLU(), _linear(edges.coord_last.weight)
    )
    return _edge_network(edges), coord, _node_network(layer.update)


@torch.no_grad()
def _edge_network(edges: EdgeMLP) -> nn.Sequential:
    first = [edges.target.weight[0].t(), edges.source.weight[0].t()]
    first += [] if edges.distance is None else [edges.distance[:, None]]
    first += [] if edges.attr is None else [edges.attr]
    return nn.Sequential(
        _linear(torch.cat(first, dim=1), edges.target.bias[0]),
        nn.SiLU(),
        _linear(edges.second.weight, edges.second.bias),
        nn.SiLU(),
    )


@torch.no_grad()
def _node_network(nodes: NodeMLP) -> nn.Sequential:
    first, last = (_linear(m.weight[0].t(), m.bias[0]) for m in (nodes.first, nodes.last))
    return nn.Sequential(first, nn.SiLU(), last)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(weight.size(1), weight.size(0), bias is not None).to(weight)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    return linear


class StackedPairs(nn.Module):
    """The equivariant map of pairs as the published code writes it: 15 operations, one product.

    Subgraphs are dense tensors: either all of the largest size, with zeros, or those of every size
    by themselves.
    """

    def __init__(self, layer: EquivariantTensorLinear, sizes: Tensor, *, padded: bool) -> None:
        super().__init__()
        assert layer.node_weight is not None and layer.bias is not None
        assert layer.pair_weight is not None and layer.swap_weight is not None
        assert layer.loop_bias is not None
        c, d = layer.in_channels, layer.out_channels
        node = layer.node_weight.detach().view(3, c, 3, d).transpose(1, 2)
        graph = layer.graph_weight.detach().view(2, c, 2, d).transpose(1, 2)
        pair = torch.stack([layer.pair_weight[0].detach(), layer.swap_weight[0].detach()])
        # Of i, of j and of (i, i), each from the diagonal, rows and columns; then trace and total.
        parts = node.transpose(0, 1).flatten(0, 1), graph.transpose(0, 1).flatten(0, 1), pair
        self.weight = nn.Parameter(torch.cat(parts))
        self.bias = nn.Parameter(layer.bias[0].detach().clone())
        self.loop_bias = nn.Parameter(layer.loop_bias[0].detach().clone())
        first = (sizes.square().cumsum(0) - sizes.square()).tolist()
        self.groups: list[tuple[Tensor, Tensor]] = []
        for m in [int(sizes.max())] if padded else sorted(set(sizes.tolist())):
            chosen = range(sizes.numel()) if padded else (sizes == m).nonzero()[:, 0].tolist()
            places = torch.full((len(chosen), m, m), int(sizes.square().sum()))  # a row of zeros
            for at, s in enumerate(chosen):
                n = int(sizes[s])
                places[at, :n, :n] = first[s] + torch.arange(n * n).view(n, n)
            self.groups.append((places, sizes[list(chosen)]))
        back = torch.cat([places.flatten() for places, _ in self.groups])
        self.order = torch.argsort(back)[: int(sizes.square().sum())]

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (0, 0, 0, 1)) if len(self.groups) == 1 else x
        dense = (padded.index_select(0, p.flatten()).view(*p.shape, -1) for p, _ in self.groups)
        parts = [self._map(y, sizes) for y, (_, sizes) in zip(dense, self.groups, strict=True)]
        return torch.cat([y.flatten(0, 2) for y in parts]).index_select(0, self.order)

    def _map(self, x: Tensor, sizes: Tensor) -> Tensor:
        m, size = x.size(1), sizes[:, None, None]
        diagonal = x.diagonal(dim1=1, dim2=2).transpose(1, 2)
        rows, cols = x.sum(2) / size, x.sum(1) / size
        trace, total = diagonal.sum(1) / sizes[:, None], rows.sum(1) / sizes[:, None]
        eye = torch.eye(m).to(x)[:, :, None]
        of_node, of_graph = (diagonal, rows, cols), (trace, total)
        stacked = torch.stack(
            [
                *(y[:, :, None].expand_as(x) for y in of_node),
                *(y[:, None].expand_as(x) for y in of_node),
                *(y[:, :, None] * eye for y in of_node),
                *(y[:, None, None].expand_as(x) for y in of_graph),
                *(y[:, None, None] * eye for y in of_graph),
                x,
                x.transpose(1, 2),
            ],
            dim=-2,
        )
        y = torch.einsum("nijbc,bcd->nijd", stacked, self.weight)
        return y.add_(self.bias + eye * self.loop_bias)
