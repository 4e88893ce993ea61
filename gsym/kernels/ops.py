"""Segment sums, their adjoint, and products with one weight matrix per group of rows.

Whatever reduces over a *static* index sorts it once, at construction, and then reduces contiguous
segments: no atomics, so the same inputs give the same bits. The operators are registered with
``torch.library`` in adjoint pairs, which makes them differentiable to any order and opaque to the
compiler. The definitions stand in :mod:`gsym.kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Samples with more entries than this are reduced one after another, which saves an index of the
# whole batch; smaller ones are reduced in one call, which saves the calls.
_LARGE_SAMPLE = 2**15

_HALF = (torch.float16, torch.bfloat16)

# Rows that a product over tiles takes at a time: they and their products stay in the cache, and
# their memory is used again, where a temporary of full size costs a page fault per page.
_BLOCK_ROWS = 2**13

# Rows that are added one after another; longer segments are summed piece by piece, so that the
# rounding error grows with the square root of their length at most.
PIECE = 2**10


class Segments(nn.Module):
    """A static index of rows into segments, sorted once.

    A module only so that its tables move with the layer that holds it; it has no parameters and
    adds nothing to a ``state_dict``.

    Attributes:
        num_segments: Number of segments; a segment may be empty.
        index: Segment of every row, int64 ``[e]``.
        order: Rows sorted by segment, int64 ``[e]``; equal segments keep their order.
        pointers: Where each segment begins in ``order``, int64 ``[num_segments + 1]``.
        cuts: Where each piece begins in ``order``: segments cut to :data:`PIECE` rows at most,
            int64 ``[p + 1]``.
        pieces: Where each segment begins among the pieces, int64 ``[num_segments + 1]``.

    Example:
        >>> s = Segments.from_index(torch.tensor([1, 0, 1]), num_segments=2)
        >>> segment_sum(torch.tensor([[1.0], [2.0], [3.0]]), s).tolist()
        [[2.0], [4.0]]
    """

    index: Tensor
    order: Tensor
    pointers: Tensor
    cuts: Tensor
    pieces: Tensor

    def __init__(self, index: Tensor, num_segments: int) -> None:
        super().__init__()
        counts = torch.bincount(index, minlength=num_segments)
        self.num_segments = num_segments
        self.num_rows = index.numel()
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("order", torch.argsort(index, stable=True), persistent=False)
        pointers = F.pad(counts.cumsum(0), (1, 0))
        self.register_buffer("pointers", pointers, persistent=False)
        per_segment = (-(-counts // PIECE)).clamp(min=1)
        pieces = F.pad(per_segment.cumsum(0), (1, 0))
        owner = torch.repeat_interleave(per_segment)
        rank = torch.arange(owner.numel(), device=index.device) - pieces[owner]
        cuts = torch.cat([pointers[owner] + rank * PIECE, pointers[-1:]])
        self.register_buffer("cuts", cuts, persistent=False)
        self.register_buffer("pieces", pieces, persistent=False)

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """What the operators on segments take."""
        return self.index, self.order, self.cuts, self.pieces

    @classmethod
    def from_index(cls, index: Tensor, num_segments: int) -> Segments:
        """Sort ``index``, int64 ``[e]`` with values in ``0..num_segments-1``.

        Raises:
            ValueError: A value outside the range, or an index that is not one-dimensional int64.
        """
        if index.dtype != torch.int64 or index.dim() != 1:
            raise ValueError(
                f"a segment index must be int64 [e]; got {index.dtype} {list(index.shape)}"
            )
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < num_segments:
            raise ValueError(
                f"a segment index must lie in 0..{num_segments - 1}; "
                f"got values from {int(index.min())} to {int(index.max())}"
            )
        return cls(index, num_segments)

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"{self.index.numel()} rows, {self.num_segments} segments"


class Tiles(nn.Module):
    """Rows of equal weight gathered into tiles of one height, for batched matrix products.

    Every segment of rows is cut into tiles; the last one is filled up with copies of a row of its
    own, so that a product may be written back from any of them. The height is the one that costs
    the fewest operations; equal segments need no filling at all.

    Attributes:
        segments: Which rows belong together.
        height: Rows per tile.
        segment: Segment of every tile, int64 ``[t]``.
        rows: Row in every place of a tile, int64 ``[t, height]``.
        places: Place of every row among all places, int64 ``[r]``.
        copies: Whether a place holds a copy, bool ``[t, height]``; ``None`` if none does.
        pointers: Where the tiles of each segment begin, int64 ``[num_segments + 1]``.
    """

    segment: Tensor
    rows: Tensor
    places: Tensor
    copies: Tensor | None
    pointers: Tensor

    def __init__(self, segments: Segments, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.segments = segments
        sizes = segments.pointers.diff()
        largest = max(int(sizes.max()) if sizes.numel() else 1, 1)
        heights = {min(2**p, largest) for p in range(13)}
        row, matrix = in_channels + out_channels, in_channels * out_channels
        self.height = h = min(
            heights, key=lambda h: (int((-(-sizes // h)).sum()) * (h * row + matrix), -h)
        )
        tiles = -(-sizes // h)
        device = sizes.device
        segment = torch.repeat_interleave(torch.arange(sizes.numel(), device=device), tiles)
        first = (tiles.cumsum(0) - tiles)[segment]
        start = (torch.arange(segment.numel(), device=device) - first) * h
        place = start[:, None] + torch.arange(h, device=device)
        real = place < sizes[segment, None]
        place = torch.minimum(place, sizes[segment, None] - 1) + segments.pointers[segment, None]
        rows = segments.order[place]
        self.register_buffer("segment", segment, persistent=False)
        self.register_buffer("rows", rows, persistent=False)
        places = torch.empty_like(segments.order)
        places[rows[real]] = real.view(-1).nonzero().view(-1)
        self.register_buffer("places", places, persistent=False)
        copies = None if bool(real.all()) else ~real
        self.register_buffer("copies", copies, persistent=False)
        self.register_buffer("pointers", F.pad(tiles.cumsum(0), (1, 0)), persistent=False)

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"{self.segment.numel()} tiles of {self.height} rows"


def segment_sum(x: Tensor, segments: Segments) -> Tensor:
    """Sum rows by segment.

    Args:
        x: Rows ``[..., e, c]``.
        segments: Index of the rows.

    Returns:
        Sums ``[..., num_segments, c]``; an empty segment sums to zero.

    Raises:
        ValueError: ``x`` has not one row for each entry of the index.

    Cost:
        One pass over ``x``. Deterministic. Half precision is added up in float32.
    """
    _check_rows(x, segments.num_rows, "one row for each entry of the index")
    if segments.num_segments == 1:
        return x.sum(dim=-2, keepdim=True)
    return _segment_sum(x, *segments.tables).to(x.dtype)


def segment_mean(x: Tensor, segments: Segments) -> Tensor:
    """Mean of rows by segment; arguments and cost as for :func:`segment_sum`.

    Returns:
        Means ``[..., num_segments, c]``; an empty segment has mean zero.
    """
    _check_rows(x, segments.num_rows, "one row for each entry of the index")
    sums = _segment_sum(x, *segments.tables)
    return (sums / segments.pointers.diff().clamp(min=1)[:, None]).to(x.dtype)


def segment_gather(y: Tensor, segments: Segments) -> Tensor:
    """Give every row the value of its segment: the adjoint of :func:`segment_sum`.

    Args:
        y: One row per segment, ``[..., num_segments, c]``.
        segments: Index of the rows.

    Returns:
        Rows ``[..., e, c]``.
    """
    _check_rows(y, segments.num_segments, "one row for each segment")
    return _segment_gather(y, *segments.tables)


def _check_rows(x: Tensor, rows: int, what: str) -> None:
    if x.dim() < 2 or x.size(-2) != rows:
        raise ValueError(f"expected {what}, [..., {rows}, c]; got {list(x.shape)}")


def _autocast(*tensors: Any) -> Any:
    """The tensors in the type that autocast wants of products, where it is on."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def indexed_linear(x: Tensor, weight: Tensor, tiles: Tiles, shared: Tensor | None = None) -> Tensor:
    """Multiply each row by the weight matrix of its segment, and add a row of the segment.

    Args:
        x: Rows ``[..., r, in]``.
        weight: One matrix per segment, ``[s, in, out]``, or one for all, ``[1, in, out]``.
        tiles: Which rows belong to which segment.
        shared: One row per segment, ``[..., s, out]``.

    Returns:
        Rows ``[..., r, out]``.

    Cost:
        Besides the result, temporaries of some thousand rows. Deterministic.
    """
    _check_rows(x, tiles.segments.num_rows, "one row for each entry of the index")
    x, weight, shared = _autocast(x, weight, shared)
    batch, rows = x.shape[:-2], x.size(-2)
    flat = x.reshape(batch.numel(), rows, x.size(-1))
    if shared is not None:
        shared = shared.expand(*batch, *shared.shape[-2:]).reshape(
            batch.numel(), *shared.shape[-2:]
        )
    weight = weight.expand(tiles.segments.num_segments, -1, -1)
    y = _indexed_linear(flat, weight, shared, *_tables(tiles))
    return y.view(*batch, rows, weight.size(-1))


