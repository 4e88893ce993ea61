"""A task is one file and its test: all lists come from the registry."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from toy_task import ToyTask

from gsym_bench import suite, tasks
from gsym_bench.__main__ import main
from gsym_bench.suite.results import read_rows
from gsym_bench.suite.task import register

MODULE = """
from toy_task import ToyTask

from gsym_bench.suite.task import register


@register
class Small(ToyTask):
    name = "small"
    title = "A small task"
"""


@pytest.fixture
def added(tmp_path, monkeypatch):
    """A module in the folder of tasks, and nothing else."""
    monkeypatch.delenv("GSYM_DATA", raising=False)
    before = dict(tasks.TASKS)
    tasks.TASKS.clear()  # the others take seconds to load
    (tmp_path / "small.py").write_text(MODULE)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    tasks.discover()
    yield
    sys.modules.pop("gsym_bench.tasks.small")
    tasks.TASKS.clear()
    tasks.TASKS.update(before)


def test_a_module_in_the_folder_is_enough(added, tmp_path, capsys):
    main(["list"])
    assert "small: A small task, MSE (V^2), model dense" in capsys.readouterr().out
    out = tmp_path / "out"
    main(["run", "small", "--groups", "S_4", "--seeds", "1", "--device", "cpu", "--out", str(out)])
    assert "## A small task: noise, quick" in (out / "report.md").read_text()
    assert {row.task for row in read_rows(out)} == {"small"}
    with pytest.raises(SystemExit):
        main(["run", "smal", "--out", str(out)])
    assert "unknown task 'smal'; did you mean small" in capsys.readouterr().err


def test_no_other_file_of_the_engine_names_a_task():
    root = Path(suite.__file__).parent
    named = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in tasks.TASKS))
    assert named.search("from gsym_bench.tasks.traffic import Traffic")
    for path in [*root.rglob("*.py"), root.parent / "tasks" / "__init__.py"]:
        code = [line for line in path.read_text().splitlines() if "import" in line or '"' in line]
        assert not [line for line in code if named.search(line)], path


def test_two_tasks_of_one_name_are_refused(added):
    with pytest.raises(ValueError, match="two tasks are called 'small'"):

        @register
        class Other(ToyTask):
            name = "small"


COUNTS = [task for task in tasks.TASKS.values() if not task.needs_data]


@pytest.mark.parametrize("task", COUNTS, ids=lambda task: task.name)
def test_held_out_data_are_the_same_at_every_number_of_signals(task):
    one, other = (task.load_few(None, "quick", 3, count) for count in (12, 40))
    assert (len(one.train), len(other.train)) == (12, 40)
    for a, b in ((one.val, other.val), (one.test, other.test)):
        arrays = [(a.inputs, b.inputs), (a.targets, b.targets)]
        arrays += [(a.aux[name], b.aux[name]) for name in a.aux]
        # Readings that are missing are NaN in some.
        assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in arrays)
    assert torch.equal(one.train.targets, other.train.targets[:12])
