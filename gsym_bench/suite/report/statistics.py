"""Intervals and p-values of differences over seeds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


# Resamples of a bootstrap: ends of intervals then have two good digits.
_RESAMPLES = 2000


def bootstrap(values: Sequence[float] | NDArray) -> Interval:
    """The mean with its 95 % bootstrap interval (BCa); a point for a single value.

    Below five values it is too narrow, as any bootstrap interval is.
    """
    centre = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(centre, centre, centre)
    with warnings.catch_warnings():
        # Where the correction for bias is undefined percentiles are taken instead.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        for method in ("BCa", "percentile"):
            found = stats.bootstrap(
                (np.asarray(values),),
                np.mean,
                n_resamples=_RESAMPLES,
                method=method,
                rng=np.random.default_rng(0),
            ).confidence_interval
            if np.isfinite(found).all():
                break
    return Interval(centre, float(found.low), float(found.high))


def paired_p(values: NDArray) -> float:
    """The p-value of differences that are 0 on average, by Student's t."""
    if np.ptp(values) == 0:
        return float(values[0] == 0)
    return float(stats.ttest_1samp(values, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, step by step.

    Reference:
        Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min((len(p_values) - rank) * p_values[place], 1.0))
        adjusted[place] = largest
    return adjusted


def mean_interval(values: Sequence[float] | NDArray) -> Interval:
    """The mean with its 95 % interval of Student's t; a point for a single value."""
    centre = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(centre, centre, centre)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return Interval(centre, float(low), float(high))


def is_sure(found: tuple[Interval, float] | None) -> bool:
    """Whether a difference is hardly chance: its interval excludes 0, its p-value is below 0.05.

    The interval alone does not decide: over three seeds a bootstrap excludes 0 whenever the three
    differences have one sign, by chance once in four times.
    """
    return found is not None and (found[0].low > 0 or found[0].high < 0) and found[1] < 0.05
