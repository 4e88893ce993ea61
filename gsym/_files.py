"""Files to graphs, signals and partitions, and back: written whole or not at all.

Nothing is unpickled: ``.npy`` and ``.npz`` are read without pickled objects, ``.pt`` with
``weights_only``. A file that cannot be read as what was asked for raises :class:`FileError`, which
names it and says what to do.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from scipy.sparse import load_npz
from torch import Tensor

from gsym.groups import Partition

# Files that would fill the memory are refused before they are read.
MAX_BYTES = 4 * 2**30

_SPARSE = {"data", "format", "shape"}
_ADJACENCY = ("adj", "adjacency", "A")
_SIGNALS = ("x", "signals", "y", "targets")
_TORCH = (".pt", ".pth")
_TEXT = (".csv", ".tsv", ".txt", ".edges", ".edgelist")


class FileError(ValueError):
    """A file that cannot be read as what was asked for, or cannot be written."""


@dataclass(frozen=True)
class Graph:
    """A graph from a file.

    Attributes:
        edge_index: int64 ``[2, e]``.
        edge_weight: Weights ``[e]``, or ``None``.
        num_nodes: Number of nodes, if the file says it; an edge list does not.
    """

    edge_index: Tensor
    edge_weight: Tensor | None
    num_nodes: int | None


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


def read_arrays(source: str) -> tuple[Path, dict[str, Any]]:
    """All arrays of a file, by name; the only array of a file without names is called ``""``.

    Args:
        source: Path of a ``.npz``, ``.npy``, ``.pt`` or text file; ``file.npz:speed`` takes the
            array ``speed`` alone.

    Raises:
        FileError: No such file, larger than 4 GiB when unpacked, damaged, or of another kind.
    """
    path, key = Path(source), ""
    if not path.exists() and ":" in path.name:
        path, key = Path(source.rpartition(":")[0]), source.rpartition(":")[2]
    if not path.is_file():
        raise FileError(f"no file {path}; check the name")
    readers = {".npz": _read_npz, ".npy": _read_npy}
    readers |= dict.fromkeys(_TORCH, _read_pt) | dict.fromkeys(_TEXT, _read_numbers)
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise FileError(f"{path}: unknown kind of file; expected {', '.join(readers)}")
    _check_size(path, path.stat().st_size)
    try:
        arrays = reader(path)
    except MemoryError as cause:
        raise FileError(f"{path}: does not fit into memory") from cause
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        RuntimeError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as cause:
        if isinstance(cause, FileError):
            raise
        raise FileError(f"{path}: cannot be read ({_brief(cause)})") from cause
    if key:
        if key not in arrays:
            raise FileError(f"{path}: no array {key!r}; it holds {_listing(arrays)}")
        arrays = {"": arrays[key]}
    return path, arrays


def read_graph(source: str, *, names: Sequence[str] | None = None, directed: bool = False) -> Graph:
    """The graph of a file.

    ``.npz`` and ``.pt`` hold ``edge_index`` ``[2, e]`` with ``edge_weight`` and ``num_nodes`` where
    there are any (a PyG ``Data`` does), or a square ``adj``; an ``.npz`` may also be a SciPy sparse
    matrix. A text of two or three columns is an edge list, a square one an adjacency matrix.

    Args:
        source: See :func:`read_arrays`.
        names: Names of the nodes in order. An edge list may use them, or numbers from 0.
        directed: Take the edges of an edge list in one direction only. By default they go both
            ways; other kinds of file state their directions.

    Raises:
        FileError: Nothing in the file describes a graph, or what does is of the wrong shape.
    """
    if names is not None and Path(source).suffix.lower() in _TEXT:
        path = Path(source)
        if not path.is_file():
            raise FileError(f"no file {path}; check the name")
        edges = _named_edges(path, names)
        if edges is not None:
            return _from_list(path, edges, len(names), directed)
    path, arrays = read_arrays(source)
    if arrays.keys() >= _SPARSE:
        try:
            return _from_matrix(path, load_npz(path).tocoo())
        except (ValueError, KeyError, AttributeError, NotImplementedError) as cause:
            raise FileError(f"{path}: not a sparse matrix of SciPy ({_brief(cause)})") from cause
    if "edge_index" in arrays:
        return _from_edge_index(path, arrays)
    found = next((arrays[key] for key in (*_ADJACENCY, "") if key in arrays), None)
    if found is None and len(arrays) == 1:
        found = next(iter(arrays.values()))
    if found is None:
        raise FileError(
            f"{path}: expected edge_index [2, e] or adj [n, n]; it holds {_listing(arrays)}"
        )
    matrix = _numbers(path, "the graph", found)
    is_text = path.suffix.lower() in _TEXT
    # Of texts, lists of few edges are more likely than matrices of few nodes.
    if is_text and matrix.shape[1] in (2, 3):
        return _from_list(path, matrix, None, directed)
    if matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]:
        return _from_matrix(path, matrix)
    if matrix.ndim == 2 and matrix.shape[0] == 2 and not is_text:
        return _from_edge_index(path, {"edge_index": matrix})
    if matrix.ndim == 2 and matrix.shape[1] in (2, 3):
        return _from_list(path, matrix, None, directed)
    raise FileError(
        f"{path}: a graph is an adjacency matrix [n, n], edge_index [2, e] or a list of edges with "
        f"two or three columns; got {list(matrix.shape)}"
    )


def read_signals(source: str, num_nodes: int | None = None, what: str = "signals") -> Tensor:
    """Signals of a file, float64 ``[samples, n, c]``.

    Args:
        source: See :func:`read_arrays`; a text file has one row per sample, a column per node.
        num_nodes: Expected number of nodes, if known.
        what: What the error messages call them.

    Raises:
        FileError: Several arrays to choose from, a wrong shape, or values that are not finite (the
            nodes are named).
    """
    path, arrays = read_arrays(source)
    named = [arrays[key] for key in _SIGNALS if key in arrays]
    if len(arrays) == 1 or len(named) == 1:
        values = _numbers(path, what, named[0] if named else next(iter(arrays.values())))
    else:
        raise FileError(
            f"{path}: which array holds the {what}? It holds {_listing(arrays)}; "
            f"name one, as in {path.name}:{next(iter(arrays), 'x')}"
        )
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise FileError(
            f"{path}: {what} must be [samples, nodes] or [samples, nodes, channels]; "
            f"got {list(values.shape)}"
        )
    if num_nodes is not None and values.shape[1] != num_nodes:
        hint = "; transpose it" if values.shape[0] == num_nodes else ""
        raise FileError(
            f"{path}: {what} must have {num_nodes} nodes, one per column; "
            f"got {list(values.shape)}{hint}"
        )
    values = values.astype(np.float64).reshape(*values.shape[:2], -1)
    bad = ~np.isfinite(values)
    if bad.any():
        nodes = np.flatnonzero(bad.any(axis=(0, 2)))
        shown = ", ".join(map(str, nodes[:8])) + ", ..." * (nodes.size > 8)
        raise FileError(
            f"{path}: {what} must be finite; {int(bad.sum())} values are not, at "
            f"{nodes.size} node{'s' * (nodes.size > 1)} ({shown}); fill them or drop the samples"
        )
    return torch.from_numpy(values)


def read_targets(source: str, num_nodes: int) -> Tensor:
    """Targets of a file: signals ``[samples, n, c]``, or ``[samples]``, one number per sample.

    Raises:
        FileError: As :func:`read_signals`.
    """
    path, arrays = read_arrays(source)
    named = [key for key in ("targets", "y") if key in arrays]
    if len(arrays) > 1:
        # An x beside others holds signals.
        if len(named) != 1:
            raise FileError(
                f"{path}: which array holds the targets? It holds {_listing(arrays)}; "
                f"name one, as in {path.name}:{next(iter(arrays))}"
            )
        return read_targets(f"{path}:{named[0]}", num_nodes)
    only = next(iter(arrays.values())) if len(arrays) == 1 else None
    if only is None or not (np.ndim(only) == 1 or (np.ndim(only) == 2 and only.shape[1] == 1)):
        return read_signals(source, num_nodes, "targets")
    values = _numbers(path, "targets", only).astype(np.float64).reshape(-1)
    if not np.isfinite(values).all():
        sample = int(np.flatnonzero(~np.isfinite(values))[0])
        raise FileError(f"{path}: targets must be finite; that of sample {sample} is not")
    return torch.from_numpy(values)


def read_partitions(
    source: str, num_nodes: int, edge_index: Tensor | None = None
) -> list[Partition]:
    """Partitions of a file: ``labels`` ``[n]`` or ``[m, n]``, or a text file with one row each.

    Raises:
        FileError: Labels of another number of nodes, or written for another graph.
        PartitionError: Labels with a gap.
    """
    path, arrays = read_arrays(source)
    found = arrays.get("labels", next(iter(arrays.values())) if len(arrays) == 1 else None)
    if found is None:
        raise FileError(f"{path}: expected labels [n] or [m, n]; it holds {_listing(arrays)}")
    labels = _numbers(path, "labels", found)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.T
    labels = np.atleast_2d(labels)
    if labels.ndim != 2 or labels.shape[1] != num_nodes:
        raise FileError(
            f"{path}: a partition of this graph has one label for each of {num_nodes} nodes; "
            f"got labels {list(labels.shape)}; it belongs to another graph"
        )
    if "graph" in arrays and edge_index is not None:
        written, here = str(arrays["graph"]), fingerprint(edge_index, num_nodes)
        if written != here:
            raise FileError(
                f"{path}: was written for another graph of {num_nodes} nodes "
                f"(its fingerprint is {written:.12}, that of this graph {here:.12})"
            )
    return [Partition.from_labels(torch.from_numpy(_integers(path, row))) for row in labels]


def read_positions(source: str, num_nodes: int) -> np.ndarray:
    """Coordinates ``[n, 2]`` of a file, x to the right and y upwards.

    Raises:
        FileError: Another shape.
    """
    path, arrays = read_arrays(source)
    found = arrays.get("pos", arrays.get("positions"))
    if found is None and len(arrays) == 1:
        found = next(iter(arrays.values()))
    if found is None:
        raise FileError(f"{path}: expected positions [n, 2]; it holds {_listing(arrays)}")
    positions = _numbers(path, "positions", found).astype(np.float64)
    if positions.shape != (num_nodes, 2):
        raise FileError(
            f"{path}: positions must be [{num_nodes}, 2], x and y of each node; "
            f"got {list(positions.shape)}"
        )
    return positions


def read_names(source: str) -> list[str]:
    """Names of the nodes, one per line.

    Raises:
        FileError: Not text, or a name twice.
    """
    path = Path(source)
    if not path.is_file():
        raise FileError(f"no file {path}; check the name")
    _check_size(path, path.stat().st_size)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        raise FileError(f"{path}: cannot be read ({_brief(cause)})") from cause
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise FileError(f"{path}: names must differ; {twice!r:.60} stands there twice")
    return names


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an ``.npz`` file as a whole.

    Raises:
        FileError: Its folder does not exist or cannot be written.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
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
        raise FileError(f"{path}: cannot be written ({_brief(cause)})") from cause


def fingerprint(edge_index: Tensor, num_nodes: int) -> str:
    """SHA-256 of the set of edges, in hexadecimal.

    Example:
        >>> square = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
        >>> fingerprint(square, 4) == fingerprint(square.flip(1), 4)
        True
    """
    keys = torch.unique(edge_index[0] * num_nodes + edge_index[1])
    return hashlib.sha256(b"%d:" % num_nodes + keys.numpy().tobytes()).hexdigest()


def _read_npz(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        _check_size(path, sum(member.file_size for member in archive.infolist()), "unpacked ")
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _read_npy(path: Path) -> dict[str, Any]:
    return {"": np.load(path, allow_pickle=False)}


def _read_pt(path: Path) -> dict[str, Any]:
    # What a PyG Data is made of: plain holders of tensors, imported only where one is read.
    data = import_module("torch_geometric.data.data")
    storage = import_module("torch_geometric.data.storage")
    holders = [data.Data, data.DataEdgeAttr, data.DataTensorAttr, storage.GlobalStorage]
    try:
        with torch.serialization.safe_globals(holders):
            content = torch.load(path, map_location="cpu", weights_only=True)
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
    arrays = {}
    for key, value in content.items():
        if isinstance(value, Tensor) and value.layout != torch.strided and len(content) == 1:
            raise FileError(f"{path}: holds a sparse tensor; save tensor.to_dense()")
        if isinstance(value, Tensor) and value.layout == torch.strided:
            # NumPy has no bfloat16.
            plain = value.float() if value.dtype == torch.bfloat16 else value
            arrays[str(key)] = plain.detach().numpy()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            arrays[str(key)] = np.asarray(value)
    return arrays


def _read_numbers(path: Path) -> dict[str, Any]:
    return {"": _table(path, np.float64)}


def _table(path: Path, dtype: Any) -> np.ndarray:
    """A text file of rows and columns; a first row of words is a header."""
    with path.open(encoding="utf-8-sig") as file:
        lines = (line for line in file if line.strip() and line.lstrip()[0] not in "#%")
        first = next(lines, "")
    if not first:
        raise FileError(f"{path}: is empty")
    delimiter = next((mark for mark in ("\t", ",", ";") if mark in first), None)
    has_header = dtype is not str and not all(map(_is_number, first.split(delimiter)))
    with path.open(encoding="utf-8-sig") as file:
        lines = (line for line in file if line.strip() and line.lstrip()[0] not in "#%")
        if has_header:
            next(lines)
        if dtype is str:
            rows = csv.reader(lines, delimiter=delimiter) if delimiter else map(str.split, lines)
            return np.array([[cell.strip() for cell in row] for row in rows], dtype=object)
        return np.loadtxt(lines, dtype=dtype, delimiter=delimiter, ndmin=2, comments=None)


def _named_edges(path: Path, names: Sequence[str]) -> np.ndarray | None:
    """An edge list of names as one of numbers ``[e, 2 or 3]``; ``None`` if it uses no names."""
    _check_size(path, path.stat().st_size)
    try:
        table = _table(path, str)
    except (OSError, ValueError) as cause:
        if isinstance(cause, FileError):
            raise
        raise FileError(f"{path}: cannot be read ({_brief(cause)})") from cause
    number = {name: i for i, name in enumerate(names)}
    if table.ndim != 2 or table.shape[1] not in (2, 3):
        raise FileError(f"{path}: an edge list has two or three columns in every row")
    if not any(cell in number for cell in table[:2, :2].flat):
        return None
    if table[0, 0] not in number and table[0, 1] not in number:
        table = table[1:]
    edges = np.empty(table.shape)
    for row, cells in enumerate(table):
        for column, cell in enumerate(cells):
            if column < 2:
                if cell not in number:
                    raise FileError(f"{path}: row {row + 1} names {cell!r:.60}, not in the names")
                edges[row, column] = number[cell]
            elif _is_number(cell):
                edges[row, column] = float(cell)
            else:
                raise FileError(f"{path}: row {row + 1} has the weight {cell!r:.60}")
    return edges


def _from_edge_index(path: Path, arrays: dict[str, Any]) -> Graph:
    edge_index = _numbers(path, "edge_index", arrays["edge_index"])
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise FileError(f"{path}: edge_index must be [2, e]; got {list(edge_index.shape)}")
    weight = arrays.get("edge_weight")
    attributes = arrays.get("edge_attr")
    if weight is None and attributes is not None and attributes.ndim == 1:
        weight = attributes
    weight = None if weight is None else _numbers(path, "edge_weight", weight)
    count = arrays.get("num_nodes")
    if count is not None and (
        np.ndim(count) or not float(_numbers(path, "num_nodes", count)).is_integer()
    ):
        raise FileError(f"{path}: num_nodes must be one whole number; got {count!r:.60}")
    # The features of a PyG Data are per node; an x beside a graph in an npz may be signals.
    if count is None and "x" in arrays and path.suffix.lower() in _TORCH:
        count = len(arrays["x"])
    return _graph(path, edge_index, weight, None if count is None else int(count))


def _from_matrix(path: Path, matrix: Any) -> Graph:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise FileError(f"{path}: an adjacency matrix is square; got {list(matrix.shape)}")
    if isinstance(matrix, np.ndarray):
        source, target = matrix.nonzero()
        weight = matrix[source, target]
    else:
        source, target, weight = matrix.row, matrix.col, matrix.data
    plain = None if bool((weight == 1).all()) else weight
    return _graph(path, np.stack([source, target]), plain, matrix.shape[0])


def _from_list(path: Path, rows: np.ndarray, num_nodes: int | None, directed: bool) -> Graph:
    weight = rows[:, 2] if rows.shape[1] == 3 else None
    graph = _graph(path, rows[:, :2].T, weight, num_nodes)
    return graph if directed else _both_ways(graph)


def _both_ways(graph: Graph) -> Graph:
    """The graph with the reverse of every edge whose reverse is missing."""
    source, target = graph.edge_index
    n = int(graph.edge_index.max()) + 1 if graph.edge_index.numel() else 1
    missing = ~torch.isin(target * n + source, source * n + target)
    edge_index = torch.cat([graph.edge_index, graph.edge_index.flip(0)[:, missing]], dim=1)
    weight = graph.edge_weight
    if weight is not None:
        weight = torch.cat([weight, weight[missing]])
    return Graph(edge_index, weight, graph.num_nodes)


def _graph(path: Path, edges: np.ndarray, weight: np.ndarray | None, n: int | None) -> Graph:
    edge_index = torch.from_numpy(_integers(path, edges, "nodes"))
    if n is not None and n < 1:
        raise FileError(f"{path}: a graph needs at least one node; got {n}")
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or (n is not None and high >= n):
            bound = "0 or more" if n is None else f"0..{n - 1}"
            bad = low if low < 0 else high
            edge = int((edge_index == bad).any(dim=0).nonzero()[0])
            raise FileError(f"{path}: nodes are numbered {bound}; edge {edge} names node {bad}")
    if weight is not None:
        if weight.shape != (edge_index.size(1),):
            raise FileError(
                f"{path}: edge_weight must hold one number for each of {edge_index.size(1)} edges; "
                f"got {list(weight.shape)}"
            )
        if not np.isfinite(weight).all():
            edge = int(np.flatnonzero(~np.isfinite(weight))[0])
            raise FileError(f"{path}: weights must be finite; edge {edge} has {weight[edge]}")
        return Graph(edge_index, torch.from_numpy(weight.astype(np.float64)), n)
    return Graph(edge_index, None, n)


def _numbers(path: Path, what: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise FileError(f"{path}: {what} must be numbers; got dtype {array.dtype}")
    return array


def _integers(path: Path, values: np.ndarray, what: str = "labels") -> np.ndarray:
    whole = values.astype(np.int64) if np.isfinite(values).all() else None
    if whole is None or not (whole == values).all():
        bad = values.flatten()[0 if whole is None else int((whole != values).argmax())]
        if whole is None:
            bad = values[~np.isfinite(values)][0]
        raise FileError(f"{path}: {what} must be whole numbers; got {bad}")
    return np.ascontiguousarray(whole)


def _check_size(path: Path, size: int, how: str = "") -> None:
    if size > MAX_BYTES:
        raise FileError(
            f"{path}: {how}{size / 2**30:.1f} GiB; files of up to {MAX_BYTES / 2**30:g} GiB are "
            "read here; load a larger one in Python and pass the tensors"
        )


def _listing(arrays: dict[str, Any]) -> str:
    named = [f"{key or 'one array'} {list(np.shape(value))}" for key, value in arrays.items()]
    return ", ".join(named[:8]) + ", ..." * (len(named) > 8) if named else "no arrays"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
