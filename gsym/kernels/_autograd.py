"""An operator with its gradient, written once and called in the way that its caller needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor

from gsym.kernels.transforms import is_eager, is_transformed, looks_inside

_CONTIGUOUS = torch.contiguous_format
_Keys, _Key = torch._C.DispatchKeySet, torch._C.DispatchKey
_AUTOGRAD = _Keys(_Key.AutogradFunctionality) | _Keys(_Key.ADInplaceOrView)

Compute = Callable[..., Any]
Grads = Sequence[Tensor | None]


class Context(Protocol):
    """What the gradient of an operator is given of its call."""

    saved_tensors: tuple[Any, ...]  # what it keeps, by default the tensors
    rest: Sequence[Any]  # the arguments behind the tensors
    dtype: torch.dtype  # of the first tensor
    needs_input_grad: Sequence[bool]


class Operator:
    """A function of tensors, its gradient, and the same function in plain torch.

    The first arguments are the tensors that it is differentiable by, or one list of them; all
    others are constants. Who calls decides what is called:

    - Eager code calls the function itself, or an ``autograd.Function`` around it. To go through
      the dispatcher of torch costs as much as the work on a small batch.
    - Compilers, counters of operators and fake tensors see an operator of ``torch.library``.
    - Where a gradient is transformed or batched, plain torch is called, which has every rule.

    The function runs below autograd, so it may write in place and needs no derivatives.

    Args:
        compute: The function, by whose name and types the operator is registered.
        inputs: How many arguments are differentiable tensors; ``None`` for one list of them.
        parts: Whether its results may share memory, as parts of one tensor do.
        kept: How many results, the last ones, are for the gradient alone.
    """

    def __init__(self, compute: Compute, inputs: int | None, parts: bool, kept: int) -> None:
        self.compute, self._inputs, self._kept = compute, inputs, kept
        self.registered = torch.library.custom_op(
            f"gsym::{compute.__name__}", _apart(compute) if parts else compute, mutates_args=()
        )
        self._function: Any = None
        self._plain: Compute | None = None

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.registered(*args)
        tensors = args[0] if self._inputs is None else args[: self._inputs]
        if is_eager(*tensors):
            return self.eager(*args)
        if self._plain is not None and is_transformed(*tensors):
            return self._plain(*args)
        return self.registered(*args)

    def eager(self, *args: Any) -> Any:
        """As a call, by who knows that nobody looks for operators."""
        if self._function is not None and torch.is_grad_enabled():
            n = self._inputs
            tensors, rest = (args[0], args[1:]) if n is None else (args[:n], args[n:])
            for x in tensors:
                if x is not None and x.requires_grad:
                    return self._function.apply(*tensors, rest)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOGRAD):
            return self.compute(*args)

    def fake(self, shapes: Compute) -> Compute:
        """Register what makes results without numbers, for tensors without numbers."""
        self.registered.register_fake(shapes)
        return shapes

    def plain(self, function: Compute) -> Compute:
        """Register the same function of the same arguments in operators of torch."""
        self._plain = function
        return function

    def gradient(
        self, keep: Callable[[Sequence[Any], Any], Sequence[Any]] | None = None
    ) -> Callable[[Compute], Compute]:
        """Register a function ``backward(ctx, *grads)``, which returns one gradient per tensor.

        It runs without autocast; ``ctx`` is a :class:`Context`.

        Args:
            keep: Of the tensors and the results, what ``backward`` will be given; by default the
                tensors.
        """

        def register(backward: Compute) -> Compute:
            def save(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
                tensors, ctx.rest = self._split(inputs)
                ctx.dtype = tensors[0].dtype
                ctx.save_for_backward(*(keep(tensors, output) if keep else tensors))

            pull = without_autocast(backward)

            def registered(ctx: Any, *grads: Tensor) -> Any:
                found = pull(ctx, *grads)
                found = (list(found),) if self._inputs is None else found
                nothing = ([None] * len(x) if isinstance(x, list) else None for x in ctx.rest)
                return *found, *nothing

            class Function(torch.autograd.Function):
                @staticmethod
                def forward(ctx: Any, *args: Any) -> Any:
                    *tensors, ctx.rest = args
                    given = (tensors,) if self._inputs is None else tensors
                    # Autograd sees neither views nor what is written in place.
                    with torch._C._ExcludeDispatchKeyGuard(_AUTOGRAD):
                        output = self.compute(*given, *ctx.rest)
                    if self._kept:
                        ctx.set_materialize_grads(False)
                        ctx.mark_non_differentiable(*output[-self._kept :])
                    ctx.dtype = tensors[0].dtype
                    ctx.save_for_backward(*(keep(tensors, output) if keep else tensors))
                    return output

                @staticmethod
                def backward(ctx: Any, *grads: Tensor) -> Any:
                    return *pull(ctx, *grads), None

            Function.__name__ = self.compute.__name__
            self._function = Function
            self.registered.register_autograd(registered, setup_context=save)
            return backward

        return register

    def _split(self, args: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        if self._inputs is None:
            return args[0], args[1:]
        return args[: self._inputs], args[self._inputs :]


def operator(
    inputs: int | None, *, parts: bool = False, kept: int = 0
) -> Callable[[Compute], Operator]:
    """Make an :class:`Operator` of a function."""
    return lambda compute: Operator(compute, inputs, parts, kept)


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A gradient in the types of its forward pass, wherever ``backward`` is called."""

    @wraps(backward)
    def call(ctx: Any, *grads: Tensor | None) -> Any:
        # Results that do not enter the loss may have no gradient.
        given = next((grad for grad in grads if grad is not None), None)
        if given is None or not torch._C._is_any_autocast_enabled():
            return backward(ctx, *grads)
        with torch.autocast(given.device.type, enabled=False):
            return backward(ctx, *grads)

    return call


def derive(
    compose: Callable[[list[Tensor]], Tensor | Sequence[Tensor]],
    tensors: Sequence[Tensor],
    outer: Sequence[Tensor],
) -> list[Tensor]:
    """The gradient of what was composed of differentiable operators, itself one if need be."""
    again = torch.is_grad_enabled()

    def outputs_of(views: list[Tensor]) -> tuple[Tensor, ...]:
        found = compose(views)
        return (found,) if isinstance(found, Tensor) else tuple(found)

    if looks_inside() and not again:
        given = [x.detach() for x in tensors]
        with torch.enable_grad():  # so that the gradient itself has derivatives
            pull = torch.func.vjp(lambda *given: outputs_of(list(given)), *given)[1]
            found: tuple[Tensor, ...] = pull(tuple(outer))
        return list(found)
    # Views, so that a tensor given twice, or made from another, counts once in each place.
    views = [x.view_as(x) if again and x.requires_grad else x.detach() for x in tensors]
    views = [x if x.requires_grad else x.requires_grad_() for x in views]
    with torch.enable_grad(), torch.autocast(outer[0].device.type, enabled=False):
        grads = torch.autograd.grad(
            outputs_of(views), views, outer, create_graph=again, allow_unused=True
        )
    return list(grads)


def _apart(compute: Compute) -> Compute:
    """Results of a registered operator must not share memory."""

    @wraps(compute)
    def call(*args: Any) -> Any:
        results: list[Tensor] | tuple[Tensor, ...] = compute(*args)
        apart = [
            x if x.untyped_storage().nbytes() == x.nbytes else x.clone(memory_format=_CONTIGUOUS)
            for x in results
        ]
        return apart if isinstance(results, list) else tuple(apart)

    return call
