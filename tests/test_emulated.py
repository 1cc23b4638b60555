"""The CUDA device's part of the extension, run on an emulated device against the CPU's.

`emulated/` compiles what each thread of a launch does (``csrc/mlp/device_*.h``) for the CPU:
threads are coroutines, whose order is varied, so that a missing barrier shows. It says nothing of
nvcc, of launches or of speed; `test_cuda` holds a real device to the same runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests" / "emulated"
FLAGS = ("-fsanitize=address,undefined",)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.build,
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source tree"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake on PATH"),
]


def _run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    # Leaks are not searched for, because that fails where a container forbids ptrace.
    settings = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)


def _compiler(folder: Path) -> str:
    """A C++ compiler whose programs have coroutines and run under both sanitizers."""
    found = shutil.which(os.environ.get("CXX") or "c++")
    if found is None:
        pytest.skip("needs a C++ compiler: CXX, or c++ on PATH")
    trivial = folder / "trivial.cpp"
    trivial.write_text("#include <ucontext.h>\nint main() { return 0; }\n")
    built = _run([found, *FLAGS, trivial, "-o", folder / "trivial"])
    if built.returncode != 0 or _run([folder / "trivial"]).returncode != 0:
        pytest.skip(f"{found} does not build programs with ucontext.h that run with {FLAGS[0]}")
    return found


def test_a_device_makes_the_run_of_the_cpu(tmp_path: Path) -> None:
    compiler, build = _compiler(tmp_path), tmp_path / "build"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configured = _run(
        ["cmake", "-S", SOURCES, "-B", build, *generator, f"-DCMAKE_CXX_COMPILER={compiler}"]
    )
    assert configured.returncode == 0, configured.stderr
    built = _run(["cmake", "--build", build, "--parallel", "2"])
    assert built.returncode == 0, built.stdout + built.stderr
    done = _run([build / "emulated"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failures" in done.stdout
