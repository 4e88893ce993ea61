"""One step of EGNN, from projections to updated nodes: composed, or as one operator.

On a small batch every operator takes as long for its calls from Python and its node in the graph
of derivatives as for its numbers, so one in place of three makes a step faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gsym.kernels import _operators, ops
from gsym.kernels._autograd import Context, Grads, derive, operator
from gsym.kernels._backends import BACKENDS, STATE, choose
from gsym.kernels._checks import edge_shapes
from gsym.kernels.edges import EdgeOptions, Step
from gsym.kernels.segments import Segments
from gsym.kernels.transforms import are_alike, is_transformed

# Bytes that a step may keep of its edges and nodes in place of computing them again. Keeping them
# saved 1.5 to 8 % of a step and its gradient, from 500 to 32,000 edges of width 64, and more where
# there were more; so the limit is one of memory, that a large graph shall not need per edge.
STORED = 2**22


def egnn_step(
    tensors: dict[str, Tensor],
    source: Segments,
    segments: Segments,
    options: EdgeOptions,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    """Updated features ``[..., n, out]`` and coordinates ``[..., n, d]``.

    With alike operands whose channels are multiples of the SIMD width it is one operator of
    compiled loops; else :func:`linear_pair`, :func:`edge_mlp_sum` and :func:`row_mlp`.

    Args:
        tensors: Those of a :class:`gsym.kernels.edges.Step`, which moves coordinates.
        source: The sender of every edge.
        segments: The receiver of every edge; the edges are sorted by it.
        options: Those of the edge stage.
        residual: Add the update to the features.

    Raises:
        ValueError: A residual where the update is wider or narrower than the features.
    """
    ins, out = tensors["x"].size(-1), tensors["last"].size(-1)
    if residual and ins != out:
        raise ValueError(f"a residual needs as many channels out as in; got {ins} and {out}")
    if are_alike(*tensors.values()) and _fits(tensors, source, segments):
        x = tensors["x"]
        chosen = choose("auto", "egnn_step", x.device.type)
        if chosen.takes("egnn_step", x, tensors["target"], tensors["last"]):
            if STATE.record is not None:
                STATE.record.append(chosen.name)
            tables = [segments._index, segments._order, segments._pointers]
            tables += source._index, source._order, source._pointers
            stores = torch.is_grad_enabled() and _bytes(tensors, tables) <= STORED
            given = list(tensors.values()), " ".join(tensors), tables, *options, residual
            y, pos, _ = stepped.eager(*given, stores, chosen.name)
            return y, pos
    return _by_primitives(tensors, source, segments, options, residual)


def _bytes(tensors: dict[str, Tensor], tables: list[Tensor]) -> int:
    """What the arguments of the activations of all edges but the first, and of nodes, take."""
    x, h = tensors["x"], tensors["weight"].size(0)
    rows = x.size(-2) + 2 * tables[0].size(0)
    return x.shape[:-2].numel() * rows * h * x.element_size()


def _fits(tensors: dict[str, Tensor], source: Segments, segments: Segments) -> bool:
    """Whether there are edges, and alike operands have the shapes of a step."""
    if not type(source) is type(segments) is Segments or not segments.is_sorted:
        return False
    x, pos, attr = tensors["x"], tensors["pos"], tensors.get("attr")
    entries, device = segments._index.size(0), x.device
    if entries == 0 or x.numel() == 0 or pos.numel() == 0 or pos.shape[:-1] != x.shape[:-1]:
        return False
    for ends in (source, segments):
        if ends._pointers.size(0) != x.size(-2) + 1 or ends._index.size(0) != entries:
            return False
        if ends._index.device != device:
            return False
    if attr is not None:
        own = entries, attr.size(-1)
        if own[1] == 0 or (attr.shape != own and attr.shape != (*x.shape[:-2], *own)):
            return False
    ins, h, out = x.size(-1), tensors["weight"].size(0), tensors["last"].size(-1)
    shapes = edge_shapes(h, attr)
    shapes |= {"target": (1, ins, h), "target_bias": (1, h), "source": (1, ins, h)}
    shapes |= {"first": (1, ins + h, h), "first_bias": (1, h)}
    shapes |= {"last": (1, h, out), "last_bias": (1, out)}
    for name, shape in shapes.items():
        weight = tensors.get(name)
        if weight is not None and weight.shape != shape:
            return False
    return True


def _by_primitives(
    tensors: dict[str, Tensor],
    source: Segments,
    segments: Segments,
    options: EdgeOptions,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    given = tensors.get
    x, pos = tensors["x"], tensors["pos"]
    ends = ops.linear_pair(x, tensors["target"], tensors["target_bias"], tensors["source"])
    attr, gate = given("attr"), given("gate")
    total, moved = ops.edge_mlp_sum(
        *ends,
        source,
        segments,
        tensors["weight"],
        tensors["bias"],
        pos=pos,
        distance=tensors["distance"],
        edge_attr=None if attr is None else (attr, tensors["attr_weight"]),
        gate=None if gate is None else (gate, tensors["gate_bias"]),
        coord=(tensors["coord"], tensors["coord_bias"], tensors["coord_last"]),
        **options._asdict(),
    )
    first = tensors["first"], tensors["first_bias"]
    y = ops.row_mlp(x, first, (tensors["last"], tensors["last_bias"]), total)
    assert moved is not None
    return (x + y if residual else y), pos + moved


@operator(None, kept=1)
def stepped(
    tensors: list[Tensor],
    names: str,
    tables: list[Tensor],
    normalize: bool,
    tanh: bool,
    clamp: float | None,
    mean: bool,
    residual: bool,
    stores: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, coordinates, and numbers for the gradient.

    Args:
        tensors: Those of a :class:`gsym.kernels.edges.Step`.
        names: Their names, separated by spaces.
        tables: As :class:`gsym.kernels.edges.EdgeTables` has them.
        normalize: As in :func:`gsym.kernels.edge_mlp_sum`, like those that follow.
        tanh: See there.
        clamp: See there.
        mean: See there.
        residual: As in :func:`egnn_step`.
        stores: Whether the arguments of activations are kept.
        backend: One that takes them.
    """
    step = _step(tensors, names, tables, normalize, tanh, clamp, mean, residual, stores)
    return BACKENDS[backend].loops.egnn_step(step)


