"""The wheel: it holds every file that the packages need, and runs a task in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TASK = ROOT / "tests" / "toy_task.py"


def call(*words, **options):
    return subprocess.run(
        [*map(str, words)], capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if not (ROOT / ".git").exists():
        pytest.skip("a wheel is built from a checkout only")
    out = tmp_path_factory.mktemp("wheel")
    done = call(sys.executable, "-m", "uv", "build", "-q", "--wheel", ROOT, "--out-dir", out)
    if done.returncode:
        pytest.skip(f"no wheel can be built here, as without a network: {done.stderr[-300:]}")
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    tracked = call("git", "ls-files", "gsym", "gsym_bench", "data_scripts", cwd=ROOT).stdout.split()
    held = set(zipfile.ZipFile(wheel).namelist())
    assert len(tracked) > 200 and any(not name.endswith(".py") for name in tracked)
    assert sorted(set(tracked) - held) == []


def test_the_wheel_runs_a_task_in_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = ["uv", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    done = call(sys.executable, "-m", *install)
    assert done.returncode == 0, done.stderr
    text = TASK.read_text(encoding="utf-8")
    text = text.replace("import Problem,", "import register, Problem,", 1)
    text = text.replace("class ToyTask", "@register\nclass ToyTask", 1)
    text += '\nimport gsym_bench\nprint(f"of {gsym_bench.__file__}")\n'
    (empty / "mine.py").write_text(text, encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if k != "GSYM_DATA"}
    env |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    words = [
        "run",
        "--task",
        "mine.py",
        "--seeds",
        "1",
        "--device",
        "cpu",
        "--groups",
        "trivial",
        "--batched-seeds",
    ]
    done = call(sys.executable, site / "bin" / "gsym-bench", *words, cwd=empty, env=env)
    assert done.returncode == 0, done.stderr
    assert f"of {site}" in done.stdout
    assert "The whole report is in results/report.md" in done.stdout
    rows = (empty / "results" / "results.csv").read_text(encoding="utf-8")
    assert rows.count(",trivial,") == 5 and rows.count(",ok,") == 9
