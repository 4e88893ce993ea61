"""The neighbourhoods of all nodes of a graph as subgraphs, found sparsely."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array, identity

from gsym.errors import GraphError

# Candidate edges that are looked up at a time: their temporaries stay below some hundred MB.
_CANDIDATES = 2**22


@dataclass(frozen=True)
class EgoNetworks:
    """One induced subgraph per node; subgraph s belongs to root s.

    Attributes:
        node: Node of the graph of every entry, int64 ``[m]``, sorted by subgraph, then node.
        owner: Subgraph of every entry, int64 ``[m]``.
        edge: Edge of the graph of every edge of a subgraph, int64 ``[f]``.
        edge_owner: Subgraph of every such edge, int64 ``[f]``.
        ends: Its ends among the entries, int64 ``[2, f]``.
    """

    node: np.ndarray
    owner: np.ndarray
    edge: np.ndarray
    edge_owner: np.ndarray
    ends: np.ndarray


def ego_networks(
    edge_index: np.ndarray,
    num_nodes: int,
    num_hops: int,
    *,
    include_root: bool = True,
    max_nodes: int | None = None,
    shrink: bool = False,
) -> EgoNetworks:
    """Nodes that send to each node within ``num_hops`` edges, and the edges among them.

    Args:
        edge_index: Edges ``[2, e]``; repeated edges and self-loops are kept as they are.
        num_nodes: Number of nodes n.
        num_hops: Longest path to the root.
        include_root: Count the root to its neighbourhood.
        max_nodes: Largest subgraph.
        shrink: Give a neighbourhood above ``max_nodes`` as many hops as fit, instead of an error.

    Raises:
        GraphError: A neighbourhood above ``max_nodes``, unless it may shrink.

    Cost:
        Linear in the sum over all entries of the degree of their node.
    """
    source, target = edge_index
    ones = np.ones(source.size, dtype=np.int8)
    step = csr_array((ones, (target, source)), shape=(num_nodes, num_nodes))
    step.data[:] = 1
    step = (step + identity(num_nodes, dtype=np.int8, format="csr")).tocsr()
    by_source = np.argsort(source, kind="stable")
    first = np.searchsorted(source[by_source], np.arange(num_nodes + 1))
    found: list[tuple[np.ndarray, ...]] = []
    entries = 0
    for low, high in _chunks(step, first, num_hops):
        owner, node = _members(step, low, high, num_hops, max_nodes, shrink)
        if not include_root:
            kept = owner != node
            owner, node = owner[kept], node[kept]
        found.append((node, owner, *_edges(owner, node, by_source, first, target, entries)))
        entries += node.size
    if not found:
        found = [(*(np.empty(0, np.int64) for _ in range(4)), np.empty((2, 0), np.int64))]
    node, owner, edge, edge_owner, ends = (
        np.concatenate(parts, axis=-1) for parts in zip(*found, strict=True)
    )
    return EgoNetworks(node, owner, edge, edge_owner, ends)


def _chunks(step: csr_array, first: np.ndarray, num_hops: int) -> list[tuple[int, int]]:
    """Ranges of roots with some million candidate edges each, as far as a hop can tell."""
    work = np.diff(first).astype(np.float64) + 1
    for _ in range(num_hops):
        work = step @ work
    total = np.concatenate([[0.0], np.cumsum(work)])
    if num_hops == 0 or step.shape[0] == 0:
        return [(0, step.shape[0])] if step.shape[0] else []
    cuts = np.searchsorted(total, np.arange(0, total[-1], _CANDIDATES))
    cuts = np.unique(np.concatenate([cuts, [step.shape[0]]]))
    return list(pairwise(np.unique(np.concatenate([[0], cuts])).tolist()))


def _members(
    step: csr_array, low: int, high: int, num_hops: int, max_nodes: int | None, shrink: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Root and node of every entry, sorted."""
    count, n = high - low, step.shape[0]
    roots = np.arange(low, high)
    reach = csr_array((np.ones(count, np.int8), (np.arange(count), roots)), shape=(count, n))
    settled = np.zeros(count, dtype=bool)
    for _ in range(num_hops):
        wider = (reach @ step).tocsr()
        wider.data = np.ones_like(wider.data)
        large = np.zeros(count, dtype=bool)
        if max_nodes is not None:
            large = np.diff(wider.indptr) > max_nodes
        if large.any() and not shrink:
            root = low + int(large.argmax())
            raise GraphError(
                f"the neighbourhood of node {root} has {int(np.diff(wider.indptr).max())} nodes "
                f'or more, above max_nodes={max_nodes}; raise it, or pass large="shrink"'
            )
        settled |= large
        if settled.any():
            keep = csr_array((settled.astype(np.int8), (np.arange(count),) * 2), shape=(count,) * 2)
            move = csr_array(
                ((~settled).astype(np.int8), (np.arange(count),) * 2), shape=(count,) * 2
            )
            wider = (keep @ reach + move @ wider).tocsr()
            wider.eliminate_zeros()
        reach = wider
    reach.sort_indices()
    owner = np.repeat(roots, np.diff(reach.indptr))
    return owner.astype(np.int64), reach.indices.astype(np.int64)


