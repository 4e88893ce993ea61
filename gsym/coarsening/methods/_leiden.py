"""The process that runs Leiden for `leiden.py`: python _leiden.py graph.npz labels.npy.

It imports numpy and networkit only, because importing torch takes longer than most clusterings.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable

import networkit
import numpy as np


def main(path: str, answer: str) -> None:
    """Cluster the graph of one file at each of its counts, labels to the other file."""
    with np.load(path, allow_pickle=False) as arrays:
        row, column, weight = arrays["row"], arrays["column"], arrays["weight"]
        n, seed = int(arrays["num_nodes"]), int(arrays["seed"])
        counts, limit = arrays["counts"].tolist(), float(arrays["limit"])
        tries = int(arrays["tries"])
    graph = networkit.GraphFromCoo((weight, (row, column)), n=n, weighted=True, directed=False)
    # Threads race for moves: only one gives the same answer for the same seed.
    networkit.setNumberOfThreads(1)

    def run(resolution: float) -> np.ndarray:
        networkit.setSeed(seed, False)
        leiden = networkit.community.ParallelLeiden(graph, gamma=resolution)
        _limit(limit)
        leiden.run()
        _limit(0)
        return np.unique(leiden.getPartition().getVector(), return_inverse=True)[1]

    # Above this resolution no edge is worth a merge.
    degree = np.bincount(row, weight, minlength=n) + np.bincount(column, weight, minlength=n)
    most = (weight / (degree[row] * degree[column])).max() * degree.sum()
    runs = {math.log(most): np.arange(n)}
    np.save(answer, np.stack([nearest_above(run, runs, k, tries) for k in counts]).astype(np.int32))


def _limit(seconds: float) -> None:
    """Let the system end this process after so much processor time; 0 takes it back."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, seconds)


def nearest_above(
    run: Callable[[float], np.ndarray], runs: dict[float, np.ndarray], k: int, tries: int
) -> np.ndarray:
    """Labels of ``k`` clusters or, if the runs allow, at most a quarter more.

    Searches the resolution by its logarithm: between two runs by interpolation, beyond them by
    the growth on planar grids, where the number of clusters is about ``4/3 n^(1/3)
    resolution^(2/3)``.

    Args:
        run: Labels at a resolution.
        runs: Labels by the logarithm of their resolution, the finest included; keeps new runs.
        k: Number of clusters.
        tries: New runs at most.
    """
    finest = max(runs)
    n = runs[finest].size
    count = {at: int(labels.max()) + 1 for at, labels in runs.items()}
    for _ in range(tries):
        high = min(at for at in runs if count[at] >= k)
        if count[high] <= 1.25 * k:
            break
        low = max((at for at in runs if at < high), default=-math.log(n))
        if low in runs and high < finest:
            part = math.log(1.1 * k / count[low]) / math.log(count[high] / count[low])
            guess = low + (high - low) * part
        elif low in runs:
            guess = low + 1.5 * math.log(1.1 * k / count[low])
        elif high < finest:
            guess = high - 1.5 * math.log(count[high] / (1.1 * k))
        else:
            guess = 1.5 * math.log(0.75 * k) - 0.5 * math.log(n)
        margin = 0.1 * (high - low)
        guess = min(max(guess, low + margin), high - margin)
        runs[guess] = run(math.exp(guess))
        count[guess] = int(runs[guess].max()) + 1
    return runs[min(at for at in runs if count[at] >= k)]


if __name__ == "__main__":
    main(*sys.argv[1:])
