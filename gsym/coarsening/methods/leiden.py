"""Leiden in a subprocess, because networkit's loop does not end on some graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array, csr_array, triu

from gsym.coarsening._graph import by_component
from gsym.coarsening._request import Method, Request
from gsym.coarsening._worker import WorkerTimeoutError, answer_of
from gsym.coarsening.hierarchy import Hierarchy
from gsym.coarsening.methods.paris import paris_merges
from gsym.errors import ClusteringError

_WORKER = Path(__file__).with_name("_leiden.py")
# Processor seconds for one run, at least and per edge: ten times what runs that end have needed.
_SECONDS, _SECONDS_PER_EDGE = 2.0, 4e-5
# Seconds to answer in, besides what the runs may take; the machine may be busy with other work.
_SECONDS_MORE, _SLOWER = 120.0, 4
# Runs in search of the resolution of one level.
_TRIES = 8
# Another order of nodes may end where one did not.
_SEEDS = 3


def leiden_labels(A: csr_array, counts: Sequence[int], *, seed: int) -> list[np.ndarray]:
    """Communities by Leiden at the resolution that gives each count, or somewhat more.

    Args:
        A: Symmetric adjacency ``[n, n]`` with positive entries and no self-loops.
        counts: Numbers of clusters, 2 or more.
        seed: Seed of the order of nodes; where the search does not end, the next is tried.

    Returns:
        Labels ``[n]`` for each count, of that many clusters or, mostly, a quarter more at most.

    Raises:
        ClusteringError: No search ended, and the message holds the last words; or no answer came.
        ImportError: networkit is not installed.
    """
    half = triu(A, format="coo")
    limit = _SECONDS + _SECONDS_PER_EDGE * half.nnz
    graph = {
        "row": half.row.astype(np.uint64),
        "column": half.col.astype(np.uint64),
        "weight": np.maximum(half.data / half.data.max(), 1e-12),
        "num_nodes": A.shape[0],
        "counts": np.asarray(counts),
        "limit": limit,
        "tries": _TRIES,
    }
    seconds = _SECONDS_MORE + _SLOWER * _TRIES * limit * len(counts)
    for attempt in range(_SEEDS):
        try:
            question = graph | {"seed": seed + attempt}
            return answer_of(_WORKER, "networkit", "leiden", question, seconds)
        except WorkerTimeoutError:
            raise
        except ClusteringError:
            if attempt == _SEEDS - 1:
                raise
    raise AssertionError("unreachable")


def _leiden(request: Request) -> Hierarchy:
    A, wanted = request.graph, request.family_levels
    found = leiden_labels(A, wanted, seed=request.seed)
    return request.family(
        (k, _merge_down(A, labels, k)) for k, labels in zip(wanted, found, strict=True)
    )


def _merge_down(A: csr_array, labels: np.ndarray, k: int) -> np.ndarray:
    """Merge clusters along the dendrogram of their coarse graph until ``k`` are left."""
    count = int(labels.max()) + 1
    if count == k:
        return labels
    coo = A.tocoo()
    between = coo_array((coo.data, (labels[coo.row], labels[coo.col])), shape=(count, count))
    merges, heights = by_component(between.tocsr(), lambda A, _: paris_merges(A), warned=True)
    return Hierarchy.from_merges(count, merges, heights)[k].labels.numpy()[labels]


METHODS = {
    "leiden": Method(
        _leiden, "one resolution per level, by networkit", "non-nested", needs=("edge_index",)
    )
}
