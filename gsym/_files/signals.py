"""Signals, targets, partitions, positions and names from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from torch import Tensor

from gsym._files.arrays import READERS, TORCH, read_arrays, split_source
from gsym._files.checks import brief, check_file, listing
from gsym._files.graphs import integers
from gsym._files.summary import Summary
from gsym._files.tables import FRAMES, FirstColumn, FirstRow, Table, read_table
from gsym._files.text import SUFFIXES, read_lines, read_text
from gsym._files.writing import fingerprint
from gsym.errors import FileError
from gsym.groups import Partition

_SIGNALS = ("x", "signals", "y", "targets")
_KINDS = (*READERS, *SUFFIXES, *FRAMES)


@dataclass(frozen=True)
class Signals:
    """Signals of a file.

    Attributes:
        values: float64 ``[samples, n, c]``, NaN where a value is missing.
        names: Of the nodes, if the file has them.
        times: Of the samples, if the file has them: ``datetime64`` or numbers, ``[samples]``.
        summary: What was read.
    """

    values: Tensor
    names: tuple[str, ...] | None
    times: np.ndarray | None
    summary: Summary

    @property
    def in_time_order(self) -> bool:
        """Whether the samples have times, and stand in their order."""
        if self.times is None:
            return False
        steps = np.diff(self.times)
        return bool((steps >= np.zeros((), steps.dtype)).all())


def load_signals(
    source: str,
    num_nodes: int | None = None,
    what: str = "signals",
    *,
    first_row: FirstRow = "auto",
    first_column: FirstColumn = "auto",
) -> Signals:
    """Signals of a file with the names and times that it tells.

    Args:
        source: A file, or ``file.npz:speed``; a table has one row per sample, a column per node,
            and may have a header of names and an index or times in its first column.
        num_nodes: Expected number of nodes, if known.
        what: What the messages call them.
        first_row: What the first row of a text holds, ids or a sample; ``"auto"`` judges it.
        first_column: What the first column holds, an index or a node; ``"auto"`` judges it.

    Warns:
        UserWarning: Missing values, and whatever else was not expected.

    Raises:
        FileError: Several arrays to choose from, a wrong shape, infinite values, or doubt about the
            first row or column.
    """
    path, _ = split_source(source)
    summary = Summary(path)
    table = None
    if path.suffix.lower() in (*SUFFIXES, *FRAMES):
        table = read_table(path, summary, num_nodes, first_row, first_column)
        values = table.values
    else:
        values = _one_array(source, what, summary)
    return _checked(path, values, table, num_nodes, what, summary)


def read_signals(source: str, num_nodes: int | None = None, what: str = "signals") -> Tensor:
    """Signals of a file, float64 ``[samples, n, c]``; see :func:`load_signals`."""
    return load_signals(source, num_nodes, what).values


def _one_array(source: str, what: str, summary: Summary) -> np.ndarray:
    path, arrays = _arrays(source)
    named = [arrays[key] for key in _SIGNALS if key in arrays]
    if len(arrays) != 1 and len(named) != 1:
        raise FileError(
            f"{path}: which array holds the {what}? It holds {listing(arrays)}; "
            f"name one, as in {path.name}:{next(iter(arrays), 'x')}"
        )
    values = _numbers(path, what, named[0] if named else next(iter(arrays.values())))
    if path.suffix.lower() in TORCH and "edge_index" in arrays and values.ndim in (2, 3):
        # Rows of a PyG Data are nodes.
        nodes = int(arrays.get("num_nodes", np.max(arrays["edge_index"], initial=-1) + 1))
        if len(values) == nodes or len(values) > nodes != values.shape[1]:
            summary.note(f"{what} {list(values.shape)} of a PyG Data: a row per node")
            return np.moveaxis(values, 0, 1)
    return values


def _checked(
    path: Path,
    values: np.ndarray,
    table: Table | None,
    num_nodes: int | None,
    what: str,
    summary: Summary,
) -> Signals:
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise FileError(
            f"{path}: {what} must be [samples, nodes] or [samples, nodes, channels]; "
            f"got {list(values.shape)}"
        )
    check_nodes(path, values.shape, num_nodes, what)
    values = values.astype(np.float64).reshape(*values.shape[:2], -1)
    if np.isinf(values).any():
        raise FileError(f"{path}: {what} must be finite; {_where(np.isinf(values), 'infinite')}")
    missing = np.isnan(values)
    samples, nodes, channels = values.shape
    counts: dict[str, Any] = {"samples": samples, "nodes": nodes}
    if channels > 1:
        counts["channels"] = channels
    summary.facts = counts | {"missing": int(missing.sum())} | summary.facts
    if missing.any():
        summary.note(f"{_where(missing, 'missing')}, and left so")
    names, times = (None, None) if table is None else (table.names, table.times)
    return Signals(torch.from_numpy(np.ascontiguousarray(values)), names, times, summary)


def check_nodes(
    path: Path | str, shape: Sequence[int], num_nodes: int | None, what: str = "signals"
) -> None:
    """Check that signals ``[samples, nodes, ...]`` have this number of nodes."""
    if num_nodes is not None and shape[1] != num_nodes:
        hint = "; transpose it" if shape[0] == num_nodes else ""
        raise FileError(
            f"{path}: {what} must have {num_nodes} nodes, one per column; got {list(shape)}{hint}"
        )


def _where(bad: np.ndarray, how: str) -> str:
    nodes = np.flatnonzero(bad.any(axis=(0, 2)))
    shown = ", ".join(map(str, nodes[:8])) + ", ..." * (nodes.size > 8)
    count = int(bad.sum())
    values = "1 value is" if count == 1 else f"{count:,} values are"
    return f"{values} {how}, at {nodes.size} node{'s' * (nodes.size > 1)} ({shown})"


def read_mask(source: str, shape: Sequence[int]) -> Tensor:
    """Which values were observed, boolean ``[samples, n]`` or ``[samples, n, c]``.

    Args:
        source: A file of ones and zeros, or of booleans.
        shape: Of the signals, ``[samples, n, c]``.

    Raises:
        FileError: As :func:`load_signals`; another shape, or values but 0 and 1.
    """
    path, _ = split_source(source)
    values = load_signals(source, shape[1], "mask").values
    if tuple(values.shape) not in (tuple(shape), (*shape[:2], 1)):
        raise FileError(
            f"{path}: a mask of signals {list(shape)} is {list(shape[:2])} or {list(shape)}; got "
            f"{list(values.shape)}"
        )
    if not ((values == 0) | (values == 1)).all():
        raise FileError(f"{path}: a mask holds 1 where a value was observed and 0 where not")
    return (values == 1).squeeze(2) if values.shape != tuple(shape) else values == 1


def load_targets(
    source: str,
    num_nodes: int,
    *,
    first_row: FirstRow = "auto",
    first_column: FirstColumn = "auto",
) -> Signals:
    """Targets of a file: signals ``[samples, n, c]``, or ``[samples]``, one number per sample.

    Raises:
        FileError: As :func:`load_signals`.
    """
    path, _ = split_source(source)
    layout: dict[str, Any] = {"first_row": first_row, "first_column": first_column}
    if path.suffix.lower() in (*SUFFIXES, *FRAMES):
        summary = Summary(path)
        table = read_table(path, summary, num_nodes, first_row, first_column)
        only = table.values if table.values.shape[1] == 1 else None
        if only is None or num_nodes == 1:
            return _checked(path, table.values, table, num_nodes, "targets", summary)
        times = table.times
    else:
        _, arrays = _arrays(source)
        named = [key for key in ("targets", "y") if key in arrays]
        if len(arrays) > 1:
            # An x among others holds signals.
            if len(named) != 1:
                raise FileError(
                    f"{path}: which array holds the targets? It holds {listing(arrays)}; "
                    f"name one, as in {path.name}:{next(iter(arrays))}"
                )
            return load_targets(f"{path}:{named[0]}", num_nodes)
        only = next(iter(arrays.values())) if len(arrays) == 1 else None
        if only is None or not (np.ndim(only) == 1 or (np.ndim(only) == 2 and only.shape[1] == 1)):
            return load_signals(source, num_nodes, "targets", **layout)
        summary, times = Summary(path), None
    values = _numbers(path, "targets", only).astype(np.float64).reshape(-1)
    if not np.isfinite(values).all():
        sample = int(np.flatnonzero(~np.isfinite(values))[0])
        raise FileError(f"{path}: targets must be finite; that of sample {sample} is not")
    summary.facts = {"samples": len(values), "targets": "one number per sample"} | summary.facts
    return Signals(torch.from_numpy(values), None, times, summary)


def read_targets(source: str, num_nodes: int) -> Tensor:
    """Targets of a file; see :func:`load_targets`."""
    return load_targets(source, num_nodes).values


def read_partitions(
    source: str,
    num_nodes: int,
    edge_index: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> list[Partition]:
    """Partitions of a file: ``labels`` ``[n]`` or ``[m, n]``, or a text file with one row each.

    Labels that come with the names of their nodes are put in the order of ``names``.

    Raises:
        FileError: Labels of another number of nodes, or written for another graph, or for nodes of
            other names.
        PartitionError: Labels with a gap.
    """
    path, arrays = _arrays(source)
    found = arrays.get("labels", next(iter(arrays.values())) if len(arrays) == 1 else None)
    if found is None:
        raise FileError(f"{path}: expected labels [n] or [m, n]; it holds {listing(arrays)}")
    labels = _numbers(path, "labels", found)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.T
    labels = np.atleast_2d(labels)
    if labels.ndim != 2 or labels.shape[1] != num_nodes:
        raise FileError(
            f"{path}: a partition of this graph has one label for each of {num_nodes} nodes; "
            f"got labels {list(labels.shape)}; it belongs to another graph"
        )
    if "names" in arrays and names is not None:
        written = np.asarray(arrays["names"]).astype(str).tolist()
        if sorted(written) != sorted(names):
            raise FileError(f"{path}: was written for nodes of other names, as {written[0]!r:.60}")
        if written != list(names):
            place = {name: i for i, name in enumerate(written)}
            labels, edge_index = labels[:, [place[name] for name in names]], None
    if "graph" in arrays and edge_index is not None:
        there, here = str(arrays["graph"]), fingerprint(edge_index, num_nodes)
        if there != here:
            raise FileError(
                f"{path}: was written for another graph of {num_nodes} nodes "
                f"(its fingerprint is {there:.12}, that of this graph {here:.12})"
            )
    return [Partition.from_labels(torch.from_numpy(integers(path, row))) for row in labels]


def read_positions(source: str, num_nodes: int) -> np.ndarray:
    """Coordinates ``[n, 2]`` of a file, x to the right and y upwards.

    Raises:
        FileError: Another shape, or coordinates that are not finite.
    """
    path, arrays = _arrays(source)
    found = arrays.get("pos", arrays.get("positions"))
    if found is None and len(arrays) == 1:
        found = next(iter(arrays.values()))
    if found is None:
        raise FileError(f"{path}: expected positions [n, 2]; it holds {listing(arrays)}")
    positions = _numbers(path, "positions", found).astype(np.float64)
    if positions.shape != (num_nodes, 2):
        raise FileError(
            f"{path}: positions must be [{num_nodes}, 2], x and y of each node; "
            f"got {list(positions.shape)}"
        )
    if not np.isfinite(positions).all():
        node = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise FileError(f"{path}: positions must be finite; that of node {node} is not")
    return positions


def read_latlon(source: str, names: Sequence[str] | None, num_nodes: int) -> np.ndarray:
    """Latitude and longitude ``[n, 2]`` of every node, in degrees.

    A table has columns ``latitude`` and ``longitude`` (or ``lat``, ``lon``, ``lng``); where another
    column holds the names of the nodes, its rows are put in their order.

    Raises:
        FileError: No such columns, nodes that are not there or there twice, or another number of
            rows.
    """
    path, _ = split_source(source)
    if path.suffix.lower() not in SUFFIXES:
        path, arrays = _arrays(source)
        found = arrays.get("latlon")
        if found is None and len(arrays) == 1:
            found = next(iter(arrays.values()))
        if found is None:
            raise FileError(f"{path}: expected latlon [n, 2]; it holds {listing(arrays)}")
        degrees = _numbers(path, "latlon", found).astype(np.float64)
    else:
        header, *rows = read_text(path).head(num_nodes + 100_000)
        columns = [cell.strip().lower() for cell in header]
        both = [
            next((i for i, cell in enumerate(columns) if cell in words), None)
            for words in (("latitude", "lat"), ("longitude", "lon", "lng", "long"))
        ]
        if None in both:
            raise FileError(
                f"{path}: expected a header with columns latitude and longitude; got "
                f"{', '.join(columns)[:200]}"
            )
        if names is not None:
            others = [column for column in range(len(columns)) if column not in both]
            rows = _by_names(path, rows, others, names)
        try:
            degrees = np.array([[float(row[i or 0]) for i in both] for row in rows])
        except ValueError as cause:
            raise FileError(f"{path}: {brief(cause)}") from cause
    if degrees.shape != (num_nodes, 2):
        raise FileError(
            f"{path}: must give latitude and longitude of {num_nodes} nodes, in the order of the "
            f"signals or by their names; got {list(degrees.shape)}"
        )
    return degrees


def _by_names(
    path: Path, rows: list[list[str]], columns: Sequence[int], names: Sequence[str]
) -> list[list[str]]:
    """The rows in the order of the names, by the column that holds most of them.

    Rows stay as they are where no column holds a name.
    """
    wanted = set(names)
    held = [[row[column].strip() for row in rows] for column in columns]
    cells = max(held, key=lambda column: len(wanted & set(column)), default=[])
    if wanted.isdisjoint(cells):
        return rows
    place: dict[str, list[str]] = {}
    for name, row in zip(cells, rows, strict=True):
        if name in wanted and name in place:
            raise FileError(f"{path}: names must differ; {name!r:.60} stands there twice")
        place[name] = row
    missing = [name for name in names if name not in place]
    if missing:
        shown = ", ".join(f"{name!r:.60}" for name in missing[:8]) + ", ..." * (len(missing) > 8)
        raise FileError(
            f"{path}: must give latitude and longitude of every node; {len(missing)} of "
            f"{len(names)} are missing: {shown}"
        )
    return [place[name] for name in names]


def read_names(source: str) -> list[str]:
    """Names of the nodes, one per line.

    Raises:
        FileError: Not text, or a name twice.
    """
    path = Path(source)
    names = [line.strip() for line in read_lines(path)]
    names = [name for name in names if name]
    if not names:
        raise FileError(f"{path}: is empty")
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise FileError(f"{path}: names must differ; {twice!r:.60} stands there twice")
    return names


def _arrays(source: str) -> tuple[Path, dict[str, Any]]:
    """The arrays of a file, or the numbers of a text."""
    path, key = split_source(source)
    check_file(path)
    suffix = path.suffix.lower()
    if suffix not in _KINDS:
        raise FileError(f"{path}: unknown kind of file; expected {', '.join(_KINDS)}")
    if suffix in READERS:
        return read_arrays(source)
    if key:
        raise FileError(f"{path}: holds one table, and no array {key!r}")
    if suffix in FRAMES:
        return path, {"": read_table(path, Summary(path)).values}
    text = read_text(path)
    cells = text.head(1)[0]
    # Labels and positions are small numbers: a header has words.
    first: FirstRow = "sample" if not text.short_header and _has_no_word(cells) else "ids"
    table = read_table(path, Summary(path), text.columns, first, "node")
    return path, {"": table.values}


def _has_no_word(cells: Sequence[str]) -> bool:
    try:
        return all(np.isfinite(float(cell)) or True for cell in cells)
    except ValueError:
        return False


def _numbers(path: Path, what: str, values: Any) -> np.ndarray:
    if issparse(values):
        raise FileError(f"{path}: holds a sparse tensor; {what} are dense: save it .to_dense()")
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise FileError(f"{path}: {what} must be numbers; got dtype {array.dtype}")
    return array
