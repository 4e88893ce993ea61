"""Segment reductions, and products with one weight matrix per group of rows.

Every primitive here checks shapes and types and calls a back-end: :mod:`gsym.kernels.reference`
holds the definitions, :mod:`gsym.kernels.native` the fast code, and
:func:`gsym.kernels.backend` names another. All are deterministic and have derivatives of any order
in reverse mode (``backward``, ``torch.autograd.grad``); there is no forward mode.

Reductions of half precision accumulate in float32 and round once, at the end. Under autocast,
products take their operands in its type, as ``nn.Linear`` does; reductions keep the type of ``x``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gsym._validate import check_clamp
from gsym.kernels._dispatch import run
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
        weight: Factor of every entry, ``[e]``, or ``[..., e]`` where samples have their own; 1
            where ``None``.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Sums ``[..., num_segments, c]``; an empty segment sums to zero.

    Raises:
        ValueError: Sizes that do not fit each other.
        TypeError: ``x`` that is not floating point, or a weight of another type.
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
    entries = segments.index.size(0)
    if source.index.size(0) != entries:
        raise ValueError(
            f"source and segments must index the same entries; got {source.index.size(0)} and "
            f"{entries}"
        )
    if weight is not None:
        if torch.is_autocast_enabled(x.device.type):
            weight = weight.to(x.dtype)
        if weight.dim() < 1 or weight.size(-1) != entries:
            raise ValueError(
                f"weight must hold one number for each of {entries} entries, [..., {entries}]; "
                f"got {list(weight.shape)}"
            )
        if weight.dtype != x.dtype:
            raise TypeError(
                f"weight must have the type of x, {x.dtype}; got {weight.dtype}; convert one"
            )
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
        shared: One row per segment, ``[..., s, out]``.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., r, out]``.

    Cost:
        Besides the result, temporaries of some thousand rows.
    """
    _check_rows("x", x, tiles.segments)
    x, weight, shared = _autocast(x, weight, shared)
    return run("indexed_linear", backend, x, weight, tiles, shared)


