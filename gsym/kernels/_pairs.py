"""Equivariant maps of tensors on subgraphs: composed, or of pairs to pairs as one operator.

The map of pairs to pairs is by far the most expensive. What all compute is
:func:`gsym.kernels.reference.subgraph_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from gsym.kernels import _backends, _plain, _primitives
from gsym.kernels._autograd import Context, Grads, derive, operator
from gsym.kernels._backends import BACKENDS, Backend
from gsym.kernels._operators import flat
from gsym.kernels._plain import accumulation_type
from gsym.kernels._subgraph_maps import Verbs, Weights, compose
from gsym.kernels.segments import Tiles
from gsym.kernels.subgraphs import Subgraphs


def subgraph_linear(
    x: Tensor,
    subgraphs: Subgraphs,
    orders: tuple[int, int],
    weights: Weights,
    *,
    backend: Backend,
) -> Tensor:
    """The primitive on any back-end."""
    tensors = [x, *(w for i in (2, 3, 1, 0, 4, 5) if (w := weights[i]) is not None)]
    blocks = subgraphs.blocks
    if orders != (2, 2) or blocks is None or not backend.takes("subgraph_linear", *tensors):
        _backends.in_plain_torch()
        return compose(_VERBS[backend.name], x, subgraphs, orders, weights)
    y = pairs_to_pairs([flat(x), *tensors[1:]], list(blocks), backend.name)
    return y.view(*x.shape[:-2], *y.shape[-2:])


@operator(None)
def pairs_to_pairs(tensors: list[Tensor], tables: list[Tensor], backend: str) -> Tensor:
    """Pairs ``[b, p, out]``.

    Args:
        tensors: ``x [b, p, in]``, then the weights of pairs, of their transposes, of nodes and of
            subgraphs, and the two biases or none.
        tables: ``Subgraphs.blocks``.
        backend: One that takes them.
    """
    return BACKENDS[backend].loops.subgraph_linear(_wide(tensors), tables).to(tensors[0].dtype)


@pairs_to_pairs.fake
def _(tensors: list[Tensor], tables: list[Tensor], backend: str) -> Tensor:
    return tensors[0].new_empty(*tensors[0].shape[:-1], tensors[1].size(-1))


@pairs_to_pairs.gradient()
def _(ctx: Context, grad: Tensor) -> Grads:
    if torch.is_grad_enabled():
        return _derive(grad, ctx.saved_tensors, *ctx.rest)
    return pairs_to_pairs_grads(grad, list(ctx.saved_tensors), *ctx.rest)


@operator(1, parts=True)
def pairs_to_pairs_grads(
    grad: Tensor, tensors: list[Tensor], tables: list[Tensor], backend: str
) -> list[Tensor]:
    """The gradient of every tensor of :func:`pairs_to_pairs`, in their order."""
    wide, run = _wide(tensors), BACKENDS[backend].loops.subgraph_linear_grads
    grads = run(wide, tables, grad.to(wide[0].dtype))
    return [g.to(x.dtype) for g, x in zip(grads, tensors, strict=True)]


@pairs_to_pairs_grads.fake
def _(grad: Tensor, tensors: list[Tensor], tables: list[Tensor], backend: str) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors]


@pairs_to_pairs_grads.plain
def _(grad: Tensor, tensors: list[Tensor], tables: list[Tensor], backend: str) -> list[Tensor]:
    return _derive(grad, tensors, tables, backend)


def _derive(
    grad: Tensor, tensors: Sequence[Tensor], tables: list[Tensor], backend: str
) -> list[Tensor]:
    """The gradient through primitives, which has one itself."""
    kinds, width = tensors[4].size(0), tensors[3].size(1) // tensors[0].size(-1)
    subgraphs = Subgraphs.from_blocks(tuple(tables), (width - 1) // 2, kinds)

    def composed(views: list[Tensor]) -> Tensor:
        x, pair, swap, node, graph, *biases = views
        weights = Weights(graph, node, pair, swap, *biases)
        return compose(_VERBS[backend], x, subgraphs, (2, 2), weights)

    return derive(composed, tensors, [grad])


def _verbs(backend: Backend) -> Verbs:
    def linear(x: Tensor, weight: Tensor, tiles: Tiles) -> Tensor:
        if tiles.is_traced:
            return _plain.indexed_linear(x, weight, tiles)
        return _primitives.indexed_linear(x, weight, tiles, backend=backend)

    return Verbs(
        sum=partial(_primitives.segment_sum, backend=backend),
        gather=partial(_primitives.segment_gather, backend=backend),
        gather_sum=partial(_primitives.gather_segment_sum, backend=backend),
        linear=linear,
        permute=partial(_primitives.permute_rows, backend=backend),
    )


_VERBS = {name: _verbs(backend) for name, backend in BACKENDS.items()}


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Half precision is computed in float32 and rounded once, at the end."""
    return [x.to(accumulation_type(x.dtype)) for x in tensors]
