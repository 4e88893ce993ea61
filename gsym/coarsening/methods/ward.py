"""Ward: merge neighbours by the smallest increase in variance, by scikit-learn."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from gsym.coarsening._graph import Merges, by_component, energy_basis
from gsym.coarsening._request import Method, Request
from gsym.coarsening.hierarchy import Hierarchy

# Coordinates per node in the spectral embedding that Ward clusters.
_EMBEDDING = 16


def _ward(request: Request) -> Hierarchy:
    from sklearn.cluster import ward_tree

    features = None if request.signals is None else request.features()

    def tree(A: csr_array | None, nodes: np.ndarray) -> Merges:
        rows = _commute_embedding(A) if features is None else features[nodes]
        children, *_, heights = ward_tree(rows, connectivity=A, return_distance=True)
        # Merges along edges only may lower the distance; a tree's heights never fall.
        return children, np.maximum.accumulate(heights)

    if request.edge_index is None:
        return request.tree(tree(None, np.arange(request.num_nodes)))
    return request.tree(by_component(request.graph, tree))


def _commute_embedding(A: csr_array | None) -> np.ndarray:
    """Coordinates ``[n, d]`` whose squared distances approximate effective resistances."""
    assert A is not None
    return energy_basis(A, _EMBEDDING)


METHODS = {
    "ward": Method(
        _ward,
        "smallest increase in variance, by scikit-learn",
        "nested",
        takes=("edge_index", "signals"),
    )
}
