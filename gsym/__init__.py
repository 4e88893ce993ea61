"""gsym: partial permutation symmetry for signals on a fixed graph."""

from __future__ import annotations

from importlib import import_module, metadata
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
    from gsym.risk.covariance import SymmetricCovariance

    __version__: str
else:
    # They derive from classes of scikit-learn, which takes seconds to import.
    _ESTIMATORS = {
        "SubgroupSearch": "gsym.choosing.estimator",
        "SymmetricCovariance": "gsym.risk.covariance",
    }

    def __getattr__(name):
        if name == "__version__":
            return metadata.version("gsym")
        if name not in _ESTIMATORS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_ESTIMATORS[name]), name)


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
    "SymmetricCovariance",
    "as_graph",
    "automorphisms",
    "check",
    "choose_group",
    "coarsen",
    "errors",
    "kernels",
    "nn",
]
