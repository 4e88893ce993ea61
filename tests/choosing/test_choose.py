"""choose_group: the winner, what it says about itself, and bad input."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator

from gsym import ClusterGroup, Partition, PermutationGroup
from gsym.choosing.choose import MAX_LEVELS, GroupChoice, choose_group
from gsym.choosing.estimator import SubgroupSearch
from gsym.coarsening import Hierarchy
from gsym.errors import SignalError
from gsym.risk.ridge import commutant_ridge
from gsym.risk.samples import denoising

LABELS = torch.arange(24) % 3
HALVES = (LABELS > 0).long()
PAIRS = torch.stack([LABELS, torch.arange(24) // 12]).T @ torch.tensor([2, 1])
LEVELS = [
    Partition.singletons(24),
    Partition(PAIRS),
    Partition(LABELS),
    Partition(HALVES),
    Partition.single(24),
]


def draw(signals=80, seed=0, noise=1.0):
    """Targets that the three clusters of LABELS make equivariant."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((signals, 24))
    pool = np.eye(3)[LABELS] / 8
    y = (
        x * np.array([1.0, -1.0, 0.2])[LABELS]
        + (x @ pool @ rng.standard_normal((3, 3)) * 3)[:, LABELS]
    )
    return x, y + noise * rng.standard_normal(x.shape)


def chain(nodes):
    """Merge node after node into the first."""
    merges = [[0, 1], *([nodes + i, i + 2] for i in range(nodes - 2))]
    return Hierarchy.from_merges(nodes, merges, np.arange(nodes - 1.0))


