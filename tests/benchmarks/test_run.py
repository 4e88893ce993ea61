"""The runner: resume, status, provenance, one look at the test split."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from toy_task import ToyTask, make_row

from gsym.groups import PermutationGroup
from gsym_bench.suite import engine
from gsym_bench.suite import run as running
from gsym_bench.suite.crossover import Prediction
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.loaded import Loaded
from gsym_bench.suite.provenance import provenance
from gsym_bench.suite.report.markdown import write_report
from gsym_bench.suite.report.tables import tabulate
from gsym_bench.suite.results import RESULTS, append_row, read_rows
from gsym_bench.suite.run import run
from gsym_bench.suite.task import Schedule
from gsym_bench.suite.work import Worker


@pytest.fixture
def go(tmp_path):
    def go(task, out="out", **options):
        defaults = {"seeds": 1, "device": "cpu", "groups": ("trivial",), "checkpoint_seconds": 0.0}
        return run([task], out=tmp_path / out, **{**defaults, **options})

    return go


NOISY_COLUMNS = {"seconds": 0.0, "peak_memory_mib": 0.0}


def comparable(rows):
    return [make_row(**{**vars(row), **NOISY_COLUMNS}) for row in rows]


def test_one_row_per_group_baseline_and_seed(go, tmp_path):
    rows = go(ToyTask(), groups=(), seeds=2)
    names = ["copy", "S_4", "(S_2)^2", "trivial"]
    assert [(row.name, row.seed) for row in rows] == [(n, s) for s in (0, 1) for n in names]
    assert read_rows(tmp_path / "out") == rows
    assert {row.status for row in rows} == {"ok"}
    assert [row.commutant_dim for row in rows[:4]] == [None, 2, 6, 16]
    assert rows[3].parameters == 20 and rows[3].epochs == 6 and 1 <= rows[3].best_epoch <= 6
    assert rows[0].parameters is None and rows[0].is_baseline
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


def test_finished_cells_are_not_rerun(go):
    first = go(ToyTask())
    again = ToyTask()
    assert go(again) == first
    assert again.fits == 0 and again.steps == 0 and again.test_forwards == 0
    more = go(again, seeds=2)
    assert again.fits == 1 and more[: len(first)] == first


@pytest.mark.parametrize("step", [4, 8, 17])
def test_killed_run_resumes_bitwise(go, tmp_path, step):
    whole = go(ToyTask(), out="whole")
    with pytest.raises(KeyboardInterrupt):
        go(ToyTask(fail_at=step, error=KeyboardInterrupt()), out="killed")
    assert len(list((tmp_path / "killed" / "checkpoints").iterdir())) == 1
    after = ToyTask()
    resumed = go(after, out="killed")
    # Three steps make an epoch: only the interrupted epoch is trained again.
    assert after.steps == 18 - (step - 1) // 3 * 3
    assert comparable(resumed) == comparable(whole)


def test_a_kill_between_training_and_row_costs_nothing(go, tmp_path, monkeypatch):
    whole = go(ToyTask(), out="whole")
    append = engine.append_row

    def die(out, row, name):
        if row.group:
            raise KeyboardInterrupt
        append(out, row, name)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "append_row", die)
        with pytest.raises(KeyboardInterrupt):
            go(ToyTask(), out="killed")
    after = ToyTask()
    assert comparable(go(after, out="killed")) == comparable(whole)
    assert after.steps == 0
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())


def test_a_kill_between_row_and_checkpoint_leaves_nothing(go, tmp_path, monkeypatch):
    def die(self, keys):
        if list((self.out / "checkpoints").iterdir()):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "forget", die)
        with pytest.raises(KeyboardInterrupt):
            go(ToyTask())
    checkpoints = tmp_path / "out" / "checkpoints"
    assert len(list(checkpoints.iterdir())) == 1
    before, after = read_rows(tmp_path / "out"), ToyTask()
    assert go(after) == before and after.fits == 0
    assert not list(checkpoints.iterdir())


def test_a_folder_that_only_this_machine_sees_keeps_no_checkpoint(tmp_path):
    loaded = Loaded(ToyTask(), None, "quick", 0)
    job = running.Cells(loaded.task, loaded).group("trivial")
    (row,) = Worker(tmp_path, checkpoint_seconds=0.0).run((job,))
    assert row.status == "ok" and not list((tmp_path / "checkpoints").iterdir())


def test_resume_test_can_fail(go, monkeypatch):
    whole = go(ToyTask(), out="whole")
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    with pytest.raises(KeyboardInterrupt):
        go(ToyTask(fail_at=8, error=KeyboardInterrupt()), out="killed")
    assert comparable(go(ToyTask(), out="killed")) != comparable(whole)


def test_checkpoint_holds_no_code(go, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        go(ToyTask(fail_at=8, error=KeyboardInterrupt()))
    (path,) = (tmp_path / "out" / "checkpoints").iterdir()
    content = torch.load(path, weights_only=True)
    assert content["epoch"] == 2


def test_checkpoints_are_rare(go, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        go(ToyTask(fail_at=8, error=KeyboardInterrupt()), checkpoint_seconds=60.0)
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


def test_models_see_the_test_split_once_per_cell(go):
    task = ToyTask()
    rows = go(task, groups=(), seeds=2)
    assert task.test_forwards == sum(not row.is_baseline for row in rows) == 6


def test_best_validation_weights_are_tested(go, monkeypatch):
    task = ToyTask()
    seen = []
    original = task.metrics

    def metrics(prediction, split, problem):
        found = original(prediction, split, problem)
        seen.append(found["MSE"])
        return found

    monkeypatch.setattr(task, "metrics", metrics)
    row = go(task)[-1]
    # Two values of the baseline, one per epoch, then validation and test of the kept weights.
    epochs, (val, test) = seen[2:-2], seen[-2:]
    assert len(epochs) == 6
    assert row.val == val == min(epochs) and row.test == test
    assert row.best_epoch == 1 + epochs.index(min(epochs))


def test_infinite_loss_ends_the_cell_not_the_run(go, tmp_path):
    rows = go(ToyTask(fail_at=8), groups=("S_4", "trivial"))
    assert [row.status for row in rows] == ["ok", "diverged", "ok"]
    assert rows[1].val is None and rows[1].test is None and rows[1].epochs == 2
    saved = torch.load(tmp_path / "out" / "diverged" / f"{rows[1].key}.pt", weights_only=True)
    assert saved["seed"] == 0 and saved["inputs"].shape == (5, 4, 1)
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_ends_the_cell_not_the_run(go, error):
    rows = go(ToyTask(fail_at=8, error=error), groups=("S_4", "trivial"))
    assert [row.status for row in rows] == ["ok", "oom", "ok"]


def test_other_errors_are_not_swallowed(go):
    with pytest.raises(RuntimeError, match="shapes"):
        go(ToyTask(fail_at=1, error=RuntimeError("shapes")))


def test_a_model_that_comes_fitted_is_not_trained(go, monkeypatch):
    monkeypatch.setattr(ToyTask, "schedule", lambda self, profile, data: Schedule(epochs=0))
    monkeypatch.setattr(ToyTask, "model", lambda self, problem, group, profile: torch.nn.Tanh())
    task = ToyTask()
    row = go(task)[-1]
    assert row.status == "ok" and row.epochs == row.parameters == 0 and task.steps == 0
    test = task.load(None, "quick", 0).test
    assert row.test == pytest.approx((test.inputs.tanh() - test.targets).square().mean().item())


def test_rows_of_other_draws_stand_in_other_tables(go, monkeypatch, tmp_path):
    first = go(ToyTask(), seeds=2)
    monkeypatch.setattr(ToyTask, "draws", "each part by itself")
    second = go(ToyTask())
    assert not {row.key for row in first} & {row.key for row in second}
    (table,) = tabulate(read_rows(tmp_path / "out"))
    # The seed that was not drawn again is left out, although its data may be the same.
    assert [line.seeds for line in table.lines] == ["1", "1"] and table.superseded == 4


def test_key_depends_on_schedule_and_source(go, tmp_path, monkeypatch):
    first = go(ToyTask())
    assert go(ToyTask(), data=tmp_path)[-1].key != first[-1].key
    schedule = ToyTask().schedule("quick", None)
    monkeypatch.setattr(
        ToyTask, "schedule", lambda self, profile, data: type(schedule)(epochs=2, lr=0.1)
    )
    assert go(ToyTask())[-1].key != first[-1].key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "quik"}, "unknown profile 'quik'; did you mean quick"),
        ({"groups": ("trivil",)}, "unknown group 'trivil'; did you mean trivial"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"seeds": 0}, "at least one seed; got --seeds 0"),
    ],
)
def test_bad_requests_fail_before_any_work(go, options, message):
    task = ToyTask()
    with pytest.raises(BenchmarkError, match=message):
        go(task, **options)
    assert task.fits == 0


def test_task_that_needs_data(go, monkeypatch):
    monkeypatch.setattr(ToyTask, "needs_data", True)
    with pytest.raises(BenchmarkError, match=r"'toy' needs files.*--data"):
        go(ToyTask())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda(go):
    with pytest.raises(BenchmarkError, match="--device cpu"):
        go(ToyTask(), device="cuda")


def test_unwritable_out(go, tmp_path):
    (tmp_path / "out").write_text("a file, not a folder")
    task = ToyTask()
    with pytest.raises(BenchmarkError, match=r"cannot write to .*--out"):
        go(task)
    assert task.fits == 0


def test_results_of_other_code_are_refused(go, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RESULTS).write_text("a,b\n1,2\n")
    with pytest.raises(BenchmarkError, match="other code"):
        go(ToyTask())


def test_failing_write_keeps_the_old_results(tmp_path, monkeypatch):
    append_row(tmp_path, make_row())
    before = (tmp_path / RESULTS).read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        append_row(tmp_path, make_row(key="other"))
    assert (tmp_path / RESULTS).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS]


def test_rows_survive_the_file(tmp_path):
    rows = [
        make_row(test=0.1 + 0.2, unit='a "quoted", unit'),
        make_row(
            key="other", status="diverged", val=None, test=None, best_epoch=None, parameters=None
        ),
    ]
    for row in rows:
        append_row(tmp_path, row)
    assert read_rows(tmp_path) == rows


def test_provenance_names_versions():
    found = provenance()
    assert found["torch"] == torch.__version__
    assert all(found.values())


def test_the_time_that_is_left_is_told(go, capsys):
    go(ToyTask(), groups=("S_4", "trivial"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.endswith("; about 1 min left") for line in lines] == [True, True, False]
    go(ToyTask(), groups=("S_4", "trivial"))
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.endswith("already in the results") for line in again] == [True] * 3


def test_published_numbers_are_rows_once(go, monkeypatch, tmp_path):
    load = ToyTask.load
    quoted = {"Else": {"MSE": 0.1, "MAE": 0.2}}
    monkeypatch.setattr(
        ToyTask, "load", lambda self, *args: replace(load(self, *args), published=quoted)
    )
    monkeypatch.setattr(ToyTask, "units", {"MAE": "V"})
    rows = [row for row in go(ToyTask(), seeds=2) if row.model == "Else, as published"]
    assert len(rows) == 1 and rows[0].is_baseline
    assert rows[0].test == 0.1 and rows[0].val is None and rows[0].value("test", "MAE") == 0.2
    assert [value.unit for value in rows[0].values] == ["V^2", "V"]
    page = write_report(tmp_path / "out", None).read_text()
    assert "| Else, as published (baseline) |" in page


def test_an_example_is_kept_for_the_report(go, monkeypatch, tmp_path):
    drawn = []

    def example(self, problem):
        drawn.append(problem.dataset)
        return Figure()

    monkeypatch.setattr(ToyTask, "example", example)
    checksums = [go(kind())[0].checksum for kind in (ToyTask, ToyTask, OtherData, OtherData)]
    assert drawn == ["noise"] * 2
    old, new = checksums[0], checksums[-1]
    page = write_report(tmp_path / "out").read_text()
    assert f"![an example](toy_noise_quick_{new}_example.png)" in page and old not in page
    # Other groups of the same names on the same data: it is drawn again.
    go(OtherGroup())
    go(OtherGroup())
    assert drawn == ["noise"] * 3


def test_predictions_are_made_again_for_other_data(go, monkeypatch, tmp_path):
    made = []

    def predict(problem, options):
        made.append(len(problem.train))
        return Prediction(len(problem.train), "S_4", (), f"prediction {len(made)}")

    monkeypatch.setattr(running, "predict", predict)
    for counts in ((4,), (4, 6), (4,)):
        go(ToyTask(), signals=counts)
    assert made == [4, 6]
    page = write_report(tmp_path / "out").read_text()
    assert "from 4 signals: prediction 1" in page and "from 6 signals: prediction 2" in page
    go(OtherData(), signals=(4,))
    assert made == [4, 6, 4]
    page = write_report(tmp_path / "out").read_text()
    assert "from 4 signals: prediction 3" in page


class OtherData(ToyTask):
    def load(self, data, profile, seed):
        problem = super().load(data, profile, seed)
        problem.train.inputs[0, 0, 0] += 1e-6
        return problem


class OtherGroup(ToyTask):
    """Has another group of the same name: a 3-cycle in the place of the clusters."""

    def load(self, data, profile, seed):
        problem = super().load(data, profile, seed)
        cycle = PermutationGroup(4, [[1, 2, 0, 3]])
        return dataclasses.replace(problem, groups={**problem.groups, "(S_2)^2": cycle})


def test_rows_name_their_data_and_group(go):
    copy, first = go(ToyTask(), groups=("(S_2)^2",))
    assert len(copy.checksum) == len(first.checksum) == len(first.fingerprint) == 16
    assert copy.fingerprint == ""
    second = go(OtherGroup(), groups=("(S_2)^2",))[-1]
    assert second.checksum == first.checksum and second.fingerprint != first.fingerprint
    third = go(OtherData(), groups=("(S_2)^2",))[-1]
    assert third.checksum != first.checksum and third.fingerprint == first.fingerprint
    assert len({row.key for row in (first, second, third)}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda patch: OtherData, r"data of checksum \w{16}, now \w{16}\. Such cells are run"),
        (lambda patch: OtherGroup, r"hold groups of fingerprint \w{16}, now \w{16}\. Such"),
        (lambda patch: patch.setattr("torch.get_num_threads", lambda: 7) or ToyTask, "7"),
        (lambda patch: patch.setattr(engine, "version", lambda: "9.9") or ToyTask, ""),
    ],
)
def test_what_changed_since_is_said(go, monkeypatch, capsys, change, message):
    go(ToyTask(), groups=("(S_2)^2",))
    kind = change(monkeypatch)
    if message == "":  # the version of the library, in the key and in what is said
        monkeypatch.setattr(running, "version", lambda: "9.9")
        message = r"the results hold gsym \S+, now 9\.9\. Such"
    capsys.readouterr()
    task = kind()
    go(task, groups=("(S_2)^2",))
    assert task.fits == 1
    said = [line for line in capsys.readouterr().out.splitlines() if "Such cells" in line]
    assert len(said) == 1 and re.search(message, said[0])


def test_too_many_seeds_are_refused(go):
    with pytest.raises(BenchmarkError, match="at most 1000 seeds; got --seeds 5000"):
        go(ToyTask(), seeds=5000)
