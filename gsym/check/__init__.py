"""Is it really equivariant, and an ordinary PyTorch module?

One function measures, one judges, one says in which part of a model a symmetry is lost, one runs
the conformance kit for tied layers, and one puts a module through what training scripts, servers
and compilers do to modules.
"""

from typing import TYPE_CHECKING

from gsym.check.equivariance import (
    MAX_GENERATORS,
    TOLERANCE,
    assert_equivariant,
    equivariance_error,
)
from gsym.check.layer import check_layer
from gsym.check.profiling import ModuleProfile, Profile, profile
from gsym.check.report import CheckReport

if TYPE_CHECKING:
    from gsym.check.module import TREATMENTS, check_module
else:

    def __getattr__(name):
        # It imports the distributed packages of PyTorch, which take long and are rarely needed.
        if name not in ("TREATMENTS", "check_module"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from gsym.check.module import TREATMENTS, check_module

        return {"TREATMENTS": TREATMENTS, "check_module": check_module}[name]


__all__ = [
    "MAX_GENERATORS",
    "TOLERANCE",
    "TREATMENTS",
    "CheckReport",
    "ModuleProfile",
    "Profile",
    "assert_equivariant",
    "check_layer",
    "check_module",
    "equivariance_error",
    "profile",
]
