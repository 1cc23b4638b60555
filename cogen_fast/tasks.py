"""The main entry points: `cogenerate`, and `inpaint` and `super_resolve`, which call it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cogen_fast.methods import fits
from cogen_fast.methods.adaptive import AdaptivePlan
from cogen_fast.methods.assembly import assemble
from cogen_fast.methods.checkpoint import Checkpoint
from cogen_fast.methods.fits import Fits
from cogen_fast.methods.inferred_noise import InferredNoise
from cogen_fast.methods.loop import Loop, Method
from cogen_fast.methods.paper import PaperPlan
from cogen_fast.methods.progress import RUNNING, OnTemperature, Watch, checked_callback
from cogen_fast.methods.settings import Adaptive, Paper, RunOptions, Settings, as_settings
from cogen_fast.problem.adapter import as_shape
from cogen_fast.problem.compute import DEFAULT, Compute, as_compute
from cogen_fast.problem.observation import (
    AveragePool,
    Mask,
    Stride,
    UserMisfit,
    as_operator,
    is_unknown,
)
from cogen_fast.problem.pictures import as_images, as_masks
from cogen_fast.problem.problem import Problem, prepared
from cogen_fast.problem.processes import team
from cogen_fast.results.result import Result
from cogen_fast.sampler import curvature
from cogen_fast.sampler.tuning import POPULATION
from cogen_fast.support.arguments import (
    check_choice,
    check_count,
    check_flag,
    check_seed,
    names_of,
    shown,
)
from cogen_fast.support.memory import check_room, check_samples
from cogen_fast.support.warnings import DiagnosisWarning, warn_user

# Vectors of latent size that each chain holds: position, gradient, momentum and proposal.
_VECTORS_PER_CHAIN = 4
# The options that take settings objects, and the kinds of objects.
_SETTINGS = (
    ("method", Adaptive),
    ("method", Paper),
    ("compute", Compute),
    ("checkpoint", Checkpoint),
)


def cogenerate(
    G: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    method: Literal["adaptive", "paper"] | Adaptive | Paper = "adaptive",
    chains: int | None = None,
    budget: int | None = None,
    polish: int | Literal["auto"] = 0,
    noise_std: Any = None,
    weight: Any = None,
    misfit: UserMisfit | Literal["lpips"] | None = None,
    latent_shape: Any = None,
    seed: int = 0,
    observation_ids: Sequence[int] | None = None,
    compute: Compute = DEFAULT,
    checkpoint: str | Path | Checkpoint | None = None,
    progress: bool = True,
    on_temperature: OnTemperature | None = None,
) -> Result:
    """Draw samples of ``G(z)`` given a partial or noisy observation of it.

    The samples come from annealed importance sampling with HMC moves (Fang and Schwing 2019).
    ``method="adaptive"`` chooses its own inverse temperatures, resamples its particles and tunes
    its moves; ``method="paper"`` is the published algorithm.

    Args:
        G: callable or module that maps latents ``(n, d)`` or ``(n, d, 1, 1)`` to outputs
            ``(n, ...)``, or a `Prior` that says how it is called. A module runs in eval mode; its
            weights, modes and gradient flags are afterwards what they were. It is refused if equal
            latents give different outputs even so (dropout, injected noise, batch statistics).
        x_obs: one observation or a batch ``(B, ...)``, as a floating-point tensor or array. Hidden
            entries may hold any value, NaN included.
        mask: 1 where an entry is observed and 0 where it is hidden, broadcastable over channels and
            batch; or a measurement operator: `Mask`, `AveragePool`, `Stride`, `Blur`, `Matrix`,
            `Fourier`, `Magnitudes`, `Luminance`, `Operator` (any differentiable function), or any
            object with a callable ``A(x)``.
        method: "adaptive" (default) or "paper" (Algorithm 1 with the published step-size
            adaptation), or an `Adaptive` or `Paper` object with settings of your own.
        chains: number N of samples per observation and population (default: 16; paper: 4). The
            adaptive method runs at least 16 particles, in a single population an even number of
            them, and returns N of these.
        budget: largest number of gradient evaluations per returned chain (adaptive method only).
            It includes polishing, and a scored prior draw counts as half a gradient. The budget is
            shared by all observations of a call: one gradient evaluation counts for all of them.
            What is left when the posterior is reached is spent on further rounds of moves there
            (``Result.rounds``), until less than a round is left. At least one prior draw and one
            gradient per particle are spent. Without a budget a run takes as many gradients as it
            needs; it may not end where ``G`` cannot come close to ``x_obs``. If N is below 16 and
            the budget leaves fewer than 480 gradients for the sampling of all N chains together,
            the chains run independently: they are not resampled, they have no weights, and mode
            probabilities are not reliable.
        polish: number of gradient evaluations of L-BFGS on the misfit, from every sample (default:
            0). These fits are returned beside the samples, which do not change
            (`Result.fit_images`, `Result.estimate`). "auto" chooses one number for all observations
            of a call: twice the number of latent directions which the data determine (30 to 120),
            or an eighth of the run's gradients if that is more. With a budget, "auto" spends two
            fifths of it (of a small one 55 %, up to 240 gradients for all chains together) on as
            many of the best samples and prior draws as that suffices for, with up to three times as
            many gradients per fit where there are four or more measurements per latent. For the
            paper's method "auto" means 0.
        noise_std: standard deviation of the noise in units of ``x_obs``: a number, or an array that
            broadcasts to the measurements. It is 0.1 by default for images in [-1, 1]; otherwise
            it, ``weight`` or ``misfit`` must be given. "auto" or an `UnknownNoise` infers it for
            each observation together with the latents (``Result.noise_std``; adaptive method only,
            and not with ``evidence="frozen"``).
        weight: factor of the squared error, in place of ``1 / (2 noise_std^2)``; or factor of
            ``misfit`` (then 1 by default).
        misfit: ``misfit(prediction, target) -> (n,)``, in place of the squared error: `Huber`,
            `StudentT`, `Lpips` ("lpips", needs the extra of that name), or a function of your own.
            Hidden entries of both arguments are set to 0.
        latent_shape: ``d`` or a tuple, where the shape cannot be inferred from ``G``.
        seed: integer from 0 to 2^64 - 1. A run is a pure function of its inputs and the seed.
        observation_ids: integers which identify the observations in the random number streams
            (default: 0 to B - 1).
        compute: device, backend, float types and memory, as a `Compute`.
        checkpoint: file in which the unfinished run is saved, every minute (or as a `Checkpoint`
            says) and on Ctrl-C. The same call continues from it with bitwise equal results.
        progress: whether to show how far the run has come: a progress bar on a terminal or in a
            notebook, elsewhere a line every 30 seconds of the logger "cogen_fast" (level INFO).
        on_temperature: called after every temperature with a `Snapshot` of the run; if it returns
            True the run ends there. Whole runs in C++ call it about ten times a second.

    Returns:
        A `Result`. It holds the unfinished run and has ``complete=False``, with the reason in
        ``reasons["complete"]``, after Ctrl-C, where ``on_temperature`` or `Compute.time_limit`
        ended the run, and where an adaptive run without a budget has spent 2,000 gradients and the
        misfit of every observation stays far above the noise. With a checkpoint, the unfinished
        run is saved, and KeyboardInterrupt is raised after Ctrl-C.

    Raises:
        TypeError, ValueError: an argument is invalid. The message names it; no sampling has begun.

    Warns:
        DiagnosisWarning: for each sentence of ``Result.diagnose()``.
    """
    compute = as_compute(compute)
    with team(compute) as found:
        settings = as_settings(method)
        if isinstance(settings, Paper) and noise_std is None and weight is None and misfit is None:
            weight = settings.weight
        check_flag("progress", progress)
        ids = _listed(observation_ids)
        on_temperature = checked_callback(on_temperature)
        run_options = RunOptions(check_seed(seed), compute.max_batch)
        fitting, plan = _planned(settings, chains, budget, polish, run_options)
        if isinstance(plan, AdaptivePlan) and is_unknown(noise_std):
            plan = InferredNoise(plan)
        saving = None if checkpoint is None else _as_checkpoint(checkpoint)
        if latent_shape is not None:
            _check_room(plan, math.prod(as_shape(latent_shape)))
        with prepared(
            G,
            x_obs,
            mask,
            noise_std=noise_std,
            weight=weight,
            misfit=misfit,
            latent_shape=latent_shape,
            compute=compute,
            whole_runs=isinstance(plan, PaperPlan),
            infers_noise=isinstance(plan, InferredNoise),
            records=True,
            timed=True,
            team=found,
        ) as problem:
            adapter = problem.adapter
            count = problem.observation.count
            _check_room(plan, adapter.latent_size, adapter.output_shape, count, adapter.device)
            recorded = plan.settings() | compute.settings()
            if budget is not None:
                recorded["budget"] = int(budget)  # the given one; the plan has it without polishing

            run = _Run(
                plan,
                fitting,
                recorded,
                saving,
                run_options.seed,
                ids,
                compute.time_limit,
                on_temperature,
                progress,
            )
            asked = recorded | dict(plan.identity()) | {"polish": polish, "observation_ids": ids}
            return problem.led(asked, lambda: run.result(problem))


def _listed(observation_ids: Any) -> list[Any] | None:
    """The identifiers as a list; what they are is checked where they are used."""
    if observation_ids is None:
        return None
    try:
        return list(observation_ids)
    except TypeError:
        raise ValueError(
            f"observation_ids: expected a sequence of integers, got {shown(observation_ids)}"
        ) from None


@dataclass(frozen=True)
class _Run:
    """A run that can be started; ``settings`` are those that its result names."""

    plan: Method
    fitting: Fits | None
    settings: dict[str, Any]
    saving: Checkpoint | None
    seed: int
    observation_ids: Sequence[int] | None
    time_limit: float | None
    on_temperature: OnTemperature | None
    progress: bool

    def result(self, problem: Problem) -> Result:
        """Make the run, and the fits beside its samples."""
        watch = Watch(
            self.plan,
            problem.observation,
            partial(self._unfinished, problem),
            self.on_temperature,
            self.time_limit,
        )
        loop = Loop(self.plan, problem, self.saving, watch)
        run = loop.anneal(self.observation_ids, self.progress)
        outcome = self.plan.outcome(problem, run, loop.stopped is None)
        fit_settings = fits.NO_FITS
        if self.fitting is not None and (loop.stopped is None or watch.plateaued):
            try:
                outcome, fit_settings = fits.with_fits(
                    outcome, problem, self.fitting, self.seed, self.observation_ids
                )
            except KeyboardInterrupt:
                if self.saving is not None:
                    raise  # the checkpoint holds the samples
                outcome.notes.append("Polishing was interrupted, so there are no fits.")
        return _diagnosed(assemble(self.settings | fit_settings, outcome, loop.stopped, problem))

    def _unfinished(self, problem: Problem, run: Any) -> Result:
        outcome = self.plan.outcome(problem, run, False)
        return assemble(self.settings | fits.NO_FITS, outcome, RUNNING, problem)


def _diagnosed(result: Result) -> Result:
    """The result itself, after a warning for each thing that is wrong with it."""
    for sentence in result.diagnose():
        warn_user(sentence, DiagnosisWarning)
    return result


def inpaint(
    G: Callable[[Tensor], Tensor],
    image: Any,
    mask: Any,
    **options: Any,
) -> Result:
    """Fill in the hidden part of images: `cogenerate` with a mask, 1 = observed, 0 = hidden.

    ``image`` is ``(C, H, W)`` or a batch ``(B, C, H, W)``, in [-1, 1]. ``mask`` broadcasts to it:
    ``(H, W)`` for all, ``(B, 1, H, W)`` or a list of ``(H, W)`` for each image. Both may be
    pictures of Pillow, paths of pictures, or lists of these: an image is upright and in [-1, 1],
    and a mask is white where observed. ``options`` are those of `cogenerate`; ``polish`` is "auto"
    by default.
    """
    image = as_images("image", image)
    if not isinstance(operator := as_operator(as_masks(mask)), Mask):
        raise TypeError(f"mask: expected an array of 0 and 1, got {operator!r}; use cogenerate")
    if operator.mask.numel() and bool(operator.mask.all()):
        warn_user("mask: everything is observed, so nothing is left to fill in")
    return cogenerate(G, image, operator, **_checked(options))


def super_resolve(
    G: Callable[[Tensor], Tensor],
    low_res: Any,
    factor: int,
    *,
    downsample: Literal["average", "stride"] = "average",
    **options: Any,
) -> Result:
    """Draw images of ``factor`` times the resolution that agree with ``low_res`` when reduced.

    ``low_res`` is ``(C, H / factor, W / factor)`` or a batch of such images, in [-1, 1], or
    pictures as `inpaint` takes them. ``downsample`` says how it was reduced: by the "average" of
    each block (the paper's text), or by keeping every ``factor``-th pixel, "stride" (the authors'
    program). ``options`` are those of `cogenerate`; ``polish`` is "auto" by default.
    """
    operators = {"average": AveragePool, "stride": Stride}
    chosen = check_choice("downsample", downsample, tuple(operators))
    low_res = as_images("low_res", low_res)
    return cogenerate(G, low_res, operators[chosen](factor), **_checked(options))


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `cogenerate`, with the default of ``polish``; TypeError for other names."""
    for name in options.keys() - inspect.signature(cogenerate).parameters.keys():
        homes = [
            f"{keyword}={kind.__name__}({name}=...)"
            for keyword, kind in _SETTINGS
            if name in names_of(kind)
        ]
        hint = f"; give {' or '.join(homes)}" if homes else ""
        raise TypeError(f"{name}: expected an option of cogenerate, got another name{hint}")
    return {"polish": "auto", **options}


