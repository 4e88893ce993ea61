"""Twins against their definition: the exchange of the two is a symmetry."""

import numpy as np
import pytest
import torch

from gsym import ClusterGroup, Partition
from gsym.coarsening.methods.symmetries import twin_partition
from gsym.groups import automorphism


def slow_twins(A):
    n = A.size(0)
    labels = list(range(n))
    for i in range(n):
        for j in range(i + 1, n):
            swap = torch.arange(n)
            swap[[i, j]] = torch.tensor([j, i])
            if torch.equal(A[swap][:, swap], A):
                labels[j] = labels[i]
    return Partition.from_labels(labels, relabel=True)


def random_adjacency(seed):
    """Blocks of twins of every kind: open, closed, with loops, directed, weighted, disturbed."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (11,), generator=rng)
    kinds = 2 if seed % 2 else 3
    block = torch.randint(kinds, (4, 4), generator=rng).double()
    if seed % 3 == 0:
        block = block.triu() + block.triu(1).T
    A = block[labels][:, labels]
    loops = torch.randint(kinds, (4,), generator=rng).double()[labels]
    A[range(11), range(11)] = loops if seed % 4 else torch.zeros(11).double()
    if seed % 5 == 0:
        A[0, 1] += 1
    return A


@pytest.mark.parametrize("seed", range(40))
def test_twins_are_those_of_the_definition(seed):
    A = random_adjacency(seed)
    edge_index = A.nonzero().T
    found = twin_partition(edge_index, 11, A[tuple(edge_index)])
    assert found == slow_twins(A)
    assert ClusterGroup(found).preserves(edge_index, A[tuple(edge_index)])


def test_the_cases_hold_twins_and_others():
    counts = [slow_twins(random_adjacency(seed)).num_clusters for seed in range(40)]
    assert min(counts) == 3 and max(counts) == 6


def test_parallel_edges_are_one_edge():
    edge_index = torch.tensor([[0, 0, 1], [2, 2, 2]])
    assert twin_partition(edge_index, 3).num_clusters == 3
    assert twin_partition(edge_index, 3, torch.tensor([1.0, 1.0, 2.0])).sizes == (2, 1)


def test_large_families():
    n = 20_000
    star = torch.stack([torch.zeros(n, dtype=torch.int64), torch.arange(1, n + 1)])
    assert twin_partition(star, n + 1).sizes == (1, n)
    assert twin_partition(torch.empty(2, 0, dtype=torch.int64), 7) == Partition.single(7)
    complete = (1 - torch.eye(60)).nonzero().T
    assert twin_partition(complete, 60) == Partition.single(60)


def test_a_collision_of_hashes_is_noticed(monkeypatch):
    path = torch.tensor([[0, 1, 2], [1, 2, 3]])
    by_hash, salts = automorphism._twins_by_hash, []

    def unlucky(graph, salt):
        salts.append(salt)
        return np.zeros(4, dtype=np.int64) if salt == 0 else by_hash(graph, salt)

    monkeypatch.setattr(automorphism, "_twins_by_hash", unlucky)
    assert twin_partition(path, 4) == Partition.singletons(4)
    assert salts == [0, 1]
