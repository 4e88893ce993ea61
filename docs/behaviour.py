"""The page on what layers stand: runs the tests of it and writes what came of them as a table."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "pages" / "behaviour.md"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from module_cases import CASES  # noqa: E402  # after the path
from test_module_behaviour import AHEAD, COMPILED, COMPILING, outcome  # noqa: E402

from gsym.check import TREATMENTS, CheckReport  # noqa: E402
from gsym.check.treatments import SLOW  # noqa: E402

HEAD = """\
# What layers stand

Layers are ordinary PyTorch modules. Those below are put through what training scripts,
servers and compilers do to modules. Values and gradients are held against a fresh module in float64
with the same weights that was never treated.

The numbers are the largest relative errors over the {variants} variants of the layers (groups, ways
to use a graph, options). They are float32 on a CPU unless the treatment says otherwise; derivatives
are compared in float64. Compilers run on one or two variants of a layer, and those that call a C++
compiler on two in all: GNetConv and EGNNConv. A dash means that the treatment does not apply, or
was not run. **Fails** counts the variants that answer wrongly or stop with an error, and
*refused* those that say in an error that they cannot do it.

`gsym.check.check_module` does the same to your own modules. This page is written by

```bash
python docs/behaviour.py
```

from the layers in `tests/module_cases.py` that `tests/test_module_behaviour.py` holds to it. It
takes several minutes on one core.
"""


def cases(treatment: str) -> list[str]:
    """The variants that the tests put through this treatment."""
    if treatment in SLOW:
        return AHEAD
    return COMPILED if treatment in COMPILING else list(CASES)


def cell(reports: list[CheckReport], treatment: str) -> str:
    """What came of the variants of one layer."""
    failed = sum(treatment in report.failed for report in reports)
    refused = sum(treatment in report.refused for report in reports)
    errors = [report.errors[treatment] for report in reports if report.passed]
    words = [f"{max(errors):.0e}"] if errors else []
    words += [f"*refused: {refused}*"] if refused else []
    words += [f"**fails: {failed}**"] if failed else []
    return ", ".join(words) or "-"


def main() -> None:
    """Run every treatment and write the page."""
    layers = list(dict.fromkeys(case.layer for case in CASES.values()))
    rows, failures = [], []
    for treatment, function in TREATMENTS.items():
        reports: dict[str, list[CheckReport]] = {layer: [] for layer in layers}
        for name in cases(treatment):
            report = outcome(name, treatment)
            reports[CASES[name].layer].append(report)
            failures += [f"- {name}, {treatment}: {why}" for why in report.failed.values()]
        what = (function.__doc__ or "").split("\n")[0].replace("``", "`").replace("|", "\\|")
        rows.append([treatment, what, *(cell(found, treatment) for found in reports.values())])
        sys.stderr.write(f"{' '.join([treatment, *rows[-1][2:]])}\n")
    head = ["treatment", "what it does", *layers]
    table = [head, ["---"] * len(head), *rows]
    text = HEAD.format(variants=len(CASES)) + "\n"
    text += "".join(f"| {' | '.join(row)} |\n" for row in table)
    if failures:
        text += "\n## What fails\n\n" + "\n".join(failures) + "\n"
    partial = PAGE.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(PAGE)


if __name__ == "__main__":
    main()
