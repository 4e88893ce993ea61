"""Checks that every reader makes: the limit on what is read, and the words of errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gsym.errors import FileError

# Files that would fill the memory are refused before they are read.
MAX_BYTES = 4 * 2**30


def check_size(path: Path, size: int, how: str = "") -> None:
    """Refuse what takes more than :data:`MAX_BYTES`, on the disk or in memory."""
    if size > MAX_BYTES:
        raise FileError(
            f"{path}: {how}{size / 2**30:.1f} GiB; files of up to {MAX_BYTES / 2**30:g} GiB are "
            "read here; load a larger one in Python and pass the tensors"
        )


def check_file(path: Path) -> None:
    """Refuse a path that is no file, or too large a one."""
    if path.is_dir():
        raise FileError(f"{path}: is a folder; name a file")
    if not path.is_file():
        raise FileError(f"no file {path}; check the name")
    check_size(path, path.stat().st_size)


def listing(arrays: dict[str, Any]) -> str:
    """The names and shapes of arrays, for messages."""
    named = [f"{key or 'one array'} {list(np.shape(value))}" for key, value in arrays.items()]
    return ", ".join(named[:8]) + ", ..." * (len(named) > 8) if named else "no arrays"


def brief(error: BaseException) -> str:
    """The first line of an error, for messages."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
