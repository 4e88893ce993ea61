"""Groups of clusters: all permutations within clusters, and exchanges of whole clusters."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gsym._graphs import as_graph
from gsym._validate import IntegerArray, check_permutation
from gsym.errors import GroupError
from gsym.groups._host import lives_on_cpu
from gsym.groups._pairs import coalesced, fixes
from gsym.groups._record import record
from gsym.groups.coordinates import (
    ChannelMoves,
    check_representations,
    map_orbits,
    mixes_channels,
    pair_coordinate_orbits,
)
from gsym.groups.matrices import Elements, TiedMaps, project
from gsym.groups.orbits import Orbits
from gsym.groups.partition import Partition
from gsym.groups.permutation import PermutationGroup

if TYPE_CHECKING:
    from gsym.groups.representation import Representation

# Above this many entries a table of generators is refused rather than built.
MAX_GENERATOR_ENTRIES = 2**28


@lives_on_cpu
class ClusterGroup(PermutationGroup):
    """All permutations within clusters, optionally with exchanges of whole clusters.

    The group is ``(prod_c S_c) x| H``: every permutation that keeps each cluster in place, and,
    for each element of ``swaps`` (a group H on the clusters), the one that carries the t-th node
    of cluster ``c`` to the t-th node of cluster ``h(c)``.

    Args:
        partition: The clusters.
        swaps: Group on the clusters, exchanging clusters of equal size only.
        exact: Whether this is the very group that was asked for; False for one that contains it,
            as ``swaps`` that are not exact make it, too.

    Raises:
        GroupError: ``swaps`` acts on another number of clusters or exchanges unequal ones.

    Cost:
        ``O(n)`` memory; ``n x n`` tables appear only in :meth:`pair_orbits` and :meth:`project`.

    Example:
        >>> g = ClusterGroup(Partition.from_labels([0, 0, 1, 1, 1]))
        >>> g, g.order(), g.commutant_dim()
        (ClusterGroup(S_2 x S_3 on 5 nodes), 12, 6)

    Reference:
        The group of a coarsening in Huang, Levie, Villar, arXiv 2308.10436.
    """

    _fields = ("partition", "swaps", "exact")

    def __init__(
        self,
        partition: Partition,
        *,
        swaps: PermutationGroup | None = None,
        exact: bool = True,
    ) -> None:
        if not isinstance(partition, Partition):
            raise TypeError(
                f"expected a Partition; got {type(partition).__name__}; "
                "make one with Partition.from_labels(labels)"
            )
        if swaps is not None and not isinstance(swaps, PermutationGroup):
            raise TypeError(
                f"swaps must be a PermutationGroup on the clusters; got {type(swaps).__name__}"
            )
        self.partition = partition
        self._sizes = torch.tensor(partition.sizes)
        if swaps is not None:
            if swaps.num_nodes != partition.num_clusters:
                raise GroupError(
                    f"swaps must act on the {partition.num_clusters} clusters; "
                    f"got a group on {swaps.num_nodes} points"
                )
            # Orbits rather than generators, of which a group of clusters may have too many.
            orbits = swaps.node_orbits()
            _, first = np.unique(orbits.index.numpy(), return_index=True)
            model = torch.from_numpy(first)[orbits.index]
            unequal = (self._sizes[model] != self._sizes).nonzero()
            if unequal.numel():
                c = int(unequal[0])
                raise GroupError(
                    f"swaps exchange clusters of unequal size: cluster {int(model[c])} with "
                    f"{partition.sizes[int(model[c])]} nodes and cluster {c} with "
                    f"{partition.sizes[c]}"
                )
            exact = exact and swaps.exact
            if orbits.num_orbits == swaps.num_nodes:
                swaps = None
        self.swaps = swaps
        self.exact = exact

    @classmethod
    def _of_record(cls, *values: Any) -> ClusterGroup:
        partition, swaps, exact = values
        return ClusterGroup(
            Partition.from_dict(partition),
            swaps=None if swaps is None else PermutationGroup.from_dict(swaps),
            exact=exact,
        )

    def as_clusters(self) -> ClusterGroup:
        """This group."""
        return self

    @property
    def num_nodes(self) -> int:
        """Number of nodes the group acts on."""
        return self.partition.num_nodes

    @property
    def num_generators(self) -> int:
        """Rows of :attr:`generators`, without building them."""
        within = int((self._sizes >= 2).sum() + (self._sizes >= 3).sum())
        return within + (0 if self.swaps is None else self.swaps.num_generators)

    @cached_property
    def _generator_table(self) -> Tensor:
        n = self.num_nodes
        if self.num_generators * n > MAX_GENERATOR_ENTRIES:
            raise GroupError(
                f"{self.num_generators} generators of {n} nodes would need "
                f"{self.num_generators * n * 8 / 2**30:.1f} GiB; draw elements with sample()"
            )
        table = []
        for nodes in self.partition.clusters():
            # A swap of two nodes and a cycle of all generate S_c.
            for cycle in [nodes[:2]] * (len(nodes) >= 2) + [nodes] * (len(nodes) >= 3):
                perm = torch.arange(n)
                perm[cycle] = cycle.roll(-1)
                table.append(perm)
        if self.swaps is not None:
            table.extend(self.lift(h) for h in self.swaps.generators)
        return torch.stack(table) if table else torch.empty(0, n, dtype=torch.int64)

    @property
    def generators(self) -> Tensor:
        """Permutations that generate the group, int64 ``[m, n]``, up to two per cluster, a copy."""
        return self._generator_table.clone()

    def lift(self, cluster_perm: Tensor) -> Tensor:
        """The node permutation that moves whole clusters by ``cluster_perm``, order kept."""
        order, labels = self.partition.order, self.partition.labels
        start = torch.cumsum(self._sizes, 0) - self._sizes
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.numel()) - start[labels[order]]
        return order[start[cluster_perm[labels]] + rank]

    def order(self) -> int:
        """Number of permutations in the group (an integer of millions of digits at n = 10^6)."""
        counts = Counter(self.partition.sizes)
        within = math.prod(math.factorial(c) ** count for c, count in counts.items() if c > 1)
        return within if self.swaps is None else within * self.swaps.order()

    def log_order(self) -> float:
        """Natural logarithm of :meth:`order`, without computing it."""
        within = float(torch.lgamma(self._sizes.double() + 1).sum())
        return within + (0.0 if self.swaps is None else self.swaps.log_order())

    def contains(self, perm: IntegerArray) -> bool:
        """Whether ``perm``, a list of images, belongs to the group."""
        images = check_permutation(perm, self.num_nodes)
        labels = self.partition.labels
        arrives = labels[images]
        start = torch.cumsum(self._sizes, 0) - self._sizes
        moved = arrives[self.partition.order[start]]
        if not bool((arrives == moved[labels]).all()):
            return False
        if self.swaps is None:
            return bool((moved == torch.arange(moved.numel())).all())
        if torch.unique(moved).numel() != moved.numel():
            return False
        return self.swaps.contains(moved)

    def sample(self, *, generator: torch.Generator | None = None) -> Tensor:
        """A uniformly random element, int64 ``[n]``, in ``O(n log n)``."""
        order, labels = self.partition.order, self.partition.labels
        shuffled = torch.randperm(self.num_nodes, generator=generator)
        within = shuffled[torch.argsort(labels[shuffled], stable=True)]
        perm = torch.empty_like(order)
        perm[order] = within
        return (
            perm if self.swaps is None else self.lift(self.swaps.sample(generator=generator))[perm]
        )

    def cluster_orbits(
        self, in_rep: Representation | None = None, out_rep: Representation | None = None
    ) -> Orbits:
        """Orbits of ``swaps`` on clusters: ``index`` is ``[k]``.

        With representations those of the entries of one matrix per cluster, with signs:
        ``[k, c_out, c_in]``.
        """
        if in_rep is not None or out_rep is not None:
            return map_orbits(self._swap_table(), *self._swap_moves(in_rep, out_rep))
        if self.swaps is None:
            k = self.partition.num_clusters
            return Orbits(torch.arange(k), k, torch.ones(k, dtype=torch.int64))
        return self.swaps.node_orbits()

    def cluster_pair_orbits(
        self, in_rep: Representation | None = None, out_rep: Representation | None = None
    ) -> Orbits:
        """Orbits of ``swaps`` on ordered pairs of clusters: ``index`` is ``[k, k]``.

        With representations those of the entries of a matrix per pair, with signs:
        ``[k, k, c_out, c_in]``.
        """
        if in_rep is not None or out_rep is not None:
            return pair_coordinate_orbits(self._swap_table(), *self._swap_moves(in_rep, out_rep))
        if self.swaps is None:
            k = self.partition.num_clusters
            return Orbits(torch.arange(k * k).view(k, k), k * k, torch.ones(k * k).long())
        return self.swaps.pair_orbits()

    def cluster_maps(
        self,
        in_rep: Representation | None = None,
        out_rep: Representation | None = None,
        kept: Tensor | None = None,
    ) -> TiedMaps:
        """The maps of channels, one per cluster, that commute with ``swaps``, by free weights.

        What :meth:`cluster_orbits` is where channels mix: ``[k, c_out, c_in]``. ``kept`` says which
        clusters have one, whole orbits of them; all by default.
        """
        if kept is None:
            kept = torch.ones(self.partition.num_clusters, dtype=torch.bool)
        return self._swap_elements(in_rep, out_rep).maps_at_points(kept.numpy())

    def cluster_pair_maps(
        self, in_rep: Representation | None = None, out_rep: Representation | None = None
    ) -> TiedMaps:
        """The maps of channels between all clusters that commute with ``swaps``, by free weights.

        What :meth:`cluster_pair_orbits` is where channels mix: ``[k, k, c_out, c_in]``.
        """
        return self._swap_elements(in_rep, out_rep).maps_of_pairs()

    def _swap_elements(
        self, in_rep: Representation | None, out_rep: Representation | None
    ) -> Elements:
        """All elements of the swaps, and how they mix channels."""
        check_representations(self, in_rep, out_rep)
        table, sides = self._swap_table(), []
        for rep in (in_rep, out_rep):
            still = torch.ones(len(table), 1, 1, dtype=torch.float64)
            sides.append(still if rep is None else rep.matrices)
        return Elements.of(table, *sides)

    def _swap_table(self) -> Tensor:
        """Generators of the swaps on the clusters, ``[m, k]``."""
        if self.swaps is None:
            return torch.empty(0, self.partition.num_clusters, dtype=torch.int64)
        return self.swaps.generators

    def _swap_moves(
        self, in_rep: Representation | None, out_rep: Representation | None
    ) -> tuple[ChannelMoves, ChannelMoves]:
        check_representations(self, in_rep, out_rep)
        count = 0 if self.swaps is None else self.swaps.num_generators
        moves = []
        for rep in (in_rep, out_rep):
            moves.append(ChannelMoves.still(count) if rep is None else rep.moves)
        return moves[0], moves[1]

    def node_orbits(self) -> Orbits:
        """Orbits of the group on nodes: ``index`` is ``[n]``."""
        return Orbits.from_keys(self.cluster_orbits().index[self.partition.labels])

    def pair_orbits(
        self, in_rep: Representation | None = None, out_rep: Representation | None = None
    ) -> Orbits:
        """As :meth:`PermutationGroup.pair_orbits`, in closed form: ``index`` is ``[n, n]``."""
        labels = self.partition.labels
        if in_rep is not None or out_rep is not None:
            return self._coordinate_pair_orbits(in_rep, out_rep)
        pairs = self.cluster_pair_orbits()
        keys = pairs.index[labels[:, None], labels[None, :]]
        # In a cluster of one node the diagonal is the whole block and needs no orbit of its own.
        own = (pairs.num_orbits + self.cluster_orbits().index)[labels]
        keys.diagonal().copy_(torch.where(self._sizes[labels] > 1, own, keys.diagonal()))
        return Orbits.from_keys(keys)

    def _coordinate_pair_orbits(
        self, in_rep: Representation | None, out_rep: Representation | None
    ) -> Orbits:
        labels = self.partition.labels
        pairs = self.cluster_pair_orbits(in_rep, out_rep)
        own = self.cluster_orbits(in_rep, out_rep)
        assert pairs.signs is not None and own.signs is not None
        keys = pairs.index[labels[:, None], labels[None, :]]
        signs = pairs.signs[labels[:, None], labels[None, :]]
        # As without representations, several nodes of a cluster have a diagonal of their own.
        large = torch.nonzero(self._sizes[labels] > 1)[:, 0]
        apart = torch.where(own.index < 0, -1, own.index + pairs.num_orbits)[labels[large]]
        keys[large, large], signs[large, large] = apart, own.signs[labels[large]]
        return Orbits.from_keys(keys, signs)

    def edge_orbits(self, edge_index: Any) -> Orbits:
        """Orbits of ordered pairs, read on the edges: ``index`` is ``[e]``, in ``O(e log e)``."""
        edges = as_graph(edge_index, self.num_nodes).edge_index.cpu()
        ends = self.partition.labels[edges]
        k = self.partition.num_clusters
        if self.swaps is None:
            keys = ends[0] * k + ends[1]
        else:
            keys = self.swaps.edge_orbits(ends).index
        loop = (edges[0] == edges[1]) & (self._sizes[ends[0]] > 1)
        return Orbits.from_keys(keys * 2 + loop)

    def commutant_dim(
        self, in_rep: Representation | None = None, out_rep: Representation | None = None
    ) -> int:
        """Dimension of the commutant: ``k^2 + #{clusters of two nodes or more}`` without swaps."""
        large = self._sizes > 1
        if mixes_channels(in_rep, out_rep):
            return self._swap_elements(in_rep, out_rep).dimension(large.double().numpy())
        if in_rep is not None or out_rep is not None:
            own = torch.unique(self.cluster_orbits(in_rep, out_rep).index[large])
            pairs = self.cluster_pair_orbits(in_rep, out_rep)
            return pairs.num_orbits + int((own >= 0).sum())
        if self.swaps is None:
            return self.partition.num_clusters**2 + int(large.sum())
        within = torch.unique(self.swaps.node_orbits().index[large]).numel()
        return self.swaps.commutant_dim() + within

    def project(
        self,
        weight: Tensor,
        in_rep: Representation | None = None,
        out_rep: Representation | None = None,
    ) -> Tensor:
        """The intertwiner projection of ``[..., n, n]``: block means, with the diagonal apart."""
        if mixes_channels(in_rep, out_rep):
            elements = self._swap_elements(in_rep, out_rep)
            every = np.ones(self.partition.num_clusters, dtype=bool)
            maps = elements.maps_of_pairs(), elements.maps_at_points(every)
            return project(weight, self.partition.labels, self._sizes, *maps)
        if in_rep is not None or out_rep is not None:
            return super().project(weight, in_rep, out_rep)
        self._check_matrix(weight)
        labels = self.partition.labels.to(weight.device)
        sizes = self._sizes.to(weight)
        k, lead = sizes.numel(), weight.shape[:-2]
        diagonal = weight.diagonal(dim1=-2, dim2=-1)
        trace = weight.new_zeros(*lead, k).index_add(-1, labels, diagonal)
        block = weight.new_zeros(*lead, k, self.num_nodes).index_add(-2, labels, weight)
        block = weight.new_zeros(*lead, k, k).index_add(-1, labels, block)
        area = torch.outer(sizes, sizes)
        # Off the diagonal: the trace leaves its blocks, and so do the diagonal's entries.
        large = (sizes > 1).to(weight)
        block = block - torch.diag_embed(trace * large)
        area = area - torch.diag(sizes * large)
        if self.swaps is not None:
            pairs = self.swaps.pair_orbits().index.to(weight.device)
            nodes = self.swaps.node_orbits().index.to(weight.device)
            block, area = _orbit_sum(block, pairs, 2), _orbit_sum(area, pairs, 2)
            trace, sizes = _orbit_sum(trace, nodes, 1), _orbit_sum(sizes, nodes, 1)
        out = (block / area).index_select(-2, labels).index_select(-1, labels)
        own = (trace / sizes).index_select(-1, labels)
        kept = out.diagonal(dim1=-2, dim2=-1)
        change = torch.where((large > 0)[labels], own - kept, torch.zeros_like(own))
        return out + torch.diag_embed(change)

    def preserves(self, edge_index: Any, edge_weight: Tensor | None = None) -> bool:
        """Whether every element maps the graph onto itself, weights included, in ``O(e log e)``.

        The group preserves a graph exactly when each block of cluster pairs is empty or complete
        with one weight (diagonal apart), and ``swaps`` preserves the graph of the blocks.
        """
        n, sizes = self.num_nodes, self._sizes
        keys, weight = coalesced(edge_index, edge_weight, n)
        source, target = keys // n, keys % n
        start, end = self.partition.labels[source], self.partition.labels[target]
        k = self.partition.num_clusters
        block = (start * k + end) * 2 + (source == target)
        names, inverse, count = torch.unique(block, return_inverse=True, return_counts=True)
        row, column, loop = names // 2 // k, names // 2 % k, names % 2 == 1
        full = torch.where(
            loop, sizes[row], sizes[row] * sizes[column] - torch.where(row == column, sizes[row], 0)
        )
        low = torch.full((names.numel(),), math.inf, dtype=weight.dtype)
        low.scatter_reduce_(0, inverse, weight, "amin")
        if not bool((count == full).all()) or not bool((low[inverse] == weight).all()):
            return False
        if self.swaps is None:
            return True
        return all(fixes(self.lift(h), keys, weight, n) for h in self.swaps.generators)

    def fingerprint(self) -> bytes:
        """SHA-256 of what ties a layer's weights: the numbered clusters and the swaps' orbits."""
        own = b"clusters" + self.partition.fingerprint()
        return hashlib.sha256(own + (self.swaps.fingerprint() if self.swaps else b"")).digest()

    def to_dict(self) -> dict[str, Any]:
        """As :meth:`PermutationGroup.to_dict`.

        Example:
            >>> group = ClusterGroup(Partition.from_labels([0, 0, 1]))
            >>> ClusterGroup.from_dict(group.to_dict()) == group
            True
        """
        return record(
            "ClusterGroup",
            partition=self.partition.to_dict(),
            swaps=None if self.swaps is None else self.swaps.to_dict(),
            exact=self.exact,
        )

    def _written(self) -> tuple[object, ...]:
        swaps = None if self.swaps is None else self.swaps._written()
        return type(self), self.partition, swaps, self.exact

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_clusters, (self.partition, self.swaps, self.exact)

    def __str__(self) -> str:
        sizes, n = self.partition.sizes, self.num_nodes
        if max(sizes) == 1:
            name = "trivial"
        elif len(set(sizes)) == 1:
            name = f"S_{sizes[0]}" if len(sizes) == 1 else f"(S_{sizes[0]})^{len(sizes)}"
        elif len(sizes) <= 6:
            name = " x ".join(f"S_{c}" for c in sizes)
        else:
            name = f"{len(sizes)} clusters of {min(sizes)} to {max(sizes)} in {n}"
        if self.swaps is not None:
            name = f"{name} x| {self.swaps}"
        return name if self.exact else f"at most {name}"


# Here, so that modules import each other in one direction.
PermutationGroup._closed_form = ClusterGroup


def _rebuild_clusters(
    partition: Partition, swaps: PermutationGroup | None, exact: bool
) -> ClusterGroup:
    return ClusterGroup(partition, swaps=swaps, exact=exact)


def _orbit_sum(values: Tensor, index: Tensor, dims: int) -> Tensor:
    """Replace each entry of the last ``dims`` axes by the sum over its orbit."""
    flat = values.flatten(-dims) if dims > 1 else values
    total = flat.new_zeros(*flat.shape[:-1], int(index.max()) + 1)
    total = total.index_add(-1, index.reshape(-1), flat)
    return total.index_select(-1, index.reshape(-1)).view(values.shape)
