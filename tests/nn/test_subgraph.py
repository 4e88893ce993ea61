"""The equivariant maps of order-1 and order-2 tensors on subgraphs."""

from __future__ import annotations

import pytest
import torch
from nn.subgraph_reference import dense_map, operations

from gsym.errors import GraphError, SignalError
from gsym.nn import EquivariantTensorLinear, Subgraphs

MAPS = [(2, 2), (2, 1), (1, 2), (1, 1), (2, 0), (1, 0)]
MAP_IDS = [f"{a}to{b}" for a, b in MAPS]


def rows(subgraphs: Subgraphs, order: int) -> int:
    return (subgraphs.num_subgraphs, subgraphs.num_nodes, subgraphs.num_pairs)[order]


def spanned(layer: EquivariantTensorLinear, subgraphs: Subgraphs) -> torch.Tensor:
    """One map for every weight of a layer of one channel, ``[weights, in * out]``."""
    count = rows(subgraphs, layer.in_order)
    basis = torch.eye(count, dtype=torch.float64)[:, :, None]
    maps = []
    for parameter in layer.parameters():
        for place in range(parameter.numel()):
            with torch.no_grad():
                for other in layer.parameters():
                    other.zero_()
                parameter.view(-1)[place] = 1
                maps.append(layer(basis, subgraphs).flatten())
    return torch.stack(maps)


def act(perm: torch.Tensor, x: torch.Tensor, order: int) -> torch.Tensor:
    """Move the nodes of one subgraph of all pairs: ``(g x)[g(i)] = x[i]``."""
    m = perm.numel()
    if order == 0:
        return x
    moved = torch.empty_like(x)
    if order == 1:
        moved[..., perm, :] = x
        return moved
    place = (perm[:, None] * m + perm).flatten()
    moved[..., place, :] = x
    return moved


@pytest.mark.parametrize("orders", MAPS, ids=MAP_IDS)
class TestSpan:
    @pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
    def test_rank_is_that_of_the_theory(self, orders, m):
        expected = {
            (2, 2): {1: 1, 2: 8, 3: 14, 4: 15, 6: 15},
            (2, 1): {1: 1, 2: 4, 3: 5, 4: 5, 6: 5},
            (1, 2): {1: 1, 2: 4, 3: 5, 4: 5, 6: 5},
            (1, 1): {1: 1, 2: 2, 3: 2, 4: 2, 6: 2},
            (2, 0): {1: 1, 2: 2, 3: 2, 4: 2, 6: 2},
            (1, 0): dict.fromkeys((1, 2, 3, 4, 6), 1),
        }[orders][m]
        layer = EquivariantTensorLinear(*orders, 1, 1, bias=False).double()
        maps = spanned(layer, Subgraphs.from_sizes([m]))
        assert (
            maps.size(0)
            == {(2, 2): 15, (2, 1): 5, (1, 2): 5, (1, 1): 2, (2, 0): 2, (1, 0): 1}[orders]
        )
        assert int(torch.linalg.matrix_rank(maps)) == expected

    @pytest.mark.parametrize(
        "colour",
        [[0, 0], [0, 1], [0, 0, 1], [0, 1, 2], [0, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0, 0]],
        ids=str,
    )
    def test_coloured_maps_span_what_has_one_weight_per_orbit(self, orders, colour):
        # The orbits of prod S_c on entries (output nodes, input nodes), found by brute force:
        # two entries are alike where their letters are equal and coloured alike.
        m, q, shades = len(colour), max(colour) + 1, torch.tensor(colour)
        order = sum(orders)
        signatures = set()
        for entry in torch.cartesian_prod(*[torch.arange(m)] * order).view(-1, order).tolist():
            first = {v: i for i, v in reversed(list(enumerate(entry)))}
            signatures.add(tuple((first[v], colour[v]) for v in entry))
        layer = EquivariantTensorLinear(*orders, 1, 1, bias=False, num_colours=q).double()
        subgraphs = Subgraphs.from_batch(torch.zeros(m).long(), colour=shades)
        assert int(torch.linalg.matrix_rank(spanned(layer, subgraphs))) == len(signatures)

    def test_bias_spans_what_is_fixed(self, orders):
        colour = torch.tensor([0, 0, 0, 1, 1])
        layer = EquivariantTensorLinear(*orders, 1, 1, num_colours=2).double()
        subgraphs = Subgraphs.from_batch(torch.zeros(5).long(), colour=colour)
        biases = [p for p in (layer.bias, layer.loop_bias) if p is not None]
        maps = []
        for parameter in biases:
            for place in range(parameter.numel()):
                with torch.no_grad():
                    for other in layer.parameters():
                        other.zero_()
                    parameter.view(-1)[place] = 1
                    x = torch.randn(rows(subgraphs, orders[0]), 1, dtype=torch.float64)
                    maps.append(layer(x, subgraphs).flatten())
        rank = int(torch.linalg.matrix_rank(torch.stack(maps)))
        assert rank == len(maps) == {0: 1, 1: 2, 2: 6}[orders[1]]


