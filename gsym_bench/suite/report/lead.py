"""The first screen of the README: where a group wins by most, and where by most it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from gsym_bench.data import replacing
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.draw import load_graph
from gsym_bench.suite.report.statistics import is_sure
from gsym_bench.suite.report.tables import (
    MIXED,
    Line,
    Table,
    against,
    paired,
    select,
    spread,
    tabulate,
)
from gsym_bench.suite.results import VARIANT, read_rows
from gsym_bench.suite.task import TASKS

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
    tables = tabulate(read_rows(out))
    graphs = {table.task: load_graph(out, table) for table in tables}
    lead = sentences(tables, {task: str(g["title"]) for task, g in graphs.items() if g})
    with replacing(path) as file:
        file.write(f"{text[:start]}{BEGIN}\n{lead}\n{text[end:]}".encode())


def sentences(tables: Sequence[Table], titles: Mapping[str, str] | None = None) -> str:
    """Where a group between S_n and none wins by most, and where no choice of group helps.

    Tables of superseded protocols and of given numbers of signals are left out.

    Args:
        tables: Those of a folder of results.
        titles: What tasks are called, where that is not their name.
    """
    wins, losses = [], []
    for table in tables:
        chosen, baseline = select(table), table.best_baseline
        task = TASKS.get(table.task)
        if table.signals is not None or (task and table.profile in task.superseded):
            continue
        if chosen is None or baseline is None:
            continue
        ends = [end for end in reversed(table.ends(chosen)) if end and end is not chosen]
        rivals = [line for line in (*ends, baseline) if line.finished]
        gain = min(_less(chosen, line) for line in rivals)
        found = [against(table, end).get(chosen.name) for end in (0, 1)]
        sure = all(map(is_sure, (*found, paired(chosen, baseline))))
        if len(ends) == 2 and gain > 0 and sure:
            words = f"{gain:.1%} less error than the best of the others"
            wins.append((gain, words, _told(table, titles or {}, chosen, rivals)))
        # Where validation keeps an end, the best of the groups between is what lost.
        group = _between(table, chosen)
        best = min([*rivals, chosen], key=lambda line: mean(line.values("test")))
        if group is not None and _less(best, group) > 0:
            words = f"{-_less(group, best):.1%} more"
            losses.append((_less(best, group), words, _told(table, titles or {}, group, [best])))
    none = (0.0, "on none of the tasks below", "")
    _, win, won = max(wins, default=none)
    _, loss, lost = max(losses, default=none)
    said = (f"**Where a group wins: {win}.** {won}", f"**Where it does not: {loss}.** {lost}")
    return "\n\n".join(map(str.rstrip, said))


def _between(table: Table, chosen: Line) -> Line | None:
    """What validation chose, or if that is an end, its choice among the groups between."""
    ends = table.ends(chosen)
    if chosen not in ends:
        return chosen
    between = [
        line
        for line in table.lines
        if line.finished and not line.is_baseline and line.model == chosen.model
        if line not in ends and line.values("val")
    ]
    return min(between, key=lambda line: mean(line.values("val")), default=None)


def _told(table: Table, titles: Mapping[str, str], group: Line, others: Sequence[Line]) -> str:
    """The task, the error of a group, and those of others."""
    have = [f"{_called(table, one)} {spread(one.values('test'))}" for one in others]
    listed = " and ".join([", ".join(have[:-1]), have[-1]]) if have[1:] else have[0]
    return (
        f"{titles.get(table.task, table.task)} ({table.dataset}), {table.first.metric} in "
        f"{table.first.unit}: {spread(group.values('test'))} with {_called(table, group)}; "
        f"with {listed}."
    )


def _called(table: Table, line: Line) -> str:
    full, trivial = table.ends(line)
    if line is trivial:
        return "no symmetry"
    if line is full:
        return "all permutations"
    if line.is_baseline:
        return f"the best baseline, {line.name},"
    variant = line.model.partition(VARIANT)[2]
    return MIXED.get(line.group) or MIXED.get(variant) or f"the group {line.name}"


def _less(line: Line, other: Line) -> float:
    """How much less the test error of a line is, relative to that of the other."""
    return 1 - mean(line.values("test")) / mean(other.values("test"))
