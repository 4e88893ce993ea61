"""Automorphisms: the exact symmetries of a graph."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
from itertools import count
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsym import _child
from gsym._validate import IntegerArray
from gsym.errors import SolverUnavailableError
from gsym.groups import _search
from gsym.groups._search import Array, group_sums, mix, row_numbers, runs
from gsym.groups.chain import StabiliserChain
from gsym.groups.cluster import MAX_GENERATOR_ENTRIES, ClusterGroup
from gsym.groups.orbits import Orbits
from gsym.groups.partition import Partition
from gsym.groups.permutation import PermutationGroup
from gsym.groups.refinement import ColouredGraph

# Best first; the package that each needs.
SOLVERS = {"bliss": "igraph", "nauty": "pynauty", "networkx": "networkx"}


class _ExhaustedError(Exception):
    """The search ran out of time or memory."""


def automorphisms(
    edge_index: Any,
    num_nodes: int | None = None,
    edge_weight: Tensor | None = None,
    node_labels: IntegerArray | None = None,
    time_budget: float = 10.0,
    *,
    solver: str = "auto",
) -> PermutationGroup:
    """The automorphism group: all permutations of the nodes that map the graph onto itself.

    Twins come first: nodes that may be exchanged while all others stay, because their
    neighbourhoods are equal. Each class of ``c`` twins is a factor ``S_c``, found in near-linear
    time and kept in closed form, and the quotient may have twins again. A solver searches what is
    left, on the nodes that colour refinement cannot tell apart.

    Args:
        edge_index: The graph, int64 ``[2, e]`` or what :func:`gsym.as_graph` reads, whose
            ``names`` tell the order of the nodes. Directions and self-loops count; parallel edges
            are one edge with their summed weight.
        num_nodes: Number of nodes ``n``, which an ``edge_index`` does not tell.
        edge_weight: Weights ``[e]``, compared exactly; 1 where ``None``. An edge of weight 0 is
            an edge.
        node_labels: Integers ``[n]``; a node is mapped to nodes with its label only.
        time_budget: Seconds that the solver may take, the start of its process included; twins
            and refinement come before.
        solver: ``"bliss"`` (python-igraph) or ``"nauty"`` (pynauty), both of which the extra
            ``sym`` installs, ``"networkx"``, which is always there and good to some hundred
            nodes, or ``"auto"``, the first of these that is installed.

    Returns:
        A group with ``exact=True``: a :class:`ClusterGroup` where there are twins, with exchanges
        of whole classes as its ``swaps``. When the search runs out of time or of memory (4 GiB),
        the :class:`ClusterGroup` of :func:`equitable_partition` with ``exact=False``; it contains
        every automorphism and usually more.

    Raises:
        TypeError: ``num_nodes`` or ``time_budget`` is no number.
        GraphError: The graph, its weights or its labels do not describe a graph on ``n`` nodes.
        ValueError: ``time_budget`` is not positive, or the solver unknown.
        SolverUnavailableError: The solver that was named is not installed.

    Cost:
        ``O((n + e) log n)`` and the search, which is exponential at worst and runs in a process
        of its own, killed at the deadline. It starts only if refinement leaves something open.

    Example:
        >>> star = torch.stack([torch.zeros(4, dtype=torch.long), torch.arange(1, 5)])
        >>> automorphisms(star, 5)
        ClusterGroup(S_1 x S_4 on 5 nodes)
        >>> cycle = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
        >>> automorphisms(cycle, 6, time_budget=60)
        PermutationGroup(<1 generator, order 6> on 6 nodes)

    Reference:
        McKay and Piperno, Practical graph isomorphism II (nauty); Junttila and Kaski, bliss (from
        memory). The group of the quotient acting on twin classes is the standard reduction.
    """
    if isinstance(time_budget, bool) or not isinstance(time_budget, Real):
        raise TypeError(f"time_budget must be a number of seconds; got {time_budget!r:.80}")
    if not time_budget > 0:
        raise ValueError(f"time_budget must be a positive number of seconds; got {time_budget}")
    solver = _choose(solver)
    graph = ColouredGraph.from_tensors(edge_index, num_nodes, edge_weight, node_labels)
    try:
        return _automorphisms(graph, float(time_budget), solver)
    except _ExhaustedError:
        cells = Orbits.from_keys(torch.from_numpy(graph.refined())).index
        return ClusterGroup(Partition(cells), exact=False)


def _choose(solver: str) -> str:
    """The solver to use, which is installed."""
    if solver == "auto":
        return next(name for name, package in SOLVERS.items() if importlib.util.find_spec(package))
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of auto, {', '.join(SOLVERS)}; got {solver!r}")
    if importlib.util.find_spec(SOLVERS[solver]) is None:
        raise SolverUnavailableError(
            f'the solver "{solver}" needs the package {SOLVERS[solver]}, which the extra "sym" '
            'installs: pip install "gsym[sym]"; or leave it to solver="auto"'
        )
    return solver


def _automorphisms(graph: ColouredGraph, time_budget: float, solver: str) -> PermutationGroup:
    classes, quotient = twin_classes(graph)
    if quotient.num_nodes == graph.num_nodes:
        return _twin_free(graph, time_budget, solver)
    # A permutation of the classes that the quotient allows carries the t-th node of a class to
    # the t-th of its image; with the permutations within classes that is every automorphism.
    swaps = _automorphisms(quotient, time_budget, solver)
    return ClusterGroup(Partition.from_labels(torch.from_numpy(classes)), swaps=swaps)


def twin_classes(graph: ColouredGraph) -> tuple[Array, ColouredGraph]:
    """Class of every node, numbered by first occurrence, and the graph of the classes."""
    for salt in count():
        classes = _twins_by_hash(graph, salt)
        quotient = _quotient(graph, classes)
        # Hashes of unequal neighbourhoods may coincide; then no quotient exists.
        if quotient is not None:
            return classes, quotient
    raise AssertionError("unreachable")


def _twins_by_hash(graph: ColouredGraph, salt: int) -> Array:
    """Classes of nodes whose hashed neighbourhoods agree, each other left aside."""
    n = graph.num_nodes
    row = mix(salt, graph.colour)
    owner, total = group_sums(graph.owner, mix(salt, graph.neighbour, graph.code))
    row[owner] += total
    # Twins that do not see each other see the same nodes.
    order = np.argsort(row, kind="stable")
    same = row[order][1:] == row[order][:-1]
    apart = np.stack([order[1:][same], order[:-1][same]])
    # Twins that see each other agree once each sees itself as it sees the other.
    one, two, code = graph.owner, graph.neighbour, graph.code
    joined = row[one] + mix(salt, one, code) == row[two] + mix(salt, two, code)
    links = np.concatenate([apart, np.stack([one[joined], two[joined]])], axis=1)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    matrix = coo_array((np.ones(links.shape[1], dtype=bool), tuple(links)), shape=(n, n))
    _, classes = connected_components(matrix, directed=False)
    return Orbits.from_keys(torch.from_numpy(classes.astype(np.int64))).index.numpy()


def _quotient(graph: ColouredGraph, classes: Array) -> ColouredGraph | None:
    """The graph of the classes, or None unless every block of classes is empty or of one code."""
    size = np.bincount(classes)
    k = size.size
    if k == graph.num_nodes:
        return graph
    _, model = np.unique(classes, return_index=True)
    block = classes[graph.owner] * k + classes[graph.neighbour]
    order = np.argsort(block, kind="stable")
    head = runs(block[order])
    length = np.diff(np.append(head, order.size))
    code = graph.code[order]
    row, column = block[order][head] // k, block[order][head] % k
    full = size[row] * (size[column] - (row == column))
    if (
        not np.array_equal(length, full)
        or not np.array_equal(code, np.repeat(code[head], length))
        or not np.array_equal(graph.colour, graph.colour[model][classes])
    ):
        return None
    inner = np.full(k, -1)
    own = row == column
    inner[row[own]] = code[head][own]
    return ColouredGraph(
        row[~own],
        column[~own],
        code[head][~own],
        graph.reverse,
        row_numbers(graph.colour[model], size, inner),
    )


def _twin_free(graph: ColouredGraph, time_budget: float, solver: str) -> PermutationGroup:
    """The group of a graph without twins, by search on the nodes that refinement leaves open."""
    n = graph.num_nodes
    cell = graph.refined()
    nodes = np.flatnonzero(np.bincount(cell)[cell] > 1)
    if not nodes.size:
        return PermutationGroup.trivial(n)
    edges, colour = _plain_graph(graph, cell, nodes)
    found = _in_worker(edges, colour, nodes.size, solver, time_budget)
    images = torch.from_numpy(found["generators"])
    if images.size(0) * n > MAX_GENERATOR_ENTRIES:
        raise _ExhaustedError
    generators = torch.arange(n, device="cpu").repeat(images.size(0), 1)
    generators[:, torch.from_numpy(nodes)] = torch.from_numpy(nodes)[images]
    if "order" in found:
        order = int(str(found["order"]), 16)
    else:
        order = StabiliserChain(generators, float(found["log_order"])).order()
    return (
        PermutationGroup._of_order(n, generators, order)
        if order > 1
        else PermutationGroup.trivial(n)
    )


def _plain_graph(graph: ColouredGraph, cell: Array, nodes: Array) -> tuple[Array, Array]:
    """A simple undirected graph with coloured vertices that has the automorphisms of ``graph``.

    Vertex ``i`` stands for ``nodes[i]`` and determines its copies in further layers. What all of a
    cell sees of another is left out; what remains is numbered within each pair of cells, and a
    number's binary digits say in which layers the edge is drawn. Where directions matter within a
    cell, an arc runs from a layer of tails to a layer of heads.

    Args:
        graph: A graph without twins.
        cell: Its equitable partition, int64 ``[n]``.
        nodes: The nodes of cells of two or more, int64 ``[p]``.

    Returns:
        Edges ``[2, m]``, each once, and colours ``[p * layers]``.
    """
    k, p = int(cell.max()) + 1, nodes.size
    size = np.bincount(cell)
    vertex = np.full(graph.num_nodes, -1)
    vertex[nodes] = np.arange(p)
    block = cell[graph.owner] * k + cell[graph.neighbour]
    # In an equitable partition a block of one code is complete if it has all its entries.
    names, place, length = np.unique(block, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    row, column = names // k, names % k
    low = np.full(names.size, graph.reverse.size)
    high = np.full(names.size, -1)
    np.minimum.at(low, place, graph.code)
    np.maximum.at(high, place, graph.code)
    constant = (low == high) & (length == size[row] * (size[column] - (row == column)))

    across = cell[graph.owner] < cell[graph.neighbour]
    within = cell[graph.owner] == cell[graph.neighbour]
    back = graph.reverse[graph.code] if graph.code.size else graph.code
    arc = within & (graph.code < back)
    once = across | arc | (within & (graph.code == back) & (graph.owner < graph.neighbour))
    kept = once & ~constant[place]
    tail, head = vertex[graph.owner[kept]], vertex[graph.neighbour[kept]]
    both, one_way = ~arc[kept], bool(arc[kept].any())
    codes, kind = np.unique(
        place[kept] * graph.reverse.size + graph.code[kept], return_inverse=True
    )
    of = codes // max(graph.reverse.size, 1)
    first = runs(of)
    rank = np.arange(codes.size) - np.repeat(first, np.diff(np.append(first, codes.size)))
    kind = 1 + rank[kind.reshape(-1)]

    digits = int(kind.max(initial=1)).bit_length()
    layers = 1 + 2 * digits if one_way else digits
    drawn = []
    for digit in range(digits):
        here = (kind >> digit & 1).astype(bool)
        if one_way:
            out, into = p * (1 + 2 * digit), p * (2 + 2 * digit)
            drawn.append(np.stack([tail[here] + out, head[here] + into]))
            drawn.append(np.stack([head[here & both] + out, tail[here & both] + into]))
        else:
            drawn.append(np.stack([tail[here], head[here]]) + p * digit)
    copies = np.arange(p, p * layers)
    drawn.append(np.stack([copies % p, copies]))
    colours = cell[nodes] + k * np.arange(layers)[:, None]
    return np.concatenate(drawn, axis=1), row_numbers(colours.reshape(-1))


def _in_worker(
    edges: Array, colour: Array, points: int, solver: str, time_budget: float
) -> dict[str, Array]:
    """:func:`gsym.groups._search.search` in a process of its own, killed at the deadline."""
    question = io.BytesIO()
    np.savez(question, edges=edges, colour=colour, points=points, solver=solver)
    # Threads would reserve memory that counts against the worker's limit.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            _child.command(Path(_search.__file__).resolve()),
            input=question.getvalue(),
            capture_output=True,
            timeout=None if time_budget == float("inf") else time_budget,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as cause:
        raise _ExhaustedError from cause
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        # What is killed by a signal has met the memory limit in a library that checks for none.
        if done.returncode < 0 or (said and "memory" in said[-1].lower()):
            raise _ExhaustedError
        raise RuntimeError(
            f'the solver "{solver}" failed: {said[-1] if said else "no message"}; '
            f"try another of {', '.join(SOLVERS)}"
        )
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as answer:
        return {name: answer[name] for name in answer.files}
