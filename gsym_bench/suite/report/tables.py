"""Rows of results to tables: lines by seed, selection on validation, paired intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray
from rich.table import Table as RichTable
from scipy import stats

from gsym_bench.suite.results import Row, file_stem


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


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
        lines: Groups by growing number of free weights, then baselines.
        superseded: Number of rows that later settings replaced.
    """

    task: str
    dataset: str
    profile: str
    lines: tuple[Line, ...]
    superseded: int = 0

    @property
    def groups(self) -> list[Line]:
        """Lines that stand for groups, by growing number of free weights."""
        return [line for line in self.lines if not line.is_baseline]

    @property
    def baselines(self) -> list[Line]:
        """Lines that stand for baselines."""
        return [line for line in self.lines if line.is_baseline]

    @property
    def first(self) -> Row:
        """Any row, for what all rows share."""
        return self.lines[0].rows[0]

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics; the first is the headline."""
        rows = [row for line in self.lines for row in line.rows]
        return list(dict.fromkeys(metric for row in rows for metric in row.metrics))

    @property
    def full(self) -> Line | None:
        """The line of the full symmetric group: the only one with at most two free weights."""
        return next((g for g in self.groups if (g.rows[0].commutant_dim or 0) <= 2), None)

    @property
    def trivial(self) -> Line | None:
        """The line of the trivial group: the only one of order one."""
        return next((g for g in self.groups if (g.rows[0].group_order_log or 0) < 1e-9), None)

    @property
    def stem(self) -> str:
        """How the names of the table's files begin."""
        return file_stem(self.task, self.dataset, self.profile)


def tabulate(rows: Iterable[Row]) -> list[Table]:
    """Sort rows into tables: one for each task, data set and profile.

    Means over different settings say nothing, so only rows with the schedule of a table's newest
    row count, and of two rows for one seed the newer one.
    """
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.task, row.dataset, row.profile), []).append(row)
    tables = []
    for (task, dataset, profile), own in cells.items():
        lines: dict[str, dict[int, Row]] = {}
        for row in own:
            if row.schedule == own[-1].schedule:
                lines.setdefault(row.name, {})[row.seed] = row
        sorted_lines = sorted(
            (Line(name, tuple(seeds[s] for s in sorted(seeds))) for name, seeds in lines.items()),
            key=lambda line: (line.is_baseline, line.rows[0].commutant_dim or 0),
        )
        superseded = len(own) - sum(map(len, lines.values()))
        tables.append(Table(task, dataset, profile, tuple(sorted_lines), superseded))
    return tables


def select(table: Table) -> Line | None:
    """The group of best mean validation metric; the test split has no say.

    A group without metrics for a seed that another group ran, be it diverged or not run yet, is
    no candidate: its mean would leave that seed out. ``None`` if no group is left.
    """
    seeds = {row.seed for line in table.groups for row in line.rows}
    candidates = [line for line in table.groups if {row.seed for row in line.finished} == seeds]
    return min(candidates, key=lambda line: mean(line.values("val")), default=None)


def compare(line: Line, reference: Line | None) -> Interval | None:
    """Mean difference of the test metric over common seeds, with its paired t interval.

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
    x, y = np.array([own[s] for s in seeds]), np.array([other[s] for s in seeds])
    return mean_interval(x - y)


def mean_interval(values: Sequence[float] | NDArray) -> Interval:
    """The mean with its 95 % interval of Student's t; a point for a single value."""
    centre = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(centre, centre, centre)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return Interval(centre, float(low), float(high))


def rich_tables(rows: Iterable[Row]) -> list[RichTable]:
    """The tables of the page in short, for a terminal."""
    shown = []
    for table in tabulate(rows):
        first = table.first
        view = RichTable(
            title=f"{table.task}, {table.dataset}, {table.profile}: {first.metric} ({first.unit})",
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
