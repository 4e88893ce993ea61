"""The activation between the linear maps of a layer: SiLU, which kernels compute, or another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
Activation = str | Function


def resolve_activation(act: object, channels: int) -> Function | None:
    """The function of an activation as PyG takes it; ``None`` for SiLU in any spelling.

    Args:
        act: The name of an activation of ``torch.nn``, a function or a module.
        channels: How many channels it acts on.

    Raises:
        TypeError: Neither of these.
        ValueError: An unknown name, or rows ``[r, channels]`` that do not keep their shape.
    """
    function = _by_name(act) if isinstance(act, str) else act
    if function is F.silu or type(function) is nn.SiLU:
        return None
    if not callable(function) or isinstance(function, type):
        hint = f"; build it first: {function.__name__}()" if isinstance(function, type) else ""
        raise TypeError(
            "act must be the name of an activation, a function or a module, torch.nn.Identity() "
            f"for none; got {act!r:.80}{hint}"
        )
    _try_out(function, act, channels)
    if isinstance(act, str) and isinstance(function, nn.Module):
        function.is_built_by_name = True  # type: ignore[assignment]
    return function


def on_rows(act: Function | None, x: Tensor) -> Tensor:
    """An activation of ``[..., c]``, which sees rows ``[r, c]``, as those with weights need it."""
    return F.silu(x) if act is None else act(x.flatten(0, -2)).view(x.shape)


def reset_activation(act: Function | None) -> None:
    """Draw the weights of an activation built by its name; a module given stays as it came."""
    reset = getattr(act, "reset_parameters", None)
    if getattr(act, "is_built_by_name", False) and reset is not None:
        reset()


def describe_activation(act: Function | None) -> object:
    """What ``repr`` says of it: a name or a module."""
    return "silu" if act is None else getattr(act, "__name__", act)


def _by_name(name: str) -> object:
    """What PyG makes of a name, which takes its import for all but SiLU."""
    if name.lower().replace("-", "").replace("_", "").replace(" ", "") in ("silu", "swish"):
        return F.silu
    try:
        return import_module("torch_geometric.nn.resolver").activation_resolver(name)
    except ValueError:
        raise ValueError(
            "act must be the name of an activation of torch.nn, such as 'relu' or 'gelu', a "
            f"function or a module; got {name!r:.80}"
        ) from None
    except TypeError as cause:
        raise ValueError(
            f"act={name!r:.80} needs arguments of its own; give the module, built with them"
        ) from cause


def _try_out(function: Function, act: object, channels: int) -> None:
    """Refuse what does not map rows to rows of the same shape."""
    rows = torch.zeros(2, channels)
    what = f"act must map [r, {channels}], the hidden channels, to the same shape"
    try:
        if isinstance(function, nn.Module):
            # A copy, so that running statistics and lazy shapes of the module stay as they are.
            function = copy.deepcopy(function)
            held = next(
                (t for t in (*function.parameters(), *function.buffers()) if t.is_floating_point()),
                rows,
            )
            rows = held.new_zeros(2, channels)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = function(rows)
    except Exception as cause:  # whatever a user's function raises
        raise ValueError(f"{what}; act={act!r:.80} fails: {cause}") from cause
    is_tensor = isinstance(found, Tensor)
    # The type may be another: a function may hold numbers in the type of the layer to come.
    if not is_tensor or not found.is_floating_point() or found.shape != rows.shape:
        came = f"{found.dtype} {list(found.shape)}" if is_tensor else type(found).__name__
        raise ValueError(f"{what}; act={act!r:.80} gives {came}")
