"""The primitives in Triton, for CUDA; imported on first use, because the package is optional.

PyTorch brings Triton along on Linux with CUDA. ``TRITON_INTERPRET=1``, set before Triton is
imported, runs the same kernels slowly on the CPU.

:mod:`gsym.kernels._triton_rows` holds reductions of rows and products with tied matrices,
:mod:`gsym.kernels._triton_edges` the edge pipeline. Nothing is added by atomics, so the same inputs
give the same bits. Gathers, permutations and products of equal groups are single library kernels
in plain torch already, so they are those of :mod:`gsym.kernels.native`.
"""

from functools import partial

from gsym.kernels._subgraph_maps import Verbs, compose
from gsym.kernels._triton_edges import edge_mlp_sum
from gsym.kernels._triton_rows import (
    INTERPRETED,
    cluster_linear,
    gather_segment_sum,
    indexed_linear,
    segment_gather,
    segment_max,
    segment_mean,
    segment_sum,
)
from gsym.kernels.native import grouped_linear, linear_pair, permute_rows, row_mlp

subgraph_linear = partial(
    compose,
    Verbs(segment_sum, segment_gather, gather_segment_sum, indexed_linear, permute_rows),
)

__all__ = [
    "INTERPRETED",
    "cluster_linear",
    "edge_mlp_sum",
    "gather_segment_sum",
    "grouped_linear",
    "indexed_linear",
    "linear_pair",
    "permute_rows",
    "row_mlp",
    "segment_gather",
    "segment_max",
    "segment_mean",
    "segment_sum",
    "subgraph_linear",
]
