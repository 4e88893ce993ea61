"""The methods of :func:`gsym.coarsen`: one file per family, which ends in its ``METHODS``.

A file in this folder is found by itself; its name does not begin with an underscore.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from gsym.coarsening._request import Method

# What "auto" stands for with a graph alone, and wherever there are signals or no graph.
DEFAULTS = {"graph": "paris", "signals": "ward"}
METHODS: dict[str, Method] = {}  # by name, in alphabetical order
for _found in iter_modules(__path__):
    if not _found.name.startswith("_"):
        METHODS |= import_module(f"{__name__}.{_found.name}").METHODS
METHODS = dict(sorted(METHODS.items()))


def table(indent: str = "") -> str:
    """The methods as a table of reStructuredText, for docstrings."""
    defaults = " or ".join(f"``{name}``" for name in DEFAULTS.values())
    rows = [("method", "input", "levels", "how"), ("``auto``", "", "", defaults)]
    rows += [(f"``{name}``", m.input, m.levels, m.summary) for name, m in METHODS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ruler = ["=" * width for width in widths]
    lines = [ruler, rows[0], ruler, *rows[1:], ruler]
    texts = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return f"\n{indent}".join(text.rstrip() for text in texts)


def listing(of: str) -> str:
    """Names of the methods that cluster by the graph, signals or shape."""
    either = "either, both"
    return ", ".join(
        name
        for name, m in METHODS.items()
        if m.input == of or (of != "shape" and m.input == either)
    )
