"""The choice of the implementation of the ops for a device.

An explicit backend that cannot serve the device raises an error; "auto" takes the fastest one that
can. `backends` reports what was built, which one is used, and why the others are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Protocol

import torch
from torch import Tensor

from cogen_fast.ops import dense, native, reference
from cogen_fast.ops.philox import NoiseStream, Purpose
from cogen_fast.ops.reference import Proposal, Selected
from cogen_fast.ops.spec import AdaptationRule, MisfitSpec, TransitionSettings

BACKENDS = ("auto", "reference", "native", "fused", "triton")
DEVICES = ("cpu", "cuda")


class OpFunctions(Protocol):
    """The ops; `cogen_fast.ops.reference` defines what each one does."""

    def initial_latents(
        self, stream: NoiseStream, chains: int, size: int, dtype: torch.dtype
    ) -> Tensor: ...

    def begin_trajectory(
        self,
        latents: Tensor,
        energy: Tensor,
        grad: Tensor,
        settings: TransitionSettings,
        stream: NoiseStream,
    ) -> Proposal: ...

    def continue_trajectory(
        self, proposal: Proposal, grad: Tensor, settings: TransitionSettings
    ) -> None: ...

    def accept_select(
        self,
        latents: Tensor,
        energy: Tensor,
        grad: Tensor,
        proposal: Proposal,
        proposed_energy: Tensor,
        proposed_grad: Tensor,
        settings: TransitionSettings,
        stream: NoiseStream,
    ) -> Selected: ...

    def adapt_step_size(
        self,
        step_size: Tensor,
        running_acceptance: Tensor,
        acceptance_probability: Tensor,
        active: Tensor | None,
        rule: AdaptationRule,
    ) -> tuple[Tensor, Tensor]: ...

    def systematic_ancestors(
        self, log_weights: Tensor, uniform: Tensor, wanted: Tensor | None
    ) -> Tensor: ...

    def observation_uniforms(self, stream: NoiseStream, purpose: Purpose) -> Tensor: ...

    def misfit(self, x: Tensor, spec: MisfitSpec, observation: Tensor) -> tuple[Tensor, Tensor]: ...


class Ops(OpFunctions, Protocol):
    """The ops of one backend."""

    name: str


class _ModuleOps:
    """The ops of a module, under the name of the backend."""

    def __init__(self, name: str, functions: OpFunctions) -> None:
        self.name = name
        self.initial_latents = functions.initial_latents
        self.begin_trajectory = functions.begin_trajectory
        self.continue_trajectory = functions.continue_trajectory
        self.accept_select = functions.accept_select
        self.adapt_step_size = functions.adapt_step_size
        self.systematic_ancestors = functions.systematic_ancestors
        self.observation_uniforms = functions.observation_uniforms
        self.misfit = functions.misfit

    def __repr__(self) -> str:
        return f"Ops({self.name!r})"


_REFERENCE: Ops = _ModuleOps("reference", reference)
_NATIVE: Ops = _ModuleOps("native", native)


def resolve(backend: str, device: torch.device) -> Ops:
    """The ops of ``backend`` for tensors on ``device``.

    "fused" has the ops of "auto": it concerns whole runs and the generators' own fast paths, which
    `cogen_fast.problem.problem` chooses.

    Raises:
        ValueError: the backend or the device is unknown, or the backend cannot serve the device.
        ImportError: "native" or "triton" was asked for, and the extension or Triton cannot be
            loaded; the message has the cause.
    """
    if not isinstance(backend, str):
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r:.80}")
    return _resolve(backend, device.type)


def forget() -> None:
    """Clear what is cached about backends, in a process in which they have changed."""
    for cached in (_resolve, _triton, triton_failure, dense.trial_error):
        cached.cache_clear()


@cache
def _resolve(backend: str, device: str) -> Ops:
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend}")
    if device not in DEVICES:
        raise ValueError(f"device: expected {' or '.join(DEVICES)}, got {device}")
    return _CHOICES[backend, device]()


def _native() -> Ops:
    native.extension()
    return _NATIVE


def _native_on_cuda() -> Ops:
    raise ValueError(
        "backend: native serves cpu tensors, got device cuda; available for cuda: "
        f"{', '.join(available('cuda'))}"
    )


def _fused_on_cuda() -> Ops:
    if (failure := _fused_failure(torch.device("cuda"))) is None:
        return _fastest_on_cuda()
    raise ValueError(
        f"backend: fused cannot serve cuda tensors here: {failure}; available for cuda: "
        f"{', '.join(available('cuda'))}"
    )


def _fastest_on_cpu() -> Ops:
    return _NATIVE if _extension_failure() is None else _REFERENCE


def _fastest_on_cuda() -> Ops:
    return _triton() if triton_failure() is None else _REFERENCE


@cache
def _triton() -> Ops:
    """The ops in Triton; nothing imports Triton before they are asked for."""
    from cogen_fast.ops import triton_ops

    return _ModuleOps("triton", triton_ops)


def _explicit_triton(device: str) -> Ops:
    if (failure := triton_failure()) is not None:
        raise ImportError(f"backend: triton cannot be used: {failure}")
    from cogen_fast.ops import triton_ops

    if device == "cpu" and not triton_ops.INTERPRETED:
        raise ValueError(
            "backend: triton serves cuda tensors, got device cpu, which only its interpreter "
            "serves (TRITON_INTERPRET=1 in the environment from the start); "
            f"available for {device}: {', '.join(available(device))}"
        )
    return _triton()


_CHOICES: dict[tuple[str, str], Callable[[], Ops]] = {
    ("auto", "cpu"): _fastest_on_cpu,
    ("auto", "cuda"): _fastest_on_cuda,
    ("reference", "cpu"): lambda: _REFERENCE,
    ("reference", "cuda"): lambda: _REFERENCE,
    ("native", "cpu"): _native,
    ("native", "cuda"): _native_on_cuda,
    ("fused", "cpu"): _native,
    ("fused", "cuda"): _fused_on_cuda,
    ("triton", "cpu"): partial(_explicit_triton, "cpu"),
    ("triton", "cuda"): partial(_explicit_triton, "cuda"),
}


@cache
def triton_failure() -> str | None:
    """The reason why Triton's kernels cannot be used on CUDA tensors; None where they can."""
    try:
        from cogen_fast.ops import triton_ops
    except ImportError as error:
        return f"Triton cannot be imported ({error}); torch's CUDA wheels bring it"
    return triton_ops.failure()


