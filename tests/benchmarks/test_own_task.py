"""Anyone's task: the page's example runs as printed, and a bad file is one clear line."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from gsym_bench import tasks
from gsym_bench.__main__ import main
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.results import read_rows

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "own_task.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in; tasks that a test adds are forgotten after it."""
    monkeypatch.delenv("GSYM_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    before = dict(tasks.TASKS)
    yield tmp_path
    tasks.TASKS.clear()
    tasks.TASKS.update(before)


def forget(path):
    """Let a file of a task be read anew, as in another process."""
    del sys.modules[f"gsym_bench.tasks.of_file.{path}"]


def test_the_task_of_the_page_runs_as_printed(folder, capsys):
    code, command = blocks("python")[0], blocks("sh")[0]
    (folder / "my_task.py").write_text(code)
    words = shlex.split(command)
    assert words[0] == "gsym-bench"
    main([*words[1:], "--device", "cpu"])
    rows = read_rows(folder / "results")
    assert {row.task for row in rows} == {"rooms"}
    assert {row.name for row in rows} == {"as read", "S_8", "floors", "trivial"}
    error = {name: min(r.test for r in rows if r.name == name) for name in ("as read", "floors")}
    assert error["floors"] < 0.8 * error["as read"]
    assert "Rooms on two floors" in (folder / "results" / "report.md").read_text()
    # The page tells a command that makes its rows again, also to those who have not read the file.
    tasks.TASKS.pop("rooms")
    main(["report"])
    page = (folder / "results" / "report.md").read_text()
    (again,) = set(re.findall(r"Made with `gsym-bench (.*)`\.", page))
    assert again == "run rooms --task my_task.py --profile quick --seeds 5"
    forget(folder / "my_task.py")
    main([*shlex.split(again), "--device", "cpu"])
    assert read_rows(folder / "results") == rows
    capsys.readouterr()
    main(["list", "--task", "my_task.py"])
    printed = capsys.readouterr().out
    assert printed.startswith("rooms: Rooms on two floors, MAE (degrees)")
    assert "traffic" not in printed


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "is not a Python file; name one that registers a task"),
        ("import nothing_of_this_name\n", "No module named 'nothing_of_this_name' (line 1)"),
        ("x = 1\ny = x + z\n", "NameError: name 'z' is not defined (line 2)"),
        ("def f(:\n", "SyntaxError"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3 (line 2)"),
        ("x = 1\n", "registers no task; decorate a class"),
        (
            "from gsym_bench.suite.task import Task, register\n"
            "@register\nclass Half(Task):\n    name = 'half'\n",
            "Can't instantiate abstract class",
        ),
        (
            "from gsym_bench.tasks.inpainting import Inpainting, register\n"
            "@register\nclass Mine(Inpainting):\n    pass\n",
            "two tasks are called 'inpainting'",
        ),
    ],
)
def test_a_file_without_a_task_is_one_line(folder, capsys, code, message):
    if code is not None:
        (folder / "mine.py").write_text(code)
    known = dict(tasks.TASKS)
    with pytest.raises(SystemExit) as stop:
        main(["run", "--task", "mine.py"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "mine.py" in error and error.count("\n") == 1
    assert not (folder / "results").exists()
    assert known == tasks.TASKS


def test_a_file_is_run_once(folder):
    (folder / "mine.py").write_text(blocks("python")[0])
    first = tasks.load_task_file(Path("mine.py"))
    assert tasks.load_task_file(folder / "mine.py") == first
    with pytest.raises(BenchmarkError, match="did you mean rooms"):
        tasks.get_tasks(["room"])
