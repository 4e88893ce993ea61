"""Colour refinement against its definition, round by round in plain Python."""

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsym import Partition
from gsym.errors import GraphError, PartitionError
from gsym.groups import _search, equitable_partition


def reference(edge_index, num_nodes, edge_weight=None, node_labels=None, start=None):
    """Every node tells its colour to all others until no cell splits: O(n^3), the definition."""
    A = [[None] * num_nodes for _ in range(num_nodes)]
    weights = [1.0] * edge_index.size(1) if edge_weight is None else edge_weight.tolist()
    for (i, j), w in zip(edge_index.t().tolist(), weights, strict=True):
        A[i][j] = (A[i][j] or 0.0) + w if A[i][j] is not None else w
    colour = [
        (
            None if node_labels is None else node_labels[i],
            None if start is None else int(start.labels[i]),
            str(A[i][i]),
        )
        for i in range(num_nodes)
    ]
    cells = 0
    while len(set(colour)) > cells:
        cells = len(set(colour))
        names = {c: k for k, c in enumerate(sorted(set(colour), key=str))}
        colour = [names[c] for c in colour]
        colour = [
            (
                colour[i],
                tuple(
                    sorted(
                        (str(A[i][j]), str(A[j][i]), colour[j])
                        for j in range(num_nodes)
                        if j != i and (A[i][j] is not None or A[j][i] is not None)
                    )
                ),
            )
            for i in range(num_nodes)
        ]
    names = {}
    return Partition.from_labels([names.setdefault(c, len(names)) for c in colour])


def random_graph(rng, max_nodes=9):
    """Edges, weights, labels: sparse enough for several rounds, with parallel edges and loops."""
    n = int(rng.integers(1, max_nodes + 1))
    edges = torch.from_numpy(rng.integers(0, n, (2, int(rng.integers(0, 2 * n)))))
    if rng.random() < 0.5:
        edges = torch.cat([edges, edges.flip(0)], 1)
    weight = None
    if rng.random() < 0.5:
        weight = torch.from_numpy(rng.integers(-1, 2, edges.size(1)).astype(np.float64))
    labels = rng.integers(5, 7, n).tolist() if rng.random() < 0.3 else None
    return edges, n, weight, labels


def both_ways(graph):
    graph = nx.convert_node_labels_to_integers(graph)
    edges = torch.tensor(list(graph.edges), dtype=torch.int64).reshape(-1, 2).t()
    return torch.cat([edges, edges.flip(0)], 1), len(graph)


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    edges, n, weight, labels = random_graph(rng)
    start = Partition.from_labels(rng.integers(0, 2, n), relabel=True)
    for begin in (None, start):
        found = equitable_partition(edges, n, weight, labels, begin)
        assert found == reference(edges, n, weight, labels, begin)
        if begin is not None:
            assert found.refines(begin)


@pytest.mark.parametrize(
    ("graph", "sizes"),
    [
        (nx.path_graph(1001), [2] * 500 + [1]),
        (nx.star_graph(20000), [1, 20000]),
        (nx.grid_2d_graph(28, 28), [4] * 14 + [8] * 91),
        (nx.frucht_graph(), [12]),
        (nx.petersen_graph(), [10]),
        (nx.empty_graph(5), [5]),
        (nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(5)), [8]),
        (nx.balanced_tree(3, 4), [1, 3, 9, 27, 81]),
    ],
    ids=str,
)
def test_cell_sizes(graph, sizes):
    assert sorted(equitable_partition(*both_ways(graph)).sizes) == sorted(sizes)


@pytest.mark.parametrize("seed", range(3))
def test_every_block_of_a_larger_graph_has_equal_row_sums(seed):
    rng = np.random.default_rng(seed)
    edges, n, weight, labels = random_graph(rng, 400)
    found = equitable_partition(edges, n, weight, labels)
    value = torch.ones(edges.size(1), dtype=torch.float64) if weight is None else weight
    A = torch.zeros(n, n, dtype=torch.float64).index_put_(tuple(edges), value, accumulate=True)
    onto = torch.nn.functional.one_hot(found.labels).double()
    for sums in (A @ onto, A.t() @ onto):
        first = torch.stack([sums[nodes[0]] for nodes in found.clusters()])
        assert torch.equal(sums, first[found.labels])


def test_directions_weights_and_loops_tell_nodes_apart():
    arc = torch.tensor([[0], [1]])
    assert equitable_partition(arc, 2).num_clusters == 2
    edge = torch.tensor([[0, 1], [1, 0]])
    assert equitable_partition(edge, 2).num_clusters == 1
    assert equitable_partition(edge, 2, torch.tensor([1.0, 2.0])).num_clusters == 2
    loop = torch.tensor([[0, 1, 0], [1, 0, 0]])
    assert equitable_partition(loop, 2).num_clusters == 2
    assert equitable_partition(edge, 2, node_labels=[7, -3]).num_clusters == 2
    # An edge of weight zero is no missing edge, and -0 is 0.
    two = torch.tensor([[0, 1, 2], [1, 2, 0]])
    assert equitable_partition(two, 3, torch.tensor([0.0, -0.0, 0.0])).num_clusters == 1
    assert equitable_partition(two[:, :2], 3, torch.zeros(2)).num_clusters == 3


def test_colliding_hashes_are_found_out(monkeypatch):
    """The first salt hashes every neighbourhood alike; the answer does not change."""
    honest, salts = _search.mix, []

    def weak(salt, *columns):
        salts.append(salt)
        return honest(salt, *columns) if salt else np.ones(columns[0].shape, dtype=np.uint64)

    edges, n = both_ways(nx.krackhardt_kite_graph())
    expected = equitable_partition(edges, n)
    monkeypatch.setattr(_search, "mix", weak)
    assert equitable_partition(edges, n) == expected == reference(edges, n)
    assert {0, 1} <= set(salts)
    # A control: taken at its word, the first salt is wrong.
    monkeypatch.setattr(_search, "is_equitable", lambda *_: True)
    assert equitable_partition(edges, n) != expected


EDGE = torch.tensor([[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((EDGE, 1), GraphError, r"0\.\.0; edge 0 names node 1"),
        ((EDGE.float(), 2), GraphError, "torch.int64"),
        ((EDGE[0], 2), GraphError, r"\[2, e\]; got \[2\]"),
        ((EDGE.tolist(), 2), TypeError, "got list"),
        ((EDGE, 0), GraphError, "num_nodes=0"),
        ((EDGE, None), TypeError, "got None"),
        ((EDGE, True), TypeError, "got True"),
        ((EDGE, 2, torch.tensor([1.0, float("nan")])), GraphError, "weight of edge 1 is nan"),
        ((EDGE, 2, torch.ones(3)), GraphError, "each of 2 edges"),
        ((EDGE, 2, torch.ones(2, dtype=torch.int64)), TypeError, "floating-point"),
        ((EDGE, 2, None, [0, 1, 2]), GraphError, r"each of 2 nodes; got shape \[3\]"),
        ((EDGE, 2, None, [0.5, 1]), GraphError, "node_labels must be integers"),
        ((EDGE, 2, None, None, Partition.single(3)), PartitionError, "3 nodes but the graph has 2"),
        ((EDGE, 2, None, None, [0, 1]), TypeError, "must be a Partition; got list"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        equitable_partition(*arguments)