def grouped_linear(x: Tensor, weight: Tensor, shared: Tensor | None = None) -> Tensor:
    """Multiply each of ``k`` equal groups of rows by its weight matrix, and add a row to each.

    Args:
        x: Groups of rows ``[..., k, r, in]``.
        weight: One matrix per group, ``[k, in, out]``, or one for all, ``[1, in, out]``.
        shared: One row per group, ``[..., k, out]``.

    Returns:
        Groups of rows ``[..., k, r, out]``.
    """
    x, weight, shared = _autocast(x, weight, shared)
    groups, rows, channels = x.shape[-3:]
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
    flat = x.reshape(-1, rows, channels)
    count = flat.size(0) // max(groups, 1)
    weight = weight.expand(count, *weight.shape).reshape(-1, in_channels, out_channels)
    if shared is None:
        y = torch.bmm(flat, weight)
    else:
        shared = shared.expand(*batch, groups, 1, out_channels).reshape(-1, 1, out_channels)
        y = torch.baddbmm(shared, flat, weight)
    return y.view(*batch, groups, rows, out_channels)


def cluster_linear(
    x: Tensor,
    weight: Tensor,
    matrix: Tensor,
    bias: Tensor,
    sizes: Tensor,
    tiles: Tiles | None = None,
) -> Tensor:
    """Multiply each row by the matrix of its cluster and add a linear map of all cluster means.

    ``y_i = x_i D_c(i) + (m M + b)_c(i)`` with ``m`` the cluster means, side by side. The gradient
    with respect to ``x`` has the same form with transposed weights, so it takes one pass as well.

    Args:
        x: Rows ``[..., r, in]``.
        weight: D, one matrix per cluster, ``[k, in, out]``, or one for all, ``[1, in, out]``.
        matrix: M, ``[k * in, k * out]``.
        bias: b, ``[k, out]``.
        sizes: Rows of every cluster, ``[k]``, floating point.
        tiles: Which rows belong to which cluster; ``None`` where the clusters are equal runs.

    Returns:
        Rows ``[..., r, out]``.
    """
    x, weight, matrix, bias = _autocast(x, weight, matrix, bias)
    batch, rows = x.shape[:-2], x.size(-2)
    flat = x.reshape(batch.numel(), rows, x.size(-1))
    tables = () if tiles is None else _tables(tiles)
    y = _ClusterLinear.apply(flat, weight, matrix, bias, sizes, *tables)
    return y.view(*batch, rows, weight.size(-1))


