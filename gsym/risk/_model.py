"""The fit of a covariance: its weights, its Gaussian, and what fills gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf

from gsym.errors import SignalError
from gsym.risk._em import Completed
from gsym.risk._fills import Combined, Fill, GaussianFill, combine, other_fills
from gsym.risk._fit_weights import Fitted, fit_weights, imputation
from gsym.risk._gaps import covering
from gsym.risk._gaussian import DenseGaussian
from gsym.risk._problem import Problem, Rows, make_problem
from gsym.risk._split_gaussian import SplitGaussian
from gsym.risk._terms import Terms, stack

OBJECTIVES = ("auto", "likelihood", "imputation")
# Rounds of weights and completion for signals with gaps, steps of a completion, and how little
# the last one moves.
_ROUNDS, _STEPS, _FOLD_STEPS, _SETTLED = 2, 15, 4, 1e-3
# So many held-out signals without gaps judge fills.
_FEWEST_WHOLE = 8
# Up to so many coordinates, weights by imputation error and other fills are worth their time.
_MOST_JUDGED, _MOST_COMBINED = 1024, 4096


@dataclass(frozen=True)
class Model:
    """What a fit leaves.

    Attributes:
        terms: What is added up.
        shape: Nodes and channels.
        rows: Rows to train on and held out, by fold.
        data: The signals.
        weights: Of every term, by objective.
        fitted: How the weights of the density came out.
        gaussian: The density.
        fill: What fills gaps.
    """

    terms: Terms
    shape: tuple[int, int]
    rows: Rows
    data: Completed
    weights: dict[str, NDArray]
    fitted: Fitted
    gaussian: DenseGaussian | SplitGaussian
    fill: GaussianFill | Combined

    @property
    def mean(self) -> NDArray:
        """Mean of every coordinate, ``[d]``."""
        return np.asarray(self.data.filled.mean(0))

    def taught(self, filled: NDArray, seen: NDArray) -> Model:
        """The same with further signals that have gaps, none of which is held out.

        Args:
            filled: Signals ``[h, d]``, anything where not seen.
            seen: Which entries are, ``[h, d]``.
        """
        s = len(self.data.filled)
        mean, gaussian = self.mean, self.gaussian
        if not isinstance(gaussian, DenseGaussian):
            gaussian = DenseGaussian(gaussian.dense())
        both = Completed(
            np.vstack([self.data.filled, filled]), np.vstack([self.data.seen, seen])
        ).expected(mean, gaussian)
        added = np.arange(s, s + len(filled))
        rows = [(np.append(train, added), held) for train, held in self.rows]
        start = self.weights["likelihood"]
        data, problem, fitted = _fit_density(self.terms, both, self.shape, rows, False, start)
        weights = {**self.weights, "likelihood": fitted.weights}
        ours = {key: GaussianFill(problem.finish(w)) for key, w in weights.items()}
        fill = self.fill
        if isinstance(fill, Combined):
            fill = replace(fill, fills={**fill.fills, **ours})
        else:
            fill = ours[list(weights)[-1]]
        return replace(
            self, data=data, weights=weights, gaussian=ours["likelihood"].gaussian, fill=fill
        )


def fit_model(
    terms: Terms,
    data: Completed,
    shape: tuple[int, int],
    rows: Rows,
    objective: str,
    patterns: Sequence[NDArray],
) -> Model:
    """Fit weights by an objective, and with ``"auto"`` what fills gaps.

    Args:
        terms: What to add up.
        data: Signals, whose gaps hold anything.
        shape: Nodes and channels.
        rows: Rows to train on and held out, by fold.
        objective: One of :data:`OBJECTIVES`.
        patterns: What is seen of signals to be filled, ``[d]`` each; needed but for likelihood.

    Raises:
        SignalError: No signals without gaps, which imputation error needs.
    """
    d = data.filled.shape[1]
    if not data.seen.all():
        data = _started(data)
    split = False if objective == "imputation" else None
    data, problem, fitted = _fit_density(terms, data, shape, rows, split, None)
    weights = {"likelihood": fitted.weights}
    whole = int(data.seen.all(1).sum())
    if objective == "imputation" and whole < _FEWEST_WHOLE:
        raise SignalError(
            f"imputation error is judged on signals without gaps, {_FEWEST_WHOLE} at least; got "
            f"{whole}; use objective='likelihood'"
        )
    judged = objective == "auto" and whole >= _FEWEST_WHOLE and d <= _MOST_COMBINED
    judged = judged and len(patterns) > 0
    if objective == "imputation" or (judged and d <= _MOST_JUDGED):
        dense = problem
        if not problem.dense:
            dense = make_problem(terms, data, shape, rows, split=False)
        # From the likelihood's weights, the least of them raised: no slope is too flat.
        near = np.maximum(fitted.weights, 1e-3 * fitted.weights.sum())
        filled = fit_weights(imputation(dense.dense, patterns), near)
        weights["imputation"] = filled.weights
        if objective == "imputation":
            fitted = filled
    ours = {key: GaussianFill(problem.finish(w)) for key, w in weights.items()}
    base = "imputation" if objective == "imputation" else "likelihood"
    fill: GaussianFill | Combined = ours[base]
    if objective == "imputation" or judged:
        alone = objective == "imputation"
        own = {base: weights[base]} if alone else weights
        held = _held_out(problem, data, rows, own, alone=alone)
        found = combine(held, patterns, covering(patterns, shape), base, terms.alike(shape))
        every: dict[str, Fill] = dict(ours)
        if alone:
            # Imputation error says nothing of the scale.
            weights[base] = found.scale * weights[base]
            every = {base: GaussianFill(ours[base].gaussian.scaled(found.scale))}
            found = replace(found, factors=found.factors / found.scale)
        else:
            every.update(other_fills(data.filled - data.filled.mean(0)))
        used = {key: every[key] for key in (*found.shares, base)}
        fill = Combined(used, found.shares, base, found.factors)
    return Model(terms, shape, rows, data, weights, fitted, fill.gaussian, fill)


def _held_out(
    problem: Problem,
    data: Completed,
    rows: Rows,
    weights: dict[str, NDArray],
    *,
    alone: bool = False,
) -> list[tuple[dict[str, Fill], NDArray]]:
    """Fills of the signals that each fold trains on, and whole signals that it holds out."""
    found = []
    for fold, (train, held) in zip(problem.folds, rows, strict=True):
        x = data.filled[train]
        mean = x.mean(0)
        fills: dict[str, Fill] = {
            name: GaussianFill(fold.gaussian(w, x)) for name, w in weights.items()
        }
        if not alone:
            fills.update(other_fills(x - mean))
        whole = held[data.seen[held].all(1)]
        if len(whole):
            found.append((fills, data.filled[whole] - mean))
    return found


def _started(data: Completed) -> Completed:
    """Signals whose gaps are filled by a Gaussian of shrunk covariance."""
    errors = data.centred()
    mean = (data.filled - errors)[data.seen.argmax(0), np.arange(errors.shape[1])]
    Sigma, _ = ledoit_wolf(errors, assume_centered=True)
    Sigma = Sigma + 1e-3 * np.trace(Sigma) / len(Sigma) * np.eye(len(Sigma))
    return Completed(errors + mean, data.seen).expected(mean, DenseGaussian(Sigma))


def _fit_density(
    terms: Terms,
    data: Completed,
    shape: tuple[int, int],
    rows: Rows,
    split: bool | None,
    start: NDArray | None,
) -> tuple[Completed, Problem, Fitted]:
    """Weights by likelihood; with gaps in turn with their completion."""
    m = len(terms.names) + 1
    start = np.full(m, 1 / m) if start is None else start
    problem = make_problem(terms, data, shape, rows, split=split)
    fitted = fit_weights(problem.likelihood, start)
    every = np.arange(len(data.filled))
    own = [data] * len(rows)
    for _ in range(0 if data.uncertain is None else _ROUNDS):
        # Every fold completes by what it trains on: a completion by all would know what is held.
        own = [
            _settled(terms, before, shape, fitted.weights, train, _FOLD_STEPS)
            for before, (train, _) in zip(own, rows, strict=True)
        ]
        data = _settled(terms, data, shape, fitted.weights, every, _STEPS)
        problem = make_problem(terms, data, shape, rows, split=False, completed=own)
        fitted = fit_weights(problem.likelihood, fitted.weights)
    return data, problem, fitted


def _settled(
    terms: Terms,
    data: Completed,
    shape: tuple[int, int],
    weights: NDArray,
    rows: NDArray,
    steps: int,
) -> Completed:
    """Gaps filled by the Gaussian that some rows make, with weights as they are: EM."""
    made = terms.of(data.filled[rows].reshape(len(rows), *shape))
    # Every term has the trace of S. A scale other than 1 allows for new signals, and would be
    # applied again at every step.
    weights = weights / weights.sum()
    for _ in range(steps):
        mean, S = data.covariance(rows)
        gaussian = DenseGaussian(np.tensordot(weights, stack(made, S), 1))
        new = data.expected(mean, gaussian)
        moved = float(((new.filled - data.filled) ** 2).sum())
        data = new
        if moved <= _SETTLED**2 * float(((data.filled - mean) ** 2).sum()):
            break
    return data
