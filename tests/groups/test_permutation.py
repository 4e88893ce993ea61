"""Groups by generators, clusters in closed form, and every bad input."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.errors import GraphError, GroupError

THREE_CYCLE = PermutationGroup.from_cycles(4, [(0, 1, 2)])


def elements(group):
    """All elements by exhaustion, without SymPy."""
    found = {tuple(range(group.num_nodes))}
    frontier = list(found)
    while frontier:
        new = {
            tuple(g[i] for i in element) for element in frontier for g in group.generators.tolist()
        }
        frontier = list(new - found)
        found |= new
    return found


SMALL = [
    THREE_CYCLE,
    PermutationGroup.from_cycles(5, [(0, 1, 2)], [(3, 4)]),
    PermutationGroup.from_cycles(6, [(0, 1, 2), (3, 4, 5)], [(0, 3), (1, 4), (2, 5)]),
    PermutationGroup(4, []),
    ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1])),
    ClusterGroup(
        Partition.from_labels([0, 1, 0, 1, 2, 2]),
        swaps=PermutationGroup.from_cycles(3, [(0, 1, 2)]),
    ),
    ClusterGroup(
        Partition.from_labels([0, 1, 2, 2, 2]), swaps=PermutationGroup.from_cycles(3, [(0, 1)])
    ),
    ClusterGroup(Partition.single(4)),
]


@pytest.mark.parametrize("group", SMALL, ids=repr)
class TestAgainstExhaustion:
    def test_order(self, group):
        assert group.order() == len(elements(group))
        assert group.log_order() == pytest.approx(math.log(group.order()), rel=1e-12)

    def test_contains(self, group):
        known = elements(group)
        for perm in itertools.islice(itertools.permutations(range(group.num_nodes)), 0, None, 3):
            assert group.contains(perm) == (perm in known)

    def test_samples_are_uniform(self, group):
        rng = torch.Generator().manual_seed(0)
        draws = 40 * group.order()
        counts = dict.fromkeys(elements(group), 0)
        for _ in range(draws):
            counts[tuple(group.sample(generator=rng).tolist())] += 1
        # Chi-squared with as many degrees of freedom as elements, six sigma out.
        chi2 = sum((c - 40) ** 2 / 40 for c in counts.values())
        assert chi2 < group.order() + 6 * math.sqrt(2 * group.order())

    def test_orbits(self, group):
        known = elements(group)
        n = group.num_nodes
        nodes, pairs = group.node_orbits(), group.pair_orbits()
        for i, j in itertools.product(range(n), repeat=2):
            same = any(g[i] == j for g in known)
            assert same == (nodes.index[i] == nodes.index[j])
            images = {(g[i], g[j]) for g in known}
            members = (pairs.index == pairs.index[i, j]).nonzero().tolist()
            assert images == {tuple(m) for m in members}
        assert pairs.sizes.tolist() == torch.bincount(pairs.index.flatten()).tolist()
        assert nodes.num_orbits == int(nodes.index.max()) + 1

    def test_commutant_dimension_is_burnsides_count(self, group):
        known = elements(group)
        squares = sum(sum(g[i] == i for i in range(group.num_nodes)) ** 2 for g in known)
        assert group.commutant_dim() * len(known) == squares

    def test_projection_is_the_mean_over_the_group(self, group):
        theta = torch.randn(2, group.num_nodes, group.num_nodes, dtype=torch.float64)
        known = torch.tensor(sorted(elements(group)))
        mean = torch.stack([theta[:, g][:, :, g] for g in known]).mean(0)
        torch.testing.assert_close(group.project(theta), mean, rtol=0, atol=1e-12)

    def test_edge_orbits_restrict_pair_orbits(self, group):
        edges = torch.randint(group.num_nodes, (2, 9), generator=torch.Generator().manual_seed(1))
        orbits = group.edge_orbits(edges)
        pairs = group.pair_orbits().index[edges[0], edges[1]]
        assert torch.equal(orbits.index[:, None] == orbits.index, pairs[:, None] == pairs)
        assert orbits.num_orbits == pairs.unique().numel()


def test_perm_lists_images():
    cycle = PermutationGroup.from_cycles(3, [(0, 1, 2)])
    assert cycle.generators.tolist() == [[1, 2, 0]]
    assert cycle.contains([2, 0, 1]) and not cycle.contains([1, 0, 2])


def test_a_cycle_that_is_not_its_inverse_tells_directions_apart():
    # Pairs (i, g(i)) and (i, g^-1(i)) lie in different orbits of a 3-cycle.
    index = PermutationGroup.from_cycles(3, [(0, 1, 2)]).pair_orbits().index
    assert index[0, 1] == index[1, 2] == index[2, 0] != index[0, 2]
    assert index[0, 2] == index[2, 1] == index[1, 0]


def test_symmetric_and_trivial():
    assert PermutationGroup.symmetric(5).order() == 120
    assert PermutationGroup.symmetric(5).commutant_dim() == 2
    assert PermutationGroup.trivial(5).order() == 1
    assert PermutationGroup.trivial(5).commutant_dim() == 25
    one = PermutationGroup.symmetric(1)
    assert (one.order(), one.commutant_dim(), one.generators.shape) == (1, 1, (0, 1))


def test_wreath_product_has_three_pair_orbits():
    swaps = PermutationGroup.from_cycles(3, [(0, 1)], [(0, 1, 2)])
    group = ClusterGroup(Partition.grid(1, 12, (1, 4)), swaps=swaps)
    assert group.commutant_dim() == 3
    assert group.order() == math.factorial(4) ** 3 * 6


def test_known_automorphism_group_dimension():
    # The skeleton's (S_2)^2: multiplicities 10, 3, 3, so 118 pair orbits.
    legs = [(1, 4), (2, 5), (3, 6)]
    arms = [(10, 13), (11, 14), (12, 15)]
    assert PermutationGroup.from_cycles(16, legs, arms).commutant_dim() == 118


@pytest.mark.parametrize(
    ("generators", "message"),
    [
        ([[0, 0, 1]], "generator 0 is not a permutation: 2 nodes have the image 0"),
        ([[0, 1, 2], [0, 1]], r"generator 1 must list the images of 3 nodes; got shape \[2\]"),
        ([[0, 1, 3]], r"generator 0 sends node 2 to 3, outside 0\.\.2"),
        ([[0, -1, 2]], "sends node 1 to -1"),
        ([[0.0, 1.0, 2.0]], "must be integers"),
    ],
)
def test_bad_generators_are_named(generators, message):
    with pytest.raises(GroupError, match=message):
        PermutationGroup(3, generators)


@pytest.mark.parametrize(
    ("cycles", "message"),
    [([(0, 3)], r"node 3, outside 0\.\.2"), ([(0, 1), (1, 2)], "must be disjoint")],
)
def test_bad_cycles_are_named(cycles, message):
    with pytest.raises(GroupError, match=message):
        PermutationGroup.from_cycles(3, cycles)


@pytest.mark.parametrize("group", [THREE_CYCLE, PermutationGroup.symmetric(4)], ids=repr)
def test_contains_rejects_what_is_no_permutation(group):
    with pytest.raises(GroupError, match="not a permutation"):
        group.contains([0, 0, 1, 2])


def test_no_nodes_is_an_error():
    with pytest.raises(GroupError, match="num_nodes=0"):
        PermutationGroup(0)


def test_swaps_of_unequal_clusters_are_named():
    swaps = PermutationGroup.from_cycles(2, [(0, 1)])
    with pytest.raises(GroupError, match="cluster 0 with 2 nodes and cluster 1 with 3"):
        ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1]), swaps=swaps)


def test_swaps_of_another_degree_are_named():
    with pytest.raises(GroupError, match="on the 2 clusters; got a group on 4 points"):
        ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1]), swaps=THREE_CYCLE)


def test_project_checks_shape_and_type():
    with pytest.raises(GroupError, match=r"4 nodes.*\[3, 3\]"):
        THREE_CYCLE.project(torch.randn(3, 3))
    with pytest.raises(TypeError, match=r"torch\.int64"):
        THREE_CYCLE.project(torch.zeros(4, 4, dtype=torch.int64))


class TestPreserves:
    complete_bipartite = torch.tensor([[0, 0, 1, 1], [2, 3, 2, 3]])

    @pytest.mark.parametrize("as_oracle", [False, True])
    def test_blocks_of_constant_weight(self, as_oracle):
        group = ClusterGroup(Partition.from_labels([0, 0, 1, 1]))
        if as_oracle:
            group = PermutationGroup(4, group.generators)
        assert group.preserves(self.complete_bipartite)
        assert group.preserves(self.complete_bipartite, torch.full((4,), 0.3))
        assert not group.preserves(self.complete_bipartite[:, :3])
        assert not group.preserves(self.complete_bipartite, torch.tensor([1.0, 1.0, 1.0, 2.0]))
        loops = torch.cat([self.complete_bipartite, torch.tensor([[0, 1], [0, 1]])], 1)
        assert group.preserves(loops)
        assert not group.preserves(loops[:, :5])

    @pytest.mark.parametrize("as_oracle", [False, True])
    def test_parallel_edges_add_up(self, as_oracle):
        group = ClusterGroup(Partition.from_labels([0, 0, 1]))
        if as_oracle:
            group = PermutationGroup(3, group.generators)
        doubled = torch.tensor([[0, 0, 1], [2, 2, 2]])
        assert not group.preserves(doubled)
        assert group.preserves(doubled, torch.tensor([0.5, 0.5, 1.0]))

    def test_swaps_must_preserve_the_blocks(self):
        swaps = PermutationGroup.from_cycles(2, [(0, 1)])
        group = ClusterGroup(Partition.from_labels([0, 0, 1, 1]), swaps=swaps)
        assert not group.preserves(self.complete_bipartite)
        both = torch.cat([self.complete_bipartite, self.complete_bipartite.flip(0)], 1)
        assert group.preserves(both)

    def test_a_directed_cycle_has_rotations_only(self):
        cycle = torch.tensor([[0, 1, 2], [1, 2, 0]])
        assert PermutationGroup.from_cycles(3, [(0, 1, 2)]).preserves(cycle)
        assert not PermutationGroup.from_cycles(3, [(0, 1)]).preserves(cycle)

    def test_no_edges_are_preserved_by_all(self):
        assert PermutationGroup.symmetric(3).preserves(torch.empty(2, 0, dtype=torch.int64))

    @pytest.mark.parametrize(
        ("edge_index", "error", "message"),
        [
            (torch.tensor([[0, 4], [1, 1]]), GraphError, r"0\.\.3; edge 1 names node 4"),
            (torch.tensor([[0, -1], [1, 1]]), GraphError, "edge 1 names node -1"),
            (torch.tensor([[0.0], [1.0]]), GraphError, r"torch\.int64; got torch\.float32"),
            (torch.tensor([[0], [1]], dtype=torch.int32), GraphError, r"got torch\.int32"),
            (torch.zeros(3, 2, dtype=torch.int64), GraphError, r"\[3, 2\]; transpose it"),
            (torch.zeros(4, dtype=torch.int64), GraphError, r"got \[4\]"),
            ([[0], [1]], TypeError, "got list"),
        ],
    )
    @pytest.mark.parametrize("group", [THREE_CYCLE, PermutationGroup.symmetric(4)], ids=repr)
    def test_bad_graphs_are_named(self, group, edge_index, error, message):
        with pytest.raises(error, match=message):
            group.preserves(edge_index)
        with pytest.raises(error, match=message):
            group.edge_orbits(edge_index)

    def test_bad_weights_are_named(self):
        with pytest.raises(GraphError, match=r"4 edges; got shape \[3\]"):
            THREE_CYCLE.preserves(self.complete_bipartite, torch.ones(3))
        with pytest.raises(TypeError, match="floating-point"):
            THREE_CYCLE.preserves(self.complete_bipartite, torch.ones(4, dtype=torch.int64))


MILLION = """
import math, sys
from pathlib import Path
import torch
from gsym import ClusterGroup, Partition

