"""Hierarchies: partitions of one node set from single nodes to one cluster, as values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsym._graphs import as_graph
from gsym._validate import check_whole, integer_tensor
from gsym.coarsening.coarsening import Coarsening
from gsym.errors import ClusteringError
from gsym.groups import Partition


class Hierarchy:
    """Partitions of one node set: levels from the trivial group to S_n.

    Usually a chain in which every partition refines the next, kept as ``n - 1`` merges whatever
    the number of levels. Methods whose answers do not nest give a *family*: the same access by
    number of clusters, ``nested=False``, and no merges. Both ends, all nodes alone and one
    cluster, belong to every hierarchy. Clusters are numbered by first occurrence.

    Build one with :func:`gsym.coarsen`, :meth:`from_merges` or :meth:`from_partitions`.

    Attributes:
        num_nodes: Number of nodes n.
        edge_index: The graph, int64 ``[2, e]``, or ``None``.
        edge_weight: Its weights ``[e]``, or ``None``.
        names: What the nodes are called by number, where the graph came with names, as those of
            NetworkX do; else ``None``.
        method: What made the partitions.

    Example:
        >>> h = Hierarchy.from_merges(4, [[0, 1], [2, 3], [4, 5]], [1.0, 1.0, 3.0])
        >>> h
        Hierarchy(4 nodes, nested, 4 levels: 4, 3, 2, 1)
        >>> h[2].labels.tolist()
        [0, 0, 1, 1]
        >>> h.newick()
        '((0:1,1:1):2,(2:1,3:1):2);'
    """

    def __init__(
        self,
        num_nodes: int,
        levels: Sequence[int],
        *,
        merges: tuple[Tensor, Tensor] | None,
        family: dict[int, Partition],
        edge_index: Any,
        edge_weight: Tensor | None,
        method: str,
    ) -> None:
        graph = None if edge_index is None else as_graph(edge_index, num_nodes, edge_weight)
        self.num_nodes = num_nodes
        self._levels = levels
        self.edge_index = None if graph is None else graph.edge_index
        self.edge_weight = None if graph is None else graph.edge_weight
        self.names = None if graph is None else graph.names
        self.method = method
        self._merges, self._family = merges, family

    @classmethod
    def from_merges(
        cls,
        num_nodes: int,
        merges: object,
        heights: object,
        *,
        edge_index: Any = None,
        edge_weight: Tensor | None = None,
        levels: Sequence[int] | None = None,
        method: str = "merges",
    ) -> Hierarchy:
        """Chain that merges two clusters at a time.

        Args:
            num_nodes: Number of nodes n.
            merges: Integers ``[n - 1, 2]`` as in a SciPy linkage: clusters below n are nodes, and
                merge i makes cluster ``n + i``.
            heights: Height of each merge ``[n - 1]``, in units of the method.
            edge_index: Graph on the nodes, ``[2, e]`` or what :func:`gsym.as_graph` reads.
            edge_weight: Its weights.
            levels: Numbers of clusters to offer besides n and 1; all by default.
            method: Name of what made the merges.

        Raises:
            ClusteringError: Merges that do not end in one cluster, a cluster merged twice or
                before it exists, or levels out of range.
        """
        n = _positive(num_nodes)
        pairs = integer_tensor(merges, "merges", ClusteringError)
        pairs = pairs.view(0, 2) if pairs.numel() == 0 else pairs
        height = torch.as_tensor(heights, dtype=torch.float64).detach().cpu().reshape(-1)
        _check_merges(n, pairs, height)
        offered: Sequence[int] = range(n, 0, -1)
        if levels is not None:
            offered = sorted({n, 1, *check_levels(levels, n)}, reverse=True)
        return cls(
            n,
            offered,
            merges=(pairs, height),
            family={},
            edge_index=edge_index,
            edge_weight=edge_weight,
            method=method,
        )

    @classmethod
    def from_partitions(
        cls,
        partitions: Sequence[Partition],
        *,
        edge_index: Any = None,
        edge_weight: Tensor | None = None,
        nested: bool = True,
        method: str = "partitions",
    ) -> Hierarchy:
        """Chain or family of given partitions, fine to coarse; both ends are added.

        Args:
            partitions: Partitions of the same nodes, no two with equally many clusters.
            edge_index: Graph on the nodes, ``[2, e]`` or what :func:`gsym.as_graph` reads.
            edge_weight: Its weights.
            nested: Whether each refines the next; it is checked. The heights of a chain count
                its steps: 1 for merges within the first partition.
            method: Name of what made the partitions.

        Raises:
            ClusteringError: No partitions, different node sets, equally many clusters twice, or a
                partition that does not refine the next although ``nested``.

        Example:
            >>> Hierarchy.from_partitions([Partition.grid(4, 4, 2)])
            Hierarchy(16 nodes, nested, 3 levels: 16, 4, 1)
        """
        if not partitions:
            raise ClusteringError("a hierarchy needs at least one partition; got none")
        n = partitions[0].num_nodes
        found: dict[int, Partition] = {}
        for partition in (Partition.singletons(n), *partitions, Partition.single(n)):
            k = partition.num_clusters
            if partition.num_nodes != n:
                raise ClusteringError(
                    f"partitions of {n} and of {partition.num_nodes} nodes make no hierarchy"
                )
            numbered = Partition.from_labels(partition.labels, relabel=True)
            if found.setdefault(k, numbered) != numbered:
                raise ClusteringError(
                    f"two different partitions have {k} clusters; a level must have one answer"
                )
        levels = sorted(found, reverse=True)
        if nested:
            for fine, coarse in pairwise(levels):
                if not found[fine].refines(found[coarse]):
                    raise ClusteringError(
                        f"the partition into {fine} clusters does not refine the one into "
                        f"{coarse}; pass nested=False for a family that does not nest"
                    )
        return cls(
            n,
            levels,
            merges=_merges_of_chain([found[k] for k in levels]) if nested else None,
            family={} if nested else found,
            edge_index=edge_index,
            edge_weight=edge_weight,
            method=method,
        )

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Numbers of clusters on offer, from n down to 1."""
        return tuple(self._levels)

    @property
    def nested(self) -> bool:
        """Whether every partition refines the next."""
        return self._merges is not None

    @property
    def merges(self) -> Tensor:
        """Merges int64 ``[n - 1, 2]`` in SciPy's numbering.

        Raises:
            ClusteringError: The partitions do not nest.
        """
        return self._tree()[0]

    @property
    def heights(self) -> Tensor:
        """Height of each merge, float64 ``[n - 1]``, in units of the method.

        Raises:
            ClusteringError: The partitions do not nest.
        """
        return self._tree()[1]

    def __getitem__(self, k: int) -> Partition:
        """The partition into exactly ``k`` clusters.

        Raises:
            ClusteringError: No level of ``k`` clusters; the message names the nearest.

        Cost:
            ``O(n log n)``: the forest of the first ``n - k`` merges, by pointer jumping.
        """
        try:
            k = check_whole(k, "a level")
        except ValueError:
            raise TypeError(f"a level is a number of clusters; got {type(k).__name__}") from None
        if k not in self._levels:
            nearest = sorted(self.levels, key=lambda level: (abs(level - k), level))[:2]
            raise ClusteringError(
                f"no level has {k} clusters; the nearest have "
                f"{' and '.join(map(str, sorted(nearest)))}"
            )
        if self._merges is None:
            return self._family[k]
        merged = self.num_nodes - k
        parent = np.arange(self.num_nodes + merged)
        pairs = self._merges[0][:merged].numpy()
        parent[pairs] = np.arange(self.num_nodes, parent.size)[:, None]
        while True:
            # Twice as far at each step: log2 of the depth of the forest steps in all.
            grandparent = parent[parent]
            if np.array_equal(grandparent, parent):
                break
            parent = grandparent
        return Partition.from_labels(parent[: self.num_nodes], relabel=True)

    def cut(self, k: int) -> Coarsening:
        """The coarsening into exactly ``k`` clusters, with this hierarchy's graph."""
        return Coarsening(self[k], self.edge_index, self.edge_weight)

    def linkage(self) -> np.ndarray:
        """SciPy linkage, float64 ``[n - 1, 4]``: the two clusters, height, number of nodes.

        Raises:
            ClusteringError: The partitions do not nest.

        Example:
            >>> Hierarchy.from_merges(3, [[2, 0], [1, 3]], [0.5, 2.0]).linkage().tolist()
            [[2.0, 0.0, 0.5, 2.0], [1.0, 3.0, 2.0, 3.0]]
        """
        merges, heights = self._tree()
        count = [1] * self.num_nodes
        for a, b in merges.tolist():
            count.append(count[a] + count[b])
        return np.column_stack([merges.numpy(), heights.numpy(), count[self.num_nodes :]])

    def newick(self, names: Sequence[str] | None = None) -> str:
        """The tree of merges in Newick format; branch lengths are differences of heights.

        Nodes have height 0. A branch to or from an infinite height is written without length.

        Args:
            names: One name per node; :attr:`names` by default, or else its number.

        Raises:
            ClusteringError: The partitions do not nest, or the number of names is not n.
        """
        merges, heights = self._tree()
        n = self.num_nodes
        if names is None and self.names is not None:
            names = [str(name) for name in self.names]
        if names is not None and len(names) != n:
            raise ClusteringError(f"expected one name for each of {n} nodes; got {len(names)}")
        labels = list(map(str, range(n))) if names is None else [_newick_name(s) for s in names]
        height = [0.0] * n + heights.tolist()
        children = merges.tolist()
        text: list[str] = []
        # Text to write, or a cluster with the height of its parent; the top has none.
        stack: list[str | tuple[int, float | None]] = [(2 * n - 2, None)]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                text.append(item)
                continue
            cluster, above = item
            length = math.inf if above is None else above - height[cluster]
            end = f":{length:g}" if math.isfinite(length) else ""
            if cluster < n:
                text.append(labels[cluster] + end)
            else:
                left, right = children[cluster - n]
                here = height[cluster]
                stack += [f"){end}", (right, here), ",", (left, here)]
                text.append("(")
        return "".join(text) + ";"

    def _tree(self) -> tuple[Tensor, Tensor]:
        if self._merges is None:
            raise ClusteringError(
                f"the partitions of method {self.method!r} do not nest: they have no merges, "
                "heights or tree; use h[k] and h.levels"
            )
        return self._merges

    def __len__(self) -> int:
        return len(self._levels)

    def __iter__(self) -> Iterator[Partition]:
        """Partitions from fine to coarse."""
        return (self[k] for k in self._levels)

    def __repr__(self) -> str:
        levels, count = self._levels, len(self)
        if count <= 8:
            shown = ", ".join(map(str, levels))
        elif count == self.num_nodes:
            shown = f"{self.num_nodes} to 1"
        else:
            shown = f"{', '.join(map(str, levels[:3]))}, ..., {levels[-2]}, 1"
        method = "" if self.method in ("merges", "partitions") else f"{self.method}, "
        nested = "nested" if self.nested else "not nested"
        return (
            f"Hierarchy({method}{self.num_nodes} nodes, {nested}, "
            f"{count} level{'s' * (count > 1)}: {shown})"
        )


