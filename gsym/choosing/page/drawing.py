"""Where to draw the nodes of a graph, and in which colours its nested clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee, shortest_path
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

NUM_COLOURS = 16
MAX_NODES = 5000
MAX_EDGES = 15000
WIDTH = 1000.0
_PIVOTS = 40
_RELAXED = 800
_STEPS = 60


@dataclass(frozen=True)
class Drawing:
    """What is drawn of the graph: each node, or bundles of nodes where there are too many.

    Attributes:
        bundle: Drawn node of each node, ``[n]``.
        sizes: Nodes in each drawn node, ``[m]``.
        x: Centres, ``[m]``, in a picture 1,000 wide.
        y: Centres, downwards.
        radius: Of each drawn node.
        height: Of the picture.
        cell: Side of the square cells of a grid, else 0.
        path: All edges as one SVG path.
        opacity: Of the edges: the more, the fainter.
        edges_note: How many edges were left out, if any.
    """

    bundle: np.ndarray
    sizes: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    height: float
    cell: float
    path: str
    opacity: float
    edges_note: str

    @classmethod
    def make(
        cls, choice: Any, levels: Sequence[np.ndarray], positions: np.ndarray | None
    ) -> Drawing:
        """Place nodes and edges of the graph of a choice whose candidates have the labels given."""
        n = levels[0].size
        edges = np.empty((2, 0), dtype=np.int64)
        if choice.edge_index is not None:
            edges = choice.edge_index.detach().cpu().numpy()
        bundles = _bundles(choice, levels, edges)
        sizes = np.bincount(bundles)
        m = sizes.size
        if positions is not None:
            positions = np.stack([np.bincount(bundles, c) / sizes for c in positions.T], axis=1)
        graph = adjacency(bundles[edges], m)
        if positions is None:
            edges = np.stack(graph.nonzero())
            positions = place(edges, m) if edges.size else _square(levels, bundles)
        grid = grid_cells(positions) if m == n else None
        if grid is not None:
            column, row = grid
            cell = WIDTH / (column.max() + 1)
            x, y = (column + 0.5) * cell, (row + 0.5) * cell
            height = float((row.max() + 1) * cell)
            return cls(bundles, sizes, x, y, np.full(m, cell / 2), height, cell, "", 0.0, "")
        x, y, radius, height = _frame(positions, sizes)
        path, count, left_out = _edge_path(graph, x, y)
        note = f"{left_out:,} of {left_out + count:,} edges are left out." if left_out else ""
        opacity = float(np.clip(2.5 * m / max(count, 1), 0.1, 0.8))
        return cls(bundles, sizes, x, y, radius, height, 0.0, path, opacity, note)

    @property
    def rows(self) -> list[tuple[float, float, float, int]]:
        """For each drawn node x, y, size and number of nodes, as its SVG element wants them."""
        corner = 0.5 * self.cell
        size = self.cell if self.cell else self.radius
        numbers = np.broadcast_arrays(self.x - corner, self.y - corner, size)
        rounded = np.round(np.stack(numbers), 2).tolist()
        return list(zip(*rounded, self.sizes.tolist(), strict=True))

    @property
    def is_coarsened(self) -> bool:
        """Whether a drawn node stands for several."""
        return self.sizes.size < self.bundle.size

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """The label that most nodes of each drawn node have, ``[m]``."""
        if not self.is_coarsened:
            return labels[np.argsort(self.bundle)]
        k = int(labels.max()) + 1
        pairs, counts = np.unique(self.bundle * k + labels, return_counts=True)
        order = np.lexsort((pairs, -counts))
        _, first = np.unique(pairs[order] // k, return_index=True)
        return pairs[order[first]] % k


def adjacency(edges: np.ndarray, num_nodes: int) -> csr_array:
    """Symmetric 0/1 adjacency of ``edges`` ``[2, e]``, without self-loops."""
    source, target = edges[:, edges[0] != edges[1]]
    shape = (num_nodes, num_nodes)
    one_way = coo_array((np.ones(source.size), (source, target)), shape=shape).tocsr()
    both = csr_array(one_way + one_way.T)
    both.data[:] = 1.0
    return both


def place(edges: np.ndarray, num_nodes: int) -> np.ndarray:
    """Draw a graph: coordinates ``[n, 2]``, x to the right and y upwards.

    Every connected component is placed by its graph distances to a few far-apart pivots; one of at
    most 800 nodes is then relaxed until distances in the picture match those in the graph.
    Components stand side by side, with areas in proportion to their sizes. The same graph is always
    drawn alike.

    Args:
        edges: int64 ``[2, e]``; direction is ignored.
        num_nodes: Number of nodes.

    Cost:
        40 breadth-first searches; the relaxation, quadratic in the nodes, takes about a second.

    Example:
        >>> place(np.array([[0, 1], [1, 2]]), 3).shape
        (3, 2)

    Reference:
        Pivot MDS: Brandes and Pich, Graph Drawing 2006. Relaxation: stress
        majorization, Gansner, Koren and North, Graph Drawing 2004.
    """
    graph = adjacency(edges, num_nodes)
    count, component = connected_components(graph, directed=False)
    nodes = np.argsort(component, kind="stable")
    parts = np.split(nodes, np.cumsum(np.bincount(component, minlength=count))[:-1])
    parts.sort(key=lambda part: (-part.size, part[0]))
    boxes = [_place_connected(graph[part][:, part]) * np.sqrt(part.size) for part in parts]
    positions = np.empty((num_nodes, 2))
    # Shelves: components from left to right until the row is as wide as the first or a square.
    wide = max(1.6 * np.sqrt(num_nodes), float(np.ptp(boxes[0][:, 0])) + 1)
    x = y = height = 0.0
    for part, box in zip(parts, boxes, strict=True):
        width = float(np.ptp(box[:, 0])) + 1
        if x and x + width > wide:
            x, y, height = 0.0, y - height - 0.5, 0.0
        positions[part] = box - [box[:, 0].min() - x, box[:, 1].max() - y]
        x += width
        height = max(height, float(np.ptp(box[:, 1])) + 1)
    return positions


def _place_connected(graph: csr_array) -> np.ndarray:
    """Coordinates of a connected graph in a box of area about 1, its long side horizontal."""
    n = graph.shape[0]
    if n == 1:
        return np.zeros((1, 2))
    distance = np.empty((n, min(n, _PIVOTS)))
    nearest = np.full(n, np.inf)
    pivot = 0
    for column in distance.T:
        column[:] = shortest_path(graph, unweighted=True, indices=pivot)
        nearest = np.minimum(nearest, column)
        pivot = int(nearest.argmax())
    squares = distance**2
    centred = squares.mean(0) + squares.mean(1, keepdims=True) - squares - squares.mean()
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    positions = centred @ axes[:2].T
    if positions.shape[1] < 2:
        positions = np.column_stack([positions, np.zeros(n)])
    positions = _fit(positions)
    # Twins have equal distances to everything; no force would part nodes in one place.
    positions += np.random.default_rng(0).normal(scale=0.1 / np.sqrt(n), size=positions.shape)
    if n <= _RELAXED:
        positions = _relaxed(positions, shortest_path(graph, unweighted=True))
        positions = positions @ np.linalg.svd(positions, full_matrices=False)[2].T
    return _fit(positions)


def _relaxed(positions: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Centred positions whose distances match those in the graph better, near ones above all."""
    n = len(positions)
    weight = 1 / (distance + np.eye(n)) ** 2 - np.eye(n)
    # The constant added fills the null space, which centred positions do not see.
    inverse = np.linalg.inv(np.diag(weight.sum(axis=0)) - weight + 1 / n)
    pull = weight * distance
    positions = (positions - positions.mean(axis=0)) * (distance.max() or 1.0)
    for _ in range(_STEPS):
        ratio = pull / np.maximum(cdist(positions, positions), 1e-9)
        positions = inverse @ (ratio.sum(axis=0)[:, None] * positions - ratio @ positions)
    return positions


