"""Memory for large results, from huge pages where the system gives them to those who ask.

A fresh page costs a fault, and to take one for every 4 KiB of a result takes longer than to fill
it. NumPy asks for huge pages, torch only if set to do so before it starts.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# From here on NumPy asks.
_LARGE = 2**22
# Where torch begins its own tensors.
_ALIGNMENT = 64


def new_empty(x: Tensor, *shape: int) -> Tensor:
    """As ``x.new_empty(shape)``, for a result that is about to be written as a whole."""
    count = math.prod(shape)
    size = count * x.element_size()
    if size < _LARGE or x.device.type != "cpu":
        return x.new_empty(shape)
    memory = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    start = -memory.__array_interface__["data"][0] % _ALIGNMENT
    flat = torch.frombuffer(memory, dtype=x.dtype, count=count, offset=start)
    return flat.resize_(shape)  # in place: a view would remember what it is a view of


def new_zeros(x: Tensor, *shape: int) -> Tensor:
    """As ``x.new_zeros(shape)``."""
    return new_empty(x, *shape).zero_()


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """As ``x.index_select(-2, index)``."""
    out = new_empty(x, *x.shape[:-2], index.numel(), x.size(-1))
    return torch.index_select(x.contiguous(), -2, index, out=out)