def _positive(num_nodes: int) -> int:
    num_nodes = check_whole(num_nodes, "num_nodes", ClusteringError)
    if num_nodes < 1:
        raise ClusteringError(f"a hierarchy needs at least one node; got num_nodes={num_nodes}")
    return num_nodes


def check_levels(levels: Sequence[int], num_nodes: int) -> list[int]:
    """Numbers of clusters in 1..n, distinct, fine to coarse."""
    try:
        counts = {check_whole(k, "a level") for k in levels}
    except (TypeError, ValueError):
        raise ClusteringError(
            f"levels must be whole numbers of clusters, as levels=[8, 2]; got {levels!r:.80}"
        ) from None
    outside = sorted(k for k in counts if not 1 <= k <= num_nodes)
    if outside:
        raise ClusteringError(f"levels are numbers of clusters in 1..{num_nodes}; got {outside[0]}")
    return sorted(counts, reverse=True)


def _check_merges(n: int, pairs: Tensor, heights: Tensor) -> None:
    if pairs.dim() != 2 or pairs.size(1) != 2:
        raise ClusteringError(
            f"merges must be [n - 1, 2], two clusters each; got {list(pairs.shape)}; "
            "of a SciPy linkage take linkage[:, :2].astype(int) and linkage[:, 2]"
        )
    if pairs.size(0) != n - 1:
        raise ClusteringError(
            f"{n} nodes become one cluster in {n - 1} merges; got {pairs.size(0)}"
        )
    if heights.numel() != n - 1:
        raise ClusteringError(f"expected {n - 1} heights, one per merge; got {heights.numel()}")
    if bool(torch.isnan(heights).any()):
        bad = int(torch.isnan(heights).nonzero()[0])
        raise ClusteringError(f"heights must not be NaN; that of merge {bad} is")
    late = (pairs < 0) | (pairs >= n + torch.arange(n - 1)[:, None])
    if bool(late.any()):
        i, j = late.nonzero()[0].tolist()
        raise ClusteringError(
            f"merge {i} names cluster {int(pairs[i, j])}, which does not exist before it; clusters "
            f"below {n} are nodes and merge i makes cluster {n} + i"
        )
    counts = torch.bincount(pairs.reshape(-1), minlength=1)
    if bool((counts > 1).any()):
        bad = int((counts > 1).nonzero()[0])
        raise ClusteringError(f"cluster {bad} is merged {int(counts[bad])} times, not once")


