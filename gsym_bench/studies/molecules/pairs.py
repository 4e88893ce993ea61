"""Graphs that are hard to tell apart, by family, and what theory says about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import combinations, product

import networkx as nx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

CSL_NODES = 41
CSL_SKIPS = (2, 3, 4, 5, 6, 9, 11, 12, 13, 16)
_PRIME = np.uint64(0x9E3779B97F4A7C15)


@cache
def families() -> dict[str, list[nx.Graph]]:
    """Families of graphs by name; all pairs within one are to be told apart.

    No two are isomorphic, and colour refinement (1-WL) tells no pair apart. Those from
    ``rook`` on are not told apart by its folklore form on pairs of nodes (2-FWL, or 3-WL) either.
    """
    return {
        "two triangles, hexagon": [two(3), nx.cycle_graph(6)],
        "decalin, bicyclopentyl": [decalin(), bicyclopentyl()],
        "random regular": random_regular(),
        f"circular skip links, {CSL_NODES} nodes": [
            nx.circulant_graph(CSL_NODES, [1, skip]) for skip in CSL_SKIPS
        ],
        "rook, Shrikhande (16, 6, 2, 2)": [latin([[0] * 4] * 4, symbols=False), shrikhande()],
        "Latin squares (25, 12, 5, 6)": [latin(square) for square in LATIN_SQUARES],
        "Chang (28, 12, 6, 4)": chang(),
        "CFI of K33": cfi_pair(nx.complete_bipartite_graph(3, 3)),
        "CFI of the prism": cfi_pair(nx.circular_ladder_graph(3)),
    }


# The two main classes of order 5: addition in Z_5, and one with a subsquare of order 2.
LATIN_SQUARES = (
    [[(i + j) % 5 for j in range(5)] for i in range(5)],
    [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 3, 4, 0, 1], [3, 4, 1, 2, 0], [4, 2, 0, 1, 3]],
)


def two(length: int) -> nx.Graph:
    """Two cycles."""
    return nx.disjoint_union(nx.cycle_graph(length), nx.cycle_graph(length))


def decalin() -> nx.Graph:
    """Two rings of six carbons that share a bond."""
    graph = nx.cycle_graph(10)
    graph.add_edge(0, 5)
    return graph


def bicyclopentyl() -> nx.Graph:
    """Two rings of five carbons with a bond between them."""
    graph = two(5)
    graph.add_edge(0, 5)
    return graph


def random_regular(count: int = 4) -> list[nx.Graph]:
    """Connected 4-regular graphs of 12 nodes, no two of them isomorphic."""
    found: list[nx.Graph] = []
    seed = 0
    while len(found) < count:
        graph = nx.random_regular_graph(4, 12, seed=seed)
        seed += 1
        if nx.is_connected(graph) and not any(nx.is_isomorphic(graph, old) for old in found):
            found.append(graph)
    return found


def latin(square: Sequence[Sequence[int]], *, symbols: bool = True) -> nx.Graph:
    """Cells of a square, joined where they share a row, a column or a symbol.

    Without symbols it is the graph of a rook's moves.
    """
    cells = list(product(range(len(square)), repeat=2))
    graph = nx.empty_graph(len(cells))
    for (a, (i, j)), (b, (k, m)) in combinations(enumerate(cells), 2):
        if i == k or j == m or (symbols and square[i][j] == square[k][m]):
            graph.add_edge(a, b)
    return graph


def shrikhande() -> nx.Graph:
    """Z_4 x Z_4, joined along (1, 0), (0, 1) and (1, 1)."""
    graph = nx.Graph()
    for a, b in product(range(4), repeat=2):
        for x, y in ((0, 1), (1, 0), (1, 1)):
            graph.add_edge((a, b), ((a + x) % 4, (b + y) % 4))
    return nx.convert_node_labels_to_integers(graph)


def chang() -> list[nx.Graph]:
    """The triangular graph T(8) and the three Chang graphs, by switching."""
    whole = nx.complete_graph(8)
    edges = [frozenset(e) for e in whole.edges]
    matching = [(0, 1), (2, 3), (4, 5), (6, 7)]
    octagon = list(nx.cycle_graph(8).edges)
    both = list(nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(5)).edges)
    found = []
    for switched in ([], matching, octagon, both):
        chosen = {frozenset(e) for e in switched}
        graph = nx.empty_graph(len(edges))
        for (a, e), (b, f) in combinations(enumerate(edges), 2):
            if bool(e & f) ^ ((e in chosen) != (f in chosen)):
                graph.add_edge(a, b)
        found.append(graph)
    return found


def cfi_pair(base: nx.Graph) -> list[nx.Graph]:
    """The graph of Cai, Fürer and Immerman over a base, and its twisted twin.

    Every node v of the base becomes one node for each even set of its edges; nodes at the two ends
    of an edge are joined if both or neither hold the edge, in the twin along one edge if just one
    does.
    """
    edges = [frozenset(e) for e in base.edges]
    nodes = []
    for v in base.nodes:
        own = [e for e in edges if v in e]
        for size in range(0, len(own) + 1, 2):
            nodes += [(v, frozenset(some)) for some in combinations(own, size)]
    found = []
    for twisted in (False, True):
        graph = nx.empty_graph(len(nodes))
        for (a, (v, s)), (b, (w, t)) in combinations(enumerate(nodes), 2):
            edge = frozenset((v, w))
            if edge in edges and ((edge in s) ^ (edge in t)) == (twisted and edge == edges[0]):
                graph.add_edge(a, b)
        found.append(graph)
    return found


def as_data(graph: nx.Graph, perm: Tensor | None = None) -> Data:
    """A PyG graph with a 1 at every node, node i being ``perm[i]``; float64."""
    n = graph.number_of_nodes()
    perm = torch.arange(n) if perm is None else perm
    ends = perm[torch.tensor(list(graph.edges)).t()]
    return Data(x=torch.ones(n, 1).double(), edge_index=torch.cat([ends, ends.flip(0)], dim=1))


def refinement(graphs: Iterable[nx.Graph]) -> list[int]:
    """A number for the outcome of colour refinement (1-WL) of every graph."""

    def of(graph: nx.Graph) -> NDArray:
        adjacency = nx.to_numpy_array(graph, dtype=np.uint64)
        colour = np.ones(len(adjacency), dtype=np.uint64)
        for _ in range(len(adjacency)):
            colour = _mix(colour + _PRIME * (adjacency @ _mix(colour)))
        return colour

    return _outcomes(of, graphs)


def pair_refinement(graphs: Iterable[nx.Graph]) -> list[int]:
    """A number for the outcome of folklore refinement of pairs (2-FWL) of every graph."""

    def of(graph: nx.Graph) -> NDArray:
        adjacency = nx.to_numpy_array(graph, dtype=np.uint64)
        n = len(adjacency)
        colour = _mix(adjacency + np.uint64(2) * np.eye(n, dtype=np.uint64))
        for _ in range(n):
            # Both colours of the way through k, in order, then summed over k.
            ways = _mix(colour[:, None, :] + _PRIME * colour.T[None, :, :])
            new = _mix(colour + _PRIME * ways.sum(2))
            if len(np.unique(new)) == len(np.unique(colour)):
                return new
            colour = new
        return colour

    return _outcomes(of, graphs)


def _outcomes(of: Callable[[nx.Graph], NDArray], graphs: Iterable[nx.Graph]) -> list[int]:
    return [int(_mix(of(graph)).sum()) for graph in graphs]


def _mix(x: NDArray) -> NDArray:
    """Scatter numbers of 64 bits (splitmix64), so that sums tell multisets apart."""
    x = x.astype(np.uint64) + _PRIME
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
