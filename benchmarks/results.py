"""The results file: one row per finished cell, read whole and rewritten whole."""

from __future__ import annotations

import csv
import io
import re
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
        BenchmarkError: The file has other columns, or is damaged.
    """
    if not path.exists():
        return []
    columns = [field.name for field in fields(kind)]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != columns:
                raise BenchmarkError(
                    f"{path} has the columns {reader.fieldnames}, expected {columns}; "
                    "it was written by other code: choose another --out"
                )
            return [_parse(record, kind) for record in reader]
    except BenchmarkError:
        raise
    except (OSError, ValueError, csv.Error) as cause:
        raise BenchmarkError(
            f"cannot read {path}: {cause}; mend it or choose another --out"
        ) from cause


def append_row(out: Path, row: Row, name: str = RESULTS) -> None:
    """Add one row to a results file, which is there whole before and after."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(each) for each in [*read_table(out / name, type(row)), row])
    with replacing(out / name) as file:
        file.write(text.getvalue().encode())


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
