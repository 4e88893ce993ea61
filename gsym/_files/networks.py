"""Formats of whole graphs, through the libraries that keep them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import scipy.io
from scipy.sparse import coo_array, issparse

from gsym._files.arrays import readable
from gsym._files.checks import check_size
from gsym._files.pickles import load_plain
from gsym._files.text import read_lines
from gsym.errors import FileError

_NX_LIST = re.compile(r"\S+[\s,]+\S+[\s,]+\{.*\}\s*")


@dataclass(frozen=True)
class Network:
    """A graph as its file tells it, every edge in the directions that it goes.

    Attributes:
        path: The file.
        edges: ``[2, e]``, numbers of nodes.
        weight: ``[e]``, or ``None``.
        num_nodes: Number of nodes.
        names: Of the nodes, if the file has them.
        notes: What the reader of the file may not expect.
    """

    path: Path
    edges: np.ndarray
    weight: np.ndarray | None
    num_nodes: int
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def of_matrix(path: Path, matrix: Any, names: tuple[str, ...] | None) -> Network:
    """The graph of an adjacency matrix, dense or sparse; entries of 1 alone are no weights."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise FileError(f"{path}: an adjacency matrix is square; got {list(matrix.shape)}")
    if issparse(matrix):
        matrix = coo_array(matrix)
        source, target, weight = matrix.row, matrix.col, matrix.data
    else:
        source, target = matrix.nonzero()
        weight = matrix[source, target]
    if weight.dtype.kind not in "biuf":
        raise FileError(f"{path}: the graph must be numbers; got dtype {weight.dtype}")
    plain = None if bool((weight == 1).all()) else weight
    return Network(path, np.stack([source, target]), plain, matrix.shape[0], names)


def read_matrix_market(path: Path) -> Network:
    """Matrix Market, by SciPy."""
    with readable(path):
        rows, columns, entries, layout, kind, _ = scipy.io.mminfo(path)
        check_size(path, (24 if layout == "coordinate" else 8) * entries, "in memory ")
        if kind == "complex":
            raise FileError(f"{path}: holds complex numbers; weights are real")
        if rows != columns:
            raise FileError(f"{path}: an adjacency matrix is square; got {[rows, columns]}")
        return of_matrix(path, scipy.io.mmread(path), None)


def is_networkx_list(path: Path) -> bool:
    """Whether a text ends its lines in dictionaries, as ``networkx.write_edgelist`` does."""
    lines = [line for line in read_lines(path) if line.strip() and line.lstrip()[0] != "#"]
    return bool(lines) and all(_NX_LIST.fullmatch(line) for line in lines[:20])


def read_networkx_list(path: Path, directed: bool) -> Network:
    """What ``networkx.write_edgelist`` writes."""
    kind = nx.MultiDiGraph if directed else nx.MultiGraph
    lines = read_lines(path)
    separator = "," if "," in next(x for x in lines if x.strip()).split("{")[0] else None
    with _networkx(path):
        graph = nx.parse_edgelist(lines, create_using=kind, nodetype=str, delimiter=separator)
    order = sorted(graph)
    if all(node.isdecimal() for node in order):
        order.sort(key=int)
    return _of_networkx(path, graph, order)


def _read_graphml(path: Path) -> Network:
    _check_xml(path)
    with _networkx(path):
        return _of_networkx(path, nx.read_graphml(path))


def _read_gexf(path: Path) -> Network:
    _check_xml(path)
    with _networkx(path):
        return _of_networkx(path, nx.read_gexf(path), default=1.0)


def _read_gml(path: Path) -> Network:
    with _networkx(path):
        try:
            graph = nx.read_gml(path)
        except nx.NetworkXError as cause:
            if "label" not in str(cause):
                raise
            graph = nx.read_gml(path, label="id")
        return _of_networkx(path, graph)


def _read_json(path: Path) -> Network:
    with _networkx(path):
        content = json.loads("\n".join(read_lines(path)))
        key = next(
            (k for k in ("edges", "links") if isinstance(content, dict) and k in content), None
        )
        if key is None or "nodes" not in content:
            raise FileError(f"{path}: expected a graph in node-link form, with nodes and edges")
        return _of_networkx(path, nx.node_link_graph(content, edges=key))


