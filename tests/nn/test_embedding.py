"""OrbitEmbedding: vectors of nodes, tied by a group or summed along a chain."""

import copy
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import random_cluster_group
from torch import nn

from gsym import ClusterGroup, Hierarchy, Partition, PermutationGroup
from gsym.errors import GroupError, SignalError
from gsym.groups.levels import few_levels, read_levels
from gsym.nn import OrbitEmbedding

N = 7
CLUSTERS = ClusterGroup(Partition([1, 0, 2, 1, 2, 2, 3]))
TURNED = ClusterGroup(
    Partition([0, 1, 2, 0, 1, 2, 3]), swaps=PermutationGroup.from_cycles(4, [(0, 1, 2)])
)
CYCLE = PermutationGroup.from_cycles(N, [(0, 1, 2)])
LOCAL, GLOBAL = PermutationGroup.trivial(N), PermutationGroup.symmetric(N)
COARSE = ClusterGroup(CLUSTERS.partition.join(Partition([0, 0, 1, 2, 3, 4, 5])))
GROUPS = {
    "clusters": [CLUSTERS],
    "turned clusters": [TURNED],
    "3-cycle": [CYCLE],
    "local": [LOCAL],
    "global": [GLOBAL],
    "chain": [LOCAL, CLUSTERS, COARSE, GLOBAL],
    "chain of clusters": [CLUSTERS, COARSE, GLOBAL],
    "chain from a 3-cycle": [GLOBAL, CYCLE],
    "not nested": [CLUSTERS, CYCLE],
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=GROUPS.values(), ids=GROUPS)
def levels(request):
    return request.param


def embedding(levels, channels=3, dtype=torch.float64):
    made = OrbitEmbedding(channels, levels[0]) if len(levels) == 1 else None
    return (made or OrbitEmbedding(channels, levels=levels)).to(dtype)


def average(group):
    """The mean of the permutation matrices of the group, from orbits grown node by node."""
    n, moves = group.num_nodes, group.generators.tolist()
    mean = torch.zeros(n, n, dtype=torch.float64)
    for start in range(n):
        orbit, new = {start}, [start]
        while new:
            new = [g[i] for g in moves for i in new if g[i] not in orbit]
            orbit |= set(new)
        mean[start, sorted(orbit)] = 1 / len(orbit)
    return mean


def common(levels):
    """Permutations that fix the table: elements of all groups at once."""
    random = torch.Generator().manual_seed(0)
    fine = min(levels, key=lambda group: group.node_orbits().sizes.max())
    found = [*fine.generators, *(fine.sample(generator=random) for _ in range(4))]
    averages = [average(group) for group in levels]
    return [g for g in found if all(torch.allclose(a[g], a) for a in averages)]


class TestSymmetry:
    def test_is_invariant_under_each_generator(self, levels):
        table = embedding(levels)()
        for perm in common(levels):
            assert torch.equal(table[perm], table)

    def test_changes_outside(self, levels):
        table, apart = embedding(levels)(), torch.cat([average(g) for g in levels], dim=1)
        outside = [p for p in map(torch.randperm, [N] * 64) if not torch.equal(apart[p], apart)]
        if not outside:
            pytest.skip("all nodes are alike")
        for perm in outside:
            # Over-tied vectors would not change.
            assert (table[perm] - table).norm() > 1e-3 * table.norm()

    def test_spans_the_dimension_of_theory(self, levels):
        expected = int(torch.linalg.matrix_rank(torch.cat([average(g) for g in levels], dim=1)))
        emb = embedding(levels)
        tables = []
        for _ in range(4 * N):
            emb.reset_parameters()
            tables.append(emb().detach().flatten())
        assert int(torch.linalg.matrix_rank(torch.stack(tables))) == 3 * expected

    def test_stays_after_training(self, levels):
        emb = embedding(levels)
        before = emb.orbit_weight.detach().clone()
        target = torch.randn(N, 3, dtype=torch.float64)
        optimiser = torch.optim.Adam(emb.parameters(), lr=0.1)
        for _ in range(5):
            optimiser.zero_grad()
            (emb() - target).square().mean().backward()
            optimiser.step()
        assert bool((emb.orbit_weight != before).all())
        for perm in common(levels):
            assert torch.equal(emb()[perm], emb())

    def test_aliased_rows_and_a_wrong_table_are_seen(self):
        """The tests above on spoiled layers."""
        aliased, shifted = embedding([CYCLE]), embedding([CYCLE])
        with torch.no_grad():
            aliased.orbit_weight.copy_(aliased.orbit_weight[:1].expand_as(aliased.orbit_weight))
        outside = torch.tensor([3, 1, 2, 0, 4, 5, 6])
        assert torch.equal(aliased()[outside], aliased())
        other = PermutationGroup.from_cycles(N, [(0, 1, 3)])
        assert not torch.equal(shifted()[other.generators[0]], shifted())


