"""gsym: partial permutation symmetry for signals on a fixed graph."""

from gsym import check, kernels, nn
from gsym.coarsening import (
    Coarsening,
    GroupChoice,
    Hierarchy,
    SubgroupSearch,
    choose_group,
    coarsen,
)
from gsym.groups import ClusterGroup, Orbits, Partition, PermutationGroup, automorphisms

__all__ = [
    "ClusterGroup",
    "Coarsening",
    "GroupChoice",
    "Hierarchy",
    "Orbits",
    "Partition",
    "PermutationGroup",
    "SubgroupSearch",
    "automorphisms",
    "check",
    "choose_group",
    "coarsen",
    "kernels",
    "nn",
]
