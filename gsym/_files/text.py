"""Text files of rows and cells: separators, comments, quotes, decimal commas."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gsym._files.checks import brief, check_file, check_size
from gsym._validate import optional_module
from gsym.errors import FileError

SUFFIXES = (".csv", ".tsv", ".txt", ".edges", ".edgelist")
# What people and programs write where there is no value.
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "NULL", "null", "None")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|Inf|infinity|Infinity)")
_COMMENT = re.compile(r"(?:^|\s)#")
# Rows by which the separator is judged, and the first row and column are.
_SAMPLE = 200


@dataclass(frozen=True)
class Text:
    """A text file, cut into lines that hold equally many cells.

    Attributes:
        path: The file.
        lines: Its rows, without comments and blank lines.
        numbers: The line of the file that each row is, from 1.
        separator: Between cells; ``None`` for white space.
        columns: Cells in a row.
        decimal: ``"."`` or ``","``.
        short_header: The first row lacks the first cell, as tables of R do.
    """

    path: Path
    lines: Sequence[str]
    numbers: Sequence[int]
    separator: str | None
    columns: int
    decimal: str
    short_header: bool

    def __len__(self) -> int:
        return len(self.lines)

    def head(self, rows: int = _SAMPLE) -> list[list[str]]:
        """The cells of the first rows."""
        cells = [split(line, self.separator) for line in self.lines[:rows]]
        if self.short_header:
            cells[0] = ["", *cells[0]]
        return cells

    def words(self, start: int, columns: Sequence[int]) -> np.ndarray:
        """Columns as they are written, ``[rows, columns]``, from one row on."""
        try:
            table = self._read(start, columns, dtype=str, na_filter=False)
        except FileError:
            raise
        except ValueError as cause:
            raise FileError(f"{self.path}: cannot be read ({brief(cause)})") from cause
        return np.char.strip(table.to_numpy(dtype=str)) if len(table) else table.to_numpy(dtype=str)

    def floats(self, start: int, columns: Sequence[int], names: Sequence[str]) -> np.ndarray:
        """Columns as numbers, ``[rows, columns]``, NaN where a value is missing.

        Raises:
            FileError: A cell that is neither a number nor missing; it is named.
        """
        check_size(self.path, 8 * (len(self) - start) * len(columns), "in memory ")
        try:
            table = self._read(
                start, columns, dtype=np.float64, keep_default_na=False, na_values=list(MISSING)
            )
        except FileError:
            raise
        except (ValueError, TypeError) as cause:
            raise self._bad_cell(start, columns, names, cause) from cause
        return table.to_numpy(dtype=np.float64)

    def _read(self, start: int, columns: Sequence[int], **options: Any) -> Any:
        if start >= len(self):
            raise FileError(f"{self.path}: has no rows below its header")
        if self.separator is None:
            options["sep"] = r"\s+"
        else:
            options |= {"sep": self.separator, "skipinitialspace": True}
        table = pandas().read_csv(
            io.StringIO("\n".join(self.lines[start:])),
            header=None,
            index_col=False,
            usecols=list(columns),
            decimal=self.decimal,
            skip_blank_lines=False,
            **options,
        )
        return table[list(columns)]

    def _bad_cell(
        self, start: int, columns: Sequence[int], names: Sequence[str], cause: Exception
    ) -> FileError:
        for row in range(start, len(self)):
            cells = split(self.lines[row], self.separator)
            for column, name in zip(columns, names, strict=True):
                cell = cells[column]
                if is_missing(cell) or is_number(cell, self.decimal):
                    continue
                hint = ""
                if re.fullmatch(r"[+-]?\d{1,3}([,.' ]\d{3})+([,.]\d+)?", cell):
                    hint = "; write numbers without thousands separators"
                elif self.decimal == "," and is_number(cell):
                    hint = "; other cells have decimal commas, use one of the two"
                return FileError(
                    f"{self.path}: cannot be read (row {self.numbers[row]}, column {name}: "
                    f"expected a number, got {cell!r:.60}{hint})"
                )
        return FileError(f"{self.path}: cannot be read ({brief(cause)})")


def pandas() -> ModuleType:
    """The library that reads tables, an extra."""
    return optional_module("pandas", "pandas", "cli", "reading a table")


def is_number(cell: str, decimal: str = ".") -> bool:
    """Whether a cell holds a number."""
    if decimal == ",":
        cell = "" if "." in cell else cell.replace(",", ".", 1)
    return _NUMBER.fullmatch(cell) is not None


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return cell in MISSING


def split(line: str, separator: str | None) -> list[str]:
    """The cells of one line."""
    if separator is None:
        if '"' not in line:
            return line.split()
        reader = csv.reader([line.strip()], delimiter=" ", skipinitialspace=True)
    else:
        reader = csv.reader([line], delimiter=separator, skipinitialspace=True)
    return [cell.strip() for cell in next(reader)]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        FileError: No such file, too large, or not text in UTF-8.
    """
    check_file(path)
    try:
        content = path.read_bytes()
    except OSError as cause:
        raise FileError(f"{path}: cannot be read ({brief(cause)})") from cause
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FileError(f"{path}: cannot be read (it is encoded in UTF-16; save it as UTF-8)")
    if b"\0" in content:
        raise FileError(f"{path}: cannot be read (it is no text: it holds zero bytes)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise FileError(f"{path}: cannot be read ({brief(cause)}; save it as UTF-8)") from cause
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_text(path: Path) -> Text:
    """Find the rows and cells of a text file.

    Raises:
        FileError: As :func:`read_lines`; nothing but comments; rows of different lengths; quotes
            that are not closed; what may be a comment or a part of a name; numbers that may have
            thousands separators or decimal commas.
    """
    lines: list[str] = []
    numbers: list[int] = []
    blank = None
    for number, raw in enumerate(read_lines(path), start=1):
        line = raw.strip("\n")
        stripped = line.strip()
        if not stripped:
            blank = blank or (number if lines else None)
            continue
        if stripped[0] in "#%":
            continue
        if line.count('"') % 2:
            raise FileError(f"{path}: cannot be read (row {number}: a quote is not closed)")
        line = _without_comment(path, number, line)
        if blank and not re.search(r"[\s,;]", stripped):
            raise FileError(f"{path}: row {blank} is empty; write nan for a missing value")
        lines.append(line)
        numbers.append(number)
    if not lines:
        raise FileError(f"{path}: is empty")
    separator = _separator(lines[:_SAMPLE])
    if separator in (None, "\t"):
        lines = [line.strip(" \r") if separator else line.strip() for line in lines]
    columns, short_header = _columns(path, lines, numbers, separator)
    decimal = _decimal(path, lines, numbers, separator)
    return Text(path, lines, numbers, separator, columns, decimal, short_header)


def _without_comment(path: Path, number: int, line: str) -> str:
    """Cut a comment off the end of a line."""
    if "#" not in line:
        return line
    for found in _COMMENT.finditer(line):
        before = line[: found.start()]
        if before.count('"') % 2:
            continue
        cells = re.split(r"[,;\t]", before)
        last = cells[-1].strip()
        if len(cells) == 1 or not last or is_number(last) or is_missing(last) or last[-1] == '"':
            return before.rstrip(" ")
        raise FileError(
            f"{path}: row {number}: is {line[found.start() :].strip()!r:.60} a comment or a part "
            "of the name before it? Quote the name or delete the comment"
        )
    return line


def _separator(sample: Sequence[str]) -> str | None:
    """What parts the cells of most lines in the same way."""
    for separator in ("\t", ";", ",", None):
        rows = [split(line, separator) for line in sample]
        length = len(rows[-1])
        if length < 2 or any(len(row) != length for row in rows[1:]):
            continue
        if len(rows[0]) not in (length, length - 1):
            continue
        # The comma of "0 1 0,5" is a decimal one.
        spaced = any(
            len(parts := cell.split()) > 1
            and all(is_number(part, ",") or is_number(part) for part in parts)
            for row in rows
            for cell in row
        )
        if not spaced or separator is None:
            return separator
    return next((mark for mark in ("\t", ";", ",") if mark in sample[0]), None)


def _columns(
    path: Path, lines: Sequence[str], numbers: Sequence[int], separator: str | None
) -> tuple[int, bool]:
    """Number of cells in every row, and whether the first has one less."""
    counts = [
        len(line.split())
        if separator is None and '"' not in line
        else line.count(separator) + 1
        if separator is not None and '"' not in line
        else len(split(line, separator))
        for line in lines
    ]
    columns = counts[-1]
    short_header = (
        len(counts) > 1
        and counts[0] == columns - 1
        and columns > 2
        and ('"' in lines[0] or not any(map(is_number, split(lines[0], separator))))
    )
    usual = max(set(counts), key=counts.count)
    for number, count in zip(numbers[short_header:], counts[short_header:], strict=True):
        if count != usual:
            cells = "1 cell" if count == 1 else f"{count} cells"
            raise FileError(
                f"{path}: cannot be read (row {number} has {cells}, but other rows have {usual})"
            )
    return columns, short_header


def _decimal(
    path: Path, lines: Sequence[str], numbers: Sequence[int], separator: str | None
) -> str:
    """The mark before decimals; in doubt, an error."""
    if separator == ",":
        found = [n for n, line in enumerate(lines) if re.search(r'"\s*[+-]?\d*,\d', line)]
    else:
        found = [n for n, line in enumerate(lines) if re.search(r"\d,\d|(^|\s|;),\d", line)]
    rows = [(numbers[row], split(lines[row], separator)) for row in found]
    cells = [
        (number, column, cell)
        for number, row in rows
        for column, cell in enumerate(row)
        if "," in cell and is_number(cell, ",")
    ]
    if not cells:
        return "."
    grouped = all(re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", cell) for *_, cell in cells)
    # Numbers below 1,000 have no comma where commas part thousands.
    columns = {column for _, column, _ in cells}
    small = any(row[c].isdecimal() for _, row in rows for c in columns if c < len(row))
    if grouped and (small or separator != ";"):
        number, _, cell = cells[0]
        raise FileError(
            f"{path}: row {number}: does {cell!r} mean {cell.replace(',', '')} or "
            f"{cell.replace(',', '.')}? Write numbers without thousands separators"
        )
    return ","
