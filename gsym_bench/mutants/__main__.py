"""Plant small faults in the library one at a time and count how many the tests notice.

    python -m gsym_bench.mutants --count 320 --out docs/pages/results

Results go to ``mutants.csv`` as they come. A stopped run goes on: a fault that was noticed is not
tried again while its file stands as it was; one that was missed is, for tests may have been added.
Faults that survive are judged by hand in ``verdicts.csv``: they are equivalent, for they change
nothing that can be observed, or a test is missing; and why.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from gsym_bench.data import replacing
from gsym_bench.mutants.faults import belongs, digest, draw
from gsym_bench.mutants.trial import copied, trace, try_out
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.folder import locked
from gsym_bench.suite.report.markdown import markdown_table
from gsym_bench.suite.study_tables import read_records, write_records

ROOT = Path(__file__).parents[2]
VERDICTS = Path(__file__).with_name("verdicts.csv")
FILE, PAGE = "mutants.csv", "mutants.md"

# Which tests answer for which files; a folder stands for all that lies in it.
TARGETS: dict[str, tuple[str, ...]] = {
    "gsym/groups": ("tests/groups/test_*.py",),
    **dict.fromkeys(
        (
            "gsym/risk/samples.py",
            "gsym/risk/ridge.py",
            "gsym/risk/regressions.py",
            "gsym/risk/orbit_ridge.py",
        ),
        ("tests/risk/test_ridge*.py", "tests/coarsening/test_risk*.py"),
    ),
    **dict.fromkeys(
        ("gsym/check/equivariance.py", "gsym/check/layer.py", "gsym/check/report.py"),
        ("tests/test_check*.py", "tests/test_controls.py"),
    ),
    **dict.fromkeys(
        ("gsym/nn/linear.py", "gsym/nn/_mixing.py"),
        (
            "tests/groups/test_oracle.py",
            "tests/nn/test_linear*.py",
            "tests/nn/test_gnet.py",
            "tests/nn/test_golden.py",
            "tests/test_controls.py",
        ),
    ),
}

console = Console(markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Row:
    """What became of one fault: a line of ``mutants.csv``.

    Attributes:
        key: See `Fault.key`.
        source: Hash of the file without the fault.
        path: File.
        line: Line in it.
        scope: Class and function.
        operator: What was changed.
        before: The lines without the fault.
        after: The lines with it.
        outcome: ``"killed"``, ``"timeout"`` or ``"survived"``.
        test: The first test that failed.
        tests: Number of tests that execute the line.
        seconds: Wall time.
    """

    key: str
    source: str
    path: str
    line: int
    scope: str
    operator: str
    before: str
    after: str
    outcome: str
    test: str
    tests: int
    seconds: float


def main(count: int = 320, seed: int = 0, out: Path = Path("docs/pages/results")) -> None:
    """Try faults on the tests, and write ``mutants.csv`` and ``mutants.md`` to ``out``.

    Args:
        count: Number of faults.
        seed: Which faults.
        out: Folder of results.
    """
    with locked(out):
        rows = run(count, seed, out)
        made = f"`python -m gsym_bench.mutants --count {count} --seed {seed}` at commit {_commit()}"
        with replacing(out / PAGE) as file:
            file.write(page(rows, made).encode())
    console.print(f"The page is {out / PAGE}")


def run(count: int, seed: int, out: Path) -> list[Row]:
    """The rows of a sample, those known from before included."""
    known = {row.key: row for row in read_records(out / FILE, Row)}
    sample = draw(ROOT, list(TARGETS), count, seed)
    sources = {path: digest((ROOT / path).read_text()) for path in {f.path for f in sample}}
    rows = {}
    for fault in sample:
        row = known.get(fault.key)
        stands = row is not None and row.source == sources[fault.path]
        if row is not None and stands and (row.outcome != "survived" or is_equivalent(row)):
            rows[fault.key] = row
    todo = [fault for fault in sample if fault.key not in rows]
    console.print(f"{len(sample)} faults, {len(rows)} of them known; trying {len(todo)}.")
    with copied(ROOT) as tree:
        for target, tests in TARGETS.items():
            own = [fault for fault in todo if belongs(fault.path, target)]
            if not own:
                continue
            traced = trace(tree, target, tests)
            for fault in own:
                start = time.perf_counter()
                outcome, test = try_out(tree, fault, traced)
                rows[fault.key] = Row(
                    fault.key,
                    sources[fault.path],
                    fault.path,
                    fault.line,
                    fault.scope,
                    fault.operator.partition("/")[2],
                    fault.before,
                    fault.after,
                    outcome,
                    test,
                    len(traced.of(fault)),
                    round(time.perf_counter() - start, 1),
                )
                write_records(out / FILE, Row, rows.values())
                change = f"{fault.before!r} -> {fault.after!r}"
                console.print(
                    f"[{len(rows)}/{count}] {outcome} {fault.path}:{fault.line} {change} {test}"
                )
    ordered = [rows[fault.key] for fault in sample]
    write_records(out / FILE, Row, ordered)
    return ordered


def verdicts() -> dict[str, tuple[str, str]]:
    """Keys of faults that survived, each with ``"equivalent"`` or ``"missing"`` and why."""
    with VERDICTS.open(newline="", encoding="utf-8") as file:
        return {line["key"]: (line["verdict"], line["reason"]) for line in csv.DictReader(file)}


def is_equivalent(row: Row) -> bool:
    """Whether a fault survived because it changes nothing."""
    return row.outcome == "survived" and verdicts().get(row.key, ("", ""))[0] == "equivalent"


def page(rows: Sequence[Row], made: str) -> str:
    """The page: a table by target, and every fault that survived."""
    body = []
    for target in (*TARGETS, ""):
        own = [row for row in rows if not target or belongs(row.path, target)]
        survived = sum(row.outcome == "survived" for row in own)
        same = sum(is_equivalent(row) for row in own)
        slow = sum(row.outcome == "timeout" for row in own)
        share = 100 * (1 - (survived - same) / max(len(own) - same, 1))
        counts = (len(own), len(own) - survived, slow, same, survived - same)
        body.append([f"`{target}`" if target else "all", *map(str, counts), f"{share:.1f} %"])
    head = ["code", "faults", "killed", "by time-out", "equivalent", "missed", "killed of the rest"]
    parts = [
        "# Faults that the tests notice",
        "Small faults are planted one at a time: an operator, a number, a condition, a statement "
        "or a result is changed. A fault is killed when a test fails or runs out of time. The "
        "operators are those of cosmic-ray, and two more: a statement is dropped, a function "
        "returns `None`. Only the tests that execute the changed line are run. An equivalent fault "
        "changes nothing that can be observed.",
        markdown_table(head, body),
    ]
    known = verdicts()
    for title, wanted in (("Missed", False), ("Equivalent", True)):
        left = [r for r in rows if r.outcome == "survived" and is_equivalent(r) == wanted]
        if left:
            table = [
                [
                    f"`{r.path}` {r.scope}",
                    f"`{r.before}`",
                    f"`{r.after}`",
                    known.get(r.key, "-" * 2)[1],
                ]
                for r in left
            ]
            parts += [f"## {title}", markdown_table(["where", "code", "fault", "verdict"], table)]
    return "\n\n".join([*parts, f"Made with {made}."]) + "\n"


def _commit() -> str:
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
