"""Louvain, by scikit-network, level by level."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.sparse import csr_array, csr_matrix

from gsym._validate import optional_module
from gsym.coarsening._graph import SMALLEST
from gsym.coarsening._request import Method, Request
from gsym.coarsening.hierarchy import Hierarchy
from gsym.groups import Partition


def _louvain(request: Request) -> Hierarchy:
    clustering = optional_module(
        "sknetwork.clustering", "scikit-network", "cluster", "method 'louvain'"
    )
    louvain = clustering.Louvain(n_aggregations=1, random_state=request.seed)
    labels = np.arange(request.num_nodes)
    A, found = _csr_matrix(request.graph), []
    while A.shape[0] > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            above = louvain.fit_predict(A)
        if np.unique(above).size == A.shape[0]:
            break
        labels = above[labels]
        found.append(Partition.from_labels(labels, relabel=True))
        A = louvain.aggregate_
    return request.chain(found)


def _csr_matrix(A: csr_array) -> csr_matrix:
    """The type that scikit-network takes; weights relative to the largest, and not vanishing."""
    weight = np.maximum(A.data / A.data.max(), SMALLEST)
    indices = A.indices.astype(np.int32), A.indptr.astype(np.int32)
    return csr_matrix((weight, *indices), shape=A.shape)


METHODS = {
    "louvain": Method(
        _louvain, "modularity, level by level, by scikit-network", "nested", needs=("edge_index",)
    )
}
