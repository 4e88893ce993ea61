"""Every primitive on every back-end against its definition, and what it promises extra values."""

import contextlib
import inspect
import itertools
import sys
from types import ModuleType

import pytest
import torch
from helpers import check_operator, make_clusters
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck

from gsym import kernels
from gsym.errors import BackendUnavailableError
from gsym.kernels import Clusters, Segments, Tiles, _operators, _primitives, reference
from gsym.kernels._autograd import Operator
from gsym.kernels.cpp import library as cpp_library
from gsym.kernels.cpp import nodes as cpp_nodes
from gsym.kernels.cpp import rows as cpp_rows
from gsym.kernels.native import rows as native_rows

# (values, gradients), relative to the largest entry
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 2e-5),
    torch.bfloat16: (2e-2, 4e-2),
    torch.float16: (3e-3, 6e-3),
}
INDICES = {
    "no rows": ([], 3),
    "no rows, one segment": ([], 1),
    "empty segments": ([4, 1, 1, 4, 2, 1], 7),
    "one segment": ([0] * 5, 1),
    "one huge segment": ([1] * 1000 + [0, 2, 1], 4),
    "63 rows": (None, 63),
    "64 rows": (None, 64),
    "65 rows": (None, 65),
    "unsorted": ([2, 0, 1, 0, 2, 1, 0], 3),
    "sorted": ([0] * 20 + [2] * 3 + [3] * 30, 5),
}
LAYOUTS = ("plain", "no batch", "zero batch", "two batches", "non-contiguous", "expanded")
OPS = (
    "segment_sum",
    "segment_mean",
    "segment_max",
    "segment_gather",
    "gather_segment_sum",
    "gather_segment_sum weighted",
    "gather_segment_sum weights per sample",
    "indexed_linear",
    "indexed_linear shared",
    "grouped_linear",
    "grouped_linear shared",
    "cluster_linear tiles",
    "cluster_linear runs",
    "row_mlp",
    "row_mlp extra",
    "linear_pair",
    "permute_rows",
)
SCATTER_OPS = OPS[:3]
RUNS = [
    *itertools.product(("reference", "native", "cpp"), OPS),
    *itertools.product(("torch_scatter", "torch_scatter stub"), SCATTER_OPS),
]
BATCH = {"no batch": (), "zero batch": (0,), "two batches": (2, 2)}


def primitive(module, op):
    """A primitive of a module that takes its tensors one by one and returns one."""
    function = getattr(module, op)

    def row_mlp(x, first, first_bias, last, last_bias, extra=None, **options):
        return function(x, (first, first_bias), (last, last_bias), extra, **options)

    def linear_pair(x, weight, bias, other, **options):
        return torch.stack(function(x, weight, bias, other, **options))

    return {"row_mlp": row_mlp, "linear_pair": linear_pair}.get(op, function)


def make_index(name):
    """A named index, or a random one of a number of rows into a number of segments."""
    entries, size = INDICES.get(name, name)
    if entries is None:
        entries, size = size, 8
    if isinstance(entries, int):
        rng = torch.Generator().manual_seed(entries)
        return Segments.from_index(torch.randint(size, (entries,), generator=rng), size)
    return Segments.from_index(torch.tensor(entries, dtype=torch.int64), size)


def with_wide_index(value):
    """The same value with tables of int64, as of more rows than int32 counts."""
    wide = object.__new__(type(value))
    for name, table in vars(value).items():
        if isinstance(table, torch.Tensor) and table.dtype == torch.int32:
            table = table.long()
        if name == "segments":
            table = with_wide_index(table)
        wide.__dict__[name] = None if name == "_last_links" else table
    return wide


def signal(layout, rows, channels, dtype=torch.float64):
    """A signal in one of the layouts, and the leaf that it is a view of."""
    if layout == "non-contiguous":
        leaf = torch.randn(channels, 3, rows, dtype=dtype, requires_grad=True)
        return leaf.permute(1, 2, 0), leaf
    if layout == "expanded":
        leaf = torch.randn(1, rows, channels, dtype=dtype, requires_grad=True)
        return leaf.expand(3, -1, -1), leaf
    leaf = torch.randn(*BATCH.get(layout, (3,)), rows, channels, dtype=dtype, requires_grad=True)
    return leaf, leaf


