"""Choosing: which of several groups suits the data, how sure that is, and a page that shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gsym.choosing.choice import Candidate, GroupChoice
from gsym.choosing.choose import choose_group
from gsym.choosing.criteria import CRITERIA, ChoiceData, Criterion, register_criterion
from gsym.choosing.soft import SoftChoice

if TYPE_CHECKING:
    from gsym.choosing.estimator import SubgroupSearch
else:

    def __getattr__(name):
        # The estimator derives from classes of scikit-learn, which takes seconds to import.
        if name != "SubgroupSearch":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from gsym.choosing.estimator import SubgroupSearch

        return SubgroupSearch


__all__ = [
    "CRITERIA",
    "Candidate",
    "ChoiceData",
    "Criterion",
    "GroupChoice",
    "SoftChoice",
    "SubgroupSearch",
    "choose_group",
    "register_criterion",
]
