"""Rows of results to tables: lines by seed, selection on validation, paired intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray
from rich.table import Table as RichTable

from gsym_bench.suite.report.statistics import (
    Interval,
    bootstrap,
    holm,
    mean_interval,
    paired_p,
)
from gsym_bench.suite.results import AS_PUBLISHED, Row, file_stem


@dataclass(frozen=True)
class Line:
    """One line of a table: a group or a baseline over all its seeds."""

    name: str
    rows: tuple[Row, ...]

    @property
    def is_baseline(self) -> bool:
        """Whether the line stands for a baseline, not for a group."""
        return self.rows[0].is_baseline

    @property
    def model(self) -> str:
        """The model that was trained, or the name of the baseline."""
        return self.rows[0].model

    @property
    def as_published(self) -> bool:
        """Whether it stands beside the others to be looked at, and is never chosen."""
        return self.model.endswith(AS_PUBLISHED)

    @property
    def group(self) -> str:
        """The group alone, without a variant of the model."""
        return self.rows[0].group

    @property
    def dim(self) -> int:
        """Free weights of the group."""
        return self.rows[0].commutant_dim or 0

    @property
    def test(self) -> float:
        """Mean test error of the finished seeds; infinite if there are none."""
        values = self.values("test")
        return mean(values) if values else float("inf")

    @property
    def finished(self) -> list[Row]:
        """The rows that have metrics, by seed."""
        return [row for row in self.rows if row.status == "ok"]

    def count(self, status: str) -> int:
        """Number of seeds that ended with ``status``."""
        return sum(row.status == status for row in self.rows)

    @property
    def title(self) -> str:
        """What tables call the line."""
        return f"{self.name} (baseline)" if self.is_baseline else self.name

    @property
    def seeds(self) -> str:
        """Number of seeds with metrics, and of how many if some have none."""
        done, all_seeds = len(self.finished), len(self.rows)
        return str(done) if done == all_seeds else f"{done} of {all_seeds}"

    def values(self, split: str, metric: str | None = None) -> list[float]:
        """A metric, by default the headline, over the finished seeds that have it."""
        found = (row.value(split, metric) for row in self.finished)
        return [value for value in found if value is not None]


@dataclass(frozen=True)
class Table:
    """The lines of one task, data set and profile: groups from S_n to trivial, then baselines.

    Attributes:
        task: Name of the task.
        dataset: Name of the data.
        profile: Name of the profile.
        lines: Groups by growing number of free weights, model by model, then baselines.
        superseded: Number of rows that later settings replaced.
        signals: Number of training signals, where the run set it.
    """

    task: str
    dataset: str
    profile: str
    lines: tuple[Line, ...]
    superseded: int = 0
    signals: int | None = None

    @property
    def groups(self) -> list[Line]:
        """Lines that stand for groups, by growing number of free weights."""
        return [line for line in self.lines if not line.is_baseline]

    @property
    def candidates(self) -> list[Line]:
        """The groups that validation may choose: all but those as published."""
        return [line for line in self.groups if not line.as_published]

    @property
    def baselines(self) -> list[Line]:
        """Lines that stand for baselines."""
        return [line for line in self.lines if line.is_baseline]

    @property
    def first(self) -> Row:
        """Any row, for what all rows share."""
        return self.lines[0].rows[0]

    @property
    def checksum(self) -> str:
        """Of the data of the first seed; empty in tables of older files."""
        rows = [row for line in self.lines for row in line.rows if row.seed == 0]
        return rows[0].checksum if rows else ""

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics; the first is the headline."""
        rows = [row for line in self.lines for row in line.rows]
        return list(dict.fromkeys(metric for row in rows for metric in row.metrics))

    @property
    def full(self) -> Line | None:
        """The line of the full symmetric group: the only one with at most two free weights."""
        return next((g for g in self.groups if g.dim <= 2), None)

    @property
    def trivial(self) -> Line | None:
        """The line of the trivial group, the only one of order one; a mixture is none."""
        return _trivial(self.groups)

    def ends(self, line: Line) -> tuple[Line | None, Line | None]:
        """Full and trivial group with the model of a line; ``None`` where that model has none."""
        same = [g for g in self.groups if g.model == line.model]
        return next((g for g in same if g.dim <= 2), None), _trivial(same)

    @property
    def best_baseline(self) -> Line | None:
        """The baseline of best mean validation metric."""
        # Published ones have no metrics on validation.
        measured = (line for line in self.baselines if line.values("val"))
        return min(measured, key=lambda line: mean(line.values("val")), default=None)

    @property
    def stem(self) -> str:
        """How the names of the table's files begin, for all numbers of signals."""
        return file_stem(self.task, self.dataset, self.profile)


# Sums over many groups: as free as the trivial group, of order one in the file, and no group.
MIXED = {
    "mixture": "the mixture of groups",
    "soft chain": "the sum over the levels of a chain",
    "sum of levels": "the sum over the levels of a chain",
}


def _trivial(lines: Sequence[Line]) -> Line | None:
    found = [g for g in lines if (g.rows[0].group_order_log or 0) < 1e-9 and g.group not in MIXED]
    return next((g for g in found if g.group == "trivial"), found[0] if found else None)


