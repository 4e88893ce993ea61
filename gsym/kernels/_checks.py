"""Shapes, types and devices of what primitives are given; values are not read, but for sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gsym.kernels.clusters import Clusters
from gsym.kernels.segments import Segments, Tiles
from gsym.kernels.transforms import are_alike


def named_parts(name: str, value: Any, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors that come in one argument, by their own names."""
    if not isinstance(value, tuple):
        raise TypeError(
            f"{name} must be a tuple of {len(parts)} tensors; got {type(value).__name__}"
        )
    if len(value) != len(parts):
        raise ValueError(f"{name} must be a tuple of {len(parts)} tensors; got {len(value)}")
    for part, tensor in zip(parts, value, strict=True):
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            check_tensor(_SAID.get(part, part), tensor)
    return dict(zip(parts, value, strict=True))


def in_one_type(of: str, x: Tensor, operands: Mapping[str, Tensor | None]) -> list[Any]:
    """The operands of a product, ``x`` before the others, in the type of autocast where it is on.

    Compiled code is given addresses, and does not see what lies there.
    """
    for name, value in operands.items():
        if value is not None:
            check_device(of, x, name, value)
    values = [x, *operands.values()]
    if casts(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        return [None if value is None else value.to(dtype) for value in values]
    for name, value in operands.items():
        if value is not None:
            check_type(of, x, name, value)
    return values


def casts(x: Tensor) -> bool:
    """Whether autocast takes products with ``x`` in its own type."""
    return torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


def check_edges(
    tensors: dict[str, Tensor], source: Segments, segments: Segments
) -> dict[str, Tensor]:
    """What :func:`edge_mlp_sum` takes, by the names of :class:`EdgeStage`, in one type."""
    receiver, pos = tensors["receiver"], tensors.get("pos")
    check_segments("receiver", receiver, segments)
    if pos is not None:
        check_segments("pos", pos, segments)
        if not casts(receiver):  # autocast leaves coordinates as they are
            check_type("receiver", receiver, "pos", pos)
    others = {name: x for name, x in tensors.items() if name not in ("receiver", "pos")}
    values = in_one_type("receiver", receiver, {_SAID.get(n, n): x for n, x in others.items()})
    tensors = tensors | dict(zip(("receiver", *others), values, strict=True))
    receiver, sender = tensors["receiver"], tensors["sender"]
    check_segments("sender", sender, source)
    check_pair(source, segments, "edges")
    if not (segments.is_sorted or segments.is_traced):
        raise ValueError(
            "edges must be sorted by receiver; sort them with segments.order, and edge_attr alike"
        )
    if (pos is None) != ("distance" not in tensors):
        raise ValueError("pos and distance go together; give both or neither")
    if pos is None and "coord" in tensors:
        raise ValueError("coord, which moves coordinates, needs pos")
    batch, entries = receiver.shape[:-2], segments._index.size(0)
    if pos is not None:
        check_shape("pos", pos, (receiver.size(-2), pos.size(-1)), batch)
    attr = tensors.get("attr")
    if attr is not None:
        if attr.dim() < 2 or attr.size(-1) == 0:
            raise ValueError(
                f"edge_attr must be [..., {entries}, a], a at least 1; got {list(attr.shape)}"
            )
        check_shape("edge_attr", attr, (entries, attr.size(-1)), batch)
    check_shape("sender", sender, receiver.shape)
    for name, shape in edge_shapes(receiver.size(-1), attr).items():
        if name in tensors:
            check_shape(_SAID.get(name, name), tensors[name], shape)
    return tensors


def fits_edges(tensors: dict[str, Tensor], source: Segments, segments: Segments) -> bool:
    """Whether operands that are alike have the shapes of :func:`check_edges`."""
    if not type(source) is type(segments) is Segments or not segments.is_sorted:
        return False
    receiver, pos, attr = tensors["receiver"], tensors.get("pos"), tensors.get("attr")
    if receiver.dim() < 2 or receiver.shape != tensors["sender"].shape:
        return False
    *batch, n, _ = receiver.shape
    entries, device = segments._index.size(0), receiver.device
    for index in (source, segments):
        if index._pointers.size(0) != n + 1 or index._index.size(0) != entries:
            return False
        if index._index.device != device:
            return False
    if pos is None:
        if "distance" in tensors or "coord" in tensors:
            return False
    else:
        if "distance" not in tensors or pos.dim() < 2:
            return False
        own = n, pos.size(-1)
        if pos.shape != own and pos.shape != (*batch, *own):
            return False
    if attr is not None:
        if attr.dim() < 2 or attr.size(-1) == 0:
            return False
        own = entries, attr.size(-1)
        if attr.shape != own and attr.shape != (*batch, *own):
            return False
    for name, shape in edge_shapes(receiver.size(-1), attr).items():
        x = tensors.get(name)
        if x is not None and x.shape != shape:
            return False
    return True


def edge_shapes(h: int, attr: Tensor | None) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of an edge stage of width h."""
    square, vector, row = (h, h), (h,), (1, h)
    return {
        "weight": square,
        "bias": vector,
        "distance": vector,
        "attr_weight": (h, 0 if attr is None else attr.size(-1)),
        "gate": row,
        "gate_bias": (1,),
        "coord": square,
        "coord_bias": vector,
        "coord_last": row,
    }


# How messages name the tensors that come in one argument.
_SAID = {
    "attr": "edge_attr",
    "attr_weight": "the weight of edge_attr",
    "gate_bias": "the bias of gate",
    "coord_bias": "the bias of coord",
    "coord_last": "the last weight of coord",
}


def check_clusters(x: Tensor, clusters: Clusters) -> None:
    """The rows of clusters, and whether these are some."""
    check_free_rows(x)
    if not isinstance(clusters, Clusters):
        raise TypeError(
            f"clusters must be Clusters; got {type(clusters).__name__}; make them with "
            "Clusters(labels, num_clusters, in_channels, out_channels)"
        )
    why = "the clusters have one label per row"
    check_size("x", x, clusters.num_rows, why, clusters.segments)


def fits_rows(x: Tensor, segments: Segments) -> bool:
    """Whether there is one row per entry of an index that is no traced one."""
    if type(segments) is not Segments or x.dim() < 2:
        return False
    index = segments._index
    return x.size(-2) == index.size(0) and index.device == x.device


def fits_segments(y: Tensor, segments: Segments) -> bool:
    """Whether there is one row per segment of an index that is no traced one."""
    if type(segments) is not Segments or y.dim() < 2:
        return False
    return y.size(-2) == segments._pointers.size(0) - 1 and segments._index.device == y.device


def fits_entries(x: Tensor, source: Segments, segments: Segments, weight: Tensor | None) -> bool:
    """Whether a sparse matrix of entries that are alike has the columns of ``x``."""
    if not fits_segments(x, source) or type(segments) is not Segments:
        return False
    entries = segments._index.size(0)
    if source._index.size(0) != entries or segments._index.device != x.device:
        return False
    return weight is None or weight.shape == (entries,) or weight.shape == (*x.shape[:-2], entries)


def fits_matrices(
    x: Tensor, weight: Tensor, shared: Tensor | None, count: int, batch: tuple[int, ...]
) -> bool:
    """Whether there is one matrix, or one for each of ``count`` groups of rows, and its row."""
    if weight.dim() != 3 or weight.size(1) != x.size(-1) or weight.size(0) not in (1, count):
        return False
    own = count, weight.size(2)
    return shared is None or shared.shape == own or shared.shape == (*batch, *own)


def fits_clusters(
    x: Tensor, weight: Tensor, matrix: Tensor | None, bias: Tensor | None, clusters: Clusters
) -> bool:
    """Whether operands that are alike have the shapes that :func:`cluster_linear` takes."""
    if type(clusters) is not Clusters or x.dim() < 2 or weight.dim() != 3:
        return False
    count, (matrices, width, out) = clusters.num_clusters, weight.shape
    if x.size(-2) != clusters.num_rows or x.size(-1) != width or x.device != clusters._order.device:
        return False
    if matrices not in (1, count):
        return False
    if matrix is not None and matrix.shape != (count * width, count * out):
        return False
    if bias is None:
        return True
    return bias.shape == (count, out) or (
        matrix is None and bias.shape == (*x.shape[:-2], count, out)
    )


def fits_mlp(x: Any, first: Any, last: Any, extra: Tensor | None) -> bool:
    """Whether operands are alike and have the shapes that :func:`row_mlp` takes."""
    if not (type(first) is type(last) is tuple and len(first) == len(last) == 2):
        return False
    weights = (*first, *last) if extra is None else (*first, *last, extra)
    if not are_alike(x, *weights) or x.dim() < 2:
        return False
    width = x.size(-1)
    if extra is not None:
        if extra.shape[:-1] != x.shape[:-1]:
            return False
        width += extra.size(-1)
    weight, bias, second, second_bias = weights[:4]
    if weight.dim() != 3 or second.dim() != 3:
        return False
    hidden, out = weight.size(-1), second.size(-1)
    return (
        weight.shape == (1, width, hidden)
        and bias.shape == (1, hidden)
        and second.shape == (1, hidden, out)
        and second_bias.shape == (1, out)
    )


def check_mlp(x: Tensor, first: Any, last: Any, extra: Tensor | None) -> tuple[Any, ...]:
    """What :func:`row_mlp` takes, in one type."""
    check_free_rows(x)
    operands: dict[str, Tensor | None] = {"extra": extra}
    operands |= named_parts("first", first, ("first", "the bias of first"))
    operands |= named_parts("last", last, ("last", "the bias of last"))
    x, extra, *weights = in_one_type("x", x, operands)
    width = x.size(-1)
    if extra is not None:
        if extra.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"extra must have the rows of x, {list(x.shape[:-1])}; got {list(extra.shape)}"
            )
        width += extra.size(-1)
    check_map("first", weights[0], weights[1], width)
    check_map("last", weights[2], weights[3], weights[0].size(2))
    return x, (weights[0], weights[1]), (weights[2], weights[3]), extra


def fits_pair(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> bool:
    """Whether operands that are alike have the shapes that :func:`linear_pair` takes."""
    if x.dim() < 2 or weight.dim() != 3 or weight.shape != other.shape:
        return False
    out = weight.size(2)
    return weight.shape == (1, x.size(-1), out) and bias.shape == (1, out)


def check_map(name: str, weight: Tensor, bias: Tensor, width: int) -> None:
    check_matrices(name, weight, 1, width)
    check_shape(f"the bias of {name}", bias, (1, weight.size(2)))


def check_matrices(name: str, weight: Tensor, count: int, width: int) -> None:
    check_tensor(name, weight)
    # No ``in``: the compiler takes a number and a symbol of the same value for different there.
    fits = weight.dim() == 3 and (weight.size(0) == 1 or weight.size(0) == count)
    if not fits or weight.size(1) != width:
        one = "" if count == 1 else f", or [1, {width}, out] for all"
        raise ValueError(f"{name} must be [{count}, {width}, out]{one}; got {list(weight.shape)}")


def check_free_rows(x: Tensor) -> None:
    check_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must be [..., r, in]; got {list(x.shape)}")


def check_pair(source: Segments, segments: Segments, what: str) -> None:
    """Two indices of the same entries on one device."""
    check_index(segments)
    check_device("source", source._index, "segments", segments._index)
    if source._index.size(0) != segments._index.size(0):
        raise ValueError(
            f"source and segments must index the same {what}; got {source._index.size(0)} and "
            f"{segments._index.size(0)}"
        )


def check_rows(name: str, x: Tensor, segments: Segments) -> None:
    check_index(segments)
    check_size(name, x, segments._index.size(0), "the index has one entry per row", segments)


def check_segments(name: str, y: Tensor, segments: Segments) -> None:
    check_index(segments)
    check_size(name, y, segments._count, "there is one row per segment", segments)


def check_size(name: str, x: Tensor, rows: int, why: str, segments: Segments) -> None:
    """Shapes and types only; values would cost a device synchronisation."""
    check_floating(name, x)
    if x.dim() < 2 or x.size(-2) != rows:
        raise ValueError(f"{name} must be [..., {rows}, c], as {why}; got {list(x.shape)}")
    check_device("its index", segments._index, name, x)


def check_index(segments: Segments) -> None:
    if not isinstance(segments, Segments):
        raise TypeError(
            f"an index must be Segments; got {type(segments).__name__}; make them with "
            "Segments.from_index(index, num_segments)"
        )


def check_tiles(tiles: Tiles) -> None:
    if not isinstance(tiles, Tiles):
        raise TypeError(
            f"tiles must be Tiles; got {type(tiles).__name__}; make them with "
            "Tiles(segments, in_channels, out_channels)"
        )


def check_shape(
    name: str, value: Tensor, own: tuple[int, ...], batch: tuple[int, ...] = ()
) -> None:
    """``own``, or that behind the leading axes of what it goes with."""
    check_tensor(name, value)
    # The number of axes first: to compare the first ones would tie a symbolic size to a number.
    fits = value.dim() == len(own) and value.shape == own
    if not fits and value.dim() == len(batch) + len(own):
        fits = value.shape == (*batch, *own)
    if not fits:
        more = f" or {[*batch, *own]}" if batch else ""
        raise ValueError(f"{name} must be {list(own)}{more}; got {list(value.shape)}")


def check_type(of: str, x: Tensor, name: str, value: Tensor) -> None:
    if value.dtype != x.dtype:
        raise TypeError(
            f"{name} must have the type of {of}, {x.dtype}; got {value.dtype}; convert one"
        )


def check_device(of: str, x: Tensor, name: str, value: Tensor) -> None:
    check_tensor(name, value)
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device} but {of} on {x.device}; move one of them")


def check_floating(name: str, x: Tensor) -> None:
    check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {x.dtype}; convert it with .float()")


def check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(x).__name__}")
    if x.layout is not torch.strided:
        raise ValueError(f"{name} must be a dense tensor; got layout {x.layout}; use .to_dense()")
