"""Which function computes a primitive: a definition, plain torch or operators on a back-end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gsym.kernels import _plain, reference
from gsym.kernels._backends import STATE, choose
from gsym.kernels.segments import Segments, Tiles
from gsym.kernels.transforms import looks_inside

_TABLES = (Segments, Tiles)


def run(primitive: Callable[..., Any], backend: str, alike: bool, x: Any, *args: Any) -> Any:
    """Call a primitive of operators on the back-end that is named, or what stands for it.

    Autocast is off inside: a primitive computes in the type that it is given.

    Args:
        primitive: One of :mod:`gsym.kernels._primitives`.
        backend: Its name, or ``"auto"``.
        alike: Whether the operands passed :func:`are_alike` and no index is a traced one.
        x: The first operand.
        *args: The others.
    """
    op, kind = primitive.__name__, x.device.type
    chosen = choose(backend, op, kind)
    name, call, options = chosen.name, primitive, {"backend": chosen}
    if name == "reference":
        call, options = getattr(reference, op), {}
    elif not alike and (looks_inside() or _are_traced(args)):
        # The definition is plain torch, too, where there is nothing better.
        name, call, options = "native", getattr(_plain, op, None) or getattr(reference, op), {}
    if STATE.record is not None:
        STATE.record.append(name)
    if alike or not torch.is_autocast_enabled(kind):
        return call(x, *args, **options)
    with torch.autocast(kind, enabled=False):
        return call(x, *args, **options)


def _are_traced(args: tuple[object, ...]) -> bool:
    """Whether an index is not known yet."""
    for value in args:  # noqa: SIM110  a generator takes twice as long, at every call
        if isinstance(value, _TABLES) and value.is_traced:
            return True
    return False
