"""Signals with gaps, completed by what a Gaussian expects: the first step of EM.

Reference:
    Dempster, Laird and Rubin 1977; Little and Rubin, Statistical Analysis with Missing Data,
    chapter 11 (from memory).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsym.risk._gaps import by_pattern
from gsym.risk._gaussian import DenseGaussian
from gsym.risk._inverses import FEW

# Above so many coordinates, few patterns of each fold judge weights, and none but that of whole
# signals where there are so many of these.
_MANY, _MANY_WHOLE = 64, 20
_MOST_HELD, _FEW_HELD = 32, 8

# A node that is nearly constant in a fit tells others by tiny deviations, and one jump of a new
# signal would carry them off. Among s signals, a jump of usual size in one of 4 s goes unnoticed.
_JUMPS = 0.25


def raised(variances: NDArray, signals: int) -> NDArray:
    """What variances lack of a quarter of their mean over the number of signals."""
    return np.maximum(_JUMPS * variances.mean() / signals - variances, 0.0)


@dataclass(frozen=True)
class Uncertain:
    """How uncertain is what fills gaps.

    Attributes:
        which: Number of the pattern of each signal, ``[s]``.
        seen: Patterns, boolean ``[p, d]``.
        left: Covariance of what each hides: ``[u, u]`` each, or of few coordinates ``[p, d, d]``
            with 0 for those seen.
    """

    which: NDArray
    seen: NDArray
    left: Sequence[NDArray] | NDArray

    def of(self, rows: NDArray) -> NDArray:
        """The sum over some rows, ``[d, d]``."""
        counts = np.bincount(self.which[rows], minlength=len(self.seen))
        if isinstance(self.left, np.ndarray):
            return np.asarray(np.tensordot(counts, self.left, 1))
        total = np.zeros((self.seen.shape[1],) * 2)
        for count, seen, left in zip(counts, self.seen, self.left, strict=True):
            u = np.flatnonzero(~seen)
            total[np.ix_(u, u)] += count * left
        return total


@dataclass(frozen=True)
class Completed:
    """Signals whose gaps are filled by their expectation, and how uncertain that is.

    Attributes:
        filled: ``[s, d]``.
        seen: Which entries are observed, ``[s, d]``.
        uncertain: How uncertain that is; ``None`` without gaps.
    """

    filled: NDArray
    seen: NDArray
    uncertain: Uncertain | None = None

    def centred(self) -> NDArray:
        """Signals less the mean of what is observed, 0 where nothing is: ``[s, d]``."""
        count = np.maximum(self.seen.sum(0), 1)
        mean = np.where(self.seen, self.filled, 0.0).sum(0) / count
        return np.where(self.seen, self.filled - mean, 0.0)

    def expected(self, mean: NDArray, gaussian: DenseGaussian) -> Completed:
        """The same signals, completed anew."""
        patterns, which = np.unique(self.seen, axis=0, return_inverse=True)
        which = which.ravel()
        if len(mean) <= FEW:
            B, left = gaussian.regressions(patterns)
            known = np.where(self.seen, self.filled - mean, 0.0)
            # Coefficients are copied for each signal only where most have a pattern of their own.
            if len(patterns) * 4 > len(known):
                guess = (known[:, None] @ B[which])[:, 0]
            else:
                guess = np.empty_like(known)
                for k in range(len(patterns)):
                    rows = which == k
                    guess[rows] = known[rows] @ B[k]
            filled = np.where(self.seen, self.filled, mean + guess)
            return Completed(filled, self.seen, Uncertain(which, patterns, left))
        filled, each = self.filled.copy(), []
        for k, pattern in enumerate(patterns):
            o, u = np.flatnonzero(pattern), np.flatnonzero(~pattern)
            own, C = gaussian.regression(o, u) if len(u) else (np.zeros((len(o), 0)), np.eye(0))
            rows = np.flatnonzero(which == k)
            filled[np.ix_(rows, u)] = mean[u] + (self.filled[np.ix_(rows, o)] - mean[o]) @ own
            each.append(C)
        return Completed(filled, self.seen, Uncertain(which, patterns, each))

    def covariance(self, rows: NDArray) -> tuple[NDArray, NDArray]:
        """Mean ``[d]`` and expected sample covariance ``[d, d]`` of some rows.

        No coordinate has less than a quarter of the mean variance over the number of rows.
        """
        mean = self.filled[rows].mean(0)
        errors = self.filled[rows] - mean
        S = errors.T @ errors
        if self.uncertain is not None:
            S += self.uncertain.of(rows)
        S /= len(rows)
        own = np.diagonal(S)
        S[np.diag_indices(len(S))] += raised(own, len(rows))
        return mean, S

    def raised(self, rows: NDArray) -> NDArray:
        """What :meth:`covariance` adds to variances of some rows without gaps, ``[d]``."""
        return raised(self.filled[rows].var(0), len(rows))

    def held(self, rows: NDArray, mean: NDArray) -> list[tuple[NDArray, NDArray]]:
        """What is observed of some rows, less a mean: patterns, and rows of errors.

        Those of the most frequent patterns, because each costs a factorisation.
        """
        whole, many = np.asarray(self.seen.all(1)), self.seen.shape[1] > _MANY
        if many and whole.sum() >= _MANY_WHOLE:
            rows = rows[whole[rows]]
        found = [(pattern, rows[alike]) for alike, pattern in by_pattern(self.seen[rows])]
        found.sort(key=lambda item: -len(item[1]))
        return [
            (pattern, np.where(pattern, self.filled[alike] - mean, 0.0))
            for pattern, alike in found[: _FEW_HELD if many else _MOST_HELD]
        ]
