"""Coarsening: partitions proposed from a graph or its signals."""

from __future__ import annotations

from gsym._validate import ClusteringError, SignalError
from gsym.coarsening.coarsening import Coarsening, swap_group
from gsym.coarsening.hierarchy import Hierarchy
from gsym.coarsening.methods import METHODS
from gsym.coarsening.propose import coarsen

__all__ = [
    "METHODS",
    "ClusteringError",
    "Coarsening",
    "Hierarchy",
    "SignalError",
    "coarsen",
    "swap_group",
]
