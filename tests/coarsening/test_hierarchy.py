"""Hierarchies: cuts against a slow union, chains, families, exports, and every bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy as scipy_hierarchy

from gsym import Partition
from gsym.coarsening import Hierarchy
from gsym.errors import ClusteringError

CATERPILLAR = [[0, 1], [4, 2], [5, 3]]


def random_merges(n, seed):
    rng = np.random.default_rng(seed)
    alive, merges = list(range(n)), []
    for i in range(n - 1):
        a, b = rng.choice(len(alive), 2, replace=False)
        merges.append([alive[a], alive[b]])
        alive = [c for j, c in enumerate(alive) if j not in (a, b)] + [n + i]
    return merges


def slow_cut(n, merges, k):
    """The definition: carry out the first n - k merges on lists of nodes."""
    clusters = {i: [i] for i in range(n)}
    for i, (a, b) in enumerate(merges[: n - k]):
        clusters[n + i] = clusters.pop(a) + clusters.pop(b)
    return {frozenset(c) for c in clusters.values()}


def sets(partition):
    return {frozenset(c.tolist()) for c in partition.clusters()}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.integers(0, 10**6))
def test_cuts_are_those_of_the_definition(n, seed):
    merges = random_merges(n, seed)
    h = Hierarchy.from_merges(n, merges, np.arange(n - 1.0))
    assert h.levels == tuple(range(n, 0, -1)) and len(h) == n and h.nested
    for k, partition in zip(h.levels, h, strict=True):
        assert sets(partition) == slow_cut(n, merges, k)
        assert partition.num_clusters == k
        assert partition == Partition.from_labels(partition.labels, relabel=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.integers(0, 10**6))
def test_a_chain_gives_back_its_partitions(n, seed):
    full = Hierarchy.from_merges(n, random_merges(n, seed), np.zeros(n - 1))
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(np.arange(1, n + 1), rng.integers(1, n + 1), replace=False))[::-1]
    h = Hierarchy.from_partitions([full[k] for k in chosen])
    assert set(h.levels) == {n, 1, *chosen} and list(h.levels) == sorted(h.levels)[::-1]
    assert all(h[k] == full[k] for k in h.levels)
    assert h.merges.shape == (n - 1, 2) and h.heights.shape == (n - 1,)
    steps = h.heights.tolist()
    assert steps == sorted(steps) and set(steps) == set(range(1, len(h)))
    assert scipy_hierarchy.is_valid_linkage(h.linkage())


def test_a_long_chain_and_a_deep_tree():
    n = 100_000
    deep = np.column_stack([np.r_[0, n + np.arange(n - 2)], np.arange(1, n)])
    h = Hierarchy.from_merges(n, deep, np.arange(n - 1.0))
    assert h[2].sizes == (n - 1, 1) and h[n - 5].sizes[:2] == (6, 1)
    assert h.newick().count("(") == n - 1
    assert h.linkage()[-1, 3] == n


def test_linkage_is_scipys():
    x = np.random.default_rng(0).standard_normal((30, 3))
    linkage = scipy_hierarchy.ward(x)
    h = Hierarchy.from_merges(30, linkage[:, :2].astype(int), linkage[:, 2])
    assert np.array_equal(h.linkage(), linkage)
    for k in (1, 2, 7, 30):
        labels = scipy_hierarchy.fcluster(linkage, k, "maxclust")
        assert h[k] == Partition.from_labels(labels, relabel=True)


def test_newick():
    h = Hierarchy.from_merges(4, CATERPILLAR, [1.0, 1.5, float("inf")])
    assert h.newick() == "(((0:1,1:1):0.5,2:1.5),3);"
    named = h.newick(["a", "b c", "it's", "(d)"])
    assert named == "(((a:1,'b c':1):0.5,'it''s':1.5),'(d)');"
    assert Hierarchy.from_merges(1, [], []).newick() == "0;"
    with pytest.raises(ClusteringError, match="each of 4 nodes; got 2"):
        h.newick(["a", "b"])


def test_one_node():
    h = Hierarchy.from_merges(1, [], [])
    assert h.levels == (1,) and h[1] == Partition.single(1) and h.linkage().shape == (0, 4)
    assert Hierarchy.from_partitions([Partition.single(1)]).levels == (1,)


def test_levels_restrict_what_is_offered():
    h = Hierarchy.from_merges(4, CATERPILLAR, [1, 2, 3], levels=[2, 2])
    assert h.levels == (4, 2, 1)
    with pytest.raises(ClusteringError, match="no level has 3 clusters; the nearest have 2 and 4"):
        h[3]


@pytest.mark.parametrize("k", [0, -1, 5])
def test_levels_out_of_range(k):
    with pytest.raises(ClusteringError, match=f"no level has {k} clusters"):
        Hierarchy.from_merges(4, CATERPILLAR, [1, 2, 3])[k]
    with pytest.raises(ClusteringError, match=rf"in 1\.\.4; got {k}"):
        Hierarchy.from_merges(4, CATERPILLAR, [1, 2, 3], levels=[2, k])


def test_levels_are_whole_numbers():
    h = Hierarchy.from_merges(4, CATERPILLAR, [1, 2, 3])
    assert h[np.int64(2)] == h[torch.tensor(2)] == h[2]
    with pytest.raises(TypeError, match="number of clusters; got float"):
        h[2.0]
    for levels in ([2.5], 2):
        with pytest.raises(ClusteringError, match=r"as levels=\[8, 2\]"):
            Hierarchy.from_merges(4, CATERPILLAR, [1, 2, 3], levels=levels)


@pytest.mark.parametrize(
    ("merges", "heights", "message"),
    [
        ([[0, 1], [4, 2]], [1, 2], "4 nodes become one cluster in 3 merges; got 2"),
        (CATERPILLAR, [1, 2], "expected 3 heights, one per merge; got 2"),
        (CATERPILLAR, [1, float("nan"), 2], "that of merge 1 is"),
        ([[0, 1], [5, 2], [4, 3]], [1, 2, 3], "merge 1 names cluster 5, which does not exist"),
        ([[0, 1], [4, -1], [5, 3]], [1, 2, 3], "merge 1 names cluster -1"),
        ([[0, 1], [1, 2], [5, 3]], [1, 2, 3], "cluster 1 is merged 2 times"),
        ([[0, 1], [4, 4], [5, 3]], [1, 2, 3], "cluster 4 is merged 2 times"),
        ([[0, 1, 1.0, 2]] * 3, [1, 2, 3], "must be integers"),
        ([[0, 1, 1, 2]] * 3, [1, 2, 3], r"got \[3, 4\]; of a SciPy linkage take"),
    ],
)
def test_bad_merges_are_named(merges, heights, message):
    with pytest.raises(ClusteringError, match=message):
        Hierarchy.from_merges(4, merges, heights)


def test_families_do_not_nest_and_say_so():
    crossing = [
        Partition.from_labels([0, 0, 0, 1, 1, 2]),
        Partition.from_labels([0, 0, 1, 1, 1, 1]),
    ]
    h = Hierarchy.from_partitions(crossing, nested=False)
    assert not h.nested and h.levels == (6, 3, 2, 1) and h[3] == crossing[0]
    assert repr(h) == "Hierarchy(6 nodes, not nested, 4 levels: 6, 3, 2, 1)"
    assert list(h) == [Partition.singletons(6), *crossing, Partition.single(6)]
    for ask in (lambda: h.heights, lambda: h.merges, h.linkage, h.newick):
        with pytest.raises(ClusteringError, match="do not nest: they have no merges"):
            ask()
    with pytest.raises(
        ClusteringError, match=r"3 clusters does not refine the one into 2.*nested=F"
    ):
        Hierarchy.from_partitions(crossing)


@pytest.mark.parametrize(
    ("partitions", "message"),
    [
        ([], "at least one partition"),
        ([Partition.single(3), Partition.single(4)], "of 3 and of 4 nodes"),
        (
            [Partition.from_labels([0, 0, 1]), Partition.from_labels([0, 1, 1])],
            "two different partitions have 2 clusters",
        ),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_bad_partitions_are_named(partitions, message, nested):
    with pytest.raises(ClusteringError, match=message):
        Hierarchy.from_partitions(partitions, nested=nested)


def test_numbering_does_not_matter():
    p, q = Partition.from_labels([1, 1, 0]), Partition.from_labels([0, 0, 1])
    assert Hierarchy.from_partitions([p, q])[2] == q


def test_cut_carries_the_graph():
    edge_index, weight = torch.tensor([[0, 1], [1, 2]]), torch.tensor([1.0, 2.0])
    h = Hierarchy.from_merges(
        3, [[0, 1], [3, 2]], [0, 1], edge_index=edge_index, edge_weight=weight, method="own"
    )
    c = h.cut(2)
    assert c.edge_index is edge_index and c.edge_weight is weight and c.partition == h[2]
    assert repr(h) == "Hierarchy(own, 3 nodes, nested, 3 levels: 3, 2, 1)"
    with pytest.raises(ValueError, match="edge 0 names node 3"):
        Hierarchy.from_partitions([Partition.single(3)], edge_index=torch.tensor([[3], [0]]))
    with pytest.raises(ClusteringError, match="num_nodes=0"):
        Hierarchy.from_merges(0, [], [])
