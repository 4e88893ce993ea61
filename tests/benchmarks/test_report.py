"""The report: tables, selection, intervals, pictures, embedding."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from toy_task import ToyTask, change, make_row, make_rows

from gsym_bench.data import DataError
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.draw import distinct_colors
from gsym_bench.suite.report.markdown import BEGIN, END, Highlight, _command, _when
from gsym_bench.suite.report.markdown import write_report as report
from gsym_bench.suite.report.statistics import bootstrap, holm, paired_p
from gsym_bench.suite.report.tables import against, compare, rich_tables, select, tabulate
from gsym_bench.suite.results import SIGNALS, TOGETHER, Value, append_row, read_rows
from gsym_bench.suite.run import run
from gsym_bench.suite.task import TASKS, register

FULL = make_rows("S_4", 2, 3.178, val=[3.0, 3.2, 3.1], test=[4.0, 4.4, 4.1])
MIDDLE = make_rows("(S_2)^2 x| S_2", 3, 2.079, val=[1.0, 1.1, 1.2], test=[2.0, 2.5, 2.3])
TRIVIAL = make_rows("trivial", 16, 0.0, val=[2.0, 2.1, 2.2], test=[1.5, 1.4, 1.6])
COPY = [
    change(
        row, key=f"copy-{row.seed}", model="copy", group="", commutant_dim=None,
        group_order_log=None, parameters=None, test=1.0, val=5.0,
    )
    for row in FULL
]  # fmt: skip


def write(out, rows):
    for row in rows:
        append_row(out, row)


def test_lines_go_from_full_to_trivial_then_baselines():
    (table,) = tabulate([*COPY, *TRIVIAL, *MIDDLE, *FULL])
    assert [line.name for line in table.lines] == ["S_4", "(S_2)^2 x| S_2", "trivial", "copy"]
    assert table.full.name == "S_4" and table.trivial.name == "trivial"
    other = make_row(dataset="other")
    assert len(tabulate([*FULL, other])) == 2


def test_rows_of_earlier_settings_are_left_out(tmp_path):
    old = [change(row, key=f"old-{row.key}", schedule="b", test=9.0) for row in FULL]
    again = change(FULL[0], key="again", test=7.0)
    rows = [*old, *FULL, again]
    (table,) = tabulate(rows)
    assert table.lines[0].values("test") == [7.0, 4.4, 4.1]
    assert table.superseded == 4
    write(tmp_path, rows)
    assert "Left out: 4 results of earlier settings." in report(tmp_path).read_text()


def test_rows_of_other_data_are_left_out():
    def of(rows, name, **changes):
        return [change(row, key=f"{name}{row.key}", **changes) for row in rows]

    def hashed(rows, name, seeds=(0, 1, 2)):
        own = [row for row in rows if row.seed in seeds]
        return [change(r, key=f"{name}{r.key}", checksum=f"{name}{r.seed}") for r in own]

    # Rows without a checksum are one table, until one with a checksum comes, and the other way.
    (table,) = tabulate([*FULL, *MIDDLE])
    assert [line.name for line in table.lines] == ["S_4", MIDDLE[0].group] and not table.superseded
    (table,) = tabulate([*FULL, *hashed(MIDDLE, "a")])
    assert [line.name for line in table.lines] == [MIDDLE[0].group] and table.superseded == 3
    (table,) = tabulate([*hashed(MIDDLE, "a"), *FULL])
    assert [line.name for line in table.lines] == ["S_4"] and table.superseded == 3
    # The data of each seed differ; new data of one seed replace those of that seed alone.
    new = hashed(MIDDLE, "b", [1])
    (table,) = tabulate([*hashed(FULL, "a"), *hashed(MIDDLE, "a"), *new])
    assert [[row.seed for row in line.rows] for line in table.lines] == [[0, 2], [0, 1, 2]]
    assert table.lines[1].rows[1] == new[0] and table.superseded == 2
    (table,) = tabulate([*of(FULL, "e", source="embedded"), *of(MIDDLE, "f", source="files")])
    assert [line.name for line in table.lines] == [MIDDLE[0].group] and table.superseded == 3


@pytest.mark.parametrize("name", ["mixture", "soft chain"])
def test_a_mixture_is_no_end(name):
    mixture = make_rows(name, 16, 0.0, [0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    (table,) = tabulate([*FULL, *mixture, *TRIVIAL])
    assert table.trivial.name == "trivial" and table.ends(table.lines[1])[1] is table.trivial
    assert list(against(table, 1)) == ["S_4", name]
    assert tabulate([*FULL, *mixture])[0].trivial is None
    finest = [change(row, group="finest") for row in TRIVIAL]
    assert tabulate([*FULL, *mixture, *finest])[0].trivial.name == "finest"


def test_a_model_without_ends_is_compared_with_none():
    levels = [change(row, key=f"l{row.key}", model="dense + sum of levels") for row in MIDDLE]
    (table,) = tabulate([*FULL, *TRIVIAL, *levels])
    assert table.ends(table.lines[-1]) == (None, None)
    assert not any("levels" in name for end in (0, 1) for name in against(table, end))


def test_three_seeds_of_one_sign_may_be_chance():
    close = [
        change(row, test=row.test - d) for row, d in zip(TRIVIAL, (0.9, 0.1, 0.5), strict=True)
    ]
    close = [change(row, key=f"c{row.key}", group="G", group_order_log=1.0) for row in close]
    close = [change(row, commutant_dim=5, val=0.5) for row in close]
    (table,) = tabulate([*FULL, *close, *TRIVIAL])
    interval, p = against(table, 1)["G"]
    assert interval.high < 0 and p > 0.05  # what the interval alone would say
    said = _when([table])
    assert "against trivial -0.5" in said and "which may be chance" in said
    assert "No group between S_n and trivial is better than both" in said


def test_the_command_is_one_that_runs(monkeypatch, tmp_path):
    published = [change(row, model="dense + linear, as published") for row in FULL]
    assert _command(tmp_path, tabulate(published)) == ""
    monkeypatch.setitem(TASKS, "toy", ToyTask())
    run_toy = "gsym-bench run toy --profile quick --seeds 3"
    assert _command(tmp_path, tabulate(FULL)) == run_toy
    assert _command(tmp_path, tabulate(published)) == f"{run_toy} --as-published"
    own = [change(row, task="own") for row in FULL]
    assert _command(tmp_path, tabulate([*own, *FULL])) == run_toy
    together = [Value("train", TOGETHER, "1", 3)]
    batched = [change(row, values=(*row.values, *together), device="2 x cpu") for row in FULL]
    assert _command(tmp_path, tabulate(batched)) == f"{run_toy} --batched-seeds --devices 2"


def test_intervals_equal_scipy():
    (table,) = tabulate([*FULL, *MIDDLE, *TRIVIAL])
    found = compare(table.lines[1], table.full)
    expected = stats.ttest_rel([2.0, 2.5, 2.3], [4.0, 4.4, 4.1]).confidence_interval(0.95)
    assert found.mean == pytest.approx(-1.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    # By hand: differences -2, -1.9, -1.8, deviation 0.1, t quantile 4.302653 at 2 degrees.
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)


def test_intervals_pair_by_seed():
    short = [row for row in MIDDLE if row.seed != 1]
    (table,) = tabulate([*reversed(FULL), *short])
    found = compare(table.lines[1], table.full)
    assert found.mean == pytest.approx(-1.9)
    expected = stats.ttest_rel([2.0, 2.3], [4.0, 4.1]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert compare(table.full, table.full) is None
    assert compare(table.lines[1], table.trivial) is None


def test_interval_of_a_constant_difference_is_a_point():
    shifted = [change(row, test=row.test + 0.5) for row in COPY]
    table = tabulate([*shifted, *make_rows("S_4", 2, 3.178, val=[1.0] * 3, test=[1.0] * 3)])[0]
    assert str(compare(table.lines[1], table.full)) == "+0.5 [+0.5, +0.5]"


def test_selection_uses_validation_only():
    rows = [*FULL, *MIDDLE, *TRIVIAL, *COPY]
    (table,) = tabulate(rows)
    assert select(table).name == "(S_2)^2 x| S_2"
    tests = [row.test for row in rows]
    swapped = [change(row, test=t) for row, t in zip(rows, tests[::-1], strict=True)]
    assert swapped != rows
    assert select(tabulate(swapped)[0]).name == "(S_2)^2 x| S_2"
    vals = [change(row, val=-row.val) for row in rows]
    assert select(tabulate(vals)[0]).name == "S_4"


def test_faulty_groups_are_shown_and_never_chosen(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "toy", ToyTask())
    monkeypatch.setattr(ToyTask, "told", lambda self, profile: f"All are told all in {profile}.")
    best = {"val": 0.1, "test": 0.2}
    faulty = [
        change(r, key=f"f{r.key}", model=f"dense + {name}as published", **best)
        for name in ("", "linear, ")
        for r in (*FULL, *MIDDLE, *TRIVIAL)
    ]
    faulty = [change(row, key=f"{n} {row.key}") for n, row in enumerate(faulty)]
    # A seed that they alone have keeps no other group from being chosen.
    more = change(faulty[0], key="more", seed=9)
    write(tmp_path, [*FULL, *MIDDLE, *TRIVIAL, *COPY, *faulty, more])
    (table,) = tabulate(read_rows(tmp_path))
    assert select(table).name == MIDDLE[0].group and len(table.groups) == 9
    page = report(tmp_path).read_text()
    assert f"| {FULL[0].group} + as published | " in page
    assert f"| {FULL[0].group} + linear, as published | " in page
    assert "All are told all in quick. Groups “as published” keep" in page
    assert "as published" not in page.split("**When this group won.**")[1].split("Made with")[0]
    assert "The baseline copy beats every group" in page


def test_a_group_with_a_seed_to_go_is_not_selected():
    lucky = [change(MIDDLE[0], val=-100.0)]
    (table,) = tabulate([*FULL, *lucky, *TRIVIAL])
    assert select(table).name == "trivial"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-40], "has not 32 fields"),
        (lambda text: text.replace(",ok,", ",ok,much"), "could not convert"),
        (lambda text: text.replace(",ok,", ",fine,"), "has the status 'fine'"),
        (lambda text: text[: text.index(",")], "other code"),
    ],
)
def test_a_damaged_file_of_results_is_named(tmp_path, damage, message):
    write(tmp_path, FULL)
    path = tmp_path / "results.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(BenchmarkError, match=message):
        report(tmp_path)


def test_a_damaged_graph_is_named(tmp_path):
    write(tmp_path, FULL)
    (table,) = tabulate(FULL)
    (tmp_path / f"{table.stem}_graph.npz").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match="graph"):
        report(tmp_path)


def test_the_file_to_embed_in_must_be_there(tmp_path):
    write(tmp_path, FULL)
    with pytest.raises(BenchmarkError, match="must hold the line"):
        report(tmp_path, tmp_path / "missing.md")


def test_a_group_that_diverged_is_counted_and_not_selected(tmp_path):
    broken = [change(MIDDLE[0], status="diverged", val=None, test=None), *MIDDLE[1:]]
    rows = [*FULL, *broken, *TRIVIAL]
    (table,) = tabulate(rows)
    assert select(table).name == "trivial"
    assert table.lines[1].count("diverged") == 1
    write(tmp_path, rows)
    page = report(tmp_path).read_text()
    line = next(text for text in page.splitlines() if "x\\| S_2" in text)
    cells = [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")]
    head = next(text for text in page.splitlines() if text.startswith("| group"))
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert dict(zip(columns, cells, strict=True))["diverged"] == "1"
    assert dict(zip(columns, cells, strict=True))["seeds"] == "2 of 3"


def test_nothing_is_selected_when_every_group_failed(tmp_path):
    rows = [change(row, status="oom", val=None, test=None) for row in FULL]
    write(tmp_path, [*rows, *COPY])
    assert "validation selects none" in report(tmp_path).read_text()


def test_page_says_what_the_numbers_say(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "toy", ToyTask())
    write(tmp_path, [*FULL, *MIDDLE, *TRIVIAL, *COPY])
    page = report(tmp_path).read_text()
    assert "Validation selects **(S_2)^2 x| S_2**" in page
    assert "its test MSE is 2.267 ± 0.25" in page
    assert "The baseline copy beats every group: test MSE 1 ± 0" in page
    assert "gsym-bench run toy --profile quick --seeds 3" in page
    assert "0" * 40 in page
    # It loses to copy, which validation has to choose, because there is no other baseline.
    assert "| S_4 † | 2 | 20 | 3 | 3.1 | 4.167 ± 0.21 |" in page
    assert "| copy (baseline) | - |" in page
    png = (tmp_path / "toy_noise_quick_error.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 10_000


def test_a_beaten_baseline_is_not_praised(tmp_path):
    weak = [change(row, test=1.5) for row in COPY]
    write(tmp_path, [*FULL, *TRIVIAL, *weak])
    assert "beats every group" not in report(tmp_path).read_text()


def test_report_of_a_run_draws_the_graph(tmp_path):
    rows = run([ToyTask()], out=tmp_path, seeds=2, device="cpu")
    page = report(tmp_path).read_text()
    for name in ("error", "graph"):
        assert f"(toy_noise_quick_{name}.png)" in page
        assert (tmp_path / f"toy_noise_quick_{name}.png").stat().st_size > 5_000
    assert "simulated with the group trivial" in page
    with np.load(tmp_path / "toy_noise_quick_graph.npz", allow_pickle=False) as graph:
        assert graph["clusters"].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3]]
    (table,) = rich_tables(rows)
    assert table.row_count == 4


def test_embed_replaces_the_text_between_the_marks(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "toy", ToyTask())
    write(tmp_path, [*FULL, *MIDDLE, *TRIVIAL, *COPY])
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    report(tmp_path, readme)
    once = readme.read_text()
    assert once.startswith(f"before\n{BEGIN}\n| task") and once.endswith(f"{END}\nafter\n")
    assert "old" not in once and "2.267 ± 0.25 with (S_2)^2 x\\| S_2" in once
    report(tmp_path, readme)
    assert readme.read_text() == once
    # Tables of a study stand below those of tasks, with the command that made them.
    rows = [*FULL, *MIDDLE, *TRIVIAL, *COPY]
    tables = tabulate(change(row, task="study") for row in rows)
    report(tmp_path, readme, [Highlight("gsym-bench study", tables)])
    text = readme.read_text()
    assert text.startswith("\n".join(once.split("\n")[:5]) + "\n| study (")
    assert " and `gsym-bench study` at commit" in text


def test_embed_without_marks_changes_nothing(tmp_path):
    write(tmp_path, FULL)
    readme = tmp_path / "README.md"
    readme.write_text("no marks")
    with pytest.raises(BenchmarkError, match="must hold the line <!-- results:begin -->"):
        report(tmp_path, readme)
    assert readme.read_text() == "no marks"
    assert not (tmp_path / "report.md").exists()


def test_no_results(tmp_path):
    with pytest.raises(BenchmarkError, match="gsym-bench run"):
        report(tmp_path)


def few(rows, signals):
    """The rows at a number of training signals."""
    fact = Value("train", SIGNALS, "1", signals)
    return [change(row, key=f"{row.key}-{signals}", values=(*row.values, fact)) for row in rows]


def test_the_bootstrap_is_that_of_scipy():
    values = np.array([0.3, 0.1, -0.2, 0.5, 0.4, 0.2])
    found = bootstrap(values)
    rng = np.random.default_rng(1)
    expected = stats.bootstrap((values,), np.mean, rng=rng).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.03)
    assert str(bootstrap([2.0, 2.0])) == "+2 [+2, +2]" and bootstrap([1.0]).low == 1
    # The correction for bias is not defined for these two; percentiles are their ends.
    assert (bootstrap([0.0, 1.0]).low, bootstrap([0.0, 1.0]).high) == (0, 1)


def test_holm_adjusts_step_by_step():
    # 0.01 * 4; 0.02 * 3; 0.03 * 2 is as large; 0.5 as it is.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([]) == []


def test_differences_are_to_the_ends_with_the_same_model():
    shift = {"S_4": -1.0, "(S_2)^2 x| S_2": 0.0, "trivial": 2.0}
    filled = [
        change(row, key=f"f{row.key}", model="dense + fill", test=row.test + shift[row.group])
        for row in (*FULL, *MIDDLE, *TRIVIAL)
    ]
    (table,) = tabulate([*FULL, *MIDDLE, *TRIVIAL, *filled, *COPY])
    assert [line.name for line in table.groups][2:5] == [
        "trivial",
        "S_4 + fill",
        f"{MIDDLE[0].group} + fill",
    ]
    found = against(table, 0)
    assert list(found) == ["(S_2)^2 x| S_2", "trivial", "(S_2)^2 x| S_2 + fill", "trivial + fill"]
    interval, p = found["(S_2)^2 x| S_2 + fill"]
    assert interval.mean == pytest.approx(-0.9) and interval.low <= -0.9 <= interval.high
    plain = paired_p(np.array([-2.0, -1.9, -1.8]))
    assert plain == pytest.approx(stats.ttest_rel([2.0, 2.5, 2.3], [4.0, 4.4, 4.1]).pvalue)
    assert found["(S_2)^2 x| S_2"][1] >= 2 * plain
    assert p < 1


def test_tables_by_number_of_signals(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "toy", ToyTask())
    beaten = [change(row, test=4.2) for row in COPY]
    wins = [change(row, test=row.test - 1.9) for row in MIDDLE]
    rows = [*few(FULL, 25), *few(wins, 25), *few(TRIVIAL, 25), *few(beaten, 25)]
    rows += [*few(FULL, 100), *few(MIDDLE, 100), *few(TRIVIAL, 100), *few(beaten, 100)]
    tables = tabulate(rows)
    assert [table.signals for table in tables] == [25, 100]
    assert "training signals" not in tables[0].metrics
    write(tmp_path, [*rows, *FULL])
    page = report(tmp_path).read_text()
    assert page.count("## toy: noise, quick") == 1
    assert "| group | 25 signals | 100 signals |" in page
    assert "| (S_2)^2 x\\| S_2 | **0.3667 ± 0.25** | **2.267 ± 0.25** |" in page
    assert "--seeds 3 --signals 25,100`" in page
    last = next(line for line in page.splitlines() if line.startswith("**When this group won.**"))
    assert "With 25 signals validation chooses (S_2)^2 x| S_2, test MSE 0.3667" in last
    assert "below 0.05: (S_2)^2 x| S_2 (25 signals)." in last
    assert "with 100 signals" not in last.split("Better than both")[1]
    assert (tmp_path / "toy_noise_quick_signals.png").stat().st_size > 10_000


def test_a_run_keeps_predictions_to_show(tmp_path):
    class Shown(ToyTask):
        shown = (2, 0)

        def picture(self, samples, predictions):
            problem = self.load(None, "quick", 0)
            assert torch.equal(samples.targets, problem.test.targets[[2, 0]])
            assert torch.equal(predictions["copy"], problem.test.inputs[[2, 0]])
            assert list(predictions) == ["copy", "S_4", "trivial"]
            return Figure()

    register(Shown)
    try:
        run([Shown()], out=tmp_path, seeds=2, groups=("S_4", "trivial"), device="cpu")
        assert "](toy_noise_quick_shown.png)" in report(tmp_path).read_text()
    finally:
        TASKS.pop("toy")


def test_predictions_are_shown_beside_the_data_they_were_made_on(tmp_path):
    class Shown(ToyTask):
        shown = (2, 0)
        scale = 1.0

        def load(self, data, profile, seed):
            problem = super().load(data, profile, seed)
            problem.test.targets.mul_(self.scale)
            return problem

        def picture(self, samples, predictions):
            # The offset of the test samples, as this prediction saw it.
            gap = samples.targets - predictions["copy"]
            assert gap.abs().max() < 2
            return Figure()

    register(Shown)
    options = {"out": tmp_path, "seeds": 1, "groups": ("S_4",), "device": "cpu"}
    name = "](toy_noise_quick_shown.png)"
    try:
        run([Shown()], **options)
        assert name in report(tmp_path).read_text()
        # A run on other data that ends before it has a row changes nothing.
        other = Shown(fail_at=1, error=KeyboardInterrupt())
        other.scale, other.baselines = 2.0, dict
        with pytest.raises(KeyboardInterrupt):
            run([other], **options)
        assert name in report(tmp_path).read_text()
        # What was drawn stays without the samples, but not for rows of other data.
        shutil.rmtree(tmp_path / "shown")
        assert name in report(tmp_path).read_text()
        append_row(tmp_path, make_row(dataset="noise", checksum="other"))
        assert name not in report(tmp_path).read_text()
    finally:
        TASKS.pop("toy")


def test_a_diverged_row_keeps_its_number_of_signals(tmp_path):
    rows = run(
        [ToyTask(fail_at=3)], out=tmp_path, seeds=1, groups=("S_4",), signals=(6,), device="cpu"
    )
    assert rows[-1].status == "diverged"
    assert {row.signals for row in rows} == {6}


def test_a_run_at_numbers_of_signals(tmp_path):
    usual = run([ToyTask()], out=tmp_path, seeds=1, groups=("S_4",), device="cpu")
    rows = run([ToyTask()], out=tmp_path, seeds=1, groups=("S_4",), signals=(4, 12), device="cpu")
    assert [row.signals for row in rows] == [4, 4, 12, 12]
    assert len({row.key for row in (*usual, *rows)}) == 6
    # Three steps of five signals in an epoch of twelve, one in an epoch of four.
    assert [row.epochs for row in rows if row.group] == [18, 6]
    page = report(tmp_path).read_text()
    assert "What `choose_group(soft=True)` predicts" in page
    with pytest.raises(BenchmarkError, match="has 12 training signals; got --signals 13"):
        run([ToyTask()], out=tmp_path, seeds=1, signals=(13,), device="cpu")


@pytest.mark.parametrize("count", [8, 9, 49, 196, 784])
def test_no_two_clusters_have_one_colour(count):
    colors = distinct_colors(count)
    assert colors.min() >= 0 and colors.max() <= 1
    assert len(np.unique(np.round(255 * colors), axis=0)) == count


def test_pictures_tell_groups_of_equal_orbits_apart(tmp_path):
    from gsym_bench.suite.report.draw import _panels
    from gsym_bench.suite.run import _moves
    from gsym_bench.tasks.skeleton import REFLECTION, skeleton_groups

    groups = skeleton_groups()
    groups[REFLECTION] = groups["mirror S_2"]
    graph = {
        "names": np.array(list(groups)),
        "clusters": np.stack(
            [
                g.partition.labels if hasattr(g, "partition") else g.node_orbits().index
                for g in groups.values()
            ]
        ),
        "moves": torch.stack([_moves(g) for g in groups.values()]).numpy(),
    }
    panels = {title: moves for title, _, moves in _panels(graph)}
    assert f"mirror S_2 / {REFLECTION}" in panels
    count = {title: int((moves >= 0).any(1).sum()) for title, moves in panels.items()}
    assert count["Aut = (S_2)^2"] == 2 and count[f"mirror S_2 / {REFLECTION}"] == 1
    assert count["(S_3)^4 x| (S_2)^2"] == 2 and count["trivial"] == 0
    for name, (moves, *_) in panels.items():
        if count[name] == 1:
            assert groups["mirror S_2"].contains(torch.from_numpy(moves))


def test_a_mixture_may_beat_both_ends(tmp_path):
    """It is as free as the trivial group, and may not be taken for it."""
    mixture = make_rows("mixture", 16, 0.0, [0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    write(tmp_path, [*FULL, *TRIVIAL, *mixture])
    page = report(tmp_path).read_text()
    assert "Better than both S_n and trivial" in page and "below 0.05: mixture" in page
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", [*FULL, *TRIVIAL])
    assert "Better than both" not in report(tmp_path / "other").read_text()
