"""One step of EGNN in compiled code: the loops of nodes and edges in ``csrc``, in turn.

On a small batch, what is around a call takes as long as the call. Here it is there once, and what
passes between the loops is memory that no tensor is made of.
"""

from __future__ import annotations

from ctypes import Array, Structure, c_void_p
from typing import Any

import torch
from torch import Tensor

from gsym.kernels.cpp.edges import TENSORS as EDGE_TENSORS
from gsym.kernels.cpp.edges import Edges, Grads, Sums, weight_grads, weight_rows
from gsym.kernels.cpp.library import (
    INDEX_TYPES,
    NUMBER_TYPES,
    addresses,
    alike,
    call,
    check_sizes,
)
from gsym.kernels.cpp.nodes import Mlp, Pair
from gsym.kernels.edges import Step
from gsym.kernels.native.memory import new_empty

_MAPS = ("target", "target_bias", "source", "first", "first_bias", "last", "last_bias")


def egnn_step(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Features, coordinates, and what the gradient needs of the forward pass.

    That is both projections and the sums of messages and, where the step stores them, the arguments
    of the activations of the update and of the second and third map of edges.
    """
    run = _Run(step)
    x, pos, part = run.given["x"], run.given["pos"], run.rows * run.hidden
    more = part + 2 * run.edges * run.hidden if step.stores else 0
    kept = new_empty(x, 3 * part + more)
    kept[2 * part : 3 * part].zero_()  # a node without edges is left out by the loop
    moved = pos.new_zeros(pos.shape)
    y = new_empty(x, *x.shape[:-1], run.out)
    pair, edges, mlp = run.records(kept)
    receiver, sender, total = run.places(kept)
    run.call("pair_forward", pair, _at(receiver, sender))
    run.call("edges_forward", edges, Sums(total, moved.data_ptr()), by_edges=True)
    run.call("mlp_forward", mlp, _at(y.data_ptr()))
    return y, moved.add_(pos), kept


def egnn_step_grads(
    step: Step, kept: Tensor, grad_y: Tensor, grad_pos: Tensor
) -> dict[str, Tensor]:
    """The gradient of every tensor of the step, by name."""
    run = _Run(step)
    given, rows, h, d = run.given, run.rows, run.hidden, run.dims
    x, attr = given["x"], given.get("attr")
    grad_y, grad_pos = grad_y.contiguous(), grad_pos.contiguous()
    by_x, by_total = new_empty(x, *x.shape), new_empty(x, rows, h)
    sizes = [given[name].numel() for name in _MAPS]
    maps = x.new_empty(sum(sizes)).split(sizes)
    # What the edges add to: both ends, their coordinates, and the weights.
    weights = weight_rows(h, run.attributes)
    sums = x.new_zeros(2 * rows * (h + d) + weights * h)
    by_ends, moved, by_edges = sums.split([2 * rows * h, 2 * rows * d, weights * h])
    by_attr = None if attr is None else x.new_empty(run.edges, run.attributes)
    at_x, at_total, at_pair, at_mlp, receiver, received, at_edges, at_attr = addresses(
        (by_x, by_total, maps[0], maps[3], by_ends, moved, by_edges, by_attr)
    )
    at_y, at_pos = addresses((grad_y, grad_pos))
    sender = by_ends[rows * h :].data_ptr()
    sent = moved[rows * d :].data_ptr()
    pair, edges, mlp = run.records(kept)
    by_edge = Grads(at_total, at_pos, receiver, sender, received, sent, at_attr, at_edges)
    run.call("mlp_backward", mlp, _at(at_y, at_x, at_total, at_mlp))
    run.call("edges_backward", edges, by_edge, by_edges=True)
    run.call("pair_backward", pair, _at(receiver, sender, at_x, at_pair))
    to, fro = moved.view(2, *grad_pos.shape)
    grads = {"x": by_x, "pos": (grad_pos + to).sub_(fro)}
    grads |= {n: part.view(given[n].shape) for n, part in zip(_MAPS, maps, strict=True)}
    grads |= weight_grads(by_edges.view(weights, h), h, given)
    if attr is not None and by_attr is not None:
        every = by_attr.view(-1, *attr.shape[-2:])
        grads["attr"] = every.sum(0) if attr.dim() == 2 else every.view(attr.shape)
    return grads


class _Run:
    """The tensors and sizes of a step, and the records that its loops are given."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.given = {name: x.contiguous() for name, x in step.tensors.items()}
        x, attr = self.given["x"], self.given.get("attr")
        self.batch, self.nodes = x.shape[:-2].numel(), x.size(-2)
        self.rows, self.dims = self.batch * self.nodes, self.given["pos"].size(-1)
        self.hidden, self.out = self.given["last"].shape[-2:]
        self.attributes = 0 if attr is None else attr.size(-1)
        # Held here: the loops see addresses alone.
        self.turned = None if attr is None else self.given["attr_weight"].t().contiguous()
        index, _, pointers, columns, *_ = step.tables
        self.entries = index.numel()
        check_sizes(columns=(columns, self.entries), pointers=(pointers, self.nodes + 1))
        self.tables = alike(index, columns, pointers)
        self.edges = self.batch * self.entries
        self.number, self.index = NUMBER_TYPES[x.dtype], INDEX_TYPES[self.tables[0].dtype]

    def places(self, kept: Tensor) -> list[int]:
        """Where the projections of receivers and senders, and the sums of messages, begin."""
        return [kept.data_ptr() + i * self._part(kept) for i in range(3)]

    def records(self, kept: Tensor) -> tuple[Pair, Edges, Mlp]:
        """Those of projections, edges and update."""
        step, h, threads = self.step, self.hidden, torch.get_num_threads()
        at = dict(zip(self.given, addresses(self.given.values()), strict=True))
        at["receiver"], at["sender"], total = self.places(kept)
        arguments = second = third = None
        if step.stores:
            arguments = total + self._part(kept)
            second = arguments + self._part(kept)
            third = second + self.edges * h * kept.element_size()
        if self.turned is not None:
            at["attr_weight"] = self.turned.data_ptr()
        normalize, tanh, clamp, mean = step.options
        ins, d, a, attr = (
            self.given["x"].size(-1),
            self.dims,
            self.attributes,
            self.given.get("attr"),
        )
        stride = 0 if attr is None or attr.dim() == 2 else self.entries * a
        pair = Pair(
            *(self.rows, ins, h, threads, True),
            *(at["x"], at["target"], at["target_bias"], at["source"]),
        )
        edges = Edges(
            *(self.batch, self.nodes, self.nodes, self.entries, h, h, d, a, stride, threads),
            *(normalize, tanh, clamp is not None, mean, clamp or 0.0),
            *(*addresses(self.tables), *map(at.get, EDGE_TENSORS), second, third),
        )
        mlp = Mlp(
            *(self.rows, ins, h, h, self.out, threads, step.residual, at["x"], total),
            *(at["first"], at["first_bias"], at["last"], at["last_bias"], arguments),
        )
        return pair, edges, mlp

    def call(self, name: str, *args: Structure | Array[Any], by_edges: bool = False) -> None:
        """Call a loop for the types of this step, of the index too where it goes by edges."""
        call(f"{name}_{self.number}" + (f"_{self.index}" if by_edges else ""), *args)

    def _part(self, kept: Tensor) -> int:
        """Bytes of one row of hidden channels per node."""
        return self.rows * self.hidden * kept.element_size()


def _at(*places: int | None) -> Array[Any]:
    return (c_void_p * len(places))(*places)
