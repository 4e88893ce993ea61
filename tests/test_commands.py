"""Every printed command can be given, those of the guide run; links lead somewhere."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tyro")

from gsym import __main__ as gsym_entry
from gsym._cli import app as gsym_app
from gsym_bench import __main__ as bench

ROOT = Path(__file__).parents[1]
GUIDE = [ROOT / "README.md", *sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.md"))]
# The list of changes names options, not commands.
GUIDE += [p for p in sorted((ROOT / "docs/pages").glob("*.md")) if p.name != "changelog.md"]
GUIDE += sorted((ROOT / "docs/gallery").glob("*.py"))
RESULTS = sorted((ROOT / "docs/pages/results").glob("*.md"))
PROGRAMS = ("gsym", "gsym-bench", "make", "pip", "python", "bash")

# Run below, in a folder with files of these names.
HERE = {
    "gsym choose --help",
    "gsym choose --graph edges.csv --signals x.csv --out page.html",
    "gsym choose --graph edges.csv --signals x.npz --targets y.npz --out report.html",
    "gsym coarsen --graph edges.csv --levels 4 8 16 --out clusters.npz",
    "gsym choose --graph edges.csv --signals x.npz --targets y.npz --partitions clusters.npz",
    "gsym symmetries --graph edges.csv",
    "gsym-bench run --help",
}
# Run by another test or by the gate.
ELSEWHERE = {
    "gsym-bench run --task my_task.py": "tests/benchmarks/test_own_task.py",
    "gsym-bench run --task FILE": "tests/benchmarks/test_own_task.py",
    "gsym-bench list --task my_task.py": "tests/benchmarks/test_own_task.py",
    "gsym-bench reconstruct --graph roads.csv --signals speeds.csv --unit mph": (
        "tests/benchmarks/test_own_data.py"
    ),
    "gsym-bench forecast --graph roads.csv --signals speeds.csv --unit mph --history 12 "
    "--horizon 3": "tests/benchmarks/test_own_data.py",
    "gsym-bench report --out docs/pages/results --embed README.md": "tests/test_commands.py",
    "gsym-bench page": "docs/check.py",
    "gsym build-kernels --march x86-64-v3 --out /opt/gsym": "tests/kernels/test_cpp_ahead.py",
    "bash benchmarks/gpu.sh": "tests/benchmarks/test_gpu_script.py",
    "python docs/behaviour.py": "tests/test_module_behaviour.py",
    "make test": ".ci/run",
    "make lint": ".ci/run",
    "make docs": ".ci/run",
}
# Not run in the gate, and why.
NEVER = {
    "make bench": "trains for minutes; tests train every task for a few steps",
    "gsym-bench run --profile quick": "is make bench",
    "gsym-bench run --profile standard --data data": "trains for hours on real data",
    "gsym-bench penguin": "trains for an hour",
    "gsym-bench softlayers": "trains for hours",
    "python data_scripts/fetch.py all --out data": "gigabytes; tests fetch from a local server",
    "python -m gsym_bench.kernels.versions TREE": "measures speed, which nothing else may disturb",
    "make matrix": "builds an environment per Python and PyTorch",
    "MATRIX=1 bash .ci/run": "is the gate, and make matrix",
    "make release": "tags a commit",
}


def commands(page, *, generated=True):
    """The commands of a page, in blocks and in running text, without prompts and folders."""
    text = page.read_text(encoding="utf-8")
    if not generated:
        text = re.sub(r"<!-- results:begin -->.*?<!-- results:end -->", "", text, flags=re.DOTALL)
    if page.suffix == ".py":
        text = re.sub(r"``", "`", re.sub(r"\n# ", " ", text))
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = [line for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    for line in found:
        for part in line.split(" && "):
            words = shlex.split(part, comments=True) if balanced(part) else []
            if not words:
                continue
            words[0] = words[0].removeprefix(".venv/bin/")
            command = [word for word in words if not re.fullmatch(r"[A-Z_]+=\w+", word)]
            # A bare name is a name, and "choose --lag --horizon" names options.
            if command and command[0] in PROGRAMS and len(command) > 1:
                yield shlex.join(words)


def balanced(line):
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return True


def names_only(command):
    """A subcommand alone, such as `gsym choose`, which is mentioned, not given."""
    words = command.split()
    return (words[0] == "gsym" and len(words) == 2) or command.startswith("python -m gsym ")


PRINTED = {page: list(commands(page, generated=False)) for page in GUIDE}
(ISSUE,) = PRINTED[ROOT / ".github/ISSUE_TEMPLATE/bug.md"]


def test_every_command_of_the_guide_is_run_or_says_why_not():
    every = {c for printed in PRINTED.values() for c in printed if not names_only(c)}
    every = {c for c in every if not c.startswith("pip ")}
    named = {*HERE, *ELSEWHERE, *NEVER, ISSUE}
    assert len(every) > 20
    assert sorted(every - named) == [], "run it in a test, or say in NEVER why it is not"
    assert sorted(named - every) == [], "printed nowhere"
    assert [path for path in ELSEWHERE.values() if not (ROOT / path).exists()] == []


@pytest.fixture
def parsed(monkeypatch):
    """Programs that read a command and do nothing."""
    for app in (gsym_app, bench.app):
        for spec in app._subcommands.values():
            nothing = functools.wraps(spec.target)(lambda *args, **options: None)
            monkeypatch.setattr(spec, "target", nothing)
    return {"gsym": gsym_entry.main, "gsym-bench": bench.main}


def test_every_printed_command_is_one(parsed, capsys):
    checked = 0
    wrong = []
    for page in [*GUIDE, *RESULTS]:
        for command in dict.fromkeys(commands(page)):
            words = [w for w in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\w+", w)]
            if not exists(words, parsed, names_only(command)):
                wrong.append(f"{page.name}: {command}")
            checked += 1
    assert wrong == [] and checked > 60
    assert not exists(["gsym-bench", "run", "--seed", "3"], parsed, False), "the option is --seeds"
    assert not exists(["make", "benchmarks"], parsed, False)
    assert not exists(["pip", "install", "gsym[everything]"], parsed, False)


def exists(words, parsed, mentioned):
    program, *rest = words
    if program in parsed:
        try:
            parsed[program]([rest[0], "--help"] if mentioned else rest)
        except SystemExit as stop:
            return stop.code == 0
        return True
    if program == "make":
        return re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None
    if program == "pip":
        extras = re.findall(r"\[(\w+)\]", " ".join(rest))
        held = (ROOT / "pyproject.toml").read_text()
        files = [rest[i + 1] for i, word in enumerate(rest) if word == "-r"]
        return all(f"\n{e} = [" in held for e in extras) and all((ROOT / f).exists() for f in files)
    if rest[0] == "-m":
        return importlib.util.find_spec(rest[1]) is not None
    return rest[0] == "-c" or (ROOT / rest[0]).exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the guide speaks of: a ring of nodes, whose targets are means of runs."""
    folder = tmp_path_factory.mktemp("stranger")
    n, rng = 16, np.random.default_rng(0)
    x = rng.normal(size=(36, n))
    y = x.reshape(36, 4, 4).mean(2).repeat(4, axis=1) + 0.1 * rng.normal(size=x.shape)
    ring = np.stack([np.arange(n), np.roll(np.arange(n), -1)])
    edges = np.column_stack([ring.T, rng.integers(1, 9, n)])
    head = "source,target,weight"
    np.savetxt(folder / "edges.csv", edges, "%d", ",", header=head, comments="")
    np.savetxt(
        folder / "x.csv", x, "%.4f", ",", header=",".join(f"s{i}" for i in range(n)), comments=""
    )
    np.savez(folder / "x.npz", x=x)
    np.savez(folder / "y.npz", y=y)
    return folder


