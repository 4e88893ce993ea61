"""The results file: one row per finished cell, appended when the cell is over."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.data import replacing

RESULTS = "results.csv"


class BenchmarkError(ValueError):
    """A request, an environment or a folder that the user has to mend; the message says how."""


@dataclass(frozen=True)
class Row:
    """One cell: a task with one group (or baseline) and one seed.

    Numbers that a cell does not have are ``None`` and stand as empty fields in the file.

    Attributes:
        key: Hash of the configuration; a key in the file is never run again.
        commit: Source revision, with ``+dirty`` when tracked files were changed.
        gsym: Version of the library.
        torch: Version of torch.
        python: Version of Python.
        device: Name of the device that trained.
        threads: Threads torch used on the CPU.
        task: Name of the task.
        dataset: Name of the data.
        source: ``"embedded"``, or ``"files"`` where ``--data`` was given.
        profile: Name of the profile.
        schedule: Hash of epochs, batch size and all else that says how a model is trained.
        model: The trained model, or the name of the baseline.
        group: Name of the group; empty for a baseline.
        group_order_log: Natural logarithm of the group's order; 0 for the trivial group.
        commutant_dim: Dimension of the linear maps the group leaves free, per channel pair.
        seed: Seed of data split, model and batches.
        status: ``"ok"``, ``"diverged"`` or ``"oom"``.
        seconds: Wall time of fitting, without the final test.
        peak_memory_mib: Largest memory in use above that at the start of the cell.
        parameters: Trainable numbers in the model.
        epochs: Epochs trained.
        best_epoch: Epoch of the kept weights.
        metric: Name of the headline metric; lower is better.
        unit: Its unit.
        val: Headline metric on the validation split.
        test: Headline metric on the test split.
        metric_2: Name of the second metric, if the task has one.
        val_2: Second metric on the validation split.
        test_2: Second metric on the test split.
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
    source: str
    profile: str
    schedule: str
    model: str
    group: str
    group_order_log: float | None
    commutant_dim: int | None
    seed: int
    status: str
    seconds: float
    peak_memory_mib: float
    parameters: int | None
    epochs: int | None
    best_epoch: int | None
    metric: str
    unit: str
    val: float | None
    test: float | None
    metric_2: str
    val_2: float | None
    test_2: float | None

    @property
    def is_baseline(self) -> bool:
        """Whether the row stands for a baseline, not for a group."""
        return self.group == ""

    @property
    def name(self) -> str:
        """What tables call the row: the group, or the baseline."""
        return self.group or self.model


def file_stem(task: str, dataset: str, profile: str) -> str:
    """How the names of a table's files begin; fit for links, whatever the data set is called."""
    words = re.findall(r"[\w-]+", f"{task} {dataset} {profile}")
    return "_".join(words)


def graph_path(out: Path, stem: str) -> Path:
    """Where a run keeps the graph and the candidate groups of a task for the report to draw."""
    return out / f"{stem}_graph.npz"


AnyRow = TypeVar("AnyRow", bound=Row)


def read_rows(out: Path) -> list[Row]:
    """The rows of ``out/results.csv``; none if there is no such file.

    Raises:
        BenchmarkError: The file has other columns than `Row`, or is damaged.
    """
    return read_table(out / RESULTS, Row)


def read_table(path: Path, kind: type[AnyRow]) -> list[AnyRow]:
    """The rows of a file whose columns are the fields of ``kind``; none if there is no such file.

    Raises:
        BenchmarkError: The file has other columns, holds a key twice, is damaged, or its last line
            is cut off.
    """
    if not path.exists():
        return []
    hint = "mend it or choose another --out"
    try:
        raw = path.read_bytes()
        if not raw.endswith(b"\n"):
            hint = "its last line is cut off: `run` moves that aside and goes on"
        reader = csv.DictReader(io.StringIO(raw.decode(), newline=""))
        _check_columns(path, reader.fieldnames or [], kind)
        rows = [_parse(record, kind) for record in reader]
        if not raw.endswith(b"\n"):
            raise ValueError(f"the line of key {rows[-1].key if rows else '?'} has no end")
        _check_unique(rows)
    except BenchmarkError:
        raise
    except (OSError, ValueError, csv.Error) as cause:
        raise BenchmarkError(f"cannot read {path}: {cause}; {hint}") from cause
    return rows


