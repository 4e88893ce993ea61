"""Formulas of the site as MathML, which browsers show without a script: an MkDocs hook."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_ELEMENT = re.compile(r'(<(span|div) class="arithmatex">)(.*?)(</\2>)', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Rewrite what pymdownx.arithmatex took for a formula."""
    return _ELEMENT.sub(lambda found: found[1] + _mathml(found[3], found[2]) + found[4], content)


def _mathml(escaped: str, tag: str) -> str:
    tex = html.unescape(escaped).strip()[2:-2]  # without \( \) or \[ \]
    found = convert(tex, display="block" if tag == "div" else "inline")
    if "\\" in found:
        raise ValueError(f"a formula has a command that MathML lacks: {tex.strip()}")
    return found
