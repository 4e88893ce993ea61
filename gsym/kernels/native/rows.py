"""Reductions of rows, and products with one matrix per segment, in plain torch.

Whatever reduces over a *static* index sorts it once, at construction, and then reduces contiguous
segments: no atomics, so the same inputs give the same bits. On the CPU and on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from gsym.kernels._plain import accumulation_type
from gsym.kernels.native.memory import new_empty
from gsym.kernels.segments import BLOCK_ROWS, TileTables

# Samples with more entries than this are reduced one after another, which saves an index of the
# whole batch; smaller ones are reduced in one call, which saves the calls.
_LARGE_SAMPLE = 2**15

# Segments of sorted rows are multiplied where they lie, one call each, if they hold this many rows
# in all samples together; shorter ones are gathered into tiles, which saves the calls.
_LONG_RUN = 2**12

# Rows that are added one after another; longer segments are summed piece by piece, because the
# rounding error of a running sum grows with its length.
_PIECE = 2**10


def segment_sum(
    x: Tensor, index: Tensor, order: Tensor, pointers: Tensor, dtype: torch.dtype
) -> Tensor:
    x = x.to(dtype)
    sizes = pointers.diff()
    if order.numel() > _PIECE and int(sizes.max()) > _PIECE:
        count = -(-sizes // _PIECE)
        pieces = F.pad(count.cumsum(0), (1, 0))
        owner = torch.repeat_interleave(count)
        rank = torch.arange(owner.numel(), device=x.device) - pieces[owner]
        cuts = torch.cat([pointers[owner] + rank * _PIECE, pointers[-1:]])
        # In float32 for half precision: the sum of a piece must not be rounded, nor overflow.
        x = _bags(x.to(accumulation_type(x.dtype)), order, cuts.to(order.dtype))
        order, pointers = torch.arange(owner.numel(), device=x.device), pieces
    return _bags(x, order, pointers).to(dtype)


def segment_max(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    out = x.new_zeros(x.size(0), pointers.numel() - 1, x.size(-1))
    at = index.long()[:, None].expand(x.shape)
    return out.scatter_reduce_(-2, at, x, reduce="amax", include_self=False)


def tie_spread(
    g: Tensor, x: Tensor, y: Tensor, index: Tensor, order: Tensor, pointers: Tensor
) -> Tensor:
    batch, entries, channels = x.shape
    out = new_empty(x, *x.shape)
    high, g = y.reshape(-1, channels), g.reshape(-1, channels)

    def blocks() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Which rows hold the maximum, their segments among all samples, and their result."""
        for first, end, rows in _blocks(batch, entries):
            sample = torch.arange(first, end, device=x.device)[:, None]
            at = (index[rows] + sample * y.size(-2)).view(-1)
            held = x[first:end, rows].reshape(-1, channels) == high.index_select(0, at)
            yield held, at, out[first:end, rows].view(-1, channels)

    count = torch.zeros_like(high, dtype=torch.int32)
    for held, at, _ in blocks():  # whole numbers, whose sum does not depend on the order
        count.index_add_(0, at, held.int())
    share = (g / count.clamp_(min=1).to(accumulation_type(g.dtype))).to(g.dtype)
    for held, at, result in blocks():
        torch.mul(share.index_select(0, at), held, out=result)
    return out


def gather_sum(
    x: Tensor, weight: Tensor | None, columns: Tensor, order: Tensor, pointers: Tensor
) -> Tensor:
    return _bags(x, columns, pointers, None if weight is None else weight.index_select(-1, order))


def gather_dot(
    y: Tensor,
    x: Tensor,
    columns: Tensor,
    order: Tensor,
    pointers: Tensor,
    index: Tensor,
    source: Tensor,
) -> Tensor:
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


def indexed_linear(
    x: Tensor, weight: Tensor, shared: Tensor | None, tables: TileTables, is_sorted: bool
) -> Tensor:
    (batch, count, _), out_channels = x.shape, weight.size(-1)
    x = x.contiguous()
    y = new_empty(x, batch, count, out_channels)
    if y.numel() == 0:
        return y
    if is_sorted and batch * count >= _LONG_RUN * weight.size(0):
        for owner, piece in _pieces(tables.pointers, batch):
            matrices = weight[owner].expand(batch, -1, -1)
            added = None if shared is None else shared[:, owner, None]
            _product(added, x[:, piece], matrices, out=y[:, piece])
        return y
    walk = _Blocks(batch, tables)
    gather, flat = walk.gather(x), x.new_empty(walk.capacity, out_channels)
    for block, tiles in walk:
        taken = tables.segment[tiles]
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


def indexed_outer(x: Tensor, y: Tensor, tables: TileTables, is_sorted: bool) -> Tensor:
    (batch, count, in_channels), out_channels = x.shape, y.size(-1)
    x, y = x.contiguous(), y.contiguous()
    wide = accumulation_type(x.dtype)  # what is added block by block is rounded once, at the end
    shape = tables.pointers.numel() - 1, in_channels, out_channels
    total = x.new_zeros(shape[0], in_channels * out_channels, dtype=wide)
    every = torch.arange(tables.pointers.numel(), device=x.device)
    if x.numel() == 0 or total.numel() == 0:
        return total.view(shape).to(x.dtype)
    if is_sorted and batch * count >= _LONG_RUN * total.size(0):
        for owner, piece in _pieces(tables.pointers, batch):
            left, right = x[:, piece].to(wide), y[:, piece].to(wide)
            total[owner] += torch.bmm(left.transpose(1, 2), right).sum(0).view(-1)
        return total.view(shape).to(x.dtype)
    walk = _Blocks(batch, tables)
    gather_x, gather_y = walk.gather(x), walk.gather(y)
    for block, tiles in walk:
        taken = tables.segment[tiles]
        sums = x.new_zeros(taken.numel(), in_channels, out_channels, dtype=wide)
        for some, take, _ in walk.groups(block, tiles):
            left = gather_x(some, block, take).view(taken.numel(), -1, in_channels)
            right = gather_y(some, block, take).view(taken.numel(), -1, out_channels)
            sums.baddbmm_(left.to(wide).transpose(1, 2), right.to(wide))
        ends = torch.searchsorted(taken, every)
        nothing = torch.arange(taken.numel(), device=x.device)
        total += _bags(sums.flatten(1)[None], nothing, ends)[0]
    return total.view(shape).to(x.dtype)


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

    def __init__(self, batch: int, tables: TileTables) -> None:
        rows, places, blocks = tables.rows, tables.places, tables.blocks
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
