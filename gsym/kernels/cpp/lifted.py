"""Maps that all ego-networks share, averaged, in compiled code, ``csrc/lifted.cpp``."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Array, Structure, c_int64, c_void_p

import torch
from torch import Tensor

from gsym.kernels.cpp.library import NUMBER_TYPES, addresses, call, check_sizes, library
from gsym.kernels.native.memory import new_empty

_SIZES = (
    *("nodes", "pairs", "entries", "subgraphs", "places"),
    *("in_channels", "beside", "out_channels", "threads"),
)
_TABLES = (
    *("first", "second", "swap", "loop", "by_first", "first_entry", "first_place"),
    *("node", "owner", "place", "by_node", "of_node", "by_pair", "at_row", "at_column"),
)
_OF_NODES = ("node", "graph", "bias", "loop_bias", "to_node", "graph_to_node", "node_bias")


class _Half(Structure):
    _fields_ = tuple((n, c_void_p) for n in ("x", *_OF_NODES))


class _Lifted(Structure):
    _fields_ = (
        *((n, c_int64) for n in _SIZES),
        *((n, c_void_p) for n in (*_TABLES, "pair", "turned")),
        ("pairs_half", _Half),
        ("nodes_half", _Half),
    )


class _Gradients(Structure):
    _fields_ = (
        ("pair", c_void_p),
        ("turned", c_void_p),
        ("pairs_half", _Half),
        ("nodes_half", _Half),
    )


def are_lifted_maps(tensors: Sequence[Tensor]) -> bool:
    """Whether the loops take the widths of these tensors."""
    width = tensors[3].size(-1)
    lanes = library().gsym_vector_bytes() // tensors[0].element_size()
    return width > 0 and width % lanes == 0 and tensors[0].size(-1) > 0


def lifted_maps(tensors: Sequence[Tensor], tables: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pairs ``[f, d]`` and nodes ``[n, d]``, or of twice the channels."""
    record, kept = _record(tensors, tables)
    x, width = kept[0], _width(record)
    results = new_empty(x, x.size(0), width), new_empty(x, record.nodes, width)
    call(f"lifted_forward_{NUMBER_TYPES[x.dtype]}", record, _pointers(*results))
    return results


def lifted_maps_grads(
    tensors: Sequence[Tensor],
    tables: Sequence[Tensor],
    by_pair: Tensor,
    by_node: Tensor,
    wanted: bool,
) -> list[Tensor]:
    """The gradient of every tensor, but of the first only where it is wanted."""
    record, kept = _record(tensors, tables)
    x = kept[0]
    found = [new_empty(t, *t.shape) for t in (kept if wanted else kept[1:])]
    grads = [*([] if wanted else [None]), *found]
    outer, width = (by_pair.contiguous(), by_node.contiguous()), _width(record)
    check_sizes(by_pair=(outer[0], record.pairs * width), by_node=(outer[1], record.nodes * width))
    results = _Gradients(*addresses(grads[8:10]), *_halves(grads))
    call(f"lifted_backward_{NUMBER_TYPES[x.dtype]}", record, _pointers(*outer), results)
    return found


def _width(record: _Lifted) -> int:
    """Channels of a result."""
    return int(record.out_channels) * (2 if record.beside else 1)


def _halves(tensors: Sequence[Tensor | None]) -> tuple[_Half, _Half]:
    """Pairs and nodes, each with its maps."""
    places = addresses(tensors)
    return _Half(*places[:8]), _Half(*places[10:18])


def graph_sums(x: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """Trace over m and total over the square of m side by side, ``[b, 2c]`` of ``x [f, c]``."""
    x = x.contiguous()
    record = _Lifted(*_sizes(tables, x.size(-1)), *addresses(tables))
    check_sizes(x=(x, record.pairs * x.size(-1)))
    record.pairs_half = _Half(*addresses([x]))
    result = x.new_empty(record.subgraphs, 2 * x.size(-1))
    call(f"lifted_sums_{NUMBER_TYPES[x.dtype]}", record, _pointers(result))
    return result


def graph_spread(grad: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """The adjoint, ``[f, c]`` of ``[b, 2c]``."""
    grad, c = grad.contiguous(), grad.size(-1) // 2
    record = _Lifted(*_sizes(tables, c), *addresses(tables))
    check_sizes(grad=(grad, record.subgraphs * 2 * c))
    result = new_empty(grad, record.pairs, c)
    call(f"lifted_spread_{NUMBER_TYPES[grad.dtype]}", record, _pointers(grad, result))
    return result


def _sizes(tables: Sequence[Tensor], c: int, e: int = 0, d: int = 0) -> tuple[int, ...]:
    """Those of the record of tables, which must fit each other."""
    f, n, b, u, p = (tables[i].numel() for i in (0, 3, 5, 7, 9))
    b -= 1
    lengths = f, f, f, n, n + 1, b + 1, b + 1, u, u, p, n + 1, u, f + 1, p, p
    check_sizes(**{m: (t, w) for m, t, w in zip(_TABLES, tables, lengths, strict=True)})
    if any(t.dtype != torch.int32 for t in tables):
        raise TypeError(f"the tables of subgraphs must be int32; got {[t.dtype for t in tables]}")
    return n, f, u, b, p, c, e, d, torch.get_num_threads()


def _record(tensors: Sequence[Tensor], tables: Sequence[Tensor]) -> tuple[_Lifted, list[Tensor]]:
    """The record of a call, and the tensors that it points to."""
    kept = [t.contiguous() for t in tensors]
    c, d = kept[0].size(-1), kept[3].size(-1)
    e = kept[10].size(-1) if len(kept) > 10 else 0
    sizes = _sizes(tables, c, e, d)
    for part, rows, sums in ((kept[1:8], 3 * c, 2 * c), (kept[11:18], e, e)):
        widths = rows * 3 * d, sums * 2 * d, d, d, rows * d, sums * d, d
        check_sizes(**{m: (t, w) for m, t, w in zip(_OF_NODES, part, widths, strict=False)})
    check_sizes(x=(kept[0], sizes[1] * c), pair=(kept[8], c * d), turned=(kept[9], c * d))
    if e:
        check_sizes(nodes=(kept[10], sizes[0] * e))
    places = addresses((*tables, kept[8], kept[9]))
    return _Lifted(*sizes, *places, *_halves(kept)), kept


def _pointers(*tensors: Tensor) -> Array[c_void_p]:
    return (c_void_p * len(tensors))(*addresses(tensors))
