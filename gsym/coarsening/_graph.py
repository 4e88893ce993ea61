"""Sparse matrices of a graph, and the ends of their spectra."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array, csc_array, csr_array, diags_array, eye_array
from scipy.sparse.linalg import LinearOperator, eigsh, splu
from torch import Tensor

from gsym._validate import ClusteringError, GraphError, check_edge_index, check_edge_weight
from gsym.groups import Partition

# Up to this size a dense solver is faster and needs no care.
_DENSE = 600


def adjacency_matrix(
    edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None
) -> csr_array:
    """Adjacency in float64, ``A[i, j]`` the summed weight of edges from i to j; no stored zeros.

    Raises:
        GraphError: Edges out of range, or a weight that is not finite.
    """
    check_edge_index(edge_index, num_nodes)
    check_edge_weight(edge_weight, edge_index.size(1))
    rows, columns = edge_index.detach().cpu().numpy()
    if edge_weight is None:
        weight = np.ones(rows.size)
    else:
        weight = edge_weight.detach().cpu().double().numpy()
        if not np.isfinite(weight).all():
            bad = int(np.flatnonzero(~np.isfinite(weight))[0])
            raise GraphError(f"edge_weight must be finite; edge {bad} has weight {weight[bad]}")
    A = coo_array((weight, (rows, columns)), shape=(num_nodes, num_nodes)).tocsr()
    A.sum_duplicates()
    A.eliminate_zeros()
    return A


def undirected(edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None) -> csr_array:
    """Adjacency ``(A + A^T) / 2`` without self-loops, weights non-negative.

    Raises:
        ClusteringError: A negative weight.
    """
    A = adjacency_matrix(edge_index, num_nodes, edge_weight)
    if A.nnz and A.data.min() < 0:
        coo = A.tocoo()
        bad = int(np.argmin(coo.data))
        raise ClusteringError(
            "clustering takes similarities, which are not negative; the edge from node "
            f"{coo.row[bad]} to {coo.col[bad]} has weight {coo.data[bad]:g}; pass "
            "edge_weight.abs() if its sign carries no meaning"
        )
    A = ((A + A.T) / 2).tocsr()
    A.setdiag(0)
    A.eliminate_zeros()
    A.sort_indices()
    return A


def laplacian_of(A: csr_array) -> csr_array:
    """Combinatorial Laplacian ``D - A`` of a symmetric adjacency."""
    return (diags_array(np.asarray(A.sum(axis=1)).reshape(-1)) - A).tocsr()


def laplacian(edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None) -> csr_array:
    """Combinatorial Laplacian of the symmetrised graph, float64 ``[n, n]``."""
    return laplacian_of(undirected(edge_index, num_nodes, edge_weight))


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


def as_edges(A: csr_array) -> tuple[Tensor, Tensor]:
    """``edge_index`` and float64 ``edge_weight`` of a sparse adjacency."""
    coo = A.tocoo()
    index = np.stack([coo.row, coo.col]).astype(np.int64)
    return torch.from_numpy(index), torch.from_numpy(coo.data.copy())
