"""Maps that all rows share, in compiled code: blocks of rows, gradients, what falls back."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernels.test_ops import assert_near, assert_parity, on, primitive, widened
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from gsym import kernels
from gsym.kernels import reference
from gsym.kernels.cpp import library as cpp_library
from gsym.kernels.cpp import nodes as cpp_nodes

OPS = ("row_mlp", "row_mlp extra", "linear_pair")
NAMES = {
    "row_mlp": ("x", "first", "first_bias", "last", "last_bias"),
    "row_mlp extra": ("x", "first", "first_bias", "last", "last_bias", "extra"),
    "linear_pair": ("x", "weight", "bias", "other"),
}
# Vectors in a row of x, extra it, hidden, and in a row of the result.
NARROW, WIDE = (1, 1, 1, 1), (2, 3, 5, 7)
USED = {"row_mlp": (0, 2, 3), "row_mlp extra": (0, 1, 2, 3), "linear_pair": (0, 3)}
DTYPES = [torch.float64, torch.float32]
BLOCK = 48


def lanes(dtype):
    return cpp_library.library().gsym_vector_bytes() // dtype.itemsize


def case(op, rows=BLOCK + 1, widths=WIDE, dtype=torch.float64, more=(0, 0, 0, 0)):
    """Name of the primitive and its tensors, each a leaf.

    Widths are whole vectors and ``more`` numbers; ``rows`` is a number, or the shape before them.
    """
    rng = torch.Generator().manual_seed(0)
    shape = (rows,) if isinstance(rows, int) else rows
    widths = [width * lanes(dtype) + some for width, some in zip(widths, more, strict=True)]
    c, extra, h, out = widths
    if op == "linear_pair":
        shapes = [(*shape, c), (1, c, out), (1, out), (1, c, out)]
    elif op == "row_mlp":
        shapes = [(*shape, c), (1, c, h), (1, h), (1, h, out), (1, out)]
    else:
        shapes = [(*shape, c), (1, c + extra, h), (1, h), (1, h, out), (1, out), (*shape, extra)]
    tensors = [torch.randn(s, dtype=torch.float64, generator=rng) for s in shapes]
    return op.partition(" ")[0], [x.to(dtype).requires_grad_() for x in tensors]


def outer_of(y):
    """A gradient to start from that is the same each time."""
    rng = torch.Generator().manual_seed(1)
    return torch.randn(y.shape, dtype=torch.float64, generator=rng).to(y.dtype)


def gradients(function, tensors, outer=None, **how):
    y = function(*tensors)
    return torch.autograd.grad(y, tensors, outer_of(y) if outer is None else outer, **how)


@pytest.fixture
def compiled(monkeypatch):
    """The compiled functions that ran, in order."""
    ran, call = [], cpp_nodes.call

    def record(name, *args):
        ran.append(name)
        call(name, *args)

    monkeypatch.setattr(cpp_nodes, "call", record)
    return ran


def passes(op, dtype=torch.float64):
    """Both compiled functions of a primitive."""
    kind, suffix = ("pair" if op == "linear_pair" else "mlp"), str(dtype).removeprefix("torch.")
    return [f"{kind}_forward_{suffix}", f"{kind}_backward_{suffix}"]


@pytest.mark.parametrize("op", OPS)
class TestParity:
    @pytest.mark.parametrize("rows", [1, BLOCK - 1, BLOCK, BLOCK + 1, 500])
    @pytest.mark.parametrize("widths", [NARROW, WIDE], ids=str)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_of_blocks(self, compiled, op, rows, widths, dtype):
        name, tensors = case(op, rows, widths, dtype)
        assert_parity(on("cpp", name), name, tensors, dtype)
        assert compiled == passes(op, dtype)

    @pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (2, 3, 7), (1, 1)], ids=str)
    def test_of_shapes(self, compiled, op, shape):
        name, tensors = case(op, shape, NARROW)
        assert_parity(on("cpp", name), name, tensors, torch.float64)
        assert compiled == passes(op)

    def test_of_no_channels(self, compiled, op):
        for none in USED[op]:
            widths = [0 if i == none else width for i, width in enumerate(NARROW)]
            name, tensors = case(op, 5, widths)
            assert_parity(on("cpp", name), name, tensors, torch.float64)
        assert compiled == passes(op) * len(USED[op])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_of_a_width_of_no_whole_vectors(self, compiled, op, dtype):
        for wrong in USED[op]:
            more = [int(i == wrong) for i in range(4)]
            name, tensors = case(op, dtype=dtype, more=more)
            assert_parity(on("cpp", name), name, tensors, dtype)
        assert not compiled

    def test_of_half_precision(self, compiled, op):
        name, tensors = case(op, dtype=torch.bfloat16)
        assert_parity(on("cpp", name), name, tensors, torch.bfloat16)
        assert not compiled

    def test_half_precision_of_two_parts_is_rounded_once(self, op):
        if op != "row_mlp extra":
            pytest.skip("has one part")
        # Each part alone is beyond float16, which ends at 65504.
        x, (first, last) = torch.full((1, 64), 100.0), torch.full((2, 1, 64, 16), 20.0)
        zero, one = torch.zeros(1, 16).half(), torch.eye(16)[None].half()
        first = torch.cat([first, -last], dim=1).half()
        y = kernels.row_mlp(x.half(), (first, zero), (one, zero), x.half(), backend="native")
        assert torch.equal(y, torch.zeros(1, 16).half())

    @pytest.mark.parametrize("layout", ["turned", "expanded", "part of a row", "not aligned"])
    def test_of_layouts(self, compiled, op, layout):
        name, plain = case(op, (3, 50), NARROW)
        tensors = []
        for x in plain:
            y = x.detach()
            if layout == "turned":
                y = y.transpose(0, -1).contiguous().transpose(0, -1)
            elif layout == "expanded":
                y = y[:1].expand(y.shape)
            elif layout == "part of a row":
                y = torch.cat([y, y], dim=-1)[..., 1 : 1 + y.size(-1)]
            else:
                y = torch.cat([y.new_zeros(1), y.flatten()])[1:].view(y.shape)
            tensors.append(y.requires_grad_())
        assert_parity(on("cpp", name), name, tensors, torch.float64)
        assert compiled == passes(op)

    @pytest.mark.parametrize("layout", ["turned", "expanded", "part of a row"])
    def test_of_incoming_gradients(self, compiled, op, layout):
        name, tensors = case(op, (3, 50))
        shape = primitive(reference, name)(*tensors).shape
        backwards = torch.randn(shape[::-1], dtype=torch.float64)
        outer = {
            "turned": backwards.permute(*reversed(range(len(shape)))),
            "expanded": torch.randn(shape[-1], dtype=torch.float64).expand(shape),
            "part of a row": torch.randn(*shape[:-1], 2 * shape[-1]).double()[..., ::2],
        }[layout]
        assert not outer.is_contiguous()
        right = gradients(primitive(reference, name), tensors, outer)
        for how in ({}, {"create_graph": True}):
            found = gradients(on("cpp", name), tensors, outer, **how)
            for argument, a, b in zip(NAMES[op], found, right, strict=True):
                assert_near(a, b, 1e-12, f"gradient of {argument}")
        forward, backward = passes(op)
        assert compiled == [forward, backward, forward]

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_of_second_derivatives(self, compiled, op, dtype):
        name, tensors = case(op, dtype=dtype)

        def derivatives(function, tensors):
            y = function(*tensors)
            outer = outer_of(y).requires_grad_()
            grads = torch.autograd.grad(y, tensors, outer, create_graph=True)
            loss = sum((torch.cos(torch.arange(g.numel()).view(g.shape)) * g).sum() for g in grads)
            return [*grads, *torch.autograd.grad(loss, [outer, *tensors], allow_unused=True)]

        found = derivatives(on("cpp", name), tensors)
        right = derivatives(primitive(reference, name), widened(tensors))
        seconds = ["outer", *NAMES[op]]
        names = [f"gradient of {argument}" for argument in NAMES[op]]
        names += [f"second gradient of {argument}" for argument in seconds]
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        constant = 0
        for what, a, b in zip(names, found, right, strict=True):
            if b is None:  # a map is linear in its bias
                constant += 1
                assert a is None or not a.any()
            else:
                assert a.dtype == dtype
                assert_near(a, b, tolerance, what)
        assert constant == 1
        assert compiled == passes(op, dtype)[:1]  # the composition has every further derivative

    def test_of_differences(self, op):
        name, tensors = case(op, 3, NARROW)
        assert gradcheck(on("cpp", name), tensors, fast_mode=True)
        assert gradgradcheck(on("cpp", name), tensors, fast_mode=True)

    @pytest.mark.parametrize("size", [1e-3, 1e3])
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_of_small_and_large_numbers(self, op, size, dtype):
        # Where the activation is nothing, or its argument.
        name, tensors = case(op, dtype=dtype)
        tensors[0] = (tensors[0].detach() * size).requires_grad_()
        # An argument near zero, where the derivative turns, is a sum of thousands in float32.
        allowed = 3e-4 if (dtype, size) == (torch.float32, 1e3) else None
        assert_parity(on("cpp", name), name, tensors, dtype, allowed)

    def test_what_is_not_a_number_stays_in_its_row(self, op):
        name, tensors = case(op, 100, NARROW)
        x = tensors[0].detach().clone()
        x[60, -1] = torch.nan
        tensors[0] = x.requires_grad_()
        y = on("cpp", name)(*tensors)
        rows = y.isnan().movedim(-2, 0).flatten(1).sum(1)
        assert rows.nonzero().tolist() == [[60]]
        assert y[..., 60, :].isnan().all()
        grads = torch.autograd.grad(y, tensors, torch.ones_like(y))
        if op != "linear_pair":
            wrong = grads[0].isnan().any(-1).nonzero().tolist()
            assert wrong == [[60]]
        assert grads[1].isnan().any()


@pytest.mark.parametrize("op", OPS)
class TestPromises:
    def test_each_tensor_may_be_the_only_one_with_a_gradient(self, compiled, op):
        name, tensors = case(op)
        right = gradients(on("cpp", name), tensors)
        still = [x.detach() for x in tensors]
        assert not on("cpp", name)(*still).requires_grad
        for i, argument in enumerate(NAMES[op]):
            leaf = still[i].clone().requires_grad_()
            given = [leaf if j == i else x for j, x in enumerate(still)]
            y = on("cpp", name)(*given)
            (first,) = torch.autograd.grad(y, leaf, outer_of(y), retain_graph=True)
            assert torch.equal(first, right[i]), argument
            (again,) = torch.autograd.grad(y, leaf, outer_of(y), create_graph=True)
            assert_near(again, right[i], 1e-12, argument)
        assert compiled.count(passes(op)[1]) == 1 + len(tensors)

    def test_a_tensor_in_two_places_counts_once_in_each(self, compiled, op):
        rng = torch.Generator().manual_seed(0)
        c = 2 * lanes(torch.float64)
        shapes = (50, c), (1, 2 * c, c), (1, c, c), (1, c)
        x, tall, weight, bias = (
            torch.randn(s, dtype=torch.float64, generator=rng).requires_grad_() for s in shapes
        )
        leaves = [x, tall, weight, bias]
        if op == "linear_pair":
            arguments = [(x, weight, bias, weight), (x, weight, bias, 2 * weight)]
        elif op == "row_mlp":
            arguments = [(x, weight, bias, weight, bias), (x, weight, bias, 2 * weight, -bias)]
        else:
            arguments = [(x, tall, bias, weight, bias, x), (x, tall, bias, weight, bias, 3 * x)]
        name = op.partition(" ")[0]

        def grads(function, args, **how):
            y = function(*args)
            return torch.autograd.grad(y.square().sum(), leaves, allow_unused=True, **how)

        for args in arguments:
            right = grads(primitive(reference, name), args, retain_graph=True)
            for how in ({"retain_graph": True}, {"create_graph": True}):
                found = grads(on("cpp", name), args, **how)
                assert [a is None for a in found] == [b is None for b in right]
                for a, b in zip(found, right, strict=True):
                    if b is not None:
                        assert_near(a, b, 1e-12, f"gradient of {list(b.shape)}")
        forward, backward = passes(op)
        assert compiled == [forward, backward, forward] * 2

    def test_results_and_gradients_may_change_in_place(self, op):
        name, tensors = case(op)
        right = gradients(on("cpp", name), tensors)
        y = on("cpp", name)(*tensors)
        outer = outer_of(y)
        y.mul_(1)
        grads = torch.autograd.grad(y, tensors, outer)
        assert all(torch.equal(a, b) for a, b in zip(grads, right, strict=True))
        factor = torch.ones((), dtype=torch.float64, requires_grad=True)
        product = sum((factor * grad).sum() for grad in grads[::2])
        for grad in grads[1::2]:
            grad.fill_(torch.nan)
        assert all(torch.equal(a, b) for a, b in zip(grads[::2], right[::2], strict=True))
        product.backward()
        torch.testing.assert_close(factor.grad, sum(grad.sum() for grad in right[::2]))

    def test_an_input_that_changed_is_an_error(self, op):
        name, tensors = case(op)
        for i in range(len(tensors)):
            y = on("cpp", name)(*tensors)
            tensors[i].data = tensors[i].data.clone()  # new numbers, of which autograd is not told
            with torch.no_grad():
                tensors[i].mul_(2)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()

    @pytest.mark.parametrize("create_graph", [False, True])
    def test_backward_within_autocast_keeps_the_types_of_the_forward_pass(self, op, create_graph):
        name, tensors = case(op, dtype=torch.float32)
        y = on("cpp", name)(*tensors)
        outside = torch.autograd.grad(y, tensors, outer_of(y), retain_graph=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = torch.autograd.grad(y, tensors, outer_of(y), create_graph=create_graph)
        for argument, a, b in zip(NAMES[op], inside, outside, strict=True):
            assert a.dtype == torch.float32
            assert_near(a, b.double(), 1e-5, argument)

    def test_autocast_takes_its_own_type(self, compiled, op):
        name, tensors = case(op, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = on("cpp", name)(*tensors)
            assert on("cpp", name)(*widened(tensors)).dtype == torch.float64
        assert y.dtype == torch.bfloat16
        assert_near(y, primitive(reference, name)(*widened(tensors)), 4e-2, "value")
        y.float().sum().backward()
        assert all(x.grad.dtype == torch.float32 for x in tensors)
        assert compiled == passes(op)[:1]

    def test_any_number_of_threads(self, op):
        name, tensors = case(op, 500, dtype=torch.float32)
        row, few = case(op, 1, dtype=torch.float32)
        threads, runs = torch.get_num_threads(), []
        try:
            for number in (1, 2, 3, 3):
                torch.set_num_threads(number)
                y = on("cpp", name)(*tensors)
                grads = torch.autograd.grad(y, tensors, outer_of(y))
                alone = gradients(on("cpp", row), few)
                runs.append([y.detach(), *grads, *alone])
        finally:
            torch.set_num_threads(threads)
        for a, b in zip(runs[2], runs[3], strict=True):
            assert torch.equal(a, b)
        for others in runs[1:]:
            for what, a, b in zip(["value", *NAMES[op] * 2], others, runs[0], strict=True):
                if what in ("value", "x", "extra"):
                    assert torch.equal(a, b), what
                assert_near(a, b.double(), 1e-5, what)

    def test_calls_at_once_do_not_meet(self, op):
        cases = [case(op, rows, dtype=torch.float32) for rows in (500, 200)]
        right = [gradients(on("cpp", name), tensors) for name, tensors in cases]

        def work(i):
            name, tensors = cases[i % 2]
            found = gradients(primitive(kernels, name), tensors)
            return all(torch.equal(a, b) for a, b in zip(found, right[i % 2], strict=True))

        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(work, range(40)))

    def test_compiles_in_one_graph(self, compiled, op):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        function = primitive(kernels, op.partition(" ")[0])
        graph = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
        for rows in (5, 60, 70, 80):
            _, tensors = case(op, rows, NARROW)
            y = graph(*tensors)
            assert not compiled
            expected = function(*tensors)
            assert_near(y, expected, 1e-12, "value")
            found = torch.autograd.grad(y, tensors, outer_of(y))
            right = torch.autograd.grad(expected, tensors, outer_of(y))
            for argument, a, b in zip(NAMES[op], found, right, strict=True):
                assert_near(a, b, 1e-12, f"gradient of {argument}")
            assert compiled == passes(op)
            compiled.clear()
        assert counter.frame_count <= 2

    def test_of_fake_tensors(self, compiled, op):
        name, tensors = case(op, (3, 50))
        expected = primitive(reference, name)(*tensors)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = [mode.from_tensor(x) for x in tensors]
            y = on("cpp", name)(*fake)
            grads = torch.autograd.grad(y.sum(), fake)
            of_real = on("cpp", name)(*(x.detach() for x in tensors))
        assert type(of_real) is type(y) is FakeTensor
        assert of_real.shape == y.shape == expected.shape
        assert [g.shape for g in grads] == [x.shape for x in tensors]
        assert not compiled

    def test_traced_operators_are_the_same_on_other_numbers(self, op):
        name, tensors = case(op, 50)
        values = [x.detach() for x in tensors]

        def function(*values):
            return primitive(kernels, name)(*values)

        traced = make_fx(function)(*values)
        others = [2 * x for x in values]
        assert_near(traced(*others), on("cpp", name)(*others), 1e-12, "value")

    @pytest.mark.parametrize("fault", ["shifted rows", "gradient of the wrong row"])
    def test_sees_a_fault(self, op, fault):
        name, tensors = case(op)
        message = "value: error"

        def faulty(x, *rest):
            return on("cpp", name)(x, *rest).roll(1, dims=-2)

        if fault == "gradient of the wrong row":
            message = "gradient of x: error"

            def faulty(x, *rest):
                x = x.view_as(x)
                x.register_hook(lambda grad: grad.roll(1, dims=-2))
                return on("cpp", name)(x, *rest)

        with pytest.raises(AssertionError, match=message):
            assert_parity(faulty, name, tensors, torch.float64)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("op", OPS)
def test_sums_over_very_many_rows_keep_their_digits(op, threads):
    # One running sum of float32 over all rows would be some 1e-4 off.
    def found(dtype):
        name, tensors = case(op, 10**5, NARROW, torch.float32)
        weights = [x.to(dtype).detach().requires_grad_() for x in tensors]
        y = getattr(kernels, name)(*arguments(op, weights), backend="cpp")
        ys = [y] if isinstance(y, torch.Tensor) else list(y)
        return torch.autograd.grad(ys, weights, [torch.full_like(y, 0.1) for y in ys])

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pairs = zip(NAMES[op], found(torch.float32), found(torch.float64), strict=True)
        errors = {name: float((a - b).abs().max() / b.abs().max()) for name, a, b in pairs}
    finally:
        torch.set_num_threads(before)
    assert max(errors.values()) < 2e-6, errors


def arguments(op, tensors):
    """What the primitive takes, weights with their biases."""
    if op == "linear_pair":
        return tensors
    x, first, first_bias, last, last_bias, *extra = tensors
    return [x, (first, first_bias), (last, last_bias), *extra]


def test_one_result_of_a_pair_may_go_unused(compiled):
    _, tensors = case("linear_pair")
    for i in range(2):
        right = torch.autograd.grad(
            reference.linear_pair(*tensors)[i].square().sum(), tensors, materialize_grads=True
        )
        for how in ({}, {"create_graph": True}):
            y = kernels.linear_pair(*tensors, backend="cpp")[i]
            found = torch.autograd.grad(y.square().sum(), tensors, **how)
            for argument, a, b in zip(NAMES["linear_pair"], found, right, strict=True):
                assert_near(a, b, 1e-12, f"gradient of {argument}")
    assert compiled.count("pair_backward_float64") == 2


class TestBadInput:
    def rejects(self, op, error, message, **changes):
        name, tensors = case(op, (3, 5), NARROW)
        given = dict(zip(NAMES[op], tensors, strict=True))
        assert changes.keys() <= given.keys()
        for backend in ("auto", "cpp", "native", "reference"):
            with pytest.raises(error, match=message):
                primitive(kernels, name)(*(given | changes).values(), backend=backend)

    @pytest.mark.parametrize(
        ("op", "name", "change", "message"),
        [
            ("row_mlp", "x", lambda x: x[0, 0], r"x must be \[\.\.\., r, in\]; got \[\d+\]"),
            ("row_mlp", "x", lambda x: x[0, 0, 0], r"x must be \[\.\.\., r, in\]; got \[\]"),
            ("row_mlp", "x", lambda x: x[..., 1:], r"first must be \[1, \d+, out\]; got \[1"),
            (
                "row_mlp",
                "first",
                lambda x: x[0],
                r"first must be .*; got \[\d+, \d+\]",
            ),
            ("row_mlp", "first", lambda x: x.expand(2, -1, -1), r"first must be .*; got \[2, "),
            (
                "row_mlp",
                "first_bias",
                lambda x: x[0],
                r"bias of first must be .*; got \[\d+\]",
            ),
            ("row_mlp", "last", lambda x: x[:, 1:], r"last must be \[1, \d+, out\]; got \[1, "),
            ("row_mlp", "last_bias", lambda x: x[:, 1:], r"bias of last must be \[1, \d+\]; got"),
            ("row_mlp extra", "extra", lambda x: x[:1], r"rows of x, \[3, 5\]; got \[1, 5, "),
            ("row_mlp extra", "extra", lambda x: x[0], r"rows of x, \[3, 5\]; got \[5, "),
            ("row_mlp extra", "extra", lambda x: x[0, 0, 0], r"rows of x, \[3, 5\]; got \[\]"),
            ("row_mlp extra", "extra", lambda x: x[..., 1:], r"first must be \[1, \d+, out\]"),
            ("linear_pair", "x", lambda x: x[0, 0], r"x must be \[\.\.\., r, in\]; got \[\d+\]"),
            ("linear_pair", "x", lambda x: x[..., 1:], r"weight must be \[1, \d+, out\]; got"),
            ("linear_pair", "weight", lambda x: x[0], r"weight must be .*; got \[\d+, \d+\]"),
            ("linear_pair", "bias", lambda x: x[0], r"bias of weight must be .*; got \[\d+\]"),
            ("linear_pair", "other", lambda x: x[..., 1:], r"other must be \[1, \d+, \d+\]; got"),
        ],
    )
    def test_of_shapes(self, op, name, change, message):
        tensors = dict(zip(NAMES[op], case(op, (3, 5), NARROW)[1], strict=True))
        self.rejects(op, ValueError, message, **{name: change(tensors[name])})

    @pytest.mark.parametrize("op", OPS)
    def test_of_rows_of_whole_numbers(self, op):
        x = case(op, (3, 5), NARROW)[1][0].detach().long()
        self.rejects(op, TypeError, "x must be floating point; got torch.int64", x=x)

    @pytest.mark.parametrize(("op", "name"), [(op, n) for op in OPS for n in NAMES[op][1:]])
    def test_of_mixed_types_and_devices(self, op, name):
        tensors = dict(zip(NAMES[op], case(op, (3, 5), NARROW)[1], strict=True))
        said = f"the bias of {name[:-5]}" if name.endswith("_bias") else name
        message = f"{said} must have the type of x, torch.float64; got torch.float32"
        self.rejects(op, TypeError, message, **{name: tensors[name].detach().float()})
        message = f"{said} is on meta but x on cpu; move one of them"
        self.rejects(op, ValueError, message, **{name: tensors[name].detach().to("meta")})

    @pytest.mark.parametrize("op", OPS)
    def test_of_rows_elsewhere(self, op):
        x = case(op, (3, 5), NARROW)[1][0].detach().to("meta")
        self.rejects(op, ValueError, "is on cpu but x on meta; move one of them", x=x)


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_weight_that_is_no_matrix_is_named(place):
    x, maps = (
        torch.ones(3, 4),
        {n: (torch.ones(1, 4, 4), torch.ones(1, 4)) for n in ("first", "last")},
    )
    maps[place] = torch.tensor(1.0), torch.ones(1, 4)
    with pytest.raises(ValueError, match=rf"{place} must be \[1, 4, out\]; got \[\]"):
        kernels.row_mlp(x, maps["first"], maps["last"])
