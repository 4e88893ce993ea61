"""Half precision over magnitudes: sums, norms and their derivatives against float64.

What is compared with is the definition in float64, of the same rounded numbers. Whatever fits
the type must come out, though sums on the way do not fit it.
"""

import pytest
import torch
from helpers import define_edges
from kernels.test_edges import call as call_edges
from kernels.test_edges import make_case as make_edge_case

from gsym import kernels
from gsym.kernels import Clusters, Segments, reference

HALVES = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
HUB = 70_001  # one more than float16 counts
both = pytest.mark.parametrize("dtype", HALVES, ids=str)
backends = pytest.mark.parametrize("backend", ["native", "cpp"])


def assert_near(found, expected, allowed, name):
    assert found.isfinite().all(), name
    error = float((found.double() - expected).abs().max())
    assert error <= allowed * max(float(expected.abs().max()), 1e-30), f"{name}: error {error:.1e}"


def assert_twin(function, definition, leaves, dtype, allowed=None):
    """Value, gradient, and gradient of a function of the gradient."""
    allowed = allowed or HALVES[dtype]
    given = [x.to(dtype).requires_grad_() for x in leaves]
    exact = [x.detach().double().requires_grad_() for x in given]
    y, right = function(*given), definition(*exact)
    assert y.dtype == dtype
    assert_near(y, right, allowed, "value")
    outer = torch.linspace(0.5, 1, y.numel()).view(y.shape).to(dtype)
    for create_graph in (False, True):
        found = torch.autograd.grad(y, given, outer, retain_graph=True, create_graph=create_graph)
        wanted = torch.autograd.grad(right, exact, outer.double(), create_graph=True)
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            assert_near(a.detach(), b.detach(), 2 * allowed, f"gradient {i}, {create_graph}")


@both
@backends
class TestHubs:
    """Seventy thousand rows in one segment."""

    def make(self, scale=3.0):
        torch.manual_seed(0)
        index = torch.zeros(HUB, dtype=torch.int64)
        index[1::7] = 1
        return Segments(index, 3), scale * (1 + torch.rand(HUB, 1))

    def test_mean(self, dtype, backend):
        segments, x = self.make()
        assert_twin(
            lambda x: kernels.segment_mean(x, segments, backend=backend),
            lambda x: reference.segment_mean(x, segments),
            [x],
            dtype,
        )

    def test_sum_of_what_cancels(self, dtype, backend):
        segments, x = self.make(30_000.0)
        order = segments.order.long()
        x[order[1::2]] = -x[order[:-1:2]]
        assert_twin(
            lambda x: kernels.segment_sum(x, segments, backend=backend),
            lambda x: reference.segment_sum(x, segments),
            [x],
            dtype,
        )

    def test_ties(self, dtype, backend):
        segments, _ = self.make()
        x = torch.ones(HUB, 1, dtype=dtype, requires_grad=True)
        y = kernels.segment_max(x, segments, backend=backend)
        outer = torch.full_like(y, 60_000.0).requires_grad_()
        (found,) = torch.autograd.grad(y, x, outer, create_graph=True)
        counts = segments.pointers.diff().double()
        expected = (60_000 / counts)[segments.index.long()][:, None]
        assert_near(found.detach(), expected, HALVES[dtype], "share")
        (mean,) = torch.autograd.grad(found, outer, torch.full_like(found, 5.0))
        assert_near(mean[:2], torch.full((2, 1), 5.0).double(), HALVES[dtype], "mean of shares")

    def test_shares_in_float32(self, dtype, backend):
        target = Segments(torch.zeros(HUB, dtype=torch.int64), 2)
        source = Segments(torch.arange(HUB), HUB)
        weight = torch.full((HUB,), 1 / HUB)
        x = torch.full((HUB, 2), 3.0, dtype=dtype, requires_grad=True)
        y = kernels.gather_segment_sum(x, source, target, weight, backend=backend)
        assert y.dtype == dtype
        assert_near(y.detach()[:1], torch.full((1, 2), 3.0).double(), HALVES[dtype], "mean")
        (grad,) = torch.autograd.grad(y, x, torch.full_like(y, 1000.0))
        expected = torch.full((HUB, 2), 1000 / HUB, dtype=torch.float64)
        assert_near(grad, expected, HALVES[dtype], "gradient")

    def test_clusters(self, dtype, backend):
        index = torch.zeros(HUB, dtype=torch.int64)
        index[::3] = 1
        clusters = Clusters(index, 2, 2, 2)
        x = 1 + torch.rand(1, HUB, 2)
        weight, matrix, bias = torch.randn(2, 2, 2), torch.randn(4, 4), torch.randn(2, 2)
        given = [t.to(dtype) for t in (x, weight, matrix, bias)]
        leaf = given[0].requires_grad_()
        y = kernels.cluster_linear(*given, clusters, backend=backend)
        exact = [t.detach().double() for t in given]
        right = reference.cluster_linear(*exact, clusters)
        assert_near(y.detach(), right, 2 * HALVES[dtype], "value")
        outer = torch.full_like(y, 2.0)
        exact[0].requires_grad_()
        right = reference.cluster_linear(*exact, clusters)
        (expected,) = torch.autograd.grad(right, exact[0], outer.double())
        for create_graph in (False, True):
            (found,) = torch.autograd.grad(
                y, leaf, outer, create_graph=create_graph, retain_graph=True
            )
            assert_near(found.detach(), expected, 2 * HALVES[dtype], "gradient")


