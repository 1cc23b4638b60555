"""Python in the documents runs as it stands, and the names in their text exist.

Nothing is given to a snippet. Each of the README runs by itself; those of a page of the site run in
order, one after the other, as a reader would paste them.
"""

from __future__ import annotations

import importlib.util
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs the source tree")
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES if path.is_file()}


def snippets(text: str) -> list[str]:
    """The blocks of Python, in order."""
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


def found(pattern: str) -> list[str]:
    """What the pattern's group matches in any document, each once."""
    return sorted({match for text in TEXTS.values() for match in re.findall(pattern, text)})


# What is pasted at once, by document; the snippets of the README have numbers.
PASTED = {page: blocks for page, text in TEXTS.items() if (blocks := snippets(text))}
PASTED |= {
    f"{README.name} {number}": [snippet]
    for number, snippet in enumerate(PASTED.pop(README.name, []))
}
# Names in the text, and modules that it runs as programs.
NAMES = found(r"`(cogen_fast(?:\.\w+)+)\b(?!/)")
PROGRAMS = found(r"python -m (cogen_fast[\w.]*)")


def test_there_are_snippets() -> None:
    assert "README.md 0" in PASTED
    assert len([page for page in PASTED if page.startswith("docs/howto/")]) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("page", PASTED)
def test_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "pasted"}
    for number, snippet in enumerate(PASTED[page]):
        try:
            exec(compile(snippet, f"{page}, snippet {number}", "exec"), names)
        except ImportError as error:
            if "pip install 'cogen-fast[" not in str(error):
                raise
            pytest.skip(str(error))


def test_a_snippet_that_fails_is_found() -> None:
    (block,) = snippets("text\n```python\nno_such_name\n```\n```console\n$ ls\n```\n")
    with pytest.raises(NameError, match="no_such_name"):
        exec(block, {})


def test_there_are_names() -> None:
    assert len(NAMES) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_there_after_a_plain_import(name: str) -> None:
    package, *parts = name.split(".")
    reduce(getattr, parts, importlib.import_module(package))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_there(name: str) -> None:
    assert importlib.util.find_spec(name) is not None
