"""Coarsening: partitions proposed from a graph or its signals."""

from __future__ import annotations

from gsym.coarsening.coarsening import Coarsening, swap_group
from gsym.coarsening.hierarchy import Hierarchy
from gsym.coarsening.methods import METHODS
from gsym.coarsening.propose import coarsen

__all__ = [
    "METHODS",
    "Coarsening",
    "Hierarchy",
    "coarsen",
    "swap_group",
]
