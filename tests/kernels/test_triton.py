"""The Triton back-end against the definitions: on CUDA, or on the CPU by Triton's interpreter."""

from itertools import product

import pytest
import torch
from helpers import check_operator, define_edges
from kernels import test_transforms as transformed
from kernels.test_edges import both_ends
from kernels.test_ops import (
    INDICES,
    LAYOUTS,
    OPS,
    assert_near,
    assert_parity,
    assert_same_bits,
    case,
    computes,
    on,
    operator_calls,
    own_code,
    widened,
    with_wide_index,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from gsym import kernels
from gsym.errors import BackendUnavailableError
from gsym.kernels import Segments, Tiles, _operators, reference
from gsym.kernels._backends import BACKENDS

pytest.importorskip("triton", reason="triton is not installed")
from gsym.kernels import triton as triton_backend
from gsym.kernels.triton import edges as triton_edges
from gsym.kernels.triton import rows as triton_rows

CUDA = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(
    not (CUDA or triton_backend.INTERPRETED), reason="needs CUDA or TRITON_INTERPRET=1"
)
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
DEVICE = "cuda" if CUDA else "cpu"

# Those that are not plain torch.
PLAIN = ("grouped", "row_mlp", "linear_pair", "permute")
KERNELS = [op for op in OPS if not op.startswith(PLAIN) and "runs" not in op]
REDUCTIONS = [op for op in KERNELS if "linear" not in op and op != "segment_gather"]
# (values, gradients), relative to the largest entry
TOLERANCE = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (2e-2, 8e-2),
    torch.float16: (4e-3, 2e-2),
}


def placed(value):
    """The same arguments on the device."""
    if isinstance(value, tuple):
        return tuple(placed(part) for part in value)
    if isinstance(value, Segments | Tiles):
        return value.to(DEVICE)
    if isinstance(value, torch.Tensor) and CUDA:
        return value.detach().to(DEVICE).requires_grad_(value.requires_grad)
    return value


def assert_right(op, index, layout="plain", dtype=torch.float64):
    name, args, _ = case(op, index, layout, dtype)
    assert_parity(on("triton", name), name, placed(args), dtype)


