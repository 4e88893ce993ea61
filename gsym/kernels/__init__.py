"""The stateless primitives that every layer is built on; they see tensors only."""

from gsym.kernels.ops import Segments, Tiles, indexed_linear, segment_gather, segment_sum

__all__ = ["Segments", "Tiles", "indexed_linear", "segment_gather", "segment_sum"]
