"""Every primitive under every transform: forward mode, torch.func, batched gradients."""

import inspect

import pytest
import torch
from helpers import define_edges
from kernels.test_edges import VARIANTS
from kernels.test_edges import call as call_edges
from kernels.test_edges import make_case as make_edge_case
from kernels.test_ops import OPS, case, primitive
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from gsym import kernels
from gsym.kernels import Segments, Tiles, reference

EDGES = tuple(f"edge_mlp_sum {variant}" for variant in VARIANTS if variant != "tanh")
EVERY = (*OPS, *EDGES)
BACKENDS = ("native", "cpp")


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(kernels.segments, "BLOCK_ROWS", 3)
    monkeypatch.setattr(kernels.segments, "_ROWS_PER_SEGMENT", 1)
    monkeypatch.setattr(kernels.native.rows, "BLOCK_ROWS", 3)


def make(op, index="unsorted"):
    """Functions of the leaves, on a back-end and by definition, and the leaves."""
    torch.manual_seed(0)
    if op in EDGES:
        variant = op.partition(" ")[2]
        tables, tensors, options = make_edge_case(variant, "empty segments")
        names = list(tensors)

        def run(function, leaves, **more):
            given = dict(zip(names, leaves, strict=True))
            return torch.cat(call_edges(function, tables, given, options, **more), dim=-1)

        def on(backend):
            return lambda *leaves: run(kernels.edge_mlp_sum, leaves, backend=backend)

        return on, lambda *leaves: run(define_edges, leaves), values(tensors)
    name, args, leaves = case(op, index)
    names = list(inspect.signature(primitive(reference, name)).parameters)[: len(args)]
    leaves = {n: a for n, a in zip(names, args, strict=True) if n in leaves}

    def filled(given):
        given = dict(zip(leaves, given, strict=True))
        return [given.get(n, a) for n, a in zip(names, args, strict=True)]

    def on(backend):
        return lambda *given: primitive(kernels, name)(*filled(given), backend=backend)

    return on, lambda *given: primitive(reference, name)(*filled(given)), values(leaves)


def values(leaves):
    return [leaf.detach() for leaf in leaves.values()]


def like(leaves):
    return [torch.randn_like(leaf) for leaf in leaves]


def near(found, expected, what=""):
    """Equal, and not because both are nothing."""
    assert isinstance(found, torch.Tensor), f"{what}: {found}"
    assert found.shape == expected.shape, what
    assert expected.numel() == 0 or expected.abs().max() > 0, f"{what}: the definition is zero"
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=lambda m: f"{what}: {m}")


