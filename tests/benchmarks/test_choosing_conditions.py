"""Conditions that are hard for a choice: rows are kept, and the page says what they say."""

from rich.console import Console

from benchmarks import choosing_conditions as module
from benchmarks.choosing_conditions import Condition, lines, measure, read, run


def test_a_trial_says_what_was_chosen_and_what_was_best():
    row = run("AR(1), 150 signals", {}, 0)
    assert row.excess == row.spread  # the worst candidate
    assert row.warned == 1
    careful = run("AR(1), 150 signals", {"block": "auto"}, 0)
    assert careful.block > 1
    assert careful.excess <= careful.bound
    assert careful.excess < 0.1 * row.excess
    assert run("baselines", {"standardize": "node"}, 1).hit == 1


def test_rows_are_kept_and_not_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OPTIONS", {"many channels": [{}], "METR-LA": [{"missing": 0}]})
    path = measure(tmp_path, 1, None, Console(quiet=True))
    first = read(path)
    assert [row.seed for row in first] == [0]
    monkeypatch.setattr(module, "many_channels", None)
    measure(tmp_path, 1, None, Console(quiet=True))
    assert read(path) == first


def test_coverage_comes_with_its_interval(tmp_path):
    assert lines(tmp_path) == []
    rows = [Condition("made up", "-", s, 1, 0.1 * (s == 0), 1.0, 0.05, 1, 0, 0) for s in range(20)]
    head = ",".join(Condition.__dataclass_fields__)
    text = [",".join(str(v) for v in vars(row).values()) for row in rows]
    (tmp_path / "choosing_conditions.csv").write_text("\n".join([head, *text]) + "\n")
    assert "| made up | - | 20 | 100% | 0.5% | 95% (75% to 100%) | 0% | 1, 0 |" in lines(tmp_path)
