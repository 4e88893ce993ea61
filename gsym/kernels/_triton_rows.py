"""Triton: sums and maxima of rows by segment, and products with one matrix per group of rows.

Sums and maxima walk compressed rows: a program owns some segments and some channels and reads the
rows of each segment in order, in float32 or float64. Segments longer than ``_CHUNK`` entries are
first reduced piece by piece, one program per chunk of entries; the pieces of chunk q lie in the
rows 2q (the segment that holds its first entry) and 2q + 1 (the one that begins inside and leaves
it). The gradient of a gather is the same walk along the transposed rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsym.kernels import _plain, _trace, native
from gsym.kernels._plain import accumulation_type
from gsym.kernels.segments import Segments, Tiles

INTERPRETED = triton.knobs.runtime.interpret

# The interpreter multiplies the bits of bfloat16, so there products take float32.
BFLOAT16 = tl.constexpr(tl.float32 if INTERPRETED else tl.bfloat16)

# Entries that one program adds up one after another; longer segments are cut.
_CHUNK = 1024

# Rows whose outer products one program adds up.
_OUTER_ROWS = 1024


def segment_sum(x: Tensor, segments: Segments) -> Tensor:
    return sum_rows(x, segments._index, segments._order, segments._pointers, False)


def segment_mean(x: Tensor, segments: Segments) -> Tensor:
    # In the wide type: a sum may overflow where the mean does not.
    sums = sum_rows(x, segments._index, segments._order, segments._pointers, True)
    counts = segments._pointers.diff().clamp(min=1).to(sums.dtype)
    return (sums / counts[:, None]).to(x.dtype)


def segment_max(x: Tensor, segments: Segments) -> Tensor:
    return _segment_max(x, segments._index, segments._order, segments._pointers)


def segment_gather(y: Tensor, segments: Segments) -> Tensor:
    _trace.in_plain_torch()  # its gradient is in Triton
    return take_rows(y, segments._index, segments._order, segments._pointers)


def gather_segment_sum(
    x: Tensor, source: Segments, segments: Segments, weight: Tensor | None = None
) -> Tensor:
    batch = x.shape[:-2]
    if weight is not None and weight.dim() > 1:
        batch = torch.broadcast_shapes(batch, weight.shape[:-1])
        weight = weight.expand(*batch, weight.size(-1)).reshape(batch.numel(), weight.size(-1))
    flat = x.expand(*batch, *x.shape[-2:]).reshape(batch.numel(), *x.shape[-2:])
    y = _gather_sum(flat, weight, *_links(source, segments))
    return y.view(*batch, *y.shape[-2:])


def indexed_linear(x: Tensor, weight: Tensor, tiles: Tiles, shared: Tensor | None = None) -> Tensor:
    batch, rows = x.shape[:-2], x.size(-2)
    flat = x.reshape(batch.numel(), rows, x.size(-1))
    if shared is not None:
        shared = shared.expand(*batch, *shared.shape[-2:]).reshape(
            batch.numel(), *shared.shape[-2:]
        )
    weight = weight.expand(tiles.segments._pointers.size(0) - 1, -1, -1)
    y = _indexed_linear(flat, weight, shared, *_tables(tiles))
    return y.view(*batch, rows, weight.size(-1))


def cluster_linear(
    x: Tensor,
    weight: Tensor,
    matrix: Tensor,
    bias: Tensor,
    sizes: Tensor,
    tiles: Tiles | None = None,
) -> Tensor:
    if tiles is None:  # sums of equal runs and batched products, which torch has
        _trace.in_plain_torch()
        return native.cluster_linear(x, weight, matrix, bias, sizes)
    batch, rows = x.shape[:-2], x.size(-2)
    flat = x.reshape(batch.numel(), rows, x.size(-1))
    y = _ClusterLinear.apply(flat, weight, matrix, bias, sizes, *_tables(tiles))
    return y.view(*batch, rows, weight.size(-1))


def launch(kernel: Any, programs: int, x: Tensor, *args: object, **options: object) -> None:
    """Run a kernel on the device of ``x``; no program, no launch."""
    if programs:
        with torch.cuda.device_of(x):
            kernel[(programs,)](*args, **options)


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """What products and sums of a type are added up in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def operand(dtype: torch.dtype) -> tl.dtype:
    """What the tensor cores are given."""
    half = {torch.bfloat16: BFLOAT16.value, torch.float16: tl.float16}
    return half.get(dtype, accumulator(dtype))


