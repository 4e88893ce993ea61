"""Coarsenings against dense matrices: quotient, blow-up, cost, spectrum."""

import numpy as np
import pytest
import torch

from gsym import Partition
from gsym.coarsening import Coarsening, swap_group
from gsym.errors import ClusteringError, GraphError
from gsym.groups import ClusterGroup

EDGES = torch.tensor([[0, 1, 1, 2, 3], [1, 0, 2, 1, 3]])


def random_graph(n, edges, seed, *, directed=True, signed=True):
    rng = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(n, (2, edges), generator=rng)
    weight = torch.rand(edges, generator=rng, dtype=torch.float64) + 0.1
    if signed:
        weight = weight * torch.where(torch.rand(edges, generator=rng) < 0.3, -1.0, 1.0)
    if not directed:
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        weight = torch.cat([weight, weight])
    return edge_index, weight


def dense(n, edge_index, weight=None):
    weight = torch.ones(edge_index.size(1)) if weight is None else weight
    return torch.zeros(n, n, dtype=torch.float64).index_put(
        tuple(edge_index), weight.double(), accumulate=True
    )


def dense_laplacian(n, edge_index, weight):
    A = dense(n, edge_index, weight)
    A = (A + A.T) / 2
    A.fill_diagonal_(0)
    return torch.diag(A.sum(1)) - A


def random_partition(n, k, seed):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(k), torch.randint(k, (n - k,), generator=rng)])
    return Partition(labels[torch.randperm(n, generator=rng)])


@pytest.mark.parametrize("seed", range(8))
def test_cost_and_blow_up_are_those_of_the_dense_matrices(seed):
    n, k = 23, 1 + seed * 3
    p = random_partition(n, k, seed)
    # More edges than pairs: some are parallel, some are loops.
    edge_index, weight = random_graph(n, 60 if seed % 2 else 700, seed)
    c = Coarsening(p, edge_index, weight)
    indicator = torch.nn.functional.one_hot(p.labels).double()
    averaging = indicator.T / indicator.sum(0)[:, None]
    A = dense(n, edge_index, weight)
    coarse = averaging @ A @ averaging.T
    B = indicator @ coarse @ indicator.T
    assert torch.allclose(dense(k, *c.quotient), coarse)
    assert torch.allclose(dense(n, *c.blow_up()), B)
    assert c.blow_up()[0].size(1) == torch.unique(c.blow_up()[0], dim=1).size(1)
    assert c.cost == pytest.approx(float((A - B).norm() / A.norm()), rel=1e-12)


def test_cost_sees_a_wrong_partition():
    edge_index = torch.tensor([[0, 1, 0, 1], [2, 2, 3, 3]])
    assert Coarsening(Partition.from_labels([0, 0, 1, 1]), edge_index).cost == 0
    assert Coarsening(Partition.from_labels([0, 1, 0, 1]), edge_index).cost > 0.5


def test_cost_loses_no_digits_where_the_blow_up_is_close():
    edge_index = torch.tensor([[0, 1, 0, 1], [2, 2, 3, 3]])
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0 + 1e-9], dtype=torch.float64)
    c = Coarsening(Partition.from_labels([0, 0, 1, 1]), edge_index, weight)
    assert c.cost == pytest.approx(1e-9 * 0.75**0.5 / 2, rel=1e-5)


def test_cost_at_the_ends():
    edge_index, weight = random_graph(9, 30, 0)
    assert Coarsening(Partition.singletons(9), edge_index, weight).cost == 0
    assert Coarsening(Partition.single(9), torch.empty(2, 0, dtype=torch.int64)).cost == 0
    cancelled = torch.tensor([[0, 0], [1, 1]]), torch.tensor([1.0, -1.0])
    assert Coarsening(Partition.single(2), *cancelled).cost == 0


