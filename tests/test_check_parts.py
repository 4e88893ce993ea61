"""Parts of the checks that the layers at hand do not tell apart."""

from __future__ import annotations

import torch

from gsym.check import layer as checks


def test_only_floating_point_tensors_are_cast():
    index = torch.tensor([[0, 1], [1, 0]])
    assert checks._cast(torch.ones(2), torch.float64).dtype == torch.float64
    assert checks._cast(index, torch.float64) is index
    for value in (None, "text", 2, [1.0]):
        assert checks._cast(value, torch.float64) is value
