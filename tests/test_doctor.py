"""Each check of the doctor finds what it is for, and finds nothing in a sound installation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from cogen_fast.cli.main import main
from cogen_fast.experiments import doctor
from cogen_fast.experiments.exact_models import LinearGaussian, draws
from cogen_fast.ops import dispatch, native, reference

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
Patch = pytest.MonkeyPatch


def only(found: Iterator[doctor.Finding]) -> doctor.Finding:
    (finding,) = found
    return finding


@pytest.fixture
def without_extension(monkeypatch: Patch) -> Iterator[None]:
    monkeypatch.setattr(native, "loaded", None)
    monkeypatch.setattr(native, "load_error", ImportError("planted"))
    dispatch.forget()
    yield
    monkeypatch.undo()
    dispatch.forget()


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sound_installation_has_no_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    told = capsys.readouterr()
    levels = re.findall(r"^(\w+) +[\w+ ]+: ", told.out, re.M)
    assert len(levels) >= len(doctor.CHECKS)
    assert set(levels) <= {"ok", "warning"}
    assert told.out.splitlines()[-1].startswith("no faults, ")
    assert told.err == ""  # there is no terminal to show what is being checked


def checks(*found: doctor.Finding) -> dict[str, Callable[[], Iterator[doctor.Finding]]]:
    return {"first": lambda: iter(found)}


@pytest.mark.parametrize(("columns", "most"), [("45", 45), ("500", 100)])
def test_lines_suit_the_terminal_and_leave_paths_whole(
    columns: str, most: int, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/a-folder/with-a-hyphen/and-more/python3.11/site-packages/cogen_fast"
    text = f"{'words ' * 30}in {path}"
    monkeypatch.setattr(doctor, "CHECKS", checks(doctor.Finding(doctor.OK, "a", text)))
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["doctor"]) == 0
    *lines, with_path, _ = capsys.readouterr().out.splitlines()
    assert path in with_path
    assert most - 10 < max(map(len, lines)) <= most


def test_the_exit_status_is_that_of_the_worst(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = doctor.Finding(doctor.OK, "a", "b")
    monkeypatch.setattr(doctor, "CHECKS", checks(fine, replace(fine, level=doctor.WARNING)))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok       a: b\nwarning  a: b\nno faults, 1 warning\n"
    wrong = doctor.Finding(doctor.FAULT, "c", "word " * 30)
    monkeypatch.setattr(doctor, "CHECKS", checks(fine, wrong, wrong))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("fault    c: word")
    assert lines[2].startswith("         word")
    assert max(map(len, lines)) <= 100
    assert lines[-1] == "2 faults, no warnings"


def test_a_check_that_ends_with_an_error_is_a_fault(monkeypatch: Patch) -> None:
    def failing() -> Iterator[doctor.Finding]:
        raise RuntimeError("no\nreason")

    fine = doctor.Finding(doctor.OK, "a", "b")
    monkeypatch.setattr(doctor, "CHECKS", {"one": failing, **checks(fine)})
    begun: list[str] = []
    found = list(doctor.examine(begun.append))
    expected = doctor.Finding(doctor.FAULT, "one", "ended with RuntimeError: no reason")
    assert found == [expected, fine]
    assert begun == ["one", "first"]


# --- what is there --------------------------------------------------------------------------------


def test_the_extension_is_told_as_by_info() -> None:
    finding = only(doctor.check_extension())
    assert finding.level == "ok"
    assert f"C++ extension: {finding.text}\n" in str(dispatch.backends())


@pytest.mark.usefixtures("without_extension")
def test_a_missing_extension_is_a_fault() -> None:
    finding = only(doctor.check_extension())
    assert finding.level == "fault"
    assert "cannot be loaded (planted)" in finding.text
    assert "pip install ." in finding.text
    assert only(doctor.check_ops()).level == "warning"


def reported(monkeypatch: Patch, **changed: Any) -> list[doctor.Finding]:
    """The findings about a GPU where `backends` reports something else."""
    report = replace(dispatch.backends(), **changed)
    monkeypatch.setattr(dispatch, "backends", lambda: report)
    return list(doctor.check_gpu())


GPU = {"cuda_device": "A GPU", "torch_cuda": "12.8", "built_with_cuda": True}


def test_no_gpu_is_no_fault(monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    for built in (None, "12.8"):
        (finding,) = reported(monkeypatch, cuda_device=None, torch_cuda=built)
        assert finding.level == "ok"
        assert finding.text.endswith("runs take place on the CPU")


def test_a_driver_without_a_gpu_for_torch_is_told(monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    (finding,) = reported(monkeypatch, cuda_device=None, torch_cuda=None)
    assert finding.level == "warning"
    assert "torch was built without CUDA, though NVIDIA's driver is installed" in finding.text


def test_what_a_gpu_lacks_is_told(monkeypatch: Patch) -> None:
    monkeypatch.setattr(dispatch, "triton_failure", lambda: None)
    found = reported(monkeypatch, **GPU)
    assert [(f.level, f.about) for f in found] == [("ok", "CUDA device"), ("ok", "Triton")]
    monkeypatch.setattr(dispatch, "triton_failure", lambda: "planted")
    found = reported(monkeypatch, **GPU | {"built_with_cuda": False, "built_without_cuda": "OFF"})
    assert [(f.level, f.about) for f in found] == [
        ("ok", "CUDA device"),
        ("warning", "Triton"),
        ("warning", "CUDA kernels"),
    ]
    assert found[1].text.startswith("planted")
    assert "(OFF)" in found[2].text


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alone", "together", "level"),
    [
        (0.002, 0.001, "ok"),
        (0.002, 0.0029, "ok"),
        (0.002, 0.0031, "warning"),
        (0.002, 0.2, "warning"),
    ],
)
def test_slow_threads_are_told(
    monkeypatch: Patch, alone: float, together: float, level: str
) -> None:
    times = {1: alone, 7: together}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(doctor, "gradient_seconds", lambda counts: [times[n] for n in counts])
    finding = only(doctor.check_threads())
    assert finding.level == level
    assert f"takes {1e3 * together:.3g} ms with torch's 7 threads, 2 ms with 1" in finding.text
    assert ("OMP_NUM_THREADS=1" in finding.text) == (level == "warning")


def test_one_thread_needs_no_comparison(monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor, "gradient_seconds", None)
    assert only(doctor.check_threads()).text == "torch uses 1 thread"


@pytest.mark.slow
def test_gradients_are_timed_with_each_number_of_threads(monkeypatch: Patch) -> None:
    used: list[int] = []
    setting = torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda n: (used.append(n), setting(n)))
    state = torch.random.get_rng_state()
    times = doctor.gradient_seconds((1, 1))
    assert used == [1] * 11  # five rounds of two, and back
    assert 0.0 < min(times) <= max(times) < 10.0 * min(times)
    assert torch.equal(torch.random.get_rng_state(), state)


# --- ops ------------------------------------------------------------------------------------------


def test_sound_ops_are_told() -> None:
    finding, *_ = doctor.check_ops()
    assert finding == doctor.Finding(
        doctor.OK, "ops", "all 8 of native agree with their definition on cpu"
    )
    assert set(doctor.deviations(reference, CPU).values()) == {0.0}


def spoiled(op: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """The op with its last result changed; of one that works in place, its first argument's."""

    def spoiling(*args: Any, **kwargs: Any) -> Any:
        out = op(*args, **kwargs)
        if out is None:
            args[0].momentum.copy_(change(args[0].momentum))
        elif isinstance(out, tuple):
            parts = [*out[:-1], change(out[-1])]
            return type(out)(*parts) if hasattr(out, "_fields") else tuple(parts)
        else:
            return change(out)
        return None

    return spoiling


