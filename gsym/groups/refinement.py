"""Colour refinement: the coarsest equitable partition of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsym._graphs import as_graph, coalesce
from gsym._validate import IntegerArray, check_node_labels
from gsym.errors import PartitionError
from gsym.groups._search import Array, refine, row_numbers, runs
from gsym.groups.orbits import Orbits
from gsym.groups.partition import Partition


def equitable_partition(
    edge_index: Any,
    num_nodes: int | None = None,
    edge_weight: Tensor | None = None,
    node_labels: IntegerArray | None = None,
    start: Partition | None = None,
) -> Partition:
    """The coarsest equitable partition: what no message passing on the graph can tell apart.

    Nodes of one cluster have equal labels and see equally many neighbours in each cluster, edge by
    edge with equal weights in both directions. Its clusters are unions of orbits of the
    automorphism group, because an automorphism cannot change what a node sees.

    Args:
        edge_index: The graph, int64 ``[2, e]`` or what :func:`gsym.as_graph` reads. Directions and
            self-loops count; parallel edges are one edge with their summed weight.
        num_nodes: Number of nodes ``n``, which an ``edge_index`` does not tell.
        edge_weight: Weights ``[e]``, compared exactly; 1 where ``None``. An edge of weight 0 is
            an edge.
        node_labels: Integers ``[n]`` that the partition respects.
        start: A partition to refine further; all nodes in one cluster where ``None``.

    Returns:
        Clusters numbered by first occurrence.

    Raises:
        GraphError: The graph, its weights or its labels do not describe a graph on ``n`` nodes.
        PartitionError: ``start`` has another number of nodes.

    Cost:
        ``O((n + e) log n)`` work in as many vectorised rounds as the colours need to travel, at
        most ``n``; long paths are the slowest.

    Example:
        >>> path = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4], [1, 0, 2, 1, 3, 2, 4, 3]])
        >>> equitable_partition(path, 5).labels.tolist()
        [0, 1, 2, 1, 0]

    Reference:
        One-dimensional Weisfeiler-Leman refinement; processing all but the largest part of a
        split cell is due to Hopcroft, for graphs to Cardon and Crochemore (from memory).
    """
    graph = ColouredGraph.from_tensors(edge_index, num_nodes, edge_weight, node_labels)
    if start is not None:
        if not isinstance(start, Partition):
            raise TypeError(f"start must be a Partition; got {type(start).__name__}")
        if start.num_nodes != graph.num_nodes:
            raise PartitionError(
                f"start has {start.num_nodes} nodes but the graph has {graph.num_nodes}"
            )
        graph = graph.with_colour(row_numbers(graph.colour, start.labels.numpy()))
    return Partition(Orbits.from_keys(torch.from_numpy(graph.refined())).index)


@dataclass(frozen=True)
class ColouredGraph:
    """A graph as every step here wants it: who sees whom and how, on coloured nodes.

    An entry says that ``owner`` sees ``neighbour`` under ``code``, which stands for the weights of
    the arcs both ways; entries come in pairs, are no loops, and are sorted by owner and neighbour.

    Attributes:
        owner: int64 ``[m]``.
        neighbour: int64 ``[m]``.
        code: int64 ``[m]``.
        reverse: The code of the entry the other way, by code, int64.
        colour: Colours ``0..k-1`` of the nodes, standing for labels and loops, int64 ``[n]``.
    """

    owner: Array
    neighbour: Array
    code: Array
    reverse: Array
    colour: Array

    @classmethod
    def from_tensors(
        cls,
        edge_index: Any,
        num_nodes: int | None,
        edge_weight: Tensor | None,
        node_labels: IntegerArray | None,
    ) -> ColouredGraph:
        """Check the input and read it."""
        graph = as_graph(edge_index, num_nodes, edge_weight)
        n = graph.num_nodes
        colour = np.zeros(n, dtype=np.int64)
        if node_labels is not None:
            colour = row_numbers(check_node_labels(node_labels, n).numpy())

        keys, weight = coalesce(graph)
        kind = 1 + row_numbers(weight)
        loop = keys // n == keys % n
        looped = np.zeros(n, dtype=np.int64)
        looped[keys[loop] % n] = kind[loop]
        keys, kind = keys[~loop], kind[~loop]

        back = keys % n * n + keys // n
        # numpy's union1d hashes, which takes seconds for a million keys that lie close together.
        pairs = np.sort(np.concatenate([keys, back]))
        pairs = pairs[runs(pairs)]
        there, here = np.zeros(pairs.size, dtype=np.int64), np.zeros(pairs.size, dtype=np.int64)
        there[np.searchsorted(pairs, keys)] = kind
        here[np.searchsorted(pairs, back)] = kind
        base = int(kind.max(initial=0)) + 1
        types, code = np.unique(there * base + here, return_inverse=True)
        reverse = np.searchsorted(types, types % base * base + types // base)
        return cls(pairs // n, pairs % n, code.reshape(-1), reverse, row_numbers(colour, looped))

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.colour.size

    def with_colour(self, colour: Array) -> ColouredGraph:
        """The same graph on other colours."""
        return ColouredGraph(self.owner, self.neighbour, self.code, self.reverse, colour)

    def refined(self) -> Array:
        """Colours of the coarsest equitable partition that refines the colours."""
        return refine(self.owner, self.neighbour, self.code, self.colour)
