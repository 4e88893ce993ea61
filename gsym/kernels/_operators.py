"""Every operator once: its gradient, what it is without numbers, and the same in plain torch.

Raw loops of a back-end compute; see :class:`gsym.kernels._backends.Backend` for what they are
given. Operators come in adjoint pairs, each the gradient of the other, which makes them
differentiable to any order. Tables of an index come in one list: ``index, order, pointers`` of
:class:`gsym.kernels.Segments`, their ``_links``, or the tables of ``Tiles``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gsym.kernels import _plain
from gsym.kernels._autograd import Context, Grads, derive, operator
from gsym.kernels._backends import BACKENDS, loop
from gsym.kernels._plain import accumulation_type
from gsym.kernels.edges import EdgeOptions, EdgeStage, EdgeTables, compose_edges
from gsym.kernels.native.memory import take_rows
from gsym.kernels.segments import TileTables


def flat(x: Tensor) -> Tensor:
    """``[..., r, c]`` as ``[b, r, c]``."""
    return x if x.dim() == 3 else x.reshape(x.shape[:-2].numel(), *x.shape[-2:])


def _as(x: Tensor, y: Tensor) -> Tensor:
    """``y [b, s, c]`` with the leading axes of ``x``."""
    return y if x.dim() == 3 else y.view(*x.shape[:-2], *y.shape[-2:])


def _nothing(tensors: Any, output: Any) -> tuple[()]:
    return ()


@operator(1)
def segment_sum(x: Tensor, tables: list[Tensor], wide: bool, backend: str) -> Tensor:
    """Sums of the rows of every segment, in the type of ``x`` or in that of sums."""
    dtype = accumulation_type(x.dtype) if wide else x.dtype
    run = loop(backend, "segment_sum", x, dtype=dtype)
    if x.dim() == 3:
        return run(x, *tables, dtype)
    return _as(x, run(flat(x), *tables, dtype))


@segment_sum.fake
def _(x: Tensor, tables: list[Tensor], wide: bool, backend: str) -> Tensor:
    dtype = accumulation_type(x.dtype) if wide else x.dtype
    return x.new_empty(*x.shape[:-2], tables[2].size(0) - 1, x.size(-1), dtype=dtype)


@segment_sum.plain
def _(x: Tensor, tables: list[Tensor], wide: bool, backend: str) -> Tensor:
    return _plain.add(x, tables[0], tables[2].size(0) - 1, wide)


@segment_sum.gradient(_nothing)
def _(ctx: Context, grad: Tensor) -> Grads:
    tables, _, backend = ctx.rest
    return (segment_gather(grad.to(ctx.dtype), tables, backend),)


@operator(1)
def segment_gather(y: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    """Every row gets the value of its segment."""
    return take_rows(y, tables[0])


@segment_gather.fake
def _(y: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    return y.new_empty(*y.shape[:-2], tables[0].size(0), y.size(-1))


@segment_gather.plain
def _(y: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    return _plain.take(y, tables[0])


@segment_gather.gradient(_nothing)
def _(ctx: Context, grad: Tensor) -> Grads:
    tables, backend = ctx.rest
    return (segment_sum(grad, tables, False, backend),)


@operator(1)
def segment_max(x: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    """Entrywise maxima of the rows of every segment."""
    return _as(x, loop(backend, "segment_max", x)(flat(x), *tables))


@segment_max.fake
def _(x: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    return x.new_empty(*x.shape[:-2], tables[2].size(0) - 1, x.size(-1))


@segment_max.gradient(lambda tensors, high: (*tensors, high))
def _(ctx: Context, grad: Tensor) -> Grads:
    return (tie_spread(grad, *ctx.saved_tensors, *ctx.rest),)


@operator(3)
def tie_spread(g: Tensor, x: Tensor, y: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    """Share the row ``g`` of every segment among the rows of ``x`` that hold its maximum ``y``."""
    if x.numel() == 0:
        return x.new_empty(x.shape)
    run = loop(backend, "tie_spread", g, x, y)
    return _as(x, run(flat(g), flat(x), flat(y), *tables))


@tie_spread.fake
def _(g: Tensor, x: Tensor, y: Tensor, *tables: object) -> Tensor:
    return x.new_empty(x.shape)


@tie_spread.plain
def _(g: Tensor, x: Tensor, y: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    return _plain.tie_spread(g, x, y, tables[0])


@tie_spread.gradient(lambda tensors, output: tensors[1:])
def _(ctx: Context, grad: Tensor) -> Grads:
    return tie_mean(grad, *ctx.saved_tensors, *ctx.rest), None, None


@operator(3)
def tie_mean(h: Tensor, x: Tensor, y: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    """Mean of the rows of ``h`` where ``x`` holds the maximum: the adjoint of the above."""
    held = (x == y.index_select(-2, tables[0])).to(accumulation_type(x.dtype))
    count = segment_sum.compute(held, tables, True, backend).clamp_(min=1)
    return (segment_sum.compute(held.mul_(h), tables, True, backend) / count).to(h.dtype)


@tie_mean.fake
def _(h: Tensor, x: Tensor, y: Tensor, *tables: object) -> Tensor:
    return y.new_empty(y.shape)


@tie_mean.plain
def _(h: Tensor, x: Tensor, y: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    return _plain.tie_mean(h, x, y, tables[0])


@tie_mean.gradient(lambda tensors, output: tensors[1:])
def _(ctx: Context, grad: Tensor) -> Grads:
    return tie_spread(grad, *ctx.saved_tensors, *ctx.rest), None, None


@operator(1)
def permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Row ``i`` of the result is row ``order[i]``."""
    return take_rows(x, order)


