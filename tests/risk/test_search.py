"""How weights of a covariance are searched, and signals with gaps: fast ways beside slow ones."""

import numpy as np
import pytest

from gsym import Partition, PermutationGroup, SymmetricCovariance
from gsym.risk import _em, _fit_weights
from gsym.risk._em import Completed
from gsym.risk._fit_weights import Fold, fit_weights, imputation, lbfgs, likelihood
from gsym.risk._gaussian import DenseGaussian
from gsym.risk._inverses import inverse_and_log_det, padded_inverses

CYCLE = PermutationGroup.from_cycles(6, [(0, 1, 2)])


def folds(d=6, m=3, held=12, gaps=False, seed=0):
    """Terms with the trace of a covariance, and signals of that: as those of a fit are."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(2):
        roots = rng.standard_normal((m, d, d + 2))
        terms = roots @ roots.transpose(0, 2, 1)
        Sigma = np.tensordot(rng.uniform(0.2, 1, m), terms, 1)
        errors = rng.multivariate_normal(np.zeros(d), Sigma, size=held)
        if gaps:
            seen = rng.uniform(size=(held, d)) > 0.3
            seen[:, 0] |= ~seen.any(1)
            cases = [(s, np.where(s, e, 0.0)[None]) for s, e in zip(seen, errors, strict=True)]
        else:
            cases = [(np.ones(d, dtype=bool), errors)]
        made.append(Fold(terms, cases))
    return made


@pytest.mark.parametrize("held", [4, 12])
def test_all_patterns_at_once_are_one_by_one(held, monkeypatch):
    cases, weights = folds(held=held, gaps=True), np.array([0.3, 0.02, 1.7])
    fast = likelihood(cases)(weights)
    monkeypatch.setattr(_fit_weights, "FEW", 0)
    slow = likelihood(cases)(weights)
    assert fast.loss == pytest.approx(slow.loss, rel=1e-12)
    np.testing.assert_allclose(fast.gradient, slow.gradient, rtol=1e-10)
    # The one takes squares that are expected, the other mixes them with those that are seen.
    assert fast.curvature.shape == slow.curvature.shape == (3, 3)


def test_singular_patterns_are_inverted_on_their_own_scale():
    """What hides the others must not decide how much is added to a singular covariance."""
    Sigma = np.full((4, 4), 1e-8) + np.diag([0.0, 0.0, 1e-8, 1e-8])
    seen = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
    found, log_det = padded_inverses(Sigma, seen)
    assert not found[2].any() and log_det[2] == 0
    for p in (0, 1, 3):
        o = np.ix_(seen[p], seen[p])
        inverse, own = inverse_and_log_det(Sigma[o])
        np.testing.assert_allclose(found[p][o], inverse, rtol=1e-9)
        assert log_det[p] == pytest.approx(own) and np.count_nonzero(found[p]) <= inverse.size


def second_derivatives(loss, weights):
    step = 1e-6 * np.eye(len(weights))
    rows = [(loss(weights + h).gradient - loss(weights - h).gradient) / 2e-6 for h in step]
    return np.array(rows)


def expected(cases, weights):
    """The information that a Gaussian of these weights is expected to have."""
    total, entries = np.zeros((len(weights), len(weights))), 0
    for fold in cases:
        for seen, errors in fold.held:
            terms = fold.terms[:, seen][:, :, seen]
            P = np.linalg.inv(np.tensordot(weights, terms, 1)) @ terms
            total += len(errors) * np.einsum("iab,jba->ij", P, P) / 2
            entries += errors[:, seen].size
    return total / entries


@pytest.mark.parametrize("gaps", [False, True])
def test_curvature_is_the_average_information(gaps, monkeypatch):
    monkeypatch.setattr(_fit_weights, "FEW", 0)
    cases, weights = folds(held=5, gaps=gaps), np.array([0.3, 0.2, 0.7])
    loss = likelihood(cases)
    average = (second_derivatives(loss, weights) + expected(cases, weights)) / 2
    np.testing.assert_allclose(loss(weights).curvature, average, rtol=1e-5, atol=1e-8)


def test_curvature_of_many_signals_is_expected(monkeypatch):
    weights = np.array([0.3, 0.2, 0.7])
    for cases in (folds(held=30), folds(held=5, gaps=True)):
        found = likelihood(cases)(weights).curvature
        np.testing.assert_allclose(found, expected(cases, weights), rtol=1e-9)


@pytest.mark.parametrize("held", [3, 12])
def test_curvature_of_imputation_is_that_of_gauss_and_newton(held):
    cases, weights = folds(held=held), np.array([0.3, 0.2, 0.7])
    patterns = [np.arange(6) % 3 > 0, np.arange(6) < 2]

    def gaps(weights):
        found = []
        for fold in cases:
            Sigma = np.tensordot(weights, fold.terms, 1)
            for o in patterns:
                B = Sigma[np.ix_(~o, o)] @ np.linalg.inv(Sigma[np.ix_(o, o)])
                found.append((fold.whole[:, ~o] - fold.whole[:, o] @ B.T).ravel())
        return np.concatenate(found)

    squares = sum((fold.whole[:, ~o] ** 2).sum() for fold in cases for o in patterns)
    step = 1e-6 * np.eye(3)
    J = np.stack([(gaps(weights + h) - gaps(weights - h)) / 2e-6 for h in step])
    found = imputation(cases, patterns)(weights).curvature
    np.testing.assert_allclose(found, 2 * J @ J.T / squares, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_scoring_ends_where_lbfgs_does_and_sooner(gaps, seed):
    loss = likelihood(folds(held=10, m=5, gaps=gaps, seed=seed))
    fast = fit_weights(loss, np.full(5, 0.2))
    slow = fit_weights(lambda w: loss(w)._replace(curvature=None), np.full(5, 0.2))
    assert fast.loss <= slow.loss + 1e-6
    assert max(fast.optimality, slow.optimality) < 1e-5
    assert fast.steps < 60
    np.testing.assert_allclose(fast.weights, slow.weights, atol=1e-2)


def test_of_imputation_too():
    patterns = [np.arange(6) % 3 > 0, np.arange(6) < 2, np.arange(6) != 3]
    loss = imputation(folds(held=40), patterns)
    fast = fit_weights(loss, np.full(3, 0.3))
    slow = fit_weights(lambda w: loss(w)._replace(curvature=None), np.full(3, 0.3))
    assert fast.loss <= slow.loss + 1e-6
    assert fast.steps < 60


@pytest.mark.parametrize("alike", [1, 6], ids=["each its own pattern", "few patterns"])
def test_completion_of_all_patterns_at_once(alike, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20 * alike, 6)) @ rng.standard_normal((6, 6))
    seen = rng.uniform(size=(20, 6)) > 0.4
    seen[:, 0] |= ~seen.any(1)
    seen = np.tile(seen, (alike, 1))
    data, gaussian = Completed(x, seen), DenseGaussian(np.cov(x.T))
    fast = data.expected(x.mean(0), gaussian)
    monkeypatch.setattr(_em, "FEW", 0)
    slow = data.expected(x.mean(0), gaussian)
    np.testing.assert_allclose(fast.filled, slow.filled, rtol=1e-9, atol=1e-10)
    for ours, theirs in zip(
        fast.covariance(np.arange(15)), slow.covariance(np.arange(15)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_fit_with_gaps_is_that_of_the_slow_way(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 1)) + 0.5 * rng.standard_normal((30, 6))
    seen = rng.uniform(size=x.shape) > 0.2
    levels = [Partition.singletons(6), CYCLE, PermutationGroup.symmetric(6)]

    def fit():
        return SymmetricCovariance(levels, objective="likelihood").fit(x, observed=seen)

    fast = fit()
    monkeypatch.setattr(_fit_weights, "FEW", 0)
    monkeypatch.setattr(_em, "FEW", 0)
    monkeypatch.setattr(_fit_weights, "scoring", lbfgs)
    slow = fit()
    np.testing.assert_allclose(fast.covariance_, slow.covariance_, atol=2e-3)
    assert fast.loss_ <= slow.loss_ + 1e-5
