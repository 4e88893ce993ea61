"""How far variances are off, coordinate by coordinate, by what held-out signals tell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma

# No coordinate is taken to be surer than this share of the mean.
_SUREST = 1e-9
_STEPS = 50


def moderated(squares: NDArray, signals: int) -> NDArray:
    r"""Factors of variances, from means of squared standardised errors, drawn towards each other.

    Of a few signals these means differ by chance. Taken as :math:`f_j \chi^2_s / s`, where the
    :math:`1 / f_j` are draws of one gamma distribution, their spread tells how much of it is more
    than that. Where none is, all get the mean; where they differ by orders of magnitude, each keeps
    its own. The factor is the variance of the t distribution that predicts the next error.

    Args:
        squares: A mean for each kind of coordinates, ``[k]``.
        signals: Number of signals s that each is of.

    Example:
        >>> moderated(np.array([0.9, 1.1, 1.0]), 50)
        array([1., 1., 1.])
        >>> moderated(np.array([0.01, 1.0, 100.0]), 50).round(1)
        array([  0. ,   1. , 103.2])

    Reference:
        Smyth, Linear models and empirical Bayes methods, 2004, section 6.2 (from memory).
    """
    mean = float(squares.mean())
    if len(squares) < 2 or mean <= 0:
        return np.full(len(squares), mean)
    squares = np.maximum(squares, _SUREST * mean)
    logs = np.log(squares)
    spread = float(logs.var(ddof=1)) - float(polygamma(1, signals / 2))
    if spread <= 0:
        return np.full(len(squares), mean)
    prior = 2 * _inverse_trigamma(spread)
    shift = digamma(signals / 2) - np.log(signals / 2) - digamma(prior / 2) + np.log(prior / 2)
    common = np.exp(logs.mean() - shift)
    known = prior + signals
    return np.asarray((prior * common + signals * squares) / max(known - 2, 1.0))


def _inverse_trigamma(value: float) -> float:
    """The x with trigamma(x) = value, by Newton's method on its reciprocal."""
    x = 0.5 + 1 / value
    for _ in range(_STEPS):
        own = float(polygamma(1, x))
        step = own * (1 - own / value) / float(polygamma(2, x))
        x += step
        if -step < 1e-10 * x:
            break
    return x
