"""Colour refinement and the search for automorphisms, on plain arrays.

Run as a script this file is the worker of :func:`gsym.groups.automorphism.automorphisms`, which
kills it at the deadline: a graph comes in on the standard input and generators go out on the
standard output, both as npz without pickles. It knows numpy and the solvers only, because a worker
that imported torch would spend seconds of its budget on that.
"""

from __future__ import annotations

import importlib
import io
import sys
from itertools import count

import numpy as np

MEMORY_LIMIT = 4 * 2**30

Array = np.ndarray


def mix(salt: int, *columns: Array) -> Array:
    """Pseudo-random uint64 numbers, equal for equal rows: the finaliser of splitmix64, chained."""
    out = np.full(columns[0].shape, salt, dtype=np.uint64)
    for column in columns:
        out = (out ^ column.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        out = (out ^ (out >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        out = (out ^ (out >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out = out ^ (out >> np.uint64(31))
    return out


def ranges(start: Array, length: Array) -> Array:
    """The concatenation of ``start[i], ..., start[i] + length[i] - 1``."""
    ends = np.cumsum(length)
    total = int(ends[-1]) if ends.size else 0
    return np.arange(total) + np.repeat(start - (ends - length), length)


def runs(*sorted_columns: Array) -> Array:
    """Where each run of equal rows begins."""
    new = np.ones(sorted_columns[0].size, dtype=bool)
    new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in sorted_columns])
    return np.flatnonzero(new)


def group_sums(group: Array, values: Array) -> tuple[Array, Array]:
    """The distinct groups, sorted, and the sum of ``values`` over each."""
    order = np.argsort(group, kind="stable")
    group = group[order]
    head = runs(group)
    return group[head], np.add.reduceat(values[order], head) if head.size else values[:0]


def row_numbers(*columns: Array) -> Array:
    """Number equal rows alike, 0 to k-1."""
    numbers = np.zeros(columns[0].size, dtype=np.int64)
    for column in columns:
        _, inverse = np.unique(column, return_inverse=True)
        inverse = inverse.reshape(-1).astype(np.int64)
        _, numbers = np.unique(
            numbers * (int(inverse.max(initial=0)) + 1) + inverse, return_inverse=True
        )
        numbers = numbers.reshape(-1).astype(np.int64)
    return numbers


def refine(owner: Array, neighbour: Array, code: Array, colour: Array) -> Array:
    """The coarsest equitable refinement of ``colour``.

    Args:
        owner: Node that sees the entry, int64 ``[m]``.
        neighbour: Node that is seen, int64 ``[m]``.
        code: How it is seen (weight and direction), int64 ``[m]``.
        colour: Colours ``0..k-1`` of the nodes, int64 ``[n]``, every one used.

    Returns:
        New colours such that nodes of one colour see equally many neighbours of each colour under
        each code, int64 ``[n]``.
    """
    by_neighbour = np.argsort(neighbour, kind="stable")
    owner, neighbour, code = owner[by_neighbour], neighbour[by_neighbour], code[by_neighbour]
    for salt in count():
        colour = _refine_by_hash(owner, neighbour, code, colour, salt)
        # Hashes of unequal multisets may coincide, which leaves cells too large. A partition that
        # is never finer than the answer and equitable is the answer.
        if is_equitable(owner, neighbour, code, colour):
            return colour
    raise AssertionError("unreachable")


def is_equitable(owner: Array, neighbour: Array, code: Array, colour: Array) -> bool:
    """Whether nodes of one colour see equal multisets of (code, colour), compared in full."""
    n = colour.size
    degree = np.bincount(owner, minlength=n)
    _, first = np.unique(colour, return_index=True)
    model = first[colour]
    if not np.array_equal(degree, degree[model]):
        return False
    order = np.lexsort((colour[neighbour], code, owner))
    start = np.cumsum(degree) - degree
    there = ranges(start[model], degree)
    seen = np.stack([code, colour[neighbour]])[:, order]
    return np.array_equal(seen, seen[:, there])


def _refine_by_hash(owner: Array, neighbour: Array, code: Array, colour: Array, salt: int) -> Array:
    """Refine ``colour`` until hashed neighbourhoods agree; entries sorted by neighbour.

    Each round looks at the neighbours of nodes that changed their colour, and the largest part of
    a split cell keeps the old one (Hopcroft), so that a node changes at most log2(n) times.
    """
    n = colour.size
    degree = np.bincount(neighbour, minlength=n)
    entry = np.cumsum(degree) - degree
    colour = colour.copy()
    # The nodes of each cell lie together: cell c at start[c], size[c] of them.
    member = np.argsort(colour, kind="stable")
    place = np.empty(n, dtype=np.int64)
    place[member] = np.arange(n)
    cells = int(colour.max(initial=-1)) + 1
    size = np.zeros(n, dtype=np.int64)
    size[:cells] = np.bincount(colour, minlength=cells)
    start = np.zeros(n, dtype=np.int64)
    start[:cells] = np.cumsum(size[:cells]) - size[:cells]
    hit = np.zeros(n, dtype=bool)
    changed = np.arange(n)
    while changed.size and cells < n:
        at = ranges(entry[changed], degree[changed])
        node, seen = group_sums(owner[at], mix(salt, code[at], colour[neighbour[at]]))
        order = np.lexsort((seen, colour[node]))
        node, seen = node[order], seen[order]
        head = runs(colour[node], seen)
        part_cell, part_size = colour[node][head], np.diff(np.append(head, node.size))
        head = runs(part_cell)
        cell, parts = part_cell[head], np.diff(np.append(head, part_cell.size))
        touched = np.add.reduceat(part_size, head) if head.size else part_size
        split = (parts > 1) | (touched < size[cell])
        keep = np.repeat(split, parts)
        node = node[np.repeat(split, touched)]
        part_cell, part_size = part_cell[keep], part_size[keep]
        cell, touched = cell[split], touched[split]
        # Bring the touched nodes to the end of their cells, sorted by part.
        rest = size[cell] - touched
        tail = start[cell] + rest
        slot = ranges(tail, touched)
        hit[node] = True
        leaving = place[node[place[node] < np.repeat(tail, touched)]]
        member[leaving] = member[slot[~hit[member[slot]]]]
        hit[node] = False
        member[slot] = node
        place[member[leaving]], place[node] = leaving, slot
        # The untouched rest of a cell is a part like the others.
        cell, rest = cell[rest > 0], rest[rest > 0]
        of, lengths = np.concatenate([part_cell, cell]), np.concatenate([part_size, rest])
        starts = np.concatenate([slot[np.cumsum(part_size) - part_size], start[cell]])
        by_cell = np.lexsort((-lengths, of))
        of, lengths, starts = of[by_cell], lengths[by_cell], starts[by_cell]
        largest = np.zeros(of.size, dtype=bool)
        largest[runs(of)] = True
        start[of[largest]], size[of[largest]] = starts[largest], lengths[largest]
        added = int((~largest).sum())
        start[cells : cells + added] = starts[~largest]
        size[cells : cells + added] = lengths[~largest]
        changed = member[ranges(starts[~largest], lengths[~largest])]
        colour[changed] = np.repeat(np.arange(cells, cells + added), lengths[~largest])
        cells += added
    return colour


def search(edges: Array, colour: Array, points: int, solver: str) -> dict[str, Array]:
    """Generators of the automorphism group of a simple undirected graph with coloured vertices.

    Args:
        edges: Each edge once, int64 ``[2, m]``.
        colour: Colours ``0..k-1``, int64 ``[n]``.
        points: Only the images of vertices ``0..points-1`` are reported; they determine the rest.
        solver: ``"bliss"``, ``"nauty"`` or ``"networkx"``.

    Returns:
        ``generators`` int64 ``[g, points]`` and the order of the group: ``order``, its
        hexadecimal digits, or where those are not known ``log_order``, its natural logarithm.
    """
    generators, size = _SOLVERS[solver](edges, colour)
    table = np.array([perm[:points] for perm in generators], dtype=np.int64).reshape(-1, points)
    return {"generators": table, **size}


def _bliss(edges: Array, colour: Array) -> tuple[list[list[int]], dict[str, Array]]:
    graph = importlib.import_module("igraph").Graph(colour.size, edges.T.tolist())
    generators = graph.automorphism_group(color=colour.tolist())
    order = graph.count_automorphisms(color=colour.tolist()) if generators else 1
    return generators, _exact(order)


def _nauty(edges: Array, colour: Array) -> tuple[list[list[int]], dict[str, Array]]:
    pynauty = importlib.import_module("pynauty")
    order = np.argsort(edges[0], kind="stable")
    source, target = edges[0][order], edges[1][order]
    head = runs(source)
    neighbours = dict(
        zip(source[head].tolist(), map(np.ndarray.tolist, np.split(target, head[1:])), strict=True)
    )
    cells = np.split(np.argsort(colour, kind="stable"), np.cumsum(np.bincount(colour))[:-1])
    graph = pynauty.Graph(
        colour.size,
        adjacency_dict=neighbours,
        vertex_coloring=[set(cell.tolist()) for cell in cells],
    )
    generators, mantissa, exponent, _, _ = pynauty.autgrp(graph)
    if exponent == 0:
        return generators, _exact(round(mantissa))
    return generators, {"log_order": np.array(np.log(mantissa) + exponent * np.log(10))}


def _networkx(edges: Array, colour: Array) -> tuple[list[list[int]], dict[str, Array]]:
    """Colour refinement along a base, and VF2++ for what refinement leaves open.

    Deepest point first: the elements that fix the base up to a point, and the point's orbit under
    them, one representative for each image that the known elements do not give.
    """
    isomorphism = importlib.import_module("networkx.algorithms.isomorphism")
    nx = importlib.import_module("networkx")
    n = colour.size
    owner, neighbour = np.concatenate([edges, edges[::-1]], axis=1)
    plain = np.zeros(owner.size, dtype=np.int64)
    path, base = [refine(owner, neighbour, plain, colour)], []
    while (sizes := np.bincount(path[-1])).max() > 1:
        cell = int(np.where(sizes > 1, sizes, n + 1).argmin())
        base.append(int((path[-1] == cell).argmax()))
        path.append(refine(owner, neighbour, plain, _individualise(path[-1], base[-1])))

    one, two = nx.Graph(), nx.Graph()
    for graph in (one, two):
        graph.add_nodes_from(range(n))
        graph.add_edges_from(edges.T.tolist())
    twice = np.concatenate([owner, owner + n]), np.concatenate([neighbour, neighbour + n])

    def carry(before: Array, point: int, image: int) -> list[int] | None:
        """An automorphism that respects the colours and carries ``point`` to ``image``."""
        start = np.concatenate([_individualise(before, point), _individualise(before, image)])
        after = refine(*twice, np.concatenate([plain, plain]), start)
        if not np.array_equal(np.sort(after[:n]), np.sort(after[n:])):
            return None
        nx.set_node_attributes(one, dict(enumerate(after[:n].tolist())), "colour")
        nx.set_node_attributes(two, dict(enumerate(after[n:].tolist())), "colour")
        found = isomorphism.vf2pp_isomorphism(one, two, node_label="colour")
        return None if found is None else [found[v] for v in range(n)]

    generators: list[list[int]] = []
    order = 1
    for before, point in zip(reversed(path[:-1]), reversed(base), strict=True):
        label = np.arange(n)
        failed: set[int] = set()
        for image in np.flatnonzero(before == before[point]).tolist():
            if label[image] == label[point] or int(label[image]) in failed:
                continue
            perm = carry(before, point, image)
            if perm is None:
                failed.add(int(label[image]))
            else:
                generators.append(perm)
                label = _orbit_labels(generators, n)
                failed = {int(label[node]) for node in failed}
        order *= int((label == label[point]).sum())
    return generators, _exact(order)


def _individualise(colour: Array, node: int) -> Array:
    colour = colour.copy()
    colour[node] = colour.max() + 1
    return colour


def _orbit_labels(generators: list[list[int]], n: int) -> Array:
    """The least node of the orbit of every node."""
    label = np.arange(n)
    while True:
        before = label.copy()
        for perm in generators:
            low = np.minimum(label, label[perm])
            label = low.copy()
            label[perm] = np.minimum(label[perm], low)
        label = label[label]
        if np.array_equal(before, label):
            return label


def _exact(order: int) -> dict[str, Array]:
    # Hexadecimal, because Python converts no more than 4300 decimal digits.
    return {"order": np.array(hex(int(order)))}


_SOLVERS = {"bliss": _bliss, "nauty": _nauty, "networkx": _networkx}


def main() -> None:
    """Answer one search on the standard input."""
    try:
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    except (ImportError, ValueError, OSError):
        # Windows knows no such limit, and a host may have set a lower one.
        pass
    # igraph loads what it would draw with, which takes ten times as long as the rest of it.
    sys.modules["matplotlib"] = None  # type: ignore[assignment]
    with np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False) as given:
        answer = search(given["edges"], given["colour"], int(given["points"]), str(given["solver"]))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **answer)
    sys.stdout.buffer.write(buffer.getvalue())


if __name__ == "__main__":
    main()
