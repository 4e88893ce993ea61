"""The script for a machine with a GPU, with a Python that only says what it is asked to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
BARS = ["H3", "H1", "H2", "H4", "H6", "H8", "H5"]
STUB = """#!{bash}
echo "$@" >> {told}
case "$*" in
  -c*is_available*) exit {blind} ;;
  -c*) exit 0 ;;
  "- torch "*) exit 0 ;;
  "-m pytest"*gpu*) echo "12 passed"; exit {failed} ;;
  "-m gsym_bench"*)
    file={out}/kernels.csv
    [[ -e $file ]] || echo device,bar,case,mode,setting,variant,ratio,least,met > $file
    [[ $7 == {missing} ]] || echo "cuda,$7,EGNNConv,forward,exact,PyG,6.1,5.0,yes" >> $file ;;
  "- "*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def go(tmp_path):
    def go(blind=0, failed=0, missing="none", begun=0):
        told, out = tmp_path / "told", tmp_path / "out"
        values = {"told": told, "out": out, "blind": blind, "failed": failed, "missing": missing}
        stub = tmp_path / "python"
        stub.write_text(STUB.format(bash="/usr/bin/env bash", python=sys.executable, **values))
        stub.chmod(0o755)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        env = {"PYTHON": str(stub), "OUT": str(out), "PATH": path, "SECONDS": str(begun)}
        command = ["bash", str(SCRIPT)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        return done, told.read_text().splitlines(), out

    return go


def test_every_step_is_run_and_summed_up(go):
    done, told, out = go()
    assert done.returncode == 0, done.stderr
    measured = [line.split()[6] for line in told if line.startswith("-m gsym_bench kernels")]
    assert measured == BARS
    summary = (out / "summary.txt").read_text().splitlines()
    assert summary[0] == "tests: 12 passed"
    assert summary[2] == "H3: EGNNConv, forward, exact, PyG: ratio 6.1, asked for 5.0: yes"
    assert len(summary) == 2 + len(BARS) and done.stdout.splitlines()[-1].endswith(f"in {out}")


def test_a_failure_and_a_bar_without_rows_are_told(go):
    done, _, out = go(failed=1)
    assert done.returncode == 1 and "12 passed" in (out / "summary.txt").read_text()
    (out / "kernels.csv").unlink()
    done, _, out = go(missing="H4")
    assert done.returncode == 1
    told = (out / "summary.txt").read_text()
    assert "H4: not measured" in told and told.count("not measured") == 1


def test_what_there_is_no_time_for_is_left_out(go):
    done, told, out = go(begun=530)
    assert done.returncode == 1
    assert not [line for line in told if line.startswith("-m")]
    assert done.stdout.count("left out, no time") == 3 + len(BARS)
    assert (out / "summary.txt").read_text().count("not measured") == len(BARS)


def test_without_a_gpu_it_says_so_and_does_nothing(go, tmp_path):
    # A driver without a card, should this machine have one.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    done, told, out = go(blind=1)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "gpu.sh: no GPU here, nothing was done\n"
    assert len(told) == 1 and not out.exists()