@both
@backends
def test_weights_that_cancel(dtype, backend):
    source, target = Segments(torch.tensor([0, 1, 2]), 3), Segments(torch.tensor([0, 0, 1]), 2)
    x, weight = torch.tensor([[4.0], [4.0], [0.5]]), torch.tensor([40_000.0, -39_000.0, 1.0])
    assert_twin(
        lambda x, w: kernels.gather_segment_sum(x, source, target, w, backend=backend),
        lambda x, w: reference.gather_segment_sum(x, source, target, w),
        [x, weight],
        dtype,
    )


@both
@backends
def test_gradients_of_weights_that_cancel_between_samples(dtype, backend):
    source, target = Segments(torch.tensor([0]), 1), Segments(torch.tensor([0]), 1)
    x = torch.tensor([[[400.0]], [[400.0]]], dtype=dtype)
    weight = torch.ones(1, dtype=dtype, requires_grad=True)
    y = kernels.gather_segment_sum(x, source, target, weight, backend=backend)
    outer = torch.tensor([[[400.0]], [[-399.0]]]).to(dtype)
    (found,) = torch.autograd.grad(y, weight, outer)
    expected = (x.double() * outer.double()).sum().view(1)
    assert_near(found, expected, HALVES[dtype], "gradient")
    own = torch.ones(2, 1, 1, dtype=dtype, requires_grad=True)
    pair = Clusters(torch.tensor([0, 1]), 2, 1, 1)
    zero = torch.zeros(2, 2, dtype=dtype), torch.zeros(2, 1, dtype=dtype)
    x, outer = x.expand(-1, 2, -1), outer.expand(-1, 2, -1)
    y = kernels.cluster_linear(x, own, *zero, pair, backend=backend)
    (found,) = torch.autograd.grad(y, own, outer)
    assert_near(found.flatten(), expected.expand(2), HALVES[dtype], "own weights")


