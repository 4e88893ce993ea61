"""Limits met exactly, texts, and inner parts that other tests see through their results alone."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
import torch

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.errors import GraphError, PartitionError
from gsym.groups import _search, automorphism, automorphisms
from gsym.groups.refinement import ColouredGraph

# A 3-cycle of cells of two nodes, whose cells are cycles of three of the next graph.
THREE_CYCLES = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 3]])


@pytest.mark.parametrize("seed", range(5))
def test_orbits_of_permutations_are_followed_to_their_end(seed):
    rng = np.random.default_rng(seed)
    n = 40
    cycle = np.empty(n, dtype=np.int64)
    route = rng.permutation(n)
    cycle[route[:30]], cycle[route[30:]] = np.roll(route[:30], -1), np.roll(route[30:], -1)
    expected = np.empty(n, dtype=np.int64)
    expected[route[:30]], expected[route[30:]] = route[:30].min(), route[30:].min()
    labels = _search._orbit_labels([cycle.tolist()], n)
    np.testing.assert_array_equal(labels, expected)


def test_nauty_tells_the_logarithm_of_a_large_order():
    pytest.importorskip("pynauty", reason='pynauty is not installed; the extra "sym" has it')
    edges = np.array(nx.star_graph(30).edges).T
    _, size = _search._nauty(edges, np.zeros(31, dtype=np.int64))
    assert float(size["log_order"]) == pytest.approx(math.lgamma(31), rel=1e-9)


@pytest.mark.parametrize("spare", [0, -1])
def test_the_limit_on_generators_may_be_met(monkeypatch, spare):
    monkeypatch.setattr(automorphism, "MAX_GENERATOR_ENTRIES", 6 + spare)
    # The cycles 0 1 2 and 3 4 5 of different weights in one direction: one generator.
    weight = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    ends = torch.cat([THREE_CYCLES, torch.tensor([[0, 1, 2], [3, 4, 5]])], dim=1)
    weight = torch.cat([weight, torch.full((3,), 3.0)])
    found = automorphisms(ends, 6, edge_weight=weight, solver="networkx")
    assert found.exact == (spare == 0)
    assert not found.exact or found.order() == 3


def test_the_type_of_an_edge_seen_from_its_other_end():
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 4, (7, 7)) * (rng.random((7, 7)) < 0.6)
    ends = torch.from_numpy(np.stack(np.nonzero(dense)))
    weight = torch.from_numpy(dense[tuple(ends.numpy())].astype(np.float64))
    graph = ColouredGraph.from_tensors(ends, 7, weight, None)
    pairs = zip(graph.owner.tolist(), graph.neighbour.tolist(), strict=True)
    seen = dict(zip(pairs, graph.code.tolist(), strict=True))
    assert len(set(seen.values())) > 6
    for (i, j), code in seen.items():
        assert graph.reverse[code] == seen[j, i]


@pytest.mark.parametrize(
    ("clusters", "num_nodes", "message"),
    [
        ([[0, 1], [1, 3]], 4, r"nodes 0\.\.3 once each; node 1 is listed 2 times"),
        ([[0, 3], [1]], 4, r"nodes 0\.\.3 once each; node 2 is listed 0 times"),
    ],
)
def test_clusters_that_do_not_cover_the_nodes(clusters, num_nodes, message):
    with pytest.raises(PartitionError, match=message):
        Partition.from_clusters(clusters, num_nodes=num_nodes)


def partition(*sizes):
    return Partition.from_labels(np.repeat(np.arange(len(sizes)), sizes))


def test_short_texts_list_sizes_up_to_a_number():
    eight, nine = partition(2, *[1] * 7), partition(2, *[1] * 8)
    assert repr(eight) == "Partition(9 nodes in 8 clusters: 2 + 1 + 1 + 1 + 1 + 1 + 1 + 1)"
    assert repr(nine) == "Partition(10 nodes in 9 clusters of 1 to 2)"
    six, seven = (str(ClusterGroup(partition(3, *[2] * k))) for k in (5, 6))
    assert six == "S_3 x S_2 x S_2 x S_2 x S_2 x S_2"
    assert seven == "7 clusters of 2 to 3 in 15"


def test_a_fingerprint_tells_partitions_apart():
    prints = [Partition.from_labels(labels).fingerprint() for labels in ([0, 0, 1], [0, 1, 1])]
    assert all(isinstance(p, bytes) and len(p) == 32 for p in prints)
    assert prints[0] != prints[1]
    assert prints[0] == Partition.from_labels([0, 0, 1]).fingerprint()


@pytest.mark.parametrize("weight", [torch.ones(2), torch.tensor([1.0, math.nan, 1.0])])
def test_a_quotient_refuses_weights_that_fit_no_edges(weight):
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    with pytest.raises((GraphError, ValueError), match="edge_weight"):
        Partition.from_labels([0, 0, 1]).quotient(edges, weight)


def test_matrices_are_projected_over_all_leading_axes():
    cycle = PermutationGroup.from_cycles(3, [(0, 1, 2)])
    group = ClusterGroup(partition(2, 2, 2), swaps=cycle)
    matrices = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    found = group.project(matrices)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(found[i, j], group.project(matrices[i, j]))
            for perm in group.generators:
                moved = found[i, j][perm][:, perm]
                torch.testing.assert_close(moved, found[i, j])
