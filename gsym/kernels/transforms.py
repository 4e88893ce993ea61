"""What stands between a primitive and plain numbers: transforms of torch.func, tracers, modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad


@contextmanager
def undisturbed() -> Iterator[None]:
    """Make plain tensors that last, whatever transform or mode the caller is under."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if torch._C._functorch.peek_interpreter_stack() is not None:
            stack.enter_context(temporarily_clear_interpreter_stack())
        yield


# Whether ``torch.func`` has put a wrapper around this tensor.
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def without_wrappers(index: Tensor) -> Tensor:
    """The numbers of an index that torch.func passed through; ``vmap`` over it has no meaning."""
    while is_wrapped(index):
        if torch._C._functorch.is_batchedtensor(index):
            raise ValueError("an index must be the same for all samples; leave it out of vmap")
        index = torch._C._functorch.get_unwrapped(index)
    return index


def looks_inside() -> bool:
    """Whether somebody asks of every operator what fused ones do not have.

    That is a transform of ``torch.func``, forward-mode differentiation, ``torch.export`` and its
    kin, or ``torch.jit.trace``.
    """
    return (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
    )


def is_transformed(*grads: Tensor | None) -> bool:
    """Whether a gradient under way is one of a batch, or differentiated by a transform."""
    if torch.compiler.is_compiling():
        return False  # the compiler has seen what the primitives chose
    return looks_inside() or any(x is not None and _is_batched(x) for x in grads)


# Whether this is one of the gradients of ``is_grads_batched=True``.
_is_batched = torch._C._functorch.is_legacy_batchedtensor

# What holds numbers; others, fake tensors say, are for whoever traces operators.
_EAGER_TYPES = (Tensor, torch.nn.Parameter)


def is_eager(*tensors: Tensor | None) -> bool:
    """Whether nobody looks for operators: a compiler, a counter, fake tensors or a transform."""
    # looks_inside spelled out: every operator asks this, and a call costs as much.
    if (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack()
    ):
        return False
    for x in tensors:
        if x is not None and (type(x) not in _EAGER_TYPES or _is_batched(x)):
            return False
    return True


def are_plain(*tensors: Tensor | None) -> bool:
    """As :func:`is_eager` of who knows that nobody looks inside."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    for x in tensors:
        if x is not None and (type(x) not in _EAGER_TYPES or _is_batched(x)):
            return False
    return True


def are_alike(x: Tensor, *others: Tensor) -> bool:
    """Whether only shapes are left to compare before the operands of a primitive are computed with.

    They are dense tensors of one floating type on one device, in eager code that nobody looks
    into and that casts no types. False says no more than that somebody has to look closer.
    """
    if not is_eager(x, *others) or torch._C._is_any_autocast_enabled() or x is None:
        return False
    dtype, device = x.dtype, x.device
    if not dtype.is_floating_point or x.layout is not torch.strided:
        return False
    for y in others:
        if y is None or y.dtype != dtype or y.device != device or y.layout is not torch.strided:
            return False
    return True
