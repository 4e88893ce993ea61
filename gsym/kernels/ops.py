"""Segment reductions, and products with one weight matrix per group of rows.

Every primitive here checks shapes and types and calls a back-end: :mod:`gsym.kernels.reference`
holds the definitions, :mod:`gsym.kernels._operators` the gradients, and
:func:`gsym.kernels.backend` names who computes. All are deterministic and have derivatives of any
order in reverse mode (``backward``, ``torch.autograd.grad``) and in forward mode, under every
transform of ``torch.func`` and for batches of gradients (``is_grads_batched=True``). There, and
under ``torch.export``, which ONNX and AOTInductor start from, they are composed of operators of
torch, whatever the back-end but ``"reference"``, and ``trace`` says ``"native"``.

Leading axes of other operands either match those of ``x`` or are absent (broadcast over the batch).
Values are never read, to avoid a device sync.

Operands are checked in one look: whether they are alike, plain tensors of one type on one device in
eager code, and have shapes that fit. Only where they do not, the checks go through them one by one,
which words the error or serves the rarer case. So layers call the same functions as users.

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
    check_device,
    check_edges,
    check_floating,
    check_free_rows,
    check_map,
    check_matrices,
    check_mlp,
    check_pair,
    check_rows,
    check_segments,
    check_shape,
    check_tensor,
    check_tiles,
    check_type,
    fits_edges,
    fits_entries,
    fits_matrices,
    fits_mlp,
    fits_pair,
    fits_rows,
    fits_segments,
    in_one_type,
    named_parts,
)
from gsym.kernels._plain import accumulation_type
from gsym.kernels.edges import EdgeOptions, EdgeStage
from gsym.kernels.segments import Segments, Tiles
from gsym.kernels.transforms import are_alike


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
    alike = are_alike(x) and fits_rows(x, segments)
    if not alike:
        check_rows("x", x, segments)
    return run(_primitives.segment_sum, backend, alike, x, segments)


def segment_mean(x: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Average rows by segment; as :func:`segment_sum`, and an empty segment averages to zero.

    Cost:
        One pass over ``x``; half precision is first copied to float32.
    """
    alike = are_alike(x) and fits_rows(x, segments)
    if not alike:
        check_rows("x", x, segments)
    return run(_primitives.segment_mean, backend, alike, x, segments)


