"""The edge work of the EGNN family in plain torch for the CPU, some thousand edges at a time.

Eager code spends most of its time on the page faults of fresh ``[e, h]`` tensors. Here every block
of edges goes through the whole pipeline in buffers that stay in the cache, and the gradient
computes the block anew. What it computes is :func:`gsym.kernels.reference.edge_mlp_sum`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

# Edges of a block: its buffers stay in the cache, and fewer would make the calls dear.
BLOCK_EDGES = 3 * 2**11

# Products that sum over the edges of a block, or have one column, are made in so many parts: as a
# whole they would be shared among threads by columns, or left to one of them, and the rows that
# every thread has in its cache would travel to the others and back.
PARTS = 8

_silu = torch.ops.aten.silu.out
_silu_backward = torch.ops.aten.silu_backward.grad_input


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

    def __post_init__(self) -> None:
        receiver, sender = self.given["receiver"], self.given["sender"]
        self.batch, self.n, self.h = receiver.shape
        self.m, self.e = sender.size(1), self.index.numel()

    def forward(self) -> tuple[Tensor, Tensor]:
        given = self.given
        total = torch.zeros_like(given["receiver"], memory_format=torch.contiguous_format)
        moved = total.new_zeros(self.batch, self.n, given["pos"].size(-1) if self.moves else 0)
        rooms = self.rooms(2)
        for block in self.blocks():
            u, v = (room[: block.i.numel()] for room in rooms)
            _, r = self.hidden(block, u, v)
            _silu(u, out=u)
            torch.addmm(given["bias"], u, given["weight"].t(), out=v)
            _silu(v, out=v)
            if "gate" in given:
                v.mul_(self.openness(v))
            self.collect(v, total, block)
            if self.moves:
                torch.addmm(given["coord_bias"], v, given["coord"].t(), out=u)
                size = _product(_silu(u, out=u), given["coord_last"])
                self.collect(self.move(r, size), moved, block)
        return total, self.averaged(moved)

    def backward(self, grad_total: Tensor, grad_moved: Tensor) -> dict[str, Tensor]:
        given = self.given
        grads = {
            name: torch.zeros_like(x, memory_format=torch.contiguous_format)
            for name, x in given.items()
        }
        reduced = ("weight", "bias", "gate", "coord", "coord_bias", "coord_last")
        parts = {name: _Parts(given[name]) for name in reduced if name in given}
        grad_first = _Parts(self.first)
        # Of coordinates as sender: adding numbers by index is far quicker than short rows.
        grad_sent = grad_total.new_zeros(
            given["pos"].size(-1) if "pos" in given else 0, self.batch, self.m
        )
        grad_moved = self.averaged(grad_moved)
        rooms = self.rooms(8)
        ones = grad_total.new_ones(rooms[0].size(0), 1)
        for block in self.blocks():
            u, p, v, a, m, b, c, g = (room[: block.i.numel()] for room in rooms)
            one = ones[: u.size(0)]
            inputs, r = self.hidden(block, u, p)
            _silu(u, out=p)
            torch.addmm(given["bias"], p, given["weight"].t(), out=v)
            _silu(v, out=a)
            if "gate" in given:
                openness = self.openness(a)
                torch.mul(a, openness, out=m)
            else:
                m = a
            torch.index_select(_rows(grad_total, block), 0, block.i, out=g)
            grad_r = None
            if self.moves:
                torch.addmm(given["coord_bias"], m, given["coord"].t(), out=b)
                _silu(b, out=c)
                grad_move = _rows(grad_moved, block).index_select(0, block.i)
                size = _product(c, given["coord_last"])
                grad_r, grad_size = self.move_backward(r, size, grad_move)
                parts["coord_last"].add(grad_size, c)
                torch.mul(grad_size, given["coord_last"], out=c)
                _silu_backward(c, b, grad_input=c)
                parts["coord"].add(c, m)
                parts["coord_bias"].add(one, c)
                g.addmm_(c, given["coord"])
            if "gate" in given:
                grad_gate = (g * a).sum(1, keepdim=True) * openness * (1 - openness)
                parts["gate"].add(grad_gate, a)
                grads["gate_bias"] += grad_gate.sum(0)
                g.mul_(openness).addmm_(grad_gate, given["gate"])
            _silu_backward(g, v, grad_input=g)
            parts["weight"].add(g, p)
            parts["bias"].add(one, g)
            torch.mm(g, given["weight"], out=a)
            _silu_backward(a, u, grad_input=a)
            self.collect(a, grads["receiver"], block)
            _rows(grads["sender"], block).index_add_(0, block.j, a)
            grad_first.add(inputs, a)
            grad_inputs = _product(a, self.first)
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
        grads |= {name: part.total().view_as(given[name]) for name, part in parts.items()}
        first = grad_first.total()
        if "pos" in given:
            grads["pos"] += grad_sent.permute(1, 2, 0)
            grads["distance"] += first[0]
        if "attr" in given:
            grads["attr_weight"] += first[-given["attr"].size(-1) :].t()
        return grads

    @cached_property
    def first(self) -> Tensor:
        """What weighs the inputs of the first layer by edge: squared distance, then attributes."""
        given = self.given
        parts = [given["distance"][None]] if "distance" in given else []
        parts += [given["attr_weight"].t()] if "attr" in given else []
        return torch.cat(parts) if parts else given["receiver"].new_empty(0, self.h)

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

    def rooms(self, count: int) -> list[Tensor]:
        """Buffers for a block of edges, used again and again."""
        rows = min(self.batch * self.e, BLOCK_EDGES)
        return [self.given["receiver"].new_empty(rows, self.h) for _ in range(count)]

    def hidden(self, block: _Block, u: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
        """Write the argument of the first activation to ``u``.

        Returns:
            What enters it by edge, ``[e, q]``, and the differences of coordinates ``[e, d]``.
        """
        given = self.given
        torch.index_select(_rows(given["receiver"], block), 0, block.i, out=u)
        torch.index_select(_rows(given["sender"], block), 0, block.j, out=spare)
        u.add_(spare)
        parts, r = [], u[:, :0]
        if "pos" in given:
            pos = _rows(given["pos"], block)
            r = pos.index_select(0, block.i).sub_(pos.index_select(0, block.j))
            parts.append(_squares(r))
        if "attr" in given:
            attr = given["attr"].expand(self.batch, -1, -1)[block.samples, block.edges]
            parts.append(attr.reshape(u.size(0), -1))
        inputs = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) if parts else u[:, :0]
        u.addmm_(inputs, self.first)
        return inputs, r

    def collect(self, x: Tensor, out: Tensor, block: _Block) -> None:
        """Add up the rows of every receiver."""
        every = torch.arange(x.size(0), dtype=block.starts.dtype)
        sums = F.embedding_bag(every, x, block.starts, mode="sum", include_last_offset=True)
        _rows(out, block)[block.receivers].add_(sums)

    def openness(self, message: Tensor) -> Tensor:
        """The gate of every edge, ``[e, 1]``."""
        return _product(message, self.given["gate"]).add_(self.given["gate_bias"]).sigmoid_()

    def averaged(self, moved: Tensor) -> Tensor:
        if not self.mean or not self.moves:
            return moved
        return moved / self.pointers.diff().clamp(min=1).to(moved.dtype)[:, None]

    def move(self, r: Tensor, size: Tensor) -> Tensor:
        move = r / self.length(r) * (size.tanh() if self.tanh else size)
        return move if self.clamp is None else move * self.shortening(move)

    def move_backward(self, r: Tensor, size: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of :meth:`move` by ``r`` and ``size``."""
        length = self.length(r)
        unit, factor = r / length, size.tanh() if self.tanh else size
        if self.clamp is not None:
            move = unit * factor
            square = _squares(move)
            along = (grad * move).sum(-1, keepdim=True) / square
            shortened = (grad - along * move) * self.shortening(move)
            # Rounding leaves the factor of short moves below 1 as well.
            grad = torch.where(square > self.clamp**2, shortened, grad)
        grad_size = (grad * unit).sum(-1, keepdim=True)
        if self.tanh:
            grad_size = grad_size * (1 - factor.square())
        return grad * factor / length, grad_size

    def length(self, r: Tensor) -> Tensor | int:
        """What a difference is divided by; coincident points have no direction, their r stays 0."""
        if not self.normalize:
            return 1
        length = _squares(r).sqrt_()
        return (length + 1e-8).masked_fill_(length == 0, 1)

    def shortening(self, move: Tensor) -> Tensor:
        """The factor that keeps a move within the clamp."""
        assert self.clamp is not None
        return self.clamp / _squares(move).clamp(min=self.clamp**2).sqrt()