def _extension_failure() -> str | None:
    """The reason why the extension cannot be loaded; None where it can."""
    try:
        native.extension()
    except ImportError as error:
        return str(error)
    return None


def _fused_failure(device: torch.device) -> str | None:
    """The reason why the extension makes no runs on a device; None if it does."""
    if device.type not in DEVICES:
        return f"it serves {' and '.join(DEVICES)}, not {device.type}"
    failure = _extension_failure()
    return dense.device_failure(device) if failure is None else failure


def fuses(device: torch.device) -> bool:
    """Whether the extension makes whole runs on a device, for the generators that it supports."""
    return _fused_failure(device) is None


def available(device: str) -> list[str]:
    """The backends whose ops serve tensors on a device."""
    names = ["auto", "reference"]
    if device == "cpu" and _extension_failure() is None:
        names.append("native")
    if device == "cuda" and triton_failure() is None:
        names.append("triton")
    return names


@dataclass(frozen=True)
class BackendReport:
    """What was built, what this machine has, and which backend "auto" takes on each device.

    ``extension_failure`` is None if the extension is loaded. Only then do ``compiler``, ``isa``
    (instruction set in use), ``isa_built``, ``openmp``, ``built_with_cuda``, ``cuda_archs`` and
    ``built_without_cuda`` (the reason, empty with CUDA) have a meaning. ``cuda_device`` is the name
    of torch's current CUDA device, or None. ``auto`` maps each device to a backend, ``rejected``
    each device to the other backends and the reasons why they are not taken. ``fused`` lists the
    devices on which the extension has whole-run kernels, which make a whole run of the paper's
    method for a generator of dense layers in one call; ``not_fused`` maps the others to the
    reasons.
    """

    extension_failure: str | None
    compiler: str | None
    isa: str | None
    isa_built: tuple[str, ...]
    openmp: bool
    built_with_cuda: bool
    cuda_archs: tuple[str, ...]
    built_without_cuda: str
    threads: int
    torch_version: str
    torch_cuda: str | None
    cuda_device: str | None
    auto: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, dict[str, str]] = field(default_factory=dict)
    fused: tuple[str, ...] = ()
    not_fused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        lines = [f"torch: version {self.torch_version}, {threads}"]
        lines += [f"C++ extension: {self.extension}"]
        lines += [f"CUDA device: {self.cuda}"]
        for device, choice in self.auto.items():
            lines.append(f"backend for {device} tensors: {choice}")
            lines += [f"  not {name}: {why}" for name, why in self.rejected[device].items()]
        lines.append(f"whole-run kernels: {', '.join(self.fused) or 'none on this machine'}")
        if self.extension_failure is None:
            lines += [
                f"  not for {device} tensors: {why}" for device, why in self.not_fused.items()
            ]
        return "\n".join(lines)

    @property
    def extension(self) -> str:
        """The extension in words: how it was built, or why it cannot be loaded."""
        if self.extension_failure is not None:
            return f"not loaded: {self.extension_failure}"
        openmp = "with OpenMP" if self.openmp else "without OpenMP"
        cuda = f"without CUDA ({self.built_without_cuda})"
        archs = f"CUDA {', '.join(self.cuda_archs)}" if self.built_with_cuda else cuda
        built = ", ".join(self.isa_built)
        return f"{self.isa} (built for: {built}), {self.compiler}, {openmp}, {archs}"

    @property
    def cuda(self) -> str:
        """The CUDA device in words, or why there is none."""
        if self.cuda_device is not None:
            return f"{self.cuda_device} (torch built for CUDA {self.torch_cuda})"
        if self.torch_cuda is None:
            return "none, as this torch was built without CUDA"
        return "none, as torch finds no CUDA device"


