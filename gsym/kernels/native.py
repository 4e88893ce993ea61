"""The primitives in fast plain torch, on the CPU and on CUDA.

Whatever reduces over a *static* index sorts it once, at construction, and then reduces contiguous
segments: no atomics, so the same inputs give the same bits. The operators are registered with
``torch.library`` in adjoint pairs, which makes them differentiable to any order and opaque to the
compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gsym.kernels import _cpp_nodes, _cpp_rows, _edges, _pairs, _plain, _trace
from gsym.kernels._memory import new_empty, take_rows
from gsym.kernels._plain import accumulation_type
from gsym.kernels._subgraph_maps import Verbs, Weights, compose
from gsym.kernels._transforms import is_eager, is_transformed
from gsym.kernels.segments import BLOCK_ROWS, Segments, Tiles
from gsym.kernels.subgraphs import Subgraphs

# Samples with more entries than this are reduced one after another, which saves an index of the
# whole batch; smaller ones are reduced in one call, which saves the calls.
_LARGE_SAMPLE = 2**15

# Segments of sorted rows are multiplied where they lie, one call each, if they hold this many rows
# in all samples together; shorter ones are gathered into tiles, which saves the calls.
_LONG_RUN = 2**12

# Rows that are added one after another; longer segments are summed piece by piece, because the
# rounding error of a running sum grows with its length.
_PIECE = 2**10


def _tell(cpp: bool, *tensors: Tensor | None) -> None:
    """Tell a trace, if there is one, whether compiled loops know these types."""
    if cpp and _trace.state.record is not None and not _cpp_rows.takes(*tensors):
        _trace.in_plain_torch()


def segment_sum(x: Tensor, segments: Segments, *, cpp: bool = False) -> Tensor:
    if segments._pointers.size(0) == 2:  # one segment: inductor's own pooling gave zeros on CUDA
        if cpp:
            _trace.in_plain_torch()
        return x.sum(dim=-2, keepdim=True)
    _tell(cpp, x)
    return _sum_rows(x, segments._index, segments._order, segments._pointers, cpp)


def segment_mean(x: Tensor, segments: Segments, *, cpp: bool = False) -> Tensor:
    wide = accumulation_type(x.dtype)  # a sum may overflow where the mean does not
    counts = segments._pointers.diff().clamp(min=1).to(wide)
    return (segment_sum(x.to(wide), segments, cpp=cpp) / counts[:, None]).to(x.dtype)


def segment_max(x: Tensor, segments: Segments, *, cpp: bool = False) -> Tensor:
    _tell(cpp, x)
    return _segment_max(x, segments._index, segments._order, segments._pointers, cpp)


def segment_gather(y: Tensor, segments: Segments, *, cpp: bool = False) -> Tensor:
    if cpp:  # which has its gradient
        _trace.in_plain_torch()
    return _take_rows(y, segments._index, segments._order, segments._pointers, cpp)


def gather_segment_sum(
    x: Tensor,
    source: Segments,
    segments: Segments,
    weight: Tensor | None = None,
    *,
    cpp: bool = False,
) -> Tensor:
    batch = x.shape[:-2]
    if weight is not None and weight.dim() > 1:
        batch = torch.broadcast_shapes(batch, weight.shape[:-1])
        weight = weight.expand(*batch, weight.size(-1)).reshape(batch.numel(), weight.size(-1))
    flat = x.expand(*batch, *x.shape[-2:]).reshape(batch.numel(), *x.shape[-2:])
    _tell(cpp, x, weight)
    y = _gather_sum(flat, weight, *_links(source, segments), cpp)
    return y.view(*batch, *y.shape[-2:])


def indexed_linear(
    x: Tensor,
    weight: Tensor,
    tiles: Tiles,
    shared: Tensor | None = None,
    *,
    cpp: bool = False,
) -> Tensor:
    batch, rows = x.shape[:-2], x.size(-2)
    flat = x.reshape(batch.numel(), rows, x.size(-1))
    if shared is not None:
        shared = shared.expand(*batch, *shared.shape[-2:]).reshape(
            batch.numel(), *shared.shape[-2:]
        )
    weight = weight.expand(tiles.segments._pointers.size(0) - 1, -1, -1)
    _tell(cpp, x, weight, shared)
    y = _indexed_linear(flat, weight, shared, *_tables(tiles), cpp)
    return y.view(*batch, rows, weight.size(-1))


def grouped_linear(x: Tensor, weight: Tensor, shared: Tensor | None = None) -> Tensor:
    groups, rows = x.shape[-3:-1]
    if shared is not None:
        shared = shared.unsqueeze(-2)
    if weight.size(0) == 1:
        y = x @ weight[0]
        return y if shared is None else y + shared
    in_channels, out_channels = weight.shape[1:]
    # With one channel on either side a product is elementwise, and that is faster.
    if in_channels == 1:
        return x * weight if shared is None else torch.addcmul(shared, x, weight)
    if out_channels == 1:
        y = (x * weight.transpose(1, 2)).sum(-1, keepdim=True)
        return y if shared is None else y + shared
    batch = x.shape[:-3]
    flat = x.flatten(0, -3)
    count = flat.size(0) // max(groups, 1)
    weight = weight.expand(count, *weight.shape).flatten(0, 1)
    if shared is None:
        y = torch.bmm(flat, weight)
    else:
        shared = shared.expand(*batch, groups, 1, out_channels).flatten(0, -3)
        y = torch.baddbmm(shared, flat, weight)
    return y.view(*batch, groups, rows, out_channels)


def cluster_linear(
    x: Tensor,
    weight: Tensor,
    matrix: Tensor,
    bias: Tensor,
    sizes: Tensor,
    tiles: Tiles | None = None,
    *,
    cpp: bool = False,
) -> Tensor:
    batch, rows = x.shape[:-2], x.size(-2)
    flat = x.reshape(batch.numel(), rows, x.size(-1))
    tables = () if tiles is None else _tables(tiles)
    if tiles is not None:
        _tell(cpp, x, weight, bias)
    elif cpp:
        _trace.in_plain_torch()
    y = _ClusterLinear.apply(flat, weight, matrix, bias, sizes, cpp, *tables)
    return y.view(*batch, rows, weight.size(-1))


def row_mlp(
    x: Tensor,
    first: tuple[Tensor, Tensor],
    last: tuple[Tensor, Tensor],
    beside: Tensor | None = None,
    *,
    cpp: bool = False,
) -> Tensor:
    if cpp and _cpp_nodes.takes(x, *first, *last, beside):
        return _cpp_nodes.row_mlp(_compose_mlp, x, first, last, beside)
    if cpp:
        _trace.in_plain_torch()
    return _compose_mlp([x, *first, *last, *(() if beside is None else (beside,))])[0]


def _compose_mlp(tensors: Sequence[Tensor]) -> list[Tensor]:
    x, first, first_bias, last, last_bias, *beside = tensors
    parts = [x, *beside]
    if x.dtype.itemsize < 4:
        parts = [torch.cat(parts, dim=-1)]  # their sum is rounded once
    # Else part by part, and in place where nothing is derived: the fresh pages of a joined tensor,
    # and of every other one, cost as much as a product.
    weights = first.squeeze(0).split([part.size(-1) for part in parts])
    hidden = first_bias
    for part, weight in zip(parts, weights, strict=True):
        hidden = torch.addmm(hidden, part.flatten(0, -2), weight)
    hidden = F.silu(hidden, inplace=not hidden.requires_grad)
    y = _shared_linear(hidden, last, last_bias)
    return [y.reshape(*x.shape[:-1], y.size(-1))]


def linear_pair(
    x: Tensor, weight: Tensor, bias: Tensor, other: Tensor, *, cpp: bool = False
) -> tuple[Tensor, Tensor]:
    if cpp and _cpp_nodes.takes(x, weight, bias, other):
        return _cpp_nodes.linear_pair(_compose_pair, x, weight, bias, other)
    if cpp:
        _trace.in_plain_torch()
    return _compose_pair([x, weight, bias, other])


def _compose_pair(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    x, weight, bias, other = tensors
    return _shared_linear(x, weight, bias), _shared_linear(x, other)


def _shared_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows, weight = x.flatten(0, -2), weight.squeeze(0)
    y = rows.mm(weight) if bias is None else torch.addmm(bias, rows, weight)
    return y.reshape(*x.shape[:-1], weight.size(-1))


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return _permute_rows(x, order, inverse)


def edge_mlp_sum(
    receiver: Tensor,
    sender: Tensor,
    source: Segments,
    segments: Segments,
    weight: Tensor,
    bias: Tensor,
    *,
    pos: Tensor | None = None,
    distance: Tensor | None = None,
    edge_attr: tuple[Tensor, Tensor] | None = None,
    gate: tuple[Tensor, Tensor] | None = None,
    coord: tuple[Tensor, Tensor, Tensor] | None = None,
    normalize: bool = False,
    tanh: bool = False,
    clamp: float | None = None,
    mean: bool = True,
    cpp: bool = False,
) -> tuple[Tensor, Tensor | None]:
    given = _plain.edge_tensors(
        receiver, sender, weight, bias, pos, distance, edge_attr, gate, coord
    )
    options = (normalize, tanh, clamp, mean)
    if receiver.device.type != "cpu":
        total, moved = _compose(given, source, segments, *options)
        return total, None if coord is None else moved
    batch = receiver.shape[:-2]
    for name in ("receiver", "sender", "pos", "attr"):
        x = given.get(name)
        if x is None or (name == "attr" and x.dim() == 2):
            continue
        if len(batch) != 1 or x.shape[:-2] != batch:  # no view in vain: each has a gradient
            given[name] = x.expand(*batch, *x.shape[-2:]).reshape(batch.numel(), *x.shape[-2:])
    tables = (segments._index, source._index, segments._pointers)
    total, moved = _edge_mlp_sum(list(given.values()), " ".join(given), *tables, *options, cpp)
    if len(batch) != 1:
        total, moved = total.view(receiver.shape), moved.view(*batch, *moved.shape[-2:])
    return total, None if coord is None else moved


def _compose(
    given: dict[str, Tensor],
    source: Segments,
    segments: Segments,
    normalize: bool,
    tanh: bool,
    clamp: float | None,
    mean: bool,
) -> tuple[Tensor, Tensor]:
    total, moved = _plain.compose_edges(
        given,
        lambda x: segment_gather(x, segments),
        lambda x: segment_gather(x, source),
        lambda x: segment_sum(x, segments),
        lambda x: segment_mean(x, segments),
        normalize=normalize,
        tanh=tanh,
        clamp=clamp,
        mean=mean,
    )
    receiver = given["receiver"]
    return total.to(receiver.dtype), moved.to(given.get("pos", receiver).dtype)


def _compose_flat(  # type: ignore[no-untyped-def]
    tensors, names, index, columns, pointers, *options_and_cpp
) -> tuple[Tensor, Tensor]:
    """The arguments of the fused operator given to the composition."""
    given = dict(zip(names.split(), tensors, strict=True))
    source = Segments(columns, given["sender"].size(1))
    options = options_and_cpp[:-1]
    return _compose(given, source, Segments(index, given["receiver"].size(1)), *options)


_edge_mlp_sum = _edges.differentiable(_compose_flat)


def subgraph_linear(
    x: Tensor,
    subgraphs: Subgraphs,
    orders: tuple[int, int],
    weights: Weights,
    *,
    cpp: bool = False,
) -> Tensor:
    if cpp and _pairs.is_fused(x, subgraphs, orders, weights):
        return _pairs.fused(_VERBS[True], x, subgraphs, weights)
    if cpp:
        _trace.in_plain_torch()
    return compose(_VERBS[cpp], x, subgraphs, orders, weights)


_VERBS = {
    cpp: Verbs(
        sum=partial(segment_sum, cpp=cpp),
        gather=partial(segment_gather, cpp=cpp),
        gather_sum=partial(gather_segment_sum, cpp=cpp),
        linear=partial(indexed_linear, cpp=cpp),
        permute=permute_rows,
    )
    for cpp in (False, True)
}
_pairs.register(_VERBS[True])


def _tables(tiles: Tiles) -> tuple[Any, ...]:
    """What the operators on tiles take."""
    segments = tiles.segments
    return (
        segments.is_sorted,
        *(tiles._segment, tiles._rows, tiles._places, tiles._blocks, tiles._local),
        *(segments._index, segments._order, segments._pointers),
    )


def share_rows(g: Tensor, segments: Segments) -> Tensor:
    """The gradient of ``segment_sum``: every segment's row of ``g`` to its rows."""
    return _take_rows(g, segments._index, segments._order, segments._pointers, False)


