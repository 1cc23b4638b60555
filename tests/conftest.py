"""Shared fixtures: where the test vectors lie, and that the installed package is what is tested."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker has one core; torch reads this when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where pytest-timeout is installed, which the extra `test` does, a test that hangs fails and shows
# where it is. Without it, an entry of pyproject.toml would be an error. The time is long because
# some tests take minutes on cores that others use too.
os.environ.setdefault("PYTEST_TIMEOUT", "900")

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# `python -m pytest` puts the checkout first on the path, where the package has no extension. The
# tests must import the installed package.
sys.path[:] = [p for p in sys.path if Path(p or os.getcwd()).resolve() != ROOT]

from implementations import EVERY, FAST, ISAS, implementation  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Many tests make runs that are too short for samples, and do not ask for a diagnosis."""
    config.addinivalue_line("filterwarnings", "ignore::cogen_fast.DiagnosisWarning")


def pytest_report_header(config: pytest.Config) -> str:
    import cogen_fast

    return f"cogen_fast {cogen_fast.__version__} from {Path(cogen_fast.__file__).parent}"


# Files that take minutes are started first. Started last, one process would run them alone at the
# end.
SLOWEST = {
    *("test_sanitizers.py", "test_exact_posteriors.py", "test_calibration.py", "test_adaptive.py"),
    *("test_triton.py", "test_image_study.py", "test_training_run.py", "test_resume_files.py"),
    *("test_emulated.py", "test_estimates.py", "test_examples.py", "test_snippets.py"),
    "test_app_browser.py",
}


# These fixtures make whole studies or long runs, so all tests that use them are slow.
SLOW_FIXTURES = {
    "test_image_study.py": "whole",
    "test_inferred_noise.py": "drawn",
    "test_synthetic.py": "written",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW_FIXTURES.get(item.path.name) in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    items.sort(key=lambda item: item.path.name not in SLOWEST)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real checkpoints and test vectors; the test is skipped where it is absent.

    With COGEN_FAST_REQUIRE_DATA set, an absent folder is a failure.
    """
    folder = Path(os.environ.get("COGEN_FAST_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        message = f"test data not found at {folder} (set COGEN_FAST_TEST_DATA)"
        if os.environ.get("COGEN_FAST_REQUIRE_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(params=FAST)
def fast(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each fast implementation of the ops."""
    with implementation(request.param) as ops:
        yield ops


@pytest.fixture(params=EVERY)
def ops(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each implementation of the ops, the definition among them."""
    with implementation(request.param) as ops:
        yield ops


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that the extension can use here."""
    with implementation(request.param):
        yield request.param


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: for small batches, several would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
