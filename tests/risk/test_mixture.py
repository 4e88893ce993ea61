"""Mixtures of ridge fits: residuals and weights against refits and brute force."""

import numpy as np
import pytest
from oracles.left_out import windows
from risk.test_masked import GROUPS, SHAPES
from scipy.optimize import minimize

from gsym import ClusterGroup, Partition, PermutationGroup, Representation
from gsym.risk import orbit_ridge
from gsym.risk import ridge as module
from gsym.risk.mixture import RidgeMixture, simplex_weights
from gsym.risk.ridge import check_reps, commutant_ridge, fit_group
from gsym.risk.samples import Samples
from gsym_bench.studies.joint import JointRidge, projections

CHAIN = [Partition.singletons(12), Partition([i // 3 for i in range(12)]), Partition.single(12)]


def draw(signals, c_in, c_out, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((signals, 6, c_in)) + rng.standard_normal((6, c_in))
    return x, rng.standard_normal((signals, 6, c_out)) + x[..., :1]


def made_by(level, signals, seed=0, noise=0.5):
    """Targets by a random map that commutes with a level of the chain, and with no coarser one."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((signals, 12))
    W = ClusterGroup(level).project(_tensor(rng.standard_normal((12, 12)))).numpy()
    return x, x @ W.T + noise * rng.standard_normal((signals, 12))


def _tensor(values):
    import torch

    return torch.from_numpy(values)


def refitted(x, y, group, block, gap, **options):
    """Residuals of every block under a fit without it and the gap."""
    out = np.zeros(y.shape)
    for b, kept in windows(len(x), block, gap):
        fit = commutant_ridge(x[kept], y[kept], group, penalty=0.7, shared=False, **options)
        out[b] = y[b] - fit.predict(x[b]).numpy()
    return out


@pytest.mark.parametrize("many_swaps", [False, True])
@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize(("signals", "c_in", "c_out", "block", "gap"), SHAPES)
def test_residuals_are_those_of_refits(
    group, signals, c_in, c_out, block, gap, many_swaps, monkeypatch
):
    if many_swaps:
        monkeypatch.setattr(module, "MAX_ELEMENTS", 0)
        monkeypatch.setattr(orbit_ridge, "MAX_ELEMENTS", 0)
    x, y = draw(signals, c_in, c_out)
    data = Samples(x, y, block=block, gap=gap, shared=False)
    found = fit_group(data, group, penalty=0.7).left_out(data)
    assert np.abs(found - refitted(x, y, group, block, gap)).max() < 1e-8


def test_residuals_where_channels_move():
    mirror = PermutationGroup.from_cycles(6, [(0, 1, 2)])
    rep = Representation(mirror, [[1, 2, 0]], [[1, 1, 1]])
    x, y = draw(20, 3, 3)
    data = Samples(x, y, shared=False)
    fit = fit_group(data, mirror, penalty=0.7, reps=check_reps(data, mirror, rep, rep))
    expected = refitted(x, y, mirror, 1, 0, in_rep=rep, out_rep=rep)
    assert np.abs(fit.left_out(data) - expected).max() < 1e-8
    # Another way of moving the channels leaves other residuals.
    assert np.abs(fit.left_out(data) - refitted(x, y, mirror, 1, 0)).max() > 1e-2


@pytest.mark.parametrize("group", GROUPS, ids=str)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("nested", [0, 30])
def test_residuals_square_to_the_errors(group, shared, nested, monkeypatch):
    monkeypatch.setattr(module, "NESTED_BLOCKS", nested)
    x, y = draw(24, 2, 2)
    data = Samples(x, y, block=2, gap=1, shared=shared)
    fit = fit_group(data, group)
    squares = data.left_out.judged((fit.left_out(data) ** 2).sum((1, 2)))
    assert np.allclose(squares / 24, fit.errors, rtol=1e-8)


def test_one_number_per_signal():
    x, _ = draw(40, 2, 1)
    y = x.sum((1, 2)) + 0.1 * x[:, 0, 0]
    data = Samples(x, y)
    for group in GROUPS:
        fit = fit_group(data, group)
        assert np.allclose(fit.left_out(data)[:, 0, 0] ** 2, fit.errors, rtol=1e-6, atol=1e-12)


class TestWeights:
    def test_against_a_general_minimiser(self):
        rng = np.random.default_rng(0)
        for m in (1, 2, 4, 7, 7, 7):
            A = rng.standard_normal((9, m)) + 1
            P = A.T @ A
            found = simplex_weights(P)
            assert found.sum() == pytest.approx(1)
            assert (found >= 0).all()
            other = minimize(
                lambda a, P=P: a @ P @ a,
                np.full(m, 1 / m),
                bounds=[(0, 1)] * m,
                constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
                options={"ftol": 1e-14, "maxiter": 500},
            )
            assert found @ P @ found <= other.fun * (1 + 1e-5)

    def test_equal_and_perfect_levels(self):
        assert simplex_weights(np.ones((3, 3))).sum() == pytest.approx(1)
        assert np.allclose(simplex_weights(np.zeros((2, 2))), 0.5)
        assert np.allclose(simplex_weights(np.diag([0.0, 1.0])), [1, 0], atol=1e-6)

    def test_errors_are_judged_without_the_block(self):
        x, y = made_by(CHAIN[1], 40)
        data = Samples(x, y)
        fits = [fit_group(data, level) for level in CHAIN]
        mixture = RidgeMixture(data, fits)
        rows = np.stack([fit.left_out(data).reshape(40, -1) for fit in fits])
        for b in range(40):
            kept = np.delete(rows, b, axis=1).reshape(3, -1)
            a = simplex_weights(kept @ kept.T)
            assert mixture.errors[b] == pytest.approx(((a @ rows[:, b]) ** 2).mean(), rel=1e-9)
        all_ = np.einsum("l,lsn->sn", mixture.weights, rows)
        assert (all_**2).mean() < mixture.risk  # weights that saw the block flatter

    def test_the_prediction_is_the_weighted_sum(self):
        x, y = made_by(CHAIN[1], 40)
        data = Samples(x, y)
        fits = [fit_group(data, level) for level in CHAIN]
        mixture = RidgeMixture(data, fits)
        parts = np.stack([fit.predict(x).numpy() for fit in fits])
        expected = np.tensordot(mixture.weights, parts, 1)
        assert np.abs(mixture.predict(x).numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("level", range(3))
def test_finds_the_level_that_made_the_data(level):
    shares = []
    for seed in range(3):
        data = Samples(*made_by(CHAIN[level], 60, seed))
        shares.append(RidgeMixture(data, [fit_group(data, p) for p in CHAIN]).weights)
    assert np.mean(shares, axis=0)[level] > 0.7


def test_a_mixture_of_truths_is_better_than_any_one():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 12))
    W = [
        ClusterGroup(p).project(_tensor(rng.standard_normal((12, 12)))).numpy() * size
        for p, size in zip(CHAIN, (0.25, 0.5, 2.0), strict=True)
    ]
    y = x @ sum(W).T + rng.standard_normal((40, 12))
    data = Samples(x, y)
    fits = [fit_group(data, p) for p in CHAIN]
    mixture = RidgeMixture(data, fits)
    assert mixture.risk < min(fit.risk for fit in fits)
    far = rng.standard_normal((4000, 12))
    errors = [((f.predict(far).numpy()[..., 0] - far @ sum(W).T) ** 2).mean() for f in
              (mixture, *fits)]  # fmt: skip
    assert errors[0] < min(errors[1:])


def test_with_white_inputs_it_is_ridge_with_a_sum_of_penalties():
    n, s, penalty = 6, 8, 2.0
    levels = [
        ClusterGroup(p) for p in (Partition.singletons(n), Partition([0, 0, 0, 1, 1, 1]),
                                  Partition.single(n))
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.standard_normal((s, n)))[0] * np.sqrt(5.0)
    y = rng.standard_normal((s, n))
    squares = 5.0
    W = np.linalg.lstsq(x, y, rcond=None)[0].T
    shares = np.array([0.2, 0.3, 0.5])
    # Hard fits of equal penalty are projections of the least squares, shrunk alike.
    hard = [
        (P @ W.reshape(-1)).reshape(n, n) * squares / (squares + penalty)
        for P in projections(levels, n)
    ]
    mixture = np.tensordot(shares, hard, 1)
    kept = np.cumsum(shares) * squares / (squares + penalty)
    variances = np.diff(kept / (1 - kept) / squares, prepend=0.0)
    assert (variances > 0).all()
    joint = JointRidge(levels, x, y, variances, constants=False)
    assert np.abs(joint.weight - mixture).max() < 1e-9
