"""The snippet of a user runs, and mypy is told to be strict with it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import user_snippet
from mypy.main import process_options
from mypy.options import PER_MODULE_OPTIONS

ROOT = Path(__file__).parents[1]
SNIPPET = "user_snippet"


def test_the_snippet_runs():
    assert user_snippet.right().answer.endswith(".")


def test_mypy_checks_it_with_all_flags_of_strict():
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert f"tests/{SNIPPET}.py" in mypy["files"]
    flags = {}
    for override in mypy["overrides"]:
        if SNIPPET in override["module"]:
            flags |= override
    _, lax = process_options(["--config-file", "", "-c", "1"])
    _, strict = process_options(["--config-file", "", "--strict", "-c", "1"])
    wanted = {name for name in PER_MODULE_OPTIONS if getattr(strict, name) != getattr(lax, name)}
    assert {"disallow_untyped_defs", "warn_return_any", "warn_unused_ignores"} <= wanted
    for name in sorted(wanted):
        assert flags.get(name) == getattr(strict, name), name
