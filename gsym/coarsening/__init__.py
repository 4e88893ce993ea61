"""Coarsening: partitions proposed from a graph or its signals, and the choice among them."""

from gsym._validate import ClusteringError, SignalError
from gsym.coarsening.choose import Candidate, GroupChoice, choose_group
from gsym.coarsening.cluster import METHODS, coarsen
from gsym.coarsening.coarsen import Coarsening, Hierarchy, swap_group
from gsym.coarsening.search import SubgroupSearch

__all__ = [
    "METHODS",
    "Candidate",
    "ClusteringError",
    "Coarsening",
    "GroupChoice",
    "Hierarchy",
    "SignalError",
    "SubgroupSearch",
    "choose_group",
    "coarsen",
    "swap_group",
]
