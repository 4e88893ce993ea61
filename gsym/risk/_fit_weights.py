"""Weights of a sum of covariances, fitted on log weights to a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.optimize import minimize

from gsym.risk._gaussian import DenseGaussian
from gsym.risk._inverses import FEW, inverse_and_log_det, padded_inverses, root_and_log_det

# Weights are kept within these times the mean variance: the ridge bounds the condition.
FLOOR, CEILING = 1e-8, 1e2
# Of the projected gradient, in units of the loss per entry.
TOLERANCE = 1e-6
_STEPS, _RESTARTS = 500, 4
# A step of logarithms is at most so long; damping starts here, and ends the search beyond.
_LONGEST, _DAMPED, _STUCK = 3.0, 1e-3, 1e12
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


class Value(NamedTuple):
    """A loss at some weights.

    Attributes:
        loss: Per entry.
        gradient: ``[m]``.
        curvature: What stands in for the second derivatives ``[m, m]``, positive semidefinite;
            ``None`` where it is too dear.
    """

    loss: float
    gradient: NDArray
    curvature: NDArray | None = None


Loss = Callable[[NDArray], Value]


def likelihood(folds: Sequence[Fold]) -> Loss:
    """Minus the log density of what is seen of held-out signals, per entry, without constants.

    The curvature is the *average information*, or that which is expected where there are more
    signals than coordinates.

    Reference:
        Gilmour, Thompson and Cullis, Average information REML, 1995 (from memory).
    """
    entries = sum(int(seen.sum()) * len(errors) for fold in folds for seen, errors in fold.held)
    d, cases = folds[0].terms.shape[1], sum(len(fold.held) for fold in folds)
    if d <= FEW and cases > len(folds):
        return _of_many_patterns(folds, entries)

    def loss(weights: NDArray) -> Value:
        m = len(weights)
        value, gradient, curvature = 0.0, np.zeros(m), np.zeros((m, m))
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
                terms = fold.terms
                if whole:
                    G += part
                else:
                    G[np.ix_(o, o)] += part
                    terms = terms[:, o[:, None], o]
                if len(E) > len(o):
                    # As many rows as coordinates, with the squares that are expected.
                    Z = math.sqrt(len(E)) * root_and_log_det(inverse)[0].T
                V = (terms.reshape(-1, len(o)) @ Z.T).reshape(m, len(o), -1)
                curvature += V.reshape(m, -1) @ (inverse @ V).reshape(m, -1).T / 2
            gradient += fold.terms.reshape(m, -1) @ G.ravel()
        return Value(value / entries, gradient / entries, curvature / entries)

    return loss


def _of_many_patterns(folds: Sequence[Fold], entries: int) -> Loss:
    """The same for few coordinates: all patterns of all folds are inverted at once."""
    terms = np.stack([fold.terms for fold in folds])
    _, m, d, _ = terms.shape
    which = np.repeat(np.arange(len(folds)), [len(fold.held) for fold in folds])
    held = [case for fold in folds for case in fold.held]
    seen = np.stack([seen for seen, _ in held])
    count = np.array([len(errors) for _, errors in held])
    squares = np.stack([errors.T @ errors for _, errors in held])
    member = np.equal.outer(np.arange(len(folds)), which).astype(float)

    def loss(weights: NDArray) -> Value:
        Sigma = np.tensordot(weights, terms, (0, 1))
        inverse, log_det = padded_inverses(Sigma[which], seen)
        value = float(count @ log_det + np.vdot(inverse, squares)) / 2
        part = (count[:, None, None] * inverse - inverse @ squares @ inverse) / 2
        G = member @ part.reshape(len(part), -1)
        gradient = np.tensordot(G.reshape(-1, d, d), terms, ((0, 1, 2), (0, 2, 3)))
        W = inverse[:, None] @ terms[which]
        left = (count[:, None, None, None] * W).transpose(1, 0, 2, 3).reshape(m, -1)
        curvature = left @ W.transpose(1, 0, 3, 2).reshape(m, -1).T / 2
        return Value(value / entries, gradient / entries, curvature / entries)

    return loss


def _factor(A: NDArray) -> NDArray:
    """As many rows as columns, with the same squares and products of columns."""
    return np.asarray(np.linalg.qr(A, mode="r"))


def imputation(folds: Sequence[Fold], patterns: Sequence[NDArray]) -> Loss:
    """Squared error of the conditional mean of hidden entries, over their squares.

    The curvature is that of Gauss and Newton.

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

    def loss(weights: NDArray) -> Value:
        m = len(weights)
        value, gradient, curvature = 0.0, np.zeros(m), np.zeros((m, m))
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
                root, _ = root_and_log_det(Sigma[np.ix_(o, o)])
                A[:, o] = lapack.dpotrs(root, errors[:, o].T, lower=1)[0].T
                across = lapack.dpotrs(root, Sigma[np.ix_(o, u)], lower=1)[0]
                R = errors[:, u] - errors[:, o] @ across
                value += float((R**2).sum())
                B[:, o], B[:, u] = R @ across.T, -R
                # Only squares of A are asked for: as many rows as coordinates have the same ones.
                few = A if len(A) <= len(Sigma) else _factor(A)
                moved = (fold.terms.reshape(-1, len(Sigma)) @ few.T).reshape(m, len(Sigma), -1)
                change = (across.T @ moved[:, o] - moved[:, u]).reshape(m, -1)
                curvature += change @ change.T
            rows = left.reshape(-1, len(Sigma)), right.reshape(-1, len(Sigma))
            gradient += fold.terms.reshape(m, -1) @ (rows[0].T @ rows[1]).ravel()
        return Value(value / squares, 2 * gradient / squares, 2 * curvature / squares)

    return loss


