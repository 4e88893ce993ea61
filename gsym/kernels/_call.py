"""Which function computes a primitive: a definition, plain torch or operators on a back-end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gsym.kernels import _plain, reference
from gsym.kernels._backends import choose, record
from gsym.kernels._edges import EdgeStage
from gsym.kernels._transforms import looks_inside
from gsym.kernels.segments import Segments, Tiles


def run(primitive: Callable[..., Any], backend: str, x: Any, *args: Any) -> Any:
    """Call a primitive of operators on the back-end that is named, or what stands for it.

    Autocast is off inside: a primitive computes in the type that it is given.
    """
    op = primitive.__name__
    chosen = choose(backend, op, x)
    options: dict[str, Any] = {}
    call = primitive
    if chosen.name == "reference":
        record(chosen.name)
        call = getattr(reference, op) if isinstance(x, Tensor) else _define_edges
    elif looks_inside() or any(map(_is_traced, args)):
        record("native")
        call = getattr(_plain, op)
    else:
        record(chosen.name)
        options["backend"] = chosen
    if not torch.is_autocast_enabled(x.device.type):
        return call(x, *args, **options)
    with torch.autocast(x.device.type, enabled=False):
        return call(x, *args, **options)


def _define_edges(stage: EdgeStage, source: Segments, segments: Segments) -> Any:
    return reference.edge_mlp_sum(source=source, segments=segments, **stage.arguments())


def _is_traced(value: object) -> bool:
    return isinstance(value, Segments | Tiles) and value.is_traced
