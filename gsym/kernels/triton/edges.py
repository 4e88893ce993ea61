"""Triton: the edge pipeline of the EGNN family, forward and backward, without any ``[e, h]``.

A program takes 16 or 32 edges, in the order of the node that sums them up, computes their messages
in registers and adds them up by a product with the matrix that tells which edge belongs to which
node; so one NaN spreads to the nodes of its block. Nodes whose edges all lie in one block are
written at once; what blocks hold of the others goes to a table of pieces, two rows per block, at
most 1/8 of ``[e, h]``, which :func:`gsym.kernels.triton.rows.reduce_rows` adds up in order.

The gradient recomputes the edges, once in the order of receivers and once in that of senders, so
that either end is a sum over consecutive edges. In the first pass a fixed number of programs walk
the blocks, and each adds up the gradients of the weights in a separate table; the tables are
added up at last. What does not fit in registers is composed of operators, which store ``[e, h]``.

Tiles are ``[h, e]``: the left factor of a product is then a matrix of weights, of which every warp
holds 16 rows, so a tile takes as many registers at any width, and the right factor, of the edges,
lies in shared memory. Vectors along the edges are computed axis by axis.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gsym.kernels._plain import accumulation_type
from gsym.kernels.edges import NAMES, EdgeStage, EdgeTables
from gsym.kernels.triton import launch, rows
from gsym.kernels.triton.edge_math import (
    _alone,
    _along,
    _anew,
    _axis,
    _columns_of,
    _dot,
    _edges_of,
    _first,
    _inverse_length,
    _linear,
    _owners,
    _sigmoid,
    _silu_slope,
    _squares,
    _store_moves,
    _store_sums,
    _sum_columns,
    _tanh,
    _vector,
)
from gsym.kernels.triton.launch import accumulator, input_precision, operand, width

# Programs that add up gradients of the weights, two for each of the 132 multiprocessors of an H200.
# The number is part of the order of summation, so it does not depend on the device.
_PROGRAMS = 264

# Widest messages, by how products read them, whose edges fit in registers, and most coordinates and
# attributes, which are read one after another.
_MOST_HIDDEN = {"tf32x3": 64, "tf32": 128, "ieee": 128}
_MOST_NARROW = 16


def fits(stage: EdgeStage) -> bool:
    """Whether an edge fits in registers."""
    given = stage.tensors
    receiver, pos, attr = given["receiver"], given.get("pos"), given.get("attr")
    dim, attrs = (0 if value is None else value.size(-1) for value in (pos, attr))
    exact = receiver.dtype == torch.float64
    mixed = pos is not None and (pos.dtype == torch.float64) != exact
    most = 32 if exact else _MOST_HIDDEN[input_precision(receiver.dtype)]
    return receiver.size(-1) <= most and max(dim, attrs) <= _MOST_NARROW and not mixed


def edge_mlp_sum(stage: EdgeStage, tables: EdgeTables) -> tuple[Tensor, Tensor]:
    tensors = _contiguous(stage)
    receiver, sizes = tensors[0], _sizes(tensors, tables)
    batch, edges, receivers, _, hidden, dim, *_ = sizes
    block = _block(receiver.dtype, hidden)
    total = _Sums((batch, receivers, hidden), edges, block, receiver)
    wide = receiver.new_empty(0, dtype=accumulation_type(receiver.dtype))
    moved = _Sums((batch, receivers, dim), edges, block, wide) if stage.moves else None
    launch.launch(
        _forward_kernel,
        batch * triton.cdiv(edges, block),
        receiver,
        *(*tensors, tables.index, tables.source, tables.pointers, *sizes),
        *(total.out, total.pieces),
        *((None, None) if moved is None else (moved.out, moved.pieces)),
        *stage.options[:3],
        **_settings(receiver.dtype, hidden),
    )
    sums = total.finish(tables.pointers)
    if moved is None:
        return sums, sums[..., :0]
    return sums, _averaged(moved.finish(tables.pointers), stage, tables)


def edge_mlp_grads(
    stage: EdgeStage, tables: EdgeTables, grad_total: Tensor, grad_moved: Tensor
) -> dict[str, Tensor]:
    tensors = _contiguous(stage)
    receiver, pos, attr = tensors[0], tensors[4], tensors[6]
    sizes = _sizes(tensors, tables)
    batch, edges, receivers, senders, hidden, dim, attrs, _ = sizes
    block = _block(receiver.dtype, hidden)
    items = batch * triton.cdiv(edges, block)
    few = min(items, _PROGRAMS)
    wide = receiver.new_empty(0, dtype=accumulation_type(receiver.dtype))
    weights = wide.new_zeros(few, hidden, hidden)
    coords = torch.zeros_like(weights) if stage.moves else None
    attr_weights = None if attr is None else wide.new_zeros(few, hidden, attrs)
    vectors, gate_biases = wide.new_zeros(few, 5, hidden), wide.new_zeros(few)
    attr_grad = None if attr is None else attr.new_empty(batch, edges, attrs)
    summed = (weights, coords, attr_weights, vectors, gate_biases, attr_grad)
    given = [grad_total.contiguous(), None]
    if stage.moves:
        given[1] = _averaged(grad_moved.to(wide.dtype), stage, tables).contiguous()
    node_grads, pos_grads = [], []
    for programs, nodes, ends, weighs in (
        (few, receivers, (None, tables.pointers), summed),
        (items, senders, (tables.source_order, tables.source_pointers), [None] * len(summed)),
    ):
        node = _Sums((batch, nodes, hidden), edges, block, receiver)
        place = None if pos is None else _Sums((batch, nodes, dim), edges, block, wide)
        launch.launch(
            _backward_kernel,
            programs,
            receiver,
            *(*given, *tensors, tables.index, tables.source, *ends, *sizes),
            *(node.out, node.pieces),
            *((None, None) if place is None else (place.out, place.pieces)),
            *(*weighs, *stage.options[:3]),
            **_settings(receiver.dtype, hidden),
        )
        node_grads.append(node.finish(ends[1]))
        if place is not None:
            pos_grads.append(place.finish(ends[1]))
    vector = vectors.sum(0)
    grads = {
        "receiver": node_grads[0],
        "sender": node_grads[1],
        "weight": weights.sum(0),
        "bias": vector[0],
        "distance": vector[1],
        "gate": vector[None, 2],
        "gate_bias": gate_biases.sum(0, keepdim=True),
        "coord_bias": vector[3],
        "coord_last": vector[None, 4],
    }
    if pos is not None:
        grads["pos"] = pos_grads[0] + pos_grads[1]
    if attr is not None and attr_grad is not None and attr_weights is not None:
        shared = stage.tensors["attr"].dim() == 2
        grads["attr"] = attr_grad.sum(0) if shared else attr_grad
        grads["attr_weight"] = attr_weights.sum(0)
    if coords is not None:
        grads["coord"] = coords.sum(0)
    return grads


def _averaged(moved: Tensor, stage: EdgeStage, tables: EdgeTables) -> Tensor:
    """The moves of a node, or their gradient, divided by its edges where a mean is asked for."""
    if not stage.options.mean:
        return moved
    return moved / tables.pointers.diff().clamp(min=1).to(moved.dtype)[:, None]


def _contiguous(stage: EdgeStage) -> list[Any]:
    """Every tensor in the order of the kernels; attributes of all samples get a batch axis."""
    given = dict(stage.tensors)
    if "attr" in given and given["attr"].dim() == 2:
        given["attr"] = given["attr"][None]
    return [given[name].contiguous() if name in given else None for name in NAMES]


def _sizes(tensors: list[Any], tables: EdgeTables) -> tuple[int, ...]:
    receiver, sender, pos, attr = tensors[0], tensors[1], tensors[4], tensors[6]
    batch, receivers, hidden = receiver.shape
    edges = tables.index.numel()
    dim, attrs = (1 if value is None else value.size(-1) for value in (pos, attr))
    stride = edges * attrs if attr is not None and attr.size(0) > 1 else 0
    return batch, edges, receivers, sender.size(1), hidden, dim, attrs, stride


def _block(dtype: torch.dtype, hidden: int) -> int:
    """Edges of a block, as many as spill no registers where a number or a product takes several."""
    single = input_precision(dtype) != "tf32x3" and dtype != torch.float64
    return 32 if single and hidden <= 64 else 16


def _settings(dtype: torch.dtype, hidden: int) -> dict[str, Any]:
    """Widths and precisions: sums over edges keep float32 even where torch allows TF32."""
    channels = width(hidden, 16)
    return {
        "OPERAND": operand(dtype),
        "PRECISION": input_precision(dtype),
        "PARTS": 3 if dtype == torch.float32 else 2,
        "ACC": accumulator(dtype),
        "E": _block(dtype, hidden),
        "H": channels,
        "num_warps": max(4, channels // 16),
        "num_stages": 1,
    }


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
    batch,
    edges,
    receivers,
    senders,
    hidden: tl.constexpr,
    dim: tl.constexpr,
    attrs: tl.constexpr,
    attr_stride,
    total,  # [b, n, h]
    total_pieces,  # [b, 2 * blocks, h]
    moved,  # [b, n, d]
    moved_pieces,  # [b, 2 * blocks, d]
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
    batch,
    edges,
    receivers,
    senders,
    hidden: tl.constexpr,
    dim: tl.constexpr,
    attrs: tl.constexpr,
    attr_stride,
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
    """Recompute the edges, and the gradients of one end and, by receiver, of the weights."""
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
