"""METIS in a process of its own: on input it does not like it takes the interpreter down."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from gsym._validate import ClusteringError

# Largest integer that an edge weight becomes; METIS takes none but positive integers.
_WEIGHT_STEPS = 1000
_WORKER = Path(__file__).with_name("_metis.py")


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
        ClusteringError: A matrix that METIS does not take, or a crash; the message holds its last
            words.
        ImportError: pymetis is not installed.
    """
    if find_spec("pymetis") is None:
        raise ImportError(
            "method 'metis' needs pymetis; install it with: pip install 'gsym[cluster]'"
        )
    _check_matrix(A)
    if not counts:
        return []
    weight = np.maximum(1, np.rint(A.data / A.data.max() * _WEIGHT_STEPS)).astype(np.int32)
    with tempfile.TemporaryDirectory(prefix="gsym-metis-") as folder:
        graph, answer = Path(folder, "graph.npz"), Path(folder, "labels.npy")
        np.savez(
            graph,
            indptr=A.indptr.astype(np.int32),
            indices=A.indices.astype(np.int32),
            # Equal weights are left out, which METIS has a faster way for.
            weight=weight if (weight != weight[0]).any() else weight[:0],
            counts=np.asarray(counts, dtype=np.int32),
            seed=seed,
        )
        run = subprocess.run(
            [sys.executable, str(_WORKER), str(graph), str(answer)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if run.returncode != 0 or not answer.exists():
            words = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ClusteringError(
                f"METIS ended with exit code {run.returncode} on {A.shape[0]} nodes and "
                f"{A.nnz // 2} edges ({words}); try fewer clusters or another method, as leiden"
            )
        return list(np.load(answer, allow_pickle=False))


def _check_matrix(A: csr_array) -> None:
    if A.nnz > np.iinfo(np.int32).max:
        raise ClusteringError(f"METIS takes at most 2^31 - 1 entries; the graph has {A.nnz}")
    if A.nnz == 0 or not (A.data > 0).all() or A.diagonal().any() or (A != A.T).nnz:
        raise ClusteringError(
            "METIS takes a symmetric matrix of positive entries without self-loops"
        )
