"""The edge work of the EGNN family in compiled code, ``csrc/edges.cpp``."""

from __future__ import annotations

from collections.abc import Container
from ctypes import Structure, c_double, c_int64, c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor

from gsym.kernels.cpp.library import (
    INDEX_TYPES,
    NUMBER_TYPES,
    addresses,
    alike,
    call,
    check_sizes,
    library,
)
from gsym.kernels.edges import EdgeStage, EdgeTables
from gsym.kernels.native.edges import Pipeline
from gsym.kernels.native.memory import new_zeros

_SIZES = (
    *("batch", "nodes", "senders", "edges", "hidden", "width", "dims", "attributes"),
    *("attr_stride", "threads", "normalize", "tanh", "clamped", "mean"),
)
TENSORS = (
    *("receiver", "sender", "pos", "distance", "attr", "attr_weight"),
    *("weight", "bias", "gate", "gate_bias", "coord", "coord_bias", "coord_last"),
)


def edge_mlp_sum(stage: EdgeStage, tables: EdgeTables) -> tuple[Tensor, Tensor]:
    return CppPipeline.of(stage, tables).forward()


def edge_mlp_grads(
    stage: EdgeStage, tables: EdgeTables, grad_total: Tensor, grad_moved: Tensor
) -> dict[str, Tensor]:
    return CppPipeline.of(stage, tables).backward(grad_total, grad_moved)


class Edges(Structure):
    """Mirrors that of the source."""

    _fields_ = (
        *((name, c_int64) for name in _SIZES),
        ("clamp", c_double),
        *((name, c_void_p) for name in ("index", "columns", "pointers", *TENSORS)),
        *((name, c_void_p) for name in ("second", "third")),
    )


class Sums(Structure):
    """Mirrors that of the source."""

    _fields_ = (("total", c_void_p), ("moved", c_void_p))


class Grads(Structure):
    """Mirrors that of the source."""

    _fields_ = (
        *(("total", c_void_p), ("moved", c_void_p)),
        *((name, c_void_p) for name in ("receiver", "sender", "received", "sent")),
        *(("attr", c_void_p), ("weights", c_void_p)),
    )


def weight_rows(hidden: int, attributes: int) -> int:
    """Rows of the gradients of all weights, one after another."""
    return 2 * hidden + 1 + attributes + 5


def weight_grads(weights: Tensor, hidden: int, given: Container[str]) -> dict[str, Tensor]:
    """The gradient of every weight that is given, by name, of all their rows."""
    first_rows = weights.size(0) - 2 * hidden - 5
    parts = weights[:, :hidden].split_with_sizes([hidden, hidden, first_rows, 5])
    weight, coord, first, rest = parts
    bias, coord_bias, coord_last, gate, gate_bias = rest.unbind()
    grads = {"weight": weight, "bias": bias}
    if "pos" in given:
        grads["distance"] = first[0]
    if "attr" in given:
        grads["attr_weight"] = first[1:].t()
    if "gate" in given:
        grads["gate"], grads["gate_bias"] = gate[None], gate_bias[:1]
    if "coord" in given:
        grads |= {"coord": coord, "coord_bias": coord_bias, "coord_last": coord_last[None]}
    return grads


class CppPipeline(Pipeline):
    """As :class:`Pipeline`, in compiled loops.

    Channels are padded with zeros to a multiple of the SIMD width, and stay zero.
    """

    def forward(self) -> tuple[Tensor, Tensor]:
        dims = self.dims if self.moves else 0
        total, moved = self._zeros((self.n, self.width), (self.n, dims))
        self._run("forward", Sums, (total, moved))
        return self._cut(total), moved

    def backward(self, grad_total: Tensor, grad_moved: Tensor) -> dict[str, Tensor]:
        given, h = self.given, self.h
        grad_total, grad_moved = self.wide(grad_total), self.wide(grad_moved)
        attributes, width = self.attributes, self.width
        ends = (self.n, width), (self.m, width), (self.n, self.dims), (self.m, self.dims)
        receiver, sender, received, sent, attr = self._zeros(*ends, (self.e, attributes))
        weights = receiver.new_zeros(weight_rows(h, attributes), width)
        outer = self._filled(grad_total), grad_moved.contiguous()
        self._run("backward", Grads, (*outer, receiver, sender, received, sent, attr, weights))
        grads = {
            "receiver": self._cut(receiver),
            "sender": self._cut(sender),
            **weight_grads(weights, h, given),
        }
        if "pos" in given:
            grads["pos"] = received.sub_(sent)
        if "attr" in given:
            grads["attr"] = attr.sum(0) if given["attr"].dim() == 2 else attr
        return grads

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.given
        self.dims = given["pos"].size(-1) if "pos" in given else 0
        self.attributes = given["attr"].size(-1) if "attr" in given else 0
        lanes = library().gsym_vector_bytes() // given["receiver"].element_size()
        self.width = -(-self.h // lanes) * lanes

    def _zeros(self, *shapes: tuple[int, int]) -> list[Tensor]:
        """Tensors ``[b, *shape]`` of zeros, from one piece of memory."""
        starts = [0]
        for rows, columns in shapes:
            starts.append(starts[-1] + self.batch * rows * columns)
        flat, parts = new_zeros(self.given["receiver"], starts[-1]), []
        for start, (rows, columns) in zip(starts, shapes, strict=False):
            shape, strides = (self.batch, rows, columns), (rows * columns, columns, 1)
            parts.append(flat.as_strided(shape, strides, start))
        return parts

    def _filled(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.width - self.h)) if self.width > self.h else x.contiguous()

    def _cut(self, x: Tensor) -> Tensor:
        return x[..., : self.h] if self.width > self.h else x

    def _run(self, direction: str, record: type[Structure], results: tuple[Tensor, ...]) -> None:
        if self.e == 0 or self.batch == 0 or self.h == 0:
            return
        given = self.given
        tensors = dict(given)
        if "attr" in given:
            tensors["attr_weight"] = given["attr_weight"].t()
        fill = 0, self.width - self.h
        for name, x in tensors.items():
            wide = fill[1] and name not in ("pos", "attr", "gate_bias")
            tensors[name] = F.pad(x, fill) if wide else x.contiguous()
        check_sizes(columns=(self.columns, self.e), pointers=(self.pointers, self.n + 1))
        tables = alike(self.index, self.columns, self.pointers)
        shared = "attr" not in given or given["attr"].dim() == 2
        edges = Edges(
            *(self.batch, self.n, self.m, self.e, self.h, self.width, self.dims, self.attributes),
            *(0 if shared else self.e * self.attributes, torch.get_num_threads()),
            *(self.normalize, self.tanh, self.clamp is not None, self.mean, self.clamp or 0.0),
            *addresses((*tables, *map(tensors.get, TENSORS))),
        )
        number, index = NUMBER_TYPES[given["receiver"].dtype], INDEX_TYPES[tables[0].dtype]
        call(f"edges_{direction}_{number}_{index}", edges, record(*addresses(results)))
