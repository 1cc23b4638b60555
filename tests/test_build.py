"""The build's decisions, the wheel's content, and what importing the package must not do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import cogen_fast
from cogen_fast.ops import native

ROOT = Path(__file__).resolve().parent.parent
BUILD_TOOLS = ("scikit_build_core", "pybind11", "pip")

needs_source = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").is_file(), reason="needs the source tree"
)
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake on PATH")


def test_build_info_is_consistent() -> None:
    info = native.extension().build_info()
    assert bool(info["cuda_archs"]) == info["with_cuda"]
    assert info["isa_built"][0] == "plain"
    assert set(info["isa_usable"]) <= set(info["isa_built"])
    assert info["isa"] == info["isa_usable"][-1]
    assert info["compiler"]


def test_extension_without_cuda_says_so() -> None:
    info = native.extension().build_info()
    assert bool(info["without_cuda"]) != info["with_cuda"]
    if info["with_cuda"]:
        pytest.skip("this extension was built with CUDA")
    assert info["without_cuda"].startswith(("COGEN_FAST_CUDA=OFF", "COGEN_FAST_CUDA=AUTO found"))
    assert f"without CUDA ({info['without_cuda']})" in str(cogen_fast.backends())
    for call in (native.extension().noise_cuda, native.extension().anneal_mlp_cuda):
        with pytest.raises(RuntimeError, match="built without CUDA"):
            call()


@pytest.mark.slow
def test_import_loads_neither_triton_nor_the_extension() -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import cogen_fast;"
        "print('cogen_fast.ops._native' in sys.modules, ('triton' in sys.modules) != before)"
    )
    # With -I neither the checkout nor the working folder is on the import path.
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def _tools(folder: Path) -> dict[str, str]:
    """An environment whose PATH has a C++ compiler, cmake and ninja, and nothing else."""
    folder.mkdir()
    for tool in ("cmake", "ninja", "make", "c++", "as", "ld", "ar", "ranlib"):
        found = shutil.which(tool)
        if found:
            (folder / tool).symlink_to(found)
    hidden = ("CUDACXX", "CUDA_PATH", "CUDA_HOME", "COGEN_FAST_CUDA", "CXX")
    kept = {k: v for k, v in os.environ.items() if k not in hidden}
    return {**kept, "PATH": str(folder)}


def _configure(tmp_path: Path, cuda: str, *defines: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build")]
    return subprocess.run(
        [*command, f"-DCOGEN_FAST_CUDA={cuda}", *defines],
        env=_tools(tmp_path / "bin"),
        capture_output=True,
        text=True,
        check=False,
    )


@needs_source
@needs_cmake
@pytest.mark.parametrize("value", ["yes", "", "auto"])
def test_other_values_of_the_cuda_option_are_refused(tmp_path: Path, value: str) -> None:
    done = _configure(tmp_path, value)
    assert done.returncode != 0
    assert f"COGEN_FAST_CUDA: expected AUTO, ON or OFF, got '{value}'" in done.stderr


@pytest.mark.slow
@needs_source
@needs_cmake
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler named c++")
def test_cuda_on_fails_clearly_without_a_compiler(tmp_path: Path) -> None:
    done = _configure(tmp_path, "ON")
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert "COGEN_FAST_CUDA=ON, but no working CUDA compiler was found" in message


@pytest.mark.slow
@needs_source
@needs_cmake
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler named c++")
@pytest.mark.skipif(importlib.util.find_spec("pybind11") is None, reason="needs pybind11")
@pytest.mark.parametrize(
    ("value", "reason"), [("OFF", "COGEN_FAST_CUDA=OFF"), ("AUTO", "COGEN_FAST_CUDA=AUTO found ")]
)
def test_why_cuda_is_left_out_goes_into_the_extension(
    tmp_path: Path, value: str, reason: str
) -> None:
    where = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"],
        capture_output=True,
        text=True,
        check=True,
    )
    defines = (f"-Dpybind11_DIR={where.stdout.strip()}", f"-DPython_EXECUTABLE={sys.executable}")
    done = _configure(tmp_path, value, *defines)
    assert done.returncode == 0, done.stderr
    assert f"CUDA kernels OFF ({reason}" in done.stdout
    files = [path for path in (tmp_path / "build").rglob("*") if path.is_file()]
    made = [path.read_text() for path in files if path.name in ("flags.make", "build.ninja")]
    assert any("COGEN_WITHOUT_CUDA=" in text and reason in text for text in made)


def _unoptimised(folder: Path) -> Path:
    """A compiler that ignores -O3, which halves the time of a build that is only looked at."""
    launcher = folder / "launcher"
    launcher.write_text(
        '#!/bin/sh\nfor each; do shift; [ "$each" = -O3 ] || set -- "$@" "$each"; done\nexec "$@"\n'
    )
    launcher.chmod(0o755)
    return launcher


@pytest.mark.slow
@pytest.mark.build
@needs_source
@pytest.mark.skipif(
    any(importlib.util.find_spec(tool) is None for tool in BUILD_TOOLS),
    reason=f"needs {', '.join(BUILD_TOOLS)}",
)
def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    command += [
        "--config-settings",
        "cmake.define.COGEN_FAST_CUDA=OFF",
        "--config-settings",
        f"build-dir={tmp_path / 'build'}",
    ]
    if os.name == "posix":
        define = f"cmake.define.CMAKE_CXX_COMPILER_LAUNCHER={_unoptimised(tmp_path)}"
        command += ["--config-settings", define]
    done = subprocess.run(
        [*command, "-w", str(tmp_path), str(ROOT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("cogen_fast-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "cogen_fast").rglob("*.py")}
    assert sources <= set(names)
    assert {"cogen_fast/py.typed", "cogen_fast/ops/_native.pyi"} <= set(names)
    assert (
        sum(n.startswith("cogen_fast/ops/_native.") and n.endswith((".so", ".pyd")) for n in names)
        == 1
    )
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert {n.split("/")[0].split("-")[0] for n in names} == {"cogen_fast"}
    assert not [n for n in names if n.endswith((".cpp", ".h", ".cu", ".pyc"))]


@pytest.mark.slow
@needs_source
@pytest.mark.skipif(
    importlib.util.find_spec("scikit_build_core") is None, reason="needs scikit_build_core"
)
def test_sdist_can_be_built_from(tmp_path: Path) -> None:
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("cogen_fast-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {
        "pyproject.toml",
        "CMakeLists.txt",
        "LICENSE",
        "csrc/common/philox.h",
        "csrc/sampler/noise_cuda.cu",
    }
    needed |= {"cogen_fast/ops/native.py", "cogen_fast/ops/_native.pyi", "tests/test_build.py"}
    needed |= {"examples/report.py", "examples/blur.py", "examples/pictures/blur.png"}
    assert needed <= names
    assert not [n for n in names if n.startswith((".ci", "build/")) or n.endswith((".so", ".pyc"))]
