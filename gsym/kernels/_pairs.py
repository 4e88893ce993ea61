"""The equivariant map of pairs on subgraphs as one operator for the CPU, with its gradient.

What it computes is :func:`gsym.kernels.reference.subgraph_linear` from order 2 to 2, by far the
dearest of these maps; who computes it are the compiled loops of ``csrc/pairs.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gsym.kernels import _cpp_pairs
from gsym.kernels._edges import derive, on_their_own, separately
from gsym.kernels._plain import accumulation_type
from gsym.kernels._subgraph_maps import Verbs, Weights, compose
from gsym.kernels._transforms import is_eager, is_transformed
from gsym.kernels.subgraphs import Subgraphs


def is_fused(x: Tensor, subgraphs: Subgraphs, orders: tuple[int, int], weights: Weights) -> bool:
    """Whether compiled loops take this map."""
    given = [x, *(w for w in weights if w is not None)]
    return orders == (2, 2) and subgraphs.blocks is not None and _cpp_pairs.takes(given)


def fused(verbs: Verbs, x: Tensor, subgraphs: Subgraphs, weights: Weights) -> Tensor:
    """The map of pairs to pairs in one operator."""
    assert subgraphs.blocks is not None
    flat = x.reshape(x.shape[:-2].numel(), *x.shape[-2:])
    tensors = [flat, *(weights[i] for i in (2, 3, 1, 0, 4, 5))]
    given = [t for t in tensors if t is not None]
    if is_eager(*given):
        y: Tensor = _Eager.apply(verbs, subgraphs, *given)
    else:
        y = subgraph_linear(given, list(subgraphs.blocks))
    return y.view(*x.shape[:-2], *y.shape[-2:])


def _values(tensors: list[Tensor], tables: list[Tensor]) -> Tensor:
    """Pairs ``[b, p, out]``.

    Args:
        tensors: ``x [b, p, in]``, then the weights of pairs, of their transposes, of nodes and of
            subgraphs, and the two biases or none.
        tables: ``Subgraphs.blocks``.
    """
    x = tensors[0]
    return _cpp_pairs.forward(_wide(tensors), tables).to(x.dtype)


def _grads(tensors: list[Tensor], tables: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The gradient of every tensor of :func:`_values`, in their order."""
    wide = _wide(tensors)
    grads = _cpp_pairs.backward(wide, tables, grad.to(wide[0].dtype))
    return [g.to(x.dtype) for g, x in zip(grads, tensors, strict=True)]


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Half precision is computed in float32 and rounded once, at the end."""
    return [x.to(accumulation_type(x.dtype)) for x in tensors]


subgraph_linear = torch.library.custom_op("gsym::subgraph_linear", _values, mutates_args=())
subgraph_linear_grads = torch.library.custom_op(
    "gsym::subgraph_linear_grads", separately(_grads), mutates_args=()
)


@subgraph_linear.register_fake
def _(tensors, tables):  # type: ignore[no-untyped-def]
    return tensors[0].new_empty(*tensors[0].shape[:-1], tensors[1].size(-1))


@subgraph_linear_grads.register_fake
def _(tensors, tables, grad):  # type: ignore[no-untyped-def]
    return [x.new_empty(x.shape) for x in tensors]


def _composed(verbs: Verbs, subgraphs: Subgraphs, tensors: list[Tensor]) -> list[Tensor]:
    """The tensors of :func:`_values` in differentiable operators."""
    x, pair, swap, node, graph, *biases = tensors
    weights = Weights(graph, node, pair, swap, *biases)
    return [compose(verbs, x, subgraphs, (2, 2), weights)]


class _Eager(torch.autograd.Function):
    """Without the operator, which costs a small batch its time."""

    @staticmethod
    def forward(ctx, verbs, subgraphs, *tensors):  # type: ignore[no-untyped-def]
        ctx.verbs, ctx.subgraphs = verbs, subgraphs
        ctx.save_for_backward(*tensors)
        return _values(list(tensors), list(subgraphs.blocks))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(grad):
            verbs, subgraphs = ctx.verbs, ctx.subgraphs
            grads: Any = derive(lambda views: _composed(verbs, subgraphs, views), tensors, [grad])
        else:
            grads = on_their_own(_grads(list(tensors), list(ctx.subgraphs.blocks), grad))
        return None, None, *grads


def register(verbs: Verbs) -> None:
    """Give the operator its gradient, a second one through primitives."""

    def save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        tensors, tables = inputs
        ctx.count = len(tensors)
        ctx.save_for_backward(*tensors, *tables)

    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        tensors, tables = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        if torch.is_grad_enabled() or is_transformed(grad):
            kinds, width = tensors[4].size(0), tensors[3].size(1) // tensors[0].size(-1)
            subgraphs = Subgraphs.from_blocks(tables, (width - 1) // 2, kinds)
            grads: Any = derive(lambda views: _composed(verbs, subgraphs, views), tensors, [grad])
        else:
            grads = subgraph_linear_grads(list(tensors), list(tables), grad)
        return list(grads), [None] * len(tables)

    subgraph_linear.register_autograd(backward, setup_context=save)
