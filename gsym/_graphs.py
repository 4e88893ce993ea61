"""Graphs as they come, and the one rule for parallel edges.

An edge is a pair of nodes that is listed. Pairs that are listed several times are one edge, whose
weight is the exactly rounded sum of theirs: the same bits in whatever order they come. A weight of
0, given or summed, makes no missing edge of an edge.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsym._validate import (
    check_edge_index,
    check_edge_index_type,
    check_edge_weight,
    check_finite_weight,
    check_num_nodes,
    warn,
)
from gsym.errors import GraphError

Array = np.ndarray
# Integers beyond this have no exact float64.
_EXACT = 2**53


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph as every function here takes it.

    Attributes:
        edge_index: int64 ``[2, e]``, an edge from ``edge_index[0]`` to ``edge_index[1]``;
            undirected edges stand in both directions.
        edge_weight: Weights ``[e]``; 1 where ``None``.
        num_nodes: Number of nodes.
        names: What the nodes are called where the graph came from, by number; ``None`` where
            numbers are all they have.
    """

    edge_index: Tensor
    edge_weight: Tensor | None
    num_nodes: int
    names: tuple[Any, ...] | None = None

    def __repr__(self) -> str:
        weighted = "" if self.edge_weight is None else ", weighted"
        named = "" if self.names is None else ", named"
        return f"Graph({self.num_nodes} nodes, {self.edge_index.size(1)} edges{weighted}{named})"


def as_graph(
    graph: Any,
    num_nodes: int | None = None,
    edge_weight: Tensor | None = None,
    *,
    weight: str = "weight",
) -> Graph:
    """Read a graph, in any of the forms that are common, as ``edge_index`` and weights.

    Every function of gsym that takes an ``edge_index`` reads it by this one.

    ===================  ==========================================================================
    form                 how it is read
    ===================  ==========================================================================
    tensor               ``edge_index`` int64 ``[2, e]``, with ``num_nodes`` and ``edge_weight``
    NetworkX             nodes in the order of ``graph.nodes``, kept as ``names``; edges of
                         undirected graphs both ways, self-loops once; weights in the attribute
                         ``weight`` where edges have it, of all edges or of none
    SciPy sparse         a square matrix, ``A[i, j]`` an edge from i to j; a stored zero is an
                         edge of weight 0 (``eliminate_zeros()`` removes those)
    NumPy                a dense adjacency ``[n, n]``: what is not 0 is an edge
    PyG ``Data``         its ``edge_index`` or ``adj_t``, and ``edge_weight`` or one-dimensional
                         ``edge_attr``
    ===================  ==========================================================================

    Other attributes of nodes and edges are not looked at. NumPy integers of shape ``[2, 2]`` could
    be either an adjacency or an ``edge_index`` and are refused.

    Args:
        graph: The graph, or a :class:`Graph`.
        num_nodes: Number of nodes; needed with a tensor, else checked.
        edge_weight: Weights ``[e]``, with a tensor or a ``Data`` without weights.
        weight: Edge attribute of NetworkX that holds weights.

    Raises:
        TypeError: What is given is no graph, or its numbers are of the wrong type.
        GraphError: Edges out of range, a matrix that is not square, weights that are not finite,
            that some edges lack, or that are given twice.

    Warns:
        UserWarning: A NetworkX graph whose nodes are called ``0..n-1`` but stand in another order.

    Example:
        >>> import networkx as nx
        >>> graph = as_graph(nx.Graph([("a", "b"), ("b", "c")]))
        >>> graph.names, graph.edge_index.tolist()
        (('a', 'b', 'c'), [[0, 1, 1, 2], [1, 0, 2, 1]])
    """
    if isinstance(graph, Tensor):
        n = check_num_nodes(num_nodes)
        plain = check_edge_index(graph, n)
        check_edge_weight(edge_weight, plain.size(1))
        check_finite_weight(edge_weight)
        return Graph(plain, edge_weight, n)
    if isinstance(graph, Graph):
        found = graph
    elif _is_sparse(graph):
        found = _from_sparse(graph)
    elif isinstance(graph, np.ndarray):
        found = _from_dense(graph)
    elif _is(graph, "networkx", "Graph"):
        found = _from_networkx(graph, weight)
    elif _is(graph, "torch_geometric.data", "Data"):
        found = _from_data(graph)
    else:
        check_edge_index_type(graph)  # tells what a tensor must be, and how to convert others
        raise AssertionError("unreachable")
    if num_nodes is not None and check_num_nodes(num_nodes) != found.num_nodes:
        raise GraphError(f"the graph has {found.num_nodes} nodes; got num_nodes={num_nodes}")
    if edge_weight is not None:
        if found.edge_weight is not None or not _is(graph, "torch_geometric.data", "Data"):
            raise GraphError(
                f"edge_weight= goes with an edge_index; a {type(graph).__name__} brings its own "
                "weights"
            )
        check_edge_weight(edge_weight, found.edge_index.size(1))
        found = Graph(found.edge_index, edge_weight, found.num_nodes, found.names)
    check_edge_index(found.edge_index, found.num_nodes)
    check_finite_weight(found.edge_weight)
    return found


