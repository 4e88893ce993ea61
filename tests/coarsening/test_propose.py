"""Every method of `coarsen`: what it finds, how it answers, and every bad input."""

import sys
import warnings

import networkx as nx
import numpy as np
import pytest
import torch

from gsym import Partition
from gsym.coarsening import METHODS, Hierarchy, coarsen
from gsym.errors import ClusteringError, GraphError, SignalError

CLIQUES = nx.ring_of_cliques(4, 6)
TRUTH = Partition(torch.arange(24) // 6)
EDGES = torch.tensor(list(CLIQUES.to_directed().edges)).T
PACKAGES = {"louvain": "sknetwork", "leiden": "networkit", "metis": "pymetis"}
CLUSTERINGS = ["paris", "ward", "spectral", "local_variation", "graclus", *PACKAGES]
# The process that runs Leiden takes seconds to start: it is left out where others stand for it.
QUICK = [method for method in CLUSTERINGS if method != "leiden"]
TREES = ["ward", "local_variation", "paris"]
FAMILIES = ["spectral", "leiden", "metis"]
BY_COMPONENT = ["paris", "ward", "spectral", "local_variation"]


@pytest.fixture(autouse=True)
def _package(request):
    method = request.node.callspec.params.get("method") if hasattr(request.node, "callspec") else ""
    if method in PACKAGES:
        pytest.importorskip(PACKAGES[method])


def planted_signals(samples=40, noise=0.3, seed=0, channels=2):
    """Signals that are equal on clusters of `TRUTH` shuffled, but for noise."""
    rng = torch.Generator().manual_seed(seed)
    truth = Partition.from_labels(TRUTH.labels[torch.randperm(24, generator=rng)], relabel=True)
    means = torch.randn(samples, 4, channels, generator=rng)
    x = means[:, truth.labels] + noise * torch.randn(samples, 24, channels, generator=rng)
    return truth, x * torch.tensor([1.0, 1000.0])[:channels]


@pytest.mark.parametrize("method", sorted({*TREES, *FAMILIES, "louvain"}))
def test_cliques_are_found(method):
    h = coarsen(EDGES, 24, method=method)
    assert h.method == method and h.num_nodes == 24 and h.edge_index is EDGES
    assert h[4] == TRUTH
    if method in FAMILIES:
        assert h.levels == (24, 8, 4, 2, 1)
    assert h.cut(4).cost < 0.7 * h.cut(1).cost


@pytest.mark.parametrize("method", TREES)
def test_trees_offer_every_level(method):
    h = coarsen(EDGES, 24, method=method)
    assert h.nested and h.levels == tuple(range(24, 0, -1))
    assert coarsen(EDGES, 24, method=method, levels=[4, 6]).levels == (24, 6, 4, 1)


@pytest.mark.parametrize("method", FAMILIES)
def test_families_answer_exactly_the_levels_asked_for(method):
    h = coarsen(EDGES, 24, method=method, levels=[3, 5, 24, 1])
    assert not h.nested and h.levels == (24, 5, 3, 1)
    assert [p.num_clusters for p in h] == [24, 5, 3, 1]


@pytest.mark.parametrize("method", ["louvain", "graclus", "twins"])
def test_fixed_levels_are_told_where_others_are_asked(method):
    h = coarsen(EDGES, 24, method=method)
    assert h.nested and len(h) > 2
    assert coarsen(EDGES, 24, method=method, levels=h.levels[1:2]).levels == (24, h.levels[1], 1)
    with pytest.raises(ClusteringError, match=f"has no level of 23 .* it has 24, {h.levels[1]}"):
        coarsen(EDGES, 24, method=method, levels=[23])


@pytest.mark.parametrize("method", CLUSTERINGS)
def test_equal_seeds_give_equal_answers(method):
    one, two = (coarsen(EDGES, 24, method=method, seed=3) for _ in range(2))
    assert one.levels == two.levels and list(one) == list(two)


@pytest.mark.parametrize("method", QUICK)
def test_directions_loops_and_parallel_edges_do_not_matter(method):
    plain = coarsen(EDGES, 24, method=method)
    one_way = EDGES[:, EDGES[0] < EDGES[1]]
    strange = torch.cat([one_way, one_way, one_way, torch.tensor([[5], [5]])], dim=1)
    weight = torch.cat(
        [torch.tensor([1.0, 0.5, 0.5]).repeat_interleave(one_way.size(1)), torch.ones(1)]
    )
    assert list(coarsen(strange, 24, weight, method=method)) == list(plain)


@pytest.mark.parametrize("method", sorted(set(QUICK) - {"graclus"}))
def test_weights_decide(method):
    # A complete graph in which only the weights know the clusters.
    pairs = torch.combinations(torch.arange(24)).T
    weight = torch.where(TRUTH.labels[pairs[0]] == TRUTH.labels[pairs[1]], 1.0, 0.01)
    assert coarsen(pairs, 24, weight, method=method)[4] == TRUTH


@pytest.mark.parametrize("method", ["ward", "spectral"])
def test_signals_alone_find_what_they_know(method):
    truth, x = planted_signals()
    assert truth != TRUTH
    assert coarsen(None, signals=x, method=method)[4] == truth
    assert coarsen(None, 24, signals=x[..., 0], method=method)[4] == truth


@pytest.mark.parametrize("method", ["ward", "spectral"])
def test_signals_on_a_graph_merge_neighbours(method):
    # The signals change in the middle of a path, the graph everywhere alike.
    path = torch.stack([torch.arange(29), torch.arange(1, 30)])
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(50, 2, generator=rng)[:, (torch.arange(30) >= 7).long()]
    x = values + 0.1 * torch.randn(50, 30, generator=rng)
    h = coarsen(path, 30, signals=x, method=method)
    assert h[2] == Partition((torch.arange(30) >= 7).long())
    # Equal signals at both ends of a path stay apart.
    ends = values[:, [0] * 10 + [29] * 10 + [0] * 10] + 0.1 * torch.randn(50, 30, generator=rng)
    assert coarsen(path, 30, signals=ends, method="ward")[3].sizes == (10, 10, 10)


def test_channels_are_scaled():
    truth, x = planted_signals()
    junk = x.clone()
    junk[..., 1] = 0.001 * torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    assert coarsen(None, signals=x, method="ward")[4] == truth
    units = torch.tensor([1e6, 1.0])
    same = coarsen(None, signals=junk * units, method="ward")
    assert list(same) == list(coarsen(None, signals=junk, method="ward"))


@pytest.mark.parametrize("method", BY_COMPONENT)
def test_a_disconnected_graph_is_split_with_a_warning(method):
    a, b = nx.barbell_graph(5, 0), nx.path_graph(4)
    edges = list(nx.disjoint_union_all([a, b, nx.empty_graph(1)]).edges)
    edge_index = torch.tensor(edges).T
    with pytest.warns(UserWarning, match="has 3 connected components; each is clustered") as caught:
        h = coarsen(edge_index, 15, method=method, levels=[5, 4, 3, 2])
    assert caught[0].filename == __file__
    components = Partition.from_labels([0] * 10 + [1] * 4 + [2])
    assert h[3] == components
    assert h[2] == Partition.from_labels([0] * 10 + [1] * 5)
    assert h[4] == Partition.from_labels([0] * 5 + [1] * 5 + [2] * 4 + [3])
    assert h[5].refines(h[3])
    if h.nested:
        assert torch.isinf(h.heights).tolist() == [False] * 12 + [True] * 2


@pytest.mark.parametrize("method", sorted(set(CLUSTERINGS) - set(BY_COMPONENT)))
def test_other_methods_take_a_disconnected_graph(method):
    edge_index = torch.tensor([[0, 1, 3, 4], [1, 2, 4, 5]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        h = coarsen(edge_index, 7, method=method)
    assert h.levels[0] == 7 and h.levels[-1] == 1


@pytest.mark.parametrize("method", QUICK)
def test_all_nodes_alike(method):
    edge_index = torch.combinations(torch.arange(12)).T
    h = coarsen(edge_index, 12, method=method)
    assert h.levels[0] == 12 and h.levels[-1] == 1 and all(p.num_nodes == 12 for p in h)


@pytest.mark.parametrize("method", [*CLUSTERINGS, "twins"])
def test_one_node_and_two(method):
    assert coarsen(torch.empty(2, 0, dtype=torch.int64), 1, method=method).levels == (1,)
    assert coarsen(torch.tensor([[0], [1]]), 2, method=method).levels == (2, 1)


def test_signals_that_tell_nothing():
    x = torch.ones(3, 6)
    with pytest.warns(UserWarning, match="equal at all nodes") as caught:
        h = coarsen(None, signals=x, method="ward")
    assert caught[0].filename == __file__ and h.heights.tolist() == [0.0] * 5
    with pytest.warns(UserWarning, match="equal at all nodes"):
        assert coarsen(EDGES, 24, signals=torch.ones(1, 24), method="spectral")[4] == TRUTH


def test_one_signal():
    x = torch.tensor([[0.0, 0.1, 5.0, 5.1]])
    assert coarsen(None, signals=x, method="ward")[2].labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(SignalError, match=r"got shape \[4\]; one signal is signals\[None\]"):
        coarsen(None, 4, signals=x[0], method="ward")


def test_grid_is_a_chain_of_patches():
    h = coarsen(None, method="grid", height=28, width=28)
    assert h.nested and h.levels == (784, 196, 49, 1) and h.num_nodes == 784
    assert h[49] == Partition.grid(28, 28, 4)
    assert coarsen(None, method="grid", height=4, width=6).levels == (24, 6, 1)
    assert coarsen(None, method="grid", height=5, width=7).levels == (35, 1)
    graph = coarsen(EDGES, 24, method="grid", height=4, width=6)
    assert graph.edge_index is EDGES and 0 < graph.cut(6).cost < 1


def test_grid_nests_only_along_divisors():
    family = coarsen(None, method="grid", height=28, width=28, levels=[196, 49, 16, 4])
    assert not family.nested and family.levels == (784, 196, 49, 16, 4, 1)
    assert family[16] == Partition.grid(28, 28, 7)
    chain = coarsen(None, method="grid", height=28, width=28, levels=[16, 4])
    assert chain.nested and chain.levels == (784, 16, 4, 1)
    with pytest.raises(ClusteringError, match="28 x 28 pixels into 5; they give 784, 196, 49, 16"):
        coarsen(None, method="grid", height=28, width=28, levels=[5])
    with pytest.raises(ClusteringError, match="4 x 6 pixels has 24 nodes; got 25"):
        coarsen(None, 25, method="grid", height=4, width=6)
    with pytest.raises(ClusteringError, match="at least one node"):
        coarsen(None, method="grid", height=0, width=6)
    with pytest.raises(ClusteringError, match="-2 x -3"):
        coarsen(None, 6, method="grid", height=-2, width=-3)


def test_heights_of_ward_never_fall():
    # Merges along edges alone come closer once in this graph.
    g = nx.connected_watts_strogatz_graph(12, 4, 0.5, seed=3)
    h = coarsen(torch.tensor(list(g.edges)).T, 12, method="ward")
    assert (h.heights.diff() >= 0).all()
    assert ":-" not in h.newick()


def test_twins_of_a_star():
    star = torch.tensor([[0, 0, 0], [1, 2, 3]])
    assert coarsen(star, 4, method="twins").levels == (4, 2, 1)
    assert coarsen(torch.empty(2, 0, dtype=torch.int64), 4, method="twins").levels == (4, 1)


def test_colours_and_orbits():
    # Two triangles beside a hexagon: colours cannot tell them apart, symmetries can.
    g = nx.disjoint_union_all([nx.cycle_graph(3), nx.cycle_graph(3), nx.cycle_graph(6)])
    edge_index = torch.tensor(list(g.to_directed().edges)).T
    assert coarsen(edge_index, 12, method="equitable").levels == (12, 1)
    assert coarsen(edge_index, 12, method="automorphism")[2].sizes == (6, 6)
    path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    for method in ("equitable", "automorphism"):
        assert coarsen(path, 3, method=method)[2].labels.tolist() == [0, 1, 0]


def test_risk_looks_at_signals_and_targets():
    truth, x = planted_signals(samples=200, channels=1, noise=1.0)
    mean = torch.stack([x[:, c].mean(1) for c in truth.clusters()], dim=1)
    y = mean[:, truth.labels] * torch.tensor([1.0, -2, 3, 0.5])[truth.labels][:, None]
    h = coarsen(None, signals=x, targets=y, method="risk")
    assert h.nested and h[4] == truth


def test_risk_on_signals_alone_finds_what_shares_a_covariance():
    rng = torch.Generator().manual_seed(0)
    truth = Partition.from_labels(torch.randperm(40, generator=rng) % 4, relabel=True)
    common = torch.randn(400, 4, generator=rng)
    x = 2 * common[:, truth.labels] + torch.randn(400, 40, generator=rng)
    h = coarsen(None, signals=x, method="risk")
    assert h[4] == truth
    assert h.heights.max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wrad"}, "unknown method 'wrad'; did you mean ward"),
        ({"method": "quantum"}, "unknown method 'quantum'; known: automorphism, equitable"),
        ({"levels": [25]}, r"in 1\.\.24; got 25"),
        ({"levels": [0]}, r"in 1\.\.24; got 0"),
        ({"levels": 4}, r"as levels=\[8, 2\]; got 4"),
        ({"seed": -1}, "seed must lie in"),
        ({"seed": 1.5}, "seed must be a whole number; got 1.5"),
        ({"method": None}, "method must be a name, one of automorphism, .*; got None"),
        (
            {"method": "metis", "signals": torch.ones(2, 24)},
            "'metis' does not look at signals; .*ward",
        ),
        ({"targets": torch.ones(2, 24)}, "does not look at targets; leave it out, or take risk"),
        ({"height": 4, "width": 6}, "does not look at height"),
        ({"method": "grid"}, "'grid' needs height="),
        ({"method": "risk"}, "'risk' needs signals="),
        ({"edge_index": None, "method": "paris"}, "'paris' needs edge_index="),
        ({"edge_index": None}, "needs edge_index, signals or both"),
        (
            {"edge_index": None, "signals": torch.ones(2, 24), "edge_weight": torch.ones(3)},
            "without",
        ),
        ({"num_nodes": None}, "pass num_nodes="),
        ({"num_nodes": 0}, "num_nodes=0"),
    ],
)
def test_bad_requests_are_named(options, message):
    arguments = {"edge_index": EDGES, "num_nodes": 24, **options}
    with pytest.raises(ClusteringError, match=message):
        coarsen(arguments.pop("edge_index"), arguments.pop("num_nodes"), **arguments)


def test_signals_of_other_nodes_are_named():
    with pytest.raises(SignalError, match="expected 24 nodes on axis 1 of signals; got 23"):
        coarsen(EDGES, 24, signals=torch.ones(2, 23))


def test_signals_and_targets_are_pairs():
    x = torch.ones(5, 6, 2)
    for y, message in (
        (torch.ones(4, 6, 1), "got 5 and 4 samples"),
        (torch.ones(5, 7, 1), "expected 6 nodes on axis 1 of targets; got 7"),
    ):
        with pytest.raises(SignalError, match=message):
            coarsen(None, signals=x, targets=y, method="risk")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nodes_that_are_not_finite_are_named(bad):
    x = torch.zeros(5, 24, 2)
    x[3, 7, 1] = x[0, 21, 0] = bad
    with pytest.raises(SignalError, match=r"NaN or infinity at 2 of 24 nodes \(7, 21\);"):
        coarsen(EDGES, 24, signals=x)


@pytest.mark.parametrize("method", CLUSTERINGS)
def test_a_graph_without_edges_has_no_clusters(method):
    for edge_index in (torch.empty(2, 0, dtype=torch.int64), torch.tensor([[1, 3], [1, 3]])):
        with pytest.raises(ClusteringError, match="graph on 5 nodes has no edges, and method"):
            coarsen(edge_index, 5, method=method)


@pytest.mark.parametrize("method", CLUSTERINGS)
def test_weights_are_similarities(method):
    edge_index = torch.tensor([[0, 1, 2], [1, 2, 3]])
    with pytest.raises(
        ClusteringError, match=r"between nodes 1 and 2 have weight -0.5; .*\.abs\(\)"
    ):
        coarsen(edge_index, 4, torch.tensor([1.0, -0.5, 1.0]), method=method)
    with pytest.raises(GraphError, match="weight of edge 2 is inf"):
        coarsen(edge_index, 4, torch.tensor([1.0, 1.0, float("inf")]), method=method)
    with pytest.raises(GraphError, match="edge 2 names node 4"):
        coarsen(edge_index + 1, 4, method=method)


@pytest.mark.parametrize("method", ["louvain"])
def test_a_missing_package_names_the_extra(method, monkeypatch):
    for name in [m for m in sys.modules if m.partition(".")[0] == PACKAGES[method]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, PACKAGES[method], None)
    with pytest.raises(ImportError, match=rf"method '{method}' needs .*'gsym\[cluster\]'"):
        coarsen(EDGES, 24, method=method)


@pytest.mark.parametrize("method", QUICK)
def test_hostile_weights_still_give_partitions(method):
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(10.0 ** rng.uniform(-150, 100, EDGES.size(1)))
    h = coarsen(EDGES, 24, weight, method=method)
    assert isinstance(h, Hierarchy) and [p.num_clusters for p in h] == list(h.levels)


def test_every_method_is_documented():
    for method in METHODS:
        assert f"``{method}``" in coarsen.__doc__
