"""Graphs in all the forms that they come in, and the one rule for parallel edges."""

import math
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
import scipy.sparse
import torch
from torch_geometric.data import Data
from torch_geometric.utils import from_networkx

from gsym import (
    ClusterGroup,
    Coarsening,
    Graph,
    Partition,
    PermutationGroup,
    as_graph,
    automorphisms,
    coarsen,
)
from gsym._graphs import coalesce, exact_sums
from gsym.coarsening._graph import undirected
from gsym.coarsening.methods.symmetries import twin_partition
from gsym.errors import GraphError
from gsym.groups import equitable_partition
from gsym.transforms import AddOrbits, AddPartition

TINY, HUGE = 5e-324, 1.7e308
CHAIN_METHODS = ("ward", "local_variation", "graclus")


def parallel_rows(seed, n=9):
    """An undirected weighted list with many rows for every pair, in float64."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(n, size=(120, 2))
    weight = rng.choice([0.1, 0.2, 0.3, 1 / 3, 1e-9, 7e8], size=120) * rng.random(120)
    return torch.from_numpy(rows.T.copy()), torch.from_numpy(weight)


def arrangements(edges, weight, seed):
    """The same rows in other orders, and some of them turned round."""
    rng = np.random.default_rng(seed)
    for _ in range(6):
        order = torch.from_numpy(rng.permutation(weight.numel()))
        turned = torch.from_numpy(rng.random(weight.numel()) < 0.5)
        rows = edges[:, order]
        yield rows, torch.where(turned, rows.flip(0), rows), weight[order]


@pytest.mark.parametrize(
    "values",
    [
        [0.1] * 10,
        [1e16, 1.0, -1e16],
        [TINY, TINY, TINY],
        [-0.0, -0.0, -0.0],
        [-0.0],
        [-0.0, 0.0],
        [HUGE, HUGE, -HUGE],
        [HUGE, -HUGE, HUGE, -HUGE, TINY],
        [1.0, 2.0, 3.0],
        [2.0**53, 1.0, 1.0],
        [1e-300, 1e300],
    ],
    ids=str,
)
def test_sums_are_exactly_rounded_in_any_order(values):
    exact = float(sum(map(Fraction, values)))
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = rng.permutation(values)
        keys, total = exact_sums(np.array([5] * len(values) + [2]), np.append(other, 0.5))
        assert keys.tolist() == [2, 5] and total[0] == 0.5
        assert total[1].tobytes() == np.float64(exact + 0.0).tobytes()
        assert math.copysign(1, total[1]) == (1 if exact == 0 else math.copysign(1, exact))


def test_sums_beyond_float64_are_refused():
    for values in ([HUGE, HUGE], [HUGE, HUGE, 1.0], [HUGE] * 5):
        with pytest.raises(GraphError, match="more than float64 holds"):
            exact_sums(np.zeros(len(values), dtype=np.int64), np.array(values))


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_rows_changes_a_bit(seed):
    edges, weight = parallel_rows(seed)
    partition = Partition.from_labels(torch.arange(9) % 4)
    keys, total = coalesce(as_graph(edges, 9, weight))
    blocks = partition.quotient(edges, weight)
    whole = undirected(as_graph(edges, 9, weight)).toarray()
    cost = Coarsening(partition, edges, weight).cost
    changed = torch.zeros(keys.size, dtype=torch.float64)
    for rows, turned, other in arrangements(edges, weight, seed):
        again, sums = coalesce(as_graph(rows, 9, other))
        assert again.tobytes() == keys.tobytes() and sums.tobytes() == total.tobytes()
        for here, there in zip(partition.quotient(rows, other), blocks, strict=True):
            assert torch.equal(here, there)
        assert Coarsening(partition, rows, other).cost == cost
        assert undirected(as_graph(turned, 9, other)).toarray().tobytes() == whole.tobytes()
        for method in CHAIN_METHODS:
            h, g = coarsen(edges, 9, weight, method=method), coarsen(turned, 9, other, None, method)
            assert torch.equal(h.merges, g.merges) and torch.equal(h.heights, g.heights)
        naive = torch.zeros(81, dtype=torch.float64).index_add_(0, rows[0] * 9 + rows[1], other)
        changed += naive[torch.from_numpy(keys)] != torch.from_numpy(total)
    # A plain sum would have rounded otherwise somewhere.
    assert changed.any()


def test_rows_in_another_order_leave_the_symmetries():
    # Two twins whose rows come in other orders: plain sums of 0.1, 0.2 and 0.3 differ.
    edges = torch.tensor([[0, 0, 0, 1, 1, 1], [2, 2, 2, 2, 2, 2]])
    weight = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.2, 0.1], dtype=torch.float64)
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    assert twin_partition(edges, 3, weight).sizes == (2, 1)
    assert automorphisms(edges, 3, weight).order() == 2
    assert equitable_partition(edges, 3, weight).sizes == (2, 1)
    for group in (ClusterGroup(Partition.from_labels([0, 0, 1])), PermutationGroup(3, [[1, 0, 2]])):
        assert group.preserves(edges, weight)
        assert not group.preserves(edges, weight + torch.tensor([1e-9, 0, 0, 0, 0, 0]).double())


@pytest.mark.parametrize("parts", [(0.75, 0.25), (2.0, -1.0), (0.5, 0.25, 0.25), (1.0, -0.0)])
def test_a_split_weight_is_the_weight(parts):
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    split = torch.cat([edges[:, :1]] * (len(parts) - 1) + [edges], dim=1)
    whole = torch.ones(4, dtype=torch.float64)
    weight = torch.cat(
        [torch.tensor(parts[1:]).double(), torch.tensor(parts[:1]).double(), whole[1:]]
    )
    turn = PermutationGroup.from_cycles(4, [(0, 1, 2, 3)])
    assert turn.preserves(split, weight)
    assert automorphisms(split, 4, weight, time_budget=60).order() == 4
    partition = Partition.from_labels([0, 0, 1, 1])
    for here, there in zip(
        partition.quotient(split, weight), partition.quotient(edges, whole), strict=True
    ):
        assert torch.equal(here, there)


@pytest.mark.parametrize(
    ("edges", "weight", "order"),
    [
        # 0 and 2 joined with weight 0, and 1 alone.
        ([[0, 2], [2, 0]], [0.0, -0.0], 2),
        # Parallel edges that cancel: 0 -> 1 is there, and it is of weight 0.
        ([[0, 0], [1, 1]], [1.0, -1.0], 1),
        ([[0, 0, 0], [1, 1, 1]], [1.0, -0.5, -0.5], 1),
        ([[0, 1], [1, 0]], [TINY, TINY], 2),
        ([[0, 0, 1], [1, 1, 0]], [TINY, -TINY, 0.0], 2),
        ([[0], [0]], [0.0], 2),
    ],
)
def test_an_edge_of_weight_zero_is_an_edge(edges, weight, order):
    edges, weight = torch.tensor(edges), torch.tensor(weight, dtype=torch.float64)
    group = automorphisms(edges, 3, weight)
    assert group.order() == order and group.preserves(edges, weight)
    twins = ClusterGroup(twin_partition(edges, 3, weight))
    assert twins.order() == order and twins.preserves(edges, weight)
    # No larger group preserves it, in either form.
    for perm in ([1, 0, 2], [2, 1, 0], [0, 2, 1]):
        swap = PermutationGroup(3, [perm])
        assert swap.preserves(edges, weight) == group.contains(perm)
    assert equitable_partition(edges, 3, weight).num_clusters == group.node_orbits().num_orbits
    coarse, mean = Partition.singletons(3).quotient(edges, weight)
    assert coarse.size(1) == torch.unique(edges, dim=1).size(1)
    assert not torch.signbit(mean).any()


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1.0, 1e200, 1e300])
@pytest.mark.parametrize("method", CHAIN_METHODS)
def test_the_unit_of_weights_does_not_matter(method, unit):
    grid = nx.convert_node_labels_to_integers(nx.grid_2d_graph(9, 7))
    graph = as_graph(grid)
    weight = torch.from_numpy(np.random.default_rng(0).random(graph.edge_index.size(1)))
    unit = 2.0 ** round(math.log2(unit))
    plain = coarsen(graph.edge_index, 63, weight, method=method)
    scaled = coarsen(graph.edge_index, 63, weight * unit, method=method)
    assert torch.equal(scaled.merges, plain.merges)
    assert torch.isfinite(scaled.heights).all() and (scaled.heights > 0).all()
    k = plain.levels[len(plain.levels) // 2]
    here, there = scaled.cut(k), plain.cut(k)
    assert 0 < here.cost < 1 and here.cost == pytest.approx(there.cost, rel=1e-12)
    assert here.restricted_approximation(3) == pytest.approx(
        there.restricted_approximation(3), rel=1e-9
    )
    assert np.allclose(here.eigenvalue_shift(3) / unit, there.eigenvalue_shift(3), atol=1e-12)


def test_weights_of_very_different_size_do_not_vanish():
    # Thousands of edges, each lighter than the one before by the same factor, from 1e300 to 1e-300.
    n = 4001
    edges = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    weight = torch.from_numpy(10.0 ** np.linspace(300, -300, n - 1))
    h = coarsen(edges, n, weight, method="graclus")
    assert torch.isfinite(h.heights).all()
    # The second end of each edge has lighter edges only, so it goes with the first.
    assert h[h.levels[1]].labels[:4].tolist() == [0, 0, 1, 1]
    assert undirected(as_graph(edges, n, weight)).nnz == 2 * (n - 1)
    cost = h.cut(h.levels[1]).cost
    assert 0 < cost < 1
    assert undirected(
        as_graph(edges, n, torch.full((n - 1,), TINY, dtype=torch.float64))
    ).nnz == 2 * (n - 1)


NAMED = nx.les_miserables_graph()


def forms():
    """One weighted graph in every form, with the number of its nodes."""
    A = nx.to_numpy_array(NAMED)
    edges = torch.from_numpy(np.stack(A.nonzero()))
    weight = torch.from_numpy(A[A.nonzero()])
    return {
        "tensor": edges,
        "Graph": Graph(edges, weight, 77),
        "networkx": NAMED,
        "csr": scipy.sparse.csr_array(A),
        "coo matrix": scipy.sparse.coo_matrix(A),
        "dense": A,
        "integers": A.astype(int),
        "data": Data(edge_index=edges, edge_weight=weight, num_nodes=77),
        "edge_attr": Data(edge_index=edges, edge_attr=weight, num_nodes=77),
        "from_networkx": from_networkx(NAMED),
        "adj_t": Data(
            adj_t=torch.sparse_coo_tensor(edges.flip(0), weight, (77, 77), check_invariants=True),
            num_nodes=77,
        ),
    }


@pytest.mark.parametrize("form", list(forms()))
def test_every_function_takes_every_form(form):
    graph = forms()[form]
    if form == "from_networkx":
        graph.edge_weight = graph.weight
    A = nx.to_numpy_array(NAMED)
    edges = torch.from_numpy(np.stack(A.nonzero()))
    weight = torch.from_numpy(A[A.nonzero()])
    more = (77, weight) if form == "tensor" else ()
    rest = (weight,) if form == "tensor" else ()

    found = as_graph(graph, *more)
    assert found.num_nodes == 77
    keys, sums = coalesce(found)
    assert (A.ravel()[keys] == sums).all() and keys.size == np.count_nonzero(A)
    assert (found.names == tuple(NAMED)) if form == "networkx" else (found.names is None)

    h = coarsen(graph, *more, method="graclus")
    assert torch.equal(h.merges, coarsen(edges, 77, weight, method="graclus").merges)
    group = automorphisms(graph, *more)
    assert group.order() == automorphisms(edges, 77, weight).order() > 1
    assert group.preserves(graph, *rest)
    assert not PermutationGroup.from_cycles(77, [(0, 1, 2)]).preserves(graph, *rest)
    assert group.edge_orbits(graph).num_orbits == group.edge_orbits(edges).num_orbits
    plain = PermutationGroup(77, group.generators)
    assert plain.edge_orbits(graph).num_orbits == group.edge_orbits(edges).num_orbits
    partition = h[h.levels[-3]]
    for here, there in zip(
        partition.quotient(graph, *rest), partition.quotient(edges, weight), strict=True
    ):
        assert torch.allclose(here.double(), there.double(), rtol=1e-15)
    assert twin_partition(graph, *more) == twin_partition(edges, 77, weight)
    assert equitable_partition(graph, *more) == equitable_partition(edges, 77, weight)
    assert Coarsening(partition, graph, *rest).cost == Coarsening(partition, edges, weight).cost


@pytest.mark.parametrize("form", ["networkx", "csr", "dense", "data"])
def test_transforms_take_other_graphs(form):
    graph = forms()[form]
    data = AddPartition(method="graclus", k=coarsen(NAMED, method="graclus").levels[1])(graph)
    assert isinstance(data, Data) and data.num_nodes == 77 and data.cluster.shape == (77,)
    group = automorphisms(NAMED)
    orbits = AddOrbits(group)(graph)
    assert torch.equal(orbits.edge_orbit, group.edge_orbits(graph).index)
    assert orbits.edge_index.size(1) == 508
    if form == "networkx":
        assert orbits.name == list(NAMED) and torch.equal(
            orbits.edge_weight, as_graph(NAMED).edge_weight
        )


def test_one_dimensional_attributes_are_weights():
    e = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
    e = torch.cat([e, e.flip(0)], 1)
    w = torch.tensor([9.0, 1, 9, 1, 9, 1]).repeat(2)
    t = AddPartition(method="ward", k=3)
    pairs = t(Data(edge_index=e, num_nodes=6, edge_weight=w)).cluster.tolist()
    assert pairs == [0, 0, 1, 1, 2, 2]
    assert t(Data(edge_index=e, num_nodes=6, edge_attr=w)).cluster.tolist() == pairs
    # Attributes with a second axis are features.
    wide = as_graph(Data(edge_index=e, num_nodes=6, edge_attr=w[:, None]))
    assert wide.edge_weight is None
    both = as_graph(Data(edge_index=e, num_nodes=6, edge_attr=w, edge_weight=w + 1))
    assert torch.equal(both.edge_weight, w + 1)


def test_names_are_kept():
    h = coarsen(NAMED, method="graclus")
    assert h.names == tuple(NAMED) and "Valjean" in h.newick()
    same = {h.names[i] for i in h[h.levels[-2]].clusters()[0].tolist()}
    assert same <= set(NAMED)
    assert coarsen(as_graph(NAMED), method="graclus").names == tuple(NAMED)
    assert coarsen(nx.to_numpy_array(NAMED), method="graclus").names is None
    with pytest.warns(UserWarning, match=r"node 2 .* is number 0 here; as_graph\(graph\)\.names"):
        graph = as_graph(nx.Graph([(2, 1), (1, 0)]))
    assert graph.names == (2, 1, 0)


def test_networkx_graphs_are_read_as_they_are():
    loop = as_graph(nx.Graph([("a", "a"), ("a", "b")]))
    assert sorted(zip(*loop.edge_index.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0)]
    arc = as_graph(nx.DiGraph([("a", "b")]))
    assert arc.edge_index.tolist() == [[0], [1]]
    assert automorphisms(nx.DiGraph([("a", "b")])).order() == 1
    # Parallel edges of a multigraph add up, whichever way they are written.
    contacts = nx.MultiGraph([(0, 1), (0, 1), (1, 0), (2, 1), (2, 1), (2, 1)])
    assert automorphisms(contacts, time_budget=60).order() == 2
    heavy = nx.MultiGraph()
    heavy.add_edge(0, 1, weight=0.1)
    heavy.add_edge(1, 0, weight=0.2)
    heavy.add_edge(1, 2, weight=0.3)
    keys, weight = coalesce(as_graph(heavy))
    assert keys.tolist() == [1, 3, 5, 7] and weight.tolist() == [0.1 + 0.2, 0.1 + 0.2, 0.3, 0.3]
    other = nx.Graph()
    other.add_edge("x", "y", length=3, weight="heavy")
    assert as_graph(other, weight="length").edge_weight.tolist() == [3.0, 3.0]
    isolated = nx.Graph()
    isolated.add_nodes_from("xyz")
    assert as_graph(isolated).num_nodes == 3 and automorphisms(isolated).order() == 6


def test_a_stored_zero_is_an_edge_and_a_dense_zero_is_none():
    A = scipy.sparse.coo_array(([0.0, 2.0, 3.0], ([0, 1, 1], [1, 2, 2])), shape=(3, 3))
    graph = as_graph(A)
    assert coalesce(graph)[0].tolist() == [1, 5] and coalesce(graph)[1].tolist() == [0.0, 5.0]
    assert coalesce(as_graph(A.toarray()))[0].tolist() == [5]
    ones = as_graph(np.ones((3, 3), dtype=bool))
    assert ones.edge_weight is None and ones.edge_index.size(1) == 9
    assert as_graph(np.array([[0.0, 1.0], [1.0, 0.0]])).num_nodes == 2
    assert as_graph(np.zeros((1, 1))).num_nodes == 1
    assert as_graph(scipy.sparse.csr_array([[0, 2], [1, 0]])).edge_weight.tolist() == [2.0, 1.0]


def missing_weight():
    graph = nx.Graph([(0, 1), (1, 2)])
    graph.edges[0, 1]["weight"] = 2.0
    return graph


def weighted(value):
    return nx.Graph([(0, 1, {"weight": value})])


MASKED = np.ma.masked_array(np.eye(3), mask=np.eye(3) > 0)


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (np.ones((3, 4)), GraphError, r"square, \[n, n\]; got \[3, 4\]"),
        (np.ones(3), GraphError, r"square.*got \[3\]"),
        (np.ones((0, 0)), GraphError, "at least one node"),
        (np.array([[0, 1], [1, 2]]), GraphError, r"\[2, 2\] is an adjacency or an edge_index"),
        (np.array([[0, 1, 2], [1, 2, 0]]), GraphError, r"\[2, 3\] looks like an edge_index"),
        (np.array([[0, np.nan], [1, 0]]), GraphError, "edge_weight must be finite"),
        (np.array([[0, 1j], [1, 0]]), TypeError, "real numbers; got complex128"),
        (np.array([["a", "b"], ["c", "d"]]), TypeError, "real numbers"),
        (np.full((3, 3), 2**60), GraphError, r"beyond 2\^53"),
        (MASKED, TypeError, r"\.filled\(0\)"),
        (scipy.sparse.coo_array(np.ones((2, 3))), GraphError, r"square.*got \[2, 3\]"),
        (scipy.sparse.coo_array(np.eye(2) * 1j), TypeError, "complex"),
        (nx.Graph(), GraphError, "NetworkX graph has none"),
        (missing_weight(), GraphError, r"edge \(1, 2\) has no 'weight', which other edges have"),
        (weighted("3"), TypeError, r"edge \(0, 1\) has the weight '3', which is no number"),
        (weighted(True), TypeError, "which is no number"),
        (weighted(math.inf), GraphError, "must be finite"),
        (weighted(1j), TypeError, "no number"),
        (Data(num_nodes=3), GraphError, "no edge_index"),
        (
            Data(edge_index=torch.tensor([[0], [1]]), edge_weight=torch.ones(2), num_nodes=3),
            GraphError,
            "1 edges",
        ),
        ([[0, 1], [1, 0]], TypeError, "got list"),
        ("graph.csv", TypeError, "got str"),
        (torch.eye(3), TypeError, "num_nodes"),
    ],
    ids=lambda value: None if isinstance(value, str | type) else type(value).__name__,
)
def test_bad_graphs_are_named(graph, error, message):
    for read in (as_graph, automorphisms, coarsen):
        if read is coarsen and isinstance(graph, torch.Tensor):
            continue
        with pytest.raises(error, match=message):
            read(graph)


def test_what_is_said_twice_must_agree():
    cycle = nx.cycle_graph(5)
    assert as_graph(cycle, 5).num_nodes == 5
    for read in (as_graph, automorphisms, coarsen):
        with pytest.raises(GraphError, match="has 5 nodes; got num_nodes=6"):
            read(cycle, 6)
        with pytest.raises(GraphError, match="brings its own weights"):
            read(cycle, 5, torch.ones(10))
    data = Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2)
    assert as_graph(data, 2, torch.tensor([1.0, 2.0])).edge_weight.tolist() == [1.0, 2.0]
    with pytest.raises(GraphError, match="2 edges"):
        as_graph(data, 2, torch.ones(3))


def test_weights_are_checked_before_anything_is_summed():
    edges = torch.tensor([[0, 1], [1, 0]])
    partition = Partition.single(2)
    for use in (
        lambda w: partition.quotient(edges, w),
        lambda w: ClusterGroup(partition).preserves(edges, w),
        lambda w: PermutationGroup(2, [[1, 0]]).preserves(edges, w),
        lambda w: twin_partition(edges, 2, w),
        lambda w: equitable_partition(edges, 2, w),
        lambda w: Coarsening(partition, edges, w),
    ):
        with pytest.raises(GraphError, match=r"2 edges; got shape \[3\]"):
            use(torch.ones(3))
        with pytest.raises(GraphError, match="weight of edge 1 is nan"):
            use(torch.tensor([1.0, math.nan]))
        with pytest.raises(TypeError, match="floating-point"):
            use(torch.ones(2, dtype=torch.int64))
        with pytest.raises(TypeError, match="floating-point"):
            use([1.0, 1.0])


def test_the_quotient_keeps_the_type_of_the_weights():
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    partition = Partition.from_labels([0, 0, 1])
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert partition.quotient(edges, torch.ones(3, dtype=dtype))[1].dtype == dtype
    assert partition.quotient(edges)[1].dtype == torch.float32
    # 70,000 edges of one block: their sum does not pass through half precision.
    star = torch.stack([torch.zeros(70_000, dtype=torch.int64), torch.arange(1, 70_001)])
    hub = Partition.from_labels(torch.cat([torch.zeros(1), torch.ones(70_000)]).long())
    assert hub.quotient(star, torch.ones(70_000).half())[1].tolist() == [1.0]
