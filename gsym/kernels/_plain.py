"""The primitives in operators that torch knows through and through, for whoever looks inside.

Transforms of ``torch.func``, forward-mode differentiation, batched gradients, ``torch.export``
and its kin need of every operator what fused ones do not have. So here is no operator of our own
and no ``autograd.Function``, and gradients keep to the ways of reshaping that batched ones know.
:func:`gsym.kernels._backends.run` takes these primitives where somebody looks inside, and so do
the gradients of the fused operators. Sums run over rows in their order, in float32 for half
precision, and every step has a temporary of its size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gsym.kernels._subgraph_maps import Verbs, Weights, compose
from gsym.kernels.clusters import Clusters
from gsym.kernels.edges import EdgeStage, compose_edges
from gsym.kernels.segments import Segments, Tiles
from gsym.kernels.subgraphs import Subgraphs


def accumulation_type(dtype: torch.dtype) -> torch.dtype:
    """Sums of half precision are accumulated in float32."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def take(y: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` of ``y [..., s, c]``."""
    return y.index_select(-2, index)


def add(x: Tensor, index: Tensor, count: int, wide: bool = False) -> Tensor:
    """Sums ``[..., count, c]`` of the rows of ``x`` by ``index``, left in the type of sums."""
    rows = x.to(accumulation_type(x.dtype))
    # ONNX scatters by int64 alone.
    sums = rows.new_zeros(*x.shape[:-2], count, x.size(-1)).index_add(-2, index.long(), rows)
    return sums if wide else sums.to(x.dtype)


def segment_sum(x: Tensor, segments: Segments) -> Tensor:
    return add(x, segments._index, segments._count)


def segment_mean(x: Tensor, segments: Segments) -> Tensor:
    sums = add(x, segments._index, segments._count, wide=True)
    return (sums / _counts(segments).clamp(min=1)).to(x.dtype)


def segment_max(x: Tensor, segments: Segments) -> Tensor:
    index, count = segments._index, segments._count
    fixed = x.detach()
    high = fixed.new_full((*x.shape[:-2], count, x.size(-1)), -torch.inf)
    high = high.scatter_reduce(-2, index.long()[:, None].expand(x.shape), fixed, reduce="amax")
    # The derivative alone, a mean over ties: that of torch counts them in half precision.
    held = (fixed == take(high, index)) & fixed.isfinite()
    change = add(torch.where(held, x - fixed, 0), index, count, wide=True)
    ties = add(held.to(change.dtype), index, count).clamp(min=1)
    return torch.where(_counts(segments) == 0, 0, high) + (change / ties).to(x.dtype)


def segment_gather(y: Tensor, segments: Segments) -> Tensor:
    return take(y, segments._index)


def gather_segment_sum(
    x: Tensor, source: Segments, segments: Segments, weight: Tensor | None = None
) -> Tensor:
    return _weighted_sum(x, weight, source._index, segments._index, segments._count)


def indexed_linear(x: Tensor, weight: Tensor, tiles: Tiles, shared: Tensor | None = None) -> Tensor:
    if tiles.is_traced:
        return _own_products(x, weight, tiles.segments._index, shared)
    if weight.size(0) == 1:
        y = x @ weight[0]
        return y if shared is None else y + take(shared, tiles.segments._index)
    return tiled_linear(x, weight, shared, tiles._segment, tiles._rows, tiles._blocks)


def grouped_linear(x: Tensor, weight: Tensor, shared: Tensor | None = None) -> Tensor:
    y = x @ weight
    return y if shared is None else y + shared.unsqueeze(-2)


