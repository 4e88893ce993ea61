r"""The mixture of a choice without targets: a covariance of several symmetries as a denoiser.

Candidates recover signals from noisy ones. The mixture does so by the conditional mean under
:class:`gsym.SymmetricCovariance`, a weighted sum of the covariances of all levels, with the
variance D of the noise, which is known:

.. math:: \hat x = \mu + \Sigma_{\cdot o} (\Sigma_{oo} + D_o)^{-1} (z_o - \mu_o)

for the entries o that were observed. It is judged on the same noisy signals as the candidates, in
ten folds whose signals it has not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsym.choosing.choice import Candidate
from gsym.choosing.criteria import ChoiceData
from gsym.errors import SignalError
from gsym.risk.covariance import SymmetricCovariance
from gsym.risk.samples import Samples

_FOLDS = 10
# Coordinates of a signal, of which covariances are dense here.
_MOST = 4096


def mix_covariances(
    levels: Sequence[Candidate], data: ChoiceData, axes: int
) -> tuple[NDArray, NDArray, float, SymmetricCovariance]:
    """Fit the mixture, and judge it in folds.

    Args:
        levels: Candidates that it is made of.
        data: Noisy signals and signals.
        axes: Of signals as the covariance that is returned takes them: 2 for ``[s, n]``, or 3.

    Returns:
        Weights of the levels and of the ridge, errors of every block, their mean per number, and
        the covariance.

    Raises:
        SignalError: More than 4096 coordinates, or fewer signals than levels.
    """
    samples = data.samples
    noisy, clean = samples.given
    s, n, c = clean.shape
    if n * c > _MOST:
        raise SignalError(
            f"soft=True without targets judges dense covariances, of up to {_MOST:,} coordinates; "
            f"got {n * c:,}; fit gsym.SymmetricCovariance, which needs none, or give targets"
        )
    seen = samples.observed[1]
    whole = np.ones(clean.shape, dtype=bool) if seen is None else seen
    variance = ((noisy - clean) ** 2).mean((0, 1))
    D = np.broadcast_to(variance, (n, c)).reshape(-1)
    squares = np.zeros(s)
    for train, judged in _folds(samples):
        cov = _fit(levels, clean[train], whole[train], "likelihood", samples.left_out.block)
        found = _denoise(cov, noisy[judged], whole[judged], D)
        error = (found - clean[judged]) / samples.scale[1]
        squares[judged] = (np.where(whole[judged], error, 0.0) ** 2).sum((1, 2))
    totals = samples.left_out.judged(squares)
    numbers = samples.left_out.judged(whole.sum((1, 2))).astype(float)
    score = float(totals.sum() / numbers.sum())
    if seen is not None:
        numbers = np.where(numbers > 0, numbers[numbers > 0].mean(), np.nan)
    form = (s, n) if axes == 2 else (s, n, c)
    clean, whole = clean.reshape(form), whole.reshape(form)
    fitted = _fit(levels, clean, whole, "auto", samples.left_out.block)
    return np.array(list(fitted.weights_.values())), totals / numbers, score, fitted


def _folds(samples: Samples) -> Iterator[tuple[NDArray, NDArray]]:
    """Signals to fit to and signals judged; every fold is a run of blocks, or single signals."""
    left_out, s = samples.left_out, samples.num_signals
    blocks = len(left_out)
    single = left_out.block == 1 and not left_out.gap
    # Signals may be in an order of classes; only of a series should neighbours stay together.
    order = np.random.default_rng(0).permutation(blocks) if single else np.arange(blocks)
    for run in np.array_split(order, min(_FOLDS, blocks)):
        kept, judged = np.ones(s, dtype=bool), np.zeros(s, dtype=bool)
        for b in run:
            kept[left_out.low[b] : left_out.high[b]] = False
            judged[left_out.starts[b] : left_out.stops[b]] = True
        yield np.flatnonzero(kept), np.flatnonzero(judged)


def _fit(
    levels: Sequence[Candidate], x: NDArray, seen: NDArray, objective: Any, block: int
) -> SymmetricCovariance:
    entries = [
        level.group if level.in_rep is None else (level.group, level.in_rep) for level in levels
    ]
    block = max(1, min(block, len(x) // 2))
    cov = SymmetricCovariance(entries, objective=objective, block=block)
    return cov.fit(x, observed=None if seen.all() else seen)


def _denoise(cov: SymmetricCovariance, noisy: NDArray, seen: NDArray, D: NDArray) -> NDArray:
    """Conditional means of signals given noisy entries, those that are observed."""
    Sigma, mean = cov.covariance_, cov.location_.reshape(-1)
    z, known = noisy.reshape(len(noisy), -1) - mean, seen.reshape(len(seen), -1)
    out = np.zeros_like(z)
    patterns, inverse = np.unique(known, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows, o = np.flatnonzero(inverse.reshape(-1) == number), np.flatnonzero(pattern)
        if len(o):
            weights = np.linalg.solve(Sigma[np.ix_(o, o)] + np.diag(D[o]), Sigma[o])
            out[rows] = z[np.ix_(rows, o)] @ weights
    return (out + mean).reshape(noisy.shape)
