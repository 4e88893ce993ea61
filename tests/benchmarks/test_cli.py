"""The command line: it teaches, and wrong input ends with one line and exit code 2."""

from __future__ import annotations

import pytest
from toy_task import ToyTask

from gsym_bench import tasks
from gsym_bench.__main__ import main


@pytest.fixture
def toy(monkeypatch):
    task = ToyTask()
    monkeypatch.delenv("GSYM_DATA", raising=False)
    monkeypatch.setitem(tasks.TASKS, "toy", task)
    return task


def test_run_and_report(toy, tmp_path, capsys):
    out = tmp_path / "out"
    main(["run", "toy", "--seeds", "1", "--device", "cpu", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "toy, noise, trivial, seed 0" in printed
    assert "chosen by validation" in printed
    assert "report.md" in printed.splitlines()[-1]
    assert (out / "report.md").exists() and (out / "results.csv").exists()
    (out / "report.md").unlink()
    main(["report", "--out", str(out)])
    assert (out / "report.md").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "inpaintin"], "unknown task 'inpaintin'; did you mean inpainting"),
        (["run", "toy", "--groups", "trivail"], "unknown group 'trivail'; did you mean trivial"),
        (["run", "toy", "--profile", "qick"], "unknown profile 'qick'; did you mean quick"),
        (["run", "toy", "--data", "nowhere-at-all"], "--data nowhere-at-all is not a folder"),
        (["run", "inpainting-mnist"], "needs files"),
        (["report"], "no results in"),
        (["run", "toy", "--seeds", "5000"], "at most 1000 seeds; got --seeds 5000"),
        (["covariance", "--seeds", "0"], "at least one seed; got --seeds 0"),
        (["overtaking", "--seeds", "5000"], "at most 1000 seeds; got --seeds 5000"),
        (["signs", "--truths", "0"], "at least one seed; got --truths 0"),
        (["run", "toy", "--engine", "ray", "--workers", "2"], "leave it out with ray"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(toy, tmp_path, capsys, args, message):
    with pytest.raises(SystemExit) as stop:
        main([*args, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert toy.fits == 0
    assert not (tmp_path / "out" / "results.csv").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, b"", "data_scripts.fetch metr-la"),
        ("traffic/metr_la.npz", b"PK nonsense", "metr_la.npz"),
    ],
)
def test_data_that_cannot_be_read_is_one_line(tmp_path, capsys, name, content, message):
    data = tmp_path / "data"
    data.mkdir()
    if name:
        (data / name).parent.mkdir()
        (data / name).write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(["run", "traffic", "--data", str(data), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["list", "run"])
def test_no_such_data_folder(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--data", "nowhere-at-all"])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "--data nowhere-at-all is not a folder" in printed.err
    assert not printed.out


def test_kernels_need_a_folder_to_write_to(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main(["kernels", "--out", str(tmp_path / "file")])
    assert stop.value.code == 2
    assert "cannot write to" in capsys.readouterr().err


def test_data_folder_comes_from_the_environment(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GSYM_DATA", str(tmp_path))
    out = tmp_path / "out"
    main(["run", "toy", "--seeds", "1", "--groups", "S_4", "--device", "cpu", "--out", str(out)])
    assert ",files," in (out / "results.csv").read_text()


def test_list(toy, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "TASKS", {"toy": toy})
    main(["list"])
    printed = capsys.readouterr().out
    for word in ("toy: Toy", "V^2", "noise", "'(S_2)^2'", "copy"):
        assert word in printed


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--help"], ["run", "report", "list", "kernels"]),
        (["run", "--help"], ["GSYM_DATA", "gsym-bench run skeleton"]),
        (["report", "--help"], ["README.md"]),
    ],
)
def test_help_teaches(capsys, args, words):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)
