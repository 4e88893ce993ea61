"""Compiles the Triton kernels for sm_90, which needs no device, and holds what they use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

# Bytes of stack by kernel and case: the registers that did not suffice. A gradient
# keeps several tiles of 64 edges; these may shrink, not grow.
MOST_STACK = {
    ("_backward_kernel", "float32 32 highest"): 1200,
    ("_backward_kernel", "float32 64 highest"): 2500,
}


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
        for dtype in ("float32", "bfloat16")
        for width in (3, 64)
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


@pytest.mark.slow
def test_edges(tmp_path):
    rows = compiled(tmp_path, "edges", "float32 32 highest", "float32 64 highest")
    for row in rows:
        assert row["shared"] <= 227 * 1024, row
        assert row["stack"] <= MOST_STACK.get((row["kernel"], row["case"]), 0), row
        if row["kernel"] != "reduce_kernel":
            assert row["wgmma"] > 0, row
    assert {row["kernel"] for row in rows} == {
        "_forward_kernel",
        "_backward_kernel",
        "reduce_kernel",
    }
