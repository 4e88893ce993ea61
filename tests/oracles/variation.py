"""Local variation of a set of nodes, from the definition."""

import numpy as np
from scipy.sparse import csr_array


def local_variation(A: csr_array, mass: np.ndarray, X: np.ndarray, nodes: np.ndarray) -> float:
    """Local variation of merging a set of nodes: the definition, dense, in float64.

    ``|| (I - P^+ P) X ||^2 / (|C| - 1)`` in the spectral norm of the local Laplacian of the set C:
    weights inside count once, weights that leave it twice, all others not.

    Args:
        A: Symmetric adjacency ``[n, n]``.
        mass: Masses ``[n]``.
        X: Rows ``[n, K]``.
        nodes: The set, at least two nodes.

    Reference:
        Loukas, arXiv 1808.10650, section 4.1.
    """
    W = A.toarray()
    inside = np.zeros(W.shape[0], dtype=bool)
    inside[nodes] = True
    W = np.where(inside[:, None] & inside, W, np.where(inside[:, None] ^ inside, 2 * W, 0))
    L = np.diag(W.sum(axis=1)) - W
    mean = mass[nodes] @ X[nodes] / mass[nodes].sum()
    moved = np.zeros_like(X)
    moved[nodes] = X[nodes] - mean
    return float(np.linalg.norm(moved.T @ L @ moved, 2)) / (len(nodes) - 1)