def input_precision(dtype: torch.dtype) -> str:
    """How the tensor cores read float32: as three TF32 parts, or one where torch allows it."""
    if dtype != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def width(channels: int, least: int = 1, most: int = 128) -> int:
    """Channels that one program takes: a power of two."""
    return max(least, min(most, triton.next_power_of_2(channels)))


def _tables(tiles: Tiles) -> tuple[Tensor | None, ...]:
    segments = tiles.segments
    return (
        *(tiles._segment, tiles._rows, tiles._blocks),
        *(segments._index, segments._order, segments._pointers),
    )


def _starts(rows: Tensor, blocks: Tensor, count: int) -> tuple[Tensor, int]:
    """First row of the block of every tile, ``[t]``, and how many rows a block has."""
    step = -(-count // max(blocks.numel() - 1, 1))
    tile = torch.arange(rows.size(0), device=rows.device)
    return torch.searchsorted(blocks[1:], tile, right=True) * step, step


def _links(source: Segments, segments: Segments) -> tuple[Tensor, ...]:
    """A sparse matrix by rows, then its transpose: columns, order, row pointers, row of entries."""
    return (
        *(segments._columns(source), segments._order, segments._pointers, segments._index),
        *(source._columns(segments), source._order, source._pointers, source._index),
    )


@triton.jit
def reduce_kernel(
    x,  # [b, n, c], or the pieces [b, 2 * chunks, c]
    columns,  # [e] row of x that every entry reads, sorted by segment
    order,  # [e] number of every such entry, where there are weights
    weight,  # [e] or [b, e]
    pointers,  # [s + 1]
    out,  # [b, s, c]
    rows,
    weight_stride,
    segments,
    channels,
    CHUNK: tl.constexpr,
    MAX: tl.constexpr,
    PART: tl.constexpr,  # "short" or "long" segments, or those that "cross" or have no entry
    ACC: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Reduce the rows of every segment in order."""
    program = tl.program_id(0)
    column_blocks = tl.cdiv(channels, BLOCK_C)
    row_blocks = tl.cdiv(segments, BLOCK_S)
    channel = (program % column_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    program = program // column_blocks
    segment = (program % row_blocks).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    sample = (program // row_blocks).to(tl.int64)
    real = segment < segments
    start = tl.load(pointers + segment, real, other=0).to(tl.int64)
    length = tl.load(pointers + segment + 1, real, other=0).to(tl.int64) - start
    chunk = start // CHUNK
    if PART == "short":
        mine = real & (length <= CHUNK)
        count = tl.where(mine, length, 0)
    else:
        pieces = (start + length - 1) // CHUNK - chunk + 1
        if PART == "long":
            mine = real & (length > CHUNK)
        else:
            mine = real & ((length == 0) | (pieces > 1))
        count = tl.where(mine & (length > 0), pieces, 0)
    x += sample * rows * channels
    acc = tl.full([BLOCK_S, BLOCK_C], float("-inf") if MAX else 0.0, ACC)
    for first in range(0, tl.max(count, 0), UNROLL):
        for step in tl.static_range(UNROLL):
            k = first + step
            here = k < count
            if PART == "short":
                row = tl.load(columns + start + k, here, other=0).to(tl.int64)
            else:
                row = 2 * (chunk + k) + ((k == 0) & (start % CHUNK != 0)).to(tl.int64)
            mask = here[:, None] & (channel < channels)[None, :]
            value = tl.load(
                x + row[:, None] * channels + channel[None, :],
                mask,
                other=float("-inf") if MAX else 0.0,
            ).to(ACC)
            if PART == "short" and weight is not None:
                entry = tl.load(order + start + k, here, other=0).to(tl.int64)
                factor = tl.load(weight + sample * weight_stride + entry, here, other=0).to(ACC)
                value *= factor[:, None]
            if MAX:
                acc = tl.maximum(acc, value, propagate_nan=tl.PropagateNan.ALL)
            else:
                acc += value
    if MAX:
        acc = tl.where((length > 0)[:, None], acc, 0.0)
    tl.store(
        out + (sample * segments + segment)[:, None] * channels + channel[None, :],
        acc.to(out.dtype.element_ty),
        mine[:, None] & (channel < channels)[None, :],
    )


@triton.jit
def _segment_of(pointers, entry, segments):
    """The segment that holds an entry: the last one that begins at it or before."""
    low = entry * 0
    high = low + segments
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(pointers + middle) <= entry
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit
def _pieces_kernel(
    x,  # [b, n, c]
    columns,  # [e]
    order,  # [e]
    weight,  # [e] or [b, e]
    pointers,  # [s + 1]
    out,  # [b, 2 * chunks, c]
    rows,
    weight_stride,
    segments,
    channels,
    entries,
    CHUNK: tl.constexpr,
    MAX: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Reduce what every chunk of entries holds of long segments, two of them at most."""
    program = tl.program_id(0)
    column_blocks = tl.cdiv(channels, BLOCK_C)
    chunks = tl.cdiv(entries, CHUNK)
    channel = (program % column_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    program = program // column_blocks
    chunk = (program % chunks).to(tl.int64)
    sample = (program // chunks).to(tl.int64)
    low = chunk * CHUNK
    high = tl.minimum(low + CHUNK, entries)
    first = _segment_of(pointers, low, segments)
    last = _segment_of(pointers, high - 1, segments)
    x += sample * rows * channels
    for slot in tl.static_range(2):
        segment = first if slot == 0 else last
        start = tl.load(pointers + segment).to(tl.int64)
        end = tl.load(pointers + segment + 1).to(tl.int64)
        if (end - start > CHUNK) & ((slot == 0) | (first != last)):
            start, end = tl.maximum(start, low), tl.minimum(end, high)
            acc = tl.full([BLOCK_E, BLOCK_C], float("-inf") if MAX else 0.0, ACC)
            for begin in range(start, end, BLOCK_E):
                entry = begin + tl.arange(0, BLOCK_E)
                here = entry < end
                row = tl.load(columns + entry, here, other=0).to(tl.int64)
                value = tl.load(
                    x + row[:, None] * channels + channel[None, :],
                    here[:, None] & (channel < channels)[None, :],
                    other=float("-inf") if MAX else 0.0,
                ).to(ACC)
                if weight is not None:
                    number = tl.load(order + entry, here, other=0).to(tl.int64)
                    factor = tl.load(weight + sample * weight_stride + number, here, other=0)
                    value *= factor.to(ACC)[:, None]
                if MAX:
                    acc = tl.maximum(acc, value, propagate_nan=tl.PropagateNan.ALL)
                else:
                    acc += value
            if MAX:
                # The maximum along an axis passes over NaN.
                nan = tl.max((acc != acc).to(tl.int32), 0) > 0
                total = tl.where(nan, float("nan"), tl.max(acc, 0))
            else:
                total = tl.sum(acc, 0)
            place = (sample * chunks + chunk) * 2 + slot
            tl.store(out + place * channels + channel, total, channel < channels)


def _reduce(
    x: Tensor,
    columns: Tensor,
    order: Tensor,
    pointers: Tensor,
    *,
    weight: Tensor | None = None,
    maximum: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``[b, s, c]``: rows ``columns`` of ``x [b, n, c]``, between the pointers, reduced."""
    (batch, rows, channels), entries = x.shape, columns.numel()
    segments = pointers.numel() - 1
    x = x.contiguous()
    weight = None if weight is None else weight.contiguous()
    stride = entries if weight is not None and weight.dim() == 2 else 0
    out = x.new_empty(batch, segments, channels, dtype=dtype or x.dtype)
    if out.numel() == 0:
        return out
    common: dict[str, Any] = {"CHUNK": _CHUNK, "MAX": maximum, "ACC": accumulator(x.dtype)}
    common["BLOCK_C"] = width(channels, least=4)
    table = (columns, order, weight, pointers)
    if entries > _CHUNK:
        chunks = triton.cdiv(entries, _CHUNK)
        shape = batch, 2 * chunks, channels
        pieces = x.new_empty(shape, dtype=accumulation_type(x.dtype))
        programs = batch * chunks * triton.cdiv(channels, common["BLOCK_C"])
        sizes = (rows, stride, segments, channels, entries)
        launch(_pieces_kernel, programs, x, x, *table, pieces, *sizes, **common, BLOCK_E=32)
        reduce_rows(pieces, pointers, out, part="long", chunk=_CHUNK, maximum=maximum)
    programs, blocks = _reduce_grid(out)
    args = (x, *table, out, rows, stride, segments, channels)
    launch(reduce_kernel, programs, x, *args, **common, **blocks, PART="short")
    return out


def reduce_rows(
    pieces: Tensor,
    pointers: Tensor,
    out: Tensor,
    *,
    part: str,
    chunk: int,
    maximum: bool = False,
) -> None:
    """Write those segments of ``out`` that were reduced in pieces ``[b, 2 * chunks, c]``."""
    _, segments, channels = out.shape
    programs, sizes = _reduce_grid(out)
    launch(
        reduce_kernel,
        programs,
        out,
        *(pieces, None, None, None, pointers, out, pieces.size(1), 0, segments, channels),
        **{"CHUNK": chunk, "MAX": maximum, "PART": part, "ACC": accumulator(pieces.dtype)},
        **sizes,
        BLOCK_C=width(channels, least=4),
    )


def _reduce_grid(out: Tensor) -> tuple[int, dict[str, int]]:
    batch, segments, channels = out.shape
    columns = width(channels, least=4)
    rows = 512 // columns  # every thread has 16 bytes to load, eight times over
    if rows == 32:  # Triton 3.6 and 3.7 fail to compile for sm_90: one warp of four holds a row
        rows = 16
    programs = batch * triton.cdiv(segments, rows) * triton.cdiv(channels, columns)
    return programs, {"BLOCK_S": rows, "UNROLL": 8}


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-2].numel(), *x.shape[-2:])


@torch.library.custom_op("gsym_triton::segment_sum", mutates_args=())
def _segment_sum(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor, wide: bool) -> Tensor:
    """Sums in the type of ``x``, or in the one that they accumulate in."""
    dtype = accumulation_type(x.dtype) if wide else x.dtype
    sums = _reduce(_flat(x), order, order, pointers, dtype=dtype)
    return sums.view(*x.shape[:-2], *sums.shape[-2:])


@_segment_sum.register_fake
def _(x, index, order, pointers, wide):  # type: ignore[no-untyped-def]
    dtype = accumulation_type(x.dtype) if wide else x.dtype
    return x.new_empty(*x.shape[:-2], pointers.size(0) - 1, x.size(-1), dtype=dtype)


@torch.library.custom_op("gsym_triton::segment_gather", mutates_args=())
def _segment_gather(y: Tensor, index: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    return y.contiguous().index_select(-2, index)


@_segment_gather.register_fake
def _(y, index, order, pointers):  # type: ignore[no-untyped-def]
    return y.new_empty(*y.shape[:-2], index.size(0), y.size(-1))


def _save_sum(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, *tables, _wide = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(*tables)


def _segment_sum_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return take_rows(grad.to(ctx.dtype), *ctx.saved_tensors), None, None, None, None


def _save_tables(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[1:])


def _segment_gather_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return sum_rows(grad, *ctx.saved_tensors, False), None, None, None


_segment_sum.register_autograd(_segment_sum_backward, setup_context=_save_sum)
_segment_gather.register_autograd(_segment_gather_backward, setup_context=_save_tables)


@torch.library.custom_op("gsym_triton::segment_max", mutates_args=())
def _segment_max(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    maxima = _reduce(_flat(x), order, order, pointers, maximum=True)
    return maxima.view(*x.shape[:-2], *maxima.shape[-2:])


@_segment_max.register_fake
def _(x, index, order, pointers):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-2], pointers.size(0) - 1, x.size(-1))


def _ties(x: Tensor, y: Tensor, *tables: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows hold the maximum of their segment, and how many do, in numbers."""
    held = (x == y.index_select(-2, tables[0])).to(accumulation_type(x.dtype))
    return held, _segment_sum(held, *tables, True).clamp_(min=1)


@torch.library.custom_op("gsym_triton::tie_spread", mutates_args=())
def _tie_spread(
    g: Tensor, x: Tensor, y: Tensor, index: Tensor, order: Tensor, pointers: Tensor
) -> Tensor:
    """Share the row ``g`` of every segment among the rows that hold its maximum ``y``."""
    held, count = _ties(x, y, index, order, pointers)
    return held.mul_((g / count).index_select(-2, index)).to(g.dtype)


@_tie_spread.register_fake
def _(g, x, y, *tables):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.custom_op("gsym_triton::tie_mean", mutates_args=())
def _tie_mean(
    h: Tensor, x: Tensor, y: Tensor, index: Tensor, order: Tensor, pointers: Tensor
) -> Tensor:
    """Mean of the rows of ``h`` where ``x`` holds the maximum: the adjoint of the above."""
    held, count = _ties(x, y, index, order, pointers)
    return (_segment_sum(held.mul_(h), index, order, pointers, True) / count).to(h.dtype)


@_tie_mean.register_fake
def _(h, x, y, *tables):  # type: ignore[no-untyped-def]
    return y.new_empty(y.shape)


def _save_max(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, *tables = inputs
    ctx.save_for_backward(x, output, *tables)


def _segment_max_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _spread_ties(grad, *ctx.saved_tensors), None, None, None


def _tie_spread_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _average_ties(grad, *ctx.saved_tensors), None, None, None, None, None


def _tie_mean_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _spread_ties(grad, *ctx.saved_tensors), None, None, None, None, None


_segment_max.register_autograd(_segment_max_backward, setup_context=_save_max)
_tie_spread.register_autograd(_tie_spread_backward, setup_context=_save_tables)
_tie_mean.register_autograd(_tie_mean_backward, setup_context=_save_tables)


@torch.library.custom_op("gsym_triton::gather_segment_sum", mutates_args=())
def _gather_sum(
    x: Tensor,
    weight: Tensor | None,
    columns: Tensor,
    order: Tensor,
    pointers: Tensor,
    index: Tensor,
    turned_columns: Tensor,
    turned_order: Tensor,
    turned_pointers: Tensor,
    turned_index: Tensor,
) -> Tensor:
    """The product of a sparse matrix, of entries ``weight``, with ``x [b, n, c]``."""
    return _reduce(x, columns, order, pointers, weight=weight)


@_gather_sum.register_fake
def _(x, weight, columns, order, pointers, *rest):  # type: ignore[no-untyped-def]
    return x.new_empty(x.size(0), pointers.size(0) - 1, x.size(-1))


@triton.jit
def _dot_kernel(
    y,  # [b, s, c]
    x,  # [b, n, c]
    index,  # [e] row of y
    source,  # [e] row of x
    out,  # [b, e]
    segments,
    rows,
    channels,
    entries,
    ACC: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The product of the two rows that every entry joins."""
    program = tl.program_id(0)
    blocks = tl.cdiv(entries, BLOCK_E)
    sample = (program // blocks).to(tl.int64)
    entry = (program % blocks).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    real = entry < entries
    i = sample * segments + tl.load(index + entry, real, other=0).to(tl.int64)
    j = sample * rows + tl.load(source + entry, real, other=0).to(tl.int64)
    acc = tl.zeros([BLOCK_E, BLOCK_C], ACC)
    for first in range(0, channels, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        mask = real[:, None] & (channel < channels)[None, :]
        left = tl.load(y + i[:, None] * channels + channel[None, :], mask, other=0).to(ACC)
        right = tl.load(x + j[:, None] * channels + channel[None, :], mask, other=0).to(ACC)
        acc += left * right
    total = tl.sum(acc, 1)
    tl.store(out + sample * entries + entry, total.to(out.dtype.element_ty), real)


@torch.library.custom_op("gsym_triton::gather_dot", mutates_args=())
def _gather_dot(
    y: Tensor,
    x: Tensor,
    columns: Tensor,
    order: Tensor,
    pointers: Tensor,
    index: Tensor,
    turned_columns: Tensor,
    turned_order: Tensor,
    turned_pointers: Tensor,
    turned_index: Tensor,
) -> Tensor:
    """``[b, e]``: the product of the rows of ``y [b, s, c]`` and ``x`` that every entry joins."""
    (batch, segments, channels), entries = y.shape, index.numel()
    x, y, out = x.contiguous(), y.contiguous(), x.new_empty(batch, entries)
    columns_of_block = width(channels, most=64)
    block = min(2048 // columns_of_block, 64)
    sizes = (segments, x.size(1), channels, entries)
    launch(
        _dot_kernel,
        batch * triton.cdiv(entries, block),
        x,
        *(y, x, index, turned_index, out, *sizes, accumulator(x.dtype)),
        BLOCK_E=block,
        BLOCK_C=columns_of_block,
    )
    return out


@_gather_dot.register_fake
def _(y, x, columns, *tables):  # type: ignore[no-untyped-def]
    return x.new_empty(x.size(0), columns.size(0))


def _save_gather_sum(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _gather_sum_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight, *links = ctx.saved_tensors
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    grad_weight = None
    if weight is not None and needs_weight:
        dots = _dot_rows(grad, x, *links)
        grad_weight = dots.sum(0) if weight.dim() == 1 else dots
    return (
        _sum_taken(grad, weight, *links[4:], *links[:4]) if needs_x else None,
        grad_weight,
        *(None for _ in links),
    )


def _gather_dot_backward(ctx, grad):  # type: ignore[no-untyped-def]
    y, x, *links = ctx.saved_tensors
    needs_y, needs_x, *_ = ctx.needs_input_grad
    return (
        _sum_taken(x, grad, *links) if needs_y else None,
        _sum_taken(y, grad, *links[4:], *links[:4]) if needs_x else None,
        *(None for _ in links),
    )


_gather_sum.register_autograd(_gather_sum_backward, setup_context=_save_gather_sum)
_gather_dot.register_autograd(_gather_dot_backward, setup_context=_save_gather_sum)


@triton.jit
def _indexed_kernel(
    x,  # [b, r, in]
    weight,  # [s, in, out], any strides
    shared,  # [b, s, out]
    segment,  # [t]
    rows,  # [t, height]
    starts,  # [t]
    step,
    out,  # [b, r, out]
    batch,
    count,
    segments,
    height,
    n_in: tl.constexpr,
    n_out: tl.constexpr,
    stride_s,
    stride_i,
    stride_o,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows of one tile, of all samples, times the matrix of its segment."""
    program = tl.program_id(0)
    column_blocks = tl.cdiv(n_out, BLOCK_N)
    row_blocks = tl.cdiv(batch * height, BLOCK_M)
    column = (program % column_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    program = program // column_blocks
    tile = (program // row_blocks).to(tl.int64)
    m = (program % row_blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = m < batch * height
    sample, place = m // height, tile * height + m % height
    here = tl.load(rows + place, real, other=step).to(tl.int64)
    real = real & (here < step)
    row = sample * count + tl.load(starts + tile) + here
    matrix = tl.load(segment + tile).to(tl.int64)
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for first in range(0, n_in, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        a = tl.load(
            x + row[:, None] * n_in + k[None, :], real[:, None] & (k < n_in)[None, :], other=0
        )
        b = tl.load(
            weight + matrix * stride_s + k[:, None] * stride_i + column[None, :] * stride_o,
            (k < n_in)[:, None] & (column < n_out)[None, :],
            other=0,
        )
        a, b = a.to(OPERAND), b.to(OPERAND)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACC)
    mask = real[:, None] & (column < n_out)[None, :]
    if shared is not None:
        base = (sample * segments + matrix) * n_out
        acc += tl.load(shared + base[:, None] + column[None, :], mask, other=0).to(ACC)
    y = acc.to(out.dtype.element_ty)
    tl.store(out + row[:, None] * n_out + column[None, :], y, mask)


@torch.library.custom_op("gsym_triton::indexed_linear", mutates_args=())
def _indexed_linear(
    x: Tensor,
    weight: Tensor,
    shared: Tensor | None,
    segment: Tensor,
    rows: Tensor,
    blocks: Tensor,
    index: Tensor,
    order: Tensor,
    pointers: Tensor,
) -> Tensor:
    (batch, count, n_in), n_out = x.shape, weight.size(-1)
    tiles, height = rows.shape
    x, out = x.contiguous(), x.new_empty(batch, count, n_out)
    shared = None if shared is None else shared.contiguous()
    columns, depth = width(n_out, 16, 64), width(n_in, 16, 32)
    row_block = width(batch * height, 16, 64)
    programs = tiles * triton.cdiv(batch * height, row_block) * triton.cdiv(n_out, columns)
    sizes = (batch, count, weight.size(0), height, n_in, n_out)
    starts = _starts(rows, blocks, count)
    launch(
        _indexed_kernel,
        programs,
        x,
        *(x, weight, shared, segment, rows, *starts, out, *sizes, *weight.stride()),
        OPERAND=operand(x.dtype),
        PRECISION=input_precision(x.dtype),
        ACC=accumulator(x.dtype),
        BLOCK_M=row_block,
        BLOCK_N=columns,
        BLOCK_K=depth,
        num_warps=8,
    )
    return out


@_indexed_linear.register_fake
def _(x, weight, shared, *tables):  # type: ignore[no-untyped-def]
    return x.new_empty(x.size(0), x.size(1), weight.size(-1))


@triton.jit
def _outer_kernel(
    x,  # [b, r, in]
    y,  # [b, r, out]
    rows,  # [t, height]
    starts,  # [t]
    step,
    out,  # [t, parts, in, out]
    batch,
    count,
    height,
    n_in: tl.constexpr,
    n_out: tl.constexpr,
    parts,
    part_rows,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """``x^T y`` over some rows of one tile and of all samples."""
    program = tl.program_id(0)
    in_blocks, out_blocks = tl.cdiv(n_in, BLOCK_I), tl.cdiv(n_out, BLOCK_O)
    o = (program % out_blocks) * BLOCK_O + tl.arange(0, BLOCK_O)
    program = program // out_blocks
    i = (program % in_blocks) * BLOCK_I + tl.arange(0, BLOCK_I)
    program = program // in_blocks
    part = (program % parts).to(tl.int64)
    tile = (program // parts).to(tl.int64)
    end = tl.minimum((part + 1) * part_rows, batch * height)
    start = tl.load(starts + tile)
    acc = tl.zeros([BLOCK_I, BLOCK_O], ACC)
    for first in range(part * part_rows, end, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        real = m < end
        sample, place = m // height, tile * height + m % height
        here = tl.load(rows + place, real, other=step).to(tl.int64)
        real = real & (here < step)
        row = sample * count + start + here
        left = tl.load(
            x + row[None, :] * n_in + i[:, None], real[None, :] & (i < n_in)[:, None], other=0
        )
        right = tl.load(
            y + row[:, None] * n_out + o[None, :], real[:, None] & (o < n_out)[None, :], other=0
        )
        left, right = left.to(OPERAND), right.to(OPERAND)
        acc = tl.dot(left, right, acc, input_precision=PRECISION, out_dtype=ACC)
    tl.store(
        out + ((tile * parts + part) * n_in + i[:, None]) * n_out + o[None, :],
        acc,
        (i < n_in)[:, None] & (o < n_out)[None, :],
    )


@torch.library.custom_op("gsym_triton::indexed_outer", mutates_args=())
def _indexed_outer(
    x: Tensor,
    y: Tensor,
    segment: Tensor,
    rows: Tensor,
    blocks: Tensor,
    index: Tensor,
    order: Tensor,
    pointers: Tensor,
) -> Tensor:
    """``[s, in, out]``: sum over samples and rows of a segment of ``x^T y``."""
    (batch, count, n_in), n_out = x.shape, y.size(-1)
    tiles, height = rows.shape
    x, y = x.contiguous(), y.contiguous()
    parts = max(triton.cdiv(batch * height, _OUTER_ROWS), 1)
    shape = tiles, parts, n_in, n_out
    sums = x.new_empty(shape, dtype=accumulation_type(x.dtype))
    i, o = width(n_in, 16, 64), width(n_out, 16, 64)
    launch(
        _outer_kernel,
        tiles * parts * triton.cdiv(n_in, i) * triton.cdiv(n_out, o),
        x,
        *(x, y, rows, *_starts(rows, blocks, count), sums),
        *(batch, count, height, n_in, n_out, parts, _OUTER_ROWS),
        OPERAND=operand(x.dtype),
        PRECISION=input_precision(x.dtype),
        ACC=accumulator(x.dtype),
        BLOCK_M=32,
        BLOCK_I=i,
        BLOCK_O=o,
    )
    owner, order = torch.sort(segment, stable=True)
    every = torch.arange(pointers.numel(), device=x.device)
    flat = sums.sum(1).view(1, tiles, n_in * n_out)
    total = _reduce(flat, order, order, torch.searchsorted(owner, every), dtype=x.dtype)
    return total.view(pointers.numel() - 1, n_in, n_out)


@_indexed_outer.register_fake
def _(x, y, *tables):  # type: ignore[no-untyped-def]
    return x.new_empty(tables[-1].size(0) - 1, x.size(-1), y.size(-1))


def _save_indexed(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, shared, *tables = inputs
    ctx.shared = shared is not None
    ctx.save_for_backward(x, weight, *tables)


def _indexed_linear_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight, *tables = ctx.saved_tensors
    needs_x, needs_weight, needs_shared, *_ = ctx.needs_input_grad
    turned = weight.transpose(1, 2)
    return (
        _multiply(grad, turned, None, *tables) if needs_x else None,
        _multiply_out(x, grad, *tables) if needs_weight else None,
        sum_rows(grad, *tables[-3:], False) if ctx.shared and needs_shared else None,
        *(None for _ in tables),
    )


def _indexed_outer_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, y, *tables = ctx.saved_tensors
    needs_x, needs_y, *_ = ctx.needs_input_grad
    turned = grad.transpose(1, 2)
    return (
        _multiply(y, turned, None, *tables) if needs_x else None,
        _multiply(x, grad, None, *tables) if needs_y else None,
        *(None for _ in tables),
    )


_indexed_linear.register_autograd(_indexed_linear_backward, setup_context=_save_indexed)
_indexed_outer.register_autograd(_indexed_outer_backward, setup_context=_save_gather_sum)


take_rows = native.paired(_segment_gather, lambda y, index, *_: _plain.take(y, index))
sum_rows = native.paired(
    _segment_sum,
    lambda x, index, order, pointers, wide: _plain.add(x, index, pointers.size(0) - 1, wide),
)
_sum_taken = native.paired(
    _gather_sum, lambda x, weight, *links: _plain.gather_sum(x, weight, *links[:3])
)
_dot_rows = native.paired(_gather_dot, lambda y, x, *links: _plain.gather_dot(y, x, *links[:3]))
_spread_ties = native.paired(
    _tie_spread, lambda g, x, y, index, *_: _plain.tie_spread(g, x, y, index)
)
_average_ties = native.paired(_tie_mean, lambda h, x, y, index, *_: _plain.tie_mean(h, x, y, index))
_multiply = native.paired(
    _indexed_linear,
    lambda x, weight, shared, *tables: _plain.tiled_linear(x, weight, shared, *tables[:3]),
)
_multiply_out = native.paired(
    _indexed_outer,
    lambda x, y, segment, rows, blocks, index, order, pointers: _plain.tiled_outer(
        x, y, segment, rows, blocks, pointers.size(0) - 1
    ),
)


class _ClusterLinear(torch.autograd.Function):
    """Every step is one of the differentiable operators, and so is every step of its gradient."""

    @staticmethod
    def forward(ctx, x, weight, matrix, bias, sizes, *tables):  # type: ignore[no-untyped-def]
        means = (sum_rows(x, *tables[-3:], True) / sizes[:, None]).to(x.dtype)
        ctx.save_for_backward(x, weight, matrix, sizes, means, *tables)
        k = sizes.numel()
        shared = (means.flatten(1) @ matrix).view(x.size(0), k, weight.size(-1)) + bias
        return _multiply(x, weight.expand(k, -1, -1), shared, *tables)

    @staticmethod
    @native.without_autocast
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, matrix, sizes, means, *tables = ctx.saved_tensors
        k = sizes.numel()
        if torch.is_grad_enabled():  # else they would be constants of the second derivative
            means = (sum_rows(x, *tables[-3:], True) / sizes[:, None]).to(x.dtype)
        sums = sum_rows(grad, *tables[-3:], True)
        x_needs, weight_needs, matrix_needs, bias_needs = ctx.needs_input_grad[:4]
        grad_x = grad_weight = None
        if x_needs:
            spread = native.side_by_side(sums) @ matrix.t().to(sums.dtype)
            spread = (spread.reshape(x.size(0), k, x.size(-1)) / sizes[:, None]).to(x.dtype)
            turned = weight.transpose(1, 2).expand(k, -1, -1)
            grad_x = _multiply(grad, turned, spread, *tables)
        if weight_needs and weight.size(0) == 1:
            grad_weight = native.all_rows(x).t().mm(native.all_rows(grad))[None]
        elif weight_needs:
            grad_weight = _multiply_out(x, grad, *tables)
        return (
            grad_x,
            grad_weight,
            native.cross(means.to(sums.dtype), sums).to(x.dtype) if matrix_needs else None,
            sums.sum(0).to(x.dtype) if bias_needs else None,
            *(None for _ in range(1 + len(tables))),
        )
