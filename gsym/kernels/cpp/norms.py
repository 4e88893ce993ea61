"""Rows normalised by segment in compiled code, ``csrc/norms.cpp``."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_double, c_int64, c_void_p

import torch
from torch import Tensor

from gsym.kernels.cpp.library import NUMBER_TYPES, addresses, call, check_sizes
from gsym.kernels.native.memory import new_empty


class _Norm(Structure):
    _sizes = ("rows", "segments", "channels", "threads")
    _tensors = ("pointers", "x", "weight", "bias", "mean_scale", "mean", "inverse")
    _fields_ = (
        *((n, c_int64) for n in _sizes),
        ("eps", c_double),
        *((n, c_void_p) for n in _tensors),
    )


def elu_norm(tensors: list[Tensor], tables: list[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Rows ``[e, c]`` after ELU and the norm, and mean and inverse deviation of every segment."""
    x = tensors[0]
    stored = x.new_empty(2, tables[2].numel() - 1, x.size(1))
    y = new_empty(x, *x.shape)
    _run("norm_forward", tensors, stored, tables, eps, y)
    return y, stored


def elu_norm_grads(
    tensors: list[Tensor], stored: Tensor, tables: list[Tensor], eps: float, grad: Tensor
) -> list[Tensor]:
    """The gradient of every tensor of :func:`elu_norm`, in their order."""
    x = tensors[0]
    by_x = new_empty(x, *x.shape)
    parts = x.new_empty(stored.size(1), 3, x.size(1))
    _run("norm_backward", tensors, stored, tables, eps, grad.contiguous(), by_x, parts)
    return [by_x, *(part.clone() for part in parts.sum(0))]


def _run(
    name: str,
    tensors: Sequence[Tensor],
    stored: Tensor,
    tables: list[Tensor],
    eps: float,
    *results: Tensor,
) -> None:
    x, *weights = map(Tensor.contiguous, tensors)
    rows, c = x.shape
    index, _, pointers = tables
    check_sizes(index=(index, rows), **{f"weight {i}": (w, c) for i, w in enumerate(weights)})
    sizes = rows, stored.size(1), c, torch.get_num_threads()
    table = pointers.long()
    record = _Norm(*sizes, eps, *addresses((table, x, *weights, *stored)))
    at = (c_void_p * len(results))(*addresses(results))
    call(f"{name}_{NUMBER_TYPES[x.dtype]}", record, at)
