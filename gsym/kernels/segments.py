"""Static indices of rows, sorted once: what the primitives reduce over and multiply by."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from gsym._validate import check_segment_index
from gsym.kernels.transforms import undisturbed, without_wrappers

# Rows that a product takes at a time: they and their products stay in the cache, and their memory
# is used again, where a temporary of full size costs a page fault per page.
BLOCK_ROWS = 2**14
_ROWS_PER_SEGMENT = 64
# Rows that compiled loops take at a time, by segment: they and their products stay in the second
# cache of one core.
LOCAL_ROWS = 2**10


class Value:
    """Tables that never change: attributes are not set, and what is handed out are copies.

    A kernel reads where an index points without looking, so a table that somebody wrote to would
    lead it out of its memory. No module either: what walks the buffers of a layer, to average
    or to empty them say, must not find these.
    """

    _tables: ClassVar[tuple[str, ...]]

    def _fill(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} never change; make new ones to alter {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} never change; {name} stays")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @property
    def device(self) -> torch.device:
        """Where the tables lie."""
        table: Tensor = getattr(self, self._tables[0])
        return table.device

    def to(self, device: torch.device | str) -> Self:
        """The same value on another device; itself where it is there already."""
        device = torch.device(device)
        if self.device == device:
            return self
        moved = object.__new__(type(self))
        with undisturbed():
            moved._fill(**vars(self) | self._moved(device))
        return moved

    def _moved(self, device: torch.device) -> dict[str, object]:
        return {name: getattr(self, name).to(device) for name in self._tables}


def copy_of(name: str, what: str) -> property:
    """A property that hands out a copy of a table."""

    def read(self: Value) -> Tensor:
        table: Tensor = getattr(self, name)
        return table.clone()

    return property(read, doc=what)


class Segments(Value):
    """A static index of rows into segments, sorted once.

    A value: it never changes, :meth:`to` makes another one on another device, and the tables that
    it hands out are copies. :meth:`from_index` checks every value; the constructor, for an index
    known to be in range, skips the range check.

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

    _tables: ClassVar[tuple[str, ...]] = ("_index", "_order", "_pointers")
    _index: Tensor
    _order: Tensor
    _pointers: Tensor
    _last_links: tuple[Segments, list[Tensor]] | None
    num_segments: int
    is_sorted: bool
    is_traced = False

    def __init__(self, index: Tensor, num_segments: int) -> None:
        num_segments = check_segment_index(index, num_segments)
        with undisturbed():
            index = without_wrappers(index)
            highest = int(index.max()) if index.numel() else -1
            if highest >= num_segments:  # before counts are made for as many
                raise ValueError(
                    f"a segment index must lie in 0..{num_segments - 1}; got values up to {highest}"
                )
            try:
                counts = torch.bincount(index, minlength=num_segments)
            except RuntimeError as cause:
                raise ValueError(
                    f"a segment index must lie in 0..{num_segments - 1}; got a negative value"
                ) from cause
            fits = max(index.numel(), num_segments) < 2**31
            dtype = torch.int32 if fits else torch.int64  # half of what an index takes to read
            self._fill(
                num_segments=num_segments,
                is_sorted=bool((index.diff() >= 0).all()),
                _index=index.to(dtype, copy=True),
                _order=torch.argsort(index, stable=True).to(dtype),
                _pointers=F.pad(counts.cumsum(0), (1, 0)).to(dtype),
                _last_links=None,
            )

    @classmethod
    def from_index(cls, index: Tensor, num_segments: int) -> Segments:
        """Sort ``index``, int64 or int32 ``[e]`` with values in ``0..num_segments-1``.

        Raises:
            ValueError: A value outside the range, or an index of another shape or type, or on the
                device "meta", which has no values.
            TypeError: An index that is no tensor.
        """
        num_segments = check_segment_index(index, num_segments)
        with undisturbed():
            index = without_wrappers(index)
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < num_segments:
                raise ValueError(
                    f"a segment index must lie in 0..{num_segments - 1}; "
                    f"got values from {int(index.min())} to {int(index.max())}"
                )
        return cls(index, num_segments)

    @staticmethod
    def traced(index: Tensor, num_segments: int) -> Segments:
        """An index that is not known yet, int64 ``[e]``, for use while a compiler traces.

        Nothing is checked and nothing sorted, so it may be an input of the traced program. The
        primitives take it in plain torch; it has no ``order`` and no ``pointers``.
        """
        return _TracedSegments(index, num_segments)

    @property
    def _count(self) -> int:
        """The number of segments, which the compiler takes for a size and not for a constant."""
        return self._pointers.size(0) - 1

    index = copy_of("_index", "Segment of every row, ``[e]``.")
    order = copy_of("_order", "Rows sorted by segment, ``[e]``.")
    pointers = copy_of("_pointers", "Where each segment begins, ``[num_segments + 1]``.")

    def columns(self, source: Segments) -> Tensor:
        """What another index of the same entries holds, entries sorted by segment, ``[e]``.

        With the entries of a sparse matrix, ``segments`` its rows and ``source`` its columns, this
        is the column index of its compressed rows.
        """
        return source._index.index_select(0, self._order)

    def _links(self, source: Segments) -> list[Tensor]:
        """A sparse matrix by rows: columns, number, row pointers and row of every entry.

        Then the same of its transpose. Kept for the last ``source`` asked for.
        """
        last = self._last_links
        if last is not None and last[0] is source:
            return last[1]
        compiling = torch.compiler.is_compiling()
        with nullcontext() if compiling else undisturbed():
            tables = [
                *(self.columns(source), self._order, self._pointers, self._index),
                *(source.columns(self), source._order, source._pointers, source._index),
            ]
        if not compiling and type(tables[0]) is type(tables[4]) is Tensor:  # no fake ones
            self._fill(_last_links=(source, tables))
        return tables

    def _moved(self, device: torch.device) -> dict[str, object]:
        return super()._moved(device) | {"_last_links": None}

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_last_links": None}

    def __repr__(self) -> str:
        return f"Segments({self._index.numel()} rows, {self.num_segments} segments)"


