"""A folder of results: it can be written to, and one process at a time writes to it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from gsym_bench.data import replacing
from gsym_bench.suite.errors import BenchmarkError

LOCK = ".lock"
HOLDER = ".lock.json"  # says who holds the lock

# A run writes some megabytes of checkpoints, pictures and rows.
ROOM = 64 * 2**20


def check_writable(out: Path) -> None:
    """Fail before the first epoch, not after the last.

    Raises:
        BenchmarkError: The folder cannot be made, is read-only, or its disk is nearly full.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(bytes(1 << 16))
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(out).free
        for path in filter(Path.is_file, out.glob("*.csv")):
            with path.open("ab"):
                pass
    except OSError as cause:
        raise BenchmarkError(
            f"cannot write to {cause.filename or out} ({cause.strerror}); "
            "choose another folder with --out"
        ) from cause
    if free < ROOM:
        raise BenchmarkError(
            f"cannot write to {out}: expected {ROOM >> 20} MiB free on its disk, got "
            f"{free / 2**20:.1f}; make room or choose another folder with --out"
        )


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Write to a folder of results as the only process that does.

    The system gives the lock back when its process ends, however it ends, so the files that stay
    behind block nobody.

    Args:
        out: Folder of results, created if absent.

    Raises:
        BenchmarkError: The folder cannot be written to, or another process writes to it; says
            which one, where and since when.
    """
    check_writable(out)
    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as cause:
        raise BenchmarkError(
            f"{_holder(out)} writes to {out}; wait for it, or choose another folder with --out"
        ) from cause
    except OSError as cause:
        raise BenchmarkError(
            f"cannot lock {out} ({cause.strerror}); choose another folder with --out"
        ) from cause
    try:
        with replacing(out / HOLDER) as file:
            file.write(json.dumps(_self()).encode())
        yield
    finally:
        (out / HOLDER).unlink(missing_ok=True)
        lock.release()


def _self() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
        "command": " ".join(sys.argv),
    }


def _holder(out: Path) -> str:
    try:
        found = json.loads((out / HOLDER).read_text(encoding="utf-8"))
        return "process {pid} on {host}, since {since} ({command}),".format(**found)
    except (OSError, ValueError, KeyError, TypeError):
        # It has the lock and has not said so yet, or no longer.
        return "another process"
