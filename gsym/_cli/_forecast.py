"""Windows of a series, whether groups can be mixed, and the lines that read the files again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gsym._console import UsageError
from gsym.choosing.soft import FEWEST_SIGNALS
from gsym.coarsening import Hierarchy
from gsym.errors import FileError

# Up to so many coordinates a mixture takes no longer than the choice itself, and without targets it
# is a covariance, which needs more signals than levels.
_COORDINATES, _SIGNALS = 2000, 40


def check_windows(lag: int, horizon: int, targets: str | None) -> None:
    """Refuse windows that cannot be, before any file is read."""
    for name, value in (("lag", lag), ("horizon", horizon)):
        if value < 1:
            raise UsageError(f"--{name} is a number of steps from 1 on; got {value}")
    if targets is not None:
        raise UsageError("--lag and --horizon predict the signals; leave --targets out")


def windows(
    x: Tensor, lag: int, horizon: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """Inputs ``[s, n, c * lag]``, targets ``[s, n, c * horizon]`` and which of both were observed.

    Args:
        x: The series ``[steps, n, c]``.
        lag: Steps of an input.
        horizon: Steps of its target, right after it.
        mask: Which entries of the series were observed.
    """
    count = lag + horizon
    if len(x) < count + 1:
        raise FileError(
            f"the signals have {len(x)} steps; windows of {lag} + {horizon} steps need at least "
            f"{count + 1}"
        )

    def cut(values: Tensor) -> tuple[Tensor, Tensor]:
        held = values.reshape(*x.shape[:2], -1).unfold(0, count, 1)
        return held[..., :lag].flatten(2), held[..., lag:].flatten(2)

    if mask is None:
        return *cut(x), None
    whole = mask if mask.ndim == x.ndim else mask[..., None].expand_as(x)
    return *cut(x), cut(whole)


def can_soften(
    candidates: Any, x: Tensor | None, y: Tensor | None, criterion: str, *others: Any
) -> bool:
    """Whether a page can also tell until when the group pays, at a cost that nobody minds.

    Args:
        candidates: What is chosen from.
        x: The signals.
        y: The targets.
        criterion: How groups are judged.
        others: Options that stand in the way where they are given: signs, and missing values, with
            which every one of many fits takes ten.
    """
    if criterion != "ridge" or x is None or any(v is not None and v != () for v in others):
        return False
    count = len(candidates.levels) if isinstance(candidates, Hierarchy) else len(candidates)
    fewest = _SIGNALS if y is None else FEWEST_SIGNALS
    return count > 1 and len(x) >= fewest and math.prod(x.shape[1:]) <= _COORDINATES


def load_code(
    options: Mapping[str, Any], missing: float | None, steps: tuple[int, int] | None
) -> str:
    """Lines of Python that make ``x``, and ``y`` where there are targets, from the same files."""
    plain = (None, False, "auto")
    given = ", ".join(f"{name}={value!r}" for name, value in options.items() if value not in plain)
    lines = [
        "# Run this in the folder where you ran gsym choose.",
        f"data = gsym.read_inputs({given})",
        "x = data.x",
    ]
    if options["mask"] is not None:
        lines.append('x[~data.mask] = float("nan")')
    value = ""
    if missing is not None and not math.isnan(missing):
        value = repr(missing) if math.isfinite(missing) else f'float("{missing}")'
    if value:
        lines.append(f'x[x == {value}] = float("nan")')
    if steps is not None:
        lag, horizon = steps
        lines += [
            f"held = x.unfold(0, {lag + horizon}, 1)  # [windows, nodes, channels, steps]",
            f"x, y = held[..., :{lag}].flatten(2), held[..., {lag}:].flatten(2)",
        ]
    elif options["targets"] is not None:
        lines.append("y = data.y")
        if value:
            lines.append(f'y[y == {value}] = float("nan")')
    return "\n".join(lines)
