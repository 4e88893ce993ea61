"""gsym: partial permutation symmetry for signals on a fixed graph."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

from gsym import check, errors, kernels, nn
from gsym._graphs import Graph, as_graph
from gsym.groups import (
    ClusterGroup,
    Orbits,
    Partition,
    PermutationGroup,
    Representation,
    automorphisms,
)

if TYPE_CHECKING:
    from gsym import choosing, coarsening, conversion, datasets, risk, transforms
    from gsym._files import read_inputs
    from gsym.choosing import GroupChoice, choose_group
    from gsym.choosing.estimator import SubgroupSearch
    from gsym.coarsening import Coarsening, Hierarchy, coarsen
    from gsym.conversion import convert
    from gsym.risk.covariance import SymmetricCovariance

    __version__: str
else:
    # Building and running a layer needs none of these, and SciPy, scikit-learn and PyG, on which
    # they stand, take longer to import than all the rest.
    _LATE = {
        "Coarsening": "gsym.coarsening",
        "GroupChoice": "gsym.choosing",
        "Hierarchy": "gsym.coarsening",
        "SubgroupSearch": "gsym.choosing.estimator",
        "SymmetricCovariance": "gsym.risk.covariance",
        "choose_group": "gsym.choosing",
        "coarsen": "gsym.coarsening",
        "convert": "gsym.conversion",
        "read_inputs": "gsym._files",
    }
    _ROOMS = ("choosing", "coarsening", "conversion", "datasets", "risk", "transforms")

    def __getattr__(name):
        if name == "__version__":
            return metadata.version("gsym")
        if name in _ROOMS:
            return import_module(f"gsym.{name}")
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_LATE[name]), name)

    def __dir__():
        return sorted({*globals(), *_LATE, *_ROOMS, "__version__"})


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
    "choosing",
    "coarsen",
    "coarsening",
    "conversion",
    "convert",
    "datasets",
    "errors",
    "kernels",
    "nn",
    "read_inputs",
    "risk",
    "transforms",
]