def _rows(x: Tensor, block: _Block) -> Tensor:
    """The rows of the samples of a block, one sample after another."""
    return x[block.samples].flatten(0, 1)


def _squares(x: Tensor) -> Tensor:
    """Squared length of every row, ``[e, 1]``: a sum over so few columns is slower than this."""
    return x.square() @ x.new_ones(x.size(1), 1)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[e, c]`` in parts of one length, ``[PARTS, e // PARTS, c]``, and the few left over."""
    length = x.size(0) // PARTS
    whole = x[: PARTS * length]
    return whole.view(PARTS, length, x.size(1)), x[PARTS * length :]


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.t()`` for few rows of ``weight``."""
    out, weight = x.new_empty(x.size(0), weight.size(0)), weight.t()
    (x, rest), (parts, last) = _split(x), _split(out)
    torch.bmm(x, weight.expand(PARTS, *weight.shape), out=parts)
    if rest.size(0):
        torch.mm(rest, weight, out=last)
    return out


class _Parts:
    """The gradient of a weight, a sum over edges that is kept in parts."""

    def __init__(self, weight: Tensor) -> None:
        self.sums = weight.new_zeros(PARTS, *torch.atleast_2d(weight).shape)

    def add(self, grad: Tensor, x: Tensor) -> None:
        """Add ``grad.t() @ x``."""
        (grad, grad_rest), (x, rest) = _split(grad), _split(x)
        self.sums.baddbmm_(grad.transpose(1, 2), x)
        if rest.size(0):
            self.sums[0].addmm_(grad_rest.t(), rest)

    def total(self) -> Tensor:
        return self.sums.sum(0)