def near_all(found, expected, what=""):
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        near(a, b, f"{what} {i}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", EVERY)
class TestForward:
    def test_of_all_leaves(self, op, backend):
        on, definition, leaves = make(op)
        tangents = like(leaves)
        step = 1e-6
        ahead, behind = (
            definition(*(x + s * t for x, t in zip(leaves, tangents, strict=True)))
            for s in (step, -step)
        )
        expected = (ahead - behind) / (2 * step)
        with kernels.trace() as ran:
            y, found = jvp(on(backend), tuple(leaves), tuple(tangents))
        assert ran == ["native"]
        near(y, definition(*leaves), "value")
        if "normalize" not in op and op != "edge_mlp_sum all":  # which fix the length
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        near(found, jvp(definition, tuple(leaves), tuple(tangents))[1])

    def test_of_each_leaf(self, op, backend):
        on, definition, leaves = make(op)
        for i, leaf in enumerate(leaves):
            tangent = torch.randn_like(leaf)

            def one(function, x, i=i):
                return function(*(x if j == i else y for j, y in enumerate(leaves)))

            expected = jvp(lambda x: one(definition, x), (leaf,), (tangent,))[1]
            for needs_grad in (False, True):
                with forward_ad.dual_level():
                    x = leaf.clone().requires_grad_(needs_grad)
                    y = one(on(backend), forward_ad.make_dual(x, tangent))
                    found = forward_ad.unpack_dual(y).tangent
                near(found.detach(), expected, f"tangent by {i}")

    def test_of_gradients(self, op, backend):
        # In a graph made before; and by forward mode over reverse mode.
        on, definition, leaves = make(op)
        y = definition(*leaves)
        outer, change, tangents = torch.randn_like(y), torch.randn_like(y), like(leaves)

        def backward(function, g):
            return vjp(function, *leaves)[1](g)

        expected = jvp(lambda g: backward(definition, g), (outer,), (change,))[1]
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        result = on(backend)(*inputs)
        # Without a graph torch has no derivative of the gradient of SiLU, and says so.
        for create_graph in (True,) if "row_mlp" in op else (False, True):
            with forward_ad.dual_level():
                g = forward_ad.make_dual(outer, change)
                found = torch.autograd.grad(
                    result, inputs, g, retain_graph=True, create_graph=create_graph
                )
                found = [forward_ad.unpack_dual(x).tangent.detach() for x in found]
            near_all(found, expected, "gradient")
        (expected, found) = (
            jvp(lambda *xs: vjp(f, *xs)[1](outer), tuple(leaves), tuple(tangents))[1]  # noqa: B023
            for f in (definition, on(backend))
        )
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):  # linear ones have none
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", EVERY)
class TestBatches:
    def test_vmap_over_each_leaf(self, op, backend):
        on, definition, leaves = make(op)
        for i, leaf in enumerate(leaves):
            many = torch.randn(2, *leaf.shape, dtype=leaf.dtype)
            dims = tuple(0 if j == i else None for j in range(len(leaves)))
            given = [many if j == i else x for j, x in enumerate(leaves)]
            found = vmap(on(backend), in_dims=dims)(*given)
            expected = [
                definition(*(m if j == i else x for j, x in enumerate(leaves))) for m in many
            ]
            near(found, torch.stack(expected), f"leaf {i}")

    def test_vmap_over_all_leaves_and_inner_dimensions(self, op, backend):
        on, definition, leaves = make(op)
        many = [torch.randn(*x.shape, 2, dtype=x.dtype) for x in leaves]
        found = vmap(on(backend), in_dims=-1, out_dims=1)(*many)
        expected = [definition(*(m[..., i] for m in many)) for i in range(2)]
        near(found, torch.stack(expected, dim=1))

    def test_gradients_per_sample(self, op, backend):
        on, definition, leaves = make(op)
        many, every = torch.randn(3, *leaves[0].shape, dtype=leaves[0].dtype), len(leaves)

        def loss(function):
            return lambda *xs: function(*xs).sin().sum()

        dims = (0, *(None for _ in leaves[1:]))
        found = vmap(grad(loss(on(backend)), tuple(range(every))), in_dims=dims)(many, *leaves[1:])
        expected = [grad(loss(definition), tuple(range(every)))(m, *leaves[1:]) for m in many]
        near_all(found, [torch.stack(parts) for parts in zip(*expected, strict=True)])

    def test_batched_gradients_of_a_graph_made_before(self, op, backend):
        on, definition, leaves = make(op)
        expected = vjp(definition, *leaves)[1]
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        y = on(backend)(*inputs)
        outer = torch.randn(3, *y.shape, dtype=y.dtype)
        right = [torch.stack(parts) for parts in zip(*map(expected, outer), strict=True)]
        for create_graph in (False, True):
            options = {"retain_graph": True, "create_graph": create_graph}
            found = torch.autograd.grad(y, inputs, outer, is_grads_batched=True, **options)
            assert all(x.requires_grad <= create_graph for x in found)
            near_all([x.detach() for x in found], right, f"is_grads_batched, {create_graph}")
            found = vmap(lambda g: torch.autograd.grad(y, inputs, g, **options))(outer)  # noqa: B023
            near_all([x.detach() for x in found], right, f"vmap, {create_graph}")


@pytest.mark.parametrize("op", EVERY)
def test_jacobians(op):
    on, definition, leaves = make(op)
    every = tuple(range(len(leaves)))
    expected = jacrev(definition, every)(*leaves)
    near_all(jacrev(on("auto"), every)(*leaves), expected, "jacrev")
    near_all(jacfwd(on("auto"), every)(*leaves), expected, "jacfwd")
    inputs = tuple(leaves)
    for strategy in ("reverse-mode", "forward-mode"):
        found = torch.autograd.functional.jacobian(
            on("auto"), inputs, vectorize=True, strategy=strategy
        )
        near_all(found, expected, strategy)


