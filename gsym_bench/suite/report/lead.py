"""The first screen of the README: where a group wins by most, and where by most it does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from gsym_bench.data import replacing
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.tables import (
    MIXED,
    Line,
    Table,
    against,
    is_sure,
    paired,
    select,
    spread,
    tabulate,
)
from gsym_bench.suite.results import VARIANT, read_rows

BEGIN, END = "<!-- lead:begin -->", "<!-- lead:end -->"


def write_lead(out: Path, path: Path) -> None:
    """Write both sentences between the two marks of a Markdown file, if it has them.

    Args:
        out: Folder of results.
        path: Markdown file with ``<!-- lead:begin -->`` and ``<!-- lead:end -->``, or without.

    Raises:
        BenchmarkError: One mark without the other.
    """
    text = path.read_text(encoding="utf-8")
    start, end = text.find(BEGIN), text.find(END)
    if start < 0 and end < 0:
        return
    if start < 0 or end < start:
        raise BenchmarkError(f"{path} must hold the line {BEGIN} and, after it, {END}")
    lead = sentences(tabulate(read_rows(out)))
    with replacing(path) as file:
        file.write(f"{text[:start]}{BEGIN}\n{lead}\n{text[end:]}".encode())


def sentences(tables: Sequence[Table]) -> str:
    """Where a group between S_n and none wins by most, and where no choice of group helps."""
    wins, losses = [], []
    for table in tables:
        chosen, baseline = select(table), table.best_baseline
        if table.signals is not None or chosen is None or baseline is None:
            continue
        ends = [end for end in reversed(table.ends(chosen)) if end and end is not chosen]
        rivals = [line for line in (*ends, baseline) if line.finished]
        gain = min(_less(chosen, line) for line in rivals)
        found = [against(table, end).get(chosen.name) for end in (0, 1)]
        sure = all(map(is_sure, (*found, paired(chosen, baseline))))
        if len(ends) == 2 and gain > 0 and sure:
            wins.append((gain, _win(table, chosen, rivals)))
        if _less(baseline, chosen) > 0:
            losses.append((_less(baseline, chosen), _loss(table, chosen, baseline)))
    best = max(wins)[1] if wins else "on none of the tasks below."
    worst = max(losses)[1] if losses else "on none of the tasks below."
    return f"**Where a group wins:** {best}\n\n**Where it does not:** {worst}"


def _win(table: Table, chosen: Line, rivals: Sequence[Line]) -> str:
    words = [
        f"{_less(chosen, one):.1%} less than {_called(table, one)} ({spread(one.values('test'))})"
        for one in rivals
    ]
    return f"{_told(table, chosen)}: {', '.join(words[:-1])} and {words[-1]}."


def _loss(table: Table, chosen: Line, baseline: Line) -> str:
    return (
        f"{_told(table, chosen)}, while {baseline.name}, a baseline without a network, has "
        f"{spread(baseline.values('test'))}."
    )


def _told(table: Table, chosen: Line) -> str:
    """The task, the group that validation chose, and its error."""
    return (
        f"{table.task} ({table.dataset}) with {_called(table, chosen)}, "
        f"{table.first.metric} ({table.first.unit}) {spread(chosen.values('test'))}"
    )


def _called(table: Table, line: Line) -> str:
    full, trivial = table.ends(line)
    if line is trivial:
        return "no symmetry"
    if line is full:
        return "all permutations"
    if line.is_baseline:
        return f"the best baseline, {line.name}"
    variant = line.model.partition(VARIANT)[2]
    return MIXED.get(line.group) or MIXED.get(variant) or f"the group {line.name}"


def _less(line: Line, other: Line) -> float:
    """How much less the test error of a line is, relative to that of the other."""
    return 1 - mean(line.values("test")) / mean(other.values("test"))
