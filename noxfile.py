"""Sessions for development: ``nox -s lint types tests docs``; ``nox -l`` lists them.

Each has a virtual environment of its own; where it has torch, `constraints.txt` pins it.
"""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "tests"]
_CONSTRAINTS = ("--constraint", "constraints.txt")
# Compiling the CUDA kernels takes minutes where nvcc is found, whether or not there is a device.
_ON_CPU = {"COGEN_FAST_CUDA": "OFF"}


def _installed(session: nox.Session, extras: str, **environment: str) -> None:
    session.install(*_CONSTRAINTS, f".[{extras}]", env=environment)


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
    _installed(session, "plots,dev", **_ON_CPU)
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The quick tests, each module once."""
    _installed(session, "metrics,plots,test", **_ON_CPU)
    session.run("pytest", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Links, files and commands of the documents exist, and their snippets run."""
    _installed(session, "arviz,metrics,plots,test", **_ON_CPU)
    documents = ("tests/test_docs.py", "tests/test_snippets.py")
    session.run("pytest", "-m", "slow or not slow", *documents, *session.posargs)


@nox.session
def site(session: nox.Session) -> None:
    """The documentation site, in ``site/``; a warning is an error."""
    _installed(session, "docs", **_ON_CPU)
    session.run("sphinx-build", "-W", "--keep-going", "-n", *session.posargs, "docs", "site")


@nox.session
def full(session: nox.Session) -> None:
    """Every test."""
    _installed(session, "app-test,plots,test,dev")
    parallel = ("-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder")
    session.run("pytest", "-m", "slow or not slow", *parallel, *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """The tests that compile C++: the kernels alone, the emulated device, the wheel."""
    _installed(session, "test,dev", **_ON_CPU)
    session.run("pytest", "-m", "build", *session.posargs)


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
