"""Criteria of a choice, one file each; a file in this folder is found by itself."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from gsym.choosing.criteria._criterion import (
    CRITERIA,
    ChoiceData,
    Criterion,
    Entry,
    group_of,
    register_criterion,
)

for _found in iter_modules(__path__):
    if not _found.name.startswith("_"):
        import_module(f"{__name__}.{_found.name}")

__all__ = ["CRITERIA", "ChoiceData", "Criterion", "Entry", "group_of", "register_criterion"]
