"""Conditions that are hard for a choice: rows are kept, and the page says what they say."""

import numpy as np
import pytest
from rich.console import Console

from gsym.risk.ridge import commutant_ridge
from gsym_bench.studies.choosing import conditions as module
from gsym_bench.studies.choosing.conditions import (
    DAY,
    ONE_DAY,
    Condition,
    drifting,
    lines,
    measure,
    more_days,
    one_day,
    run,
)
from gsym_bench.suite.study_tables import read_records


def test_a_trial_says_what_was_chosen_and_what_was_best():
    row = run("AR(1), 150 signals", {}, 0, "abc")
    assert row.excess == row.spread  # the worst candidate
    assert (row.warned, row.short, row.commit) == (1, 0, "abc")
    careful = run("AR(1), 150 signals", {"block": "auto"}, 0, "abc")
    assert careful.block > 1
    assert careful.short == 1
    assert careful.excess <= careful.bound
    assert careful.excess < 0.1 * row.excess
    assert run("baselines", {"standardize": "node"}, 1, "abc").hit == 1


def test_the_truth_is_that_of_the_fits_of_the_choice():
    levels, (x, y), tests = drifting(3, 150)
    row = run("AR(1), 150 signals", {"block": 50}, 3, "abc")
    risks = []
    for partition in levels:
        fit = commutant_ridge(x, y, partition, block=50)
        errors = [((fit.predict(a).numpy()[..., 0] - b) ** 2).mean() for a, b in tests]
        risks.append(np.mean(errors))
    assert row.spread == pytest.approx(max(risks) - min(risks))
    # Penalties that suit single signals are those of another predictor.
    assert row.spread < 0.8 * run("AR(1), 150 signals", {}, 3, "abc").spread


def test_days_of_the_truth_are_other_days(tmp_path):
    rng = np.random.default_rng(0)
    steps = 40 * DAY
    # Every step is known by its speed.
    speed = np.arange(steps)[:, None] + 0.1 * np.arange(70)
    ring = np.eye(70)[np.roll(np.arange(70), 1)]
    np.savez(tmp_path / "made_up.npz", speed=speed, adj=ring + rng.permutation(np.eye(70)))
    (_, (x, y), tests) = one_day(0, tmp_path / "made_up.npz")
    assert (np.diff(x[:, 0]) == 1).all()
    assert (y == x + 3).all()
    for a, _ in tests:
        assert np.abs(a[:, :1] - x[:, 0]).min() > 7 * DAY
    (_, (x, y), ((a, _),)) = more_days(0, tmp_path / "made_up.npz")
    days, others = (set((v[:, 0] // DAY).tolist()) for v in (x, a))
    assert (len(days), len(others)) == (12, 28)
    assert not days & others
    assert len(x) == 288
    assert (y == x + 3).all()


def test_days_without_a_report_are_no_truth(tmp_path):
    speed = np.ones((40 * DAY, 70))
    speed[: 15 * DAY] = 0
    ring = np.eye(70)[np.roll(np.arange(70), 1)]
    np.savez(tmp_path / "outage.npz", speed=speed, adj=ring)
    for seed in range(4):
        assert all(a.any() for a, _ in one_day(seed, tmp_path / "outage.npz")[2])


def test_rows_are_kept_and_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OPTIONS", {"many channels": [{}], ONE_DAY: [{"missing": 0}]})
    path = measure(tmp_path, 1, None, "abc", Console(quiet=True))
    first = read_records(path, Condition)
    assert [row.seed for row in first] == [0]
    monkeypatch.setattr(module, "run", None)
    measure(tmp_path, 1, None, "abc", Console(quiet=True))
    assert read_records(path, Condition) == first


def test_coverage_comes_with_its_interval(tmp_path):
    assert lines(tmp_path, "command") == []
    rows = [
        Condition("made up", "-", s, 1, 0.1 * (s == 0), 1.0, 0.05, 1, 0, 0, 0, "abc")
        for s in range(20)
    ]
    head = ",".join(Condition.__dataclass_fields__)
    text = [",".join(str(v) for v in vars(row).values()) for row in rows]
    (tmp_path / "choosing_conditions.csv").write_text("\n".join([head, *text]) + "\n")
    page = lines(tmp_path, "command")
    assert (
        "| made up | - | 20 | 100% | 1 | 0.5% | 95.0% (75.1% to 99.9%) | 0.1 | 0% | 0% | 1, 0 |"
        in page
    )
    assert any("`command --only conditions --trials 20` at commit abc" in line for line in page)