@pytest.mark.parametrize("op", EVERY)
def test_second_derivatives(op):
    on, definition, leaves = make(op)

    def loss(function):
        return lambda *xs: function(*xs).sin().sum()

    for i, leaf in enumerate(leaves):

        def one(function, i=i):
            return lambda x: loss(function)(*(x if j == i else y for j, y in enumerate(leaves)))

        if leaf.numel() > 50:
            direction = torch.randn_like(leaf)
            found, expected = (
                jvp(grad(one(f)), (leaf,), (direction,))[1] for f in (on("auto"), definition)
            )
        else:
            found, expected = (hessian(one(f))(leaf) for f in (on("auto"), definition))
        near(found, expected, f"leaf {i}")
        twice = grad(lambda x: grad(one(on("auto")))(x).sin().sum())(leaf)
        near(twice, grad(lambda x: grad(one(definition))(x).sin().sum())(leaf), f"leaf {i}")


@pytest.mark.parametrize("index", ["empty segments", "sorted", "no rows", "one segment"])
@pytest.mark.parametrize("op", [op for op in OPS if "segment" in op or "tiles" in op])
def test_other_indices(op, index):
    on, definition, leaves = make(op, index)
    tangents = tuple(like(leaves))
    for a, b in zip(
        jvp(on("auto"), tuple(leaves), tangents),
        jvp(definition, tuple(leaves), tangents),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_ties_share_the_change():
    segments = Segments.from_index(torch.tensor([0, 0, 0, 1, 1]), 3)
    x = torch.tensor([[1.0], [1.0], [0.0], [torch.inf], [2.0]])
    tangent = torch.tensor([[4.0], [2.0], [9.0], [5.0], [6.0]])
    y, change = jvp(lambda x: kernels.segment_max(x, segments), (x,), (tangent,))
    assert y.tolist() == [[1.0], [torch.inf], [0.0]]
    assert change[[0, 2]].tolist() == [[3.0], [0.0]]


def test_a_dropped_tangent_is_noticed(monkeypatch):
    monkeypatch.setattr("gsym.kernels._plain.take", lambda y, index: y.detach()[..., index, :])
    on, definition, leaves = make("segment_gather")
    tangents = tuple(like(leaves))
    with pytest.raises(AssertionError):
        near(
            jvp(on("auto"), tuple(leaves), tangents)[1],
            jvp(definition, tuple(leaves), tangents)[1],
        )


class TestTraced:
    """Indices that a traced program is given."""

    def test_are_taken_as_they_are(self):
        index, x = torch.tensor([2, 0, 2]), torch.randn(3, 2)
        known, traced = Segments(index, 4), Segments.traced(index, 4)
        assert traced._index is index and traced.num_segments == 4
        weight, shared = torch.randn(4, 2, 5), torch.randn(4, 5)
        tiles = Tiles(known, 2, 5), Tiles.traced(traced)
        for op, args in {
            "segment_sum": (x,),
            "segment_mean": (x,),
            "segment_max": (x,),
            "segment_gather": (torch.randn(4, 2),),
        }.items():
            function = getattr(kernels, op)
            with kernels.trace() as ran:
                found = function(*args, traced)
            assert ran == ["native"]
            torch.testing.assert_close(found, function(*args, known))
        found, expected = (kernels.indexed_linear(x, weight, t, shared) for t in reversed(tiles))
        torch.testing.assert_close(found, expected)

    def test_of_edges(self):
        tables, tensors, options = make_edge_case("all", "63 edges")
        traced = tuple(Segments.traced(s.index.long(), s.num_segments) for s in tables)
        expected = call_edges(kernels.edge_mlp_sum, tables, tensors, options)
        near_all(call_edges(kernels.edge_mlp_sum, traced, tensors, options), expected)
        x, weight = torch.randn(9, 2), torch.rand(63)
        torch.testing.assert_close(
            kernels.gather_segment_sum(x, *traced, weight),
            kernels.gather_segment_sum(x, *tables, weight),
        )

    @pytest.mark.parametrize("backend", ["eager", "inductor"])
    def test_in_a_compiled_program(self, backend):
        def function(x, source, target, weight):
            n = x.size(0)
            ends = Segments.traced(source, n), Segments.traced(target, n)
            y = kernels.gather_segment_sum(x, *ends, weight)
            tiles = Tiles.traced(Segments.traced(target % 2, 2))
            sent = kernels.indexed_linear(kernels.segment_gather(y, ends[0]), matrices, tiles)
            return kernels.segment_max(sent, ends[1])

        matrices = torch.randn(2, 3, 3)
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend=backend)
        for n, e in ((5, 9), (7, 12), (8, 13)):
            args = torch.randn(n, 3), torch.randint(n, (e,)), torch.randint(n, (e,)), torch.rand(e)
            torch.testing.assert_close(compiled(*args), function(*args))


