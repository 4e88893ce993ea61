"""Maps on ego-networks that all share their weights: where they may be computed unlifted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gsym.kernels import gather_segment_sum
from gsym.kernels.lifted import LiftedMaps, graph_sums
from gsym.kernels.transforms import is_eager
from gsym.nn._modules import is_plain
from gsym.nn.subgraph import EquivariantTensorLinear

if TYPE_CHECKING:
    from gsym.nn._ego import EgoTables


def shares_weights(tables: EgoTables, like: Tensor, *maps: EquivariantTensorLinear | None) -> bool:
    """Whether maps on these subgraphs may be computed here, and nobody notices."""
    given = [part for part in maps if part is not None]
    return (
        is_eager(like)  # whoever looks inside sees the maps as they are
        and tables.subgraphs.num_colours == tables.subgraphs.num_kinds == 1
        and not torch.is_autocast_enabled(like.device.type)
        and like.dtype.itemsize >= 4  # sums of half precision may overflow where means do not
        and is_plain(EquivariantTensorLinear, *given)
        and all(part.num_colours == part.num_kinds == 1 for part in given)
        and all(p.dtype == like.dtype and p.device == like.device for p in given[0].parameters())
        and tables.first.device == like.device
    )


def fits(x: Tensor | None, rows: int, channels: int, like: Tensor) -> bool:
    """Whether this is ``[rows, channels]`` of the type of the weights."""
    if x is None:
        return channels == 0
    return x.shape == (rows, channels) and (x.dtype, x.device) == (like.dtype, like.device)


def weights(to_pair: EquivariantTensorLinear, to_node: EquivariantTensorLinear) -> LiftedMaps:
    """The weights of two maps of one input."""
    assert to_pair.node_weight is not None and to_node.node_weight is not None
    return LiftedMaps(
        node=to_pair.node_weight,
        graph=to_pair.graph_weight,
        bias=to_pair.bias,
        loop_bias=to_pair.loop_bias,
        to_node=to_node.node_weight,
        graph_to_node=to_node.graph_weight,
        node_bias=to_node.bias,
        pair=to_pair.pair_weight,
        swap=to_pair.swap_weight,
    )


def pairs_to_graphs(to_graph: EquivariantTensorLinear, x: Tensor, tables: EgoTables) -> Tensor:
    """What pairs ``x [f, c]`` give to every subgraph."""
    return _biased(graph_sums(x, tables.lifted) @ to_graph.graph_weight[0], to_graph.bias)


def nodes_to_graphs(to_graph: EquivariantTensorLinear, x: Tensor, tables: EgoTables) -> Tensor:
    """What nodes ``x [n, c]`` give to every subgraph."""
    sub = tables.subgraphs
    means = gather_segment_sum(x, tables.node, sub.subgraph) / sub.size.to(x.dtype)
    return _biased(means @ to_graph.graph_weight[0], to_graph.bias)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias[0]
