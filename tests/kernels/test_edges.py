"""The edge work of the EGNN family against its definition: values, gradients, double backward."""

import itertools

import numpy as np
import pytest
import torch
from helpers import check_operator, define_edges
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from gsym import kernels
from gsym.kernels import Segments, _operators, native
from gsym.kernels.edges import EdgeOptions, EdgeStage
from gsym.kernels.native import edges as pipeline

H, D, A = 5, 3, 2
GRAPHS = {
    # receiver of every edge, number of nodes
    "no edges": ([], 4),
    "empty segments": ([1, 1, 1, 4, 4, 6], 7),
    "one node": ([0] * 6, 1),
    "one huge segment": ([0] + [1] * 300 + [2, 2], 4),
    "63 edges": (63, 9),
    "64 edges": (64, 9),
    "65 edges": (65, 9),
}
VARIANTS = {
    "messages": {"parts": ()},
    "attributes": {"parts": ("attr",)},
    "moves": {"parts": ("pos", "coord")},
    "distances": {"parts": ("pos",)},
    "sum": {"parts": ("pos", "coord"), "mean": False},
    "normalize": {"parts": ("pos", "coord"), "normalize": True},
    "clamp": {"parts": ("pos", "coord"), "clamp": 0.7},
    "tanh": {"parts": ("pos", "coord"), "tanh": True},
    "gate": {"parts": ("pos", "coord", "gate")},
    "all": {
        "parts": ("pos", "coord", "gate", "attr"),
        "normalize": True,
        "tanh": True,
        "clamp": 0.3,
        "mean": False,
    },
}
LAYOUTS = {"no batch": (), "zero batch": (0,), "batch": (3,), "two batches": (2, 2)}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}


def make_edges(graph):
    """Sender and receiver of every edge; some edges come twice, some are loops."""
    receivers, n = GRAPHS[graph]
    rng = torch.Generator().manual_seed(0)
    if isinstance(receivers, int):
        receivers = torch.randint(n, (receivers,), generator=rng).sort().values
    receivers = torch.as_tensor(receivers, dtype=torch.int64)
    senders = torch.randint(n, receivers.shape, generator=rng)
    return Segments.from_index(senders, n), Segments.from_index(receivers, n)


def make_case(variant, graph, layout="batch", dtype=torch.float64):
    """The tables, the tensors by name, and the options."""
    torch.manual_seed(0)
    source, segments = make_edges(graph)
    n, e, batch = segments.num_segments, segments.index.numel(), LAYOUTS.get(layout, (3,))
    options = dict(VARIANTS[variant])
    parts = options.pop("parts")

    def leaf(*shape):
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    tensors = {
        "receiver": leaf(*batch, n, H),
        "sender": leaf(*batch, n, H),
        "weight": leaf(H, H),
        "bias": leaf(H),
    }
    if layout == "non-contiguous":
        tensors["receiver"] = leaf(H, n, *batch).permute(2, 1, 0)
        tensors["sender"] = leaf(1, n, H).expand(3, -1, -1)
    if "pos" in parts:
        tensors |= {"pos": leaf(*batch, n, D), "distance": leaf(H)}
    if "attr" in parts:
        own = layout != "shared attributes"
        tensors |= {"attr": leaf(*(batch if own else ()), e, A), "attr_weight": leaf(H, A)}
    if "gate" in parts:
        tensors |= {"gate": leaf(1, H), "gate_bias": leaf(1)}
    if "coord" in parts:
        tensors |= {"coord": leaf(H, H), "coord_bias": leaf(H), "coord_last": leaf(1, H)}
    return (source, segments), tensors, options


def both_ends(source, segments):
    """The tables of an edge stage."""
    return [getattr(s, n) for s in (segments, source) for n in ("index", "order", "pointers")]


def call(function, tables, tensors, options, **more):
    t = dict(tensors)
    args = [t.pop(name) for name in ("receiver", "sender")]
    args += [*tables, t.pop("weight"), t.pop("bias")]
    groups = {
        "edge_attr": ("attr", "attr_weight"),
        "gate": ("gate", "gate_bias"),
        "coord": ("coord", "coord_bias", "coord_last"),
    }
    for group, names in groups.items():
        if names[0] in t:
            more[group] = tuple(t.pop(name) for name in names)
    total, moved = function(*args, **t, **options, **more)
    return (total,) if moved is None else (total, moved)


