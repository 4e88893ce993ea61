"""Twins: nodes that may be exchanged without changing the graph."""

from __future__ import annotations

from itertools import count

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gsym.coarsening._graph import adjacency_matrix, as_edges
from gsym.groups import ClusterGroup, Partition


def twin_partition(
    edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None
) -> Partition:
    """Clusters of nodes whose exchange is a symmetry of the graph.

    Two nodes are twins when they have equal neighbourhoods (open twins), or would have them if
    each were its own neighbour as it is the other's (closed twins). That is an equivalence, and
    ``ClusterGroup(twin_partition(...))`` preserves the graph exactly, which no coarser partition
    does.

    Args:
        edge_index: Graph, int64 ``[2, e]``; directions and self-loops count, and parallel edges
            are one edge with their summed weight.
        num_nodes: Number of nodes.
        edge_weight: Weights ``[e]``, compared exactly.

    Symmetry:
        Nodes: the group of the clusters preserves the graph.

    Cost:
        ``O(e log e)``: neighbourhoods are compared by 64-bit hashes, and the answer by
        :meth:`gsym.ClusterGroup.preserves`.

    Example:
        >>> star = torch.tensor([[0, 0, 0], [1, 2, 3]])
        >>> twin_partition(star, 4).labels.tolist()
        [0, 1, 1, 1]
    """
    A = adjacency_matrix(edge_index, num_nodes, edge_weight)
    edges = as_edges(A)
    for salt in count():
        partition = _twins_by_hash(A, salt)
        # Unequal neighbourhoods may have equal hashes, which joins too many; never too few.
        if ClusterGroup(partition).preserves(*edges):
            return partition
    raise AssertionError("unreachable")


def _twins_by_hash(A: csr_array, salt: int) -> Partition:
    n = A.shape[0]
    rng = np.random.default_rng(salt)
    node_code = rng.integers(2**64, size=(2, n), dtype=np.uint64)  # seen as target, as source
    coo = A.tocoo()
    loop = coo.row == coo.col
    kinds, kind = np.unique(coo.data, return_inverse=True)
    kind_code = rng.integers(2**64, size=kinds.size + 1, dtype=np.uint64) | np.uint64(1)
    own = np.zeros(n, dtype=np.uint64)
    own[coo.row[loop]] = kind_code[kind[loop]]
    row, column, kind = coo.row[~loop], coo.col[~loop], kind[~loop]

    # Sums modulo 2^64 of one term per edge do not depend on the order of edges.
    seen = own * kind_code[-1]
    np.add.at(seen, row, _term(node_code[0, column], kind_code[kind]))
    np.add.at(seen, column, _term(node_code[1, row], kind_code[kind]))
    _, open_twin = np.unique(seen, return_inverse=True)

    # Closed twins are joined by equal edges both ways: with itself among its neighbours in the
    # same way, each node sees what the other sees.
    back = np.asarray(A.T.tocsr()[row, column]).reshape(-1)
    both = back == kinds[kind]
    row, column, kind = row[both], column[both], kind[both]
    code = kind_code[kind]

    def closed(node: np.ndarray) -> np.ndarray:
        return seen[node] + _term(node_code[0, node], code) + _term(node_code[1, node], code)

    closed_twin = closed(row) == closed(column)
    links = coo_array(
        (
            np.ones(n + int(closed_twin.sum()), dtype=bool),
            (
                np.concatenate([np.arange(n), row[closed_twin]]),
                np.concatenate([n + open_twin, column[closed_twin]]),
            ),
        ),
        shape=(n + int(open_twin.max()) + 1,) * 2,
    )
    _, component = connected_components(links, directed=False)
    return Partition.from_labels(torch.from_numpy(component[:n].astype(np.int64)), relabel=True)


def _term(node: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Hash of one edge, by the finaliser of splitmix64, so that sums do not cancel."""
    out = node ^ (kind * np.uint64(0x9E3779B97F4A7C15))
    out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return out ^ (out >> np.uint64(31))
