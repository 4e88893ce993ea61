"""Folds of signals: at random, by stretches of a series, or by trial and subject."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gsym._validate import check_whole
from gsym.errors import SignalError
from gsym.risk.dependence import serial_dependence

_FOLDS = 5


def make_folds(
    signals: NDArray, block: int | Literal["auto"], groups: Any = None
) -> list[tuple[NDArray, NDArray]]:
    """Rows to train on and rows held out, for up to five folds.

    Args:
        signals: Rows ``[s, d]``.
        block: Consecutive signals that depend on each other. Above 1 every fold is a stretch of
            whole blocks; ``"auto"`` tests for dependence.
        groups: What each signal belongs to, ``[s]``; one group is never split.

    Raises:
        SignalError: Fewer than two blocks or groups, or groups of another number.
    """
    s = len(signals)
    if groups is not None:
        unit = np.unique(_check_groups(groups, s), return_inverse=True)[1]
        unit = np.random.default_rng(0).permutation(int(unit.max()) + 1)[unit]
    else:
        if block == "auto":
            block = serial_dependence(signals).block
        block = check_whole(block, "block", SignalError)
        if block < 1:
            raise SignalError(f'block must be at least 1, or "auto"; got {block}')
        unit = np.arange(s) // block
        if block == 1:
            unit = np.random.default_rng(0).permutation(s)
    units = int(unit.max()) + 1
    if units < 2:
        raise SignalError(
            f"the {s} signals make one block or group and nothing can be held out; give a smaller "
            "block, or signals of more groups"
        )
    count = min(_FOLDS, units if s > units else s // 2)
    fold = unit * count // units
    rows = np.arange(s)
    return [(rows[fold != f], rows[fold == f]) for f in range(count)]


def _check_groups(groups: Any, s: int) -> NDArray:
    values = np.asarray(groups)
    if values.shape != (s,):
        raise SignalError(
            f"groups must name one group for each of {s} signals; got {list(values.shape)}"
        )
    return values
