"""Linear maps that all rows share in compiled code, ``csrc/nodes.cpp``.

For some hundred rows, a call of torch and its node in the graph of derivatives take longer than
the product. Here one call does all maps of a layer, and what lies between is never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from gsym.kernels.cpp.library import NUMBER_TYPES, addresses, call, library
from gsym.kernels.native.memory import new_empty


class Mlp(Structure):
    """Mirrors that of the source."""

    _sizes = ("rows", "in_channels", "extra", "hidden", "out_channels", "threads", "residual")
    _tensors = ("x", "more", "first", "first_bias", "last", "last_bias", "argument")
    _fields_ = (*((n, c_int64) for n in _sizes), *((n, c_void_p) for n in _tensors))


class Pair(Structure):
    """Mirrors that of the source."""

    _sizes = ("rows", "in_channels", "out_channels", "threads", "adds")
    _tensors = ("x", "first", "first_bias", "second")
    _fields_ = (*((n, c_int64) for n in _sizes), *((n, c_void_p) for n in _tensors))


def are_whole_vectors(tensors: Sequence[Tensor]) -> bool:
    """Whether the loops take the widths of these tensors."""
    lanes = library().gsym_vector_bytes() // tensors[0].element_size()
    for x in tensors:  # noqa: SIM110  a generator takes twice as long, at every call
        if x.size(-1) % lanes:
            return False
    return True


def row_mlp(tensors: list[Tensor]) -> Tensor:
    """Rows ``[..., r, out]`` of ``x, first, its bias, last, its bias``, and ``extra``."""
    x, last_bias = tensors[0], tensors[4]
    y = new_empty(x, *x.shape[:-1], last_bias.size(-1))
    record, _ = _mlp(tensors)
    _run("mlp_forward", x, record, y)
    return y


def row_mlp_grads(tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The gradient of every tensor of :func:`row_mlp`, in their order."""
    x, *weights = tensors[:5]
    by_x = new_empty(x, *x.shape)
    by_more = [new_empty(t, *t.shape) for t in tensors[5:]]
    outer = grad.contiguous()
    every, by_weights = _flat(weights)
    record, _ = _mlp(tensors)
    _run("mlp_backward", x, record, outer, by_x, next(iter(by_more), None), every)
    return [by_x, *by_weights, *by_more]


def linear_pair(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Both images ``[..., r, out]`` of ``x, first, its bias, second``."""
    x, bias = tensors[0], tensors[2]
    shape = (*x.shape[:-1], bias.size(-1))
    y, z = new_empty(x, *shape), new_empty(x, *shape)
    record, _ = _pair(tensors)
    _run("pair_forward", x, record, y, z)
    return y, z


def linear_pair_grads(tensors: list[Tensor], by_y: Tensor, by_z: Tensor) -> list[Tensor]:
    """The gradient of every tensor of :func:`linear_pair`, in their order."""
    x, *weights = tensors
    by_x = new_empty(x, *x.shape)
    every, by_weights = _flat(weights)
    record, _ = _pair(tensors)
    _run("pair_backward", x, record, by_y.contiguous(), by_z.contiguous(), by_x, every)
    return [by_x, *by_weights]


def _mlp(tensors: Any) -> tuple[Mlp, list[Tensor | None]]:
    """The record of a call, and the tensors that it points to."""
    x, first, first_bias, last, last_bias, *extra = map(Tensor.contiguous, tensors)
    more = extra[0] if extra else None
    width = 0 if more is None else more.size(-1)
    sizes = x.shape[:-1].numel(), x.size(-1), width, *last.shape[-2:], torch.get_num_threads()
    kept = [x, more, first, first_bias, last, last_bias]
    return Mlp(*sizes, False, *addresses(kept)), kept


def _pair(tensors: Any) -> tuple[Pair, list[Tensor]]:
    kept = list(map(Tensor.contiguous, tensors))
    x, weight = kept[:2]
    sizes = (x.shape[:-1].numel(), *weight.shape[-2:], torch.get_num_threads())
    return Pair(*sizes, False, *addresses(kept)), kept


def _flat(weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Memory for the gradients of all weights, and its parts."""
    sizes = list(map(Tensor.numel, weights))
    flat = weights[0].new_empty(sum(sizes))
    parts = flat.split_with_sizes(sizes)
    return flat, [p.view(w.shape) for p, w in zip(parts, weights, strict=True)]


def _run(name: str, x: Tensor, record: Structure, *results: Tensor | None) -> None:
    at = (c_void_p * len(results))(*addresses(results))
    call(f"{name}_{NUMBER_TYPES[x.dtype]}", record, at)
