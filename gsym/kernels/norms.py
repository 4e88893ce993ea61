"""ELU and GraphNorm of rows by segment: composed, or as one operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gsym.kernels import _operators, ops
from gsym.kernels._autograd import Context, Grads, derive, operator
from gsym.kernels._backends import BACKENDS, choose
from gsym.kernels.segments import Segments
from gsym.kernels.transforms import are_alike, is_transformed

Rows = Callable[[Tensor], Tensor]


def elu_norm(
    x: Tensor, segments: Segments, weight: Tensor, bias: Tensor, mean_scale: Tensor, eps: float
) -> Tensor:
    """Rows ``[e, c]`` after ELU, every channel of a segment centred and scaled.

    Compiled loops take rows sorted by segment whose channels are a multiple of the SIMD width.

    Args:
        x: The rows.
        segments: Their segments.
        weight: Scale of every channel, ``[c]``.
        bias: Added to every channel, ``[c]``.
        mean_scale: Which part of its mean is taken off every channel, ``[c]``.
        eps: Added to variances.

    Reference:
        Cai, Luo, Xu, He, Liu, Wang, arXiv 2009.03294.
    """
    tensors = [x, weight, bias, mean_scale]
    if are_alike(*tensors) and type(segments) is Segments and segments.is_sorted and x.dim() == 2:
        chosen = choose("auto", "elu_norm", x.device.type)
        if x.size(1) and chosen.takes("elu_norm", *tensors):
            tables = [segments._index, segments._order, segments._pointers]
            y: Tensor = normalised(tensors, tables, eps, chosen.name)[0]
            return y
    mean = partial(ops.segment_mean, segments=segments)
    return _compose(tensors, mean, partial(ops.segment_gather, segments=segments), eps)


@operator(None, kept=1)
def normalised(
    tensors: list[Tensor], tables: list[Tensor], eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    """The rows, and mean and inverse deviation of every segment, ``[2, s, c]``, for the gradient.

    Args:
        tensors: ``x``, its scale, its bias and the scale of the mean.
        tables: Those of sorted segments.
        eps: Added to variances.
        backend: One that takes them.
    """
    return BACKENDS[backend].loops.elu_norm(tensors, tables, eps)


@normalised.fake
def _(
    tensors: list[Tensor], tables: list[Tensor], eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    x = tensors[0]
    return x.new_empty(x.shape), x.new_empty(2, tables[2].size(0) - 1, x.size(1))


@normalised.gradient(lambda tensors, output: (*tensors, output[1]))
def _(ctx: Context, grad: Tensor, _: Tensor | None) -> Grads:
    *tensors, stored = ctx.saved_tensors
    if torch.is_grad_enabled() or is_transformed(grad):
        return _derive(grad, tensors, *ctx.rest)
    return normalised_grads(grad, tensors, stored, *ctx.rest)


@operator(1)
def normalised_grads(
    grad: Tensor,
    tensors: list[Tensor],
    stored: Tensor,
    tables: list[Tensor],
    eps: float,
    backend: str,
) -> list[Tensor]:
    """The gradient of every tensor of :func:`normalised`."""
    return BACKENDS[backend].loops.elu_norm_grads(tensors, stored, tables, eps, grad)


@normalised_grads.fake
def _(grad: Tensor, tensors: list[Tensor], *rest: object) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors]


def _derive(
    grad: Tensor, tensors: Sequence[Tensor], tables: list[Tensor], eps: float, backend: str
) -> list[Tensor]:
    """The gradient through operators, which has one itself."""
    counts = tables[2].diff().clamp(min=1)[:, None]

    def mean(x: Tensor) -> Tensor:
        return (_operators.segment_sum(x, tables, True, backend) / counts).to(x.dtype)

    def gather(y: Tensor) -> Tensor:
        found: Tensor = _operators.segment_gather(y, tables, backend)
        return found

    return derive(lambda views: _compose(views, mean, gather, eps), tensors, [grad])


def _compose(tensors: Sequence[Tensor], mean: Rows, gather: Rows, eps: float) -> Tensor:
    x, weight, bias, mean_scale = tensors
    x = F.elu(x)
    out = x - gather(mean(x) * mean_scale)
    scale = weight / (mean(out.square()) + eps).sqrt()
    return out * gather(scale) + bias
