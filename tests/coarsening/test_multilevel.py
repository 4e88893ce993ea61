"""Local variation against its dense definition, and what the matching promises."""

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
import torch
from oracles.variation import local_variation
from scipy.sparse import csr_array

from gsym import Partition
from gsym.coarsening import Coarsening, Hierarchy
from gsym.coarsening._graph import energy_basis
from gsym.coarsening.methods.multilevel import (
    Matching,
    local_variation_merges,
    normalised_cut_merges,
    pair_variation,
)


def random_graph(n, seed):
    g = nx.connected_watts_strogatz_graph(n, 4, 0.3, seed=seed)
    A = nx.to_numpy_array(g)
    rng = np.random.default_rng(seed)
    A *= np.triu(rng.uniform(0.1, 2, A.shape), 1)
    return csr_array(A + A.T)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_agree_with_the_definition_on_sets(seed):
    A, rng = random_graph(20, seed), np.random.default_rng(seed)
    mass, X = rng.integers(1, 5, 20).astype(float), rng.standard_normal((20, 6))
    left, right = np.argwhere(np.triu(A.toarray(), 1)).T
    fast = pair_variation(A, mass, X, left, right, A.toarray()[left, right])
    slow = [local_variation(A, mass, X, np.array(pair)) for pair in zip(left, right, strict=True)]
    assert np.allclose(fast, slow, rtol=1e-12)
    assert fast.std() > 0.1


def test_definition_on_a_set_of_three():
    # A path 0-1-2-3 with weights 1, 2, 3; merging 0, 1, 2 with masses 1, 1, 2 and X = node number:
    # mean 5/4, moved (-5/4, -1/4, 3/4); edges inside once, the edge to 3 twice; over |C| - 1 = 2.
    A = csr_array(np.diag([1.0, 2, 3], 1) + np.diag([1.0, 2, 3], -1))
    X = np.arange(4.0)[:, None]
    value = local_variation(A, np.array([1.0, 1, 2, 1]), X, np.array([0, 1, 2]))
    assert value == pytest.approx((1 * 1 + 2 * 1 + 2 * 3 * (3 / 4) ** 2) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_composed_averages_are_plain_means(seed):
    A, rng = random_graph(24, seed), np.random.default_rng(seed)
    levels, P = Matching(A), np.eye(24)
    for _ in range(4):
        left, right, weight = levels.edges()
        pairs = levels.match(rng.random(weight.size), rng)
        P = levels.merge(left[pairs], right[pairs]) @ P
    sizes = (P > 0).sum(axis=1)
    assert sizes.tolist() == levels.mass.tolist() and len(set(sizes)) > 1
    assert np.allclose(P, (P > 0) / sizes[:, None])
    # Coarse weights are sums: the coarse Laplacian is P^+T L P^+ with the indicator P^+.
    indicator = (P > 0).astype(float)
    coarse = indicator @ A.toarray() @ indicator.T
    np.fill_diagonal(coarse, 0)
    assert np.allclose(levels.A.toarray(), coarse)


def test_matching_is_greedy_and_maximal():
    A = random_graph(30, 0)
    levels = Matching(A)
    left, right, weight = levels.edges()
    chosen = levels.match(-weight, np.random.default_rng(0))
    nodes = np.concatenate([left[chosen], right[chosen]])
    assert np.unique(nodes).size == nodes.size
    # An edge is left out only for a cheaper one that shares a node.
    for edge in set(range(weight.size)) - set(chosen.tolist()):
        rivals = [e for e in chosen if {left[e], right[e]} & {left[edge], right[edge]}]
        assert max(weight[rivals]) >= weight[edge]
    assert (np.diff(weight[chosen]) <= 0).all()


def test_heights_are_the_summed_variation_of_each_merge():
    A = random_graph(16, 1)
    merges, heights = local_variation_merges(A, seed=0)
    assert merges.shape == (15, 2) and (np.diff(heights) >= 0).all()
    # The first level is that of the original graph: unit masses, X = U Lambda^(-1/2).
    X = energy_basis(A, 10)
    first = [local_variation(A, np.ones(16), X, pair) for pair in merges[:4]]
    assert np.allclose(heights[:4], np.cumsum(first), rtol=1e-9)


def test_local_variation_keeps_the_spectrum_better_than_heavy_edges():
    A = csr_array(nx.to_numpy_array(nx.random_geometric_graph(120, 0.17, seed=4)))
    assert nx.is_connected(nx.from_scipy_sparse_array(A))
    ours = Hierarchy.from_merges(120, *local_variation_merges(A, seed=0))[60]
    *heavy, _ = normalised_cut_merges(A, seed=0)
    heavy = Hierarchy.from_merges(120, *heavy)[60]
    epsilon = [Coarsening(p, A).restricted_approximation(8) for p in (ours, heavy)]
    assert epsilon[0] < 0.8 * epsilon[1]


def test_a_level_of_heavy_edges_halves_a_path_at_least_by_a_third():
    n = 64
    A = csr_array(np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1))
    merges, heights, counts = normalised_cut_merges(A, seed=0)
    assert counts[0] == n and counts[-1] == 1 and merges.shape == (n - 1, 2)
    # A maximal matching of a path leaves at most one node in three alone.
    assert all(fine / 2 <= coarse <= 2 * fine / 3 + 1 for fine, coarse in pairwise(counts))
    assert np.array_equal(np.bincount(heights.astype(int))[1:], -np.diff(counts))


def test_components_without_edges_are_joined_last():
    A = csr_array(np.kron(np.eye(3), np.ones((2, 2)) - np.eye(2)))
    merges, heights, counts = normalised_cut_merges(A, seed=0)
    assert counts == [6, 3] and np.isinf(heights).sum() == 2
    assert Hierarchy.from_merges(6, merges, heights)[3] == Partition(torch.arange(6) // 2)
