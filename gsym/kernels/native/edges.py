"""The edge work of the EGNN family in plain torch for the CPU, some thousand edges at a time.

Eager code spends most of its time on the page faults of fresh ``[e, h]`` tensors. Here every block
of edges goes through the whole pipeline in buffers that stay in the cache, and the gradient
recomputes the block. What it computes is :func:`gsym.kernels.reference.edge_mlp_sum`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from gsym.kernels.edges import EdgeStage, EdgeTables

# Edges of a block: its buffers stay in the cache, and fewer would make the calls expensive.
BLOCK_EDGES = 3 * 2**11

# Products that sum over the edges of a block, or have one column, are made in so many parts: as a
# whole they would be shared among threads by columns, or left to one of them, and the rows that
# every thread has in its cache would travel to the others and back. Where a part has fewer rows
# than this, or than there are channels, to add up the parts costs more than it saves.
PARTS = 8
PART_ROWS = 64

_silu = torch.ops.aten.silu.out
_silu_backward = torch.ops.aten.silu_backward.grad_input


def edge_mlp_sum(stage: EdgeStage, tables: EdgeTables) -> tuple[Tensor, Tensor]:
    return Pipeline.of(stage, tables).forward()


def edge_mlp_grads(
    stage: EdgeStage, tables: EdgeTables, grad_total: Tensor, grad_moved: Tensor
) -> dict[str, Tensor]:
    return Pipeline.of(stage, tables).backward(grad_total, grad_moved)


@dataclass
class _Block:
    """Some edges: a part of those of one sample, or all of those of several samples."""

    samples: slice
    edges: slice
    i: Tensor  # receiver of every edge, among the nodes of all these samples
    j: Tensor  # sender
    receivers: slice  # those that the edges run over
    starts: Tensor  # where the edges of each of them begin in the block, and the end


@dataclass
class Pipeline:
    """The work on all edges of all samples; tensors by their names in the operator."""

    given: dict[str, Tensor]
    index: Tensor
    columns: Tensor
    pointers: Tensor
    normalize: bool
    tanh: bool
    clamp: float | None
    mean: bool

    @classmethod
    def of(cls, stage: EdgeStage, tables: EdgeTables) -> Self:
        """Half precision is computed in float32 and rounded once, at the end."""
        normalize, tanh, clamp, mean = stage.options
        ends = tables.index, tables.source, tables.pointers
        return cls(stage.widened(), *ends, normalize, tanh, clamp, mean)

    def __post_init__(self) -> None:
        receiver, sender = self.given["receiver"], self.given["sender"]
        self.batch, self.n, self.h = receiver.shape
        self.m, self.e = sender.size(1), self.index.numel()

    def forward(self) -> tuple[Tensor, Tensor]:
        given = self.given
        total = torch.zeros_like(given["receiver"], memory_format=torch.contiguous_format)
        moved = total.new_zeros(self.batch, self.n, given["pos"].size(-1) if self.moves else 0)
        buffers = self.buffers(2)
        for block in self.blocks():
            u, v = (buffer[: block.i.numel()] for buffer in buffers)
            _, r = self.hidden(block, u, v)
            _silu(u, out=u)
            torch.addmm(given["bias"], u, given["weight"].t(), out=v)
            _silu(v, out=v)
            if "gate" in given:
                v.mul_(self.gate_value(v))
            self.collect(v, total, block)
            if self.moves:
                torch.addmm(given["coord_bias"], v, given["coord"].t(), out=u)
                size = self.product(_silu(u, out=u), given["coord_last"])
                self.collect(self.move(r, size), moved, block)
        return total, self.averaged(moved)

    def backward(self, grad_total: Tensor, grad_moved: Tensor) -> dict[str, Tensor]:
        given = self.given
        grad_total, grad_moved = self.wide(grad_total), self.wide(grad_moved)
        summed = ("weight", "bias", "gate", "gate_bias", "coord", "coord_bias", "coord_last")
        sums = {name: _Parts(given[name], self.parts) for name in summed if name in given}
        grads = {
            name: torch.zeros_like(x, memory_format=torch.contiguous_format)
            for name, x in given.items()
            if name not in sums
        }
        sums["first"] = _Parts(self.first, self.parts)
        # Of coordinates as sender: adding numbers by index is far quicker than short rows.
        grad_sent = grad_total.new_zeros(
            given["pos"].size(-1) if "pos" in given else 0, self.batch, self.m
        )
        grad_moved = self.averaged(grad_moved)
        buffers = self.buffers(8)
        ones = grad_total.new_ones(self.block_rows, 1)  # by which columns are summed
        for block in self.blocks():
            u, p, v, a, m, b, c, g = (buffer[: block.i.numel()] for buffer in buffers)
            one = ones[: u.size(0)]
            inputs, r = self.hidden(block, u, p)
            _silu(u, out=p)
            torch.addmm(given["bias"], p, given["weight"].t(), out=v)
            _silu(v, out=a)
            if "gate" in given:
                gate_value = self.gate_value(a)
                torch.mul(a, gate_value, out=m)
            else:
                m = a
            torch.index_select(_rows(grad_total, block), 0, block.i, out=g)
            grad_r = None
            if self.moves:
                torch.addmm(given["coord_bias"], m, given["coord"].t(), out=b)
                _silu(b, out=c)
                grad_move = _rows(grad_moved, block).index_select(0, block.i)
                size = self.product(c, given["coord_last"])
                grad_r, grad_size = self.move_backward(r, size, grad_move)
                sums["coord_last"].add(grad_size, c)
                torch.mul(grad_size, given["coord_last"], out=c)
                _silu_backward(c, b, grad_input=c)
                sums["coord"].add(c, m)
                sums["coord_bias"].add(one, c)
                g.addmm_(c, given["coord"])
            if "gate" in given:
                grad_gate = (g * a).sum(1, keepdim=True) * gate_value * (1 - gate_value)
                sums["gate"].add(grad_gate, a)
                sums["gate_bias"].add(one, grad_gate)
                g.mul_(gate_value).addmm_(grad_gate, given["gate"])
            _silu_backward(g, v, grad_input=g)
            sums["weight"].add(g, p)
            sums["bias"].add(one, g)
            torch.mm(g, given["weight"], out=a)
            _silu_backward(a, u, grad_input=a)
            self.collect(a, grads["receiver"], block)
            _rows(grads["sender"], block).index_add_(0, block.j, a)
            sums["first"].add(inputs, a)
            grad_inputs = self.product(a, self.first)
            if "pos" in given:
                along = r * (2 * grad_inputs[:, :1])
                grad_r = along if grad_r is None else grad_r.add_(along)
                self.collect(grad_r, grads["pos"], block)
                for sent, part in zip(grad_sent[:, block.samples], grad_r.t(), strict=True):
                    sent.view(-1).index_add_(0, block.j, part, alpha=-1)
            if "attr" in given:
                part = grads["attr"][..., block.edges, :]
                grad_attr = grad_inputs[:, -part.size(-1) :].view(-1, *part.shape[-2:])
                if part.dim() == 2:
                    part += grad_attr.sum(0)
                else:
                    part[block.samples] = grad_attr
        first = sums.pop("first").total()
        grads |= {name: total.total().view_as(given[name]) for name, total in sums.items()}
        if "pos" in given:
            grads["pos"] += grad_sent.permute(1, 2, 0)
            grads["distance"] += first[0]
        if "attr" in given:
            grads["attr_weight"] += first[-given["attr"].size(-1) :].t()
        return grads

    def wide(self, grad: Tensor) -> Tensor:
        """A gradient in the type that everything is computed in."""
        return grad.to(self.given["receiver"].dtype)

    @cached_property
    def first(self) -> Tensor:
        """What weighs the inputs of the first layer by edge: squared distance, then attributes."""
        given = self.given
        parts = [given["distance"][None]] if "distance" in given else []
        parts += [given["attr_weight"].t()] if "attr" in given else []
        return torch.cat(parts) if parts else given["receiver"].new_empty(0, self.h)

    @property
    def block_rows(self) -> int:
        """Edges of the largest block at most."""
        return min(self.batch * self.e, BLOCK_EDGES)

    @cached_property
    def parts(self) -> int:
        """Of the rows of a block, by sizes alone and not by the number of threads."""
        return PARTS if self.block_rows >= PARTS * max(PART_ROWS, self.h) else 1

    @property
    def moves(self) -> bool:
        return "coord" in self.given

    def blocks(self) -> Iterator[_Block]:
        if self.e == 0 or self.batch == 0:
            return
        if self.e <= BLOCK_EDGES:
            step, known = BLOCK_EDGES // self.e, -1
            for first in range(0, self.batch, step):
                count = min(step, self.batch - first)
                if count != known:  # else the tables of the last block serve
                    known = count
                    sample = torch.arange(count)[:, None]
                    i = (self.index + sample * self.n).view(-1)
                    j = (self.columns + sample * self.m).view(-1)
                    starts = (self.pointers[:-1] + sample * self.e).view(-1)
                    starts = torch.cat([starts, starts.new_tensor([count * self.e])])
                samples = slice(first, first + count)
                yield _Block(samples, slice(0, self.e), i, j, slice(0, count * self.n), starts)
            return
        for first in range(self.batch):
            for start in range(0, self.e, BLOCK_EDGES):
                edges = slice(start, min(start + BLOCK_EDGES, self.e))
                i, j = self.index[edges], self.columns[edges].long()  # int32 is slow to add by
                receivers = slice(int(i[0]), int(i[-1]) + 1)
                starts = self.pointers[receivers.start : receivers.stop + 1]
                starts = starts.clamp(edges.start, edges.stop) - edges.start
                yield _Block(slice(first, first + 1), edges, i, j, receivers, starts)

    def buffers(self, count: int) -> list[Tensor]:
        """Buffers for a block of edges, used again and again."""
        return [self.given["receiver"].new_empty(self.block_rows, self.h) for _ in range(count)]

    def hidden(self, block: _Block, u: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
        """Write the argument of the first activation to ``u``.

        Returns:
            What enters it by edge, ``[e, q]``, never to be written to, as it may be the user's, and
            the differences of coordinates ``[e, d]``.
        """
        given = self.given
        torch.index_select(_rows(given["receiver"], block), 0, block.i, out=u)
        torch.index_select(_rows(given["sender"], block), 0, block.j, out=spare)
        u.add_(spare)
        edge_inputs, r = [], u[:, :0]
        if "pos" in given:
            pos = _rows(given["pos"], block)
            r = pos.index_select(0, block.i).sub_(pos.index_select(0, block.j))
            edge_inputs.append(r.square().sum(-1, keepdim=True))
        if "attr" in given:
            attr = given["attr"].expand(self.batch, -1, -1)[block.samples, block.edges]
            edge_inputs.append(attr.reshape(u.size(0), -1))
        if len(edge_inputs) == 1:
            inputs = edge_inputs[0]
        else:
            inputs = torch.cat(edge_inputs, dim=1) if edge_inputs else u[:, :0]
        u.addmm_(inputs, self.first)
        return inputs, r

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """``x @ weight.t()`` for a weight of few rows."""
        if self.parts == 1:
            return x @ weight.t()
        out, weight = x.new_empty(x.size(0), weight.size(0)), weight.t()
        (many, rest), (parts, last) = _split(x, self.parts), _split(out, self.parts)
        torch.bmm(many, weight.expand(self.parts, *weight.shape), out=parts)
        if rest.size(0):
            torch.mm(rest, weight, out=last)
        return out

    def collect(self, x: Tensor, out: Tensor, block: _Block) -> None:
        """Add up the rows of every receiver."""
        every = torch.arange(x.size(0), dtype=block.starts.dtype)
        sums = F.embedding_bag(every, x, block.starts, mode="sum", include_last_offset=True)
        _rows(out, block)[block.receivers].add_(sums)

    def gate_value(self, message: Tensor) -> Tensor:
        """The gate of every edge, ``[e, 1]``."""
        return self.product(message, self.given["gate"]).add_(self.given["gate_bias"]).sigmoid_()

    def averaged(self, moved: Tensor) -> Tensor:
        if not self.mean or not self.moves:
            return moved
        return moved / self.pointers.diff().clamp(min=1).to(moved.dtype)[:, None]

    def move(self, r: Tensor, size: Tensor) -> Tensor:
        scale = (size.tanh() if self.tanh else size) / self.length(r)
        if self.clamp is None:
            return r * scale
        return r * scale * self.shortening(_length(r) * scale.abs())

    def move_backward(self, r: Tensor, size: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of :meth:`move` by ``r`` and ``size``."""
        length = self.length(r)
        unit, factor = r / length, size.tanh() if self.tanh else size
        if self.clamp is not None:
            distance = _length(r)
            reach = distance * (factor / length).abs()
            direction = r / distance
            along = (grad * direction).sum(-1, keepdim=True)
            shortened = (grad - along * direction) * self.shortening(reach)
            grad = torch.where(reach > self.clamp, shortened, grad)
        grad_size = (grad * unit).sum(-1, keepdim=True)
        if self.tanh:
            grad_size = grad_size * (1 - factor.square())
        return grad * factor / length, grad_size

    def length(self, r: Tensor) -> Tensor | int:
        """What a difference is divided by; coincident points have no direction, their r stays 0."""
        if not self.normalize:
            return 1
        length = _length(r)
        return (length + 1e-8).masked_fill_(length == 0, 1)

    def shortening(self, reach: Tensor) -> Tensor:
        """The factor that keeps a move within the clamp.

        By lengths, as the square of one may be beyond all numbers.
        """
        assert self.clamp is not None
        return self.clamp / reach.clamp(min=self.clamp)


def _length(r: Tensor) -> Tensor:
    return r.square().sum(-1, keepdim=True).sqrt_()


def _rows(x: Tensor, block: _Block) -> Tensor:
    """The rows of the samples of a block, one sample after another."""
    return x[block.samples].flatten(0, 1)


def _split(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rows ``[e, c]`` in parts of one length, ``[count, e // count, c]``, and those left over."""
    length = x.size(0) // count
    return x[: count * length].view(count, length, x.size(1)), x[count * length :]


class _Parts:
    """The gradient of a weight, a sum over edges that is kept in parts."""

    def __init__(self, weight: Tensor, count: int) -> None:
        self.sums = weight.new_zeros(count, *torch.atleast_2d(weight).shape)

    def add(self, grad: Tensor, x: Tensor) -> None:
        """Add ``grad.t() @ x``."""
        count = self.sums.size(0)
        if count > 1:
            (many, grad), (rows, x) = _split(grad, count), _split(x, count)
            self.sums.baddbmm_(many.transpose(1, 2), rows)
        if x.size(0):
            self.sums[0].addmm_(grad.t(), x)

    def total(self) -> Tensor:
        return self.sums.sum(0)
