"""The page of a run, and the parts that pages of studies share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from gsym_bench.data import replacing
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.draw import draw_errors, draw_graph, load_graph
from gsym_bench.suite.report.tables import Line, Table, compare, select, spread, tabulate, thousands
from gsym_bench.suite.results import RESULTS, Row, read_rows

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def write_report(out: Path, embed: Path | None = None) -> Path:
    """Write ``out/report.md`` and its pictures from ``out/results.csv``.

    Args:
        out: Folder of results.
        embed: Markdown file whose text between ``<!-- results:begin -->`` and
            ``<!-- results:end -->`` becomes a short table; ``None`` changes no other file.

    Returns:
        Path of the page.

    Raises:
        BenchmarkError: There are no results, or ``embed`` lacks the two marks.
    """
    tables = tabulate(read_rows(out))
    if not tables:
        raise BenchmarkError(f"no results in {out / RESULTS}; make some with gsym-bench run")
    if embed is not None:
        _embed(embed, tables)
    sections = [_section(out, table) for table in tables]
    return write_page(out / "report.md", ["# Results", *_provenance(tables), *sections])


def write_page(path: Path, parts: Iterable[str]) -> Path:
    """Write a page of parts with empty lines between; returns its path."""
    with replacing(path) as file:
        file.write(("\n\n".join(parts) + "\n").encode())
    return path


def made_with(command: str, rows: Sequence[Row]) -> str:
    """The beginning of a sentence: which command made these rows, and where."""
    first = rows[0]
    commits = ", ".join(sorted({row.commit for row in rows}))
    return (
        f"Made with `{command}` at commit {commits} with torch {first.torch} on {first.device}, "
        f"{first.threads} thread{'s' * (first.threads > 1)}"
    )


def _section(out: Path, table: Table) -> str:
    """One table with its sentences and pictures."""
    first = table.first
    graph = load_graph(out, table)
    title = str(graph["title"]) if graph else table.task
    parts = [
        f"## {title}: {table.dataset}, {table.profile}",
        f"{first.metric} ({first.unit}); lower is better. Mean over seeds ± sample standard "
        "deviation. Differences are paired by seed, with the 95 % interval of Student's t. "
        "`dim` counts the free weights per pair of channels.",
        _full_table(table),
        *_sentences(table, str(graph["truth"]) if graph else ""),
        f"![error by group]({draw_errors(out, table)})",
    ]
    if graph:
        parts.append(f"![candidate groups on the graph]({draw_graph(out, table, graph)})")
    parts.append(f"Made with `{_command([table])}`.")
    return "\n\n".join(parts)


def _full_table(table: Table) -> str:
    chosen, others = select(table), table.metrics[1:]
    head = ["group", "dim", "parameters", "seeds", "validation", "test"]
    head += [f"test {metric}" for metric in others]
    head += ["against S_n", "against trivial", "diverged", "out of memory", "seconds", "MiB"]
    body = []
    for line in table.lines:
        body.append(
            [
                f"**{line.title}**" if line is chosen else line.title,
                thousands(line.rows[0].commutant_dim),
                thousands(next((r.parameters for r in line.rows if r.parameters), None)),
                line.seeds,
                spread(line.values("val"), deviation_digits=0),
                spread(line.values("test")),
                *(spread(line.values("test", metric)) for metric in others),
                str(compare(line, table.full) or "-"),
                str(compare(line, table.trivial) or "-"),
                str(line.count("diverged")),
                str(line.count("oom")),
                f"{mean(row.seconds for row in line.rows):.1f}",
                f"{mean(row.peak_memory_mib for row in line.rows):.0f}",
            ]
        )
    return markdown_table(head, body)


def _sentences(table: Table, truth: str) -> list[str]:
    """What the table says, in words."""
    said = []
    unit = table.first.metric
    chosen = select(table)
    if chosen is None:
        said.append("No group finished every seed, so validation selects none.")
    else:
        said.append(
            f"Validation selects **{chosen.name}** (bold); its test {unit} is "
            f"{spread(chosen.values('test'))}."
        )
    if truth:
        answer = "selected" if chosen and chosen.name == truth else "not selected"
        said.append(f"The data were simulated with the group {truth}, which is {answer}.")
    winner = _unbeaten_baseline(table)
    if winner is not None:
        said.append(
            f"The baseline {winner.name} beats every group: test {unit} "
            f"{spread(winner.values('test'))}."
        )
    if table.superseded:
        said.append(f"Left out: {table.superseded} results of earlier settings.")
    return said


def _unbeaten_baseline(table: Table) -> Line | None:
    """The best baseline, if its mean test metric is below that of every group."""
    groups = [mean(line.values("test")) for line in table.groups if line.finished]
    baselines = [line for line in table.baselines if line.finished]
    best = min(baselines, key=lambda line: mean(line.values("test")), default=None)
    if best is None or not groups or mean(best.values("test")) >= min(groups):
        return None
    return best


def _provenance(tables: Sequence[Table]) -> list[str]:
    """Where the numbers come from."""
    rows = [row for table in tables for line in table.lines for row in line.rows]
    facts = {
        "Commit": {row.commit for row in rows},
        "Device": {f"{row.device}, torch threads: {row.threads}" for row in rows},
        "Versions": {f"gsym {row.gsym}, torch {row.torch}, Python {row.python}" for row in rows},
    }
    lines = [f"- {name}: {'; '.join(sorted(values))}" for name, values in facts.items()]
    return [f"Made with `{_command(tables)}`.", "\n".join(lines)]


def _command(tables: Sequence[Table]) -> str:
    """The command that makes these tables."""
    commands = []
    for profile in dict.fromkeys(table.profile for table in tables):
        own = [table for table in tables if table.profile == profile]
        for source in dict.fromkeys(table.first.source for table in own):
            same = [table for table in own if table.first.source == source]
            seeds = max(row.seed for t in same for line in t.lines for row in line.rows) + 1
            words = ["gsym-bench run", *dict.fromkeys(table.task for table in same)]
            words.append(f"--profile {profile} --seeds {seeds}")
            words += ["--data DIR"] if source == "files" else []
            commands.append(" ".join(words))
    return " && ".join(commands)


def _embed(path: Path, tables: Sequence[Table]) -> None:
    """Put a short table between the two marks of a Markdown file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    start, end = text.find(BEGIN), text.find(END)
    if start < 0 or end < start:
        raise BenchmarkError(f"{path} must hold the line {BEGIN} and, after it, {END}")
    head = ["task", "metric", "S_n", "chosen by validation", "trivial", "best baseline"]
    body = []
    for table in tables:
        chosen = select(table)
        best = min(
            (line for line in table.baselines if line.finished),
            key=lambda line: mean(line.values("val")),
            default=None,
        )
        body.append(
            [
                f"{table.task} ({table.dataset}, {table.profile})",
                f"{table.first.metric} ({table.first.unit})",
                spread(table.full.values("test")) if table.full else "-",
                f"{spread(chosen.values('test'))} with {chosen.name}" if chosen else "none",
                spread(table.trivial.values("test")) if table.trivial else "-",
                f"{spread(best.values('test'))} with {best.name}" if best else "-",
            ]
        )
    commits = {row.commit for t in tables for line in t.lines for row in line.rows}
    short = ", ".join(sorted(f"{c[:10]}{'+dirty' * c.endswith('+dirty')}" for c in commits))
    note = f"Test error, mean ± standard deviation over seeds. Made with `{_command(tables)}`"
    block = f"{BEGIN}\n{markdown_table(head, body)}\n\n{note} at commit {short}.\n"
    with replacing(path) as file:
        file.write((text[:start] + block + text[end:]).encode())


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table."""
    # A bar would end the cell; ours stand in names such as "(S_4)^16 x| S_2".
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in lines
    )
