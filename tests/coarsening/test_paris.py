"""Paris against its definition: merge the two nearest clusters, all distances computed anew."""

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from gsym.coarsening import Hierarchy, coarsen
from gsym.coarsening.methods.paris import paris_merges


def slow_paris(W):
    """Unions in the order of their distances, from dense matrices."""
    W = W / W.sum()
    degree, parts = W.sum(axis=1), [frozenset([i]) for i in range(len(W))]
    np.fill_diagonal(W, 0)
    found = []
    while len(parts) > 1:
        with np.errstate(divide="ignore"):
            distance = np.outer(degree, degree) / W
        np.fill_diagonal(distance, np.inf)
        i, j = sorted(np.unravel_index(distance.argmin(), distance.shape))
        parts[i] |= parts.pop(j)
        found.append((parts[i], distance[i, j]))
        W[i] += W[j]
        W[:, i] += W[:, j]
        W = np.delete(np.delete(W, j, 0), j, 1)
        W[i, i] = 0
        degree[i] += degree[j]
        degree = np.delete(degree, j)
    return found


def unions(n, merges):
    parts = [frozenset([i]) for i in range(n)]
    for a, b in merges:
        parts.append(parts[a] | parts[b])
    return parts[n:]


@pytest.mark.parametrize("seed", range(20))
def test_merges_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    graph = nx.gnm_random_graph(22, 24 + 3 * seed, seed=seed)
    graph = graph.subgraph(max(nx.connected_components(graph), key=len))
    A = nx.to_numpy_array(graph)
    A *= np.triu(rng.random(A.shape), 1)
    A += A.T
    if seed % 2:
        # Loops count in degrees, as in the coarse graph of another clustering.
        A += np.diag(rng.random(len(A)))
    merges, heights = paris_merges(csr_array(A))
    truth = slow_paris(A)
    assert set(unions(len(A), merges)) == {part for part, _ in truth}
    assert np.allclose(heights, sorted(distance for _, distance in truth), rtol=1e-12)
    assert (np.diff(heights) >= 0).all()
    assert Hierarchy.from_merges(len(A), merges, heights).levels[0] == len(A)


@pytest.mark.parametrize(
    "graph",
    [
        nx.star_graph(3000),
        nx.path_graph(500),
        nx.complete_graph(40),
        nx.complete_bipartite_graph(20, 30),
        nx.grid_2d_graph(20, 20),
        nx.barabasi_albert_graph(2000, 3, seed=0),
        nx.path_graph(2),
    ],
    ids=["star", "path", "complete", "bipartite", "grid", "hubs", "pair"],
)
def test_ties_and_hubs_make_a_tree(graph):
    """Equal distances everywhere: libraries were seen to name clusters before they exist."""
    n = graph.number_of_nodes()
    merges, heights = paris_merges(csr_array(nx.to_scipy_sparse_array(graph, dtype=float)))
    h = Hierarchy.from_merges(n, merges, heights)
    for k in {1, 2, min(5, n), n // 2, n} - {0}:
        assert h[k].num_clusters == k
    again, _ = paris_merges(csr_array(nx.to_scipy_sparse_array(graph, dtype=float)))
    assert np.array_equal(again, merges)


@pytest.mark.parametrize("method", ["paris", "leiden"])
def test_a_social_graph_of_many_ties_is_clustered(method):
    """Eight groups of friends that all know one person, in one method that ends in Paris."""
    if method == "leiden":
        pytest.importorskip("networkit")
    groups = nx.disjoint_union_all([nx.complete_graph(9)] * 8)
    groups.add_edges_from((72, v) for v in range(72))
    h = coarsen(groups, method=method, levels=[8, 3])
    assert set(h.levels) == {73, 8, 3, 1}
    labels = h[8].labels[:72].view(8, 9)
    assert (labels == labels[:, :1]).all() and labels[:, 0].unique().numel() == 8


def test_the_default_goes_by_what_is_given():
    graph = nx.les_miserables_graph()
    assert coarsen(graph).method == "paris"
    x = torch.randn(30, 77, generator=torch.Generator().manual_seed(0))
    assert coarsen(graph, signals=x).method == "ward"
    assert coarsen(None, signals=x).method == "ward"
    assert torch.equal(coarsen(graph).merges, coarsen(graph, method="paris").merges)


def modularity(graph, labels):
    clusters = [set(np.flatnonzero(labels == c).tolist()) for c in np.unique(labels)]
    return nx.community.modularity(nx.convert_node_labels_to_integers(graph), clusters)


def test_the_default_finds_communities_where_ward_does_not():
    graph = nx.les_miserables_graph()
    found = {m: coarsen(graph, method=m)[8].labels.numpy() for m in ("auto", "ward")}
    quality = {method: modularity(graph, labels) for method, labels in found.items()}
    # Louvain, which is free to choose the number of clusters, finds 0.57.
    assert quality["auto"] > 0.5 > quality["ward"] + 0.4
