"""Faults: which there are, that a sample stays, and that tests are credited for what they see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="cosmic-ray is not installed: make gate-extras")
pytest.importorskip("coverage", reason="coverage is not installed: make gate-extras")

from gsym_bench.mutants import __main__ as suite
from gsym_bench.mutants.faults import describe, draw, places
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.study_tables import read_records, write_records

ROOT = Path(__file__).parents[2]
SOURCE = '''"""A file."""


def clip(value: int | None, high: int = 3) -> int:
    """Ten - 1 words."""
    count = 0
    count += 1
    check(value)
    if value > high:
        return high
    return value


def check(value):
    if value is None:
        raise ValueError("no value")
'''


def faults(source, path="a.py", lines=range(10**6)):
    found = [
        describe(source, path, operator, occurrence)
        for (line, _), choices in places(source).items()
        if line in lines
        for operator, occurrence in choices
    ]
    return [fault for fault in found if fault is not None]


def changes(source):
    return {(fault.before, fault.after) for fault in faults(source)}


def test_faults_of_every_kind():
    found = changes(SOURCE)
    assert ("check(value)", "pass") in found
    assert ("count += 1", "pass") in found
    assert ('raise ValueError("no value")', "pass") in found
    assert ("return high", "return None") in found
    assert ("if value > high:", "if value < high:") in found
    assert ("if value > high:", "if not value > high:") in found
    assert ("if value is None:", "if value is not None:") in found
    assert any(before == "count = 0" for before, _ in found)


def test_annotations_and_docstrings_hold_no_fault():
    assert all("->" not in before or "= 3" in before for before, _ in changes(SOURCE))
    assert all(" | " in after for before, after in changes(SOURCE) if " | " in before)
    assert all("words" not in before for before, _ in changes(SOURCE))


def test_a_fault_that_once_was_missed_is_among_them():
    path = "gsym/groups/partition.py"
    source = (ROOT / path).read_text(encoding="utf-8")
    line = source[: source.index("def fingerprint")].count("\n") + 1
    found = faults(source, path, range(line, line + 4))
    assert ("Partition.fingerprint", "return None") in {(f.scope, f.after) for f in found}


def test_what_is_planted_is_what_is_described():
    for fault in faults(SOURCE):
        planted = fault.plant(SOURCE)
        compile(planted, "a.py", "exec")
        assert fault.after.split()[0] in planted and planted != SOURCE


def test_the_sample_does_not_move_with_the_lines(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(SOURCE)
    first = draw(tmp_path, ["a.py"], 8, seed=0)
    path.write_text(SOURCE.replace('"""A file."""', '"""A file."""\n\nNAME = "a"\n'))
    moved = draw(tmp_path, ["a.py"], 8, seed=0)
    assert [fault.key for fault in moved] == [fault.key for fault in first]
    assert [b.line - a.line for a, b in zip(first, moved, strict=True)] == [3] * 8
    other = draw(tmp_path, ["a.py"], 8, seed=1)
    assert {fault.key for fault in other} != {fault.key for fault in first}
    with pytest.raises(BenchmarkError, match=r"expected at most \d+ faults, got --count 999"):
        draw(tmp_path, ["a.py"], 999, seed=0)


TRIAL = """
import json, sys
from pathlib import Path
from gsym_bench.mutants.faults import describe, places
from gsym_bench.mutants.trial import trace, try_out
tree = Path(sys.argv[1])
sys.path.insert(0, str(tree))
source = (tree / "small.py").read_text()
traced = trace(tree, "small.py", ["test_*.py"])
found = {}
for choices in places(source).values():
    for operator, occurrence in choices:
        fault = describe(source, "small.py", operator, occurrence)
        if fault and [fault.before, fault.after] in json.loads(sys.argv[2]):
            outcome, test = try_out(tree, fault, traced)
            found[fault.before + " -> " + fault.after] = outcome, test, traced.of(fault)
assert (tree / "small.py").read_text() == source
print(json.dumps(found))
"""


def test_a_trial_tells_what_the_tests_notice(tmp_path):
    (tmp_path / "small.py").write_text(
        "LIMIT = 3\n\n\ndef clip(value):\n    if value > LIMIT:\n        return LIMIT\n"
        "    return value\n\n\ndef count(n):\n    while n > 0:\n        n -= 1\n    return n\n"
    )
    (tmp_path / "test_small.py").write_text(
        "from small import clip, count\n\n\ndef test_low():\n    assert clip(2) == 2\n\n\n"
        "def test_high():\n    assert clip(9) <= 9\n\n\n"
        "def test_count():\n    assert count(4) == 0\n"
    )
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    wanted = [
        ["return value", "return None"],  # seen by one test
        ["return LIMIT", "return None"],  # seen by a test that fails of another reason
        ["LIMIT = 3", "LIMIT = 4"],  # not seen, at import
        ["if value > LIMIT:", "if value >= LIMIT:"],
        ["n -= 1", "pass"],  # for ever
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, str(tmp_path), json.dumps(wanted)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {key: (outcome, test) for key, (outcome, test, _) in json.loads(done.stdout).items()}
    assert found == {
        "return value -> return None": ("killed", "test_small.py::test_low"),
        "return LIMIT -> return None": ("killed", "test_small.py::test_high"),
        "LIMIT = 3 -> LIMIT = 4": ("survived", ""),
        "if value > LIMIT: -> if value >= LIMIT:": ("survived", ""),
        "n -= 1 -> pass": ("timeout", ""),
    }
    runs = {key: tests for key, (_, _, tests) in json.loads(done.stdout).items()}
    assert runs["return LIMIT -> return None"] == ["test_small.py::test_high"]
    assert len(runs["LIMIT = 3 -> LIMIT = 4"]) == 3


def row(outcome, key="k", path="gsym/groups/chain.py"):
    return suite.Row(key, "s", path, 1, "f", "AddNot", "if a | b:", "if b:", outcome, "t", 1, 0.5)


def test_the_page_counts_and_names(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "VERDICTS", tmp_path / "verdicts.csv")
    suite.VERDICTS.write_text(
        "key,verdict,reason\nsame,equivalent,the seed alone changes\nmissed,missing,no such graph\n"
    )
    rows = [row("killed"), row("timeout"), row("survived", "missed"), row("survived", "same")]
    page = suite.page([*rows, row("killed", path="gsym/nn/linear.py")], "`command`")
    assert "| `gsym/groups` | 4 | 2 | 1 | 1 | 1 | 66.7 % |" in page
    assert "| all | 5 | 3 | 1 | 1 | 1 | 75.0 % |" in page
    missed, same = page.split("## Missed")[1].split("## Equivalent")
    assert "| `gsym/groups/chain.py` f | `if a \\| b:` | `if b:` | no such graph |" in missed
    assert "the seed alone changes" in same and "Made with `command`" in same
    write_records(tmp_path / suite.FILE, suite.Row, rows)
    assert read_records(tmp_path / suite.FILE, suite.Row) == rows