def _check_room(
    plan: Method,
    latent_size: int,
    output_shape: tuple[int, ...] = (),
    observations: int = 1,
    device: torch.device | None = None,
) -> None:
    """Raise ValueError, naming the largest count, if the run's first state cannot fit in memory."""
    settings = plan.settings()
    counts = {"populations": settings.get("populations", 1), "chains": settings["chains"]}
    each = settings.get("draws", 0) // math.prod(counts.values()) + _VECTORS_PER_CHAIN
    outputs = observations * math.prod(output_shape)
    check_samples(counts, observations * each, latent_size, outputs=outputs, device=device)
    if "islands" in settings:
        _check_mass(settings, latent_size, observations, device)


def _check_mass(
    settings: Mapping[str, Any], latent_size: int, observations: int, device: torch.device | None
) -> None:
    """Raise ValueError if the islands' estimates of the precision cannot fit in memory."""
    rows, populations = observations * settings["islands"], settings["populations"]
    each = rows // populations * curvature.bytes_of_a_latent(latent_size)
    if populations == 1:
        check_room({"latent_shape": latent_size}, each, "a size of latents", device)
        return
    whole = latent_size * each
    check_room({"populations": populations}, whole, "a number of populations", device)


def _planned(
    settings: Settings, chains: Any, budget: Any, polish: Any, run_options: RunOptions
) -> tuple[Fits | None, Method]:
    """How the samples are polished (None: not at all), and a run with the remaining budget."""
    polish = fits.checked(polish)
    if isinstance(settings, Paper):
        if budget is not None:
            raise ValueError(f"budget: expected none with method='paper', got {shown(budget)}")
        fitting, _ = fits.planned(0 if polish == "auto" else polish, None, 1)
        return fitting, settings.plan(chains, run_options)
    if budget is not None:
        budget = check_count("budget", budget)
    each = POPULATION if chains is None else check_count("chains", chains)
    fitting, left = fits.planned(polish, budget, each * settings.populations)
    return fitting, settings.plan(chains, left, run_options)


def _as_checkpoint(checkpoint: str | Path | Checkpoint) -> Checkpoint:
    return checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
