"""Primitives in C++ compiled for this processor.

The compiled loops stand in ``csrc``, the operators with their derivatives in
:mod:`gsym.kernels.native`, which run the one or the other.
"""

from __future__ import annotations

from functools import partial

from gsym.kernels import native

segment_sum = partial(native.segment_sum, cpp=True)
segment_mean = partial(native.segment_mean, cpp=True)
segment_max = partial(native.segment_max, cpp=True)
segment_gather = partial(native.segment_gather, cpp=True)
gather_segment_sum = partial(native.gather_segment_sum, cpp=True)
indexed_linear = partial(native.indexed_linear, cpp=True)
grouped_linear = native.grouped_linear
cluster_linear = partial(native.cluster_linear, cpp=True)
row_mlp = partial(native.row_mlp, cpp=True)
linear_pair = partial(native.linear_pair, cpp=True)
permute_rows = native.permute_rows
edge_mlp_sum = partial(native.edge_mlp_sum, cpp=True)
subgraph_linear = partial(native.subgraph_linear, cpp=True)
