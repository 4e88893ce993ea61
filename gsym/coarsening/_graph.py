"""Sparse matrices of a graph, and the ends of their spectra."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_array, csc_array, csr_array, diags_array, eye_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, eigsh, splu

from gsym._graphs import Graph, coalesce, exact_sums, weights_of
from gsym._validate import warn
from gsym.errors import ClusteringError
from gsym.groups import Partition

# Pairs of clusters [n - 1, 2] in SciPy's numbering, and the height of each merge.
Merges = tuple[np.ndarray, np.ndarray]

# Weights relative to the largest are this at least: eigenvectors cannot tell less from 0.
SMALLEST = 1e-12
# Up to this size a dense solver is faster and needs no care.
_DENSE = 600


def relative_adjacency(graph: Graph) -> coo_array:
    """Adjacency over a power of two near its largest entry; no stored zeros.

    ``A[i, j]`` is the summed weight of edges from i to j.
    """
    n = graph.num_nodes
    keys, weight = coalesce(graph)
    keys, weight = keys[weight != 0], weight[weight != 0]
    return coo_array((weight / _unit(weight), (keys // n, keys % n)), shape=(n, n))


def undirected(graph: Graph) -> csr_array:
    """Adjacency ``(A + A^T) / 2`` without self-loops, weights non-negative.

    All edges between two nodes are summed at once, so that it does not matter in which direction
    a row of an undirected list was written.

    Raises:
        ClusteringError: A negative weight.
    """
    n = graph.num_nodes
    source, target = graph.edge_index.detach().cpu().numpy()
    low, high = np.minimum(source, target), np.maximum(source, target)
    keys, total = exact_sums(low * n + high, weights_of(graph))
    low, high = keys // n, keys % n
    if total.size and total.min() < 0:
        bad = int(np.argmin(total))
        raise ClusteringError(
            "clustering takes similarities, which are not negative; the edges between nodes "
            f"{low[bad]} and {high[bad]} have weight {total[bad]:g}; pass edge_weight.abs() if its "
            "sign carries no meaning"
        )
    kept = (low != high) & (total > 0)
    low, high = low[kept], high[kept]
    # Half of the least positive number is 0, which would cut the graph.
    half = np.maximum(total[kept] / 2, np.nextafter(0, 1))
    ends = np.concatenate([low, high]), np.concatenate([high, low])
    A = coo_array((np.concatenate([half, half]), ends), shape=(n, n)).tocsr()
    A.sort_indices()
    return A


def relative(A: csr_array) -> tuple[csr_array, float]:
    """Weights over a unit, the power of two below the largest, and that unit.

    What is computed from similarities goes by their ratios, and the squares of 1e-300 and 1e300
    are no numbers. None becomes so small that it vanishes.
    """
    unit = _unit(A.data)
    weight = np.maximum(A.data / unit, SMALLEST)
    return csr_array((weight, A.indices, A.indptr), shape=A.shape), unit


def _unit(weight: np.ndarray) -> float:
    """The power of two below the largest magnitude, by which division is exact."""
    _, exponent = np.frexp(np.abs(weight).max(initial=0.0))
    return float(np.ldexp(1.0, exponent - 1))


def laplacian_of(A: csr_array) -> csr_array:
    """Combinatorial Laplacian ``D - A`` of a symmetric adjacency."""
    return (diags_array(np.asarray(A.sum(axis=1)).reshape(-1)) - A).tocsr()


def laplacian(graph: Graph) -> tuple[csr_array, float]:
    """Combinatorial Laplacian of the symmetrised graph ``[n, n]``, over a unit, and that unit."""
    A, unit = relative(undirected(graph))
    return laplacian_of(A), unit


def restriction(partition: Partition) -> csr_array:
    """The restriction C, ``[k, n]`` with entries ``1 / sqrt(n_i)``: orthonormal rows."""
    labels = partition.labels.numpy()
    entries = 1 / np.sqrt(np.bincount(labels)[labels])
    shape = (partition.num_clusters, labels.size)
    return coo_array((entries, (labels, np.arange(labels.size))), shape=shape).tocsr()


def smallest_eigenpairs(matrix: csr_array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` smallest eigenvalues ``[k]`` and eigenvectors ``[n, k]`` of a Laplacian.

    Symmetric positive semi-definite matrices. Signs of the vectors are fixed, so that the answer
    does not depend on the solver's start.

    Cost:
        Dense up to 600 rows or when most pairs are asked for; else shift-and-invert Lanczos on a
        sparse factorisation, some seconds for 10^5 nodes of a planar graph.
    """
    n = matrix.shape[0]
    if n <= _DENSE or k > n // 2:
        values, vectors = np.linalg.eigh(matrix.toarray())
        values, vectors = values[:k], vectors[:, :k]
    else:
        # Just below zero the shifted matrix is positive definite.
        shift = 1e-6 * float(matrix.diagonal().max())
        solver = splu(
            csc_array(matrix + shift * eye_array(n)),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        inverse = LinearOperator((n, n), matvec=solver.solve, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(n)
        values, vectors = eigsh(matrix, k=k, sigma=-shift, OPinv=inverse, v0=start)
        order = np.argsort(values)
        values, vectors = values[order], vectors[:, order]
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return values, vectors * signs


def energy_basis(A: csr_array, dimension: int) -> np.ndarray:
    """The first eigenvectors of ``D - A`` after the constant, each scaled to unit energy.

    Squared distances between the rows approximate effective resistances (commute times).

    Args:
        A: Symmetric adjacency of a connected graph of two nodes or more.
        dimension: Number of eigenvectors, fewer where the graph has fewer.

    Returns:
        ``U Lambda^(-1/2)``, float64 ``[n, min(dimension, n - 1)]``.
    """
    L = laplacian_of(A)
    values, vectors = smallest_eigenpairs(L, min(A.shape[0], dimension + 1))
    # Weights that differ by more than the precision of the solver leave noise for eigenvalues.
    floor = 1e-12 * float(L.diagonal().max())
    return vectors[:, 1:] / np.sqrt(np.maximum(values[1:], floor))


def by_component(
    A: csr_array, tree: Callable[[csr_array, np.ndarray], Merges], *, warned: bool = False
) -> Merges:
    """Merges of every connected component on its own, then of the components.

    Components are joined last, smallest first, at infinite height, with a warning unless that
    came before (``warned``).
    """
    n = A.shape[0]
    count, labels = connected_components(A, directed=False)
    if count == 1:
        return tree(A, np.arange(n))
    if not warned:
        warn_components(count)
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    parts = np.split(order, np.cumsum(sizes)[:-1])
    pairs, heights, ranks, made = [], [], [], 0
    roots = np.array([part[0] for part in parts])
    for i, nodes in enumerate(parts):
        if nodes.size == 1:
            continue
        children, height = tree(A[nodes][:, nodes], nodes)
        # Merges of this component are numbered as if they followed those made before.
        names = np.concatenate([nodes, n + made + np.arange(nodes.size - 1)])
        pairs.append(names[children])
        heights.append(height)
        ranks.append(np.maximum.accumulate(height))
        made += nodes.size - 1
        roots[i] = names[-1]
    new_order = np.argsort(np.concatenate(ranks), kind="stable") if made else np.arange(0)
    names = np.arange(n + made)
    names[n + new_order] = n + np.arange(made)
    inner = names[np.concatenate(pairs)[new_order]] if made else np.empty((0, 2), dtype=np.int64)
    roots = names[roots[np.argsort(sizes, kind="stable")]]
    left = np.concatenate([roots[:1], n + made + np.arange(count - 2)])
    joins = np.column_stack([left, roots[1:]])
    height = np.concatenate([*heights])[new_order] if made else np.empty(0)
    return np.concatenate([inner, joins]), np.concatenate([height, np.full(count - 1, math.inf)])


def warn_components(count: int) -> None:
    warn(
        f"the graph has {count} connected components; each is clustered on its own, and they are "
        "joined last"
    )