def segment_max(x: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Entrywise maximum of the rows of every segment; as :func:`segment_sum`.

    The maximum of an empty segment is zero, and NaN is larger than any number. Rows that tie share
    the gradient in equal parts, so that it does not depend on their order.

    Cost:
        One pass over ``x``, and some temporaries of its size for the gradient.
    """
    alike = are_alike(x) and fits_rows(x, segments)
    if not alike:
        check_rows("x", x, segments)
    return run(_primitives.segment_max, backend, alike, x, segments)


def segment_gather(y: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Give every row the value of its segment: the adjoint of :func:`segment_sum`.

    Args:
        y: One row per segment, ``[..., num_segments, c]``.
        segments: Index of the rows.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., e, c]``.
    """
    alike = are_alike(y) and fits_segments(y, segments)
    if not alike:
        check_segments("y", y, segments)
    return run(_primitives.segment_gather, backend, alike, y, segments)


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
    given = (x,) if weight is None else (x, weight)
    if are_alike(*given) and fits_entries(x, source, segments, weight):
        return run(_primitives.gather_segment_sum, backend, True, x, source, segments, weight)
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
            args = x.to(wide), source, segments, weight
            y: Tensor = run(_primitives.gather_segment_sum, backend, False, *args)
            return y.to(x.dtype)
    return run(_primitives.gather_segment_sum, backend, False, x, source, segments, weight)


def indexed_linear(
    x: Tensor,
    weight: Tensor,
    tiles: Tiles,
    shared: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Multiply each row by the weight matrix of its segment, and add a per-segment bias.

    Args:
        x: Rows ``[..., r, in]``.
        weight: One matrix per segment, ``[s, in, out]``, or one for all, ``[1, in, out]``.
        tiles: Which rows belong to which segment.
        shared: Per-segment bias, ``[s, out]`` or ``[..., s, out]``.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., r, out]``.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: Rows that are not floating point, mixed types, outside of autocast, or ``tiles``
            that are none.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        Workspace of a few thousand rows in addition to the output.
    """
    given = (x, weight) if shared is None else (x, weight, shared)
    alike = (
        type(tiles) is Tiles
        and are_alike(*given)
        and fits_rows(x, tiles.segments)
        and fits_matrices(x, weight, shared, tiles.segments.num_segments, x.shape[:-2])
    )
    if not alike:
        check_tiles(tiles)
        check_rows("x", x, tiles.segments)
        x, weight, shared = in_one_type("x", x, {"weight": weight, "shared": shared})
        count = tiles.segments._count
        check_matrices("weight", weight, count, x.size(-1))
        if shared is not None:
            check_shape("shared", shared, (count, weight.size(2)), x.shape[:-2])
    return run(_primitives.indexed_linear, backend, alike, x, weight, tiles, shared)


def grouped_linear(
    x: Tensor, weight: Tensor, shared: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Multiply each of ``k`` equal groups of rows by its weight matrix, and add a per-group bias.

    Args:
        x: Groups of rows ``[..., k, r, in]``.
        weight: One matrix per group, ``[k, in, out]``, or one for all, ``[1, in, out]``.
        shared: Per-group bias, ``[k, out]`` or ``[..., k, out]``.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Groups of rows ``[..., k, r, out]``.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: Rows that are not floating point, or mixed types, outside of autocast.
        BackendUnavailableError: A named back-end that cannot run.
    """
    given = (x, weight) if shared is None else (x, weight, shared)
    alike = (
        are_alike(*given)
        and x.dim() > 2
        and fits_matrices(x, weight, shared, x.size(-3), x.shape[:-3])
    )
    if not alike:
        check_floating("x", x)
        if x.dim() < 3:
            raise ValueError(f"x must be [..., k, r, in]; got {list(x.shape)}")
        x, weight, shared = in_one_type("x", x, {"weight": weight, "shared": shared})
        count = x.size(-3)
        check_matrices("weight", weight, count, x.size(-1))
        if shared is not None:
            check_shape("shared", shared, (count, weight.size(2)), x.shape[:-3])
    return run(_primitives.grouped_linear, backend, alike, x, weight, shared)


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
    r"""Fused EGNN edge stage: messages and coordinate updates, summed per receiver.

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
            nor coordinate updates.
        distance: w, weight of the squared distance, ``[h]``; goes with ``pos``.
        edge_attr: Attributes a of every edge, ``[e, a]`` or ``[..., e, a]``, and A ``[h, a]``.
        gate: Weight ``[1, h]`` and bias ``[1]`` of an attention: m is multiplied by the sigmoid of
            this map of it.
        coord: C ``[h, h]``, its bias ``[h]`` and c ``[1, h]``, of the coordinate updates.
        normalize: Divide every r in the update by its length; the gradient takes the length for a
            constant.
        tanh: Bound the factor of r in the update by 1.
        clamp: Maximum coordinate update per edge.
        mean: Average the coordinate updates of a node instead of adding them up.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Sums of messages ``[..., n, h]`` and coordinate updates ``[..., n, d]``, or ``None`` without
        ``coord``.
        A node without edges gets zeros.

    Raises:
        ValueError: Sizes or devices that do not fit each other, edges that are not sorted by
            receiver, ``coord`` without ``pos``, or only one of ``pos`` and ``distance``.
        TypeError: Nodes that are not floating point, or mixed types, outside of autocast.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        4 h^2 operations per edge for messages and as many for coordinate updates. On the CPU the
        memory of a few thousand edges, since gradients recompute the edges; a second derivative,
        and plain torch on CUDA, store a few ``[e, h]``.

    Reference:
        Satorras, Hoogeboom, Welling, arXiv 2102.09844, equations 3 to 5, the first linear map
        split into its parts for either end.
    """
    tensors = {"receiver": receiver, "sender": sender, "weight": weight, "bias": bias}
    if pos is not None:
        tensors["pos"] = pos
    if distance is not None:
        tensors["distance"] = distance
    if edge_attr is not None:
        tensors |= named_parts("edge_attr", edge_attr, ("attr", "attr_weight"))
    if gate is not None:
        tensors |= named_parts("gate", gate, ("gate", "gate_bias"))
    if coord is not None:
        tensors |= named_parts("coord", coord, ("coord", "coord_bias", "coord_last"))
    alike = are_alike(*tensors.values()) and fits_edges(tensors, source, segments)
    if not alike:
        tensors = check_edges(tensors, source, segments)
    if clamp is not None:
        check_clamp(clamp)
        clamp = float(clamp)
    stage = EdgeStage(tensors, EdgeOptions(normalize, tanh, clamp, mean))
    return run(_primitives.edge_mlp_sum, backend, alike, stage, source, segments)


def row_mlp(
    x: Tensor,
    first: tuple[Tensor, Tensor],
    last: tuple[Tensor, Tensor],
    extra: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Row-wise two-layer MLP with SiLU, the same for all rows.

    Args:
        x: Rows ``[..., r, in]``.
        first: Weight ``[1, in + more, h]`` and bias ``[1, h]``.
        last: Weight ``[1, h, out]`` and bias ``[1, out]``.
        extra: Additional features of every row, ``[..., r, more]``, conceptually concatenated to
            ``x``; no copy is made.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., r, out]``.

    Raises:
        ValueError: Sizes or devices that do not fit each other.
        TypeError: Rows that are not floating point, or mixed types, outside of autocast.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        One product each. Compiled for the CPU it takes widths that are multiples of the SIMD width,
        as multiples of 16 are in float32, and stores nothing between the maps; the gradient
        recomputes it.

    Example:
        >>> first = torch.ones(1, 2, 3), torch.zeros(1, 3)
        >>> last = torch.ones(1, 3, 1), torch.ones(1, 1)
        >>> row_mlp(torch.zeros(5, 2), first, last).shape
        torch.Size([5, 1])
    """
    alike = fits_mlp(x, first, last, extra)
    if not alike:
        x, first, last, extra = check_mlp(x, first, last, extra)
    return run(_primitives.row_mlp, backend, alike, x, first, last, extra)


def linear_pair(
    x: Tensor, weight: Tensor, bias: Tensor, other: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Two linear maps of every row: the projections of a node as receiver and as sender.

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
    alike = are_alike(x, weight, bias, other) and fits_pair(x, weight, bias, other)
    if not alike:
        check_free_rows(x)
        operands = {"weight": weight, "bias": bias, "other": other}
        x, weight, bias, other = in_one_type("x", x, operands)
        check_map("weight", weight, bias, x.size(-1))
        check_shape("other", other, weight.shape)
    return run(_primitives.linear_pair, backend, alike, x, weight, bias, other)


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor, *, backend: str = "auto") -> Tensor:
    """Row ``i`` of the result is row ``order[i]`` of ``x``.

    Args:
        x: Rows ``[..., r, c]``.
        order: A permutation of the rows, int64 ``[r]``. That it is one is not checked; an index
            out of range is an error of torch, on CUDA one that ends the process.
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
    return run(_primitives.permute_rows, backend, False, x, order, inverse)
