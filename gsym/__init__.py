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
    from gsym._files import read_inputs
    from gsym.choosing.estimator import SubgroupSearch
    from gsym.conversion import convert
    from gsym.risk.covariance import SymmetricCovariance

    __version__: str
else:
    # Scikit-learn, from whose classes the first two derive, and PyG take seconds to import.
    _LATE = {
        "SubgroupSearch": "gsym.choosing.estimator",
        "SymmetricCovariance": "gsym.risk.covariance",
        "convert": "gsym.conversion",
        "read_inputs": "gsym._files",
    }

    def __getattr__(name):
        if name == "__version__":
            return metadata.version("gsym")
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_LATE[name]), name)


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
    "convert",
    "errors",
    "kernels",
    "nn",
    "read_inputs",
]