@pytest.mark.parametrize("orders", MAPS, ids=MAP_IDS)
class TestSymmetry:
    def test_commutes_with_swaps_and_three_cycles_and_moves_under_no_other(self, orders):
        colour = torch.tensor([0, 0, 0, 0, 1, 1])
        subgraphs = Subgraphs.from_batch(torch.zeros(6).long(), colour=colour)
        layer = EquivariantTensorLinear(*orders, 3, 2, num_colours=2).double()
        for bias in (layer.bias, layer.loop_bias):
            if bias is not None:
                torch.nn.init.normal_(bias)
        x = torch.randn(rows(subgraphs, orders[0]), 3, dtype=torch.float64)
        y = layer(x, subgraphs)

        @torch.no_grad()
        def error(perm: list[int]) -> float:
            g = torch.tensor(perm)
            moved = layer(act(g, x, orders[0]), subgraphs)
            return float((moved - act(g, y, orders[1])).abs().max() / y.abs().max())

        for inside in ([1, 0, 2, 3, 4, 5], [1, 2, 0, 3, 5, 4], [1, 2, 3, 0, 4, 5]):
            assert error(inside) < 1e-12
        assert error([4, 1, 2, 3, 0, 5]) > 1e-2

    def test_commutes_after_training(self, orders):
        subgraphs = Subgraphs.from_sizes([5])
        layer = EquivariantTensorLinear(*orders, 3, 2).double()
        x = torch.randn(rows(subgraphs, orders[0]), 3, dtype=torch.float64)
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
        before = {name: p.clone() for name, p in layer.named_parameters()}
        target = torch.randn_like(layer(x, subgraphs))
        for _ in range(5):
            optimiser.zero_grad()
            (layer(x, subgraphs) - target).square().mean().backward()
            optimiser.step()
        assert all(not torch.equal(p, before[name]) for name, p in layer.named_parameters())
        g = torch.tensor([2, 0, 1, 3, 4])
        moved = layer(act(g, x, orders[0]), subgraphs)
        expected = act(g, layer(x, subgraphs), orders[1])
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("orders", MAPS, ids=MAP_IDS)
@pytest.mark.parametrize("q", [1, 2])
def test_equals_the_dense_definition_with_every_gradient(orders, q):
    random = torch.Generator().manual_seed(0)
    sizes = [3, 0, 1, 7, 1, 4, 0, 2]
    kind = [0, 1, 1, 0, 0, 1, 0, 1]
    total = sum(sizes)
    colour = torch.randint(0, q, (total,), generator=random)
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    subgraphs = Subgraphs.from_batch(
        batch,
        len(sizes),
        colour=colour if q > 1 else None,
        num_colours=q,
        kind=torch.tensor(kind),
        num_kinds=2,
    )
    layer = EquivariantTensorLinear(*orders, 3, 2, num_colours=q, num_kinds=2).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=random)
    x = torch.randn(rows(subgraphs, orders[0]), 3, generator=random, dtype=torch.float64)
    x.requires_grad_()
    found = layer(x, subgraphs)
    expected = dense_map(layer, x, sizes, colour, kind)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    outer = torch.randn(found.shape, generator=random, dtype=torch.float64)
    names = ["x", *(name for name, _ in layer.named_parameters())]
    wanted = [x, *layer.parameters()]
    pairs = zip(
        names,
        torch.autograd.grad(found, wanted, outer),
        torch.autograd.grad(expected, wanted, outer),
        strict=True,
    )
    for name, here, there in pairs:
        torch.testing.assert_close(here, there, rtol=1e-11, atol=1e-11, msg=f"gradient of {name}")


