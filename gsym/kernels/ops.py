"""Segment reductions, and products with one weight matrix per group of rows.

Every primitive here checks shapes and types and calls a back-end: :mod:`gsym.kernels.reference`
holds the definitions, :mod:`gsym.kernels._operators` the gradients, and
:func:`gsym.kernels.backend` names who computes. All are deterministic and have derivatives of any
order in reverse mode (``backward``, ``torch.autograd.grad``) and in forward mode, under every
transform of ``torch.func`` and for batches of gradients (``is_grads_batched=True``). There, and
under ``torch.export``, which ONNX and AOTInductor start from, they are composed of operators of
torch, whatever the back-end but ``"reference"``, and ``trace`` says ``"native"``.

Where a tensor may have leading axes ``[..., ]`` of its own, they are those of ``x``, or there are
none: then all samples share it. Values are never looked at, which would stop a GPU to wait for it.

Reductions of half precision accumulate in float32 and round once, at the end. Under autocast,
products take their operands in its type, as ``nn.Linear`` does; reductions keep the type of ``x``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsym._validate import check_clamp
from gsym.kernels import _primitives
from gsym.kernels._call import run
from gsym.kernels._checks import (
    casts,
    check_device,
    check_edges,
    check_floating,
    check_free_rows,
    check_map,
    check_matrices,
    check_pair,
    check_rows,
    check_segments,
    check_shape,
    check_sizes,
    check_tensor,
    check_tiles,
    check_type,
    in_one_type,
    named_parts,
)
from gsym.kernels._edges import NAMES, EdgeOptions, EdgeStage
from gsym.kernels._plain import accumulation_type
from gsym.kernels.segments import Segments, Tiles


def segment_sum(x: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Sum rows by segment.

    Args:
        x: Rows ``[..., e, c]``.
        segments: Index of the rows.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Sums ``[..., num_segments, c]``; an empty segment sums to zero.

    Raises:
        ValueError: A number of rows other than that of the index.
        TypeError: Rows that are not floating point.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        One pass over ``x``.
    """
    check_rows("x", x, segments)
    return run(_primitives.segment_sum, backend, x, segments)


