"""PyG transforms: the second way to use a group, besides tied weights.

A message-passing network commutes with every permutation that preserves its graph and the labels
it is given. Labels that only the chosen group preserves, embedded and added to the input, make an
unmodified network equivariant to that group and to no more.

A graph comes as a PyG ``Data``, whose weights are ``edge_weight`` or a one-dimensional
``edge_attr``, or as anything else that :func:`gsym.as_graph` reads, which becomes a ``Data``.

The names ``cluster``, ``node_orbit`` and ``edge_orbit`` contain neither ``index`` nor ``batch``, so
that PyG stacks the labels of a batch of graphs without shifting them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform
from torch_geometric.transforms.rooted_subgraph import RootedSubgraphData

from gsym._ego import ego_networks, rooted_hash
from gsym._graphs import as_graph
from gsym._validate import check_edge_index, check_whole
from gsym.coarsening.propose import coarsen
from gsym.errors import GraphError, GroupError, PartitionError
from gsym.groups import Partition, PermutationGroup


class AddPartition(BaseTransform):
    """Add the cluster of every node as ``data.cluster``, int64 ``[n]``.

    Args:
        partition: One partition for every graph, which must have its number of nodes.
        method: Instead, the method of :func:`gsym.coarsening.hierarchy` that partitions each graph;
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


class EgoSubgraphs(BaseTransform):
    """Add the ego-network of every node: the induced subgraph of all nodes around it.

    The fields are those of PyG's ``RootedSubgraphData``: ``n_id``, the node of every entry of a
    subgraph; ``n_sub_batch``, its subgraph; ``e_id`` and ``e_sub_batch``, the same for edges; and
    ``sub_edge_index``, their ends among the entries. Subgraph i belongs to node i, also where it is
    empty. No matrix of all pairs of nodes is built.

    Args:
        num_hops: Longest path to the root, along the edges; 0 is the root alone.
        include_root: Count the root to its neighbourhood; without, it is left out.
        max_nodes: Largest subgraph; any size if left out.
        large: What becomes of larger ones: ``"error"``, or ``"shrink"``, which takes as many hops
            as fit, down to the root alone.

    Symmetry:
        Nodes: relabelling the graph relabels the subgraphs, also those that shrink.

    Raises:
        TypeError: ``data`` is no ``Data``.
        ValueError: ``num_hops`` below 0, ``max_nodes`` below 1, or an unknown ``large``.
        GraphError: No ``edge_index``, one out of range, or a subgraph above ``max_nodes``.

    Cost:
        Linear in the sum over all entries of the degree of their node.

    Example:
        >>> from torch_geometric.data import Data
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> data = EgoSubgraphs(num_hops=1)(Data(edge_index=path, num_nodes=3))
        >>> data.n_id.tolist(), data.n_sub_batch.tolist()
        ([0, 1, 0, 1, 2, 1, 2], [0, 0, 1, 1, 1, 2, 2])
    """

    def __init__(
        self,
        num_hops: int,
        include_root: bool = True,
        *,
        max_nodes: int | None = None,
        large: str = "error",
    ) -> None:
        self.num_hops = check_whole(num_hops, "num_hops")
        self.max_nodes = None if max_nodes is None else check_whole(max_nodes, "max_nodes")
        if self.num_hops < 0:
            raise ValueError(f"num_hops must not be negative; got {num_hops}")
        if self.max_nodes is not None and self.max_nodes < 1:
            raise ValueError(f"max_nodes must be at least 1; got {max_nodes}")
        if large not in ("error", "shrink"):
            raise ValueError(f'large must be "error" or "shrink"; got {large!r}')
        self.include_root, self.large = include_root, large

    def forward(self, data: Data) -> Data:
        """Return a copy of ``data`` with the fields added."""
        if not isinstance(data, Data):
            raise TypeError(f"data must be a torch_geometric Data; got {type(data).__name__}")
        if data.edge_index is None:
            raise GraphError("data has no edge_index to find neighbours by")
        edge_index = check_edge_index(data.edge_index, data.num_nodes)
        found = ego_networks(
            edge_index.cpu().numpy(),
            data.num_nodes,
            self.num_hops,
            include_root=self.include_root,
            max_nodes=self.max_nodes,
            shrink=self.large == "shrink",
        )
        result = EgoData.from_dict(data.to_dict())
        result.num_nodes = data.num_nodes
        fields = {
            "sub_edge_index": found.ends,
            "n_id": found.node,
            "e_id": found.edge,
            "n_sub_batch": found.owner,
            "e_sub_batch": found.edge_owner,
        }
        for name, value in fields.items():
            setattr(result, name, torch.from_numpy(value).to(edge_index.device))
        return result

    def __repr__(self) -> str:
        return f"EgoSubgraphs(num_hops={self.num_hops}, include_root={self.include_root})"


