"""The methods of :func:`gsym.coarsen`: one file per family, which ends in its ``METHODS``.

A file in this folder is found by itself; its name does not begin with an underscore.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from gsym.coarsening._request import Method

METHODS: dict[str, Method] = {}  # by name, in alphabetical order
for _found in iter_modules(__path__):
    if not _found.name.startswith("_"):
        METHODS |= import_module(f"{__name__}.{_found.name}").METHODS
METHODS = dict(sorted(METHODS.items()))
