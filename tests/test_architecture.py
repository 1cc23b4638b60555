"""The import rule, declared for import-linter in pyproject.toml: kept, and able to fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cogen_fast

ROOT = Path(__file__).resolve().parent.parent
CHECK = "from importlinter.cli import lint_imports_command; lint_imports_command()"
# The columns are the module, the planted line, and the contract that it breaks.
PLANTED = (
    ("problem/density", "from cogen_fast.sampler import hmc", "never go upward"),
    ("problem/observation", "import cogen_fast.tasks", "never go upward"),
    ("results/result", "def f():\n    from cogen_fast.methods.loop import Loop", "never go upward"),
    ("ops/dispatch", "from cogen_fast.problem.observation import Mask", "never go upward"),
    ("support/files", "from cogen_fast.results.grids import LabelledPicture", "never go upward"),
    ("tasks", "from cogen_fast.experiments import demo", "never go upward"),
    ("experiments/demo", "from cogen_fast.cli.main import main", "never go upward"),
    ("training/losses", "from cogen_fast import tasks", "never go upward"),
    ("methods/paper", "from cogen_fast.generators import MLPGenerator", "by name"),
    ("generators/mlp", "from cogen_fast.problem.density import Potential", "nothing of what"),
    ("sampler/ais", "from cogen_fast import cogenerate", "public names"),
    ("sampler/leapfrog", "from cogen_fast.sampler import smc", "no cycles"),
)


def _checked(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHECK, "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the installed package's sources."""
    assert cogen_fast.__file__ is not None
    shutil.copytree(
        Path(cogen_fast.__file__).parent,
        tmp_path / "cogen_fast",
        ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "weights"),
    )
    return tmp_path


def test_imports_keep_the_rule(copied: Path) -> None:
    checked = _checked(copied)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "0 broken" in checked.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "source", "contract"), PLANTED, ids=[f"{p[0]}-{p[2]}" for p in PLANTED]
)
def test_a_planted_violation_is_found(
    copied: Path, module: str, source: str, contract: str
) -> None:
    with (copied / "cogen_fast" / f"{module}.py").open("a") as file:
        file.write(f"\n{source}\n")
    checked = _checked(copied)
    assert checked.returncode == 1, checked.stdout + checked.stderr
    broken = [line for line in checked.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(contract in line for line in broken), checked.stdout