@pytest.mark.parametrize("seed", range(4))
def test_eigenvalues_move_up_by_as_much_as_dense_ones(seed):
    n, k = 30, 6 + seed
    p = random_partition(n, k, seed)
    edge_index, weight = random_graph(n, 90, seed, signed=False)
    c = Coarsening(p, edge_index, weight)
    L = dense_laplacian(n, edge_index, weight)
    C = torch.nn.functional.one_hot(p.labels).double().T / torch.tensor(p.sizes).sqrt()[:, None]
    assert torch.allclose(C @ C.T, torch.eye(k, dtype=torch.float64))
    expected = torch.linalg.eigvalsh(C @ L @ C.T) - torch.linalg.eigvalsh(L)[:k]
    assert torch.allclose(c.eigenvalue_shift(k), expected, atol=1e-10)
    assert c.eigenvalue_shift(3).shape == (3,)
    assert float(expected.min()) > -1e-10 and float(expected.max()) > 0.1


def test_eigenvalues_of_a_large_graph_come_from_the_sparse_solver():
    n = 900
    path = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    c = Coarsening(Partition(torch.arange(n) // 2), path)
    # The Laplacian of a path with weights 1/2, and of one half as long: C L C^T of its pairs.
    fine = 1 - np.cos(np.pi * np.arange(8) / n)
    coarse = (1 - np.cos(np.pi * np.arange(8) / (n // 2))) / 2
    assert np.allclose(c.eigenvalue_shift(8).numpy(), coarse - fine, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_restricted_approximation_is_the_largest_ratio(seed):
    n, k = 26, 5
    p = random_partition(n, 12, seed)
    edge_index, weight = random_graph(n, 80, seed, signed=False)
    c = Coarsening(p, edge_index, weight)
    L = dense_laplacian(n, edge_index, weight)
    values, vectors = torch.linalg.eigh(L)
    components = int((values < 1e-10).sum())
    U = vectors[:, components : components + k]
    mean = ClusterMean(p)
    X = torch.randn(2000, k, generator=torch.Generator().manual_seed(seed)).double() @ U.T
    energy = ((X @ L) * X).sum(1)
    lost = X - mean(X)
    ratio = (((lost @ L) * lost).sum(1) / energy).sqrt()
    epsilon = c.restricted_approximation(k)
    assert float(ratio.max()) <= epsilon * (1 + 1e-9)
    # The eigenvector of the generalised problem reaches it.
    S = torch.diag(values[components : components + k] ** -0.5)
    M = (
        S
        @ U.T
        @ (torch.eye(n) - mean(torch.eye(n).double()))
        @ vectors
        @ torch.diag(values.clamp(min=0).sqrt())
    )
    assert epsilon == pytest.approx(float(torch.linalg.matrix_norm(M @ vectors.T, 2)), rel=1e-9)


class ClusterMean:
    """The projection on signals that are constant on clusters, row by row."""

    def __init__(self, partition):
        indicator = torch.nn.functional.one_hot(partition.labels).double()
        self.matrix = indicator @ (indicator.T / indicator.sum(0)[:, None])

    def __call__(self, X):
        return X @ self.matrix


def test_restricted_approximation_bounds_the_eigenvalues():
    # Loukas, section 3: lambda~_k <= (1 + e)^2 / (1 - e^2 lambda_k / lambda_2) lambda_k, here
    # counted from 1 after the constant. Dense blocks with few edges between them keep e small.
    rng = torch.Generator().manual_seed(0)
    p = Partition(torch.arange(48) // 8)
    same = p.labels[:, None] == p.labels
    A = torch.where(same, 1.0, (torch.rand(48, 48, generator=rng) < 0.03) * 0.1)
    edge_index = A.triu(1).nonzero().T
    weight = A[tuple(edge_index)]
    c = Coarsening(p, edge_index, weight)
    fine = torch.linalg.eigvalsh(dense_laplacian(48, edge_index, weight))
    for k in range(1, 6):
        epsilon, value = c.restricted_approximation(k), float(fine[k])
        room = 1 - epsilon**2 * value / float(fine[1])
        assert epsilon > 0.01 and room > 0
        coarse = value + float(c.eigenvalue_shift(k + 1)[k])
        assert value <= coarse <= (1 + epsilon) ** 2 / room * value


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda c: c.eigenvalue_shift(3), r"k must lie in 1\.\.2, the number of clusters; got 3"),
        (lambda c: c.eigenvalue_shift(0), "got 0"),
        (lambda c: c.restricted_approximation(3), r"1\.\.2, nodes minus connected comp.*got 3"),
        (lambda c: Coarsening(c.partition).quotient, "no graph; build it with edge_index="),
        (lambda c: Coarsening(c.partition).cost, "no graph"),
        (
            lambda c: Coarsening(
                c.partition, EDGES, torch.tensor([1.0, 1, -2, 1, 1])
            ).eigenvalue_shift(1),
            "between nodes 1 and 2 have weight -1",
        ),
    ],
)
def test_what_cannot_be_had_is_said(action, message):
    with pytest.raises(ClusteringError, match=message):
        action(Coarsening(Partition.from_labels([0, 0, 1, 1]), EDGES))


def test_a_blow_up_too_large_is_refused():
    n = 20_000
    c = Coarsening(Partition.single(n), torch.tensor([[0], [1]]))
    with pytest.raises(ClusteringError, match="has 400000000 entries"):
        c.blow_up()
    assert 0.99 < c.cost < 1


def test_the_graph_is_checked():
    with pytest.raises(GraphError, match="edge 0 names node 4"):
        Coarsening(Partition.single(4), torch.tensor([[4], [0]]))
    with pytest.raises(GraphError, match="one number for each of 5 edges"):
        Coarsening(Partition.single(4), EDGES, torch.ones(4))
    with pytest.raises(GraphError, match="weight of edge 2 is nan"):
        weight = torch.tensor([1.0, 1, float("nan"), 1, 1])
        assert Coarsening(Partition.single(4), EDGES, weight).cost is None


def test_repr_tells_sizes_and_cost():
    c = Coarsening(Partition.from_labels([0, 0, 1, 1]), EDGES)
    assert repr(c) == f"Coarsening(4 nodes in 2 clusters of 2, cost {c.cost:.3g})"
    assert repr(Coarsening(c.partition)) == "Coarsening(4 nodes in 2 clusters of 2, no graph)"


class TestSwaps:
    def ring_of_blocks(self, blocks, size):
        """Blocks in a directed ring, complete between neighbours: rotations, no reflections."""
        node = torch.arange(blocks * size).view(blocks, size)
        ends = [torch.cartesian_prod(node[b], node[(b + 1) % blocks]).T for b in range(blocks)]
        return torch.cat(ends, dim=1), Partition(torch.arange(blocks).repeat_interleave(size))

    def test_rotations_of_a_ring_of_blocks(self):
        edge_index, p = self.ring_of_blocks(5, 3)
        swaps = swap_group(Coarsening(p, edge_index))
        assert swaps.order() == 5
        assert swaps.contains([1, 2, 3, 4, 0]) and not swaps.contains([4, 3, 2, 1, 0])
        assert ClusterGroup(p, swaps=swaps).preserves(edge_index)

    def test_sizes_and_weights_break_it(self):
        edge_index, p = self.ring_of_blocks(3, 2)
        heavy = torch.where(edge_index[0] < 2, 2.0, 1.0)
        assert swap_group(Coarsening(p, edge_index, heavy)) is None
        uneven = Partition.from_labels([0, 0, 1, 1, 2, 2, 2])
        assert swap_group(Coarsening(uneven, torch.empty(2, 0, dtype=torch.int64))).order() == 2

    def test_weights_that_round_differently_are_equal(self):
        edge_index, p = self.ring_of_blocks(3, 3)
        weight = torch.full((27,), 0.1, dtype=torch.float64)
        weight[:9] = 0.1 + 1e-15
        assert swap_group(Coarsening(p, edge_index, weight)).order() == 3

    def test_nothing_to_exchange(self):
        assert swap_group(Coarsening(Partition.single(4), EDGES)) is None
        assert swap_group(Coarsening(Partition.singletons(600), EDGES)) is None


def test_no_graph_gives_no_swaps():
    assert swap_group(Coarsening(Partition.from_labels([0, 0, 1, 1]))) is None