@permute_rows.fake
def _(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@permute_rows.plain
def _(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return _plain.take(x, order)


@permute_rows.gradient(_nothing)
def _(ctx: Context, grad: Tensor) -> Grads:
    order, inverse = ctx.rest
    return (permute_rows(grad, inverse, order),)


def _transposed(tables: list[Tensor]) -> list[Tensor]:
    return [*tables[4:], *tables[:4]]


@operator(2)
def gather_sum(x: Tensor, weight: Tensor | None, tables: list[Tensor], backend: str) -> Tensor:
    """The product of a sparse matrix, of entries ``weight``, with ``x [b, n, c]``."""
    return loop(backend, "gather_sum", x, weight)(x, weight, *tables[:3])


@gather_sum.fake
def _(x: Tensor, weight: Tensor | None, tables: list[Tensor], backend: str) -> Tensor:
    return x.new_empty(x.size(0), tables[2].size(0) - 1, x.size(-1))


@gather_sum.plain
def _(x: Tensor, weight: Tensor | None, tables: list[Tensor], backend: str) -> Tensor:
    return _plain.gather_sum(x, weight, *tables[:3])


@gather_sum.gradient()
def _(ctx: Context, grad: Tensor) -> Grads:
    (x, weight), (tables, backend) = ctx.saved_tensors, ctx.rest
    by_x = by_weight = None
    if ctx.needs_input_grad[0]:
        by_x = gather_sum(grad, weight, _transposed(tables), backend)
    if ctx.needs_input_grad[1]:
        # Summed over samples before they are rounded.
        wide = accumulation_type(x.dtype) if weight.dim() == 1 else x.dtype
        dots = gather_dot(grad.to(wide), x.to(wide), tables, backend)
        by_weight = dots.sum(0).to(x.dtype) if weight.dim() == 1 else dots
    return by_x, by_weight


@operator(2)
def gather_dot(y: Tensor, x: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    """``[b, e]``: the product of the rows of ``y [b, s, c]`` and ``x`` that every entry joins."""
    return loop(backend, "gather_dot", y, x)(y, x, *tables[:4], tables[7])


@gather_dot.fake
def _(y: Tensor, x: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    return x.new_empty(x.size(0), tables[0].size(0))


@gather_dot.plain
def _(y: Tensor, x: Tensor, tables: list[Tensor], backend: str) -> Tensor:
    return _plain.gather_dot(y, x, *tables[:3])


@gather_dot.gradient()
def _(ctx: Context, grad: Tensor) -> Grads:
    (y, x), (tables, backend) = ctx.saved_tensors, ctx.rest
    needs_y, needs_x, *_ = ctx.needs_input_grad
    return (
        gather_sum(x, grad, tables, backend) if needs_y else None,
        gather_sum(y, grad, _transposed(tables), backend) if needs_x else None,
    )


@operator(3)
def indexed_linear(
    x: Tensor,
    weight: Tensor,
    shared: Tensor | None,
    tables: list[Tensor],
    is_sorted: bool,
    backend: str,
) -> Tensor:
    """Rows of ``x [b, r, in]`` times the matrix, plus the row, of their segment."""
    run = loop(backend, "indexed_linear", x, weight, shared)
    return run(x, weight, shared, TileTables(*tables), is_sorted)


@indexed_linear.fake
def _(x: Tensor, weight: Tensor, shared: Tensor | None, *tables: object) -> Tensor:
    return x.new_empty(x.size(0), x.size(1), weight.size(-1))


@indexed_linear.plain
def _(
    x: Tensor,
    weight: Tensor,
    shared: Tensor | None,
    tables: list[Tensor],
    is_sorted: bool,
    backend: str,
) -> Tensor:
    tiles = TileTables(*tables)
    return _plain.tiled_linear(x, weight, shared, tiles.segment, tiles.rows, tiles.blocks)


@indexed_linear.gradient(lambda tensors, output: tensors[:2])
def _(ctx: Context, grad: Tensor) -> Grads:
    (x, weight), (tables, _, backend) = ctx.saved_tensors, ctx.rest
    needs_x, needs_weight, needs_shared, *_ = ctx.needs_input_grad
    transposed = weight.transpose(1, 2)
    return (
        indexed_linear(grad, transposed, None, *ctx.rest) if needs_x else None,
        indexed_outer(x, grad, *ctx.rest) if needs_weight else None,
        segment_sum(grad, tables[-3:], False, backend) if needs_shared else None,
    )


@operator(2)
def indexed_outer(
    x: Tensor, y: Tensor, tables: list[Tensor], is_sorted: bool, backend: str
) -> Tensor:
    """``[s, in, out]``: sum over samples and rows of a segment of ``x^T y``."""
    run = loop(backend, "indexed_outer", x, y)
    return run(x, y, TileTables(*tables), is_sorted)


@indexed_outer.fake
def _(x: Tensor, y: Tensor, tables: list[Tensor], is_sorted: bool, backend: str) -> Tensor:
    return x.new_empty(tables[-1].size(0) - 1, x.size(-1), y.size(-1))


@indexed_outer.plain
def _(x: Tensor, y: Tensor, tables: list[Tensor], is_sorted: bool, backend: str) -> Tensor:
    tiles = TileTables(*tables)
    count = tiles.pointers.size(0) - 1
    return _plain.tiled_outer(x, y, tiles.segment, tiles.rows, tiles.blocks, count)


@indexed_outer.gradient()
def _(ctx: Context, grad: Tensor) -> Grads:
    x, y = ctx.saved_tensors
    needs_x, needs_y, *_ = ctx.needs_input_grad
    return (
        indexed_linear(y, grad.transpose(1, 2), None, *ctx.rest) if needs_x else None,
        indexed_linear(x, grad, None, *ctx.rest) if needs_y else None,
    )


@operator(None)
def row_mlp(tensors: list[Tensor], backend: str) -> Tensor:
    """Two linear maps of every row with SiLU between.

    Args:
        tensors: ``x, first, its bias, last, its bias`` and, if there is something, ``extra``.
        backend: One that takes them.
    """
    return BACKENDS[backend].loops.row_mlp(tensors)


@row_mlp.fake
def _(tensors: list[Tensor], backend: str) -> Tensor:
    return tensors[0].new_empty(*tensors[0].shape[:-1], tensors[4].size(-1))


@row_mlp.gradient()
def _(ctx: Context, grad: Tensor) -> Grads:
    if torch.is_grad_enabled():
        return derive(compose_mlp, ctx.saved_tensors, [grad])
    return row_mlp_grads(grad, list(ctx.saved_tensors), *ctx.rest)


@operator(1, parts=True)
def row_mlp_grads(grad: Tensor, tensors: list[Tensor], backend: str) -> list[Tensor]:
    """The gradient of every tensor of :func:`row_mlp`."""
    return BACKENDS[backend].loops.row_mlp_grads(tensors, grad)


@row_mlp_grads.fake
def _(grad: Tensor, tensors: list[Tensor], backend: str) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors]


@row_mlp_grads.plain
def _(grad: Tensor, tensors: list[Tensor], backend: str) -> list[Tensor]:
    return derive(compose_mlp, tensors, [grad])


def compose_mlp(tensors: Sequence[Tensor]) -> Tensor:
    """:func:`row_mlp` in operators of torch."""
    x, first, first_bias, last, last_bias, *extra = tensors
    parts = [x, *extra]
    if x.dtype.itemsize < 4:
        parts = [torch.cat(parts, dim=-1)]  # their sum is rounded once
    # Else part by part, and in place where nothing is derived: the fresh pages of a joined tensor,
    # and of every other one, cost as much as a product.
    weights = first.squeeze(0).split([part.size(-1) for part in parts])
    hidden = first_bias
    for part, weight in zip(parts, weights, strict=True):
        hidden = torch.addmm(hidden, part.flatten(0, -2), weight)
    hidden = F.silu(hidden, inplace=not hidden.requires_grad)
    y = _shared_linear(hidden, last, last_bias)
    return y.reshape(*x.shape[:-1], y.size(-1))


@operator(None)
def linear_pair(tensors: list[Tensor], backend: str) -> tuple[Tensor, Tensor]:
    """Two linear maps of every row, of ``x, first, its bias, second``, by a back-end that can."""
    return BACKENDS[backend].loops.linear_pair(tensors)


@linear_pair.fake
def _(tensors: list[Tensor], backend: str) -> tuple[Tensor, ...]:
    x, bias = tensors[0], tensors[2]
    return tuple(x.new_empty(*x.shape[:-1], bias.size(-1)) for _ in range(2))


@linear_pair.gradient()
def _(ctx: Context, *grads: Tensor) -> Grads:
    if torch.is_grad_enabled():
        return derive(compose_pair, ctx.saved_tensors, grads)
    return linear_pair_grads(*grads, list(ctx.saved_tensors), *ctx.rest)


@operator(2, parts=True)
def linear_pair_grads(
    by_y: Tensor, by_z: Tensor, tensors: list[Tensor], backend: str
) -> list[Tensor]:
    """The gradient of every tensor of :func:`linear_pair`."""
    return BACKENDS[backend].loops.linear_pair_grads(tensors, by_y, by_z)


@linear_pair_grads.fake
def _(by_y: Tensor, by_z: Tensor, tensors: list[Tensor], backend: str) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors]


@linear_pair_grads.plain
def _(by_y: Tensor, by_z: Tensor, tensors: list[Tensor], backend: str) -> list[Tensor]:
    return derive(compose_pair, tensors, [by_y, by_z])


def compose_pair(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """:func:`linear_pair` in operators of torch."""
    x, weight, bias, other = tensors
    return _shared_linear(x, weight, bias), _shared_linear(x, other)


def _shared_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows, weight = x.flatten(0, -2), weight.squeeze(0)
    y = rows.mm(weight) if bias is None else torch.addmm(bias, rows, weight)
    return y.reshape(*x.shape[:-1], weight.size(-1))


@operator(None, parts=True)
def edge_mlp_sum(
    tensors: list[Tensor],
    names: str,
    tables: list[Tensor],
    normalize: bool,
    tanh: bool,
    clamp: float | None,
    mean: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Messages ``[b, n, h]`` and moves ``[b, n, d]``, which are empty without ``coord``.

    Args:
        tensors: Those of an :class:`EdgeStage`.
        names: Their names, separated by spaces.
        tables: As :class:`EdgeTables` has them.
        normalize: As in :func:`gsym.kernels.edge_mlp_sum`, like those that follow.
        tanh: See there.
        clamp: See there.
        mean: See there.
        backend: One that takes them.
    """
    stage = _stage(tensors, names, normalize, tanh, clamp, mean)
    total, moved = BACKENDS[backend].loops.edge_mlp_sum(stage, EdgeTables(*tables))
    return total.to(tensors[0].dtype), moved.to(stage.moved_type)


@edge_mlp_sum.fake
def _(tensors: list[Tensor], names: str, *rest: Any) -> tuple[Tensor, ...]:
    given = dict(zip(names.split(), tensors, strict=True))
    total = given["receiver"]
    pos = given["pos"] if "pos" in given else total  # noqa: SIM401
    dim = pos.size(-1) if "coord" in given else 0
    return total.new_empty(total.shape), pos.new_empty(*total.shape[:2], dim)


@edge_mlp_sum.gradient()
def _(ctx: Context, *grads: Tensor) -> Grads:
    if torch.is_grad_enabled():
        return _derive_edges(grads, ctx.saved_tensors, *ctx.rest)
    return edge_mlp_grads(*grads, list(ctx.saved_tensors), *ctx.rest)


@operator(2, parts=True)
def edge_mlp_grads(
    grad_total: Tensor,
    grad_moved: Tensor,
    tensors: list[Tensor],
    names: str,
    tables: list[Tensor],
    normalize: bool,
    tanh: bool,
    clamp: float | None,
    mean: bool,
    backend: str,
) -> list[Tensor]:
    """The gradient of every tensor of :func:`edge_mlp_sum`, in their order."""
    stage = _stage(tensors, names, normalize, tanh, clamp, mean)
    run = BACKENDS[backend].loops.edge_mlp_grads
    grads = run(stage, EdgeTables(*tables), grad_total, grad_moved)
    found = []
    for name, x in stage.tensors.items():
        grad = grads[name]
        found.append(grad if grad.dtype == x.dtype else grad.to(x.dtype))
    return found


@edge_mlp_grads.fake
def _(grad_total: Tensor, grad_moved: Tensor, tensors: list[Tensor], *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors]


@edge_mlp_grads.plain
def _(grad_total: Tensor, grad_moved: Tensor, *rest: Any) -> list[Tensor]:
    return _derive_edges((grad_total, grad_moved), *rest)


def _derive_edges(
    grads: Sequence[Tensor],
    tensors: Sequence[Tensor],
    names: str,
    tables: list[Tensor],
    *options_and_backend: Any,
) -> list[Tensor]:
    *options, backend = options_and_backend

    def compose(views: list[Tensor]) -> tuple[Tensor, Tensor]:
        return composed_edges(_stage(views, names, *options), tables, backend)

    return derive(compose, tensors, grads)


def composed_edges(stage: EdgeStage, tables: list[Tensor], backend: str) -> tuple[Tensor, Tensor]:
    """:func:`edge_mlp_sum` in operators that are differentiable to any order."""
    target, source = tables[:3], tables[3:]

    def sum_up(x: Tensor) -> Tensor:
        total: Tensor = segment_sum(x, target, True, backend)
        return total

    return compose_edges(
        stage,
        lambda x: segment_gather(x, target, backend),
        lambda x: segment_gather(x, source, backend),
        sum_up,
        lambda x: sum_up(x) / target[2].diff()[:, None].clamp(min=1).to(x.dtype),
    )


def _stage(tensors: Sequence[Tensor], names: str, *options: Any) -> EdgeStage:
    return EdgeStage(dict(zip(names.split(), tensors, strict=True)), EdgeOptions(*options))
