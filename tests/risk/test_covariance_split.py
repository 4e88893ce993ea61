"""The split form of a covariance: the dense one, and arithmetic with 50 digits, as oracles."""

import tracemalloc

import mpmath
import numpy as np
import pytest
import torch

from gsym import Partition, SymmetricCovariance
from gsym.risk import _problem, _split, _split_gaussian, covariance, dependence
from gsym.risk._em import Completed
from gsym.risk._folds import make_folds
from gsym.risk._gaussian import DenseGaussian
from gsym.risk._problem import make_problem
from gsym.risk._split_gaussian import SplitGaussian
from gsym.risk._terms import read_terms

N, S = 24, 14
PATCHES = {w: Partition.grid(1, N, (1, w)) for w in (3, 4, 6)}
NESTED = [Partition.singletons(N), PATCHES[3], PATCHES[6], Partition.single(N)]
CROSSED = [PATCHES[4], PATCHES[6], Partition.singletons(N)]
UNEVEN = [Partition.from_labels([0] * 5 + [1] + [2] * 18), Partition.single(N)]
LEVELS = {"nested": NESTED, "crossed": CROSSED, "without a trivial level": UNEVEN, "auto": "auto"}


def signals(rows=S, n=N, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, n)) @ rng.standard_normal((n, n)) + 5)[:, :, None]


def both(levels, x):
    n = x.shape[1]
    terms = read_terms(levels, (), None, None, None, n, 1)
    flat = x[:, :, 0]
    rows = make_folds(flat - flat.mean(0), 1)
    data = Completed(flat, np.ones(flat.shape, dtype=bool))
    return [make_problem(terms, data, (n, 1), rows, split=split) for split in (True, False)]


@pytest.mark.parametrize("name", LEVELS)
def test_loss_and_gradient_are_those_of_the_dense_form(name):
    split, dense = both(LEVELS[name], signals())
    assert not split.dense and dense.dense
    m = dense.dense[0].terms.shape[0]
    weights = np.random.default_rng(1).uniform(0.05, 0.5, m)
    value, slope, _ = split.likelihood(weights)
    expected, dense_slope, _ = dense.likelihood(weights)
    assert value == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(slope, dense_slope, rtol=1e-9)


@pytest.mark.parametrize("name", LEVELS)
def test_gaussian_is_that_of_the_dense_form(name):
    split, dense = both(LEVELS[name], signals())
    weights = np.random.default_rng(1).uniform(0.05, 0.5, dense.dense[0].terms.shape[0])
    ours, theirs = split.finish(weights), dense.finish(weights)
    assert isinstance(ours, SplitGaussian) and isinstance(theirs, DenseGaussian)
    rng = np.random.default_rng(2)
    rows, seen = rng.standard_normal((3, N)), rng.uniform(size=N) > 0.4
    o, u = np.flatnonzero(seen), np.flatnonzero(~seen)
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(ours.dense(), theirs.dense(), **close)
    np.testing.assert_allclose(ours.diagonal(), theirs.diagonal(), **close)
    np.testing.assert_allclose(ours.squares(rows), theirs.squares(rows), **close)
    np.testing.assert_allclose(ours.log_density(rows), theirs.log_density(rows), **close)
    np.testing.assert_allclose(ours.scaled(2).dense(), 2 * theirs.dense(), **close)
    np.testing.assert_allclose(ours.restricted(o).dense(), theirs.restricted(o).dense(), **close)
    for a, b in zip(
        ours.conditional(rows[:, o], o, u), theirs.conditional(rows[:, o], o, u), strict=True
    ):
        np.testing.assert_allclose(a, b, **close)
    drawn = ours.sample(40000, rng)
    spread = np.sqrt(np.outer(theirs.diagonal(), theirs.diagonal()))
    assert (np.abs(np.cov(drawn.T) - theirs.dense()) < 0.04 * spread).all()


