"""Graphs from files of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse

from gsym._files import networks
from gsym._files.arrays import READERS, TORCH, read_arrays, split_source
from gsym._files.checks import MAX_BYTES, check_file, listing
from gsym._files.edges import EdgeList, Graph, graph_of_list, is_list, list_of_text
from gsym._files.summary import Summary
from gsym._files.tables import FRAMES, read_frame
from gsym._files.text import SUFFIXES, Text, is_missing, is_number, read_lines, read_text
from gsym.errors import FileError

_ADJACENCY = ("adj", "adjacency", "A")
KINDS = (*READERS, *SUFFIXES, *networks.READERS, *FRAMES)


def read_graph(
    source: str,
    *,
    names: Sequence[str] | None = None,
    num_nodes: int | None = None,
    directed: bool = False,
) -> Graph:
    """The graph of a file.

    ``.npz`` and ``.pt`` hold ``edge_index`` ``[2, e]`` with ``edge_weight`` and ``num_nodes`` where
    there are any (a PyG ``Data`` does), or a square ``adj``; an ``.npz`` may also be a SciPy sparse
    matrix. A text is a list of edges, a square matrix, with the names of the nodes or without, or
    in the Matrix Market format. NetworkX reads GraphML, GML, GEXF and node-link JSON.

    Args:
        source: The file, or ``file.npz:array``.
        names: Names of the nodes in order. A list of edges may use them, or numbers from 0.
        num_nodes: Number of nodes, if it is known from elsewhere.
        directed: Take the edges of a list in one direction only. By default they go both ways, each
            row once, whichever way it is turned; other kinds of file state their directions.

    Warns:
        UserWarning: What a reader of the file may not expect, such as ids with gaps.

    Raises:
        FileError: Nothing in the file describes a graph, or what does is of the wrong shape.
    """
    path, key = split_source(source)
    check_file(path)
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise FileError(f"{path}: unknown kind of file; expected {', '.join(KINDS)}")
    summary = Summary(path)
    if suffix in SUFFIXES:
        graph = _of_text(path, names, num_nodes, directed, summary)
    elif suffix in networks.READERS:
        graph = _of_network(networks.READERS[suffix](path), names, summary)
    elif suffix in FRAMES:
        graph = _of_frame(path, names, num_nodes, directed, summary)
    else:
        graph = _of_arrays(source, names, num_nodes, directed, summary)
    _count(graph, summary, key)
    return graph


def _of_text(
    path: Path,
    names: Sequence[str] | None,
    num_nodes: int | None,
    directed: bool,
    summary: Summary,
) -> Graph:
    first = next((line for line in read_lines(path) if line.strip()), "")
    if first.startswith("%%MatrixMarket"):
        return _of_network(networks.read_matrix_market(path), names, summary)
    if networks.is_networkx_list(path):
        return _of_network(networks.read_networkx_list(path, directed), names, summary)
    text = read_text(path)
    width = text.columns
    if not is_list(text, names):
        labelled = _labelled(text, summary)
        if labelled is None and width > 3:
            labelled = _square(text, summary)
        if labelled is not None:
            return _of_network(labelled, names, summary)
        symmetric = _small_square(text)
        if symmetric is not None and names is None:
            summary.note("a symmetric table of three rows is taken for a matrix, not for a list")
            return _from_matrix(path, symmetric, summary)
    if width < 2:
        raise FileError(
            f"{path}: a graph is an adjacency matrix [n, n] or a list of edges with two columns or "
            f"more; got {[len(text), width]}"
        )
    edges, says_directed = list_of_text(text, names, summary)
    return graph_of_list(
        path,
        edges,
        summary,
        names=names,
        num_nodes=num_nodes,
        directed=directed or says_directed,
    )


def _labelled(text: Text, summary: Summary) -> networks.Network | None:
    """A square table whose first row and column name the nodes."""
    n = len(text) - 1
    width = text.columns
    if n < 1 or width != n + 1:
        return None
    (corner, *header), *body = text.head()
    numbers = (is_missing(c) or is_number(c, text.decimal) for row in body for c in row[1:])
    if is_number(corner, text.decimal) or not all(numbers):
        return None
    rows = text.words(1, [0])[:, 0].tolist()
    if sorted(rows) != sorted(header):
        return None
    if len(set(header)) < n:
        twice = next(name for i, name in enumerate(header) if name in header[:i])
        raise FileError(f"{text.path}: names must differ; {twice!r:.60} stands there twice")
    summary.facts["header"] = "names both ways"
    columns = [header.index(name) + 1 for name in rows]
    matrix = text.floats(1, columns, [repr(name) for name in rows])
    return _network(text, matrix, tuple(rows))


def _square(text: Text, summary: Summary) -> networks.Network | None:
    """A square table, with or without names in its first row."""
    cells = text.head(1)[0]
    labels = list(map(str, range(text.columns)))
    if len(text) == text.columns:
        return _network(text, text.floats(0, range(text.columns), labels), None)
    if len(text) != text.columns + 1 or text.short_header:
        return None
    if len(set(cells)) < len(cells) or any(is_missing(cell) for cell in cells):
        return None
    summary.facts["header"] = f"row {text.numbers[0]}"
    matrix = text.floats(1, range(text.columns), [repr(cell) for cell in cells])
    return _network(text, matrix, tuple(cells))


def _small_square(text: Text) -> np.ndarray | None:
    """A symmetric matrix of three nodes without loops, which a list of edges hardly is."""
    cells = text.head(4)
    if len(text) != 3 or text.columns != 3 or text.short_header:
        return None
    if not all(is_number(cell, text.decimal) for row in cells for cell in row):
        return None
    matrix = text.floats(0, range(3), ["1", "2", "3"])
    return matrix if (matrix == matrix.T).all() and not matrix.diagonal().any() else None


def _network(text: Text, matrix: np.ndarray, names: tuple[str, ...] | None) -> networks.Network:
    if np.isnan(matrix).any():
        row, column = np.argwhere(np.isnan(matrix))[0]
        raise FileError(
            f"{text.path}: the cell of nodes {row} and {column} is empty; write 0 for no edge"
        )
    return networks.of_matrix(text.path, matrix, names)


def _of_network(network: networks.Network, names: Sequence[str] | None, summary: Summary) -> Graph:
    """A graph whose file says everything, with its nodes in the order of ``names`` if given."""
    for note in network.notes:
        summary.note(note)
    graph = _graph(network.path, network.edges, network.weight, network.num_nodes, summary)
    if network.names is None:
        return graph
    if names is None or list(names) == list(network.names):
        return replace(graph, names=tuple(network.names))
    number = {name: i for i, name in enumerate(names)}
    unknown = [name for name in network.names if name not in number]
    if unknown:
        raise FileError(
            f"{network.path}: has the node {unknown[0]!r:.60}, not in the names"
            + (f" (nor are {len(unknown) - 1:,} others)" if len(unknown) > 1 else "")
        )
    if len(names) > len(network.names):
        summary.note(f"{len(names) - len(network.names):,} of the names are no node of the graph")
    order = torch.tensor([number[name] for name in network.names])
    return replace(
        graph, edge_index=order[graph.edge_index], num_nodes=len(names), names=tuple(names)
    )


def _of_frame(
    path: Path,
    names: Sequence[str] | None,
    num_nodes: int | None,
    directed: bool,
    summary: Summary,
) -> Graph:
    """A ``DataFrame``: a list of edges with a header, or a square one with names both ways."""
    frame = read_frame(path)
    columns = list(map(str, frame.columns))
    rows = list(map(str, frame.index))
    if len(rows) == len(columns) > 3 and sorted(rows) == sorted(columns):
        matrix = frame.to_numpy(dtype=np.float64)[:, [columns.index(row) for row in rows]]
        if not np.isfinite(matrix).all():
            raise FileError(f"{path}: weights must be finite; write 0 for no edge")
        return _of_network(networks.of_matrix(path, matrix, tuple(rows)), names, summary)
    # As text, which keeps ids exact, the columns are judged as those of any list.
    text = frame.to_csv(index=False, sep="\t", lineterminator="\n").rstrip("\n").split("\n")
    table = Text(path, text, range(1, len(text) + 1), "\t", len(columns), ".", False)
    edges, says_directed = list_of_text(table, names, summary)
    return graph_of_list(
        path,
        edges,
        summary,
        names=names,
        num_nodes=num_nodes,
        directed=directed or says_directed,
    )


def _of_arrays(
    source: str,
    names: Sequence[str] | None,
    num_nodes: int | None,
    directed: bool,
    summary: Summary,
) -> Graph:
    path, arrays = read_arrays(source)
    if "edge_index" in arrays:
        return _from_edge_index(path, arrays, summary)
    named = next((key for key in _ADJACENCY if key in arrays), "")
    found = arrays.get(named)
    if found is None and len(arrays) == 1:
        found = next(iter(arrays.values()))
    if found is None:
        raise FileError(
            f"{path}: expected edge_index [2, e] or adj [n, n]; it holds {listing(arrays)}"
        )
    if issparse(found):
        return _from_matrix(path, found, summary)
    matrix = _numbers(path, "the graph", found)
    if named or (matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]):
        return _from_matrix(path, matrix, summary)
    if matrix.ndim == 2 and matrix.shape[0] == 2:
        return _from_edge_index(path, {"edge_index": matrix}, summary)
    if matrix.ndim == 2 and matrix.shape[1] in (2, 3):
        weight = matrix[:, 2].astype(np.float64) if matrix.shape[1] == 3 else None
        ends = integers(path, matrix[:, :2].T, "nodes")
        edges = EdgeList(ends, range(ends.shape[1]), weight)
        return graph_of_list(
            path, edges, summary, names=names, num_nodes=num_nodes, directed=directed
        )
    raise FileError(
        f"{path}: a graph is an adjacency matrix [n, n], edge_index [2, e] or a list of edges with "
        f"two or three columns; got {list(matrix.shape)}"
    )


def _from_edge_index(path: Path, arrays: dict[str, Any], summary: Summary) -> Graph:
    edge_index = _numbers(path, "edge_index", arrays["edge_index"])
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise FileError(f"{path}: edge_index must be [2, e]; got {list(edge_index.shape)}")
    weight = arrays.get("edge_weight")
    attributes = arrays.get("edge_attr")
    if weight is not None:
        summary.facts["weights"] = "edge_weight"
    elif attributes is not None and np.ndim(attributes) == 1:
        weight = attributes
        summary.facts["weights"] = "edge_attr"
    elif attributes is not None:
        summary.note(f"edge_attr {list(np.shape(attributes))} is not used: weights are [e]")
    weight = None if weight is None else _numbers(path, "edge_weight", weight)
    count = arrays.get("num_nodes")
    if count is not None and (
        np.ndim(count) or not float(_numbers(path, "num_nodes", count)).is_integer()
    ):
        raise FileError(f"{path}: num_nodes must be one whole number; got {count!r:.60}")
    # The features of a PyG Data are per node; an x next to a graph in an npz may be signals.
    if count is None and "x" in arrays and path.suffix.lower() in TORCH:
        count = len(arrays["x"])
    return _graph(path, edge_index, weight, None if count is None else int(count), summary)


def _from_matrix(path: Path, matrix: Any, summary: Summary) -> Graph:
    network = networks.of_matrix(path, matrix, None)
    return _graph(path, network.edges, network.weight, network.num_nodes, summary)


def _graph(
    path: Path, edges: np.ndarray, weight: np.ndarray | None, n: int | None, summary: Summary
) -> Graph:
    edge_index = torch.from_numpy(integers(path, edges, "nodes"))
    if n is not None and n < 1:
        raise FileError(f"{path}: a graph needs at least one node; got {n}")
    if n is not None and n > MAX_BYTES // 8:
        raise FileError(f"{path}: says that it has {n:,} nodes, which do not fit into memory")
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or (n is not None and high >= n):
            bound = "0 or more" if n is None else f"0..{n - 1}"
            bad = low if low < 0 else high
            edge = int((edge_index == bad).any(dim=0).nonzero()[0])
            raise FileError(f"{path}: nodes are numbered {bound}; edge {edge} names node {bad}")
    if weight is None:
        return Graph(edge_index, None, n, summary=summary)
    if weight.shape != (edge_index.size(1),):
        raise FileError(
            f"{path}: edge_weight must hold one number for each of {edge_index.size(1)} edges; "
            f"got {list(weight.shape)}"
        )
    if not np.isfinite(weight).all():
        edge = int(np.flatnonzero(~np.isfinite(weight))[0])
        raise FileError(f"{path}: weights must be finite; edge {edge} has {weight[edge]}")
    return Graph(edge_index, torch.from_numpy(weight.astype(np.float64)), n, summary=summary)


def _count(graph: Graph, summary: Summary, key: str) -> None:
    n = graph.num_nodes
    index = graph.edge_index
    if n is None:
        n = int(index.max()) + 1 if index.numel() else 0
    isolated = n - len(torch.unique(index))
    counts: dict[str, Any] = {"nodes": n, "edges": index.size(1)}
    if isolated:
        counts["isolated nodes"] = isolated
    if key:
        counts["array"] = key
    if graph.edge_weight is not None:
        summary.facts.setdefault("weights", "as stored")
    else:
        summary.facts["weights"] = "none"
    if graph.names is not None:
        ends = graph.names[:: max(len(graph.names) - 1, 1)]
        summary.facts["names"] = ", ..., ".join(ends)
    summary.facts = counts | summary.facts


def _numbers(path: Path, what: str, values: Any) -> np.ndarray:
    if issparse(values):
        raise FileError(f"{path}: holds a sparse tensor; {what} must be dense: save it .to_dense()")
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise FileError(f"{path}: {what} must be numbers; got dtype {array.dtype}")
    return array


def integers(path: Path, values: np.ndarray, what: str = "labels") -> np.ndarray:
    """Whole numbers as int64, or an error that names the first that is none."""
    if values.dtype.kind == "u" and values.size and values.max() >= 2**63:
        raise FileError(f"{path}: {what} must be below 2^63; got {values.max()}")
    if values.dtype.kind == "f" and values.size and np.abs(values).max() > 2**53:
        raise FileError(
            f"{path}: {what} beyond 2^53 are not exact as {values.dtype}; store them as integers"
        )
    whole = values.astype(np.int64) if np.isfinite(values).all() else None
    if whole is None or not (whole == values).all():
        bad = values.flatten()[0 if whole is None else int((whole != values).argmax())]
        if whole is None:
            bad = values[~np.isfinite(values)][0]
        raise FileError(f"{path}: {what} must be whole numbers; got {bad}")
    return np.ascontiguousarray(whole)
