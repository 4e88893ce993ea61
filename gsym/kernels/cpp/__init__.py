"""Raw loops in C++ compiled for this processor; the sources stand in ``csrc``.

They need a compiler once, or a library built ahead: see :mod:`gsym.kernels.cpp.library`.
"""

from typing import Any

import torch

from gsym.kernels.cpp.adapted import adapted_linear, adapted_linear_grads
from gsym.kernels.cpp.edges import edge_mlp_grads, edge_mlp_sum
from gsym.kernels.cpp.library import NUMBER_TYPES
from gsym.kernels.cpp.lifted import (
    are_lifted_maps,
    graph_spread,
    graph_sums,
    lifted_maps,
    lifted_maps_grads,
)
from gsym.kernels.cpp.nodes import (
    are_whole_vectors,
    linear_pair,
    linear_pair_grads,
    row_mlp,
    row_mlp_grads,
)
from gsym.kernels.cpp.norms import elu_norm, elu_norm_grads
from gsym.kernels.cpp.pairs import are_few_weights, subgraph_linear, subgraph_linear_grads
from gsym.kernels.cpp.rows import (
    gather_dot,
    gather_sum,
    indexed_linear,
    indexed_outer,
    segment_max,
    segment_sum,
    tie_spread,
)
from gsym.kernels.cpp.steps import egnn_step, egnn_step_grads

__all__ = [
    "adapted_linear",
    "adapted_linear_grads",
    "edge_mlp_grads",
    "edge_mlp_sum",
    "egnn_step",
    "egnn_step_grads",
    "elu_norm",
    "elu_norm_grads",
    "gather_dot",
    "gather_sum",
    "graph_spread",
    "graph_sums",
    "indexed_linear",
    "indexed_outer",
    "lifted_maps",
    "lifted_maps_grads",
    "linear_pair",
    "linear_pair_grads",
    "row_mlp",
    "row_mlp_grads",
    "segment_max",
    "segment_sum",
    "subgraph_linear",
    "subgraph_linear_grads",
    "takes",
    "tie_spread",
]


# Whose channels are multiples of the SIMD width.
_WHOLE = ("row_mlp", "linear_pair", "egnn_step", "elu_norm", "adapted_linear")


def takes(op: str, *given: Any, dtype: torch.dtype | None = None) -> bool:
    """Whether there is a loop of an operator for these tensors.

    They are float32 alone or float64 alone, but for edges and subgraphs, whose numbers are
    converted. Products that all rows share take multiples of the SIMD width.
    """
    if op == "edge_mlp_sum":
        return True
    if op == "subgraph_linear":
        return are_few_weights(given)
    if dtype is None:
        for x in given:
            if x is not None and x.dtype != dtype:
                if dtype is not None:
                    return False
                dtype = x.dtype
    if dtype not in NUMBER_TYPES:
        return False
    if op == "lifted_maps":
        return are_lifted_maps(given)
    return op not in _WHOLE or are_whole_vectors(given)
