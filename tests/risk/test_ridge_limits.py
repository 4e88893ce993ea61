"""Which groups the closed form takes, and how much noise a reconstruction gets."""

from __future__ import annotations

import numpy as np
import pytest

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.risk.ridge import can_regress
from gsym.risk.samples import denoising


def exchanged(k):
    """Clusters of two nodes, all of them exchanged: more swaps than are applied to data."""
    return ClusterGroup(
        Partition.from_labels(np.arange(2 * k) // 2), swaps=PermutationGroup.symmetric(k)
    )


def turned(k):
    cycle = PermutationGroup.from_cycles(k, [tuple(range(k))])
    return ClusterGroup(Partition.from_labels(np.arange(2 * k) // 2), swaps=cycle)


@pytest.mark.parametrize(
    ("group", "channels", "able"),
    [
        (ClusterGroup(Partition.from_labels([0, 0, 1])), 10**6, True),  # no swaps
        (turned(3), 10**6, True),  # few swaps
        (exchanged(5), 127, True),  # 2 * 127 + 1 unknowns
        (exchanged(5), 128, False),  # 2 * 128 + 1
    ],
)
def test_the_closed_form_takes_so_many_unknowns(group, channels, able):
    assert can_regress(group, channels) is able


def test_noise_has_the_size_of_each_channel():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 40, 2)) * [1.0, 5.0] + [3.0, -20.0]
    noisy, clean = denoising(x, 0)
    np.testing.assert_allclose(clean.std((0, 1)), [1.0, 5.0], rtol=0.03)
    noise = noisy - clean
    np.testing.assert_allclose(noise.std((0, 1)), [1.0, 5.0], rtol=0.03)
    np.testing.assert_allclose(noise.mean((0, 1)), 0.0, atol=0.1)
    # Independent from channel to channel.
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.03
