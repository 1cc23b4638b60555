"""The check of an installation: what is there, and whether it computes what it should.

Each check gives findings: "ok", a "warning" (results are right, but slow, or a device is not used)
or a "fault" (a part is missing or computes something else). Checks measure: the speed of torch's
threads, the ops of each backend against their definition, and default runs against posteriors whose
energy, variances and evidence are known in closed form.
"""

from __future__ import annotations

import math
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cogen_fast.experiments.calibration import z_scores
from cogen_fast.experiments.exact_models import LinearGaussian, draws, log_mean_and_error
from cogen_fast.experiments.workers import one_thread
from cogen_fast.generators.mlp import MLPGenerator
from cogen_fast.ops import dispatch, reference
from cogen_fast.ops.dispatch import BackendReport, OpFunctions
from cogen_fast.ops.philox import NoiseStream, Purpose
from cogen_fast.ops.spec import AdaptationRule, MisfitSpec, TransitionSettings
from cogen_fast.problem.compute import Compute
from cogen_fast.results.result import Result

Level = Literal["ok", "warning", "fault"]
OK: Level = "ok"
WARNING: Level = "warning"
FAULT: Level = "fault"

# The threads' work: a generator of 1.6 million weights, and as many latents as a run has chains.
_WIDTHS, _ROWS = (64, 512, 3072), 16
_ROUNDS, _ROUND_SECONDS = 5, 0.12
_SLOWER = 1.5
"""Several threads that take this multiple of one thread's time are told."""

# Float64 on both sides: a few thousand roundings of 2^-53.
_TOLERANCE = 1e-12
_B, _N, _D = 2, 3, 5
_IMAGE, _FACTOR = (3, 4, 6), 2

# Default runs on data sets drawn from the model, independent of each other. A mean over 32 of them
# is off by more than 4.5 standard errors with a probability of 9e-5 (Student's t), and the log
# evidence by more than 5 jackknife errors with 1e-3; seeds are fixed.
_MODEL, _SIZE, _NOISE, _DATA_SETS = "decay", 24, 0.1, 32
_BOUND, _EVIDENCE_BOUND = 4.5, 5.0
_LIMIT = 60.0  # seconds; a few are usual


@dataclass(frozen=True)
class Finding:
    """What a check has found: a level, what it is about, and a sentence, with what to do."""

    level: Level
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<9}{self.about}: {self.text}"


def examine(begun: Callable[[str], None] = lambda name: None) -> Iterator[Finding]:
    """The findings of all checks, each as soon as it is made; ``begun`` is told what is next.

    A check that ends with an error is a fault.
    """
    for name, check in CHECKS.items():
        begun(name)
        try:
            yield from check()
        except Exception as error:
            reason = " ".join(str(error).split()) or "no reason given"
            yield Finding(FAULT, name, f"ended with {type(error).__name__}: {reason}")


# --- what is there --------------------------------------------------------------------------------


def check_torch() -> Iterator[Finding]:
    """The versions of torch and Python."""
    text = f"version {torch.__version__}, Python {platform.python_version()}"
    yield Finding(OK, "torch", text)


def check_extension() -> Iterator[Finding]:
    """Whether the compiled module can be loaded."""
    report = dispatch.backends()
    if report.extension_failure is None:
        yield Finding(OK, "C++ extension", report.extension)
    else:
        text = f"{report.extension}; without it runs are right, but slow"
        yield Finding(FAULT, "C++ extension", text)


def check_gpu() -> Iterator[Finding]:
    """Whether there is a GPU, and what is needed to use it."""
    report = dispatch.backends()
    if report.cuda_device is None:
        yield _without_gpu(report)
        return
    yield Finding(OK, "CUDA device", report.cuda)
    failure = dispatch.triton_failure()
    if failure is None:
        yield Finding(OK, "Triton", "its kernels serve the CUDA device")
    else:
        text = f"{failure}; without it moves on the GPU take many more kernel launches"
        yield Finding(WARNING, "Triton", text)
    if report.extension_failure is None and not report.built_with_cuda:
        text = (
            f"the extension was built without CUDA ({report.built_without_cuda}); install again "
            "with nvcc on the path for whole runs of small dense generators on the GPU"
        )
        yield Finding(WARNING, "CUDA kernels", text)


