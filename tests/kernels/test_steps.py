"""A whole step of EGNN as one operator, against its parts on the back-end ``reference``."""

import pytest
import torch
from torch.autograd import gradgradcheck
from torch.func import functional_call

from gsym import kernels
from gsym.kernels import Segments, steps
from gsym.kernels.cpp import library
from gsym.kernels.cpp import steps as cpp_steps
from gsym.kernels.edges import EdgeOptions
from gsym.nn import EGNNConv

pytestmark = pytest.mark.skipif(not library.is_usable(), reason="no C++")

VARIANTS = {
    "plain": {},
    "sum": {"mean": False},
    "attributes": {"attr": True},
    "gate": {"gate": True},
    "normalize": {"normalize": True},
    "tanh": {"tanh": True},
    "clamp": {"clamp": 0.3},
    "all": {"attr": True, "gate": True, "normalize": True, "tanh": True, "clamp": 0.3},
}
PASSES = [f"{part}_{way}" for way, parts in (
    ("forward", ("pair", "edges", "mlp")), ("backward", ("mlp", "edges", "pair"))
) for part in parts]  # fmt: skip
EVERYTHING, NOTHING = 2**30, 0


def lanes(dtype):
    return library.library().gsym_vector_bytes() // dtype.itemsize


def graph():
    """A 3-cycle, a loop, an edge that comes twice, and a node that receives nothing."""
    receiver = torch.tensor([0, 1, 2, 2, 3, 3, 3])
    return Segments(torch.tensor([2, 0, 1, 2, 0, 0, 4]), 5), Segments(receiver, 5)


def case(dtype=torch.float64, batch=(20,), attr=False, gate=False, residual=True, **options):
    """All arguments of a step, whose edges fill more than one block; every tensor is a leaf."""
    rng = torch.Generator().manual_seed(0)
    source, segments = graph()
    wide, h, d, a = 2 * lanes(dtype), lanes(dtype), 3, 2
    out = wide if residual else 3 * lanes(dtype)
    n, e = segments.num_segments, segments.index.numel()
    shapes = {"x": (*batch, n, wide), "pos": (*batch, n, d)}
    shapes |= {"target": (1, wide, h), "target_bias": (1, h), "source": (1, wide, h)}
    shapes |= {"weight": (h, h), "bias": (h,), "distance": (h,)}
    shapes |= {"coord": (h, h), "coord_bias": (h,), "coord_last": (1, h)}
    if attr:
        shapes |= {"attr": (*batch, e, a), "attr_weight": (h, a)}
    if gate:
        shapes |= {"gate": (1, h), "gate_bias": (1,)}
    shapes |= {"first": (1, wide + h, h), "first_bias": (1, h)}
    shapes |= {"last": (1, h, out), "last_bias": (1, out)}
    tensors = {
        name: (0.5 * torch.randn(s, dtype=torch.float64, generator=rng)).to(dtype).requires_grad_()
        for name, s in shapes.items()
    }
    return tensors, source, segments, EdgeOptions(**options), residual


def results(arguments, backend="cpp", which=(0, 1)):
    """Features, coordinates and the gradient of every tensor, by name."""
    tensors, *rest = arguments
    with kernels.backend(backend):
        found = steps.egnn_step(tensors, *rest)
        chosen = [found[i] for i in which]
        rng = torch.Generator().manual_seed(1)
        outer = [torch.randn(y.shape, dtype=torch.float64, generator=rng) for y in chosen]
        outer = [w.to(y.dtype) for w, y in zip(outer, chosen, strict=True)]
        grads = torch.autograd.grad(chosen, tensors.values(), outer, materialize_grads=True)
    named = dict(zip(tensors, grads, strict=True))
    return {"new x": found[0].detach(), "new pos": found[1].detach(), **named}


def exact(arguments):
    tensors, *rest = arguments
    return {name: x.detach().double().requires_grad_() for name, x in tensors.items()}, *rest