def _edges(
    owner: np.ndarray,
    node: np.ndarray,
    by_source: np.ndarray,
    first: np.ndarray,
    target: np.ndarray,
    offset: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges with both ends in one subgraph: their number, their subgraph, their ends."""
    n = first.size - 1
    degree = first[node + 1] - first[node]
    entry = np.repeat(np.arange(node.size), degree)
    start = np.cumsum(degree) - degree
    edge = by_source[np.arange(entry.size) - start[entry] + first[node][entry]]
    keys, wanted = owner * n + node, owner[entry] * n + target[edge]
    place = np.minimum(np.searchsorted(keys, wanted), max(keys.size - 1, 0))
    there = keys[place] == wanted if keys.size else np.zeros(0, dtype=bool)
    ends = np.stack([entry[there], place[there]]) + offset
    return edge[there].astype(np.int64), owner[entry[there]], ends.astype(np.int64)


def rooted_hash(owner: np.ndarray, root: np.ndarray, ends: np.ndarray, count: int) -> np.ndarray:
    """A number for every subgraph that is the same for isomorphic ones, root to root.

    Colour refinement with the root and, in turn, one more node told from the others. Subgraphs
    that this cannot tell apart get one number as well; among those of up to 15 nodes there are
    hardly any.

    Args:
        owner: Subgraph of every entry, sorted.
        root: Whether an entry is the root.
        ends: Ends of the edges among the entries, ``[2, f]``.
        count: Number of subgraphs.

    Cost:
        Each round ``O(sum m (m + f))`` for subgraphs of m nodes and f edges.
    """
    size = np.bincount(owner, minlength=count)
    first = np.cumsum(size) - size
    # One copy of a subgraph per entry; node j of the copy of entry i is a place of its own.
    width = size[owner]
    start = np.cumsum(width) - width
    copy, inside = _ramp(width)
    entry = first[owner][copy] + inside
    edges = np.bincount(owner[ends[0]], minlength=count)
    by_owner = np.argsort(owner[ends[0]], kind="stable")
    edge_copy, edge_inside = _ramp(edges[owner])
    edge = by_owner[(np.cumsum(edges) - edges)[owner][edge_copy] + edge_inside]
    places = ends[:, edge] - first[owner][edge_copy] + start[edge_copy]
    chosen = (entry == copy).astype(np.uint64)
    colour = _scatter(root[entry].astype(np.uint64) + np.uint64(2) * chosen)
    hashes = _refine(copy, colour, places, owner.size)
    total = np.zeros(count, dtype=np.uint64)
    np.add.at(total, owner, _scatter(hashes))
    return total


def _ramp(width: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``0, 0, 1, 1, 1`` and ``0, 1, 0, 1, 2`` for widths ``2, 3``."""
    owner = np.repeat(np.arange(width.size), width)
    return owner, np.arange(owner.size) - (np.cumsum(width) - width)[owner]


def _refine(owner: np.ndarray, colour: np.ndarray, ends: np.ndarray, count: int) -> np.ndarray:
    """A number for the stable colouring of every graph, colours being numbers of 64 bits."""
    hashed, distinct = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.int64)
    refining = np.ones(count, dtype=bool)
    while refining.any():
        received, sent = np.zeros_like(colour), np.zeros_like(colour)
        np.add.at(received, ends[1], _scatter(colour[ends[0]]))
        np.add.at(sent, ends[0], _scatter(colour[ends[1]]))
        colour = _scatter(_scatter(_scatter(colour) + received) + sent)
        cells = np.unique(np.stack([owner.astype(np.uint64), colour]), axis=1)[0]
        found = np.bincount(cells.astype(np.int64), minlength=count)
        # Each graph stops by itself, so that its number does not depend on the others.
        done = refining & (found == distinct)
        total = np.zeros(count, dtype=np.uint64)
        np.add.at(total, owner, _scatter(colour))
        hashed[done] = total[done]
        refining, distinct = refining & ~done, found
    return hashed


def _scatter(x: np.ndarray) -> np.ndarray:
    """A fixed random permutation of the numbers of 64 bits (splitmix64's)."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)) & np.uint64(0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
