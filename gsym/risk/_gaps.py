"""Signals with gaps: what is observed, by pattern."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gsym.errors import SignalError

# Patterns of hidden entries that weights are judged by, where none are given, and their share.
_PATTERNS, _HIDDEN = 8, 0.3
# More patterns than this are thinned out, evenly.
_MOST_PATTERNS = 16


def read_observed(x: NDArray, observed: Any) -> NDArray:
    """Which entries of signals are observed, boolean and shaped as these.

    Raises:
        SignalError: A mask of another shape, a signal of which nothing is observed, or NaN
            where no mask says what is missing.
    """
    if observed is None:
        # Signal by signal, because a mask of millions of nodes takes memory of its own.
        if x.dtype.kind == "f" and any(np.isnan(part).any() for part in np.atleast_1d(x)):
            raise SignalError(
                "signals hold NaN and nothing says what is observed; pass "
                "observed=~np.isnan(X), or fill them"
            )
        return np.broadcast_to(True, x.shape)
    mask = observed.detach().cpu().numpy() if isinstance(observed, Tensor) else np.asarray(observed)
    if mask.dtype != bool:
        raise SignalError(f"observed must be boolean; got {mask.dtype}; compare, as in mask == 1")
    if mask.shape not in (x.shape, x.shape[1:], x.shape[:2]):
        raise SignalError(
            f"observed must be {list(x.shape)} as the signals, {list(x.shape[1:])} for all of "
            f"them, or {list(x.shape[:2])} for all channels; got {list(mask.shape)}"
        )
    if mask.shape == x.shape[:2] and x.ndim == 3:
        mask = mask[:, :, None]
    seen = np.broadcast_to(mask, x.shape)
    empty = np.flatnonzero(~seen.reshape(len(seen), -1).any(1))
    if empty.size:
        raise SignalError(f"nothing is observed of signal {empty[0]}; leave such signals out")
    return seen


def by_pattern(seen: NDArray) -> Iterator[tuple[NDArray, NDArray]]:
    """Rows that share a pattern of what is seen, and the pattern."""
    patterns, which = np.unique(seen, axis=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        yield np.flatnonzero(which.ravel() == i), pattern


def read_patterns(given: Any, seen: NDArray, shape: tuple[int, int], seed: int) -> list[NDArray]:
    """What is seen of a signal, boolean ``[n c]`` each, for weights to be judged by.

    Args:
        given: A share of nodes that are hidden, masks ``[p, n]`` of what is seen, or ``None``: as
            the signals themselves, or a share where these have no gaps.
        seen: What is observed of the signals, ``[s, n c]``.
        shape: Nodes n and channels c.
        seed: Seeds what is drawn.

    Raises:
        SignalError: A share outside 0 to 1, or masks of another shape or that hide nothing.
    """
    n, c = shape
    if n < 2:
        raise SignalError("one node leaves nothing to fill it from; use objective='likelihood'")
    if given is None and not seen.all():
        return _thinned(seen)
    if given is not None and np.ndim(given) > 0:
        masks = np.asarray(given)
        if masks.ndim != 2 or masks.shape[1] != n or masks.dtype != bool:
            raise SignalError(
                f"patterns must be a share, or boolean [p, {n}]; got {masks.dtype} "
                f"{list(masks.shape)}"
            )
        return _thinned(np.repeat(masks, c, axis=1))
    share = _HIDDEN if given is None else float(given)
    if not 0 < share < 1:
        raise SignalError(f"the share of hidden nodes must lie between 0 and 1; got {share:g}")
    rng = np.random.default_rng(seed)
    hidden = min(max(1, round(share * n)), n - 1)
    masks = np.ones((_PATTERNS, n), dtype=bool)
    for mask in masks:
        mask[rng.choice(n, hidden, replace=False)] = False
    return list(np.repeat(masks, c, axis=1))


def covering(patterns: Sequence[NDArray], shape: tuple[int, int]) -> list[NDArray]:
    """Further patterns, which hide the nodes that some patterns leave seen, a few at a time.

    Args:
        patterns: What is seen of a signal, boolean ``[n c]`` each.
        shape: Nodes n and channels c.
    """
    n, c = shape
    hidden = ~np.reshape(patterns, (-1, n, c))
    never = np.flatnonzero(~np.all(np.any(hidden, axis=0), axis=1))
    if not never.size:
        return []
    # As many as one of them hides, and never all.
    most = min(int(hidden.any(2).sum(1).max()), n - 1)
    parts = np.array_split(never, min(-(-never.size // most), _MOST_PATTERNS))
    masks = np.ones((len(parts), n, c), dtype=bool)
    for mask, nodes in zip(masks, parts, strict=True):
        mask[nodes] = False
    return list(masks.reshape(len(parts), -1))


def _thinned(masks: NDArray) -> list[NDArray]:
    """Some of the distinct patterns that hide and show something."""
    masks = np.unique(masks, axis=0)
    masks = masks[masks.any(1) & ~masks.all(1)]
    if not len(masks):
        raise SignalError("patterns must hide some nodes and leave some")
    kept = np.linspace(0, len(masks) - 1, min(len(masks), _MOST_PATTERNS))
    return list(masks[kept.astype(int)])