def test_gradient_at_a_tiny_ridge_is_that_of_50_digits():
    n, s = 8, 6
    x = signals(s, n)
    levels = [Partition.singletons(n), Partition.grid(1, n, (1, 4)), Partition.single(n)]
    split, dense = both(levels, x)
    # Little of the averages: the ridge alone bounds the condition.
    weights = np.array([1.0, 1e-8, 1e-8, 1e-8])
    slope = split.likelihood(weights).gradient
    with mpmath.workdps(50):
        total, exact = mpmath.mpf(0), [mpmath.mpf(0)] * 4
        terms = read_terms(levels, (), None, None, None, n, 1)
        for train, held in make_folds(x[:, :, 0] - x[:, :, 0].mean(0), 1):
            T = exact_terms(x[:, :, 0], train, terms)
            Sigma = sum((w * t for w, t in zip(map(mpmath.mpf, weights), T, strict=True)),
                        mpmath.zeros(n))  # fmt: skip
            inverse = Sigma**-1
            mean = [mpmath.fsum(x[i, j, 0] for i in train) / len(train) for j in range(n)]
            E = mpmath.matrix([[mpmath.mpf(x[i, j, 0]) - mean[j] for j in range(n)] for i in held])
            Z = inverse * E.T
            G = (len(held) * inverse - Z * Z.T) / 2
            exact = [
                g + mpmath.fsum(G[i, j] * t[i, j] for i in range(n) for j in range(n))
                for g, t in zip(exact, T, strict=True)
            ]
            total += len(held) * n
        exact = np.array([float(g / total) for g in exact])
    np.testing.assert_allclose(slope, exact, rtol=1e-7)
    # The dense form is no oracle here, which is why this test has another one.
    assert np.abs(dense.likelihood(weights)[1] / exact - 1).max() > 1e-7


def exact_terms(x, train, terms):
    """Terms of the sample covariance as matrices of 50 digits."""
    n = x.shape[1]
    mean = [mpmath.fsum(x[i, j] for i in train) / len(train) for j in range(n)]
    E = mpmath.matrix([[mpmath.mpf(x[i, j]) - mean[j] for j in range(n)] for i in train])
    cov = E.T * E / len(train)
    made = []
    for term in terms.fixed:
        labels, out = term.group.partition.labels.tolist(), mpmath.zeros(n)
        for i in range(n):
            for j in range(n):
                alike = [
                    cov[a, b]
                    for a in range(n)
                    for b in range(n)
                    if labels[a] == labels[i] and labels[b] == labels[j] and (a == b) == (i == j)
                ]
                out[i, j] = mpmath.fsum(alike) / len(alike)
        made.append(out)
    tau = mpmath.fsum(cov[i, i] for i in range(n)) / n
    return [*made, tau * mpmath.eye(n)]


def test_the_faster_form_is_taken(monkeypatch):
    x = signals(20, 120)[:, :, 0]
    levels = [Partition.singletons(120), Partition.grid(1, 120, (1, 8)), Partition.single(120)]
    fits = {}
    for crossover in (0.25, 0.0):
        monkeypatch.setattr(_problem, "_CROSSOVER", crossover)
        fits[crossover] = SymmetricCovariance(levels, objective="likelihood").fit(x)
    assert isinstance(fits[0.25]._model.gaussian, SplitGaussian)
    assert isinstance(fits[0.0]._model.gaussian, DenseGaussian)
    seen = np.arange(120) % 3 > 0
    for split, dense in zip(*(fit.conditional(x[:2], seen) for fit in fits.values()), strict=True):
        np.testing.assert_allclose(split, dense, rtol=1e-4, atol=1e-4)