def tabulate(rows: Iterable[Row]) -> list[Table]:
    """Sort rows into tables: one for each task, data set, profile and number of signals.

    Means over different settings or data say nothing, so only rows with the schedule and the
    source of a table's newest row count, and of two rows for one seed the newer one. All rows of
    a seed have the checksum of its newest one. Rows without a checksum stand beside none that has
    one, because nobody can tell whether their data agree.
    """
    cells: dict[tuple[str, str, str, int | None], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.task, row.dataset, row.profile, row.signals), []).append(row)
    tables = []
    for (task, dataset, profile, signals), own in cells.items():
        alike = [row for row in own if _setting(row) == _setting(own[-1])]
        checksums = {row.seed: row.checksum for row in alike}  # of the newest row
        lines: dict[str, dict[int, Row]] = {}
        for row in alike:
            if row.checksum == checksums[row.seed]:
                lines.setdefault(row.name, {})[row.seed] = row
        models = list(dict.fromkeys(row.model for row in own))
        sorted_lines = sorted(
            (Line(name, tuple(seeds[s] for s in sorted(seeds))) for name, seeds in lines.items()),
            key=lambda line: (line.is_baseline, models.index(line.model), line.dim),
        )
        superseded = len(own) - sum(map(len, lines.values()))
        found = Table(task, dataset, profile, tuple(sorted_lines), superseded, signals)
        tables.append(found)
    return tables


def _setting(row: Row) -> tuple[str, str, bool]:
    """What all rows of a table share."""
    return row.schedule, row.source, bool(row.checksum)


def select(table: Table) -> Line | None:
    """The candidate of best mean validation metric; the test split has no say.

    A group without metrics for a seed that another group ran, be it diverged or not run yet, is
    no candidate: its mean would leave that seed out. ``None`` if no group is left.
    """
    seeds = {row.seed for line in table.candidates for row in line.rows}
    whole = [line for line in table.candidates if {row.seed for row in line.finished} == seeds]
    return min(whole, key=lambda line: mean(line.values("val")), default=None)


def differences(line: Line, reference: Line | None) -> NDArray | None:
    """Differences of the test metric over common seeds.

    Returns:
        ``None`` without a reference, for the reference itself, and below two common seeds.
    """
    if reference is None or line is reference:
        return None
    own = {row.seed: row.test for row in line.finished if row.test is not None}
    other = {row.seed: row.test for row in reference.finished if row.test is not None}
    seeds = sorted(own.keys() & other.keys())
    if len(seeds) < 2:
        return None
    return np.array([own[s] - other[s] for s in seeds])


def compare(line: Line, reference: Line | None) -> Interval | None:
    """Mean of `differences` with its paired t interval."""
    found = differences(line, reference)
    return None if found is None else mean_interval(found)


def against(table: Table, end: int) -> Mapping[str, tuple[Interval, float]]:
    """How every group differs from the full (0) or the trivial one (1) with the same model.

    Returns:
        By name of the line, the bootstrap interval of the paired difference, and the p-value of a
        paired t-test, adjusted by Holm over the lines that differ from the same end.
    """
    found = {}
    for line in table.groups:
        values = differences(line, table.ends(line)[end])
        if values is not None:
            found[line.name] = values
    adjusted = holm([paired_p(values) for values in found.values()])
    return {
        name: (bootstrap(values), p)
        for (name, values), p in zip(found.items(), adjusted, strict=True)
    }


def paired(line: Line, reference: Line | None) -> tuple[Interval, float] | None:
    """As `against`, for a single pair chosen beforehand; ``None`` as for `differences`."""
    values = differences(line, reference)
    return None if values is None else (bootstrap(values), paired_p(values))


def rich_tables(rows: Iterable[Row]) -> list[RichTable]:
    """The tables of the page in short, for a terminal."""
    shown = []
    for table in tabulate(rows):
        first = table.first
        count = "" if table.signals is None else f", {table.signals} signals"
        view = RichTable(
            title=f"{table.task}, {table.dataset}, {table.profile}{count}: "
            f"{first.metric} ({first.unit})",
            title_justify="left",
            caption="* chosen by validation",
            caption_justify="left",
        )
        chosen = select(table)
        for heading in ("group or baseline", "dim", "seeds", "validation", "test", "seconds"):
            view.add_column(heading, justify="left" if heading[0] == "g" else "right")
        for line in table.lines:
            view.add_row(
                f"{line.title} *" if line is chosen else line.title,
                thousands(line.rows[0].commutant_dim),
                line.seeds,
                spread(line.values("val")),
                spread(line.values("test")),
                f"{mean(row.seconds for row in line.rows):.1f}",
            )
        shown.append(view)
    return shown


def thousands(number: int | None) -> str:
    """A count with its thousands apart."""
    return "-" if number is None else f"{number:,}"


def spread(values: Sequence[float], *, digits: int = 4, deviation_digits: int = 2) -> str:
    """Mean and, with ``deviation_digits`` and more than one value, sample standard deviation."""
    if not values:
        return "-"
    if len(values) < 2 or not deviation_digits:
        return f"{mean(values):.{digits}g}"
    return f"{mean(values):.{digits}g} ± {stdev(values):.{deviation_digits}g}"
