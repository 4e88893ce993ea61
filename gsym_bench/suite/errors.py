"""What a user can put right: one exception, and names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchmarkError(ValueError):
    """A request, an environment or a folder that the user has to fix; the message says how."""


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first of ``names`` that is not ``known``, and say what was probably meant.

    Raises:
        BenchmarkError: A name is unknown.
    """
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
            raise BenchmarkError(f"unknown {what} {name!r}; did you mean {', '.join(near)}?")
