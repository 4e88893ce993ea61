"""Activations other than SiLU, and nodes that stay: ``act=`` and ``update_pos=``."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsym import PermutationGroup, Representation
from gsym.check import assert_equivariant, equivariance_error
from gsym.errors import GroupError
from gsym.nn import EGNN, EGNNConv, Penguin, PenguinConv
from gsym.nn._activations import on_rows

N, D, H = 5, 3, 5  # as many nodes as channels: an activation with weights may take one for another
EDGES = torch.tensor([[0, 1, 2, 3, 4, 1], [1, 2, 0, 4, 4, 0]])
CYCLE = PermutationGroup.from_cycles(N, [(0, 1, 2)], [(3, 4)])
ALL = [EGNNConv, EGNN, PenguinConv, Penguin]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def silu(x: Tensor) -> Tensor:
    return F.silu(x)


def randomised(layer: nn.Module) -> nn.Module:
    layer.double()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(std=0.5)
    return layer


def inputs(dtype: torch.dtype = torch.float64, channels: int = 2) -> tuple[Tensor, ...]:
    return torch.randn(2, N, channels, dtype=dtype), torch.randn(2, N, D, dtype=dtype), EDGES


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], rtol: float = 0.0) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)


def gradients(layer: nn.Module, *args: Tensor) -> dict[str, Tensor]:
    layer.zero_grad()
    y, pos = layer(*args)
    (y.square().sum() + pos.sin().sum()).backward()
    return {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


# SiLU


@pytest.mark.parametrize("act", ["SiLU", "swish", "Si-LU", nn.SiLU(), nn.SiLU(True), F.silu])
def test_every_spelling_of_silu_is_the_fused_default(act):
    plain, conv = EGNNConv(16, 16, 16), EGNNConv(16, 16, 16, act=act)
    conv.load_state_dict(plain.state_dict())
    assert conv.edges.may_be_read() and conv.update.may_be_read()
    args = inputs(torch.float32, 16)
    for one, other in zip(conv(*args), plain(*args), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{}, {"alpha": "edge"}, {"alpha": "node"}])
def test_a_function_equal_to_silu_gives_what_the_fused_default_gives(options):
    cls = PenguinConv if options else EGNNConv
    options |= {"group": CYCLE, "attention": True, "tanh": True, "clamp": 0.7}
    plain, conv = (randomised(cls(2, 2, H, act=act, **options)) for act in ("silu", silu))
    conv.load_state_dict(plain.state_dict())
    parts = [conv.edges, conv.update] if cls is EGNNConv else [conv.free.edges, conv.free.move]
    assert not any(part.may_be_read() for part in parts)
    args = inputs()
    same(conv(*args), plain(*args), 1e-12)
    found, known = gradients(conv, *args), gradients(plain, *args)
    assert found.keys() == known.keys() == dict(conv.named_parameters()).keys()
    for name, grad in known.items():
        assert grad.norm() > 1e-6, name
        torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-10)


def test_another_activation_gives_something_else():
    plain, conv = (randomised(EGNNConv(2, 2, H, act=act)) for act in ("silu", "gelu"))
    conv.load_state_dict(plain.state_dict())
    args = inputs()
    for one, other in zip(conv(*args), plain(*args), strict=True):
        assert (one - other).norm() > 1e-3


# Weights of an activation


def prelu(x: Tensor, slopes: Tensor) -> Tensor:
    return torch.where(x > 0, x, slopes * x)


@pytest.mark.parametrize("cls", ALL)
def test_slopes_belong_to_channels_and_not_to_nodes(cls):
    layer = randomised(cls(2, 2, H, act=nn.PReLU(H), group=CYCLE))
    slopes = next(p for name, p in layer.named_parameters() if name.endswith("act.weight"))
    twin = randomised(cls(2, 2, H, act=lambda x: prelu(x, slopes), group=CYCLE))
    state = {name: v for name, v in layer.state_dict().items() if ".act." not in name}
    twin.load_state_dict(state)
    args = inputs()
    same(layer(*args), twin(*args), 1e-12)
    assert layer(args[0][0], args[1][0], EDGES)[0].shape == (N, 2)


def test_a_module_is_shared_by_all_layers_and_a_name_is_not():
    def slopes(net: nn.Module) -> int:
        return sum(name.endswith("act.weight") for name, _ in net.named_parameters())

    given = nn.PReLU(init=0.1)
    net = EGNN(2, 2, H, 3, act=given)
    assert slopes(net) == 1 and net.convs[2].update.act is given
    assert slopes(EGNN(2, 2, H, 3, act="prelu")) == 3
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert slopes(twin) == 1 and twin.convs[0].edges.act is twin.convs[2].update.act


def test_a_module_keeps_its_values_and_a_name_is_drawn_anew():
    given, named = nn.PReLU(init=0.1), EGNN(2, 2, H, 2, act="prelu")
    with torch.no_grad():
        given.weight.fill_(7)
        named.convs[1].edges.act.weight.fill_(7)
    EGNN(2, 2, H, 2, act=given).reset_parameters()
    named.reset_parameters()
    assert float(given.weight.detach()) == 7
    assert float(named.convs[1].edges.act.weight.detach()) == 0.25


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cast", [False, True], ids=["cast", "autocast"])
def test_half_precision(dtype, cast):
    layer = EGNNConv(2, 2, H, act="prelu")
    args = inputs(torch.float32)
    expected = layer(*args)
    if cast:
        with torch.autocast("cpu", dtype):
            found = layer(*args)
    else:
        found = layer.to(dtype)(args[0].to(dtype), args[1].to(dtype), EDGES)
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other).norm() < 5e-2 * other.norm()


# Nodes that stay


def test_nodes_stay_and_all_that_moved_them_is_left_out():
    def count(layer: nn.Module) -> int:
        return sum(p.numel() for p in layer.parameters())

    moving, fixed = (EGNNConv(64, 64, 64, edge_dim=2, update_pos=u) for u in (True, False))
    assert count(moving) - count(fixed) == 4_224  # what the published network spends on moves
    for layer in (randomised(EGNNConv(2, 2, H, update_pos=False)), EGNN(2, 2, H, update_pos=False)):
        x, pos, edges = inputs(next(layer.parameters()).dtype)
        assert torch.equal(layer(x, pos, edges)[1], pos)
        stacked = layer(x.flatten(0, 1), pos.flatten(0, 1), edges, batch_size=2)
        same(stacked, tuple(v.flatten(0, 1) for v in layer(x, pos, edges)), 1e-6)


@pytest.mark.parametrize("update_pos", [True, False])
def test_without_moves_a_loss_of_features_reaches_all_weights(update_pos):
    conv = EGNNConv(2, 2, H, update_pos=update_pos)
    conv(*inputs(torch.float32))[0].square().sum().backward()
    silent = {name for name, p in conv.named_parameters() if p.grad is None or not p.grad.any()}
    known = {"edges.coord.weight", "edges.coord.bias", "edges.coord_last.weight"}
    assert silent == (known if update_pos else set())


@pytest.mark.parametrize("update_pos", [True, False])
def test_the_state_of_the_other_kind_is_refused_by_name(update_pos):
    saved, other = (EGNNConv(2, 2, H, update_pos=u) for u in (update_pos, not update_pos))
    kind = "Unexpected" if update_pos else "Missing"
    with pytest.raises(RuntimeError, match=rf'{kind} key.*"edges\.coord\.weight"'):
        other.load_state_dict(saved.state_dict())
    other.load_state_dict(saved.state_dict(), strict=False)
    assert torch.equal(other.edges.second.weight, saved.edges.second.weight)


def test_the_state_of_an_activation_with_weights():
    file, net = io.BytesIO(), randomised(EGNN(2, 2, H, 2, act="prelu", update_pos=False))
    torch.save(net.state_dict(), file)
    file.seek(0)
    again = EGNN(2, 2, H, 2, act="prelu", update_pos=False).double()
    again.load_state_dict(torch.load(file, weights_only=True))
    args = inputs()
    same(again(*args), net(*args))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*edges\.act\.weight"):
        EGNN(2, 2, H, 2, update_pos=False).load_state_dict(net.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*edges\.act\.weight"):
        net.load_state_dict(EGNN(2, 2, H, 2, update_pos=False).state_dict())


def test_export():
    layer = randomised(EGNN(2, 2, H, 1, act="gelu", update_pos=False, group=CYCLE))
    args = inputs()
    expected = layer(*args)
    same(torch.export.export(layer, args).module()(*args), expected, 1e-12)


# Groups that move channels

TURN = PermutationGroup.from_cycles(3, [(0, 1, 2)])
CHANNELS = Representation.from_permutation(TURN, [[1, 2, 0]])
RING = torch.tensor([[0, 1, 2], [1, 2, 0]])


def on_ring(cls: type[nn.Module], **options):
    reps = {"in_rep": CHANNELS, "out_rep": CHANNELS}
    layer = randomised(cls(3, 3, 6, group=TURN, **reps, **options))
    places = Representation.trivial(TURN, D)
    both = {"in_rep": CHANNELS + places, "out_rep": CHANNELS + places}
    return layer, lambda z: torch.cat(layer(z[..., :3], z[..., 3:], RING), dim=-1), both


@pytest.mark.parametrize("cls", ALL)
def test_a_three_cycle_moves_nodes_and_channels(cls):
    options = {} if cls in (PenguinConv, Penguin) else {"update_pos": False}
    layer, f, reps = on_ring(cls, act="prelu", **options)
    z = torch.randn(2, 3, 3 + D, dtype=torch.float64)
    assert_equivariant(f, TURN, z, **reps, tolerance=1e-12)
    assert equivariance_error(f, TURN, z) > 1e-3  # channels that stay
    # One slope for each channel, which nobody refuses when it comes later.
    slopes = nn.PReLU(6).double()
    with torch.no_grad():
        slopes.weight.normal_()
    for part in layer.modules():
        if getattr(part, "act", None) is not None:
            part.act = slopes
    assert equivariance_error(f, TURN, z, **reps) > 1e-3


@pytest.mark.parametrize("cls", ALL)
def test_what_treats_exchanged_channels_apart_is_refused(cls):
    with pytest.raises(
        GroupError, match=r"PReLU\(num_parameters=6\) treats each by weights of its"
    ):
        on_ring(cls, act=nn.PReLU(6))
    on_ring(cls, act=nn.PReLU(6), hidden="trivial")
    signs = Representation.from_signs(PermutationGroup.from_cycles(3, [(0, 1)]), [[-1, 1]])
    with pytest.raises(GroupError, match=r"pass through act=Tanh\(\), which.*change their signs"):
        cls(2, 2, 2, group=signs.group, hidden=signs, act=nn.Tanh())


# What is refused


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        ("rellu", ValueError, "such as 'relu' or 'gelu', a function or a module; got 'rellu'"),
        ("threshold", ValueError, "act='threshold' needs arguments of its own; give the module"),
        ("glu", ValueError, r"map \[r, 8\].*act='glu' gives torch.float32 \[2, 4\]"),
        (nn.ReLU, TypeError, r"got <class.*; build it first: ReLU\(\)"),
        (None, TypeError, r"torch\.nn\.Identity\(\) for none; got None"),
        (3, TypeError, "a function or a module.*got 3"),
        (nn.Linear(8, 4), ValueError, r"to the same shape; .* \[2, 4\]"),
        (nn.Linear(4, 8), ValueError, "act=Linear.* fails: mat1 and mat2"),
        (lambda x: x > 0, ValueError, r"gives torch\.bool \[2, 8\]"),
        (lambda x: None, ValueError, "gives NoneType"),
    ],
)
def test_activations_that_are_none(cls, act, error, message):
    with pytest.raises(error, match=message):
        cls(2, 2, 8, act=act)


def test_running_statistics_do_not_see_the_trial():
    norm = nn.BatchNorm1d(8)
    EGNN(2, 2, 8, 2, act=nn.Sequential(norm, nn.ReLU()))
    assert norm.num_batches_tracked == 0 and torch.equal(norm.running_var, torch.ones(8))


def test_an_activation_is_tried_without_a_trace():
    act = nn.RReLU()  # draws random numbers
    before = torch.get_rng_state()
    on_rows(act, torch.zeros(2, 3))
    assert not torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    first = EGNNConv(2, 2, 8).update.last.weight
    torch.manual_seed(0)
    assert torch.equal(EGNNConv(2, 2, 8, act=act).update.last.weight, first)


@pytest.mark.parametrize("cls", [EGNNConv, EGNN])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"velocity": True}, "velocity of a layer says how nodes move, and update_pos=False"),
        ({"normalize": True, "clamp": 1.0}, "normalize and clamp of a layer"),
        ({"tanh": True}, "tanh of a layer"),
        ({"coord_aggr": "sum"}, "coord_aggr of a layer"),
    ],
)
def test_options_of_moves_without_moves(cls, options, message):
    cls(2, 2, 8, **options)
    with pytest.raises(ValueError, match=message):
        cls(2, 2, 8, update_pos=False, **options)


@pytest.mark.parametrize("value", [None, 0, 1, "no"])
def test_update_pos_is_true_or_false(value):
    for cls in (EGNNConv, EGNN):
        with pytest.raises(TypeError, match=f"update_pos must be True or False; got {value!r}"):
            cls(2, 2, 8, update_pos=value)
