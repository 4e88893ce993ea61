"""The primitives on any back-end: batches made flat, and the operators called on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gsym.kernels import _backends, _operators, _plain
from gsym.kernels._autograd import without_autocast
from gsym.kernels._backends import STATE, Backend, tell
from gsym.kernels._operators import flat
from gsym.kernels._plain import accumulation_type
from gsym.kernels.clusters import Clusters
from gsym.kernels.edges import EdgeStage
from gsym.kernels.segments import Segments, Tiles
from gsym.kernels.transforms import are_plain, is_transformed


def segment_sum(x: Tensor, segments: Segments, *, backend: Backend) -> Tensor:
    return _sum(x, segments, False, backend)


def segment_mean(x: Tensor, segments: Segments, *, backend: Backend) -> Tensor:
    # In the wide type: a sum may overflow where the mean does not.
    sums = _sum(x, segments, True, backend)
    counts = segments._pointers.diff().clamp(min=1).to(sums.dtype)
    return (sums / counts[:, None]).to(x.dtype)


def _sum(x: Tensor, segments: Segments, wide: bool, backend: Backend) -> Tensor:
    dtype = accumulation_type(x.dtype) if wide else x.dtype
    # One segment: inductor's own pooling gave zeros on CUDA.
    if segments._pointers.size(0) == 2 and not backend.pools:
        if backend.name != "native":
            _backends.in_plain_torch()
        return x.sum(dim=-2, keepdim=True, dtype=dtype)
    if STATE.record is not None:
        tell(backend, "segment_sum", x, dtype=dtype)
    return _operators.segment_sum(x, _tables(segments), wide, backend.name)


def segment_max(x: Tensor, segments: Segments, *, backend: Backend) -> Tensor:
    if STATE.record is not None:
        tell(backend, "segment_max", x)
    return _operators.segment_max(x, _tables(segments), backend.name)


def segment_gather(y: Tensor, segments: Segments, *, backend: Backend) -> Tensor:
    _backends.in_plain_torch()  # its gradient is a sum of the back-end
    return _operators.segment_gather(y, _tables(segments), backend.name)


def gather_segment_sum(
    x: Tensor,
    source: Segments,
    segments: Segments,
    weight: Tensor | None = None,
    *,
    backend: Backend,
) -> Tensor:
    batch = x.shape[:-2]
    if weight is not None and weight.dim() > 1:
        batch = torch.broadcast_shapes(batch, weight.shape[:-1])
        weight = weight.expand(*batch, weight.size(-1)).reshape(batch.numel(), weight.size(-1))
    if STATE.record is not None:
        tell(backend, "gather_sum", x, weight)
    rows = flat(x.expand(*batch, *x.shape[-2:]))
    y = _operators.gather_sum(rows, weight, segments._links(source), backend.name)
    return y.view(*batch, *y.shape[-2:])


def indexed_linear(
    x: Tensor, weight: Tensor, tiles: Tiles, shared: Tensor | None = None, *, backend: Backend
) -> Tensor:
    batch = x.shape[:-2]
    if shared is not None:
        shared = flat(shared.expand(*batch, *shared.shape[-2:]))
    weight = weight.expand(tiles.segments._pointers.size(0) - 1, -1, -1)
    if STATE.record is not None:
        tell(backend, "indexed_linear", x, weight, shared)
    tables = tiles._all_tables(), tiles.segments.is_sorted
    y = _operators.indexed_linear(flat(x), weight, shared, *tables, backend.name)
    return y.view(*batch, *y.shape[-2:])


def grouped_linear(
    x: Tensor, weight: Tensor, shared: Tensor | None = None, *, backend: Backend
) -> Tensor:
    _backends.in_plain_torch()
    return _grouped(x, weight, shared)


def _grouped(x: Tensor, weight: Tensor, shared: Tensor | None) -> Tensor:
    groups, rows = x.shape[-3:-1]
    if shared is not None:
        shared = shared.unsqueeze(-2)
    if weight.size(0) == 1:
        y = x @ weight[0]
        return y if shared is None else y + shared
    in_channels, out_channels = weight.shape[1:]
    # With one channel on either side a product is elementwise, and that is faster.
    if in_channels == 1:
        return x * weight if shared is None else torch.addcmul(shared, x, weight)
    if out_channels == 1:
        y = (x * weight.transpose(1, 2)).sum(-1, keepdim=True)
        return y if shared is None else y + shared
    batch = x.shape[:-3]
    every = x.flatten(0, -3)
    count = every.size(0) // max(groups, 1)
    weight = weight.expand(count, *weight.shape).flatten(0, 1)
    if shared is None:
        y = torch.bmm(every, weight)
    else:
        shared = shared.expand(*batch, groups, 1, out_channels).flatten(0, -3)
        y = torch.baddbmm(shared, every, weight)
    return y.view(*batch, groups, rows, out_channels)


def cluster_linear(
    x: Tensor,
    weight: Tensor,
    matrix: Tensor | None,
    bias: Tensor,
    clusters: Clusters,
    is_sorted: bool = False,
    *,
    backend: Backend,
) -> Tensor:
    runs = clusters._in_runs(backend.sorts)
    if runs != is_sorted and not clusters.is_sorted:  # the other layout is the faster
        x = _permute(x, clusters, runs)
        y = cluster_linear(x, weight, matrix, bias, clusters, runs, backend=backend)
        return _permute(y, clusters, is_sorted)
    tables: list[Tensor] = []
    if runs:  # sums and batched products, which torch has
        _backends.in_plain_torch()
    else:
        if STATE.record is not None:
            tell(backend, "indexed_linear", x, weight, bias)
        tables = clusters._tile_tables
    if matrix is None:
        shared = flat(bias.expand(*x.shape[:-2], *bias.shape[-2:]))
        y = _spread(flat(x), weight, shared, tables, clusters.is_sorted, backend.name)
        return y.view(*x.shape[:-1], weight.size(-1))
    given = flat(x), weight, matrix, bias, clusters._divisors(x.dtype)
    if torch.is_grad_enabled():
        y = _ClusterLinear.apply(*given, backend.name, clusters.is_sorted, *tables)
    else:
        y, _ = _mix_and_spread(*given, tables, clusters.is_sorted, backend.name)
    return y.view(*x.shape[:-1], weight.size(-1))


def mix_clusters(
    x: Tensor,
    weight: Tensor,
    mix: Callable[[Tensor], Tensor],
    clusters: Clusters,
    is_sorted: bool = False,
    *,
    backend: Backend,
) -> Tensor:
    """As the public one, of alike operands in eager code that wants gradients."""
    runs = clusters._in_runs(backend.sorts)
    if runs != is_sorted and not clusters.is_sorted:  # the other layout is the faster
        x = _permute(x, clusters, runs)
        y = mix_clusters(x, weight, mix, clusters, runs, backend=backend)
        return _permute(y, clusters, is_sorted)
    if runs:
        _backends.in_plain_torch()
    elif STATE.record is not None:
        tell(backend, "indexed_linear", x, weight)
    tables = [] if runs else clusters._tile_tables
    how = backend.name, clusters.is_sorted, *tables
    batch, k = x.shape[:-2], clusters.num_clusters
    rows = flat(x)
    means, held = _Means.apply(rows, weight, clusters._divisors(x.dtype), *how)
    shared = mix(means.view(*batch, k, x.size(-1)))
    shared = flat(shared.expand(*batch, k, weight.size(-1)))
    y = _Spread.apply(held, rows.detach(), weight.detach(), shared, *how)
    return y.view(*x.shape[:-1], weight.size(-1))


def _permute(x: Tensor, clusters: Clusters, sort: bool) -> Tensor:
    """Rows sorted by cluster, or back as they came."""
    tables = clusters._order, clusters._rank
    return _operators.permute_rows(x, *(tables if sort else reversed(tables)))


def row_mlp(
    x: Tensor,
    first: tuple[Tensor, Tensor],
    last: tuple[Tensor, Tensor],
    extra: Tensor | None = None,
    *,
    backend: Backend,
) -> Tensor:
    tensors = [x, *first, *last]
    if extra is not None:
        tensors.append(extra)
    if are_plain(*tensors) and backend.takes("row_mlp", *tensors):
        return _operators.row_mlp.eager(tensors, backend.name)
    _backends.in_plain_torch()
    return _operators.compose_mlp(tensors)


def linear_pair(
    x: Tensor, weight: Tensor, bias: Tensor, other: Tensor, *, backend: Backend
) -> tuple[Tensor, Tensor]:
    tensors = [x, weight, bias, other]
    if are_plain(*tensors) and backend.takes("linear_pair", *tensors):
        return _operators.linear_pair.eager(tensors, backend.name)
    _backends.in_plain_torch()
    return _operators.compose_pair(tensors)


def edge_mlp_sum(
    stage: EdgeStage, source: Segments, segments: Segments, *, backend: Backend
) -> tuple[Tensor, Tensor | None]:
    tables = [segments._index, segments._order, segments._pointers]
    tables += source._index, source._order, source._pointers
    if not backend.takes("edge_mlp_sum", stage):
        _backends.in_plain_torch()  # but for the sums
        total, moved = _operators.composed_edges(stage, tables, backend.name)
        return total, moved if stage.moves else None
    given, receiver = dict(stage.tensors), stage.tensors["receiver"]
    batch = receiver.shape[:-2]
    for name in ("receiver", "sender", "pos", "attr"):
        x = given.get(name)
        if x is None or (name == "attr" and x.dim() == 2):
            continue
        if len(batch) != 1 or x.shape[:-2] != batch:  # no view in vain: each has a gradient
            given[name] = flat(x.expand(*batch, *x.shape[-2:]))
    args = (list(given.values()), " ".join(given), tables, *stage.options, backend.name)
    total, moved = _operators.edge_mlp_sum(*args)
    if len(batch) != 1:
        total, moved = total.view(receiver.shape), moved.view(*batch, *moved.shape[-2:])
    return total, moved if stage.moves else None


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor, *, backend: Backend) -> Tensor:
    _backends.in_plain_torch()
    return _operators.permute_rows(x, order, inverse)


def _tables(segments: Segments) -> list[Tensor]:
    return [segments._index, segments._order, segments._pointers]


class _ClusterLinear(torch.autograd.Function):
    """Every step is one of the differentiable operators, and so is every step of its gradient.

    One row of the result depends on all clusters, and so does its gradient, so that the products
    and the sums of both take one pass each.
    """

    @staticmethod
    def forward(ctx, x, weight, matrix, bias, sizes, backend, is_sorted, *tables):  # type: ignore[no-untyped-def]
        ctx.backend, ctx.is_sorted = backend, is_sorted
        how = list(tables), is_sorted, backend
        y, means = _mix_and_spread(x, weight, matrix, bias, sizes, *how)
        ctx.save_for_backward(x, weight, matrix, sizes, means, *tables)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, matrix, sizes, means, *tables = ctx.saved_tensors
        k, how = sizes.numel(), (tables, ctx.is_sorted, ctx.backend)
        if torch.is_grad_enabled():  # else they would be constants of the second derivative
            means = (_pool(x, k, *how) / sizes[:, None]).to(x.dtype)
        sums = _pool(grad, k, *how)
        x_needs, weight_needs, matrix_needs, bias_needs = ctx.needs_input_grad[:4]
        grad_x = None
        if x_needs:
            spread = _side_by_side(sums) @ matrix.t().to(sums.dtype)
            spread = (spread.reshape(x.size(0), k, x.size(-1)) / sizes[:, None]).to(x.dtype)
            grad_x = _spread(grad, weight.transpose(1, 2), spread, *how)
        return (
            grad_x,
            _outer(x, grad, weight.size(0), k, *how) if weight_needs else None,
            _cross(means.to(sums.dtype), sums).to(x.dtype) if matrix_needs else None,
            sums.sum(0).to(x.dtype) if bias_needs else None,
            *(None for _ in range(3 + len(tables))),
        )


class _Means(torch.autograd.Function):
    """The means of clusters, and a tensor without numbers that carries a gradient back here.

    Between this and :class:`_Spread` anything may happen to the means. Both meet the same rows;
    were each to make a gradient of them, these two would be added in a pass of their own.
    """

    @staticmethod
    def forward(ctx, x, weight, sizes, backend, is_sorted, *tables):  # type: ignore[no-untyped-def]
        ctx.backend, ctx.is_sorted = backend, is_sorted
        ctx.save_for_backward(x, weight, sizes, *tables)
        means = _pool(x, sizes.numel(), list(tables), is_sorted, backend) / sizes[:, None]
        held = x.new_empty(()).expand(x.size(0), x.size(1), weight.size(-1))
        return means.to(x.dtype), held

    @staticmethod
    @without_autocast
    def backward(ctx, grad_means, grad):  # type: ignore[no-untyped-def]
        x, weight, sizes, *tables = ctx.saved_tensors
        k, how = sizes.numel(), (tables, ctx.is_sorted, ctx.backend)
        x_needs, weight_needs = ctx.needs_input_grad[:2]
        grad_x = None
        if x_needs:
            spread = (grad_means / sizes[:, None]).to(x.dtype)
            grad_x = _spread(grad, weight.transpose(1, 2), spread, *how)
        return (
            grad_x,
            _outer(x, grad, weight.size(0), k, *how) if weight_needs else None,
            *(None for _ in range(3 + len(tables))),
        )


class _Spread(torch.autograd.Function):
    """Rows times the matrix, plus the row, of their cluster, for :class:`_Means` to differentiate.

    ``held`` stands for the rows and the matrices: their gradient is left to it.
    """

    @staticmethod
    def forward(ctx, held, x, weight, shared, backend, is_sorted, *tables):  # type: ignore[no-untyped-def]
        ctx.backend, ctx.is_sorted, ctx.count = backend, is_sorted, shared.size(1)
        ctx.save_for_backward(*tables)
        return _spread(x, weight, shared, list(tables), is_sorted, backend)

    @staticmethod
    @without_autocast
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        tables = list(ctx.saved_tensors)
        held_needs, _, _, shared_needs = ctx.needs_input_grad[:4]
        sums = None
        if shared_needs:
            sums = _pool(grad, ctx.count, tables, ctx.is_sorted, ctx.backend).to(grad.dtype)
        return (
            grad if held_needs else None,
            None,
            None,
            sums,
            *(None for _ in range(2 + len(tables))),
        )


def _mix_and_spread(
    x: Tensor,
    weight: Tensor,
    matrix: Tensor,
    bias: Tensor,
    sizes: Tensor,
    tables: list[Tensor],
    is_sorted: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The rows, and the means of the clusters."""
    how, k = (tables, is_sorted, backend), sizes.numel()
    means = (_pool(x, k, *how) / sizes[:, None]).to(x.dtype)
    shared = (means.flatten(1) @ matrix).view(x.size(0), k, weight.size(-1))
    return _spread(x, weight, shared + bias, *how), means


