"""Layers with levels: the sum of tied maps, its shares, and maps that move between groups."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from gsym import ClusterGroup, Hierarchy, Partition, PermutationGroup, Representation, kernels
from gsym.check import check_layer, equivariance_error
from gsym.errors import GroupError
from gsym.nn import GNet, GNetConv, OrbitLinear
from gsym.nn._cluster_map import read
from gsym.nn._levels import is_subgroup

N = 9
# Unsorted, with a cluster of three, so that its generators hold a 3-cycle, and one of one node.
FINE = Partition.from_labels([0, 1, 0, 2, 1, 0, 3, 3, 2])
MIDDLE = Partition.from_labels([0, 1, 0, 1, 1, 0, 0, 0, 1])
ALONE = Partition.from_labels([0, 1, 0, 2, 3, 0, 4, 4, 5])
CHAIN = [FINE, MIDDLE, Partition.single(N)]
TURN = ClusterGroup(
    Partition.from_labels([0, 1, 2, 0, 1, 2, 3, 3, 3]),
    swaps=PermutationGroup.from_cycles(4, [(0, 1, 2)]),
)
SQUARE = PermutationGroup(4, [[1, 2, 3, 0], [0, 3, 2, 1]])
HALVES = Partition([0, 1, 0, 1, 0, 1])
# What keeps the halves or exchanges them, as a general group: its pairs need single nodes.
BOTH = PermutationGroup(6, [[2, 1, 4, 3, 0, 5], [2, 1, 0, 3, 4, 5], [1, 0, 3, 2, 5, 4]])

CHAINS = {
    "three levels": CHAIN,
    "with nodes alone": [ALONE, FINE, Partition.single(N)],
    "with the trivial group": [Partition.singletons(N), FINE, Partition.single(N)],
    "with swaps": [ClusterGroup(TURN.partition), TURN, Partition.single(N)],
    "a 3-cycle": [PermutationGroup.from_cycles(5, [(0, 1, 2)]), Partition([0, 0, 0, 1, 1])],
    "single nodes": [Partition.singletons(4), SQUARE],
    "single nodes, unsorted": [Partition([2, 0, 3, 1]), SQUARE],
    "one level": [FINE],
    "clusters in a general group": [HALVES, BOTH],
}
CROSSED = [Partition([0, 0, 1, 1, 2, 2, 3, 3, 3]), Partition([0, 1, 0, 1, 2, 3, 2, 3, 3])]


def soft(levels: object, widths: tuple[int, int] = (2, 3), seed: int = 0, **options) -> OrbitLinear:
    """A layer in float64 with random weights and scales."""
    torch.manual_seed(seed)
    layer = OrbitLinear(*widths, levels=levels, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def signal(layer: nn.Module, *batch: int) -> Tensor:
    return torch.randn(*batch, layer.num_nodes, layer.in_channels, dtype=torch.float64)


def dense(layer: nn.Module) -> Tensor:
    """The matrix of a layer, ``[out, in, n, n]``."""
    n, a = layer.num_nodes, layer.in_channels
    eye = torch.eye(n * a, dtype=torch.float64).view(n * a, n, a)
    with torch.no_grad():
        images = layer(eye) - layer(torch.zeros_like(eye[:1]))
    return images.view(n, a, n, -1).permute(3, 1, 2, 0)


class TestMap:
    @pytest.mark.parametrize("mixing", ["full", "low_rank", "none"])
    @pytest.mark.parametrize("name", CHAINS)
    def test_is_the_sum_of_its_levels(self, name: str, mixing: str) -> None:
        rank = 2 if mixing == "low_rank" else None
        layer = soft(CHAINS[name], mixing=mixing, rank=rank)
        x = signal(layer, 3).requires_grad_()
        right = layer.soft.define(x)
        assert len(layer.soft.parts) == len(CHAINS[name])
        y = layer(x)
        torch.testing.assert_close(y, right, rtol=0, atol=1e-12)
        outer = torch.randn_like(y)
        leaves = [x, *layer.parameters()]
        found = torch.autograd.grad(y, leaves, outer)
        wanted = torch.autograd.grad(right, leaves, outer)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), right, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("backend", ["native", "reference"])
    def test_on_other_back_ends(self, backend: str) -> None:
        layer = soft([Partition([0, 1, 2] * 8), Partition.single(24)], (4, 4))
        x = signal(layer, 2).requires_grad_()
        right = layer.soft.define(x)
        with kernels.backend(backend):
            y = layer(x)
        torch.testing.assert_close(y, right, rtol=0, atol=1e-12)
        outer = torch.randn_like(y)
        (found,), (wanted,) = (torch.autograd.grad(v, x, outer) for v in (y, right))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)

    def test_of_crossed_levels(self) -> None:
        with pytest.warns(UserWarning, match="not nested"):
            layer = soft(CROSSED)
        x = signal(layer, 2)
        torch.testing.assert_close(layer(x), layer.soft.define(x), rtol=0, atol=1e-12)
        meet = CROSSED[0].meet(CROSSED[1])
        assert layer.group == ClusterGroup(meet)
        assert equivariance_error(layer, layer.group, x) < 1e-13
        for level in CROSSED:
            assert equivariance_error(layer, ClusterGroup(level), x) > 1e-2
        # The maps span the sum of both commutants, and no more.
        spans = [g.project(torch.randn(60, N, N).double()) for g in layer.levels]
        theory = torch.linalg.matrix_rank(torch.cat(spans).flatten(1), rtol=1e-9)
        maps = []
        for seed in range(int(theory) + 3):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                maps.append(dense(soft(CROSSED, (1, 1), seed)).flatten())
        assert torch.linalg.matrix_rank(torch.stack(maps), rtol=1e-9) == theory

    @pytest.mark.parametrize("name", ["with swaps", "single nodes"])
    def test_kit(self, name: str) -> None:
        group = soft(CHAINS[name]).group
        report = check_layer(lambda _: OrbitLinear(1, 2, levels=CHAINS[name]), group)
        wanted = {"equivariant", "equivariant after training", "dimension", "gradgradcheck"}
        assert wanted <= set(report.passed)
        assert "not over-tied" in {*report.passed, *report.skipped}

    def test_levels_in_any_order_and_of_a_hierarchy(self) -> None:
        h = Hierarchy.from_partitions([FINE, MIDDLE])
        layer = OrbitLinear(1, 1, levels=[h[1], h[4], h[2]])
        assert [g.partition.num_clusters for g in layer.levels] == [4, 2, 1]
        assert [g.partition for g in OrbitLinear(1, 1, levels=h).levels] == list(h)
        assert "levels=[" in repr(layer)

    @pytest.mark.parametrize("name", CHAINS)
    def test_initial_weights_keep_the_size_of_a_signal(self, name: str) -> None:
        torch.manual_seed(0)
        layer = OrbitLinear(8, 8, levels=CHAINS[name], bias=False)
        x = torch.randn(1, layer.num_nodes, 8)
        x[:, 1:] = x[:, 1:] + 2 * x[:, :1]  # not white
        kept = []
        for _ in range(200):
            layer.reset_parameters(gain=1.0)
            with torch.no_grad():
                kept.append(layer(x).square().mean() / x.square().mean())
        assert float(torch.stack(kept).mean()) == pytest.approx(1, abs=0.15)

    def test_a_hook_on_a_level_is_heard(self) -> None:
        layer = soft(CHAIN)
        x, heard = signal(layer, 2), []
        right = layer(x)
        layer.soft.parts[1].register_forward_hook(lambda *_: heard.append(1))
        torch.testing.assert_close(layer(x), right)
        assert heard == [1]

    def test_a_checkpoint_of_another_chain_is_refused(self) -> None:
        other = soft([FINE, Partition([0, 0, 0, 1, 0, 0, 0, 0, 1]), Partition.single(N)])
        with pytest.raises(GroupError, match="another group"):
            soft(CHAIN).load_state_dict(other.state_dict())


class TestEnergy:
    @pytest.mark.parametrize("name", CHAINS)
    def test_is_that_of_dense_projections(self, name: str) -> None:
        layer = soft(CHAINS[name])
        shares, form = layer.energy(), dense(layer)
        means = [g.project(form) for g in layer.levels]
        parts = [a - b for a, b in pairwise(means)] + means[-1:]
        wanted = torch.stack([part.square().sum() for part in parts]) / form.square().sum()
        torch.testing.assert_close(shares, wanted, rtol=0, atol=1e-12)
        assert float(shares.sum()) == pytest.approx(1, abs=1e-12)

    def test_names_the_level_that_a_map_needs(self) -> None:
        layer = soft(CHAIN)
        with torch.no_grad():
            layer.soft.scale[:] = torch.tensor([0.0, 0.0, 1.0])
        torch.testing.assert_close(layer.energy(), torch.tensor([0.0, 0.0, 1.0]).double())

    def test_needs_nested_levels(self) -> None:
        with pytest.warns(UserWarning, match="not nested"):
            layer = soft(CROSSED)
        with pytest.raises(ValueError, match="not nested"):
            layer.energy()
        with pytest.raises(ValueError, match="no levels"):
            OrbitLinear(1, 1, ClusterGroup(FINE)).energy()


GROUPS = {
    "fine": ClusterGroup(FINE),
    "nodes alone": ClusterGroup(ALONE),
    "middle": ClusterGroup(MIDDLE),
    "all": ClusterGroup(Partition.single(N)),
    "trivial": ClusterGroup(Partition.singletons(N)),
    "turn": TURN,
    "turned": ClusterGroup(TURN.partition),
    "general": PermutationGroup.from_cycles(N, [(0, 3, 1, 4, 2, 5)], [(6, 7)]),
}


def hard(group: PermutationGroup | None, **options) -> OrbitLinear:
    torch.manual_seed(0)
    layer = OrbitLinear(2, 3, group, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


class TestToGroup:
    @pytest.mark.parametrize("target", GROUPS)
    @pytest.mark.parametrize("name", GROUPS)
    def test_is_the_dense_projection(self, name: str, target: str) -> None:
        layer, group = hard(GROUPS[name]), GROUPS[target]
        moved = layer.to_group(group)
        form, bias = dense(layer), layer(torch.zeros(N, 2).double())
        right = group.project(form)
        torch.testing.assert_close(dense(moved), right, rtol=0, atol=1e-12)
        assert moved.group == group
        lost = (form - right).square().sum() / form.square().sum()
        assert moved.moved.lost == pytest.approx(float(lost), abs=1e-12)
        assert moved.moved.exact == is_subgroup(group, GROUPS[name])
        orbits = group.node_orbits()
        means = torch.zeros(orbits.num_orbits, 3).double().index_add(0, orbits.index, bias)
        means = (means / orbits.sizes[:, None])[orbits.index]
        torch.testing.assert_close(moved(torch.zeros(N, 2).double()), means, rtol=0, atol=1e-12)
        if moved.moved.exact:
            x = signal(layer, 2)
            assert (moved(x) - layer(x)).abs().max() < 1e-12
            assert str(moved.moved) == "exact"
        else:
            assert str(moved.moved).startswith("lost")

    @pytest.mark.parametrize("mixing", ["low_rank", "quotient", "none"])
    def test_of_other_mixings(self, mixing: str) -> None:
        coarse = torch.tensor([[0, 1, 2], [1, 2, 3]])
        options = {"low_rank": {"rank": 2}, "quotient": {"cluster_edge_index": coarse}}
        layer = hard(GROUPS["fine"], mixing=mixing, **options.get(mixing, {}))
        for target in ("nodes alone", "trivial", "middle"):
            moved = layer.to_group(GROUPS[target])
            right = GROUPS[target].project(dense(layer))
            torch.testing.assert_close(dense(moved), right, rtol=0, atol=1e-12)
        if mixing == "none":
            assert moved.mixing is None

    def test_of_all_permutations_of_any_number_of_nodes(self) -> None:
        layer = hard(None)
        x = torch.randn(2, N, 2).double()
        fine = layer.to_group(TURN)
        torch.testing.assert_close(fine(x), layer(x), rtol=0, atol=1e-12)
        back = fine.to_group(None)
        assert back.group is None
        torch.testing.assert_close(back(x), layer(x), rtol=0, atol=1e-12)
        chain = layer.soften(CHAIN)
        torch.testing.assert_close(chain(x), layer(x), rtol=0, atol=1e-12)

    def test_with_representations(self) -> None:
        mirror = PermutationGroup.from_cycles(N, [(0, 1), (2, 3)])
        pose = Representation.from_signs(mirror, [[-1, 1]])
        layer = OrbitLinear(2, 2, mirror, in_rep=pose, out_rep=pose).double()
        x = signal(layer, 2)
        moved = layer.to_group(ClusterGroup(Partition.singletons(N)))
        torch.testing.assert_close(moved(x), layer(x), rtol=0, atol=1e-12)
        with pytest.raises(GroupError, match="representations"):
            layer.to_group(mirror)

    def test_keeps_type_mode_and_random_numbers(self) -> None:
        layer = OrbitLinear(2, 2, TURN).eval()
        before = torch.get_rng_state()
        moved = layer.to_group(ClusterGroup(ALONE.meet(TURN.partition)))
        assert torch.equal(torch.get_rng_state(), before)
        assert not moved.training
        assert moved.weight_self.dtype == torch.float32
        with pytest.raises(GroupError, match="9 nodes but the group or levels 4"):
            layer.to_group(SQUARE)
        with pytest.raises(TypeError, match="PermutationGroup"):
            layer.to_group(3)


class TestHardenAndSoften:
    @pytest.mark.parametrize("name", CHAINS)
    def test_harden_projects_and_is_exact_at_the_finest(self, name: str) -> None:
        layer = soft(CHAINS[name])
        form = dense(layer)
        for i, group in enumerate(layer.levels):
            one = layer.harden(group)
            torch.testing.assert_close(dense(one), group.project(form), rtol=0, atol=1e-12)
            assert one.moved.exact == (i == 0)
            assert one.levels == ()
        x = signal(layer, 2)
        assert (layer.harden(layer.levels[0])(x) - layer(x)).abs().max() < 1e-12

    def test_harden_by_the_number_of_clusters(self) -> None:
        layer = soft(CHAIN)
        assert layer.harden(2).group == ClusterGroup(MIDDLE) == layer.harden(MIDDLE).group
        with pytest.raises(ValueError, match=r"level 3 must be one of the chain.*4 \("):
            layer.harden(3)
        with pytest.raises(ValueError, match="must be one of the chain"):
            layer.harden(TURN)
        with pytest.raises(ValueError, match="one group and no levels"):
            hard(TURN).harden(2)
        twice = soft([ClusterGroup(TURN.partition), TURN])
        with pytest.raises(ValueError, match="several levels"):
            twice.harden(4)

    @pytest.mark.parametrize("name", CHAINS)
    def test_soften_undoes_harden(self, name: str) -> None:
        layer = soft(CHAINS[name])
        one = layer.harden(layer.levels[0])
        again = one.soften(CHAINS[name])
        x = signal(layer, 2)
        assert (again(x) - layer(x)).abs().max() < 1e-11
        assert again.moved.exact
        # Every level has what the coarser ones have not, and nothing of theirs.
        for fine, coarse in pairwise(again.soft.parts):
            assert coarse.group.project(dense(fine)).abs().max() < 1e-12
        torch.testing.assert_close(again.energy(), layer.energy(), rtol=0, atol=1e-12)

    def test_soften_to_a_larger_chain_loses(self) -> None:
        layer = hard(GROUPS["trivial"])
        chain = layer.soften(CHAIN)
        right = ClusterGroup(FINE).project(dense(layer))
        torch.testing.assert_close(dense(chain), right, rtol=0, atol=1e-12)
        assert not chain.moved.exact
        assert 0 < chain.moved.lost < 1

    def test_crossed_levels(self) -> None:
        layer = hard(ClusterGroup(CROSSED[1]))
        with pytest.warns(UserWarning, match="not nested"):
            chain = layer.soften(CROSSED)
        assert chain.moved.exact
        x = signal(layer, 2)
        torch.testing.assert_close(chain(x), layer(x), rtol=0, atol=1e-12)
        trivial = hard(GROUPS["trivial"])
        with pytest.warns(UserWarning, match="not nested"):
            nearest = trivial.soften(CROSSED)
        # The rest is orthogonal to the maps of every level: it is the projection to their sum.
        rest = dense(trivial) - dense(nearest)
        for level in nearest.levels:
            assert level.project(rest).abs().max() < 1e-6

    def test_moves_trained_layers(self) -> None:
        layer = soft(CHAIN)
        x, target = signal(layer, 8), torch.randn(8, N, 3).double()
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
        for _ in range(5):
            optimiser.zero_grad()
            (layer(x) - target).square().mean().backward()
            optimiser.step()
        one = layer.harden(4)
        assert (one(x) - layer(x)).abs().max() < 1e-12
        assert one.moved.exact
        assert copy.deepcopy(one).moved == one.moved


RING = torch.tensor([[*range(N)], [*range(1, N), 0]])


class TestNets:
    @pytest.mark.parametrize("propagate", ["none", "adjacency", "weighted"])
    def test_conv(self, propagate: str) -> None:
        torch.manual_seed(0)
        conv = GNetConv(2, 3, levels=CHAIN, propagate=propagate).double()
        with torch.no_grad():
            for parameter in conv.parameters():
                parameter.normal_()
        args = () if propagate == "none" else (RING,)
        x = signal(conv, 2)
        for moved in (conv.harden(4), conv.to_group(ClusterGroup(ALONE)), conv.soften(CHAIN)):
            assert moved.moved.exact
            torch.testing.assert_close(moved(x, *args), conv(x, *args), rtol=0, atol=1e-11)
        coarse = conv.harden(1)
        assert coarse.group == ClusterGroup(Partition.single(N))
        assert 0 < coarse.moved.lost < 1
        assert float(conv.energy().sum()) == pytest.approx(1)

    def test_pointwise_weights_move(self) -> None:
        torch.manual_seed(0)
        for group in (TURN, None, ClusterGroup(MIDDLE)):
            conv = GNetConv(2, 3, group, propagate="pointwise").double()
            with torch.no_grad():
                conv.bias.normal_()
            x = torch.randn(2, N, 2).double()
            finer = ClusterGroup(ALONE.meet(TURN.partition).meet(MIDDLE))
            moved = conv.to_group(finer)
            assert moved.moved.exact
            torch.testing.assert_close(moved(x, RING), conv(x, RING), rtol=0, atol=1e-12)
            back = moved.to_group(group)
            torch.testing.assert_close(back.weight, conv.weight, rtol=0, atol=1e-12)
            torch.testing.assert_close(back.bias, conv.bias, rtol=0, atol=1e-12)
            assert not back.moved.exact
            assert back.moved.lost < 1e-20
        with pytest.raises(ValueError, match="no levels"):
            conv.soften(CHAIN)
        with pytest.raises(ValueError, match="pointwise"):
            GNetConv(2, 3, levels=CHAIN, propagate="pointwise")

    @pytest.mark.parametrize("propagate", ["none", "adjacency"])
    def test_net(self, propagate: str) -> None:
        torch.manual_seed(0)
        net = GNet([2, 4, 1], levels=CHAIN, propagate=propagate).double()
        x = torch.randn(3, N, 2).double()
        args = () if propagate == "none" else (RING,)
        assert net.energy().shape == (2, 3)
        fine = net.harden(4)
        assert [move.exact for move in fine.moved] == [True, True]
        torch.testing.assert_close(fine(x, *args), net(x, *args), rtol=0, atol=1e-11)
        assert fine.levels == () and fine.group == ClusterGroup(FINE)
        again = fine.soften(CHAIN)
        torch.testing.assert_close(again(x, *args), net(x, *args), rtol=0, atol=1e-11)
        smaller = net.to_group(ClusterGroup(ALONE))
        torch.testing.assert_close(smaller(x, *args), net(x, *args), rtol=0, atol=1e-11)
        right = x
        for i, conv in enumerate(net.convs):
            linear = conv.linear.soft.define(right if i == 0 else right.relu())
            right = linear
        if propagate == "none":
            torch.testing.assert_close(net(x), right, rtol=0, atol=1e-11)
            flat = x.flatten(0, 1)
            torch.testing.assert_close(net(flat, batch_size=3), right.flatten(0, 1))

    def test_a_sorted_stack(self) -> None:
        chain = [Partition([0, 1, 2] * 16), Partition.single(48)]
        torch.manual_seed(0)
        net = GNet([2, 8, 2], levels=chain, propagate="none").double()
        x = torch.randn(3, 48, 2).double().requires_grad_()
        right = x
        for i, conv in enumerate(net.convs):
            right = conv.linear.soft.define(right if i == 0 else right.relu())
        for name in ("native", "auto"):
            with kernels.backend(name):
                y = net(x)
                (grad,) = torch.autograd.grad(y.sum(), x)
                torch.testing.assert_close(y, right, rtol=0, atol=1e-12)
                torch.testing.assert_close(
                    grad, torch.autograd.grad(right.sum(), x, retain_graph=True)[0]
                )
                with torch.no_grad():
                    torch.testing.assert_close(net(x), right, rtol=0, atol=1e-12)
        net.convs[1].linear.soft.parts[0].register_forward_hook(lambda *_: None)
        with kernels.backend("native"):
            torch.testing.assert_close(net(x), right, rtol=0, atol=1e-12)


def test_groups_with_the_same_maps_come_by_their_order() -> None:
    even, every = PermutationGroup(4, [[1, 2, 0, 3], [0, 2, 3, 1]]), Partition.single(4)
    for levels in ([even, every], [every, even]):
        layer = OrbitLinear(2, 2, levels=levels)
        assert layer.levels[0] is layer.group is even
        assert layer.energy().tolist() == pytest.approx([0, 1], abs=1e-6)


def test_the_group_is_the_finest_of_nested_levels() -> None:
    layer = soft([BOTH, HALVES])
    assert layer.group == layer.levels[0] == ClusterGroup(HALVES)
    assert layer.harden(HALVES).moved.exact
    assert equivariance_error(layer, layer.group, signal(layer, 2)) < 1e-12
    assert equivariance_error(layer, BOTH, signal(layer, 2)) > 1e-2


def test_a_chain_says_what_it_refuses() -> None:
    with pytest.raises(GroupError, match="same 9 nodes; got one on 4"):
        OrbitLinear(1, 1, levels=[FINE, SQUARE])
    with pytest.raises(ValueError, match="either group or levels"):
        OrbitLinear(1, 1, TURN, levels=CHAIN)
    with pytest.raises(GroupError, match="got none"):
        OrbitLinear(1, 1, levels=[])
    with pytest.raises(ValueError, match="twice"):
        OrbitLinear(1, 1, levels=[FINE, FINE])
    for wrong in (FINE, 3, "all", [3], [None]):
        with pytest.raises(TypeError, match="level"):
            OrbitLinear(1, 1, levels=wrong)
    with pytest.raises(ValueError, match="quotient"):
        OrbitLinear(1, 1, levels=CHAIN, mixing="quotient", cluster_edge_index=RING)
    pose = Representation.from_signs(TURN, [[1]])
    with pytest.raises((ValueError, GroupError), match="representation"):
        OrbitLinear(1, 1, levels=[TURN], in_rep=pose)
    with pytest.raises(ValueError, match="GiB"):
        OrbitLinear(64, 64, levels=[Partition.singletons(800), Partition.single(800)])


def test_reading_a_layer_writes_nothing() -> None:
    layer = soft(CHAIN)
    before = copy.deepcopy(layer.state_dict())
    read(layer, N).average(TURN)
    layer.harden(1)
    after = layer.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
