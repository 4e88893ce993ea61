"""Tied maps that move from one group to another, and how much of a map every level explains."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from gsym.errors import GroupError
from gsym.groups import ClusterGroup, Partition, PermutationGroup
from gsym.nn._cluster_map import ClusterMap, on_host, on_nodes, read, sizes_of, summed, write
from gsym.nn._levels import Chain, is_subgroup
from gsym.nn._neighbours import PairTable
from gsym.nn._tied import as_clusters, check_group

# Passes over levels that are not nested, whose projections do not commute.
_SWEEPS = 100


@dataclass(frozen=True)
class Move:
    """What became of a map that was moved to another group or chain.

    Attributes:
        exact: Whether it is the same map: its new group is a subgroup of the old.
        lost: Share of the squared norm of the linear map that the projection lost.
        lost_bias: The same of the bias.
    """

    exact: bool
    lost: float
    lost_bias: float

    def __str__(self) -> str:
        return "exact" if self.exact else f"lost {100 * self.lost:.3g} % of the map"


M = TypeVar("M")


class Movable(Generic[M]):
    """Methods of layers whose trained maps move between groups; all of them return new layers."""

    levels: tuple[PermutationGroup, ...]
    moved: Move | tuple[Move, ...] | None = None

    @abstractmethod
    def _chain_of(self) -> Chain | None:
        """The levels of the layer."""

    @abstractmethod
    def _moved_to(self, target: Chain | PermutationGroup | None) -> M:
        """A new layer of this group or chain, with the nearest map."""

    def _own_chain(self) -> Chain:
        chain = self._chain_of()
        if chain is None:
            raise ValueError(
                f"{type(self).__name__} has one group and no levels; build it with levels, or "
                "soften(levels) it first"
            )
        return chain

    def harden(self, level: int | PermutationGroup | Partition) -> M:
        """A layer of one level: the projection of the map to the maps of that group.

        It is exact at the finest of nested levels, for the maps of the others are among its own.
        ``moved`` of the new layer says what was lost.

        Args:
            level: One of ``levels``, by its number of clusters, as ``h[k]`` has it, or as a group
                or partition.

        Raises:
            ValueError: A layer without levels, or a level that is not among them.

        Example:
            >>> h = gsym.Hierarchy.from_partitions([Partition.from_labels([0, 0, 1, 1])])
            >>> soft = gsym.nn.OrbitLinear(2, 2, levels=h)
            >>> print(soft.harden(4).moved)
            exact
            >>> soft.harden(2).group
            ClusterGroup((S_2)^2 on 4 nodes)
        """
        return self._moved_to(self._own_chain().find(level))

    def soften(self, levels: object) -> M:
        """A layer with levels: every level gets what the coarser ones cannot express.

        It is exact where the finest level is a subgroup of the layer's group; else the map is
        projected first. ``moved`` of the new layer says what was lost.

        Args:
            levels: As for the layer: a :class:`gsym.Hierarchy`, or partitions and groups.

        Raises:
            TypeError: No levels, or something else among them.
            GroupError: Levels on another number of nodes, no level or one twice, or levels that
                exchange clusters, if the layer has representations, which would have to be given
                for them too.

        Warns:
            UserWarning: Levels that are not nested.
        """
        chain = Chain.of(levels)
        if chain is None:
            raise TypeError("soften needs levels: a gsym.Hierarchy, or partitions and groups")
        return self._moved_to(chain)

    def to_group(self, group: PermutationGroup | None) -> M:
        """A layer of another group with the same map, or the nearest that commutes with it.

        It is exact where ``group`` is a subgroup of the layer's group: weights are copied to the
        smaller orbits. Otherwise they are averaged over the larger ones, the orthogonal
        projection in the squared norm of the whole map. ``moved`` of the new layer says which,
        and what was lost. Mixing of low rank or along a coarse graph becomes full.

        Raises:
            GroupError: A group on another number of nodes, or one that exchanges clusters, if the
                layer has representations, which would have to be given for it too.

        Example:
            >>> layer = gsym.nn.OrbitLinear(2, 2, ClusterGroup(Partition.single(4)))
            >>> finer = layer.to_group(ClusterGroup(Partition.from_labels([0, 0, 1, 1])))
            >>> print(finer.moved)
            exact
        """
        return self._moved_to(check_group(group))


@torch.no_grad()
def move_linear(layer: Any, twin: Any, target: Chain | PermutationGroup | None) -> Move:
    """Fill ``twin``, a layer of the target, with the nearest map to that of ``layer``."""
    n = _num_nodes(layer.group, target)
    given, own = read(layer, n), on_nodes(layer.group, n)
    groups = target.groups if isinstance(target, Chain) else (on_nodes(target, n),)
    # Of these groups, the levels that have a place for every map of the layer's group.
    whole = [i for i, group in enumerate(groups) if is_subgroup(group, own)]
    if isinstance(target, Chain):
        rest = _fill(twin.soft, target, given, whole)
    else:
        kept = given.average(groups[0])
        write(twin, kept)
        rest = given.minus(kept)
    if whole:
        return Move(True, 0.0, 0.0)
    return Move(
        False,
        _share(rest.square(), given.square()),
        _share(rest.bias_square(), given.bias_square()),
    )


def _fill(soft: Any, chain: Chain, given: ClusterMap, whole: list[int]) -> ClusterMap:
    """Give every level what the coarser ones leave of a map; returns what all of them leave.

    Where levels are not nested, their projections do not commute and are taken in turn, first by
    a level that has place for all, if there is one.
    """
    order = list(reversed(range(len(chain.groups))))
    if not chain.nested:
        order = whole[:1] + order
    rest = given.on(given.partition.meet(chain.partition))
    soft.scale.fill_(1)
    found: list[ClusterMap | None] = [None] * len(chain.groups)
    for _ in range(1 if chain.nested else _SWEEPS):
        before = rest
        for i in order:
            part = rest.average(chain.groups[i])
            old = found[i]
            found[i] = part if old is None else old + part
            rest = rest.minus(part)
        if before.minus(rest).square() <= 1e-28 * given.square():
            break
    for part, form in zip(soft.parts, found, strict=True):
        assert form is not None
        write(part, form)
    return rest


@torch.no_grad()
def energy(layer: Any) -> Tensor:
    """Share of the map of an ``OrbitLinear`` with levels in the complement of every level."""
    chain = layer.soft.chain
    if not chain.nested:
        raise ValueError(
            "levels that are not nested have no orthogonal complements, so no share belongs to "
            "one of them alone; use nested levels"
        )
    form, shares = read(layer, layer.num_nodes), []
    for coarse in chain.groups[1:]:
        mean = form.average(coarse)
        shares.append(form.minus(mean).square())
        form = mean
    shares.append(form.square())
    found = torch.stack(shares)
    return found / found.sum().clamp(min=torch.finfo(torch.float64).tiny)


@torch.no_grad()
def move_orbits(
    old: Tensor,
    group: PermutationGroup | None,
    target: PermutationGroup | None,
) -> tuple[Tensor, float]:
    """Values by pair orbit, ``[o, ...]`` as :class:`PairTable` numbers them, of another group.

    Pairs that one orbit unites get the mean. Returned with the share that is lost.
    """
    n = _num_nodes(group, target)
    given, wanted = on_nodes(group, n), on_nodes(target, n)
    values = on_host(old).reshape(old.size(0), -1)
    matrix = _spread_out(values, group, given)
    form = matrix.average(wanted)
    lost = _share(matrix.minus(form).square(), matrix.square())
    index, own = _pair_orbits(target)
    k, size = wanted.partition.num_clusters, sizes_of(wanted.partition)
    entry = form.mixed[:, 0] / size[:, None, None]
    every = torch.arange(k)
    new = values.new_empty(int(max(index.max(), own.max())) + 1, values.size(1))
    new[index.t().reshape(-1)] = entry.flatten(0, 1)
    has = own >= 0
    new[own[has]] = (form.own[:, 0] + entry[every, every])[has]
    return new.view(-1, *old.shape[1:]).to(old), lost


def _spread_out(
    values: Tensor, group: PermutationGroup | None, clusters: ClusterGroup
) -> ClusterMap:
    """The matrix with these values, as a map of one channel to as many as a value has entries."""
    index, own = _pair_orbits(group)
    k, size = clusters.partition.num_clusters, sizes_of(clusters.partition)
    every = torch.arange(k)
    entry = values[index.t().reshape(-1)].view(k, k, -1)  # [s, t]
    within = torch.zeros(k, values.size(1), dtype=torch.float64)
    has = own >= 0
    within[has] = values[own[has]] - entry[every, every][has]
    mixed = (entry * size[:, None, None])[:, None]
    return ClusterMap(clusters.partition, within[:, None], mixed, torch.zeros_like(within))


def _pair_orbits(group: PermutationGroup | None) -> tuple[Tensor, Tensor]:
    """Orbits of pairs ``[t, s]`` of clusters, and of the diagonal within each, -1 without one."""
    table = PairTable.build(group)
    k = table.own.size(0)
    pairs = torch.arange(k * k).view(k, k) if table.pairs is None else table.pairs.view(k, k)
    return pairs, table.own


def move_bias(
    bias: Tensor,
    node_orbit: Tensor,
    group: PermutationGroup | None,
    target: PermutationGroup | None,
) -> tuple[Tensor, float]:
    """Biases by node orbit, ``[o, c]``, of another group, and the share that the means lost."""
    n = _num_nodes(group, target)
    nodes = on_host(bias)[node_orbit.cpu()].expand(n, -1)
    orbit = torch.zeros(n, dtype=torch.int64) if target is None else target.node_orbits().index
    count = torch.bincount(orbit).double()
    new = summed(nodes, orbit, 0, count.numel()) / count[:, None]
    lost = _share((nodes - new[orbit]).square().sum(), nodes.square().sum())
    return new.to(bias), lost


@torch.no_grad()
def move_conv(conv: Any, twin: Any, group: PermutationGroup | None) -> Move:
    """Fill what a ``GNetConv`` has besides its linear map, which is moved already."""
    lost_bias = 0.0
    if conv.bias is not None:
        tables = conv._tables(conv.bias.device)
        bias = conv.bias
        if tables.bias_tie is not None:
            bias = tables.bias_tie.expand(bias).view(-1, conv.out_channels)
        values, lost_bias = move_bias(bias, tables.node_orbit, conv.group, group)
        twin.bias.copy_(values)
    if conv.edge_logit is not None:
        twin.edge_logit.copy_(move_orbits(conv.edge_logit, conv.group, group)[0])
    if conv.weight is None:
        move: Move = twin.linear.moved
        return Move(move.exact, move.lost, move.lost_bias + lost_bias * (not move.exact))
    own = conv.group
    if conv._tables(conv.weight.device).pair_ties is not None:
        # With representations every pair of clusters has a matrix of its own.
        own = ClusterGroup(as_clusters(own).partition)
    values, lost = move_orbits(conv._pair_matrices(), own, group)
    twin.weight.copy_(values)
    n = _num_nodes(conv.group, group)
    exact = is_subgroup(on_nodes(group, n), on_nodes(conv.group, n))
    return Move(True, 0.0, 0.0) if exact else Move(False, lost, lost_bias)


def check_movable(layer: Any, target: Chain | PermutationGroup | None) -> None:
    """Refuse another number of nodes, and swaps where channels move."""
    if layer.group is None and target is None:
        return
    n = _num_nodes(layer.group, target)
    other = target.group if isinstance(target, Chain) else target
    if other is not None and other.num_nodes != n:
        raise GroupError(
            f"the layer has {n} nodes but the group or levels {other.num_nodes}; its maps move "
            "between groups of the same nodes"
        )
    if layer.in_rep is None and layer.out_rep is None:
        return
    groups = target.groups if isinstance(target, Chain) else (target,)
    if any(as_clusters(group).swaps is not None for group in groups):
        raise GroupError(
            "a layer with representations moves to groups without swaps alone: what another "
            "group does to its channels is not known"
        )


def undrawn() -> torch.device:
    """Where a layer is built whose first weights do not count: nothing is drawn, nothing stored."""
    return torch.device("meta")


def like(twin: nn.Module, layer: nn.Module) -> None:
    """Give a layer that was built ``undrawn`` room for weights as an old one has them."""
    first = next(layer.parameters(), None)
    if first is not None:
        twin.to_empty(device=first.device).to(first.dtype)
    twin.train(layer.training)


def _num_nodes(group: PermutationGroup | None, target: Chain | PermutationGroup | None) -> int:
    if group is not None:
        return group.num_nodes
    other = target.group if isinstance(target, Chain) else target
    return 2 if other is None else other.num_nodes


def _share(part: Tensor, whole: Tensor) -> float:
    return max(float(part), 0.0) / float(whole) if whole > 0 else 0.0
