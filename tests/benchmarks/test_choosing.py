"""The twins have the symmetry they claim, and the page says what the rows say."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from toy_task import change, make_row

from gsym import ClusterGroup, Partition
from gsym_bench.studies.choosing import page, suite
from gsym_bench.studies.choosing.trials import (
    Real,
    Recovery,
    Trial,
    run_real,
    run_recovery,
    run_trial,
)
from gsym_bench.studies.choosing.twins import INPUTS, TRUTHS, Twin, chain
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.results import SIGNALS, Value, append_row
from gsym_bench.suite.study_tables import read_records, write_records


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("truth", TRUTHS)
def test_twins_are_equivariant_as_claimed(truth, inputs):
    twin = Twin(truth, inputs, 30, 4, 1.0, seed=0)
    x = twin.inputs(1000)
    worst = 0.0
    for perm in ClusterGroup(twin.partition).generators.numpy():
        moved, image = np.empty_like(x), np.empty_like(x)
        moved[:, perm] = x
        image[:, perm] = twin.map(x)
        worst = max(worst, np.abs(twin.map(moved) - image).max())
    assert (worst < 1e-9) == (truth != "nearly linear")
    assert 0.5 < twin.map(x).var() < 4.2
    outsider = np.arange(30)
    a, b = (int(c[0]) for c in twin.partition.clusters()[:2])
    outsider[[a, b]] = b, a
    assert np.abs(twin.map(x[:, outsider]) - twin.map(x)[:, outsider]).max() > 1e-2


def test_chain_leads_through_the_planted_partition():
    twin = Twin("linear", "isotropic", 60, 7, 1.0, seed=1)
    levels = chain(twin.partition, np.random.default_rng(0))
    assert twin.partition in levels
    assert levels[0] == Partition.singletons(60)
    assert levels[-1] == Partition.single(60)
    for fine, coarse in pairwise(levels):
        assert fine.refines(coarse)
        assert fine.num_clusters > coarse.num_clusters


def test_trials_repeat():
    first = run_trial("linear", "isotropic", 60, 0, "abc")
    again = run_trial("linear", "isotropic", 60, 0, "abc")
    assert replace(again, seconds=first.seconds) == first
    assert first.chosen == first.best == first.planted
    assert first.excess == 0.0
    assert run_trial("linear", "isotropic", 60, 1, "abc").nodes != first.nodes


def test_recovery_knows_good_from_bad():
    row = run_recovery("linear", "isotropic", 40, 4, 0, "abc")
    assert row.risk > 0.95
    assert max(row.ward_graph, row.spectral, row.louvain) < 0.5


def rows(chosen):
    trial = Trial("", "", 0, 0, 50, 4, 1.0, 4, chosen, 4, 0.0, 0.0, 2.0, 0.1, 0.01, "abc")
    trial = replace(trial, excess=0.0 if chosen == 4 else 0.1)
    return [
        replace(trial, truth=t, inputs=i, signals=s)
        for t in TRUTHS
        for i in INPUTS
        for s in page.SIGNALS
    ]


@pytest.mark.parametrize("chosen", [4, 2])
def test_page_says_what_falls_short(chosen, tmp_path):
    write_records(tmp_path / page.LEVELS, Trial, rows(chosen))
    found = [Recovery("linear", "isotropic", 60, 4, 0, 0.9, 0.95, 0.0, 0.0, 0.0, "abc")]
    write_records(tmp_path / page.PARTITIONS, Recovery, found)
    text = page.report(tmp_path).read_text()
    assert ("Reached everywhere." in text) == (chosen == 4)
    assert ("linear, isotropic, 60 signals: excess risk 5.00%, not 2%." in text) == (chosen == 2)
    assert "is missed in these rows" in text
    assert "Ward on signals does better in 1 of 1 trials." in text


def test_bad_number_of_trials(tmp_path):
    with pytest.raises(BenchmarkError, match="at least 1; got 0"):
        suite.main(tmp_path, 0)


def test_rows_with_commas_are_read_as_written(tmp_path):
    rows = [
        Real("skeleton", "d", "p", 0, "1f", "mirror S_2, reflected", 0.1, 0.0, 0.0, 1, 0.5, "abc")
    ]
    write_records(tmp_path / "rows.csv", Real, rows, 6)
    assert read_records(tmp_path / "rows.csv", Real) == rows


def test_a_group_with_two_representations_is_one_candidate():
    rows = run_real("skeleton", None, "quick", 0, "abc")
    names = [row.group for row in rows]
    assert len(names) == len(set(names))
    assert "mirror S_2" in names
    assert "mirror S_2, reflected" not in names


def test_a_choice_stands_beside_one_model_and_one_number_of_signals(tmp_path):
    write_records(tmp_path / page.LEVELS, Trial, rows(4))
    found = [Recovery("linear", "isotropic", 60, 4, 0, 0.9, 0.95, 0.0, 0.0, 0.0, "abc")]
    write_records(tmp_path / page.PARTITIONS, Recovery, found)
    groups = {"trivial": 2.0, "(S_2)^2": 1.0, "S_4": 4.0}
    drawn = make_row().checksum
    write_records(
        tmp_path / page.REAL,
        Real,
        [
            Real(
                "toy", "noise", "quick", 0, drawn, g, 0.1, 0.0, 0.0, int(g == "(S_2)^2"), 0.5, "abc"
            )
            for g in groups
        ]
        + [
            Real("toy", "noise", "quick", 1, drawn, g, 0.1, 0.0, 0.0, 0, 99.0, "abc")
            for g in groups
        ],
        6,
    )
    fact = Value("train", SIGNALS, "1", 25)
    for number, (group, test) in enumerate(groups.items()):
        row = make_row(key=f"{number}", group=group, test=test, seconds=1.0)
        append_row(tmp_path, change(row, key=f"old {number}", test=70.0, schedule="old"))
        few = change(row, key=f"few {number}", values=(*row.values, fact))
        append_row(tmp_path, change(few, test=90.0))
        append_row(tmp_path, row)
        append_row(tmp_path, change(row, key=f"fill {number}", model="dense + fill", test=9 - test))
        append_row(tmp_path, change(row, key=f"p {number}", model="dense + as published", test=0.1))
    alone = change(row, key="matched", model="dense + matched size", group="trivial", test=0.1)
    append_row(tmp_path, alone)
    text = page.report(tmp_path).read_text().partition("## On real data")[2]
    plain, filled = text.split("### toy, noise\n")[1].split("### toy, noise, fill\n")
    for words, tests in ((plain, (2, 1, 4)), (filled, (7, 8, 5))):
        for (group, _), test in zip(groups.items(), tests, strict=True):
            assert f"| {group} | 0.1 | +0 | {test} |" in words
    assert "chosen group: 1, on average 0.0% above" in plain
    assert "16.67% of the time" in plain and "chosen group: 8, on average 60.0% above" in filled
    assert "published" not in text and "matched" not in text


def test_a_choice_on_other_draws_stands_beside_nothing(tmp_path):
    write_records(tmp_path / page.LEVELS, Trial, rows(4))
    groups = ("trivial", "S_4")
    for group in groups:
        append_row(tmp_path, make_row(key=group, group=group))
    for drawn in (make_row().checksum, "f00d"):
        real = [
            Real("toy", "noise", "quick", 0, drawn, g, 0.1, 0.0, 0.0, 1, 0.5, "c") for g in groups
        ]
        write_records(tmp_path / page.REAL, Real, real, 6)
        text = page.report(tmp_path).read_text()
        assert ("### toy" in text) == (drawn != "f00d")
        assert ("no network was trained on these draws" in text) == (drawn == "f00d")
