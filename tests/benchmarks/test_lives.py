"""A suite that is killed, interrupted or started twice ends in the rows of an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "lives.py"
# Each ends in another place; the script by itself takes any number of them.
KILLS = 3


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the script prints; it forks, which a process with threads should not."""
    root = SCRIPT.parents[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{root / 'tests'}"}
    env.pop("GSYM_DATA", None)
    folder = tmp_path_factory.mktemp("lives")
    command = [sys.executable, str(SCRIPT), str(folder), "--kills", str(KILLS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kills_during_training_change_no_bit(told):
    killed = told["killed"]
    assert killed["died"] >= KILLS and killed["rows"] == 8
    assert killed["left"] == []
    assert killed["equal"] == [True] * len(killed["equal"])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_command_ends_its_workers_and_says_how_to_go_on(told, name):
    found = told[name]
    assert found["code"] == 130 and not found["alive"]
    assert found["told"].startswith("interrupted; finished cells are kept: go on with gsym-bench")
    assert " run toy --seeds 2 " in found["told"] and found["told"].count("\n") == 1
    assert found["first"] == 1 and found["again"] == 0 and found["equal"]


def test_a_second_command_is_told_who_writes(told):
    found = told["compete"]
    assert (found["first"], found["second"]) == (0, 2)
    assert f"process {found['pid']} on " in found["told"]
    assert found["told"].count("\n") == 1
    assert found["equal"]


def test_two_processes_share_batches_and_change_no_metric(told):
    found = told["share"]
    # One that is killed takes the other along; what both had trained is kept.
    assert found["killed"][0] == -9 and found["killed"][1] == 1 and found["left"] == 1
    assert found["ended"] == [0, 0]
    assert found["cells"][0] == found["cells"][1] and found["values"] == 32
    assert found["difference"] < 1e-5
    assert found["devices"] == ["2 x cpu", "cpu"]


def test_a_disk_that_is_full_in_mid_training_costs_no_row(told):
    found = told["full"]
    assert found["code"] == 2 and "make room, then go on with gsym-bench" in found["told"]
    assert found["told"].count("\n") == 1 and found["first"] == 2 and found["left"] == []
    assert found["again"] == 0 and found["equal"]
