"""What the site needs of docstrings that also read well in a terminal: a Griffe extension."""

from __future__ import annotations

import inspect
import pydoc
import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|func|meth|mod):`~?([^`]+)`")
_TABLE = re.compile(r"^=+(?: +=+)+\n(?:.+\n)*=+(?: +=+)+$", re.MULTILINE)
_FORMULA = re.compile(r"^\.\. math::\n((?: +.*\n?|\n)+)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites Sphinx roles, formulas, tables and examples as Markdown knows them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            text = obj.docstring.value
            if "{methods}" in text:  # lists that are made of a registry when the module is imported
                text = inspect.getdoc(pydoc.locate(obj.path)) or text
            obj.docstring.value = markdown(text)


def markdown(text: str) -> str:
    """The docstring in Markdown."""
    text = _ROLE.sub(r"`\1`", text)
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = _FORMULA.sub(lambda found: f"$$\n{found[1].strip()}\n$$\n\n", text)
    text = _TABLE.sub(lambda found: _table(found[0]), text)
    # The section that Griffe shows as code is called so.
    return re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def _table(text: str) -> str:
    """A simple table of reStructuredText as one of Markdown."""
    ruler, head, _, *body, _ = text.splitlines()
    columns = [slice(*found.span()) for found in re.finditer("=+", ruler)]
    rows = [[line[column].strip() for column in columns] for line in (head, *body)]
    rows.insert(1, ["---"] * len(columns))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
