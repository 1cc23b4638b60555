"""The GPU check's own code, as far as a CPU can run it: parts that pass, fail, hang, continue."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gpu_facts
import gpu_tests
import pytest
import torch
from log import Log
from machine import digest, machine

PASSES = "def test_a(): pass\ndef test_b(): pass\n"
FAILS = """import pytest
def test_a(): assert 'told' == ''
@pytest.mark.skip('no reason')
def test_b(): pass
"""
HANGS = "import time\ndef test_a(): time.sleep(100)\n"
BREAKS = "import os\ndef test_a(): os._exit(3)\n"
KNOWN = {"device": "none"}


def suite(folder: Path, **files: str) -> list[gpu_tests.Part]:
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    return gpu_tests.suite(folder)


def complete(
    parts: list[gpu_tests.Part], log: Path, begin: float = 60.0, limit: float = 90.0
) -> bool:
    return gpu_tests.complete(parts, Log(log), KNOWN, 2, begin, limit)


def test_each_file_is_a_line_with_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    assert not complete(suite(tmp_path, passes=PASSES, fails=FAILS, breaks=BREAKS), log)
    lines = {line["file"]: line for line in Log(log).lines}
    passes, fails = lines["test_passes.py"], lines["test_fails.py"]
    assert (passes["status"], passes["tests"], passes["failed"]) == (0, 2, [])
    assert (fails["status"], fails["tests"], fails["failures"]) == (1, 2, 1)
    assert fails["failed"] == ["test_a"] and list(fails["reasons"].values()) == [1]
    assert "told" in fails["output"]
    assert lines["test_breaks.py"]["status"] == 3
    told = capsys.readouterr().out
    assert "test_passes.py: 2 tests, 0 skipped" in told
    assert "test_breaks.py: no report, exit status 3" in told
    assert "failed: ['test_a']" in told


def test_what_passed_is_not_run_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    complete(suite(tmp_path, passes=PASSES, fails=FAILS), log)
    assert complete(suite(tmp_path, fails=PASSES), log)
    files = [line["file"] for line in Log(log).lines]
    assert sorted(files) == ["test_fails.py", "test_fails.py", "test_passes.py"]
    assert complete(suite(tmp_path), log, begin=0.0)


def test_none_is_begun_too_late_and_what_hangs_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    assert not complete(suite(tmp_path, passes=PASSES), log, begin=0.0)
    assert not log.exists()
    assert "1 of 1 parts are left to do: run the same command again" in capsys.readouterr().out
    assert not complete(suite(tmp_path, hangs=HANGS), log, limit=8.0)
    assert [line["file"] for line in Log(log).lines] == ["test_passes.py"]
    assert "1 of 2 parts are left to do" in capsys.readouterr().out


def test_parts_run_under_a_launcher(tmp_path: Path) -> None:
    (part,) = suite(tmp_path, passes=PASSES)
    failing = gpu_tests.Part(
        {"sanitizer": "none"}, part.arguments, ("sh", "-c", '"$@"; exit 9', "sh")
    )
    found = gpu_tests.run(failing, 60.0)
    assert found is not None and found["status"] == 9 and found["tests"] == 2


def test_the_command_runs_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite(tmp_path, passes=PASSES)
    log = tmp_path / "log.jsonl"
    command = ["gpu_tests", f"--out={log}", f"--tests={tmp_path}"]
    for late, status in ((["--seconds=0"], 1), ([], 0)):
        monkeypatch.setattr(sys, "argv", [*command, *late])
        with pytest.raises(SystemExit) as ended:
            gpu_tests.main()
        assert ended.value.code == status
    assert Log(log).lines[0].items() >= machine("tests").items()


def test_there_is_a_part_for_every_tool_and_every_file_of_the_suite() -> None:
    tests = Path(__file__).resolve().parent.parent / "tests"
    keys = [part.key["file"] for part in gpu_tests.suite(tests)]
    assert sorted(keys) == sorted(path.name for path in tests.glob("test_*.py"))
    parts = gpu_tests.sanitized(tests, tuple(gpu_tests.SANITIZERS))
    found = [(part.launcher[2], part.key["kernels"]) for part in parts]
    assert found == list(itertools.product(gpu_tests.SANITIZERS, ("extension", "triton")))


def test_kernels_under_sanitizers_are_tests_that_there_are() -> None:
    """With the interpreter's Triton in the GPU's place, for the names."""
    tests = Path(__file__).resolve().parent.parent / "tests"
    for part in gpu_tests.sanitized(tests, ["memcheck"]):
        how = {"TRITON_INTERPRET": "1", **part.environment}
        arguments = (*part.arguments, "--collect-only")
        listed = replace(part, arguments=arguments, launcher=(), environment=how)
        found = gpu_tests.run(listed, 100.0)
        assert found is not None and found["status"] == 0, found


def test_figures_are_those_of_this_machine_and_these_sources(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    here = machine("tests")
    log.add(file="here", **here)
    log.add(file="elsewhere", **{**here, "device": "another"})
    log.add(file="before", **{**here, "sources": "other"})
    log.add(file="of no machine")
    found = gpu_facts.figures(log.path, "tests")
    assert [line["file"] for line in found] == ["here", "of no machine"]
    assert digest("tests") != digest()


def test_a_stage_is_an_entry_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.add(rate=1.0)
    record = tmp_path / "gpu_check.json"
    monkeypatch.setenv("COGEN_FAST_COMMIT", "abc")
    monkeypatch.setattr(gpu_facts.native.extension(), "build_info", lambda: {"with_cuda": True})
    for stage, device in (("bench", False), ("bench", True), ("dense", True)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=device: here)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device")
        monkeypatch.setattr(sys, "argv", ["gpu_facts", str(record), stage, str(log.path)])
        if device:
            gpu_facts.main()
        else:
            with pytest.raises(SystemExit, match="expected a CUDA device"):
                gpu_facts.main()
            assert not record.exists()
    found = json.loads(record.read_text())
    assert list(found) == ["bench", "dense"]
    assert found["bench"]["figures"] == [{"rate": 1.0}]
    assert found["bench"]["commit"] == "abc" and found["bench"]["device"] == "a device"


def test_a_commit_that_is_named_needs_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    monkeypatch.setenv("COGEN_FAST_COMMIT", "abc")
    assert gpu_facts.commit() == "abc"
    monkeypatch.delenv("COGEN_FAST_COMMIT")
    assert gpu_facts.commit() == "unknown"


def test_sources_are_known_before_the_package_is_installed() -> None:
    script = Path(__file__).parent / "machine.py"
    code = f"import sys, runpy; sys.modules['cogen_fast'] = None; runpy.run_path({str(script)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


# In place of Python on a machine with a GPU: it writes down what it is asked for.
PYTHON = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
    benchmarks/machine.py) echo 0123 ;;
    "-m pip wheel"*) for last; do [ "$before" = -w ] && mkdir "$last" && touch "$last/a.whl"
        before=$last; done ;;
    "benchmarks/dense_speed.py"*) echo '{"rate": 1.0}' ;;
esac
"""


