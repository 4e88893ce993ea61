"""gsym: partial permutation symmetry for signals on a fixed graph."""

from gsym import check, kernels, nn
from gsym.groups import ClusterGroup, Orbits, Partition, PermutationGroup, automorphisms

__all__ = [
    "ClusterGroup",
    "Orbits",
    "Partition",
    "PermutationGroup",
    "automorphisms",
    "check",
    "kernels",
    "nn",
]
