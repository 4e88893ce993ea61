"""Raw loops in Triton, for CUDA; imported on first use, because the package is optional.

PyTorch brings Triton along on Linux with CUDA. ``TRITON_INTERPRET=1``, set before Triton is
imported, runs the same kernels slowly on the CPU. Nothing is added by atomics, so the same inputs
give the same bits.
"""

from typing import Any

import torch

from gsym.kernels.triton.edges import edge_mlp_grads, edge_mlp_sum, fits
from gsym.kernels.triton.launch import INTERPRETED
from gsym.kernels.triton.rows import (
    gather_dot,
    gather_sum,
    indexed_linear,
    indexed_outer,
    segment_max,
    segment_sum,
    tie_spread,
)

__all__ = [
    "INTERPRETED",
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
    """Whether there is a loop of an operator: always, but for edges too wide for registers."""
    return op != "edge_mlp_sum" or fits(given[0])