def _read_metis(path: Path) -> Network:
    """METIS: a header ``n m [format]``, then the neighbours of each node, counted from 1."""
    lines = [line for line in read_lines(path) if not line.lstrip().startswith("%")]
    while lines and not lines[-1].strip():
        lines.pop()
    with readable(path):
        n, m, *rest = (int(word) for word in (lines[0].split() if lines else []))
        kind = f"{rest[0] if rest else 0:03d}"
        skipped = (kind[0] == "1") + (kind[1] == "1") * (rest[1] if len(rest) > 1 else 1)
        # Isolated nodes at the end have empty lines.
        rows = [line.split()[skipped:] for line in lines[1:]] + [[]] * (n - len(lines) + 1)
        if len(rows) != n:
            raise FileError(f"{path}: row 1 says {n} nodes, but {len(rows)} lines follow")
        step = 2 if kind[2] == "1" else 1
        source = np.repeat(np.arange(n), [len(row) // step for row in rows])
        words = [row[::step] for row in rows]
        target = np.array([int(word) for row in words for word in row], dtype=np.int64) - 1
        weight = None
        if step == 2:
            weight = np.array([float(word) for row in rows for word in row[1::2]])
        if len(source) != 2 * m or any(len(row) % step for row in rows):
            raise FileError(
                f"{path}: row 1 says {m} edges, each listed at both ends, but there are "
                f"{len(source)} entries"
            )
        if source.size and (target.min() < 0 or target.max() >= n):
            raise FileError(f"{path}: nodes are numbered 1..{n}; a line names {target.max() + 1}")
    return Network(path, np.stack([source, target]), weight, n)


def _read_pickle(path: Path) -> Network:
    """``adj_mx.pkl`` of DCRNN: ids, their numbers and a matrix."""
    with path.open("rb") as file:
        content = load_plain(path, file)
    if isinstance(content, np.ndarray):
        return of_matrix(path, content, None)
    if not (isinstance(content, list) and len(content) == 3):
        raise FileError(f"{path}: expected [ids, numbers, matrix], as in DCRNN's adj_mx.pkl")
    ids, _, matrix = content
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape != (len(ids), len(ids)):
        raise FileError(f"{path}: {len(ids)} ids, but a matrix of {list(matrix.shape)}")
    return of_matrix(path, matrix, tuple(map(str, ids)))


READERS: dict[str, Callable[[Path], Network]] = {
    ".mtx": read_matrix_market,
    ".graph": _read_metis,
    ".metis": _read_metis,
    ".graphml": _read_graphml,
    ".gml": _read_gml,
    ".gexf": _read_gexf,
    ".json": _read_json,
    ".pkl": _read_pickle,
}


class _networkx:  # noqa: N801
    """As :func:`readable`, with the errors of NetworkX."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, nx.NetworkXException):
            raise FileError(f"{self.path}: cannot be read ({error})") from error
        with readable(self.path):
            if error is not None:
                raise error


def _check_xml(path: Path) -> None:
    """Refuse entities, by which a small file may grow without bound or reach for other files."""
    if re.search(rb"<!(DOCTYPE|ENTITY)", path.read_bytes(), re.IGNORECASE):
        raise FileError(f"{path}: declares a document type or entities, which are not read")


def _of_networkx(
    path: Path, graph: Any, order: list[Any] | None = None, default: float | None = None
) -> Network:
    nodes = list(graph) if order is None else order
    number = {node: i for i, node in enumerate(nodes)}
    names = tuple(map(str, nodes))
    if len(set(names)) < len(names):
        raise FileError(f"{path}: two nodes have one name")
    ends, weights, others = [], [], set()
    for source, target, data in graph.edges(data=True):
        ways = [(source, target)]
        if not graph.is_directed() and source != target:
            ways.append((target, source))
        ends += [(number[a], number[b]) for a, b in ways]
        weights += [data.get("weight")] * len(ways)
        others |= {key for key in data if key not in ("weight", "id", "label")}
    lacking = sum(weight is None for weight in weights)
    notes = []
    if lacking and lacking < len(weights):
        if default is None:
            raise FileError(f"{path}: {lacking} edges have no weight, but others have one")
        notes.append(f"edges without a weight have {default:g}, the default of the format")
        weights = [default if weight is None else weight for weight in weights]
    if others:
        notes.append(
            f"attributes of edges that are not used: {', '.join(sorted(map(str, others)))}"
        )
    edges = np.array(ends, dtype=np.int64).reshape(-1, 2).T
    weight = None
    if weights and weights[0] is not None:
        if not all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights):
            raise FileError(f"{path}: weights must be numbers; got {weights[0]!r:.40}")
        weight = np.array(weights, dtype=np.float64)
    # Numbers from 0 in their order are no names.
    plain = names == tuple(map(str, range(len(names))))
    return Network(path, edges, weight, len(nodes), None if plain else names, tuple(notes))
