"""Rows normalised by segment in compiled code, ``cpp/csrc/norms.cpp``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import Structure, c_double, c_int64, c_void_p

import torch
from torch import Tensor

from gsym.kernels._autograd import derive
from gsym.kernels._backends import choose
from gsym.kernels._transforms import is_eager, is_transformed
from gsym.kernels.cpp.library import (
    NUMBER_TYPES,
    addresses,
    call,
    check_sizes,
    library,
)
from gsym.kernels.native.memory import new_empty
from gsym.kernels.segments import Segments

Compose = Callable[[Sequence[Tensor]], list[Tensor]]


class _Norm(Structure):
    _sizes = ("rows", "segments", "channels", "threads")
    _tensors = ("pointers", "x", "weight", "bias", "mean_scale", "mean", "inverse")
    _fields_ = (
        *((n, c_int64) for n in _sizes),
        ("eps", c_double),
        *((n, c_void_p) for n in _tensors),
    )


def elu_norm(
    compose: Compose, x: Tensor, segments: Segments, weights: Sequence[Tensor], eps: float
) -> Tensor:
    """Rows ``[e, c]`` after ELU, normalised by segment.

    Compiled loops take whole vectors of channels, in rows that come sorted by segment.

    Args:
        compose: The same of a list of ``x`` and the weights, in differentiable operators.
        x: The rows.
        segments: Their segments.
        weights: Weight, bias and scale of the mean, ``[c]`` each.
        eps: Added to variances.
    """
    tensors = [x, *weights]
    if not _takes(tensors, segments):
        return compose(tensors)[0]
    y: Tensor = _EluNorm.apply(compose, segments, eps, *tensors)
    return y


def _takes(tensors: Sequence[Tensor], segments: Segments) -> bool:
    x = tensors[0]
    if not is_eager(*tensors) or segments.is_traced:
        return False
    if choose("auto", "elu_norm", x.device.type).name != "cpp":
        return False
    if torch.is_autocast_enabled("cpu") or x.dtype not in NUMBER_TYPES or x.dim() != 2:
        return False
    lanes = library().gsym_vector_bytes() // x.element_size()
    return (
        segments.is_sorted
        and x.size(1) > 0
        and x.size(1) % lanes == 0
        and all(t.dtype == x.dtype and t.device == x.device for t in tensors)
    )


class _EluNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, compose, segments, eps, *tensors):  # type: ignore[no-untyped-def]
        ctx.compose, ctx.segments, ctx.eps = compose, segments, eps
        x = tensors[0]
        stored = x.new_empty(2, segments.num_segments, x.size(1))
        ctx.save_for_backward(*tensors, stored)
        y = new_empty(x, *x.shape)
        _run("norm_forward", tensors, stored, segments, eps, y)
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        *tensors, stored = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(grad):
            return None, None, None, *derive(ctx.compose, tensors, [grad])
        x = tensors[0]
        by_x = new_empty(x, *x.shape)
        parts = x.new_empty(ctx.segments.num_segments, 3, x.size(1))
        results = (grad.contiguous(), by_x, parts)
        _run("norm_backward", tensors, stored, ctx.segments, ctx.eps, *results)
        return None, None, None, by_x, *(p.clone() for p in parts.sum(0))


def _run(
    name: str,
    tensors: Sequence[Tensor],
    stored: Tensor,
    segments: Segments,
    eps: float,
    *results: Tensor,
) -> None:
    x, *weights = (t.contiguous() for t in tensors)
    rows, c = x.shape
    check_sizes(
        index=(segments._index, rows), **{f"weight {i}": (w, c) for i, w in enumerate(weights)}
    )
    table = segments._pointers.long()
    sizes = rows, segments.num_segments, c, torch.get_num_threads()
    given = [table, x, *weights, *stored]
    at = (c_void_p * len(results))(*addresses(results))
    call(
        f"{name}_{NUMBER_TYPES[x.dtype]}",
        _Norm(*sizes, eps, *addresses(given)),
        at,
    )
