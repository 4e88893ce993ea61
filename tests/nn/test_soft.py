"""The published ways to soften a symmetry."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from gsym import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.check import check_module, equivariance_error
from gsym.nn import GNet, OrbitLinear
from gsym.nn.soft import (
    ConstrainedRelaxation,
    EquivarianceRegulariser,
    RelaxedOrbitLinear,
    ResidualPathway,
)

N = 7
GROUP = ClusterGroup(Partition([0, 1, 0, 1, 0, 2, 1]))  # with 3-cycles
FINE = ClusterGroup(Partition([0, 1, 0, 1, 0, 2, 3]))
TURN = PermutationGroup.from_cycles(N, [(0, 1, 2)])
TRIVIAL = ClusterGroup(Partition.singletons(N))
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]])
QUICK = ["EMA", "pickle", "deepcopy", "vmap", "hooks", "to_empty"]


def signal(*batch: int) -> torch.Tensor:
    return torch.randn(*batch, N, 2, generator=torch.Generator().manual_seed(0)).double()


def randomised(layer: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


class TestRelaxed:
    @pytest.mark.parametrize("group", [GROUP, TURN], ids=str)
    def test_starts_symmetric_and_is_then_free(self, group) -> None:
        layer = RelaxedOrbitLinear(2, 3, group, num_banks=3).double()
        assert equivariance_error(layer, group, signal(2)) < 1e-14
        assert layer.deviation().abs().max() < 1e-15
        with torch.no_grad():
            layer.coefficients[0, 0] += 1
        assert equivariance_error(layer, group, signal(2)) > 1e-2
        assert layer.deviation()[0] > 0.5
        assert layer.deviation()[6] == 0 or group is GROUP

    def test_equals_its_definition(self) -> None:
        layer = randomised(RelaxedOrbitLinear(2, 3, GROUP, num_banks=2))
        x, a = signal(2), layer.coefficients
        banks = [layer.banks(x)[..., :3], layer.banks(x)[..., 3:]]
        right = a[:, :1] * banks[0] + a[:, 1:] * banks[1]
        torch.testing.assert_close(layer(x), right)
        steps = (a[EDGES[0]] - a[EDGES[1]]).abs().mean()
        torch.testing.assert_close(layer.penalty(EDGES, 2.0), 2 * steps)

    def test_penalty_without_edges_is_zero(self) -> None:
        assert RelaxedOrbitLinear(2, 3, GROUP).penalty(EDGES[:, :0]).item() == 0

    def test_keeps_the_size_of_a_signal(self) -> None:
        layer = RelaxedOrbitLinear(8, 8, GROUP, num_banks=3, bias=False)
        x, kept = torch.randn(1, N, 8), []
        for _ in range(200):
            layer.reset_parameters(1.0)
            kept.append(layer(x).detach().square().mean() / x.square().mean())
        assert float(torch.stack(kept).mean()) == pytest.approx(1, abs=0.15)


class TestResidualPathway:
    def test_starts_near_the_tied_map(self) -> None:
        layer = ResidualPathway(2, 3, GROUP).double()
        assert equivariance_error(layer, GROUP, signal(2)) < 1e-2
        assert 1e-9 < layer.energy()[0] < 1e-4
        assert [name for name, p in layer.named_parameters() if not p.requires_grad] == [
            "soft.scale"
        ]

    def test_penalises_the_dense_norms(self) -> None:
        layer = randomised(ResidualPathway(2, 3, GROUP, finer=FINE))
        eye = torch.eye(2 * N).double().view(-1, N, 2)
        norms = [
            (part(eye) - part(torch.zeros_like(eye))).square().sum() for part in layer.soft.parts
        ]
        right = 5 * norms[0] + 0.5 * norms[1]
        found = layer.penalty(5, 0.5)
        torch.testing.assert_close(found, right)
        some = [layer.soft.parts[0].mixing.weight, layer.soft.parts[1].weight_self]
        for a, b in zip(
            torch.autograd.grad(found, some), torch.autograd.grad(right, some), strict=True
        ):
            torch.testing.assert_close(a, b)

    def test_moves_like_any_layer_with_levels(self) -> None:
        layer = randomised(ResidualPathway(2, 3, GROUP))
        hard = layer.harden(GROUP)
        assert type(hard) is OrbitLinear
        assert 0 < hard.moved.lost < 1
        with pytest.raises(ValueError, match="subgroup"):
            ResidualPathway(2, 3, GROUP, finer=TURN)


@pytest.mark.parametrize("layer", [RelaxedOrbitLinear, ResidualPathway, ConstrainedRelaxation])
@pytest.mark.parametrize("group", [None, "S_7"])
def test_needs_a_group_of_so_many_nodes(layer, group) -> None:
    with pytest.raises(TypeError, match="group must be a PermutationGroup"):
        layer(2, 2, group)


@pytest.mark.parametrize("layer", [ResidualPathway, ConstrainedRelaxation])
def test_there_must_be_something_to_relax_to(layer) -> None:
    for group in (TRIVIAL, PermutationGroup.trivial(N), ClusterGroup(Partition.single(1))):
        with pytest.raises(ValueError, match="no proper subgroup to relax to"):
            layer(2, 2, group)
    with pytest.raises(ValueError, match="proper subgroup of"):
        layer(2, 2, GROUP, finer=GROUP)


class TestConstrainedRelaxation:
    def test_gamma_goes_to_zero_where_nothing_breaks_the_symmetry(self) -> None:
        torch.manual_seed(0)
        layer = ConstrainedRelaxation(2, 2, GROUP).double()
        truth = OrbitLinear(2, 2, GROUP).double().requires_grad_(False)
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.05)
        x = torch.randn(64, N, 2).double()
        for _ in range(400):
            optimiser.zero_grad()
            ((layer(x) - truth(x)).square().mean() + layer.penalty()).backward()
            optimiser.step()
            layer.dual_step(0.02)
        assert abs(layer.gamma.item()) < 0.1
        assert equivariance_error(layer, GROUP, x) < 0.1

    def test_an_elastic_bound(self) -> None:
        layer = ConstrainedRelaxation(2, 2, GROUP, rho=1.0)
        layer.dual_step(0.5)
        assert float(layer.dual) == pytest.approx(0.5)
        layer.dual_step(0.5)
        assert float(layer.dual) == pytest.approx(0.75)
        with torch.no_grad():
            layer.soft.scale[0] = -2
        assert float(layer.penalty()) == pytest.approx(1.5)
        for _ in range(50):
            layer.dual_step(0.5)
        assert float(layer.dual) == pytest.approx(2)
        twin = pickle.loads(pickle.dumps(layer))
        assert float(twin.dual) == pytest.approx(2)
        with pytest.raises(ValueError, match="rho"):
            ConstrainedRelaxation(2, 2, GROUP, rho=0)


class TestRegulariser:
    def test_is_the_dense_distance(self) -> None:
        net = randomised(GNet([2, 3, 2], TRIVIAL, propagate="none"))
        groups = [FINE, GROUP]
        term = EquivarianceRegulariser(net, groups, 0.5)
        right = []
        for group in groups:
            total = torch.zeros((), dtype=torch.float64)
            for conv in net.convs:
                a, layer = conv.in_channels, conv.linear
                eye = torch.eye(N * a).double().view(-1, N, a)
                bias = layer(torch.zeros_like(eye[:1]))
                form = (layer(eye) - bias).view(N, a, N, -1).permute(3, 1, 2, 0)
                total = total + (form - group.project(form)).square().sum() / 2
                orbits = group.node_orbits()
                sums = torch.zeros(orbits.num_orbits, bias.size(-1)).double()
                means = sums.index_add(0, orbits.index, bias[0]) / orbits.sizes[:, None]
                total = total + (bias[0] - means[orbits.index]).square().sum() / 2
            right.append(total)
        torch.testing.assert_close(term.terms(), torch.stack(right))
        torch.testing.assert_close(term.penalty(), torch.stack(right).sum() / 2)
        leaves = list(net.parameters())
        for a, b in zip(
            torch.autograd.grad(term.penalty(), leaves),
            torch.autograd.grad(torch.stack(right).sum() / 2, leaves),
            strict=True,
        ):
            torch.testing.assert_close(a, b)

    def test_vanishes_on_a_symmetric_net(self) -> None:
        net = GNet([2, 3, 2], GROUP, propagate="none").to_group(TRIVIAL).double()
        assert float(EquivarianceRegulariser(net, [GROUP]).penalty()) < 1e-8

    def test_refuses_layers_that_move_channels(self) -> None:
        group = PermutationGroup.from_cycles(N, [(0, 1)])
        pose = Representation.from_signs(group, [[-1, 1]])
        still = Representation.trivial(group, 2)
        net = torch.nn.Sequential(
            OrbitLinear(2, 2, group, in_rep=still), OrbitLinear(2, 2, group, in_rep=pose)
        )
        with pytest.raises(ValueError, match="layer 1 has representations"):
            EquivarianceRegulariser(net, [group])
        assert float(EquivarianceRegulariser(net[0], [group]).penalty()) < 1e-10

    def test_tunes_once(self) -> None:
        net = randomised(GNet([2, 3, 2], FINE, propagate="none"))
        term = EquivarianceRegulariser(net, [FINE, GROUP], 2.0)
        with pytest.raises(ValueError, match="observe"):
            term.tune()
        with torch.no_grad():
            term._kept = [1.0, 4.0]
        term.tune(power=2)
        assert term.strengths == [2.0, 2.0 / 16]
        with pytest.raises(ValueError, match="no OrbitLinear"):
            EquivarianceRegulariser(torch.nn.Linear(2, 2), [GROUP])
        with pytest.raises(ValueError, match="got none"):
            EquivarianceRegulariser(net, [])

    def test_keeps_the_terms_of_the_last_new_minimum(self, monkeypatch) -> None:
        term = EquivarianceRegulariser(GNet([2, 2], TRIVIAL, propagate="none"), [FINE, GROUP])
        for values in ([3.0, 5.0], [4.0, 4.0], [5.0, 6.0]):
            monkeypatch.setattr(term, "terms", lambda v=values: torch.tensor(v))
            term.observe()
        assert term._kept == [4.0, 4.0]


LAYERS = {
    "relaxed": lambda: RelaxedOrbitLinear(2, 2, GROUP),
    # The scales are frozen, which the checker does not expect.
    "residual": lambda: ResidualPathway(2, 2, GROUP).requires_grad_(True),
    "constrained": lambda: ConstrainedRelaxation(2, 2, GROUP),
}


@pytest.mark.parametrize("name", LAYERS)
def test_are_ordinary_modules(name) -> None:
    report = check_module(LAYERS[name], signal(2).float(), treatments=QUICK)
    assert not report.failed
    twin = copy.deepcopy(LAYERS[name]())
    assert twin(signal(2).float()).shape == (2, N, 2)


def test_pathways_commute_with_the_finer_group() -> None:
    layer = randomised(ResidualPathway(2, 2, GROUP, finer=FINE))
    assert equivariance_error(layer, FINE, signal(2)) < 1e-13
    assert equivariance_error(layer, GROUP, signal(2)) > 1e-2