class EgoData(RootedSubgraphData):
    """A graph with one subgraph per node, some of which may be empty; it batches as PyG's does."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """What to add to a field in a batch for each graph before."""
        if key in ("n_sub_batch", "e_sub_batch"):
            return self.num_nodes
        return super().__inc__(key, value, *args, **kwargs)


class AddSubgraphKind(BaseTransform):
    """Add the kind of every ego-network as ``data.sub_kind``, int64 ``[n]``.

    :class:`gsym.nn.SPEN` gives the subgraphs of one kind weights of their own. ``fit`` finds the
    kinds of a training set; the rarest, and those it never saw, share kind 0.

    Args:
        by: ``"size"``, the number of nodes, as the authors of SPEN share their weights; or
            ``"automorphism"``, the subgraph up to isomorphisms that keep the root.
        num_kinds: Number of kinds, that of the rare ones included.

    Symmetry:
        Nodes: isomorphic subgraphs have one kind. With ``"automorphism"`` subgraphs that colour
        refinement from the root cannot tell apart share one, too.

    Raises:
        ValueError: An unknown ``by``, or ``num_kinds`` below 1.
        RuntimeError: Data before ``fit``.
        GraphError: Data without the fields of :class:`EgoSubgraphs`.

    Example:
        >>> from torch_geometric.data import Data
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> data = EgoSubgraphs(num_hops=1)(Data(edge_index=path, num_nodes=3))
        >>> AddSubgraphKind("size", num_kinds=3).fit([data])(data).sub_kind
        tensor([1, 2, 1])
    """

    def __init__(self, by: str = "size", *, num_kinds: int) -> None:
        if by not in ("size", "automorphism"):
            raise ValueError(f'by must be "size" or "automorphism"; got {by!r}')
        self.by, self.num_kinds = by, check_whole(num_kinds, "num_kinds")
        if self.num_kinds < 1:
            raise ValueError(f"num_kinds must be at least 1; got {num_kinds}")
        self._kinds: dict[int, int] | None = None

    def fit(self, dataset: Iterable[Data]) -> AddSubgraphKind:
        """Number the most frequent kinds of the ego-networks of a training set."""
        counts: Counter[int] = Counter()
        for data in dataset:
            counts.update(self._signatures(data).tolist())
        # Ties by signature, so that the order of the graphs does not matter.
        ranked = sorted(counts, key=lambda s: (-counts[s], s))[: self.num_kinds - 1]
        self._kinds = {signature: place for place, signature in enumerate(ranked, start=1)}
        return self

    def forward(self, data: Data) -> Data:
        """Add the kinds to ``data``."""
        if self._kinds is None:
            raise RuntimeError("fit the kinds on training data first, with .fit(dataset)")
        kinds = [self._kinds.get(s, 0) for s in self._signatures(data).tolist()]
        data.sub_kind = torch.tensor(kinds, dtype=torch.int64, device=data.n_id.device)
        return data

    def _signatures(self, data: Data) -> np.ndarray:
        """A number for the kind of every ego-network."""
        for name in ("n_id", "n_sub_batch", "sub_edge_index"):
            if getattr(data, name, None) is None:
                raise GraphError(f"data has no {name}; apply gsym.transforms.EgoSubgraphs first")
        owner = data.n_sub_batch.cpu().numpy()
        if self.by == "size":
            return np.bincount(owner, minlength=data.num_nodes)
        root = data.n_id.cpu().numpy() == owner
        return rooted_hash(owner, root, data.sub_edge_index.cpu().numpy(), data.num_nodes)

    def __repr__(self) -> str:
        return f"AddSubgraphKind({self.by!r}, num_kinds={self.num_kinds})"
