"""The command without the packages of its extra: one line that says what to install."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gsym_bench import __main__ as cli
from gsym_bench.extras import EXTRAS, missing

ROOT = Path(__file__).parents[2]
BARE = """
import runpy, sys
from importlib.abc import MetaPathFinder

class Bare(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Bare())
sys.argv = ["gsym-bench", "list"]
if {script}:
    from gsym_bench.__main__ import main
    main()
else:
    runpy.run_module("gsym_bench", run_name="__main__")
"""


@pytest.mark.parametrize("script", [True, False])
def test_without_extras_one_line_says_which_to_install(script):
    code = BARE.format(names=set(EXTRAS), script=script)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told = "error: gsym-bench needs tyro; install it with: pip install 'gsym[bench]'\n"
    assert (done.returncode, done.stderr, done.stdout) == (2, told, "")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("No", name="matplotlib.figure"), "needs matplotlib; .*'gsym.bench.'"),
        (ModuleNotFoundError("No", name="sknetwork"), "needs sknetwork; .*'gsym.cluster.'"),
        (ImportError("reading HDF5 needs h5py; pip install 'gsym[files]'"), "HDF5 needs h5py"),
    ],
)
def test_what_a_command_lacks_is_one_line(monkeypatch, capsys, error, told):
    def lacking(**_):
        raise error

    monkeypatch.setattr(cli.app, "cli", lacking)
    with pytest.raises(SystemExit) as stop:
        cli.main(["list"])
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and printed.count("\n") == 1
    assert re.search(f"^error: .*{told}", printed)


@pytest.mark.parametrize(
    "error", [ImportError("cannot import name 'x'"), ModuleNotFoundError("No", name="gsym_bench.x")]
)
def test_faults_of_ours_are_not_taken_for_it(error):
    assert missing(error) is None


def test_extras_bring_what_is_said():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    called = {
        "sknetwork": "scikit-network",
        "cosmic_ray": "cosmic-ray",
        "torch_scatter": "torch-scatter",
    }
    for name, extra in EXTRAS.items():
        listed = [*extras[extra], *(extras["cli"] if "gsym[cli]" in extras[extra] else [])]
        held = any(line.startswith(called.get(name, name)) for line in listed)
        assert held or name == "PIL", name  # which matplotlib brings
