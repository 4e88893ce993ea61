"""Static indices of rows, sorted once: what the primitives reduce over and multiply by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsym._validate import check_segment_index

# Rows that a product takes at a time: they and their products stay in the cache, and their memory
# is used again, where a temporary of full size costs a page fault per page.
BLOCK_ROWS = 2**14
_ROWS_PER_SEGMENT = 64
# Rows that compiled loops take at a time, by segment: they and their products stay in the second
# cache of one core.
LOCAL_ROWS = 2**10


class _Tables(nn.Module):
    """Tensors of indices that move with the layer which holds them.

    Not buffers: the compiler takes the shape of a buffer for a constant, and would compile anew
    for every graph.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, fn(value))
        return self


class Segments(_Tables):
    """A static index of rows into segments, sorted once.

    A module only so that its tables move with the layer that holds it; it has no parameters or
    buffers and adds nothing to a ``state_dict``. :meth:`from_index` checks every value; the
    constructor, for an index known to be in range, does what takes no further pass over it.

    Attributes:
        num_segments: Number of segments; a segment may be empty.
        index: Segment of every row, ``[e]``; int32 where rows and segments fit, like the others,
            and int64 otherwise.
        order: Rows sorted by segment, ``[e]``; equal segments keep their order.
        pointers: Where each segment begins in ``order``, ``[num_segments + 1]``.
        is_sorted: Whether the rows came sorted by segment.

    Example:
        >>> s = Segments.from_index(torch.tensor([1, 0, 1]), num_segments=2)
        >>> gsym.kernels.segment_sum(torch.tensor([[1.0], [2.0], [3.0]]), s).tolist()
        [[2.0], [4.0]]
    """

    def __init__(self, index: Tensor, num_segments: int) -> None:
        super().__init__()
        num_segments = check_segment_index(index, num_segments)
        counts = torch.bincount(index, minlength=num_segments)
        if counts.size(0) != num_segments:
            raise ValueError(
                f"a segment index must lie in 0..{num_segments - 1}; "
                f"got values up to {counts.size(0) - 1}"
            )
        self.num_segments = num_segments
        self._columns: tuple[Tensor, Tensor, Tensor] | None = None
        self.is_sorted = bool((index.diff() >= 0).all())
        fits = max(index.numel(), num_segments) < 2**31
        dtype = torch.int32 if fits else torch.int64  # half of what an index takes to read
        self.index = index.to(dtype, copy=True)
        self.order = torch.argsort(index, stable=True).to(dtype)
        self.pointers = F.pad(counts.cumsum(0), (1, 0)).to(dtype)

    @classmethod
    def from_index(cls, index: Tensor, num_segments: int) -> Segments:
        """Sort ``index``, int64 or int32 ``[e]`` with values in ``0..num_segments-1``.

        Raises:
            ValueError: A value outside the range, or an index of another shape or type, or on the
                device "meta", which has no values.
            TypeError: An index that is no tensor.
        """
        num_segments = check_segment_index(index, num_segments)
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < num_segments:
            raise ValueError(
                f"a segment index must lie in 0..{num_segments - 1}; "
                f"got values from {int(index.min())} to {int(index.max())}"
            )
        return cls(index, num_segments)

    def columns(self, source: Segments) -> Tensor:
        """What another index of the same entries holds, entries sorted by segment, ``[e]``.

        With the entries of a sparse matrix, ``segments`` its rows and ``source`` its columns, this
        is the column index of its compressed rows. It is kept for the last ``source`` asked for.
        """
        if self._columns is not None:
            index, order, columns = self._columns
            if index is source.index and order is self.order:
                return columns
        if torch.compiler.is_compiling():
            return source.index.index_select(0, self.order)
        with torch.inference_mode(False):
            columns = source.index.index_select(0, self.order)
        self._columns = source.index, self.order, columns
        return columns

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"{self.index.numel()} rows, {self.num_segments} segments"


class Tiles(_Tables):
    """Rows of equal weight gathered into tiles of one height, for batched matrix products.

    The rows are cut into blocks that fit a cache, each gathered and put back within it. In a block
    the rows of every segment are cut into tiles; the last one is filled up with zeros. The height
    is the one that costs the fewest operations; equal segments need no filling at all.

    Attributes:
        segments: Which rows belong together.
        height: Rows per tile.
        segment: Segment of every tile, int64 ``[t]``; tiles are sorted by block, then segment.
        rows: Row of the block in every place of a tile, int64 ``[t, height]``; one past the last
            row of a full block where there is none.
        places: Place of every row among the places of its block, int64 ``[r]``.
        blocks: Where the tiles of each block begin, int64 ``[num_blocks + 1]``.
        runs: Where each segment begins among the rows, ``[num_segments + 1]``, if they are sorted.
        local: Rows sorted by segment within blocks of ``LOCAL_ROWS``, ``[r]``.
    """

    def __init__(self, segments: Segments, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if not isinstance(segments, Segments):
            raise TypeError(f"segments must be Segments; got {type(segments).__name__}")
        self.segments = segments
        device, count, k = segments.index.device, segments.index.numel(), segments.num_segments
        # Some rows of every segment in a block, lest most of the places were filled up.
        blocks = max(-(-count // max(BLOCK_ROWS, _ROWS_PER_SEGMENT * k)), 1)
        step = -(-count // blocks)
        part = torch.arange(count, device=device) // max(step, 1) * k + segments.index
        order = torch.argsort(part, stable=True)
        parts, sizes = torch.unique_consecutive(part[order], return_counts=True)
        largest = int(sizes.max()) if count else 1
        heights = {min(2**p, largest) for p in range(13)}
        row, matrix = in_channels + out_channels, in_channels * out_channels
        self.height = h = min(
            heights, key=lambda h: (int((-(-sizes // h)).sum()) * (h * row + matrix), -h)
        )
        tiles = -(-sizes // h)
        owner = torch.repeat_interleave(torch.arange(parts.numel(), device=device), tiles)
        first = (tiles.cumsum(0) - tiles)[owner]
        start = (torch.arange(owner.numel(), device=device) - first) * h
        place = start[:, None] + torch.arange(h, device=device)
        real = place < sizes[owner, None]
        place = (place + (sizes.cumsum(0) - sizes)[owner, None]).clamp(max=count - 1)
        block = parts[owner] // k
        self.segment = parts[owner] % k
        self.blocks = F.pad(torch.bincount(block, minlength=blocks).cumsum(0), (1, 0))
        here = (block * step)[:, None]
        self.rows = torch.where(real, order[place] - here, step)
        self.places = torch.empty_like(order)
        self.places[order] = real.view(-1).nonzero().view(-1)
        self.places -= self.blocks[torch.arange(count, device=device) // max(step, 1)] * h
        self.runs = segments.pointers if segments.is_sorted else None
        part = torch.arange(count, device=device) // LOCAL_ROWS * k + segments.index
        self.local = torch.argsort(part, stable=True).to(segments.order.dtype)

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"{self.segment.numel()} tiles of {self.height} rows"