def segment_mean(x: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Average rows by segment; as :func:`segment_sum`, and an empty segment averages to zero.

    Cost:
        One pass over ``x``; half precision is first copied to float32.
    """
    check_rows("x", x, segments)
    return run(_primitives.segment_mean, backend, x, segments)


def segment_max(x: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Entrywise maximum of the rows of every segment; as :func:`segment_sum`.

    The maximum of an empty segment is zero, and NaN is larger than any number. Rows that tie share
    the gradient in equal parts, so that it does not depend on their order.

    Cost:
        One pass over ``x``, and some temporaries of its size for the gradient.
    """
    check_rows("x", x, segments)
    return run(_primitives.segment_max, backend, x, segments)


def segment_gather(y: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Give every row the value of its segment: the adjoint of :func:`segment_sum`.

    Args:
        y: One row per segment, ``[..., num_segments, c]``.
        segments: Index of the rows.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., e, c]``.
    """
    check_segments("y", y, segments)
    return run(_primitives.segment_gather, backend, y, segments)


def gather_segment_sum(
    x: Tensor,
    source: Segments,
    segments: Segments,
    weight: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Gather rows, scale them and sum them by segment: a sparse matrix times a dense one.

    ``y_s = sum of w_e x_source(e)`` over the entries e of segment s, for instance the edges that
    arrive at node s.

    Args:
        x: Rows ``[..., n, c]``.
        source: Which row of ``x`` every entry reads, ``e`` entries into ``n`` segments.
        segments: To which segment every entry belongs, in the same order of entries.
        weight: Factor of every entry, ``[e]`` or ``[..., e]``; 1 where ``None``. With ``x`` of half
            precision it may be float32, which a share in a large mean needs; then both are
            multiplied in float32 and the sum is rounded once.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Sums ``[..., num_segments, c]``; an empty segment sums to zero.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: ``x`` that is not floating point, or a weight of another type, outside of
            autocast.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        One read of a row per entry, and no tensor ``[e, c]``, in the gradients neither: that of
        ``x`` is the same sum by ``source``, in tables that the first call prepares.

    Example:
        >>> source = Segments.from_index(torch.tensor([0, 0, 1]), num_segments=2)
        >>> target = Segments.from_index(torch.tensor([1, 0, 1]), num_segments=2)
        >>> gather_segment_sum(torch.tensor([[1.0], [2.0]]), source, target).tolist()
        [[1.0], [3.0]]
    """
    check_segments("x", x, source)
    check_pair(source, segments, "entries")
    if weight is not None:
        check_device("x", x, "weight", weight)
        wide = accumulation_type(x.dtype)
        if torch.is_autocast_enabled(x.device.type) and weight.dtype != wide:
            weight = weight.to(x.dtype)
        if weight.dtype != wide:
            check_type("x", x, "weight", weight)
        check_shape("weight", weight, (segments._index.size(0),), x.shape[:-2])
        if weight.dtype != x.dtype:
            y: Tensor = run(
                _primitives.gather_segment_sum, backend, x.to(wide), source, segments, weight
            )
            return y.to(x.dtype)
    return run(_primitives.gather_segment_sum, backend, x, source, segments, weight)


def indexed_linear(
    x: Tensor,
    weight: Tensor,
    tiles: Tiles,
    shared: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Multiply each row by the weight matrix of its segment, and add a row of the segment.

    Args:
        x: Rows ``[..., r, in]``.
        weight: One matrix per segment, ``[s, in, out]``, or one for all, ``[1, in, out]``.
        tiles: Which rows belong to which segment.
        shared: One row per segment, ``[s, out]`` or ``[..., s, out]``.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., r, out]``.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: Rows that are not floating point, mixed types, outside of autocast, or ``tiles``
            that are none.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        Besides the result, temporaries of some thousand rows.
    """
    check_tiles(tiles)
    check_rows("x", x, tiles.segments)
    x, weight, shared = in_one_type("x", x, {"weight": weight, "shared": shared})
    count = tiles.segments._count
    check_matrices("weight", weight, count, x.size(-1))
    if shared is not None:
        check_shape("shared", shared, (count, weight.size(2)), x.shape[:-2])
    return run(_primitives.indexed_linear, backend, x, weight, tiles, shared)


def grouped_linear(
    x: Tensor, weight: Tensor, shared: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Multiply each of ``k`` equal groups of rows by its weight matrix, and add a row to each.

    Args:
        x: Groups of rows ``[..., k, r, in]``.
        weight: One matrix per group, ``[k, in, out]``, or one for all, ``[1, in, out]``.
        shared: One row per group, ``[k, out]`` or ``[..., k, out]``.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Groups of rows ``[..., k, r, out]``.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: Rows that are not floating point, or mixed types, outside of autocast.
        BackendUnavailableError: A named back-end that cannot run.
    """
    check_floating("x", x)
    if x.dim() < 3:
        raise ValueError(f"x must be [..., k, r, in]; got {list(x.shape)}")
    x, weight, shared = in_one_type("x", x, {"weight": weight, "shared": shared})
    count = x.size(-3)
    check_matrices("weight", weight, count, x.size(-1))
    if shared is not None:
        check_shape("shared", shared, (count, weight.size(2)), x.shape[:-3])
    return run(_primitives.grouped_linear, backend, x, weight, shared)


def cluster_linear(
    x: Tensor,
    weight: Tensor,
    matrix: Tensor,
    bias: Tensor,
    sizes: Tensor,
    tiles: Tiles | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Multiply each row by the matrix of its cluster and add a linear map of all cluster means.

    ``y_i = x_i D_c(i) + (m M + b)_c(i)`` with ``m`` the cluster means, side by side. The gradient
    with respect to ``x`` has the same form with transposed weights, so it takes one pass as well.

    Args:
        x: Rows ``[..., r, in]``.
        weight: D, one matrix per cluster, ``[k, in, out]``, or one for all, ``[1, in, out]``.
        matrix: M, ``[k * in, k * out]``.
        bias: b, ``[k, out]``.
        sizes: Rows of every cluster, ``[k]``, floating point, float32 at least; none is empty.
            Compared with the tables on the CPU alone.
        tiles: Which rows belong to which cluster; ``None`` where the clusters are equal runs.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., r, out]``.

    Raises:
        ValueError: Sizes or devices that do not fit each other, or empty clusters.
        TypeError: Rows that are not floating point, mixed types, outside of autocast, sizes of
            less than float32, or ``tiles`` that are none.
        BackendUnavailableError: A named back-end that cannot run.
    """
    check_sizes(x, sizes, tiles)
    x, weight, matrix, bias = in_one_type(
        "x", x, {"weight": weight, "matrix": matrix, "bias": bias}
    )
    count, width = sizes.size(0), x.size(-1)
    check_matrices("weight", weight, count, width)
    check_shape("matrix", matrix, (count * width, count * weight.size(2)))
    check_shape("bias", bias, (count, weight.size(2)))
    return run(_primitives.cluster_linear, backend, x, weight, matrix, bias, sizes, tiles)


def edge_mlp_sum(
    receiver: Tensor,
    sender: Tensor,
    source: Segments,
    segments: Segments,
    weight: Tensor,
    bias: Tensor,
    *,
    pos: Tensor | None = None,
    distance: Tensor | None = None,
    edge_attr: tuple[Tensor, Tensor] | None = None,
    gate: tuple[Tensor, Tensor] | None = None,
    coord: tuple[Tensor, Tensor, Tensor] | None = None,
    normalize: bool = False,
    tanh: bool = False,
    clamp: float | None = None,
    mean: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    r"""The whole work of the EGNN family on edges: messages and moves, summed by receiver.

    On the edge from j to i, with :math:`r = x_i - x_j` and :math:`\sigma` = SiLU,

    .. math::
        m = \sigma(W \sigma(p_i + q_j + |r|^2 w + A a) + b), \qquad
        \Delta = r \, c^T \sigma(C m + c_0).

    Args:
        receiver: p, projection of every node as receiver, ``[..., n, h]``.
        sender: q, projection of every node as sender, ``[..., n, h]``.
        source: The sender of every edge.
        segments: The receiver of every edge; the edges are sorted by it.
        weight: W ``[h, h]``, as ``nn.Linear`` stores it.
        bias: b ``[h]``.
        pos: x, coordinates ``[n, d]`` or ``[..., n, d]``; without them there are neither distances
            nor moves.
        distance: w, weight of the squared distance, ``[h]``; goes with ``pos``.
        edge_attr: Attributes a of every edge, ``[e, a]`` or ``[..., e, a]``, and A ``[h, a]``.
        gate: Weight ``[1, h]`` and bias ``[1]`` of an attention: m is multiplied by the sigmoid of
            this map of it.
        coord: C ``[h, h]``, its bias ``[h]`` and c ``[1, h]``, of the moves.
        normalize: Divide every r in the move by its length; the gradient takes the length for a
            constant.
        tanh: Bound the factor of r in the move by 1.
        clamp: Longest move along one edge.
        mean: Average the moves of a node instead of adding them up.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Sums of messages ``[..., n, h]`` and moves ``[..., n, d]``, or ``None`` without ``coord``.
        A node without edges gets zeros.

    Raises:
        ValueError: Sizes or devices that do not fit each other, edges that are not sorted by
            receiver, ``coord`` without ``pos``, or only one of ``pos`` and ``distance``.
        TypeError: Nodes that are not floating point, or mixed types, outside of autocast.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        4 h^2 operations per edge for messages and as many for moves. On the CPU the memory of some
        thousand edges, since gradients compute the edges anew; a second derivative, and plain
        torch on CUDA, store a few ``[e, h]``.

    Reference:
        Satorras, Hoogeboom, Welling, arXiv 2102.09844, equations 3 to 5, the first linear map
        split into its parts for either end.
    """
    groups = {"edge_attr": edge_attr, "gate": gate, "coord": coord}
    operands: dict[str, Tensor | None] = {"sender": sender, "weight": weight, "bias": bias}
    if distance is not None:
        operands["distance"] = distance
    for group, parts in _PARTS.items():
        if groups[group] is not None:
            operands |= named_parts(group, groups[group], parts)
    check_segments("receiver", receiver, segments)
    if pos is not None:
        check_segments("pos", pos, segments)
        if not casts(receiver):  # autocast leaves coordinates as they are
            check_type("receiver", receiver, "pos", pos)
    receiver, *values = in_one_type("receiver", receiver, operands)
    given = dict(zip(operands, values, strict=True))
    check_edges(receiver, source, segments, pos, given)
    check_clamp(clamp)
    tensors = {"receiver": receiver, "pos": pos}
    tensors |= {_INNER.get(name, name): x for name, x in given.items()}
    stage = EdgeStage(
        {name: x for name in NAMES if (x := tensors.get(name)) is not None},
        EdgeOptions(normalize, tanh, None if clamp is None else float(clamp), mean),
    )
    return run(_primitives.edge_mlp_sum, backend, stage, source, segments)


def row_mlp(
    x: Tensor,
    first: tuple[Tensor, Tensor],
    last: tuple[Tensor, Tensor],
    beside: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Two linear maps of every row with SiLU between, the same for all rows.

    Args:
        x: Rows ``[..., r, in]``.
        first: Weight ``[1, in + more, h]`` and bias ``[1, h]``.
        last: Weight ``[1, h, out]`` and bias ``[1, out]``.
        beside: What stands beside every row of ``x``, ``[..., r, more]``; it is never put there.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., r, out]``.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: Rows that are not floating point, or mixed types, outside of autocast.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        One product each. Compiled for the CPU it takes widths of whole vectors, as multiples of 16
        are in float32, and stores nothing between the maps; the gradient computes it anew.

    Example:
        >>> first = torch.ones(1, 2, 3), torch.zeros(1, 3)
        >>> last = torch.ones(1, 3, 1), torch.ones(1, 1)
        >>> row_mlp(torch.zeros(5, 2), first, last).shape
        torch.Size([5, 1])
    """
    check_free_rows(x)
    operands = {"beside": beside}
    operands |= named_parts("first", first, ("first", "the bias of first"))
    operands |= named_parts("last", last, ("last", "the bias of last"))
    x, beside, *weights = in_one_type("x", x, operands)
    width = x.size(-1)
    if beside is not None:
        if beside.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"beside must have the rows of x, {list(x.shape[:-1])}; got {list(beside.shape)}"
            )
        width += beside.size(-1)
    first, last = (weights[0], weights[1]), (weights[2], weights[3])
    check_map("first", *first, width)
    check_map("last", *last, first[0].size(2))
    return run(_primitives.row_mlp, backend, x, first, last, beside)


