"""The store of results: a line per measured value, all lines of a cell written at once."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import torch

from gsym_bench.data import replacing
from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.provenance import provenance
from gsym_bench.suite.study_tables import check_columns, csv_line, parse

RESULTS = "results.csv"
STATUSES = ("ok", "diverged", "oom")
SIGNALS = "training signals"
TOGETHER = "seeds trained together"
# Between the name of a model, or of a group, and that of a variant.
VARIANT = " + "
# How the name of a model ends that keeps the faults of published code, or whose numbers are quoted.
AS_PUBLISHED = "as published"
CUT_OFF = "its last line is cut off: `run` moves that aside and goes on"


@dataclass(frozen=True)
class Value:
    """One measured value.

    Attributes:
        split: What it was measured on: ``"val"`` or ``"test"``; ``"train"`` for facts of training.
        metric: Name of the metric.
        unit: Its unit.
        value: ``None`` where a cell failed before it could be measured.
        note: Text that belongs to the value; mostly empty.
    """

    split: str
    metric: str
    unit: str
    value: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Who a cell is, and how its fit went: the columns that all values of a cell share.

    Numbers that a cell does not have are ``None`` and stand as empty fields in the file.

    Attributes:
        key: The configuration, as a hash or in words; a key in the file is never run again.
        commit: Source revision, with ``+dirty`` when tracked files were changed.
        gsym: Version of the library.
        torch: Version of torch.
        python: Version of Python.
        device: Name of the device that trained.
        threads: Threads torch used on the CPU.
        task: Name of the task.
        dataset: Name of the data.
        checksum: Of the data, as `provenance.checksum` has it; empty in rows of older files, and
            where a study names its data in its key.
        source: ``"embedded"``, or ``"files"`` where ``--data`` was given.
        profile: Name of the profile.
        schedule: Epochs, batch size and all else that says how a model is trained, and how data
            are drawn where a task says so.
        model: The trained model, or the name of the baseline.
        group: Name of the group; empty for a baseline.
        fingerprint: Of the group and of how it acts on channels; empty as ``checksum`` is.
        group_order_log: Natural logarithm of the group's order; 0 for the trivial group.
        commutant_dim: Dimension of the linear maps the group leaves free, per channel pair.
        seed: Seed of data split, model and batches.
        fold: The fold that tests, where there are folds.
        status: ``"ok"``, ``"diverged"`` or ``"oom"``.
        seconds: Wall time of fitting, without the final test; of seeds that train together, the
            share of one.
        peak_memory_mib: Largest memory in use above that at the start of the cell; of seeds that
            train together, that of all of them.
        parameters: Trainable numbers in the model.
        epochs: Epochs trained.
        best_epoch: Epoch of the kept weights.
    """

    key: str
    commit: str
    gsym: str
    torch: str
    python: str
    device: str
    threads: int
    task: str
    dataset: str
    checksum: str = ""
    source: str
    profile: str
    schedule: str
    model: str
    group: str
    fingerprint: str = ""
    group_order_log: float | None
    commutant_dim: int | None
    seed: int
    fold: int | None
    status: str
    seconds: float
    peak_memory_mib: float
    parameters: int | None
    epochs: int | None
    best_epoch: int | None


