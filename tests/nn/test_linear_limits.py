"""What a layer refuses, and that it draws every one of its weights anew."""

from __future__ import annotations

import math

import pytest
import torch

from gsym import ClusterGroup, Partition
from gsym.nn.linear import OrbitLinear

GROUP = ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1]))


@pytest.mark.parametrize("channels", [(0, 2), (2, 0), (-1, 2)])
def test_a_layer_needs_channels(channels):
    with pytest.raises(ValueError, match="at least 1"):
        OrbitLinear(*channels, GROUP)


@pytest.mark.parametrize("mixing", ["full", "low_rank"])
def test_all_weights_are_drawn_anew(mixing):
    options = {"rank": 3} if mixing == "low_rank" else {}
    layer = OrbitLinear(4, 4, GROUP, mixing=mixing, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(math.nan)
    torch.manual_seed(0)
    layer.reset_parameters()
    first = {name: p.clone() for name, p in layer.named_parameters()}
    assert all(value.isfinite().all() for value in first.values())
    layer.reset_parameters()
    same = [name for name, p in layer.named_parameters() if torch.equal(p, first[name])]
    assert same == ["bias"]