def _merges_of_chain(chain: Sequence[Partition]) -> tuple[Tensor, Tensor]:
    """Merges that pass through every partition of a chain, with the step as height."""
    n = chain[0].num_nodes
    names = np.arange(n)  # of the clusters of the current partition
    merges, heights, made = [], [], n
    for step, (fine, coarse) in enumerate(pairwise(chain), start=1):
        first = fine.order.numpy()[np.cumsum([0, *fine.sizes[:-1]])]
        parent = coarse.labels.numpy()[first]
        order = np.argsort(parent, kind="stable")
        # Within a coarse cluster: the first two clusters, then what came of them and the next.
        joined = np.flatnonzero(np.diff(parent[order]) == 0) + 1
        new = made + np.arange(joined.size)
        left = names[order[joined - 1]]
        chained = np.flatnonzero(np.diff(joined) == 1) + 1
        left[chained] = new[chained - 1]
        merges.append(np.column_stack([left, names[order[joined]]]))
        heights.append(np.full(joined.size, float(step)))
        coarse_names = np.empty(coarse.num_clusters, dtype=np.int64)
        coarse_names[parent] = names
        coarse_names[parent[order[joined]]] = new  # the last one written is the whole cluster
        names, made = coarse_names, made + joined.size
    if not merges:
        return torch.empty(0, 2, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    return torch.from_numpy(np.concatenate(merges)), torch.from_numpy(np.concatenate(heights))


def _newick_name(name: str) -> str:
    """Quote a name that holds anything but letters, digits and a few safe signs."""
    if name and all(c.isalnum() or c in "._-+" for c in name):
        return name
    return "'" + name.replace("'", "''") + "'"
