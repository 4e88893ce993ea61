"""The edge work of the EGNN family as one operator for the CPU, with its gradient.

What it computes is :func:`gsym.kernels.reference.edge_mlp_sum`; who computes it is
:class:`gsym.kernels._pipeline.Pipeline`, in plain torch, or its compiled twin.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gsym.kernels._cpp_edges import CppPipeline
from gsym.kernels._pipeline import Pipeline

Compose = Callable[..., tuple[Tensor, Tensor]]


@torch.library.custom_op("gsym::edge_mlp_sum", mutates_args=())
def edge_mlp_sum(
    tensors: list[Tensor],
    names: str,
    index: Tensor,
    columns: Tensor,
    pointers: Tensor,
    normalize: bool,
    tanh: bool,
    clamp: float | None,
    mean: bool,
    cpp: bool,
) -> tuple[Tensor, Tensor]:
    """Messages ``[b, n, h]`` and moves ``[b, n, d]``, which are empty without ``coord``.

    Args:
        tensors: Those that are there of ``receiver [b, n, h]``, ``sender [b, m, h]``, ``weight``,
            ``bias``, ``pos [b, n, d]``, ``distance``, ``attr [b, e, a]`` or ``[e, a]``,
            ``attr_weight``, ``gate``, ``gate_bias``, ``coord``, ``coord_bias``, ``coord_last``.
        names: Their names, separated by spaces.
        index: Receiver of every edge, sorted.
        columns: Sender of every edge.
        pointers: Where the edges of every receiver begin.
        normalize: As in :func:`gsym.kernels.edge_mlp_sum`, like those that follow.
        tanh: See there.
        clamp: See there.
        mean: See there.
        cpp: Run the compiled loops.
    """
    given = dict(zip(names.split(), tensors, strict=True))
    options = (normalize, tanh, clamp, mean)
    kind = CppPipeline if cpp else Pipeline
    total, moved = kind(_wide(given), index, columns, pointers, *options).forward()
    return total.to(tensors[0].dtype), moved.to(given.get("pos", tensors[0]).dtype)


@edge_mlp_sum.register_fake
def _(tensors, names, *tables_and_options):  # type: ignore[no-untyped-def]
    given = dict(zip(names.split(), tensors, strict=True))
    total = given["receiver"]
    pos: Tensor = given["pos"] if "pos" in given else total  # noqa: SIM401
    dim = pos.size(-1) if "coord" in given else 0
    return total.new_empty(total.shape), pos.new_empty(*total.shape[:2], dim)


@torch.library.custom_op("gsym::edge_mlp_grads", mutates_args=())
def edge_mlp_grads(
    tensors: list[Tensor],
    names: str,
    index: Tensor,
    columns: Tensor,
    pointers: Tensor,
    normalize: bool,
    tanh: bool,
    clamp: float | None,
    mean: bool,
    cpp: bool,
    grad_total: Tensor,
    grad_moved: Tensor,
) -> list[Tensor]:
    """The gradient of every tensor of :func:`edge_mlp_sum`, in their order."""
    given = _wide(dict(zip(names.split(), tensors, strict=True)))
    wide = given["receiver"].dtype
    kind = CppPipeline if cpp else Pipeline
    pipeline = kind(given, index, columns, pointers, normalize, tanh, clamp, mean)
    grads = pipeline.backward(grad_total.to(wide), grad_moved.to(wide))
    return [grads[name].to(x.dtype) for name, x in zip(given, tensors, strict=True)]


@edge_mlp_grads.register_fake
def _(tensors, *rest):  # type: ignore[no-untyped-def]
    return [x.new_empty(x.shape) for x in tensors]


def _wide(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half precision is computed in float32 and rounded once, at the end."""
    types = [x.dtype for x in given.values()]
    wide = torch.float64 if torch.float64 in types else torch.float32
    return {name: x.to(wide) for name, x in given.items()}


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    tensors, ctx.names, index, columns, pointers, *ctx.options = inputs
    ctx.save_for_backward(*tensors, index, columns, pointers)


def register_gradient(compose: Compose) -> Compose:
    """Differentiate the operator, a second time through ``compose``, which has its arguments."""

    def backward(ctx, grad_total, grad_moved):  # type: ignore[no-untyped-def]
        *tensors, index, columns, pointers = ctx.saved_tensors
        args = (ctx.names, index, columns, pointers, *ctx.options)
        outer = (grad_total, grad_moved)
        with torch.autocast(grad_total.device.type, enabled=False):
            if not torch.is_grad_enabled():
                return edge_mlp_grads(tensors, *args, *outer), *(None for _ in args)
            # Views, so that a tensor given twice, or made from another, counts once in each place.
            views = [x.view_as(x) if x.requires_grad else x.detach() for x in tensors]
            views = [x if x.requires_grad else x.requires_grad_() for x in views]
            outputs = compose(views, *args)
            grads = torch.autograd.grad(outputs, views, outer, create_graph=True, allow_unused=True)
        return list(grads), *(None for _ in args)

    edge_mlp_sum.register_autograd(backward, setup_context=_save)
    return compose
