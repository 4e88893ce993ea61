"""Partitions: construction, lattice, quotient, and every bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsym import ClusterGroup, Partition, PermutationGroup, automorphisms
from gsym.errors import PartitionError

labels_of_six = st.lists(st.integers(0, 3), min_size=6, max_size=6)


def partition(labels):
    return Partition.from_labels(labels, relabel=True)


def test_knows_its_clusters():
    p = Partition.from_labels([0, 0, 1, 1, 1])
    assert (p.num_nodes, p.num_clusters, p.sizes) == (5, 2, (2, 3))
    assert p.labels.tolist() == [0, 0, 1, 1, 1] and p.labels.dtype == torch.int64
    assert [c.tolist() for c in p.clusters()] == [[0, 1], [2, 3, 4]]
    assert repr(p) == "Partition(5 nodes in 2 clusters: 2 + 3)"
    assert repr(Partition.grid(28, 28, 2)) == "Partition(784 nodes in 196 clusters of 4)"


@pytest.mark.parametrize(
    "labels",
    [np.array([0, 1, 1]), torch.tensor([0, 1, 1], dtype=torch.int32), (0, 1, 1)],
    ids=["numpy", "int32", "tuple"],
)
def test_accepts_any_integers(labels):
    assert Partition.from_labels(labels) == Partition.from_labels([0, 1, 1])


def test_copies_its_labels():
    labels = torch.tensor([0, 1, 1])
    p = Partition(labels)
    labels[0] = 1
    assert p.labels.tolist() == [0, 1, 1]


def test_gives_away_copies():
    p = Partition([1, 0, 0])
    before = p.fingerprint()
    for tensor in (p.labels, p.order, *p.clusters()):
        tensor.fill_(7)
    assert p.labels.tolist() == [1, 0, 0] and p.order.tolist() == [1, 2, 0]
    assert [nodes.tolist() for nodes in p.clusters()] == [[1, 2], [0]]
    assert p.fingerprint() == before and p == Partition([1, 0, 0])


def test_from_clusters_numbers_by_position():
    assert Partition.from_clusters([[2], [0, 1]]).labels.tolist() == [1, 1, 0]


def test_extremes():
    assert Partition.single(3).sizes == (3,)
    assert Partition.singletons(3).sizes == (1, 1, 1)
    assert Partition.single(1) == Partition.singletons(1)


def test_grid_patches_are_row_major_rectangles():
    p = Partition.grid(4, 6, (2, 3))
    image = p.labels.view(4, 6)
    assert image[:2, :3].eq(0).all() and image[:2, 3:].eq(1).all()
    assert image[2:, :3].eq(2).all() and image[2:, 3:].eq(3).all()


@pytest.mark.parametrize("patch", [3, 0, -1, (2, 4)])
def test_grid_rejects_patches_that_do_not_tile(patch):
    with pytest.raises(PartitionError, match="do not tile an image of 4x6"):
        Partition.grid(4, 6, patch)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2, 2], "no node has label 1 although the largest is 2.*relabel=True"),
        ([1, 1], "no node has label 0"),
        ([0, 10**12], "no node has label 1"),
        ([0, -1, 1], "node 1 has label -1"),
        ([0.0, 1.0], r"must be integers; got dtype torch.float32"),
        ([0.0, 1.5], r"entry 1 is 1.5"),
        ([0.0, float("nan")], r"entry 1 is nan"),
        ([True, False], "must be integers; got dtype torch.bool"),
        ([], "at least one node"),
        ([[0, 1], [1, 0]], r"one-dimensional.*\[2, 2\]"),
        ([[0, 1], [1]], "rectangular array of integers"),
        ("ab", "rectangular array of integers"),
    ],
)
def test_bad_labels_are_named(labels, message):
    with pytest.raises(PartitionError, match=message):
        Partition.from_labels(labels)


def test_wrong_length_is_named():
    with pytest.raises(PartitionError, match="each of 208 nodes; got 207"):
        Partition.from_labels(torch.zeros(207, dtype=torch.int64), num_nodes=208)


def test_relabel_closes_gaps_by_first_occurrence():
    assert Partition.from_labels([7, -3, 7], relabel=True).labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ([[0, 1], []], "cluster 1 is empty"),
        ([], "at least one node"),
        ([[0, 1], [1, 2]], "node 1 is listed 2 times|node 3 is listed 0 times"),
        ([[0, 2]], "node 2 is outside"),
        ([[0, -1]], "node -1 is outside"),
        ([[0, 0.5]], "cluster 0 must be integers"),
    ],
)
def test_bad_clusters_are_named(clusters, message):
    with pytest.raises(PartitionError, match=message):
        Partition.from_clusters(clusters)


def test_missing_node_is_named():
    with pytest.raises(PartitionError, match="node 2 is listed 0 times"):
        Partition.from_clusters([[0, 1]], num_nodes=3)


@pytest.mark.parametrize("make", [Partition.single, Partition.singletons])
@pytest.mark.parametrize("n", [0, -1])
def test_no_nodes_is_an_error(make, n):
    with pytest.raises(PartitionError, match=f"num_nodes={n}"):
        make(n)


def test_different_node_sets_cannot_be_compared():
    with pytest.raises(PartitionError, match="3 and of 4 nodes"):
        Partition.single(3).refines(Partition.single(4))


def together(p, i, j):
    return bool(p.labels[i] == p.labels[j])


@settings(max_examples=60, deadline=None)
@given(labels_of_six, labels_of_six)
def test_lattice_against_its_definition(a, b):
    p, q = partition(a), partition(b)
    meet, join = p.meet(q), p.join(q)
    for i in range(6):
        for j in range(6):
            assert together(meet, i, j) == (together(p, i, j) and together(q, i, j))
    assert meet.refines(p) and meet.refines(q) and p.refines(join) and q.refines(join)
    # The join is the finest such: its clusters are connected by shared p- and q-clusters.
    linked = torch.eye(6, dtype=torch.bool)
    for part in (p, q):
        linked |= part.labels[:, None] == part.labels[None, :]
    reach = linked.double().matrix_power(6) > 0
    assert torch.equal(reach, join.labels[:, None] == join.labels[None, :])
    refines = all(together(q, i, j) for i in range(6) for j in range(6) if together(p, i, j))
    assert p.refines(q) == refines


def test_quotient_is_the_mean_over_blocks():
    p = Partition.from_labels([0, 0, 1])
    edge_index = torch.tensor([[0, 0, 1, 2], [1, 2, 2, 0]])
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    coarse, mean = p.quotient(edge_index, weight)
    assert coarse.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert mean.tolist() == [0.25, 3.0, 4.0]
    assert p.quotient(edge_index)[1].tolist() == [0.25, 1.0, 0.5]


def test_quotient_checks_the_graph():
    with pytest.raises(ValueError, match=r"0\.\.2; edge 1 names node 3"):
        Partition.single(3).quotient(torch.tensor([[0, 3], [1, 1]]))


def test_equal_partitions_hash_alike():
    p, q = Partition.from_labels([0, 1, 1]), Partition.from_labels([0, 1, 1])
    assert p == q and hash(p) == hash(q) and p.fingerprint() == q.fingerprint()
    assert p != Partition.from_labels([0, 0, 1]) and p != "p"


def test_a_cluster_outside_the_stated_nodes():
    with pytest.raises(PartitionError, match=r"nodes 0\.\.1; node 2 is outside"):
        Partition.from_clusters([[0, 1], [2]], num_nodes=2)


def test_a_grid_has_a_size():
    with pytest.raises(PartitionError, match="do not tile"):
        Partition.grid(-2, 2, 2)


def test_fingerprints_are_digests_that_tell_partitions_apart():
    labels = ([0], [0, 0], [0, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 2])
    prints = [Partition(label).fingerprint() for label in labels]
    assert all(isinstance(print_, bytes) and len(print_) == 32 for print_ in prints)
    assert len(set(prints)) == len(labels)
    assert len({hash(Partition(label)) for label in labels}) == len(labels)
    assert Partition(np.array([0, 1, 1], dtype=np.int8)).fingerprint() == prints[3]


def test_large_names_stay_apart():
    # float64 holds none of the three exactly but the first.
    names = [2**53, 2**53 + 1, 2**53 + 2, 2**53 + 1, -(2**62) - 1, -(2**62)]
    for labels in (names, np.array(names), torch.tensor(names), np.array(names)[::-1][::-1]):
        p = Partition.from_labels(labels, relabel=True)
        assert p.labels.tolist() == [0, 1, 2, 1, 3, 4]
    with pytest.raises(PartitionError, match="integers"):
        Partition.from_labels(np.array([2**63, 2**63 + 1], dtype=np.uint64), relabel=True)
    with pytest.raises(PartitionError, match=r"integers; got dtype torch\.float64"):
        Partition.from_labels(np.array(names, dtype=float), relabel=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Partition.singletons(True), "whole number; got True"),
        (lambda: Partition.single(False), "whole number; got False"),
        (lambda: Partition.single(2.0), r"whole number; got 2\.0"),
        (lambda: Partition.grid(4, 4, True), "patch must be a whole number; got True"),
        (lambda: Partition.grid(True, 4, 1), "height must be a whole number"),
        (lambda: Partition.from_labels([True, 0, 1]), "got a boolean among them"),
        (lambda: Partition.from_clusters([[0, True]]), "got a boolean among them"),
        (lambda: Partition.from_clusters([[0, 1]], num_nodes=True), "whole number"),
        (lambda: Partition.from_labels(MASKED), "masked array with 1 gaps"),
        (lambda: Partition.from_labels(MASKED, relabel=True), "masked array with 1 gaps"),
        (lambda: Partition.from_clusters([MASKED]), "masked array with 1 gaps"),
    ],
)
def test_booleans_and_gaps_are_no_numbers(build, message):
    with pytest.raises(PartitionError, match=message):
        build()


MASKED = np.ma.masked_array([0, 1, 1], mask=[False, True, False])


@pytest.mark.parametrize("device", ["meta"])
def test_values_lie_on_the_cpu_whatever_the_default_device(device):
    def made():
        p = Partition.from_clusters([[0, 1], [2, 3], [4]])
        swaps = PermutationGroup.from_cycles(3, [(0, 1)])
        clusters, turned = ClusterGroup(p), ClusterGroup(p, swaps=swaps)
        cycle = PermutationGroup(5, [[1, 2, 0, 3, 4]])
        for group in (clusters, turned, cycle):
            yield from (group.generators, group.node_orbits().index, group.pair_orbits().index)
            yield group.sample(generator=torch.Generator().manual_seed(0))
            assert group.contains(group.generators[0])
        yield from (clusters.cluster_orbits().index, clusters.cluster_pair_orbits().index)
        yield from (Partition.single(3).labels, Partition.singletons(3).labels)
        yield from (Partition.grid(2, 4, 2).labels, Partition([0, 1]).labels)
        yield from (p.meet(Partition.single(5)).labels, p.join(Partition.singletons(5)).labels)
        yield from p.quotient(torch.tensor([[0, 2, 4], [2, 4, 0]], device="cpu"))
        yield PermutationGroup.trivial(3).generators
        yield automorphisms(torch.tensor([[0, 1, 2], [1, 2, 0]], device="cpu"), 3).generators

    right = list(made())
    with torch.device(device):
        found = list(made())
    assert len(found) > 20
    for here, there in zip(found, right, strict=True):
        assert torch.equal(here, there)
