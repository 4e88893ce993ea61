"""Partitions, permutation groups and their orbits: values that know nothing of layers."""

from gsym._validate import GraphError, GroupError, PartitionError
from gsym.groups.orbits import Orbits
from gsym.groups.partition import Partition
from gsym.groups.permutation import ClusterGroup, PermutationGroup

__all__ = [
    "ClusterGroup",
    "GraphError",
    "GroupError",
    "Orbits",
    "Partition",
    "PartitionError",
    "PermutationGroup",
]