class _ClusterLinear(torch.autograd.Function):
    """Every step is one of the differentiable operators, and so is every step of its gradient."""

    @staticmethod
    def forward(ctx, x, weight, matrix, bias, sizes, *tables):  # type: ignore[no-untyped-def]
        means = (_pool(x, sizes.numel(), tables) / sizes[:, None]).to(x.dtype)
        ctx.save_for_backward(x, weight, matrix, sizes, means, *tables)
        shared = (means.flatten(1) @ matrix).view(x.size(0), sizes.numel(), weight.size(-1))
        return _spread(x, weight, shared + bias, tables)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, matrix, sizes, means, *tables = ctx.saved_tensors
        k = sizes.numel()
        if torch.is_grad_enabled():
            means = (_pool(x, k, tables) / sizes[:, None]).to(x.dtype)
        sums = _pool(grad, k, tables)
        x_needs, weight_needs, matrix_needs, bias_needs = ctx.needs_input_grad[:4]
        grad_x = None
        if x_needs:
            spread = sums.flatten(1) @ matrix.t().to(sums.dtype)
            spread = (spread.view(x.size(0), k, x.size(-1)) / sizes[:, None]).to(x.dtype)
            grad_x = _spread(grad, weight.transpose(1, 2), spread, tables)
        return (
            grad_x,
            _outer(x, grad, weight.size(0), k, tables) if weight_needs else None,
            (means.to(sums.dtype).flatten(1).t() @ sums.flatten(1)).to(x.dtype)
            if matrix_needs
            else None,
            sums.sum(0).to(x.dtype) if bias_needs else None,
            *(None for _ in range(1 + len(tables))),
        )