class TestClosedForm:
    def test_takes_the_planted_level(self):
        choice = choose_group(LEVELS, *draw())
        assert choice.partition == Partition(LABELS)
        assert choice.group is choice.best.group
        assert [c.num_clusters for c in choice.candidates] == [24, 6, 3, 2, 1]

    def test_scores_are_left_out_errors(self):
        x, y = draw()
        choice = choose_group(LEVELS, x, y)
        for candidate in choice.candidates:
            fit = commutant_ridge(x, y, candidate.partition)
            assert candidate.score == fit.risk
            assert candidate.score == pytest.approx(candidate.errors.mean())
            expected = fit.errors.std(ddof=1) / 80**0.5
            assert candidate.standard_error == pytest.approx(expected)
            paired = fit.errors - choice.best.errors
            assert candidate.gap == pytest.approx(paired.mean())
            assert candidate.gap_error == pytest.approx(paired.std(ddof=1) / 80**0.5)
            assert np.allclose(candidate.matrix, fit.matrix)
        # Pairing is what makes the comparison sharp.
        finest = choice.candidates[0]
        assert finest.gap_error < finest.standard_error

    def test_score_is_noise_plus_bias_plus_variance(self):
        choice = choose_group(LEVELS, *draw(signals=200))
        parts = [c.score - c.bias - c.variance for c in choice.candidates]
        assert np.allclose(parts, parts[0])
        assert parts[0] == pytest.approx(1.0, rel=0.1)
        bias = [c.bias for c in choice.candidates]
        variance = [c.variance for c in choice.candidates]
        assert min(bias) == 0.0
        assert bias[-1] > 0.5 > 0.1 > bias[2]
        # Where the group is right, weights are all that costs.
        assert variance[0] > 5 * variance[1] > 5 * variance[2] > 0

    def test_order_of_candidates_does_not_matter(self):
        x, y = draw()
        there = choose_group(LEVELS[::-1], x, y)
        here = choose_group(LEVELS, x, y)
        assert there.scores == here.scores
        assert there.partition == here.partition

    def test_simplest_is_within_one_standard_error(self):
        # Twenty signals with much noise do not tell three clusters from two.
        choice = choose_group(LEVELS, *draw(signals=20, seed=3, noise=6.0))
        assert choice.simplest.commutant_dim <= choice.best.commutant_dim
        assert choice.simplest.gap <= choice.simplest.gap_error
        for c in choice.candidates:
            if c.commutant_dim < choice.simplest.commutant_dim:
                assert c.gap > c.gap_error

    def test_regret_bound(self):
        x, y = draw()
        sure = choose_group(LEVELS, x, y)
        assert sure.regret_bound >= 0
        worst = max(c.gap_error for c in sure.candidates)
        assert sure.regret_bound < 5 * worst
        # Equal candidates differ by nothing, and one candidate has nobody to regret.
        assert choose_group([LEVELS[2], LEVELS[2]], x, y).regret_bound == 0.0
        assert choose_group([LEVELS[0]], x, y).regret_bound == 0.0
        # The bound must cover the regret, which fresh signals measure.
        xt, yt = draw(signals=3000, seed=0, noise=5.0)
        x, y = xt[:12], yt[:12]
        noisy = choose_group(LEVELS, x, y)
        risks = {}
        for c in noisy.candidates:
            predicted = commutant_ridge(x, y, c.group).predict(xt[12:])[..., 0].numpy()
            risks[c.num_clusters] = float(((predicted - yt[12:]) ** 2).mean())
        regret = risks[noisy.best.num_clusters] - min(risks.values())
        assert noisy.regret_bound >= regret

    def test_general_groups_and_swaps_compete(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((100, 6))
        y = x + np.roll(x, 1, axis=1) + 0.3 * rng.standard_normal(x.shape)
        rotation = PermutationGroup.from_cycles(6, [tuple(range(6))])
        pairs = Partition([0, 0, 1, 1, 2, 2])
        swapped = ClusterGroup(pairs, swaps=PermutationGroup.from_cycles(3, [(0, 1, 2)]))
        choice = choose_group(
            [PermutationGroup.trivial(6), rotation, swapped, ClusterGroup(pairs)], x, y
        )
        assert choice.group is rotation
        assert choice.partition is None
        assert choice.best.num_clusters == 1
        assert choice.best.commutant_dim == 6

    def test_blocks_leave_neighbours_out_together(self):
        # Every signal comes three times: without blocks each has seen its copies.
        x, y = (np.repeat(v, 3, axis=0) for v in draw(signals=30))
        naive = choose_group([Partition.singletons(24)], x, y, block=1).best.score
        honest = choose_group([Partition.singletons(24)], x, y, block=3)
        assert naive < 0.5 * honest.best.score
        assert len(honest.best.errors) == 30

    def test_one_number_per_signal(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((100, 24))
        y = x[:, LABELS == 0].sum(1) + rng.standard_normal(100)
        choice = choose_group(LEVELS, x, y)
        assert choice.best.num_clusters in (2, 3)
        assert choice.best.matrix is None


class TestDenoising:
    def test_finds_the_symmetry_of_the_covariance(self):
        rng = np.random.default_rng(0)
        common = rng.standard_normal((400, 3))
        x = 2 * common[:, LABELS] + rng.standard_normal((400, 24))
        choice = choose_group(LEVELS, x)
        assert choice.partition == Partition(LABELS)
        assert "denoising" in str(choice)
        again = choose_group(LEVELS, x)
        assert again.scores == choice.scores
        assert choose_group(LEVELS, x, seed=1).scores != choice.scores

    def test_noise_has_the_variance_of_the_signals(self):
        x = np.random.default_rng(0).standard_normal((4000, 5, 2)) * [1.0, 3.0]
        noisy, clean = denoising(x, 0)
        spread = (noisy - clean).std((0, 1))
        assert np.allclose(spread, [1.0, 3.0], rtol=0.05)
        assert np.allclose(clean, x - x.mean((0, 1)))

    def test_noise_is_not_the_users_own_draw(self):
        x = np.random.default_rng(7).standard_normal((200, 6))
        noisy, clean = denoising(x, 7)
        correlation = np.corrcoef((noisy - clean).ravel(), clean.ravel())[0, 1]
        assert abs(correlation) < 0.1

    def test_a_score_sees_the_signals_themselves(self):
        x = np.random.default_rng(0).standard_normal((30, 24))

        def score(group, x_train, y_train, x_val, y_val):
            clean = (x - x.mean())[..., None]
            assert all(np.abs(clean - target).sum((1, 2)).min() < 1e-9 for target in y_val)
            assert np.abs(x_val - y_val).std() > 0.3
            return 0.0

        assert "denoising" not in repr(choose_group(LEVELS, x, score=score))


class TestHierarchy:
    def test_small_ones_are_scored_whole(self):
        x, y = draw()
        h = Hierarchy.from_partitions(LEVELS, nested=False)
        choice = choose_group(h, x, y)
        assert [c.num_clusters for c in choice.candidates] == list(h.levels)
        assert choice.hierarchy is h
        assert choice.partition == h[3]

    def test_large_ones_on_a_logarithmic_grid_and_around_the_best(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((40, 100))
        y = x * np.append(np.ones(60), np.linspace(-3, 3, 40)) + 0.1 * rng.standard_normal(x.shape)
        choice = choose_group(chain(100), x, y)
        levels = [c.num_clusters for c in choice.candidates]
        assert levels == sorted(levels, reverse=True)
        assert levels[0] == 100
        assert levels[-1] == 1
        assert MAX_LEVELS / 2 < len(levels) <= MAX_LEVELS + 16
        assert choice.best.num_clusters == 41
        assert {40, 41, 42} <= set(levels)

    def test_levels_can_be_named(self):
        choice = choose_group(chain(24), *draw(), levels=[24, 5, 1])
        assert [c.num_clusters for c in choice.candidates] == [24, 5, 1]
        with pytest.raises(ValueError, match="levels= chooses from a Hierarchy"):
            choose_group(LEVELS, *draw(), levels=[3])

    def test_swaps_of_the_coarse_graph_are_offered(self):
        rng = np.random.default_rng(0)
        ring = torch.stack([torch.arange(12), (torch.arange(12) + 1) % 12])
        both = torch.cat([ring, ring.flip(0)], dim=1)
        pairs = Partition(torch.arange(12) // 2)
        x = rng.standard_normal((60, 12))
        y = x + np.roll(x.reshape(60, 6, 2).mean(2), 1, 1).repeat(2, 1)
        y = y + rng.standard_normal(x.shape)
        h = Hierarchy.from_partitions([pairs], edge_index=both)
        choice = choose_group(h, x, y)
        assert len(choice.candidates) > 3
        swapped = [c for c in choice.candidates if getattr(c.group, "swaps", None)]
        assert any(c.partition == pairs for c in swapped)
        assert len(choose_group(h, x, y, swaps=None).candidates) == 3

    def test_swaps_keep_the_weights_of_the_graph(self):
        path = torch.stack([torch.arange(5), torch.arange(1, 6)])
        graph = torch.cat([path, path.flip(0)], dim=1)
        weight = torch.tensor([1.0, 1, 1, 50, 50]).repeat(2)
        pairs = [Partition([0, 0, 1, 1, 2, 2])]
        x = np.random.default_rng(0).standard_normal((30, 6))
        y = x + np.roll(x, 1, axis=1)
        assert len(choose_group(pairs, x, y, edge_index=graph).candidates) == 2
        weighted = {"edge_index": graph, "edge_weight": weight}
        assert len(choose_group(pairs, x, y, **weighted).candidates) == 1
        assert len(SubgroupSearch(pairs, **weighted).fit(x, y).scores_) == 1
        with pytest.raises(ValueError, match="edge_weight came without edge_index"):
            choose_group(pairs, x, y, edge_weight=weight)
        with pytest.raises(ValueError, match="edge_weight"):
            choose_group(pairs, x, y, edge_index=graph, edge_weight=weight[:3])


class Own:
    """Least squares on the own value alone, by cluster: the smallest fit and predict."""

    def __init__(self, group):
        self.labels = group.partition.labels.numpy()

    def fit(self, x, y):
        k = self.labels.max() + 1
        top, bottom = (np.bincount(self.labels, v, k) for v in ((x * y).sum(0), (x * x).sum(0)))
        self.slope = top / bottom

    def predict(self, x):
        return x * self.slope[self.labels]


class TestOwnScore:
    def test_fit_and_predict(self):
        choice = choose_group(LEVELS, *draw(), score=Own)
        assert choice.partition == Partition(LABELS)
        # Errors are known per signal, so all five folds give all eighty.
        assert np.isfinite(choice.best.errors).all()
        assert len(choice.best.errors) == 80
        assert choice.best.bias is None

    def test_function_and_halving(self):
        calls = []

        def score(group, x_train, y_train, x_val, y_val):
            calls.append(group.partition.num_clusters)
            assert len(x_train) == len(y_train) == 64
            assert len(x_val) == len(y_val) == 16
            assert isinstance(x_train, torch.Tensor)
            joined = torch.cat([x_train, x_val])
            assert torch.equal(joined.sort(0).values, data[0].sort(0).values)
            model = Own(group)
            model.fit(x_train.numpy(), y_train.numpy())
            return float(((model.predict(x_val.numpy()) - y_val.numpy()) ** 2).mean())

        data = [torch.from_numpy(v) for v in draw()]
        choice = choose_group(LEVELS, *data, score=score)
        assert choice.partition == Partition(LABELS)
        # 5 candidates, then 3, then 2 to the end.
        assert len(calls) == 5 + 3 + 2 + 2 + 2
        assert len(choice.best.errors) == 5
        assert "score, 5-fold" in str(choice)
        dropped = [c for c in choice.candidates if np.isnan(c.gap_error)]
        assert len(dropped) == 2

    def test_blocks_stay_together(self):
        x, y = draw()
        x[:, 0] = np.arange(80)

        def score(group, x_train, y_train, x_val, y_val):
            blocks = [set((v[:, 0] // 3).astype(int)) for v in (x_train, x_val)]
            assert not blocks[0] & blocks[1]
            assert len(blocks[0] | blocks[1]) == 27
            return 0.0

        choose_group(LEVELS, x, y, score=score, block=3)
        choice = choose_group(LEVELS, *draw(), score=Own, block=3)
        assert choice.best.errors.shape == (27,)
        assert np.isfinite(choice.best.errors).all()
        assert choice.partition == Partition(LABELS)

    def test_nan_counts_as_infinite(self):
        def score(group, *_):
            return float("nan") if group.partition.num_clusters != 2 else 1.0

        choice = choose_group(LEVELS, *draw(), score=score)
        assert choice.best.num_clusters == 2
        assert str(choice)
        with pytest.raises(ValueError, match="no finite number"):
            choose_group(LEVELS, *draw(), score=lambda *_: float("nan"))

    @pytest.mark.parametrize(
        ("score", "message"),
        [
            ("risk", "score must be a function .* got str"),
            (lambda a, b: 0.0, r"must take \(group, x_train"),
            (lambda group: 3.0, "fit and predict; got float"),
        ],
    )
    def test_other_forms_are_refused(self, score, message):
        with pytest.raises(ValueError, match=message):
            choose_group(LEVELS, *draw(), score=score)

    def test_predictions_of_another_shape(self):
        class Wrong(Own):
            def predict(self, x):
                return x[:, :5]

        with pytest.raises(ValueError, match=r"shape \[16, 5\] for targets of shape \[16, 24\]"):
            choose_group(LEVELS, *draw(), score=Wrong)


class TestBadInput:
    @pytest.mark.parametrize("scale", [1e-200, 1e-100, 1e100, 1e200])
    @pytest.mark.parametrize("what", ["x", "y"])
    def test_scales_beyond_float64(self, what, scale):
        x, y = draw()
        x, y = (x * scale, y) if what == "x" else (x, y * scale)
        with pytest.raises(SignalError, match=f"{what} reaches .* rescale it"):
            choose_group(LEVELS, x, y)

    @pytest.mark.parametrize(
        ("candidates", "error", "message"),
        [
            ([], ValueError, "at least one candidate"),
            ([*LEVELS, Partition.single(23)], ValueError, "candidate 5, S_23, acts on 23 nodes"),
            (Partition.single(24), TypeError, "put a single one in a list"),
            (7, TypeError, "got int"),
            ([Partition.single(24), [0] * 24], TypeError, "candidate 1 must be a Partition"),
        ],
    )
    def test_candidates(self, candidates, error, message):
        with pytest.raises(error, match=message):
            choose_group(candidates, *draw())

    def test_data(self):
        x, y = draw()
        with pytest.raises(ValueError, match="x has 24 nodes but y has 23"):
            choose_group(LEVELS, x, y[:, :23])
        with pytest.raises(ValueError, match="x has 80 signals but y has 79"):
            choose_group(LEVELS, x, y[:79])
        with pytest.raises(ValueError, match="got 1 signals"):
            choose_group(LEVELS, x[:1], y[:1])
        with pytest.raises(ValueError, match="x is constant"):
            choose_group(LEVELS, np.ones_like(x))
        x[3, 7] = np.nan
        with pytest.raises(ValueError, match=r"1 of 24 nodes \(7\)"):
            choose_group(LEVELS, x, y)

    def test_options(self):
        with pytest.raises(ValueError, match=r'swaps must be "auto" or None; got True'):
            choose_group(LEVELS, *draw(), swaps=True)
        with pytest.raises(ValueError, match="folds must be at least 2; got 1"):
            choose_group(LEVELS, *draw(), folds=1)
        with pytest.raises(ValueError, match="90 folds need at least as many signals; got 80"):
            choose_group(LEVELS, *draw(), score=Own, folds=90)
        with pytest.raises(ValueError, match=r"30 folds .* blocks of 3 signals, .*; got 27"):
            choose_group(LEVELS, *draw(), score=Own, folds=30, block=3)
        for name, value in (("folds", 2.5), ("block", 1.5), ("seed", 1.5), ("seed", None)):
            with pytest.raises(ValueError, match=f"{name} must be a whole number; got {value}"):
                choose_group(LEVELS, *draw(), **{name: value})
        with pytest.raises(ValueError, match="seed must not be negative; got -1"):
            choose_group(LEVELS, *draw(), seed=-1)
        for levels in (12, [2.5]):
            with pytest.raises(ValueError, match="levels must be whole numbers of clusters"):
                choose_group(chain(24), *draw(), levels=levels)
        with pytest.raises(ValueError, match="edge 0 names node 24"):
            choose_group(LEVELS, *draw(), edge_index=torch.tensor([[0], [24]]))


class TestShowing:
    def test_table(self):
        choice = choose_group([*LEVELS, Partition(LABELS.flip(0))], *draw())
        text = str(choice)
        assert text.count("best") == 2  # the header's "gap to best", and the mark
        assert "(S_8)^3 #2" in text
        assert set(choice.scores) == set(choice.labels)
        assert "regret at most" in text
        for candidate in choice.candidates:
            assert f"{candidate.score:.5g}" in text
        assert repr(choice).startswith("GroupChoice((S_8)^3 of 6 candidates")

    def test_rich_table(self):
        console = pytest.importorskip("rich.console").Console(record=True, width=160)
        console.print(choose_group(LEVELS, *draw()))
        text = console.export_text()
        assert "(S_8)^3" in text
        assert "regret" in text

    def test_plot(self):
        pytest.importorskip("matplotlib").use("Agg")
        from matplotlib.figure import Figure

        axes = Figure().add_subplot()
        choice = choose_group(LEVELS, *draw())
        assert choice.plot(axes) is axes
        line = axes.get_lines()[0]
        assert line.get_xdata().tolist() == [24, 6, 3, 2, 1]
        assert np.allclose(line.get_ydata(), [c.score for c in choice.candidates])

    def test_is_a_value(self):
        choice = choose_group(LEVELS, *draw())
        assert isinstance(choice, GroupChoice)
        with pytest.raises(AttributeError):
            choice.best = choice.candidates[0]


class TestSubgroupSearch:
    def test_conforms_to_scikit_learn(self):
        results = check_estimator(SubgroupSearch(), on_fail=None)
        failed = [r["check_name"] for r in results if r["status"] == "failed"]
        assert failed == []
        assert sum(r["status"] == "passed" for r in results) > 40

    def test_fits_the_choice(self):
        x, y = draw()
        search = SubgroupSearch(LEVELS).fit(x, y)
        choice = choose_group(LEVELS, x, y)
        assert search.best_partition_ == choice.partition
        assert search.scores_ == choice.scores
        wanted = commutant_ridge(x, y, choice.partition).predict(x).numpy()
        assert np.array_equal(search.predict(x), wanted[..., 0])
        xt, yt = draw(signals=2000)[0], None
        assert search.predict(xt).shape == (2000, 24)
        assert yt is None
        assert search.score(x, y) > 0.3

    def test_channels_clone_and_cross_validation(self):
        x, y = draw()
        three = SubgroupSearch(LEVELS, simplest=True).fit(x[..., None], y[..., None])
        assert three.predict(x[..., None]).shape == (80, 24, 1)
        assert three.best_group_ is three.choice_.simplest.group
        copy = clone(three)
        assert copy.get_params()["simplest"] is True
        assert not hasattr(copy, "best_group_")
        assert cross_val_score(SubgroupSearch(LEVELS), x, y, cv=3).min() > 0.2

    def test_finds_candidates_itself(self):
        x, y = draw(signals=300)
        search = SubgroupSearch().fit(x, y)
        assert search.best_partition_.refines(Partition(LABELS))
        assert 3 <= search.best_partition_.num_clusters <= 6
        denoise = SubgroupSearch(LEVELS).fit(x)
        assert denoise.predict(x).shape == x.shape
        assert denoise.score(x) > -0.1

    def test_takes_the_options_of_the_choice(self):
        x, y = draw(signals=60)
        rng = np.random.default_rng(1)
        offset = rng.standard_normal((2, 24))
        hidden = [rng.random(v.shape) < 0.05 for v in (x, y)]
        options = {"standardize": "node", "block": 12, "gap": 2}
        bx, by = x + 3 * offset[0], y + 3 * offset[1]
        gx, gy = (np.where(h, np.nan, v) for h, v in zip(hidden, (bx, by), strict=True))
        search = SubgroupSearch(LEVELS[1:3], missing=float("nan"), **options).fit(gx, gy)
        choice = choose_group(LEVELS[1:3], gx, gy, missing=float("nan"), **options)
        assert search.scores_ == choice.scores
        fit = commutant_ridge(gx, gy, choice.partition, missing=float("nan"), **options)
        predicted = fit.predict(gx, missing=float("nan")).numpy()[..., 0]
        assert np.array_equal(search.predict(gx), predicted)
        masks = tuple(~h for h in hidden)
        masked = SubgroupSearch(LEVELS[1:3], **options).fit(bx, by, mask=masks)
        assert masked.scores_ == choice.scores
        with pytest.raises(SignalError, match="score needs complete targets; some are nan"):
            search.score(bx, gy)
        assert search.score(gx, by) > 0.3
        with pytest.raises(SignalError, match="clusters are merged from complete signals"):
            SubgroupSearch(missing=float("nan")).fit(gx, gy)
        with pytest.raises(ValueError, match="NaN"):
            SubgroupSearch(LEVELS[1:3]).fit(gx, y)
        own = SubgroupSearch(standardize="node", block=12).fit(bx, by)
        plain = SubgroupSearch(standardize="node", block=12).fit(x, y)
        assert own.best_partition_ == plain.best_partition_

    def test_fits_with_the_block_that_was_chosen(self):
        rng = np.random.default_rng(0)
        x = np.cumsum(rng.standard_normal((120, 24)), axis=0)
        y = x + np.cumsum(rng.standard_normal((120, 24)), axis=0)
        search = SubgroupSearch(LEVELS[1:3], block="auto").fit(x, y)
        block, gap = search.choice_.block, search.choice_.gap
        assert block > 1
        assert gap > 1
        wanted = commutant_ridge(x, y, search.best_group_, block=block, gap=gap).predict(x)
        assert np.array_equal(search.predict(x), wanted.numpy()[..., 0])
        assert SubgroupSearch(block="auto").fit(x, y).choice_.block > 1
