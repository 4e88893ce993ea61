"""Triton: the edge pipeline of the EGNN family, forward and backward, without any ``[e, h]``.

A program takes 16 or 32 edges, in the order of the node that sums them up, computes their messages
in registers and adds them up by a product with the matrix that tells which edge belongs to which
node; so one NaN spreads to the nodes of its block. Nodes whose edges all lie in one block are
written at once; what blocks hold of the others goes to a table of pieces, two rows per block, at
most 1/8 of ``[e, h]``, which :func:`gsym.kernels._triton_rows.reduce_rows` adds up in order.

The gradient computes the edges anew, once in the order of receivers and once in that of senders, so
that either end is a sum over consecutive edges. In the first pass a fixed number of programs walk
the blocks, and each adds up the gradients of the weights in a table of its own; the tables are
added up at last. A second derivative, and what does not fit in registers, take the differentiable
composition of primitives, which does store ``[e, h]``.

Tiles are ``[h, e]``: the left factor of a product is then a matrix of weights, of which every warp
holds 16 rows, so a tile takes as many registers at any width, and the right factor, of the edges,
lies in shared memory. Vectors along the edges are computed axis by axis.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsym.kernels import _trace
from gsym.kernels import _triton_rows as rows
from gsym.kernels._edges import derive
from gsym.kernels._plain import accumulation_type, compose_edges, edge_tensors
from gsym.kernels._transforms import is_transformed
from gsym.kernels._triton_rows import BFLOAT16
from gsym.kernels.segments import Segments

# Programs that add up gradients of the weights, two for each of the 132 multiprocessors of an H200.
# The number is part of the order of summation, so it does not depend on the device.
_PROGRAMS = 264

# Widest messages, by how products read them, whose edges fit in registers, and most coordinates and
# attributes, which are read one after another.
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
        *(segments._index, segments._order, segments._pointers),
        *(source._index, source._order, source._pointers),
        *(normalize, tanh, None if clamp is None else float(clamp)),
    )
    total = total.view(*batch, *total.shape[1:])
    if coord is None:
        return total, None
    if mean:
        counts = segments._pointers.diff().clamp(min=1).to(moved.dtype)
        moved = moved / counts[:, None]
    return total, moved.to(_moved_type(receiver, pos)).view(*batch, *moved.shape[1:])


def _choose(receiver: Tensor, pos: Tensor | None, attr: Tensor | None) -> Any:
    """The fused pipeline where its edges fit in registers, or the composition."""
    dim, attrs = (0 if value is None else value.size(-1) for value in (pos, attr))
    exact = receiver.dtype == torch.float64
    mixed = pos is not None and (pos.dtype == torch.float64) != exact
    most = 32 if exact else _MOST_HIDDEN[rows.input_precision(receiver.dtype)]
    fits = receiver.size(-1) <= most and max(dim, attrs) <= _MOST_NARROW
    if fits and not mixed:
        return _edges
    _trace.in_plain_torch()  # but for the sums
    return _compose


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
    attrs = None if attr is None or attr_weight is None else (attr, attr_weight)
    gates = None if gate is None or gate_bias is None else (gate, gate_bias)
    coords = None
    if coord is not None and coord_bias is not None and coord_last is not None:
        coords = coord, coord_bias, coord_last
    given = edge_tensors(receiver, sender, weight, bias, pos, distance, attrs, gates, coords)
    total, moved = compose_edges(
        given,
        lambda x: rows.take_rows(x, *target),
        lambda x: rows.take_rows(x, *origin),
        lambda x: rows.sum_rows(x, *target, True),
        lambda x: rows.sum_rows(x, *target, True),  # to be averaged by the caller
        normalize=normalize,
        tanh=tanh,
        clamp=clamp,
    )
    return total.to(receiver.dtype), moved


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
def _columns_of(x, index, real, width: tl.constexpr, channel):
    """Rows of a table as columns, ``[C, E]``."""
    mask = (channel < width)[:, None] & real[None, :]
    return tl.load(x + index.to(tl.int64)[None, :] * width + channel[:, None], mask, other=0)


@triton.jit
def _axis(x, index, real, width: tl.constexpr, axis, ACC: tl.constexpr):
    """One number of every row of a table, ``[E]``."""
    return tl.load(x + index.to(tl.int64) * width + axis, real, other=0).to(ACC)


@triton.jit
def _vector(x, width: tl.constexpr, channel, ACC: tl.constexpr, stride: tl.constexpr = 1):
    """A vector as a column, ``[C, 1]``."""
    return tl.load(x + channel * stride, channel < width, other=0).to(ACC)[:, None]


@triton.jit
def _dot(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):
    return tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _anew(pointers):
    """Zero, as the compiler cannot know: what is computed from it is computed here.

    Otherwise rows, addresses and activations stay in registers from one part of a kernel to the
    next, in every layout that a part needs, though computing them again is cheap.
    """
    tl.debug_barrier()
    return tl.multiple_of(tl.load(pointers).to(tl.int32), 16)


@triton.jit
def _alone(x, pointers):
    """A tile, of which nothing that was computed before is kept."""
    return x + _anew(pointers).to(x.dtype)


@triton.jit
def _edges_of(pointers, index, source, order, block, edges, E: tl.constexpr):
    """Zero, and of every edge its place, whether it is one, its number, receiver and sender.

    The place counts along the order, by receiver or by sender.
    """
    zero = _anew(pointers)
    place = block * E + zero + tl.arange(0, E)
    real = place < edges
    edge = place
    if order is not None:
        edge = tl.load(order + place, real, other=0).to(tl.int64)
    i = tl.load(index + edge, real, other=0).to(tl.int32)
    j = tl.load(source + edge, real, other=0).to(tl.int32)
    return zero, place, real, edge, i, j


@triton.jit
def _squares(pos_i, pos_j, i, j, real, dim: tl.constexpr, ACC: tl.constexpr):
    """The squared distance along every edge, ``[E]``."""
    s = tl.zeros(real.shape, ACC)
    if pos_i is not None:
        for axis in range(dim):
            r = _axis(pos_i, i, real, dim, axis, ACC) - _axis(pos_j, j, real, dim, axis, ACC)
            s += r * r
    return s


@triton.jit
def _along(grad_moved, pos_i, pos_j, i, j, real, dim: tl.constexpr, ACC: tl.constexpr):
    """The gradient of the move of every edge, along r, ``[E]``."""
    found = tl.zeros(real.shape, ACC)
    for axis in range(dim):
        r = _axis(pos_i, i, real, dim, axis, ACC) - _axis(pos_j, j, real, dim, axis, ACC)
        found += r * _axis(grad_moved, i, real, dim, axis, ACC)
    return found


@triton.jit
def _first(
    receiver,
    sender,
    distance,
    attr,
    attr_weight,
    i,
    j,
    edge,
    real,
    s,
    channel,
    hidden: tl.constexpr,
    attrs: tl.constexpr,
    ACC: tl.constexpr,
):
    """What goes into the first activation of every edge, ``[H, E]``."""
    u = _columns_of(receiver, i, real, hidden, channel).to(ACC)
    u += _columns_of(sender, j, real, hidden, channel).to(ACC)
    if distance is not None:
        u += _vector(distance, hidden, channel, ACC) * s[None, :]
    if attr is not None:
        for k in range(attrs):
            value = _axis(attr, edge, real, attrs, k, ACC)
            u += _vector(attr_weight + k, hidden, channel, ACC, attrs) * value[None, :]
    return u


@triton.jit
def _linear(
    x,
    weight,
    channel,
    hidden: tl.constexpr,
    TURNED: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    """The weights ``[H, H]``, or their transpose, times ``x [H, E]``."""
    mask = (channel < hidden)[:, None] & (channel < hidden)[None, :]
    matrix = tl.load(weight + channel[:, None] * hidden + channel[None, :], mask, other=0)
    if TURNED:
        matrix = tl.trans(matrix)
    return _dot(matrix, x, OPERAND, PRECISION, ACC)


@triton.jit
def _inverse_length(s, NORMALIZE: tl.constexpr):
    if NORMALIZE:
        return 1.0 / tl.where(s == 0, 1.0, tl.sqrt(s) + 1e-8)
    return 1.0 + 0.0 * s


@triton.jit
def _owners(node, ends, order, place, real, E: tl.constexpr):
    """Which edges are of the node of which edge, ``[E, E]``, and which are its first here."""
    begins = tl.arange(0, E) == 0
    before = place - 1
    if order is not None:
        before = tl.load(order + before, real & ~begins, other=0).to(tl.int64)
    previous = tl.load(ends + before, real & ~begins, other=0).to(tl.int32)
    member = (node[:, None] == node[None, :]) & real[:, None]
    return member, real & (begins | (previous != node))


@triton.jit
def _sum_columns(value, member, ACC: tl.constexpr, PARTS: tl.constexpr):
    """``value @ member``, exact to float32 with three parts: the tensor cores read bfloat16."""
    if tl.float64 == ACC:
        return tl.dot(value, member.to(ACC), input_precision="ieee", out_dtype=ACC)
    ones = member.to(BFLOAT16)
    part = value.to(BFLOAT16)
    total = tl.dot(part, ones)
    for _ in tl.static_range(PARTS - 1):
        value -= part.to(tl.float32)
        part = value.to(BFLOAT16)
        total = tl.dot(part, ones, total)
    return total


@triton.jit
def _store_sums(
    total,  # [C, E], those of the node of every edge
    channel,
    node,
    first,  # whether the edge is the first of its node in the block
    pointers,
    out,
    pieces,
    sample,
    block,
    blocks,
    nodes,
    width: tl.constexpr,
):
    """Write the sums of whole nodes, or of what the block holds of the others."""
    start = tl.load(pointers + node, first, other=0).to(tl.int64)
    end = tl.load(pointers + node + 1, first, other=0).to(tl.int64)
    low = block * node.shape[0]
    whole = (start >= low) & (end <= low + node.shape[0])
    used = (channel < width)[:, None]
    row = (sample * nodes + node)[None, :] * width + channel[:, None]
    tl.store(out + row, total.to(out.dtype.element_ty), used & (first & whole)[None, :])
    place = (sample * blocks + block) * 2 + (start > low).to(tl.int64)
    row = place[None, :] * width + channel[:, None]
    tl.store(pieces + row, total, used & (first & ~whole)[None, :])


@triton.jit
def _store_moves(
    scale_r,  # [E]
    scale_grad,  # [E]
    grad_moved,
    pos_i,
    pos_j,
    i,
    j,
    real,
    member,
    node,
    first,
    pointers,
    out,
    pieces,
    sample,
    block,
    blocks,
    nodes,
    dim: tl.constexpr,
    ACC: tl.constexpr,
):
    """Add up vectors along the edges, axis by axis."""
    for axis in range(dim):
        move = _axis(pos_i, i, real, dim, axis, ACC) - _axis(pos_j, j, real, dim, axis, ACC)
        move *= scale_r
        if grad_moved is not None:
            move += scale_grad * _axis(grad_moved, i, real, dim, axis, ACC)
        total = tl.sum(tl.where(member, move[:, None], 0.0), 0)
        _store_sums(
            *(total[None, :], axis + tl.arange(0, 1), node, first, pointers, out, pieces),
            *(sample, block, blocks, nodes, dim),
        )


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
):
    """Messages and moves of every edge, summed by receiver."""
    blocks = tl.cdiv(edges, E)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    receiver += sample * receivers * hidden
    sender += sample * senders * hidden
    pos_i = pos
    pos_j = pos
    if pos is not None:
        pos_i = pos + sample * receivers * dim
        pos_j = pos + sample * senders * dim
    if attr is not None:
        attr += sample * attr_stride
    zero, place, real, edge, i, j = _edges_of(pointers, index, source, None, block, edges, E)
    channel = zero + tl.arange(0, H)
    s = _squares(pos_i, pos_j, i, j, real, dim, ACC)
    u = _first(
        *(receiver, sender, distance, attr, attr_weight, i, j, edge, real, s, channel),
        *(hidden, attrs, ACC),
    )
    v = _linear(u * _sigmoid(u), weight, channel, hidden, False, OPERAND, PRECISION, ACC)
    v += _vector(bias, hidden, channel, ACC)
    m = v * _sigmoid(v)
    if gate is not None:
        t = tl.sum(m * _vector(gate, hidden, channel, ACC), 0)
        m = m * _sigmoid(t + tl.load(gate_bias).to(ACC))[None, :]
    zero, place, real, edge, i, j = _edges_of(pointers, index, source, None, block, edges, E)
    channel = zero + tl.arange(0, H)
    member, first = _owners(i, index, None, place, real, E)
    _store_sums(
        *(_sum_columns(m, member, ACC, PARTS), channel, i, first, pointers, total, total_pieces),
        *(sample, block, blocks, receivers, hidden),
    )
    if coord is not None:
        zero, place, real, edge, i, j = _edges_of(pointers, index, source, None, block, edges, E)
        channel = zero + tl.arange(0, H)
        k = _linear(m, coord, channel, hidden, False, OPERAND, PRECISION, ACC)
        k += _vector(coord_bias, hidden, channel, ACC)
        size = tl.sum(k * _sigmoid(k) * _vector(coord_last, hidden, channel, ACC), 0)
        factor = (_tanh(size) if TANH else size) * _inverse_length(s, NORMALIZE)
        if CLAMP is not None:
            longest = tl.full([E], CLAMP, ACC)
            factor *= longest / tl.maximum(tl.sqrt(s) * tl.abs(factor), longest)
        member, first = _owners(i, index, None, place, real, E)
        _store_moves(
            *(factor, None, None, pos_i, pos_j, i, j, real, member, i, first, pointers),
            *(moved, moved_pieces, sample, block, blocks, receivers, dim, ACC),
        )


@triton.jit
def _move_gradient(
    s,
    size,
    along,  # [E]
    NORMALIZE: tl.constexpr,
    TANH: tl.constexpr,
    CLAMP: tl.constexpr,
    ACC: tl.constexpr,
):
    """From the gradient g of every move along r.

    Returns:
        The gradient of the size, and p and q of that of r, which is p g + q r.
    """
    factor = _tanh(size) if TANH else size
    inverse = _inverse_length(s, NORMALIZE)
    grad_size = along * inverse
    p = factor * inverse
    q = tl.zeros(s.shape, ACC)
    if CLAMP is not None:
        longest = tl.full(s.shape, CLAMP, ACC)
        reach = tl.sqrt(s) * tl.abs(p)  # a length, as its square may be beyond all numbers
        beyond = reach >= longest
        grad_size = tl.where(beyond, 0.0, grad_size)
        shrunk = p * longest / tl.maximum(reach, longest)
        q = tl.where(beyond, -shrunk * along / tl.where(beyond, s, 1.0), 0.0)
        p = shrunk
    if TANH:
        grad_size *= 1.0 - factor * factor
    return grad_size, p, q


@triton.jit
def _add(sums, where, value, mask):
    """Add to the sums of this program, which no other program touches."""
    tl.store(sums + where, tl.load(sums + where, mask, other=0) + value, mask)


@triton.jit
def _add_outer(
    sums,
    x,  # [H, E]
    y,  # [H, E]
    pointers,
    hidden: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    """Add the outer products of the columns of x and y."""
    channel = _anew(pointers) + tl.arange(0, x.shape[0])
    used = channel < hidden
    where = channel[:, None] * hidden + channel[None, :]
    product = _dot(x, tl.trans(y), OPERAND, PRECISION, ACC)
    _add(sums, where, product, used[:, None] & used[None, :])


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
    NORMALIZE: tl.constexpr,
    TANH: tl.constexpr,
    CLAMP: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    ACC: tl.constexpr,
    E: tl.constexpr,
    H: tl.constexpr,
):
    """Compute the edges anew, and the gradients of one end and, by receiver, of the weights."""
    WEIGHTS: tl.constexpr = weight_grad is not None
    blocks = tl.cdiv(edges, E)
    program = tl.program_id(0).to(tl.int64)
    if WEIGHTS:
        weight_grad += program * hidden * hidden
        vector_grad += program * 5 * hidden
        if coord is not None:
            coord_grad += program * hidden * hidden
        if attr is not None:
            attr_weight_grad += program * hidden * attrs
    for item in tl.range(tl.program_id(0), batch * blocks, tl.num_programs(0), disable_licm=True):
        sample = (item // blocks).to(tl.int64)
        block = (item % blocks).to(tl.int64)
        receiver_b = receiver + sample * receivers * hidden
        sender_b = sender + sample * senders * hidden
        grad_total_b = grad_total + sample * receivers * hidden
        pos_i = pos
        pos_j = pos
        grad_moved_b = grad_moved
        if pos is not None:
            pos_i = pos + sample * receivers * dim
            pos_j = pos + sample * senders * dim
        attr_b = attr
        if attr is not None:
            attr_b = attr + sample * attr_stride
        zero, place, real, edge, i, j = _edges_of(pointers, index, source, order, block, edges, E)
        channel = zero + tl.arange(0, H)
        s = _squares(pos_i, pos_j, i, j, real, dim, ACC)
        u = _first(
            *(receiver_b, sender_b, distance, attr_b, attr_weight, i, j, edge, real, s, channel),
            *(hidden, attrs, ACC),
        )
        v = _linear(u * _sigmoid(u), weight, channel, hidden, False, OPERAND, PRECISION, ACC)
        v += _vector(bias, hidden, channel, ACC)
        m = v * _sigmoid(v)
        if gate is not None:
            t = tl.sum(m * _vector(gate, hidden, channel, ACC), 0)
            g = _sigmoid(t + tl.load(gate_bias).to(ACC))
            m = m * g[None, :]
        if coord is not None:
            grad_moved_b = grad_moved + sample * receivers * dim
            zero, place, real, edge, i, j = _edges_of(
                pointers, index, source, order, block, edges, E
            )
            channel = zero + tl.arange(0, H)
            s = _squares(pos_i, pos_j, i, j, real, dim, ACC)
            along = _along(grad_moved_b, pos_i, pos_j, i, j, real, dim, ACC)
            k = _linear(m, coord, channel, hidden, False, OPERAND, PRECISION, ACC)
            k += _vector(coord_bias, hidden, channel, ACC)
            last = _vector(coord_last, hidden, channel, ACC)
            size = tl.sum(k * _sigmoid(k) * last, 0)
            grad_size, _, _ = _move_gradient(s, size, along, NORMALIZE, TANH, CLAMP, ACC)
            z, slope = _silu_slope(_alone(k, pointers))
            grad_k = last * slope * grad_size[None, :]
            if WEIGHTS:
                used = channel < hidden
                _add(vector_grad, 3 * hidden + channel, tl.sum(grad_k, 1), used)
                _add(vector_grad, 4 * hidden + channel, tl.sum(z * grad_size[None, :], 1), used)
                _add_outer(coord_grad, grad_k, m, pointers, hidden, OPERAND, PRECISION, ACC)
            grad_m = _linear(grad_k, coord, channel, hidden, True, OPERAND, PRECISION, ACC)
        zero, place, real, edge, i, j = _edges_of(pointers, index, source, order, block, edges, E)
        channel = zero + tl.arange(0, H)
        grad_given = _columns_of(grad_total_b, i, real, hidden, channel).to(ACC)
        if coord is not None:
            grad_m += grad_given
        else:
            grad_m = grad_given
        message, slope = _silu_slope(_alone(v, pointers))
        if gate is not None:
            grad_gate = tl.sum(grad_m * message, 0) * g * (1.0 - g)
            if WEIGHTS:
                used = channel < hidden
                found = tl.sum(message * grad_gate[None, :], 1)
                _add(vector_grad, 2 * hidden + channel, found, used)
                _add(gate_bias_grad, program, tl.sum(grad_gate, 0), True)
            grad_m = grad_m * g[None, :]
            grad_m += _vector(gate, hidden, channel, ACC) * grad_gate[None, :]
        grad_v = grad_m * slope
        zero, place, real, edge, i, j = _edges_of(pointers, index, source, order, block, edges, E)
        channel = zero + tl.arange(0, H)
        s = _squares(pos_i, pos_j, i, j, real, dim, ACC)
        u = _first(
            *(receiver_b, sender_b, distance, attr_b, attr_weight, i, j, edge, real, s, channel),
            *(hidden, attrs, ACC),
        )
        a = u * _sigmoid(u)
        if WEIGHTS:
            used = channel < hidden
            _add(vector_grad, channel, tl.sum(grad_v, 1), used)
            _add_outer(weight_grad, grad_v, a, pointers, hidden, OPERAND, PRECISION, ACC)
        _, slope = _silu_slope(_alone(u, pointers))
        grad_u = _linear(grad_v, weight, channel, hidden, True, OPERAND, PRECISION, ACC) * slope
        if pos is not None:
            grad_s = tl.sum(grad_u * _vector(distance, hidden, channel, ACC), 0)
        if WEIGHTS:
            if pos is not None:
                _add(vector_grad, hidden + channel, tl.sum(grad_u * s[None, :], 1), used)
            if attr is not None:
                for axis in range(attrs):
                    value = _axis(attr_b, edge, real, attrs, axis, ACC)
                    outer = tl.sum(grad_u * value[None, :], 1)
                    _add(attr_weight_grad, channel * attrs + axis, outer, used)
                    row = _vector(attr_weight + axis, hidden, channel, ACC, attrs)
                    inner = tl.sum(grad_u * row, 0).to(attr_grad.dtype.element_ty)
                    tl.store(attr_grad + (sample * edges + edge) * attrs + axis, inner, real)
        zero, place, real, edge, i, j = _edges_of(pointers, index, source, order, block, edges, E)
        channel = zero + tl.arange(0, H)
        if order is None:
            node, ends, nodes = i, index, receivers
        else:
            node, ends, nodes = j, source, senders
        member, first = _owners(node, ends, order, place, real, E)
        _store_sums(
            *(_sum_columns(grad_u, member, ACC, PARTS), channel, node, first, pointers),
            *(node_grad, node_pieces, sample, block, blocks, nodes, hidden),
        )
        if pos is not None:
            p = tl.zeros([E], ACC)
            q = 2.0 * grad_s
            if coord is not None:
                s = _squares(pos_i, pos_j, i, j, real, dim, ACC)
                along = _along(grad_moved_b, pos_i, pos_j, i, j, real, dim, ACC)
                _, p, more = _move_gradient(s, size, along, NORMALIZE, TANH, CLAMP, ACC)
                q += more
            if order is not None:
                p, q = -p, -q
            _store_moves(
                *(q, p, grad_moved_b, pos_i, pos_j, i, j, real, member, node, first, pointers),
                *(pos_grad, pos_pieces, sample, block, blocks, nodes, dim, ACC),
            )
        if WEIGHTS:
            tl.debug_barrier()  # the next block adds to what other threads have stored


def _sizes(receiver: Tensor, sender: Tensor, pos: Any, attr: Any, index: Tensor) -> tuple[int, ...]:
    batch, receivers, hidden = receiver.shape
    edges = index.numel()
    dim, attrs = (1 if value is None else value.size(-1) for value in (pos, attr))
    stride = edges * attrs if attr is not None and attr.size(0) > 1 else 0
    return batch, edges, receivers, sender.size(1), hidden, dim, attrs, stride


def _block(dtype: torch.dtype, hidden: int) -> int:
    """Edges of a block, as many as spill no registers where a number or a product takes several."""
    single = rows.input_precision(dtype) != "tf32x3" and dtype != torch.float64
    return 32 if single and hidden <= 64 else 16


def _settings(dtype: torch.dtype, hidden: int) -> dict[str, Any]:
    """Widths and precisions: sums over edges keep float32 even where torch allows TF32."""
    channels = rows.width(hidden, 16)
    return {
        "OPERAND": rows.operand(dtype),
        "PRECISION": rows.input_precision(dtype),
        "PARTS": 3 if dtype == torch.float32 else 2,
        "ACC": rows.accumulator(dtype),
        "E": _block(dtype, hidden),
        "H": channels,
        "num_warps": max(4, channels // 16),
        "num_stages": 1,
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
    block = _block(receiver.dtype, hidden)
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
        **_settings(receiver.dtype, hidden),
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
    block = _block(receiver.dtype, hidden)
    items = batch * triton.cdiv(edges, block)
    few = min(items, _PROGRAMS)
    wide = receiver.new_empty(0, dtype=accumulation_type(receiver.dtype))
    weights = wide.new_zeros(few, hidden, hidden)
    coords = None if coord is None else torch.zeros_like(weights)
    attr_weights = None if attr is None else wide.new_zeros(few, hidden, attrs)
    vectors, gate_biases = wide.new_zeros(few, 5, hidden), wide.new_zeros(few)
    attr_grad = None if attr is None else attr.new_empty(batch, edges, attrs)
    summed = (weights, coords, attr_weights, vectors, gate_biases, attr_grad)
    given = (grad_total.contiguous(), grad_moved.contiguous() if coord is not None else None)
    node_grads, pos_grads = [], []
    for programs, nodes, ends, weighs in (
        (few, receivers, (None, pointers), summed),
        (items, senders, (source_order, source_pointers), [None] * len(summed)),
    ):
        node = _Sums((batch, nodes, hidden), edges, block, receiver)
        place = None if pos is None else _Sums((batch, nodes, dim), edges, block, wide)
        rows.launch(
            _backward_kernel,
            programs,
            receiver,
            *(*given, *tensors, index, source, *ends, node.out, node.pieces),
            *((None, None) if place is None else (place.out, place.pieces)),
            *(*weighs, *sizes, normalize, tanh, clamp),
            **_settings(receiver.dtype, hidden),
        )
        node_grads.append(node.finish(ends[1]))
        if place is not None:
            pos_grads.append(place.finish(ends[1]))

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
    if not (torch.is_grad_enabled() or is_transformed(grad_total, grad_moved)):
        found = iter(_edge_gradients(grad_total, grad_moved, *tensors, *flags))
        return *(None if value is None else next(found) for value in tensors[:13]), *nothing
    there = [value is not None for value in tensors[:13]]

    def compose(views):  # type: ignore[no-untyped-def]
        given = iter(views)
        filled = [next(given) if is_there else None for is_there in there]
        results = _compose(*filled, *tensors[13:], *flags)
        return results if tensors[10] is not None else results[:1]

    grads = (grad_total, grad_moved) if tensors[10] is not None else (grad_total,)
    given = [value for value in tensors[:13] if value is not None]
    found = iter(derive(compose, given, grads))
    return *(next(found) if is_there else None for is_there in there), *nothing


_edges.register_autograd(_edges_backward, setup_context=_save_edges)
