"""Coarsening: partitions proposed from a graph or its signals, and hierarchies of them."""

from gsym._validate import ClusteringError
from gsym.coarsening.cluster import METHODS, coarsen
from gsym.coarsening.coarsen import Coarsening, Hierarchy, swap_group

__all__ = ["METHODS", "ClusteringError", "Coarsening", "Hierarchy", "coarsen", "swap_group"]
