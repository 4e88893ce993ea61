"""The equivariant map of pairs on subgraphs in compiled code, ``csrc/pairs.cpp``."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from gsym.kernels.cpp.library import NUMBER_TYPES, addresses, call, check_sizes
from gsym.kernels.native.memory import new_empty

# Numbers of all weights together: a few sums of their gradients must fit into memory.
_MOST_WEIGHTS = 2**22


class _Pairs(Structure):
    _sizes = (
        *("batch", "nodes", "pairs", "subgraphs", "colours", "kinds"),
        *("in_channels", "out_channels", "threads"),
    )
    _tables = ("row", "col", "swap", "colour", "kind", "first_node", "first_pair")
    _tensors = ("x", "pair", "turned", "node", "graph", "bias", "loop_bias")
    _fields_ = (
        *((n, c_int64) for n in _sizes),
        *((n, c_void_p) for n in (*_tables, *_tensors)),
    )


def are_few_weights(tensors: Sequence[Tensor]) -> bool:
    """Whether the loops take the weights behind ``x``."""
    return sum(x.numel() for x in tensors[1:]) <= _MOST_WEIGHTS and min(tensors[1].shape[1:]) > 0


def subgraph_linear(tensors: Sequence[Tensor], tables: Sequence[Tensor]) -> Tensor:
    """Pairs ``[b, p, out]`` of ``x [b, p, in]`` and the weights behind it."""
    record, kept = _record(tensors, tables)
    x, out_channels = kept[0], kept[1].size(-1)
    y = new_empty(x, *x.shape[:-1], out_channels)
    if y.numel():
        _run("pairs_forward", record, y)
    return y


def subgraph_linear_grads(
    tensors: Sequence[Tensor], tables: Sequence[Tensor], grad: Tensor
) -> list[Tensor]:
    """The gradient of every tensor."""
    record, kept = _record(tensors, tables)
    x, *weights = kept
    by_x = new_empty(x, *x.shape)
    flat = x.new_empty(sum(w.numel() for w in weights))
    if grad.numel() and x.numel():
        _run("pairs_backward", record, grad.contiguous(), by_x, flat)
    else:
        flat.zero_()
    parts = flat.split([w.numel() for w in weights])
    return [by_x, *(part.view(w.shape) for part, w in zip(parts, weights, strict=True))]


def _record(tensors: Sequence[Tensor], tables: Sequence[Tensor]) -> tuple[_Pairs, list[Tensor]]:
    """The record of a call, and the tensors that it points to."""
    kept = [t.contiguous() for t in tensors]
    x, pair, turned, node, graph, *biases = kept
    (batch, pairs, c), d = x.shape, pair.size(-1)
    nodes, subgraphs, kinds = tables[3].numel(), tables[4].numel(), graph.size(0)
    q = (node.size(1) // c - 1) // 2
    widths = pairs, pairs, pairs, nodes, subgraphs, subgraphs + 1, subgraphs + 1
    names = _Pairs._tables
    check_sizes(**{n: (t, w) for n, t, w in zip(names, tables, widths, strict=True)})
    check_sizes(
        pair=(pair, kinds * q * q * c * d),
        turned=(turned, kinds * q * q * c * d),
        node=(node, kinds * q * (1 + 2 * q) * c * (2 * q + 1) * d),
        graph=(graph, kinds * (q + q * q) * c * q * (q + 1) * d),
        bias=(biases[0] if biases else None, kinds * q * q * d),
        loop_bias=(biases[1] if biases else None, kinds * q * d),
    )
    if any(t.dtype != torch.int32 for t in tables):
        raise TypeError(f"the tables of pairs must be int32; got {[t.dtype for t in tables]}")
    sizes = (batch, nodes, pairs, subgraphs, q, kinds, c, d, torch.get_num_threads())
    given = [*tables, *kept, *([] if biases else [None, None])]
    return _Pairs(*sizes, *addresses(given)), kept


def _run(name: str, record: _Pairs, *results: Tensor) -> None:
    kind = NUMBER_TYPES[results[0].dtype]
    at = (c_void_p * len(results))(*addresses(results))
    call(f"{name}_{kind}", record, at)
