"""The study of few poses: its subsets, its schedule and its page."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from gsym_bench.studies import poses as study
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.tables import Line, Table
from gsym_bench.suite.results import read_rows


def test_each_seed_draws_its_own_poses_and_tests_on_all():
    task = study.FewPoses(50)
    first, again, other = (task.load(None, "standard", seed) for seed in (0, 0, 1))
    assert len(first.train) == 50 and first.dataset == "gait (simulated), 50 poses"
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert not torch.equal(first.train.inputs, other.train.inputs)
    whole = study.Skeleton().load(None, "standard", 0)
    assert torch.equal(first.test.inputs, whole.test.inputs)
    assert torch.equal(first.val.targets, whole.val.targets)


@pytest.mark.parametrize(("poses", "epochs"), [(50, 600), (100, 300), (400, 115), (1600, 48)])
def test_epochs_make_the_steps(poses, epochs):
    schedule = study.FewPoses(poses).schedule("standard", None)
    assert schedule.epochs == epochs and schedule.eval_every == epochs // 10


def test_a_smaller_first_layer_learns_faster_and_maps_alike():
    """A norm takes its size out: Adam changes what the net does by more, and nothing else."""
    task = study.FewPoses(50)
    problem = task.load(None, "standard", 0)
    x = problem.train.inputs[:32]
    torch.manual_seed(0)
    net = task.model(problem, "trivial", "standard").train()
    before = net.first(x, None)
    weight = net.first.conv.linear.mixing.weight
    usual = study.Skeleton().model(problem, "trivial", "standard").first.conv.linear.mixing.weight
    assert float(usual.detach().std() / weight.detach().std()) == pytest.approx(
        study.FIRST, rel=0.1
    )
    with torch.no_grad():
        weight.mul_(study.FIRST)
    torch.testing.assert_close(net.first(x, None), before, rtol=0, atol=0.1)


def test_page_of_a_small_run(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "STEPS", {50: 2})
    page = study.main(tmp_path, None, [50], 2, Console(quiet=True))
    rows = read_rows(tmp_path / study.FOLDER)
    assert {row.group or row.model for row in rows} == {*study.GROUPS, *study.RIDGES}
    text = page.read_text()
    ridge = [row.test for row in rows if row.model == "quadratic ridge"]
    assert f"{sum(ridge) / 2:.2f}" in text
    assert "| 50 | 2 |" in text and (tmp_path / study.PICTURE).is_file()
    assert "`gsym-bench poses 50 --seeds 2`" in text
    assert "2 steps for 50 poses, 10 looks" in text
    assert f"; PoseNet, first layer at {study.FIRST} times the rate; Adam at" in text
    # The front page has a row of it, beside those of tasks.
    monkeypatch.setattr(study, "FRONT", (50,))
    (front,) = study.highlights(tmp_path)
    assert front.command == "gsym-bench poses 50 --seeds 2"
    assert [table.dataset for table in front.tables] == ["gait (simulated), 50 poses"]
    before = len(rows)
    study.main(tmp_path, None, [50], 2, Console(quiet=True))
    assert len(read_rows(tmp_path / study.FOLDER)) == before


def test_the_page_says_which_aims_are_missed(tmp_path, monkeypatch):
    assert study.highlights(tmp_path) == []
    said = []
    for aim in (5.0, 15.0):
        monkeypatch.setattr(study, "AIMS", {100: aim})
        tables = [made_up(100, -10.0), made_up(9800, -1.0), made_up(9800, 1.0)]
        said.append(study._judged(tables)[0])
    assert "5 % at 100 poses, reached (-10.0 %, interval -10.2 to -9.8 %)" in said[0]
    assert "15 % at 100 poses, missed (-10.0 %, " in said[1]
    assert "all 9,800 poses, reached (-1.0 %, interval -1.2 to -0.8 %); " in said[0]
    assert "all 9,800 poses, missed (+1.0 %, interval +0.8 to +1.2 %)." in said[0]
    assert study._judged([]) == []


def made_up(count, share):
    """A table whose net with the reflection differs by about so many per cent."""

    def line(name, values):
        rows = tuple(
            SimpleNamespace(seed=seed, status="ok", test=v, value=lambda *_, v=v: v)
            for seed, v in enumerate(values)
        )
        return Line(name, rows)

    plain, reflected = [100.0, 100.0, 100.0], [99.9 + share, 100.0 + share, 100.1 + share]
    lines = (line(study.GROUPS[0], plain), line(study.GROUPS[-1], reflected))
    return Table("poses", f"cmu-mocap, {count:,} poses", "standard", lines)


def test_bad_input(tmp_path):
    with pytest.raises(BenchmarkError, match="expected numbers of poses among"):
        study.main(tmp_path, None, [60], 1, Console(quiet=True))
    with pytest.raises(BenchmarkError, match="has 1,920 training poses"):
        study.FewPoses(5000).load(None, "standard", 0)
    with pytest.raises(BenchmarkError, match="no results"):
        study.report(Path(tmp_path))
