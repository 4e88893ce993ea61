"""Segment sums, their adjoint, and products with one weight matrix per group of rows.

Whatever reduces over a *static* index sorts it once, at construction, and then reduces contiguous
segments: no atomics, so the same inputs give the same bits. The operators are registered with
``torch.library`` in adjoint pairs, which makes them differentiable to any order and opaque to the
compiler. The definitions stand in :mod:`gsym.kernels.reference`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Samples with more entries than this are reduced one after another, which saves an index of the
# whole batch; smaller ones are reduced in one call, which saves the calls.
_LARGE_SAMPLE = 2**15


class Segments(nn.Module):
    """A static index of rows into segments, sorted once.

    A module only so that its tables move with the layer that holds it; it has no parameters and
    adds nothing to a ``state_dict``.

    Attributes:
        num_segments: Number of segments; a segment may be empty.
        index: Segment of every row, int64 ``[e]``.
        order: Rows sorted by segment, int64 ``[e]``; equal segments keep their order.
        pointers: Where each segment begins in ``order``, int64 ``[num_segments + 1]``.

    Example:
        >>> s = Segments.from_index(torch.tensor([1, 0, 1]), num_segments=2)
        >>> segment_sum(torch.tensor([[1.0], [2.0], [3.0]]), s).tolist()
        [[2.0], [4.0]]
    """

    index: Tensor
    order: Tensor
    pointers: Tensor

    def __init__(self, index: Tensor, num_segments: int) -> None:
        super().__init__()
        counts = torch.bincount(index, minlength=num_segments)
        self.num_segments = num_segments
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("order", torch.argsort(index, stable=True), persistent=False)
        self.register_buffer("pointers", F.pad(counts.cumsum(0), (1, 0)), persistent=False)

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

    Groups of rows are cut into tiles; the last tile of a group is filled up with zero rows. The
    height is the one that costs the fewest operations, so equal groups need no filling at all.

    Attributes:
        height: Rows per tile.
        group: Group of every tile, int64 ``[tiles]``.
        gather: Row of ``x`` for every tile row, int64 ``[tiles * height]``; 0 where filled.
        filled: Tile rows without a row of ``x``, int64 ``[f]``.
        scatter: Tile row of every row of ``x``, int64 ``[rows]``.
    """

    group: Tensor
    gather: Tensor
    filled: Tensor
    scatter: Tensor

    def __init__(self, segments: Segments, in_channels: int, out_channels: int) -> None:
        super().__init__()
        sizes = segments.pointers.diff()
        largest = int(sizes.max()) if sizes.numel() else 1
        heights = {min(2**p, max(largest, 1)) for p in range(11)} | {min(max(largest, 1), 4096)}
        row, matrix = in_channels + out_channels, in_channels * out_channels
        self.height = min(
            heights, key=lambda h: (int((-(-sizes // h)).sum()) * (h * row + matrix), -h)
        )
        tiles = -(-sizes // self.height)
        start = (tiles.cumsum(0) - tiles) * self.height
        sorted_index = segments.index[segments.order]
        rank = torch.arange(sorted_index.numel(), device=sizes.device)
        position = start[sorted_index] + rank - segments.pointers[sorted_index]
        total = int(tiles.sum()) * self.height
        gather = torch.full((total,), -1, dtype=torch.int64, device=sizes.device)
        gather[position] = segments.order
        scatter = torch.empty_like(segments.order)
        scatter[segments.order] = position
        group = torch.repeat_interleave(torch.arange(sizes.numel(), device=sizes.device), tiles)
        self.register_buffer("group", group, persistent=False)
        self.register_buffer("filled", (gather < 0).nonzero().view(-1), persistent=False)
        self.register_buffer("gather", gather.clamp_(min=0), persistent=False)
        self.register_buffer("scatter", scatter, persistent=False)

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"{self.group.numel()} tiles of {self.height} rows"

    def cut(self, x: Tensor) -> Tensor:
        """Gather ``[..., rows, c]`` into tiles ``[..., tiles, height, c]``."""
        empty = self.filled[:0]
        flat = _gather_rows(x, self.gather, self.filled, self.scatter, empty)
        return flat.unflatten(-2, (self.group.numel(), self.height))

    def join(self, tiles: Tensor) -> Tensor:
        """Put tiles ``[..., tiles, height, c]`` back into rows ``[..., rows, c]``."""
        empty = self.filled[:0]
        return _gather_rows(tiles.flatten(-3, -2), self.scatter, empty, self.gather, self.filled)


def segment_sum(x: Tensor, segments: Segments) -> Tensor:
    """Sum rows by segment.

    Args:
        x: Rows ``[..., e, c]``.
        segments: Index of the rows.

    Returns:
        Sums ``[..., num_segments, c]``; an empty segment sums to zero.

    Cost:
        One pass over ``x``. Deterministic.
    """
    if segments.num_segments == 1:
        return x.sum(dim=-2, keepdim=True)
    return _segment_sum(x, segments.index, segments.order, segments.pointers)


def segment_gather(y: Tensor, segments: Segments) -> Tensor:
    """Give every row the value of its segment: the adjoint of :func:`segment_sum`.

    Args:
        y: One row per segment, ``[..., num_segments, c]``.
        segments: Index of the rows.

    Returns:
        Rows ``[..., e, c]``.
    """
    return _segment_gather(y, segments.index, segments.order, segments.pointers)


def indexed_linear(x: Tensor, weight: Tensor, tiles: Tiles) -> Tensor:
    """Multiply each row by the weight matrix of its group.

    Args:
        x: Rows ``[..., r, in]``.
        weight: One matrix per group, ``[g, in, out]``.
        tiles: Which rows belong to which group.

    Returns:
        Rows ``[..., r, out]``.
    """
    product = torch.einsum("...gti,gio->...gto", tiles.cut(x), weight.index_select(0, tiles.group))
    return tiles.join(product)


def grouped_linear(x: Tensor, weight: Tensor, shared: Tensor | None = None) -> Tensor:
    """Multiply each of ``k`` equal groups of rows by its weight matrix, and add a row to each.

    Args:
        x: Groups of rows ``[..., k, r, in]``.
        weight: One matrix per group, ``[k, in, out]``, or one for all, ``[1, in, out]``.
        shared: One row per group, ``[..., k, out]``.

    Returns:
        Groups of rows ``[..., k, r, out]``.
    """
    groups, rows, channels = x.shape[-3:]
    if shared is not None:
        shared = shared.unsqueeze(-2)
    if weight.size(0) == 1:
        y = x @ weight[0]
        return y if shared is None else y + shared
    in_channels, out_channels = weight.shape[1:]
    if rows < 8 or rows * (in_channels + out_channels) < in_channels * out_channels:
        # A product per group and sample would be too small, or its copies of the weights larger
        # than the rows themselves: bring the samples of a group together instead.
        y = torch.einsum("...kri,kio->...kro", x, weight)
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


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Row ``i`` of the result is row ``order[i]`` of ``x``.

    Args:
        x: Rows ``[..., r, c]``.
        order: A permutation of the rows, int64 ``[r]``.
        inverse: Its inverse, by which gradients are gathered instead of scattered.

    Returns:
        Rows ``[..., r, c]``.
    """
    nothing = order[:0]
    return _gather_rows(x, order, nothing, inverse, nothing)


@torch.library.custom_op("gsym::segment_sum", mutates_args=())
def _segment_sum(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
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
def _(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-2], pointers.size(0) - 1, x.size(-1))


@torch.library.custom_op("gsym::segment_gather", mutates_args=())
def _segment_gather(y: Tensor, index: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    return y.contiguous().index_select(-2, index)


@_segment_gather.register_fake
def _(y: Tensor, index: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    return y.new_empty(*y.shape[:-2], index.size(0), y.size(-1))


def _save_tables(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[1:])


def _segment_sum_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _segment_gather(grad, *ctx.saved_tensors), None, None, None


def _segment_gather_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _segment_sum(grad, *ctx.saved_tensors), None, None, None


_segment_sum.register_autograd(_segment_sum_backward, setup_context=_save_tables)
_segment_gather.register_autograd(_segment_gather_backward, setup_context=_save_tables)


@torch.library.custom_op("gsym::gather_rows", mutates_args=())
def _gather_rows(
    x: Tensor, index: Tensor, zero: Tensor, back_index: Tensor, back_zero: Tensor
) -> Tensor:
    """Rows ``index`` of ``x`` with rows ``zero`` of the result cleared; the pair is its adjoint."""
    out = x.contiguous().index_select(-2, index)
    if zero.numel():
        out.index_fill_(-2, zero, 0)
    return out


@_gather_rows.register_fake
def _(x: Tensor, index: Tensor, zero: Tensor, back_index: Tensor, back_zero: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-2], index.size(0), x.size(-1))


def _gather_rows_backward(ctx, grad):  # type: ignore[no-untyped-def]
    index, zero, back_index, back_zero = ctx.saved_tensors
    return _gather_rows(grad, back_index, back_zero, index, zero), None, None, None, None


_gather_rows.register_autograd(_gather_rows_backward, setup_context=_save_tables)
