"""Configuration of the documentation site: ``sphinx-build -W --keep-going -n docs site``.

The build needs the installed package, whose docstrings make the API reference, and no network.
Pages are Markdown (MyST). Formulas become MathML in the build, so that the pages need no network
either.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

import cogen_fast

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "cogen-fast"
author = "the authors of cogen-fast"
version = release = cogen_fast.__version__
extensions = [
    "myst_parser",  # pages in Markdown
    "sphinx.ext.autodoc",  # the API reference from docstrings
    "sphinx.ext.napoleon",  # their sections (Args, Returns, Raises)
    "sphinx_copybutton",  # a button that copies a snippet without its prompts
    "example_scripts",  # the gallery
    "mathml",  # formulas
]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["extensions"]

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "cogen-fast"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 80
# A name in single backticks of a docstring is linked where the reference has it.
default_role = "py:obj"

nitpick_ignore_regex = [
    ("py:obj", r"(?s).*"),  # names that the reference does not have stay plain code
    # Types of other packages, whose references are not read because that needs a network.
    ("py:class", r"(Space|NoiseMaps|Border|Tensor)"),  # written out in the signature's own text
    ("py:class", r"(torch|numpy|npt|np|PIL|pathlib|collections|nn|Image)\b.*"),
]


# Documents elsewhere in the repository, and the pages that include them.
_INCLUDED = {
    "CONTRIBUTING.md": "contributing",
    "SECURITY.md": "security",
    "benchmarks/results/exact_posteriors.md": "reports/exact_posteriors",
    "benchmarks/results/image_study.md": "reports/image_study",
    "cogen_fast/generators/weights/fashion_32.md": "model_card",
}
_HERE = Path(__file__).resolve().parent


def _lead_to_pages(app: Any, page: str, source: list[str]) -> None:
    """Let links to documents elsewhere in the repository lead to the pages that include them."""

    def led(link: re.Match[str]) -> str:
        file = (_HERE / page).parent.joinpath(link[1]).resolve()
        included = {_HERE.parent / path: to for path, to in _INCLUDED.items()}
        return f"](/{included[file]}.md)" if file in included else link[0]

    source[0] = re.sub(r"\]\(([\w./]+\.md)\)", led, source[0])


def _split_names(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep names that share a text together; Sphinx would take all but the last for types."""
    for number, line in enumerate(lines):
        if shared := re.match(r":(param|ivar) (\w+(?:, \w+)+):", line):
            names = shared[2].replace(", ", ",\u200b")
            lines[number] = f":{shared[1]} {names}:{line[shared.end() :]}"


def _literals_last(app: Any, domain: str, kind: str, content: nodes.Element) -> None:
    """Put the literals of a union last: Sphinx links no type that comes after one."""
    for field in content.findall(nodes.field):
        if not field[0].astext().startswith("type "):
            continue
        for text in list(field[1].findall(nodes.Text)):
            ordered = sorted(text.split(" | "), key=lambda part: "Literal[" in part)
            text.parent.replace(text, nodes.Text(" | ".join(ordered)))


def _public(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Resolve a name by the module that defines it to the public name that is documented."""
    target = node.get("reftarget", "")
    name = target.rpartition(".")[2]
    public = getattr(cogen_fast, name, None)
    if node.get("refdomain") != "py" or name not in cogen_fast.__all__:
        return None
    if target != f"{getattr(public, '__module__', None)}.{name}":
        return None
    domain, page = env.get_domain("py"), env.docname
    return domain.resolve_xref(
        env, page, app.builder, node["reftype"], f"cogen_fast.{name}", node, content
    )


def setup(app: Any) -> None:
    """Connect the functions above, those with a priority after autodoc's own and napoleon's."""
    app.connect("source-read", _lead_to_pages)
    app.connect("autodoc-process-docstring", _split_names, priority=900)
    app.connect("object-description-transform", _literals_last, priority=900)
    app.connect("missing-reference", _public)