class _TracedSegments(Segments):
    _tables = ("_index",)
    is_traced = True

    def __init__(self, index: Tensor, num_segments: int) -> None:
        self._fill(num_segments=num_segments, is_sorted=False, _index=index, _last_links=None)

    @property
    def _count(self) -> int:
        return self.num_segments


@dataclass(slots=True)  # to freeze it would take longer than to multiply a small batch
class TileTables:
    """The tables of :class:`Tiles` and of their segments, as loops are given them."""

    segment: Tensor
    rows: Tensor
    places: Tensor
    blocks: Tensor
    local: Tensor
    index: Tensor
    order: Tensor
    pointers: Tensor


class Tiles(Value):
    """Rows of equal weight gathered into tiles of one height, for batched matrix products.

    The rows are cut into blocks that fit a cache, each gathered and put back within it. In a block
    the rows of every segment are cut into tiles; the last one is filled up with zeros. The height
    is the one that costs the fewest operations; equal segments need no filling at all. A value,
    as :class:`Segments` are.

    Attributes:
        segments: Which rows belong together.
        height: Rows per tile.
        segment: Segment of every tile, int64 ``[t]``; tiles are sorted by block, then segment.
        rows: Row of the block in every place of a tile, int64 ``[t, height]``; one past the last
            row of a full block where there is none.
        places: Place of every row among the places of its block, int64 ``[r]``.
        blocks: Where the tiles of each block begin, int64 ``[num_blocks + 1]``.
        local: Rows sorted by segment within blocks of ``LOCAL_ROWS``, ``[r]``.
    """

    _tables: ClassVar[tuple[str, ...]] = (
        "_segment",
        "_rows",
        "_places",
        "_blocks",
        "_local",
    )
    _segment: Tensor
    _rows: Tensor
    _places: Tensor
    _blocks: Tensor
    _local: Tensor
    segments: Segments
    height: int
    is_traced = False

    def __init__(self, segments: Segments, in_channels: int, out_channels: int) -> None:
        if not isinstance(segments, Segments):
            raise TypeError(f"segments must be Segments; got {type(segments).__name__}")
        with undisturbed():
            self._fill(segments=segments, **_tiles(segments, in_channels, out_channels))

    @staticmethod
    def traced(segments: Segments) -> Tiles:
        """Tiles of :meth:`Segments.traced`: each row will have a copy of its matrix."""
        return _TracedTiles(segments)

    segment = copy_of("_segment", "Segment of every tile, ``[t]``.")
    rows = copy_of("_rows", "Row of the block in every place of a tile, ``[t, height]``.")
    places = copy_of("_places", "Place of every row among those of its block, ``[r]``.")
    blocks = copy_of("_blocks", "Where the tiles of each block begin, ``[num_blocks + 1]``.")
    local = copy_of("_local", "Rows sorted by segment within compiled blocks, ``[r]``.")

    def _all_tables(self) -> list[Tensor]:
        """Its tables and those of its segments, in the order of :class:`TileTables`."""
        index = self.segments
        own = [self._segment, self._rows, self._places, self._blocks, self._local]
        return [*own, index._index, index._order, index._pointers]

    def _moved(self, device: torch.device) -> dict[str, object]:
        return super()._moved(device) | {"segments": self.segments.to(device)}

    def __repr__(self) -> str:
        return f"Tiles({self._segment.numel()} tiles of {self.height} rows)"


