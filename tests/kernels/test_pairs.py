"""Equivariant maps on subgraphs: every back-end against the definition."""

import pytest
import torch

from gsym import kernels
from gsym.kernels import _pairs, reference
from gsym.kernels._backends import BACKENDS
from gsym.kernels._subgraph_maps import Weights
from gsym.kernels.cpp import library as cpp_library
from gsym.nn import Subgraphs

ORDERS = ((2, 2), (2, 1), (2, 0), (1, 2), (1, 1), (1, 0))
SPARSE = (None, "by subgraph", "anyhow")
NAMES = ("x", "graph", "node", "pair", "swap", "bias", "loop_bias")
cpp = pytest.param("cpp", marks=pytest.mark.skipif(not cpp_library.is_usable(), reason="no C++"))
backends = pytest.mark.parametrize("backend", ["native", cpp])


def make_subgraphs(q=1, k=1, sparse=None, sizes=(3, 0, 1, 7, 1, 12, 0, 2)):
    random = torch.Generator().manual_seed(1)
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    options = {}
    if q > 1:
        colour = torch.randint(0, q, batch.shape, generator=random)
        options |= {"colour": colour, "num_colours": q}
    if k > 1:
        options |= {"kind": torch.arange(len(sizes)) % k, "num_kinds": k}
    if sparse:
        every = Subgraphs.from_batch(batch, len(sizes))
        chosen = torch.randperm(every.num_pairs, generator=random)[: every.num_pairs // 2]
        if sparse == "by subgraph":
            chosen = chosen.sort().values
        options["pairs"] = torch.stack([every.row[chosen], every.col[chosen]])
    return Subgraphs.from_batch(batch, len(sizes), **options)


def make_tensors(subgraphs, orders, c, d, batch=(), dtype=torch.float64, bias=True):
    """Tensors by name; those that the orders have."""
    q, k = subgraphs.num_colours, subgraphs.num_kinds
    node_in, graph_in = (1 + 2 * q, q + q * q) if orders[0] == 2 else (1, q)
    node_out, graph_out = {0: (0, 1), 1: (1, q), 2: (2 * q + 1, q * (q + 1))}[orders[1]]
    rows = subgraphs.num_pairs if orders[0] == 2 else subgraphs.num_nodes
    shapes = {"x": (*batch, rows, c), "graph": (k, graph_in * c, graph_out * d)}
    if node_out:
        shapes["node"] = k * q, node_in * c, node_out * d
    if orders == (2, 2):
        shapes |= dict.fromkeys(("pair", "swap"), (k * q * q, c, d))
    if bias:
        shapes["bias"] = k * q ** orders[1], d
        if orders[1] == 2:
            shapes["loop_bias"] = k * q, d
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def call(tensors, subgraphs, orders, backend="auto"):
    x, graph, node, pair, swap, *biases = (tensors.get(name) for name in NAMES)
    both = None if pair is None else (pair, swap)
    return kernels.subgraph_linear(
        x, subgraphs, orders, graph, node, both, *biases, backend=backend
    )


def assert_like_reference(tensors, subgraphs, orders, backend, tolerance=1e-11):
    exact = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    expected = call(exact, subgraphs, orders, "reference")
    found = call(tensors, subgraphs, orders, backend)
    assert found.shape == expected.shape and found.dtype == tensors["x"].dtype
    outer = torch.linspace(0.3, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
    found_grads = torch.autograd.grad(
        found, list(tensors.values()), outer.to(found.dtype), materialize_grads=True
    )
    expected_grads = torch.autograd.grad(
        expected, list(exact.values()), outer, materialize_grads=True
    )
    results = [("value", found.detach(), expected.detach())]
    results += zip(tensors, found_grads, expected_grads, strict=True)
    for name, here, there in results:
        scale = float(there.abs().max()) if there.numel() else 0.0
        error = float((here.double() - there).abs().max()) if there.numel() else 0.0
        assert error <= tolerance * max(scale, 1e-30), f"{name}: error {error:.1e} of {scale:.1e}"


CASES = [
    *(((2, 2), q, k, sparse) for q, k in [(1, 1), (1, 3), (2, 1), (3, 2)] for sparse in SPARSE),
    *((orders, 3, 2, "anyhow") for orders in ORDERS[1:]),
    *((orders, 1, 1, None) for orders in ORDERS[1:]),
]


@backends
@pytest.mark.parametrize("orders, q, k, sparse", CASES, ids=str)
def test_equals_the_definition_with_every_gradient(backend, orders, q, k, sparse):
    subgraphs = make_subgraphs(q, k, sparse)
    assert (subgraphs.blocks is None) == (sparse == "anyhow")
    tensors = make_tensors(subgraphs, orders, 3, 5, batch=(2,))
    with kernels.trace() as ran:
        assert_like_reference(tensors, subgraphs, orders, backend)
    fused = backend == "cpp" and orders == (2, 2) and sparse != "anyhow"
    assert ran == ["reference", "cpp" if fused else "native"]


@backends
@pytest.mark.parametrize("c, d", [(1, 1), (16, 32), (33, 16), (64, 80), (7, 100)])
@pytest.mark.parametrize("bias", [True, False])
def test_widths_in_float32(backend, c, d, bias):
    # Several blocks of subgraphs and pieces of sums, one subgraph larger than a block.
    sizes = [50, *(4 + i % 9 for i in range(40)), 0, 1]
    subgraphs = make_subgraphs(sizes=sizes)
    tensors = make_tensors(subgraphs, (2, 2), c, d, dtype=torch.float32, bias=bias)
    assert_like_reference(tensors, subgraphs, (2, 2), backend, tolerance=2e-5)


@backends
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_half_precision(backend, dtype, tolerance):
    subgraphs = make_subgraphs(q=2, sizes=[60, 3, 1])
    for orders in ((2, 2), (2, 1)):
        tensors = make_tensors(subgraphs, orders, 3, 4)
        halves = {name: t.detach().to(dtype).requires_grad_() for name, t in tensors.items()}
        assert_like_reference(halves, subgraphs, orders, backend, tolerance)
        large = {name: t.detach().to(dtype) for name, t in tensors.items()}
        large["x"].fill_(4_000.0)  # a sum of a row does not fit float16
        large["graph"] = large["graph"] / 1_000
        assert call(large, subgraphs, orders, backend).isfinite().all() or dtype == torch.float16


@backends
@pytest.mark.parametrize("sizes", [[], [0, 0], [1]], ids=str)
def test_nothing_to_do(backend, sizes):
    subgraphs = Subgraphs.from_sizes(torch.tensor(sizes, dtype=torch.int64))
    for orders in ORDERS:
        tensors = make_tensors(subgraphs, orders, 2, 3, batch=(2,))
        assert_like_reference(tensors, subgraphs, orders, backend)
        tensors = make_tensors(subgraphs, orders, 2, 3, batch=(0,))
        assert call(tensors, subgraphs, orders, backend).shape[0] == 0


@pytest.mark.skipif(not cpp_library.is_usable(), reason="no C++")
class TestFused:
    orders = (2, 2)

    def test_a_subgraph_for_one_thread_alone_is_composed(self):
        for sizes in ([257], [300] * 3):
            assert Subgraphs.from_sizes(sizes).blocks is None
        for sizes in ([256], [300] * 4):
            assert Subgraphs.from_sizes(sizes).blocks is not None

    def test_bits_do_not_depend_on_threads(self):
        subgraphs = make_subgraphs(q=2, sizes=[5 + i % 30 for i in range(80)])
        tensors = make_tensors(subgraphs, self.orders, 16, 16, dtype=torch.float32)
        before, found = torch.get_num_threads(), []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            try:
                y = call(tensors, subgraphs, self.orders, "cpp")
                found.append([y, *torch.autograd.grad(y.sum(), list(tensors.values()))])
            finally:
                torch.set_num_threads(before)
        for others in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))

    def test_two_derivatives(self):
        subgraphs = make_subgraphs(q=2, k=2, sizes=[2, 3])
        tensors = make_tensors(subgraphs, self.orders, 2, 1)

        def function(*values):
            return call(dict(zip(tensors, values, strict=True)), subgraphs, self.orders, "cpp")

        assert torch.autograd.gradgradcheck(function, tuple(tensors.values()))

    def test_transforms_look_through(self):
        subgraphs = make_subgraphs(sizes=[2, 3])
        tensors = {n: t.detach() for n, t in make_tensors(subgraphs, self.orders, 2, 3).items()}
        xs = torch.randn(4, *tensors["x"].shape, dtype=torch.float64)

        def of(x):
            return call(tensors | {"x": x}, subgraphs, self.orders, "cpp")

        expected = torch.stack([of(x) for x in xs])
        torch.testing.assert_close(torch.func.vmap(of)(xs), expected)
        value, slope = torch.func.jvp(of, (xs[0],), (xs[1],))
        torch.testing.assert_close(value, expected[0])
        torch.testing.assert_close(slope, of(xs[1]) - of(torch.zeros_like(xs[1])))
        x = xs[0].clone().requires_grad_()
        y = of(x)
        outer = torch.randn(2, *y.shape, dtype=torch.float64)
        (both,) = torch.autograd.grad(y, x, outer, is_grads_batched=True, retain_graph=True)
        for one, g in zip(both, outer, strict=True):
            torch.testing.assert_close(one, torch.autograd.grad(y, x, g, retain_graph=True)[0])

    def test_the_operator_is_whole(self):
        subgraphs = make_subgraphs(q=2, sizes=[2, 3])
        tensors = make_tensors(subgraphs, self.orders, 2, 3, batch=(1,))
        given = [tensors[name] for name in ("x", "pair", "swap", "node", "graph")]
        given += [tensors[name] for name in ("bias", "loop_bias")]
        tables = list(subgraphs.blocks)
        registered = _pairs.pairs_to_pairs.registered
        torch.library.opcheck(registered, (given, tables, "cpp"))
        grads = torch.randn(1, subgraphs.num_pairs, 3, dtype=torch.float64)
        still = [t.detach() for t in given]
        torch.library.opcheck(_pairs.pairs_to_pairs_grads.registered, (grads, still, tables, "cpp"))
        y = call(tensors, subgraphs, self.orders, "cpp")
        torch.testing.assert_close(registered(given, tables, "cpp"), y)

        # Its second derivative, from the tables alone.
        def second(y):
            (g,) = torch.autograd.grad(y.square().sum(), given[0], create_graph=True)
            return torch.autograd.grad(g.square().sum(), given)

        pairs = zip(second(registered(given, tables, "cpp")), second(y), strict=True)
        assert all(torch.allclose(a, b) for a, b in pairs)

    def test_compiled_without_a_break(self):
        subgraphs = make_subgraphs(sizes=[2, 3, 4])
        tensors = make_tensors(subgraphs, self.orders, 4, 4, dtype=torch.float32)

        def function(x):
            return call(tensors | {"x": x}, subgraphs, self.orders).relu()

        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        results = [f(tensors["x"]) for f in (function, compiled)]
        grads = [torch.autograd.grad(y.sum(), list(tensors.values())) for y in results]
        torch.testing.assert_close(results[1], results[0])
        torch.testing.assert_close(grads[1], grads[0])

    def test_gradients_may_be_changed_in_place(self):
        subgraphs = make_subgraphs(sizes=[2, 3])
        tensors = make_tensors(subgraphs, self.orders, 2, 3)
        y = call(tensors, subgraphs, self.orders, "cpp")
        grads = torch.autograd.grad(y.sum(), list(tensors.values()))
        kept = [g.clone() for g in grads]
        grads[0].zero_(), grads[3].zero_()
        assert all(
            torch.equal(a, b)
            for i, (a, b) in enumerate(zip(grads, kept, strict=True))
            if i not in (0, 3)
        )

    def test_tables_that_do_not_fit_are_refused(self):
        subgraphs = make_subgraphs(sizes=[2, 3])
        tensors = make_tensors(subgraphs, self.orders, 2, 3, batch=(1,))
        given = [tensors[name] for name in ("x", "pair", "swap", "node", "graph")]
        tables = list(subgraphs.blocks)
        with pytest.raises(ValueError, match="row holds 3 numbers"):
            _pairs.pairs_to_pairs(given, [tables[0][:3], *tables[1:]], "cpp")
        with pytest.raises(ValueError, match="graph holds"):
            _pairs.pairs_to_pairs([*given[:4], given[4][:, 1:]], tables, "cpp")
        with pytest.raises(TypeError, match="int32"):
            _pairs.pairs_to_pairs(given, [t.long() for t in tables], "cpp")


