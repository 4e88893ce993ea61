"""Native libraries in processes of their own: they crash or hang, the interpreter does not."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gsym import _child
from gsym.errors import ClusteringError


class WorkerTimeoutError(ClusteringError):
    """A native library did not answer in its time."""


def answer_of(
    worker: Path, package: str, method: str, graph: Mapping[str, Any], seconds: float
) -> list[np.ndarray]:
    """Run a worker script on arrays; it answers with one row of labels per count.

    Args:
        worker: Script that takes the path of an npz file and the path of its answer, an npy file.
        package: Package of the extra ``cluster`` that it needs.
        method: Method of `coarsen`, as errors name it.
        graph: Arrays and numbers for the npz file, ``counts`` and ``num_nodes`` among them.
        seconds: When the process is ended, if it has not answered.

    Raises:
        ClusteringError: The script ended without an answer; the message holds its last words.
        WorkerTimeoutError: It did not end.
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
        try:
            run = subprocess.run(
                _child.command(worker, str(question), str(answer)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as cause:
            raise WorkerTimeoutError(
                f"{package} gave no answer within {seconds:.0f} s on {graph['num_nodes']} nodes "
                "and was ended; ask for fewer levels, or try another method"
            ) from cause
        if run.returncode == 0 and answer.exists():
            return list(np.load(answer, allow_pickle=False))
    words = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise ClusteringError(
        f"{package} ended with exit code {run.returncode} on {graph['num_nodes']} nodes ({words}); "
        "try fewer clusters or another method, as paris or ward"
    )