@dataclass(frozen=True, kw_only=True)
class Row(Cell):
    """One finished cell with its values.

    Attributes:
        values: What was measured; the metric of the first one is the headline.
    """

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"the cell of key {self.key} has the status {self.status!r}")
        if self.status == "ok" and self.test is None:
            raise ValueError(f"the cell of key {self.key} is ok but has no metrics")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics; the first is the headline."""
        return tuple(dict.fromkeys(v.metric for v in self.values if v.split != "train"))

    @property
    def signals(self) -> int | None:
        """Number of training signals, where the run set it."""
        found = self.value("train", SIGNALS)
        return None if found is None else int(found)

    @property
    def together(self) -> int | None:
        """Number of seeds that trained as one model; ``None`` where the run did not ask for it."""
        found = self.value("train", TOGETHER)
        return None if found is None else int(found)

    @property
    def metric(self) -> str:
        """Name of the headline metric."""
        return self.values[0].metric

    @property
    def unit(self) -> str:
        """Unit of the headline metric."""
        return self.values[0].unit

    @property
    def val(self) -> float | None:
        """The headline metric on the validation split."""
        return self.value("val")

    @property
    def test(self) -> float | None:
        """The headline metric on the test split."""
        return self.value("test")

    def value(self, split: str, metric: str | None = None) -> float | None:
        """A value by split and metric, by default the headline; ``None`` if there is none."""
        wanted = split, metric or self.metric
        return next((v.value for v in self.values if (v.split, v.metric) == wanted), None)

    @property
    def is_baseline(self) -> bool:
        """Whether the row stands for a baseline, not for a group."""
        return self.group == ""

    @property
    def name(self) -> str:
        """What tables call the row: the group, with the variant of the model, or the baseline."""
        variant = self.model.partition(VARIANT)[2]
        return (
            f"{self.group}{VARIANT}{variant}"
            if self.group and variant
            else self.group or self.model
        )


_CELL = [field.name for field in fields(Cell)]
_VALUE = [field.name for field in fields(Value)]
# `part` is the place of a value in its cell, "2/4": a cell that lacks its last one is cut off.
COLUMNS = [*_CELL, "part", *_VALUE]
# Files without these columns are read as if they were empty, and get them with the next row.
ADDED = ("checksum", "fingerprint")
OLDER = [column for column in COLUMNS if column not in ADDED]


def fitted_row(
    key: str,
    values: Sequence[Value],
    *,
    task: str,
    dataset: str,
    source: str,
    model: str,
    seed: int,
    seconds: float,
    schedule: str = "",
    status: str = "ok",
) -> Row:
    """The row of a closed form on the CPU: without a group, folds, parameters and epochs."""
    return Row(
        key=key,
        **provenance(),
        device="cpu",
        threads=torch.get_num_threads(),
        task=task,
        dataset=dataset,
        source=source,
        profile="standard",
        schedule=schedule,
        model=model,
        group="",
        group_order_log=None,
        commutant_dim=None,
        seed=seed,
        fold=None,
        status=status,
        seconds=seconds,
        peak_memory_mib=0.0,
        parameters=None,
        epochs=None,
        best_epoch=None,
        values=tuple(values),
    )


def file_stem(task: str, dataset: str, profile: str) -> str:
    """How the names of a table's files begin; fit for links, whatever the data set is called."""
    words = re.findall(r"[\w-]+", f"{task} {dataset} {profile}")
    return "_".join(words)


def graph_path(out: Path, stem: str) -> Path:
    """Where a run keeps the graph and the candidate groups of a task for the report to draw."""
    return out / f"{stem}_graph.npz"


def shown_path(out: Path, key: str) -> Path:
    """Where a run keeps the predictions of a cell for the report to show."""
    return out / "shown" / f"{key}.npz"


def samples_path(out: Path, checksum: str) -> Path:
    """Where a run keeps the samples that predictions on these data are shown beside."""
    return out / "shown" / f"{checksum}_samples.npz"


def example_path(out: Path, stem: str, checksum: str) -> Path:
    """Where a run keeps the example of a task on these data for the report."""
    return out / f"{stem}_{checksum}_example.png"


def read_rows(out: Path, name: str = RESULTS) -> list[Row]:
    """The rows of a results file; none if there is no such file.

    Args:
        out: Folder of results.
        name: Name of the file in it.

    Raises:
        BenchmarkError: The file has other columns, holds a key twice, is damaged, or its last cell
            is cut off.
    """
    path = out / name
    if not path.exists():
        return []
    hint = "fix it or choose another --out"
    try:
        raw = path.read_bytes()
        if _whole(raw) < len(raw):
            hint = CUT_OFF
        reader = csv.DictReader(io.StringIO(raw.decode(), newline=""))
        columns = _columns(raw)
        check_columns(path, reader.fieldnames or [], columns)
        rows = _rows(list(reader), len(columns))
        if hint is CUT_OFF:
            raise ValueError(f"the lines of key {rows[-1].key if rows else '?'} have no end")
        _check_unique(rows)
    except BenchmarkError:
        raise
    except (OSError, ValueError, csv.Error) as cause:
        raise BenchmarkError(f"cannot read {path}: {cause}; {hint}") from cause
    return rows


