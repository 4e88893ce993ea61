"""The page of a run, and the parts that pages of studies share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from gsym_bench.data import replacing
from gsym_bench.suite.crossover import crossover_path, read_predictions
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.report.draw import (
    draw_errors,
    draw_graph,
    draw_phases,
    draw_shown,
    load_graph,
)
from gsym_bench.suite.report.statistics import Interval, is_sure
from gsym_bench.suite.report.tables import (
    Line,
    Table,
    against,
    paired,
    select,
    spread,
    tabulate,
    thousands,
)
from gsym_bench.suite.results import (
    AS_PUBLISHED,
    RESULTS,
    VARIANT,
    Row,
    example_path,
    read_rows,
)
from gsym_bench.suite.task import TASKS

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


class Highlight(NamedTuple):
    """Tables of a study that the short table shows as well.

    Attributes:
        command: What makes them.
        tables: The tables.
    """

    command: str
    tables: Sequence[Table]


def write_report(
    out: Path, embed: Path | None = None, highlights: Sequence[Highlight] = ()
) -> Path:
    """Write ``out/report.md`` and its pictures from ``out/results.csv``.

    Args:
        out: Folder of results.
        embed: Markdown file whose text between ``<!-- results:begin -->`` and
            ``<!-- results:end -->`` becomes a short table; ``None`` changes no other file.
        highlights: Tables of studies, for the short table alone.

    Returns:
        Path of the page.

    Raises:
        BenchmarkError: There are no results, or ``embed`` lacks the two marks.
    """
    tables = tabulate(read_rows(out))
    if not tables:
        raise BenchmarkError(f"no results in {out / RESULTS}; make some with gsym-bench run")
    if embed is not None:
        _embed(
            out, embed, [table for table in tables if table.signals is None] or tables, highlights
        )
    tables.sort(key=lambda table: (table.stem, table.signals or 0))
    sections = [_section(out, list(own)) for _, own in groupby(tables, lambda table: table.stem)]
    return write_page(out / "report.md", ["# Results", *_provenance(out, tables), *sections])


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


def _section(out: Path, tables: Sequence[Table]) -> str:
    """One task with its tables, by number of signals, sentences and pictures."""
    table, *_ = tables
    first = table.first
    graph = load_graph(out, table)
    title = str(graph["title"]) if graph else table.task
    parts = [
        f"## {title}: {table.dataset}, {table.profile}",
        f"{first.metric} ({first.unit}); lower is better. Mean over seeds ± sample standard "
        "deviation. Differences are to the group at that end with the same model, paired by seed, "
        "with the 95 % bootstrap interval of their mean, which is too narrow below five seeds; a "
        "star says that a paired t-test, adjusted by Holm over all groups, is below 0.05. A "
        "dagger marks groups that lose to the baseline which validation chooses. `dim` counts the "
        "free weights per pair of channels.",
    ]
    parts += _told(tables)
    plain = [one for one in tables if one.signals is None]
    for one in plain:
        parts += [_full_table(one), *_sentences(one, str(graph["truth"]) if graph else "")]
        parts.append(f"![error by group]({draw_errors(out, one)})")
    few = [one for one in tables if one.signals is not None]
    if few:
        parts += _phases(out, few)
    shown = draw_shown(out, (plain or few)[0])
    if shown:
        parts.append(f"![predictions beside the truth]({shown})")
    if graph:
        parts.append(f"![candidate groups on the graph]({draw_graph(out, table, graph)})")
    examples = [example_path(out, one.stem, one.checksum) for one in (*plain, *few)]
    example = next((path for path in examples if path.exists()), None)
    if example is not None:
        parts.append(f"![an example]({example.name})")
    parts += [_when(tables), *_made_with(out, tables)]
    return "\n\n".join(parts)


def _told(tables: Sequence[Table]) -> list[str]:
    """What each method was told, and what to know of the lines and columns."""
    task = TASKS.get(tables[0].task)
    told = task.told(tables[0].profile) if task is not None else ""
    said = [told] if told else []
    if any(line.as_published for table in tables for line in table.groups):
        said.append(
            "Groups “as published” keep the faults of the published code; they stand beside the "
            "others, and validation never chooses them."
        )
    rows = [row for table in tables for line in table.lines for row in line.rows]
    if any((row.together or 1) > 1 for row in rows):
        said.append(
            "Memory “for” several seeds is what all of those took that trained as one model; their "
            "seconds are shared among them."
        )
    return [" ".join(said)] if said else []


def _full_table(table: Table) -> str:
    chosen, others = select(table), table.metrics[1:]
    head = ["group", "dim", "parameters", "seeds", "validation", "test"]
    head += [f"test {metric}" for metric in others]
    head += ["against S_n", "against trivial", "diverged", "out of memory", "seconds", "MiB"]
    ends = against(table, 0), against(table, 1)
    body = []
    for line in table.lines:
        body.append(
            [
                _name(table, line, chosen),
                thousands(line.rows[0].commutant_dim),
                thousands(next((r.parameters for r in line.rows if r.parameters), None)),
                line.seeds,
                spread(line.values("val"), deviation_digits=0),
                spread(line.values("test")),
                *(spread(line.values("test", metric)) for metric in others),
                *(_difference(end.get(line.name)) for end in ends),
                str(line.count("diverged")),
                str(line.count("oom")),
                f"{mean(row.seconds for row in line.rows):.1f}",
                _memory(line),
            ]
        )
    return markdown_table(head, body)


def _memory(line: Line) -> str:
    """Mean memory, with the number of seeds that it was for."""
    seeds = max(row.together or 1 for row in line.rows)
    used = mean(row.peak_memory_mib for row in line.rows)
    return f"{used:.0f}{f' for {seeds} seeds' * (seeds > 1)}"


def _name(table: Table, line: Line, chosen: Line | None) -> str:
    """The title of a line: bold if validation chooses it, marked if it loses to a baseline."""
    best = table.best_baseline
    loses = not line.is_baseline and best is not None and line.test > best.test
    title = f"{line.title}{' †' * loses}"
    return f"**{title}**" if line is chosen else title


def _difference(found: tuple[Interval, float] | None) -> str:
    return "-" if found is None else f"{found[0]}{' *' * (found[1] < 0.05)}"


def _phases(out: Path, tables: Sequence[Table]) -> list[str]:
    """Error by number of signals: a table, a picture, and what was predicted."""
    names = list(dict.fromkeys(line.title for table in tables for line in table.lines))
    head = ["group", *(f"{table.signals} signals" for table in tables)]
    body = []
    for name in names:
        cells = []
        for table in tables:
            line = next((line for line in table.lines if line.title == name), None)
            text = "-" if line is None else spread(line.values("test"))
            if line is not None and not line.is_baseline:
                marked = _name(table, line, select(table))
                text = f"{text}{' †' * ('†' in marked)}"
                text = f"**{text}**" if marked.startswith("**") else text
            cells.append(text)
        body.append([name, *cells])
    of = {table.checksum for table in tables}
    predictions = [
        prediction
        for prediction in read_predictions(crossover_path(out, tables[0].stem))
        if prediction.sentence and prediction.checksum in of
    ]
    parts = [markdown_table(head, body), "Bold is the group that validation chooses."]
    if predictions:
        said = [f"- from {p.signals} signals: {p.sentence}" for p in predictions]
        parts.append("\n".join(["What `choose_group(soft=True)` predicts:\n", *said]))
    parts.append(f"![error by number of signals]({draw_phases(out, tables, predictions)})")
    return parts


def _when(tables: Sequence[Table]) -> str:
    """When which group won, in words made from the rows."""
    said = [text for table in tables if (text := _who(table))]
    where: dict[str, list[str]] = {}
    for table in tables:
        winners = _better_than_both(table)
        for line in table.candidates:
            if line.name in winners:
                where.setdefault(line.name, []).append(_at(table))
    if where:
        listed = "; ".join(f"{name} ({', '.join(at)})" for name, at in where.items())
        said.append(
            "Better than both S_n and trivial with the same model, with intervals that exclude "
            f"zero and adjusted p-values below 0.05: {listed}."
        )
    else:
        said.append(
            "No group between S_n and trivial is better than both with intervals that exclude zero "
            "and adjusted p-values below 0.05."
        )
    return f"**When this group won.** {' '.join(said)}"


def _at(table: Table) -> str:
    return "the usual number of signals" if table.signals is None else f"{table.signals} signals"


def _who(table: Table) -> str:
    """The group that validation chooses, beside both ends and the best baseline."""
    chosen = select(table)
    if chosen is None:
        return ""
    unit = table.first.metric
    begin = "Validation" if table.signals is None else f"With {_at(table)} validation"
    text = f"{begin} chooses {chosen.name}, test {unit} {chosen.test:.4g}"
    for end, name in enumerate(("S_n", "trivial")):
        text += _beside(against(table, end).get(chosen.name), name)
    best = table.best_baseline
    if best is not None:
        text += _beside(paired(chosen, best), f"the baseline {best.name}")
    winner = min((g for g in table.candidates if g.finished), key=lambda line: line.test)
    if winner is not chosen:
        text += f"; the least test {unit} is that of {winner.name}, {winner.test:.4g}"
    return f"{text}."


def _beside(found: tuple[Interval, float] | None, name: str) -> str:
    if found is None:
        return ""
    sure = "" if is_sure(found) else ", which may be chance"
    return f"; against {name} {found[0]}{sure}"


def _better_than_both(table: Table) -> set[str]:
    """Names of the groups that surely err less than both ends with the same model."""
    full, trivial = (
        {
            name
            for name, found in against(table, end).items()
            if is_sure(found) and found[0].mean < 0
        }
        for end in (0, 1)
    )
    return full & trivial


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
    groups = [mean(line.values("test")) for line in table.candidates if line.finished]
    baselines = [line for line in table.baselines if line.finished]
    best = min(baselines, key=lambda line: mean(line.values("test")), default=None)
    if best is None or not groups or mean(best.values("test")) >= min(groups):
        return None
    return best


def _provenance(out: Path, tables: Sequence[Table]) -> list[str]:
    """Where the numbers come from."""
    rows = [row for table in tables for line in table.lines for row in line.rows]
    facts = {
        "Commit": {row.commit for row in rows},
        "Device": {f"{row.device}, torch threads: {row.threads}" for row in rows},
        "Versions": {f"gsym {row.gsym}, torch {row.torch}, Python {row.python}" for row in rows},
    }
    lines = [f"- {name}: {'; '.join(sorted(values))}" for name, values in facts.items()]
    return [*_made_with(out, tables), "\n".join(lines)]


def _made_with(out: Path, tables: Sequence[Table]) -> list[str]:
    """Which command makes these tables, if one does."""
    command = _command(out, tables)
    return [f"Made with `{command}`."] if command else []


RUN = "gsym-bench run"


def _command(out: Path, tables: Sequence[Table]) -> str:
    """The command that makes these tables; empty if nobody knows one."""
    alike: dict[tuple[str, ...], list[Table]] = {}
    for table in tables:
        graph = load_graph(out, table)
        own = str(graph["command"]) if graph and "command" in graph else ""
        if own or table.task in TASKS:
            alike.setdefault((own, table.profile, *_kind(table)), []).append(table)
    commands = []
    for (own, profile, source, _, seeds, *flags), same in alike.items():
        words = [own] if own else [RUN, *dict.fromkeys(table.task for table in same)]
        # Tasks of files have commands of their own, without profiles.
        words += [f"--profile {profile}"] if words[0].startswith(RUN) else []
        words.append(f"--seeds {seeds}")
        counts = sorted({table.signals for table in same if table.signals is not None})
        words += [f"--signals {','.join(map(str, counts))}"] if counts else []
        words += [*flags, *(["--data DIR"] if source == "files" else [])]
        commands.append(" ".join(words))
    return " && ".join(commands)


def _kind(table: Table) -> tuple[str, ...]:
    """What one command shares: source, whether signals are told, seeds, flags."""
    rows = [row for line in table.lines for row in line.rows]
    flags = []
    if any(row.model.partition(VARIANT)[2].endswith(AS_PUBLISHED) for row in rows):
        flags.append("--as-published")
    if any(row.together for row in rows):
        flags.append("--batched-seeds")
    shared = {found[1] for row in rows if (found := re.match(r"(\d+) x ", row.device))}
    flags += [f"--devices {count}" for count in sorted(shared)[:1]]
    seeds = max(row.seed for row in rows) + 1
    return table.first.source, str(table.signals is not None), str(seeds), *flags


def _embed(out: Path, path: Path, tables: Sequence[Table], highlights: Sequence[Highlight]) -> None:
    """Put a short table between the two marks of a Markdown file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    start, end = text.find(BEGIN), text.find(END)
    if start < 0 or end < start:
        raise BenchmarkError(f"{path} must hold the line {BEGIN} and, after it, {END}")
    head = ["task", "metric", "S_n", "chosen by validation", "trivial", "best baseline"]
    shown = [*tables, *(table for highlight in highlights for table in highlight.tables)]
    body = []
    for table in shown:
        chosen = select(table)
        best = table.best_baseline
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
    commits = {row.commit for t in shown for line in t.lines for row in line.rows}
    short = ", ".join(sorted(f"{c[:10]}{'+dirty' * c.endswith('+dirty')}" for c in commits))
    made = (_command(out, tables), *(h.command for h in highlights))
    commands = " and ".join(f"`{c}`" for c in made if c)
    note = "Test error, mean ± standard deviation over seeds. Made"
    note += f" with {commands}" if commands else ""
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