def _without_gpu(report: BackendReport) -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding(OK, "CUDA device", f"{report.cuda}; runs take place on the CPU")
    text = (
        f"{report.cuda}, though NVIDIA's driver is installed; install a torch for CUDA that suits "
        "the driver (nvidia-smi shows its version; https://pytorch.org has the command)"
    )
    return Finding(WARNING, "CUDA device", text)


# --- threads --------------------------------------------------------------------------------------


def check_threads() -> Iterator[Finding]:
    """Whether torch's threads make a small generator faster, or much slower.

    Beside a busy core a thread that waits for another can take a hundred times as long.
    """
    count = torch.get_num_threads()
    if count == 1:
        yield Finding(OK, "threads", "torch uses 1 thread")
        return
    alone, together = gradient_seconds((1, count))
    text = (
        f"a gradient of a small generator takes {1e3 * together:.3g} ms with torch's {count} "
        f"threads, {1e3 * alone:.3g} ms with 1"
    )
    if together < _SLOWER * alone:
        yield Finding(OK, "threads", text)
        return
    yield Finding(
        WARNING,
        "threads",
        f"{text}: the cores are busy, or fewer than torch believes; set OMP_NUM_THREADS=1 in the "
        "environment before Python starts, or call torch.set_num_threads(1) in it",
    )


def gradient_seconds(counts: tuple[int, ...]) -> list[float]:
    """The time of a gradient of a small generator, for each number of threads.

    It is the median over short rounds, in which the numbers take turns.
    """
    gradient = _gradient()
    before, times = torch.get_num_threads(), [[0.0] * _ROUNDS for _ in counts]
    try:
        for turn in range(_ROUNDS):
            for number, count in enumerate(counts):
                torch.set_num_threads(count)
                gradient()
                times[number][turn] = _seconds(gradient)
    finally:
        torch.set_num_threads(before)
    return [statistics.median(each) for each in times]


def _gradient() -> Callable[[], object]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = MLPGenerator(_WIDTHS).requires_grad_(False)
        z = torch.randn(_ROWS, _WIDTHS[0]).requires_grad_()
    return lambda: torch.autograd.grad(generator(z).square().sum(), z)


def _seconds(call: Callable[[], object]) -> float:
    calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < _ROUND_SECONDS or not calls:
        call()
        calls += 1
    return passed / calls


# --- ops ------------------------------------------------------------------------------------------


def check_ops() -> Iterator[Finding]:
    """Whether the fast ops of each backend compute what their definition does."""
    fast = []
    if "native" in dispatch.available("cpu"):
        fast.append(("native", torch.device("cpu")))
    if torch.cuda.is_available() and "triton" in dispatch.available("cuda"):
        fast.append(("triton", torch.device("cuda")))
    if not fast:
        yield Finding(WARNING, "ops", "there are no fast ones; their definition is used")
    for backend, device in fast:
        off = deviations(dispatch.resolve(backend, device), device)
        wrong = [f"{name} by {value:.1g}" for name, value in off.items() if value > _TOLERANCE]
        if wrong:
            text = (
                f"those of {backend} differ from their definition: {', '.join(wrong)} (at most "
                f"{_TOLERANCE:g} expected); install the package again, and report it if that does "
                "not mend it"
            )
            yield Finding(FAULT, "ops", text)
        else:
            text = f"all {len(off)} of {backend} agree with their definition on {device.type}"
            yield Finding(OK, "ops", text)


def deviations(ops: OpFunctions, device: torch.device) -> dict[str, float]:
    """How far each op's results in float64 are from those of its definition on the CPU.

    Differences are divided by the largest value, if that is above 1; infinite where a result is not
    finite, or has another shape.
    """
    expected, found = _results(reference, torch.device("cpu")), _results(ops, device)
    off = {}
    for name, exact in expected.items():
        pairs = zip(exact, found[name], strict=True)
        off[name] = max(_deviation(ours.cpu().double(), x.double()) for x, ours in pairs)
    return off


def _deviation(ours: Tensor, exact: Tensor) -> float:
    if ours.shape != exact.shape or not ours.isfinite().all():
        return math.inf
    return float((ours - exact).abs().max() / exact.abs().max().clamp(min=1.0))


