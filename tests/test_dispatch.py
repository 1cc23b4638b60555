"""Which backend serves which device, and what the report says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from implementations import INTERPRETED

from cogen_fast import ops
from cogen_fast.ops import dense, dispatch, native, reference

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_triton = pytest.mark.skipif(
    dispatch.triton_failure() is not None, reason=str(dispatch.triton_failure())
)
OPS = (
    "initial_latents",
    "begin_trajectory",
    "continue_trajectory",
    "accept_select",
    "adapt_step_size",
    "systematic_ancestors",
    "observation_uniforms",
    "misfit",
)


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the extension appear not to have been built."""
    monkeypatch.setattr(native, "loaded", None)
    monkeypatch.setattr(native, "load_error", ImportError("No module named _native"))
    dispatch.forget()
    yield
    dispatch.forget()


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make Triton appear not to be installed."""
    monkeypatch.delattr(ops, "triton_ops", raising=False)
    for name in ("triton_ops", "triton_kernels"):
        monkeypatch.delitem(sys.modules, f"cogen_fast.ops.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    dispatch.forget()
    yield
    dispatch.forget()


@pytest.mark.parametrize(
    "backend, device, name, module",
    [
        ("auto", CPU, "native", native),
        ("native", CPU, "native", native),
        ("reference", CPU, "reference", reference),
        ("reference", CUDA, "reference", reference),
    ],
)
def test_resolve(backend: str, device: torch.device, name: str, module: object) -> None:
    ops = dispatch.resolve(backend, device)
    assert ops.name == name
    for op in OPS:
        assert getattr(ops, op) is getattr(module, op)


def test_unknown_backend() -> None:
    with pytest.raises(
        ValueError,
        match=r"^backend: expected one of auto, reference, native, fused, triton, got numpy$",
    ):
        dispatch.resolve("numpy", CPU)


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
@pytest.mark.parametrize("backend", ["auto", "reference", "native"])
def test_other_devices_are_refused_by_name(backend: str, device: str) -> None:
    with pytest.raises(ValueError, match=f"^device: expected cpu or cuda, got {device}$"):
        dispatch.resolve(backend, torch.device(device))


@needs_triton
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_cuda_tensors_are_served_by_triton(backend: str) -> None:
    from cogen_fast.ops import triton_ops

    found = dispatch.resolve(backend, CUDA)
    assert found.name == "triton"
    for op in OPS:
        assert getattr(found, op) is getattr(triton_ops, op)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter serves cpu tensors")
def test_triton_refuses_cpu() -> None:
    with pytest.raises(
        ValueError,
        match=r"^backend: triton serves cuda.*got device cpu.*for cpu: auto, reference, native$",
    ):
        dispatch.resolve("triton", CPU)


@pytest.mark.usefixtures("no_triton")
def test_missing_triton_is_reported_with_its_cause() -> None:
    assert dispatch.resolve("auto", CUDA).name == "reference"
    for device in (CPU, CUDA):
        with pytest.raises(ImportError, match=r"^backend: triton cannot be used: .*import"):
            dispatch.resolve("triton", device)
    with pytest.raises(ValueError, match=r"for cuda: auto, reference$"):
        dispatch.resolve("native", CUDA)
    report = dispatch.backends()
    assert report.auto["cuda"] == "reference"
    assert "cannot be imported" in report.rejected["cuda"]["triton"]


def test_native_refuses_cuda() -> None:
    with pytest.raises(ValueError, match=r"^backend: native serves cpu.*got device cuda"):
        dispatch.resolve("native", CUDA)


def test_fused_serves_cuda_only_where_it_was_built() -> None:
    if dispatch.fuses(CUDA):
        assert dispatch.resolve("fused", CUDA).name == dispatch.resolve("auto", CUDA).name
        return
    with pytest.raises(ValueError, match=r"^backend: fused cannot serve cuda.*without CUDA"):
        dispatch.resolve("fused", CUDA)


@pytest.fixture
def older_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend to have an extension with CUDA, and a GPU that has no code in it."""
    info = {**native.extension().build_info(), "with_cuda": True, "cuda_archs": ("80-real", "90")}

    def refused(device: torch.device) -> torch.Tensor:
        raise RuntimeError("anneal_mlp_cuda: occupancy: no kernel image is available")

    monkeypatch.setattr(native, "loaded", SimpleNamespace(build_info=lambda: info))
    monkeypatch.setattr(dense, "trial_run", refused)
    for name, value in {
        "is_available": True,
        "current_device": 0,
        "get_device_name": "Tesla V100",
        "get_device_capability": (7, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    dispatch.forget()
    yield
    dispatch.forget()


@pytest.mark.usefixtures("older_gpu")
def test_a_gpu_without_code_in_the_extension_falls_back() -> None:
    why = (
        "whole-run kernels, built for 80-real, 90, do not run on Tesla V100 of compute capability "
        "7.0 (anneal_mlp_cuda: occupancy: no kernel image is available)"
    )
    assert not dispatch.fuses(CUDA)
    assert dispatch.fuses(CPU)
    report = dispatch.backends()
    assert report.fused == ("cpu",)
    assert report.not_fused == {"cuda": why}
    assert str(report).endswith(f"whole-run kernels: cpu\n  not for cuda tensors: {why}")
    with pytest.raises(ValueError, match=r"^backend: fused cannot serve cuda tensors here: whole"):
        dispatch.resolve("fused", CUDA)


def test_the_run_that_is_tried_can_be_made() -> None:
    latent = dense.trial_run(CPU)
    assert latent.shape == (1, 1, 1)
    assert 0.0 < abs(float(latent) - 1.0) < 1.0  # a step of 0.1 times a standard normal


def test_report() -> None:
    report = dispatch.backends()
    assert report.extension_failure is None
    assert report.isa in report.isa_built
    assert report.threads == torch.get_num_threads()
    on_cuda = "reference" if dispatch.triton_failure() else "triton"
    assert report.auto == {"cpu": "native", "cuda": on_cuda}
    assert (report.cuda_device is not None) == torch.cuda.is_available()
    assert "cpu" in report.fused and ("cuda" in report.fused) == report.built_with_cuda
    text = str(report)
    assert report.isa is not None
    assert report.compiler is not None
    why = "not triton: it serves cuda tensors only"
    for part in (report.isa, report.compiler, torch.__version__, why):
        assert part in text


@pytest.mark.usefixtures("no_extension")
def test_missing_extension_is_reported_with_its_cause() -> None:
    assert dispatch.resolve("auto", CPU).name == "reference"
    with pytest.raises(ImportError, match="No module named _native"):
        dispatch.resolve("native", CPU)
    report = dispatch.backends()
    assert report.auto["cpu"] == "reference"
    assert report.extension_failure is not None
    assert "No module named _native" in report.rejected["cpu"]["native"]
    assert "not loaded: " in str(report)
