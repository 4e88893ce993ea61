"""The sentences of the README: the largest win, the largest loss, and none where there is none."""

from __future__ import annotations

import pytest
from toy_task import change, make_rows

from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.lead import BEGIN, END, sentences, write_lead
from gsym_bench.suite.report.tables import tabulate
from gsym_bench.suite.results import append_row
from gsym_bench.tasks import TASKS

FULL = make_rows("S_4", 2, 3.178, val=[3.0, 3.2], test=[4.0, 4.0])
TRIVIAL = make_rows("trivial", 16, 0.0, val=[2.0, 2.1], test=[2.5, 2.5])


def rows(middle, copy):
    """A task: S_n, a group between with this test error, none, and a baseline with that one."""
    between = make_rows("(S_2)^2", 3, 1.386, val=[1.0, 1.1], test=[middle, middle])
    bare = {"group": "", "commutant_dim": None, "group_order_log": None, "parameters": None}
    baseline = [
        change(row, key=f"c{row.seed}", model="copy", test=copy, val=5.0, **bare) for row in FULL
    ]
    return [*FULL, *between, *TRIVIAL, *baseline]


def said(*made):
    return sentences(tabulate(made)).split("\n\n")


def test_a_win_is_against_both_ends_and_the_baseline():
    win, loss = said(*rows(2.0, 8.0))
    assert win.startswith("**Where a group wins: 20.0% less error than the best of the others.** ")
    assert "MSE in V^2: 2 ± 0 with the group (S_2)^2; with no symmetry 2.5 ± 0, " in win
    assert win.endswith("all permutations 4 ± 0 and the best baseline, copy, 8 ± 0.")
    assert loss == "**Where it does not: on none of the tasks below.**"


@pytest.mark.parametrize(("middle", "copy"), [(2.0, 1.9), (2.6, 8.0)])
def test_no_win_where_a_baseline_or_an_end_is_better(middle, copy):
    win, loss = said(*rows(middle, copy))
    assert win.endswith("on none of the tasks below.**")
    better = "the best baseline, copy," if copy < 2.5 else "no symmetry"
    assert loss.endswith(f"; with {better} {min(copy, 2.5)} ± 0.")
    assert loss.startswith(f"**Where it does not: {middle / min(copy, 2.5) - 1:.1%} more.** ")


def test_a_group_that_validation_passes_over_is_a_loss():
    made = [change(r, val=3.0) if r.group == "(S_2)^2" else r for r in rows(2.6, 8.0)]
    _, loss = said(*made)
    assert "MSE in V^2: 2.6 ± 0 with the group (S_2)^2; with no symmetry 2.5 ± 0." in loss


def test_no_win_that_may_be_chance():
    made = rows(2.0, 8.0)
    noisy = {0: 2.4, 1: 1.6}  # -0.1 and -0.9 against none: one sign, and p = 0.29
    made = [change(r, test=noisy[r.seed]) if r.group == "(S_2)^2" else r for r in made]
    assert said(*made)[0].endswith("on none of the tasks below.**")


def test_a_published_protocol_is_no_headline():
    published = [
        change(r, task=TASKS["inpainting"].name, profile="paper", key=f"p{r.key}")
        for r in rows(0.5, 8.0)
    ]
    win, _ = said(*published, *rows(2.0, 8.0))
    assert "20.0% less" in win and "(S_2)^2; with no symmetry" in win
    assert said(*published)[0].endswith("on none of the tasks below.**")
    # The long schedule of a task whose protocol is that of today does count.
    long = [change(r, task="traffic-hour") for r in published]
    assert "traffic-hour" in said(*long)[0]


def test_a_mixture_is_not_called_a_group():
    made = [change(r, group="mixture") if r.group == "(S_2)^2" else r for r in rows(2.0, 8.0)]
    win, _ = said(*(change(r, group_order_log=0.0) if r.group == "mixture" else r for r in made))
    assert "with the mixture of groups; with no symmetry 2.5 ± 0" in win and "20.0% less" in win


def test_the_largest_of_each_is_told():
    tasks = {"small": (2.4, 2.5), "large": (1.0, 9.0), "lost": (2.0, 1.8), "worst": (2.0, 0.5)}
    made = [
        change(row, task=task, key=f"{task}{row.key}")
        for task, errors in tasks.items()
        for row in rows(*errors)
    ]
    win, loss = said(*made)
    assert ".** large (" in win and ".** worst (" in loss
    assert loss.endswith("; with the best baseline, copy, 0.5 ± 0.")


def test_it_is_written_between_the_marks_again_and_again(tmp_path):
    for row in rows(2.0, 8.0):
        append_row(tmp_path, row)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_lead(tmp_path, page)
    once = page.read_text()
    write_lead(tmp_path, page)
    assert page.read_text() == once and "old" not in once
    assert once.startswith(f"before\n{BEGIN}\n**Where") and once.endswith(f"\n{END}\nafter\n")


def test_a_file_without_marks_is_left_alone_and_half_a_pair_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marks")
    write_lead(tmp_path, page)
    assert page.read_text() == "no marks"
    page.write_text(END)
    with pytest.raises(BenchmarkError, match="must hold the line <!-- lead:begin -->"):
        write_lead(tmp_path, page)