class TestBadInput:
    def bad(self, change, error, match, orders=(2, 2)):
        subgraphs = make_subgraphs(sizes=[2, 3])
        tensors = change(dict(make_tensors(subgraphs, orders, 2, 3)))
        with pytest.raises(error, match=match):
            call(tensors, subgraphs, orders)

    def test_shapes_types_and_what_is_missing(self):
        bad = self.bad
        bad(lambda t: t | {"x": t["x"][1:]}, ValueError, r"x must be \[..., 13, in\]")
        bad(lambda t: t | {"x": t["x"].long()}, TypeError, "floating point")
        bad(lambda t: t | {"x": t["x"].float()}, TypeError, "graph must have the type of x")
        bad(lambda t: t | {"graph": t["graph"][:, 1:]}, ValueError, r"graph must be \[1, 4, 6\]")
        bad(lambda t: t | {"graph": t["graph"][..., 1:]}, ValueError, r"graph must be .*2 out")
        bad(lambda t: t | {"node": None}, ValueError, "node must be .*; got none")
        bad(lambda t: t | {"pair": t["pair"][0]}, ValueError, r"pair must be \[1, 2, 3\]")
        bad(lambda t: t | {"loop_bias": None}, ValueError, "loop_bias must be .*; got none")
        bad(lambda t: t | {"bias": t["graph"]}, ValueError, r"bias must be \[1, 3\]")
        one = torch.ones(1, 2, 3, dtype=torch.float64)
        bad(lambda t: t | {"pair": one, "swap": one}, ValueError, "pair must be none", (2, 1))

    def test_orders_and_subgraphs(self):
        subgraphs = make_subgraphs(sizes=[2])
        with pytest.raises(ValueError, match="orders must be"):
            kernels.subgraph_linear(torch.ones(4, 1), subgraphs, (3, 1), torch.ones(1, 2, 1))
        with pytest.raises(TypeError, match="subgraphs must be Subgraphs; got list"):
            kernels.subgraph_linear(torch.ones(4, 1), [2], (2, 0), torch.ones(1, 2, 1))


def test_another_backend_is_told_from_ours():
    subgraphs = make_subgraphs(sizes=[2])
    tensors = make_tensors(subgraphs, (2, 0), 1, 1)
    weights = Weights(tensors["graph"], bias=tensors["bias"])
    found = _pairs.subgraph_linear(
        tensors["x"], subgraphs, (2, 0), weights, backend=BACKENDS["native"]
    )
    expected = reference.subgraph_linear(tensors["x"], subgraphs, (2, 0), weights)
    torch.testing.assert_close(found, expected)