BROKEN: dict[str, Callable[[Any], Any]] = {
    "slightly off": lambda value: value * (1 + 1e-9) if value.is_floating_point() else 1 - value,
    "not a number": lambda value: value * torch.nan,
    "another shape": lambda value: value[..., :-1],
}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in doctor.deviations(reference, CPU)
        for how in BROKEN
        # What changes in place keeps its shape, and the next op refuses a proposal of another one.
        if how != "another shape" or not name.endswith("_trajectory")
    ],
)
def test_a_broken_op_is_a_fault(monkeypatch: Patch, name: str, how: str) -> None:
    ops = dispatch.resolve("native", CPU)
    monkeypatch.setattr(ops, name, spoiled(getattr(ops, name), BROKEN[how]))
    finding = only(doctor.check_ops())
    assert finding.level == "fault"
    assert re.search(rf"those of native differ from their definition: .*{name} by ", finding.text)


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_with_a_broken_op_are_a_fault(monkeypatch: Patch) -> None:
    # Energies and gradients of noise that is smaller by a tenth than what the run was given.
    ops = dispatch.resolve("auto", CPU)
    sound = ops.misfit

    def scaled(*args: Any) -> tuple[torch.Tensor, ...]:
        return tuple(1.23 * value for value in sound(*args))

    monkeypatch.setattr(ops, "misfit", scaled)
    finding = only(doctor.check_runs())
    assert finding.level == "fault"
    assert "do not use samples of this installation" in finding.text


@pytest.mark.slow
def test_runs_are_judged_by_each_of_three_scores() -> None:
    # Forty runs: a shift of every one by a fifth of what it is compared with is far beyond chance.
    model = LinearGaussian.named("iso", 20, 0.3)
    result = draws(model, range(40), budget=200)
    assert result.log_evidence is not None
    wrong = {
        "mean energy": replace(result, energies=1.2 * result.energies),
        "variance of the latents": replace(result, latents=1.2 * result.latents),
        "log evidence": replace(result, log_evidence=result.log_evidence + 5.0),
    }
    for name, tampered in wrong.items():
        finding = doctor.judged(model, tampered, "here")
        assert finding.level == "fault"
        score = re.search(rf"{name} ([-+][\d.]+)", finding.text)
        assert score is not None
        assert abs(float(score[1])) > 5.0
    for unfinished in (replace(result, complete=False), replace(result, log_evidence=None)):
        finding = doctor.judged(model, unfinished, "here")
        assert finding.level == "fault"
        assert "40 default runs here have not reached the posterior" in finding.text
    blank = replace(result, energies=result.energies * torch.nan)
    assert doctor.judged(model, blank, "here").level == "fault"
