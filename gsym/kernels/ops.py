"""Segment reductions, and products with one weight matrix per group of rows.

Every primitive here checks shapes and types and calls a back-end: :mod:`gsym.kernels.reference`
holds the definitions, :mod:`gsym.kernels.native` the fast code, and
:func:`gsym.kernels.backend` names another. All are deterministic and have derivatives of any order
in reverse mode (``backward``, ``torch.autograd.grad``) and in forward mode, under every transform
of ``torch.func`` and for batches of gradients (``is_grads_batched=True``). There, and under
``torch.export``, which ONNX and AOTInductor start from, they are composed of operators of torch,
whatever the back-end but ``"reference"``, and ``trace`` says ``"native"``.

Where a tensor may have leading axes ``[..., ]`` of its own, they are those of ``x``, or there are
none: then all samples share it. Values are never looked at, which would stop a GPU to wait for it.

Reductions of half precision accumulate in float32 and round once, at the end. Under autocast,
products take their operands in its type, as ``nn.Linear`` does; reductions keep the type of ``x``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gsym._validate import check_clamp
from gsym.kernels._dispatch import run
from gsym.kernels._plain import accumulation_type
from gsym.kernels._transforms import is_eager
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
    _check_rows("x", x, segments)
    return run("segment_sum", backend, x, segments)


def segment_mean(x: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Average rows by segment; as :func:`segment_sum`, and an empty segment averages to zero.

    Cost:
        One pass over ``x``; half precision is first copied to float32.
    """
    _check_rows("x", x, segments)
    return run("segment_mean", backend, x, segments)


