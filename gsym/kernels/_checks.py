"""Shapes, types and devices of what primitives are given; values are not read, but for sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gsym.kernels._transforms import is_eager
from gsym.kernels.segments import Segments, Tiles


def named_parts(name: str, value: Any, parts: tuple[str, ...]) -> dict[str, Tensor | None]:
    if not isinstance(value, tuple):
        raise TypeError(
            f"{name} must be a tuple of {len(parts)} tensors; got {type(value).__name__}"
        )
    if len(value) != len(parts):
        raise ValueError(f"{name} must be a tuple of {len(parts)} tensors; got {len(value)}")
    for part, tensor in zip(parts, value, strict=True):
        check_tensor(part, tensor)
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
    receiver: Tensor,
    source: Segments,
    segments: Segments,
    pos: Tensor | None,
    given: dict[str, Tensor],
) -> None:
    """Sizes of what :func:`edge_mlp_sum` takes."""
    check_segments("sender", given["sender"], source)
    check_pair(source, segments, "edges")
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
        check_shape("pos", pos, (receiver.size(-2), pos.size(-1)), batch)
    attributes = 0
    if "edge_attr" in given:
        attr = given["edge_attr"]
        if attr.dim() < 2 or attr.size(-1) == 0:
            raise ValueError(
                f"edge_attr must be [..., {entries}, a], a at least 1; got {list(attr.shape)}"
            )
        attributes = attr.size(-1)
        check_shape("edge_attr", attr, (entries, attributes), batch)
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
            check_shape(name, given[name], shape)


def check_sizes(x: Tensor, sizes: Tensor, tiles: Tiles | None) -> None:
    """What :func:`cluster_linear` takes for its clusters."""
    check_free_rows(x)
    check_device("x", x, "sizes", sizes)
    if not sizes.is_floating_point() or sizes.dtype.itemsize < 4:
        raise TypeError(f"sizes must be torch.float32 or torch.float64; got {sizes.dtype}")
    if sizes.dim() != 1:
        raise ValueError(f"sizes must be [k]; got {list(sizes.shape)}")
    count = sizes.size(0)
    if tiles is not None:
        check_tiles(tiles)
        check_rows("x", x, tiles.segments)
        check_shape("sizes", sizes, (tiles.segments._count,))
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
    """Two indices of the same entries, which lie side by side."""
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
