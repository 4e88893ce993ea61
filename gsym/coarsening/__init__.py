"""Coarsening: partitions proposed from a graph or its signals, and the choice among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gsym._validate import ClusteringError, SignalError
from gsym.coarsening.choose import Candidate, GroupChoice, choose_group
from gsym.coarsening.cluster import METHODS, coarsen
from gsym.coarsening.coarsen import Coarsening, Hierarchy, swap_group

if TYPE_CHECKING:
    from gsym.coarsening.search import SubgroupSearch
else:

    def __getattr__(name):
        # The estimator derives from classes of scikit-learn, which takes seconds to import.
        if name != "SubgroupSearch":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from gsym.coarsening.search import SubgroupSearch

        return SubgroupSearch


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
