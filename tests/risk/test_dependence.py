"""Signals as people bring them: serially dependent, with baselines, gaps, and turned axes."""

import warnings

import numpy as np
import pytest
import torch

from gsym import Partition, SymmetricCovariance, choose_group
from gsym.choosing import SubgroupSearch
from gsym.errors import GraphError, GroupError, SignalError
from gsym.risk.dependence import serial_dependence
from gsym.risk.ridge import commutant_ridge

LABELS = np.arange(24) % 3
LEVELS = [
    Partition.singletons(24),
    Partition(LABELS),
    Partition((LABELS > 0).astype(int)),
    Partition.single(24),
]


def draw(signals=80, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((signals, 24))
    means = (x @ (np.eye(3)[LABELS] / 8) @ rng.standard_normal((3, 3)) * 3)[:, LABELS]
    y = x * np.array([1.0, -1.0, 0.2])[LABELS] + means
    return x, y + rng.standard_normal(x.shape)


def drift(rng, steps, nodes, rho=0.95):
    x = np.zeros((steps, nodes))
    x[0] = rng.standard_normal(nodes)
    for t in range(1, steps):
        x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * rng.standard_normal(nodes)
    return x


def quietly(*args, **options):
    """The choice, and the warnings on the way."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        choice = choose_group(*args, **options)
    return choice, [str(w.message) for w in found]


class TestDependence:
    def test_holds_its_level(self):
        rng = np.random.default_rng(0)
        found = [serial_dependence(rng.standard_t(3, (60, 4))).found for _ in range(300)]
        # At 1 % three are expected, and ten are as good as impossible.
        assert sum(found) < 10

    def test_sees_a_series_and_its_length(self):
        rng = np.random.default_rng(0)
        lengths = [serial_dependence(drift(rng, 400, 8)).length for _ in range(20)]
        # 0.95 ** 45 is 0.1.
        assert 25 < np.median(lengths) < 65
        seen = serial_dependence(drift(rng, 400, 8))
        assert seen.found
        assert seen.correlation > 0.8
        assert not serial_dependence(rng.permutation(drift(rng, 400, 8))).found

    def test_a_small_part_that_lasts_counts_by_its_sum(self):
        def errors(rng, share):
            quick = rng.standard_normal((290, 60))
            quick = quick[2:] + 0.6 * quick[1:-1] + 0.2 * quick[:-2]
            return quick + share * drift(rng, 288, 1, 0.9)

        rng = np.random.default_rng(0)
        plain = [serial_dependence(errors(rng, 0.0)).length for _ in range(40)]
        # Correlations at lags 1 and 2 are 0.51 and 0.14.
        assert np.mean(np.array(plain) == 3) > 0.9
        slow = [serial_dependence(errors(rng, 0.6)) for _ in range(20)]
        # The slow part, a fifth of the variance, has a correlation of 0.1 after 22 signals.
        assert 12 < np.median([d.length for d in slow]) < 40
        assert all(d.block == d.length for d in slow if d.length <= 288 // 5)

    def test_says_when_stretches_are_few_or_halves_differ(self):
        rng = np.random.default_rng(0)
        four = np.repeat(np.arange(4), 4)
        levels = [Partition.singletons(16), Partition(four), Partition.single(16)]

        def told(size, rho=0.5):
            x = rng.standard_normal((len(size), 16))
            return quietly(
                levels, x, 0.5 * x + size[:, None] * drift(rng, len(size), 16, rho), block="auto"
            )[1]

        assert told(np.ones(400)) == []
        (message,) = told(np.repeat([1.0, 1.5], 200))
        assert "squared errors of the second half are 2 times those of the first" in message
        hours = 1.2 + np.cos(np.linspace(0, 2 * np.pi, 400))
        (message,) = told(hours)
        assert "signals from several days" in message

    def test_warns_and_blocks_by_itself(self):
        rng = np.random.default_rng(0)
        four = np.repeat(np.arange(4), 4)
        levels = [Partition.singletons(16), Partition(four), Partition.single(16)]
        worst = {1: 0, "auto": 0}
        for seed in range(6):
            rng = np.random.default_rng(seed)
            x = drift(rng, 150, 16)
            means = np.stack([x[:, four == c].mean(1) for c in range(4)], 1)[:, four]
            y = 0.5 * x + means + drift(rng, 150, 16)
            for block in worst:
                choice, told = quietly(levels, x, y, block=block)
                worst[block] += choice.partition == levels[0]
                if block == 1:
                    assert any('pass block="auto"' in message for message in told)
        assert worst[1] == 6
        assert worst["auto"] <= 1
        assert choice.block > 10
        assert choice.gap > 10

    def test_independent_signals_are_left_out_one_by_one(self):
        choice, told = quietly(LEVELS, *draw(), gap="auto")
        assert (choice.block, choice.gap, told) == (1, 0, [])
        assert choice.scores == choose_group(LEVELS, *draw()).scores
        assert choice.scores == choose_group(LEVELS, *draw(), block=1).scores

    def test_blocks_are_the_default(self):
        x, y = draw()
        y = y + 3 * drift(np.random.default_rng(0), *y.shape)
        choice, told = quietly(LEVELS, x, y)
        assert choice.block > 1 and not any("pass block=" in message for message in told)
        assert choice.scores == quietly(LEVELS, x, y, block="auto")[0].scores
        assert SymmetricCovariance().block == SubgroupSearch().block == "auto"


class TestRegretBound:
    def test_holds_with_many_channels(self):
        broken = 0
        levels = [Partition.singletons(3), Partition([0, 1, 0]), Partition.single(3)]
        for seed in range(30):
            rng = np.random.default_rng(100 + seed)
            true = rng.standard_normal((9, 1)) / 3
            x = rng.standard_normal((1015, 3, 9))
            signal = np.repeat(x.mean(1, keepdims=True) * np.sqrt(3) @ true, 3, axis=1)
            y = signal + rng.standard_normal(signal.shape)
            choice = choose_group(levels, x[:15], y[:15])
            risk = []
            for p in levels:
                predicted = commutant_ridge(x[:15], y[:15], p).predict(x[15:]).numpy()
                risk.append(((predicted - y[15:]) ** 2).mean())
            regret = risk[levels.index(choice.partition)] - min(risk)
            broken += regret > choice.regret_bound
        assert broken <= 3


class TestBaselinesAndGaps:
    @pytest.mark.parametrize("what", ["x", "y"])
    def test_baselines_of_nodes(self, what):
        x, y = draw()
        offset = 2 * np.random.default_rng(5).standard_normal(24)
        x, y = (x + offset, y) if what == "x" else (x, y + offset)
        choice, told = quietly(LEVELS, x, y)
        assert any('standardize="node"' in message for message in told)
        assert choice.partition != Partition(LABELS)
        choice, told = quietly(LEVELS, x, y, standardize="node")
        assert told == []
        assert choice.partition == Partition(LABELS)
        plain = choose_group(LEVELS, *draw(), standardize="node")
        assert choice.best.score == pytest.approx(plain.best.score)

    def test_standardising_is_fitted_without_what_is_left_out(self):
        x, y = draw(signals=14)
        x[3] *= 20
        fit = commutant_ridge(x, y, LEVELS[1], standardize="node")
        for t in range(14):
            kept = np.delete(np.arange(14), t)
            (mx, sx), (my, sy) = ((v[kept].mean(0), v[kept].std(0)) for v in (x, y))
            other = commutant_ridge((x[kept] - mx) / sx, (y[kept] - my) / sy, LEVELS[1])
            error = other.predict((x[t : t + 1] - mx) / sx)[0, :, 0].numpy() - (y[t] - my) / sy
            assert fit.errors[t] == pytest.approx((error**2).mean(), abs=1e-8)
        own = (fit.predict(x).numpy()[..., 0] - y.mean(0)) / y.std(0)
        whole = commutant_ridge((x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0), LEVELS[1])
        assert np.allclose(own, whole.predict((x - x.mean(0)) / x.std(0))[..., 0])

    def test_missing_targets_leave_the_fit_that_errs_least_on_the_others(self):
        x, y = draw(signals=40)
        seen = np.random.default_rng(1).random(y.shape) > 0.3
        both = (np.ones_like(seen), seen)
        fit = commutant_ridge(x, np.where(seen, y, np.nan), LEVELS[3], mask=both, penalty=1e-6)
        # S_n has an own-value weight, a weight of the mean and a constant.
        features = np.stack([x, np.repeat(x.mean(1, keepdims=True), 24, 1), np.ones_like(x)], -1)
        weight = np.linalg.lstsq(features[seen], y[seen])[0]
        assert np.abs(fit.predict(x).numpy()[..., 0] - features @ weight).max() < 0.02
        # What is hidden has no say.
        again = commutant_ridge(x, np.where(seen, y, 99.0), LEVELS[3], mask=both, penalty=1e-6)
        assert again.risk == fit.risk
        complete = commutant_ridge(x, y, LEVELS[3]).risk
        assert fit.risk == pytest.approx(complete, rel=0.15)

    def test_zeros_and_nan_that_mean_missing(self):
        x, y = draw()
        rng = np.random.default_rng(2)
        hidden = [rng.random(v.shape) < 0.08 for v in (x, y)]
        zeros = [np.where(h, 0.0, v + 60) for h, v in zip(hidden, (x, y), strict=True)]
        _, told = quietly(LEVELS, *zeros)
        assert sum("pass missing=0" in message for message in told) == 2
        choice, told = quietly(LEVELS, *zeros, missing=0)
        assert told == []
        assert choice.partition == Partition(LABELS)
        gaps = [np.where(h, np.nan, v + 60) for h, v in zip(hidden, (x, y), strict=True)]
        assert choose_group(LEVELS, *gaps, missing=float("nan")).scores == choice.scores
        masks = tuple(~h for h in hidden)
        assert choose_group(LEVELS, *gaps, mask=masks).scores == choice.scores
        with pytest.raises(SignalError, match=r"mask= or missing=float\('nan'\)"):
            choose_group(LEVELS, *gaps)
        with pytest.raises(SignalError, match=r"mask must be boolean \[80, 24\]"):
            choose_group(LEVELS, x, y, mask=np.ones((80, 3), dtype=bool))


class TestGraphs:
    ring = torch.stack([torch.arange(24), (torch.arange(24) + 1) % 24])
    both = torch.cat([ring, ring.flip(0)], dim=1)

    def smooth(self, signals):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((signals, 24))
        return x + np.roll(x, 1, 1) + np.roll(x, 2, 1)

    def test_square_signals_that_are_turned(self):
        x = self.smooth(24)
        choose_group(LEVELS, x, edge_index=self.both)
        with pytest.raises(SignalError, match="turned by 90 degrees"):
            choose_group(LEVELS, x.T, edge_index=self.both)
        with pytest.raises(GroupError, match="acts on 24 nodes but x has 80; x seems to be turned"):
            choose_group(LEVELS, self.smooth(80).T)

    def test_nodes_without_an_edge(self):
        few = self.both[:, (self.both != 5).all(0)]
        _, told = quietly(LEVELS, self.smooth(80), edge_index=few)
        assert any("1 of 24 nodes have no edge (5)" in message for message in told)
        half = self.both[:, (self.both < 12).all(0)]
        with pytest.raises(GraphError, match="12 of 24 nodes have no edge"):
            choose_group(LEVELS, self.smooth(80), edge_index=half)

    def test_distances_given_as_weights(self):
        x = self.smooth(200)
        far = torch.stack([torch.arange(24), (torch.arange(24) + 5) % 24])
        edges = torch.cat([self.ring, far], dim=1)
        edges = torch.cat([edges, edges.flip(0)], dim=1)
        distance = torch.cat([torch.ones(24), torch.full((24,), 5.0)]).repeat(2)
        distance += torch.rand(96, generator=torch.Generator().manual_seed(0))
        _, told = quietly(LEVELS, x, edge_index=edges, edge_weight=distance)
        assert any("look like distances" in message for message in told)
        _, told = quietly(LEVELS, x, edge_index=edges, edge_weight=torch.exp(-distance))
        assert not any("look like distances" in message for message in told)
