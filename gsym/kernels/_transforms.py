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


def is_wrapped(index: Tensor) -> bool:
    """Whether ``torch.func`` has put a wrapper around this tensor."""
    return torch._C._functorch.is_functorch_wrapped_tensor(index)


def without_wrappers(index: Tensor) -> Tensor:
    """The numbers of an index that torch.func passed through; ``vmap`` over it has no meaning."""
    while torch._C._functorch.is_functorch_wrapped_tensor(index):
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


def is_eager(*tensors: Tensor) -> bool:
    """Whether nobody looks for operators: a compiler, a counter, fake tensors or a transform."""
    if torch.compiler.is_compiling() or looks_inside():
        return False
    return are_plain(*tensors)


def are_plain(*tensors: Tensor) -> bool:
    """As :func:`is_eager` of who knows that nobody looks inside."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    for x in tensors:  # noqa: SIM110  a generator takes twice as long, at every call
        if type(x) not in _EAGER_TYPES or _is_batched(x):
            return False
    return True