def linear_pair(
    x: Tensor, weight: Tensor, bias: Tensor, other: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Two linear maps of every row, side by side: what a node is as receiver and as sender.

    Args:
        x: Rows ``[..., r, in]``.
        weight: The first map, ``[1, in, out]``.
        bias: Its bias, ``[1, out]``.
        other: The second map, ``[1, in, out]``.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Both images, ``[..., r, out]``.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: Rows that are not floating point, or mixed types, outside of autocast.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        One product each; compiled, as in :func:`row_mlp`, both in one pass over ``x``.

    Example:
        >>> weight = torch.ones(1, 2, 3)
        >>> y, z = linear_pair(torch.ones(5, 2), weight, torch.ones(1, 3), -weight)
        >>> y[0].tolist(), z[0].tolist()
        ([3.0, 3.0, 3.0], [-2.0, -2.0, -2.0])
    """
    check_free_rows(x)
    operands = {"weight": weight, "bias": bias, "other": other}
    x, weight, bias, other = in_one_type("x", x, operands)
    check_map("weight", weight, bias, x.size(-1))
    check_shape("other", other, weight.shape)
    return run(_primitives.linear_pair, backend, x, weight, bias, other)


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor, *, backend: str = "auto") -> Tensor:
    """Row ``i`` of the result is row ``order[i]`` of ``x``.

    Args:
        x: Rows ``[..., r, c]``.
        order: A permutation of the rows, int64 ``[r]``. That it is one is not checked; a row that
            is not there is an error of torch, on CUDA one that ends the process.
        inverse: Its inverse, by which gradients are gathered instead of scattered.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., r, c]``.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: Tables of another type.
        BackendUnavailableError: A named back-end that cannot run.
    """
    check_tensor("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must be [..., r, c]; got {list(x.shape)}")
    for name, table in (("order", order), ("inverse", inverse)):
        check_device("x", x, name, table)
        if table.dtype != torch.int64:
            raise TypeError(f"{name} must be torch.int64; got {table.dtype}; convert with .long()")
        check_shape(name, table, (x.size(-2),))
    return run(_primitives.permute_rows, backend, x, order, inverse)


# How messages name the tensors that come in one argument.
_PARTS = {
    "edge_attr": ("edge_attr", "the weight of edge_attr"),
    "gate": ("gate", "the bias of gate"),
    "coord": ("coord", "the bias of coord", "the last weight of coord"),
}


# By what names the edge stage knows them.
_INNER = {
    "edge_attr": "attr",
    "the weight of edge_attr": "attr_weight",
    "the bias of gate": "gate_bias",
    "the bias of coord": "coord_bias",
    "the last weight of coord": "coord_last",
}
