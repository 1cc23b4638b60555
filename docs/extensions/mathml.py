"""Formulas as MathML, which browsers draw without a script; docutils converts them from LaTeX."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

_LOGGER = logging.getLogger(__name__)


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_converted(node, as_block=False))
    raise nodes.SkipNode


def _display(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{_converted(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def _converted(node: nodes.Element, *, as_block: bool) -> str:
    """The formula as MathML; a warning, and the LaTeX itself, where docutils cannot convert it."""
    latex = node.astext()
    try:
        converted: str = tex2mathml(latex, as_block=as_block)
    except MathError as error:
        _LOGGER.warning("formula %r: %s", latex, error, location=node)
        return f"<code>{escape(latex)}</code>"
    return converted


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer, which ``html_math_renderer = "mathml"`` chooses."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
