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

from gsym.kernels._plain import accumulation_type
from gsym.kernels.segments import TileTables
from gsym.kernels.triton import launch
from gsym.kernels.triton.launch import accumulator, input_precision, operand, width

# Entries that one program adds up one after another; longer segments are cut.
_CHUNK = 1024

# Rows whose outer products one program adds up.
_OUTER_ROWS = 1024


def segment_sum(
    x: Tensor, index: Tensor, order: Tensor, pointers: Tensor, dtype: torch.dtype
) -> Tensor:
    return _reduce(x, order, order, pointers, dtype=dtype)


def segment_max(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    return _reduce(x, order, order, pointers, maximum=True)


def tie_spread(
    g: Tensor, x: Tensor, y: Tensor, index: Tensor, order: Tensor, pointers: Tensor
) -> Tensor:
    held = (x == y.index_select(-2, index)).to(accumulation_type(x.dtype))
    count = _reduce(held, order, order, pointers).clamp_(min=1)
    return held.mul_((g / count).index_select(-2, index)).to(g.dtype)


def gather_sum(
    x: Tensor, weight: Tensor | None, columns: Tensor, order: Tensor, pointers: Tensor
) -> Tensor:
    return _reduce(x, columns, order, pointers, weight=weight)


def gather_dot(
    y: Tensor,
    x: Tensor,
    columns: Tensor,
    order: Tensor,
    pointers: Tensor,
    index: Tensor,
    source: Tensor,
) -> Tensor:
    (batch, segments, channels), entries = y.shape, index.numel()
    x, y, out = x.contiguous(), y.contiguous(), x.new_empty(batch, entries)
    columns_of_block = width(channels, most=64)
    block = min(2048 // columns_of_block, 64)
    sizes = (segments, x.size(1), channels, entries)
    launch.launch(
        _dot_kernel,
        batch * triton.cdiv(entries, block),
        x,
        *(y, x, index, source, out, *sizes, accumulator(x.dtype)),
        BLOCK_E=block,
        BLOCK_C=columns_of_block,
    )
    return out


def indexed_linear(
    x: Tensor, weight: Tensor, shared: Tensor | None, tiles: TileTables, is_sorted: bool
) -> Tensor:
    (batch, count, n_in), n_out = x.shape, weight.size(-1)
    count_tiles, height = tiles.rows.shape
    x, out = x.contiguous(), x.new_empty(batch, count, n_out)
    shared = None if shared is None else shared.contiguous()
    columns, depth = width(n_out, 16, 64), width(n_in, 16, 32)
    row_block = width(batch * height, 16, 64)
    programs = count_tiles * triton.cdiv(batch * height, row_block) * triton.cdiv(n_out, columns)
    sizes = (batch, count, weight.size(0), height, n_in, n_out)
    starts = _starts(tiles, count)
    launch.launch(
        _indexed_kernel,
        programs,
        x,
        *(x, weight, shared, tiles.segment, tiles.rows, *starts, out, *sizes, *weight.stride()),
        OPERAND=operand(x.dtype),
        PRECISION=input_precision(x.dtype),
        ACC=accumulator(x.dtype),
        BLOCK_M=row_block,
        BLOCK_N=columns,
        BLOCK_K=depth,
        num_warps=8,
    )
    return out


def indexed_outer(x: Tensor, y: Tensor, tiles: TileTables, is_sorted: bool) -> Tensor:
    (batch, count, n_in), n_out = x.shape, y.size(-1)
    count_tiles, height = tiles.rows.shape
    x, y = x.contiguous(), y.contiguous()
    parts = max(triton.cdiv(batch * height, _OUTER_ROWS), 1)
    shape = count_tiles, parts, n_in, n_out
    sums = x.new_empty(shape, dtype=accumulation_type(x.dtype))
    i, o = width(n_in, 16, 64), width(n_out, 16, 64)
    launch.launch(
        _outer_kernel,
        count_tiles * parts * triton.cdiv(n_in, i) * triton.cdiv(n_out, o),
        x,
        *(x, y, tiles.rows, *_starts(tiles, count), sums),
        *(batch, count, height, n_in, n_out, parts, _OUTER_ROWS),
        OPERAND=operand(x.dtype),
        PRECISION=input_precision(x.dtype),
        ACC=accumulator(x.dtype),
        BLOCK_M=32,
        BLOCK_I=i,
        BLOCK_O=o,
    )
    owner, order = torch.sort(tiles.segment, stable=True)
    every = torch.arange(tiles.pointers.numel(), device=x.device)
    flat = sums.sum(1).view(1, count_tiles, n_in * n_out)
    total = _reduce(flat, order, order, torch.searchsorted(owner, every), dtype=x.dtype)
    return total.view(tiles.pointers.numel() - 1, n_in, n_out)


def _starts(tables: TileTables, count: int) -> tuple[Tensor, int]:
    """First row of the block of every tile, ``[t]``, and how many rows a block has."""
    rows, blocks = tables.rows, tables.blocks
    step = -(-count // max(blocks.numel() - 1, 1))
    tile = torch.arange(rows.size(0), device=rows.device)
    return torch.searchsorted(blocks[1:], tile, right=True) * step, step


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
        launch.launch(_pieces_kernel, programs, x, x, *table, pieces, *sizes, **common, BLOCK_E=32)
        reduce_rows(pieces, pointers, out, part="long", chunk=_CHUNK, maximum=maximum)
    programs, blocks = _reduce_grid(out)
    args = (x, *table, out, rows, stride, segments, channels)
    launch.launch(reduce_kernel, programs, x, *args, **common, **blocks, PART="short")
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
    launch.launch(
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
