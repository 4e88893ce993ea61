"""Is it really equivariant? One function measures, one judges, one runs the conformance kit."""

from gsym.check.equivariance import (
    MAX_GENERATORS,
    TOLERANCE,
    assert_equivariant,
    equivariance_error,
)
from gsym.check.layer import CheckReport, check_layer

__all__ = [
    "MAX_GENERATORS",
    "TOLERANCE",
    "CheckReport",
    "assert_equivariant",
    "check_layer",
    "equivariance_error",
]
