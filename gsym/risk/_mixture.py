"""Weights of a sum of covariances, fitted on log weights to a tolerance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.optimize import minimize

from gsym.risk._gaussian import DenseGaussian

# Weights are kept within these times the mean variance: the ridge bounds the condition.
FLOOR, CEILING = 1e-8, 1e2
# Of the projected gradient, in units of the loss per entry.
TOLERANCE = 1e-6
_STEPS, _RESTARTS = 500, 4
# Above so many coordinates, patterns of hidden entries are shared out among folds.
_MANY = 64
# Weights below this share of all are looked at again: there the gradient on a logarithmic scale
# is nearly 0 whichever way the weight should go.
_SMALL = 1e-3


@dataclass(frozen=True)
class Fold:
    """Terms of the signals that a fold trains on, and the signals that it holds out.

    Attributes:
        terms: ``[m, d, d]``.
        held: Which entries are seen, ``[d]``, and held-out signals less the mean of the others,
            ``[h, d]``, by pattern of what is seen.
    """

    terms: NDArray
    held: Sequence[tuple[NDArray, NDArray]]

    @property
    def whole(self) -> NDArray:
        """Held-out signals without gaps, ``[h, d]``."""
        found = [errors for seen, errors in self.held if seen.all()]
        return found[0] if found else np.zeros((0, self.terms.shape[1]))

    def gaussian(self, weights: NDArray, x: NDArray) -> DenseGaussian:
        """The Gaussian of these weights; the signals to train on are in the terms."""
        return DenseGaussian(np.tensordot(weights, self.terms, 1))


@dataclass(frozen=True)
class Fitted:
    """What :func:`fit_weights` found.

    Attributes:
        weights: ``[m]``.
        loss: Value per entry.
        optimality: Largest violation of the conditions of a minimum, in loss per entry.
        steps: Evaluations.
    """

    weights: NDArray
    loss: float
    optimality: float
    steps: int


Loss = Callable[[NDArray], tuple[float, NDArray]]


def likelihood(folds: Sequence[Fold]) -> Loss:
    """Minus the log density of what is seen of held-out signals, per entry, without constants."""
    entries = sum(int(seen.sum()) * len(errors) for fold in folds for seen, errors in fold.held)

    def loss(weights: NDArray) -> tuple[float, NDArray]:
        value, gradient = 0.0, np.zeros(len(weights))
        for fold in folds:
            Sigma = np.tensordot(weights, fold.terms, 1)
            G = np.zeros_like(Sigma)
            for seen, errors in fold.held:
                o = np.flatnonzero(seen)
                whole = len(o) == len(seen)
                inverse, log_det = inverse_and_log_det(Sigma if whole else Sigma[np.ix_(o, o)])
                E = errors if whole else errors[:, o]
                Z = E @ inverse
                value += (len(E) * log_det + np.vdot(E, Z)) / 2
                part = (len(E) * inverse - Z.T @ Z) / 2
                if whole:
                    G += part
                else:
                    G[np.ix_(o, o)] += part
            gradient += fold.terms.reshape(len(weights), -1) @ G.ravel()
        return value / entries, gradient / entries

    return loss


def imputation(folds: Sequence[Fold], patterns: Sequence[NDArray]) -> Loss:
    """Squared error of the conditional mean of hidden entries, over their squares.

    Args:
        folds: Of which held-out signals without gaps are taken.
        patterns: Which entries are seen, ``[d]`` each; of many coordinates, every fold takes some.
    """
    cases = []
    for f, fold in enumerate(folds):
        step = 1 if fold.terms.shape[1] <= _MANY else min(len(folds), len(patterns))
        own = patterns[f % step :: step]
        cases.append([(np.flatnonzero(p), np.flatnonzero(~p)) for p in own])
    squares = sum(
        float((fold.whole[:, u] ** 2).sum())
        for fold, own in zip(folds, cases, strict=True)
        for _, u in own
    )
    squares = max(squares, 1e-300)

    def loss(weights: NDArray) -> tuple[float, NDArray]:
        value, gradient = 0.0, np.zeros(len(weights))
        for fold, own in zip(folds, cases, strict=True):
            errors = fold.whole
            if not own or not len(errors):
                continue
            Sigma = np.tensordot(weights, fold.terms, 1)
            # With R the errors left and A = E_o Sigma_oo^-1 they change by
            # dR = -A dSigma_ou + A dSigma_oo Sigma_oo^-1 Sigma_ou, so a gradient is a product of
            # as many rows as there are errors.
            left, right = np.zeros((2, len(own), *errors.shape))
            for A, B, (o, u) in zip(left, right, own, strict=True):
                root, _ = _root(Sigma[np.ix_(o, o)])
                across = Sigma[np.ix_(o, u)]
                A[:, o] = lapack.dpotrs(root, errors[:, o].T, lower=1)[0].T
                R = errors[:, u] - A[:, o] @ across
                value += float((R**2).sum())
                B[:, o] = lapack.dpotrs(root, across @ R.T, lower=1)[0].T
                B[:, u] = -R
            rows = left.reshape(-1, len(Sigma)), right.reshape(-1, len(Sigma))
            gradient += fold.terms.reshape(len(weights), -1) @ (rows[0].T @ rows[1]).ravel()
        return value / squares, 2 * gradient / squares

    return loss


def fit_weights(loss: Loss, start: NDArray, *, tolerance: float = TOLERANCE) -> Fitted:
    """Minimise a loss over weights between the floor and the ceiling, by L-BFGS on logarithms.

    A weight near the floor hardly moves on a logarithmic scale. So the slope of the loss in the
    weight itself is looked at there; where it says that more would be better, the weight is raised
    and the search goes on.
    """
    low, high = np.log(FLOOR), np.log(CEILING)
    theta = np.log(np.clip(start, FLOOR, CEILING))
    steps = 0

    def on_logs(theta: NDArray) -> tuple[float, NDArray]:
        nonlocal steps
        steps += 1
        weights = np.exp(theta)
        value, gradient = loss(weights)
        return value, gradient * weights

    for _ in range(_RESTARTS):
        found = minimize(
            on_logs,
            theta,
            jac=True,
            method="L-BFGS-B",
            bounds=[(low, high)] * len(theta),
            options={"maxiter": _STEPS, "gtol": tolerance, "ftol": 1e-13, "maxcor": 20},
        )
        theta = found.x
        weights = np.exp(theta)
        value, slope = loss(weights)
        violation, worth_more = _violation(weights, slope)
        if violation <= 10 * tolerance or not worth_more.any():
            break
        theta = np.where(worth_more, np.log(_SMALL * 10 * weights.sum()), theta)
    return Fitted(weights, value, violation, steps)


def _violation(weights: NDArray, slope: NDArray) -> tuple[float, NDArray]:
    """How far weights are from a minimum, and which small ones should be larger.

    Inside, the slope on logarithms must vanish; at a small weight the loss must not fall when it
    becomes a share of all.
    """
    total = weights.sum()
    small = weights < _SMALL * total
    at_top = weights >= CEILING * (1 - 1e-9)
    inner = np.abs(slope * weights)
    inner[at_top] = np.maximum(slope[at_top], 0) * weights[at_top]
    inner[small] = np.maximum(-slope[small], 0) * _SMALL * total
    return float(inner.max()), small & (inner > 10 * TOLERANCE)


def inverse_and_log_det(Sigma: NDArray) -> tuple[NDArray, float]:
    """Inverse and log determinant of a positive definite matrix."""
    L, log_det = _root(Sigma)
    # Zero above the diagonal, as L is there.
    half, _ = lapack.dpotri(L, lower=1, overwrite_c=1)
    inverse = half + half.T
    inverse[np.diag_indices(len(inverse))] /= 2
    return inverse, log_det


def _root(Sigma: NDArray) -> tuple[NDArray, float]:
    """Lower root and log determinant of a positive definite matrix."""
    L, info = lapack.dpotrf(Sigma.T, lower=1, clean=1)
    # Rounding at a condition of 1e15, which a search may try: the smallest change that helps.
    for jitter in (1e-13, 1e-11, 1e-9, 1e-7):
        if info == 0:
            break
        shifted = Sigma + jitter * np.trace(Sigma) * np.eye(len(Sigma))
        L, info = lapack.dpotrf(shifted.T, lower=1, clean=1)
    if info != 0:
        raise np.linalg.LinAlgError("a sum of covariances is not positive definite")
    return L, 2 * float(np.log(np.diagonal(L)).sum())