class _TracedTiles(Tiles):
    _tables = ()
    is_traced = True

    def __init__(self, segments: Segments) -> None:
        self._fill(segments=segments)

    @property
    def device(self) -> torch.device:
        """Where the index lies."""
        return self.segments.device

    def __repr__(self) -> str:
        return f"Tiles.traced({self.segments})"


def _tiles(segments: Segments, in_channels: int, out_channels: int) -> dict[str, object]:
    index, k = segments._index, segments.num_segments
    device, count = index.device, index.numel()
    # Some rows of every segment in a block, lest most of the places were filled up.
    num_blocks = max(-(-count // max(BLOCK_ROWS, _ROWS_PER_SEGMENT * k)), 1)
    step = -(-count // num_blocks)
    part = torch.arange(count, device=device) // max(step, 1) * k + index
    order = torch.argsort(part, stable=True)
    parts, sizes = torch.unique_consecutive(part[order], return_counts=True)
    largest = int(sizes.max()) if count else 1
    heights = {min(2**p, largest) for p in range(13)}
    row, matrix = in_channels + out_channels, in_channels * out_channels
    h = min(heights, key=lambda h: (int((-(-sizes // h)).sum()) * (h * row + matrix), -h))
    tiles = -(-sizes // h)
    owner = torch.repeat_interleave(torch.arange(parts.numel(), device=device), tiles)
    first = (tiles.cumsum(0) - tiles)[owner]
    start = (torch.arange(owner.numel(), device=device) - first) * h
    place = start[:, None] + torch.arange(h, device=device)
    real = place < sizes[owner, None]
    place = (place + (sizes.cumsum(0) - sizes)[owner, None]).clamp(max=count - 1)
    block = parts[owner] // k
    blocks = F.pad(torch.bincount(block, minlength=num_blocks).cumsum(0), (1, 0))
    places = torch.empty_like(order)
    places[order] = real.view(-1).nonzero().view(-1)
    places -= blocks[torch.arange(count, device=device) // max(step, 1)] * h
    local = torch.arange(count, device=device) // LOCAL_ROWS * k + index
    return {
        "height": h,
        "_segment": parts[owner] % k,
        "_rows": torch.where(real, order[place] - (block * step)[:, None], step),
        "_places": places,
        "_blocks": blocks,
        "_local": torch.argsort(local, stable=True).to(index.dtype),
    }
