"""What training scripts do: average weights, save them, recompute activations, cast."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from gsym.check.subject import (
    ALLOWED,
    Comparison,
    Subject,
    backward,
    cast,
    fill,
    gradients,
    same,
)


def gradient(subject: Subject) -> Iterator[Comparison]:
    """Gradients, and gradients with ``create_graph=True``, in float32 and float64."""
    for dtype in (torch.float32, torch.float64):
        layer = subject.layer(dtype)
        yield from same(subject, layer, str(dtype), dtype)
        found = gradients(layer, subject.arguments(dtype), create_graph=True)
        yield f"{dtype}: create_graph", found, subject.gradient()


def ema(subject: Subject) -> Iterator[Comparison]:
    """``AveragedModel(use_buffers=True)`` with an exponential average of either form."""
    other = subject.draw()
    for decay in (0.9, 0.996, 0.9999):
        for name, make in (("avg_fn", get_ema_avg_fn), ("multi_avg_fn", get_ema_multi_avg_fn)):
            layer = subject.layer()
            layer(*subject.arguments())
            averaged = AveragedModel(layer, use_buffers=True, **{name: make(decay)})
            for _ in range(20):
                averaged.update_parameters(layer)
            what = f"decay {decay}, {name}"
            yield f"{what}: one model", averaged(*subject.arguments()), subject.value()
            fill(layer, other)
            averaged.update_parameters(layer)
            mean = {k: decay * w + (1 - decay) * other[k] for k, w in subject.weights.items()}
            yield what, averaged(*subject.arguments()), subject.value(weights=mean)


def swa(subject: Subject) -> Iterator[Comparison]:
    """``AveragedModel`` as stochastic weight averaging uses it."""
    layer = subject.layer()
    averaged = AveragedModel(layer)
    drawn = [subject.draw() for _ in range(3)]
    for weights in drawn:
        fill(layer, weights)
        averaged.update_parameters(layer)
    mean = {name: torch.stack([w[name] for w in drawn]).mean(0) for name in subject.weights}
    yield "mean of three", averaged(*subject.arguments()), subject.value(weights=mean)


def state_arithmetic(subject: Subject) -> Iterator[Comparison]:
    """Sums, means and differences of ``state_dict``s load, as federated averaging makes them."""
    drawn = [subject.draw() for _ in range(3)]
    states = [subject.layer(weights=weights).state_dict() for weights in drawn]

    def running(parts: list[Any]) -> Any:
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total / 3

    ways = {
        "sum / 3": lambda parts: sum(parts) / 3,
        "a running sum / 3": running,
        "a weighted sum": lambda parts: 0.2 * parts[0] + 0.3 * parts[1] + 0.5 * parts[2],
        "an average, cast back": lambda p: (0.9 * p[0] + 0.1 * p[1]).to(p[0].dtype),
        "a + b - c": lambda parts: parts[0] + parts[1] - parts[2],
        "b - a": lambda parts: parts[1] - parts[0],
        "cast to float64 and back": lambda parts: parts[0].double().to(parts[0].dtype),
    }
    for what, combine in ways.items():
        layer = subject.layer()
        layer.load_state_dict({k: combine([s[k] for s in states]) for k in states[0]})
        kept = {k: b.double() for k, b in subject.layer().named_buffers() if k in states[0]}
        weights = {k: combine([w[k] for w in drawn]) for k in subject.weights}
        weights |= {k: combine([b, b, b]) for k, b in kept.items() if b.is_floating_point()}
        yield what, layer(*subject.arguments()), subject.value(weights=weights)


def saved(subject: Subject) -> Iterator[Comparison]:
    """``torch.save`` of a ``state_dict``, read back with ``weights_only=True``."""
    layer, loaded = subject.layer(), subject.layer(weights=subject.draw())
    layer(*subject.arguments())
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    loaded.load_state_dict(state)
    yield from same(subject, loaded, "loaded")
    assigned = subject.layer(weights=subject.draw())
    assigned.load_state_dict(copy.deepcopy(state), assign=True)
    yield from same(subject, assigned, "loaded with assign=True")


def activation_checkpoint(subject: Subject) -> Iterator[Comparison]:
    """``torch.utils.checkpoint`` of the whole and of each layer of a stack, in both kinds."""
    for reentrant in (False, True):
        layer = subject.layer()

        def run(*args: Any, layer: nn.Module = layer, reentrant: bool = reentrant) -> Any:
            return checkpoint(layer, *args, use_reentrant=reentrant)

        found = backward(run, subject.arguments(), list(layer.parameters()))
        yield f"use_reentrant={reentrant}", found, subject.gradient()
    for kind in CheckpointImpl:
        layer = subject.layer()
        parameters, stacks = list(layer.parameters()), list_of_layers(layer)
        calls: list[int] = []
        for stack in stacks:
            for place, child in enumerate(stack):
                stack[place] = checkpoint_wrapper(child, checkpoint_impl=kind)
                stack[place].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        found = backward(layer, subject.arguments(), parameters)
        yield f"{kind.name} of each layer", found, subject.gradient()
        yield f"{kind.name}: calls of the layers", len(calls), sum(map(len, stacks))


def list_of_layers(layer: nn.Module) -> list[nn.ModuleList]:
    """The stacks within the module."""
    return [part for part in layer.modules() if isinstance(part, nn.ModuleList)]


def autocast(subject: Subject) -> Iterator[Comparison]:
    """``torch.autocast`` in bfloat16: values and gradients to its precision."""
    layer = subject.layer()
    with torch.autocast("cpu", torch.bfloat16):
        value = layer(*subject.arguments())
    yield "values", _as(value, torch.bfloat16), subject.value()

    def run(*args: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(*args)

    found = gradients(run, subject.arguments(), list(layer.parameters()))
    yield from _to_its_precision("gradients", subject, found, subject.gradient(), torch.bfloat16)


def _low(subject: Subject, dtype: torch.dtype) -> Iterator[Comparison]:
    # What is right for the weights and arguments as they are after rounding.
    weights = {name: w.to(dtype).double() for name, w in subject.weights.items()}
    args = cast(subject.arguments(dtype), torch.float64)
    value, wanted = subject.value(args, weights), subject.gradient(args, weights)
    layer = subject.layer()
    layer(*subject.arguments())
    layer.to(dtype)
    yield "values", layer(*subject.arguments(dtype)), value
    found = gradients(layer, subject.arguments(dtype))
    yield from _to_its_precision("gradients", subject, found, wanted, dtype)
    second = gradients(layer, subject.arguments(dtype), create_graph=True)
    yield from _to_its_precision("create_graph", subject, second, wanted, dtype)


def half(subject: Subject) -> Iterator[Comparison]:
    """``.to(torch.float16)`` after a call in float32."""
    yield from _low(subject, torch.float16)


def bfloat16(subject: Subject) -> Iterator[Comparison]:
    """``.to(torch.bfloat16)`` after a call in float32."""
    yield from _low(subject, torch.bfloat16)


def inference(subject: Subject) -> Iterator[Comparison]:
    """A first call in ``inference_mode`` or ``no_grad``, then training."""
    for mode in (torch.inference_mode, torch.no_grad):
        layer = subject.layer()
        args = subject.arguments()
        with mode():
            yield mode.__name__, layer(*args), subject.value()
        yield f"trained after {mode.__name__}", gradients(layer, args), subject.gradient()


def _to_its_precision(
    what: str,
    subject: Subject,
    found: tuple[torch.Tensor, ...],
    wanted: tuple[torch.Tensor, ...],
    dtype: torch.dtype,
) -> Iterator[Comparison]:
    """All gradients as one to the tolerance of the type, and each by itself to four times that.

    Single ones may cancel, some to nothing, so the rounding of the whole is allowed as well.
    """
    came, right = (torch.cat([g.flatten().double() for g in of]) for of in (found, wanted))
    yield what, came.to(dtype), right
    rounding = float(right.norm()) * torch.finfo(dtype).eps / 2
    names = [f"argument {place}" for place in subject.real()] + list(subject.weights)
    for name, got, want in zip(names, found, wanted, strict=True):
        error, size = float((got.double() - want).norm()), float(want.norm())
        allowed = 4 * ALLOWED[dtype] * size + rounding
        assert error <= allowed, (
            f"{what}: that of {name} is wrong by {error:.1e}, its size being {size:.1e}; "
            f"allowed {allowed:.1e} ({dtype})"
        )


def _as(value: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    """Judge by the tolerance of this type."""
    parts = value if isinstance(value, tuple | list) else [value]
    return [part.to(dtype) for part in parts]
