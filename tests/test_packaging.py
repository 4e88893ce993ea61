"""What is installed: versions with hashes for users, and nothing under the GPL unless asked for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
GPL = {"igraph", "python-igraph", "pynauty", "leidenalg"}


def named(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def direct(*extras):
    """Packages that extras ask for, those of the project's own extras in them included."""
    found = {named(requirement) for requirement in PROJECT["dependencies"]}
    for extra in extras:
        for requirement in EXTRAS[extra]:
            inner = re.match(r"gsym\[(.*)\]", requirement)
            found |= direct(*inner[1].split(",")) if inner else {named(requirement)}
    return found


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return dict(line.split("==") for line in lines)


def locked():
    """Version and number of hashes of every package of requirements.txt."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    found = {}
    for entry in entries:
        name, version = re.match(r"([a-z0-9.-]+)==([^\s;]+)", entry).groups()
        found[name] = version, len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry))
    return found


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_only_one_extra_brings_the_gpl(extra):
    assert bool(direct(extra) & GPL) == (extra == "sym")


def test_every_version_of_the_lock_has_hashes_and_is_the_tested_one():
    tested, found = constraints(), locked()
    assert len(found) > 100
    assert not GPL & set(found)
    assert [name for name, (_, hashes) in found.items() if not hashes] == []
    common = set(found) & set(tested)
    other = {n: (found[n][0], tested[n]) for n in common if found[n][0] != tested[n]}
    assert other == {}, "run make lock"


def test_the_lock_holds_all_that_users_install():
    assert direct("dev", "docs") <= set(locked()), "run make lock"


def test_every_direct_dependency_has_a_tested_version():
    # torch-scatter is built on demand, for the torch that is there.
    asked = set().union(*(direct(extra) for extra in EXTRAS)) - {"torch-scatter"}
    assert asked <= set(constraints())


def test_the_citation_names_the_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in text
    assert "arXiv:2308.10436" in text