def test_commands_of_the_guide_run_as_printed(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    # In the order of the pages: one command reads what another wrote.
    order = [c for printed in PRINTED.values() for c in printed if c in HERE]
    for command in dict.fromkeys(order):
        program, *words = shlex.split(command)
        try:
            (gsym_entry if program == "gsym" else bench).main(words)
        except SystemExit as stop:
            assert stop.code == 0 and words[-1] == "--help", (command, capsys.readouterr().err)
        assert capsys.readouterr().out, command
    for name in ("page.html", "report.html", "clusters.npz"):
        assert (folder / name).stat().st_size > 100


def test_the_command_of_an_issue_names_the_versions(capsys):
    program, *words = shlex.split(ISSUE)
    assert program == "python" and words[0] == "-c"
    exec(words[1], {})
    assert sys.version.split()[0] in capsys.readouterr().out


def test_the_first_screen_is_what_its_command_writes(tmp_path):
    from gsym_bench.suite.report.lead import write_lead

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    write_lead(ROOT / "docs/pages/results", tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text, (
        "gsym-bench report --out docs/pages/results --embed README.md"
    )
    assert text.count("\n", 0, text.index("<!-- lead:end -->")) < 20


def broken(page, text):
    """Links and pictures of a page that lead to no file of the repository, or to no heading."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for target in targets:
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, heading = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        made = (ROOT / "docs/pages/tutorials").resolve()
        if (
            not path.exists()
            or path == made
            or made in path.parents
            or (heading and heading not in headings(path))
        ):
            yield target


def headings(path):
    """What GitHub and the site call the headings of a page."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_links_lead_to_files_of_the_repository():
    pages = [p for p in (*GUIDE, *RESULTS, ROOT / "CHANGELOG.md") if p.suffix == ".md"]
    pages.append(ROOT / "docs/pages/changelog.md")
    wrong = [f"{p.name}: {t}" for p in pages for t in broken(p, p.read_text(encoding="utf-8"))]
    assert wrong == []
    lost = ["nowhere.md", "docs/pages/chart.md#nothing", "docs/pages/tutorials/01_sensors"]
    text = " ".join(f"[here]({target})" for target in [*lost, "CHANGELOG.md"])
    assert list(broken(ROOT / "README.md", text)) == lost