def append_row(out: Path, row: Row, name: str = RESULTS) -> None:
    """Add one row to a results file; when this returns it is on the disk, else nothing has changed.

    Raises:
        BenchmarkError: The file has other columns, or its last cell is cut off.
        OSError: The row cannot be written.
    """
    path = out / name
    if not path.exists():
        with replacing(path) as file:
            file.write(csv_line(COLUMNS))
    raw = path.read_bytes()
    head, _, _ = raw.partition(b"\n")
    check_columns(path, next(csv.reader([head.decode(errors="replace")]), []), _columns(raw))
    if _whole(raw) < len(raw):
        raise BenchmarkError(f"{path}: {CUT_OFF}")
    if _columns(raw) != COLUMNS:
        rows = read_rows(out, name)
        with replacing(path) as file:
            file.writelines([csv_line(COLUMNS), *map(_lines, rows)])
    lines = _lines(row)
    # Without a buffer no part of the lines stays behind to be written later.
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise


def _lines(row: Row) -> bytes:
    cell = [getattr(row, column) for column in _CELL]
    return b"".join(
        csv_line([*cell, f"{number}/{len(row.values)}", *astuple(value)])
        for number, value in enumerate(row.values, 1)
    )


def _columns(raw: bytes) -> list[str]:
    """The columns that a file should have, as old as it is."""
    return OLDER if raw.startswith(csv_line(OLDER)) else COLUMNS


def recover(path: Path) -> str | None:
    """Move the end of a results file that was cut off, by a kill or a full disk, to another file.

    Args:
        path: The results file. The lines of its last cell, if that has no end, are appended to
            ``path`` + ``.torn`` and taken away; the cell is not finished then.

    Returns:
        The lines, or ``None`` if the file is whole.
    """
    raw = path.read_bytes() if path.exists() else b""
    end = _whole(raw)
    if end == len(raw) or end == 0:  # a file without any line is refused by its columns
        return None
    with path.with_name(f"{path.name}.torn").open("ab") as aside:
        aside.write(raw[end:].rstrip(b"\n") + b"\n")
        aside.flush()
        os.fsync(aside.fileno())
    with path.open("r+b") as file:
        file.truncate(end)
        os.fsync(file.fileno())
    return raw[end:].decode(errors="replace")


def _whole(raw: bytes) -> int:
    """Number of bytes before the cell that is cut off; all of them if none is."""
    end, columns = raw.rfind(b"\n") + 1, _columns(raw)
    if raw.partition(b"\n")[0] != csv_line(columns).strip():
        return end  # of other code; its columns are refused
    while end:
        start = raw.rfind(b"\n", 0, end - 1) + 1
        texts = next(csv.reader([raw[start:end].decode(errors="replace")]))
        number, _, count = (
            texts[columns.index("part")].partition("/")
            if len(texts) == len(columns)
            else ("", "", "")
        )
        if number == count or not start:
            return end
        end = start
    return end


def _rows(lines: Sequence[dict[str, str]], count: int) -> list[Row]:
    """Group the lines of a file into cells."""
    for line in lines:
        if None in line or None in line.values():
            raise ValueError(f"a line of key {line.get('key')} has not {count} fields")
    lines = [dict.fromkeys(ADDED, "") | line for line in lines]
    cells: list[list[dict[str, str]]] = []
    for line in lines:
        if line["part"].startswith("1/") or not cells:
            cells.append([])
        cells[-1].append(line)
    return [_row(cell) for cell in cells]


def _row(lines: Sequence[dict[str, str]]) -> Row:
    first = lines[0]
    for number, line in enumerate(lines, 1):
        if line["part"] != f"{number}/{first['part'].partition('/')[2]}":
            raise ValueError(f"a line of key {line['key']} is out of place: {line['part']!r}")
        if any(line[column] != first[column] for column in _CELL):
            raise ValueError(f"the lines of key {first['key']} disagree about its cell")
    cell = parse({column: first[column] for column in _CELL}, Cell)
    values = tuple(parse({c: line[c] for c in _VALUE}, Value) for line in lines)
    return Row(**asdict(cell), values=values)


def _check_unique(rows: Sequence[Row]) -> None:
    counts = Counter(row.key for row in rows)
    twice = [row for row in rows if counts[row.key] > 1]
    if twice:
        names = {f"{r.key} ({r.task}, {r.name}, seed {r.seed})": None for r in twice}
        raise ValueError(
            f"{len(names)} keys stand in it more than once: {', '.join(names)}; keep one cell each"
        )
