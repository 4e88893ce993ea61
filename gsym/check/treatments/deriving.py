"""``torch.func``, forward mode and batched gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

from gsym.check.subject import Comparison, Subject, gradients, loss, probes, tensors

Function = Callable[..., tuple[Tensor, ...]]


def functional(subject: Subject) -> Iterator[Comparison]:
    """``functional_call`` with other weights, and their gradients by ``torch.func.grad``."""
    layer, other = subject.layer(torch.float64), subject.draw()
    layer(*subject.arguments(torch.float64))
    args = subject.arguments(torch.float64)
    yield "values", functional_call(layer, other, args), subject.value(weights=other)

    def objective(weights: dict[str, Tensor]) -> Tensor:
        return loss(functional_call(layer, weights, args))

    found = grad(objective)(other)
    right = subject.gradient(weights=other)[-len(other) :]
    yield "torch.func.grad", [found[name] for name in other], right


def per_sample(subject: Subject) -> Iterator[Comparison]:
    """Per-sample gradients of the weights: ``vmap(grad(...))`` over the batch."""
    places = subject.batched()
    layer = subject.layer(torch.float64)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def objective(weights: dict[str, Tensor], *args: Any) -> Tensor:
        one = [a[None] if i in places else a for i, a in enumerate(args)]
        return loss(functional_call(layer, weights, tuple(one)))

    args = subject.arguments(torch.float64)
    over = (None, *(0 if i in places else None for i in range(len(args))))
    found = vmap(grad(objective), in_dims=over)(weights, *args)
    size = args[0].size(0)
    for sample in range(size):
        one = tuple(a[sample : sample + 1] if i in places else a for i, a in enumerate(args))
        right = gradients(subject.layer(torch.float64), _copies(one))[-len(weights) :]
        yield f"sample {sample}", [found[name][sample] for name in weights], right


def vmapped(subject: Subject) -> Iterator[Comparison]:
    """``vmap`` over further axes of the signals, and over the weights of an ensemble."""
    layer = subject.layer(torch.float64)
    args, places = subject.arguments(torch.float64), subject.real()
    turns = [1.0, 0.25, 0.5]  # what must lie in 0..1 still does
    right = [
        subject.value(tuple(t * a if i in places else a for i, a in enumerate(args))) for t in turns
    ]
    right = [torch.stack(parts) for parts in zip(*right, strict=True)]
    for axis in (0, -1):
        stacked = [
            torch.stack([t * a for t in turns], axis) if i in places else a
            for i, a in enumerate(args)
        ]
        over = tuple(axis if i in places else None for i in range(len(args)))
        found = vmap(lambda *a: tuple(tensors(layer(*a))), in_dims=over)(*stacked)
        yield f"signals along axis {axis}", found, right
    drawn = [subject.draw() for _ in turns]
    weights, buffers = stack_module_state([subject.layer(torch.float64, w) for w in drawn])

    def call(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensors(functional_call(layer, (weights, buffers), args)))

    parts = [subject.value(weights=w) for w in drawn]
    found = vmap(call)(weights, buffers)
    yield "an ensemble", found, [torch.stack(each) for each in zip(*parts, strict=True)]


def _function(subject: Subject, layer: nn.Module) -> tuple[Function, tuple[Tensor, ...]]:
    """The layer as a function of its signals and parameters, and their values."""
    args, places = subject.arguments(torch.float64), subject.real()
    names = [name for name, _ in layer.named_parameters()]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given = list(args)
        for place, value in zip(places, values, strict=False):
            given[place] = value
        if len(values) == len(places):
            return tuple(tensors(layer(*given)))
        weights = dict(zip(names, values[len(places) :], strict=True))
        return tuple(tensors(functional_call(layer, weights, tuple(given))))

    values = [args[i] for i in places] + [p.detach() for p in layer.parameters()]
    return function, tuple(values)


def _along(function: Function, values: tuple[Tensor, ...], directions: list[Tensor]) -> Any:
    """Derivative along a direction by reverse mode alone: the gradient of the gradient.

    Differences would cross the kinks of ReLU, and differ where a layer defines its gradient.
    """
    leaves = [value.clone().requires_grad_() for value in values]
    outputs = function(*leaves)
    dummies = [torch.zeros_like(y, requires_grad=True) for y in outputs]
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(outputs, leaves, dummies, create_graph=True, **options)
    return torch.autograd.grad(found, dummies, directions, **options)


def forward_mode(subject: Subject) -> Iterator[Comparison]:
    """``torch.func.jvp`` and ``forward_ad`` by signals and by weights."""
    layer = subject.layer(torch.float64).requires_grad_(False)
    function, values = _function(subject, layer)
    twin, _ = _function(subject, subject.layer(torch.float64))
    signals = len(subject.real())
    for what, wanted in (("signals", range(signals)), ("all", range(len(values)))):
        given = values[: len(wanted)]
        along = probes(list(given), seed=1)
        right = _along(twin, given, along)
        yield f"jvp by {what}", jvp(function, given, tuple(along))[1], right
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(v, d) for v, d in zip(given, along, strict=True)]
            tangents = [forward_ad.unpack_dual(y).tangent for y in function(*duals)]
        what = f"forward_ad by {what}"
        assert all(t is not None for t in tangents), f"{what}: a tangent is dropped"
        yield what, tangents, right


def jacobians(subject: Subject) -> Iterator[Comparison]:
    """``jacrev`` and ``jacfwd`` by the first argument, and by the weights."""
    layer = subject.layer(torch.float64)
    function, values = _function(subject, layer)
    twin, _ = _function(subject, subject.layer(torch.float64))
    signals = len(subject.real())
    leaves = [v.clone().requires_grad_() for v in values]
    outputs = twin(*leaves)
    # One number per output suffices for the weights, and keeps this quick.
    directions = probes(list(outputs), seed=2)

    def narrow(*given: Tensor) -> tuple[Tensor, ...]:
        ends = function(*given)
        return tuple((y * p).sum(-1) for y, p in zip(ends, directions, strict=True))

    ends = tuple((y * p).sum(-1) for y, p in zip(outputs, directions, strict=True))
    for what, place in (("the first argument", 0), ("the first weight", signals)):
        right = [_rows(y, leaves[place]) for y in ends]
        for name, transform in (("jacrev", jacrev), ("jacfwd", jacfwd)):
            yield f"{name} by {what}", transform(narrow, argnums=place)(*values), right


def second_derivatives(subject: Subject) -> Iterator[Comparison]:
    """``torch.func.hessian`` by the first argument."""
    layer = subject.layer(torch.float64)
    args = subject.arguments(torch.float64)
    twin = subject.layer(torch.float64)
    x = args[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(twin(x, *args[1:])), x, create_graph=True)
    right = _rows(first, x)
    yield "hessian", hessian(lambda x: loss(layer(x, *args[1:])))(args[0]), right


def batched_gradients(subject: Subject) -> Iterator[Comparison]:
    """``torch.autograd.grad(..., is_grads_batched=True)``, differentiated once more too."""
    function, values = _function(subject, subject.layer(torch.float64))
    twin, _ = _function(subject, subject.layer(torch.float64))
    leaves = [v.clone().requires_grad_() for v in values]
    others = [v.clone().requires_grad_() for v in values]
    outputs, ends = function(*leaves), twin(*others)
    cotangents = [probes(list(ends), seed) for seed in (1, 2, 3)]
    stacked = [torch.stack(parts) for parts in zip(*cotangents, strict=True)]
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad(
        outputs, leaves, stacked, is_grads_batched=True, create_graph=True, **options
    )
    rows = [
        torch.autograd.grad(ends, others, probe, create_graph=True, **options)
        for probe in cotangents
    ]
    right = [torch.stack(parts) for parts in zip(*rows, strict=True)]
    yield "is_grads_batched", found, right
    second = torch.autograd.grad(loss(found), leaves, **options)
    yield "and again", second, torch.autograd.grad(loss(right), others, **options)


def _rows(output: Tensor, leaf: Tensor) -> Tensor:
    """The Jacobian, row by row."""
    rows = [
        torch.autograd.grad(y, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[
            0
        ]
        for y in output.flatten()
    ]
    return torch.stack(rows).view(*output.shape, *leaf.shape)


def _copies(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
