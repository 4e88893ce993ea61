"""Files of arrays: ``.npz``, ``.npy``, ``.pt`` and ``.mat``, and of nothing that would run."""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from numpy.lib import format as npy
from scipy.sparse import coo_array, issparse, load_npz
from torch import Tensor

from gsym._files.checks import brief, check_file, check_size, listing
from gsym.errors import FileError

TORCH = (".pt", ".pth")
# How SciPy stores a sparse matrix in an npz.
_SPARSE = {"data", "format", "shape"}


def split_source(source: str) -> tuple[Path, str]:
    """Path and name of the array of ``file.npz:speed``; the name is ``""`` where none is given."""
    path = Path(source)
    if path.exists() or ":" not in path.name:
        return path, ""
    return Path(source.rpartition(":")[0]), source.rpartition(":")[2]


def read_arrays(source: str) -> tuple[Path, dict[str, Any]]:
    """All arrays of a file, by name; the only array of a file without names is called ``""``.

    Args:
        source: Path of a ``.npz``, ``.npy``, ``.pt`` or ``.mat`` file; ``file.npz:speed`` takes the
            array ``speed`` alone. Sparse matrices come as ``scipy.sparse.coo_array``.

    Raises:
        FileError: No such file, larger than 4 GiB in memory, damaged, or of another kind.
    """
    path, key = split_source(source)
    check_file(path)
    reader = READERS[path.suffix.lower()]
    with readable(path):
        arrays = reader(path)
    if key:
        if key not in arrays:
            raise FileError(f"{path}: no array {key!r}; it holds {listing(arrays)}")
        arrays = {"": arrays[key]}
    return path, arrays


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what libraries raise on damaged files into a :class:`FileError`."""
    try:
        yield
    except FileError:
        raise
    except MemoryError as cause:
        raise FileError(f"{path}: does not fit into memory") from cause
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        NotImplementedError,
        OSError,
        RuntimeError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
        scipy.io.matlab.MatReadError,
    ) as cause:
        raise FileError(f"{path}: cannot be read ({brief(cause)})") from cause


def _read_npz(path: Path) -> dict[str, Any]:
    size = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            # What a header promises is allocated at once, whatever follows it.
            with archive.open(member) as file, suppress(ValueError):
                size += _promised(file)
            size += member.file_size
    check_size(path, size, "unpacked ")
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    if arrays.keys() >= _SPARSE:
        try:
            return {"": coo_array(load_npz(path))}
        except (ValueError, KeyError, AttributeError, NotImplementedError) as cause:
            raise FileError(f"{path}: not a sparse matrix of SciPy ({brief(cause)})") from cause
    return arrays


def _read_npy(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        check_size(path, _promised(file), "in memory ")
    return {"": np.load(path, allow_pickle=False)}


def _promised(file: Any) -> int:
    """The bytes of the array whose header is read here, as float64."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return math.prod(shape) * max(dtype.itemsize, 8)


def _read_pt(path: Path) -> dict[str, Any]:
    # Without data, to know how large the tensors are: one may be expanded from a single number.
    shapes = _load_pt(path, "meta")
    tensors = [value for value in shapes.values() if isinstance(value, Tensor)]
    check_size(path, sum(8 * t.numel() for t in tensors if t.layout == torch.strided), "in memory ")
    arrays: dict[str, Any] = {}
    for key, value in _load_pt(path, "cpu").items():
        if isinstance(value, Tensor) and value.layout != torch.strided:
            if value.dim() != 2:
                raise FileError(f"{path}: {key or 'it'} is sparse but no matrix")
            value = value.detach().to_sparse_coo().coalesce()
            arrays[str(key)] = coo_array(
                (value.values().numpy(), value.indices().numpy()), value.shape
            )
        elif isinstance(value, Tensor):
            # NumPy has no bfloat16.
            plain = value.float() if value.dtype == torch.bfloat16 else value
            arrays[str(key)] = plain.detach().numpy()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            arrays[str(key)] = np.asarray(value)
    return arrays


def _load_pt(path: Path, device: str) -> dict[Any, Any]:
    # What a PyG Data is made of: plain holders of tensors, imported only where one is read.
    data = import_module("torch_geometric.data.data")
    storage = import_module("torch_geometric.data.storage")
    holders = [data.Data, data.DataEdgeAttr, data.DataTensorAttr, storage.GlobalStorage]
    try:
        with torch.serialization.safe_globals(holders):
            content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as cause:
        raise FileError(
            f"{path}: holds more than tensors, numbers and a PyG Data, or is damaged. Other "
            "objects are not loaded, because that could run code; save the tensors alone, as in "
            "torch.save({'edge_index': data.edge_index}, file)"
        ) from cause
    if isinstance(content, Tensor):
        content = {"": content}
    if hasattr(content, "to_dict"):
        content = content.to_dict()
    if not isinstance(content, dict):
        raise FileError(f"{path}: expected a PyG Data, a dict or a tensor; got {type(content)}")
    return content


def _read_mat(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        if b"MATLAB 7.3" in file.read(128):
            raise FileError(
                f"{path}: is a MATLAB file of version 7.3; save it with save(file, '-v7')"
            )
    dense = [shape for _, shape, kind in scipy.io.whosmat(path) if kind != "sparse"]
    check_size(path, 8 * sum(map(math.prod, dense)), "unpacked ")
    content = scipy.io.loadmat(path)
    return {
        key: coo_array(value) if issparse(value) else value
        for key, value in content.items()
        if not key.startswith("__")
    }


READERS = {".npz": _read_npz, ".npy": _read_npy, ".mat": _read_mat}
READERS |= dict.fromkeys(TORCH, _read_pt)
