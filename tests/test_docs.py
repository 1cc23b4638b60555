"""References in the documents exist: links, anchors, files, commands, names of the reference."""

from __future__ import annotations

import ast
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

import cogen_fast
from cogen_fast.cli.parser import build_parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cogen_fast/**/*.md")]
)
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="needs the source tree")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Names of files in the text, whose first part is a folder at the root of the repository.
NAMED = re.compile(r"`((?:\.ci|benchmarks|cogen_fast|csrc|docs|examples|tests)/[\w./-]*)`")


def prose(document: Path) -> str:
    """The text without blocks of code."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.M | re.S)


def anchors(document: Path) -> set[str]:
    """The anchors of the headings, as links name them."""
    headings = re.findall(r"^#+ +(.*)$", prose(document), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def dangling(document: Path) -> list[str]:
    """The links of a document to files or headings that do not exist."""
    lost = []
    for link in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", link):
            continue  # a link to another site
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


def commands(document: Path) -> list[list[str]]:
    """The words of each command in the blocks of code, without its prompt."""
    text = document.read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^\$ (.*)$", text, re.M)]


def arguments_of(words: list[str]) -> list[str] | None:
    """The arguments that `cogen-fast` gets; None for another program."""
    if words[0] == "cogen-fast":
        return words[1:]
    return words[words.index("cogen_fast") + 1 :] if "cogen_fast" in words else None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_commands_are_those_of_the_parser(document: Path) -> None:
    for words in commands(document):
        arguments = arguments_of(words)
        if arguments is not None:
            build_parser().parse_args(arguments)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_programs_are_there(document: Path) -> None:
    run = [words[1] for words in commands(document) if words[0] == "python" and words[1] != "-m"]
    assert [name for name in run if not (ROOT / name).is_file()] == []


def test_a_command_with_an_unknown_option_is_found(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text("```console\n$ cogen-fast info \\\n    --verbose\n$ ls\n```\n")
    first, second = commands(document)
    assert arguments_of(first) == ["info", "--verbose"]
    assert arguments_of(second) is None
    with pytest.raises(ValueError, match="--verbose"):
        build_parser().parse_args(arguments_of(first))


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading: `code`, and more\n")
    document = tmp_path / "document.md"
    document.write_text(
        "# Here\n[a](other.md) [b](other.md#a-heading-code-and-more) [c](#here) [d](https://x.y)\n"
        "[e](missing.md) [f](other.md#no-heading) [g](#nowhere)\n```\n[h](gone.md)\n```\n"
    )
    assert dangling(document) == ["missing.md", "other.md#no-heading", "#nowhere"]


def reference() -> set[str]:
    """The dotted names that the pages of the reference document."""
    found = set()
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        scope = ""
        for kind, name in re.findall(r"^\.\. (\w+):: ([\w.]+)", page.read_text(), re.M):
            if kind == "currentmodule":
                scope = f"{name}."
            else:
                found.add(name if name.startswith("cogen_fast") else scope + name)
    return found


def test_the_reference_has_every_public_name() -> None:
    documented = [pkgutil.resolve_name(name) for name in reference()]
    missing = [
        name
        for name in cogen_fast.__all__
        if not any(getattr(cogen_fast, name) is each for each in documented)
    ]
    assert missing == []


def test_the_gallery_has_every_example() -> None:
    shown = re.findall(r"^```\{example\} (\w+)$", (ROOT / "docs/gallery.md").read_text(), re.M)
    assert sorted(shown) == sorted(
        path.stem for path in ROOT.glob("examples/*.py") if path.stem != "report"
    )


def functions_named(document: Path) -> list[tuple[str, str]]:
    """Files and the names that follow them in the text: "`FILE.py`, `NAME`, `NAME` and `NAME`"."""
    runs = re.findall(r"`([\w/]+\.py)`((?:(?:, | and )`\w+`)+)", prose(document))
    return [(file, name) for file, names in runs for name in re.findall(r"`(\w+)`", names)]


def test_functions_that_the_method_names_are_there() -> None:
    found = functions_named(ROOT / "docs/method.md")
    assert len(found) >= 20
    for file, name in found:
        body = ast.parse((ROOT / file).read_text()).body
        assert name in {getattr(node, "name", None) for node in body}, (file, name)


def test_sentences_that_are_explained_are_those_of_the_diagnosis() -> None:
    page = (ROOT / "docs/howto/diagnoses.md").read_text()
    tables = re.findall(r"^\| sentence begins .*\n\|---.*\n((?:\|.*\n)+)", page, re.M)
    sentences = [row.split("|")[1].strip() for table in tables for row in table.splitlines()]
    said = (ROOT / "cogen_fast/results/diagnostics.py").read_text()
    assert len(sentences) >= 10
    assert [sentence for sentence in sentences if f'"{sentence}' not in said] == []
