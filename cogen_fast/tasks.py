"""The front door: `cogenerate`, and `inpaint` and `super_resolve` on top of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from cogen_fast.methods.settings import Adaptive, Paper, Running, Settings, as_settings
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
from cogen_fast.problem.problem import prepared
from cogen_fast.results.result import Result
from cogen_fast.sampler import curvature
from cogen_fast.sampler.tuning import POPULATION
from cogen_fast.support.arguments import check_choice, check_count, check_flag, check_seed, shown
from cogen_fast.support.memory import check_room, check_samples

_HELD = 4  # latents of each chain at the least: position, gradient, momentum and proposal


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
    misfit: UserMisfit | None = None,
    latent_shape: Any = None,
    seed: int = 0,
    observation_ids: Sequence[int] | None = None,
    compute: Compute = DEFAULT,
    checkpoint: str | Path | Checkpoint | None = None,
    progress: bool = True,
    keep_trace: bool = False,
) -> Result:
    """Draw samples of ``G(z)`` given what is observed of it.

    By annealed importance sampling with HMC moves (Fang and Schwing 2019), which finds its own
    temperatures, resamples and tunes its moves (``method="adaptive"``), or exactly as published
    (``method="paper"``).

    Args:
        G: callable or module, latents ``(n, d)`` or ``(n, d, 1, 1)`` to outputs ``(n, ...)``. It
            must be a function; its weights, modes and gradient flags come back as they were.
        x_obs: one observation or a batch ``(B, ...)``, torch or NumPy, floating point. Hidden
            entries may hold anything, NaN too.
        mask: 1 = observed, 0 = hidden, broadcastable over channels and batch; or an operator:
            `Mask`, `AveragePool`, `Stride`, `Operator`, or any object with a callable ``A(x)``.
        method: "adaptive" (default), or "paper": Algorithm 1 with the published step-size
            adaptation; or an `Adaptive` or `Paper` with settings of your own.
        chains: samples N per observation and population (adaptive 16, paper 4). The adaptive method
            runs at least 16 particles (an even number of them, in one population) and returns this
            many.
        budget: adaptive; most gradient evaluations per returned chain, polishing included, and the
            scored prior draws at two for a gradient. What the way to the posterior leaves of it
            buys further rounds of moves there (``Result.rounds``), until less than a round is left.
            At least a draw and a gradient are spent. Without one a run takes as many as it needs,
            without end where ``G`` cannot come near ``x_obs``. The budget is shared: one gradient
            counts for all observations of a call. With fewer than 16 chains, and less than 480
            gradients of all for sampling, they run alone: no resampling, no weights, and mode
            probabilities that are not reliable.
        polish: gradients of L-BFGS on the misfit from every sample in the end (0): best fits beside
            the samples, which stay as they are (`Result.fit_images`, `Result.estimate`). "auto":
            twice as many as the data decide directions (30 to 120), or an eighth of the run's if
            that is more. With a budget two fifths of it (of a small one 11 of 20 parts, up to 240
            gradients of all), for as many of the best samples and prior draws as these are enough
            for, and three times as deep where there are four measurements or more for each latent;
            common to a call. None with the paper's method.
        noise_std: noise standard deviation in units of ``x_obs``, a number or broadcastable to the
            measurements. 0.1 for images in [-1, 1]; must be given (or ``weight``) otherwise. "auto"
            or an `UnknownNoise` infers one for each observation beside its latents (adaptive,
            without ``evidence="frozen"``): ``Result.noise_std``.
        weight: factor of the squared error in place of ``1 / (2 noise_std^2)``.
        misfit: ``misfit(prediction, target) -> (n,)`` in place of the squared error; both arguments
            have hidden entries set to 0.
        latent_shape: ``d`` or a tuple, where it cannot be found out from ``G``.
        seed: whole number of 64 bits; a run is a pure function of its inputs and the seed.
        observation_ids: numbers that name the observations in the noise (0 .. B-1).
        compute: device, backend, float types and memory, a `Compute`.
        checkpoint: file to save an unfinished run to, every minute (or as a `Checkpoint` says) and
            on Ctrl-C; a run started again with the same inputs goes on from there, bit for bit.
        progress: show a progress bar on stderr.
        keep_trace: keep the latents after every temperature.

    Returns:
        A `Result`. On Ctrl-C without a checkpoint: what is there, with ``complete=False``; with a
        checkpoint it is saved and KeyboardInterrupt raised.

    Raises:
        TypeError, ValueError: bad input, naming the argument, before any sampling.
    """
    settings = as_settings(method)
    if isinstance(settings, Paper) and noise_std is None and weight is None and misfit is None:
        weight = settings.weight
    check_flag("progress", progress)
    max_batch = as_compute(compute).max_batch
    running = Running(check_seed(seed), max_batch, check_flag("keep_trace", keep_trace))
    fitting, plan = _planned(settings, chains, budget, polish, running)
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
    ) as problem:
        adapter = problem.adapter
        count = problem.observation.count
        _check_room(plan, adapter.latent_size, adapter.output_shape, count, adapter.device)
        run, complete = Loop(plan, problem, saving).anneal(observation_ids, progress)
        outcome = plan.outcome(problem, run, complete)
        told = plan.settings() | compute.settings()
        if budget is not None:
            told["budget"] = int(budget)  # as it was asked for, polishing included
        if fitting is None or not complete:
            return assemble(told | fits.NONE, outcome, complete, problem)
        try:
            outcome, made = fits.found(outcome, problem, fitting, running.seed, observation_ids)
        except KeyboardInterrupt:
            if saving is not None:
                raise  # the checkpoint holds the samples
            outcome.notes.append("polishing was interrupted: there are no fits")
            made = fits.NONE
        return assemble(told | made, outcome, complete, problem)


def inpaint(
    G: Callable[[Tensor], Tensor],
    image: Any,
    mask: Any,
    **options: Any,
) -> Result:
    """Fill the hidden part of an image: `cogenerate` with a mask, 1 = observed, 0 = hidden.

    ``image`` is ``(C, H, W)`` or a batch of it, in [-1, 1]; ``mask`` broadcasts to it, ``(H, W)``
    included. ``options`` are those of `cogenerate`, but that ``polish`` is "auto" by default.
    """
    if not isinstance(operator := as_operator(mask), Mask):
        raise TypeError(f"mask: expected an array of 0 and 1, got {operator!r}; use cogenerate")
    return cogenerate(G, image, operator, **{"polish": "auto"} | options)


def super_resolve(
    G: Callable[[Tensor], Tensor],
    low_res: Any,
    factor: int,
    *,
    downsample: Literal["average", "stride"] = "average",
    **options: Any,
) -> Result:
    """Images of ``factor`` times the resolution that look like ``low_res`` when reduced.

    ``low_res`` is ``(C, H / factor, W / factor)`` or a batch of it, in [-1, 1]. ``downsample`` says
    how it came about: "average" of blocks (the paper's text) or every ``factor``-th pixel, "stride"
    (the authors' program). ``options`` are those of `cogenerate`, but that ``polish`` is "auto" by
    default.
    """
    operators = {"average": AveragePool, "stride": Stride}
    chosen = check_choice("downsample", downsample, tuple(operators))
    return cogenerate(G, low_res, operators[chosen](factor), **{"polish": "auto"} | options)


def _check_room(
    plan: Method,
    latent_size: int,
    output_shape: tuple[int, ...] = (),
    observations: int = 1,
    device: torch.device | None = None,
) -> None:
    """ValueError naming the count that is too large where what the run begins with cannot fit."""
    settings = plan.settings()
    counts = {"populations": settings.get("populations", 1), "chains": settings["chains"]}
    each = settings.get("draws", 0) // math.prod(counts.values()) + _HELD
    outputs = observations * math.prod(output_shape)
    check_samples(counts, observations * each, latent_size, outputs=outputs, device=device)
    if "islands" in settings:
        _check_mass(settings, latent_size, observations, device)


def _check_mass(
    settings: Mapping[str, Any], latent_size: int, observations: int, device: torch.device | None
) -> None:
    """The same of what is known of the posterior's precision on every island."""
    rows, populations = observations * settings["islands"], settings["populations"]
    each = rows // populations * curvature.bytes_of_a_latent(latent_size)
    if populations == 1:
        check_room({"latent_shape": latent_size}, each, "a size of latents", device)
        return
    whole = latent_size * each
    check_room({"populations": populations}, whole, "a number of populations", device)


def _planned(
    settings: Settings, chains: Any, budget: Any, polish: Any, running: Running
) -> tuple[Fits | None, Method]:
    """What is polished, and the run with the budget that this leaves."""
    polish = fits.checked(polish)
    if isinstance(settings, Paper):
        if budget is not None:
            raise ValueError(f"budget: expected none with method='paper', got {shown(budget)}")
        fitting, _ = fits.planned(0 if polish == "auto" else polish, None, 1)
        return fitting, settings.plan(chains, running)
    if budget is not None:
        budget = check_count("budget", budget)
    each = POPULATION if chains is None else check_count("chains", chains)
    fitting, left = fits.planned(polish, budget, each * settings.populations)
    return fitting, settings.plan(chains, left, running)


def _as_checkpoint(checkpoint: str | Path | Checkpoint) -> Checkpoint:
    return checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
