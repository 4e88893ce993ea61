"""Products in a basis adapted to a group in compiled code, ``csrc/adapted.cpp``."""

from __future__ import annotations

from ctypes import Array, Structure, c_int64, c_void_p

import torch
from torch import Tensor

from gsym.kernels.cpp.library import NUMBER_TYPES, addresses, call, check_sizes
from gsym.kernels.native.memory import new_empty

_SAMPLES = 64  # mirrored in csrc/adapted.cpp


class _Adapted(Structure):
    _sizes = (
        *("batch", "nodes", "in_channels", "out_channels", "orbits"),
        *("length", "count", "threads"),
    )
    _tensors = ("program", "numbers", "x", "weight", "work")
    _fields_ = (*((n, c_int64) for n in _sizes), *((n, c_void_p) for n in _tensors))


def adapted_linear(x: Tensor, weight: Tensor, program: Tensor, numbers: Tensor) -> Tensor:
    """Rows ``[b, n, out]`` of ``x [b, n, in]`` and weights ``[o, in, out]``."""
    (batch, nodes, _), width = x.shape, weight.size(-1)
    y = new_empty(x, batch, nodes, width)
    if y.numel():
        work = new_empty(x, batch * nodes * (x.size(-1) + width))
        record, _kept = _record(x, weight, program, numbers, work)
        call(f"adapted_forward_{NUMBER_TYPES[x.dtype]}", record, _pointers(y))
    return y


def adapted_linear_grads(
    x: Tensor,
    weight: Tensor,
    program: Tensor,
    numbers: Tensor,
    grad: Tensor,
    wanted: tuple[bool, bool],
) -> list[Tensor | None]:
    """The gradients of ``x`` and of ``weight``, where they are wanted."""
    (batch, nodes, a), b = x.shape, weight.size(-1)
    found = [
        new_empty(t, *t.shape) if w else None for t, w in zip((x, weight), wanted, strict=True)
    ]
    if not grad.numel():
        return [None if t is None else t.zero_() for t in found]
    outer = grad.contiguous()
    check_sizes(grad=(outer, batch * nodes * b))
    # Samples once more, as columns that are filled up to whole vectors.
    parts = -(-batch // _SAMPLES)
    columns = parts * _SAMPLES if parts > 1 else batch + _SAMPLES
    work = new_empty(x, nodes * (batch + columns) * (a + b))
    record, _kept = _record(x, weight, program, numbers, work)
    call(f"adapted_backward_{NUMBER_TYPES[x.dtype]}", record, _pointers(outer, *found))
    return found


def _record(
    x: Tensor, weight: Tensor, program: Tensor, numbers: Tensor, work: Tensor
) -> tuple[_Adapted, list[Tensor]]:
    """The record of a call, and the tensors that it points to."""
    kept = [program, numbers, x.contiguous(), weight.contiguous(), work]
    (batch, nodes, a), (orbits, _, b) = x.shape, weight.shape
    check_sizes(weight=(weight, orbits * a * b))
    if program.dtype != torch.int64 or numbers.dtype != x.dtype:
        raise TypeError(
            f"a program must be int64 and its numbers {x.dtype}; got {program.dtype} and "
            f"{numbers.dtype}"
        )
    lengths = program.numel(), numbers.numel(), torch.get_num_threads()
    return _Adapted(batch, nodes, a, b, orbits, *lengths, *addresses(kept)), kept


def _pointers(*tensors: Tensor | None) -> Array[c_void_p]:
    return (c_void_p * len(tensors))(*addresses(tensors))
