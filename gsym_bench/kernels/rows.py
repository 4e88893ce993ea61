"""The file of measurements: one row per variant of a case, at one size, mode and setting."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from gsym_bench.data import replacing
from gsym_bench.kernels.bars import Size
from gsym_bench.suite.errors import BenchmarkError

FILE = "kernels.csv"


@dataclass(frozen=True)
class Row:
    """One variant. Ratios are NaN where there is nothing to compare.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        setting: What torch was told: huge pages, products in TF32.
        profile: Which of `suite.PROFILES` measured it.
        case: Name of the case.
        n: Edges or rows.
        k: Nodes, segments or clusters.
        channels: Width of all features.
        batch: Signals side by side.
        mode: Forward, or forward and backward.
        variant: What ran: gsym, a peer, or a ceiling of the machine.
        rounds: Number of times.
        median_ms: Median time.
        memory_mib: Rise of the peak memory over one call.
        gigabytes: What must move at least; of the copy, what it moves.
        gflop: Matrix products that are needed at least; of the matrix product, its own.
        ratio: Median over rounds of the time over that of gsym. Of the copy: bandwidth of gsym
            over that of the copy; of the matrix product: arithmetic of gsym over its.
        ratio_low: Lower quartile of the same.
        ratio_high: Upper quartile of the same.
        memory_ratio: Peak memory over that of gsym.
        roofline: Shortest time that the ceilings of the same round allow, over the time.
        bar: Bar that this row belongs to, or nothing.
        least: Ratio that the bar asks for.
        stretch: Ratio that the machine should allow.
        least_memory: Ratio of memories that the bar asks for.
        met: ``"yes"``, ``"no"``, or nothing for a row without a bar.
        threads: Threads on the CPU.
        commit: Source revision.
        torch: Version of torch.
        machine: Name of the processor that ran.
    """

    device: str
    setting: str
    profile: str
    case: str
    n: int
    k: int
    channels: int
    batch: int
    mode: str
    variant: str
    rounds: int
    median_ms: float
    memory_mib: float
    gigabytes: float
    gflop: float
    ratio: float
    ratio_low: float
    ratio_high: float
    memory_ratio: float
    roofline: float
    bar: str
    least: float
    stretch: float
    least_memory: float
    met: str
    threads: int
    commit: str
    torch: str
    machine: str

    @property
    def size(self) -> Size:
        """Where it was measured."""
        return Size(self.n, self.k, self.channels, self.batch)

    @property
    def key(self) -> tuple[str, str, str, Size, str]:
        """What was compared: all variants of it were measured together."""
        return self.device, self.setting, self.case, self.size, self.mode


def read_rows(out: Path) -> list[Row]:
    """The rows of ``out/kernels.csv``; none if there is no such file.

    Raises:
        BenchmarkError: The file has other columns than `Row`, or is damaged.
    """
    path = out / FILE
    if not path.exists():
        return []
    columns = [field.name for field in fields(Row)]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != columns:
                raise ValueError(f"expected the columns {','.join(columns)}")
            return [_parse(record) for record in reader]
    except (OSError, ValueError, csv.Error) as cause:
        raise BenchmarkError(
            f"cannot read {path}: {cause}; delete it or choose another --out"
        ) from cause


def _parse(record: dict[str, str]) -> Row:
    """A row from the text of its fields."""
    kinds = {"str": str, "int": int, "float": float}
    if None in record or None in record.values():
        raise ValueError(f"a line has not {len(fields(Row))} fields: {record}")
    return Row(**{field.name: kinds[str(field.type)](record[field.name]) for field in fields(Row)})


def write_rows(out: Path, rows: Iterable[Row]) -> None:
    """Write ``out/kernels.csv``, which is there whole before and after."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    with replacing(out / FILE) as file:
        file.write(text.getvalue().encode())


def merge(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Old rows, but for what was measured anew on the same processor, then the new ones."""
    new = list(new)
    keys = {(row.machine, row.key) for row in new}
    return [row for row in old if (row.machine, row.key) not in keys] + new
