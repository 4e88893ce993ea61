"""Files on disk to arrays in memory, and back. A bad file is named, with the way to repair it."""

from __future__ import annotations

import gzip
import math
import os
import shlex
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

_IDX_UINT8 = 0x08

LARGEST = 2**31  # bytes that a file may unpack to; our data sets take some 60 million


class DataError(ValueError):
    """A data file is missing, damaged, or not what was expected."""


@dataclass(frozen=True)
class Images:
    """Grey images with their classes.

    Attributes:
        x_train: ``uint8 [b, 28, 28]``, 0 to 255.
        y_train: ``uint8 [b]``, 0 to 9.
        x_test: As ``x_train``.
        y_test: As ``y_train``.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def fetch_command(dataset: str, out: Path | str) -> str:
    """What to type to get ``dataset`` into the folder ``out``."""
    return f"python -m data_scripts.fetch {dataset} --out {shlex.quote(str(out))}"


def find(data: Path, relative: str, dataset: str) -> Path:
    """Path of a file below the data directory.

    Args:
        data: The data directory.
        relative: Path of the file below it.
        dataset: What ``data_scripts.fetch`` calls the data set the file belongs to.

    Raises:
        DataError: If there is no such file; says how to get it.
    """
    path = data / relative
    if not path.is_file():
        raise DataError(f"no file {path}; fetch it with: {fetch_command(dataset, data)}")
    return path


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped idx file of bytes, the format of MNIST.

    Returns:
        ``uint8``, in the shape that the file's header states.

    Raises:
        DataError: If the file is missing, cut off, not an idx file of bytes, or unpacks to more
            than `LARGEST` bytes.
    """
    try:
        with gzip.open(path) as file:
            start = file.read(4)
            if len(start) < 4 or start[:3] != bytes([0, 0, _IDX_UINT8]):
                magic = start[:3].hex(" ") or "none"
                raise _damaged(path, f"expected the magic bytes 00 00 08, got {magic}")
            sizes = file.read(4 * start[3])
            if len(sizes) < 4 * start[3]:
                got = len(start) + len(sizes)
                raise _damaged(path, f"expected a header of {4 + 4 * start[3]} bytes, got {got}")
            shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
            count = math.prod(shape)
            if count > LARGEST:
                raise _too_large(path, count)
            raw = file.read(count)
            # What follows is counted piece by piece, however much it unpacks to, up to the limit.
            more = sum(len(piece) for piece in _pieces(file, LARGEST - count))
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"gzip data cannot be read ({error})") from error
    if len(raw) + more != count:
        raise _damaged(path, f"header states {list(shape)} bytes, {len(raw) + more} follow it")
    return np.frombuffer(raw, np.uint8).reshape(shape).copy()


def read_npz(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Read some arrays of an npz file; pickled objects are refused.

    Args:
        path: The file.
        keys: Names of the arrays to read.

    Raises:
        DataError: If the file is missing or damaged, lacks a key, holds pickled objects, or its
            arrays take more than `LARGEST` bytes or more than it unpacks to.
    """
    try:
        # np.load, given a path, leaves the file open when it is damaged.
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    _check_sizes(path, archive)
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("expected a zip archive of arrays, got a single array")
            missing = [key for key in keys if key not in arrays]
            if missing:
                raise ValueError(f"expected the arrays {missing}, got only {list(arrays)}")
            return {key: arrays[key] for key in keys}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from error


def load_images(data: Path, dataset: str) -> Images:
    """Load all 70,000 images of ``"fashion-mnist"`` or ``"mnist"``.

    Args:
        data: The data directory; the four files lie in ``data / dataset``.
        dataset: Which of the two.

    Raises:
        DataError: If a file is missing or damaged, or images and labels disagree.
    """
    if dataset not in ("fashion-mnist", "mnist"):
        raise DataError(f"expected the data set 'fashion-mnist' or 'mnist', got {dataset!r}")
    arrays = []
    for part in ("train", "t10k"):
        images = find(data, f"{dataset}/{part}-images-idx3-ubyte.gz", dataset)
        labels = find(data, f"{dataset}/{part}-labels-idx1-ubyte.gz", dataset)
        x, y = read_idx(images), read_idx(labels)
        if x.shape[1:] != (28, 28):
            raise _damaged(images, f"expected images of shape [b, 28, 28], got {list(x.shape)}")
        if y.shape != x.shape[:1]:
            raise _damaged(labels, f"expected {len(x)} labels, got the shape {list(y.shape)}")
        if y.size and y.max() > 9:
            raise _damaged(labels, f"expected classes 0 to 9, got {y.max()}")
        arrays += [x, y]
    return Images(*arrays)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed npz file that appears whole or not at all.

    Args:
        path: The file; its folder must exist. An older file is replaced.
        arrays: Arrays by name.

    Raises:
        TypeError: If an array holds Python objects, which only a pickle could store, or has a
            mask, which the file would lose.
    """
    for name, array in arrays.items():
        if np.ma.isMaskedArray(array):
            raise TypeError(f"expected {name} without a mask, which the file would lose")
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"expected {name} to hold numbers or text, got Python objects")
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the name ``path`` once it is complete and on the disk.

    If the body raises, ``path`` stays as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive before any array of it is given memory."""
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > LARGEST:
        raise _too_large(path, unpacked)
    for member in archive.infolist():
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, _, dtype = read(file)
        size = math.prod(shape) * dtype.itemsize
        # Python's objects are told apart later, by the reader of arrays.
        if size > member.file_size and not dtype.hasobject:
            raise ValueError(
                f"{member.filename} states {size:,} bytes, {member.file_size:,} follow"
            )


def _pieces(file: gzip.GzipFile, limit: int) -> Iterator[bytes]:
    while limit > 0 and (piece := file.read(min(limit, 1 << 20))):
        limit -= len(piece)
        yield piece


def _too_large(path: Path, size: int) -> DataError:
    return DataError(f"{path}: unpacks to {size:,} bytes, expected {LARGEST:,} at most")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: {reason}; delete the file and fetch it again, see data_scripts/fetch.py"
    )
