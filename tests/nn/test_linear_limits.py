"""What a layer refuses, and that it draws every one of its weights anew."""

from __future__ import annotations

import math

import pytest
import torch

from gsym import ClusterGroup, Partition, PermutationGroup
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


@pytest.fixture
def quotient():
    """Six clusters of one to two nodes in a ring, turned by two thirds of it."""
    partition = Partition.from_labels([0, 0, 1, 2, 2, 3, 4, 4, 5])
    turn = PermutationGroup.from_cycles(6, [(0, 2, 4), (1, 3, 5)])
    ring = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6])
    edges = torch.cat([ring, ring.flip(0)], dim=1)
    group = ClusterGroup(partition, swaps=turn)
    return OrbitLinear(2, 3, group, mixing="quotient", cluster_edge_index=edges)


def test_a_quotient_shares_the_variance_by_size_and_by_orbit(quotient):
    mixing = quotient.mixing
    tables = mixing._tables(torch.device("cpu"))
    sizes = torch.tensor(quotient.group.partition.sizes)
    edges = list(zip(*mixing.coarse.tolist(), tables.pairs.index.tolist(), strict=True))
    for number, (target, source, orbit) in enumerate(edges):
        reached = sum(int(sizes[s]) for t, s, _ in edges if t == target)
        coherent = sum(t == target and o == orbit for t, _, o in edges)
        expected = int(sizes[source]) / reached / coherent
        assert tables.spread[number].item() == pytest.approx(expected)


def test_the_own_part_is_taken_off_the_pairs_of_a_cluster_with_itself(quotient):
    mixing = quotient.mixing
    before, own = mixing.weight.detach().clone(), torch.randn(1, 2, 3).expand(6, -1, -1)
    with torch.no_grad():
        mixing.subtract(own)
    orbit = mixing._tables(torch.device("cpu")).pairs.index
    target, source = mixing.coarse
    looped = set(orbit[target == source].tolist())
    assert 0 < len(looped) < len(before)
    for number, (old, new) in enumerate(zip(before, mixing.weight.detach(), strict=True)):
        torch.testing.assert_close(new, old - own[0] if number in looped else old)
