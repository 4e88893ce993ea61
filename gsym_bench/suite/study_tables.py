"""Tables of studies: the fields of one dataclass are the columns, and every record is a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TypeVar

from gsym_bench.data import replacing
from gsym_bench.suite.errors import BenchmarkError

Record = TypeVar("Record")


def write_records(
    path: Path, kind: type, records: Iterable[Any], digits: int | None = None
) -> None:
    """Write a table that appears whole or not at all.

    Args:
        path: The CSV file.
        kind: The dataclass.
        records: Its instances.
        digits: Significant digits of floats; ``None`` keeps all.
    """
    lines = [csv_line(field.name for field in fields(kind))]
    lines += [csv_line(_fields(record, digits)) for record in records]
    with replacing(path) as file:
        file.writelines(lines)


def append_record(path: Path, record: Any, digits: int | None = None) -> None:
    """Add a line to a table, which is made if there is none."""
    if not path.exists():
        write_records(path, type(record), [], digits)
    with path.open("ab") as file:
        file.write(csv_line(_fields(record, digits)))


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """The records of a table; none if there is no such file.

    Raises:
        BenchmarkError: The file has other columns than ``kind`` has fields, or is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            check_columns(path, reader.fieldnames or [], [field.name for field in fields(kind)])  # type: ignore[arg-type]
            return [parse(record, kind) for record in reader]
    except BenchmarkError:
        raise
    except (OSError, ValueError, csv.Error) as cause:
        raise BenchmarkError(f"cannot read {path}: {cause}; fix it or make it again") from cause


def csv_line(values: Iterable[Any]) -> bytes:
    """One line of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def check_columns(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse a file of other columns by name.

    Raises:
        BenchmarkError: Says which columns the file lacks and which it has instead.
    """
    if list(found) == list(expected):
        return
    lacks = [name for name in expected if name not in found]
    more = [name for name in found if name not in expected]
    said = [f"lacks the columns {lacks}"] * bool(lacks) + [f"has the columns {more}"] * bool(more)
    raise BenchmarkError(
        f"{path} was written by other code: it {' and '.join(said) or 'has another order'}; "
        "choose another --out, or move the file away and run again"
    )


def parse(texts: dict[str, Any], kind: type[Record]) -> Record:
    """Undo the CSV: each field by its declared type, an empty optional number as ``None``.

    Raises:
        ValueError: The line has too many or too few fields, or a number cannot be read.
    """
    convert: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
    if None in texts or None in texts.values():
        raise ValueError(f"expected {len(fields(kind))} fields in a line, got {texts}")  # type: ignore[arg-type]
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]
        base, _, optional = str(field.type).partition(" | ")
        text = texts[field.name]
        values[field.name] = None if optional and text == "" else convert[base](text)
    return kind(**values)


def _fields(record: Any, digits: int | None) -> list[Any]:
    return [
        f"{value:.{digits}g}" if digits and isinstance(value, float) else value
        for value in astuple(record)
    ]