def segment_max(x: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Entrywise maximum of the rows of every segment; as :func:`segment_sum`.

    The maximum of an empty segment is zero, and NaN is larger than any number. Rows that tie share
    the gradient in equal parts, so that it does not depend on their order.

    Cost:
        One pass over ``x``, and some temporaries of its size for the gradient.
    """
    _check_rows("x", x, segments)
    return run("segment_max", backend, x, segments)


def segment_gather(y: Tensor, segments: Segments, *, backend: str = "auto") -> Tensor:
    """Give every row the value of its segment: the adjoint of :func:`segment_sum`.

    Args:
        y: One row per segment, ``[..., num_segments, c]``.
        segments: Index of the rows.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., e, c]``.
    """
    _check_segments("y", y, segments)
    return run("segment_gather", backend, y, segments)


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
    _check_segments("x", x, source)
    _check_pair(source, segments, "entries")
    if weight is not None:
        _check_device("x", x, "weight", weight)
        wide = accumulation_type(x.dtype)
        if torch.is_autocast_enabled(x.device.type) and weight.dtype != wide:
            weight = weight.to(x.dtype)
        if weight.dtype != wide:
            _check_type("x", x, "weight", weight)
        _check_shape("weight", weight, (segments._index.size(0),), x.shape[:-2])
        if weight.dtype != x.dtype:
            y: Tensor = run("gather_segment_sum", backend, x.to(wide), source, segments, weight)
            return y.to(x.dtype)
    return run("gather_segment_sum", backend, x, source, segments, weight)


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
    _check_tiles(tiles)
    _check_rows("x", x, tiles.segments)
    x, weight, shared = _operands("x", x, {"weight": weight, "shared": shared})
    count = tiles.segments._count
    _check_matrices("weight", weight, count, x.size(-1))
    if shared is not None:
        _check_shape("shared", shared, (count, weight.size(2)), x.shape[:-2])
    return run("indexed_linear", backend, x, weight, tiles, shared)


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
    _check_floating("x", x)
    if x.dim() < 3:
        raise ValueError(f"x must be [..., k, r, in]; got {list(x.shape)}")
    x, weight, shared = _operands("x", x, {"weight": weight, "shared": shared})
    count = x.size(-3)
    _check_matrices("weight", weight, count, x.size(-1))
    if shared is not None:
        _check_shape("shared", shared, (count, weight.size(2)), x.shape[:-3])
    return run("grouped_linear", backend, x, weight, shared)


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
    _check_sizes(x, sizes, tiles)
    x, weight, matrix, bias = _operands("x", x, {"weight": weight, "matrix": matrix, "bias": bias})
    count, width = sizes.size(0), x.size(-1)
    _check_matrices("weight", weight, count, width)
    _check_shape("matrix", matrix, (count * width, count * weight.size(2)))
    _check_shape("bias", bias, (count, weight.size(2)))
    return run("cluster_linear", backend, x, weight, matrix, bias, sizes, tiles)


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
            operands |= _named_parts(group, groups[group], parts)
    _check_segments("receiver", receiver, segments)
    if pos is not None:
        _check_segments("pos", pos, segments)
        if not _casts(receiver):  # autocast leaves coordinates as they are
            _check_type("receiver", receiver, "pos", pos)
    receiver, *values = _operands("receiver", receiver, operands)
    given = dict(zip(operands, values, strict=True))
    _check_edges(receiver, source, segments, pos, given)
    check_clamp(clamp)
    args = (receiver, given["sender"], source, segments, given["weight"], given["bias"])
    options: dict[str, Any] = {"pos": pos, "distance": given.get("distance")}
    for group, parts in _PARTS.items():
        held = groups[group] is not None
        options[group] = tuple(given[part] for part in parts) if held else None
    options |= {"normalize": normalize, "tanh": tanh, "clamp": clamp, "mean": mean}
    return run("edge_mlp_sum", backend, *args, **options)


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
    _check_free_rows(x)
    operands = {"beside": beside}
    operands |= _named_parts("first", first, ("first", "the bias of first"))
    operands |= _named_parts("last", last, ("last", "the bias of last"))
    x, beside, *weights = _operands("x", x, operands)
    width = x.size(-1)
    if beside is not None:
        if beside.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"beside must have the rows of x, {list(x.shape[:-1])}; got {list(beside.shape)}"
            )
        width += beside.size(-1)
    first, last = (weights[0], weights[1]), (weights[2], weights[3])
    _check_map("first", *first, width)
    _check_map("last", *last, first[0].size(2))
    return run("row_mlp", backend, x, first, last, beside)


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
    _check_free_rows(x)
    operands = {"weight": weight, "bias": bias, "other": other}
    x, weight, bias, other = _operands("x", x, operands)
    _check_map("weight", weight, bias, x.size(-1))
    _check_shape("other", other, weight.shape)
    return run("linear_pair", backend, x, weight, bias, other)


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
    _check_tensor("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must be [..., r, c]; got {list(x.shape)}")
    for name, table in (("order", order), ("inverse", inverse)):
        _check_device("x", x, name, table)
        if table.dtype != torch.int64:
            raise TypeError(f"{name} must be torch.int64; got {table.dtype}; convert with .long()")
        _check_shape(name, table, (x.size(-2),))
    return run("permute_rows", backend, x, order, inverse)


# How messages name the tensors that come in one argument.
_PARTS = {
    "edge_attr": ("edge_attr", "the weight of edge_attr"),
    "gate": ("gate", "the bias of gate"),
    "coord": ("coord", "the bias of coord", "the last weight of coord"),
}


def _named_parts(name: str, value: Any, parts: tuple[str, ...]) -> dict[str, Tensor | None]:
    if not isinstance(value, tuple):
        raise TypeError(
            f"{name} must be a tuple of {len(parts)} tensors; got {type(value).__name__}"
        )
    if len(value) != len(parts):
        raise ValueError(f"{name} must be a tuple of {len(parts)} tensors; got {len(value)}")
    for part, tensor in zip(parts, value, strict=True):
        _check_tensor(part, tensor)
    return dict(zip(parts, value, strict=True))


def _operands(of: str, x: Tensor, operands: Mapping[str, Tensor | None]) -> list[Any]:
    """The operands of a product, ``x`` before the others, in the type of autocast where it is on.

    Compiled code is given addresses, and does not see what lies there.
    """
    for name, value in operands.items():
        if value is not None:
            _check_device(of, x, name, value)
    values = [x, *operands.values()]
    if _casts(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        return [None if value is None else value.to(dtype) for value in values]
    for name, value in operands.items():
        if value is not None:
            _check_type(of, x, name, value)
    return values


def _casts(x: Tensor) -> bool:
    """Whether autocast takes products with ``x`` in its own type."""
    return torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


def _check_edges(
    receiver: Tensor,
    source: Segments,
    segments: Segments,
    pos: Tensor | None,
    given: dict[str, Tensor],
) -> None:
    """Sizes of what :func:`edge_mlp_sum` takes."""
    _check_segments("sender", given["sender"], source)
    _check_pair(source, segments, "edges")
    if not (segments.is_sorted or segments.is_traced):
        raise ValueError(
            "edges must be sorted by receiver; sort them with segments.order, and edge_attr alike"
        )
    if (pos is None) != ("distance" not in given):
        raise ValueError("pos and distance go together; give both or neither")
    if pos is None and "coord" in given:
        raise ValueError("coord, which moves coordinates, needs pos")
    batch, h, entries = receiver.shape[:-2], receiver.size(-1), segments._index.size(0)
    if pos is not None:
        _check_shape("pos", pos, (receiver.size(-2), pos.size(-1)), batch)
    attributes = 0
    if "edge_attr" in given:
        attr = given["edge_attr"]
        if attr.dim() < 2 or attr.size(-1) == 0:
            raise ValueError(
                f"edge_attr must be [..., {entries}, a], a at least 1; got {list(attr.shape)}"
            )
        attributes = attr.size(-1)
        _check_shape("edge_attr", attr, (entries, attributes), batch)
    shapes = {
        "sender": receiver.shape,
        "weight": (h, h),
        "bias": (h,),
        "distance": (h,),
        "the weight of edge_attr": (h, attributes),
        "gate": (1, h),
        "the bias of gate": (1,),
        "coord": (h, h),
        "the bias of coord": (h,),
        "the last weight of coord": (1, h),
    }
    for name, shape in shapes.items():
        if name in given:
            _check_shape(name, given[name], shape)


def _check_sizes(x: Tensor, sizes: Tensor, tiles: Tiles | None) -> None:
    """What :func:`cluster_linear` takes for its clusters."""
    _check_free_rows(x)
    _check_device("x", x, "sizes", sizes)
    if not sizes.is_floating_point() or sizes.dtype.itemsize < 4:
        raise TypeError(f"sizes must be torch.float32 or torch.float64; got {sizes.dtype}")
    if sizes.dim() != 1:
        raise ValueError(f"sizes must be [k]; got {list(sizes.shape)}")
    count = sizes.size(0)
    if tiles is not None:
        _check_tiles(tiles)
        _check_rows("x", x, tiles.segments)
        _check_shape("sizes", sizes, (tiles.segments._count,))
        if tiles.is_traced:
            return
        right, empty = tiles._sizes, tiles._has_empty
    elif count == 0 or x.size(-2) % count:
        raise ValueError(
            f"without tiles the {x.size(-2)} rows of x must be equal runs, one for each of "
            f"{count} sizes; give tiles"
        )
    else:
        size = x.size(-2) // count
        right, empty = torch.full_like(sizes, size, dtype=torch.float64), size == 0
    if sizes.device.type != "cpu" or not is_eager(x, sizes):
        return  # to look at values would wait for a device, or is not possible at all
    if empty or not torch.equal(sizes.double(), right):
        raise ValueError(
            "sizes must count the rows of every cluster, and no cluster may be empty; got "
            f"{sizes.tolist()[:8]} for {right.long().tolist()[:8]} rows"
        )


def _check_map(name: str, weight: Tensor, bias: Tensor, width: int) -> None:
    _check_matrices(name, weight, 1, width)
    _check_shape(f"the bias of {name}", bias, (1, weight.size(2)))


def _check_matrices(name: str, weight: Tensor, count: int, width: int) -> None:
    _check_tensor(name, weight)
    # No ``in``: the compiler takes a number and a symbol of the same value for different there.
    fits = weight.dim() == 3 and (weight.size(0) == 1 or weight.size(0) == count)
    if not fits or weight.size(1) != width:
        one = "" if count == 1 else f", or [1, {width}, out] for all"
        raise ValueError(f"{name} must be [{count}, {width}, out]{one}; got {list(weight.shape)}")


def _check_free_rows(x: Tensor) -> None:
    _check_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must be [..., r, in]; got {list(x.shape)}")


def _check_pair(source: Segments, segments: Segments, what: str) -> None:
    """Two indices of the same entries, which lie side by side."""
    _check_index(segments)
    _check_device("source", source._index, "segments", segments._index)
    if source._index.size(0) != segments._index.size(0):
        raise ValueError(
            f"source and segments must index the same {what}; got {source._index.size(0)} and "
            f"{segments._index.size(0)}"
        )


def _check_rows(name: str, x: Tensor, segments: Segments) -> None:
    _check_index(segments)
    _check(name, x, segments._index.size(0), "the index has one entry per row", segments)


def _check_segments(name: str, y: Tensor, segments: Segments) -> None:
    _check_index(segments)
    _check(name, y, segments._count, "there is one row per segment", segments)


def _check(name: str, x: Tensor, rows: int, why: str, segments: Segments) -> None:
    """Shapes and types only; values would cost a device synchronisation."""
    _check_floating(name, x)
    if x.dim() < 2 or x.size(-2) != rows:
        raise ValueError(f"{name} must be [..., {rows}, c], as {why}; got {list(x.shape)}")
    _check_device("its index", segments._index, name, x)


def _check_index(segments: Segments) -> None:
    if not isinstance(segments, Segments):
        raise TypeError(
            f"an index must be Segments; got {type(segments).__name__}; make them with "
            "Segments.from_index(index, num_segments)"
        )


def _check_tiles(tiles: Tiles) -> None:
    if not isinstance(tiles, Tiles):
        raise TypeError(
            f"tiles must be Tiles; got {type(tiles).__name__}; make them with "
            "Tiles(segments, in_channels, out_channels)"
        )


def _check_shape(
    name: str, value: Tensor, own: tuple[int, ...], batch: tuple[int, ...] = ()
) -> None:
    """``own``, or that behind the leading axes of what it goes with."""
    _check_tensor(name, value)
    # The number of axes first: to compare the first ones would tie a symbolic size to a number.
    fits = value.dim() == len(own) and value.shape == own
    if not fits and value.dim() == len(batch) + len(own):
        fits = value.shape == (*batch, *own)
    if not fits:
        more = f" or {[*batch, *own]}" if batch else ""
        raise ValueError(f"{name} must be {list(own)}{more}; got {list(value.shape)}")


def _check_type(of: str, x: Tensor, name: str, value: Tensor) -> None:
    if value.dtype != x.dtype:
        raise TypeError(
            f"{name} must have the type of {of}, {x.dtype}; got {value.dtype}; convert one"
        )


def _check_device(of: str, x: Tensor, name: str, value: Tensor) -> None:
    _check_tensor(name, value)
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device} but {of} on {x.device}; move one of them")


def _check_floating(name: str, x: Tensor) -> None:
    _check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {x.dtype}; convert it with .float()")


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(x).__name__}")
    if x.layout is not torch.strided:
        raise ValueError(f"{name} must be a dense tensor; got layout {x.layout}; use .to_dense()")