def parameter(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def case(op, index, layout="plain", dtype=torch.float64, channels=(3, 2)):
    """Name of the primitive, its arguments in order, and the leaves to differentiate by name."""
    torch.manual_seed(0)
    c, out = channels
    op, _, variant = op.partition(" ")
    segments = make_index(index)
    e, s = segments.index.numel(), segments.num_segments
    if op == "segment_gather":
        x, leaf = signal(layout, s, c, dtype)
        return op, (x, segments), {"y": leaf}
    if op == "gather_segment_sum":
        n = 5
        source = Segments.from_index(torch.randint(n, (e,)), n)
        x, leaf = signal(layout, n, c, dtype)
        if not variant:
            return op, (x, source, segments), {"x": leaf}
        batch = x.shape[:-2] if variant == "weights per sample" else ()
        weight = parameter(*batch, e, dtype=dtype)
        return op, (x, source, segments, weight), {"x": leaf, "weight": weight}
    if op == "permute_rows":
        x, leaf = signal(layout, e, c, dtype)
        order = torch.randperm(e)
        return op, (x, order, order.argsort()), {"x": leaf}
    if op in ("indexed_linear", "cluster_linear", "grouped_linear"):
        runs = op == "grouped_linear" or variant == "runs"
        rows = s * 2 if runs else e
        x, leaf = signal(layout, rows, c, dtype)
        weight = parameter(s, c, out, dtype=dtype)
        leaves = {"x": leaf, "weight": weight}
        if op == "cluster_linear" and not runs:  # no cluster is empty
            used, index = segments.index.unique(return_inverse=True)
            segments, s = Segments.from_index(index, used.numel()), used.numel()
            leaves["weight"] = weight = parameter(s, c, out, dtype=dtype)
        tiles = None if runs else Tiles(segments, c, out)
        if op == "cluster_linear":
            labels = torch.arange(rows) % s if runs else segments.index
            clusters = make_clusters(labels, s, (c, out), runs=runs)
            matrix, bias = parameter(s * c, s * out, dtype=dtype), parameter(s, out, dtype=dtype)
            args = (x, weight, matrix, bias, clusters, False)
            return op, args, {**leaves, "matrix": matrix, "bias": bias}
        shared = None
        if variant == "shared":
            shared = leaves["shared"] = parameter(*x.shape[:-2], s, out, dtype=dtype)
        if op == "grouped_linear":
            return op, (x.unflatten(-2, (s, 2)), weight, shared), leaves
        return op, (x, weight, tiles, shared), leaves
    x, leaf = signal(layout, e, c, dtype)
    if op == "linear_pair":
        shapes = {"weight": (1, c, out), "bias": (1, out), "other": (1, c, out)}
        weights = {name: parameter(*shape, dtype=dtype) for name, shape in shapes.items()}
        return op, (x, *weights.values()), {"x": leaf, **weights}
    if op == "row_mlp":
        more, h = c + 1 if variant else 0, 2 * c + 1
        shapes = {"first": (1, c + more, h), "first_bias": (1, h)}
        shapes |= {"last": (1, h, out), "last_bias": (1, out)}
        weights = {name: parameter(*shape, dtype=dtype) for name, shape in shapes.items()}
        leaves = {"x": leaf, **weights}
        if not variant:
            return op, (x, *weights.values()), leaves
        extra, leaves["extra"] = signal(layout, e, more, dtype)
        return op, (x, *weights.values(), extra), leaves
    return op, (x, segments), {"x": leaf}


def widened(args):
    """The same arguments in float64, and those of them that are differentiated."""
    wide = [
        a.detach().double().requires_grad_(a.requires_grad)
        if isinstance(a, torch.Tensor) and a.is_floating_point()
        else a
        for a in args
    ]
    return wide


def assert_near(found, expected, allowed, name):
    found, expected = found.detach(), expected.detach()
    assert found.shape == expected.shape, name
    assert found.isfinite().all(), name
    error = (found.double() - expected).abs().amax() if found.numel() else 0.0
    scale = max(float(expected.abs().amax()), 1e-3) if found.numel() else 1.0
    assert error <= allowed * scale, f"{name}: error {error:.2e} extra entries of {scale:.2e}"


def assert_parity(function, op, args, dtype, allowed=None):
    """Values and each gradient by name against the definition in float64.

    The gradients may differ by ``allowed`` where that is given.
    """
    values, gradients = TOLERANCE[dtype]
    gradients = gradients if allowed is None else allowed
    names = list(inspect.signature(primitive(reference, op)).parameters)
    exact = widened(args)
    given = [
        a.detach().as_strided(a.shape, a.stride()).requires_grad_(a.requires_grad)
        if isinstance(a, torch.Tensor) and a.is_floating_point()
        else a
        for a in args
    ]
    y, expected = function(*given), primitive(reference, op)(*exact)
    assert y.dtype == dtype
    assert_near(y, expected, values, "value")
    wanted = [i for i, a in enumerate(exact) if isinstance(a, torch.Tensor) and a.requires_grad]
    assert wanted
    grad = torch.randn(y.shape, dtype=dtype)
    found = torch.autograd.grad(y, [given[i] for i in wanted], grad)
    right = torch.autograd.grad(expected, [exact[i] for i in wanted], grad.double())
    for i, a, b in zip(wanted, found, right, strict=True):
        assert a.dtype == dtype
        assert_near(a, b, gradients, f"gradient of {names[i]}")


def assert_same_bits(function, args, times=2):
    """Values and gradients of every call are those of the first."""
    leaves = [a for a in args if getattr(a, "requires_grad", False)]
    assert leaves

    def run():
        y = function(*args)
        return [y, *torch.autograd.grad(y, leaves, torch.ones_like(y))]

    first = run()
    for _ in range(times - 1):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def scatter_stub():
    """What the back-end needs of torch-scatter, with its semantics."""

    def segment_csr(x, pointers, reduce):
        starts = pointers.flatten().tolist()
        parts = [x[..., a:b, :].detach() for a, b in itertools.pairwise(starts)]
        if reduce == "sum":
            return torch.stack([part.sum(-2) for part in parts], dim=-2)
        assert reduce == "max"
        empty = x.new_zeros(*x.shape[:-2], x.size(-1))
        return torch.stack([p.amax(-2) if p.size(-2) else empty for p in parts], dim=-2)

    stub = ModuleType("torch_scatter")
    stub.segment_csr = segment_csr
    return stub


@pytest.fixture(params=["reference", "native", "cpp", "torch_scatter", "torch_scatter stub"])
def backend(request, monkeypatch):
    if request.param == "torch_scatter":
        pytest.importorskip("torch_scatter", reason="torch-scatter is not installed")
    if request.param == "torch_scatter stub":
        monkeypatch.delitem(sys.modules, "gsym.kernels.torch_scatter", raising=False)
        monkeypatch.setitem(sys.modules, "torch_scatter", scatter_stub())
        yield "torch_scatter"
        sys.modules.pop("gsym.kernels.torch_scatter", None)
        return
    yield request.param


def recorded(call, names):
    """The function, which writes down what it is told to run."""

    def function(first, *rest, **options):
        names.append(getattr(first, "__name__", first))
        return call(first, *rest, **options)

    return function


@contextlib.contextmanager
def own_code(backend):
    """The names of the compiled functions that ran, or of the Triton kernels."""
    names, patches = [], []
    if backend == "cpp":
        places = [(cpp_rows, "call"), (cpp_nodes, "call")]
    elif backend == "triton":
        from gsym.kernels.triton import launch

        places = [(launch, "launch")]
    else:
        places = []
    for module, name in places:
        patches.append(pytest.MonkeyPatch())
        patches[-1].setattr(module, name, recorded(getattr(module, name), names))
    try:
        yield names
    finally:
        for patch in patches:
            patch.undo()


# Sums may be of the back-end where products are not.
PRODUCTS = ("indexed_linear", "_indexed_kernel")


def on(backend, op):
    """The public primitive on one back-end, which proves that it ran there.

    What has code of its own is named in the trace where that ran, and nowhere else.
    """

    def call(*args):
        with kernels.trace() as ran, own_code(backend) as names:
            y = primitive(kernels, op)(*args, backend=backend)
        if op in ("indexed_linear", "cluster_linear"):
            names = [name for name in names if name.startswith(PRODUCTS)]
        if backend not in ("cpp", "triton") or names:
            assert ran == [backend]
        elif y.numel():
            assert ran == ["native"]
        else:  # nothing to compute
            assert ran in (["native"], [backend])
        return y

    return call


def computes(backend, op, *args):
    """Whether a back-end computes a call by itself, as a trace says."""
    with kernels.trace() as ran:
        primitive(kernels, op)(*args, backend=backend)
    assert len(ran) == 1 and ran[0] in (backend, "native")
    return ran == [backend]


class TestParity:
    @pytest.mark.parametrize(("backend", "op"), RUNS, indirect=["backend"])
    @pytest.mark.parametrize("index", INDICES)
    def test_of_indices(self, backend, op, index):
        name, args, _ = case(op, index)
        assert_parity(on(backend, name), name, args, torch.float64)

    @pytest.mark.parametrize(("backend", "op"), RUNS, indirect=["backend"])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_of_layouts(self, backend, op, layout):
        name, args, _ = case(op, "empty segments", layout)
        assert_parity(on(backend, name), name, args, torch.float64)

    @pytest.mark.parametrize(("backend", "op"), RUNS, indirect=["backend"])
    @pytest.mark.parametrize("channels", [(0, 2), (3, 0), (0, 0)], ids=str)
    @pytest.mark.parametrize("index", ["no rows", "empty segments", "sorted"])
    def test_of_no_channels(self, backend, op, channels, index):
        name, args, _ = case(op, index, channels=channels)
        assert_parity(on(backend, name), name, args, torch.float64)

    @pytest.mark.parametrize("backend", ["native", "cpp"])
    @pytest.mark.parametrize("op", OPS)
    @pytest.mark.parametrize("index", ["empty segments", "65 rows"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_of_types(self, backend, op, index, dtype):
        name, args, _ = case(op, index, dtype=dtype)
        assert_parity(on(backend, name), name, args, dtype)

    @pytest.mark.parametrize("op", OPS)
    @pytest.mark.parametrize("index", ["65 rows", "sorted"])
    @pytest.mark.parametrize("large_sample", [0, 2**60])
    @pytest.mark.parametrize("channels", [(3, 2), (0, 2)], ids=str)
    def test_of_many_blocks(self, op, index, large_sample, channels, monkeypatch):
        # Samples one by one and all at once.
        monkeypatch.setattr(native_rows, "BLOCK_ROWS", 16)
        monkeypatch.setattr(kernels.segments, "BLOCK_ROWS", 16)
        monkeypatch.setattr(kernels.segments, "_ROWS_PER_SEGMENT", 1)
        monkeypatch.setattr(native_rows, "_LARGE_SAMPLE", large_sample)
        monkeypatch.setattr(native_rows, "_LONG_RUN", large_sample)  # sorted: in place and in tiles
        name, args, _ = case(op, index, channels=channels)
        assert_parity(on("native", name), name, args, torch.float64)

    @pytest.mark.parametrize(("backend", "op"), RUNS, indirect=["backend"])
    @pytest.mark.parametrize("index", ["empty segments", "unsorted"])
    def test_of_both_derivatives(self, backend, op, index):
        name, args, leaves = case(op, index, "no batch")
        places = [i for i, a in enumerate(args) if getattr(a, "requires_grad", False)]
        assert len(places) == len(leaves)

        def function(*inputs):
            full = list(args)
            for place, value in zip(places, inputs, strict=True):
                full[place] = value
            return on(backend, name)(*full)

        inputs = [args[i].detach().clone().requires_grad_() for i in places]
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)

    @pytest.mark.parametrize("op", OPS)
    def test_sees_an_error_of_one_row(self, op):
        name, args, _ = case(op, "unsorted")

        def shifted(*args):
            return primitive(kernels, name)(*args).roll(1, dims=-2)

        with pytest.raises(AssertionError, match="value: error"):
            assert_parity(shifted, name, args, torch.float64)

    @pytest.mark.parametrize("op", OPS)
    def test_sees_a_gradient_of_the_wrong_row(self, op):
        name, args, leaves = case(op, "unsorted")

        class WrongGradient(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                return grad.roll(1, dims=-2)

        def shifted(x, *rest):
            return primitive(kernels, name)(WrongGradient.apply(x), *rest)

        with pytest.raises(AssertionError, match=f"gradient of {next(iter(leaves))}: error"):
            assert_parity(shifted, name, args, torch.float64)


def operator_calls(backend, placed=lambda value: value):
    """One call of every registered operator on rows."""
    segments = placed(make_index("empty segments"))
    source = placed(Segments.from_index(torch.tensor([0, 3, 1, 1, 2, 0]), 4))
    tables = [segments.index, segments.order, segments.pointers]
    links = segments._links(source)
    tiles = placed(Tiles(segments, 3, 2))._all_tables(), segments.is_sorted

    def part(*shape):
        return placed(torch.randn(*shape, dtype=torch.float64)).requires_grad_()

    x, y, z, order = part(2, 6, 3), part(2, 7, 3), part(2, 4, 3), placed(torch.randperm(6))
    for wide in (False, True):
        yield _operators.segment_sum, (x, tables, wide, backend)
    yield _operators.segment_gather, (y, tables, backend)
    yield _operators.segment_max, (x, tables, backend)
    high = _operators.segment_max(x.detach(), tables, backend)
    yield _operators.tie_spread, (y, x.detach(), high, tables, backend)
    yield _operators.tie_mean, (x, x.detach().clone(), high, tables, backend)
    for weight in (None, part(6), part(2, 6)):
        yield _operators.gather_sum, (z, weight, links, backend)
    yield _operators.gather_dot, (y, z, links, backend)
    yield _operators.permute_rows, (x, order, order.argsort())
    for shared in (None, part(2, 7, 2)):
        yield _operators.indexed_linear, (x, part(7, 3, 2), shared, *tiles, backend)
    yield _operators.indexed_outer, (x, part(2, 6, 2), *tiles, backend)


def shared_map_calls():
    """One call of every registered operator on rows that share their maps."""
    shapes = [(3, 16), (1, 32, 16), (1, 16), (1, 16, 16), (1, 16), (3, 16)]
    mlp = [parameter(*shape) for shape in shapes]
    pair = [mlp[0], mlp[3], mlp[4], parameter(1, 16, 16)]
    yield _operators.row_mlp, (mlp, "cpp")
    yield _operators.linear_pair, (pair, "cpp")
    mlp, pair = [x.detach() for x in mlp], [x.detach() for x in pair]
    yield _operators.row_mlp_grads, (torch.randn(3, 16).double(), mlp, "cpp")
    yield _operators.linear_pair_grads, (mlp[0].clone(), mlp[5], pair, "cpp")


class TestRegistration:
    @pytest.mark.parametrize("backend", ["native", "cpp"])
    def test_passes_opcheck(self, backend):
        for op, args in operator_calls(backend):
            check_operator(op.registered, args)

    def test_of_shared_maps_passes_opcheck(self):
        for op, args in shared_map_calls():
            torch.library.opcheck(op.registered, args)

    def test_covers_every_operator(self):
        known = {op for op in vars(_operators).values() if isinstance(op, Operator)}
        called = {op for op, _ in (*operator_calls("cpp"), *shared_map_calls())}
        # Those of edges have a file of their own.
        assert known == called | {_operators.edge_mlp_sum, _operators.edge_mlp_grads}

    @pytest.mark.parametrize("backend", ["native", "cpp"])
    def test_gives_the_same_to_whoever_calls(self, backend):
        for op, args in operator_calls(backend):
            leaves = [x for x in args if isinstance(x, torch.Tensor) and x.requires_grad]
            results = [call(*args) for call in (op, op.registered)]
            outer = torch.randn_like(results[0])
            found = [[y, *torch.autograd.grad(y, leaves, outer)] for y in results]
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_every_primitive_has_a_definition(self):
        public = {name for name in kernels.__all__ if inspect.isfunction(getattr(kernels, name))}
        # The last two have files of their own.
        public -= {"backend", "trace", "takes_sorted", "edge_mlp_sum", "subgraph_linear"}
        public -= {"mix_clusters"}  # composed of others
        assert public == {op.partition(" ")[0] for op in OPS}
        for name in public:
            expected = list(inspect.signature(getattr(reference, name)).parameters)
            for module in (kernels, _primitives):
                found = list(inspect.signature(getattr(module, name)).parameters)
                assert found == [*expected, "backend"]


class TestCompile:
    @pytest.mark.parametrize("op", OPS)
    def test_one_graph_for_ten_sizes(self, op):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        function = primitive(kernels, op.partition(" ")[0])
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
        for size in range(10):
            _, args, leaves = case(op, (20 + 3 * size, 4 + size))
            y = compiled(*args)
            expected = function(*args)
            assert torch.equal(y, expected)
            inputs = list(leaves.values())
            found = torch.autograd.grad(y.square().sum(), inputs)
            right = torch.autograd.grad(expected.square().sum(), inputs)
            for a, b in zip(found, right, strict=True):
                assert torch.allclose(a, b)
        assert counter.frame_count <= 3

    @pytest.mark.parametrize(
        "op", ["indexed_linear shared", "cluster_linear tiles", "grouped_linear shared"]
    )
    def test_of_weights_of_a_layer(self, op):
        # Their sizes are numbers to the compiler, those of tables are symbols.
        torch._dynamo.reset()
        name, (x, *rest), _ = case(op, "unsorted")
        if rest[-1] is not None and "shared" in op:
            rest[-1] = parameter(3, 2)
        layer = torch.nn.Module()
        for i, value in enumerate(rest):
            kept = isinstance(value, torch.Tensor) and value.requires_grad
            setattr(layer, f"_{i}", torch.nn.Parameter(value.detach()) if kept else value)

        def forward(x):
            return primitive(kernels, name)(x, *(getattr(layer, f"_{i}") for i in range(len(rest))))

        layer.forward = forward
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
        for copies in (2, 3, 5):
            given = x.detach()[:1].expand(copies, *x.shape[1:]).contiguous()
            assert torch.equal(compiled(given), forward(given))

    def test_the_choice_of_a_back_end_compiles(self):
        name, args, _ = case("gather_segment_sum weighted", "unsorted")
        compiled = torch.compile(getattr(kernels, name), fullgraph=True, backend="eager")
        for backend in ("native", "reference", "native"):
            with kernels.backend(backend), kernels.trace() as ran:
                compiled(*args)
            assert ran == [backend]

    def test_pooling_into_one_cluster_and_back(self):
        # The default compiler of CUDA has returned zeros here.
        segments = Segments.from_index(torch.zeros(6, dtype=torch.int64), 1)

        def centre(x):
            mean = kernels.segment_mean(x, segments)
            return x - kernels.segment_gather(mean, segments)

        x = torch.randn(6, 2)
        y = torch.compile(centre, fullgraph=True)(x)
        assert torch.allclose(y, x - x.mean(0), atol=1e-6)
        assert y.abs().max() > 0.1


class TestPromises:
    @pytest.mark.parametrize("backend", ["native", "cpp"])
    @pytest.mark.parametrize("op", OPS)
    def test_the_same_bits_twice(self, backend, op):
        name, args, _ = case(op, "one huge segment", dtype=torch.float32)
        assert_same_bits(on(backend, name), args)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("segments", [1, 2])
    def test_half_precision_accumulates_in_float32(self, backend, dtype, segments):
        index = Segments.from_index(torch.zeros(4096, dtype=torch.int64), segments)
        ones = torch.ones(4096, 3, dtype=dtype)
        for x, expected in ((ones, 4096), (60000 * ones, 60000)):
            op = "segment_sum" if expected == 4096 else "segment_mean"
            y = on(backend, op)(x, index)
            assert y.dtype == dtype
            assert (y[0] == torch.tensor(expected, dtype=dtype)).all()
            assert (y[1:] == 0).all()

    @pytest.mark.parametrize("weighted", [False, True])
    def test_half_precision_accumulates_in_float32_when_gathered(self, weighted):
        target = Segments.from_index(torch.zeros(4096, dtype=torch.int64), 2)
        source = Segments.from_index(torch.zeros(4096, dtype=torch.int64), 1)
        x = torch.ones(1, 3, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.ones(4096, dtype=torch.bfloat16) if weighted else None
        y = kernels.gather_segment_sum(x, source, target, weight)
        assert y[0].tolist() == [4096] * 3
        y.sum().backward()
        assert x.grad.tolist() == [[4096] * 3]

    def test_empty_maximum_is_zero_and_ties_share(self, backend):
        segments = Segments.from_index(torch.tensor([2, 0, 2, 2, 0]), 3)
        x = torch.tensor([[-1.0], [-5.0], [-1.0], [-2.0], [-3.0]], requires_grad=True)
        y = on(backend, "segment_max")(x, segments)
        assert y.flatten().tolist() == [-3, 0, -1]
        y.backward(torch.tensor([[1.0], [7.0], [4.0]]))
        assert x.grad.flatten().tolist() == [2, 0, 2, 0, 1]

    def test_not_a_number_is_the_maximum(self):
        x = torch.tensor([[1.0], [float("nan")], [2.0], [3.0]])
        y = kernels.segment_max(x, Segments.from_index(torch.tensor([0, 0, 0, 1]), 2))
        assert y[0].isnan() and y[1] == 3

    def test_no_tensor_of_all_entries(self):
        # The largest storage allocated anywhere, gradients included, is far below [e, c].
        n, e, c = 50, 20000, 16
        source = Segments.from_index(torch.randint(n, (e,)), n)
        target = Segments.from_index(torch.randint(n, (e,)), n)
        x, weight = torch.randn(n, c, requires_grad=True), torch.rand(e, requires_grad=True)

        def largest(function):
            seen = []
            with torch.autograd.profiler.profile(profile_memory=True) as profile:
                function()
            for event in profile.function_events:
                seen.append(event.cpu_memory_usage)
            return max(seen)

        def fused():
            kernels.gather_segment_sum(x, source, target, weight).square().sum().backward()

        def plain():
            sent = kernels.segment_gather(x, source) * weight[:, None]
            kernels.segment_sum(sent, target).square().sum().backward()

        # A block of the gradient of the weight is the largest; it does not grow with e.
        assert largest(plain) >= 4 * e * c
        assert largest(fused) <= max(4 * native_rows.BLOCK_ROWS * c, 8 * e)

    @pytest.mark.parametrize(
        "op", ["indexed_linear shared", "cluster_linear tiles", "row_mlp extra", "linear_pair"]
    )
    def test_autocast_of_products(self, op):
        name, args, leaves = case(op, "unsorted", dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = primitive(kernels, name)(*args)
        assert y.dtype == torch.bfloat16
        assert_near(y, primitive(reference, name)(*widened(args)), 4e-2, "value")
        y.sum().backward()
        assert all(leaf.grad.dtype == torch.float32 for leaf in leaves.values())

    def test_autocast_of_reductions(self, backend):
        name, args, _ = case("segment_sum", "unsorted", dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert on(backend, name)(*args).dtype == torch.float32
        name, args, _ = case("gather_segment_sum weighted", "unsorted", dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = kernels.gather_segment_sum(args[0].bfloat16(), *args[1:])
        assert y.dtype == torch.bfloat16

    def test_columns_follow_the_index(self):
        source = make_index("unsorted")
        other = Segments.from_index(source.index.flip(0), source.num_segments)
        target = Segments.from_index(torch.tensor([1, 1, 0, 0, 1, 0, 1]), 2)
        with torch.inference_mode():
            columns, *tables = target._links(source)
        assert not columns.is_inference()
        assert torch.equal(columns, source.index[target.order])
        assert target._links(source)[0] is columns
        assert torch.equal(tables[3], target.index[source.order])
        assert torch.equal(target.columns(other), other.index[target.order])
        assert torch.equal(target.columns(source), columns)


# Rows and segments: sums pooled in the order of memory, carried from piece to piece, and each
# matrix of many for itself.
LARGE = [(20_000, 5), (3_000, 700), (5_000, 3_000)]
WIDTHS = [(1, 33), (3, 1), (16, 16), (33, 3)]


def large_cases(rows, count, in_channels, out_channels, dtype=torch.float64):
    """Arguments of every compiled primitive, two samples of so many rows and segments."""
    torch.manual_seed(0)
    segments, source = make_index((rows, count)), make_index((rows, 50))
    tiles = Tiles(segments, in_channels, out_channels)
    x = parameter(2, rows, in_channels, dtype=dtype)
    y = parameter(2, 50, in_channels, dtype=dtype)
    weight = parameter(count, in_channels, out_channels, dtype=dtype)
    one = parameter(1, in_channels, out_channels, dtype=dtype)
    shared = parameter(2, count, out_channels, dtype=dtype)
    yield "segment_sum", (x, segments)
    yield "segment_max", (x, segments)
    yield "gather_segment_sum", (y, source, segments)
    yield "gather_segment_sum", (y, source, segments, parameter(2, rows, dtype=dtype))
    yield "indexed_linear", (x, weight, tiles)
    yield "indexed_linear", (x, weight, tiles, shared)
    yield "indexed_linear", (x, one, tiles, shared)


def partly_sorted(count):
    """4000 rows of which most segments hold neighbours, all of them, nearly all, or none."""
    index = torch.empty(4000, dtype=torch.int64)
    index[:2500] = 0  # more than two pieces of rows in a row
    first, second = torch.arange(1, 26), torch.arange(26, 51)
    index[2500:2600] = torch.stack([first, first, torch.full((25,), 51), first], 1).flatten()
    index[2600:2700] = torch.stack([second, torch.full((25,), 51), second, second], 1).flatten()
    index[2700:2800] = 52 + torch.arange(100) // 3  # to 85
    index[2800:3900] = 86
    index[3000] = 87
    rng = torch.Generator().manual_seed(0)
    index[3900:] = torch.randint(88, 140, (100,), generator=rng)
    return Segments.from_index(index, count)


COLUMNS = {
    "in a row": [0, 1, 2, 3, 4],
    "in a row elsewhere": [7, 8, 9],
    "middle exchanged": [0, 2, 1, 3],
    "middle turned by three": [2, 4, 5, 3, 6],
    "one missing": [0, 1, 3],
    "one twice": [4, 5, 5, 7],
    "backwards": [6, 5, 4, 3],
    "one alone": [5],
    "one again and again": [3, 3, 3, 3],
    "many": list(range(2500)),
    "many but two": [*range(1000), 1001, 1000, *range(1002, 2500)],
    "many from elsewhere": list(range(300, 2400)),
}


def small_numbers(*shape, dtype=torch.float64):
    """Whole numbers whose sums are exact in any order, and often tie."""
    rng = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-3, 4, shape, generator=rng).to(dtype).requires_grad_()


class TestRowsInARow:
    @pytest.mark.parametrize("count", [140, 700])
    @pytest.mark.parametrize("channels", [1, 57, 130])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_of_reductions(self, monkeypatch, count, channels, dtype):
        pooled, call = [], cpp_rows.call

        def record(name, given):
            pooled.append(given.index is not None)
            call(name, given)

        monkeypatch.setattr(cpp_rows, "call", record)
        segments = partly_sorted(count)
        x = small_numbers(2, 4000, channels, dtype=dtype)
        expected = torch.zeros(2, count, channels, dtype=torch.float64)
        expected.index_add_(1, segments.index, x.detach().double())
        y = on("cpp", "segment_sum")(x, segments)
        assert torch.equal(y.double(), expected)
        fits = count * channels * dtype.itemsize <= cpp_rows._POOL_BYTES
        assert pooled == [count == 140 and fits]  # the other way joins rows segment by segment
        outer = small_numbers(2, count, channels, dtype=dtype).detach()
        (grad,) = torch.autograd.grad(y, x, outer)
        assert torch.equal(grad, outer[:, segments.index])
        wide = x.detach().double().requires_grad_()
        y, expected = (
            on("cpp", "segment_max")(x, segments),
            on("native", "segment_max")(wide, segments),
        )
        assert torch.equal(y.double(), expected)
        (grad,) = torch.autograd.grad(y, x, outer)
        (right,) = torch.autograd.grad(expected, wide, outer.double())
        assert_near(grad, right, TOLERANCE[dtype][1], "gradient of the maximum")

    def test_of_the_definition(self):
        segments = partly_sorted(140)
        x = small_numbers(4000, 9)
        for op in ("segment_sum", "segment_mean", "segment_max"):
            assert_parity(on("cpp", op), op, (x, segments), torch.float64)

    @pytest.mark.parametrize("channels", [1, 57, 130])
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_of_gathers(self, channels, weighted, dtype):
        columns = torch.tensor([column for row in COLUMNS.values() for column in row])
        target = torch.arange(len(COLUMNS)).repeat_interleave(
            torch.tensor([len(row) for row in COLUMNS.values()])
        )
        source = Segments.from_index(columns, 2500)
        segments = Segments.from_index(target, len(COLUMNS))
        assert torch.equal(segments.columns(source), source.index)
        x = small_numbers(2500, channels, dtype=dtype)
        weight = None
        if weighted:  # two neighbours never weigh the same
            weight = (torch.arange(columns.numel()) % 13 - 6).to(dtype).requires_grad_()
        y = on("cpp", "gather_segment_sum")(x, source, segments, weight)
        factor = 1 if weight is None else weight.detach().double()[:, None]
        sent = x.detach().double()[columns] * factor
        for s, (name, row) in enumerate(COLUMNS.items()):
            assert torch.equal(y[s].double(), sent[target == s].sum(0)), (name, row[:5])
        outer = small_numbers(*y.shape, dtype=dtype).detach()
        leaves = [x] if weight is None else [x, weight]
        grads = torch.autograd.grad(y, leaves, outer)
        back = outer.double()[target]
        expected = torch.zeros(2500, channels, dtype=torch.float64)
        assert torch.equal(grads[0].double(), expected.index_add_(0, columns, back * factor))
        for grad in grads[1:]:
            assert torch.equal(grad.double(), (back * x.detach().double()[columns]).sum(1))

    @pytest.mark.parametrize("op", ["segment_sum", "segment_max"])
    @pytest.mark.parametrize(
        ("vectors", "more", "aligned"), [(4, 0, True), (3, 0, False), (3, 1, True)]
    )
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_of_more_than_a_cache_holds(self, monkeypatch, op, vectors, more, aligned, dtype):
        # Where whole vectors begin such results are written past the cache.
        channels = vectors * cpp_library.library().gsym_vector_bytes() // dtype.itemsize + more
        rows = 2**25 // dtype.itemsize // channels + 100
        count = rows // 4
        index = torch.arange(rows) // 5 % count
        index[: rows // 2] = 1  # carried from piece to piece
        rng = torch.Generator().manual_seed(0)
        index[rows - rows // 8 :] = torch.randint(3, count, (rows // 8,), generator=rng)
        segments = Segments.from_index(index, count)
        x = torch.randint(-3, 4, (rows, channels), generator=rng).to(dtype)
        if not aligned:
            monkeypatch.setattr(cpp_rows, "new_empty", not_aligned)
        y = on("cpp", op)(x, segments)
        assert y.data_ptr() % 16 == (0 if aligned else dtype.itemsize)
        how = "sum" if op == "segment_sum" else "amax"
        places = index[:, None].expand_as(x)
        right = torch.zeros_like(y).scatter_reduce_(0, places, x, how, include_self=False)
        assert torch.equal(y, right)


def not_aligned(x, *shape):
    """As ``new_empty``, at an address where no vector begins."""
    return x.new_empty(torch.Size(shape).numel() + 1)[1:].view(shape)


class TestLargeProducts:
    """Results that no cache holds are written past it."""

    def case(self, vectors, more, dtype, over=50):
        lanes = cpp_library.library().gsym_vector_bytes() // dtype.itemsize
        out = vectors * lanes + more
        rows = 2**25 // dtype.itemsize // (2 * out) + over
        segments = make_index((rows, 7))
        x = small_numbers(2, rows, 2, dtype=dtype).detach()
        weight = small_numbers(7, 2, out, dtype=dtype).detach()
        shared = small_numbers(2, 7, out, dtype=dtype).detach()
        return x, weight, Tiles(segments, 2, out), shared

    def check(self, y, x, weight, tiles, shared=None):
        shared = None if shared is None else shared.double()
        right = reference.indexed_linear(x.double(), weight.double(), tiles, shared)
        assert torch.equal(y.double(), right)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    @pytest.mark.parametrize(("vectors", "more"), [(2, 0), (5, 0), (3, 1)])
    def test_of_a_little_more_than_the_bound(self, vectors, more, dtype):
        x, weight, tiles, shared = self.case(vectors, more, dtype)
        y = on("cpp", "indexed_linear")(x, weight, tiles, shared)
        assert 2**25 < y.nbytes < 2**25 + 2**17
        self.check(y, x, weight, tiles, shared)
        self.check(on("cpp", "indexed_linear")(x, weight[:1], tiles), x, weight[:1], tiles)

    def test_of_a_result_that_is_not_aligned(self, monkeypatch):
        x, weight, tiles, shared = self.case(2, 0, torch.float32)
        monkeypatch.setattr(cpp_rows, "new_empty", not_aligned)
        y = on("cpp", "indexed_linear")(x, weight, tiles, shared)
        assert y.data_ptr() % 16 == 4
        self.check(y, x, weight, tiles, shared)

    def test_of_any_number_of_threads(self):
        x, weight, tiles, shared = self.case(4, 0, torch.float32)
        threads, results = torch.get_num_threads(), []
        try:
            for number in (1, 2, 3):
                torch.set_num_threads(number)
                results.append(on("cpp", "indexed_linear")(x, weight, tiles, shared))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])


class TestCompiledRows:
    @pytest.mark.parametrize(("rows", "count"), LARGE)
    @pytest.mark.parametrize(("in_channels", "out_channels"), WIDTHS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
    def test_of_many_rows(self, rows, count, in_channels, out_channels, dtype):
        for op, args in large_cases(rows, count, in_channels, out_channels, dtype):
            function = on("native", op)
            right = [a.detach().double() if isinstance(a, torch.Tensor) else a for a in args]
            right = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in right]
            found, expected = on("cpp", op)(*args), function(*right)
            assert_near(found, expected, TOLERANCE[dtype][0], op)
            grad = torch.randn_like(expected)
            leaves = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
            pairs = zip(
                torch.autograd.grad(found, [args[i] for i in leaves], grad.to(dtype)),
                torch.autograd.grad(expected, [right[i] for i in leaves], grad),
                strict=True,
            )
            for a, b in pairs:
                assert_near(a, b, TOLERANCE[dtype][1], f"gradients of {op}")

    def test_reads_a_wide_source_of_a_narrow_index(self):
        # As with more than 2^31 nodes and fewer edges.
        source, segments = (
            Segments.from_index(torch.randint(50, (300,)), num_segments=50) for _ in range(2)
        )
        x = torch.randn(2, 50, 17, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(300, dtype=torch.float64, requires_grad=True)
        results = []
        for wide in (False, True):
            if wide:
                source, segments = with_wide_index(source), with_wide_index(segments)
            y = on("cpp", "gather_segment_sum")(x, source, segments, weight)
            results.append([y, *torch.autograd.grad(y.square().sum(), (x, weight))])
        # No equal bits: a compiler may fuse products in the one loop and not in the other.
        for a, b in zip(*results, strict=True):
            assert_near(a, b, 1e-14, "wide tables")

    def test_reads_wide_indices(self):
        both = list(large_cases(2_000, 9, 3, 5)), list(large_cases(2_000, 9, 3, 5))
        for (op, args), (_, wide) in zip(*both, strict=True):
            wide = [with_wide_index(a) if isinstance(a, Segments | Tiles) else a for a in wide]
            assert_near(on("cpp", op)(*args), on("cpp", op)(*wide), 1e-14, op)

    def test_of_no_channels(self):
        for op, args in large_cases(2_000, 9, 0, 3):
            y = on("cpp", op)(*args)
            assert torch.equal(y, getattr(reference, op)(*args))
            y.sum().backward()
        for op, args in large_cases(2_000, 9, 3, 0):
            if op == "indexed_linear":
                assert on("cpp", op)(*args).shape == (2, 2_000, 0)

    @pytest.mark.parametrize(("rows", "count"), LARGE)
    def test_the_same_bits_on_any_number_of_threads(self, rows, count):
        threads, runs = torch.get_num_threads(), []
        try:
            for number in (1, 2, 3):
                torch.set_num_threads(number)
                results = []
                for op, args in large_cases(rows, count, 5, 17, torch.float32):
                    y = on("cpp", op)(*args)
                    leaves = [a for a in args if isinstance(a, torch.Tensor)]
                    results += [y, *torch.autograd.grad(y, leaves, torch.cos(y.detach()))]
                runs.append(results)
        finally:
            torch.set_num_threads(threads)
        for others in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], others, strict=True))

    @pytest.mark.parametrize(("rows", "count"), LARGE)
    def test_what_is_not_a_number_stays_where_it_belongs(self, rows, count):
        for op, args in large_cases(rows, count, 17, 5):
            if op == "gather_segment_sum":
                continue
            x, table = args[0].detach().clone(), args[2] if op == "indexed_linear" else args[1]
            x[1, 1234, 3] = torch.nan
            y = on("cpp", op)(x, *args[1:])
            segments = table.segments if isinstance(table, Tiles) else table
            wrong = torch.zeros_like(y, dtype=torch.bool)
            if op == "indexed_linear":
                wrong[1, 1234] = True
            else:
                wrong[1, int(segments.index[1234]), 3] = True
            assert torch.equal(y.isnan(), wrong)
            if op == "indexed_linear" and args[1].size(0) > 1:
                (grad,) = torch.autograd.grad(y, args[1], torch.ones_like(y))
                expected = torch.zeros_like(grad, dtype=torch.bool)
                expected[int(segments.index[1234]), 3] = True
                assert torch.equal(grad.isnan(), expected)

    @pytest.mark.parametrize("count", [2, 300_000])
    def test_long_segments_stay_accurate(self, count):
        index = torch.zeros(2_000_000, dtype=torch.int64)
        x = torch.full((index.numel(), 1), 0.1)
        segments = Segments.from_index(index, count)
        exact = x.double().sum()
        y = on("cpp", "segment_sum")(x, segments)
        assert abs(float(y[0]) - exact) < 5e-5 * exact  # a running sum errs by a hundredth
        assert (y[1:] == 0).all()
        zero = Segments.from_index(index, 1)
        y = on("cpp", "gather_segment_sum")(torch.full((1, 1), 0.1), zero, segments)
        assert abs(float(y[0]) - exact) < 5e-5 * exact  # a running sum errs by a hundredth


class TestSharedOperands:
    """What all samples, or all segments, have in common."""

    @pytest.mark.parametrize("backend", ["reference", "native", "cpp"], indirect=True)
    @pytest.mark.parametrize(
        "op",
        [
            *("indexed_linear shared", "grouped_linear shared"),
            *("cluster_linear tiles", "cluster_linear runs"),
        ],
    )
    def test_one_matrix_for_all(self, backend, op):
        name, args, _ = case(op, "unsorted")
        args = [args[0], parameter(1, 3, 2), *args[2:]]
        assert_parity(on(backend, name), name, args, torch.float64)

    @pytest.mark.parametrize("backend", ["reference", "native", "cpp"], indirect=True)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("op", ["indexed_linear shared", "grouped_linear shared"])
    def test_one_row_for_all_samples(self, backend, op, layout):
        name, args, _ = case(op, "unsorted", layout)
        args = [*args[:-1], parameter(3, 2)]
        assert_parity(on(backend, name), name, args, torch.float64)

    @pytest.mark.parametrize("op", ["grouped_linear shared", "cluster_linear runs"])
    def test_autocast_takes_weights_of_another_type(self, op):
        name, args, _leaves = case(op, "unsorted", dtype=torch.float32)
        args = [args[0], args[1].double(), *args[2:]]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = primitive(kernels, name)(*args)
        assert y.dtype == torch.bfloat16
        assert_near(y, primitive(reference, name)(*widened(args)), 4e-2, "value")


# Of 16 channels, whole vectors in float32 and float64.
LOOPS = {
    "segment_sum": True,
    "segment_mean": True,
    "segment_max": True,
    "segment_gather": False,
    "gather_segment_sum": True,
    "gather_segment_sum weighted": True,
    "gather_segment_sum weights per sample": True,
    "indexed_linear": True,
    "indexed_linear shared": True,
    "grouped_linear": False,
    "grouped_linear shared": False,
    "cluster_linear tiles": True,
    "cluster_linear runs": False,
    "row_mlp": True,
    "linear_pair": True,
    "permute_rows": False,
}


class TestBackends:
    @pytest.mark.parametrize("backend", ["cpp", "native"])
    def test_auto_on_the_cpu(self, backend, monkeypatch):
        monkeypatch.setattr(cpp_library, "is_usable", lambda: backend == "cpp")
        name, args, _ = case("segment_sum", "unsorted")
        with kernels.trace() as ran:
            getattr(kernels, name)(*args)
        assert ran == [backend]

    def test_of_a_stretch_of_code(self):
        name, args, _ = case("segment_sum", "unsorted")
        call = getattr(kernels, name)
        with kernels.trace() as ran, kernels.backend("reference"):
            call(*args)
            with kernels.backend("native"), kernels.trace() as inner:
                call(*args)
            call(*args, backend="native")
            call(*args)
        assert ran == ["reference", "native", "reference"]
        assert inner == ["native"]
        with kernels.trace() as ran:
            call(*args)
        assert ran == ["cpp"]

    @pytest.mark.parametrize("op", LOOPS)
    def test_what_the_compiled_loops_compute(self, op):
        for dtype, expected in (
            (torch.float32, LOOPS[op]),
            (torch.float16, op == "segment_mean"),  # adds up in float32
        ):
            if op == "row_mlp":  # the width between is odd otherwise
                shapes = [(7, 16), (1, 16, 16), (1, 16), (1, 16, 16), (1, 16)]
                name, args = op, [torch.randn(shape, dtype=dtype) for shape in shapes]
            else:
                name, args, _ = case(op, "unsorted", dtype=dtype, channels=(16, 16))
            assert computes("cpp", name, *args) == expected
        _, args, _ = case(op, "one segment", dtype=torch.float32, channels=(16, 16))
        if op in ("segment_sum", "segment_mean"):
            assert not computes("cpp", name, *args)

    def test_an_odd_width_of_shared_maps_is_plain_torch(self):
        for op in ("row_mlp", "linear_pair"):
            name, args, _ = case(op, "unsorted", channels=(3, 2))
            assert not computes("cpp", name, *args)

    def test_a_trace_of_compiled_code_names_what_computed(self):
        name, args, _ = case("segment_sum", "unsorted", dtype=torch.float32)
        compiled = torch.compile(getattr(kernels, name), fullgraph=True, backend="eager")
        with kernels.backend("cpp"), kernels.trace() as ran:
            for x in (args[0], args[0].half(), args[0]):
                compiled(x, args[1])
        assert ran == ["cpp", "native", "cpp"]

    def test_sees_a_trace_that_says_more_than_ran(self, monkeypatch):
        monkeypatch.setattr("gsym.kernels._backends.in_plain_torch", lambda: None)
        name, args, _ = case("segment_sum", "unsorted", dtype=torch.bfloat16)
        with pytest.raises(AssertionError, match="'cpp'"):
            on("cpp", name)(*args)

    def test_of_a_whole_layer(self):
        from gsym.nn import GNetConv

        conv = GNetConv(2, 3, None, propagate="weighted").double()
        x, edge_index = torch.randn(4, 5, 2).double(), torch.tensor([[0, 1, 2], [1, 2, 4]])
        expected = conv(x, edge_index)
        with kernels.backend("reference"), kernels.trace() as ran:
            y = conv(x, edge_index)
        assert set(ran) == {"reference"}
        assert torch.allclose(y, expected)

    def test_unknown(self):
        name, args, _ = case("segment_sum", "unsorted")
        with pytest.raises(ValueError, match="native, cpp, torch_scatter, triton; got"):
            getattr(kernels, name)(*args, backend="cuda")
        with pytest.raises(ValueError, match="'fast'"), kernels.backend("fast"):
            pass

    def test_torch_scatter_says_which_extra_it_needs(self, monkeypatch):
        name, args, _ = case("segment_sum", "unsorted")
        monkeypatch.delitem(sys.modules, "gsym.kernels.torch_scatter", raising=False)
        monkeypatch.setitem(sys.modules, "torch_scatter", None)
        with pytest.raises(BackendUnavailableError, match=r"gsym\[scatter\]"):
            getattr(kernels, name)(*args, backend="torch_scatter")

    @pytest.mark.parametrize("backend", ["torch_scatter stub"], indirect=True)
    def test_torch_scatter_has_reductions_alone(self, backend):
        name, args, _ = case("indexed_linear", "unsorted")
        with pytest.raises(BackendUnavailableError, match="has no indexed_linear"):
            getattr(kernels, name)(*args, backend=backend)


def meta(value):
    return value.to("meta")


def eight_rows(value):
    return Clusters(torch.arange(8) % 3, 3, 3, 2)


def wider(value):
    return torch.cat([value, value[..., :1]], dim=-1)


def less(value):
    return value[..., :-1]


def fewer(value):
    return value[..., :-1, :]


def more_rows(value):
    return torch.cat([value, value[..., :1, :]], dim=-2)


def two_samples(value):
    return value[:2]


def doubled(value):
    return torch.cat([value, value])


def like(argument):
    """What holds for every operand of a product."""
    return [
        (argument, meta, ValueError, f"{argument} is on meta but x on cpu; move one of them"),
        (argument, torch.Tensor.float, TypeError, f"{argument} must have the type of x, torch.fl"),
        (argument, torch.Tensor.long, TypeError, f"{argument} must have the type of x, torch.fl"),
        (argument, torch.Tensor.tolist, TypeError, f"{argument} must be a tensor; got list"),
    ]


# What every primitive refuses: argument, change, error, message. Three samples, seven rows, three
# segments, 3 channels in and 2 out; runs are of two rows.
MATRICES = [
    *like("weight"),
    ("weight", doubled, ValueError, r"weight must be \[3, 3, out\], or \[1, 3, out\] .*\[6, 3, 2"),
    ("weight", more_rows, ValueError, r"weight must be \[3, 3, out\].*; got \[3, 4, 2\]"),
    ("weight", fewer, ValueError, r"weight must be \[3, 3, out\].*; got \[3, 2, 2\]"),
    ("weight", lambda w: w[:, :1], ValueError, r"weight must be \[3, 3, out\].*; got \[3, 1, 2\]"),
    ("weight", lambda w: w[:2], ValueError, r"weight must be \[3, 3, out\].*; got \[2, 3, 2\]"),
    ("weight", lambda w: w[0], ValueError, r"weight must be \[3, 3, out\].*; got \[3, 2\]"),
    ("weight", lambda w: None, TypeError, "weight must be a tensor; got NoneType"),
    ("x", torch.Tensor.long, TypeError, "x must be floating point; got torch.int64; convert"),
    ("x", torch.Tensor.tolist, TypeError, "x must be a tensor; got list"),
    ("x", meta, ValueError, "(x is on meta but its index on cpu|is on cpu but x on meta)"),
    ("x", lambda x: x[0, 0], ValueError, r"x must be \[\.\.\., .*; got"),
    ("x", wider, ValueError, r"weight must be \[3, 4, out\]"),
]
SHARED = [
    *like("shared"),
    ("shared", wider, ValueError, r"shared must be \[3, 2\] or \[3, 3, 2\]; got \[3, 3, 3\]"),
    ("shared", less, ValueError, r"shared must be .*; got \[3, 3, 1\]"),
    ("shared", fewer, ValueError, r"shared must be .*; got \[3, 2, 2\]"),
    ("shared", more_rows, ValueError, r"shared must be .*; got \[3, 4, 2\]"),
    ("shared", two_samples, ValueError, r"shared must be .*; got \[2, 3, 2\]"),
    ("shared", lambda y: y[0, 0], ValueError, r"shared must be .*; got \[2\]"),
]
TILES = [
    ("tiles", lambda t: t.segments, TypeError, "tiles must be Tiles; got Segments; make them with"),
    ("tiles", lambda t: make_index("63 rows"), TypeError, "tiles must be Tiles; got Segments"),
    ("tiles", lambda t: Tiles(make_index("63 rows"), 3, 2), ValueError, r"x must be .* 63, c\]"),
    ("tiles", lambda t: t.to("meta"), ValueError, "x is on cpu but its index on meta"),
]
CLUSTERS = [
    *MATRICES,
    *like("matrix"),
    *like("bias"),
    ("matrix", wider, ValueError, r"matrix must be \[9, 6\]; got \[9, 7\]"),
    ("matrix", fewer, ValueError, r"matrix must be \[9, 6\]; got \[8, 6\]"),
    ("bias", wider, ValueError, r"bias must be \[3, 2\]; got \[3, 3\]"),
    ("bias", lambda b: b[:1], ValueError, r"bias must be \[3, 2\]; got \[1, 2\]"),
    ("clusters", lambda c: c.segments, TypeError, "clusters must be Clusters; got Segments; make"),
    ("clusters", lambda c: None, TypeError, "clusters must be Clusters; got NoneType"),
    ("clusters", meta, ValueError, "x is on cpu but its index on meta"),
    ("clusters", eight_rows, ValueError, r"x must be \[\.\.\., 8, c\], as the clusters have one"),
]
PERMUTATIONS = [
    (name, change, error, f"{name} {message}")
    for name in ("order", "inverse")
    for change, error, message in (
        (meta, ValueError, "is on meta but x on cpu; move one of them"),
        (torch.Tensor.int, TypeError, r"must be torch\.int64; got torch\.int32; convert with"),
        (torch.Tensor.double, TypeError, r"must be torch\.int64; got torch\.float64"),
        (less, ValueError, r"must be \[7\]; got \[6\]"),
        (wider, ValueError, r"must be \[7\]; got \[8\]"),
        (lambda order: order[None], ValueError, r"must be \[7\]; got \[1, 7\]"),
        (torch.Tensor.tolist, TypeError, "must be a tensor; got list"),
    )
]
ENTRIES = [
    *like("weight"),
    ("weight", two_samples, ValueError, r"weight must be \[7\] or \[3, 7\]; got \[2, 7\]"),
    ("weight", less, ValueError, r"weight must be \[7\] or \[3, 7\]; got \[3, 6\]"),
    (
        "segments",
        lambda s: make_index("unsorted").to("meta"),
        ValueError,
        "segments is on meta but source on cpu",
    ),
    ("segments", lambda s: s.index, TypeError, "an index must be Segments; got Tensor; make them"),
    ("source", lambda s: s.index, TypeError, "an index must be Segments; got Tensor"),
    ("source", lambda s: make_index((7, 5)).to("meta"), ValueError, "x is on cpu but its index on"),
    ("x", meta, ValueError, "x is on meta but its index on cpu"),
]
BAD = {
    "gather_segment_sum weights per sample": ENTRIES,
    "indexed_linear shared": [*MATRICES, *SHARED, *TILES],
    "grouped_linear shared": [*MATRICES, *SHARED],
    "cluster_linear tiles": CLUSTERS,
    "cluster_linear runs": CLUSTERS,
    "permute_rows": [
        *PERMUTATIONS,
        ("x", lambda x: x[0, 0], ValueError, r"x must be \[\.\.\., r, c\]; got \[3\]"),
        ("x", torch.Tensor.tolist, TypeError, "x must be a tensor; got list"),
        ("x", meta, ValueError, "order is on cpu but x on meta"),
    ],
}


class TestBadInput:
    @pytest.mark.parametrize("op", ["segment_sum", "segment_mean", "segment_max"])
    def test_of_reductions(self, op):
        segments, call = make_index("unsorted"), getattr(kernels, op)
        with pytest.raises(ValueError, match=r"\[\.\.\., 7, c\].*got \[6, 2\]"):
            call(torch.zeros(6, 2), segments)
        with pytest.raises(ValueError, match=r"got \[7\]"):
            call(torch.zeros(7), segments)
        with pytest.raises(TypeError, match=r"torch\.int64; convert it with \.float"):
            call(torch.zeros(7, 2, dtype=torch.int64), segments)
        with pytest.raises(ValueError, match="is on meta but its index on cpu"):
            call(torch.zeros(7, 2, device="meta"), segments)

    def test_of_gathers(self):
        source, target = make_index("unsorted"), make_index("empty segments")
        with pytest.raises(ValueError, match=r"\[\.\.\., 3, c\].*got \[4, 2\]"):
            kernels.segment_gather(torch.zeros(4, 2), source)
        with pytest.raises(ValueError, match="the same entries; got 7 and 6"):
            kernels.gather_segment_sum(torch.zeros(3, 2), source, target)
        with pytest.raises(ValueError, match=r"weight must be \[7\]; got \[7, 1\]"):
            kernels.gather_segment_sum(torch.zeros(3, 2), source, source, torch.zeros(7, 1))
        with pytest.raises(TypeError, match=r"torch\.float32; got torch\.float64"):
            kernels.gather_segment_sum(torch.zeros(3, 2), source, source, torch.zeros(7).double())

    @pytest.mark.parametrize(
        ("index", "count", "error", "message"),
        [
            (torch.tensor([0, 2]), 2, ValueError, r"0\.\.1; got values (from 0 )?(up )?to 2"),
            (torch.tensor([0.0]), 2, ValueError, r"int64 or int32 \[e\]; got torch\.float32"),
            (torch.zeros(2, 2).long(), 2, ValueError, r"\[e\]; got torch\.int64 \[2, 2\]"),
            ([0, 1], 2, TypeError, r"must be a tensor \[e\]; got list"),
            (torch.tensor([0, 1]), 2.0, ValueError, r"num_segments must be a whole number; got 2"),
            (torch.tensor([0, 1]), -1, ValueError, "num_segments must not be negative; got -1"),
            (torch.zeros(0).long(), -1, ValueError, "num_segments must not be negative; got -1"),
            (
                torch.tensor([0, 1], device="meta"),
                2,
                ValueError,
                "must have values to read",
            ),
        ],
        ids=["range", "type", "shape", "list", "float", "negative", "empty", "meta"],
    )
    @pytest.mark.parametrize("make", [Segments.from_index, Segments], ids=["from_index", "plain"])
    def test_of_an_index(self, make, index, count, error, message):
        with pytest.raises(error, match=message):
            make(index, count)

    def test_of_negative_entries(self):
        with pytest.raises(ValueError, match=r"0\.\.1; got values from -1 to 1"):
            Segments.from_index(torch.tensor([0, -1, 1]), 2)
        with pytest.raises(ValueError, match=r"0\.\.1; got a negative value"):
            Segments(torch.tensor([0, -1, 1]), 2)

    def test_of_tiles_of_no_segments(self):
        with pytest.raises(TypeError, match="segments must be Segments; got Tensor"):
            Tiles(torch.tensor([0, 1]), 3, 2)

    def rejects(self, op, error, message, backends, **changes):
        name, args, _ = case(op, "unsorted")
        function = primitive(kernels, name)
        names = inspect.signature(primitive(reference, name)).parameters
        given = dict(zip(names, args, strict=True))
        assert changes.keys() <= given.keys()
        for backend in backends:
            with kernels.trace() as ran, pytest.raises(error, match=message):
                function(**given | changes, backend=backend)
            assert not ran

    @pytest.mark.parametrize("op", BAD, ids=str)
    def test_before_any_back_end_runs(self, op):
        for argument, change, error, message in BAD[op]:
            _, args, _ = case(op, "unsorted")
            names = inspect.signature(primitive(reference, op.partition(" ")[0])).parameters
            value = dict(zip(names, args, strict=True))[argument]
            value = value.detach() if isinstance(value, torch.Tensor) else value
            backends = ("auto", "cpp", "native", "reference")
            self.rejects(op, error, message, backends, **{argument: change(value)})


def test_long_segments_of_half_precision_round_once():
    half = torch.full((2048, 1), 100.0, dtype=torch.float16)
    half[1024:] = -100  # either half of the sum is beyond float16
    segments = Segments(
        torch.zeros(2049, dtype=torch.int64).index_fill(0, torch.tensor([2048]), 1), 2
    )
    rows = torch.cat([half, half.new_ones(1, 1)])
    assert kernels.segment_sum(rows, segments).tolist() == [[0.0], [1.0]]


def test_the_gradient_of_half_precision_weights_adds_up_in_float32(monkeypatch):
    monkeypatch.setattr("gsym.kernels.native.rows.BLOCK_ROWS", 4)
    tiles = Tiles(Segments(torch.tensor([0, 0, 1, 1]), 2), 1, 1)
    weight = torch.ones(2, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    x = torch.ones(1000, 4, 1, dtype=torch.bfloat16)
    kernels.indexed_linear(x, weight, tiles).sum().backward()
    # A running sum in bfloat16 would stop growing at 256 or 512.
    torch.testing.assert_close(
        weight.grad.float(), torch.full((2, 1, 1), 2000.0), rtol=1e-2, atol=0
    )


def test_more_ties_than_float32_counts():
    x = torch.zeros(2**24 + 2, 1, requires_grad=True)
    kernels.segment_max(x, Segments(torch.zeros(x.size(0), dtype=torch.int32), 1)).sum().backward()
    assert x.grad is not None
    assert float(x.grad.double().sum()) == pytest.approx(1)


def test_an_index_is_copied():
    index = torch.tensor([0, 1, 1, 2], dtype=torch.int32)
    segments = Segments.from_index(index, 3)
    index[0] = 2
    assert segments.index.tolist() == [0, 1, 1, 2]
