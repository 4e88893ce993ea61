"""Layers that run in the blocks of an adapted basis, against the dense tied matrix."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.check import equivariance_error
from gsym.nn import GNet, GNetConv, OrbitLinear, _blocks, _mixing
from gsym.nn._blocks import BlockTables
from gsym_bench.kernels.groups import GROUPS, cyclic, mirror, square

# The trivial group has a free matrix for every pair and nothing to tie.
NONTRIVIAL = [name for name in GROUPS if name != "trivial"]


@pytest.fixture
def always(monkeypatch):
    """Blocks wherever there are orbits, however small."""
    monkeypatch.setattr(_blocks, "MOST_WORK", 99.0)
    monkeypatch.setattr(_blocks, "LEAST_SAVED", -(10**9))
    monkeypatch.setattr(_blocks, "LEAST_IN_TORCH", -(10**9))


@pytest.fixture(params=["as a matrix", "whole matrices", "by row"])
def way(request, monkeypatch):
    """How weights become blocks."""
    monkeypatch.setattr(_blocks, "DENSE", -1 if request.param == "as a matrix" else 99)
    monkeypatch.setattr(_blocks, "WIDE", 1 if request.param == "by row" else 99)


def blocks_of(layer: OrbitLinear) -> BlockTables | None:
    return layer.mixing._tables(torch.device("cpu")).blocks


def layer_in_blocks(group: PermutationGroup, into: int = 3, out: int = 2) -> OrbitLinear:
    layer = OrbitLinear(into, out, group).double()
    torch.nn.init.normal_(layer.bias)
    assert blocks_of(layer) is not None
    return layer


def dense(layer: OrbitLinear, x: Tensor) -> Tensor:
    """The definition: node t receives the sum over s of ``x_s`` times the weight of (t, s)."""
    weight = layer.mixing.weight[layer.group.pair_orbits().index]
    bias = layer.bias[layer.group.node_orbits().index]
    return torch.einsum("...si,tsio->...to", x, weight) + bias


def signal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", NONTRIVIAL)
def test_is_the_dense_map(name, always, way):
    group = GROUPS[name]
    layer, n = layer_in_blocks(group), group.num_nodes
    x = signal(2, 2, n, 3).requires_grad_()
    torch.testing.assert_close(layer(x), dense(layer, x), rtol=0, atol=1e-10)
    torch.testing.assert_close(layer(x[0, 0]), dense(layer, x[0, 0]), rtol=0, atol=1e-10)
    assert layer(x[:0]).shape == (0, 2, n, 2)
    inputs = (x, layer.mixing.weight)
    grad = signal(2, 2, n, 2)
    found, expected = (
        torch.autograd.grad(f(x), inputs, grad) for f in (layer, lambda x: dense(layer, x))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NONTRIVIAL)
def test_commutes_with_the_group_and_with_nothing_else(name, always):
    group = GROUPS[name]
    layer, n = layer_in_blocks(group), group.num_nodes
    x = signal(2, n, 3)
    assert equivariance_error(layer, group, x) < 1e-12
    # Over-tied weights pass the line above; a 3-cycle of arbitrary nodes sees them.
    other = PermutationGroup.from_cycles(n, [(0, n // 2, n - 1)])
    assert not group.contains(other.generators[0])
    assert equivariance_error(layer, other, x) > 0.01


@pytest.mark.parametrize("name", NONTRIVIAL)
def test_spans_all_equivariant_maps(name, always):
    group = GROUPS[name]
    layer, n = layer_in_blocks(group, 1, 1), group.num_nodes
    apply, weight = blocks_of(layer).apply, layer.mixing.weight
    unit = torch.eye(weight.size(0), dtype=torch.float64)[:, :, None, None]
    maps = torch.vmap(lambda w: apply(torch.eye(n, dtype=torch.float64)[..., None], w))(unit)
    assert torch.linalg.matrix_rank(maps.flatten(1)) == group.commutant_dim()


def test_takes_second_derivatives(always, way):
    layer = OrbitLinear(2, 2, cyclic(3), bias=False).double()

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"mixing.weight": weight}, (x,))

    args = signal(2, 3, 2).requires_grad_(), layer.mixing.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(f, args) and torch.autograd.gradgradcheck(f, args)


@pytest.mark.parametrize("way_of", [OrbitLinear, GNetConv])
def test_clusters_with_swaps(way_of, always):
    group = ClusterGroup(
        Partition([0, 1, 2, 0, 1, 2, 3]), swaps=PermutationGroup.from_cycles(4, [(0, 1, 2)])
    )
    layer = way_of(3, 2, group, bias=False).double()
    linear = layer if way_of is OrbitLinear else layer.linear
    assert blocks_of(linear) is not None
    slow = copy.deepcopy(layer)
    plain = slow if way_of is OrbitLinear else slow.linear
    # Without the blocks the same weights go through the dense form.
    tables = replace(plain.mixing._tables(torch.device("cpu")), blocks=None)
    plain.mixing._by_device = type(plain.mixing._by_device)()
    plain.mixing._by_device.found = {torch.device("cpu"): tables}
    x = signal(2, 7, 3)
    edges = () if way_of is OrbitLinear else (torch.tensor([[0, 1, 2, 3], [1, 2, 0, 6]]),)
    torch.testing.assert_close(layer(x, *edges), slow(x, *edges), rtol=0, atol=1e-12)
    assert equivariance_error(lambda x: linear(x), group, x) < 1e-12


@pytest.mark.parametrize(("outweighs", "blocks"), [(10**9, False), (0, True)])
def test_large_signals_take_one_call_where_gradients_are_due(
    outweighs, blocks, always, monkeypatch
):
    monkeypatch.setattr(_mixing, "OUTWEIGHS", outweighs)
    swaps = PermutationGroup.from_cycles(4, [(0, 1, 2)])
    layer = OrbitLinear(3, 2, ClusterGroup(Partition([0, 1, 2, 0, 1, 2, 3]), swaps=swaps)).double()
    x = signal(2, 7, 3)
    expected = layer(x)
    monkeypatch.setattr(_mixing, "LARGE", x.numel())
    assert layer.mixing.takes_blocks(x) == blocks and layer.mixing.takes_blocks(x[:1])
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert layer.mixing.takes_blocks(x)


def test_a_stack_runs_in_blocks(always):
    net = GNet([1, 4, 1], mirror(7, 1), propagate="none").double()
    for conv in net.convs:
        torch.nn.init.normal_(conv.linear.bias)
    first, last = (conv.linear for conv in net.convs)
    assert blocks_of(first) is not None and blocks_of(last) is not None
    x = signal(2, 7, 1)
    torch.testing.assert_close(net(x), dense(last, dense(first, x).relu()), rtol=0, atol=1e-12)


class TestChoice:
    @pytest.mark.parametrize(
        ("group", "channels", "blocks"),
        [
            (square(8), 16, True),
            (cyclic(4, 4, 4), 64, True),
            (mirror(21, 7), 64, True),
            (mirror(21, 7), 16, False),  # too small
            (square(8), 1, False),  # the way into the basis costs as much
            (mirror(48, 40), 32, False),  # the blocks are nearly as large as the matrix
        ],
    )
    def test_takes_blocks_where_they_pay(self, group, channels, blocks):
        assert (blocks_of(OrbitLinear(channels, channels, group)) is not None) == blocks

    @pytest.mark.parametrize(("swaps", "blocks"), [("C13", True), ("S3 wr S2", False)])
    def test_asks_for_more_where_the_dense_form_is_part_of_one_call(self, swaps, blocks):
        swaps = GROUPS[swaps]
        assert blocks_of(OrbitLinear(64, 64, swaps)) is not None
        labels = torch.arange(swaps.num_nodes).repeat_interleave(4)
        group = ClusterGroup(Partition(labels), swaps=swaps)
        assert (blocks_of(OrbitLinear(64, 64, group)) is not None) == blocks

    def test_does_not_search_where_they_cannot(self, monkeypatch):
        monkeypatch.setattr(PermutationGroup, "adapted_basis", property(lambda self: 1 / 0))
        OrbitLinear(16, 16, mirror(48, 46))

    def test_is_dense_without_a_basis(self, monkeypatch):
        monkeypatch.setattr("gsym.groups.adapted.MAX_ORBIT", 3)
        group = cyclic(16, 2)
        layer = OrbitLinear(16, 16, group).double()
        assert blocks_of(layer) is None and "32 nodes" in group.adapted_basis.reason
        x = signal(2, 32, 16)
        torch.testing.assert_close(layer(x), dense(layer, x), rtol=0, atol=1e-12)


class TestState:
    def test_a_checkpoint_serves_both_forms(self, monkeypatch):
        layer = OrbitLinear(24, 24, cyclic(4, 4)).double()
        monkeypatch.setattr(_blocks, "MOST_WORK", 0.0)
        slow = OrbitLinear(24, 24, cyclic(4, 4)).double()
        assert blocks_of(layer) is not None and blocks_of(slow) is None
        slow.load_state_dict(layer.state_dict())
        x = signal(2, 16, 24)
        torch.testing.assert_close(layer(x), slow(x), rtol=0, atol=1e-12)

    def test_training_follows_the_weights_per_orbit(self, monkeypatch):
        # Blocks as parameters would take another path, because Adam scales single numbers.
        layers = [OrbitLinear(24, 24, cyclic(4, 4)).double()]
        monkeypatch.setattr(_blocks, "MOST_WORK", 0.0)
        layers.append(OrbitLinear(24, 24, cyclic(4, 4)).double())
        layers[1].load_state_dict(layers[0].state_dict())
        assert blocks_of(layers[0]) is not None and blocks_of(layers[1]) is None
        x, y = signal(2, 4, 16, 24)
        for layer in layers:
            adam = torch.optim.Adam(layer.parameters(), lr=0.01)
            for _ in range(5):
                adam.zero_grad()
                (layer(x) - y).square().mean().backward()
                adam.step()
        torch.testing.assert_close(
            layers[0].mixing.weight, layers[1].mixing.weight, rtol=0, atol=1e-8
        )
