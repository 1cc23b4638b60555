"""Every Python snippet of the README runs as it stands."""

from __future__ import annotations

import re
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


def given() -> dict[str, Any]:
    """What the text says that a reader brings."""
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
