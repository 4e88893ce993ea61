r"""Serial dependence: whether errors of consecutive signals are alike, how far, and what to do.

A leave-one-out error takes signals as independent. In a slowly changing series the neighbours of
a left-out signal stay in the fit and are almost the same: the most flexible model looks best. The
errors tell. Under independence their order says nothing, so their lag correlation is compared with
that of the same errors in random order, which holds its level whatever they are distributed like.

How far dependence reaches is not where the correlation falls below some number alone: errors of
many nodes may change quickly on the whole and share a small part that lasts for hours. Its
correlations are small one by one, but they add up, and their sum is what the fit gains by them.

Reference:
    Leave-one-out error with a gap: Burman, Chow and Nolan 1994, Racine 2000. The sum of
    correlations up to where they are chance: Geyer 1992; for blocks, Politis and White 2004. The
    rule is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.01
# Correlations below this matter little, and so does this share of their sum.
SMALL = 0.1
# A sum of correlations is more than chance above so many standard deviations.
_SURE = 5.0
# Halves differ by more than chance above so many standard errors.
_CHANGED = 4.0
# So many stretches at least say something about others.
STRETCHES = 8
_LAGS = (1, 2, 3)
_SHUFFLES = 199
# What the test looks at, at most: dependence is local, and so many directions hold it.
_MOST_SIGNALS, _MOST_DIRECTIONS, _MOST_AT_ONCE = 4096, 64, 2**16


@dataclass(frozen=True)
class Dependence:
    """How errors of consecutive signals depend on each other.

    Attributes:
        correlation: Correlation of errors of neighbouring signals.
        p_value: Share of random orders whose correlation at lag 1, 2 or 3 is as large.
        length: Signals after which the correlation is below 0.1, and what is left of its sum below
            a tenth; 1 for independent ones.
        signals: Number of signals.
        stretch: The same for the size of errors, which may change more slowly than they do.
        change: Mean size of the errors in the second half less that in the first, in standard
            errors.
        ratio: The one over the other.
    """

    correlation: float
    p_value: float
    length: int
    signals: int
    stretch: int = 1
    change: float = 0.0
    ratio: float = 1.0

    @property
    def found(self) -> bool:
        """Whether errors depend on each other by more than chance and more than a little."""
        return self.p_value <= LEVEL and self.length > 1

    @property
    def is_short(self) -> bool:
        """Whether there are too few stretches to say much about others."""
        return self.found and self.signals < STRETCHES * self.stretch

    @property
    def changes(self) -> bool:
        """Whether errors in one half are of another size than in the other."""
        return self.found and abs(self.change) > _CHANGED

    @property
    def block(self) -> int:
        """Signals to leave out together: one length, but five blocks in all."""
        return max(1, min(self.length, self.signals // 5)) if self.found else 1

    @property
    def gap(self) -> int:
        """Signals to leave out on either side, while half of all remain to fit to."""
        if not self.found:
            return 0
        return max(0, min(self.length, (self.signals // 2 - self.block) // 2))

    def hides(self, block: int, gap: int) -> bool:
        """Whether a signal in the middle of a block is still known to the fit by its neighbours."""
        return self.found and gap + block // 2 < min(self.length, self.block // 2 + self.gap)


def serial_dependence(errors: NDArray) -> Dependence:
    """Test the errors of signals ``[s, m]`` in their order for dependence.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> serial_dependence(rng.standard_normal((200, 4))).found
        False
        >>> serial_dependence(np.cumsum(rng.standard_normal((200, 4)), axis=0)).found
        True
    """
    s = len(errors)
    values = errors[:_MOST_SIGNALS]
    rng = np.random.default_rng(0)
    if values.shape[1] > _MOST_DIRECTIONS:
        # Some coordinates at a time: directions of a million take as much memory as the signals.
        projected = np.zeros((len(values), _MOST_DIRECTIONS))
        for start in range(0, values.shape[1], _MOST_AT_ONCE):
            part = values[:, start : start + _MOST_AT_ONCE]
            projected += part @ rng.standard_normal((part.shape[1], _MOST_DIRECTIONS))
        values = projected
    values = values - values.mean(0)
    square = float((values**2).sum())
    if len(values) < 8 or square <= 0:
        return Dependence(0.0, 1.0, 1, s)
    lags = [lag for lag in _LAGS if lag < len(values) // 2]

    def products(order: NDArray) -> list[float]:
        moved = values[order]
        return [float(np.vdot(moved[:-lag], moved[lag:])) for lag in lags]

    own = np.array(products(np.arange(len(values))))
    shuffled = np.array([products(rng.permutation(len(values))) for _ in range(_SHUFFLES)])
    middle, spread = shuffled.mean(0), shuffled.std(0) + 1e-300
    largest = ((shuffled - middle) / spread).max(1)
    p_value = (1 + int((largest >= ((own - middle) / spread).max()).sum())) / (_SHUFFLES + 1)
    correlation = _correlations(values, square)
    length = _length(correlation)
    # Alternating series may be uncorrelated at lag 1 and dependent at the next.
    if p_value <= LEVEL and correlation[lags].max() >= SMALL:
        length = max(length, 1 + max(lag for lag in lags if correlation[lag] >= SMALL))
    length = _reach(correlation, length, float(spread[0]) / square)
    sizes = (values**2).sum(1)
    centred = sizes - sizes.mean()
    stretch = _length(_correlations(centred[:, None], max(float(centred @ centred), 1e-300)))
    halves = np.array_split(sizes, 2)
    # Taken from all signals, the correlation would count a change between the halves as chance.
    variance = [float(half.var(ddof=1)) * inflation(half) / len(half) for half in halves]
    first, second = (float(half.mean()) for half in halves)
    return Dependence(
        float(correlation[1]),
        p_value,
        length,
        s,
        max(length, stretch),
        (second - first) / max(math.sqrt(sum(variance)), 1e-300),
        second / max(first, 1e-300),
    )


def inflation(values: NDArray) -> float:
    """By how much correlation along a series raises the variance of its mean, at least 1.

    The series is worth ``len(values) / inflation`` independent numbers.
    """
    centred = values - values.mean()
    square = float(centred @ centred)
    if len(values) < 8 or square <= 0:
        return 1.0
    correlation = _correlations(centred[:, None], square)
    return max(1.0, _time(correlation, _length(correlation)))


def _correlations(values: NDArray, square: float) -> NDArray:
    """Correlation at lags 0 to s / 2 of centred values, less the bias of their own mean."""
    s = len(values)
    width = 1 << (2 * s - 1).bit_length()
    power = (np.abs(np.fft.rfft(values, width, axis=0)) ** 2).sum(1)
    lags = np.arange(s // 2 + 1)
    raw = np.fft.irfft(power, width)[: len(lags)] / square * s / (s - lags)
    correlation = raw
    # A mean that was fitted takes time / s off every correlation; the time follows from them.
    for _ in range(5):
        share = min(_time(correlation, _length(correlation)) / s, 0.5)
        correlation = raw * (1 - share) + share
    return correlation


def _length(correlation: NDArray) -> int:
    """First lag of a correlation below :data:`SMALL`."""
    below = np.flatnonzero(correlation[1:] < SMALL)
    return int(below[0]) + 1 if below.size else len(correlation)


def _reach(correlation: NDArray, length: int, chance: float) -> int:
    """First lag beyond which correlations add less than :data:`SMALL` to their sum.

    Args:
        correlation: At lags 0 and more.
        length: The least it can be.
        chance: Standard deviation of a correlation of independent values.
    """
    lags = np.arange(length, len(correlation) // 2)
    if not lags.size:
        return length
    total = 1 + 2 * np.cumsum(correlation[1:])[lags - 1]
    # Of k correlations by chance, the sum deviates by the root of k.
    sure = total - total[0] > _SURE * 2 * chance * np.sqrt(lags)
    if not sure.any():
        return length
    enough = total >= (1 - SMALL) * total[sure].max()
    return int(lags[np.argmax(enough)])


def _time(correlation: NDArray, length: int) -> float:
    """Sum of correlations over all lags either way, up to the length."""
    value = 1 + 2 * float(correlation[1:length].sum())
    return value if math.isfinite(value) else 1.0
