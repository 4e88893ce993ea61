"""Spectral clustering: k-means on eigenvectors of the normalised Laplacian."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.sparse import csr_array, diags_array
from scipy.sparse.csgraph import connected_components

from gsym.coarsening._graph import SMALLEST, laplacian_of, smallest_eigenpairs, warn_components
from gsym.coarsening._request import Method, Request
from gsym.coarsening.hierarchy import Hierarchy

# Neighbours per node in the graph made of signals alone.
_NEIGHBOURS = 10


def _spectral(request: Request) -> Hierarchy:
    A = _similarity(request)
    count, component = connected_components(A, directed=False)
    if count > 1:
        warn_components(count)
    wanted = request.family_levels
    sizes = np.bincount(component)
    shares = {k: _share(sizes, k) for k in wanted}
    labels = {k: np.zeros(request.num_nodes, dtype=np.int64) for k in wanted}
    used = dict.fromkeys(wanted, 0)
    # The smallest components come first: where k is less than their number, they share one label.
    for c in np.argsort(sizes, kind="stable"):
        nodes = np.flatnonzero(component == c)
        most = max((share[c] for share in shares.values()), default=1)
        embedding = _normalised_embedding(A[nodes][:, nodes], most) if most > 1 else None
        for k in wanted:
            parts = int(shares[k][c])
            if parts == 0:
                continue
            within = 0 if embedding is None else _k_means(embedding[:, :parts], parts, request.seed)
            labels[k][nodes] = used[k] + 1 + within
            used[k] += parts
    return request.family((k, labels[k]) for k in wanted)


def _similarity(request: Request) -> csr_array:
    """The weighted graph that spectral clustering cuts, from graph, signals or both."""
    if request.signals is None:
        return request.graph
    features = request.features()
    if request.edge_index is None:
        from sklearn.neighbors import kneighbors_graph

        count = min(_NEIGHBOURS, request.num_nodes - 1)
        near = kneighbors_graph(features, count, mode="connectivity")
        A = csr_array(near.maximum(near.T))
    else:
        A = request.graph
    coo = A.tocoo()
    distance = np.empty(coo.nnz)
    for block in np.array_split(np.arange(coo.nnz), coo.nnz // 2**16 + 1):
        difference = features[coo.row[block]] - features[coo.col[block]]
        distance[block] = (difference**2).sum(axis=1)
    typical = distance.mean()
    weight = coo.data * np.exp(-distance / typical) if typical > 0 else coo.data
    # A weight that underflows would cut the graph where it has an edge.
    weight = np.maximum(weight, coo.data * SMALLEST)
    return csr_array((weight, (coo.row, coo.col)), shape=A.shape)


def _share(sizes: np.ndarray, k: int) -> np.ndarray:
    """Clusters per component, at least one each and in proportion to size, ``k`` in all.

    With fewer clusters than components, the smallest components share one cluster.
    """
    if k < sizes.size:
        share = np.zeros_like(sizes)
        share[np.argsort(-sizes, kind="stable")[: k - 1]] = 1
        return share
    exact = np.minimum(sizes, np.maximum(1, k * sizes / sizes.sum()))
    share = np.maximum(1, np.floor(exact).astype(np.int64))
    while share.sum() < k:
        share[np.argmax(np.where(share < sizes, exact - share, -np.inf))] += 1
    while share.sum() > k:
        share[np.argmax(np.where(share > 1, share - exact, -np.inf))] -= 1
    return share


def _normalised_embedding(A: csr_array, k: int) -> np.ndarray:
    """Rows of the first ``k`` eigenvectors of the symmetric normalised Laplacian, ``[n, k]``."""
    scale = diags_array(1 / np.sqrt(np.asarray(A.sum(axis=1)).reshape(-1)))
    _, vectors = smallest_eigenpairs((scale @ laplacian_of(A) @ scale).tocsr(), k)
    return vectors


def _k_means(embedding: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    rows = embedding / np.where(length > 0, length, 1)
    with warnings.catch_warnings():
        # Fewer distinct rows than clusters: Request.family warns of the missing level.
        warnings.filterwarnings("ignore", message=".*distinct clusters.*")
        return KMeans(k, n_init=4, random_state=seed).fit(rows).labels_


METHODS = {
    "spectral": Method(
        _spectral,
        "k-means on eigenvectors, Ng, Jordan, Weiss",
        "non-nested",
        takes=("edge_index", "signals"),
    )
}
