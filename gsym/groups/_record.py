"""Values as dictionaries that JSON can hold, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMAT = 1


def record(kind: str, **fields: object) -> dict[str, Any]:
    """A dictionary that says what it holds, in which format."""
    return {"type": kind, "format": FORMAT, **fields}


def read_record(
    given: object, fields: Mapping[str, tuple[str, ...]], error: type[ValueError]
) -> tuple[str, list[Any]]:
    """The kind of a dictionary from :func:`record` and its fields.

    Args:
        given: The dictionary.
        fields: Names of the fields by kind that is accepted here.
        error: Raised where the dictionary is another, and names what is wrong with it.
    """
    wanted = " or ".join(fields)
    if not isinstance(given, Mapping):
        raise TypeError(f"expected the to_dict() of a {wanted}; got {type(given).__name__}")
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in fields:
        raise error(f"expected the to_dict() of a {wanted}; got one of type {kind!r:.80}")
    if given.get("format") != FORMAT:
        raise error(
            f"this {kind} has format {given.get('format')!r:.80}, but {FORMAT} is the one that can "
            "be read; update gsym, or save it again"
        )
    missing = [name for name in fields[kind] if name not in given]
    if missing:
        raise error(f"the {kind} has no field {', '.join(missing)}; it is no complete to_dict()")
    return kind, [given[name] for name in fields[kind]]
