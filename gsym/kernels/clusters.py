"""A static partition of rows into clusters, in every layout that a map of them may take."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from gsym.kernels.segments import BLOCK_ROWS, Segments, Tiles, Value, copy_of
from gsym.kernels.transforms import undisturbed

# Runs shorter than this are slower in batched products than tiles.
_SHORT_RUN = 8


class Clusters(Value):
    """A static partition of rows into clusters, none of them empty.

    Equal clusters are runs of sorted rows, which views and batched products can take; others are
    gathered tile by tile. Which is the faster depends on sizes, channels and back-end, so
    :func:`gsym.kernels.cluster_linear` chooses by itself. A value, as :class:`Segments` are.

    Args:
        labels: Cluster of every row, int64 ``[r]``.
        num_clusters: Number of clusters k.
        in_channels: Channels of the rows that are multiplied, by which the layout is chosen.
        out_channels: Channels of the products.

    Attributes:
        num_clusters: Number of clusters.
        num_rows: Number of rows.
        is_sorted: Whether the rows come sorted by cluster.
        has_runs: Whether rows sorted by cluster are equal runs that suit batched products.
        sizes: Rows of every cluster, int64 ``[k]``.
        order: Rows sorted by cluster, int64 ``[r]``.
        rank: Its inverse, the place of every row among the sorted ones.
        segments: The same as an index of rows.

    Raises:
        ValueError: An empty cluster, or labels outside ``0..num_clusters-1``.

    Example:
        >>> clusters = gsym.kernels.Clusters(torch.tensor([0, 1, 0]), 2, 4, 4)
        >>> clusters
        Clusters(3 rows, 2 clusters)
        >>> clusters.sizes.tolist(), clusters.order.tolist()
        ([2, 1], [0, 2, 1])
    """

    _tables: ClassVar[tuple[str, ...]] = ("_sizes", "_single_sizes", "_order", "_rank")
    _sizes: Tensor  # float64, by which sums are divided
    _single_sizes: Tensor  # the same in float32
    _order: Tensor
    _rank: Tensor  # inverse of the order
    _tiles: Tiles | None
    _tile_tables: list[Tensor]
    segments: Segments
    num_clusters: int
    num_rows: int
    is_sorted: bool
    has_runs: bool

    def __init__(
        self, labels: Tensor, num_clusters: int, in_channels: int, out_channels: int
    ) -> None:
        segments = Segments.from_index(labels, num_clusters)
        with undisturbed():
            counts = segments._pointers.diff().long()
            sizes: list[int] = counts.tolist()
            if 0 in sizes:
                raise ValueError(
                    f"no cluster may be empty; got {len(sizes)} clusters of {sizes[:8]} rows"
                )
            order = segments._order.long()
            has_runs = len(set(sizes)) == 1 and _suit_runs(
                sizes, in_channels, out_channels, segments.is_sorted
            )
            # With one channel the views of runs are the fastest everywhere.
            narrow = has_runs and min(in_channels, out_channels) == 1
            tiles = None if narrow else Tiles(segments, in_channels, out_channels)
            self._fill(
                segments=segments,
                num_clusters=len(sizes),
                num_rows=labels.numel(),
                is_sorted=segments.is_sorted,
                has_runs=has_runs,
                _sizes=counts.double(),
                _single_sizes=counts.float(),
                _order=order,
                _rank=torch.argsort(order),
                **_tiled(tiles),
            )

    order = copy_of("_order", "Rows sorted by cluster, ``[r]``.")

    rank = copy_of("_rank", "Place of every row among the sorted ones, ``[r]``.")

    @property
    def sizes(self) -> Tensor:
        """Rows of every cluster, int64 ``[k]``."""
        return self._sizes.long()

    def _divisors(self, dtype: torch.dtype) -> Tensor:
        """The sizes in the type in which rows of ``dtype`` are summed."""
        return self._sizes if dtype == torch.float64 else self._single_sizes

    def _in_runs(self, sorting_pays: bool) -> bool:
        """Whether rows are taken as runs, by loops to which sorted rows are worth their sorting."""
        return self.has_runs and (sorting_pays or self._tiles is None)

    def _moved(self, device: torch.device) -> dict[str, object]:
        tiles = None if self._tiles is None else self._tiles.to(device)
        segments = self.segments.to(device) if tiles is None else tiles.segments
        return super()._moved(device) | {"segments": segments} | _tiled(tiles)

    def __repr__(self) -> str:
        return f"Clusters({self.num_rows} rows, {self.num_clusters} clusters)"


def _tiled(tiles: Tiles | None) -> dict[str, object]:
    return {"_tiles": tiles, "_tile_tables": [] if tiles is None else tiles._all_tables()}


def _suit_runs(sizes: list[int], in_channels: int, out_channels: int, is_sorted: bool) -> bool:
    """Whether equal clusters are long enough for batched products.

    Else the products would be small, or the sorting would pass through memory once more.
    """
    if len(sizes) == 1 or min(in_channels, out_channels) == 1:
        return True
    size = sizes[0]
    long = size >= _SHORT_RUN and size * (in_channels + out_channels) >= in_channels * out_channels
    return long and (is_sorted or size * len(sizes) <= BLOCK_ROWS)
