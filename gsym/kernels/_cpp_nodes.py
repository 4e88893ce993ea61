"""Linear maps that all rows share in compiled code, ``csrc/nodes.cpp``.

For some hundred rows, a call of torch and its node in the graph of derivatives take longer than
the product. Here one call does all maps of a layer, and what lies between is never stored.
"""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from gsym.kernels._cpp_library import NUMBER_TYPES, call, library, pointer
from gsym.kernels._edges import derive, on_their_own
from gsym.kernels._memory import new_empty
from gsym.kernels._transforms import is_eager, is_transformed


class _Mlp(Structure):
    _sizes = ("rows", "in_channels", "beside", "hidden", "out_channels", "threads")
    _tensors = ("x", "more", "first", "first_bias", "last", "last_bias")
    _fields_ = (*((n, c_int64) for n in _sizes), *((n, c_void_p) for n in _tensors))


class _Pair(Structure):
    _sizes = ("rows", "in_channels", "out_channels", "threads")
    _tensors = ("x", "first", "first_bias", "second")
    _fields_ = (*((n, c_int64) for n in _sizes), *((n, c_void_p) for n in _tensors))


def takes(x: Tensor, *tensors: Tensor | None) -> bool:
    """Whether the loops know the types and widths, which are those of whole vectors."""
    given = [x, *(t for t in tensors if t is not None)]
    if x.dtype not in NUMBER_TYPES or not is_eager(*given):
        return False
    lanes = library().gsym_vector_bytes() // x.element_size()
    return all(
        t.dtype == x.dtype and t.device == x.device and t.size(-1) % lanes == 0 for t in given
    )


def row_mlp(compose: Any, x: Tensor, first: Any, last: Any, beside: Tensor | None) -> Tensor:
    """As the primitive; ``compose`` does the same in differentiable operators."""
    more = () if beside is None else (beside,)
    y: Tensor = _RowMlp.apply(compose, x, *first, *last, *more)
    return y


class _RowMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, compose, *tensors):  # type: ignore[no-untyped-def]
        ctx.compose = compose
        ctx.save_for_backward(*tensors)
        x, last_bias = tensors[0], tensors[4]
        y = new_empty(x, *x.shape[:-1], last_bias.size(-1))
        record, _ = _mlp(tensors)
        _run("mlp_forward", x, record, y)
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(grad):
            return None, *derive(ctx.compose, tensors, [grad])
        x, *weights = tensors[:5]
        by_x = new_empty(x, *x.shape)
        by_more = [new_empty(t, *t.shape) for t in tensors[5:]]
        outer = grad.contiguous()
        flat, by_weights = _flat(weights)
        record, _ = _mlp(tensors)
        _run("mlp_backward", x, record, outer, by_x, next(iter(by_more), None), flat)
        return None, by_x, *by_weights, *by_more


def linear_pair(compose: Any, x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Any:
    """As the primitive; ``compose`` does the same in differentiable operators."""
    return _LinearPair.apply(compose, x, weight, bias, other)


class _LinearPair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, compose, *tensors):  # type: ignore[no-untyped-def]
        ctx.compose = compose
        ctx.save_for_backward(*tensors)
        x, bias = tensors[0], tensors[2]
        y, z = (new_empty(x, *x.shape[:-1], bias.size(-1)) for _ in range(2))
        record, _ = _pair(tensors)
        _run("pair_forward", x, record, y, z)
        return y, z

    @staticmethod
    def backward(ctx, by_y, by_z):  # type: ignore[no-untyped-def]
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(by_y, by_z):
            return None, *derive(ctx.compose, tensors, [by_y, by_z])
        x, *weights = tensors
        by_x = new_empty(x, *x.shape)
        flat, by_weights = _flat(weights)
        record, _ = _pair(tensors)
        _run("pair_backward", x, record, by_y.contiguous(), by_z.contiguous(), by_x, flat)
        return None, by_x, *by_weights


def _mlp(tensors: Any) -> tuple[_Mlp, list[Tensor]]:
    """The record of a call, and the tensors that it points to."""
    x, first, first_bias, last, last_bias, *beside = (t.contiguous() for t in tensors)
    more = beside[0] if beside else None
    width = 0 if more is None else more.size(-1)
    sizes = (x.shape[:-1].numel(), x.size(-1), width, *last.shape[-2:], torch.get_num_threads())
    kept = [x, more, first, first_bias, last, last_bias]
    return _Mlp(*sizes, *map(pointer, kept)), kept


def _pair(tensors: Any) -> tuple[_Pair, list[Tensor]]:
    kept = [t.contiguous() for t in tensors]
    x, weight = kept[:2]
    sizes = (x.shape[:-1].numel(), *weight.shape[-2:], torch.get_num_threads())
    return _Pair(*sizes, *map(pointer, kept)), kept


def _flat(weights: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Memory for the gradients of all weights, and its parts."""
    flat = weights[0].new_empty(sum(w.numel() for w in weights))
    parts = flat.split([w.numel() for w in weights])
    return flat, on_their_own(p.view(w.shape) for p, w in zip(parts, weights, strict=True))


def _run(name: str, x: Tensor, record: Structure, *results: Tensor | None) -> None:
    pointers = (c_void_p * len(results))(*map(pointer, results))
    call(f"{name}_{NUMBER_TYPES[x.dtype]}", record, pointers)