def append_row(out: Path, row: Row, name: str = RESULTS) -> None:
    """Add one row to a results file; when this returns it is on the disk, else nothing has changed.

    Raises:
        BenchmarkError: The file has other columns, or its last line is cut off.
        OSError: The row cannot be written.
    """
    path = out / name
    if not path.exists():
        with replacing(path) as file:
            file.write(_csv_line(field.name for field in fields(row)))
    with path.open("rb") as old:
        header = old.readline().decode(errors="replace")
        _check_columns(path, next(csv.reader([header]), []), type(row))
        old.seek(-1, os.SEEK_END)
        if old.read() != b"\n":
            raise BenchmarkError(f"{path}: its last line is cut off: `run` moves that aside")
    line = _csv_line(asdict(row).values())
    # Without a buffer no part of the line stays behind to be written later.
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise


def recover(path: Path) -> str | None:
    """Move the end of a results file that was cut off, by a kill or a full disk, to another file.

    Args:
        path: The results file. Its last line, if it has no end, is appended to ``path`` + ``.torn``
            and taken away; its cell is not finished then.

    Returns:
        The line, or ``None`` if the file is whole.
    """
    raw = path.read_bytes() if path.exists() else b""
    start = raw.rfind(b"\n") + 1
    torn = raw[start:]
    if not torn or not start:  # a file without any line is refused by its columns
        return None
    with path.with_name(f"{path.name}.torn").open("ab") as aside:
        aside.write(torn + b"\n")
        aside.flush()
        os.fsync(aside.fileno())
    with path.open("r+b") as file:
        file.truncate(start)
        os.fsync(file.fileno())
    return torn.decode(errors="replace")


def _csv_line(values: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _check_columns(path: Path, found: Sequence[str], kind: type[Row]) -> None:
    expected = [field.name for field in fields(kind)]
    if list(found) == expected:
        return
    lacks = [name for name in expected if name not in found]
    more = [name for name in found if name not in expected]
    said = [f"lacks the columns {lacks}"] * bool(lacks) + [f"has the columns {more}"] * bool(more)
    raise BenchmarkError(
        f"{path} was written by other code: it {' and '.join(said) or 'has another order'}; "
        "choose another --out"
    )


def _check_unique(rows: Sequence[Row]) -> None:
    counts = Counter(row.key for row in rows)
    twice = [row for row in rows if counts[row.key] > 1]
    if twice:
        names = {f"{r.key} ({r.task}, {r.name}, seed {r.seed})": None for r in twice}
        raise ValueError(
            f"{len(names)} keys stand in it more than once: {', '.join(names)}; keep one line each"
        )


def _parse(record: dict[str, str], kind: type[AnyRow]) -> AnyRow:
    """Undo the CSV: each field by its declared type, an empty number as ``None``."""
    convert = {"str": str, "int": int, "float": float}
    values: dict[str, Any] = {}
    if None in record or None in record.values():
        raise ValueError(f"the line of key {record.get('key')} has not {len(fields(kind))} fields")
    for field in fields(kind):
        base, _, optional = str(field.type).partition(" | ")
        text = record[field.name]
        values[field.name] = None if optional and text == "" else convert[base](text)
    if values["status"] not in ("ok", "diverged", "oom"):
        raise ValueError(f"the line of key {values['key']} has the status {values['status']!r}")
    if values["status"] == "ok" and None in (values["val"], values["test"]):
        raise ValueError(f"the line of key {values['key']} is ok but has no metrics")
    return kind(**values)
