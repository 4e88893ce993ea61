"""Partition: which nodes belong together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsym._graphs import as_graph, exact_sums, weights_of
from gsym._validate import IntegerArray, check_labels, check_whole, integer_tensor
from gsym.errors import PartitionError
from gsym.groups._host import lives_on_cpu
from gsym.groups._record import read_record, record
from gsym.groups.orbits import Orbits


@lives_on_cpu
class Partition:
    """A partition of nodes ``0..n-1`` into numbered, non-empty clusters.

    Partitions of one node set form a lattice: :meth:`refines` is its order, :meth:`meet` the
    coarsest common refinement, :meth:`join` the finest common coarsening. The value is frozen
    and lives on the CPU: the tensors that it gives away are copies.

    Example:
        >>> p = Partition.from_labels([0, 0, 1, 1, 1])
        >>> p
        Partition(5 nodes in 2 clusters: 2 + 3)
        >>> p.refines(Partition.single(5))
        True
    """

    def __init__(self, labels: IntegerArray) -> None:
        self._labels = check_labels(labels)
        self._sizes = torch.bincount(self._labels)

    @classmethod
    def from_labels(
        cls, labels: IntegerArray, *, num_nodes: int | None = None, relabel: bool = False
    ) -> Partition:
        """Partition by one cluster number per node.

        Args:
            labels: Integers ``[n]``, each of ``0..k-1`` used at least once.
            num_nodes: Expected number of nodes, if known.
            relabel: Accept any integers and number them by first occurrence.

        Raises:
            PartitionError: Labels with a gap, negative, not integer, or of the wrong length;
                the message names the first bad node or label.
        """
        if relabel:
            raw = integer_tensor(labels, "labels", PartitionError)
            labels = Orbits.from_keys(raw).index if raw.numel() else raw
        return cls(check_labels(labels, num_nodes))

    @classmethod
    def from_clusters(
        cls, clusters: Sequence[Sequence[int]], *, num_nodes: int | None = None
    ) -> Partition:
        """Partition by lists of nodes, which must cover ``0..n-1`` once each.

        Raises:
            PartitionError: An empty cluster, a node listed twice, missing or out of range.

        Example:
            >>> Partition.from_clusters([[0, 3], [1, 2]]).labels.tolist()
            [0, 1, 1, 0]
        """
        if not isinstance(clusters, Iterable):
            raise TypeError(
                f"clusters must be lists of nodes, one for each; got {type(clusters).__name__}"
            )
        parts = [integer_tensor(c, f"cluster {i}", PartitionError) for i, c in enumerate(clusters)]
        empty = [i for i, part in enumerate(parts) if part.numel() == 0]
        if empty:
            raise PartitionError(f"cluster {empty[0]} is empty; leave it out")
        if not parts:
            raise PartitionError("a partition needs at least one node; got no clusters")
        nodes = torch.cat(parts)
        n = nodes.numel() if num_nodes is None else _positive(num_nodes)
        if int(nodes.min()) < 0 or int(nodes.max()) >= n:
            bad = int(nodes.min()) if int(nodes.min()) < 0 else int(nodes.max())
            raise PartitionError(f"clusters must cover nodes 0..{n - 1}; node {bad} is outside")
        counts = torch.bincount(nodes, minlength=n)
        if not bool((counts == 1).all()):
            bad = int((counts != 1).nonzero()[0])
            raise PartitionError(
                f"clusters must cover nodes 0..{n - 1} once each; "
                f"node {bad} is listed {int(counts[bad])} times"
            )
        labels = torch.empty(n, dtype=torch.int64)
        for i, part in enumerate(parts):
            labels[part] = i
        return cls(labels)

    @classmethod
    def singletons(cls, num_nodes: int) -> Partition:
        """The finest partition: every node alone."""
        return cls(torch.arange(_positive(num_nodes)))

    @classmethod
    def single(cls, num_nodes: int) -> Partition:
        """The coarsest partition: all nodes in one cluster."""
        return cls(torch.zeros(_positive(num_nodes), dtype=torch.int64))

    @classmethod
    def grid(cls, height: int, width: int, patch: int | tuple[int, int]) -> Partition:
        """Partition the pixels of an image, numbered row by row, into rectangular patches.

        Args:
            height: Rows of pixels.
            width: Columns of pixels.
            patch: Side of a square patch, or its ``(rows, columns)``; must divide the image.

        Example:
            >>> Partition.grid(2, 4, 2).labels.tolist()
            [0, 0, 1, 1, 0, 0, 1, 1]
        """
        height = check_whole(height, "height", PartitionError)
        width = check_whole(width, "width", PartitionError)
        sides = patch if isinstance(patch, tuple) else (patch, patch)
        rows, columns = (check_whole(side, "patch", PartitionError) for side in sides)
        if min(rows, columns, height, width) < 1 or height % rows or width % columns:
            raise PartitionError(
                f"patches of {rows}x{columns} pixels do not tile an image of {height}x{width}"
            )
        row = torch.arange(height) // rows
        column = torch.arange(width) // columns
        return cls((row[:, None] * (width // columns) + column).reshape(-1))

    @property
    def labels(self) -> Tensor:
        """Cluster of every node, int64 ``[n]``, a copy."""
        return self._labels.clone()

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self._labels.numel()

    @property
    def num_clusters(self) -> int:
        """Number of clusters."""
        return self._sizes.numel()

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of nodes in each cluster."""
        return tuple(self._sizes.tolist())

    @property
    def order(self) -> Tensor:
        """Nodes sorted by cluster, and by number within a cluster, int64 ``[n]``, a copy."""
        return self._order.clone()

    def clusters(self) -> list[Tensor]:
        """Nodes of each cluster in increasing order."""
        return list(torch.split(self.order, list(self.sizes)))

    def refines(self, other: Partition) -> bool:
        """Whether every cluster of this partition lies inside one cluster of ``other``."""
        self._check_same_nodes(other)
        first = other._labels[self._order[self._starts()]]
        return bool((other._labels == first[self._labels]).all())

    def meet(self, other: Partition) -> Partition:
        """The coarsest partition that refines both, clusters numbered by first occurrence."""
        self._check_same_nodes(other)
        return Partition(Orbits.from_keys(self._labels * other.num_clusters + other._labels).index)

    def join(self, other: Partition) -> Partition:
        """The finest partition that both refine, clusters numbered by first occurrence."""
        self._check_same_nodes(other)
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        links = coo_array(
            (
                np.ones(self.num_nodes, dtype=bool),
                (self._labels.numpy(), self.num_clusters + other._labels.numpy()),
            ),
            shape=(self.num_clusters + other.num_clusters,) * 2,
        )
        _, component = connected_components(links, directed=False)
        keys = torch.from_numpy(component.astype(np.int64))[self._labels]
        return Partition(Orbits.from_keys(keys).index)

    def quotient(self, edge_index: Any, edge_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The coarse graph: clusters as nodes, mean adjacency of a block as weight.

        Args:
            edge_index: Graph on the nodes, int64 ``[2, e]`` or what :func:`gsym.as_graph` reads.
            edge_weight: Weights ``[e]``; 1 where ``None``.

        Returns:
            Coarse ``edge_index`` ``[2, q]``, sorted, self-loops included, and weights ``[q]`` in
            the type of ``edge_weight``: ``sum of A[i, j] over the block / (c_i c_j)``, where the
            sum is exactly rounded in float64, whatever the order of the edges. A block whose edges
            sum up to 0 is an edge of weight 0.
        """
        graph = as_graph(edge_index, self.num_nodes, edge_weight)
        k = self.num_clusters
        ends = self._labels[graph.edge_index.cpu()]
        blocks, total = exact_sums((ends[0] * k + ends[1]).numpy(), weights_of(graph))
        keys = torch.from_numpy(blocks)
        coarse = torch.stack([keys // k, keys % k])
        area = self._sizes[coarse[0]] * self._sizes[coarse[1]]
        given = graph.edge_weight
        dtype = torch.float32 if given is None else given.dtype
        return coarse, (torch.from_numpy(total) / area).to(dtype)

    def fingerprint(self) -> bytes:
        """SHA-256 of the labels: equal for equal partitions with equal numbering."""
        return hashlib.sha256(b"partition" + self._labels.numpy().tobytes()).digest()

    def to_dict(self) -> dict[str, Any]:
        """The partition in numbers and strings, which JSON can hold.

        Example:
            >>> Partition.from_labels([0, 0, 1]).to_dict()
            {'type': 'Partition', 'format': 1, 'labels': [0, 0, 1]}
        """
        return record("Partition", labels=self._labels.tolist())

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Partition:
        """The partition that :meth:`to_dict` wrote.

        Raises:
            PartitionError: The dictionary holds something else, or another format.
            TypeError: ``given`` is no dictionary.
        """
        _, (labels,) = read_record(given, {"Partition": ("labels",)}, PartitionError)
        return cls(labels)

    @cached_property
    def _order(self) -> Tensor:
        return torch.argsort(self._labels, stable=True)

    def _starts(self) -> Tensor:
        return torch.cumsum(self._sizes, 0) - self._sizes

    def _check_same_nodes(self, other: Partition) -> None:
        if not isinstance(other, Partition):
            raise TypeError(
                f"partitions are compared with a Partition; got {type(other).__name__}; make one "
                "with Partition.from_labels"
            )
        if self.num_nodes != other.num_nodes:
            raise PartitionError(
                f"partitions of {self.num_nodes} and of {other.num_nodes} nodes cannot be compared"
            )

    def __eq__(self, other: object) -> bool:
        """Equal clusters with equal numbers."""
        if not isinstance(other, Partition):
            return NotImplemented
        return torch.equal(self._labels, other._labels)

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the labels alone; the rest follows from them."""
        return Partition, (self._labels,)

    def __repr__(self) -> str:
        counts = Counter(self.sizes)
        if len(counts) == 1:
            size, k = next(iter(counts.items()))
            what = f"{k} cluster{'s' * (k > 1)} of {size}"
        elif self.num_clusters <= 8:
            what = f"{self.num_clusters} clusters: " + " + ".join(map(str, self.sizes))
        else:
            what = f"{self.num_clusters} clusters of {min(self.sizes)} to {max(self.sizes)}"
        return f"Partition({self.num_nodes} nodes in {what})"


def _positive(num_nodes: int) -> int:
    num_nodes = check_whole(num_nodes, "num_nodes", PartitionError)
    if num_nodes < 1:
        raise PartitionError(f"a partition needs at least one node; got num_nodes={num_nodes}")
    return num_nodes