class TestValues:
    def test_are_the_sum_over_levels(self, levels):
        emb = embedding(levels)
        orbits = [group.node_orbits() for group in emb.levels]
        parts = emb.orbit_weight.split([o.num_orbits for o in orbits])
        slow = sum(part[o.index] for part, o in zip(parts, orbits, strict=True))
        torch.testing.assert_close(emb(), slow)
        torch.testing.assert_close(emb.weight, slow)

    def test_gradients(self, levels):
        emb = embedding(levels, 2)
        node = torch.tensor([[0, 6], [3, 3]])
        assert torch.autograd.gradcheck(
            lambda w: torch.func.functional_call(emb, {"orbit_weight": w}), emb.orbit_weight
        )
        assert torch.autograd.gradcheck(
            lambda w: torch.func.functional_call(emb, {"orbit_weight": w}, (node,)),
            emb.orbit_weight,
        )

    def test_looks_nodes_up_as_nn_embedding_does(self, levels):
        emb = embedding(levels)
        plain = nn.Embedding(N, 3, dtype=torch.float64)
        plain.weight.data.copy_(emb())
        for node in (
            torch.arange(N).repeat(4),
            torch.tensor([[[6], [2]]]),
            torch.tensor([]).long(),
        ):
            torch.testing.assert_close(emb(node), plain(node))

    @pytest.mark.parametrize("levels", [1, 3, 6])
    def test_vary_as_much_whatever_the_chain(self, levels):
        chain = [ClusterGroup(Partition(torch.arange(12) % k)) for k in (1, 2, 3, 4, 6, 12)]
        table = OrbitEmbedding(20_000, levels=chain[:levels])().detach()
        torch.testing.assert_close(table.square().mean(1), torch.ones(12), rtol=0.05, atol=0)


class TestProjection:
    def test_is_the_nearest_table(self, levels):
        emb, table = embedding(levels), torch.randn(N, 3, dtype=torch.float64)
        basis = torch.cat([average(g) for g in levels], dim=1)
        nearest = basis @ torch.linalg.pinv(basis) @ table
        loss = emb.copy_from(table)
        torch.testing.assert_close(emb().detach(), nearest, rtol=1e-9, atol=1e-9)
        assert loss == pytest.approx(float((table - nearest).norm() / table.norm()), abs=1e-9)

    def test_loses_nothing_that_fits(self, levels):
        emb, other = embedding(levels), embedding(levels)
        assert other.copy_from(emb()) < 1e-12
        torch.testing.assert_close(other(), emb())

    def test_shares_of_energy(self):
        chain = GROUPS["chain"]
        emb, table = embedding(chain), torch.randn(N, 3, dtype=torch.float64)
        emb.copy_from(table)
        means = [average(g) @ table for g in chain]
        parts = [*(a - b for a, b in pairwise(means)), means[-1]]
        expected = torch.stack([p.square().sum() / table.square().sum() for p in parts])
        torch.testing.assert_close(emb.energy(), expected)
        assert float(emb.energy().sum()) == pytest.approx(1)

    def test_refuses_another_shape(self):
        with pytest.raises(SignalError, match=re.escape("must be [7, 3]") + ".*" + r"\[3, 7\]"):
            embedding([CLUSTERS]).copy_from(torch.randn(3, N))


