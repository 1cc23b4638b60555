"""Counts too large for any memory are refused by name, before anything is allocated."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hostile
import pytest
from confined import SPACE, confined, needs_linux

from cogen_fast.support import memory

MOST = 2**31 - 1
GROWTH = 150 * 2**20
PAPER = {"method": "paper"}
SIR = {"method": "sir", "learning_rate": None, "steps": None}

# The columns are the argument that the error names, the call, and its arguments.
LARGE: list[tuple[str, str, dict[str, Any]]] = [
    ("populations", "small_run", {"populations": MOST}),
    ("populations", "small_run", {"populations": MOST, "chains": 2, "budget": 3}),
    ("populations", "small_run", {"populations": MOST, "budget": MOST}),
    ("chains", "small_run", {"chains": 10**9}),
    ("chains", "small_run", {"chains": 10**9, "budget": 2}),
    ("chains", "small_run", {"chains": 10**9, "polish": 2}),
    ("chains", "small_run", {"chains": 10**9, "evidence": "frozen"}),
    ("chains", "small_run", PAPER | {"chains": 10**9}),
    ("ais_steps", "small_run", PAPER | {"ais_steps": MOST}),
    ("latent_shape", "long_latents", {"latent_shape": 2**26}),
    ("latent_shape", "long_latents", {"latent_shape": 2**22}),
    ("latent_shape", "long_latents", {"latent_shape": (2**13, 2**13)}),
    ("latent_shape", "long_latents", PAPER | {"latent_shape": 2**26, "chains": 64}),
    ("latent_shape", "small_run", {"latent_shape": 2**26}),
    ("starts", "baseline", {"starts": MOST}),
    ("chains", "baseline", {"starts": 1, "chains": 10**9}),
    ("chains", "baseline", {"method": "gd", "chains": 10**9}),
    ("starts", "baseline", SIR | {"starts": MOST}),
    ("chains", "baseline", SIR | {"starts": 10, "chains": 10**9}),
    ("chains", "bounds", {"chains": 10**9}),
    ("simulations", "bounds", {"simulations": 10**9}),
    ("count", "sample", {"count": 10**9}),
]


@pytest.mark.slow
@needs_linux
@pytest.mark.parametrize(("name", "call", "options"), LARGE, ids=str)
def test_a_count_that_cannot_fit_is_refused_by_name(
    name: str, call: str, options: dict[str, Any]
) -> None:
    ended = confined(hostile.run_with, call, options)
    assert ended.error is not None and issubclass(ended.error, ValueError), ended
    assert ended.message.startswith(f"{name}: expected a "), ended.message
    assert "fits into memory, which is" in ended.message
    assert len(ended.message.splitlines()) == 1
    assert ended.grew < GROWTH, ended


def test_counts_that_fit_are_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is a lower bound: a run is not refused for memory that it only may need."""
    monkeypatch.setattr(memory, "main_memory", lambda: 200_000)
    hostile.small_run(chains=16, budget=20)
    hostile.small_run(method="paper", ais_steps=100, chains=100)
    with pytest.raises(ValueError, match="chains: expected a number of samples that fits"):
        hostile.small_run(method="paper", ais_steps=100, chains=10_000)


def test_the_largest_count_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "main_memory", lambda: 10**6)
    with pytest.raises(ValueError, match=r"^b: .* 0\.0 GB, got 300, which takes 0\.0 GB or more$"):
        memory.check_room({"a": 20, "b": 300}, 1000, "a number")
    memory.check_room({"a": 20, "b": 50}, 1000, "a number")
    monkeypatch.setattr(memory, "main_memory", lambda: None)
    memory.check_room({"a": 10**20}, 1000, "a number")


@needs_linux
def test_a_limit_on_the_process_counts_as_memory() -> None:
    """`confined` sets one."""
    ended = confined(hostile.run_with, "small_run", {"chains": 10**9})
    told = re.search(r"which is ([\d.]+) GB, got", ended.message)
    assert told is not None
    assert SPACE - 1e8 < 1e9 * float(told[1]) < 8e9


@pytest.mark.parametrize("text", ["max\n", "", "9223372036854771712\n"])
def test_groups_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "GROUP_LIMITS", (str(path), "/nowhere"))
    before = memory.main_memory()
    path.write_text(text)
    assert memory.main_memory() == before
    path.write_text("1000\n")
    assert memory.main_memory() == 1000
