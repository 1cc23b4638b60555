"""The test suite in parts: ``python benchmarks/gpu_tests.py [--help]``.

Each test file runs in a process of its own, several at once. A file that has ended is a line of the
log (``--out``): its counts, why tests were skipped, what failed. Files that passed with the same
sources on the same device are not run again. No file is started after ``--seconds``, and what still
runs at ``--limit`` is stopped, so that a command ends in time; the same command, run again,
continues.

``--sanitizers`` runs the kernels alone instead, under tools of compute-sanitizer.
"""

from __future__ import annotations

import argparse
import collections
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from log import Log
from machine import ROOT, machine

RESULTS = Path(__file__).resolve().parent / "results" / "gpu_tests.jsonl"
# The tools and their options. Calls of CUDA that fail are no errors of a kernel: libraries make
# them to find out what a device can do.
SANITIZERS = {"memcheck": ("--report-api-errors", "no"), "racecheck": (), "synccheck": ()}
EVERY = "slow or not slow"
# Files, and tests in them with small and odd shapes: under the tools, a test is many times slower.
KERNELS = {
    "extension": (
        ("test_cuda.py",),
        "one_launch_equals and 2-20-20-2 and 100-published",
    ),
    "triton": (
        ("test_ops.py", "test_folded.py"),
        "(triton and (3x7x129 or adaptation_matches or ancestors_match or "
        "(misfit_float32 and (3x5x7 or 2x7x5 or 1x9x15)))) or kernels_on_a_gpu",
    ),
}
_SHOWN = 4000  # characters of a failure's output


@dataclass(frozen=True)
class Part:
    """A run of pytest: what it is called in the log, its arguments, and what it runs under."""

    key: dict[str, str]
    arguments: tuple[str, ...]
    launcher: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def suite(folder: Path) -> list[Part]:
    """A part for each test file, large ones first. Missing data are a failure."""
    files = sorted(folder.glob("test_*.py"), key=lambda path: -path.stat().st_size)
    # Files run side by side and share the cores, as pytest-xdist's workers do.
    how = {"COGEN_FAST_REQUIRE_DATA": "1", "OMP_NUM_THREADS": "1"}
    return [Part({"file": path.name}, (str(path),), environment=how) for path in files]


def sanitized(folder: Path, tools: Sequence[str]) -> list[Part]:
    """A part for each tool and kind of kernels, under memory of exactly the tensors' sizes."""
    return [
        Part(
            {"sanitizer": tool, "kernels": kernels},
            (*(str(folder / name) for name in files), "-k", tests),
            ("compute-sanitizer", "--tool", tool, *SANITIZERS[tool], "--error-exitcode", "9"),
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        for tool in tools
        for kernels, (files, tests) in KERNELS.items()
    ]


def run(part: Part, seconds: float) -> dict[str, Any] | None:
    """What came of a part; None where it was stopped after so many seconds."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        pytest = (sys.executable, "-m", "pytest", "-q", "-m", EVERY, f"--junitxml={report}")
        process = subprocess.Popen(
            [*part.launcher, *pytest, *part.arguments],
            env={**os.environ, **part.environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that it can be stopped with all processes that it starts
        )
        try:
            output, _ = process.communicate(timeout=max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None
        found = _counts(report) if report.exists() else {}
    found |= {"status": process.returncode, "seconds": round(time.monotonic() - start, 1)}
    if process.returncode != 0:
        found["output"] = output[-_SHOWN:]
    return found


def _counts(report: Path) -> dict[str, Any]:
    """The counts of a JUnit report, the names of failed tests, and the reasons of skipped ones."""
    suite = ET.parse(report).getroot().find("testsuite")
    assert suite is not None
    names = ("tests", "failures", "errors", "skipped")
    found: dict[str, Any] = {name: int(suite.get(name, "0")) for name in names}
    reasons: collections.Counter[str] = collections.Counter()
    failed = []
    for case in suite.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(case.get("name"))
        reasons.update(skip.get("message", "") for skip in case.iter("skipped"))
    return found | {"failed": failed, "reasons": dict(reasons)}


def complete(
    parts: Sequence[Part], log: Log, known: dict[str, str], workers: int, begin: float, limit: float
) -> bool:
    """Run the parts that have not passed yet; whether all have. Times are seconds from now."""
    start = time.monotonic()

    def passed(part: Part) -> bool:
        return any(line["status"] == 0 for line in log.find(**part.key, **known))

    def made(part: Part) -> dict[str, Any] | None:
        gone = time.monotonic() - start
        return run(part, limit - gone) if gone < begin else None

    left = 0
    with ThreadPoolExecutor(workers) as pool:
        under_way = {pool.submit(made, part): part for part in parts if not passed(part)}
        for done in as_completed(under_way):
            found = done.result()
            if found is None:
                left += 1
                continue
            log.add(**under_way[done].key, **known, **found)
            print(_line(log.lines[-1]), flush=True)
    if left:
        print(f"{left} of {len(parts)} parts are left to do: run the same command again")
    return all(passed(part) for part in parts)


def _line(line: dict[str, Any]) -> str:
    name = line.get("file") or f"{line['sanitizer']}, {line['kernels']}"
    if "tests" not in line:
        return f"{name}: no report, exit status {line['status']}\n{line['output']}"
    counts = f"{line['tests']} tests, {line['skipped']} skipped, {line['seconds']} s"
    if line["status"] == 0:
        return f"{name}: {counts}"
    return f"{name}: {counts}, failed: {line['failed']}\n{line['output']}"


def main() -> None:
    """Run what has not passed yet, for a while; exit status 1 until all has passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=420.0, help="none is begun later")
    parser.add_argument("--limit", type=float, default=510.0, help="and what runs then is stopped")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--sanitizers", nargs="*", choices=SANITIZERS, metavar="TOOL")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sanitizers is None:
        parts = suite(options.tests)
    else:
        parts = sanitized(options.tests, options.sanitizers or tuple(SANITIZERS))
    passed = complete(
        parts,
        Log(options.out),
        machine("tests"),
        options.workers,
        options.seconds,
        options.limit,
    )
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    main()