def _results(ops: OpFunctions, device: torch.device) -> dict[str, tuple[Tensor, ...]]:
    """Results of every op on a few numbers of odd shapes."""
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(device)

    def positive(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, dtype=torch.float64).to(device) + 0.1

    counted = torch.arange(_B, device=device)
    stream = NoiseStream(2**63 + 5, counted + 3, 2 * counted)
    settings = TransitionSettings(positive(_B), positive(_B), 0.1 * positive(_B), positive(_B, _D))
    latents, energy, grad = drawn(_B, _N, _D), positive(_B, _N), drawn(_B, _N, _D)
    proposal = ops.begin_trajectory(latents, energy, grad, settings, stream)
    begun = tuple(value.clone() for value in proposal)
    new_energy, new_grad = positive(_B, _N), drawn(_B, _N, _D)
    ops.continue_trajectory(proposal, new_grad, settings)
    selected = ops.accept_select(
        latents, energy, grad, proposal, new_energy, new_grad, settings, stream
    )
    steps = ops.adapt_step_size(
        0.1 * positive(_B), positive(_B), positive(_B, _N), None, AdaptationRule()
    )
    channels, height, width = _IMAGE
    measured = channels * (height // _FACTOR) * (width // _FACTOR)
    spec = MisfitSpec("pool", _IMAGE, _FACTOR, drawn(_B, measured), None, positive(1, 1))
    observed = torch.arange(_B, device=device).repeat_interleave(_N)
    return {
        "initial_latents": (ops.initial_latents(stream, _N, _D, torch.float64),),
        "begin_trajectory": begun,
        "continue_trajectory": tuple(proposal),
        "accept_select": tuple(selected),
        "adapt_step_size": steps,
        "systematic_ancestors": (ops.systematic_ancestors(drawn(_B, _N), positive(_B) / 2, None),),
        "observation_uniforms": (ops.observation_uniforms(stream, Purpose.RESAMPLE),),
        "misfit": ops.misfit(drawn(_B * _N, *_IMAGE), spec, observed),
    }


# --- runs -----------------------------------------------------------------------------------------


def check_runs() -> Iterator[Finding]:
    """Whether default runs give the energy, the variances and the evidence of closed forms."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    model = LinearGaussian.named(_MODEL, _SIZE, _NOISE)
    for device in devices:
        start = time.monotonic()
        with one_thread():
            compute = Compute(device=device, time_limit=_LIMIT)
            result = draws(model, range(_DATA_SETS), compute=compute)
        yield judged(model, result, f"on {device} ({time.monotonic() - start:.0f} s)")


def judged(model: LinearGaussian, result: Result, where: str) -> Finding:
    """Whether independent runs on data of the model agree with its closed forms."""
    x, evidence = result.x_obs, result.log_evidence
    if not result.complete or evidence is None:
        text = (
            f"{len(x)} default runs {where} have not reached the posterior, which takes seconds on "
            "an idle core; check again when the machine is idle, and report it if it stays so"
        )
        return Finding(FAULT, "sampler", text)
    energy = float(z_scores(result.energies.mean(1) - model.mean_energy(x), 0.0))
    variance = float(z_scores(model.relative_variances(result.latents, x)["all"], 1.0))
    off, error = log_mean_and_error(evidence - model.log_evidence(x))
    scores = {
        "mean energy": (energy, _BOUND),
        "variance of the latents": (variance, _BOUND),
        "log evidence": (off / error, _EVIDENCE_BOUND),
    }
    runs = f"{len(x)} default runs of {model.size} latents {where}"
    told = ", ".join(f"{name} {score:+.1f}" for name, (score, _) in scores.items())
    if all(abs(score) <= bound for score, bound in scores.values()):
        text = f"{runs} agree with exact posteriors (deviations in standard errors: {told})"
        return Finding(OK, "sampler", text)
    return Finding(
        FAULT,
        "sampler",
        f"{runs} do not agree with exact posteriors (deviations in standard errors: {told}; "
        f"above {_BOUND:g} they are not due to chance); do not use samples of this installation: "
        "install the package again, and report it if that does not mend it",
    )


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "torch": check_torch,
    "C++ extension": check_extension,
    "CUDA device": check_gpu,
    "threads": check_threads,
    "ops": check_ops,
    "sampler": check_runs,
}
"""The checks by name, in the order in which they are made."""