def share_among_ties(g: Tensor, x: Tensor, y: Tensor, segments: Segments) -> Tensor:
    """The gradient of ``segment_max``: every segment's row of ``g`` to the rows that tie."""
    return _spread_ties(g, x, y, segments._index, segments._order, segments._pointers, False)


def _links(source: Segments, segments: Segments) -> tuple[Tensor, ...]:
    """A sparse matrix by rows, then its transpose by rows: columns, entries, row pointers."""
    return (
        *(segments._columns(source), segments._order, segments._pointers),
        *(source._columns(segments), source._order, source._pointers),
    )


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A gradient in the types of its forward pass, wherever ``backward`` is called."""

    @wraps(backward)
    def call(ctx: Any, grad: Tensor) -> Any:
        with torch.autocast(grad.device.type, enabled=False):
            return backward(ctx, grad)

    return call


def paired(operator: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """What gradients call: the operator, or where they are transformed the same in plain torch."""

    def call(*args: Any) -> Any:
        return plain(*args) if is_transformed(*args[:2]) else operator(*args)

    return call


def _bags(x: Tensor, columns: Tensor, pointers: Tensor, weight: Tensor | None = None) -> Tensor:
    """``[b, s, c]``: sums of the rows ``columns`` of ``x [b, n, c]`` between the pointers.

    ``weight [e]`` or ``[b, e]`` goes with the columns. The accumulator of half precision is float32
    inside the reduction, so nothing is converted here.
    """
    (batch, rows, channels), entries = x.shape, columns.numel()
    shape = batch, pointers.numel() - 1, channels
    if 0 in shape or entries == 0:
        return x.new_zeros(shape)
    if weight is not None:
        weight = weight.expand(batch, entries)
    x = x.contiguous()
    if batch == 1:
        return _bag(x[0], columns, pointers, None if weight is None else weight[0])[None]
    if entries * channels > _LARGE_SAMPLE:
        out = new_empty(x, *shape)
        for i in range(batch):
            out[i] = _bag(x[i], columns, pointers, None if weight is None else weight[i])
        return out
    sample = torch.arange(batch, device=x.device)[:, None]
    starts = (pointers[:-1] + sample * entries).view(-1)
    starts = torch.cat([starts, starts.new_tensor([batch * entries])])
    columns = (columns + sample * rows).view(-1)
    weight = None if weight is None else weight.reshape(-1)
    return _bag(x.view(-1, channels), columns, starts, weight).view(shape)


def _bag(x: Tensor, columns: Tensor, pointers: Tensor, weight: Tensor | None) -> Tensor:
    # The fastest reduction in plain torch on the CPU: 95 % of the bandwidth of a copy.
    return F.embedding_bag(
        columns, x, pointers, mode="sum", include_last_offset=True, per_sample_weights=weight
    )


@torch.library.custom_op("gsym::segment_sum", mutates_args=())
def _segment_sum(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor, cpp: bool) -> Tensor:
    flat = x.reshape(x.shape[:-2].numel(), *x.shape[-2:])
    if cpp and _cpp_rows.takes(x):
        sums = _cpp_rows.segment_sum(flat, index, order, pointers)
        return sums.view(*x.shape[:-2], *sums.shape[-2:])
    sizes = pointers.diff()
    if order.numel() > _PIECE and int(sizes.max()) > _PIECE:
        count = -(-sizes // _PIECE)
        pieces = F.pad(count.cumsum(0), (1, 0))
        owner = torch.repeat_interleave(count)
        rank = torch.arange(owner.numel(), device=x.device) - pieces[owner]
        cuts = torch.cat([pointers[owner] + rank * _PIECE, pointers[-1:]])
        # In float32 for half precision: the sum of a piece must not be rounded, nor overflow.
        flat = _bags(flat.to(accumulation_type(x.dtype)), order, cuts.to(order.dtype))
        order, pointers = torch.arange(owner.numel(), device=x.device), pieces
    sums = _bags(flat, order, pointers).to(x.dtype)
    return sums.view(*x.shape[:-2], *sums.shape[-2:])


@_segment_sum.register_fake
def _(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor, cpp: bool) -> Tensor:
    return x.new_empty(*x.shape[:-2], pointers.size(0) - 1, x.size(-1))


@torch.library.custom_op("gsym::segment_gather", mutates_args=())
def _segment_gather(y: Tensor, index: Tensor, order: Tensor, pointers: Tensor, cpp: bool) -> Tensor:
    return take_rows(y, index)


@_segment_gather.register_fake
def _(y: Tensor, index: Tensor, order: Tensor, pointers: Tensor, cpp: bool) -> Tensor:
    return y.new_empty(*y.shape[:-2], index.size(0), y.size(-1))


def _save_tables(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, *tables, ctx.cpp = inputs
    ctx.save_for_backward(*tables)


def _segment_sum_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _take_rows(grad, *ctx.saved_tensors, ctx.cpp), None, None, None, None


def _segment_gather_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _sum_rows(grad, *ctx.saved_tensors, ctx.cpp), None, None, None, None


_segment_sum.register_autograd(_segment_sum_backward, setup_context=_save_tables)
_segment_gather.register_autograd(_segment_gather_backward, setup_context=_save_tables)


@torch.library.custom_op("gsym::gather_segment_sum", mutates_args=())
def _gather_sum(
    x: Tensor,
    weight: Tensor | None,
    columns: Tensor,
    order: Tensor,
    pointers: Tensor,
    rows: Tensor,
    turned_order: Tensor,
    turned_pointers: Tensor,
    cpp: bool,
) -> Tensor:
    """The product of a sparse matrix, of entries ``weight``, with ``x [b, n, c]``."""
    if cpp and _cpp_rows.takes(x, weight):
        return _cpp_rows.gather_sum(x, weight, columns, order, pointers)
    return _bags(x, columns, pointers, None if weight is None else weight.index_select(-1, order))


@_gather_sum.register_fake
def _(x, weight, columns, order, pointers, *rest):  # type: ignore[no-untyped-def]
    return x.new_empty(x.size(0), pointers.size(0) - 1, x.size(-1))


@torch.library.custom_op("gsym::gather_dot", mutates_args=())
def _gather_dot(
    y: Tensor,
    x: Tensor,
    columns: Tensor,
    order: Tensor,
    pointers: Tensor,
    rows: Tensor,
    turned_order: Tensor,
    turned_pointers: Tensor,
    cpp: bool,
) -> Tensor:
    """``[b, e]``: the product of the rows of ``y [b, s, c]`` and ``x`` that every entry joins."""
    if cpp and _cpp_rows.takes(y, x):
        return _cpp_rows.gather_dot(y, x, columns, order, pointers)
    batch, entries = y.size(0), columns.numel()
    segment = torch.arange(pointers.numel() - 1, device=x.device)
    segment = segment.repeat_interleave(pointers.diff(), output_size=entries)
    wide = accumulation_type(x.dtype)
    sorted_dots = x.new_empty(batch, entries)
    for first, end, block in _blocks(batch, entries):
        left = y[first:end].index_select(1, segment[block]).to(wide)
        right = x[first:end].index_select(1, columns[block])
        sorted_dots[first:end, block] = left.mul_(right).sum(-1)
    return torch.empty_like(sorted_dots).index_copy_(1, order.long(), sorted_dots)


@_gather_dot.register_fake
def _(y, x, columns, *tables):  # type: ignore[no-untyped-def]
    return x.new_empty(x.size(0), columns.size(0))


def _save_all(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.cpp = inputs
    ctx.save_for_backward(*tensors)


def _gather_sum_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight, *links = ctx.saved_tensors
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    grad_weight = None
    if weight is not None and needs_weight:
        # Summed over samples before they are rounded.
        wide = accumulation_type(x.dtype) if weight.dim() == 1 else x.dtype
        dots = _dot_rows(grad.to(wide), x.to(wide), *links, ctx.cpp)
        grad_weight = dots.sum(0).to(x.dtype) if weight.dim() == 1 else dots
    return (
        _sum_taken(grad, weight, *links[3:], *links[:3], ctx.cpp) if needs_x else None,
        grad_weight,
        *(None for _ in (*links, ctx.cpp)),
    )


def _gather_dot_backward(ctx, grad):  # type: ignore[no-untyped-def]
    y, x, *links = ctx.saved_tensors
    needs_y, needs_x, *_ = ctx.needs_input_grad
    return (
        _sum_taken(x, grad, *links, ctx.cpp) if needs_y else None,
        _sum_taken(y, grad, *links[3:], *links[:3], ctx.cpp) if needs_x else None,
        *(None for _ in (*links, ctx.cpp)),
    )


_gather_sum.register_autograd(_gather_sum_backward, setup_context=_save_all)
_gather_dot.register_autograd(_gather_dot_backward, setup_context=_save_all)


@torch.library.custom_op("gsym::segment_max", mutates_args=())
def _segment_max(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor, cpp: bool) -> Tensor:
    if cpp and _cpp_rows.takes(x):
        flat = x.reshape(x.shape[:-2].numel(), *x.shape[-2:])
        high = _cpp_rows.segment_max(flat, index, order, pointers)
        return high.view(*x.shape[:-2], *high.shape[-2:])
    out = x.new_zeros(*x.shape[:-2], pointers.numel() - 1, x.size(-1))
    return out.scatter_reduce_(
        -2, index.long()[:, None].expand(x.shape), x, reduce="amax", include_self=False
    )


@_segment_max.register_fake
def _(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor, cpp: bool) -> Tensor:
    return x.new_empty(*x.shape[:-2], pointers.size(0) - 1, x.size(-1))


def _ties(x: Tensor, y: Tensor, *tables: Any) -> tuple[Tensor, Tensor]:
    """Which rows hold the maximum of their segment, and how many do, in numbers."""
    held = (x == y.index_select(-2, tables[0])).to(accumulation_type(x.dtype))
    return held, _segment_sum(held, *tables).clamp_(min=1)


@torch.library.custom_op("gsym::tie_spread", mutates_args=())
def _tie_spread(
    g: Tensor, x: Tensor, y: Tensor, index: Tensor, order: Tensor, pointers: Tensor, cpp: bool
) -> Tensor:
    """Share the row ``g`` of every segment among the rows that hold its maximum ``y``."""
    batch, entries, channels = x.shape[:-2].numel(), x.size(-2), x.size(-1)
    shape, x = x.shape, x.reshape(batch, entries, channels)
    if x.numel() == 0:
        return x.new_empty(shape)
    if cpp and _cpp_rows.takes(g, x, y):
        g, y = (value.reshape(batch, -1, channels) for value in (g, y))
        return _cpp_rows.tie_spread(g, x, y, index, order, pointers).view(shape)
    out = new_empty(x, *shape)
    flat_out = out.view(x.shape)
    high, g = y.reshape(-1, channels), g.reshape(-1, channels)

    def blocks() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Which rows hold the maximum, their segments among all samples, and their result."""
        for first, end, rows in _blocks(batch, entries):
            sample = torch.arange(first, end, device=x.device)[:, None]
            at = (index[rows] + sample * y.size(-2)).view(-1)
            held = x[first:end, rows].reshape(-1, channels) == high.index_select(0, at)
            yield held, at, flat_out[first:end, rows].view(-1, channels)

    count = torch.zeros_like(high, dtype=torch.int32)
    for held, at, _ in blocks():  # whole numbers, whose sum does not depend on the order
        count.index_add_(0, at, held.int())
    share = (g / count.clamp_(min=1).to(accumulation_type(g.dtype))).to(g.dtype)
    for held, at, result in blocks():
        torch.mul(share.index_select(0, at), held, out=result)
    return out


