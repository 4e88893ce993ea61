"""Formulas of the site as MathML, which browsers show without a script: a Sphinx extension."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


def mathml(tex: str, display: str) -> str:
    """The formula in MathML, or an error that names what MathML lacks."""
    found = convert(tex.strip(), display=display)
    if "\\" in found:
        raise ValueError(f"a formula has a command that MathML lacks: {tex.strip()}")
    return found


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Give Sphinx this way to write formulas."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
