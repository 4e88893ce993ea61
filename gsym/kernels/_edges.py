"""The edge work of the EGNN family as one operator for the CPU, with its gradient.

What it computes is :func:`gsym.kernels.reference.edge_mlp_sum`; who computes it is
:class:`gsym.kernels._pipeline.Pipeline`, in plain torch, or its compiled twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from gsym.kernels._cpp_edges import CppPipeline
from gsym.kernels._pipeline import Pipeline
from gsym.kernels._transforms import is_eager, is_transformed, looks_inside

_CONTIGUOUS = torch.contiguous_format

Compose = Callable[..., tuple[Tensor, Tensor]]


def separately(function: Callable[..., Any]) -> Callable[..., Any]:
    """Results of an operator must not share memory, as parts of one tensor do."""

    @wraps(function)
    def call(*args: Any) -> Any:
        results = function(*args)
        return type(results)(
            x if x.untyped_storage().nbytes() == x.nbytes else x.clone(memory_format=_CONTIGUOUS)
            for x in results
        )

    return call


def _sums(
    tensors: list[Tensor],
    names: str,
    index: Tensor,
    columns: Tensor,
    pointers: Tensor,
    normalize: bool,
    tanh: bool,
    clamp: float | None,
    mean: bool,
    cpp: bool,
) -> tuple[Tensor, Tensor]:
    """Messages ``[b, n, h]`` and moves ``[b, n, d]``, which are empty without ``coord``.

    Args:
        tensors: Those that are there of ``receiver [b, n, h]``, ``sender [b, m, h]``, ``weight``,
            ``bias``, ``pos [b, n, d]``, ``distance``, ``attr [b, e, a]`` or ``[e, a]``,
            ``attr_weight``, ``gate``, ``gate_bias``, ``coord``, ``coord_bias``, ``coord_last``.
        names: Their names, separated by spaces.
        index: Receiver of every edge, sorted.
        columns: Sender of every edge.
        pointers: Where the edges of every receiver begin.
        normalize: As in :func:`gsym.kernels.edge_mlp_sum`, like those that follow.
        tanh: See there.
        clamp: See there.
        mean: See there.
        cpp: Run the compiled loops.
    """
    given = dict(zip(names.split(), tensors, strict=True))
    options = (normalize, tanh, clamp, mean)
    kind = CppPipeline if cpp else Pipeline
    total, moved = kind(_wide(given), index, columns, pointers, *options).forward()
    return total.to(tensors[0].dtype), moved.to(given.get("pos", tensors[0]).dtype)


edge_mlp_sum = torch.library.custom_op("gsym::edge_mlp_sum", separately(_sums), mutates_args=())


@edge_mlp_sum.register_fake
def _(tensors, names, *tables_and_options):  # type: ignore[no-untyped-def]
    given = dict(zip(names.split(), tensors, strict=True))
    total = given["receiver"]
    pos: Tensor = given["pos"] if "pos" in given else total  # noqa: SIM401
    dim = pos.size(-1) if "coord" in given else 0
    return total.new_empty(total.shape), pos.new_empty(*total.shape[:2], dim)


def _grads(
    tensors: list[Tensor],
    names: str,
    index: Tensor,
    columns: Tensor,
    pointers: Tensor,
    normalize: bool,
    tanh: bool,
    clamp: float | None,
    mean: bool,
    cpp: bool,
    grad_total: Tensor,
    grad_moved: Tensor,
) -> list[Tensor]:
    """The gradient of every tensor of :func:`_sums`, in their order."""
    given = _wide(dict(zip(names.split(), tensors, strict=True)))
    wide = given["receiver"].dtype
    kind = CppPipeline if cpp else Pipeline
    pipeline = kind(given, index, columns, pointers, normalize, tanh, clamp, mean)
    grads = pipeline.backward(grad_total.to(wide), grad_moved.to(wide))
    return [grads[name].to(x.dtype) for name, x in zip(given, tensors, strict=True)]


edge_mlp_grads = torch.library.custom_op(
    "gsym::edge_mlp_grads", separately(_grads), mutates_args=()
)


@edge_mlp_grads.register_fake
def _(tensors, *rest):  # type: ignore[no-untyped-def]
    return [x.new_empty(x.shape) for x in tensors]


def _wide(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half precision is computed in float32 and rounded once, at the end."""
    types = [x.dtype for x in given.values()]
    wide = torch.float64 if torch.float64 in types else torch.float32
    return {name: x if x.dtype == wide else x.to(wide) for name, x in given.items()}


def on_their_own(results: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Parts of one tensor, of which each may be changed in place without a word to the others."""
    return tuple(x.data for x in results)


def derive(
    compose: Callable[[list[Tensor]], Sequence[Tensor]],
    tensors: Sequence[Tensor],
    outer: Sequence[Tensor],
) -> list[Tensor]:
    """The gradient of what was composed of differentiable operators, itself one if need be."""
    again = torch.is_grad_enabled()
    if looks_inside() and not again:
        given = [x.detach() for x in tensors]
        with torch.enable_grad():  # so that the gradient itself has derivatives
            pull = torch.func.vjp(lambda *given: tuple(compose(list(given))), *given)[1]
            found: tuple[Tensor, ...] = pull(tuple(outer))
        return list(found)
    # Views, so that a tensor given twice, or made from another, counts once in each place.
    views = [x.view_as(x) if again and x.requires_grad else x.detach() for x in tensors]
    views = [x if x.requires_grad else x.requires_grad_() for x in views]
    with torch.enable_grad(), torch.autocast(outer[0].device.type, enabled=False):
        outputs = compose(views)
        grads = torch.autograd.grad(outputs, views, outer, create_graph=again, allow_unused=True)
    return list(grads)


def differentiable(compose: Compose) -> Compose:
    """The operator with its gradient, a second one through ``compose``, which has its arguments.

    Eager code calls what is behind the operator, because to go through it costs as much as the
    work on some hundred edges. Whoever traces or counts operators sees it.
    """

    def save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        tensors, ctx.names, index, columns, pointers, *ctx.options = inputs
        ctx.save_for_backward(*tensors, index, columns, pointers)

    def backward(ctx, *outer, first=edge_mlp_grads):  # type: ignore[no-untyped-def]
        *tensors, index, columns, pointers = ctx.saved_tensors
        args = (ctx.names, index, columns, pointers, *ctx.options)
        if torch.is_grad_enabled() or is_transformed(*outer):
            grads = derive(lambda views: compose(views, *args), tensors, outer)
        else:
            with torch.autocast(outer[0].device.type, enabled=False):
                grads = first(tensors, *args, *outer)
        return grads, *(None for _ in args)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx, count, *args):  # type: ignore[no-untyped-def]
            inputs = list(args[:count]), *args[count:]
            save(ctx, inputs, None)
            return on_their_own(_sums(*inputs))

        @staticmethod
        def backward(ctx, *outer):  # type: ignore[no-untyped-def]
            def first(*args):  # type: ignore[no-untyped-def]
                return on_their_own(_grads(*args))

            grads, *rest = backward(ctx, *outer, first=first)
            return None, *grads, *rest

    edge_mlp_sum.register_autograd(backward, setup_context=save)

    def run(tensors: list[Tensor], *args: Any) -> tuple[Tensor, Tensor]:
        if not is_eager(*tensors):
            return edge_mlp_sum(tensors, *args)
        total, moved = Eager.apply(len(tensors), *tensors, *args)
        return total, moved

    return run
