"""The definition of every primitive, in plain short torch: what the fast paths are tested against.

All take and return ``[..., rows, channels]`` and are meant for float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(x: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Row ``s`` of the result is the sum of the rows of ``x`` whose ``index`` is ``s``."""
    member = torch.nn.functional.one_hot(index, num_segments).to(x)
    return torch.einsum("es,...ec->...sc", member, x)


def segment_gather(y: Tensor, index: Tensor) -> Tensor:
    """Row ``e`` of the result is row ``index[e]`` of ``y``."""
    return y[..., index, :]


def indexed_linear(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Row ``r`` of the result is row ``r`` of ``x`` times ``weight[index[r]]``."""
    return torch.einsum("...ri,rio->...ro", x, weight[index])
