"""Filling gaps of real signals: draws, one fill, the order of work, and the page with its aims."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from gsym_bench.models.fills import (
    CHAINED,
    COVERAGE,
    HARD,
    LEDOIT_WOLF,
    OURS,
    TAUGHT,
    TWO_LEVEL,
    WAYS,
    Source,
    _StandardLasso,
)
from gsym_bench.studies.covariance import page, rules, speed, suite
from gsym_bench.studies.covariance.sources import (
    CELLS,
    CONTIGUOUS,
    HELD,
    HOLE,
    SOURCES,
    Cell,
    draw,
)
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.results import read_rows

MADE_UP = Cell("made up", 20, 0.3)
QUICK = (OURS, LEDOIT_WOLF, TWO_LEVEL, "mean of each node")


@pytest.fixture
def source():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 3)) @ rng.standard_normal((3, 12))
    x = (x + 0.1 * rng.standard_normal((300, 12)))[:, :, None]
    return Source(
        x[:150],
        x[150:],
        "RMSE",
        lambda e: float(np.sqrt((e**2).mean())),
        {"positions": np.arange(12.0)[:, None]},
        lambda node: np.arange(max(0, node - 2), node + 1),
        taught=20,
    )


@pytest.fixture
def small(monkeypatch, source):
    """One cell of made-up signals and four fills."""
    monkeypatch.setattr(suite, "SOURCES", {"made up": lambda data: source})
    monkeypatch.setattr(suite, "CELLS", [MADE_UP])
    monkeypatch.setattr(suite, "WAYS", {name: WAYS[name] for name in QUICK})


def test_draws_hide_what_was_asked_for(source):
    given = draw(source, MADE_UP, 0)
    assert (given.seen.sum(1) == 8).all() and given.seen.shape == (HELD, 12)
    for mask in draw(source, replace(MADE_UP, hidden=HOLE), 0).seen:
        assert (np.diff(np.flatnonzero(~mask)) == 1).all()


def test_history_is_a_stretch_of_the_signals(source):
    place = {signal.tobytes(): i for i, signal in enumerate(source.train)}
    for drawn, is_stretch in ((CONTIGUOUS, True), ("scattered", False)):
        given = draw(source, replace(MADE_UP, drawn=drawn), 3)
        where = np.diff([place[signal.tobytes()] for signal in given.train])
        assert (where == 1).all() == is_stretch
        assert given.block == ("auto" if is_stretch else 1)


@pytest.mark.parametrize("name", [name for name in WAYS if name not in (*QUICK, "graphical lasso")])
def test_every_fill_keeps_what_is_seen(source, name):
    given = draw(source, MADE_UP, 0)
    filled, variance = WAYS[name].fill(given)
    np.testing.assert_allclose(filled[given.seen], given.test[given.seen], atol=1e-12)
    assert variance is None or variance.shape == filled.shape
    error = (filled - given.test)[~given.seen]
    middle = (given.train.mean(0) - given.test)[~given.seen]
    # Places of these nodes say nothing, so a mean over the nearest is worse than none, and what all
    # nodes share is little. Others see that three numbers make all signals.
    most = {"kernel mean": 2.0}.get(name, 1.0 if name.startswith("S_n") else 0.8)
    assert (error**2).mean() < most * (middle**2).mean()


def test_lasso_does_not_depend_on_units():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((150, 3)) @ rng.standard_normal((3, 5))
    x += 0.3 * rng.standard_normal(x.shape)
    one, units = _StandardLasso().fit(x), np.array([1.0, 10.0, 1e-3, 1e4, 1.0])
    other = _StandardLasso().fit(x * units + 5)
    scale = np.outer(units, units)
    np.testing.assert_allclose(other.covariance_ / scale, one.covariance_, atol=1e-8)
    np.testing.assert_allclose(other.location_, x.mean(0) * units + 5)
    np.testing.assert_allclose(np.diag(one.covariance_), x.var(0))
    # The least penalty is 0.02 of units of which the largest variance has four.
    assert np.abs(one.covariance_ - np.cov(x.T, bias=True)).max() < 0.1


def test_hard_group_is_the_best_single_one(source):
    given = draw(source, MADE_UP, 0)

    def error(name):
        return source.error((WAYS[name].fill(given)[0] - given.test)[~given.seen])

    assert error(HARD) <= min(error("trivial"), error("S_n")) + 1e-12


def test_rows_make_a_page_and_are_kept(tmp_path, small):
    text = suite.main(tmp_path, tmp_path, 2, Console(quiet=True)).read_text()
    rows = read_rows(tmp_path, page.ROWS)
    assert {row.seed for row in rows} == {3000, 3001} and len(rows) == 2 * len(QUICK)
    errors = page.errors_of(rows)[MADE_UP]
    assert np.mean([*errors[OURS].values()]) < np.mean([*errors["mean of each node"].values()]) / 2
    assert f"{np.mean([*errors[LEDOIT_WOLF].values()]):.4g}" in text
    inside = [row.value("test", COVERAGE) for row in rows if row.model == OURS]
    assert min(inside) > 0.7
    assert f"Not run, {len(CELLS)} of {len(CELLS)} cells" in text
    # Finished fills are kept, and a further draw is added to them.
    suite.main(tmp_path, tmp_path, 3, Console(quiet=True))
    later = read_rows(tmp_path, page.ROWS)
    assert later[: len(rows)] == rows and len(later) == 3 * len(QUICK)


def test_a_budget_ends_between_fills(tmp_path, small, monkeypatch):
    clock = iter([0.0, 1.0, 59.0, 61.0])
    monkeypatch.setattr(suite.time, "monotonic", lambda: next(clock))
    text = suite.main(tmp_path, tmp_path, 2, Console(quiet=True), minutes=1).read_text()
    assert len(read_rows(tmp_path, page.ROWS)) == 2
    assert "Of the 10 draws that were asked for" in text


def test_a_few_fills_tell_how_long_all_take(tmp_path, small, monkeypatch):
    few, many = MADE_UP, replace(MADE_UP, signals=60)
    monkeypatch.setattr(suite, "CELLS", [few, replace(MADE_UP, signals=40), many])
    clock = iter(float(2**i) for i in range(40))
    monkeypatch.setattr(suite.time, "process_time", lambda: next(clock))
    console = Console(record=True, width=200)
    suite.main(tmp_path, tmp_path, 1, console)
    rows = read_rows(tmp_path, page.ROWS)
    # Each fill at both ends, and then what is between: the nearest tells.
    assert [page.cell_of(row) for row in rows[:8]] == [few, many] * 4
    assert [row.model for row in rows[:8]] == [name for name in QUICK for _ in range(2)]
    core = [row.value("train", suite.CORE) for row in rows]
    assert core[:3] == [1.0, 4.0, 16.0]
    told = f"4 fills remain, about {sum(core[1:8:2]) / 60:,.0f} minutes of one core; 4 of them"
    assert told in console.export_text()
    # A kind that is timed needs no further one.
    todo = [(many, 3001, OURS), (few, 3001, OURS)]
    assert suite.probes(todo, rows) == [] and suite.probes(todo, []) == todo[::-1]
    assert "and 2 that none tells of" in suite.forecast(todo, [])


def test_slow_fills_come_last():
    order = [WAYS[name].is_slow for _, _, name in suite.plan(2)]
    assert order == sorted(order) and any(order)


def rows_of(errors):
    """Errors by cell, fill and seed, as made-up rows."""
    return {
        cell: {n: dict(enumerate(v)) for n, v in fills.items()} for cell, fills in errors.items()
    }


def test_paired_difference():
    mean, reach, draws = page.against({0: 1.0, 1: 2.0, 2: 3.0, 9: 7.0}, {0: 2.0, 1: 3.0, 2: 4.0})
    assert (round(mean, 1), round(reach, 1), draws) == (-33.3, 0.0, 3)


def test_aims_say_where_they_fail():
    traffic, poses = Cell("METR-LA", 25, 0.4), Cell("CMU", 25, 0.1)
    ours = [1.0, 1.1]
    good = {LEDOIT_WOLF: [1.2, 1.3], TWO_LEVEL: [1.1, 1.2], "5 nearest": [1.3, 1.3]}
    good |= {TAUGHT: [0.8, 0.8], CHAINED: [1.0, 1.0]}
    held = page.aims(rows_of({traffic: {OURS: ours, **good}, poses: {OURS: ours, **good}}))
    assert all("**holds**" in line for line in held), held
    bad = {
        **good,
        "OAS": [0.97, 1.07],
        "5 nearest": [0.9, 1.0],
        TWO_LEVEL: ours,
        CHAINED: [0.8, 0.8],
    }
    bad[LEDOIT_WOLF] = [1.05, 1.15]
    failed = page.aims(rows_of({traffic: {OURS: ours, **bad}, poses: {OURS: ours, **bad}}))
    assert all("**fails**" in line for line in failed), failed
    assert "against OAS" in failed[0] and "against 5 nearest" in failed[1]
    # What was taught is no rival of what was not.
    assert CHAINED not in failed[1]
    unknown = page.aims(rows_of({Cell("digits", 400, 0.4): {OURS: ours}}))
    assert "**not run**" in unknown[-1]


@pytest.mark.parametrize("name", ["digits", "photograph"])
def test_bundled_sources_have_enough_signals(name, tmp_path):
    given = SOURCES[name](tmp_path)
    assert len(given.train) >= 1600 and len(given.test) >= HELD
    assert given.train.min() >= 0 and given.train.max() <= 1
    hole = given.hole(given.train.shape[1] - 1)
    assert len(hole) == 25 and (np.asarray(given.known["positions"])[hole] >= 3).all()


def test_data_sets_are_chosen_by_name(tmp_path, small):
    with pytest.raises(BenchmarkError, match="made up"):
        suite.main(tmp_path, tmp_path, 1, Console(quiet=True), only=["made"])
    with pytest.raises(BenchmarkError, match="no results"):
        suite.SOURCES["another"] = suite.SOURCES["made up"]
        suite.main(tmp_path, tmp_path, 1, Console(quiet=True), only=["another"])


def test_needs_data(tmp_path):
    with pytest.raises(BenchmarkError, match="--data DIR"):
        suite.main(tmp_path, None, 1, Console(quiet=True))


def test_rules_are_rows_of_the_suite(tmp_path, monkeypatch):
    x = np.random.default_rng(0).standard_normal((80, 6)).cumsum(1)
    monkeypatch.setattr(rules, "data_sets", lambda: {"made up": rules.Data(x)})
    monkeypatch.setattr(rules, "COUNTS", (20,))
    monkeypatch.setattr(rules, "SEEDS", range(1))
    text = rules.main(tmp_path, Console(quiet=True)).read_text()
    rows = read_rows(tmp_path, rules.ROWS)
    assert [row.schedule for row in rows] == ["20; random", "20; stretch"]
    assert set(rules.RULES) < set(rows[0].metrics)
    assert f"| made up | 20 | random | {rows[0].test:.3f}" in text
    monkeypatch.setattr(rules, "run_cell", lambda *given: pytest.fail("run again"))
    rules.main(tmp_path, Console(quiet=True))


def test_speed_is_measured_and_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "NODES", {600: None, 900: (1e-6, 1e9)})
    monkeypatch.setattr(speed, "CLUSTERS", (8, 4, 2))
    monkeypatch.setattr(speed, "BARS", {speed.PIXELS: 1e9})
    large = [speed.many_nodes(n, 20) for n in speed.NODES]
    assert [row.met for row in large] == ["", "no"]
    assert large[0].step_ms > 0 and large[0].memory_mib > 10
    x = np.random.default_rng(0).standard_normal((40, 12))
    levels = speed.signals_of(speed.PIXELS, None)[2]
    assert [level.num_clusters for level in levels] == [784, 196, 49, 16, 4, 1]
    small = x[:30], x[30:], [speed.Partition.singletons(12), speed.Partition.single(12)]
    monkeypatch.setattr(speed, "signals_of", lambda case, data: small)
    rows = speed.beside_others(speed.PIXELS, None, 1)
    density = {row.variant: row.density for row in rows}
    assert density[speed.OURS] == pytest.approx(density["LedoitWolf"], abs=0.05)
    assert {row.met for row in rows if row.variant == speed.OURS} == {"yes"}
    speed.write_records(tmp_path / speed.ROWS, speed.Row, [*large, *rows])
    text = speed.report(tmp_path).read_text()
    assert "Bars missed: 900 many nodes." in text
    with (tmp_path / speed.ROWS).open() as file:
        assert len(list(csv.DictReader(file))) == len(rows) + 2
