"""What fills hidden entries: Gaussians, nearest signals, and a combination of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.covariance import ledoit_wolf

from gsym.risk._calibration import moderated
from gsym.risk._gaussian import DenseGaussian
from gsym.risk._split_gaussian import SplitGaussian

NEAREST = (5, 15)
# A share below this is dropped.
_LEAST = 0.01


class Fill(Protocol):
    """Fills hidden coordinates of errors ``[h, d]`` from those seen, given by number."""

    def __call__(self, errors: NDArray, seen: NDArray, hidden: NDArray) -> NDArray:
        """Filled coordinates, ``[h, u]``."""


@dataclass(frozen=True)
class GaussianFill:
    """The conditional mean.

    Attributes:
        gaussian: The Gaussian.
    """

    gaussian: DenseGaussian | SplitGaussian

    def __call__(self, errors: NDArray, seen: NDArray, hidden: NDArray) -> NDArray:
        """The mean of hidden coordinates."""
        return self.both(errors, seen, hidden)[0]

    def both(self, errors: NDArray, seen: NDArray, hidden: NDArray) -> tuple[NDArray, NDArray]:
        """Mean and variances of hidden coordinates."""
        return self.gaussian.conditional(errors[:, seen], seen, hidden)


@dataclass(frozen=True)
class NearestFill:
    """The mean of the signals that are nearest in what is seen.

    Attributes:
        errors: Signals to choose from, less their mean, ``[s, d]``.
        count: How many.
    """

    errors: NDArray
    count: int

    def __call__(self, errors: NDArray, seen: NDArray, hidden: NDArray) -> NDArray:
        """The mean of hidden coordinates of the nearest."""
        known, ours = errors[:, seen], self.errors[:, seen]
        squares = (known**2).sum(1)[:, None] - 2 * known @ ours.T + (ours**2).sum(1)
        count = min(self.count, len(ours))
        near = np.argpartition(squares, count - 1, axis=1)[:, :count]
        return np.asarray(self.errors[:, hidden][near].mean(1))


def other_fills(errors: NDArray) -> dict[str, Fill]:
    """Fills that know of no symmetry, from signals less their mean ``[s, d]``."""
    fills: dict[str, Fill] = {f"{count} nearest": NearestFill(errors, count) for count in NEAREST}
    Sigma, _ = ledoit_wolf(errors, assume_centered=True)
    # Its shrinkage may be 0.
    Sigma = Sigma + 1e-9 * np.trace(Sigma) / len(Sigma) * np.eye(len(Sigma))
    fills["Ledoit-Wolf"] = GaussianFill(DenseGaussian(Sigma))
    return fills


@dataclass(frozen=True)
class Combined:
    """A weighted mean of fills, with the variances of one of them times factors.

    Attributes:
        fills: By name.
        shares: Of each, at least 0, 1 in all.
        base: Name of the one that gives the variances.
        factors: By which these are multiplied, of every coordinate.
    """

    fills: Mapping[str, Fill]
    shares: Mapping[str, float]
    base: str
    factors: NDArray

    @property
    def gaussian(self) -> DenseGaussian | SplitGaussian:
        """That of the base."""
        base = self.fills[self.base]
        assert isinstance(base, GaussianFill)
        return base.gaussian

    def both(self, errors: NDArray, seen: NDArray, hidden: NDArray) -> tuple[NDArray, NDArray]:
        """Mean and variances of hidden coordinates."""
        own, variance = GaussianFill(self.gaussian).both(errors, seen, hidden)
        mean = np.zeros_like(own)
        for name, share in self.shares.items():
            fill = self.fills[name]
            mean += share * (own if name == self.base else fill(errors, seen, hidden))
        return mean, self.factors[hidden] * variance


@dataclass(frozen=True)
class Combination:
    """What held-out signals tell of fills.

    Attributes:
        shares: Of least squared error, at least 0 and 1 in all, small ones dropped.
        scale: Mean square of standardised errors.
        factors: By which variances of every coordinate are to be multiplied, ``[d]``.
    """

    shares: Mapping[str, float]
    scale: float
    factors: NDArray


Held = Sequence[tuple[Mapping[str, Fill], NDArray]]


def combine(
    held: Held, patterns: Sequence[NDArray], further: Sequence[NDArray], base: str, alike: NDArray
) -> Combination:
    """Shares of fills, and the factors of their variances, by what held-out signals tell.

    Args:
        held: Fills of each fold, and whole signals that it holds out, less the mean of the others.
        patterns: Which entries are seen, ``[d]`` each.
        further: The same, where none of these hides a coordinate; they have no say in shares.
        base: Name of the fill that gives the variances.
        alike: Labels of coordinates ``[d]``: those of one label have one factor.

    Reference:
        Breiman, Stacked regressions, 1996 (from memory).
    """
    gaps, variances, places = _errors(held, patterns, base)
    names = list(held[0][0])
    # With shares of 1 in all, errors of the sum are sums of errors: only their products count.
    root = np.linalg.qr(gaps, mode="r")
    heavy = 1e4 * max(float(np.abs(root).max()), 1e-300)
    target = np.append(np.zeros(len(root)), heavy)
    shares, _ = nnls(np.vstack([root, np.full(len(names), heavy)]), target)
    shares[shares < _LEAST * shares.sum()] = 0
    shares /= shares.sum()
    squares = (gaps @ shares) ** 2 / variances
    scale = float(squares.mean())
    if further:
        gaps, variances, others = _errors(held, further, base)
        squares = np.append(squares, (gaps @ shares) ** 2 / variances)
        places = np.append(places, others)
    labels = alike[places]
    signals = sum(len(errors) for _, errors in held)
    found = moderated(np.bincount(labels, squares) / np.bincount(labels), signals)
    kept = {name: float(a) for name, a in zip(names, shares, strict=True) if a}
    return Combination(kept, scale, found[alike])


def _errors(held: Held, patterns: Sequence[NDArray], base: str) -> tuple[NDArray, NDArray, NDArray]:
    """Errors of every fill ``[h, fills]``, their variances, and which coordinate each is of."""
    gaps, variances, places = [], [], []
    for fills, errors in held:
        for pattern in patterns:
            o, u = np.flatnonzero(pattern), np.flatnonzero(~pattern)
            first = fills[base]
            assert isinstance(first, GaussianFill)
            mean, variance = first.both(errors, o, u)
            guesses = [mean if n == base else fill(errors, o, u) for n, fill in fills.items()]
            gaps.append(np.stack([(guess - errors[:, u]).ravel() for guess in guesses], axis=1))
            variances.append(np.broadcast_to(variance, mean.shape).ravel())
            places.append(np.broadcast_to(u, mean.shape).ravel())
    return np.concatenate(gaps), np.concatenate(variances), np.concatenate(places)
