"""PyG transforms: the second way to use a group, beside tied weights.

A message-passing network commutes with every permutation that preserves its graph and the labels
it is given. Labels that only the chosen group preserves, embedded and added to the input, make an
unmodified network equivariant to that group and to no more.

A graph comes as a PyG ``Data``, whose weights are ``edge_weight`` or a one-dimensional
``edge_attr``, or as anything else that :func:`gsym.as_graph` reads, which becomes a ``Data``.

The names ``cluster``, ``node_orbit`` and ``edge_orbit`` contain neither ``index`` nor ``batch``, so
that PyG stacks the labels of a batch of graphs without shifting them.
"""

from __future__ import annotations

from typing import Any

from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from gsym._graphs import as_graph
from gsym.coarsening.cluster import coarsen
from gsym.groups import GraphError, GroupError, Partition, PartitionError, PermutationGroup


class AddPartition(BaseTransform):
    """Add the cluster of every node as ``data.cluster``, int64 ``[n]``.

    Args:
        partition: One partition for every graph, which must have its number of nodes.
        method: Instead, the method of :func:`gsym.coarsening.coarsen` that partitions each graph;
            cluster numbers of different graphs then have nothing in common.
        k: Number of clusters, with ``method`` only.
        **options: Further arguments of ``coarsen``.

    Symmetry:
        Nodes: a network that is equivariant to all permutations and sees ``cluster`` commutes with
        the permutations within clusters that preserve the graph: with all of
        ``ClusterGroup(partition)`` where ``group.preserves(edge_index)``. A permutation that mixes
        clusters changes its output.

    Raises:
        TypeError: ``partition`` is no Partition, or ``data`` no graph.
        ValueError: Both or neither of ``partition`` and ``method``; ``method`` without ``k``.
        PartitionError: The graph has another number of nodes than the partition.
        GraphError: ``data`` has no edges to partition by.

    Example:
        >>> from torch_geometric.data import Data
        >>> data = Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]), num_nodes=3)
        >>> AddPartition(Partition.from_labels([0, 0, 1]))(data).cluster
        tensor([0, 0, 1])

    Reference:
        Goel, Lim, Lawrence, Jegelka, Huang, Any-Subgroup Equivariant Networks via Symmetry
        Breaking, arXiv 2603.19486: a reconstruction from its abstract; the labels of clusters are
        the simplest of its symmetry-breaking inputs.
    """

    def __init__(
        self,
        partition: Partition | None = None,
        *,
        method: str | None = None,
        k: int | None = None,
        **options: Any,
    ) -> None:
        if (partition is None) == (method is None):
            raise ValueError(
                "AddPartition takes either a partition or method= and k=; "
                f"got partition={partition!r} and method={method!r}"
            )
        if partition is not None and not isinstance(partition, Partition):
            raise TypeError(
                f"expected a Partition; got {type(partition).__name__}; "
                "make one with Partition.from_labels(labels)"
            )
        if (method is None) != (k is None):
            raise ValueError(
                f"method= needs k=, the number of clusters, and k= needs method=; "
                f"got method={method!r} and k={k!r}"
            )
        if options and method is None:
            raise ValueError(f"{', '.join(options)} would be passed to a method, but none is named")
        self.partition, self.method, self.k, self.options = partition, method, k, options

    def forward(self, data: Any) -> Data:
        """Return ``data`` with its clusters; other graphs become a ``Data`` first."""
        data = _as_data(data)
        num_nodes = _num_nodes(data)
        partition = self.partition
        if partition is None:
            assert self.method is not None and self.k is not None
            # Families find only the levels that they are asked for.
            options = {"levels": [self.k], **self.options}
            graph = as_graph(data)
            hierarchy = coarsen(
                graph.edge_index, num_nodes, graph.edge_weight, method=self.method, **options
            )
            partition = hierarchy[self.k]
        if partition.num_nodes != num_nodes:
            raise PartitionError(
                f"the partition has {partition.num_nodes} nodes but the graph has {num_nodes}"
            )
        data.cluster = partition.labels.to(_device(data))
        return data

    def __repr__(self) -> str:
        what = (
            repr(self.partition) if self.method is None else f"method={self.method!r}, k={self.k}"
        )
        return f"AddPartition({what})"


class AddOrbits(BaseTransform):
    """Add a group's orbits: ``data.node_orbit`` ``[n]`` and ``data.edge_orbit`` ``[e]``, int64.

    Args:
        group: Acts on the nodes of every graph that is transformed; for example
            ``automorphisms(...)`` or ``ClusterGroup(partition)``.

    Symmetry:
        Nodes: a network that is equivariant to all permutations and sees both labels commutes with
        the elements of the group that preserve the graph: with all of it where
        ``group.preserves(edge_index)``. It commutes with permutations outside of the group that
        preserve the graph and both labels, too: orbits on edges determine a group up to what
        pairs without an edge would tell apart, and at best up to its 2-closure.

    Raises:
        TypeError: ``group`` is no PermutationGroup, or ``data`` no graph.
        GroupError: The graph has another number of nodes than the group.
        GraphError: ``data`` has no ``edge_index``.

    Cost:
        :meth:`PermutationGroup.edge_orbits` for each graph.

    Example:
        >>> from torch_geometric.data import Data
        >>> cycle = torch.tensor([[0, 1, 2, 1, 2, 0], [1, 2, 0, 0, 1, 2]])
        >>> turn = PermutationGroup.from_cycles(3, [(0, 1, 2)])
        >>> AddOrbits(turn)(Data(edge_index=cycle, num_nodes=3)).edge_orbit
        tensor([0, 0, 0, 1, 1, 1])

    Reference:
        As :class:`AddPartition`.
    """

    def __init__(self, group: PermutationGroup) -> None:
        if not isinstance(group, PermutationGroup):
            raise TypeError(f"group must be a PermutationGroup; got {type(group).__name__}")
        self.group = group

    def forward(self, data: Any) -> Data:
        """Return ``data`` with its orbits; other graphs become a ``Data`` first."""
        data = _as_data(data)
        num_nodes = _num_nodes(data)
        if num_nodes != self.group.num_nodes:
            raise GroupError(
                f"the group acts on {self.group.num_nodes} nodes but the graph has {num_nodes}"
            )
        device = _device(data)
        edge_orbit = self.group.edge_orbits(data).index.to(device)
        data.node_orbit = self.group.node_orbits().index.to(device)
        data.edge_orbit = edge_orbit
        return data

    def __repr__(self) -> str:
        return f"AddOrbits({self.group!r})"


def _as_data(graph: Any) -> Data:
    """A ``Data`` as it came, and other graphs as one, with the names of their nodes as ``name``."""
    if isinstance(graph, Data):
        return graph
    try:
        found = as_graph(graph)
    except TypeError as cause:
        raise TypeError(
            "expected a graph of NetworkX, SciPy or NumPy, or a torch_geometric Data; got "
            f"{type(graph).__name__}"
        ) from cause
    data = Data(edge_index=found.edge_index, num_nodes=found.num_nodes)
    if found.edge_weight is not None:
        data.edge_weight = found.edge_weight
    if found.names is not None:
        data.name = list(found.names)
    return data


def _num_nodes(data: Data) -> int:
    if data.num_nodes is None:
        raise GraphError("data does not say how many nodes it has; set data.num_nodes")
    return int(data.num_nodes)


def _device(data: Data) -> Any:
    reference = data.edge_index if data.edge_index is not None else data.x
    return None if reference is None else reference.device
