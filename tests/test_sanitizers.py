"""The CPU kernels in C++ alone, under AddressSanitizer and UndefinedBehaviorSanitizer.

`sanitizers/` holds a driver that calls every op of ``csrc`` on arrays of exactly their size, with
and without AVX2, and compares the values with plain loops. It runs twice: with the kernels under
the sanitizers, and with the kernels as they are shipped, on arrays that end at a page that faults.
The Python module is built with these kernels as well, and makes all calls of `native_calls`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import native_calls
import pytest

from cogen_fast.ops import native

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests" / "sanitizers"
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
UNUSABLE_ISA = 77
"""What the driver ends with where the CPU or the compiler lacks the instruction set."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.build,
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source tree"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake on PATH"),
]


def _environment() -> dict[str, str]:
    """Settings of the sanitizers, whatever the caller's are.

    No search for leaks: the kernels own memory through std::vector only, and the search fails where
    a container forbids ptrace. Idle threads sleep: they would spin on cores that others need.
    """
    return {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_WAIT_POLICY": "passive",
    }


def _run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A C++ compiler whose programs run under both sanitizers."""
    found = shutil.which(os.environ.get("CXX") or "c++")
    if found is None:
        pytest.skip("needs a C++ compiler: CXX, or c++ on PATH")
    folder = tmp_path_factory.mktemp("trivial")
    (folder / "trivial.cpp").write_text("int main() { return 0; }\n")
    built = _run([found, *FLAGS, folder / "trivial.cpp", "-o", folder / "trivial"])
    if built.returncode != 0 or _run([folder / "trivial"]).returncode != 0:
        pytest.skip(f"{found} does not build programs that run with {FLAGS[0]}")
    return found


@pytest.fixture(scope="module")
def programs(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both programs, built once for all tests of this file."""
    folder = tmp_path_factory.mktemp("sanitizers")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configured = _run(
        ["cmake", "-S", SOURCES, "-B", folder, *generator, f"-DCMAKE_CXX_COMPILER={compiler}"]
    )
    assert configured.returncode == 0, configured.stderr
    built = _run(["cmake", "--build", folder, "--parallel", "2"])
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.parametrize("program", ["sanitized_ops", "optimised_ops"])
def test_every_op_stays_in_bounds_and_is_right(programs: Path, program: str) -> None:
    done = _run([programs / program])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failures" in done.stdout


REPORTS = {
    "sanitized_ops": {
        "overrun": r"heap-buffer-overflow[^\n]*\nWRITE of size 4",
        "overread": r"heap-buffer-overflow[^\n]*\nREAD of size 4",
        "misaligned": r"runtime error: store to misaligned address",
        "unwritten": r"FAILED: normals float",
    },
    "optimised_ops": {
        "overrun": r"AddressSanitizer: SEGV on unknown address",
        "overread": r"AddressSanitizer: SEGV on unknown address",
        "unwritten": r"FAILED: normals float",
    },
}


@pytest.mark.parametrize("isa", ["plain", "avx2"])
@pytest.mark.parametrize(
    ("program", "fault"),
    [(program, fault) for program, reports in REPORTS.items() for fault in reports],
)
def test_a_planted_fault_is_reported(programs: Path, program: str, fault: str, isa: str) -> None:
    done = _run([programs / program, fault, isa])
    if done.returncode == UNUSABLE_ISA:
        pytest.skip(done.stderr.strip())
    assert done.returncode != 0
    assert re.search(REPORTS[program][fault], done.stderr), done.stderr
    assert re.search(r"^(aborted in|FAILED): .*\bplanted\b", done.stderr, re.MULTILINE)


def _under_python(compiler: str) -> dict[str, str]:
    """Settings for a Python that first loads the sanitizers, and the C++ library they need."""
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        path = Path(_run([compiler, f"-print-file-name={name}"]).stdout.strip())
        if not path.is_file():
            pytest.skip(f"{compiler} has no {name} for Python to load first")
        found.append(str(path.resolve()))
    return _environment() | {"LD_PRELOAD": " ".join(found)}


needs_preload = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs LD_PRELOAD to load the sanitizers first"
)


@needs_preload
def test_the_memory_of_tensors_is_watched(compiler: str) -> None:
    code = "import ctypes, torch; x = torch.zeros(5); ctypes.memset(x.data_ptr(), 0, 21)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=_under_python(compiler),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert re.search(r"heap-buffer-overflow[^\n]*\nWRITE of size 21", done.stderr)


@needs_preload
def test_no_call_of_the_module_leaves_its_bounds(
    compiler: str, programs: Path, tmp_path: Path
) -> None:
    """Valid calls touch only the memory that they were given, invalid ones none."""
    pybind11 = pytest.importorskip("pybind11")
    environment = _under_python(compiler)
    configured = _run(
        [
            *("cmake", "-S", SOURCES, "-B", programs, "-DCOGEN_SANITIZED_MODULE=ON"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
    )
    assert configured.returncode == 0, configured.stderr
    built = _run(["cmake", "--build", programs, "--target", "_native", "--parallel", "2"])
    assert built.returncode == 0, built.stdout + built.stderr
    (module,) = programs.glob("_native*.so")
    printed = native_calls.in_a_process(tmp_path, "--module", module, environment=environment)
    native_calls.assert_all_refused(printed, native.extension())
