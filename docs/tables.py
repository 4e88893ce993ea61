"""Wide tables scroll in a box of their own, which a keyboard reaches too: a Sphinx extension."""

from __future__ import annotations

from typing import Any

from docutils import nodes


def _box(app: Any, doctree: nodes.document, _: str) -> None:
    for table in list(doctree.findall(nodes.table)):
        place = table.parent.index(table)
        before = nodes.raw(
            "",
            '<div class="scrolling" tabindex="0" role="group" aria-label="A table">',
            format="html",
        )
        table.parent.insert(place, before)
        table.parent.insert(place + 2, nodes.raw("", "</div>", format="html"))


def setup(app: Any) -> dict[str, bool]:
    """Put every table into a box when pages are written."""
    app.connect("doctree-resolved", _box)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
