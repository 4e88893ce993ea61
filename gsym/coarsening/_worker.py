"""Native libraries in processes of their own: they crash or hang, the interpreter does not."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gsym._validate import ClusteringError


def answer_of(
    worker: Path, package: str, method: str, graph: Mapping[str, Any]
) -> list[np.ndarray]:
    """Run a worker script on arrays; it answers with one row of labels per count.

    Args:
        worker: Script that takes the path of an npz file and the path of its answer, an npy file.
        package: Package of the extra ``cluster`` that it needs.
        method: Method of `coarsen`, as errors name it.
        graph: Arrays and numbers for the npz file, ``counts`` and ``num_nodes`` among them.

    Raises:
        ClusteringError: The script ended without an answer; the message holds its last words.
        ImportError: The package is not installed.
    """
    if find_spec(package) is None:
        raise ImportError(
            f"method {method!r} needs {package}; install it with: pip install 'gsym[cluster]'"
        )
    if not np.size(graph["counts"]):
        return []
    with tempfile.TemporaryDirectory(prefix="gsym-") as folder:
        question, answer = Path(folder, "graph.npz"), Path(folder, "labels.npy")
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in graph.items()}
        np.savez(question, **arrays)
        run = subprocess.run(
            [sys.executable, str(worker), str(question), str(answer)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if run.returncode == 0 and answer.exists():
            return list(np.load(answer, allow_pickle=False))
    words = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise ClusteringError(
        f"{package} ended with exit code {run.returncode} on {graph['num_nodes']} nodes ({words}); "
        "try fewer clusters or another method, as ward, louvain or paris"
    )
