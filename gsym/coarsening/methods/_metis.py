"""The process that runs METIS for `metis.py`: python _metis.py graph.npz labels.npy.

It imports numpy and pymetis only, because importing torch takes longer than most partitions.
"""

from __future__ import annotations

import sys

import numpy as np
import pymetis

_SMALL = 100_000


def main(graph: str, answer: str) -> None:
    """Partition the graph of one file into each of its counts, labels to the other file."""
    with np.load(graph, allow_pickle=False) as arrays:
        adjacency = pymetis.CSRAdjacency(arrays["indptr"], arrays["indices"])
        weight = arrays["weight"] if arrays["weight"].size else None
        counts, options = arrays["counts"].tolist(), pymetis.Options(seed=int(arrays["seed"]))
    np.save(answer, np.stack([_best(adjacency, weight, k, options) for k in counts]))


def _best(
    adjacency: pymetis.CSRAdjacency,
    weight: np.ndarray | None,
    k: int,
    options: pymetis.Options,
) -> np.ndarray:
    """Labels ``[n]`` of the better of METIS's two ways: fullest first, then the smallest cut.

    Recursive bisection is better on small graphs, k-way partitioning on large ones, where only
    that is run, because it is also faster.
    """
    small = len(adjacency.adj_starts) <= _SMALL
    answers = [
        pymetis.part_graph(k, adjacency, eweights=weight, options=options, recursive=recursive)
        for recursive in ((True, False) if small else (False,))
    ]
    best = max(answers, key=lambda a: (np.unique(a.vertex_part).size, -a.edge_cuts))
    return np.asarray(best.vertex_part, dtype=np.int32)


if __name__ == "__main__":
    main(*sys.argv[1:])
