"""Chains of groups: what a hierarchy or a list of groups stands for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from gsym.errors import GroupError
from gsym.groups.cluster import ClusterGroup
from gsym.groups.partition import Partition
from gsym.groups.permutation import PermutationGroup

# Levels that are taken from a hierarchy of many.
MOST_LEVELS = 7
# From a level to the next, clusters become fewer by this factor.
_FEWER = 3


def few_levels(hierarchy: Any) -> list[Partition]:
    """Levels of a :class:`gsym.Hierarchy`, fine to coarse; of many, both ends and five between."""
    counts = list(hierarchy.levels)
    if len(counts) > MOST_LEVELS:
        inner = [k for k in counts if 1 < k < counts[0]]
        ratio = (2 * _FEWER / counts[0]) ** (1 / (MOST_LEVELS - 3))
        wanted = [counts[0] / _FEWER * ratio**i for i in range(MOST_LEVELS - 2)]
        near = {min(inner, key=lambda k: abs(math.log(k / w))) for w in wanted}
        counts = [counts[0], *sorted(near, reverse=True), counts[-1]]
    return [hierarchy[k] for k in counts]


def read_levels(levels: Any) -> tuple[PermutationGroup, ...]:
    """The groups of a chain, in the order in which they come.

    Args:
        levels: A :class:`gsym.Hierarchy` (of many levels, 7 are taken), or groups and partitions
            of the same nodes.

    Raises:
        TypeError: No chain; one group is written ``[group]``.
        GroupError: No level, one twice, or levels on different nodes.
    """
    # A Hierarchy is defined on top of this room.
    if hasattr(levels, "cut") and hasattr(levels, "levels"):
        levels = few_levels(levels)
    if isinstance(levels, PermutationGroup | Partition | str) or not isinstance(levels, Iterable):
        raise TypeError(
            "levels must be a Hierarchy or a list of groups and partitions; got "
            f"{type(levels).__name__}; write [group] for one"
        )
    found: list[PermutationGroup] = []
    for level in levels:
        group = ClusterGroup(level) if isinstance(level, Partition) else level
        if not isinstance(group, PermutationGroup):
            raise TypeError(f"a level is a group or a partition; got {type(level).__name__}")
        if found and group.num_nodes != found[0].num_nodes:
            raise GroupError(
                f"levels must act on the same {found[0].num_nodes} nodes; got one on "
                f"{group.num_nodes}"
            )
        if group in found:
            raise GroupError(f"levels lists {group} twice; every level must be there once")
        found.append(group)
    if not found:
        raise GroupError("levels must hold at least one group; got none")
    return tuple(found)


def level_name(group: PermutationGroup) -> str:
    """A level in two or three words."""
    if not isinstance(group, ClusterGroup):
        m = group.num_generators
        return f"{m} generator{'s' * (m != 1)}" if m else "trivial"
    k, n = group.partition.num_clusters, group.num_nodes
    if group.swaps is not None:
        return f"{k} clusters, swaps"
    return "trivial" if k == n else "S_n" if k == 1 else f"{k} clusters"