class TestRows:
    @pytest.mark.parametrize("op", KERNELS)
    @pytest.mark.parametrize("index", [name for name in INDICES if name != "one huge segment"])
    def test_of_indices(self, op, index):
        assert_right(op, index)

    @pytest.mark.parametrize("op", ["indexed_linear shared", "cluster_linear tiles"])
    def test_of_many_blocks_of_tiles(self, op, monkeypatch):
        monkeypatch.setattr(kernels.segments, "BLOCK_ROWS", 16)
        monkeypatch.setattr(kernels.segments, "_ROWS_PER_SEGMENT", 1)
        assert_right(op, "65 rows")

    @pytest.mark.parametrize("op", KERNELS)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_of_layouts(self, op, layout):
        assert_right(op, "empty segments", layout)

    @pytest.mark.parametrize("op", KERNELS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_of_types(self, op, dtype):
        assert_right(op, "empty segments", dtype=dtype)

    @pytest.mark.parametrize("op", OPS)
    @pytest.mark.parametrize("channels", [(0, 2), (3, 0), (0, 0)], ids=str)
    @pytest.mark.parametrize("index", ["no rows", "empty segments", "sorted"])
    def test_of_no_channels(self, op, channels, index):
        name, args, _ = case(op, index, channels=channels)
        assert_parity(on("triton", name), name, placed(args), torch.float64)

    @pytest.mark.parametrize("op", KERNELS)
    def test_the_same_bits_twice(self, op):
        name, args, _ = case(op, "65 rows", dtype=torch.float32)
        assert_same_bits(on("triton", name), placed(args))

    @pytest.mark.parametrize("op", OPS)
    def test_what_is_written_in_triton(self, op):
        name, args, _ = case(op, "one segment")
        plain = op not in KERNELS or op == "segment_gather"
        assert computes("triton", name, *placed(args)) != plain

    def test_sees_a_trace_that_says_more_than_ran(self, monkeypatch):
        monkeypatch.setattr("gsym.kernels._backends.in_plain_torch", lambda: None)
        with pytest.raises(AssertionError, match="'triton'"):
            assert_right("cluster_linear runs", "unsorted")

    @pytest.mark.parametrize("op", REDUCTIONS)
    @pytest.mark.parametrize("index", ["one huge segment", "one segment", (100, 3)])
    def test_of_long_segments(self, op, index, monkeypatch):
        monkeypatch.setattr(triton_rows, "_CHUNK", 1024 if index == "one huge segment" else 4)
        assert_right(op, index)

    @pytest.mark.parametrize("op", [op for op in KERNELS if op not in REDUCTIONS])
    def test_of_products_with_one_huge_segment(self, op, monkeypatch):
        monkeypatch.setattr(triton_rows, "_CHUNK", 128)
        assert_right(op, "one huge segment")

    def test_of_a_segment_of_many_pieces(self, monkeypatch):
        monkeypatch.setattr(triton_rows, "_CHUNK", 8)
        lengths = torch.tensor([3, 8, 9, 0, 40, 16, 1, 7])  # of either side of the borders
        segments = Segments.from_index(torch.repeat_interleave(lengths), 8)
        x = torch.randn(84, 2, dtype=torch.float64)
        for op in ("segment_sum", "segment_max"):
            found = on("triton", op)(placed(x), placed(segments))
            assert_near(found, getattr(reference, op)(x, segments).to(DEVICE), 1e-14, op)

    def test_sees_pieces_that_are_left_out(self, monkeypatch):
        monkeypatch.setattr(triton_rows, "_CHUNK", 4)
        monkeypatch.setattr(triton_rows, "reduce_rows", lambda *args, **options: args[2].zero_())
        with pytest.raises(AssertionError, match="value: error"):
            assert_right("segment_sum", "one segment")

    def test_sees_an_entry_read_from_the_wrong_row(self, monkeypatch):
        reduce = triton_rows._reduce

        def shifted(x, columns, *args, **options):
            return reduce(x, columns.roll(1), *args, **options)

        monkeypatch.setattr(triton_rows, "_reduce", shifted)
        with pytest.raises(AssertionError, match="value: error"):
            assert_right("gather_segment_sum", "unsorted")

    @pytest.mark.parametrize("op", KERNELS)
    def test_of_both_derivatives(self, op):
        name, args, _ = case(op, "unsorted", "no batch")
        args = placed(args)
        places = [i for i, a in enumerate(args) if getattr(a, "requires_grad", False)]

        def function(*inputs):
            full = list(args)
            for place, value in zip(places, inputs, strict=True):
                full[place] = value
            return on("triton", name)(*full)

        inputs = [args[i].detach().clone().requires_grad_() for i in places]
        assert gradcheck(function, inputs, fast_mode=True)
        assert gradgradcheck(function, inputs, fast_mode=True)

    def test_half_precision_accumulates_in_float32(self):
        segments = placed(Segments.from_index(torch.zeros(4096, dtype=torch.int64), 2))
        ones = torch.ones(4096, 3, dtype=torch.bfloat16, device=DEVICE)
        assert on("triton", "segment_sum")(ones, segments)[0].tolist() == [4096] * 3
        large = ones.half() * 60000
        assert on("triton", "segment_mean")(large, segments)[0].tolist() == [60000] * 3

    def test_empty_maximum_is_zero_ties_share_and_nan_is_largest(self):
        segments = placed(Segments.from_index(torch.tensor([2, 0, 2, 2, 0, 3, 3]), 4))
        rows = [-1.0, -5.0, -1.0, -2.0, -3.0, float("nan"), 9.0]
        x = torch.tensor(rows, device=DEVICE)[:, None].requires_grad_()
        y = on("triton", "segment_max")(x, segments).flatten()
        assert y[:3].tolist() == [-3, 0, -1] and y[3].isnan()
        y[:3].backward(torch.tensor([1.0, 7.0, 4.0], device=DEVICE))
        assert x.grad.flatten()[:5].tolist() == [2, 0, 2, 0, 1]

    def test_a_long_maximum_keeps_nan(self, monkeypatch):
        monkeypatch.setattr(triton_rows, "_CHUNK", 4)
        segments = placed(Segments.from_index(torch.zeros(9, dtype=torch.int64), 1))
        x = torch.arange(9.0, device=DEVICE)[:, None]
        x[2] = float("nan")
        assert on("triton", "segment_max")(x, segments).isnan().all()

    def test_takes_wide_tables(self):
        segments, source = (
            placed(Segments.from_index(torch.tensor(v), 3)) for v in ([2, 0, 2], [1, 1, 0])
        )
        x = torch.randn(3, 2, dtype=torch.float64, device=DEVICE)
        expected = kernels.gather_segment_sum(x, source, segments, backend="native")
        source, segments = with_wide_index(source), with_wide_index(segments)
        assert torch.equal(on("triton", "gather_segment_sum")(x, source, segments), expected)


# What edge_mlp_sum can be given, and its options.
PARTS = {
    "features": ((), {}),
    "distances": (("pos",), {}),
    "attributes": (("attr",), {}),
    "gate": (("gate",), {}),
    "moves": (("pos", "coord"), {"mean": False}),
    "everything": (
        ("pos", "coord", "attr", "gate"),
        {"tanh": True},
    ),
    "everything normalized": (
        ("pos", "coord", "attr", "gate"),
        {"normalize": True, "tanh": True},
    ),
}


def edge_case(
    parts, edges=140, nodes=6, hidden=5, batch=(2,), dtype=torch.float64, coincident=False
):
    """Arguments of edge_mlp_sum; node 3 receives nothing where there are more."""
    rng = torch.Generator().manual_seed(0)

    def part(*shape):
        value = torch.randn(*shape, generator=rng, dtype=torch.float64) / max(shape[-1], 1) ** 0.5
        return placed(value.to(dtype).requires_grad_())

    target = torch.randint(nodes, (edges,), generator=rng).sort().values
    target[target == 3] = 2
    source = torch.randint(nodes, (edges,), generator=rng)
    args = {
        "receiver": part(*batch, nodes, hidden),
        "sender": part(*batch, nodes, hidden),
        "source": placed(Segments.from_index(source, nodes)),
        "segments": placed(Segments.from_index(target, nodes)),
        "weight": part(hidden, hidden),
        "bias": part(hidden),
    }
    if "pos" in parts:
        args |= {"pos": part(*batch, nodes, 3), "distance": part(hidden)}
        if coincident:
            args["pos"] = torch.zeros_like(args["pos"], requires_grad=True)
    if "attr" in parts:
        args["edge_attr"] = (part(edges, 2), part(hidden, 2))
    if "gate" in parts:
        args["gate"] = (part(1, hidden), part(1))
    if "coord" in parts:
        args["coord"] = (part(hidden, hidden), part(hidden), part(1, hidden))
    return args


def edge_leaves(args):
    """Every tensor by name."""
    found = {}
    for name, value in args.items():
        for i, tensor in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(tensor, torch.Tensor):
                found[f"{name} {i}"] = tensor
    return found


def run_edges(args, backend, fused=True, **options):
    """Messages and moves; ``fused`` says whether one kernel does the edges, or a composition."""
    with kernels.trace() as ran, own_code(backend) as names:
        total, moved = kernels.edge_mlp_sum(**args, **options, backend=backend)
    assert ran == [backend if fused else "native"]
    if backend == "triton":
        assert ("_forward_kernel" in names) == fused
    return [total] if moved is None else [total, moved]


def clamped(args, options):
    """The options with a clamp that some moves exceed and others do not, loops aside.

    It lies in the widest gap between their lengths, so that rounding moves none past it.
    """
    index, source = args["segments"].index.long(), args["source"].index.long()
    count, nodes = index.numel(), torch.arange(2 * index.numel(), device=DEVICE)
    own = {"segments": Segments(nodes[:count], 2 * count)}  # two nodes for every edge
    own["source"] = Segments(nodes[count:], 2 * count)
    for name in ("receiver", "sender", "pos"):
        own[name] = torch.cat([args[name][..., ends, :] for ends in (index, source)], dim=-2)
    full = {name: tuple(widened(x)) if type(x) is tuple else x for name, x in (args | own).items()}
    full |= {name: x.double() for name, x in full.items() if isinstance(x, torch.Tensor)}
    _, moved = define_edges(**full, **options | {"clamp": None, "mean": False})
    lengths = moved.detach()[..., :count, :].norm(dim=-1)[..., index != source].flatten()
    lengths = lengths.sort().values
    few = lengths.numel() // 8
    middle = lengths[few:-2]
    gap = int((middle[1:] / middle[:-1]).argmax())
    clamp = float((middle[gap] * middle[gap + 1]).sqrt())
    bound = int((lengths > clamp * 1.005).sum())
    assert bound >= 2 and int((lengths < clamp / 1.005).sum()) == lengths.numel() - bound
    assert few <= lengths.numel() - bound
    return options | {"clamp": clamp}


def assert_edges(args, options, dtype=torch.float64, fused=True):
    """Values and each gradient by name."""
    values, gradients = TOLERANCE[dtype]
    exact = {
        k: tuple(widened(v)) if isinstance(v, tuple) else widened([v])[0] for k, v in args.items()
    }
    found = run_edges(args, "triton", fused, **options)
    right = run_edges(exact, "reference", **options)
    for a, b, name in zip(found, right, ("messages", "moves"), strict=False):
        assert a.dtype == dtype
        assert_near(a, b, values, name)
    grads = [torch.randn_like(value) for value in found]
    leaves, expected = edge_leaves(args), edge_leaves(exact)
    left = torch.autograd.grad(found, list(leaves.values()), grads)
    wide = [value.double() for value in grads]
    other = torch.autograd.grad(right, list(expected.values()), wide)
    for name, a, b in zip(leaves, left, other, strict=True):
        assert a.dtype == dtype
        assert_near(a, b, gradients, f"gradient of {name}")


class TestEdges:
    # Every part by itself in float64; what the others cast is all in these three.
    @pytest.mark.parametrize(
        ("dtype", "parts"),
        [
            *((torch.float64, parts) for parts in PARTS),
            *product(list(TOLERANCE)[1:], ("features", "distances", "everything normalized")),
        ],
        ids=str,
    )
    def test_of_parts(self, parts, dtype):
        given, options = PARTS[parts]
        args = edge_case(given, dtype=dtype)
        assert_edges(args, clamped(args, options) if "tanh" in options else options, dtype)

    @pytest.mark.parametrize(
        ("edges", "nodes"), [(0, 4), (1, 4), (63, 6), (64, 6), (65, 6), (129, 6), (300, 1)]
    )
    def test_of_sizes(self, edges, nodes):
        given, options = PARTS["everything normalized"]
        args = edge_case(given, edges, nodes)
        few = edges < 8 or nodes == 1  # which are loops
        assert_edges(args, options | {"clamp": 0.3} if few else clamped(args, options))

    @pytest.mark.parametrize("hidden", [1, 16, 17])
    def test_of_widths(self, hidden):
        given, options = PARTS["everything"]
        args = edge_case(given, 20, hidden=hidden)
        assert_edges(args, clamped(args, options))

    @pytest.mark.parametrize("batch", [(), (0,), (2, 1)])
    def test_of_batches(self, batch):
        given, options = PARTS["everything"]
        args = edge_case(given, 20, batch=batch)
        assert_edges(args, clamped(args, options) if 0 not in batch else options)

    def test_of_layouts_and_attributes_per_sample(self):
        args = edge_case(("pos", "coord", "attr"), 20)
        attr, matrix = args["edge_attr"]
        args["edge_attr"] = (torch.randn(2, *attr.shape).to(attr).requires_grad_(), matrix)
        turned = torch.randn(5, 6, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
        args["receiver"] = turned.permute(2, 1, 0)
        args["sender"] = args["sender"][:1].detach().requires_grad_().expand(2, -1, -1)
        args["weight"] = args["weight"].detach().requires_grad_().t()
        assert_edges(args, {"clamp": 0.5})

    @pytest.mark.parametrize("hidden", [5, 33])
    def test_what_does_not_fit_is_composed(self, hidden, monkeypatch):
        if hidden == 5:
            monkeypatch.setattr(triton_edges, "_MOST_NARROW", 1)
        monkeypatch.setattr(triton_edges, "_forward_kernel", None)
        given, options = PARTS["everything"]
        args = edge_case(given, 20, hidden=hidden)
        assert_edges(args, clamped(args, options), fused=False)

    def test_blocks_that_several_programs_walk(self, monkeypatch):
        monkeypatch.setattr(triton_edges, "_PROGRAMS", 3)
        given, options = PARTS["everything"]
        args = edge_case(given, 150)
        assert_edges(args, clamped(args, options))

    def test_coincident_points_have_finite_gradients(self):
        given, options = PARTS["everything normalized"]
        assert_edges(edge_case(given, 20, coincident=True), options | {"clamp": 0.3})

    @pytest.mark.parametrize("parts", ["gate", "everything"])
    def test_both_derivatives(self, parts):
        given, options = PARTS[parts]
        args = edge_case(given, 12, 4, hidden=3, batch=())
        if "tanh" in options:  # normalize holds lengths for constant: differences disagree
            options = clamped(args, options)
        names = list(args)
        flat = list(edge_leaves(args).values())

        def function(*values):
            values = iter(values)
            full = {}
            for name in names:
                value = args[name]
                if isinstance(value, tuple):
                    value = tuple(next(values) for _ in value)
                elif isinstance(value, torch.Tensor):
                    value = next(values)
                full[name] = value
            return tuple(run_edges(full, "triton", **options))

        assert gradcheck(function, flat, fast_mode=True)
        assert gradgradcheck(function, flat, fast_mode=True)

    def test_the_second_derivative_with_one_tensor_in_two_places(self):
        args = edge_case((), 12, 4, hidden=3, batch=())
        node = args["receiver"]

        def second(backend):
            (total,) = run_edges({**args, "sender": node}, backend)
            (grad,) = torch.autograd.grad(total.square().sum(), node, create_graph=True)
            return torch.autograd.grad(grad.square().sum(), node)[0]

        assert_near(second("triton"), second("reference"), 1e-11, "second derivative")

    def test_sees_nodes_of_several_blocks_left_out(self, monkeypatch):
        monkeypatch.setattr(triton_edges._Sums, "finish", lambda self, pointers: self.out)
        monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
        with pytest.raises(AssertionError, match="messages: error"):
            assert_edges(edge_case(()), {})

    @pytest.mark.parametrize("name", ["receiver", "sender", "pos", "coord"])
    def test_sees_a_wrong_gradient(self, name, monkeypatch):
        gradients = triton_backend.edge_mlp_grads

        def wrong(*args):
            found = gradients(*args)
            return found | {name: found[name].roll(1, -2)}

        monkeypatch.setattr(triton_backend, "edge_mlp_grads", wrong)
        with pytest.raises(AssertionError, match=f"gradient of {name} 0: error"):
            assert_edges(edge_case(("pos", "coord"), 20), {})

    def test_autocast(self):
        args = edge_case(("pos", "coord"), 20, dtype=torch.float32)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            total, moved = kernels.edge_mlp_sum(**args, backend="triton")
        assert total.dtype == torch.bfloat16 and moved.dtype == torch.float32
        right = kernels.edge_mlp_sum(**args, backend="reference")
        assert_near(total, right[0].double(), 4e-2, "messages")
        assert_near(moved, right[1].double(), 8e-2, "moves")

    def test_no_tensor_of_all_edges(self):
        args = edge_case((), 2048, 8, hidden=16, batch=(), dtype=torch.float32)
        largest = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                out = function(*args, **(kwargs or {}))
                if isinstance(out, torch.Tensor) and out.is_floating_point():
                    largest.append(out.numel())
                return out

        with Watch():
            (total,) = run_edges(args, "triton")
            torch.autograd.grad(total.sum(), [args["sender"], args["weight"]])
        # The sums of the weights are of a fixed number of programs; those of nodes are 1/8.
        assert max(largest) <= 2048 * 16 // 4


def edge_operator_calls():
    for parts in ("features", "everything"):
        args = edge_case(PARTS[parts][0], 6, 4, hidden=3, batch=(1,))
        names = ("receiver", "sender", "weight", "bias", "pos", "distance")
        tensors = {name: args[name] for name in names if name in args}
        for name, more in (("edge_attr", "attr attr_weight"), ("gate", "gate gate_bias")):
            tensors |= dict(zip(more.split(), args.get(name, ()), strict=False))
        more = ("coord", "coord_bias", "coord_last")
        tensors |= dict(zip(more, args.get("coord", ()), strict=False))
        every = parts == "everything"
        rest = (" ".join(tensors), both_ends(args["source"], args["segments"]))
        rest += (every, False, 0.5 if every else None, every, "triton")
        yield _operators.edge_mlp_sum, (list(tensors.values()), *rest)
        grads = torch.randn(1, 4, 3), torch.randn(1, 4, 3 if every else 0)
        given = [value.detach() for value in tensors.values()]
        grads = [value.double().to(DEVICE) for value in grads]
        yield _operators.edge_mlp_grads, (*grads, given, *rest)


class TestRegistration:
    def test_passes_opcheck(self):
        for op, args in (*operator_calls("triton", placed), *edge_operator_calls()):
            check_operator(op.registered, args)

    @pytest.mark.parametrize("op", ["segment_max", "gather_segment_sum weighted", "edge_mlp_sum"])
    def test_one_graph_for_all_sizes(self, op):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")

        def function(*args, **options):
            y = getattr(kernels, op.partition(" ")[0])(*args, **options, backend="triton")
            return y[0] if isinstance(y, tuple) else y

        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
        for size in (0, 1, 4, 9):  # later ones find the graph of the second
            if op == "edge_mlp_sum":
                options = edge_case(("pos",), 20 + 3 * size, 4 + size)
                args, leaves = (), edge_leaves(options)
            else:
                _, args, leaves = case(op, (20 + 3 * size, 4 + size))
                args, options = placed(args), {}
                leaves = {i: a for i, a in enumerate(args) if getattr(a, "requires_grad", False)}
            y, expected = compiled(*args, **options), function(*args, **options)
            assert torch.equal(y, expected)
            inputs = list(leaves.values())
            found = torch.autograd.grad(y.square().sum(), inputs)
            right = torch.autograd.grad(expected.square().sum(), inputs)
            for a, b in zip(found, right, strict=True):
                assert torch.allclose(a, b)
        assert counter.frame_count <= 3


class TestChoice:
    def test_without_a_device_it_says_what_it_needs(self, monkeypatch):
        monkeypatch.setattr(triton_backend, "INTERPRETED", False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        name, args, _ = case("segment_sum", "unsorted")
        with (
            kernels.trace() as ran,
            pytest.raises(BackendUnavailableError, match=r"CUDA device.*TRITON_INTERPRET"),
        ):
            getattr(kernels, name)(*args, backend="triton")
        assert ran == []

    def test_tensors_of_the_cpu_beside_a_device(self, monkeypatch):
        monkeypatch.setattr(triton_backend, "INTERPRETED", False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        name, args, _ = case("segment_sum", "unsorted")
        with pytest.raises(BackendUnavailableError, match="are on cpu; move them"):
            getattr(kernels, name)(*args, backend="triton")

    def test_without_the_package_it_says_what_brings_it(self, monkeypatch):
        monkeypatch.setattr("gsym.kernels._backends._HAS_TRITON", False)
        with (
            pytest.raises(BackendUnavailableError, match="the package triton"),
            kernels.backend("triton"),
        ):
            pass

    def test_has_every_primitive(self):
        assert not BACKENDS["triton"].primitives

    def test_auto_leaves_the_cpu_to_others(self):
        name, args, _ = case("segment_sum", "unsorted")
        with kernels.trace() as ran:
            getattr(kernels, name)(*args)
        assert ran == ["cpp"]


# GiB that each takes with 2^25 rows of 64 channels, which plain torch stores for every edge.
PER_ROW = {
    "gather_segment_sum": {"triton": 24, "native": 24},
    "segment_max": {"triton": 24, "native": 40},
    "indexed_linear": {"triton": 24, "native": 24},
    "edge_mlp_sum": {"triton": 40, "native": 120},
}


def assert_of_rows_in_pairs(backend, op, rows, dtype=torch.bfloat16):
    """Row i and row rows - 1 - i alone make row i of the result: both ends against the definition.

    That of the edges has a gradient as well, as it reads and writes tables in another order.
    """
    torch.manual_seed(0)
    x = torch.randn(rows, 64, device=DEVICE, dtype=dtype)
    few = min(rows // 2, 100)
    every = Segments(torch.arange(rows, device=DEVICE), rows)
    flipped = Segments(torch.arange(rows, device=DEVICE).flip(0), rows)
    short = Segments(torch.arange(few, device=DEVICE), few)
    ends = (slice(0, few), slice(rows - few, rows))
    # flip(0) of the whole would be another tensor of that size.
    others = [x[rows - end.stop : rows - end.start].flip(0) for end in ends]
    if op == "gather_segment_sum":
        y = kernels.gather_segment_sum(x, flipped, every, backend=backend)
    elif op == "segment_max":
        y = kernels.segment_max(x, flipped, backend=backend)
    if op in ("gather_segment_sum", "segment_max"):
        for end, other in zip(ends, others, strict=True):
            assert torch.equal(y[end], other)
        return
    weight = torch.randn(2, 64, 64, device=DEVICE, dtype=dtype) / 8
    if op == "indexed_linear":
        halves = torch.arange(rows, device=DEVICE) >= rows // 2
        y = kernels.indexed_linear(
            x, weight, Tiles(Segments(halves.long(), 2), 64, 64), backend=backend
        )
        for i, end in enumerate(ends):
            assert_near(y[end], x[end].double() @ weight[i].double(), 2e-2, f"end {i}")
        return
    x.requires_grad_()
    sender = torch.randn_like(x)
    bias = torch.randn(64, device=DEVICE, dtype=dtype)
    total, _ = kernels.edge_mlp_sum(x, sender, flipped, every, weight[0], bias, backend=backend)
    (grad,) = torch.autograd.grad(total, x, total.detach())
    for end in ends:
        given = [x.detach()[end], sender[rows - end.stop : rows - end.start].flip(0)]
        given = [value.double().requires_grad_() for value in given]
        right, _ = define_edges(*given, short, short, weight[0].double(), bias.double())
        assert_near(total[end], right, 2e-2, "messages")
        outer = total.detach()[end].double()
        (expected,) = torch.autograd.grad(right, given[0], outer)
        assert_near(grad[end], expected, 8e-2, "gradient")


@pytest.mark.parametrize("backend", ["triton", "native"])
@pytest.mark.parametrize("op", PER_ROW)
def test_of_some_rows_in_pairs(backend, op):
    assert_of_rows_in_pairs(backend, op, 51)


@pytest.mark.gpu
@needs_gpu
class TestDevice:
    def test_auto_takes_triton(self):
        name, args, _ = case("segment_sum", "unsorted")
        with kernels.trace() as ran:
            getattr(kernels, name)(*placed(args))
        assert ran == ["triton"]

    @pytest.mark.parametrize("rows", [2**20 + 3, 2**25 + 3])
    def test_more_outputs_than_a_grid_or_an_int_holds(self, rows):
        # 64 channels: the second has more than 2^31 entries on either side.
        segments = Segments(torch.arange(rows, device=DEVICE).flip(0), rows)
        x = torch.randn(rows, 64, device=DEVICE, dtype=torch.bfloat16)
        y = on("triton", "segment_sum")(x, segments)
        for part in (slice(0, 1000), slice(rows - 1000, rows)):
            assert torch.equal(y[part], x.flip(0)[part])

    @pytest.mark.parametrize("backend", ["triton", "native"])
    @pytest.mark.parametrize("op", PER_ROW)
    def test_more_entries_than_an_int_holds(self, backend, op):
        torch.cuda.empty_cache()
        free, needed = torch.cuda.mem_get_info()[0] / 2**30, PER_ROW[op][backend]
        if free < needed:
            pytest.skip(f"needs {needed} GiB of the device; {free:.0f} GiB are free")
        assert_of_rows_in_pairs(backend, op, 2**25 + 3)

    @pytest.mark.parametrize("backend", ["triton", "native"])
    def test_pooling_into_one_cluster_and_back_compiles(self, backend):
        # The default compiler of CUDA has returned zeros here.
        segments = placed(Segments.from_index(torch.zeros(6, dtype=torch.int64), 1))

        def centre(x):
            mean = kernels.segment_mean(x, segments, backend=backend)
            return x - kernels.segment_gather(mean, segments, backend=backend)

        torch.compiler.reset()
        x = torch.randn(6, 2, device=DEVICE)
        y = torch.compile(centre, fullgraph=True)(x)
        assert torch.allclose(y, x - x.mean(0), atol=1e-6)
        assert y.abs().max() > 0.1

    @pytest.mark.parametrize("op", KERNELS)
    def test_the_same_bits_a_hundred_times(self, op):
        name, args, _ = case(op, (5000, 7), dtype=torch.float32)
        assert_same_bits(on("triton", name), placed(args), times=100)

    def test_edges_give_the_same_bits_a_hundred_times(self):
        given, options = PARTS["everything"]
        args = edge_case(given, 5000, 300, hidden=64, dtype=torch.float32)
        options = clamped(args, options)
        runs = []
        for _ in range(100):
            found = run_edges(args, "triton", **options)
            grads = torch.autograd.grad(
                found, list(edge_leaves(args).values()), [torch.ones_like(v) for v in found]
            )
            runs.append([*found, *grads])
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))

    @pytest.mark.parametrize("hidden", [32, 64, 128])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_edges_of_real_widths(self, hidden, dtype):
        given, options = PARTS["everything"]
        args = edge_case(given, 3000, 200, hidden=hidden, dtype=dtype)
        # Three parts of float32 fit in registers up to 64.
        fused = hidden < 128 or dtype != torch.float32
        assert_edges(args, clamped(args, options), dtype, fused)

    def test_compiles_whole(self):
        name, args, _ = case("gather_segment_sum weighted", (5000, 70), dtype=torch.float32)
        args = placed(args)
        compiled = torch.compile(getattr(kernels, name), fullgraph=True, dynamic=True)
        assert torch.equal(compiled(*args), getattr(kernels, name)(*args))


@pytest.mark.skipif(CUDA, reason="the cases lie on the CPU")
@pytest.mark.parametrize("op", ["segment_max", "indexed_linear shared", "edge_mlp_sum clamp"])
def test_gradients_that_are_batched_or_have_tangents(op):
    on_backend, definition, leaves = transformed.make(op)
    inputs = [leaf.clone().requires_grad_() for leaf in leaves]
    y = on_backend("triton")(*inputs)
    outer = torch.randn(2, *y.shape, dtype=y.dtype)
    pulled = map(torch.func.vjp(definition, *leaves)[1], outer)
    expected = [torch.stack(parts) for parts in zip(*pulled, strict=True)]
    found = torch.autograd.grad(y, inputs, outer, is_grads_batched=True, retain_graph=True)
    transformed.near_all(found, expected)
    with forward_ad.dual_level():
        found = torch.autograd.grad(y, inputs, forward_ad.make_dual(outer[0], outer[1]))
        found = [forward_ad.unpack_dual(x).tangent for x in found]
    transformed.near_all(found, [x[1] for x in expected])
