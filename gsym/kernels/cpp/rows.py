"""Reductions of rows and products with them in compiled code, ``csrc/rows.cpp``."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from gsym.kernels import segments
from gsym.kernels.cpp.library import (
    INDEX_TYPES,
    NUMBER_TYPES,
    addresses,
    alike,
    call,
    check_sizes,
    library,
)
from gsym.kernels.native.memory import new_empty
from gsym.kernels.segments import TileTables

# A part of the second cache of one core.
_POOL_BYTES = 2**17


class _Reduction(Structure):
    _sizes = ("batch", "rows", "entries", "segments", "channels", "weight_stride", "threads")
    _tensors = ("index", "columns", "order", "pointers", "x", "y", "weight", "out")
    _fields_ = (*((n, c_int64) for n in _sizes), *((n, c_void_p) for n in _tensors))


class _Product(Structure):
    _sizes = (
        *("batch", "rows", "in_channels", "out_channels", "segments", "block"),
        *("weight_stride", "threads"),
    )
    _tensors = ("index", "local", "order", "pointers", "x", "y", "weight", "shared", "result")
    _fields_ = (*((n, c_int64) for n in _sizes), *((n, c_void_p) for n in _tensors))


def segment_sum(
    x: Tensor, index: Tensor, order: Tensor, pointers: Tensor, dtype: torch.dtype
) -> Tensor:
    """Sums ``[b, s, c]`` of the rows of ``x [b, e, c]``.

    Rows come in the order of memory where the sums of all segments stay in the cache meanwhile.
    """
    count = pointers.numel() - 1
    pools = count * x.size(-1) * dtype.itemsize <= _POOL_BYTES and count * 8 <= x.size(-2)
    given = index if pools else None
    return _reduce("segment_sum", x.to(dtype), order, pointers, index=given, columns=order)


def segment_max(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    """Maxima ``[b, s, c]`` of the rows of ``x [b, e, c]``."""
    return _reduce("segment_max", x, order, pointers, index=index, columns=order)


def tie_spread(
    g: Tensor, x: Tensor, y: Tensor, index: Tensor, order: Tensor, pointers: Tensor
) -> Tensor:
    """Rows of ``g [b, s, c]`` shared among the rows of ``x [b, e, c]`` that hold those of ``y``."""
    y, tables = y.contiguous(), {"index": index, "columns": order}
    count = _reduce("tie_count", x, order, pointers, y=y, **tables)
    share = g / count.clamp_(min=1)
    out = new_empty(x, *x.shape)
    return _reduce("tie_spread", x, order, pointers, y=y, weight=share, out=out, **tables)


def gather_sum(
    x: Tensor, weight: Tensor | None, columns: Tensor, order: Tensor, pointers: Tensor
) -> Tensor:
    """Sums ``[b, s, c]`` of rows of ``x [b, n, c]``, times ``weight [e]`` or ``[b, e]``."""
    return _reduce("segment_sum", x, order, pointers, columns=columns, weight=weight)


def gather_dot(
    y: Tensor,
    x: Tensor,
    columns: Tensor,
    order: Tensor,
    pointers: Tensor,
    index: Tensor,
    source: Tensor,
) -> Tensor:
    """Products ``[b, e]`` of the rows of ``y [b, s, c]`` and ``x [b, n, c]`` of every entry."""
    out = new_empty(x, x.size(0), columns.numel())
    return _reduce("gather_dot", x, order, pointers, columns=columns, y=y.contiguous(), out=out)


def indexed_linear(
    x: Tensor, weight: Tensor, shared: Tensor | None, tiles: TileTables, is_sorted: bool
) -> Tensor:
    """Rows ``[b, r, out]``: those of ``x`` times the matrix, plus the row, of their segment."""
    (batch, rows, _), (count, in_channels, out_channels) = x.shape, weight.shape
    one = weight.stride(0) == 0 or count == 1
    y = new_empty(x, batch, rows, out_channels)
    tensors = {
        "local": None if one else tiles.local,
        "weight": (weight[:1] if one else weight).contiguous(),
        "shared": None if shared is None else shared.contiguous(),
    }
    stride = 0 if one else in_channels * out_channels
    index = tiles.index
    return _multiply("indexed_linear", x, y, count, out_channels, stride, index=index, **tensors)


def indexed_outer(x: Tensor, y: Tensor, tiles: TileTables, is_sorted: bool) -> Tensor:
    """``[s, in, out]``: sum over samples and rows of a segment of ``x^T y``."""
    lanes = library().gsym_vector_bytes() // x.element_size()
    if y.size(-1) % lanes and x.size(-1) % lanes == 0:  # multiples of the SIMD width are faster
        return indexed_outer(y, x, tiles, is_sorted).transpose(1, 2).contiguous()
    count, out_channels = tiles.pointers.numel() - 1, y.size(-1)
    total = x.new_empty(count, x.size(-1), out_channels)
    if x.size(0) * x.size(1) == 0:
        return total.zero_()
    tables = {"index": tiles.index, "local": tiles.local}
    tables |= {"order": tiles.order, "pointers": tiles.pointers}
    return _multiply("indexed_outer", x, total, count, out_channels, 0, y=y.contiguous(), **tables)


def _reduce(
    name: str,
    x: Tensor,
    order: Tensor,
    pointers: Tensor,
    *,
    columns: Tensor,
    index: Tensor | None = None,
    weight: Tensor | None = None,
    y: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    batch, rows, channels = x.shape
    entries, count = columns.numel(), pointers.numel() - 1
    if out is None:
        out = new_empty(x, batch, count, channels)
    if out.numel() == 0:
        return out
    x = x.contiguous()
    weight = None if weight is None else weight.contiguous()
    stride = entries if weight is not None and weight.dim() > 1 else 0
    totals = batch * count * channels
    weights = 0 if weight is None else (entries, batch * entries, totals)[weight.dim() - 1]
    check_sizes(
        index=(index, rows), order=(order, entries), weight=(weight, weights), y=(y, totals)
    )
    sizes = (batch, rows, entries, count, channels, stride, torch.get_num_threads())
    pointers, index, columns, order = alike(pointers, index, columns, order)
    tensors = (index, columns, order, pointers, x, y, weight, out)
    kind = f"{NUMBER_TYPES[x.dtype]}_{INDEX_TYPES[pointers.dtype]}"
    call(f"{name}_{kind}", _Reduction(*sizes, *addresses(tensors)))
    return out


def _multiply(
    name: str,
    x: Tensor,
    result: Tensor,
    count: int,
    out_channels: int,
    weight_stride: int,
    *,
    index: Tensor,
    **given: Tensor | None,
) -> Tensor:
    if result.numel() == 0:
        return result
    x, (batch, rows, in_channels) = x.contiguous(), x.shape
    matrices = count * in_channels * out_channels
    check_sizes(
        index=(index, rows),
        local=(given.get("local"), rows),
        order=(given.get("order"), rows),
        weight=(given.get("weight"), matrices if weight_stride else in_channels * out_channels),
        shared=(given.get("shared"), batch * count * out_channels),
        y=(given.get("y"), batch * rows * out_channels),
    )
    names = ("index", "local", "order", "pointers")
    tables = alike(index, *map(given.get, names[1:]))
    index = tables[0]
    tensors = {**given, **dict(zip(names, tables, strict=True)), "x": x, "result": result}
    sizes = (batch, rows, in_channels, out_channels, count, segments.LOCAL_ROWS, weight_stride)
    places = addresses(map(tensors.get, _Product._tensors))
    kind = f"{NUMBER_TYPES[x.dtype]}_{INDEX_TYPES[index.dtype]}"
    call(f"{name}_{kind}", _Product(*sizes, torch.get_num_threads(), *places))
    return result
