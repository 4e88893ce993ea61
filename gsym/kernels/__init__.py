"""The stateless primitives that every layer is built on; they see tensors only."""

from gsym.kernels.ops import (
    Segments,
    Tiles,
    cluster_linear,
    grouped_linear,
    indexed_linear,
    permute_rows,
    segment_gather,
    segment_mean,
    segment_sum,
)

__all__ = [
    "Segments",
    "Tiles",
    "cluster_linear",
    "grouped_linear",
    "indexed_linear",
    "permute_rows",
    "segment_gather",
    "segment_mean",
    "segment_sum",
]
