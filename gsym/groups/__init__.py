"""Partitions, permutation groups and their orbits: values that know nothing of layers."""

from gsym.groups.automorphism import automorphisms
from gsym.groups.cluster import ClusterGroup
from gsym.groups.orbits import Orbits
from gsym.groups.orthogonal import MatrixRepresentation
from gsym.groups.partition import Partition
from gsym.groups.permutation import PermutationGroup
from gsym.groups.refinement import equitable_partition
from gsym.groups.representation import Representation

__all__ = [
    "ClusterGroup",
    "MatrixRepresentation",
    "Orbits",
    "Partition",
    "PermutationGroup",
    "Representation",
    "automorphisms",
    "equitable_partition",
]
