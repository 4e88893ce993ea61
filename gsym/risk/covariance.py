"""SymmetricCovariance: how much of each symmetry a covariance has, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from gsym._validate import warn
from gsym.errors import SignalError
from gsym.risk._folds import make_folds
from gsym.risk._gaps import by_pattern, read_observed, read_patterns
from gsym.risk._mixture import fit_weights, imputation, scale_of
from gsym.risk._problem import make_problem
from gsym.risk._terms import GroupTerm, Terms, read_terms
from gsym.risk._weights import Weights

_FEWEST = 4


class SymmetricCovariance(BaseEstimator):
    r"""Covariance as a weighted sum of its averages over groups, of kernels, and of a ridge.

    .. math:: \Sigma = \sum_l w_l \Pi_l(S) + \sum_j v_j K_j + r \tau I, \quad w, v, r \ge 0

    S is the sample covariance, :math:`\Pi_l` the mean of :math:`P S P^T` over the group of level
    l, :math:`K_j` kernels of the nodes with the trace of S, :math:`\tau` the mean variance. One
    level is the group-averaged covariance of Shah and Chandrasekaran; the trivial group and S_n
    with a ridge hold the family of Ledoit and Wolf. Weights say *how much of this data is
    explained by which symmetry*. They are chosen on held-out signals: by predictive likelihood,
    or by the error of filling in hidden entries.

    Follows scikit-learn's covariance estimators. Samples are signals on n nodes, ``[s, n]`` or
    with channels ``[s, n, c]``; covariances are of the ``n c`` coordinates, channels innermost.

    Args:
        levels: A :class:`gsym.Hierarchy` (of many levels, 7 are taken), or groups, partitions and
            pairs (group, :class:`gsym.Representation`) in a list. ``"auto"``: the trivial group,
            S_n, and a chain of up to five partitions by Ward's clustering of the signals, made
            anew in every fold.
        kernels: Positive semidefinite matrices ``[n, n]`` as further terms.
        positions: Places of the nodes ``[n, d]``: adds Gaussian kernels of 0.15 and 0.5 times the
            median distance, and the chain sees positions, too.
        edge_index: Graph, int64 ``[2, e]`` or what :func:`gsym.as_graph` reads: adds diffusion
            along it, of time 1 and 8.
        edge_weight: Weights ``[e]``; 1 where ``None``.
        objective: ``"likelihood"``, or ``"imputation"``: squared error of hidden entries, with
            a scale at which standardised errors are 1 on average.
        patterns: How entries to be filled are missing: a share of them, missing at random, or
            masks of what is observed, boolean ``[p, n]``, of which 16 are used.
        block: Consecutive signals that depend on each other; ``"auto"`` tests for that. Folds of
            dependent signals are stretches of time.
        seed: Seeds the patterns that are drawn.

    Attributes:
        weights_: By name of the term; prints as a line. The ridge is the last.
        covariance_: ``[n c, n c]``.
        location_: Means, ``[n]`` or ``[n, c]``.
        precision_: Inverse of the covariance.
        loss_: Held-out loss per entry of the objective.
        optimality_: Largest violation of the conditions of a minimum, per entry.
        n_features_in_: Number of nodes.

    Symmetry:
        Relabelling nodes, levels and kernels alike relabels the result; a common unit scales it.

    Raises:
        SignalError: Fewer than four signals, more levels than signals, NaN, signals that never
            vary, and what :mod:`parameters <gsym.risk._terms>` cannot be.
        GroupError: Levels on other nodes, or of other channels.

    Cost:
        Every step ``O(d^3 + m d^2)`` by fold, for ``d = n c`` and m terms. By likelihood, with one
        channel, clusters without swaps and no kernels: ``O(k s^2 + k^3 + s^3)`` for the k clusters
        of the finest level but the trivial one, and ``O(n s^2)`` once. This form is taken where it
        is faster, and then nothing is n x n but ``covariance_``, if you ask for it.

    Example:
        >>> from gsym import PermutationGroup
        >>> rng = np.random.default_rng(0)
        >>> common = rng.standard_normal((60, 1))
        >>> x = common + 0.5 * rng.standard_normal((60, 6))
        >>> ends = [PermutationGroup.trivial(6), PermutationGroup.symmetric(6)]
        >>> cov = SymmetricCovariance(ends).fit(x)
        >>> max(cov.weights_, key=cov.weights_.get)
        'S_6'
        >>> seen = np.array([True, True, True, True, False, False])
        >>> mean, variance = cov.conditional(x[:1], seen)
        >>> bool(abs(mean[0, 5] - common[0, 0]) < 2 * variance[0, 5] ** 0.5)
        True

    Reference:
        Shah and Chandrasekaran, Group symmetry and covariance regularization, 2012; Ledoit and
        Wolf 2004. The sum along a chain and how its weights are chosen are ours.
    """

    def __init__(
        self,
        levels: Any = "auto",
        *,
        kernels: Iterable[Any] = (),
        positions: Any = None,
        edge_index: Any = None,
        edge_weight: Any = None,
        objective: Literal["likelihood", "imputation"] = "likelihood",
        patterns: Any = None,
        block: int | Literal["auto"] = "auto",
        seed: int = 0,
    ) -> None:
        self.levels = levels
        self.kernels = kernels
        self.positions = positions
        self.edge_index = edge_index
        self.edge_weight = edge_weight
        self.objective = objective
        self.patterns = patterns
        self.block = block
        self.seed = seed

    def fit(self, X: Any, y: Any = None, *, groups: Any = None) -> SymmetricCovariance:
        """Estimate the weights and the covariance.

        Args:
            X: Signals ``[s, n]`` or ``[s, n, c]``.
            y: Ignored.
            groups: Trial or subject of each signal, ``[s]``: folds keep them whole.
        """
        x = self._signals(X, reset=True)
        s, n, c = x.shape
        flat = x.reshape(s, -1)
        mean = flat.mean(0)
        self._check_varies(flat - mean)
        terms = read_terms(
            self.levels, self.kernels, self.positions, self.edge_index, self.edge_weight, n, c
        )
        _check_levels(terms, s)
        whole = self.objective == "likelihood"
        problem = make_problem(
            terms, x, make_folds(flat - mean, self.block, groups), split=None if whole else False
        )
        start = np.full(len(terms.names) + 1, 1 / (len(terms.names) + 1))
        fitted = fit_weights(problem.likelihood, start)
        scale = 1.0
        if self.objective == "imputation":
            patterns = read_patterns(self.patterns, n, c, self.seed)
            # From the likelihood's weights, the least of them raised: no slope is too flat.
            near = np.maximum(fitted.weights, 1e-3 * fitted.weights.sum())
            fitted = fit_weights(imputation(problem.folds, patterns), near)
            scale = scale_of(fitted.weights, problem.folds, patterns)
        elif not whole:
            raise ValueError(
                f'objective must be "likelihood" or "imputation"; got {self.objective!r}'
            )
        weights = scale * fitted.weights
        self.weights_ = Weights(zip((*terms.names, "ridge"), weights.tolist(), strict=True))
        self.loss_, self.optimality_ = fitted.loss, fitted.optimality
        self._gaussian = problem.finish(weights)
        self.location_ = mean.reshape(n, c) if np.ndim(X) == 3 else mean
        return self

    @property
    def covariance_(self) -> NDArray:
        """The covariance, ``[n c, n c]``."""
        check_is_fitted(self, "weights_")
        return self._gaussian.dense()

    @property
    def precision_(self) -> NDArray:
        """The inverse of the covariance."""
        return np.linalg.inv(self.covariance_)

    def get_precision(self) -> NDArray:
        """The inverse of the covariance, ``[n c, n c]``."""
        return self.precision_

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of signals."""
        return float(self.log_prob(X).mean())

    def error_norm(
        self, comp_cov: Any, norm: str = "frobenius", scaling: bool = True, squared: bool = True
    ) -> float:
        """Distance to another covariance, as in scikit-learn.

        Args:
            comp_cov: The other, ``[n c, n c]``.
            norm: ``"frobenius"`` or ``"spectral"``.
            scaling: Divide the square by the number of coordinates.
            squared: Return the square.
        """
        error = np.asarray(comp_cov) - self.covariance_
        if norm == "frobenius":
            square = float((error**2).sum())
        elif norm == "spectral":
            square = float(np.linalg.norm(error, 2)) ** 2
        else:
            raise ValueError(f'norm must be "frobenius" or "spectral"; got {norm!r}')
        square /= len(error) if scaling else 1
        return square if squared else math.sqrt(square)

    def mahalanobis(self, X: Any) -> NDArray:
        """Squared Mahalanobis distances of signals, ``[s]``."""
        check_is_fitted(self, "weights_")
        return self._gaussian.squares(self._errors(X))

    def log_prob(self, X: Any, observed: Any = None) -> NDArray:
        """Log density of what is observed of each signal, ``[s]``.

        Args:
            X: Signals.
            observed: As in :meth:`conditional`; all by default.
        """
        errors, seen = self._with_gaps(X, observed)
        out = np.empty(len(errors))
        for rows, pattern in by_pattern(seen):
            kept = np.flatnonzero(pattern)
            part = self._gaussian.restricted(kept)
            out[rows] = part.log_density(errors[np.ix_(rows, kept)])
        return out

    def anomaly_score(self, X: Any, observed: Any = None) -> NDArray:
        """How unusual each signal is, ``[s]``: squared Mahalanobis distance per entry observed.

        About 1 for signals like those of the fit, whichever entries are observed.
        """
        errors, seen = self._with_gaps(X, observed)
        out = np.empty(len(errors))
        for rows, pattern in by_pattern(seen):
            kept = np.flatnonzero(pattern)
            part = self._gaussian.restricted(kept)
            out[rows] = part.squares(errors[np.ix_(rows, kept)]) / len(kept)
        return out

    def conditional(self, X: Any, observed: Any) -> tuple[NDArray, NDArray]:
        """Mean and variance of every entry, given those that are observed.

        Args:
            X: Signals ``[s, n]`` or ``[s, n, c]``; what is not observed is not read and may be NaN.
            observed: Which entries are, boolean, shaped as X, as one signal, or ``[s, n]`` for
                all channels of a node.

        Returns:
            Both shaped as X. What is observed is returned as it came, with variance 0.

        Raises:
            SignalError: A mask of another shape, a signal of which nothing is observed, NaN among
                what is.

        Cost:
            One factorisation for each distinct pattern of what is observed.
        """
        errors, seen = self._with_gaps(X, observed)
        mean, variance = errors.copy(), np.zeros_like(errors)
        for rows, pattern in by_pattern(seen):
            o, u = np.flatnonzero(pattern), np.flatnonzero(~pattern)
            if len(u):
                filled = self._gaussian.conditional(errors[np.ix_(rows, o)], o, u)
                mean[np.ix_(rows, u)], variance[np.ix_(rows, u)] = filled
        mean += self.location_.ravel()
        given = np.asarray(X.detach().cpu() if isinstance(X, Tensor) else X, dtype=np.float64)
        mean = np.where(seen, given.reshape(mean.shape), mean)
        return mean.reshape(given.shape), variance.reshape(given.shape)

    def impute(self, X: Any, observed: Any) -> NDArray:
        """Signals with the entries that are not observed filled in by their conditional mean."""
        return self.conditional(X, observed)[0]

    def sample(self, n_samples: int = 1, random_state: int | None = None) -> NDArray:
        """Random signals of the fitted Gaussian, ``[n_samples, n]`` or ``[n_samples, n, c]``."""
        check_is_fitted(self, "weights_")
        drawn = self._gaussian.sample(n_samples, np.random.default_rng(random_state))
        return (drawn + self.location_.ravel()).reshape(n_samples, *self.location_.shape)

    def _signals(self, X: Any, *, reset: bool = False) -> NDArray:
        """Signals checked, ``[s, n, c]``."""
        X = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
        x = validate_data(
            self,
            X,
            reset=reset,
            allow_nd=True,
            dtype=np.float64,
            ensure_min_samples=_FEWEST if reset else 1,
        )
        if x.ndim > 3:
            raise SignalError(f"signals must be [s, n] or [s, n, c]; got {list(x.shape)}")
        if not reset and x.shape[1:] != self.location_.shape:
            raise SignalError(
                f"signals must be [s, {', '.join(map(str, self.location_.shape))}], as those of "
                f"the fit; got {list(x.shape)}"
            )
        return x[:, :, None] if x.ndim == 2 else x

    def _errors(self, X: Any) -> NDArray:
        x = self._signals(X)
        return x.reshape(len(x), -1) - self.location_.ravel()

    def _with_gaps(self, X: Any, observed: Any) -> tuple[NDArray, NDArray]:
        """Signals less their mean ``[s, d]``, 0 where not observed, and which entries are."""
        check_is_fitted(self, "weights_")
        X = X.detach().cpu().numpy() if isinstance(X, Tensor) else np.asarray(X)
        seen = read_observed(X, observed)
        errors = self._errors(np.where(seen, X, 0.0))
        seen = seen.reshape(errors.shape)
        return np.where(seen, errors, 0.0), seen

    def _check_varies(self, errors: NDArray) -> None:
        size = np.abs(errors).max(0)
        if size.max() == 0:
            raise SignalError("the signals never vary: there is no covariance to estimate")
        still = np.flatnonzero(size <= 1e-12 * size.max())
        if still.size:
            first = ", ".join(map(str, still[:5])) + (", ..." if still.size > 5 else "")
            warn(
                f"{still.size} of {size.size} coordinates never vary ({first}); their variance "
                "comes from the levels that pool them with others, and from the ridge"
            )


def _check_levels(terms: Terms, signals: int) -> None:
    levels = [term for term in terms.fixed if isinstance(term, GroupTerm)]
    if len(levels) > signals:
        raise SignalError(
            f"{len(levels)} levels are more than {signals} signals can tell apart; give fewer"
        )
    parts = [getattr(term.group, "partition", None) for term in levels]
    chain = sorted((p for p in parts if p is not None), key=lambda p: -p.num_clusters)
    for fine, coarse in pairwise(chain):
        if not fine.refines(coarse):
            warn(
                f"levels are not nested: the partition into {fine.num_clusters} clusters does not "
                f"refine that into {coarse.num_clusters}; weights still have a meaning, but no "
                "level contains another"
            )
            return