def _runs(x: Tensor, k: int) -> Tensor:
    """Equal runs of rows, ``[b, k, r, c]``."""
    return x.reshape(x.size(0), k, x.size(1) // k, x.size(2))


def _cross(x: Tensor, y: Tensor) -> Tensor:
    """Products of all entries of two tables, summed over samples."""
    return _side_by_side(x).t() @ _side_by_side(y)


def _side_by_side(x: Tensor) -> Tensor:
    """The rows of every sample concatenated; batches of gradients know no ``flatten``."""
    return x.reshape(x.size(0), x.size(1) * x.size(2))


def _all_rows(x: Tensor) -> Tensor:
    """The rows of all samples, one below the other."""
    return x.reshape(x.size(0) * x.size(1), x.size(2))


def _pool(x: Tensor, k: int, tables: list[Tensor], is_sorted: bool, backend: str) -> Tensor:
    """Sums of the rows of every cluster, ``[b, k, c]``; float32 for half precision."""
    if tables:
        return _operators.segment_sum(x, tables[-3:], True, backend)
    return _runs(x, k).sum(dim=2, dtype=accumulation_type(x.dtype))


def _spread(
    x: Tensor, weight: Tensor, shared: Tensor, tables: list[Tensor], is_sorted: bool, backend: str
) -> Tensor:
    """Each row times the matrix of its cluster, plus the row ``shared`` of its cluster."""
    k = shared.size(1)
    if tables:
        weight = weight.expand(k, -1, -1)
        return _operators.indexed_linear(x, weight, shared, tables, is_sorted, backend)
    plain = is_transformed(x, weight)
    y = (_plain.grouped_linear if plain else _grouped)(_runs(x, k), weight, shared)
    return y.reshape(*x.shape[:2], y.size(-1))


def _outer(
    x: Tensor,
    y: Tensor,
    matrices: int,
    k: int,
    tables: list[Tensor],
    is_sorted: bool,
    backend: str,
) -> Tensor:
    """``x^T y`` summed over the samples and over the rows of every cluster, or over all rows."""
    if matrices == 1:
        return (_all_rows(x).t() @ _all_rows(y))[None]
    if tables:
        return _operators.indexed_outer(x, y, tables, is_sorted, backend)
    x, y = _runs(x, k), _runs(y, k)
    if x.dtype.itemsize < 4:  # no sum over samples of what was rounded
        x, y = (v.transpose(0, 1).reshape(k, -1, v.size(-1)) for v in (x, y))
        return x.transpose(1, 2) @ y
    if y.size(-1) == 1:  # a row on the left is faster than a column on the right
        return (y.transpose(2, 3) @ x).sum(0).transpose(1, 2)
    return (x.transpose(2, 3) @ y).sum(0)
