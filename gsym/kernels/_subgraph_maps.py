"""Equivariant maps of tensors on subgraphs composed of primitives, whichever back-end has these."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gsym.kernels.subgraphs import Subgraphs


class Verbs(NamedTuple):
    """Primitives of one back-end."""

    sum: Callable[..., Tensor]
    gather: Callable[..., Tensor]
    gather_sum: Callable[..., Tensor]
    linear: Callable[..., Tensor]
    permute: Callable[..., Tensor]


class Weights(NamedTuple):
    """Of a map; what its orders have no use for is ``None``."""

    graph: Tensor
    node: Tensor | None = None
    pair: Tensor | None = None
    swap: Tensor | None = None
    bias: Tensor | None = None
    loop_bias: Tensor | None = None


def compose(
    verbs: Verbs, x: Tensor, subgraphs: Subgraphs, orders: tuple[int, int], weights: Weights
) -> Tensor:
    """The map in primitives: reduced to nodes and subgraphs, mixed there, and spread again."""
    node, graph = _reduce(verbs, x, subgraphs, orders[0])
    shared = _tied(verbs, graph, weights.graph, subgraphs, "kind")
    if orders[1] == 0:
        if weights.bias is None:
            return shared
        return shared + verbs.gather(weights.bias, subgraphs.kind)
    shared = shared.unflatten(-1, (subgraphs.num_colours, -1)).flatten(-3, -2)
    assert weights.node is not None
    own = _tied(verbs, node, weights.node, subgraphs, "colour")
    if orders[1] == 2:
        return _spread(verbs, x, own, shared, subgraphs, weights)
    y = own + verbs.gather(shared, subgraphs.part)
    return y if weights.bias is None else y + verbs.gather(weights.bias, subgraphs.colour)


def _tied(verbs: Verbs, x: Tensor, weight: Tensor, subgraphs: Subgraphs, by: str) -> Tensor:
    """Every row times the matrix of its kind and colours."""
    if weight.size(0) == 1:
        return x @ weight[0]
    return verbs.linear(x, weight, subgraphs.tiles(by, *weight.shape[1:]))


def _reduce(verbs: Verbs, x: Tensor, subgraphs: Subgraphs, order: int) -> tuple[Tensor, Tensor]:
    """What a map of order 1 or 2 reads of its input, by node and by subgraph.

    Of order 1 the values and their sums; of order 2 the diagonal, sums of rows and columns, then
    trace and total; all by colour, concatenated.
    """
    q, dtype = subgraphs.num_colours, x.dtype
    # A sum of half precision may overflow where the mean does not.
    wide = x.float() if dtype.itemsize < 4 else x
    size = subgraphs.size.to(wide.dtype)
    if order == 1:
        return x, (_by_subgraph(verbs.sum(wide, subgraphs.part), q) / size).to(dtype)
    pair, node = subgraphs.loop
    diagonal = verbs.gather_sum(wide, pair, node)
    rows, cols = (verbs.sum(wide, end) for end in (subgraphs.by_row, subgraphs.by_col))
    trace = _by_subgraph(verbs.sum(diagonal, subgraphs.part), q) / size
    total = _by_subgraph(verbs.sum(rows, subgraphs.block), q * q) / size / size
    node_size = subgraphs.node_size.to(wide.dtype)
    sums = (_by_subgraph(end, q) / node_size for end in (rows, cols))
    of_nodes, of_graphs = torch.cat([diagonal, *sums], -1), torch.cat([trace, total], -1)
    return of_nodes.to(dtype), of_graphs.to(dtype)


def _by_subgraph(x: Tensor, count: int) -> Tensor:
    """``count`` neighbouring rows concatenated."""
    return x.reshape(*x.shape[:-2], x.size(-2) // count, count * x.size(-1))


def _spread(
    verbs: Verbs, x: Tensor, own: Tensor, shared: Tensor, subgraphs: Subgraphs, weights: Weights
) -> Tensor:
    """Pairs from what their row, their column and, for (i, i), their node gives."""
    q = subgraphs.num_colours
    width = own.size(-1) // (2 * q + 1)
    row, col, loop = own.split([q * width, q * width, width], dim=-1)
    every = verbs.gather(shared, subgraphs.part)
    row, loop = row + every[..., : q * width], loop + every[..., q * width :]
    if weights.bias is not None and weights.loop_bias is not None:
        row = row + verbs.gather(weights.bias.view(-1, q * width), subgraphs.colour)
        loop = loop + verbs.gather(weights.loop_bias, subgraphs.colour)
    ends = (end.unflatten(-1, (q, width)).flatten(-3, -2) for end in (row, col))
    y = verbs.gather(next(ends), subgraphs.by_row)
    y = y + verbs.gather(next(ends), subgraphs.by_col)
    if weights.pair is not None and weights.swap is not None:
        y = y + _tied(verbs, x, weights.pair, subgraphs, "colours")
        turned = _transpose(verbs, x, subgraphs)
        y = y + _tied(verbs, turned, weights.swap, subgraphs, "colours")
    place, node = subgraphs.loop
    return y + verbs.gather_sum(loop, node, place)


def _transpose(verbs: Verbs, x: Tensor, subgraphs: Subgraphs) -> Tensor:
    """The value of every pair the other way round, zero where that is not there."""
    if subgraphs.reverse is not None:
        return verbs.permute(x, subgraphs.reverse, subgraphs.reverse)
    assert subgraphs.swap is not None
    there, pair = subgraphs.swap
    return verbs.gather_sum(x, there, pair)
