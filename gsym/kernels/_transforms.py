"""What stands between a primitive and plain numbers: transforms of torch.func, tracers, modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack


@contextmanager
def undisturbed() -> Iterator[None]:
    """Make plain tensors that last, whatever transform or mode the caller is under."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if torch._C._functorch.peek_interpreter_stack() is not None:
            stack.enter_context(temporarily_clear_interpreter_stack())
        yield


def without_wrappers(index: Tensor) -> Tensor:
    """The numbers of an index that torch.func passed through; ``vmap`` over it has no meaning."""
    while torch._C._functorch.is_functorch_wrapped_tensor(index):
        if torch._C._functorch.is_batchedtensor(index):
            raise ValueError("an index must be the same for all samples; leave it out of vmap")
        index = torch._C._functorch.get_unwrapped(index)
    return index


# What holds numbers; others, fake tensors say, are for whoever traces operators.
_EAGER_TYPES = (Tensor, torch.nn.Parameter)


def is_eager(*tensors: Tensor) -> bool:
    """Whether nobody looks for operators: a compiler, a counter, fake tensors or ``torch.func``."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or any(type(x) not in _EAGER_TYPES for x in tensors)
    )