def test_transforms_within_a_compiled_program():
    on, definition, leaves = make("indexed_linear shared")
    tangents = tuple(like(leaves))
    torch.compiler.reset()

    def push(*xs):
        return jvp(on("auto"), xs, tangents)[1]

    compiled = torch.compile(push, fullgraph=True, backend="aot_eager")
    near(compiled(*leaves), jvp(definition, tuple(leaves), tangents)[1])
    many = torch.randn(4, *leaves[0].shape, dtype=leaves[0].dtype)
    mapped = torch.compile(vmap(lambda x: on("auto")(x, *leaves[1:])), backend="aot_eager")
    near(mapped(many), torch.stack([definition(x, *leaves[1:]) for x in many]))


@pytest.mark.parametrize("op", ["row_mlp", "linear_pair"])
def test_gradients_of_compiled_loops(op):
    # Of widths of whole vectors, which they take.
    shapes = {
        "row_mlp": [(5, 16), (1, 16, 32), (1, 32), (1, 32, 16), (1, 16)],
        "linear_pair": [(5, 16), (1, 16, 32), (1, 32), (1, 16, 32)],
    }
    leaves = [torch.randn(*shape, dtype=torch.float64) for shape in shapes[op]]
    inputs = [leaf.clone().requires_grad_() for leaf in leaves]
    y = primitive(kernels, op)(*inputs)
    pull = vjp(primitive(reference, op), *leaves)[1]
    outer = torch.randn(3, *y.shape, dtype=y.dtype)
    right = [torch.stack(parts) for parts in zip(*map(pull, outer), strict=True)]
    change = torch.randn_like(y)
    pushed = jvp(pull, (outer[0],), (change,))[1]
    for create_graph in (False, True):
        options = {"retain_graph": True, "create_graph": create_graph}
        found = torch.autograd.grad(y, inputs, outer, is_grads_batched=True, **options)
        near_all([x.detach() for x in found], right, "is_grads_batched")
        found = vmap(lambda g: torch.autograd.grad(y, inputs, g, **options))(outer)  # noqa: B023
        near_all([x.detach() for x in found], right, "vmap")
        with forward_ad.dual_level():
            g = forward_ad.make_dual(outer[0], change)
            found = torch.autograd.grad(y, inputs, g, **options)
            near_all([forward_ad.unpack_dual(x).tangent.detach() for x in found], pushed, "dual")


def test_a_module_with_tables_is_a_function_of_its_parameters():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tiles = Tiles(Segments(torch.tensor([2, 0, 2, 1]), 3), 2, 2)
            self.weight = torch.nn.Parameter(torch.randn(3, 2, 2))

        def forward(self, x):
            return kernels.indexed_linear(x, self.weight, self.tiles).sin().sum()

    layer, x = Layer(), torch.randn(5, 4, 2)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,))

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)["weight"]
    for sample, each in zip(x, found, strict=True):
        (expected,) = torch.autograd.grad(layer(sample), layer.weight)
        torch.testing.assert_close(each, expected)