def _fit(positions: np.ndarray) -> np.ndarray:
    """Scale to a bounding box of area 1, or of width 1 when all lie nearly on a line."""
    span = np.ptp(positions, axis=0)
    side = np.sqrt(max(span[0] * span[1], (0.3 * span.max()) ** 2))
    return (positions - positions.mean(0)) / (side or 1.0)


def grid_cells(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Column and row (from the top) of every node when the nodes fill a rectangular grid.

    Example:
        >>> column, row = grid_cells(np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]))
        >>> column.tolist(), row.tolist()
        ([0, 1, 0, 1], [0, 0, 1, 1])
        >>> grid_cells(np.random.default_rng(0).random((4, 2))) is None
        True
    """
    xs, column = np.unique(positions[:, 0], return_inverse=True)
    ys, row = np.unique(-positions[:, 1], return_inverse=True)
    if min(xs.size, ys.size) < 2 or xs.size * ys.size != len(positions):
        return None
    if np.unique(row * xs.size + column).size != len(positions):
        return None
    return column, row


def bundle(edges: np.ndarray, num_nodes: int, count: int) -> np.ndarray:
    """About ``count`` groups of neighbouring nodes, int64 ``[n]``, for drawing a large graph.

    Consecutive nodes of the reverse Cuthill-McKee order lie close together in the graph.
    """
    order = reverse_cuthill_mckee(adjacency(edges, num_nodes), symmetric_mode=True)
    labels = np.empty(num_nodes, dtype=np.int64)
    labels[order] = np.arange(num_nodes) * count // num_nodes
    return labels


def cluster_colours(levels: Sequence[np.ndarray], positions: np.ndarray) -> list[np.ndarray]:
    """Colour the clusters of every level so that neighbouring levels and clusters can be compared.

    From the coarsest level to the finest, the largest part of a cluster keeps its colour. The
    others take, of the colours that no cluster drawn next to them has, the one that is used least.

    Args:
        levels: Labels ``[n]`` of each level from fine to coarse, numbered without gaps.
        positions: Where the nodes are drawn, ``[n, 2]``.

    Returns:
        For each level, a colour ``0..15`` for each cluster.

    Example:
        >>> fine, coarse = np.array([0, 1, 2, 2]), np.array([0, 0, 1, 1])
        >>> line = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
        >>> [c.tolist() for c in cluster_colours([fine, coarse], line)]
        [[0, 2, 1], [0, 1]]
    """
    n = len(positions)
    _, near = cKDTree(positions).query(positions, k=min(7, n))
    adjacent = np.stack([np.repeat(np.arange(n), min(7, n)), near.reshape(-1)])
    colours: list[np.ndarray] = []
    above, above_colour = np.zeros(n, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for labels in reversed(levels):
        colour = _inherit(labels, above, above_colour)
        _fill(colour, labels, adjacent)
        colours.append(colour)
        above, above_colour = labels, colour
    return colours[::-1]


def _inherit(labels: np.ndarray, above: np.ndarray, above_colour: np.ndarray) -> np.ndarray:
    """Colours of the clusters that are the largest part of one above; -1 for the others."""
    parents = above_colour.size
    pairs, shared = np.unique(labels * parents + above, return_counts=True)
    child, parent = pairs // parents, pairs % parents
    by_share = np.lexsort((parent, -shared))
    # A cluster of a family that is not nested belongs to the parent that holds most of it.
    _, first = np.unique(child[by_share], return_index=True)
    main = np.zeros(pairs.size, dtype=bool)
    main[by_share[first]] = True
    child, parent, shared = child[main], parent[main], shared[main]
    by_size = np.lexsort((child, -shared))
    _, first = np.unique(parent[by_size], return_index=True)
    heirs = by_size[first]
    colour = np.full(int(labels.max()) + 1, -1, dtype=np.int64)
    colour[child[heirs]] = above_colour[parent[heirs]]
    return colour


def _fill(colour: np.ndarray, labels: np.ndarray, adjacent: np.ndarray) -> None:
    """Give a colour to every cluster that has none, in place."""
    k = colour.size
    pairs = np.unique(labels[adjacent[0]] * k + labels[adjacent[1]])
    touching = adjacency(np.stack([pairs // k, pairs % k]), k)
    used = np.bincount(colour[colour >= 0], minlength=NUM_COLOURS)
    sizes = np.bincount(labels, minlength=k)
    waiting = np.flatnonzero(colour < 0)
    for c in waiting[np.argsort(-sizes[waiting], kind="stable")]:
        around = colour[touching.indices[touching.indptr[c] : touching.indptr[c + 1]]]
        taken = np.bincount(around[around >= 0], minlength=NUM_COLOURS)
        colour[c] = np.lexsort((used, taken > 0))[0]
        used[colour[c]] += 1


def leaf_rank(levels: Sequence[np.ndarray]) -> np.ndarray:
    """Rank of each node such that the clusters of nested levels are runs of neighbours."""
    rank = np.empty(levels[0].size)
    rank[np.lexsort(levels)] = np.arange(rank.size)
    return rank


def _bundles(choice: Any, levels: Sequence[np.ndarray], edges: np.ndarray) -> np.ndarray:
    """The drawn node of each node: itself, or its cluster at the finest level that can be drawn."""
    n = levels[0].size
    if n <= MAX_NODES:
        return np.arange(n)
    fits = range(MAX_NODES // 10, MAX_NODES + 1)
    offered = [labels for labels in levels if int(labels.max()) + 1 in fits]
    hierarchy = getattr(choice, "hierarchy", None)
    if hierarchy is not None:
        counts = [k for k in hierarchy.levels if k in fits]
        offered += [hierarchy[max(counts)].labels.numpy()] if counts else []
    if offered:
        return max(offered, key=lambda labels: labels.max())
    return bundle(edges, n, MAX_NODES // 2)


def _square(levels: Sequence[np.ndarray], bundles: np.ndarray) -> np.ndarray:
    """Places for nodes without graph or positions: a square, clusters together."""
    rank = np.bincount(bundles, weights=leaf_rank(levels))
    place_of = np.argsort(np.argsort(rank / np.bincount(bundles), kind="stable"))
    side = math.ceil(math.sqrt(rank.size))
    return np.column_stack([place_of % side, -(place_of // side)]).astype(float)


def _frame(
    positions: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Centres, radii and height of a picture 1,000 wide."""
    m = len(positions)
    span = np.ptp(positions, axis=0)
    wide = WIDTH / max(span[0], span[1], 1e-300)
    apart, _ = cKDTree(positions).query(positions, k=min(2, m))
    crowding = float(np.median(apart.reshape(m, -1)[:, -1])) * wide
    # Radii follow the crowding, but crowded spots must not make all nodes too small to see.
    radius = np.clip(0.6 * crowding, 0.17 * WIDTH / math.sqrt(m), 0.3 * WIDTH / math.sqrt(m))
    radius = np.clip(radius * np.sqrt(sizes / sizes.mean()), 2.5, 15.0)
    margin = float(radius.max()) + 6
    scale = (WIDTH - 2 * margin) / max(span[0], span[1], 1e-300)
    if span[1] > 0.9 * span[0]:
        scale *= 0.9 * max(span[0], span[1]) / max(span[1], 1e-300) if span[1] > span[0] else 0.9
    height = max(span[1] * scale + 2 * margin, 120.0)
    centre = positions.min(axis=0) + span / 2
    x = WIDTH / 2 + (positions[:, 0] - centre[0]) * scale
    y = height / 2 - (positions[:, 1] - centre[1]) * scale
    return x, y, radius, float(height)


def _edge_path(graph: Any, x: np.ndarray, y: np.ndarray) -> tuple[str, int, int]:
    """One SVG path, the number of its edges, and how many were left out."""
    source, target = graph.nonzero()
    once = source < target
    source, target = source[once], target[once]
    total = source.size
    if total > MAX_EDGES:
        some = np.linspace(0, total - 1, MAX_EDGES).astype(int)
        source, target = source[some], target[some]
    path = "".join(
        f"M{x[i]:.1f} {y[i]:.1f}L{x[j]:.1f} {y[j]:.1f}"
        for i, j in zip(source.tolist(), target.tolist(), strict=True)
    )
    return path, source.size, total - source.size
