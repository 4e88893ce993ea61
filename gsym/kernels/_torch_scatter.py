"""Segment reductions by torch-scatter; imported on first use, because the package is optional.

Only the values come from there. Its own gradients give a wrong second derivative without a word, so
those of :mod:`gsym.kernels.native` are used, which also share the gradient of a tied maximum.
"""

from __future__ import annotations

import torch
import torch_scatter
from torch import Tensor

from gsym.kernels import native
from gsym.kernels._plain import accumulation_type
from gsym.kernels.segments import Segments


def segment_sum(x: Tensor, segments: Segments) -> Tensor:
    wide = accumulation_type(x.dtype)  # the package adds up half precision as it is
    return _Sum.apply(x.to(wide), segments).to(x.dtype)


def segment_mean(x: Tensor, segments: Segments) -> Tensor:
    wide = accumulation_type(x.dtype)
    counts = segments._pointers.diff().clamp(min=1).to(wide)
    return (_Sum.apply(x.to(wide), segments) / counts[:, None]).to(x.dtype)


def segment_max(x: Tensor, segments: Segments) -> Tensor:
    return _Max.apply(x, segments)


def _reduce(x: Tensor, segments: Segments, how: str) -> Tensor:
    pointers = segments._pointers.long().view(*(1 for _ in x.shape[:-2]), -1)
    rows = x.index_select(-2, segments._order)
    return torch_scatter.segment_csr(rows, pointers, reduce=how)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, segments):  # type: ignore[no-untyped-def]
        ctx.segments = segments
        return _reduce(x, segments, "sum")

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return native.share_rows(grad, ctx.segments), None


class _Max(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, segments):  # type: ignore[no-untyped-def]
        y = _reduce(x, segments, "max")
        ctx.segments = segments
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, y = ctx.saved_tensors
        return native.share_among_ties(grad, x, y, ctx.segments), None
