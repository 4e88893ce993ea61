"""Learning curves: the law against simulation, and crossings that are known."""

from dataclasses import replace

import numpy as np
import pytest

from gsym import Partition
from gsym.risk.learning import LearningCurve, bias, law, learning_curves, look_ahead
from gsym.risk.ridge import as_clusters, fit_group
from gsym.risk.samples import Samples
from gsym_bench.studies.overtaking import truth


@pytest.mark.parametrize(("p", "n"), [(40, 20), (40, 60), (40, 400)])
def test_the_law_is_what_ridge_errs(p, n):
    rng = np.random.default_rng(0)
    noise, energy, errors = 1.0, 2.0, []
    for _ in range(40):
        X = rng.standard_normal((n, p))
        w = rng.standard_normal(p) * np.sqrt(energy / p)
        y = X @ w + rng.standard_normal(n) * noise
        # The best penalty for this prior: noise over the variance of a coefficient.
        found = np.linalg.solve(X.T @ X + noise * p / energy * np.eye(p), X.T @ y)
        errors.append(noise + ((found - w) ** 2).sum())
    expected = float(law(n, np.array(p), np.array(noise), np.array(noise + energy)))
    assert np.mean(errors) == pytest.approx(expected, rel=0.06)


def test_bias_undoes_the_law():
    p, zero = np.array([3.0, 30, 300]), np.array([4.0])
    r = np.array([0.5, 1.0, 2.0])
    assert np.allclose(bias(law(50.0, p, r, zero), zero, p, 50.0), r, rtol=1e-6)
    # Targets of which nothing is learned stay as they are.
    assert bias(np.array([5.0]), zero, p[:1], 50.0) == 5.0


def curve(p, r, zero, blocks=30, s=50.0, used=None):
    ones = np.ones(blocks)
    return LearningCurve(
        s,
        zero * ones,
        float(law(s, np.array(p), np.array(r), np.array(zero))) * ones,
        float(law(s / 2, np.array(p), np.array(r), np.array(zero))) * ones,
        0.1 * ones,
        (p, p if used is None else used),
    )


def test_crossings_of_curves_that_obey_the_law():
    known = [(2.0, 1.5, 4.0), (20.0, 1.2, 4.0), (200.0, 1.0, 4.0)]
    outlook = look_ahead([curve(*k) for k in known], [2, 20, 200])
    first, found = outlook.now, outlook.crossings
    assert outlook.earliest == np.inf
    sizes = 50 * np.geomspace(1, 1000, 20001)
    true = np.stack([law(sizes, np.array(p), np.array(r), np.array(z)) for p, r, z in known])
    winner = true.argmin(0)
    assert first == winner[0]
    changes = np.flatnonzero(np.diff(winner)) + 1
    assert [c.after for c in found] == winner[changes].tolist()
    assert [c.signals for c in found] == pytest.approx(sizes[changes].tolist(), rel=0.04)
    for crossing in found:
        assert crossing.low <= crossing.signals <= crossing.high


def test_a_coarser_group_never_overtakes_and_a_worse_one_does_not():
    outlook = look_ahead([curve(20.0, 1.0, 4.0), curve(2.0, 1.5, 4.0)], [20, 2])
    assert (outlook.now, outlook.crossings) == (0, ())
    outlook = look_ahead([curve(2.0, 1.0, 4.0), curve(20.0, 1.0, 4.0)], [2, 20])
    assert (outlook.now, outlook.crossings, outlook.earliest) == (0, (), np.inf)


def test_one_that_does_not_cross_may_all_the_same():
    fine, coarse = curve(20.0, 1.0, 4.0), curve(2.0, 0.99, 4.0)
    noisy = replace(fine, full=fine.full + 0.5 * (-1.0) ** np.arange(30))
    outlook = look_ahead([noisy, coarse], [20, 2])
    assert outlook.crossings == ()
    assert 50 < outlook.earliest < 50_000


def test_the_crossing_is_where_refits_cross():
    source = truth(0)
    levels = [p for p in source.levels if p.num_clusters in (24, 12)]
    rng = np.random.default_rng(0)
    x, y = source.test

    def errors(count):
        data = Samples(*source.draw(count, rng))
        return [((fit_group(data, p).predict(x).numpy()[..., 0] - y) ** 2).mean() for p in levels]

    fine, coarse = errors(100)
    assert coarse < fine
    fine, coarse = errors(400)
    assert fine < coarse
    for seed in range(2):
        data = Samples(*source.draw(80, np.random.default_rng([seed, 80, 2])))
        fits = [fit_group(data, p) for p in levels]
        outlook = look_ahead(
            learning_curves(data, [(as_clusters(p), None) for p in levels], fits), [24**2, 12**2]
        )
        assert outlook.now == 1
        [found] = outlook.crossings
        assert 100 < found.signals < 400
        assert found.low < 400
        assert found.high > 100


def test_few_blocks_say_nothing():
    x = np.random.default_rng(0).standard_normal((7, 12))
    data = Samples(x, 2 * x)
    group = as_clusters(Partition.single(12))
    assert learning_curves(data, [(group, None)], [fit_group(data, group)]) == []