def fit_weights(loss: Loss, start: NDArray, *, tolerance: float = TOLERANCE) -> Fitted:
    """Minimise a loss over weights between the floor and the ceiling, on logarithms.

    By scoring where the loss comes with a curvature, otherwise by L-BFGS. A weight near the floor
    hardly moves on a logarithmic scale. So the slope of the loss in the weight itself is looked at
    there; where it says that more would be better, the weight is raised and the search goes on.
    """
    theta = np.log(np.clip(start, FLOOR, CEILING))
    found, steps = loss(np.exp(theta)), 1
    search = lbfgs if found.curvature is None else scoring
    for _ in range(_RESTARTS):
        theta, taken = search(loss, theta, tolerance)
        weights = np.exp(theta)
        found = loss(weights)
        steps += taken + 1
        violation, worth_more = _violation(weights, found.gradient)
        if violation <= 10 * tolerance or not worth_more.any():
            break
        theta = np.where(worth_more, np.log(_SMALL * 10 * weights.sum()), theta)
    return Fitted(weights, found.loss, violation, steps)


def lbfgs(loss: Loss, theta: NDArray, tolerance: float) -> tuple[NDArray, int]:
    """Minimise a loss over logarithms of weights by L-BFGS.

    Returns:
        The logarithms, and the number of evaluations.
    """

    def on_logs(theta: NDArray) -> tuple[float, NDArray]:
        weights = np.exp(theta)
        found = loss(weights)
        return found.loss, found.gradient * weights

    found = minimize(
        on_logs,
        theta,
        jac=True,
        method="L-BFGS-B",
        bounds=[(math.log(FLOOR), math.log(CEILING))] * len(theta),
        options={"maxiter": _STEPS, "gtol": tolerance, "ftol": 1e-13, "maxcor": 20},
    )
    return found.x, int(found.nfev)


def scoring(loss: Loss, theta: NDArray, tolerance: float) -> tuple[NDArray, int]:
    """The same by Newton's method with the curvature of the loss, damped as far as it must be.

    Returns:
        The logarithms, and the number of evaluations.
    """
    low, high = math.log(FLOOR), math.log(CEILING)
    found, damping, taken = loss(np.exp(theta)), _DAMPED, 1
    while taken < _STEPS:
        weights = np.exp(theta)
        slope = found.gradient * weights
        free = ~((theta <= low) & (slope > 0) | (theta >= high) & (slope < 0))
        if not free.any() or np.abs(slope[free]).max() <= tolerance or damping > _STUCK:
            break
        assert found.curvature is not None
        H = (found.curvature * np.outer(weights, weights))[np.ix_(free, free)]
        own = np.diagonal(H)
        # The slope of a weight that goes to 0 bends its logarithm, too.
        H = H + np.diag(damping * (own + 1e-12 * own.max()) + np.maximum(slope[free], 0))
        moved = theta.copy()
        moved[free] -= np.clip(np.linalg.solve(H, slope[free]), -_LONGEST, _LONGEST)
        moved = np.clip(moved, low, high)
        there, taken = loss(np.exp(moved)), taken + 1
        if there.loss < found.loss:
            theta, found, damping = moved, there, max(damping / 10, 1e-9)
        else:
            damping *= 10
    return theta, taken


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
