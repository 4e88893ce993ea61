"""Tables of signals: which row names the nodes, which column tells the time, and the numbers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gsym._files.arrays import readable
from gsym._files.checks import check_file, check_size
from gsym._files.hdf import read_hdf
from gsym._files.summary import Summary
from gsym._files.text import Text, is_missing, is_number, pandas, read_text
from gsym._validate import optional_module
from gsym.errors import FileError

FRAMES = (".h5", ".hdf", ".hdf5", ".parquet", ".pq")

FirstRow = Literal["auto", "ids", "sample"]
FirstColumn = Literal["auto", "index", "node"]

_UNNAMED = re.compile(r"|Unnamed: \d+")
_INDEX = {"index", "idx", "sample", "row", "step", "frame", "no", "nr", "#", "t"}
_TIME = {"time", "timestamp", "timestamps", "date", "datetime", "date_time", "unixtime", "epoch"}
_LIKE_NUMBER = re.compile(r"[\s\d.,'+-]+|[+-]?inf")
_DATE = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]+\d{1,2}:\d.*)?|\d{1,2}:\d\d(:\d\d.*)?|"
    r"\d{1,2} [A-Za-z]{3,9} \d{4}.*|[A-Za-z]{3,9} \d{1,2},? \d{4}.*"
)


@dataclass(frozen=True)
class Table:
    """Rows of numbers.

    Attributes:
        values: float64 ``[rows, columns]``, NaN where a value is missing.
        names: Of the columns, if the file has them.
        times: ``datetime64 [rows]``, or numbers, if the file has them.
    """

    values: np.ndarray
    names: tuple[str, ...] | None
    times: np.ndarray | None


def read_table(
    path: Path,
    summary: Summary,
    columns: int | None = None,
    first_row: FirstRow = "auto",
    first_column: FirstColumn = "auto",
) -> Table:
    """Read one row per sample and one column per node from text, parquet or pandas' HDF5.

    Args:
        path: The file.
        summary: Told what was taken for what.
        columns: Expected number of nodes, if known; it settles doubts.
        first_row: What the first row of a text holds; ``"auto"`` judges it.
        first_column: The same of the first column.

    Raises:
        FileError: As :func:`gsym._files.text.read_text`, or in doubt about the first row or column,
            or a column of words.
    """
    check_file(path)
    if path.suffix.lower() in FRAMES:
        return table_of_frame(path, read_frame(path), summary)
    text = read_text(path)
    cells = text.head()
    has_header = text.short_header or _has_header(text, cells, first_row)
    header = cells[0] if has_header else None
    body = cells[has_header:]
    if not body:
        raise FileError(f"{path}: has no rows below its header")
    if header is not None:
        summary.facts["header"] = f"row {text.numbers[0]}"
    kept = list(range(text.columns))
    kept = _without_empty_column(text, header, body, kept, summary)
    times = None
    start = int(has_header)
    # pandas writes an index first, and a column of times may follow it.
    for _ in range(2):
        column = kept[0]
        kind = _first_column(text, header, body, kept, columns, first_column, times is not None)
        if kind == "node" or len(kept) == 1:
            break
        kept = kept[1:]
        written = text.words(start, [column])[:, 0]
        if kind == "time":
            times = parse_times(path, written, text.numbers[start:])
            summary.facts["time"] = _span(times)
        elif kind == "number":
            times = text.floats(start, [column], ["1"])[:, 0]
            summary.facts["time"] = f"{times[0]:g} to {times[-1]:g}"
        else:
            name = f" {header[column]!r}" if header and header[column] else ""
            summary.facts["index"] = f"column {column + 1}{name}"
            if kind == "label" and len(set(written)) < len(written):
                raise FileError(
                    f"{path}: column {column + 1}{name} holds words such as "
                    f"{str(written[0])!r:.60}, some of them twice; rows are samples and columns "
                    "nodes. Of a table with one row per reading, make one with DataFrame.pivot"
                )
        first_column = "auto"
        if kind in ("time", "number"):
            break
    names = None
    if header is not None:
        names = tuple(header[column] for column in kept)
        _check_names(path, names, kept, summary)
    labels = names or [str(column + 1) for column in kept]
    values = text.floats(start, kept, [repr(label) for label in labels])
    _check_times(path, times, summary)
    return Table(values, names, times)


def read_frame(path: Path) -> Any:
    """The ``DataFrame`` of a parquet file or of a pandas HDF5 file."""
    if path.suffix.lower() in (".h5", ".hdf", ".hdf5"):
        return read_hdf(path)
    parquet = optional_module("pyarrow.parquet", "pyarrow", "files", "reading parquet")
    with readable(path):
        held = parquet.ParquetFile(path).metadata
        check_size(path, 8 * held.num_rows * max(held.num_columns, 1), "in memory ")
        return pandas().read_parquet(path, engine="pyarrow")


def table_of_frame(path: Path, frame: Any, summary: Summary) -> Table:
    """The table of a ``DataFrame``."""
    lib = pandas()
    names = tuple(map(str, frame.columns))
    times = None
    if isinstance(frame.index, lib.DatetimeIndex):
        times = frame.index.to_numpy()
    elif not isinstance(frame.index, lib.RangeIndex):
        summary.facts["index"] = str(frame.index.name or "of the rows")
    for position, kind in enumerate(frame.dtypes):
        if lib.api.types.is_datetime64_any_dtype(kind) and times is None:
            times = frame.iloc[:, position].to_numpy()
            frame = frame.drop(columns=frame.columns[position])
            names = names[:position] + names[position + 1 :]
            break
    for name, kind in zip(names, frame.dtypes, strict=True):
        if not lib.api.types.is_numeric_dtype(kind) or lib.api.types.is_complex_dtype(kind):
            raise FileError(f"{path}: column {name!r} holds {kind}; expected numbers, one per node")
    check_size(path, 8 * frame.size, "in memory ")
    _check_names(path, names, range(len(names)), summary)
    if times is not None:
        summary.facts["time"] = _span(times)
        _check_times(path, times, summary)
    return Table(frame.to_numpy(dtype=np.float64, na_value=np.nan), names, times)


def _has_header(text: Text, cells: list[list[str]], first_row: FirstRow) -> bool:
    if first_row != "auto":
        return first_row == "ids"
    first, rest = cells[0], cells[1:]
    number = [is_number(cell, text.decimal) for cell in first]
    for column, cell in enumerate(first):
        below = [row[column] for row in rest if not is_missing(row[column])]
        if number[column] or is_missing(cell):
            continue
        if not _DATE.fullmatch(cell) or not below or not _DATE.fullmatch(below[0]):
            return True
    ids = [cell for cell in first[not number[0] :] if cell]
    if not ids or not rest or not all(is_number(cell, text.decimal) for cell in ids):
        return False
    values = [_float(cell, text) for cell in ids]
    if not all(v.is_integer() and v >= 0 for v in values) or len(set(values)) < len(values):
        return False
    # A column of numbers under no name, as pandas writes its index, names the others.
    offset = len(first) - len(ids)
    if offset == 1 and first[0] == "" and all(row[0] for row in rest):
        return True
    if len(ids) < 2:
        return False
    body = np.array([[_float(cell, text) for cell in row[offset:]] for row in rest])
    finite = body[np.isfinite(body)]
    whole = np.array([(row[np.isfinite(row)] % 1 == 0).all() for row in body])
    far = finite.size > 0 and min(values) > 4 * np.abs(finite).max()
    if far or (not whole.any() and len(ids) > 2):
        return True
    beyond = len(rest) > 4 and finite.size > 0 and min(values) > finite.max()
    counting = len(ids) > 3 and values in (
        list(range(len(ids))),
        list(range(1, len(ids) + 1)),
    )
    goes_on = len(body) > 0 and bool(np.isclose(body[0][0], values[-1] + 1))
    if beyond or (counting and not goes_on) or not whole.any():
        raise FileError(
            f"{text.path}: is row {text.numbers[0]} ({', '.join(ids[:4])}, ...) a header of ids or "
            "a sample? Say so with --first-row ids or --first-row sample (first_row=)"
        )
    return False


def _float(cell: str, text: Text) -> float:
    if not is_number(cell, text.decimal):
        return np.nan
    return float(cell.replace(",", ".") if text.decimal == "," else cell)


def _first_column(
    text: Text,
    header: list[str] | None,
    body: list[list[str]],
    kept: Sequence[int],
    columns: int | None,
    asked: FirstColumn,
    has_times: bool,
) -> Literal["node", "index", "label", "time", "number"]:
    """What the first column that is left holds."""
    if asked == "node":
        return "node"
    column = kept[0]
    cells = [row[column] for row in body if not is_missing(row[column])]
    numbers = all(is_number(cell, text.decimal) for cell in cells)
    name = None if header is None else header[column].strip().lower()
    if cells and not numbers:
        if all(map(_DATE.fullmatch, cells)) and not has_times:
            return "time"
        # What has digits alone is a number that is written in an unknown way.
        return "node" if any(map(_LIKE_NUMBER.fullmatch, cells)) else "label"
    values = np.array([_float(cell, text) for cell in cells])
    steps = np.diff(values)
    if header is not None and _UNNAMED.fullmatch(header[column]):
        return "index"
    if text.short_header and column == 0:
        return "index"
    if asked == "index":
        return "index"
    if name in _TIME:
        return "number"
    if name in _INDEX and steps.size and (steps > 0).all():
        return "number" if name == "t" else "index"
    if columns is not None and columns == len(kept):
        return "node"
    even = steps.size > 3 and steps[0] > 0 and (steps == steps[0]).all()
    whole = bool(values.size) and float(values[0]).is_integer() and len(cells) == len(body)
    if not (even and whole and len(kept) > 1):
        return "node"
    for other in kept[1:]:
        further = np.array([_float(row[other], text) for row in body])
        if (np.diff(further) == steps[0]).all():
            return "node"
    if columns is not None and columns == len(kept) - 1:
        return "index"
    raise FileError(
        f"{text.path}: column {column + 1} counts {cells[0]}, {cells[1]}, {cells[2]}, ...: is it "
        "an index or the signal of a node? Say so with --first-column index or --first-column "
        "node (first_column=)"
    )


def _without_empty_column(
    text: Text,
    header: list[str] | None,
    body: list[list[str]],
    kept: list[int],
    summary: Summary,
) -> list[int]:
    """Leave out what a separator at the end of every row makes."""
    last = kept[-1]
    empty = len(kept) > 2 and all(row[last] == "" for row in body)
    if text.separator is None or not empty or (header is not None and header[last]):
        return kept
    if (text.words(int(header is not None), [last]) == "").all():
        summary.note(f"column {last + 1} has no name and no value, and is left out")
        return kept[:-1]
    return kept


def _check_names(
    path: Path, names: Sequence[str], columns: Sequence[int], summary: Summary
) -> None:
    seen: dict[str, int] = {}
    for name, column in zip(names, columns, strict=True):
        if not name:
            raise FileError(f"{path}: column {column + 1} has no name; name it or delete it")
        if name in seen:
            raise FileError(
                f"{path}: names must differ; columns {seen[name] + 1} and {column + 1} are both "
                f"{name!r:.60}"
            )
        seen[name] = column
    if len(names) > 1 and all(_DATE.fullmatch(name) for name in names):
        raise FileError(
            f"{path}: the columns are times ({names[0]}, {names[1]}, ...); rows are samples and "
            "columns nodes here, so transpose it"
        )
    summary.facts["names"] = f"{names[0]}, ..., {names[-1]}" if len(names) > 1 else names[0]


def parse_times(path: Path, cells: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Dates and times as ``datetime64``."""
    lib = pandas()
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for options in ({}, {"format": "mixed"}, {"format": "mixed", "dayfirst": True}):
            times = lib.to_datetime(lib.Series(cells), errors="coerce", utc=True, **options)
            if not times.isna().any():
                found.append(times.dt.tz_localize(None).to_numpy())
    if not found:
        bad = int(times.isna().to_numpy().argmax())
        raise FileError(f"{path}: row {numbers[bad]}: no time: {str(cells[bad])!r:.60}")
    # 03/04 is a day in March or in April: the right reading is in order, and the shorter time.
    ordered = [times for times in found if (np.diff(times) >= np.timedelta64(0)).all()]
    if re.match(r"\d{1,2}\.\d{1,2}\.", str(cells[0])):
        found.reverse()
        ordered.reverse()
    return min(ordered or found, key=lambda times: times.max() - times.min())


def _span(times: np.ndarray) -> str:
    def shown(moment: np.datetime64) -> str:
        return str(moment.astype("datetime64[s]")).replace("T", " ").removesuffix(" 00:00:00")

    steps = np.diff(times)
    each = ""
    if steps.size and (steps == steps[0]).all() and steps[0] > np.timedelta64(0):
        seconds = steps[0] / np.timedelta64(1, "s")
        each = f", every {seconds / 60:g} min" if seconds >= 60 else f", every {seconds:g} s"
    return f"{shown(times.min())} to {shown(times.max())}{each}"


def _check_times(path: Path, times: np.ndarray | None, summary: Summary) -> None:
    if times is None or len(times) < 2:
        return
    distinct = len(np.unique(times))
    if len(times) > 1.5 * distinct:
        raise FileError(
            f"{path}: {len(times):,} rows hold {distinct:,} times; rows are samples and columns "
            "nodes. Of a table with one row per reading, make one with DataFrame.pivot"
        )
    if distinct < len(times):
        summary.note(f"{len(times) - distinct:,} times stand in more than one row")
    steps = np.diff(times)
    if (steps < np.zeros((), steps.dtype)).any():
        summary.note("the rows are not in the order of their times")