def backends() -> BackendReport:
    """Report what was built and which backends are used on this machine, with reasons; printable.

    Loads the extension and Triton, if they are installed.
    """
    failure = _extension_failure()
    info = native.extension().build_info() if failure is None else {}
    cuda = torch.cuda.is_available()
    whole = {device: _fused_failure(torch.device(device)) for device in DEVICES}
    return BackendReport(
        extension_failure=failure,
        compiler=info.get("compiler"),
        isa=info.get("isa"),
        isa_built=info.get("isa_built", ()),
        openmp=info.get("openmp", False),
        built_with_cuda=info.get("with_cuda", False),
        cuda_archs=info.get("cuda_archs", ()),
        built_without_cuda=info.get("without_cuda", ""),
        threads=torch.get_num_threads(),
        torch_version=str(torch.__version__),
        torch_cuda=torch.version.cuda,
        cuda_device=torch.cuda.get_device_name() if cuda else None,
        auto={device: resolve("auto", torch.device(device)).name for device in DEVICES},
        rejected={"cpu": _rejected_on_cpu(failure), "cuda": _rejected_on_cuda()},
        fused=tuple(device for device, failure in whole.items() if failure is None),
        not_fused={device: why for device, why in whole.items() if why is not None},
    )


def _rejected_on_cpu(failure: str | None) -> dict[str, str]:
    if failure is None:
        return {"reference": "native is faster", "triton": "it serves cuda tensors only"}
    return {"native": failure, "triton": "it serves cuda tensors only"}


def _rejected_on_cuda() -> dict[str, str]:
    rejected = {"native": "it serves cpu tensors only"}
    if (failure := triton_failure()) is not None:
        return rejected | {"triton": failure}
    return rejected | {"reference": "triton needs fewer kernel launches"}