@pytest.mark.parametrize("orders", MAPS, ids=MAP_IDS)
def test_large_and_small_subgraphs_together_equal_each_alone(orders):
    sizes = [40, 0, 1, 17, 2, 3, 40, 1]
    layer = EquivariantTensorLinear(*orders, 4, 3).double()
    together = Subgraphs.from_sizes(sizes)
    x = torch.randn(2, rows(together, orders[0]), 4, dtype=torch.float64)
    found, start, parts = layer(x, together), 0, []
    for m in sizes:
        alone = Subgraphs.from_sizes([m])
        count = rows(alone, orders[0])
        parts.append(layer(x[:, start : start + count], alone))
        start += count
    torch.testing.assert_close(found, torch.cat(parts, dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("closed", [True, False], ids=["with_reverses", "without"])
@pytest.mark.parametrize("orders", MAPS, ids=MAP_IDS)
def test_listed_pairs_count_as_all_pairs_with_zeros_between(orders, closed):
    batch = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    pairs = [(0, 1), (1, 0), (2, 2), (3, 4), (4, 3), (3, 6), (6, 3), (5, 5)]
    if not closed:
        pairs += [(1, 2), (6, 5)]
    pairs = torch.tensor(pairs).t()
    some, every = Subgraphs.from_batch(batch, pairs=pairs), Subgraphs.from_batch(batch)
    key = {(int(r), int(c)): p for p, (r, c) in enumerate(zip(every.row, every.col, strict=True))}
    place = torch.tensor([key[int(r), int(c)] for r, c in pairs.t()])
    layer = EquivariantTensorLinear(*orders, 2, 3).double()
    x = torch.randn(rows(some, orders[0]), 2, dtype=torch.float64)
    full = x
    if orders[0] == 2:
        full = x.new_zeros(every.num_pairs, 2).index_copy(0, place, x)
    expected = layer(full, every)
    if orders[1] == 2:
        expected = expected[place]
    torch.testing.assert_close(layer(x, some), expected, rtol=1e-12, atol=1e-12)


def test_two_derivatives():
    subgraphs = Subgraphs.from_sizes([2, 3])
    layer = EquivariantTensorLinear(2, 2, 1, 2).double()
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *values):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, parameters, (x, subgraphs))

    x = torch.randn(subgraphs.num_pairs, 1, dtype=torch.float64, requires_grad=True)
    inputs = (x, *(p.detach().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_the_reference_lists_as_many_operations_as_the_theory():
    counts = [len(operations(a, b, torch.zeros(1).long(), 1)) for a, b in MAPS]
    assert counts == [15, 5, 5, 2, 2, 1]


class TestBadInput:
    def test_orders_and_channels(self):
        for args in ((0, 1, 2, 2), (3, 1, 2, 2), (2, 3, 2, 2), (2, 2, 0, 2), (2, 2, True, 2)):
            with pytest.raises(ValueError, match="must be"):
                EquivariantTensorLinear(*args)
        with pytest.raises(ValueError, match="num_colours"):
            EquivariantTensorLinear(1, 1, 2, 2, num_colours=0)

    def test_signals(self):
        layer, subgraphs = EquivariantTensorLinear(2, 2, 3, 2), Subgraphs.from_sizes([2, 3])
        with pytest.raises(SignalError, match=r"\[..., 13, 3\].*got \[12, 3\]"):
            layer(torch.randn(12, 3), subgraphs)
        with pytest.raises(SignalError, match=r"got \[13, 2\]"):
            layer(torch.randn(13, 2), subgraphs)
        with pytest.raises(TypeError, match=r"floating-point.*int64"):
            layer(torch.ones(13, 3).long(), subgraphs)
        with pytest.raises(TypeError, match="Subgraphs"):
            layer(torch.randn(13, 3), torch.tensor([2, 3]))
        with pytest.raises(SignalError, match="colours"):
            layer(
                torch.randn(13, 3),
                Subgraphs.from_batch(torch.zeros(2).long(), colour=torch.tensor([0, 1])),
            )

    def test_subgraphs(self):
        batch = torch.tensor([0, 0, 1])
        with pytest.raises(GraphError, match="sorted"):
            Subgraphs.from_batch(torch.tensor([1, 0]))
        with pytest.raises(GraphError, match=r"0\.\.0; got up to 1"):
            Subgraphs.from_batch(batch, 1)
        with pytest.raises(GraphError, match="two subgraphs"):
            Subgraphs.from_batch(batch, pairs=torch.tensor([[0], [2]]))
        with pytest.raises(GraphError, match="twice"):
            Subgraphs.from_batch(batch, pairs=torch.tensor([[0, 0], [1, 1]]))
        with pytest.raises(GraphError, match=r"0\.\.2; got 3 to 3"):
            Subgraphs.from_batch(batch, pairs=torch.tensor([[0], [3]]))
        with pytest.raises(GraphError, match="colour"):
            Subgraphs.from_batch(batch, colour=torch.tensor([0, 1, 2]), num_colours=2)
        with pytest.raises(GraphError, match="int64"):
            Subgraphs.from_batch(torch.tensor([0.0, 1.0]))
        with pytest.raises(GraphError, match="none negative"):
            Subgraphs.from_sizes([2, -1])
