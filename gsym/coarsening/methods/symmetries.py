"""Exact symmetries of a graph: twins, orbits of automorphisms, stable colours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gsym._validate import warn
from gsym.coarsening._request import Method, Request
from gsym.coarsening.hierarchy import Hierarchy
from gsym.groups import Partition, automorphisms, equitable_partition
from gsym.groups.automorphism import twin_classes
from gsym.groups.refinement import ColouredGraph


def twin_partition(
    edge_index: Any, num_nodes: int | None = None, edge_weight: Tensor | None = None
) -> Partition:
    """Clusters of nodes whose exchange is a symmetry of the graph.

    Two nodes are twins when they have equal neighbourhoods (open twins), or would have them if
    each were its own neighbour as it is the other's (closed twins). That is an equivalence, and
    ``ClusterGroup(twin_partition(...))`` preserves the graph exactly, which no coarser partition
    does.

    Args:
        edge_index: Graph, int64 ``[2, e]`` or what :func:`gsym.as_graph` reads; directions and
            self-loops count, and parallel edges are one edge with their summed weight.
        num_nodes: Number of nodes, which an ``edge_index`` does not tell.
        edge_weight: Weights ``[e]``, compared exactly. An edge of weight 0 is an edge.

    Symmetry:
        Nodes: the group of the clusters preserves the graph.

    Cost:
        ``O(e log e)``: neighbourhoods are compared by 64-bit hashes, and the answer in full.

    Example:
        >>> star = torch.tensor([[0, 0, 0], [1, 2, 3]])
        >>> twin_partition(star, 4).labels.tolist()
        [0, 1, 1, 1]
    """
    graph = ColouredGraph.from_tensors(edge_index, num_nodes, edge_weight, None)
    return Partition.from_labels(torch.from_numpy(twin_classes(graph)[0]))


def _twins(request: Request) -> Hierarchy:
    return request.chain([twin_partition(request.exact_graph)])


def _automorphism(request: Request) -> Hierarchy:
    group = automorphisms(request.exact_graph)
    if not group.exact:
        warn("the search for symmetries ran out of time; the orbits are those of colour refinement")
    return request.chain([Partition(group.node_orbits().index)])


def _equitable(request: Request) -> Hierarchy:
    return request.chain([equitable_partition(request.exact_graph)])


METHODS = {
    "twins": Method(_twins, "nodes that any permutation may exchange", "3", needs=("edge_index",)),
    "automorphism": Method(
        _automorphism, "orbits of the exact symmetries", "3", needs=("edge_index",)
    ),
    "equitable": Method(
        _equitable, "stable colours of colour refinement", "3", needs=("edge_index",)
    ),
}
