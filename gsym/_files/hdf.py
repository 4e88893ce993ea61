"""HDF5 as pandas writes it, read without pandas' reader, which would unpickle.

``DataFrame.to_hdf`` keeps names of columns in a table's attributes as pickles, and words in arrays
of pickles. Here numbers are read as numbers, and of pickles only lists of words and numbers.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from gsym._files.arrays import readable
from gsym._files.checks import check_size
from gsym._files.pickles import load_plain
from gsym._files.text import pandas
from gsym._validate import optional_module
from gsym.errors import FileError


def read_hdf(path: Path) -> Any:
    """The only ``DataFrame`` of a file, of either format of pandas."""
    h5py = optional_module("h5py", "h5py", "files", "reading HDF5")
    with readable(path), h5py.File(path, "r") as file:
        found = [
            node
            for node in _groups(h5py, file)
            if "block0_values" in node or ("table" in node and "table" in node["table"].name)
        ]
        if len(found) != 1:
            names = ", ".join(node.name for node in found[:8])
            raise FileError(
                f"{path}: expected one DataFrame as DataFrame.to_hdf writes it; found "
                f"{len(found)}{': ' + names if names else ''}"
            )
        node = found[0]
        return _fixed(path, node) if "block0_values" in node else _table(path, node)


def _groups(h5py: Any, group: Any) -> list[Any]:
    found = [group]
    for key in group:
        # Links may lead out of the file.
        if isinstance(group.get(key, getlink=True), h5py.HardLink):
            node = group[key]
            if isinstance(node, h5py.Group):
                found += _groups(h5py, node)
    return found


def _fixed(path: Path, node: Any) -> Any:
    columns, index = _axis(path, node["axis0"]), _axis(path, node["axis1"])
    blocks = sorted(key for key in node if key.startswith("block") and key.endswith("_values"))
    check_size(path, 8 * sum(node[key].size for key in blocks), "in memory ")
    parts = {}
    for key in blocks:
        names = _axis(path, node[key.replace("_values", "_items")])
        values = _numbers(path, node[key])
        for position, name in enumerate(names):
            parts[name] = values[:, position]
    return pandas().DataFrame(parts, index=index)[list(columns)]


def _table(path: Path, node: Any) -> Any:
    table = node["table"]
    check_size(path, table.size * table.dtype.itemsize, "in memory ")
    rows = table[()]
    parts = {}
    for field in rows.dtype.names:
        if field == "index":
            continue
        values = rows[field]
        names = _plain(path, table.attrs[f"{field}_kind"])
        for position, name in enumerate(names):
            column = values if values.ndim == 1 else values[:, position]
            parts[name] = _checked(path, column, str(name))
    index = _moments(rows["index"], _word(table.attrs.get("index_kind", b"")))
    return pandas().DataFrame(parts, index=index)


def _axis(path: Path, node: Any) -> Any:
    kind = _word(node.attrs.get("kind", b""))
    if node.dtype.kind == "O":
        (pickled,) = node[()]
        return load_plain(path, io.BytesIO(bytes(pickled)))
    values = _moments(node[()], kind)
    if values.dtype.kind == "S":
        return [value.decode("utf-8") for value in values]
    return values


def _moments(values: np.ndarray, kind: str) -> np.ndarray:
    """Times, which are kept as numbers."""
    if kind.startswith("datetime64"):
        unit = kind.partition("[")[2].partition(",")[0].rstrip("]") or "ns"
        return values.astype("int64").view(f"datetime64[{unit}]")
    return values


def _numbers(path: Path, node: Any) -> np.ndarray:
    if node.dtype.kind not in "biuf" or node.ndim != 2:
        raise FileError(f"{path}: {node.name} holds words or pickles; expected numbers")
    return node[()]


def _checked(path: Path, column: np.ndarray, name: str) -> np.ndarray:
    if column.dtype.kind not in "biuf":
        raise FileError(f"{path}: column {name!r} holds words; expected numbers")
    return column


def _plain(path: Path, attribute: Any) -> Any:
    return load_plain(path, io.BytesIO(bytes(attribute)))


def _word(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
