"""Maps on ego-networks that all share their weights, without a tensor of all their pairs.

A pair of the graph lies in many subgraphs. What a map makes of the pair itself is the same in all
of them, so it commutes with lifting and averaging; what rows, columns and subgraphs add is averaged
from their sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gsym.kernels import Segments, gather_segment_sum, segment_gather, segment_mean, segment_sum
from gsym.kernels._transforms import is_eager
from gsym.nn._modules import is_plain
from gsym.nn.subgraph import EquivariantTensorLinear

if TYPE_CHECKING:
    from gsym.nn._ego import EgoTables


class LiftedTables(NamedTuple):
    """Which sums go where; a pair of indices holds what every entry reads, and where it goes.

    Attributes:
        ends: From pairs of the graph to the row and to the column of every node of a subgraph.
        loop: From pairs (i, i) to their nodes.
        owner: Subgraph of every pair of a subgraph.
        pair: From node parts of row, column and (i, i), then pairs the other way round, then nodes
            of subgraphs as row and as column, to pairs.
        pair_weight: Factor of every entry: shares of a mean for what comes from subgraphs.
        node: From node parts as above, then subgraphs, to pairs.
        node_weight: Factor of every entry.
        times: Subgraphs that hold every node, at least 1, ``[n, 1]``.
        held: 1 for nodes in any subgraph, ``[n, 1]``.
    """

    ends: tuple[Segments, Segments]
    loop: tuple[Segments, Segments]
    owner: Segments
    pair: tuple[Segments, Segments]
    pair_weight: Tensor
    node: tuple[Segments, Segments]
    node_weight: Tensor
    times: Tensor
    held: Tensor

    @classmethod
    def build(cls, tables: EgoTables) -> LiftedTables:
        """All of them, which cost a few sorts of pairs."""
        sub, first, second = tables.subgraphs, tables.first, tables.second
        n, f, b, u = tables.node.num_segments, first.numel(), sub.num_subgraphs, sub.num_nodes
        place, entry = tables.pair.index.long(), sub.subgraph.index.long()
        every, share = torch.arange(f, device=first.device), 1 / torch.bincount(place).double()
        loops = (first == second).nonzero()[:, 0]
        swap = torch.searchsorted(first * n + second, second * n + first)
        nodes = [first, n + second, 2 * n + first[loops]]
        whole, part = share.new_ones(2 * f + loops.numel()), share[place]
        count = torch.bincount(tables.node.index.long(), minlength=n)[:, None]
        at_nodes = [every, every, loops]
        by_pair = [*nodes, 3 * n + swap, 3 * n + f + sub.row, 3 * n + f + u + sub.col]
        by_node = [*nodes, 3 * n + entry[sub.row]]
        return cls(
            ends=(
                Segments(torch.cat([place, place]), f),
                Segments(torch.cat([2 * sub.row, 2 * sub.col + 1]), 2 * u),
            ),
            loop=(Segments(loops, f), Segments(first[loops], n)),
            owner=Segments(entry[sub.row], b),
            pair=(
                Segments(torch.cat(by_pair), 3 * n + f + 2 * u),
                Segments(torch.cat([*at_nodes, every, place, place]), f),
            ),
            pair_weight=torch.cat([whole, torch.ones_like(share), part, part]),
            node=(
                Segments(torch.cat(by_node), 3 * n + b),
                Segments(torch.cat([*at_nodes, place]), f),
            ),
            node_weight=torch.cat([whole, part]),
            times=count.clamp(min=1),
            held=count > 0,
        )


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


def pairs_to_both(
    to_pair: EquivariantTensorLinear,
    to_node: EquivariantTensorLinear,
    x: Tensor,
    tables: EgoTables,
) -> tuple[Tensor, Tensor]:
    """What pairs ``x [f, c]`` give to pairs and nodes, averaged over subgraphs."""
    sub, lifted = tables.subgraphs, tables.lifted
    c, d = x.size(1), to_pair.out_channels
    sums = gather_segment_sum(x, *lifted.ends).view(-1, 2 * c) / sub.node_size.to(x.dtype)
    diagonal = gather_segment_sum(x, *lifted.loop)
    total = segment_sum(sums, sub.subgraph)[:, :c]
    trace = gather_segment_sum(diagonal, tables.node, sub.subgraph)
    graph = torch.cat([trace, total], dim=1) / sub.size.to(x.dtype)
    mine, node_weight, graph_weight = _weights(to_pair, to_node)
    shared = graph @ graph_weight
    # Two products: a part of one would cost its gradient a tensor of zeros.
    by_row = sums @ mine[c:, :d] + segment_gather(shared[:, :d], sub.subgraph)
    by_col = sums @ mine[c:, d : 2 * d]
    own = torch.cat([diagonal, segment_mean(sums, tables.node)], dim=1)
    loop, node = _of_nodes(own @ node_weight, shared, tables, to_pair, to_node)
    row, col = (diagonal @ mine[:c, : 2 * d]).split(d, dim=1)
    assert to_pair.pair_weight is not None and to_pair.swap_weight is not None
    turned = x @ to_pair.swap_weight[0]
    source = torch.cat([_biased(row, to_pair.bias), col, loop, turned, by_row, by_col])
    weight = lifted.pair_weight.to(x.dtype)
    pair = gather_segment_sum(source, *lifted.pair, weight)
    return torch.addmm(pair, x, to_pair.pair_weight[0]), node


def nodes_to_both(
    to_pair: EquivariantTensorLinear,
    to_node: EquivariantTensorLinear,
    x: Tensor,
    tables: EgoTables,
) -> tuple[Tensor, Tensor]:
    """What nodes ``x [n, c]`` give to pairs and nodes, averaged over subgraphs."""
    sub, lifted, d = tables.subgraphs, tables.lifted, to_pair.out_channels
    graph = gather_segment_sum(x, tables.node, sub.subgraph) / sub.size.to(x.dtype)
    mine, node_weight, graph_weight = _weights(to_pair, to_node)
    shared = graph @ graph_weight
    loop, node = _of_nodes(x @ node_weight, shared, tables, to_pair, to_node)
    row, col = (x @ mine[:, : 2 * d]).split(d, dim=1)
    source = torch.cat([_biased(row, to_pair.bias), col, loop, shared[:, :d]])
    weight = lifted.node_weight.to(x.dtype)
    return gather_segment_sum(source, *lifted.node, weight), node


def pairs_to_graphs(to_graph: EquivariantTensorLinear, x: Tensor, tables: EgoTables) -> Tensor:
    """What pairs ``x [f, c]`` give to every subgraph."""
    sub, size = tables.subgraphs, tables.subgraphs.size.to(x.dtype)
    diagonal = gather_segment_sum(x, *tables.lifted.loop)
    trace = gather_segment_sum(diagonal, tables.node, sub.subgraph) / size
    total = gather_segment_sum(x, tables.pair, tables.lifted.owner) / size / size
    return _biased(torch.cat([trace, total], dim=1) @ to_graph.graph_weight[0], to_graph.bias)


def nodes_to_graphs(to_graph: EquivariantTensorLinear, x: Tensor, tables: EgoTables) -> Tensor:
    """What nodes ``x [n, c]`` give to every subgraph."""
    sub = tables.subgraphs
    means = gather_segment_sum(x, tables.node, sub.subgraph) / sub.size.to(x.dtype)
    return _biased(means @ to_graph.graph_weight[0], to_graph.bias)


def _weights(
    to_pair: EquivariantTensorLinear, to_node: EquivariantTensorLinear
) -> tuple[Tensor, ...]:
    """Those of nodes to pairs; to (i, i) and to nodes side by side; and those of subgraphs."""
    assert to_pair.node_weight is not None and to_node.node_weight is not None
    mine, ours = to_pair.node_weight[0], to_node.node_weight[0]
    both = torch.cat([mine[:, 2 * to_pair.out_channels :], ours], dim=1)
    return mine, both, torch.cat([to_pair.graph_weight[0], to_node.graph_weight[0]], dim=1)


def _of_nodes(
    own: Tensor,
    shared: Tensor,
    tables: EgoTables,
    to_pair: EquivariantTensorLinear,
    to_node: EquivariantTensorLinear,
) -> tuple[Tensor, Tensor]:
    """What nodes give to their pair (i, i), and the new values of nodes."""
    d, lifted = to_pair.out_channels, tables.lifted
    means = gather_segment_sum(shared[:, d:], tables.subgraphs.subgraph, tables.node)
    loop, node = (own + means / lifted.times.to(own.dtype)).split(d, dim=1)
    held = lifted.held.to(own.dtype)
    return _biased(loop, to_pair.loop_bias), _biased(node, to_node.bias) * held


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias[0]