def assert_parity(arguments, which=(0, 1)):
    found, right = results(arguments, which=which), results(exact(arguments), "reference", which)
    allowed = 1e-12 if arguments[0]["x"].dtype == torch.float64 else 1e-4
    for name, value in right.items():
        assert found[name].shape == value.shape, name
        error = float((found[name].double() - value).abs().max())
        assert error <= allowed * max(float(value.abs().max()), 1e-3), f"{name}: {error:.2e}"


@pytest.fixture
def compiled(monkeypatch):
    """The compiled functions that ran, in order, without their types."""
    ran, call = [], cpp_steps.call

    def record(name, *args):
        ran.append("_".join(name.split("_")[:2]))
        call(name, *args)

    monkeypatch.setattr(cpp_steps, "call", record)
    return ran


class TestParity:
    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("limit", [EVERYTHING, NOTHING], ids=["stored", "recomputed"])
    def test_of_values_and_gradients(self, monkeypatch, compiled, variant, limit):
        monkeypatch.setattr(steps, "STORED", limit)
        assert_parity(case(**VARIANTS[variant]))
        assert compiled == PASSES

    @pytest.mark.parametrize("batch", [(), (1,), (2, 3)], ids=str)
    def test_of_layouts(self, compiled, batch):
        assert_parity(case(batch=batch, attr=True))
        assert compiled == PASSES

    def test_of_attributes_that_samples_share(self, compiled):
        tensors, *rest = case(attr=True)
        tensors["attr"] = tensors["attr"][0].detach().requires_grad_()
        assert_parity((tensors, *rest))
        assert compiled == PASSES

    def test_without_residual(self, compiled):
        assert_parity(case(residual=False))
        assert compiled == PASSES

    @pytest.mark.parametrize("limit", [EVERYTHING, NOTHING], ids=["stored", "recomputed"])
    def test_of_float32(self, monkeypatch, compiled, limit):
        monkeypatch.setattr(steps, "STORED", limit)
        assert_parity(case(torch.float32, **VARIANTS["all"] | {"clamp": None}))
        assert compiled == PASSES

    @pytest.mark.parametrize("one", [0, 1], ids=["features", "coordinates"])
    def test_of_one_result_alone(self, compiled, one):
        assert_parity(case(), which=(one,))
        assert compiled == PASSES

    def test_of_rows_that_are_not_contiguous(self, compiled):
        tensors, *rest = case()
        for name in ("x", "weight", "first"):
            turned = tensors[name].detach().transpose(-1, -2).contiguous()
            tensors[name] = turned.transpose(-1, -2).requires_grad_()
        assert_parity((tensors, *rest))
        assert compiled == PASSES


class TestWhatIsLeftToItsParts:
    def test_widths_of_no_whole_vectors(self, compiled):
        torch.manual_seed(0)
        conv = EGNNConv(3, 3, 5).double()
        conv(*signal(3), torch.tensor([[0, 1, 2], [1, 2, 0]]))
        assert not compiled

    def test_nodes_without_edges(self, compiled):
        torch.manual_seed(0)
        conv = EGNNConv(16, 16, 16).double()
        x, pos = signal(16)
        y, moved = conv(x, pos, torch.empty(2, 0, dtype=torch.int64))
        torch.testing.assert_close(moved, pos)
        torch.testing.assert_close(y, x + conv.update(x, x.new_zeros(*x.shape[:-1], 16)))
        assert not compiled

    @pytest.mark.parametrize("part", ["edges", "edges.second", "update", "update.last"])
    def test_maps_that_somebody_listens_to(self, compiled, part):
        torch.manual_seed(0)
        conv, edge_index = EGNNConv(16, 16, 16).double(), torch.tensor([[0, 1, 2], [1, 2, 0]])
        given, heard = signal(16), []
        expected = conv(*given, edge_index)
        assert len(compiled) == 3
        conv.get_submodule(part).register_forward_hook(lambda *_: heard.append(part))
        torch.testing.assert_close(conv(*given, edge_index), expected)
        assert heard == [part]
        assert len(compiled) == 3

    def test_weights_of_a_wrong_shape(self, compiled):
        tensors, *rest = case()
        tensors["first_bias"] = torch.zeros(1, 3, dtype=torch.float64)
        with pytest.raises(ValueError, match="3"):
            steps.egnn_step(tensors, *rest)
        assert not compiled


