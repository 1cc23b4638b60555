"""Every Python snippet of the README runs as it stands, and the names in its text exist."""

from __future__ import annotations

import importlib.util
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs the source tree")
TEXT = README.read_text() if README.is_file() else ""
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
# Names in the text, and modules that it runs as programs.
NAMES = sorted(set(re.findall(r"`(cogen_fast(?:\.\w+)+)\b", TEXT)))
PROGRAMS = sorted(set(re.findall(r"python -m (cogen_fast[\w.]*)", TEXT)))


def given() -> dict[str, Any]:
    """The variables that the text says a reader brings."""
    torch.manual_seed(0)
    mask = torch.ones(1, 8, 8)
    mask[:, 2:6, 2:6] = 0
    G = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    return {"G": G, "x_obs": G(torch.zeros(1, 4)).detach()[0], "mask": mask}


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = given()
    if "import cogen_fast" not in SNIPPETS[number]:
        exec("import cogen_fast", names)
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), names)


def test_there_are_names() -> None:
    assert len(NAMES) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_there_after_a_plain_import(name: str) -> None:
    package, *parts = name.split(".")
    reduce(getattr, parts, importlib.import_module(package))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_there(name: str) -> None:
    assert importlib.util.find_spec(name) is not None