@_tie_spread.register_fake
def _(g, x, y, *tables):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.custom_op("gsym::tie_mean", mutates_args=())
def _tie_mean(
    h: Tensor, x: Tensor, y: Tensor, index: Tensor, order: Tensor, pointers: Tensor, cpp: bool
) -> Tensor:
    """Mean of the rows of ``h`` where ``x`` holds the maximum: the adjoint of the above."""
    held, count = _ties(x, y, index, order, pointers, cpp)
    return (_segment_sum(held.mul_(h), index, order, pointers, cpp) / count).to(h.dtype)


@_tie_mean.register_fake
def _(h, x, y, *tables):  # type: ignore[no-untyped-def]
    return y.new_empty(y.shape)


def _save_max(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, *tables, ctx.cpp = inputs
    ctx.save_for_backward(x, output, *tables)


def _segment_max_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _spread_ties(grad, *ctx.saved_tensors, ctx.cpp), None, None, None, None


def _tie_spread_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _average_ties(grad, *ctx.saved_tensors, ctx.cpp), *(None for _ in range(6))


def _tie_mean_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _spread_ties(grad, *ctx.saved_tensors, ctx.cpp), *(None for _ in range(6))


_segment_max.register_autograd(_segment_max_backward, setup_context=_save_max)
_tie_spread.register_autograd(_tie_spread_backward, setup_context=_save_tables)
_tie_mean.register_autograd(_tie_mean_backward, setup_context=_save_tables)


@torch.library.custom_op("gsym::permute_rows", mutates_args=())
def _permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return take_rows(x, order)


@_permute_rows.register_fake
def _(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save_order(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[1:])


def _permute_rows_backward(ctx, grad):  # type: ignore[no-untyped-def]
    order, inverse = ctx.saved_tensors
    return _reorder(grad, inverse, order), None, None


_permute_rows.register_autograd(_permute_rows_backward, setup_context=_save_order)


def _blocks(batch: int, entries: int) -> Iterator[tuple[int, int, slice]]:
    """Work that fits a cache: first sample, end of samples, entries.

    Either several whole samples, or some entries of one sample.
    """
    samples = min(max(BLOCK_ROWS // max(entries, 1), 1), max(batch, 1))
    step = max(entries if samples > 1 else BLOCK_ROWS, 1)
    for first in range(0, batch, samples):
        for entry in range(0, entries, step):
            end = min(first + samples, batch)
            yield first, end, slice(entry, min(entry + step, entries))


def _pieces(runs: Tensor, batch: int) -> Iterator[tuple[int, slice]]:
    """Parts of runs of rows that fit a cache, all samples side by side."""
    step = max(BLOCK_ROWS // batch, 1)
    for owner, (start, end) in enumerate(pairwise(runs.tolist())):
        for first in range(start, end, step):
            yield owner, slice(first, min(first + step, end))


def _product(added: Tensor | None, x: Tensor, weight: Tensor, *, out: Tensor) -> None:
    if added is None:
        torch.bmm(x, weight, out=out)
    else:
        torch.baddbmm(added, x, weight, out=out)


class _Blocks:
    """Blocks of rows, some samples side by side, and the places of their rows in tiles."""

    def __init__(self, batch: int, rows: Tensor, places: Tensor, blocks: Tensor) -> None:
        count = blocks.numel() - 1
        self.batch, self.rows, self.places = batch, rows, places
        self.pointers = blocks.tolist() if count > 1 else [0, rows.size(0)]
        self.step = -(-places.numel() // count)
        most = max(b - a for a, b in pairwise(self.pointers)) * rows.size(1)
        self.samples = min(max(BLOCK_ROWS // max(most, 1), 1), batch)
        self.capacity = self.samples * most

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """The rows and the tiles of every block."""
        for i, (a, b) in enumerate(pairwise(self.pointers)):
            yield slice(i * self.step, min((i + 1) * self.step, self.places.numel())), slice(a, b)

    def groups(self, block: slice, tiles: slice) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some samples at a time, which rows their tiles take, and where their rows end up."""
        rows, places, height = self.rows[tiles], self.places[block], self.rows.size(1)
        take, back = rows.view(-1), places
        for first in range(0, self.batch, self.samples):
            m = min(self.samples, self.batch - first)
            if m > 1 and (first == 0 or m < self.samples):
                sample = torch.arange(m, device=rows.device)[:, None]
                take = (rows[:, None] + sample * (self.step + 1)).view(-1)
                back = ((places // height * m + sample) * height + places % height).view(-1)
            elif m == 1:
                take, back = rows.view(-1), places
            yield slice(first, first + m), take, back

    def gather(self, x: Tensor) -> Callable[[slice, slice, Tensor], Tensor]:
        """A function that lays rows of ``x`` out tile by tile, in memory used again."""
        padded = x.new_zeros(self.samples, self.step + 1, x.size(-1))
        flat = x.new_empty(self.capacity, x.size(-1))

        def call(some: slice, block: slice, take: Tensor) -> Tensor:
            # Reading the block in order first is faster than waiting for its rows one by one.
            here = x[some, block]
            padded[: here.size(0), : here.size(1)] = here
            places = flat[: take.numel()]
            return torch.index_select(padded.flatten(0, 1), 0, take, out=places)

        return call


@torch.library.custom_op("gsym::indexed_linear", mutates_args=())
def _indexed_linear(
    x: Tensor,
    weight: Tensor,
    shared: Tensor | None,
    is_sorted: bool,
    segment: Tensor,
    rows: Tensor,
    places: Tensor,
    blocks: Tensor,
    local: Tensor,
    index: Tensor,
    order: Tensor,
    pointers: Tensor,
    cpp: bool,
) -> Tensor:
    if cpp and _cpp_rows.takes(x, weight, shared):
        return _cpp_rows.indexed_linear(x, weight, shared, index, local)
    (batch, count, _), out_channels = x.shape, weight.size(-1)
    x = x.contiguous()
    y = new_empty(x, batch, count, out_channels)
    if y.numel() == 0:
        return y
    if is_sorted and batch * count >= _LONG_RUN * weight.size(0):
        for owner, piece in _pieces(pointers, batch):
            matrices = weight[owner].expand(batch, -1, -1)
            added = None if shared is None else shared[:, owner, None]
            _product(added, x[:, piece], matrices, out=y[:, piece])
        return y
    walk = _Blocks(batch, rows, places, blocks)
    gather, flat = walk.gather(x), x.new_empty(walk.capacity, out_channels)
    for block, tiles in walk:
        taken = segment[tiles]
        matrices = weight.index_select(0, taken)
        for some, take, back in walk.groups(block, tiles):
            tiled = taken.numel(), take.numel() // taken.numel()
            left = gather(some, block, take).view(*tiled, x.size(-1))
            product = flat[: take.numel()].view(*tiled, out_channels)
            added = None
            if shared is not None:
                added = shared[some].index_select(1, taken).transpose(0, 1)
            if added is None or added.size(1) == 1:
                _product(added, left, matrices, out=product)
            else:
                torch.bmm(left, matrices, out=product)
                product.view(*added.shape[:2], -1, out_channels).add_(added[:, :, None])
            target = y[some, block].view(-1, out_channels)
            torch.index_select(product.view(-1, out_channels), 0, back, out=target)
    return y


@_indexed_linear.register_fake
def _(x, weight, shared, *tables):  # type: ignore[no-untyped-def]
    return x.new_empty(x.size(0), x.size(1), weight.size(-1))


def _save_indexed(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, shared, ctx.is_sorted, *tables, ctx.cpp = inputs
    ctx.shared = shared is not None
    ctx.save_for_backward(x, weight, *tables)


def _indexed_linear_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight, *tables = ctx.saved_tensors
    tables = ctx.is_sorted, *tables
    needs_x, needs_weight, needs_shared, *_ = ctx.needs_input_grad
    turned = weight.transpose(1, 2)
    return (
        _multiply(grad, turned, None, *tables, ctx.cpp) if needs_x else None,
        _multiply_out(x, grad, *tables, ctx.cpp) if needs_weight else None,
        _sum_rows(grad, *tables[-3:], ctx.cpp) if ctx.shared and needs_shared else None,
        *(None for _ in (*tables, ctx.cpp)),
    )


_indexed_linear.register_autograd(_indexed_linear_backward, setup_context=_save_indexed)


@torch.library.custom_op("gsym::indexed_outer", mutates_args=())
def _indexed_outer(
    x: Tensor,
    y: Tensor,
    is_sorted: bool,
    segment: Tensor,
    rows: Tensor,
    places: Tensor,
    blocks: Tensor,
    local: Tensor,
    index: Tensor,
    order: Tensor,
    pointers: Tensor,
    cpp: bool,
) -> Tensor:
    """``[s, in, out]``: sum over samples and rows of a segment of ``x^T y``."""
    if cpp and _cpp_rows.takes(x, y):
        return _cpp_rows.indexed_outer(x, y, index, local, order, pointers)
    (batch, count, in_channels), out_channels = x.shape, y.size(-1)
    x, y = x.contiguous(), y.contiguous()
    wide = accumulation_type(x.dtype)  # what is added block by block is rounded once, at the end
    shape = pointers.numel() - 1, in_channels, out_channels
    total = x.new_zeros(shape[0], in_channels * out_channels, dtype=wide)
    every = torch.arange(pointers.numel(), device=x.device)
    if x.numel() == 0 or total.numel() == 0:
        return total.view(shape).to(x.dtype)
    if is_sorted and batch * count >= _LONG_RUN * total.size(0):
        for owner, piece in _pieces(pointers, batch):
            left, right = x[:, piece].to(wide), y[:, piece].to(wide)
            total[owner] += torch.bmm(left.transpose(1, 2), right).sum(0).view(-1)
        return total.view(shape).to(x.dtype)
    walk = _Blocks(batch, rows, places, blocks)
    gather_x, gather_y = walk.gather(x), walk.gather(y)
    for block, tiles in walk:
        taken = segment[tiles]
        sums = x.new_zeros(taken.numel(), in_channels, out_channels, dtype=wide)
        for some, take, _ in walk.groups(block, tiles):
            left = gather_x(some, block, take).view(taken.numel(), -1, in_channels)
            right = gather_y(some, block, take).view(taken.numel(), -1, out_channels)
            sums.baddbmm_(left.to(wide).transpose(1, 2), right.to(wide))
        ends = torch.searchsorted(taken, every)
        nothing = torch.arange(taken.numel(), device=x.device)
        total += _bags(sums.flatten(1)[None], nothing, ends)[0]
    return total.view(shape).to(x.dtype)


@_indexed_outer.register_fake
def _(x, y, *tables):  # type: ignore[no-untyped-def]
    return x.new_empty(tables[-2].size(0) - 1, x.size(-1), y.size(-1))


def _save_outer(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, y, ctx.is_sorted, *tables, ctx.cpp = inputs
    ctx.save_for_backward(x, y, *tables)


def _indexed_outer_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, y, *tables = ctx.saved_tensors
    tables = ctx.is_sorted, *tables
    needs_x, needs_y, *_ = ctx.needs_input_grad
    turned = grad.transpose(1, 2)
    return (
        _multiply(y, turned, None, *tables, ctx.cpp) if needs_x else None,
        _multiply(x, grad, None, *tables, ctx.cpp) if needs_y else None,
        *(None for _ in (*tables, ctx.cpp)),
    )


_indexed_outer.register_autograd(_indexed_outer_backward, setup_context=_save_outer)


_take_rows = paired(_segment_gather, lambda y, index, *_: _plain.take(y, index))
_sum_rows = paired(
    _segment_sum,
    lambda x, index, order, pointers, cpp: _plain.add(x, index, pointers.size(0) - 1),
)
_sum_taken = paired(_gather_sum, lambda x, weight, *links: _plain.gather_sum(x, weight, *links[:3]))
_dot_rows = paired(_gather_dot, lambda y, x, *links: _plain.gather_dot(y, x, *links[:3]))
_spread_ties = paired(_tie_spread, lambda g, x, y, index, *_: _plain.tie_spread(g, x, y, index))
_average_ties = paired(_tie_mean, lambda h, x, y, index, *_: _plain.tie_mean(h, x, y, index))
_reorder = paired(_permute_rows, lambda x, order, inverse: _plain.take(x, order))
_multiply = paired(
    _indexed_linear,
    lambda x, weight, shared, is_sorted, segment, rows, places, blocks, *_: _plain.tiled_linear(
        x, weight, shared, segment, rows, blocks
    ),
)
_multiply_out = paired(
    _indexed_outer,
    lambda x, y, is_sorted, segment, rows, places, blocks, local, index, order, pointers, cpp: (
        _plain.tiled_outer(x, y, segment, rows, blocks, pointers.size(0) - 1)
    ),
)


class _ClusterLinear(torch.autograd.Function):
    """Every step is one of the differentiable operators, and so is every step of its gradient."""

    @staticmethod
    def forward(ctx, x, weight, matrix, bias, sizes, cpp, *tables):  # type: ignore[no-untyped-def]
        ctx.cpp, ctx.is_sorted = cpp, tables[:1]
        means = (_pool(x, sizes.numel(), tables, cpp) / sizes[:, None]).to(x.dtype)
        ctx.save_for_backward(x, weight, matrix, sizes, means, *tables[1:])
        shared = (means.flatten(1) @ matrix).view(x.size(0), sizes.numel(), weight.size(-1))
        return _spread(x, weight, shared + bias, tables, cpp)

    @staticmethod
    @without_autocast
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, matrix, sizes, means, *tables = ctx.saved_tensors
        tables = *ctx.is_sorted, *tables
        k, cpp = sizes.numel(), ctx.cpp
        if torch.is_grad_enabled():
            means = (_pool(x, k, tables, cpp) / sizes[:, None]).to(x.dtype)
        sums = _pool(grad, k, tables, cpp)
        x_needs, weight_needs, matrix_needs, bias_needs = ctx.needs_input_grad[:4]
        grad_x = None
        if x_needs:
            spread = side_by_side(sums) @ matrix.t().to(sums.dtype)
            spread = (spread.reshape(x.size(0), k, x.size(-1)) / sizes[:, None]).to(x.dtype)
            grad_x = _spread(grad, weight.transpose(1, 2), spread, tables, cpp)
        return (
            grad_x,
            _outer(x, grad, weight.size(0), k, tables, cpp) if weight_needs else None,
            cross(means.to(sums.dtype), sums).to(x.dtype) if matrix_needs else None,
            sums.sum(0).to(x.dtype) if bias_needs else None,
            *(None for _ in range(2 + len(tables))),
        )


def _runs(x: Tensor, k: int) -> Tensor:
    """Equal runs of rows, ``[b, k, r, c]``."""
    return x.reshape(x.size(0), k, x.size(1) // k, x.size(2))


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Products of all entries of two tables, summed over samples."""
    return side_by_side(x).t() @ side_by_side(y)


def side_by_side(x: Tensor) -> Tensor:
    """The rows of every sample side by side; batches of gradients know no ``flatten``."""
    return x.reshape(x.size(0), x.size(1) * x.size(2))


def all_rows(x: Tensor) -> Tensor:
    """The rows of all samples, one below the other."""
    return x.reshape(x.size(0) * x.size(1), x.size(2))


def _grouped(x: Tensor, weight: Tensor, shared: Tensor) -> Tensor:
    plain = is_transformed(x, weight)
    return (_plain.grouped_linear if plain else grouped_linear)(x, weight, shared)


def _pool(x: Tensor, k: int, tables: Sequence[Any], cpp: bool) -> Tensor:
    """Sums of the rows of every cluster, ``[b, k, c]``; float32 for half precision."""
    wide = accumulation_type(x.dtype)
    if not tables:
        return _runs(x, k).sum(dim=2, dtype=wide)
    if _is_direct(cpp, x):
        return _cpp_rows.segment_sum(x, *tables[-3:])
    return _sum_rows(x.to(wide), *tables[-3:], cpp)


def _is_direct(cpp: bool, *tensors: Tensor) -> bool:
    """Whether compiled loops may do without their operator, which costs a small batch its time.

    Not where anything differentiates or traces what is called.
    """
    if not cpp or torch.is_grad_enabled():
        return False
    return is_eager(*tensors) and _cpp_rows.takes(*tensors)


def _spread(x: Tensor, weight: Tensor, shared: Tensor, tables: Sequence[Any], cpp: bool) -> Tensor:
    """Each row times the matrix of its cluster, plus the row ``shared`` of its cluster."""
    k = shared.size(1)
    if not tables:
        y = _grouped(_runs(x, k), weight, shared)
        return y.reshape(*x.shape[:2], y.size(-1))
    weight = weight.expand(k, -1, -1)
    if _is_direct(cpp, x, weight, shared):
        local, index, *_ = tables[-4:]
        return _cpp_rows.indexed_linear(x, weight, shared, index, local)
    return _multiply(x, weight, shared, *tables, cpp)


def _outer(x: Tensor, y: Tensor, matrices: int, k: int, tables: Sequence[Any], cpp: bool) -> Tensor:
    """``x^T y`` summed over the samples and over the rows of every cluster, or over all rows."""
    if matrices == 1:
        return (all_rows(x).t() @ all_rows(y))[None]
    if tables and _is_direct(cpp, x, y):
        local, index, order, pointers = tables[-4:]
        return _cpp_rows.indexed_outer(x, y, index, local, order, pointers)
    if tables:
        return _multiply_out(x, y, *tables, cpp)
    x, y = _runs(x, k), _runs(y, k)
    if x.dtype.itemsize < 4:  # no sum over samples of what was rounded
        x, y = (v.transpose(0, 1).reshape(k, -1, v.size(-1)) for v in (x, y))
        return x.transpose(1, 2) @ y
    if y.size(-1) == 1:  # a row on the left is faster than a column on the right
        return (y.transpose(2, 3) @ x).sum(0).transpose(1, 2)
    return (x.transpose(2, 3) @ y).sum(0)
