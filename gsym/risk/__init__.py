"""Risk: the error that the best equivariant predictor of a group makes on new signals."""

from __future__ import annotations

from gsym.risk.predictor import CommutantRidge
from gsym.risk.ridge import commutant_ridge

__all__ = ["CommutantRidge", "commutant_ridge"]