def coalesce(graph: Graph) -> tuple[Array, Array]:
    """The distinct edges of a graph and their weights, in an order of their own.

    Returns:
        Keys ``i * n + j`` int64 ``[q]``, sorted, and float64 weights ``[q]`` that do not depend on
        the order of the edges; 0 is always +0.
    """
    source, target = graph.edge_index.detach().cpu().numpy()
    return exact_sums(source * graph.num_nodes + target, weights_of(graph))


def weights_of(graph: Graph) -> Array:
    """The weight of every row, float64 ``[e]``."""
    if graph.edge_weight is None:
        return np.ones(graph.edge_index.size(1))
    return graph.edge_weight.detach().cpu().double().numpy()


def exact_sums(keys: Array, values: Array) -> tuple[Array, Array]:
    """The distinct keys, sorted, and the exactly rounded sum of the values of each.

    Args:
        keys: int64 ``[m]``.
        values: Finite float64 ``[m]``.

    Raises:
        GraphError: A sum is beyond float64.

    Cost:
        ``O(m log m)``. Sums of two are rounded exactly by the processor and sums of moderate
        integers have no rounding; ``math.fsum`` adds up the others.

    Example:
        >>> exact_sums(np.array([4, 2, 4, 4]), np.array([1e16, 7.0, 1.0, -1e16]))[1].tolist()
        [7.0, 1.0]
    """
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    new = np.ones(keys.size, dtype=bool)
    new[1:] = keys[1:] != keys[:-1]
    head = np.flatnonzero(new)
    count = np.diff(np.append(head, keys.size))
    if not (count > 1).any():
        return keys, values + 0.0
    with np.errstate(over="ignore"):
        whole = bool((values == np.rint(values)).all()) and np.abs(values).sum() < _EXACT
        if whole:
            return keys[head], np.add.reduceat(values, head) + 0.0
        total = values[head]
        pairs = head[count == 2]
        total[count == 2] += values[pairs + 1]
    for run in np.flatnonzero(count > 2):
        total[run] = _sum(values[head[run] : head[run] + count[run]].tolist())
    if not np.isfinite(total).all():
        raise GraphError("the weights of parallel edges add up to more than float64 holds")
    return keys[head], total + 0.0


