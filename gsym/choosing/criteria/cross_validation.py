"""Users' own scoring functions: cross-validation with successive halving."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsym._validate import check_whole
from gsym.choosing.choice import Candidate, Words
from gsym.choosing.criteria._criterion import ChoiceData, Criterion, Entry, group_of
from gsym.errors import SignalError
from gsym.risk.left_out import LeftOut

Score = Callable[..., Any]


class CrossValidation(Criterion):
    """Scores of a function of the user's, over folds of whole blocks of signals.

    Args:
        score: ``score(group, x_train, y_train, x_val, y_val) -> float``, lower is better, or
            ``score(group)`` returning an object with ``fit`` and ``predict``.
        folds: Number of folds. After each the better half of the candidates goes on.
    """

    words = Words(score="score")
    reads_samples = False

    def __init__(self, score: Score, folds: int = 5) -> None:
        self.score, self.folds = score, check_folds(folds)

    def evaluate(self, groups: Sequence[Entry], data: ChoiceData) -> list[Candidate]:
        """Cross-validate all groups with successive halving."""
        return _cross_validate(
            groups, data.x, data.y, self.score, self.folds, data.samples.left_out, data.seed
        )

    def describe(self, data: ChoiceData) -> str:
        """The name of the function, and the number of folds."""
        del data
        return f"{getattr(self.score, '__name__', type(self.score).__name__)}, {self.folds}-fold"


def check_folds(folds: int) -> int:
    """A whole number of folds, at least two."""
    if check_whole(folds, "folds") < 2:
        raise ValueError(f"folds must be at least 2; got {folds}")
    return folds


def _cross_validate(
    groups: Sequence[Entry],
    x: Any,
    y: Any,
    score: Score,
    folds: int,
    left_out: LeftOut,
    seed: int,
) -> list[Candidate]:
    """K-fold scores with successive halving; blocks of consecutive signals stay together."""
    block, blocks = left_out.block, len(left_out)
    owner = np.arange(len(x)) // block
    if blocks < folds:
        if block == 1:
            raise SignalError(f"{folds} folds need at least as many signals; got {blocks}")
        raise SignalError(
            f"{folds} folds need at least as many blocks of {block} signals, which are left out "
            f"together (block=, found in the signals where it is 'auto'); got {blocks}; take "
            "fewer folds or a smaller block"
        )
    runs = _scorer(score)
    if left_out.gap:
        # Runs of blocks lose a gap at their two ends only.
        parts = np.array_split(np.arange(blocks), folds)
    else:
        parts = np.array_split(np.random.default_rng(seed).permutation(blocks), folds)
    errors: dict[int, NDArray] = {}
    alive = list(range(len(groups)))
    for fold, held_out in enumerate(parts):
        inside = np.isin(owner, held_out)
        validation = np.flatnonzero(inside)
        kept = ~inside
        for number in held_out:
            kept[left_out.low[number] : left_out.high[number]] = False
        if not kept.any():
            raise SignalError(
                f"{folds} folds with a gap of {left_out.gap} leave no signals to fit to; take more "
                "folds or a smaller gap"
            )
        split = [_take(v, rows) for rows in (np.flatnonzero(kept), validation) for v in (x, y)]
        starts = np.flatnonzero(np.diff(owner[validation], prepend=-1))
        per_block = np.diff(np.append(starts, len(validation)))
        for index in alive:
            value = _numbers(runs(groups[index], *split))
            single = len(value) == 1
            known = errors.setdefault(index, np.full(folds if single else blocks, np.nan))
            value = np.where(np.isnan(value), np.inf, value)
            if single:
                known[fold] = value[0]
            else:
                known[np.sort(held_out)] = np.add.reduceat(value, starts) / per_block
        means = {index: float(np.nanmean(errors[index])) for index in alive}
        keep = max(2, -(-len(alive) // 2))
        alive = sorted(sorted(alive, key=lambda i: means[i])[:keep])
    if not any(math.isfinite(value) for value in means.values()):
        raise ValueError("the scoring function returned no finite number for any candidate")
    out = []
    for index, entry in enumerate(groups):
        in_rep, out_rep = entry if isinstance(entry, tuple) else (None, None)
        out.append(Candidate(group_of(entry), errors[index], in_rep=in_rep, out_rep=out_rep))
    return out


def _scorer(score: Score) -> Callable[..., Any]:
    """Either form of a scoring function as ``(group, x, y, x_val, y_val) -> error or errors``."""
    if not callable(score):
        raise ValueError(
            "score must be a function (group, x_train, y_train, x_val, y_val) -> float, or "
            f"(group) -> object with fit and predict; got {type(score).__name__}"
        )
    if _takes(score, 5):
        return score
    if not _takes(score, 1):
        raise ValueError(
            f"score must take (group, x_train, y_train, x_val, y_val) or (group); got "
            f"{getattr(score, '__name__', score)}{inspect.signature(score)}"
        )

    def fitted(group: Entry, x: Any, y: Any, x_val: Any, y_val: Any) -> NDArray:
        model = score(group)
        if not (hasattr(model, "fit") and hasattr(model, "predict")):
            raise ValueError(
                "score(group) must return an object with fit and predict; got "
                f"{type(model).__name__}"
            )
        model.fit(x, y)
        with torch.no_grad():
            predicted, wanted = np.asarray(model.predict(x_val)), np.asarray(y_val)
        if predicted.shape != wanted.shape:
            raise SignalError(
                f"predict returned shape {list(predicted.shape)} for targets of shape "
                f"{list(wanted.shape)}"
            )
        return ((predicted - wanted) ** 2).reshape(len(wanted), -1).mean(1)

    return fitted


def _takes(function: Score, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


def _take(values: Any, rows: NDArray) -> Any:
    if isinstance(values, Tensor):
        return values[torch.from_numpy(rows)]
    return np.asarray(values)[rows]


def _numbers(value: object) -> np.ndarray:
    """What a score returned: one number, or one for each signal."""
    try:
        return np.atleast_1d(np.asarray(value, dtype=float))
    except (TypeError, ValueError) as cause:
        raise TypeError(
            f"score must return a number, or one for each signal; got {value!r:.80}"
        ) from cause