def test_many_nodes_make_no_square():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((12, 8)), 2500, axis=1)
    x += rng.standard_normal(x.shape)
    labels = torch.arange(20000) // 2500
    cov = SymmetricCovariance(
        [Partition.from_labels(labels), Partition.single(20000)], objective="likelihood"
    ).fit(x[1:])
    seen = rng.uniform(size=20000) > 0.5
    filled, variance = cov.conditional(x[:1], seen)
    error = (filled - x[:1])[:, ~seen]
    assert abs((error**2).mean() / variance[:, ~seen].mean() - 1) < 0.15
    with pytest.raises(ValueError, match="coarser clusters"):
        SymmetricCovariance([Partition.singletons(20000)], kernels=(), objective="imputation").fit(
            x
        )


def still_signals():
    """Signals of which some nodes hardly move."""
    x = signals()
    x[:, [2, 3, 11]] = 5 + 1e-3 * x[:, [2, 3, 11]]
    x[:, 17] = 5.0
    return x


@pytest.mark.parametrize("name", LEVELS)
def test_still_nodes_have_the_same_least_variance(name):
    # They were dense before: of 100 images of clothes, some pixels of the border are black.
    split, dense = both(LEVELS[name], still_signals())
    weights = np.random.default_rng(1).uniform(0.05, 0.5, dense.dense[0].terms.shape[0])
    value, slope, _ = split.likelihood(weights)
    expected, dense_slope, _ = dense.likelihood(weights)
    assert value == pytest.approx(expected, rel=1e-8)
    np.testing.assert_allclose(slope, dense_slope, rtol=1e-8)
    ours, theirs = split.finish(weights).dense(), dense.finish(weights).dense()
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_blocks_of_nodes_change_nothing(monkeypatch):
    x = signals(S, N)
    whole, _ = both(NESTED, x)
    monkeypatch.setattr(_split, "BLOCK", 2 * S)
    monkeypatch.setattr(_split_gaussian, "BLOCK", 5 * S)
    blocks, _ = both(NESTED, x)
    weights = np.random.default_rng(1).uniform(0.05, 0.5, len(NESTED) + 1)
    for a, b in zip(blocks.likelihood(weights)[:2], whole.likelihood(weights)[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    rows, seen = normal_rows(), np.arange(N) % 3 > 0
    o, u = np.flatnonzero(seen), np.flatnonzero(~seen)
    ours = blocks.finish(weights)
    theirs = DenseGaussian(whole.finish(weights).dense())
    np.testing.assert_allclose(ours.diagonal(), theirs.diagonal(), rtol=1e-9)
    np.testing.assert_allclose(ours.log_density(rows), theirs.log_density(rows), rtol=1e-9)
    for a, b in zip(
        ours.conditional(rows[:, o], o, u), theirs.conditional(rows[:, o], o, u), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


def normal_rows():
    return np.random.default_rng(2).standard_normal((3, N))


def test_folds_share_the_products_of_signals():
    split, _ = both(NESTED, signals())
    assert len({id(fold.products) for fold in split.folds}) == 1
    # A chain from signals is made anew in every fold, and its products with it.
    split, _ = both("auto", signals())
    assert len({id(fold.products) for fold in split.folds}) == len(split.folds)


def test_a_fit_of_many_nodes_copies_no_signals(monkeypatch):
    for room in (_split, _split_gaussian):
        monkeypatch.setattr(room, "BLOCK", 2**16)
    monkeypatch.setattr(dependence, "_MOST_AT_ONCE", 2**10)
    monkeypatch.setattr(covariance, "_MOST_COPIED", 0)
    n, s = 60000, 60
    rng = np.random.default_rng(0)
    x = rng.standard_normal((s, n)) + rng.standard_normal((s, 3)) @ rng.standard_normal((3, n))
    levels = [Partition.singletons(n), Partition.from_labels(torch.arange(n) % 8)]
    tracemalloc.start()
    try:
        cov = SymmetricCovariance(levels, objective="likelihood").fit(x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cov.weights_["trivial"] > 1e-3
    # Labels and orders of nodes, and a block of them.
    assert peak < 0.5 * x.nbytes
