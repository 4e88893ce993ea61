"""Raw loops in plain torch, which every machine has: the back-end that the others fall back on."""

from typing import Any

import torch

from gsym.kernels.native.edges import edge_mlp_grads, edge_mlp_sum
from gsym.kernels.native.rows import (
    gather_dot,
    gather_sum,
    indexed_linear,
    indexed_outer,
    segment_max,
    segment_sum,
    tie_spread,
)

__all__ = [
    "edge_mlp_grads",
    "edge_mlp_sum",
    "gather_dot",
    "gather_sum",
    "indexed_linear",
    "indexed_outer",
    "segment_max",
    "segment_sum",
    "takes",
    "tie_spread",
]


def takes(op: str, *given: Any, dtype: torch.dtype | None = None) -> bool:
    """Whether there is a loop of an operator: of everything, but of edges on the CPU alone."""
    return op != "edge_mlp_sum" or given[0].device.type == "cpu"
