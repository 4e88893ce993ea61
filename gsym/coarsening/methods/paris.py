"""Paris: clusters merged by how much more often an edge joins them than chance would."""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
from scipy.sparse import csr_array

from gsym.coarsening._graph import by_component
from gsym.coarsening._request import Method, Request
from gsym.coarsening.hierarchy import Hierarchy


def paris_merges(A: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Merges of a connected graph by the ratio of weights to what chance would give.

    Two clusters of degrees ``d_i`` and ``d_j``, joined by the weight ``w_ij`` in a graph of the
    total weight W, are at distance ``d_i d_j / (W w_ij)``; the nearest two are merged. The
    distance to a union lies between those to its parts, so that any two clusters that are nearest
    to each other may be merged at once: a chain of nearest neighbours finds such a pair. Equal
    distances are ordered by the numbers of nodes.

    Args:
        A: Symmetric adjacency of a connected graph, float64 ``[n, n]``; self-loops count in
            degrees.

    Returns:
        Merges ``[n - 1, 2]`` as in a SciPy linkage, and their distances, which do not fall.

    Cost:
        ``O(e log^2 n)``: of two clusters the one with fewer neighbours is taken into the other.

    Reference:
        Bonald, Charpentier, Galland, Hollocou, arXiv 1806.01664.
    """
    n = A.shape[0]
    total = float(A.sum())
    degree = (np.asarray(A.sum(axis=1)).reshape(-1) / total).tolist()
    coo = A.tocoo()
    joined: list[dict[int, float]] = [{} for _ in range(n)]
    ends = zip(coo.row.tolist(), coo.col.tolist(), (coo.data / total).tolist(), strict=True)
    for i, j, weight in ends:
        if i != j:
            joined[i][j] = weight
    # The nearest neighbour of i has the largest w_ij / d_j. As degrees grow, what a heap holds
    # becomes too large, never too small, and is corrected when it comes to the top.
    heaps = [[(-weight / degree[j], j) for j, weight in joined[i].items()] for i in range(n)]
    for heap in heaps:
        heapify(heap)

    def nearest(i: int) -> int:
        heap, weights = heaps[i], joined[i]
        while True:
            value, j = heap[0]
            if j not in weights:
                heappop(heap)
            elif (now := -weights[j] / degree[j]) > value:
                heapreplace(heap, (now, j))
            else:
                return j

    def distance(i: int, j: int) -> float:
        return degree[i] * degree[j] / joined[i][j]

    def merge(i: int, j: int) -> int:
        """Take the cluster of fewer neighbours into the other, whose number is returned."""
        kept, gone = (i, j) if len(joined[i]) >= len(joined[j]) else (j, i)
        degree[kept] += degree[gone]
        del joined[kept][gone], joined[gone][kept]
        for other, weight in joined[gone].items():
            del joined[other][gone]
            weight += joined[kept].get(other, 0.0)
            joined[kept][other] = joined[other][kept] = weight
            heappush(heaps[kept], (-weight / degree[other], other))
            heappush(heaps[other], (-weight / degree[kept], kept))
        joined[gone], heaps[gone] = {}, []
        return kept

    name = list(range(n))
    pairs: list[tuple[int, int]] = []
    heights: list[float] = []
    height_of = [0.0] * n
    chain = [0]
    while len(pairs) < n - 1:
        top = chain[-1]
        near = nearest(top)
        # Only a nearer one than the last goes on, so that no chain comes back to itself.
        if len(chain) == 1 or distance(top, near) < distance(top, chain[-2]):
            chain.append(near)
            continue
        near = chain[-2]
        del chain[-2:]
        height = max(distance(top, near), height_of[top], height_of[near])
        pairs.append((name[top], name[near]))
        heights.append(height)
        kept = merge(top, near)
        name[kept], height_of[kept] = n + len(heights) - 1, height
        if not chain:
            chain.append(kept)
    return _by_height(n, np.array(pairs).reshape(-1, 2), np.array(heights))


def _by_height(n: int, pairs: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same merges in the order of their heights; none comes before those of its parts."""
    order = np.argsort(heights, kind="stable")
    place = np.empty(n + order.size, dtype=np.int64)
    place[:n] = np.arange(n)
    place[n + order] = n + np.arange(order.size)
    return place[pairs[order]], heights[order]


def _paris(request: Request) -> Hierarchy:
    return request.tree(by_component(request.graph, lambda A, _: paris_merges(A)))


METHODS = {
    "paris": Method(
        _paris, "more weight than chance, Bonald et al.", "nested", needs=("edge_index",)
    )
}
