"""METIS in a subprocess, because it can abort the process on invalid input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from gsym.coarsening._request import Method, Request
from gsym.coarsening._worker import answer_of
from gsym.coarsening.hierarchy import Hierarchy
from gsym.errors import ClusteringError

# Largest integer that an edge weight becomes; METIS takes none but positive integers.
_WEIGHT_STEPS = 1000
_WORKER = Path(__file__).with_name("_metis.py")
# Seconds to answer in, at least and per entry and count: fifty times what is needed.
_SECONDS, _SECONDS_PER_ENTRY = 120.0, 1e-4


def metis_labels(A: csr_array, counts: Sequence[int], *, seed: int) -> list[np.ndarray]:
    """Clusters of nearly equal size that cut little weight, one labelling per count.

    Args:
        A: Symmetric adjacency ``[n, n]`` with positive entries and no self-loops; weights are
            rounded to thousandths of the largest, and to one at least.
        counts: Numbers of clusters, 2 or more.
        seed: Seed of METIS.

    Returns:
        Labels ``[n]`` for each count. METIS may leave clusters empty where a count is near n.

    Raises:
        ClusteringError: A matrix that METIS does not take, a crash, whose message holds the last
            words, or no answer in time.
        ImportError: pymetis is not installed.
    """
    _check_matrix(A)
    weight = np.maximum(1, np.rint(A.data / A.data.max() * _WEIGHT_STEPS)).astype(np.int32)
    graph = {
        "indptr": A.indptr.astype(np.int32),
        "indices": A.indices.astype(np.int32),
        # Equal weights are left out, which METIS has a faster way for.
        "weight": weight if (weight != weight[0]).any() else weight[:0],
        "num_nodes": A.shape[0],
        "counts": np.asarray(counts),
        "seed": seed,
    }
    seconds = _SECONDS + _SECONDS_PER_ENTRY * A.nnz * len(counts)
    return answer_of(_WORKER, "pymetis", "metis", graph, seconds)


def _check_matrix(A: csr_array) -> None:
    if A.nnz > np.iinfo(np.int32).max:
        raise ClusteringError(f"METIS takes at most 2^31 - 1 entries; the graph has {A.nnz}")
    if A.nnz == 0 or not (A.data > 0).all() or A.diagonal().any() or (A != A.T).nnz:
        raise ClusteringError(
            "METIS takes a symmetric matrix of positive entries without self-loops"
        )


def _metis(request: Request) -> Hierarchy:
    wanted = request.family_levels
    return request.family(
        zip(wanted, metis_labels(request.graph, wanted, seed=request.seed), strict=True)
    )


METHODS = {
    "metis": Method(
        _metis, "clusters of nearly equal size, by pymetis", "non-nested", needs=("edge_index",)
    )
}
