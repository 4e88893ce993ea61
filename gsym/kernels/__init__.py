"""The stateless primitives that every layer is built on; they see tensors only."""

from gsym.kernels._backends import backend, trace
from gsym.kernels._cluster_ops import cluster_linear, mix_clusters, takes_sorted
from gsym.kernels._subgraph_ops import subgraph_linear
from gsym.kernels.clusters import Clusters
from gsym.kernels.ops import (
    edge_mlp_sum,
    gather_segment_sum,
    grouped_linear,
    indexed_linear,
    linear_pair,
    permute_rows,
    row_mlp,
    segment_gather,
    segment_max,
    segment_mean,
    segment_sum,
)
from gsym.kernels.segments import Segments, Tiles

__all__ = [
    "Clusters",
    "Segments",
    "Tiles",
    "backend",
    "cluster_linear",
    "edge_mlp_sum",
    "gather_segment_sum",
    "grouped_linear",
    "indexed_linear",
    "linear_pair",
    "mix_clusters",
    "permute_rows",
    "row_mlp",
    "segment_gather",
    "segment_max",
    "segment_mean",
    "segment_sum",
    "subgraph_linear",
    "takes_sorted",
    "trace",
]