def signal(channels):
    return torch.randn(4, 3, channels).double(), torch.randn(4, 3, 3).double()


def operands(arguments):
    """What the operator takes, which shall keep all that it can."""
    tensors, source, segments, options, residual = arguments
    tables = [getattr(s, n) for s in (segments, source) for n in ("index", "order", "pointers")]
    return list(tensors.values()), " ".join(tensors), tables, *options, residual, True, "cpp"


def test_the_operators_pass_opcheck():
    tensors, *rest = operands(case(batch=(2,), attr=True, gate=True))
    plain = [x.detach() for x in tensors]
    y, pos, kept = steps.stepped(plain, *rest)
    grads = torch.ones_like(y), torch.ones_like(pos)
    torch.library.opcheck(steps.stepped_grads.registered, (*grads, plain, kept, *rest))
    torch.library.opcheck(steps.stepped.registered, (tensors, *rest))


def test_two_derivatives():
    tensors, *rest = case(batch=(1,), attr=True, gate=True)
    names = list(tensors)

    def function(*values):
        return steps.egnn_step(dict(zip(names, values, strict=True)), *rest)

    assert gradgradcheck(function, tuple(tensors.values()), fast_mode=True)


def test_gradients_of_a_batch():
    tensors, *rest = case(batch=(2,))
    y, pos = steps.egnn_step(tensors, *rest)
    outer = torch.randn(3, *y.shape).double(), torch.randn(3, *pos.shape).double()
    given = list(tensors.values())
    found = torch.autograd.grad((y, pos), given, outer, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        right = torch.autograd.grad((y, pos), given, [o[i] for o in outer], retain_graph=True)
        for name, many, one in zip(tensors, found, right, strict=True):
            torch.testing.assert_close(many[i], one, msg=name)


def test_transforms_of_the_layer():
    torch.manual_seed(0)
    conv, edge_index = EGNNConv(16, 16, 16).double(), torch.tensor([[0, 1, 2], [1, 2, 0]])
    x, pos = signal(16)
    expected = conv(x, pos, edge_index)
    weights = dict(conv.named_parameters())
    torch.testing.assert_close(functional_call(conv, weights, (x, pos, edge_index)), expected)
    found = torch.func.vmap(lambda x, pos: conv(x, pos, edge_index))(x, pos)
    torch.testing.assert_close(found, expected)


def test_results_are_the_same_bits_each_time():
    first, second = (results(case(torch.float32, attr=True)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_more_is_kept_than_the_limit(monkeypatch):
    """Beyond it the gradient is left with both projections and the sums of messages."""
    arguments = case()
    tensors, source, *_ = arguments
    rows, h = tensors["x"].shape[:-1].numel(), tensors["weight"].size(0)
    edges = tensors["x"].size(0) * source.index.numel()
    number = tensors["x"].element_size()
    stored, run = [], steps.stepped.eager

    def record(*args):
        stored.append(run(*args))
        return stored[-1]

    monkeypatch.setattr(steps.stepped, "eager", record)
    limit = (rows + 2 * edges) * h * number
    for bytes_, expected in ((limit, 4 * rows + 2 * edges), (limit - 1, 3 * rows)):
        monkeypatch.setattr(steps, "STORED", bytes_)
        steps.egnn_step(*arguments)
        assert stored[-1][-1].numel() == expected * h


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_backward_within_autocast_of_some_results(which):
    tensors, *rest = case(torch.float32)

    def grads(enabled):
        found = steps.egnn_step(tensors, *rest)
        loss = sum(found[i].square().sum() for i in which)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            return torch.autograd.grad(loss, tensors.values(), materialize_grads=True)

    for got, known in zip(grads(True), grads(False), strict=True):
        assert torch.equal(got, known)


@pytest.mark.parametrize("out", [8, 64])
def test_a_residual_needs_one_width(out):
    conv = EGNNConv(32, out, hidden_channels=16)
    conv.residual = True
    edges = torch.stack([torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2])])
    with pytest.raises(ValueError, match=f"as many channels out as in; got 32 and {out}"):
        conv(torch.randn(3, 32), torch.randn(3, 3), edges)