def _pool(x: Tensor, k: int, tables: Sequence[Tensor | None]) -> Tensor:
    """Sums of the rows of every cluster, ``[b, k, c]``; float32 for half precision."""
    if tables:
        return _segment_sum(x, *tables[-4:])
    wide = torch.float32 if x.dtype in _HALF else x.dtype
    return x.unflatten(1, (k, x.size(1) // k)).sum(dim=2, dtype=wide)


def _spread(x: Tensor, weight: Tensor, shared: Tensor, tables: Sequence[Tensor | None]) -> Tensor:
    """Each row times the matrix of its cluster, plus the row ``shared`` of its cluster."""
    k = shared.size(1)
    if not tables:
        return grouped_linear(x.unflatten(1, (k, x.size(1) // k)), weight, shared).flatten(1, 2)
    return _indexed_linear(x, weight.expand(k, -1, -1), shared, *tables)


def _outer(x: Tensor, y: Tensor, matrices: int, k: int, tables: Sequence[Tensor | None]) -> Tensor:
    """``x^T y`` summed over the samples and over the rows of every cluster, or over all rows."""
    if matrices == 1:
        return (x.flatten(0, 1).t() @ y.flatten(0, 1))[None]
    if tables:
        return _indexed_outer(x, y, *tables)
    x, y = (value.unflatten(1, (k, value.size(1) // k)) for value in (x, y))
    if y.size(-1) == 1:  # a row on the left is faster than a column on the right
        return (y.transpose(2, 3) @ x).sum(0).transpose(1, 2)
    return (x.transpose(2, 3) @ y).sum(0)


def _tables(tiles: Tiles) -> tuple[Tensor | None, ...]:
    """What the operators on tiles take."""
    own = tiles.segment, tiles.rows, tiles.places, tiles.copies, tiles.pointers
    return *own, *tiles.segments.tables


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Row ``i`` of the result is row ``order[i]`` of ``x``.

    Args:
        x: Rows ``[..., r, c]``.
        order: A permutation of the rows, int64 ``[r]``.
        inverse: Its inverse, by which gradients are gathered instead of scattered.

    Returns:
        Rows ``[..., r, c]``.
    """
    return _permute_rows(x, order, inverse)


@torch.library.custom_op("gsym::segment_sum", mutates_args=())
def _segment_sum(x: Tensor, index: Tensor, order: Tensor, cuts: Tensor, pieces: Tensor) -> Tensor:
    """Sums by segment; half precision is added up and returned in float32."""
    if x.dtype in _HALF:
        x = x.float()
    sums = _sum_runs(x, order, cuts)
    if cuts.numel() == pieces.numel():  # every segment is one piece
        return sums
    return _sum_runs(sums, torch.arange(sums.size(-2), device=x.device), pieces)


def _sum_runs(x: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    rows, channels = x.shape[-2:]
    segments = pointers.numel() - 1
    flat = x.reshape(-1, rows, channels)
    batch = flat.size(0)
    out = x.new_zeros(batch, segments, channels)
    if out.numel() == 0 or rows == 0:
        pass
    elif batch == 1 or rows * channels > _LARGE_SAMPLE:
        for sample, target in zip(flat, out, strict=True):
            target.copy_(_bag(sample, order, pointers))
    else:
        offset = torch.arange(batch, device=x.device)[:, None] * rows
        starts = torch.cat([(pointers[:-1] + offset).view(-1), offset.new_tensor([batch * rows])])
        bag = _bag(flat.reshape(-1, channels), (order + offset).view(-1), starts)
        out.copy_(bag.view(out.shape))
    return out.view(*x.shape[:-2], segments, channels)


def _bag(x: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    # The fastest reduction in plain torch on the CPU: 95 % of the bandwidth of a copy.
    return F.embedding_bag(order, x, pointers, mode="sum", include_last_offset=True)


@_segment_sum.register_fake
def _(x: Tensor, index: Tensor, order: Tensor, cuts: Tensor, pieces: Tensor) -> Tensor:
    dtype = torch.float32 if x.dtype in _HALF else x.dtype
    return x.new_empty(*x.shape[:-2], pieces.size(0) - 1, x.size(-1), dtype=dtype)


@torch.library.custom_op("gsym::segment_gather", mutates_args=())
def _segment_gather(
    y: Tensor, index: Tensor, order: Tensor, cuts: Tensor, pieces: Tensor
) -> Tensor:
    return y.contiguous().index_select(-2, index)


@_segment_gather.register_fake
def _(y: Tensor, index: Tensor, order: Tensor, cuts: Tensor, pieces: Tensor) -> Tensor:
    return y.new_empty(*y.shape[:-2], index.size(0), y.size(-1))


def _save_tables(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(*inputs[1:])


def _segment_sum_backward(ctx, grad):  # type: ignore[no-untyped-def]
    tables = ctx.saved_tensors
    return _segment_gather(grad.to(ctx.dtype), *tables), *(None for _ in tables)


def _segment_gather_backward(ctx, grad):  # type: ignore[no-untyped-def]
    tables = ctx.saved_tensors
    return _segment_sum(grad, *tables).to(ctx.dtype), *(None for _ in tables)


_segment_sum.register_autograd(_segment_sum_backward, setup_context=_save_tables)
_segment_gather.register_autograd(_segment_gather_backward, setup_context=_save_tables)


@torch.library.custom_op("gsym::permute_rows", mutates_args=())
def _permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return x.contiguous().index_select(-2, order)


@_permute_rows.register_fake
def _(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _permute_rows_backward(ctx, grad):  # type: ignore[no-untyped-def]
    order, inverse = ctx.saved_tensors
    return _permute_rows(grad, inverse, order), None, None


_permute_rows.register_autograd(_permute_rows_backward, setup_context=_save_tables)


def _blocks(batch: int, tiles: int, height: int) -> Iterator[tuple[int, int, slice]]:
    """Work that fits a cache: first sample, end of samples, tiles.

    Either several whole samples, or some tiles of one sample.
    """
    samples = min(max(_BLOCK_ROWS // max(tiles * height, 1), 1), max(batch, 1))
    step = tiles if samples > 1 else max(_BLOCK_ROWS // height, 1)
    for first in range(0, batch, samples):
        for tile in range(0, tiles, max(step, 1)):
            end = min(first + samples, batch)
            yield first, end, slice(tile, min(tile + step, tiles))


def _gather_tiles(x: Tensor, index: Tensor, tiles: int) -> Tensor:
    """``[m, r, c]`` to ``[tiles, m * height, c]`` by an index into the ``m * r`` rows."""
    return x.view(-1, x.size(-1)).index_select(0, index).view(tiles, -1, x.size(-1))


def _tile_index(rows: Tensor, samples: int, stride: int) -> Tensor:
    """Rows of some tiles in several samples of ``stride`` rows, flat, tile by tile."""
    if samples == 1:
        return rows.reshape(-1)
    offset = torch.arange(samples, device=rows.device)[:, None] * stride
    return (rows[:, None] + offset).view(-1)


@torch.library.custom_op("gsym::indexed_linear", mutates_args=())
def _indexed_linear(
    x: Tensor,
    weight: Tensor,
    shared: Tensor | None,
    segment: Tensor,
    rows: Tensor,
    places: Tensor,
    copies: Tensor | None,
    tile_pointers: Tensor,
    index: Tensor,
    order: Tensor,
    cuts: Tensor,
    pieces: Tensor,
) -> Tensor:
    (batch, count, _), out_channels = x.shape, weight.size(-1)
    tiles, height = rows.shape
    x = x.contiguous()
    y = x.new_empty(batch, count, out_channels)
    if y.numel() == 0:
        return y
    samples = -1
    for first, end, block in _blocks(batch, tiles, height):
        whole = block.stop - block.start == tiles
        if not whole or end - first != samples:  # else the tables of the last block serve
            samples, taken = end - first, segment[block]
            place = _tile_index(rows[block], samples, count)
            matrices = weight.index_select(0, taken)
            if whole:
                sample = torch.arange(samples, device=x.device)[:, None]
                tile, row = places // height, places % height
                back = ((tile * samples + sample) * height + row).view(-1)
        product = torch.bmm(_gather_tiles(x[first:end], place, taken.numel()), matrices)
        if shared is not None:
            added = shared[first:end].index_select(1, taken).transpose(0, 1)
            product.view(taken.numel(), samples, height, out_channels).add_(added[:, :, None])
        product, target = product.view(-1, out_channels), y[first:end].view(-1, out_channels)
        if whole:
            torch.index_select(product, 0, back, out=target)
        else:  # a copy is written to its row again, with the same value
            target.index_copy_(0, place, product)
    return y


@_indexed_linear.register_fake
def _(x, weight, shared, *tables):  # type: ignore[no-untyped-def]
    return x.new_empty(x.size(0), x.size(1), weight.size(-1))


def _save_indexed(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, shared, *tables = inputs
    ctx.shared = shared is not None
    ctx.save_for_backward(x, weight, *tables)


def _indexed_linear_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight, *tables = ctx.saved_tensors
    needs_x, needs_weight, needs_shared, *_ = ctx.needs_input_grad
    turned = weight.transpose(1, 2)
    return (
        _indexed_linear(grad, turned, None, *tables) if needs_x else None,
        _indexed_outer(x, grad, *tables) if needs_weight else None,
        _segment_sum(grad, *tables[-4:]).to(grad.dtype) if ctx.shared and needs_shared else None,
        *(None for _ in tables),
    )


_indexed_linear.register_autograd(_indexed_linear_backward, setup_context=_save_indexed)


@torch.library.custom_op("gsym::indexed_outer", mutates_args=())
def _indexed_outer(
    x: Tensor,
    y: Tensor,
    segment: Tensor,
    rows: Tensor,
    places: Tensor,
    copies: Tensor | None,
    tile_pointers: Tensor,
    index: Tensor,
    order: Tensor,
    cuts: Tensor,
    pieces: Tensor,
) -> Tensor:
    """``[s, in, out]``: sum over samples and rows of a segment of ``x^T y``."""
    (batch, count, in_channels), out_channels = x.shape, y.size(-1)
    tiles, height = rows.shape
    x, y = x.contiguous(), y.contiguous()
    wide = torch.float32 if x.dtype in _HALF else x.dtype
    sums = x.new_zeros(tiles, in_channels, out_channels, dtype=wide)
    samples = -1
    for first, end, block in _blocks(batch, tiles, height):
        part = sums[block]
        if part.size(0) != tiles or end - first != samples:
            samples = end - first
            place = _tile_index(rows[block], samples, count)
        left = _gather_tiles(x[first:end], place, part.size(0))
        right = _gather_tiles(y[first:end], place, part.size(0))
        if copies is not None:
            here = right.view(part.size(0), samples, height, out_channels)
            here.masked_fill_(copies[block][:, None, :, None], 0)
        part.baddbmm_(left.to(wide).transpose(1, 2), right.to(wide))
    order = torch.arange(tiles, device=x.device)
    total = _sum_runs(sums.flatten(1), order, tile_pointers)
    return total.view(-1, in_channels, out_channels).to(x.dtype)


@_indexed_outer.register_fake
def _(x, y, *tables):  # type: ignore[no-untyped-def]
    return x.new_empty(tables[-1].size(0) - 1, x.size(-1), y.size(-1))


def _save_outer(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _indexed_outer_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, y, *tables = ctx.saved_tensors
    needs_x, needs_y, *_ = ctx.needs_input_grad
    turned = grad.transpose(1, 2)
    return (
        _indexed_linear(y, turned, None, *tables) if needs_x else None,
        _indexed_linear(x, grad, None, *tables) if needs_y else None,
        *(None for _ in tables),
    )


_indexed_outer.register_autograd(_indexed_outer_backward, setup_context=_save_outer)