def assert_near(found, expected, allowed, name):
    assert found.shape == expected.shape, name
    if found.numel():
        assert found.isfinite().all(), name
        error = (found.double() - expected).abs().amax()
        scale = max(float(expected.abs().amax()), 1e-3)
        assert error <= allowed * scale, f"{name}: error {error:.2e} beside {scale:.2e}"


def assert_parity(function, tables, tensors, options, allowed=None):
    """Values and the gradient of every tensor by name, against the definition in float64."""
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    allowed = allowed or TOLERANCE[tensors["receiver"].dtype]
    found = call(function, tables, leaves, options)
    right = call(define_edges, tables, exact, options)
    assert len(found) == len(right) == 1 + ("coord" in tensors)
    for name, a, b in zip(("messages", "moves"), found, right, strict=False):
        assert a.dtype == tensors["receiver"].dtype
        assert_near(a.detach(), b.detach(), allowed, name)
    weights = [torch.randn(y.shape, dtype=torch.float64) for y in right]
    grads = torch.autograd.grad(found, leaves.values(), [w.to(found[0]) for w in weights])
    wanted = torch.autograd.grad(right, exact.values(), weights, materialize_grads=True)
    for name, a, b in zip(leaves, grads, wanted, strict=True):
        assert a.dtype == leaves[name].dtype
        assert_near(a, b, allowed, f"gradient of {name}")


def on(backend):
    def function(*args, **options):
        with kernels.trace() as ran:
            y = kernels.edge_mlp_sum(*args, backend=backend, **options)
        assert ran == [backend]
        return y

    return function


@pytest.fixture(params=["cpp", "fused", "composed"])
def path(request, monkeypatch):
    """The C++, and both ways of the native back-end; the last is what runs on CUDA."""
    calls, backend = [], "cpp" if request.param == "cpp" else "native"
    name = "composed_edges" if request.param == "composed" else "edge_mlp_sum"
    whole = getattr(_operators, name)

    def counted(*args):
        assert args[-1] == backend
        calls.append(request.param)
        return whole(*args)

    monkeypatch.setattr(_operators, name, counted)
    if request.param == "composed":
        monkeypatch.setattr(native, "takes", lambda op, *given, **how: op != "edge_mlp_sum")
    yield on(backend)
    assert calls


@pytest.fixture(params=["cpp", "native"])
def fused(request):
    with kernels.backend(request.param):
        yield request.param


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_parity_of_graphs(path, variant, graph):
    assert_parity(path, *make_case(variant, graph))


@pytest.mark.parametrize("variant", ["attributes", "all"])
@pytest.mark.parametrize("layout", [*LAYOUTS, "non-contiguous", "shared attributes"])
def test_parity_of_layouts(path, variant, layout):
    assert_parity(path, *make_case(variant, "empty segments", layout))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_parity_of_types(fused, variant, dtype):
    # Sums of large terms that cancel: either order of adding has its own digits, the fewer the
    # narrower the vectors of the processor are, and without fused products.
    allowed = 1e-4 if (fused, dtype) == ("cpp", torch.float32) else None
    assert_parity(on(fused), *make_case(variant, "65 edges", dtype=dtype), allowed)


