"""Tables of studies: what is written is read, and what does not fit is named."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from gsym_bench.suite.errors import BenchmarkError
from gsym_bench.suite.study_tables import append_record, read_records, write_records


@dataclass(frozen=True)
class Record:
    name: str
    count: int | None
    share: float


ROWS = [Record('a, "quoted"', 3, 0.1 + 0.2), Record("b", None, math.inf)]


def test_records_are_read_as_written(tmp_path):
    path = tmp_path / "a.csv"
    assert read_records(path, Record) == []
    write_records(path, Record, ROWS[:1])
    append_record(path, ROWS[1])
    assert read_records(path, Record) == ROWS
    append_record(tmp_path / "b.csv", ROWS[0], digits=3)
    assert read_records(tmp_path / "b.csv", Record)[0].share == 0.3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("share", "part", r"lacks the columns \['share'\] and has the columns \['part'\]"),
        ("3,", "three,", "cannot read .*a.csv: .*'three'"),
        ("3,", "3,3,", "cannot read .*a.csv: expected 3 fields"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, old, new, message):
    path = tmp_path / "a.csv"
    write_records(path, Record, ROWS)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(BenchmarkError, match=message):
        read_records(path, Record)
