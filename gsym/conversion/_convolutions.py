"""Graph convolutions of PyG as linear maps across nodes, and what is made of their projections."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import DenseGCNConv, GCNConv, GINConv, SAGEConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from gsym._graphs import Graph
from gsym.conversion._projecting import Entries
from gsym.conversion.layers import (
    NodeMap,
    TiedDenseGCNConv,
    TiedGCNConv,
    TiedGINConv,
    TiedSAGEConv,
)


class Unfit(Exception):  # noqa: N818  # a message to the caller, not an error
    """A convolution that is no linear map across nodes, and why."""


@dataclass(frozen=True)
class Convolution:
    """What a convolution does across nodes.

    Attributes:
        entries: Its matrix.
        make: The layer with a map in place of the matrix.
        like: A weight whose type and device the map has.
        gain: By how much an error of the matrix is an error of the whole linear map.
        norm: The norm of the whole linear map.
    """

    entries: Entries
    make: Callable[[NodeMap], nn.Module]
    like: Tensor
    gain: float
    norm: float


def convolution(conv: Any, graph: Graph) -> Convolution:
    """Read a convolution on a graph; raises :class:`Unfit` where it is not linear across nodes."""
    if type(conv) is DenseGCNConv:
        return _dense(conv, graph)
    edge_index, weight, n = graph.edge_index.cpu(), graph.edge_weight, graph.num_nodes
    if conv.aggr not in ("add", "sum", "mean"):
        raise Unfit(f"aggregates by {conv.aggr}, which is not linear")
    value = None if weight is None else weight.detach().cpu().double()
    if type(conv) is GCNConv:
        if conv.normalize:
            edge_index, value = gcn_norm(
                edge_index,
                value,
                n,
                conv.improved,
                conv.add_self_loops,
                conv.flow,
                torch.float64,
            )
    else:
        value = None  # they take no weights
    source, target = edge_index if conv.flow == "source_to_target" else edge_index.flip(0)
    if value is None:
        value = torch.ones(target.numel(), dtype=torch.float64)
    if conv.aggr == "mean":
        value = value / torch.bincount(target, minlength=n)[target]
    if type(conv) is GINConv:
        node = torch.arange(n)
        target, source = torch.cat([target, node]), torch.cat([source, node])
        value = torch.cat([value, torch.ones(n).double() * (1 + float(conv.eps))])
    entries = Entries.of(target, source, value, n)
    given = graph.edge_index
    if type(conv) is GCNConv:
        like = conv.lin.weight
        norm = entries.norm()
        return Convolution(
            entries, lambda mix: TiedGCNConv(conv, mix, given, weight), like, 1.0, norm
        )
    if type(conv) is GINConv:
        like = next(conv.nn.parameters(), conv.eps)
        norm = entries.norm()
        return Convolution(entries, lambda mix: TiedGINConv(conv, mix, given), like, 1.0, norm)
    assert type(conv) is SAGEConv
    left = conv.lin_l.weight.detach().double()
    square = float(left.square().sum()) * entries.norm() ** 2
    if conv.root_weight and not conv.project:
        # The whole is the matrix with one weight and the identity with another.
        right = conv.lin_r.weight.detach().double()
        trace = float(entries.value[entries.row == entries.column].sum())
        square += 2 * trace * float((left * right).sum()) + n * float(right.square().sum())
    return Convolution(
        entries,
        lambda mix: TiedSAGEConv(conv, mix, given),
        conv.lin_l.weight,
        float(left.norm()),
        math.sqrt(square),
    )


def _dense(conv: DenseGCNConv, graph: Graph) -> Convolution:
    n = graph.num_nodes
    source, target = graph.edge_index.cpu()
    weight = torch.ones(source.numel()) if graph.edge_weight is None else graph.edge_weight
    # As PyG's to_dense_adj stacks edges; the convolution reads rows as targets.
    given = torch.zeros(n, n, dtype=torch.float64)
    given.index_put_((source, target), weight.detach().cpu().double(), accumulate=True)
    adjacency = given.clone()
    adjacency.fill_diagonal_(2.0 if conv.improved else 1.0)
    root = adjacency.sum(-1).clamp(min=1).rsqrt()
    entries = Entries.of_matrix(root[:, None] * adjacency * root)
    return Convolution(
        entries,
        lambda mix: TiedDenseGCNConv(conv, mix, given),
        conv.lin.weight,
        1.0,
        entries.norm(),
    )
