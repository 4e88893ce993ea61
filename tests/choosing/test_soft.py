"""The soft choice: mixture, rivals, when a finer group pays, and how all of it is shown."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from gsym import ClusterGroup, Partition, PermutationGroup, SymmetricCovariance, choose_group
from gsym.choosing import reconstruction
from gsym.choosing.choice import Candidate
from gsym.choosing.soft import SoftChoice
from gsym.errors import SignalError
from gsym.risk._shares import Weights
from gsym.risk.learning import Crossing, Outlook
from gsym.risk.mixture import RidgeMixture
from gsym.risk.ridge import commutant_ridge

LEVELS = [Partition.singletons(12), Partition([i // 3 for i in range(12)]), Partition.single(12)]


def draw(signals=60, level=1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((signals, 12))
    W = ClusterGroup(LEVELS[level]).project(torch.from_numpy(rng.standard_normal((12, 12)))).numpy()
    return x, x @ W.T + 0.5 * rng.standard_normal(x.shape)


class TestMixture:
    def test_beside_the_best_and_both_ends(self):
        x, y = draw()
        choice = choose_group(LEVELS, x, y, soft=True)
        soft = choice.soft
        assert max(soft.weights, key=soft.weights.get) == "4 clusters"
        assert sum(soft.weights.values()) == pytest.approx(1)
        assert isinstance(soft.predictor, RidgeMixture)
        assert soft.score == pytest.approx(soft.errors.mean())
        assert [r.candidate.num_clusters for r in soft.rivals] == [4, 12, 1]
        for rival in soft.rivals:
            assert rival.gap == pytest.approx(soft.score - rival.candidate.score)
            paired = soft.errors - rival.candidate.errors
            assert rival.gap_error == pytest.approx(paired.std(ddof=1) / 60**0.5)
        # The choice among single groups is what it was.
        hard = choose_group(LEVELS, x, y)
        assert hard.soft is None
        assert hard.scores == choice.scores

    def test_of_many_levels_eight_are_mixed(self):
        merges = [[0, 1], *([12 + i, i + 2] for i in range(10))]
        from gsym.coarsening import Hierarchy

        h = Hierarchy.from_merges(12, merges, np.arange(11.0))
        soft = choose_group(h, *draw(), soft=True).soft
        counts = [level.num_clusters for level in soft.levels]
        assert len(counts) <= 8
        assert counts[0] == 12
        assert counts[-1] == 1

    def test_groups_of_any_kind(self):
        turn = PermutationGroup.from_cycles(12, [(0, 1, 2)])
        soft = choose_group([*LEVELS, turn], *draw(), soft=True, gap=1).soft
        assert len(soft.weights) == 4
        assert soft.predictor.predict(draw()[0]).shape == (60, 12, 1)

    def test_with_a_mask_of_targets(self):
        x, y = draw()
        seen = np.random.default_rng(1).random(y.shape) < 0.6
        soft = choose_group(LEVELS, x, np.where(seen, y, 99.0), soft=True, mask=(None, seen)).soft
        assert max(soft.weights, key=soft.weights.get) == "4 clusters"
        assert soft.outlook is not None

    def test_shared_map_is_optional(self):
        x, y = draw()
        without = choose_group(LEVELS, x, y, shared=False)
        assert without.best.score != choose_group(LEVELS, x, y).best.score
        fit = commutant_ridge(x, y, without.group, shared=False)
        assert without.best.score == pytest.approx(fit.risk, rel=1e-12)


class TestReconstruction:
    @staticmethod
    def signals(missing=False):
        rng = np.random.default_rng(0)
        common = rng.standard_normal((50, 4))[:, LEVELS[1].labels.numpy()]
        x = common + 0.5 * rng.standard_normal((50, 12))
        return (x, rng.random(x.shape) < 0.8) if missing else x

    def test_is_a_covariance(self):
        x = self.signals()
        choice = choose_group(LEVELS, x, soft=True)
        soft = choice.soft
        assert isinstance(soft.predictor, SymmetricCovariance)
        assert list(soft.weights) == ["no symmetry", "4 clusters", "all 12 nodes alike", "ridge"]
        shares = soft.weights.shares()
        assert max(shares, key=shares.get) == "4 clusters"
        # Judged on the same noisy signals: it knows the noise, the candidates do not.
        assert soft.score < choice.best.score
        assert len(soft.errors) == 50

    def test_with_gaps(self, monkeypatch):
        monkeypatch.setattr(reconstruction, "_FOLDS", 2)
        x, seen = self.signals(missing=True)
        soft = choose_group(LEVELS, np.where(seen, x, np.nan), soft=True, missing=np.nan).soft
        assert np.isfinite(soft.score)
        filled = soft.predictor.impute(x, seen)
        near = ((filled - x)[~seen] ** 2).mean()
        assert near < x.var() / 2

    def test_denoising_against_its_definition(self):
        x = self.signals()
        cov = SymmetricCovariance([PermutationGroup.symmetric(12)], objective="likelihood").fit(x)
        seen = np.random.default_rng(1).random((5, 12, 1)) < 0.7
        D = np.linspace(0.5, 1, 12)
        found = reconstruction._denoise(cov, x[:5, :, None], seen, D)
        for row, keep, signal in zip(found[..., 0], seen[..., 0], x, strict=False):
            # Noise of no end is as good as no observation.
            noise = np.diag(np.where(keep, D, 1e9))
            gain = cov.covariance_ @ np.linalg.inv(cov.covariance_ + noise)
            expected = cov.location_ + gain @ (signal - cov.location_)
            assert np.allclose(row, expected, atol=1e-5)


class TestWords:
    def made(self, now, crossings, earliest=np.inf):
        levels = tuple(Candidate(ClusterGroup(p), np.zeros(3)) for p in LEVELS)
        outlook = None if now is None else Outlook(now, tuple(crossings), earliest)
        return SoftChoice(Weights({"a": 1.0}), np.zeros(3), 0.0, 0.0, (), None, outlook, levels, 80)

    def test_crossings(self):
        text = self.made(
            2, [Crossing(2, 1, 300.0, 80.0, 912.0), Crossing(1, 0, 9012.0, 2000.0, np.inf)]
        ).sentence
        assert text == (
            "All 12 nodes alike with your 80 signals; 4 clusters from about 300 (now to 910); "
            "no symmetry perhaps from about 9,000 (2,000 or later)."
        )

    def test_nothing_finer(self):
        text = self.made(1, []).sentence
        assert text == "4 clusters with your 80 signals; nothing finer up to 80,000."
        assert self.made(1, [], 123.4).sentence.endswith("; perhaps finer from 120.")
        assert self.made(1, [], 80.0).sentence.endswith("; perhaps finer from now.")
        assert self.made(0, []).sentence == "No symmetry with your 80 signals."
        assert "Too few" in self.made(None, []).sentence
        assert "(or never)" in self.made(1, [Crossing(1, 0, 9e3, np.inf, np.inf)]).sentence

    def test_names_tell_levels_apart(self):
        turn = PermutationGroup.from_cycles(12, [(0, 1, 2)])
        other = Partition([i % 4 for i in range(12)])
        groups = [turn, ClusterGroup(LEVELS[1]), ClusterGroup(other)]
        soft = self.made(2, [Crossing(2, 1, 300.0, 80.0, 912.0), Crossing(1, 0, 9e3, 2e3, 9e4)])
        levels = tuple(Candidate(group, np.zeros(3)) for group in groups)
        text = dataclasses.replace(soft, levels=levels).sentence
        assert text.startswith("4 clusters #2 with your 80 signals; 4 clusters from about 300")
        assert "; 1 generator from about 9,000 (" in text

    def test_is_printed_and_drawn(self, tmp_path):
        choice = choose_group(LEVELS, *draw(), soft=True)
        text = str(choice)
        assert f"mixture: {choice.soft.weights}" in text
        assert choice.soft.sentence in text
        page = choice.report(tmp_path / "page.html").read_text()
        assert "How much of each symmetry" in page
        assert choice.soft.sentence in page
        assert page.count("--share:0.") + page.count("--share:1") == 3
        assert (
            "How much"
            not in choose_group(LEVELS, *draw()).report(tmp_path / "hard.html").read_text()
        )

    def test_plot(self):
        pytest.importorskip("matplotlib").use("Agg")
        from matplotlib.figure import Figure

        soft = choose_group(LEVELS, *draw(), soft=True).soft
        axes = soft.plot(Figure().add_subplot())
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(
            [100 * w for w in soft.weights.values()]
        )


class TestBadInput:
    def test_one_level(self):
        with pytest.raises(ValueError, match="at least two groups; got one candidate"):
            choose_group(LEVELS[:1], *draw(), soft=True)

    def test_few_signals(self):
        with pytest.raises(SignalError, match="at least 4 signals; got 3"):
            choose_group(LEVELS, *draw(3), soft=True)
        soft = choose_group(LEVELS, *draw(4), soft=True).soft
        assert soft.outlook is None

    @pytest.mark.parametrize("options", [{"signs": "auto"}, {"score": lambda *a: 0.0}])
    def test_other_criteria(self, options):
        with pytest.raises(ValueError, match="soft=True mixes fits of the criterion ridge"):
            choose_group(LEVELS, *draw(), soft=True, **options)

    def test_shared_with_a_score(self):
        with pytest.raises(ValueError, match="shared=False is of the criterion ridge"):
            choose_group(LEVELS, *draw(), shared=False, score=lambda *a: 0.0)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (np.ones((60, 11), dtype=bool), r"mask must be boolean \[60, 12\]"),
            (np.zeros(12, dtype=bool), "none of y was observed"),
        ],
    )
    def test_masks(self, mask, message):
        with pytest.raises(SignalError, match=message):
            choose_group(LEVELS, *draw(), soft=True, mask=(None, mask))


def test_from_files(tmp_path, capsys):
    pytest.importorskip("tyro")
    from gsym.__main__ import main

    x, y = draw()
    np.savez(tmp_path / "x.npz", x)
    np.savez(tmp_path / "y.npz", y)
    np.savez(tmp_path / "p.npz", labels=np.stack([p.labels.numpy() for p in LEVELS]))
    args = ["choose", "--signals", str(tmp_path / "x.npz"), "--targets", str(tmp_path / "y.npz"),
            "--partitions", str(tmp_path / "p.npz"), "--soft", "--json"]  # fmt: skip
    main(args)
    soft = json.loads(capsys.readouterr().out)["soft"]
    assert max(soft["weights"], key=soft["weights"].get) == "4 clusters"
    assert soft["sentence"].startswith("4 clusters with your 60 signals")
    assert [r["name"] for r in soft["rivals"]] == ["the best group", "the finest", "the coarsest"]
