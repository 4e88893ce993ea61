"""Hooks, parametrisations and adapters: what changes or watches a part of a module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as globally
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from gsym.check.subject import (
    Comparison,
    Skip,
    Subject,
    Weights,
    gradients,
    own_parameters,
    units,
)


def pruned(subject: Subject) -> Iterator[Comparison]:
    """``prune.random_unstructured`` on every parameter, and another step of training."""
    layer = subject.layer()
    layer(*subject.arguments())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        masks = {}
        for name, part, own in list(own_parameters(layer)):
            if getattr(part, own).numel() > 1:
                prune.random_unstructured(part, own, amount=0.5)
                masks[name] = part, own

    def weights() -> Weights:
        found = dict(subject.weights)
        for name, (part, own) in masks.items():
            kept = getattr(part, f"{own}_mask")
            found[name] = (getattr(part, f"{own}_orig") * kept).detach().double()
        return found

    yield "pruned", layer(*subject.arguments()), subject.value(weights=weights())
    with torch.no_grad():
        for part, own in masks.values():
            getattr(part, f"{own}_orig").mul_(-1.5)
    yield "after a step", layer(*subject.arguments()), subject.value(weights=weights())
    # In the order of the module's own parameters.
    parts = [getattr(*masks[k][:1], f"{masks[k][1]}_orig") for k in masks]
    names = list(subject.weights)
    right = subject.gradient(weights=weights())[-len(names) :]
    kept = {name: getattr(part, f"{own}_mask") for name, (part, own) in masks.items()}
    wanted = [right[names.index(name)] * kept[name] for name in masks]
    found = gradients(layer, subject.arguments(), parts)[-len(parts) :]
    yield "gradients", found, wanted


class _Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrised(subject: Subject) -> Iterator[Comparison]:
    """``register_parametrization`` on every parameter in turn, and on all."""
    names = [name for name, _, _ in own_parameters(subject.layer())]
    for chosen in [*([name] for name in names), names]:
        layer = subject.layer()
        layer(*subject.arguments())
        for name, part, own in list(own_parameters(layer)):
            if name in chosen:
                parametrize.register_parametrization(part, own, _Twice())
        weights = {k: 2 * w if k in chosen else w for k, w in subject.weights.items()}
        what = "all" if chosen is names else chosen[0]
        yield what, layer(*subject.arguments()), subject.value(weights=weights)


def _renormed(
    subject: Subject, treat: Callable[[nn.Module], Any], read: Callable[[nn.Module], Any]
) -> Iterator[Comparison]:
    """Treat each ``weight`` of two axes or more; ``read`` says what it then is."""
    layer = subject.layer()
    layer(*subject.arguments())
    weights = dict(subject.weights)
    treated = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, part, own in list(own_parameters(layer)):
            held = part._parameters[own]
            if own == "weight" and held is not None and held.dim() > 1:
                treat(part)
                treated.append((name, part))
    if not treated:
        raise Skip("has no parameter named weight with two axes")
    layer.eval()
    for name, part in treated:
        weights[name] = read(part).detach().double()
    yield f"{len(treated)} weights", layer(*subject.arguments()), subject.value(weights=weights)
    moved = False
    with torch.no_grad():
        for _, part in treated:
            for own, parameter in part.named_parameters():
                if own in ("weight_v", "parametrizations.weight.original1", "weight_orig"):
                    parameter.add_(0.1)
                    moved = True
    if moved:
        for name, part in treated:
            weights[name] = read(part).detach().double()
        yield "after a step", layer(*subject.arguments()), subject.value(weights=weights)


def spectral(subject: Subject) -> Iterator[Comparison]:
    """``parametrizations.spectral_norm``."""
    yield from _renormed(subject, parametrizations.spectral_norm, lambda part: part.weight)


def spectral_by_hook(subject: Subject) -> Iterator[Comparison]:
    """The older ``torch.nn.utils.spectral_norm``, which sets the weight before each call."""
    yield from _renormed(subject, spectral_norm, _by_hook)


def weight_normed(subject: Subject) -> Iterator[Comparison]:
    """``parametrizations.weight_norm``."""
    yield from _renormed(subject, parametrizations.weight_norm, lambda part: part.weight)


def weight_normed_by_hook(subject: Subject) -> Iterator[Comparison]:
    """The older ``torch.nn.utils.weight_norm``, which sets the weight before each call."""
    yield from _renormed(subject, weight_norm, _by_hook)


def _by_hook(part: nn.Module) -> Any:
    twin = copy.copy(part)
    twin.__dict__ = dict(part.__dict__)
    (hook,) = part._forward_pre_hooks.values()
    hook(twin, None)
    return twin.weight


class _Adapted(nn.Module):
    """A linear map with a low-rank addition, as LoRA makes them."""

    def __init__(self, base: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base, self.down, self.up = base, down, up

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def adapters(subject: Subject) -> Iterator[Comparison]:
    """Every ``nn.Linear`` replaced by one with a low-rank addition."""
    layer, weights = subject.layer(), dict(subject.weights)
    layer(*subject.arguments())
    linear = [(n, p) for n, p in layer.named_modules() if type(p) is nn.Linear]
    if not linear:
        raise Skip("has no nn.Linear")
    random = torch.Generator().manual_seed(0)
    for name, part in linear:
        down = torch.randn(1, part.in_features, generator=random) / 2
        up = torch.randn(part.out_features, 1, generator=random) / 2
        holder, _, own = name.rpartition(".")
        setattr(layer.get_submodule(holder), own, _Adapted(part, down, up))
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + (up @ down).double()
    yield f"{len(linear)} linear maps", layer(*subject.arguments()), subject.value(weights=weights)


def _callable_parts(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    """Submodules that are called: all that hold parameters, and those between."""
    lists = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    owning = {id(part) for _, part in units(layer)}
    return [
        (name, part)
        for name, part in layer.named_modules()
        if not isinstance(part, lists)
        and (id(part) in owning or any(True for _ in part.parameters()))
    ]


def hooks(subject: Subject) -> Iterator[Comparison]:
    """Each part that holds parameters runs its hooks as often as where every part has one."""
    layer = subject.layer()
    everywhere = {name: 0 for name, _ in _callable_parts(layer)}

    def count(counts: dict[str, int], name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    for name, part in _callable_parts(layer):
        part.register_forward_hook(count(everywhere, name))
    yield "hooks on every part", layer(*subject.arguments()), subject.value()
    silent = [name for name, part in units(layer) if not everywhere[name]]
    yield "parts that hold parameters and are never called", silent, []
    kinds = ("register_forward_hook", "register_forward_pre_hook")
    for kind in kinds:
        for name, calls in everywhere.items():
            layer, counts = subject.layer(), {name: 0}
            layer(*subject.arguments())
            getattr(layer.get_submodule(name), kind)(count(counts, name))
            value = layer(*subject.arguments())
            yield f"{kind} of {name or 'the whole'}", value, subject.value()
            yield f"{kind} of {name or 'the whole'}: calls", counts[name], calls
    yield from _global_hooks(subject, everywhere)


def _global_hooks(subject: Subject, everywhere: dict[str, int]) -> Iterator[Comparison]:
    layer = subject.layer()
    names = {id(part): name for name, part in layer.named_modules()}
    counts = dict.fromkeys(everywhere, 0)

    def hook(part: nn.Module, *_: Any) -> None:
        if names.get(id(part)) in counts:
            counts[names[id(part)]] += 1

    handle = globally.register_module_forward_hook(hook)
    try:
        value = layer(*subject.arguments())
    finally:
        handle.remove()
    yield "a global hook", value, subject.value()
    yield "a global hook: calls", counts, everywhere


def changing_hooks(subject: Subject) -> Iterator[Comparison]:
    """A hook that changes the output of one part acts as where every part has a hook."""
    for name, _ in units(subject.layer()):
        layer, twin = subject.layer(), subject.layer(torch.float64)
        layer(*subject.arguments())
        for _, part in _callable_parts(twin):
            part.register_forward_hook(lambda *_: None)
        for treated in (layer, twin):
            treated.get_submodule(name).register_forward_hook(_changed)
        right = twin(*subject.arguments(torch.float64))
        yield name or "the whole", layer(*subject.arguments()), right


def _changed(_: nn.Module, __: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output * 1.5
    if isinstance(output, tuple) and isinstance(output[0], Tensor):
        return (output[0] * 1.5, *output[1:])
    return output


def backward_hooks(subject: Subject) -> Iterator[Comparison]:
    """Full backward hooks on each part run, and what they return for the gradients counts."""
    everywhere = _hear_backward(subject, [name for name, _ in units(subject.layer())])[1]
    for name in everywhere:
        found, counts = _hear_backward(subject, [name])
        what = name or "the whole"
        yield f"{what}: gradients", found, subject.gradient()
        yield f"{what}: calls before and after", list(counts[name]), list(everywhere[name])
        assert counts[name][0], f"the backward hook of {what} never runs"
        layer, twin = subject.layer(), subject.layer(torch.float64)
        for _, part in _callable_parts(twin):
            part.register_forward_hook(lambda *_: None)
        for treated in (layer, twin):
            treated.get_submodule(name).register_full_backward_pre_hook(_scaled)
        right = gradients(twin, subject.arguments(torch.float64))
        yield f"{what}: changed gradients", gradients(layer, subject.arguments()), right
        moved = [float((a - b).norm()) for a, b in zip(right, subject.gradient(), strict=True)]
        assert max(moved) > 0, f"what the backward hook of {what} returns counts for nothing"


def _scaled(_: nn.Module, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if grad is None else 1.5 * grad for grad in grads)


def _hear_backward(
    subject: Subject, names: list[str]
) -> tuple[tuple[Tensor, ...], dict[str, tuple[int, int]]]:
    """Gradients with hooks on these parts, and how often those before and after them ran."""
    layer, ran = subject.layer(), []
    for name in names:
        part = layer.get_submodule(name)
        part.register_full_backward_pre_hook(lambda *_, name=name: ran.append((name, 0)))
        # This one runs only where the output depends on an input of the part.
        part.register_full_backward_hook(lambda *_, name=name: ran.append((name, 1)))
    found = gradients(layer, subject.arguments())
    return found, {name: (ran.count((name, 0)), ran.count((name, 1))) for name in names}