def cluster_linear(
    x: Tensor,
    weight: Tensor,
    matrix: Tensor | None,
    bias: Tensor,
    clusters: Clusters,
    is_sorted: bool = False,
) -> Tensor:
    k, shared, runs = clusters.num_clusters, bias, clusters.has_runs
    if runs != is_sorted and not clusters.is_sorted:
        there, back = clusters._order, clusters._rank
        there, back = (there, back) if runs else (back, there)
        return take(cluster_linear(take(x, there), weight, matrix, bias, clusters, runs), back)
    if matrix is not None:
        means = mean_of_runs(x, k) if runs else segment_mean(x, clusters.segments)
        shared = (means.flatten(-2) @ matrix).unflatten(-1, (k, bias.size(-1))) + bias
    if runs:
        groups = x.unflatten(-2, (k, x.size(-2) // k))
        return grouped_linear(groups, weight, shared).flatten(-3, -2)
    assert clusters._tiles is not None
    return indexed_linear(x, weight, clusters._tiles, shared)


def mean_of_runs(x: Tensor, k: int) -> Tensor:
    """Means of ``k`` equal runs of rows."""
    runs = x.unflatten(-2, (k, x.size(-2) // k))
    sums = runs.sum(dim=-2, dtype=accumulation_type(x.dtype))
    return (sums / runs.size(-2)).to(x.dtype)


def row_mlp(
    x: Tensor,
    first: tuple[Tensor, Tensor],
    last: tuple[Tensor, Tensor],
    extra: Tensor | None = None,
) -> Tensor:
    rows = x if extra is None else torch.cat([x, extra], dim=-1)
    return F.silu(rows @ first[0][0] + first[1][0]) @ last[0][0] + last[1][0]


def linear_pair(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return x @ weight[0] + bias[0], x @ other[0]


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return take(x, order)


def edge_mlp_sum(
    stage: EdgeStage, source: Segments, segments: Segments
) -> tuple[Tensor, Tensor | None]:
    index = segments._index

    def sum_up(x: Tensor) -> Tensor:
        return add(x, index, segments._count, wide=True)

    total, moved = compose_edges(
        stage,
        lambda x: take(x, index),
        lambda x: take(x, source._index),
        sum_up,
        lambda x: sum_up(x) / _counts(segments).clamp(min=1).to(x.dtype),
    )
    return total, moved if stage.moves else None


def subgraph_linear(
    x: Tensor, subgraphs: Subgraphs, orders: tuple[int, int], weights: Weights
) -> Tensor:
    verbs = Verbs(segment_sum, segment_gather, gather_segment_sum, indexed_linear, permute_rows)
    return compose(verbs, x, subgraphs, orders, weights)


def _counts(segments: Segments) -> Tensor:
    """Rows of every segment, ``[s, 1]``, in whole numbers."""
    if segments.is_traced:
        index = segments._index
        return index.new_zeros(segments._count).index_add(0, index, torch.ones_like(index))[:, None]
    return segments._pointers.diff()[:, None]


# What the gradients of the fused operators do, on the tables that those are given.


def gather_sum(
    x: Tensor, weight: Tensor | None, columns: Tensor, order: Tensor, pointers: Tensor
) -> Tensor:
    """The product of a sparse matrix, of compressed rows, with ``x [b, n, c]``."""
    weight = None if weight is None else weight.index_select(-1, order)
    return _weighted_sum(x, weight, columns, _owners(pointers, columns), pointers.size(0) - 1)


def gather_dot(y: Tensor, x: Tensor, columns: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    """``[b, e]``: the product of the rows of ``y`` and ``x`` that every entry joins."""
    wide = accumulation_type(x.dtype)
    left, right = take(y, _owners(pointers, columns)), take(x, columns)
    dots = (left.to(wide) * right.to(wide)).sum(-1).to(x.dtype)
    return dots.index_select(-1, order.argsort())


def tie_spread(g: Tensor, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """Share the row ``g`` of every segment among the rows that hold its maximum ``y``."""
    held, ties = _ties(x, y, index)
    return take((g / ties).to(g.dtype), index) * held


def tie_mean(h: Tensor, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """Mean of the rows of ``h`` where ``x`` holds the maximum: the adjoint of the above."""
    held, ties = _ties(x, y, index)
    return (add(h * held, index, y.size(-2), wide=True) / ties).to(h.dtype)


def tiled_linear(
    x: Tensor,
    weight: Tensor,
    shared: Tensor | None,
    segment: Tensor,
    rows: Tensor,
    blocks: Tensor,
) -> Tensor:
    """Rows ``[..., r, out]``: those of ``x`` times the matrix, plus the row, of their segment."""
    every = _places(rows, blocks, x.size(-2))
    (tiles, height), batch = every.shape, x.shape[:-2]
    y = torch.bmm(_tiled(x, every), weight.index_select(0, segment))
    y = y.reshape(tiles, math.prod(batch), height, weight.size(-1)).transpose(0, 1)
    y = y.reshape(*batch, tiles, height, weight.size(-1))
    if shared is not None:
        y = y + take(shared, segment).unsqueeze(-2)
    places = torch.arange(every.numel(), device=x.device)
    back = places.new_zeros(x.size(-2) + 1).scatter(0, every.flatten(), places)[:-1]
    return take(y.reshape(*x.shape[:-2], every.numel(), y.size(-1)), back)


def tiled_outer(
    x: Tensor, y: Tensor, segment: Tensor, rows: Tensor, blocks: Tensor, count: int
) -> Tensor:
    """``[count, in, out]``: sum over samples and rows of a segment of ``x^T y``."""
    every, wide = _places(rows, blocks, x.size(-2)), accumulation_type(x.dtype)
    left, right = _tiled(x, every).to(wide), _tiled(y, every).to(wide)
    outer = torch.bmm(left.transpose(1, 2), right)
    total = outer.new_zeros(count, *outer.shape[1:]).index_add(0, segment, outer)
    return total.to(x.dtype)


def _weighted_sum(
    x: Tensor, weight: Tensor | None, columns: Tensor, index: Tensor, count: int
) -> Tensor:
    sent = take(x, columns)
    if weight is not None:
        wide = accumulation_type(x.dtype)
        sent = sent.to(wide) * weight.to(wide).unsqueeze(-1)
    return add(sent, index, count, wide=True).to(x.dtype)


def _own_products(x: Tensor, weight: Tensor, index: Tensor, shared: Tensor | None) -> Tensor:
    """Each row times its copy of its matrix, which suits few rows, or unknown ones."""
    y = torch.einsum("...ri,rio->...ro", x, weight.index_select(0, index))
    return y if shared is None else y + take(shared, index)


def _owners(pointers: Tensor, columns: Tensor) -> Tensor:
    """The compressed row of every entry."""
    every = torch.arange(pointers.size(0) - 1, device=pointers.device)
    return every.repeat_interleave(pointers.diff(), output_size=columns.size(0))


def _ties(x: Tensor, y: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows hold the maximum of their segment, and how many do."""
    held = x == take(y, index)
    return held, add(held.to(accumulation_type(x.dtype)), index, y.size(-2)).clamp(min=1)


def _places(rows: Tensor, blocks: Tensor, count: int) -> Tensor:
    """The row in every place of every tile, ``[t, height]``; ``count`` where there is none."""
    step = -(-count // max(blocks.size(0) - 1, 1))
    tile = torch.arange(rows.size(0), device=rows.device)
    block = (tile[:, None] >= blocks[1:]).sum(1, keepdim=True)
    return torch.where(rows < step, rows + block * step, count)


def _tiled(x: Tensor, every: Tensor) -> Tensor:
    """The rows of every tile, samples one after another, ``[t, b * height, c]``."""
    (tiles, height), batch, channels = every.shape, math.prod(x.shape[:-2]), x.size(-1)
    rows = take(F.pad(x, (0, 0, 0, 1)), every.flatten())
    rows = rows.reshape(batch, tiles, height, channels).transpose(0, 1)
    return rows.reshape(tiles, batch * height, channels)
