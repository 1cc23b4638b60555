"""What the documents refer to is there: links, anchors, files, commands of the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="needs the source tree")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Names of files in the text, of which the first part is a folder at the root.
NAMED = re.compile(r"`((?:\.ci|benchmarks|cogen_fast|csrc|docs|tests)/[\w./-]*)`")


def prose(document: Path) -> str:
    """The text without blocks of code."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)


def anchors(document: Path) -> set[str]:
    """What headings are called in links."""
    headings = re.findall(r"^#+ +(.*)$", prose(document), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def dangling(document: Path) -> list[str]:
    """Links of a document to files or headings that there are not."""
    lost = []
    for link in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", link):
            continue  # to somewhere else
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        known = target.exists() and (not anchor or anchor in anchors(target))
        lost += [] if known else [link]
    return lost


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert dangling(document) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_files_that_are_named_are_there(document: Path) -> None:
    named = NAMED.findall(prose(document))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading: `code`, and more\n")
    document = tmp_path / "document.md"
    document.write_text(
        "# Here\n[a](other.md) [b](other.md#a-heading-code-and-more) [c](#here) [d](https://x.y)\n"
        "[e](missing.md) [f](other.md#no-heading) [g](#nowhere)\n```\n[h](gone.md)\n```\n"
    )
    assert dangling(document) == ["missing.md", "other.md#no-heading", "#nowhere"]
