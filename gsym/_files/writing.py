"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gsym._files.checks import brief
from gsym.errors import FileError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the name ``path`` once it is complete and on the disk.

    If the body raises, ``path`` stays as it was. Of several writers at once, threads or processes,
    each writes a file of its own, and the last to finish wins.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an ``.npz`` file as a whole.

    Raises:
        FileError: Its folder does not exist or cannot be written.
    """
    buffer = io.BytesIO()
    given: dict[str, Any] = dict(arrays)
    np.savez_compressed(buffer, **given)
    write_bytes(path, buffer.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole.

    Raises:
        FileError: Its folder does not exist or cannot be written.
    """
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as cause:
        raise FileError(f"{path}: cannot be written ({brief(cause)})") from cause


def fingerprint(edge_index: Tensor, num_nodes: int) -> str:
    """SHA-256 of the set of edges, in hexadecimal.

    Example:
        >>> square = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
        >>> fingerprint(square, 4) == fingerprint(square.flip(1), 4)
        True
    """
    keys = torch.unique(edge_index[0] * num_nodes + edge_index[1])
    return hashlib.sha256(b"%d:" % num_nodes + keys.numpy().tobytes()).hexdigest()
