"""Raw loops of the package torch-scatter; imported on first use, because it is optional.

It has reductions of segments alone. Only values come from it, as its own gradients give a wrong
second derivative without a word.
"""

from __future__ import annotations

import torch
import torch_scatter
from torch import Tensor

from gsym.kernels._plain import accumulation_type


def takes(op: str, *given: object, dtype: torch.dtype | None = None) -> bool:
    """Whether there is a loop of an operator for these tensors: always."""
    return True


def segment_sum(
    x: Tensor, index: Tensor, order: Tensor, pointers: Tensor, dtype: torch.dtype
) -> Tensor:
    # The package adds up half precision as it is.
    return _reduce(x.to(accumulation_type(x.dtype)), order, pointers, "sum").to(dtype)


def segment_max(x: Tensor, index: Tensor, order: Tensor, pointers: Tensor) -> Tensor:
    return _reduce(x, order, pointers, "max")


def _reduce(x: Tensor, order: Tensor, pointers: Tensor, how: str) -> Tensor:
    return torch_scatter.segment_csr(x.index_select(-2, order), pointers.long()[None], reduce=how)
