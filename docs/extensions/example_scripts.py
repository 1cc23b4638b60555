"""The directive ``example``: the docstring of a script of ``examples/``, its picture, its code."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


class Example(SphinxDirective):
    """``{example} NAME`` shows ``examples/NAME.py``; it has a picture if one is kept."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The text of the docstring, the picture, and the code, which is folded."""
        name = self.arguments[0]
        script, picture = _EXAMPLES / f"{name}.py", _EXAMPLES / "pictures" / f"{name}.png"
        if not script.is_file():
            raise self.error(f"example: expected the name of a script in examples/, got {name!r}")
        self.env.note_dependency(str(script))
        tree = ast.parse(script.read_text())
        shown: list[nodes.Node] = list(self.parse_text_to_nodes(ast.get_docstring(tree) or ""))
        if picture.is_file():
            where = f"{'../' * self.env.docname.count('/')}../examples/pictures/{name}.png"
            shown.append(nodes.image(uri=where, alt=f"The picture that examples/{name}.py draws"))
        code = nodes.literal_block(script.read_text(), script.read_text(), language="python")
        return [*shown, *_folded(f"examples/{name}.py", code)]


def _folded(title: str, content: nodes.Node) -> list[nodes.Node]:
    head = f"<details><summary><code>{title}</code></summary>"
    return [
        nodes.raw("", head, format="html"),
        content,
        nodes.raw("", "</details>", format="html"),
    ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("example", Example)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