@stepped.fake
def _(tensors: list[Tensor], names: str, tables: list[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    given = dict(zip(names.split(), tensors, strict=True))
    x, pos, h = given["x"], given["pos"], given["weight"].size(0)
    rows, edges = x.shape[:-1].numel(), x.shape[:-2].numel() * tables[0].size(0)
    kept = x.new_empty((4 * rows + 2 * edges if rest[-2] else 3 * rows) * h)
    return x.new_empty(*x.shape[:-1], given["last"].size(-1)), pos.new_empty(pos.shape), kept


@stepped.gradient(lambda tensors, output: (*tensors, output[2]))
def _(ctx: Context, grad_y: Tensor | None, grad_pos: Tensor | None, _: Tensor | None) -> Grads:
    *tensors, kept = ctx.saved_tensors
    if grad_y is None or grad_pos is None:
        given = dict(zip(ctx.rest[0].split(), tensors, strict=True))
        x, pos = given["x"], given["pos"]
        if grad_y is None:
            grad_y = x.new_zeros(*x.shape[:-1], given["last"].size(-1))
        if grad_pos is None:
            grad_pos = pos.new_zeros(pos.shape)
    if torch.is_grad_enabled() or is_transformed(grad_y, grad_pos):
        return _derive((grad_y, grad_pos), tensors, *ctx.rest)
    return stepped_grads(grad_y, grad_pos, tensors, kept, *ctx.rest)


@operator(2, parts=True)
def stepped_grads(
    grad_y: Tensor,
    grad_pos: Tensor,
    tensors: list[Tensor],
    kept: Tensor,
    names: str,
    tables: list[Tensor],
    normalize: bool,
    tanh: bool,
    clamp: float | None,
    mean: bool,
    residual: bool,
    stores: bool,
    backend: str,
) -> list[Tensor]:
    """The gradient of every tensor of :func:`stepped`, in their order."""
    step = _step(tensors, names, tables, normalize, tanh, clamp, mean, residual, stores)
    grads = BACKENDS[backend].loops.egnn_step_grads(step, kept, grad_y, grad_pos)
    return [grads[name] for name in step.tensors]


@stepped_grads.fake
def _(grad_y: Tensor, grad_pos: Tensor, tensors: list[Tensor], *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in tensors]


def _derive(
    grads: Sequence[Tensor],
    tensors: Sequence[Tensor],
    names: str,
    tables: list[Tensor],
    *options_and_backend: Any,
) -> list[Tensor]:
    """The gradient through operators, which has one itself."""
    *how, backend = options_and_backend

    def compose(views: list[Tensor]) -> tuple[Tensor, Tensor]:
        step = _step(views, names, tables, *how)
        given = step.tensors
        x = given["x"]
        maps = [given[name] for name in ("first", "first_bias", "last", "last_bias")]
        pair = [x, *(given[name] for name in ("target", "target_bias", "source"))]
        stage = step.stage(*_operators.compose_pair(pair))
        total, moved = _operators.composed_edges(stage, tables, backend)
        y = _operators.compose_mlp([x, *maps, total])
        return (x + y if step.residual else y), given["pos"] + moved

    return derive(compose, tensors, grads)


def _step(
    tensors: Sequence[Tensor],
    names: str,
    tables: list[Tensor],
    normalize: bool,
    tanh: bool,
    clamp: float | None,
    mean: bool,
    residual: bool,
    stores: bool,
) -> Step:
    given = dict(zip(names.split(), tensors, strict=True))
    return Step(given, tables, EdgeOptions(normalize, tanh, clamp, mean), residual, stores)
