"""Triton: the edge pipeline of the EGNN family, forward and backward, without any ``[e, h]``.

A program takes 64 or 128 edges, in the order of the node that sums them up, computes their messages
in registers and adds them up by a product with the matrix that tells which edge belongs to which of
the nodes present; so one NaN spreads to the nodes of its block. Nodes whose edges all lie in one
block are written at once; what blocks hold of the others goes to a table of pieces, two rows per
block, at most 1/32 of ``[e, h]``, which :func:`gsym.kernels._triton_rows.reduce_rows` adds up in
order.

The gradient computes the edges anew, once in the order of receivers and once in that of senders, so
that either end is a sum over consecutive edges, and once more for the weights, whose gradients are
added up in registers by a fixed number of programs and then over the programs. These are three
launches because one would hold too much in registers. A second derivative, and what does not fit in
registers, take the differentiable composition of primitives, which does store ``[e, h]``.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from gsym.kernels import _triton_rows as rows
from gsym.kernels._triton_rows import BFLOAT16
from gsym.kernels.native import accumulation_type
from gsym.kernels.segments import Segments

# Edges of a block and warps of its program, forward and backward: every four warps hold 64 edges,
# the smallest height of their product. The registers that either needs decide.
_FORWARD, _BACKWARD = (128, 8), (64, 4)

# Programs that add up gradients of the weights, two for each of the 132 multiprocessors of an H200.
# The number is part of the order of summation, so it does not depend on the device.
_PROGRAMS = 264

# Widest messages, by how products read them, and widest coordinates and attributes, of which a
# block fits on a multiprocessor: in three parts of TF32, the gradient of 128 channels asks for 256
# KiB of shared memory, of which an H200 has 227.
_MOST_HIDDEN = {"tf32x3": 64, "tf32": 128, "ieee": 128}
_MOST_NARROW = 16


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
) -> tuple[Tensor, Tensor | None]:
    attr, attr_weight = edge_attr or (None, None)
    parts = [value for value in (receiver, sender, pos, attr) if value is not None]
    batch = torch.broadcast_shapes(*(value.shape[:-2] for value in parts))

    def flat(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return value.expand(*batch, *value.shape[-2:]).reshape(batch.numel(), *value.shape[-2:])

    attr = attr[None] if attr is not None and attr.dim() == 2 else flat(attr)
    total, moved = _choose(receiver, pos, attr)(
        *(flat(receiver), flat(sender), weight, bias, flat(pos), distance, attr, attr_weight),
        *(gate or (None, None)),
        *(coord or (None, None, None)),
        *(segments.index, segments.order, segments.pointers),
        *(source.index, source.order, source.pointers),
        *(normalize, tanh, None if clamp is None else float(clamp)),
    )
    total = total.view(*batch, *total.shape[1:])
    if coord is None:
        return total, None
    if mean:
        counts = segments.pointers.diff().clamp(min=1).to(moved.dtype)
        moved = moved / counts[:, None]
    return total, moved.to(_moved_type(receiver, pos)).view(*batch, *moved.shape[1:])


def _choose(receiver: Tensor, pos: Tensor | None, attr: Tensor | None) -> Any:
    """The fused pipeline where its edges fit in registers, or the composition."""
    dim, attrs = (0 if value is None else value.size(-1) for value in (pos, attr))
    exact = receiver.dtype == torch.float64
    mixed = pos is not None and (pos.dtype == torch.float64) != exact
    most = 32 if exact else _MOST_HIDDEN[rows.input_precision(receiver.dtype)]
    fits = receiver.size(-1) <= most and max(dim, attrs) <= _MOST_NARROW
    return _edges if fits and not mixed else _compose


def _moved_type(receiver: Tensor, pos: Tensor | None) -> torch.dtype:
    return receiver.dtype if pos is None else torch.promote_types(pos.dtype, receiver.dtype)


def _compose(
    receiver: Tensor,
    sender: Tensor,
    weight: Tensor,
    bias: Tensor,
    pos: Tensor | None,
    distance: Tensor | None,
    attr: Tensor | None,
    attr_weight: Tensor | None,
    gate: Tensor | None,
    gate_bias: Tensor | None,
    coord: Tensor | None,
    coord_bias: Tensor | None,
    coord_last: Tensor | None,
    index: Tensor,
    order: Tensor,
    pointers: Tensor,
    source: Tensor,
    source_order: Tensor,
    source_pointers: Tensor,
    normalize: bool,
    tanh: bool,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    """The same from differentiable primitives: messages and moves, both summed."""
    target, origin = (index, order, pointers), (source, source_order, source_pointers)
    hidden = rows._segment_gather(receiver, *target) + rows._segment_gather(sender, *origin)
    if attr is not None and attr_weight is not None:
        hidden = hidden + F.linear(attr, attr_weight)
    if pos is not None:
        r = rows._segment_gather(pos, *target) - rows._segment_gather(pos, *origin)
        s = r.square().sum(-1, keepdim=True)
        hidden = hidden + (s * distance).to(hidden.dtype)
    message = F.silu(F.linear(F.silu(hidden), weight, bias))
    if gate is not None:
        message = message * F.linear(message, gate, gate_bias).sigmoid()
    total = rows._segment_sum(message, *target, False)
    if coord is None or coord_last is None:
        return total, total.new_empty(0)
    if normalize:
        length = s.detach().sqrt()
        r = r / torch.where(length == 0, 1, length + 1e-8)
    size = F.linear(F.silu(F.linear(message, coord, coord_bias)), coord_last)
    move = r * (size.tanh() if tanh else size)
    if clamp is not None:
        move = move * clamp / move.square().sum(-1, keepdim=True).clamp(min=clamp**2).sqrt()
    return total, rows._segment_sum(move, *target, True)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x):
    # Near zero the exponential cancels; there, the continued fraction, exact to float64.
    t = x * x
    fraction = 15.0 + t / 17.0
    fraction = 13.0 + t / fraction
    fraction = 11.0 + t / fraction
    fraction = 9.0 + t / fraction
    fraction = 7.0 + t / fraction
    fraction = 5.0 + t / fraction
    fraction = 3.0 + t / fraction
    near = x / (1.0 + t / fraction)
    return tl.where(t < 0.25, near, 2.0 * _sigmoid(2.0 * x) - 1.0)


@triton.jit
def _silu_slope(x):
    """SiLU and its derivative."""
    s = _sigmoid(x)
    return x * s, s * (1.0 + x * (1.0 - s))


@triton.jit
def _rows_of(x, index, real, width: tl.constexpr, column, ACC: tl.constexpr):
    """Rows ``[E, C]`` of a table."""
    mask = real[:, None] & (column < width)[None, :]
    return tl.load(x + index[:, None] * width + column[None, :], mask, other=0).to(ACC)


@triton.jit
def _square(x, width: tl.constexpr, column, TURNED: tl.constexpr):
    """A matrix ``[h, h]``, or its transpose."""
    mask = (column < width)[:, None] & (column < width)[None, :]
    if TURNED:
        return tl.load(x + column[None, :] * width + column[:, None], mask, other=0)
    return tl.load(x + column[:, None] * width + column[None, :], mask, other=0)


@triton.jit
def _vector(x, width: tl.constexpr, column, ACC: tl.constexpr):
    return tl.load(x + column, column < width, other=0).to(ACC)


@triton.jit
def _dot(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):
    return tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _attributes(
    attr, attr_stride, sample, edge, real, attrs: tl.constexpr, ACC: tl.constexpr, A: tl.constexpr
):
    return _rows_of(attr + sample * attr_stride, edge, real, attrs, tl.arange(0, A), ACC)


@triton.jit
def _hidden(
    receiver,
    sender,
    pos,
    distance,
    attr,
    attr_stride,
    attr_weight,
    sample,
    edge,
    i,
    j,
    real,
    hidden: tl.constexpr,
    dim: tl.constexpr,
    attrs: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    A: tl.constexpr,
):
    """What goes into the first activation of every edge, and its vector r and r^2."""
    column = tl.arange(0, H)
    u = _rows_of(receiver, i, real, hidden, column, ACC)
    u += _rows_of(sender, j, real, hidden, column, ACC)
    r = tl.zeros([real.shape[0], D], ACC)
    if pos is not None:
        axis = tl.arange(0, D)
        r = _rows_of(pos, i, real, dim, axis, ACC) - _rows_of(pos, j, real, dim, axis, ACC)
    s = tl.sum(r * r, 1)
    if pos is not None:
        u += s[:, None] * _vector(distance, hidden, column, ACC)[None, :]
    if attr is not None:
        a = _attributes(attr, attr_stride, sample, edge, real, attrs, ACC, A)
        k = tl.arange(0, A)
        mask = (k < attrs)[:, None] & (column < hidden)[None, :]
        matrix = tl.load(attr_weight + column[None, :] * attrs + k[:, None], mask, other=0)
        u += _dot(a, matrix, OPERAND, PRECISION, ACC)
    return u, r, s


@triton.jit
def _owners(i, real, previous, first_edge, E: tl.constexpr):
    """Which edge belongs to which of the nodes present, ``[E, E]``, and those nodes, or -1."""
    begins = (previous != i) | first_edge
    rank = tl.cumsum((begins & real).to(tl.int32), 0) - 1
    member = (rank[None, :] == tl.arange(0, E)[:, None]) & real[None, :]
    node = tl.max(tl.where(member, i[None, :].to(tl.int32), -1), 1).to(tl.int64)
    return member, node


@triton.jit
def _sum_rows(member, value, ACC: tl.constexpr, PARTS: tl.constexpr):
    """``member @ value``, exact to float32 with three parts: the tensor cores read bfloat16."""
    if tl.float64 == ACC:
        return tl.dot(member.to(ACC), value, input_precision="ieee", out_dtype=ACC)
    ones = member.to(BFLOAT16)
    part = value.to(BFLOAT16)
    total = tl.dot(ones, part)
    for _ in tl.static_range(PARTS - 1):
        value -= part.to(tl.float32)
        part = value.to(BFLOAT16)
        total = tl.dot(ones, part, total)
    return total


@triton.jit
def _store_sums(
    member,
    node,
    value,
    pointers,
    out,
    pieces,
    sample,
    block,
    blocks,
    nodes,
    width: tl.constexpr,
    PARTS: tl.constexpr,
    ACC: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
):
    """Add up the rows of every node: those of whole nodes, or pieces of the others."""
    total = _sum_rows(member, value, ACC, PARTS)
    present = node >= 0
    start = tl.load(pointers + node, present, other=0).to(tl.int64)
    end = tl.load(pointers + node + 1, present, other=0).to(tl.int64)
    low = block * E
    whole = (start >= low) & (end <= low + E)
    column = tl.arange(0, C)
    used = (column < width)[None, :]
    row = (sample * nodes + node)[:, None] * width + column[None, :]
    tl.store(out + row, total.to(out.dtype.element_ty), (present & whole)[:, None] & used)
    place = (sample * blocks + block) * 2 + (start > low).to(tl.int64)
    row = place[:, None] * width + column[None, :]
    tl.store(pieces + row, total, (present & ~whole)[:, None] & used)


@triton.jit
def _forward_kernel(
    receiver,  # [b, n, h]
    sender,  # [b, n, h]
    weight,  # [h, h]
    bias,  # [h]
    pos,  # [b, n, d]
    distance,  # [h]
    attr,  # [b, e, a] or [1, e, a]
    attr_weight,  # [h, a]
    gate,  # [1, h]
    gate_bias,  # [1]
    coord,  # [h, h]
    coord_bias,  # [h]
    coord_last,  # [1, h]
    index,  # [e]
    source,  # [e]
    pointers,  # [n + 1]
    total,  # [b, n, h]
    total_pieces,  # [b, 2 * blocks, h]
    moved,  # [b, n, d]
    moved_pieces,  # [b, 2 * blocks, d]
    batch,
    edges,
    receivers,
    senders,
    hidden: tl.constexpr,
    dim: tl.constexpr,
    attrs: tl.constexpr,
    attr_stride,
    NORMALIZE: tl.constexpr,
    TANH: tl.constexpr,
    CLAMP: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    ACC: tl.constexpr,
    E: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    A: tl.constexpr,
):
    """Messages and moves of every edge, summed by receiver."""
    blocks = tl.cdiv(edges, E)
    column = tl.arange(0, H)
    # A real loop over several blocks would keep its addresses in registers, which are short.
    for item in range(tl.program_id(0), tl.program_id(0) + 1):
        sample = (item // blocks).to(tl.int64)
        block = (item % blocks).to(tl.int64)
        edge = block * E + tl.arange(0, E)
        real = edge < edges
        i = tl.load(index + edge, real, other=0).to(tl.int64)
        j = tl.load(source + edge, real, other=0).to(tl.int64)
        first = tl.arange(0, E) == 0
        previous = tl.load(index + edge - 1, real & ~first, other=0).to(tl.int64)
        member, node = _owners(i, real, previous, first, E)
        u, r, s = _hidden(
            *(receiver, sender, pos, distance, attr, attr_stride, attr_weight, sample, edge),
            *(sample * receivers + i, sample * senders + j, real, hidden, dim, attrs),
            *(OPERAND, PRECISION, ACC, H, D, A),
        )
        v = _dot(u * _sigmoid(u), _square(weight, hidden, column, True), OPERAND, PRECISION, ACC)
        v += _vector(bias, hidden, column, ACC)[None, :]
        m = v * _sigmoid(v)
        if gate is not None:
            t = tl.sum(m * _vector(gate, hidden, column, ACC)[None, :], 1)
            m = m * _sigmoid(t + tl.load(gate_bias).to(ACC))[:, None]
        _store_sums(
            *(member, node, m, pointers, total, total_pieces, sample, block, blocks),
            *(receivers, hidden, PARTS, ACC, E, H),
        )
        if coord is not None:
            k = _dot(m, _square(coord, hidden, column, True), OPERAND, PRECISION, ACC)
            k += _vector(coord_bias, hidden, column, ACC)[None, :]
            last = _vector(coord_last, hidden, column, ACC)
            size = tl.sum(k * _sigmoid(k) * last[None, :], 1)
            if TANH:
                size = _tanh(size)
            if NORMALIZE:
                r = r / tl.where(s == 0, 1.0, tl.sqrt(s) + 1e-8)[:, None]
            move = r * size[:, None]
            if CLAMP is not None:
                longest = tl.full([E], CLAMP, ACC)
                squares = tl.sum(move * move, 1)
                shrink = longest / tl.sqrt(tl.maximum(squares, longest * longest))
                move = move * shrink[:, None]
            _store_sums(
                *(member, node, move, pointers, moved, moved_pieces, sample, block, blocks),
                *(receivers, dim, PARTS, ACC, E, D),
            )


@triton.jit
def _backward_kernel(
    grad_total,  # [b, n, h]
    grad_moved,  # [b, n, d]
    receiver,
    sender,
    weight,
    bias,
    pos,
    distance,
    attr,
    attr_weight,
    gate,
    gate_bias,
    coord,
    coord_bias,
    coord_last,
    index,
    source,
    order,  # [e] edges by sender, or None: by receiver
    pointers,  # [n + 1] of receivers or senders
    node_grad,  # [b, n, h]
    node_pieces,
    pos_grad,  # [b, n, d]
    pos_pieces,
    weight_grad,  # [programs, h, h]
    coord_grad,  # [programs, h, h]
    attr_weight_grad,  # [programs, h, a]
    vector_grad,  # [programs, 5, h]: bias, distance, gate, coord_bias, coord_last
    gate_bias_grad,  # [programs]
    attr_grad,  # [b, e, a]
    batch,
    edges,
    receivers,
    senders,
    hidden: tl.constexpr,
    dim: tl.constexpr,
    attrs: tl.constexpr,
    attr_stride,
    programs,
    NORMALIZE: tl.constexpr,
    TANH: tl.constexpr,
    CLAMP: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    ACC: tl.constexpr,
    NODES: tl.constexpr,
    WEIGHTS: tl.constexpr,
    E: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    A: tl.constexpr,
):
    """Compute the edges anew, and the gradients of one end (NODES) and of the weights (WEIGHTS)."""
    blocks = tl.cdiv(edges, E)
    column, axis, a_column = tl.arange(0, H), tl.arange(0, D), tl.arange(0, A)
    if WEIGHTS:
        d_weight = tl.zeros([H, H], ACC)
        d_bias = tl.zeros([H], ACC)
        d_distance = tl.zeros([H], ACC)
        d_gate = tl.zeros([H], ACC)
        d_gate_bias = tl.zeros([E], ACC)
        d_coord = tl.zeros([H, H], ACC)
        d_coord_bias = tl.zeros([H], ACC)
        d_last = tl.zeros([H], ACC)
        d_attr_weight = tl.zeros([H, A], ACC)
    begin = tl.program_id(0)
    end = batch * blocks if WEIGHTS else begin + 1
    for item in range(begin, end, programs if WEIGHTS else 1):
        sample = (item // blocks).to(tl.int64)
        block = (item % blocks).to(tl.int64)
        place = block * E + tl.arange(0, E)
        real = place < edges
        edge = place
        if order is not None:
            edge = tl.load(order + place, real, other=0).to(tl.int64)
        i = tl.load(index + edge, real, other=0).to(tl.int64)
        j = tl.load(source + edge, real, other=0).to(tl.int64)
        at_i, at_j = sample * receivers + i, sample * senders + j
        u, r, s = _hidden(
            *(receiver, sender, pos, distance, attr, attr_stride, attr_weight, sample, edge),
            *(at_i, at_j, real, hidden, dim, attrs, OPERAND, PRECISION, ACC, H, D, A),
        )
        a = u * _sigmoid(u)
        v = _dot(a, _square(weight, hidden, column, True), OPERAND, PRECISION, ACC)
        v += _vector(bias, hidden, column, ACC)[None, :]
        m = v * _sigmoid(v)
        if gate is not None:
            gate_row = _vector(gate, hidden, column, ACC)[None, :]
            g = _sigmoid(tl.sum(m * gate_row, 1) + tl.load(gate_bias).to(ACC))
            m = m * g[:, None]
        grad_m = tl.zeros([E, H], ACC)
        grad_r = tl.zeros([E, D], ACC)
        if coord is not None:
            k = _dot(m, _square(coord, hidden, column, True), OPERAND, PRECISION, ACC)
            k += _vector(coord_bias, hidden, column, ACC)[None, :]
            z, slope = _silu_slope(k)
            last = _vector(coord_last, hidden, column, ACC)
            size = tl.sum(z * last[None, :], 1)
            factor = _tanh(size) if TANH else size
            inverse = tl.full([E], 1.0, ACC)
            if NORMALIZE:
                inverse = 1.0 / tl.where(s == 0, 1.0, tl.sqrt(s) + 1e-8)
            unit = r * inverse[:, None]
            grad_move = _rows_of(grad_moved, at_i, real, dim, axis, ACC)
            if CLAMP is not None:
                longest = tl.full([E], CLAMP, ACC)
                move = unit * factor[:, None]
                squares = tl.sum(move * move, 1)
                beyond = squares >= longest * longest
                shrink = longest / tl.sqrt(tl.maximum(squares, longest * longest))
                along = tl.sum(move * grad_move, 1) / tl.where(beyond, squares, 1.0)
                along = tl.where(beyond, along, 0.0)
                grad_move = shrink[:, None] * (grad_move - along[:, None] * move)
            grad_size = tl.sum(grad_move * unit, 1)
            grad_r = grad_move * (factor * inverse)[:, None]
            if TANH:
                grad_size *= 1.0 - factor * factor
            grad_k = grad_size[:, None] * last[None, :] * slope
            if WEIGHTS:
                d_last += tl.sum(grad_size[:, None] * z, 0)
                d_coord_bias += tl.sum(grad_k, 0)
                d_coord += _dot(tl.trans(grad_k), m, OPERAND, PRECISION, ACC)
            grad_m = _dot(grad_k, _square(coord, hidden, column, False), OPERAND, PRECISION, ACC)
        grad_m += _rows_of(grad_total, at_i, real, hidden, column, ACC)
        message, slope = _silu_slope(v)
        if gate is not None:
            grad_gate = tl.sum(grad_m * message, 1) * g * (1.0 - g)
            if WEIGHTS:
                d_gate += tl.sum(grad_gate[:, None] * message, 0)
                d_gate_bias += grad_gate
            grad_m = grad_m * g[:, None] + grad_gate[:, None] * gate_row
        grad_v = grad_m * slope
        if WEIGHTS:
            d_bias += tl.sum(grad_v, 0)
            d_weight += _dot(tl.trans(grad_v), a, OPERAND, PRECISION, ACC)
        grad_u = _dot(grad_v, _square(weight, hidden, column, False), OPERAND, PRECISION, ACC)
        a, slope = _silu_slope(u)
        grad_u = grad_u * slope
        if pos is not None:
            row = _vector(distance, hidden, column, ACC)[None, :]
            grad_r += 2.0 * tl.sum(grad_u * row, 1)[:, None] * r
            if WEIGHTS:
                d_distance += tl.sum(grad_u * s[:, None], 0)
        if WEIGHTS and attr is not None:
            values = _attributes(attr, attr_stride, sample, edge, real, attrs, ACC, A)
            d_attr_weight += _dot(tl.trans(grad_u), values, OPERAND, PRECISION, ACC)
            mask = (column < hidden)[:, None] & (a_column < attrs)[None, :]
            where = column[:, None] * attrs + a_column[None, :]
            matrix = tl.load(attr_weight + where, mask, other=0)
            found = _dot(grad_u, matrix, OPERAND, PRECISION, ACC).to(attr_grad.dtype.element_ty)
            where = (sample * edges + edge)[:, None] * attrs + a_column[None, :]
            tl.store(attr_grad + where, found, real[:, None] & (a_column < attrs)[None, :])
        if NODES:
            first = tl.arange(0, E) == 0
            if order is None:
                owner, nodes = i, receivers
                before = place - 1
                previous = tl.load(index + before, real & ~first, other=0).to(tl.int64)
            else:
                owner, nodes = j, senders
                grad_r = -grad_r
                before = tl.load(order + place - 1, real & ~first, other=0).to(tl.int64)
                previous = tl.load(source + before, real & ~first, other=0).to(tl.int64)
            member, node = _owners(owner, real, previous, first, E)
            _store_sums(
                *(member, node, grad_u, pointers, node_grad, node_pieces, sample, block, blocks),
                *(nodes, hidden, PARTS, ACC, E, H),
            )
            if pos is not None:
                _store_sums(
                    *(member, node, grad_r, pointers, pos_grad, pos_pieces, sample, block),
                    *(blocks, nodes, dim, PARTS, ACC, E, D),
                )
    if WEIGHTS:
        program = tl.program_id(0).to(tl.int64)
        used = column < hidden
        where = (program * hidden + column[:, None]) * hidden + column[None, :]
        tl.store(weight_grad + where, d_weight, used[:, None] & used[None, :])
        vector = vector_grad + program * 5 * hidden + column
        tl.store(vector, d_bias, used)
        if pos is not None:
            tl.store(vector + hidden, d_distance, used)
        if gate is not None:
            tl.store(vector + 2 * hidden, d_gate, used)
            tl.store(gate_bias_grad + program, tl.sum(d_gate_bias, 0))
        if coord is not None:
            tl.store(coord_grad + where, d_coord, used[:, None] & used[None, :])
            tl.store(vector + 3 * hidden, d_coord_bias, used)
            tl.store(vector + 4 * hidden, d_last, used)
        if attr is not None:
            where = (program * hidden + column[:, None]) * attrs + a_column[None, :]
            mask = used[:, None] & (a_column < attrs)[None, :]
            tl.store(attr_weight_grad + where, d_attr_weight, mask)


def _sizes(receiver: Tensor, sender: Tensor, pos: Any, attr: Any, index: Tensor) -> tuple[int, ...]:
    batch, receivers, hidden = receiver.shape
    edges = index.numel()
    dim, attrs = (1 if value is None else value.size(-1) for value in (pos, attr))
    stride = edges * attrs if attr is not None and attr.size(0) > 1 else 0
    return batch, edges, receivers, sender.size(1), hidden, dim, attrs, stride


def _settings(dtype: torch.dtype, hidden: int, block: tuple[int, int]) -> dict[str, Any]:
    """Widths and precisions: sums over edges keep float32 even where torch allows TF32."""
    return {
        "OPERAND": rows.operand(dtype),
        "PRECISION": rows.input_precision(dtype),
        "PARTS": 3 if dtype == torch.float32 else 2,
        "ACC": rows.accumulator(dtype),
        "E": block[0],
        "num_warps": block[1],
        "num_stages": 1,
        "H": rows.width(hidden, 16),
        "D": _MOST_NARROW,
        "A": _MOST_NARROW,
    }


def _contiguous(values: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [None if value is None else value.contiguous() for value in values]


class _Sums:
    """Where the programs write sums by node, ``[b, n, c]``: whole nodes, and pieces of others."""

    def __init__(self, shape: tuple[int, int, int], edges: int, block: int, like: Tensor) -> None:
        batch, _, width = shape
        self.out, self.block = like.new_empty(shape), block
        blocks = triton.cdiv(edges, block)
        wide = accumulation_type(like.dtype)
        self.pieces = like.new_empty(batch, 2 * blocks, width, dtype=wide)

    def finish(self, pointers: Tensor) -> Tensor:
        rows.reduce_rows(self.pieces, pointers, self.out, part="cross", chunk=self.block)
        return self.out


@torch.library.custom_op("gsym_triton::edge_mlp_sum", mutates_args=())
def _edges(
    receiver: Tensor,
    sender: Tensor,
    weight: Tensor,
    bias: Tensor,
    pos: Tensor | None,
    distance: Tensor | None,
    attr: Tensor | None,
    attr_weight: Tensor | None,
    gate: Tensor | None,
    gate_bias: Tensor | None,
    coord: Tensor | None,
    coord_bias: Tensor | None,
    coord_last: Tensor | None,
    index: Tensor,
    order: Tensor,
    pointers: Tensor,
    source: Tensor,
    source_order: Tensor,
    source_pointers: Tensor,
    normalize: bool,
    tanh: bool,
    clamp: float | None,
) -> tuple[Tensor, Tensor]:
    """Messages ``[b, n, h]``, and moves ``[b, n, d]`` in the wide type, both summed."""
    nodes_and_edges = (receiver, sender, weight, bias, pos, distance, attr, attr_weight)
    tensors = _contiguous((*nodes_and_edges, gate, gate_bias, coord, coord_bias, coord_last))
    sizes = _sizes(receiver, sender, pos, attr, index)
    batch, edges, receivers, _, hidden, dim, *_ = sizes
    block = _FORWARD[0]
    total = _Sums((batch, receivers, hidden), edges, block, receiver)
    wide = receiver.new_empty(0, dtype=accumulation_type(receiver.dtype))
    moved = None if coord is None else _Sums((batch, receivers, dim), edges, block, wide)
    rows.launch(
        _forward_kernel,
        batch * triton.cdiv(edges, block),
        receiver,
        *(*tensors, index, source, pointers, total.out, total.pieces),
        *((None, None) if moved is None else (moved.out, moved.pieces)),
        *(*sizes, normalize, tanh, clamp),
        **_settings(receiver.dtype, hidden, _FORWARD),
    )
    return total.finish(pointers), wide if moved is None else moved.finish(pointers)


@_edges.register_fake
def _(receiver, sender, weight, bias, pos, *rest):  # type: ignore[no-untyped-def]
    wide, coord = accumulation_type(receiver.dtype), rest[5]
    shape = (0,) if coord is None else (*receiver.shape[:2], pos.size(-1))
    return torch.empty_like(receiver), receiver.new_empty(shape, dtype=wide)


@torch.library.custom_op("gsym_triton::edge_mlp_gradients", mutates_args=())
def _edge_gradients(
    grad_total: Tensor,
    grad_moved: Tensor,
    receiver: Tensor,
    sender: Tensor,
    weight: Tensor,
    bias: Tensor,
    pos: Tensor | None,
    distance: Tensor | None,
    attr: Tensor | None,
    attr_weight: Tensor | None,
    gate: Tensor | None,
    gate_bias: Tensor | None,
    coord: Tensor | None,
    coord_bias: Tensor | None,
    coord_last: Tensor | None,
    index: Tensor,
    order: Tensor,
    pointers: Tensor,
    source: Tensor,
    source_order: Tensor,
    source_pointers: Tensor,
    normalize: bool,
    tanh: bool,
    clamp: float | None,
) -> list[Tensor]:
    """Of the tensors from ``receiver`` to ``coord_last`` that are there, in order."""
    nodes_and_edges = (receiver, sender, weight, bias, pos, distance, attr, attr_weight)
    tensors = _contiguous((*nodes_and_edges, gate, gate_bias, coord, coord_bias, coord_last))
    sizes = _sizes(receiver, sender, pos, attr, index)
    batch, edges, receivers, senders, hidden, dim, attrs, _ = sizes
    block = _BACKWARD[0]
    items = batch * triton.cdiv(edges, block)
    few = min(items, _PROGRAMS)
    wide = receiver.new_empty(0, dtype=accumulation_type(receiver.dtype))
    weights = wide.new_empty(few, hidden, hidden)
    coords = None if coord is None else torch.empty_like(weights)
    attr_weights = None if attr is None else wide.new_empty(few, hidden, attrs)
    vectors, gate_biases = wide.new_empty(few, 5, hidden), wide.new_empty(few)
    attr_grad = None if attr is None else attr.new_empty(batch, edges, attrs)
    summed = (weights, coords, attr_weights, vectors, gate_biases, attr_grad)
    flags = (normalize, tanh, clamp)
    settings = _settings(receiver.dtype, hidden, _BACKWARD)
    given = (grad_total.contiguous(), grad_moved.contiguous() if coord is not None else None)

    def run(programs: int, ends: Any, nodes: bool, weighs: bool) -> None:
        rows.launch(
            _backward_kernel,
            programs,
            receiver,
            *(*given, *tensors, index, source, *ends),
            *(summed if weighs else [None] * len(summed)),
            *(*sizes, programs, *flags),
            **{**settings, "NODES": nodes, "WEIGHTS": weighs},
        )

    node_grads, pos_grads = [], []
    for nodes, rank, starts in (
        (receivers, None, pointers),
        (senders, source_order, source_pointers),
    ):
        node = _Sums((batch, nodes, hidden), edges, block, receiver)
        place = None if pos is None else _Sums((batch, nodes, dim), edges, block, wide)
        ends = (rank, starts, node.out, node.pieces)
        ends = (*ends, *((None, None) if place is None else (place.out, place.pieces)))
        run(items, ends, True, False)
        node_grads.append(node.finish(starts))
        if place is not None:
            pos_grads.append(place.finish(starts))
    run(few, (None, pointers, None, None, None, None), False, True)

    dtype = receiver.dtype
    found = [*node_grads, weights.sum(0).to(dtype)]
    vector_sums = vectors.sum(0).to(dtype)
    found.append(vector_sums[0].clone())
    if pos is not None:
        found += [(pos_grads[0] + pos_grads[1]).to(pos.dtype), vector_sums[1].clone()]
    if attr is not None and attr_grad is not None and attr_weights is not None:
        shared = attr.size(0) == 1 and batch != 1
        found.append(attr_grad.sum(0, keepdim=True) if shared else attr_grad)
        found.append(attr_weights.sum(0).to(dtype))
    if gate is not None:
        found += [vector_sums[None, 2].clone(), gate_biases.sum(0, keepdim=True).to(dtype)]
    if coords is not None:
        found += [coords.sum(0).to(dtype), vector_sums[3].clone(), vector_sums[None, 4].clone()]
    return found


@_edge_gradients.register_fake
def _(grad_total, grad_moved, *args):  # type: ignore[no-untyped-def]
    return [value.new_empty(value.shape) for value in args[:13] if value is not None]


def _save_edges(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, normalize, tanh, clamp = inputs
    ctx.flags = normalize, tanh, clamp
    ctx.save_for_backward(*tensors)


def _edges_backward(ctx, grad_total, grad_moved):  # type: ignore[no-untyped-def]
    tensors, flags = ctx.saved_tensors, ctx.flags
    nothing = [None] * (len(tensors) - 13 + len(flags))
    if not torch.is_grad_enabled():
        found = iter(_edge_gradients(grad_total, grad_moved, *tensors, *flags))
        return *(None if value is None else next(found) for value in tensors[:13]), *nothing
    # A second derivative may follow. Views, so that one tensor in two places keeps them apart.
    views = [None if value is None else value.view_as(value) for value in tensors[:13]]
    places = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
    total, moved = _compose(*views, *tensors[13:], *flags)
    results, grads = (total, moved), (grad_total, grad_moved)
    if tensors[10] is None:
        results, grads = results[:1], grads[:1]
    wanted = [views[i] for i in places]
    found = torch.autograd.grad(results, wanted, grads, create_graph=True, allow_unused=True)
    gradients = [None] * 13
    for i, value in zip(places, found, strict=True):
        gradients[i] = value
    return *gradients, *nothing


_edges.register_autograd(_edges_backward, setup_context=_save_edges)
