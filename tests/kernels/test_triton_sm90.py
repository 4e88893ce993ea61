"""Compiles the Triton kernels for sm_90, which needs no device, and holds what they use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")


def compiled(tmp_path, *arguments):
    """One row per kernel, from a process of its own: Triton here may interpret."""
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(root),
    }
    done = subprocess.run(
        [sys.executable, str(root / "tests/kernels/sm90.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    return rows


@pytest.mark.slow
def test_rows(tmp_path):
    cases = [
        f"{op} {dtype} {width}"
        for op in ("segment_sum", "segment_max", "gather_segment_sum", "indexed_linear")
        for dtype, width in (("float32", 3), ("float32", 64), ("bfloat16", 64))
    ]
    rows = compiled(tmp_path, "rows", *cases)
    assert {row["case"] for row in rows} == set(cases)
    for row in rows:
        assert row["stack"] == 0, row
        assert row["registers"] < 255, row
        if row["kernel"] in ("_indexed_kernel", "_outer_kernel"):
            assert row["wgmma"] + row["mma"] > 0, row
    assert {
        "reduce_kernel",
        "_pieces_kernel",
        "_dot_kernel",
        "_indexed_kernel",
        "_outer_kernel",
    } == {row["kernel"] for row in rows}


# Registers of a thread, forward and in the larger pass of the gradient, as Triton 3.7 compiles.
REGISTERS = {
    "float32 32 highest": (95, 167),
    "float32 64 highest": (127, 234),
    "float32 32 high": (80, 246),
    "float32 64 high": (86, 199),
    "float32 128 high": (128, 242),
    "bfloat16 32 highest": (80, 168),
    "bfloat16 64 highest": (79, 208),
    "bfloat16 128 highest": (61, 247),
    "float16 64 highest": (108, 205),
}
SLACK = 8
# Those that come nearest to the limit, one of either precision, narrow and wide. Each takes ten
# seconds to compile; `make registers` compiles all.
NEAREST = ("float32 32 high", "bfloat16 128 highest")


@pytest.mark.slow
def test_edges(tmp_path):
    cases = list(REGISTERS if "GSYM_EVERY_KERNEL" in os.environ else NEAREST)
    rows = compiled(tmp_path, "edges", *cases)
    for row in rows:
        assert row["shared"] <= 227 * 1024, row
        assert row["stack"] == 0, row
        assert row["registers"] <= 255, row
        if row["kernel"] != "reduce_kernel":
            assert row["wgmma"] + row["mma"] > 0, row
            # A product of 32 rows is too low for wgmma.
            assert row["wgmma"] > 0 or " 32 " in row["case"], row
    for i, (name, passes) in enumerate((("_forward_kernel", 1), ("_backward_kernel", 2))):
        found = [row for row in rows if row["kernel"] == name]
        assert sorted(row["case"] for row in found) == sorted(passes * cases)
        for row in found:
            assert row["registers"] <= min(REGISTERS[row["case"]][i] + SLACK, 255), row
    assert {row["kernel"] for row in rows} == {
        "_forward_kernel",
        "_backward_kernel",
        "reduce_kernel",
    }
