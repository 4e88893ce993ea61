"""Modules with one planted fault, which the treatment meant for it must reject, and a sound one."""

from __future__ import annotations

import re
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsym.check import TREATMENTS, check_layer, check_module
from gsym.check.treatments import SLOW
from gsym.groups import PermutationGroup
from gsym.nn import OrbitLinear

N = 5
EDGES = torch.tensor([[0, 1, 2, 3, 1], [1, 2, 3, 0, 0]])
OTHER = torch.tensor([[3, 2, 1, 0, 2], [0, 3, 2, 1, 1]])
X = torch.randn(3, N, 4, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """A sound message-passing layer in plain PyTorch; each control spoils one line of it."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def messages(self, x: Tensor) -> Tensor:
        return F.silu(self.message(x))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index[0], edge_index[1]
        sent = self.messages(x.index_select(-2, source)).to(x.dtype)
        return x + self.scale * torch.zeros_like(x).index_add(-2, target, sent)


class Net(nn.Module):
    def __init__(self, layer: type[nn.Module] = Layer) -> None:
        super().__init__()
        self.convs = nn.ModuleList([layer(), layer()])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index)
        return x


class TableInBuffer(Layer):
    """Sorts the nodes by a table that counts as state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.tensor([4, 2, 0, 1, 3]), persistent=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(x, edge_index) + 0.5 * x.index_select(-2, self.table % N)


class TableInState(TableInBuffer):
    """Carries a number in its state that arithmetic destroys."""

    def get_extra_state(self) -> Tensor:
        return torch.tensor([200, 7], dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        if state.tolist() != [200, 7]:
            raise ValueError("the checkpoint belongs to another layer")


class KnownByIdentity(Layer):
    """Keeps what it made of the last graph, known by the tensor alone."""

    def __init__(self) -> None:
        super().__init__()
        self.last = None

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.last is None or self.last[0] is not edge_index:
            self.last = (edge_index, edge_index.clone())
        return super().forward(x, self.last[1])


class KnownByVersion(KnownByIdentity):
    """Knows the tensor by its version as well, which not every write counts."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.last is not None and self.last[2] != edge_index._version:
            self.last = None
        if self.last is None or self.last[0] is not edge_index:
            self.last = (edge_index, edge_index.clone(), edge_index._version)
        return Layer.forward(self, x, self.last[1])


class Racing(Layer):
    """Writes the graph and what was made of it in two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = self.made = torch.zeros(2, 0, dtype=torch.int64)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.graph is None or not torch.equal(self.graph, edge_index):
            self.graph = edge_index.clone()
            time.sleep(1e-3)  # another thread takes its turn
            self.made = edge_index.clone()
        return super().forward(x, self.made)


class AsksItsParameters(Layer):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(x.to(next(self.parameters()).device), edge_index)


class ReadsPastForward(Layer):
    """Uses the weight of a part without calling the part."""

    def messages(self, x: Tensor) -> Tensor:
        return F.silu(F.linear(x, self.message.weight, self.message.bias))


class CallsForShow(Layer):
    """Calls the part, so that its hooks run, and takes the value from its weight all the same."""

    def messages(self, x: Tensor) -> Tensor:
        direct = F.linear(x, self.message.weight, self.message.bias)
        return F.silu(direct + 0 * self.message(x))


class _Spoilt(torch.autograd.Function):
    """The identity with a factor in its gradient, in types below 32 bits."""

    @staticmethod
    def forward(ctx, weight, factor):
        ctx.factor = factor
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


class SpoiltInHalf(Layer):
    """The gradient of one weight, a small part of all, is nothing in half precision."""

    factor = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        low = x.dtype.itemsize < 4 or torch.is_autocast_enabled("cpu")
        shift = _Spoilt.apply(self.shift, self.factor if low else 1.0)
        return super().forward(x, edge_index) + shift / 80


class TwiceInHalf(SpoiltInHalf):
    factor = 2.0


class CachesTheWeight(Layer):
    """Keeps the transposed weight of the first call."""

    def messages(self, x: Tensor) -> Tensor:
        if not hasattr(self, "kept") or self.kept.dtype != x.dtype:
            self.kept = self.message.weight.detach().T.clone()
        return F.silu(x @ self.kept + self.message.bias)


class StepNet(Net):
    """Runs its layers by another method than their call."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv.forward(x, edge_index)
        return x


class _Sum(torch.autograd.Function):
    """A sum over edges without forward mode and without a rule for ``vmap``."""

    @staticmethod
    def forward(ctx, sent, target):
        ctx.save_for_backward(target)
        return sent.new_zeros(*sent.shape[:-2], N, sent.size(-1)).index_add(-2, target, sent)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(-2, ctx.saved_tensors[0]), None


class NoForwardMode(Layer):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        sent = self.messages(x.index_select(-2, edge_index[0]))
        return x + self.scale * _Sum.apply(sent, edge_index[1])


class ForgetsTangents(Layer):
    """Drops the tangent of one path without a word."""

    def messages(self, x: Tensor) -> Tensor:
        if torch.autograd.forward_ad._current_level >= 0:
            x = x.detach()
        return super().messages(x)


class _Pair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, first, second):
        ctx.save_for_backward(first)
        return x.index_select(-2, first).index_select(-2, second)

    @staticmethod
    def backward(ctx, grad):
        (order,) = ctx.saved_tensors
        rank = order.argsort()
        return grad.index_select(-2, rank).index_select(-2, rank), None, None


class OneTensorTwice(Layer):
    """Gives one tensor twice to a function, which the tracer does not take."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        order = torch.tensor([1, 0, 2, 4, 3])
        return super().forward(_Pair.apply(x, order, order), edge_index)


class ReadsValues(Layer):
    """Asks for a value in forward, which breaks the graph of a compiler."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if int(edge_index.max()) >= x.size(-2):
            raise ValueError("edge_index is out of range")
        return super().forward(x, edge_index)


class OverflowingSum(Layer):
    """A mean in float16 by way of a sum that float16 does not hold."""

    def messages(self, x: Tensor) -> Tensor:
        many = super().messages(x).unsqueeze(-1).expand(*x.shape, 1 << 20)
        wide = many.sum(-1) if x.dtype == torch.float64 else many.sum(-1).to(x.dtype)
        return wide / (1 << 20)


class MadeElsewhere(Layer):
    """Makes a table in forward on the default device."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(x, edge_index) * torch.ones(4)


CONTROLS = [
    ("EMA", TableInBuffer, "relative error"),
    ("to_empty", TableInBuffer, "relative error"),
    ("meta device", TableInBuffer, "relative error|meta"),
    ("Module.type", TableInBuffer, "dtype int32 or int64"),
    ("state arithmetic", TableInState, "belongs to another layer"),
    ("graph rewritten", KnownByVersion, r"NumPy memory: relative error"),
    ("threads", Racing, "calls went wrong: relative error"),
    ("DataParallel", AsksItsParameters, "StopIteration"),
    ("pruning", ReadsPastForward, "after a step: relative error"),
    ("spectral_norm by hook", ReadsPastForward, "relative error"),
    ("weight_norm by hook", ReadsPastForward, "after a step: relative error"),
    ("adapters", ReadsPastForward, "has no attribute 'weight'"),
    ("hooks", ReadsPastForward, "never called: expected"),
    ("backward hooks", ReadsPastForward, "never runs"),
    ("backward hooks", CallsForShow, "message returns counts for nothing"),
    *(
        (name, fault, "that of shift is wrong")
        for name in ("float16", "bfloat16", "autocast")
        for fault in (SpoiltInHalf, TwiceInHalf)
    ),
    ("deepcopy", CachesTheWeight, "other weights: relative error"),
    ("swap_tensors", CachesTheWeight, "relative error"),
    ("functional_call", CachesTheWeight, "relative error"),
    ("per-sample gradients", NoForwardMode, "setup_context"),
    ("vmap", NoForwardMode, "setup_context"),
    ("forward mode", ForgetsTangents, "relative error"),
    ("jacrev and jacfwd", NoForwardMode, "setup_context"),
    ("hessian", NoForwardMode, "setup_context"),
    ("compile", ReadsValues, "data-dependent"),
    ("export", ReadsValues, "Could not guard|unbacked|data-dependent|Eq|u0"),
    ("float16", OverflowingSum, "not finite"),
    ("default device", MadeElsewhere, "meta"),
    ("graph rewritten", KnownByIdentity, "relative error"),
    ("compile", OneTensorTwice, "duplicate tensor"),
]


@pytest.mark.parametrize(("name", "fault", "reason"), CONTROLS)
def test_a_planted_fault_is_seen(name, fault, reason):
    with pytest.raises(AssertionError) as caught:
        check_module(lambda: fault(), X, EDGES, other_args=(X, OTHER), treatments=[name])
    failed = [line for line in str(caught.value).splitlines() if line.startswith("FAILED")]
    assert [line.split(": ")[0].split("   ")[1] for line in failed] == [name]
    assert re.search(reason, failed[0]), failed[0]


@pytest.mark.parametrize("name", ["activation checkpointing", "hooks", "FSDP2"])
def test_a_container_that_bypasses_calls_is_seen(name):
    with pytest.raises(AssertionError, match=f"FAILED   {name}"):
        check_module(StepNet, X, EDGES, other_args=(X, OTHER), treatments=[name])


@pytest.mark.parametrize("name", [name for name in TREATMENTS if name not in SLOW])
def test_a_sound_module_passes(name):
    report = check_module(Net, X, EDGES, other_args=(X, OTHER), treatments=[name])
    assert report.passed == [name]
    assert report.errors[name] < 0.06


def test_what_does_not_apply_is_skipped_with_a_reason():
    names = ["graph rewritten", "per-sample gradients", "export (graph constant)"]
    report = check_module(lambda: nn.Linear(4, 2), X[0], treatments=names)
    assert report.passed == []
    assert report.skipped == {
        "graph rewritten": "needs other_args, another graph of the same size",
        "per-sample gradients": "the first argument has no batch axis; give [b, n, c]",
        "export (graph constant)": "takes no integer tensor",
    }


class TestRefusals:
    """What a module cannot do is said, and must end in that error."""

    def test_an_expected_error_is_written_down(self):
        report = check_module(
            NoForwardMode,
            X,
            EDGES,
            treatments=["vmap", "pickle"],
            refuses={"vmap": "setup_context"},
        )
        assert report.passed == ["pickle"]
        assert "autograd.Function with functorch" in report.refused["vmap"]
        assert "refused  vmap: RuntimeError" in str(report)

    @pytest.mark.parametrize(
        ("make", "pattern", "reason"),
        [
            (NoForwardMode, "another message", "setup_context"),
            (Layer, "setup_context", "works, although it was to be refused by 'setup_context'"),
        ],
    )
    def test_another_end_fails(self, make, pattern, reason):
        with pytest.raises(AssertionError, match=reason):
            check_module(make, X, EDGES, treatments=["vmap"], refuses={"vmap": pattern})

    def test_a_wrong_value_is_no_refusal(self):
        with pytest.raises(AssertionError, match="relative error"):
            check_module(
                ForgetsTangents,
                X,
                EDGES,
                treatments=["forward mode"],
                refuses={"forward mode": "relative error"},
            )

    def test_unknown_names_are_refused(self):
        with pytest.raises(ValueError, match="unknown treatment 'EMAs'; it must be 'all'"):
            check_module(Layer, X, EDGES, treatments=["EMAs"])
        with pytest.raises(ValueError, match="unknown treatment 'EMAs'"):
            check_module(Layer, X, EDGES, treatments=["EMA"], refuses={"EMAs": ""})


def test_the_layer_kit_offers_the_treatments():
    group = PermutationGroup.from_cycles(4, [(0, 1, 2)])
    report = check_layer(
        lambda group: OrbitLinear(2, 1, group),
        group,
        compile_backend="eager",
        treatments=["deepcopy", "pickle"],
    )
    assert report.passed[-2:] == ["deepcopy", "pickle"]
    assert "gradcheck" in report.passed
    assert set(report.errors) == {"deepcopy", "pickle"}


def test_the_world_is_left_as_it_was():
    state = torch.get_rng_state()
    check_module(Net, X, EDGES, treatments=["EMA", "swap_tensors", "DDP", "default device"])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.distributed.is_initialized()
    assert not torch.__future__.get_swap_module_params_on_conversion()
