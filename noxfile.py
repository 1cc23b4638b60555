"""Sessions for development: ``nox -s lint types tests``; ``nox -l`` lists them.

Each has a virtual environment of its own, with what `constraints.txt` pins.
"""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "tests"]
_CONSTRAINTS = ("--constraint", "constraints.txt")


def _installed(session: nox.Session, extras: str) -> None:
    session.install(*_CONSTRAINTS, f".[{extras}]")


@nox.session
def lint(session: nox.Session) -> None:
    """Style and the import rule."""
    session.install("ruff", "import-linter")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Types of the package, strictly."""
    _installed(session, "metrics,dev")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The quick tests, each module once."""
    _installed(session, "metrics,plots,test")
    session.run("pytest", *session.posargs)


@nox.session
def full(session: nox.Session) -> None:
    """Every test."""
    _installed(session, "metrics,plots,arviz,test,dev")
    parallel = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
    session.run("pytest", "-m", "slow or not slow", *parallel, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The pytest-benchmark comparisons."""
    _installed(session, "metrics,test,peers")
    session.run("pytest", "benchmarks", "--benchmark-only", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Everything that needs a CUDA device, where there is one."""
    _installed(session, "metrics,test,dev")
    session.run("bash", "benchmarks/gpu_check.sh", external=True)
