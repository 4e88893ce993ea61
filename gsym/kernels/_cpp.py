"""Primitives in C++ compiled for this processor; what torch does at the speed of memory is torch's.

The compiled loops stand in ``csrc``, the operators with their derivatives in
:mod:`gsym.kernels.native`, which run the one or the other.
"""

from __future__ import annotations

from functools import partial

from gsym.kernels import native

segment_sum = native.segment_sum
segment_mean = native.segment_mean
segment_max = native.segment_max
segment_gather = native.segment_gather
gather_segment_sum = native.gather_segment_sum
indexed_linear = native.indexed_linear
grouped_linear = native.grouped_linear
cluster_linear = native.cluster_linear
permute_rows = native.permute_rows
edge_mlp_sum = partial(native.edge_mlp_sum, cpp=True)
