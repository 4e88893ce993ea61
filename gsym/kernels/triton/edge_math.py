"""Triton: what the kernels of the edge pipeline compute for a block of edges.

Tiles are ``[h, e]``, and vectors along the edges are computed axis by axis; see
:mod:`gsym.kernels.triton.edges`.
"""

import triton
import triton.language as tl

from gsym.kernels.triton.launch import BFLOAT16


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