@pytest.mark.parametrize("variant", ["attributes", "all"])
@pytest.mark.parametrize("size", [1, 16, 65, 130, 2**13])
def test_parity_of_blocks(variant, size, monkeypatch):
    # One edge, parts of a sample, one whole sample, two and a rest, and all at once.
    monkeypatch.setattr(pipeline, "BLOCK_EDGES", size)
    assert_parity(on("native"), *make_case(variant, "65 edges"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count", [2, 5, 65, 80])
def test_parity_of_parts(variant, count, monkeypatch):
    # Parts of many edges, with and without some left over, of one, and of none.
    monkeypatch.setattr(pipeline, "BLOCK_EDGES", 65)
    monkeypatch.setattr(pipeline.Pipeline, "parts", count)
    assert_parity(on("native"), *make_case(variant, "65 edges"))


def test_parts_depend_on_sizes_alone():
    def parts(edges, h):
        x = torch.zeros(1, 1, h)
        index = torch.zeros(edges, dtype=torch.int64)
        given = {"receiver": x, "sender": x}
        pointers = torch.tensor([0, edges])
        return pipeline.Pipeline(given, index, index, pointers, False, False, None, True).parts

    assert (parts(511, 16), parts(512, 16), parts(10**5, 64)) == (1, 8, 8)
    assert (parts(1023, 128), parts(1024, 128), parts(10**5, 1024)) == (1, 8, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("h", [1, 16, 33, 100])
def test_cpp_of_many_chunks_and_waves(h, dtype):
    # More edges than wait for their senders at a time on any number of threads, runs that chunks
    # share, and each part of a register tile: float64 of 100 channels has three widths of it.
    torch.manual_seed(0)
    n, e, batch = 30, 9000, 4
    source = Segments.from_index(torch.randint(n, (e,)), n)
    segments = Segments.from_index(torch.randint(n, (e,)).sort().values, n)
    scale = h**-0.5
    shapes = {"receiver": (batch, n, h), "sender": (batch, n, h), "bias": (h,), "distance": (h,)}
    shapes |= {"pos": (batch, n, D), "coord_bias": (h,), "gate_bias": (1,)}
    matrices = {"weight": (h, h), "coord": (h, h), "coord_last": (1, h), "gate": (1, h)}
    shapes |= {"attr": (e, A), "attr_weight": (h, A)}
    tensors = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    tensors |= {name: scale * torch.randn(shape, dtype=dtype) for name, shape in matrices.items()}
    tensors = {name: x.requires_grad_() for name, x in tensors.items()}
    tolerance = 1e-11 if dtype == torch.float64 else 5e-4
    assert_parity(on("cpp"), (source, segments), tensors, {}, tolerance)


def test_gradients_of_moves_within_a_clamp_that_float32_rounds(fused):
    # In float32 0.21 divided by the root of its rounded square is below 1.
    (source, segments), tensors, options = make_case("clamp", "65 edges", dtype=torch.float32)
    assert np.float32(0.21) / np.sqrt(np.float32(0.21**2)) < 1
    assert (source.index == segments.index).any()  # loops, whose moves are zero
    tensors["coord_last"] = 1e-4 * tensors["coord_last"].detach()
    tables, options = (source, segments), options | {"clamp": 0.21}
    assert call(define_edges, tables, tensors, options)[1].abs().amax() < 0.1
    assert_parity(on(fused), tables, tensors, options)


@pytest.mark.parametrize("long", [("index", "pointers"), ("index",), ("pointers",)], ids=str)
def test_cpp_takes_long_indices(long):
    (source, segments), tensors, options = make_case("all", "one huge segment")
    for name in long:
        segments.__dict__[f"_{name}"] = getattr(segments, name).long()
    assert_parity(on("cpp"), (source, segments), tensors, options | {"mean": True})


def test_cpp_sums_do_not_depend_on_the_threads():
    tables, tensors, options = make_case("all", "one huge segment", dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = call(on("cpp"), tables, tensors, options)
            ends = [tensors[name] for name in ("receiver", "sender", "pos", "attr")]
            results.append([*y, *torch.autograd.grad(sum(v.sum() for v in y), ends)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("where", ["receiver", "pos", "weight"])
def test_nan_and_infinity_come_through(fused, where):
    for value in (float("nan"), float("inf")):
        tables, tensors, options = make_case("moves", "65 edges")
        tensors[where] = tensors[where].detach().clone()
        tensors[where].view(-1)[0] = value
        total, moved = call(kernels.edge_mlp_sum, tables, tensors, options)
        assert not total.isfinite().all()
        assert not moved.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_cpp_activation_is_exact_to_some_units_in_the_last_place(dtype):
    # One edge per node, and the identity for a layer.
    x = torch.linspace(-30, 30, 4001, dtype=dtype)[:, None]
    every = Segments.from_index(torch.arange(len(x)), len(x))
    one, zero = torch.ones(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)
    y, _ = on("cpp")(x, torch.zeros_like(x), every, every, one, zero)
    right = torch.nn.functional.silu(torch.nn.functional.silu(x.double()))
    error = (y.double() - right).abs() / right.abs().clamp(min=1e-30)
    assert error.max() <= 4 * torch.finfo(dtype).eps


def test_very_negative_numbers_are_nothing_after_the_activation(fused):
    tables, tensors, _ = make_case("messages", "64 edges", dtype=torch.float32)
    tensors["receiver"] = torch.full_like(tensors["receiver"], -1e30)
    (total,) = call(kernels.edge_mlp_sum, tables, tensors, {})
    degree = torch.bincount(tables[1].index, minlength=9)[:, None]
    expected = (degree * torch.nn.functional.silu(tensors["bias"])).expand_as(total)
    assert torch.allclose(total, expected, rtol=1e-6)


def test_reference_is_a_back_end():
    tables, tensors, options = make_case("all", "empty segments")
    assert_parity(on("reference"), tables, tensors, options)


@pytest.mark.parametrize("variant", ["messages", "all"])
def test_first_and_second_derivatives(fused, variant):
    tables, tensors, options = make_case(variant, "empty segments", "no batch")
    # normalize holds the length for constant in the gradient, so differences do not agree.
    options = options | {"normalize": False}
    names = list(tensors)

    def function(*values):
        return call(kernels.edge_mlp_sum, tables, dict(zip(names, values, strict=True)), options)

    values = [x.detach().clone().requires_grad_() for x in tensors.values()]
    assert gradcheck(function, values)
    assert gradgradcheck(function, values)


def test_passes_opcheck(fused):
    for variant in ("messages", "all"):
        (source, segments), tensors, options = make_case(variant, "empty segments")
        tables = both_ends(source, segments)
        args = (list(tensors.values()), " ".join(tensors), tables, *EdgeOptions(**options), fused)
        check_operator(_operators.edge_mlp_sum.registered, args)
        grads = [torch.randn_like(y) for y in _operators.edge_mlp_sum(*args)]
        still = [x.detach() for x in tensors.values()]
        check_operator(_operators.edge_mlp_grads.registered, (*grads, still, *args[1:]))


def test_compiles_in_one_graph(fused):
    tables, tensors, options = make_case("all", "65 edges")
    options = options | {"clamp": None}
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def compiled(*args, **more):
        return kernels.edge_mlp_sum(*args, **more)

    for copies in range(2, 12):
        batch = {name: x.detach() for name, x in tensors.items()}
        for name in ("receiver", "sender", "pos", "attr"):
            batch[name] = batch[name][:1].repeat(copies, 1, 1)
        assert_parity(compiled, tables, batch, options)
    assert counter.frame_count <= 3


def test_of_fake_tensors(fused):
    (source, segments), tensors, options = make_case("all", "65 edges")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {name: mode.from_tensor(x) for name, x in tensors.items()}
        y = call(kernels.edge_mlp_sum, (source, segments), fake, options)
        grads = torch.autograd.grad(sum(v.sum() for v in y), fake.values())
    assert [v.shape for v in y] == [(3, 9, H), (3, 9, D)]
    assert [g.shape for g in grads] == [x.shape for x in tensors.values()]


def test_traced_operators_are_the_same_on_other_numbers(fused):
    tables, tensors, options = make_case("all", "65 edges")
    values = [x.detach() for x in tensors.values()]

    def function(*values):
        given = dict(zip(tensors, values, strict=True))
        return call(kernels.edge_mlp_sum, tables, given, options)

    traced = make_fx(function)(*values)
    others = [2 * x for x in values]
    for a, b in zip(traced(*others), function(*others), strict=True):
        assert torch.equal(a, b)


def test_results_and_gradients_may_change_in_place(fused):
    tables, tensors, options = make_case("all", "65 edges")
    total, moved = call(kernels.edge_mlp_sum, tables, tensors, options)
    right = torch.autograd.grad(total.square().sum(), tensors.values(), retain_graph=True)
    loss = total.square().sum()
    moved.mul_(2)
    grads = torch.autograd.grad(loss, tensors.values(), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(grads, right, strict=True))
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    product = (factor * grads[0]).sum()
    for grad in grads[1:]:
        grad.zero_()
    product.backward()
    torch.testing.assert_close(factor.grad, right[0].sum())


def test_real_tensors_in_a_fake_mode(fused):
    (source, segments), tensors, options = make_case("all", "65 edges")
    still = {name: x.detach() for name, x in tensors.items()}
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = call(kernels.edge_mlp_sum, (source, segments), still, options)
    assert [type(v) for v in y] == [FakeTensor, FakeTensor]


def test_same_bits_every_time(fused):
    tables, tensors, options = make_case("all", "one huge segment", dtype=torch.float32)
    results = []
    for _ in range(5):
        y = call(kernels.edge_mlp_sum, tables, tensors, options)
        results.append([*y, *torch.autograd.grad(sum(v.sum() for v in y), tensors.values())])
    for first, other in itertools.product(results[:1], results[1:]):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_same_bits_every_time_on_two_threads(fused):
    torch.manual_seed(0)
    n, e, h = 40, 6000, 32  # enough for torch to share each step among threads
    source, segments = (
        Segments.from_index(torch.randint(n, (e,)).sort().values, n) for _ in range(2)
    )
    shapes = {"receiver": (n, h), "sender": (n, h), "weight": (h, h), "bias": (h,)}
    shapes |= {"pos": (n, D), "distance": (h,)}
    shapes |= {"coord": (h, h), "coord_bias": (h,), "coord_last": (1, h)}
    tensors = {name: torch.randn(shape, requires_grad=True) for name, shape in shapes.items()}
    before, results = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        for _ in range(3):
            y = call(kernels.edge_mlp_sum, (source, segments), tensors, {"normalize": True})
            results.append([*y, *torch.autograd.grad(sum(v.sum() for v in y), tensors.values())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_coincident_points_have_finite_gradients(fused):
    tables, tensors, options = make_case("all", "65 edges")
    tensors["pos"] = torch.zeros_like(tensors["pos"], requires_grad=True)
    y = call(kernels.edge_mlp_sum, tables, tensors, options)
    assert (y[1] == 0).all()
    for grad in torch.autograd.grad(sum(v.sum() for v in y), tensors.values()):
        assert grad.isfinite().all()


def test_autocast_takes_products_in_its_type_and_leaves_coordinates():
    tables, tensors, options = make_case("all", "65 edges", dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, moved = call(kernels.edge_mlp_sum, tables, tensors, options)
    assert (total.dtype, moved.dtype) == (torch.bfloat16, torch.float32)
    exact = {name: x.detach().double() for name, x in tensors.items()}
    right = call(define_edges, tables, exact, options)
    assert_near(total.detach(), right[0], 0.1, "messages")
    assert_near(moved.detach(), right[1], 0.1, "moves")


def test_no_tensor_of_all_edges():
    # The largest storage allocated anywhere, gradients included, is far below [e, h].
    torch.manual_seed(0)
    n, e, h = 50, 40000, 32
    source, segments = (
        Segments.from_index(torch.randint(n, (e,)).sort().values, n) for _ in range(2)
    )
    tensors = {"receiver": (1, n, h), "sender": (1, n, h), "weight": (h, h), "bias": (h,)}
    tensors |= {"pos": (1, n, D), "distance": (h,)}
    tensors |= {"coord": (h, h), "coord_bias": (h,), "coord_last": (1, h)}
    leaves = {name: torch.randn(shape, requires_grad=True) for name, shape in tensors.items()}

    def largest(function):
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            y = function()
            sum(v.square().sum() for v in y).backward()
        return max(event.self_cpu_memory_usage for event in profile.function_events)

    stage, tables = EdgeStage(leaves, EdgeOptions()), both_ends(source, segments)
    composed = largest(lambda: _operators.composed_edges(stage, tables, "native"))
    with kernels.backend("native"):
        fused = largest(lambda: call(kernels.edge_mlp_sum, (source, segments), leaves, {}))
    assert composed >= 4 * e * h
    assert fused <= 4 * pipeline.BLOCK_EDGES * h


def test_backward_within_autocast_keeps_the_types_of_the_forward_pass(fused):
    tables, tensors, options = make_case("all", "65 edges", dtype=torch.float32)
    y = call(kernels.edge_mlp_sum, tables, tensors, options)
    loss = sum(v.square().sum() for v in y)
    outside = torch.autograd.grad(loss, tensors.values(), retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(loss, tensors.values(), retain_graph=True)
        twice = torch.autograd.grad(loss, tensors.values(), create_graph=True)
        half = call(kernels.edge_mlp_sum, tables, tensors, options)
        sum(v.float().sum() for v in half).backward()
    for name, a, b, c in zip(tensors, outside, inside, twice, strict=True):
        assert torch.equal(a, b), name
        torch.testing.assert_close(a, c.detach(), rtol=1e-3, atol=1e-3, msg=name)
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in tensors.values())


def test_a_tensor_in_two_places_counts_once_in_each():
    tables, tensors, options = make_case("all", "65 edges")
    tensors = {name: x.detach() for name, x in tensors.items()}
    shared = tensors["weight"].clone().requires_grad_()
    tensors |= {"weight": shared, "coord": 2 * shared}

    def gradient(function, **how):
        loss = sum(v.square().sum() for v in call(function, tables, tensors, options))
        return torch.autograd.grad(loss, shared, **how)[0]

    right = gradient(define_edges, retain_graph=True)
    for how in ({"retain_graph": True}, {"create_graph": True}):
        torch.testing.assert_close(gradient(kernels.edge_mlp_sum, **how), right)


@pytest.mark.parametrize("fault", ["shifted receivers", "gradient of the wrong edge"])
def test_sees_a_fault(fault):
    tables, tensors, options = make_case("all", "65 edges")

    class WrongGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad.roll(1, dims=-2)

    def faulty(receiver, *args, **more):
        if fault == "shifted receivers":
            total, moved = kernels.edge_mlp_sum(receiver, *args, **more)
            return total.roll(1, dims=-2), moved
        return kernels.edge_mlp_sum(WrongGradient.apply(receiver), *args, **more)

    message = "messages" if fault == "shifted receivers" else "gradient of receiver"
    with pytest.raises(AssertionError, match=f"{message}: error"):
        assert_parity(faulty, tables, tensors, options)


class TestBadInput:
    def rejects(self, error, message, **changes):
        tables, tensors, options = make_case("all", "65 edges")
        tables = changes.pop("tables", tables)
        tensors = {name: changes.pop(name, x) for name, x in tensors.items()}
        tensors = {name: x for name, x in tensors.items() if x is not None}
        assert not changes
        with pytest.raises(error, match=message):
            call(kernels.edge_mlp_sum, tables, tensors, options)

    def test_unsorted_edges(self):
        source, segments = make_edges("65 edges")
        flipped = Segments.from_index(segments.index.flip(0), segments.num_segments)
        self.rejects(ValueError, "sorted by receiver", tables=(source, flipped))

    def test_another_number_of_edges(self):
        source, segments = make_edges("65 edges")
        shorter = Segments.from_index(source.index[1:], source.num_segments)
        self.rejects(ValueError, "same edges; got 64 and 65", tables=(shorter, segments))

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("receiver", (3, 8, H)),
            ("sender", (3, 9, H + 1)),
            ("weight", (H, H + 1)),
            ("bias", (H + 1,)),
            ("distance", (1,)),
            ("pos", (3, 8, D)),
            ("attr", (3, 64, A)),
            ("attr_weight", (H, A + 1)),
            ("gate", (1, H + 1)),
            ("coord_last", (H, 1)),
        ],
    )
    def test_width_mismatch(self, name, shape):
        group = {"attr": "edge_attr", "attr_weight": "edge_attr", "coord_last": "coord"}
        self.rejects(
            ValueError,
            f"{group.get(name, name)} must be",
            **{name: torch.zeros(shape, dtype=torch.float64)},
        )

    @pytest.mark.parametrize("name", ["sender", "weight", "pos", "attr", "gate", "coord_bias"])
    def test_mixed_types(self, name):
        _, tensors, _ = make_case("all", "65 edges")
        self.rejects(
            TypeError, "must have the type of receiver", **{name: tensors[name].detach().float()}
        )

    @pytest.mark.parametrize("name", ["weight", "distance", "attr", "gate", "coord_last"])
    def test_mixed_devices(self, name):
        _, tensors, _ = make_case("all", "65 edges")
        self.rejects(
            ValueError, "is on meta but receiver on cpu", **{name: tensors[name].to("meta")}
        )

    @pytest.mark.parametrize("clamp", [0.0, -1.0, float("nan"), float("inf"), 1e20])
    def test_clamp_out_of_bounds(self, clamp):
        tables, tensors, options = make_case("clamp", "65 edges")
        with pytest.raises(ValueError, match="clamp must be a length between"):
            call(kernels.edge_mlp_sum, tables, tensors, options | {"clamp": clamp})

    def test_attributes_without_channels(self):
        empty = torch.empty(3, 65, 0, dtype=torch.float64)
        self.rejects(ValueError, "a at least 1", attr=empty)

    def test_parts_that_go_together(self):
        self.rejects(ValueError, "pos and distance go together", distance=None)
        self.rejects(ValueError, "needs pos", distance=None, pos=None)

    @pytest.mark.parametrize(
        ("name", "shape"), [("pos", (9, D)), ("attr", (65, A))], ids=["pos", "attributes"]
    )
    def test_leading_axes(self, name, shape):
        said = {"attr": "edge_attr"}.get(name, name)
        own, whole = (", ".join(map(str, s)) for s in (shape, (3, *shape)))
        message = rf"{said} must be \[{own}\] or \[{whole}\]; got \[2, {own}\]"
        self.rejects(ValueError, message, **{name: torch.zeros(2, *shape).double()})

    @pytest.mark.parametrize("name", ["pos", "attr"])
    def test_samples_may_share_what_has_no_leading_axes(self, name, path):
        tables, tensors, options = make_case("moves" if name == "pos" else "all", "65 edges")
        tensors[name] = tensors[name].detach()[0].requires_grad_()
        assert_parity(path, tables, tensors, options)

    @pytest.mark.parametrize(
        ("group", "count"), [("edge_attr", 2), ("gate", 2), ("coord", 3)], ids=str
    )
    def test_parts_of_one_argument(self, group, count):
        (source, segments), tensors, _ = make_case("all", "65 edges")
        p, q, weight, bias = (tensors[n] for n in ("receiver", "sender", "weight", "bias"))
        given = {"pos": tensors["pos"], "distance": tensors["distance"]}
        for error, value, message in (
            (ValueError, (bias,) * (count - 1), f"{count} tensors; got {count - 1}"),
            (ValueError, (bias,) * (count + 1), f"{count} tensors; got {count + 1}"),
            (TypeError, bias, f"{group} must be a tuple of {count} tensors; got Tensor"),
            (TypeError, [bias] * count, f"{group} must be a tuple of {count} tensors; got list"),
            (TypeError, (bias, *[None] * (count - 1)), f"of {group} must be a tensor; got None"),
        ):
            more = given | {group: value}
            with pytest.raises(error, match=message):
                kernels.edge_mlp_sum(p, q, source, segments, weight, bias, **more)

    @pytest.mark.parametrize("name", ["sender", "pos", "receiver"])
    def test_nodes_elsewhere(self, name):
        _, tensors, _ = make_case("all", "65 edges")
        message = f"{name} is on meta but (its index|receiver) on cpu"
        self.rejects(ValueError, message, **{name: tensors[name].to("meta")})

    def test_an_index_elsewhere_or_of_another_kind(self):
        source, segments = make_edges("65 edges")
        tables = (source.index, segments), (source, segments.index)
        for given in tables:
            self.rejects(TypeError, "an index must be Segments; got Tensor", tables=given)
        moved = make_edges("65 edges")[0].to("meta")
        self.rejects(ValueError, "on meta", tables=(moved, segments))

    def test_what_must_be_there(self):
        (source, segments), tensors, _ = make_case("messages", "65 edges")
        p, q, weight, bias = tensors.values()
        with pytest.raises(TypeError, match="weight must be a tensor; got NoneType"):
            kernels.edge_mlp_sum(p, q, source, segments, None, bias)
        with pytest.raises(TypeError, match=r"receiver must be floating point; got torch\.int64"):
            kernels.edge_mlp_sum(p.long(), q, source, segments, weight, bias)
