"""What is asked of `coarsen`, checked, and how methods answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from gsym._graphs import Graph, as_graph
from gsym._validate import check_samples, check_whole, warn
from gsym.coarsening._graph import Merges, relative, undirected
from gsym.coarsening.hierarchy import Hierarchy, check_levels
from gsym.errors import ClusteringError, SignalError
from gsym.groups import Partition


@dataclass(frozen=True)
class Method:
    """A method of :func:`gsym.coarsen`.

    Attributes:
        propose: What answers a request.
        summary: What it does, in a line of up to 60 characters.
        levels: Which it gives: ``"nested"``, ``"non-nested"``, or ``"3"`` (n, one more, 1).
        needs: Arguments of :func:`gsym.coarsen` that it cannot do without.
        takes: Arguments that it looks at where they are given.
    """

    propose: Callable[[Request], Hierarchy]
    summary: str
    levels: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()

    @property
    def input(self) -> str:
        """What it clusters by: graph, signals, either or both, or the shape of an image."""
        if "height" in self.needs:
            return "shape"
        if "edge_index" in self.needs:
            return "graph"
        return "signals" if "signals" in self.needs else "either, both"


@dataclass(frozen=True)
class Request:
    """What was asked of :func:`coarsen`, checked; signals and targets are ``[samples, n, c]``."""

    method: str
    num_nodes: int
    given: Graph | None
    signals: Tensor | None
    targets: Tensor | None
    levels: tuple[int, ...] | None
    seed: int
    height: int | None
    width: int | None

    @classmethod
    def checked(
        cls,
        methods: Mapping[str, Method],
        method: str,
        edge_index: Any,
        num_nodes: int | None,
        edge_weight: Tensor | None,
        signals: Any,
        targets: Any,
        levels: Sequence[int] | None,
        seed: int,
        height: int | None,
        width: int | None,
    ) -> Request:
        """Check everything that does not depend on the method's own arithmetic."""
        uses = methods[method]
        given = {
            "edge_index": edge_index,
            "signals": signals,
            "targets": targets,
            "height": height,
            "width": width,
        }
        for name, value in given.items():
            # A graph is kept for the coarse graphs even where the method does not look at it.
            if value is None and name in uses.needs:
                raise ClusteringError(f"method {method!r} needs {name}=; got None")
            if value is not None and name not in (*uses.needs, *uses.takes, "edge_index"):
                takers = [m for m, other in methods.items() if name in other.needs + other.takes]
                raise ClusteringError(
                    f"method {method!r} does not look at {name}; leave it out, or take "
                    f"{' or '.join(takers)}"
                )
        if edge_index is None and signals is None and height is None:
            raise ClusteringError(f"method {method!r} needs edge_index, signals or both; got None")
        if edge_index is None and edge_weight is not None:
            raise ClusteringError("edge_weight came without edge_index; pass both")
        graph = None
        if edge_index is not None and not isinstance(edge_index, Tensor):
            graph = as_graph(edge_index, num_nodes, edge_weight)
            num_nodes = graph.num_nodes
        if signals is not None:
            signals = check_samples(signals, "signals")
        n = _number_of_nodes(num_nodes, signals, height, width)
        if edge_index is not None and graph is None:
            graph = as_graph(edge_index, n, edge_weight)
        if signals is not None:
            signals = _on_nodes(signals, n, "signals")
        if targets is not None and signals is not None:
            targets = _on_nodes(targets, n, "targets")
            if targets.size(0) != signals.size(0):
                raise SignalError(
                    f"signals and targets must be pairs; got {signals.size(0)} and "
                    f"{targets.size(0)} samples"
                )
        asked = None if levels is None else tuple(check_levels(levels, n))
        if not 0 <= check_whole(seed, "seed", ClusteringError) < 2**31:
            raise ClusteringError(f"seed must lie in 0..2^31 - 1; got {seed}")
        for name, side in (("height", height), ("width", width)):
            if side is not None:
                check_whole(side, name, ClusteringError)
        return cls(method, n, graph, signals, targets, asked, seed, height, width)

    @property
    def edge_index(self) -> Tensor | None:
        """The edges as they came."""
        return None if self.given is None else self.given.edge_index

    @cached_property
    def graph(self) -> csr_array:
        """The undirected graph that clusterings see; it has edges, and its weights a unit."""
        return relative(self.similarities)[0]

    @cached_property
    def similarities(self) -> csr_array:
        """The undirected graph with the weights that came; it has edges."""
        assert self.given is not None
        A = undirected(self.given)
        if not A.nnz:
            raise ClusteringError(
                f"the graph on {self.num_nodes} nodes has no edges, and method {self.method!r} "
                "goes by edges; methods whose input is signals work without a graph"
            )
        return A

    def features(self) -> np.ndarray:
        """One row per node ``[n, samples * c]``, every channel scaled to unit variance."""
        signals = self.signals
        assert signals is not None
        scale = signals.std(dim=(0, 1), correction=0)
        # A constant channel tells nothing and has no scale.
        flat = signals / torch.where(scale > 0, scale, torch.ones_like(scale))
        if bool((signals == signals[:, :1]).all()):
            warn(
                "the signals are equal at all nodes and do not tell them apart; which of them "
                "share a cluster says nothing"
            )
        return flat.transpose(0, 1).flatten(1).numpy()

    @property
    def exact_graph(self) -> Graph:
        """The graph as it came, for methods that respect directions, signs and loops."""
        assert self.given is not None
        return self.given

    @cached_property
    def family_levels(self) -> list[int]:
        """The levels that a method without nested levels finds one by one, ends left out."""
        powers = [2**i for i in range(1, 8) if 2**i <= self.num_nodes // 2]
        asked = powers[::-1] if self.levels is None else self.levels
        return [k for k in asked if 1 < k < self.num_nodes]

    def tree(self, merges: Merges) -> Hierarchy:
        """Nested levels from merges and heights, offering those asked for."""
        return Hierarchy.from_merges(
            self.num_nodes,
            *merges,
            edge_index=self.given,
            levels=self.levels,
            method=self.method,
        )

    def chain(self, partitions: Iterable[Partition]) -> Hierarchy:
        """Nested levels of what the method found; those asked for must be among them."""
        ends = {self.num_nodes: Partition.singletons(self.num_nodes)}
        ends[1] = Partition.single(self.num_nodes)
        found = ends | {p.num_clusters: p for p in partitions}
        if self.levels is not None:
            missing = [k for k in self.levels if k not in found]
            if missing:
                raise ClusteringError(
                    f"method {self.method!r} has no level of {missing[0]} clusters on this input; "
                    f"it has {', '.join(map(str, sorted(found, reverse=True)))}"
                )
            found = {k: found[k] for k in self.levels}
        return self._hierarchy(list(found.values()), nested=True)

    def family(self, answers: Iterable[tuple[int, np.ndarray]]) -> Hierarchy:
        """Labels ``[n]`` of levels that need not nest; a warning is issued for missing levels."""
        found: dict[int, Partition] = {}
        for asked, labels in answers:
            partition = Partition.from_labels(labels, relabel=True)
            k = partition.num_clusters
            if k != asked:
                warn(
                    f"method {self.method!r} found {k} clusters where {asked} were asked for: that "
                    "level is missing; more clusters than the data tell apart?"
                )
            elif 1 < k < self.num_nodes:
                found[k] = partition
        return self._hierarchy(list(found.values()), nested=False)

    def _hierarchy(self, partitions: list[Partition], *, nested: bool) -> Hierarchy:
        return Hierarchy.from_partitions(
            partitions or [Partition.single(self.num_nodes)],
            edge_index=self.given,
            nested=nested,
            method=self.method,
        )


def _number_of_nodes(
    num_nodes: int | None, signals: np.ndarray | None, height: int | None, width: int | None
) -> int:
    if num_nodes is None:
        if signals is not None:
            num_nodes = signals.shape[1]
        elif height is not None and width is not None:
            num_nodes = height * width
        else:
            raise ClusteringError("num_nodes is not known; pass num_nodes=")
    num_nodes = check_whole(num_nodes, "num_nodes", ClusteringError)
    if num_nodes < 1:
        raise ClusteringError(f"clustering needs at least one node; got num_nodes={num_nodes}")
    return num_nodes


def _on_nodes(values: object, n: int, what: str) -> Tensor:
    """Signals as float64 ``[samples, n, c]`` on the CPU, finite."""
    checked = torch.from_numpy(check_samples(values, what))
    if checked.size(1) != n:
        raise SignalError(f"expected {n} nodes on axis 1 of {what}; got {checked.size(1)}")
    return checked