def test_a_bare_machine_goes_on_with_what_was_brought_along(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"python3": PYTHON, "nvidia-smi": "#!/bin/sh\necho 9.0\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def call(machine: str, *arguments: str) -> list[str]:
        """What Python is asked for by a call of the script on a machine that is bare at first."""
        benchmarks = tmp_path / machine / "benchmarks"
        benchmarks.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).parent / "gpu_check.sh", benchmarks)
        calls = tmp_path / "calls"
        calls.write_text("")
        subprocess.run(
            ["bash", str(benchmarks / "gpu_check.sh"), "--stage", "dense", *arguments],
            env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls)},
            cwd=tmp_path,
            check=True,
        )
        return [" ".join(line.split()[:3]) for line in calls.read_text().splitlines()]

    built = call("first", "--out", "one")
    assert "-m pip wheel" in built and "-m pip install" in built
    again = call("first", "--out", "one")
    assert "-m pip wheel" not in again and "-m pip install" not in again
    brought = call("second", "--from", "one", "--out", "two")
    assert "-m pip wheel" not in brought and "-m pip install" in brought
    assert (tmp_path / "two" / "wheel-0123-90" / "a.whl").exists()
    assert "-m pip wheel" in call("third", "--from", "absent", "--out", "three")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--stage", "fast"], "unknown stage fast (build-test, sanitize, bench, training, dense)"),
        (["--stage"], "expected --stage STAGE, --out DIR or --from DIR, got --stage"),
        (["--speed", "9", "--stage", "dense"], "got --speed 9 --stage dense"),
    ],
)
def test_the_script_tells_what_it_does_not_know(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    script = str(Path(__file__).parent / "gpu_check.sh")
    command = ["bash", script, "--out", "made", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check: ") and done.stderr.endswith(f"{told}\n")