class TestLevels:
    def test_a_hierarchy_gives_its_levels(self):
        hierarchy = Hierarchy.from_partitions([Partition.grid(4, 4, 2)])
        emb = OrbitEmbedding(2, levels=hierarchy)
        assert [g.partition.num_clusters for g in emb.levels] == [16, 4, 1]
        assert emb.orbit_weight.shape == (21, 2)

    def test_of_many_levels_seven_are_taken(self):
        merges = [[0, 1], *([63 + i, 1 + i] for i in range(1, 63))]
        hierarchy = Hierarchy.from_merges(64, merges, range(63))
        counts = [p.num_clusters for p in few_levels(hierarchy)]
        wanted = np.geomspace(64 / 3, 2, 5)
        assert counts[0] == 64 and counts[-1] == 1
        assert counts[1:-1] == [round(w) for w in wanted]

    @pytest.mark.parametrize(
        ("levels", "error", "words"),
        [
            (CLUSTERS, TypeError, r"write \[group\] for one"),
            ([], GroupError, "at least one"),
            ([3], TypeError, "got int"),
            ("chain", TypeError, "got str"),
            ([CLUSTERS, CLUSTERS.partition], GroupError, "twice"),
            ([CLUSTERS, Partition.single(8)], GroupError, "same 7 nodes; got one on 8"),
        ],
    )
    def test_refuses(self, levels, error, words):
        with pytest.raises(error, match=words):
            read_levels(levels)

    def test_takes_one_of_group_and_levels(self):
        for given in ({}, {"group": CLUSTERS, "levels": [CLUSTERS]}):
            with pytest.raises(TypeError, match="give group= or levels="):
                OrbitEmbedding(2, **given)
        with pytest.raises(TypeError, match="group must be a PermutationGroup"):
            OrbitEmbedding(2, Partition.single(3))


class TestState:
    def test_another_group_is_refused(self, levels):
        state = embedding(levels).state_dict()
        embedding(levels).load_state_dict(state)
        like = ClusterGroup(Partition([0, 0, 1, 1, 2, 2, 3]))
        other = ClusterGroup(Partition([0, 1, 2, 0, 1, 2, 2]))
        if len(levels) == 1 and levels[0].node_orbits().num_orbits == 4:
            with pytest.raises(GroupError, match="another group"):
                embedding([like]).load_state_dict(state)
        else:
            with pytest.raises(GroupError, match=r"levels|another group"):
                embedding([*levels[:-1], like, other]).load_state_dict(state)

    def test_the_order_of_levels_does_not_matter(self):
        chain = GROUPS["chain"]
        one, other = embedding(chain), embedding(chain[::-1])
        other.load_state_dict(one.state_dict())
        assert other.levels == one.levels and torch.equal(other(), one())

    def test_copies_agree(self, levels):
        emb = embedding(levels)
        assert torch.equal(copy.deepcopy(emb)(), emb())

    def test_random_groups(self):
        for seed in range(12):
            group = random_cluster_group(seed)
            emb = OrbitEmbedding(2, group)
            assert emb.orbit_weight.size(0) == group.node_orbits().num_orbits
            for perm in group.generators:
                assert torch.equal(emb()[perm], emb())


class TestBadInput:
    def test_numbers_that_no_node_has(self):
        emb = embedding([CLUSTERS])
        with pytest.raises(IndexError, match=r"numbered 0..6; got 7.*modulo 7"):
            emb(torch.arange(8))
        with pytest.raises(IndexError, match="got -1"):
            emb(torch.tensor([0, -1]))

    def test_signals(self):
        with pytest.raises(SignalError, match=r"torch.float32.*torch.cat"):
            embedding([CLUSTERS])(torch.randn(2, N, 3))
        with pytest.raises(TypeError, match="got list"):
            embedding([CLUSTERS])([0, 1])

    def test_channels(self):
        with pytest.raises(ValueError, match="channels must be at least 1"):
            OrbitEmbedding(0, CLUSTERS)
