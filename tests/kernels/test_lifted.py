"""Maps on ego-networks without lifting: compiled and composed against the lifted definition."""

import pytest
import torch

from gsym import kernels
from gsym.kernels import lifted
from gsym.kernels.cpp import library
from gsym.kernels.lifted import graph_sums
from gsym.nn import SubgraphConv
from gsym.nn._ego import EgoTables

pytestmark = pytest.mark.skipif(not library.is_usable(), reason="no C++")
# Empty ones, single nodes, and one that fills several blocks.
SIZES = (3, 0, 1, 40, 1, 7, 0, 22, 2, 12, 0, 5, 30, 1, 4)


def make_tables(sizes=SIZES, spare=30):
    """Subgraphs of random nodes of a graph that has more nodes than subgraphs with any."""
    random, n = torch.Generator().manual_seed(0), len(sizes) + spare
    nodes = [torch.randperm(n, generator=random)[:m].sort().values for m in sizes]
    owner = torch.repeat_interleave(
        torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64)
    )
    return EgoTables.build(torch.cat(nodes), owner, n)


def make(c, e, d, tables, dtype=torch.float64):
    """A layer with biases, and its inputs."""
    torch.manual_seed(0)
    conv = SubgraphConv(c, e, d)
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    pair = torch.randn(tables.first.numel(), c, dtype=dtype, requires_grad=True)
    node = torch.randn(tables.node.num_segments, e, dtype=dtype, requires_grad=True)
    return conv.to(dtype), pair, node if e else None


def results(conv, pair, node, tables):
    """Values and every gradient by name."""
    out = conv(pair, node, tables)
    outer = [torch.linspace(0.3, 1, y.numel()).to(y).view(y.shape) for y in out]
    leaves = {"x": pair, **({} if node is None else {"node": node})}
    leaves |= dict(conv.named_parameters())
    grads = torch.autograd.grad(out, list(leaves.values()), outer)
    return {"pairs": out[0], "nodes": out[1], **dict(zip(leaves, grads, strict=True))}


def defined(conv, pair, node, tables, monkeypatch):
    """The same by lifting, every map by its definition in float64."""
    exact = SubgraphConv(conv.pair_channels, conv.node_channels, conv.pair_to_pair.out_channels)
    exact.load_state_dict(conv.state_dict())
    given = [None if x is None else x.detach().double().requires_grad_() for x in (pair, node)]
    monkeypatch.setattr(SubgraphConv, "_commutes", lambda *_: False)
    with kernels.backend("reference"):
        found = results(exact.double(), *given, tables)
    monkeypatch.undo()
    return found


def assert_alike(found, expected, tolerance):
    for name, there in expected.items():
        error = (found[name].double() - there).abs().max() / there.abs().max()
        assert error <= tolerance, f"{name}: error {error:.1e}"


@pytest.mark.parametrize("backend", ["cpp", "native"])
@pytest.mark.parametrize("c, e, d", [(3, 0, 16), (2, 100, 16), (33, 16, 48), (4, 4, 5)])
def test_equals_the_definition_with_every_gradient(backend, c, e, d, monkeypatch):
    tables = make_tables()
    given = make(c, e, d, tables)
    with kernels.backend(backend), kernels.trace() as ran:
        found = results(*given, tables)
    # Other widths than whole vectors are composed.
    assert (ran == ["cpp"]) == (backend == "cpp" and d % 16 == 0)
    assert_alike(found, defined(*given, tables, monkeypatch), 1e-12)


@pytest.mark.parametrize("c, e, d", [(3, 0, 16), (33, 32, 64)])
def test_float32(c, e, d, monkeypatch):
    tables = make_tables()
    given = make(c, e, d, tables, torch.float32)
    found = results(*given, tables)
    assert_alike(found, defined(*given, tables, monkeypatch), 1e-5)
    assert all(value.dtype == torch.float32 for value in found.values())


def test_inputs_without_gradient_and_nothing_at_all():
    tables = make_tables()
    conv, pair, node = make(3, 2, 16, tables)
    every = results(conv, pair, node, tables)
    out = conv(pair.detach(), node.detach(), tables)
    outer = [torch.linspace(0.3, 1, y.numel()).to(y).view(y.shape) for y in out]
    some = torch.autograd.grad(out, list(conv.parameters()), outer)
    for (name, _), grad in zip(conv.named_parameters(), some, strict=True):
        assert torch.equal(grad, every[name]), name
    for sizes in ((0,), (0, 0)):
        empty = make_tables(sizes, spare=2)
        conv, pair, node = make(3, 2, 16, empty)
        found = results(conv, pair, node, empty)
        assert found["pairs"].shape == (0, 32) and not found["nodes"].any()
        assert not any(found[name].any() for name, _ in conv.named_parameters())