def _sum(values: list[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:
        # Partial sums are too large, which the sum itself need not be.
        try:
            return float(sum(map(Fraction, values)))
        except OverflowError:
            return math.inf


def _is_sparse(graph: Any) -> bool:
    # Who holds a sparse matrix has imported its module, which takes long.
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and bool(sparse.issparse(graph))


def _is(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class of a package that takes long to import.

    Where the package has not been imported, nothing is.
    """
    owner = sys.modules.get(module)
    kind = getattr(owner, name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _from_dense(matrix: Array) -> Graph:
    if isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(
            "a masked array does not say what its gaps mean; use matrix.filled(0) if they are "
            "pairs without an edge"
        )
    shape = list(matrix.shape)
    if matrix.dtype.kind not in "biuf":
        raise TypeError(f"an adjacency must hold real numbers; got {matrix.dtype}")
    if matrix.ndim == 2 and shape[0] == 2 and matrix.dtype.kind in "iu":
        what = "is an adjacency or an edge_index" if shape[1] == 2 else "looks like an edge_index"
        ways = "; scipy.sparse.csr_array(A) is an adjacency" if shape[1] == 2 else ""
        raise GraphError(
            f"a NumPy array of integers {shape} {what}; torch.from_numpy(A).long() is an "
            f"edge_index{ways}"
        )
    _check_square(shape)
    row, column = np.nonzero(matrix)
    return _from_entries(row, column, matrix[row, column], shape[0])


def _from_sparse(matrix: Any) -> Graph:
    _check_square(list(matrix.shape))
    if matrix.dtype.kind not in "biuf":
        raise TypeError(f"an adjacency must hold real numbers; got {matrix.dtype}")
    coo = matrix.tocoo()
    return _from_entries(coo.row, coo.col, coo.data, matrix.shape[0])


def _check_square(shape: list[int]) -> None:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise GraphError(f"an adjacency must be square, [n, n]; got {shape}")
    if shape[0] == 0:
        raise GraphError("a graph needs at least one node; the adjacency is empty")


def _from_entries(row: Array, column: Array, value: Array, num_nodes: int) -> Graph:
    """The graph of the entries of a matrix; without weights where they are all 1."""
    if (
        value.dtype.kind in "iu"
        and value.size
        and max(-int(value.min()), int(value.max())) > _EXACT
    ):
        raise GraphError("an adjacency holds integers beyond 2^53, which are no exact weights")
    edges = np.stack([row, column]).astype(np.int64)
    plain = bool((value == 1).all())
    floating = np.float32 if value.dtype in (np.float32, np.float16) else np.float64
    weight = None if plain else torch.from_numpy(value.astype(floating))
    return Graph(torch.from_numpy(edges), weight, num_nodes)


def _from_networkx(graph: Any, weight: str) -> Graph:
    names = tuple(graph.nodes)
    if not names:
        raise GraphError("a graph needs at least one node; the NetworkX graph has none")
    number = {name: i for i, name in enumerate(names)}
    numbers = tuple(range(len(names)))
    if all(type(name) is int for name in names) and names != numbers and set(names) == set(numbers):
        warn(
            f"node {names[0]} of the NetworkX graph comes first in graph.nodes and is number 0 "
            "here; as_graph(graph).names tells the order, and signals must follow it"
        )
    ends, values, missing = [], [], None
    for source, target, value in graph.edges(data=weight):
        ends.append((number[source], number[target]))
        values.append(value)
        missing = (source, target) if value is None else missing
        if source != target and not graph.is_directed():
            ends.append(ends[-1][::-1])
            values.append(value)
    edges = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).t().contiguous()
    given = [value for value in values if value is not None]
    if not given:
        return Graph(edges, None, len(names), names)
    if missing is not None:
        raise GraphError(
            f"edge {missing} has no {weight!r}, which other edges have; set it on every edge"
        )
    for (source, target), value in zip(ends, given, strict=True):
        if isinstance(value, bool | np.bool_ | str) or not hasattr(value, "__float__"):
            edge = names[source], names[target]
            raise TypeError(f"edge {edge} has the {weight} {value!r:.60}, which is no number")
    found = torch.tensor([float(value) for value in given], dtype=torch.float64)
    return Graph(edges, found, len(names), names)


def _from_data(data: Any) -> Graph:
    num_nodes = data.num_nodes
    if num_nodes is None:
        raise GraphError("data does not say how many nodes it has; set data.num_nodes")
    weight = data.edge_weight if "edge_weight" in data else None
    if data.edge_index is not None:
        edges = check_edge_index_type(data.edge_index)
        attributes = data.edge_attr
        if weight is None and isinstance(attributes, Tensor) and attributes.dim() == 1:
            weight = attributes
    elif "adj_t" in data:
        # Row i of the transposed adjacency holds the edges into node i.
        if hasattr(data.adj_t, "coo"):
            target, source, value = data.adj_t.coo()
        else:
            entries = data.adj_t.to_sparse_coo().coalesce()
            (target, source), value = entries.indices(), entries.values()
        edges = torch.stack([source, target])
        weight = value if weight is None and value is not None else weight
    else:
        raise GraphError("data has no edge_index")
    if weight is not None and not weight.is_floating_point() and not weight.is_complex():
        weight = weight.double()
    check_edge_weight(weight, edges.size(1))
    return Graph(edges, weight, int(num_nodes))