@both
@backends
@pytest.mark.parametrize("variant", ["distances", "moves", "normalize", "clamp"])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4, 6e4])
def test_edges_over_magnitudes(dtype, backend, variant, scale):
    """Coordinates of any size; the weight of the squared distance keeps messages moderate."""
    tables, tensors, options = make_edge_case(variant, "empty segments", "no batch", torch.float32)
    tensors = {name: x.detach() for name, x in tensors.items()}
    unit = tensors["pos"].clamp(-1, 1)
    tensors["pos"] = unit * scale
    tensors["distance"] = tensors["distance"] / max(scale, 1.0) ** 2
    if variant == "moves":
        tensors["coord_last"] = tensors["coord_last"] / 8
    if dtype == torch.float16:  # the smallest number of float16 is 6e-8
        tensors["distance"] = tensors["distance"].abs().clamp(min=6e-8)
    names = list(tensors)

    def run(function, leaves, **more):
        given = dict(zip(names, leaves, strict=True))
        return torch.cat(
            [y.flatten() for y in call_edges(function, tables, given, options, **more)]
        )

    given = [x.to(dtype) for x in tensors.values()]
    exact = [x.double() for x in given]
    right = run(define_edges, exact)
    if right.abs().max() > 6e4:
        pytest.skip("the result itself does not fit float16")
    given, exact = ([x.requires_grad_() for x in part] for part in (given, exact))
    y, right = run(kernels.edge_mlp_sum, given, backend=backend), run(define_edges, exact)
    assert_near(y.detach(), right.detach(), 4 * HALVES[dtype], "value")
    place = names.index("pos")
    outer = torch.linspace(0.5, 1, y.numel()).to(dtype)
    (wanted,) = torch.autograd.grad(right, exact[place], outer.double(), create_graph=True)
    for create_graph in (False, True):
        (found,) = torch.autograd.grad(
            y, given[place], outer, retain_graph=True, create_graph=create_graph
        )
        assert_near(found.detach(), wanted.detach(), 4 * HALVES[dtype], f"gradient {create_graph}")
    again = torch.autograd.grad(found.float().sum(), given, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in again)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@backends
def test_a_far_node_moves_by_the_clamp(dtype, backend):
    """The square of a move beyond all numbers of its type, or of float32."""
    far = {torch.float16: 6e4, torch.bfloat16: 1e18, torch.float32: 1e18, torch.float64: 1e150}
    tables = Segments(torch.tensor([0, 1]), 2), Segments(torch.tensor([1, 0]).sort().values, 2)
    pos = torch.tensor([[0.0, 0.0], [0.6, 0.8]], dtype=torch.float64) * far[dtype]
    tables = Segments(torch.tensor([1]), 2), Segments(torch.tensor([0]), 2)
    zero = torch.zeros(2, 3, dtype=dtype)
    one, row = torch.eye(3, dtype=dtype), torch.ones(3, dtype=dtype)

    def moves(pos):
        _, moved = kernels.edge_mlp_sum(
            *(zero, zero, *tables, one, row),
            pos=pos,
            distance=torch.zeros(3, dtype=dtype),
            coord=(one, row, torch.full((1, 3), 1e4, dtype=dtype)),
            clamp=0.5,
            backend=backend,
        )
        return moved

    pos = pos.to(dtype).requires_grad_()
    expected = torch.tensor([[-0.3, -0.4], [0.0, 0.0]], dtype=torch.float64)
    allowed = HALVES.get(dtype, 1e-5)
    assert_near(moves(pos).detach(), expected, allowed, "moves")
    assert_near(
        torch.func.jvp(moves, (pos.detach(),), (torch.zeros_like(pos),))[0],
        expected,
        allowed,
        "plain",
    )
    for create_graph in (False, True):
        (found,) = torch.autograd.grad(moves(pos)[0, 0], pos, create_graph=create_graph)
        assert found.isfinite().all()


@both
def test_autocast_computes_edges_in_float32(dtype):
    tables, tensors, options = make_edge_case("moves", "63 edges", "batch", torch.float32)
    tensors["pos"] = (tensors["pos"].detach() * 300).requires_grad_()
    tensors["distance"] = (tensors["distance"].detach() / 1e5).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        found = call_edges(kernels.edge_mlp_sum, tables, tensors, options)
    rounded = {n: x.detach().to(dtype) if n != "pos" else x.detach() for n, x in tensors.items()}
    exact = {name: x.double().requires_grad_() for name, x in rounded.items()}
    right = call_edges(define_edges, tables, exact, options)
    for a, b in zip(found, right, strict=True):
        assert_near(a.detach(), b.detach(), 8 * HALVES[dtype], "value")
    wanted = torch.autograd.grad(right[1].sum(), exact["pos"])[0]
    for create_graph in (False, True):
        (grad,) = torch.autograd.grad(
            found[1].sum(), tensors["pos"], retain_graph=True, create_graph=create_graph
        )
        assert_near(grad.detach(), wanted, 8 * HALVES[dtype], f"gradient {create_graph}")
