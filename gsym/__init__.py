"""gsym: partial permutation symmetry for signals on a fixed graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gsym import check, errors, kernels, nn
from gsym._graphs import Graph, as_graph
from gsym.choosing import GroupChoice, choose_group
from gsym.coarsening import Coarsening, Hierarchy, coarsen
from gsym.groups import (
    ClusterGroup,
    Orbits,
    Partition,
    PermutationGroup,
    Representation,
    automorphisms,
)

if TYPE_CHECKING:
    from gsym.choosing.estimator import SubgroupSearch
else:

    def __getattr__(name):
        # See gsym.choosing, which imports it as late.
        if name != "SubgroupSearch":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from gsym.choosing.estimator import SubgroupSearch

        return SubgroupSearch


__all__ = [
    "ClusterGroup",
    "Coarsening",
    "Graph",
    "GroupChoice",
    "Hierarchy",
    "Orbits",
    "Partition",
    "PermutationGroup",
    "Representation",
    "SubgroupSearch",
    "as_graph",
    "automorphisms",
    "check",
    "choose_group",
    "coarsen",
    "errors",
    "kernels",
    "nn",
]