def test_bits_do_not_depend_on_threads():
    tables = make_tables([1 + i % 20 for i in range(150)])
    given = make(16, 16, 16, tables, torch.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3, 3):
        torch.set_num_threads(threads)
        try:
            found.append(results(*given, tables))
            sums = graph_sums(given[1], tables.lifted)
            found[-1] |= {"sums": sums, "back": torch.autograd.grad(sums.sum(), given[1])[0]}
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_second_derivatives_equal_those_of_the_composed_maps():
    tables = make_tables((3, 0, 1, 5), spare=4)
    conv, pair, node = make(2, 3, 8, tables)
    leaves, found = [pair, node, *conv.parameters()], []
    for backend in ("cpp", "native"):
        with kernels.backend(backend):
            out = torch.cat(conv(pair, node, tables))
            first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-10, atol=1e-10 * float(there.abs().max()))


def test_batched_gradients():
    tables = make_tables((3, 0, 1, 5), spare=4)
    conv, pair, node = make(2, 3, 8, tables)
    with kernels.trace() as ran:
        y = conv(pair, node, tables)[0]
        sums = graph_sums(pair, tables.lifted)
    assert ran == ["cpp"] * 2
    for out, leaves in ((y, [pair, node, *conv.parameters()]), (sums, [pair])):
        outer = torch.randn(2, *out.shape, dtype=torch.float64)
        both = torch.autograd.grad(out, leaves, outer, is_grads_batched=True, retain_graph=True)
        for i in range(2):
            one = torch.autograd.grad(out, leaves, outer[i], retain_graph=True)
            for a, b in zip(both, one, strict=True):
                torch.testing.assert_close(a[i], b)


@pytest.mark.parametrize("channels", [3, 80])
def test_sums_of_subgraphs_with_their_gradients(channels):
    tables = make_tables()
    x = torch.randn(tables.first.numel(), channels, dtype=torch.float64, requires_grad=True)
    found = graph_sums(x, tables.lifted)
    expected, start = [], 0
    place = tables.pair.index
    for m in SIZES + (0,) * (found.size(0) - len(SIZES)):
        dense = x[place[start : start + m * m]].view(m, m, channels)
        trace, total = dense.diagonal().sum(-1), dense.sum((0, 1))
        expected.append(torch.cat([trace / max(m, 1), total / max(m, 1) ** 2]))
        start += m * m
    torch.testing.assert_close(found, torch.stack(expected))
    outer = torch.randn_like(found)
    grads = [torch.autograd.grad(y, x, outer)[0] for y in (found, torch.stack(expected))]
    torch.testing.assert_close(*grads)
    small = make_tables((2, 0, 1, 3), spare=1)
    x = torch.randn(small.first.numel(), 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: graph_sums(x, small.lifted), x)


def test_the_operators_are_whole():
    tables = make_tables((3, 0, 1, 5), spare=4)
    conv, pair, node = make(2, 3, 8, tables)
    blocks = list(tables.lifted.blocks)
    order = ("node_weight", "graph_weight", "bias", "loop_bias")
    given = []
    for x, to_pair, to_node in (
        (pair, conv.pair_to_pair, conv.pair_to_node),
        (node, conv.node_to_pair, conv.node_to_node),
    ):
        given += [x, *(getattr(to_pair, name) for name in order)]
        given += [to_node.node_weight, to_node.graph_weight, to_node.bias]
        if to_pair.pair_weight is not None:
            given += [to_pair.pair_weight, to_pair.swap_weight]
    torch.library.opcheck(lifted.lifted_average.registered, (given, blocks, "cpp"))
    grads = [torch.randn_like(y) for y in conv(pair, node, tables)]
    still = [t.detach() for t in given]
    args = (*grads, still, blocks, "cpp", False)
    torch.library.opcheck(lifted.lifted_average_grads.registered, args)
    torch.library.opcheck(lifted.subgraph_sums.registered, (pair, blocks, "cpp"))
    sums = torch.randn(tables.subgraphs.num_subgraphs, 4, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(lifted.subgraph_spread.registered, (sums, blocks, "cpp"))


def test_tables_of_other_rows_are_refused():
    tables, other = make_tables(), make_tables((3, 2), spare=1)
    conv, pair, node = make(3, 2, 16, tables)
    blocks = list(other.lifted.blocks)
    with pytest.raises(ValueError, match="tables of an index"):
        lifted.subgraph_sums(pair, blocks, "cpp")
    changed = tables.lifted._replace(blocks=other.lifted.blocks)
    tables._kept[:] = [changed]
    with pytest.raises(ValueError, match="tables of an index"):
        conv(pair, node, tables)
