r"""Learning curves: what each group would err with more signals, and who overtakes whom.

**The law.** Ridge regression on p features with the best penalty, inputs in general position and
coefficients of all directions alike, errs with n signals

.. math::
    R(n) = \frac{2 r}{1 - \gamma - \lambda + \sqrt{(1 - \gamma + \lambda)^2 + 4 \gamma \lambda}},
    \qquad \gamma = \frac{p}{n}, \quad \lambda = \frac{\gamma r}{R(0) - r},

where r, its *bias*, is what it errs with all signals of the world and ``R(n) - r`` its
*variance*. R(0) is known: the targets themselves. Above p signals the law is near
:math:`r / (1 - p / n)`, as of least squares; below, it leads straight down from R(0).

**What is fitted.** Real features are not alike, so p is the *effective* number of them, between
what the fit uses up and all. Two numbers, p and r, follow from two left-out errors: with all the
signals, and with random halves of them. Only the cluster means follow the law; own values have few
weights, and their error stays as it is.

**Overtaking.** From the candidate that is best now, the next is the finer one whose curve comes
first below it. Blocks are drawn again with replacement, for all candidates alike, and the law
fitted again: the interval holds 95 % of the crossings. It knows nothing of how far the law is off;
``gsym-bench overtaking`` compares predicted with found.

Reference:
    Dobriban and Wager, High-dimensional asymptotics of prediction, arXiv 1507.03003, theorem 2.1.
    The effective p, and halves to find it, are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsym.groups import ClusterGroup
from gsym.risk.predictor import CommutantRidge
from gsym.risk.ridge import Reps, fit_to_all
from gsym.risk.samples import Samples

# Fewer blocks cannot be halved and judged.
FEWEST_BLOCKS = 8
# Beyond so many times the signals at hand nothing is said.
HORIZON = 1000.0
_SPLITS, _DRAWS, _SIZES, _GRID, _STEPS = 4, 200, 241, 25, 50
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Crossing:
    """From how many signals one candidate is better than another.

    Attributes:
        before: Number of the candidate that is best until then.
        after: Number of the one that overtakes it.
        signals: Number of signals.
        low: Lower end of the 95 % interval.
        high: Upper end; infinite where it may never happen.
    """

    before: int
    after: int
    signals: float
    low: float
    high: float


@dataclass(frozen=True)
class Outlook:
    """What more signals would change.

    Attributes:
        now: Number of the candidate that is best with the signals at hand.
        crossings: Who overtakes whom from there on, in order.
        earliest: From how many signals a finer candidate than the last may be better all the same:
            the lower end of the interval; infinite if that is unlikely at any number, or if it is
            the finest.
    """

    now: int
    crossings: tuple[Crossing, ...]
    earliest: float


@dataclass(frozen=True)
class LearningCurve:
    """What is known of one candidate, per number to predict, in blocks.

    Attributes:
        signals: Signals that all were fitted to.
        zero: Squared targets of the means, less their mean, ``[blocks]``.
        full: Left-out error of the means.
        half: The same with half the signals.
        rest: Left-out error of the own values.
        features: Weights of each output, and what the fit uses up of them.
    """

    signals: float
    zero: NDArray
    full: NDArray
    half: NDArray
    rest: NDArray
    features: tuple[float, float]

    def errors(self, sizes: NDArray, draws: NDArray) -> NDArray:
        """Errors with some numbers of signals ``[draws, sizes]``.

        Args:
            sizes: Numbers of signals.
            draws: How often each block is drawn, ``[draws, blocks]``.
        """
        draws = draws / draws.sum(1, keepdims=True)
        zero, full, half, rest = (draws @ v for v in (self.zero, self.full, self.half, self.rest))
        high, low = self.features
        grid = np.geomspace(max(min(low, high), 0.5), max(high, 0.5), _GRID)
        r = bias(full[:, None], zero[:, None], grid, self.signals)
        off = np.abs(law(self.signals / 2, grid, r, zero[:, None]) - half[:, None])
        best = off.argmin(1)
        r = r[np.arange(len(r)), best]
        return np.asarray(
            rest[:, None] + law(sizes, grid[best][:, None], r[:, None], zero[:, None])
        )


def law(n: NDArray | float, p: NDArray, r: NDArray, zero: NDArray) -> NDArray:
    """The error of ridge with n signals; see the top of this file.

    Example:
        >>> law(np.array([1e-6, 1e9]), 10.0, 1.0, 3.0).round(3)
        array([3., 1.])
    """
    tiny = 1e-12 * np.maximum(zero, 1e-280)
    energy, r = np.maximum(zero - r, tiny), np.maximum(r, tiny)
    gamma = p / n
    penalty = gamma * r / energy
    root = np.sqrt((1 - gamma + penalty) ** 2 + 4 * gamma * penalty)
    # 1 - gamma - penalty + root without cancellation where gamma is large.
    below = gamma + penalty - 1
    direct = root - below
    stable = 4 * penalty / np.where(below > 0, root + below, 1.0)
    found = 2 * r / np.where(below > 0, stable, direct)
    return np.asarray(np.where(r >= zero, r, found))


def bias(error: NDArray, zero: NDArray, p: NDArray, n: float) -> NDArray:
    """The r under which the law errs so much with n signals, by bisection."""
    error, zero, p = np.broadcast_arrays(error, zero, p)
    low, high = np.zeros(error.shape), error.copy()
    for _ in range(_STEPS):
        middle = (low + high) / 2
        above = law(n, p, middle, zero) > error
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.where(error >= zero, error, (low + high) / 2)


def learning_curves(
    data: Samples,
    groups: Sequence[tuple[ClusterGroup, Reps | None]],
    fits: Sequence[CommutantRidge],
    seed: int = 0,
) -> list[LearningCurve]:
    """Measure what each group errs with half of the signals.

    Args:
        data: The signals.
        groups: The candidates.
        fits: Their fits to all signals.
        seed: Seeds the halves.

    Returns:
        A curve for each; none with fewer than :data:`FEWEST_BLOCKS` blocks.
    """
    left_out = data.left_out
    blocks = len(left_out)
    if blocks < FEWEST_BLOCKS:
        return []
    rng = np.random.default_rng(seed)
    halves = []
    for _ in range(_SPLITS):
        order = rng.permutation(blocks)
        halves += [np.sort(order[: blocks // 2]), np.sort(order[blocks // 2 :])]
    parts = [(half, data.subset(_signals(data, half), left_out.block, 0)) for half in halves]
    found = []
    for (group, reps), fit in zip(groups, fits, strict=True):
        half = np.zeros(blocks)
        for numbers, part in parts:
            half[numbers] += fit_to_all(part, group, reps=reps).split(part)[1] / _SPLITS
        zero, full, rest, features = fit.split(data)
        mean = fit.numbers.mean()
        found.append(
            LearningCurve(
                float(data.num_signals),
                zero / mean,
                full / mean,
                half / mean,
                rest / mean,
                features,
            )
        )
    return found


def _signals(data: Samples, blocks: NDArray) -> NDArray:
    starts, stops = data.left_out.starts[blocks], data.left_out.stops[blocks]
    return np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])


def look_ahead(curves: Sequence[LearningCurve], fineness: Sequence[int], seed: int = 0) -> Outlook:
    """Which candidate is best now, and who overtakes whom from there on.

    Args:
        curves: Of the candidates.
        fineness: Weights of each; only a finer one overtakes.
        seed: Seeds the draws of blocks.
    """
    s, blocks = curves[0].signals, len(curves[0].zero)
    sizes = s * np.geomspace(1.0, HORIZON, _SIZES)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=_DRAWS)
    draws = np.vstack([np.ones(blocks), drawn])
    errors = np.stack([curve.errors(sizes, draws) for curve in curves])

    def interval(below: NDArray) -> tuple[float, float]:
        """Where draws ``[draws, sizes]`` become true, 95 % of them."""
        at = np.where(below.any(1), below.argmax(1), _SIZES)
        ends = np.quantile(np.append(sizes, np.inf)[at], _INTERVAL, method="closest_observation")
        return float(ends[0]), float(ends[1])

    first = now = int(errors[:, 0, 0].argmin())
    found: list[Crossing] = []
    place = 0
    while True:
        finer = [i for i in range(len(curves)) if fineness[i] > fineness[now]]
        below = np.array([errors[i, 0, place:] < errors[now, 0, place:] for i in finer])
        if not below.any():
            earliest = np.inf
            if finer:
                ahead = np.asarray(errors[finer, 1:] < errors[now, 1:])
                earliest, _ = interval(np.asarray(ahead.any(0)))
            return Outlook(first, tuple(found), earliest)
        place += int(below.any(0).argmax())
        after = min(finer, key=lambda i: errors[i, 0, place])
        low, high = interval(np.asarray(errors[after, 1:] < errors[now, 1:]))
        found.append(Crossing(now, after, float(sizes[place]), low, high))
        now = after