def grouped_linear(
    x: Tensor, weight: Tensor, shared: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Multiply each of ``k`` equal groups of rows by its weight matrix, and add a row to each.

    Args:
        x: Groups of rows ``[..., k, r, in]``.
        weight: One matrix per group, ``[k, in, out]``, or one for all, ``[1, in, out]``.
        shared: One row per group, ``[..., k, out]``.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Groups of rows ``[..., k, r, out]``.
    """
    x, weight, shared = _autocast(x, weight, shared)
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
        sizes: Rows of every cluster, ``[k]``, floating point, float32 at least.
        tiles: Which rows belong to which cluster; ``None`` where the clusters are equal runs.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., r, out]``.
    """
    if tiles is not None:
        _check_rows("x", x, tiles.segments)
    x, weight, matrix, bias = _autocast(x, weight, matrix, bias)
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
        pos: x, coordinates ``[..., n, d]``; without them there are neither distances nor moves.
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
        ValueError: Sizes that do not fit each other, edges that are not sorted by receiver,
            ``coord`` without ``pos``, or only one of ``pos`` and ``distance``.
        TypeError: Mixed types, outside of autocast.
        BackendUnavailableError: A named back-end that cannot run.

    Cost:
        4 h^2 operations per edge for messages and as many for moves. On the CPU the memory of some
        thousand edges, since gradients compute the edges anew; a second derivative, and plain
        torch on CUDA, store a few ``[e, h]``.

    Reference:
        Satorras, Hoogeboom, Welling, arXiv 2102.09844, equations 3 to 5, the first linear map
        split into its parts for either end.
    """
    tensors: dict[str, Any] = {
        "sender": sender,
        "weight": weight,
        "bias": bias,
        "distance": distance,
        "edge_attr": edge_attr,
        "gate": gate,
        "coord": coord,
    }
    dtype = receiver.dtype
    if torch.is_autocast_enabled(receiver.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(receiver.device.type)
        receiver = receiver.to(dtype)
        tensors = {name: _to(value, dtype) for name, value in tensors.items()}
    elif pos is not None and pos.dtype != dtype:
        raise TypeError(f"pos must have the type of receiver, {dtype}; got {pos.dtype}")
    _check_edges(receiver, source, segments, pos, **tensors)
    sender, weight, bias = (tensors.pop(name) for name in ("sender", "weight", "bias"))
    args = (receiver, sender, source, segments, weight, bias)
    check_clamp(clamp)
    options = {"normalize": normalize, "tanh": tanh, "clamp": clamp, "mean": mean}
    return run("edge_mlp_sum", backend, *args, **{"pos": pos, **tensors, **options})


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
    _check_shared_rows(x)
    width = x.size(-1)
    if beside is not None:
        if beside.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"beside must have the rows of x, {list(x.shape[:-1])}; got {list(beside.shape)}"
            )
        width += beside.size(-1)
    _check_shared("first", *first, width)
    _check_shared("last", *last, first[0].size(-1))
    operands = {"beside": beside, "first": first[0], "the bias of first": first[1]}
    operands |= {"last": last[0], "the bias of last": last[1]}
    x, beside, *weights = _alike(x, operands)
    return run("row_mlp", backend, x, tuple(weights[:2]), tuple(weights[2:]), beside)


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
    _check_shared_rows(x)
    _check_shared("weight", weight, bias, x.size(-1))
    if other.shape != weight.shape:
        raise ValueError(f"other must be {list(weight.shape)}; got {list(other.shape)}")
    x, weight, bias, other = _alike(x, {"weight": weight, "bias": bias, "other": other})
    return run("linear_pair", backend, x, weight, bias, other)


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor, *, backend: str = "auto") -> Tensor:
    """Row ``i`` of the result is row ``order[i]`` of ``x``.

    Args:
        x: Rows ``[..., r, c]``.
        order: A permutation of the rows, int64 ``[r]``.
        inverse: Its inverse, by which gradients are gathered instead of scattered.
        backend: As in :func:`gsym.kernels.backend`, for this call.

    Returns:
        Rows ``[..., r, c]``.
    """
    return run("permute_rows", backend, x, order, inverse)


def _check_shared(name: str, weight: Tensor, bias: Tensor, width: int) -> None:
    if weight.dim() != 3 or weight.shape[:2] != (1, width):
        raise ValueError(f"{name} must be [1, {width}, out]; got {list(weight.shape)}")
    if bias.shape != (1, weight.size(2)):
        raise ValueError(
            f"the bias of {name} must be [1, {weight.size(2)}]; got {list(bias.shape)}"
        )


def _check_shared_rows(x: Tensor) -> None:
    if x.dim() < 2:
        raise ValueError(f"x must be [..., r, in]; got {list(x.shape)}")
    _check_floating("x", x)


def _autocast(x: Tensor, *operands: Tensor | None) -> list[Any]:
    """The operands of a product in the type of autocast, where that is on."""
    operands = (x, *operands)
    if not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
        return list(operands)
    dtype = torch.get_autocast_dtype(x.device.type)
    return [None if value is None else value.to(dtype) for value in operands]


def _alike(x: Tensor, operands: dict[str, Tensor | None]) -> list[Any]:
    """As :func:`_autocast`; compiled code is given addresses, and does not see what lies there."""
    for name, value in operands.items():
        if value is not None and value.device != x.device:
            raise ValueError(f"{name} is on {value.device} but x on {x.device}; move one of them")
    x, *values = _autocast(x, *operands.values())
    for name, value in zip(operands, values, strict=True):
        if value is not None and value.dtype != x.dtype:
            raise TypeError(
                f"{name} must have the type of x, {x.dtype}; got {value.dtype}; convert one"
            )
    return [x, *values]


def _to(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(part.to(dtype) for part in value)
    return None if value is None else value.to(dtype)


def _check_edges(
    receiver: Tensor,
    source: Segments,
    segments: Segments,
    pos: Tensor | None,
    **tensors: Any,
) -> None:
    """Sizes and types of what :func:`edge_mlp_sum` takes."""
    _check_segments("receiver", receiver, segments)
    _check_segments("sender", tensors["sender"], source)
    h, entries = receiver.size(-1), segments.index.size(0)
    if not segments.is_sorted:
        raise ValueError(
            "edges must be sorted by receiver; sort them with segments.order, and edge_attr alike"
        )
    if source.index.size(0) != entries:
        raise ValueError(
            f"source and segments must index the same edges; got {source.index.size(0)} and "
            f"{entries}"
        )
    if pos is not None:
        _check_segments("pos", pos, segments)
        _check_segments("pos", pos, source)
    if (pos is None) != (tensors["distance"] is None):
        raise ValueError("pos and distance go together; give both or neither")
    if pos is None and tensors["coord"] is not None:
        raise ValueError("coord, which moves coordinates, needs pos")
    attributes = 0
    if tensors["edge_attr"] is not None:
        attr = tensors["edge_attr"][0]
        attributes = attr.size(-1)
        if attr.dim() < 2 or attr.size(-2) != entries or attributes == 0:
            raise ValueError(
                f"edge_attr must be [..., {entries}, a], a at least 1; got {list(attr.shape)}"
            )
    shapes: dict[str, tuple[tuple[int, ...] | None, ...]] = {
        "sender": (receiver.shape,),
        "weight": ((h, h),),
        "bias": ((h,),),
        "distance": ((h,),),
        "edge_attr": (None, (h, attributes)),
        "gate": ((1, h), (1,)),
        "coord": ((h, h), (h,), (1, h)),
    }
    for name, value in tensors.items():
        if value is None:
            continue
        values = value if isinstance(value, tuple) else (value,)
        for part, shape in zip(values, shapes[name], strict=True):
            if shape is not None and part.shape != shape:
                raise ValueError(f"{name} must be {list(shape)} here; got {list(part.shape)}")
            if part.device != receiver.device:
                raise ValueError(
                    f"{name} is on {part.device} but receiver on {receiver.device}; "
                    "move one of them"
                )
            if part.dtype != receiver.dtype:
                raise TypeError(
                    f"{name} must have the type of receiver, {receiver.dtype}; got {part.dtype}"
                )


def _check_rows(name: str, x: Tensor, segments: Segments) -> None:
    _check(name, x, segments.index.size(0), "the index has one entry per row", segments)


def _check_segments(name: str, y: Tensor, segments: Segments) -> None:
    _check(name, y, segments.pointers.size(0) - 1, "there is one row per segment", segments)


def _check(name: str, x: Tensor, rows: int, why: str, segments: Segments) -> None:
    """Shapes and types only; values would cost a device synchronisation."""
    if x.dim() < 2 or x.size(-2) != rows:
        raise ValueError(f"{name} must be [..., {rows}, c], as {why}; got {list(x.shape)}")
    _check_floating(name, x)
    if x.device != segments.index.device:
        raise ValueError(
            f"{name} is on {x.device} but its index on {segments.index.device}; move one of them"
        )


def _check_floating(name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {x.dtype}; convert it with .float()")