n = 10**6
nodes = torch.arange(n)
labels = {"clusters": nodes % 1000, "one": nodes * 0, "alone": nodes}
group = ClusterGroup(Partition(labels[sys.argv[1]]))
perm = group.sample(generator=torch.Generator().manual_seed(0))
k = group.partition.num_clusters
assert group.commutant_dim() == k * k + sum(c > 1 for c in group.partition.sizes)
assert group.contains(perm)
assert group.contains(perm.roll(1)) == (k == 1)
expected = sum(math.lgamma(c + 1) for c in group.partition.sizes)
assert math.isclose(group.log_order(), expected, rel_tol=1e-12, abs_tol=1e-9)
# Not ru_maxrss, which keeps the peak of the process that started this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["clusters", "one", "alone"])
def test_a_million_nodes_in_under_a_gibibyte(kind):
    run = subprocess.run(
        [sys.executable, "-c", MILLION, kind], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1.0


def test_too_many_generators_are_refused():
    group = ClusterGroup(Partition(torch.arange(10**6) % 1000))
    with pytest.raises(GroupError, match=r"14\.9 GiB; draw elements with sample"):
        group.generators  # noqa: B018


def test_order_of_large_groups_is_an_exact_integer():
    group = ClusterGroup(Partition(torch.arange(10**4) % 100))
    assert group.order() == math.factorial(100) ** 100


def test_text_forms():
    assert repr(THREE_CYCLE) == "PermutationGroup(<1 generator> on 4 nodes)"
    assert repr(ClusterGroup(Partition.grid(4, 4, 2))) == "ClusterGroup((S_4)^4 on 16 nodes)"
    assert str(PermutationGroup.trivial(3)) == "trivial"
    many = Partition(torch.repeat_interleave(torch.arange(8), torch.arange(1, 9)))
    assert str(ClusterGroup(many)) == "8 clusters of 1 to 8 in 36"


def test_fingerprints_follow_what_ties_weights():
    p = Partition.from_labels([0, 1, 0, 1])
    swap = PermutationGroup.from_cycles(2, [(0, 1)])
    prints = {
        ClusterGroup(p).fingerprint(),
        ClusterGroup(p, swaps=swap).fingerprint(),
        ClusterGroup(Partition.from_labels([1, 0, 1, 0])).fingerprint(),
        THREE_CYCLE.fingerprint(),
    }
    assert len(prints) == 4
    # Other generators of the same group, and swaps that swap nothing, change nothing.
    assert PermutationGroup.from_cycles(4, [(0, 2, 1)]).fingerprint() == THREE_CYCLE.fingerprint()
    same = ClusterGroup(p, swaps=PermutationGroup(2, [[0, 1]]))
    assert same.fingerprint() == ClusterGroup(p).fingerprint()


class TestCorners:
    def test_the_identity_alone_can_be_drawn(self):
        assert PermutationGroup(3, [[0, 1, 2]]).sample().tolist() == [0, 1, 2]

    @pytest.mark.parametrize("group", [THREE_CYCLE, ClusterGroup(Partition.single(3))])
    def test_a_graph_without_edges_has_no_orbits(self, group):
        orbits = group.edge_orbits(torch.empty(2, 0, dtype=torch.int64))
        assert orbits.num_orbits == 0 and orbits.index.shape == (0,)

    def test_the_commutant_of_very_many_exchanged_clusters(self):
        k = 500_000
        partition = Partition(torch.arange(2 * k) // 2)
        group = ClusterGroup(partition, swaps=PermutationGroup.symmetric(k))
        assert group.commutant_dim() == 3

    def test_cycles_come_in_lists(self):
        with pytest.raises(GroupError, match=r"write \[\(0, 1, 2\)\]"):
            PermutationGroup.from_cycles(3, (0, 1, 2))
        assert PermutationGroup.from_cycles(3, [()]).order() == 1

    def test_a_partition_and_a_group_are_wanted(self):
        with pytest.raises(TypeError, match="expected a Partition; got list"):
            ClusterGroup([0, 0, 1])
        with pytest.raises(TypeError, match="swaps must be a PermutationGroup"):
            ClusterGroup(Partition.singletons(2), swaps=[[1, 0]])

    def test_an_array_that_runs_backwards(self):
        assert PermutationGroup(3, [np.arange(3)[::-1]]).order() == 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PermutationGroup(True), "num_nodes must be a whole number; got True"),
        (lambda: PermutationGroup(2.0), r"whole number; got 2\.0"),
        (lambda: PermutationGroup(2, [[True, 0]]), "got a boolean among them"),
        (lambda: PermutationGroup(2, [np.ma.masked_array([1, 0], mask=[0, 1])]), "masked array"),
        (lambda: THREE_CYCLE.contains(np.ma.masked_array([0, 1, 2, 3])), "masked array"),
    ],
)
def test_booleans_and_gaps_are_no_numbers(build, message):
    with pytest.raises(GroupError, match=message):
        build()


def test_a_general_group_as_clusters_of_one_node():
    group = PermutationGroup.from_cycles(5, [(0, 1, 2)], [(3, 4)])
    clusters = group.as_clusters()
    assert type(clusters) is ClusterGroup and clusters.partition.num_clusters == 5
    assert clusters.order() == group.order() == 6
    assert torch.equal(clusters.pair_orbits().index, group.pair_orbits().index)
    assert clusters.as_clusters() is clusters
