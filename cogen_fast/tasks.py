"""The front door: `cogenerate`, and `inpaint` and `super_resolve` on top of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cogen_fast.methods import fits
from cogen_fast.methods.adaptive import Adaptive, Evidence
from cogen_fast.methods.assembly import assemble
from cogen_fast.methods.fits import Fits
from cogen_fast.methods.inferred_noise import InferredNoise
from cogen_fast.methods.loop import Loop, Method
from cogen_fast.methods.paper import Paper
from cogen_fast.methods.presets import DEFAULTS, Preset, find_preset
from cogen_fast.ops.spec import AdaptationRule
from cogen_fast.problem.adapter import as_shape
from cogen_fast.problem.density import FORMS, Form
from cogen_fast.problem.observation import (
    AveragePool,
    Mask,
    Stride,
    UserMisfit,
    as_operator,
    is_unknown,
)
from cogen_fast.problem.precision import Precision
from cogen_fast.problem.problem import prepared
from cogen_fast.results.result import ANNEALED, Result
from cogen_fast.sampler import ais, curvature
from cogen_fast.sampler.pace import Annealing
from cogen_fast.sampler.schedule import as_schedule
from cogen_fast.sampler.tuning import POPULATION
from cogen_fast.support.arguments import (
    check_choice,
    check_count,
    check_file,
    check_flag,
    check_number,
    check_seed,
    shown,
)
from cogen_fast.support.memory import check_room, check_samples
from cogen_fast.support.warnings import warn_user

METHODS = ANNEALED
ADAPTATIONS = ("published", "per-chain")
_HELD = 4  # latents of each chain at the least: position, gradient, momentum and proposal
_OF_TEMPERATURE = 48  # bytes at the least: the inverse temperature itself, and what is kept of it


def cogenerate(
    G: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    method: Literal["adaptive", "paper"] | None = None,
    preset: str | None = None,
    chains: int | None = None,
    budget: int | None = None,
    populations: int | None = None,
    evidence: Evidence | None = None,
    kept: float | None = None,
    mass: Literal["curvature", "identity"] | None = None,
    ais_steps: int | None = None,
    hmc_steps: int | None = None,
    leapfrog_steps: int | None = None,
    step_size: float | None = None,
    adaptation: AdaptationRule | Literal["published", "per-chain"] | None = "published",
    schedule: Any = None,
    form: Form | None = None,
    polish: int | Literal["auto"] = 0,
    noise_std: Any = None,
    weight: Any = None,
    misfit: UserMisfit | None = None,
    latent_shape: Any = None,
    seed: int = 0,
    observation_ids: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    backend: str = "auto",
    gradient_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    energy_dtype: Literal["float32", "float64"] | None = None,
    compile: bool = False,
    cuda_graphs: bool = True,
    max_batch: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
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
            adaptation (default where a preset is named).
        preset: settings of a published run by name (`cogen_fast.PRESETS`); what is given beside it
            wins.
        chains: samples N per observation and population (adaptive 16, paper 4). The adaptive method
            runs at least 16 particles (an even number of them, in one population) and returns this
            many.
        budget: adaptive; most gradient evaluations per returned chain, polishing included, and the
            scored prior draws at two for a gradient. What the way to the posterior leaves of it
            buys further rounds of moves there (``Result.rounds``), until less than a round is left.
            At least a draw and a gradient are spent. Without one a run takes as many as it needs,
            without end where ``G`` cannot come near ``x_obs``. Observations of a call share it as a
            clock. With fewer than 16 chains, and less than 480 gradients of all for sampling, they
            run alone: no resampling, no weights, and modes in wrong shares.
        populations: adaptive; R of N chains each per observation (1). They are islands: groups of
            particles that exchange none and are tuned by one another. One population is two islands
            of half its particles. Each begins from the best of up to 64 prior draws for each of its
            particles. More populations tell R-hat and the error of the evidence better.
        evidence: adaptive; "consistent", or "frozen": a second run repeats every choice of the
            first under other noise, which makes the estimate unbiased. What is returned, samples
            too, is then the second run's.
        kept: adaptive; share of the conditional effective sample size that a step of the inverse
            temperature keeps (0.97). Nearer to 1: more temperatures.
        mass: adaptive; of the moves: "curvature" (default), the precision of the posterior that the
            gradients of the other islands show, in their stiffest directions; or "identity".
        ais_steps: paper; number T of inverse temperatures (500; a given array has its own number).
        hmc_steps: transitions M per temperature (adaptive: tuned; paper 1).
        leapfrog_steps: leapfrog steps L per transition (adaptive: tuned, and then common to all
            observations of a call; paper 20).
        step_size: leapfrog step at the start (adaptive: by the size of the latent; paper 0.01).
        adaptation: paper; of the step size: "published" (default), by the mean acceptance of an
            observation's chains, which share it; "per-chain", the same rule for each chain by its
            own acceptance, which biases samples and weights (see `AdaptationRule`); a rule of your
            own; or None to keep the step size.
        schedule: paper; "sigmoid" (default), "sigmoid-raw", "linear", "geometric", an array of
            inverse temperatures ``beta_1 .. beta_T``, or a schedule object.
        form: "posterior" (default), ``beta E + |z|^2 / 2``; or, with the paper's method, "paper",
            ``beta E + (1 - beta) |z|^2 / 2``, without weights and evidence.
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
        device: where to run (the device of G's weights). "cpu" or "cuda".
        backend: "auto", "fused", "native" (CPU), "triton" (CUDA) or "reference"; see
            `cogen_fast.backends`. "auto" takes "fused", where it serves G: the z-gradient's fast
            path for progressive generators and, with the paper's method, whole runs in one call for
            small ones of dense layers.
        gradient_dtype: what gradients are computed in (G's own type, float32 for most). "bfloat16"
            and "float16" are cheaper on a GPU and leave the posterior exact: energies then take a
            forward of their own. Where acceptance suffers the run goes on in G's own type.
        energy_dtype: what energies are computed in (G's own type), never TF32: what is sampled is
            the posterior of G in this type.
        compile: run G through `torch.compile`. Where that fails, a warning and a note say so.
        cuda_graphs: on CUDA, record moves and replay them, so that no launch waits for Python; what
            G does in Python, such as hooks, is then done a few times only. Where G waits for the
            device within a move, or cannot be recorded, a note says so and moves run as they are.
        max_batch: most latents in one call to G (all; on CUDA as many as measured memory holds;
            halved when memory runs out).
        checkpoint: file to save an unfinished run to, every ``checkpoint_seconds`` and on Ctrl-C;
            a run started again with the same inputs goes on from there, bit for bit.
        progress: show a progress bar on stderr.
        keep_trace: keep the latents after every temperature.

    Returns:
        A `Result`. On Ctrl-C without a checkpoint: what is there, with ``complete=False``; with a
        checkpoint it is saved and KeyboardInterrupt raised.

    Raises:
        TypeError, ValueError: bad input, naming the argument, before any sampling.
    """
    base = DEFAULTS if preset is None else find_preset(preset)
    if preset is not None and noise_std is None and weight is None and misfit is None:
        weight = base.weight
    if form is not None:
        check_choice("form", form, FORMS)
    rule = _checked_adaptation(adaptation)
    only_paper = {
        "preset": preset,
        "ais_steps": ais_steps,
        "schedule": schedule,
        "form": None if form == "posterior" else form,
        "adaptation": None if rule == "published" else rule or "None",
    }
    only_adaptive = {
        "budget": budget,
        "populations": populations,
        "evidence": evidence,
        "kept": kept,
        "mass": mass,
    }
    common = {
        "chains": chains,
        "hmc_steps": hmc_steps,
        "leapfrog_steps": leapfrog_steps,
        "step_size": step_size,
    }
    running = {
        "seed": check_seed(seed),
        "max_batch": None if max_batch is None else check_count("max_batch", max_batch),
        "keep_trace": check_flag("keep_trace", keep_trace),
    }
    check_flag("progress", progress)
    check_flag("compile", compile)
    check_flag("cuda_graphs", cuda_graphs)
    polish = fits.checked(polish)
    precision = Precision(gradient_dtype, energy_dtype)
    path = None if checkpoint is None else check_file("checkpoint", checkpoint)
    interval = check_number("checkpoint_seconds", checkpoint_seconds, above=0.0, zero=True)
    plan: Method
    if _chosen_method(method, preset, only_paper, only_adaptive) == "paper":
        fitting, _ = fits.planned(0 if polish == "auto" else polish, None, 1)
        plan = _paper(base, preset, rule, ais_steps, schedule, form, common, running)
    else:
        fitting, left = _fits(polish, budget, chains, populations)
        adaptive = _adaptive(common | only_adaptive | {"budget": left}, running)
        plan = InferredNoise(adaptive) if is_unknown(noise_std) else adaptive
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
        device=device,
        backend=backend,
        max_batch=running["max_batch"],
        precision=precision,
        compile=compile,
        cuda_graphs=cuda_graphs,
        whole_runs=isinstance(plan, Paper),
        infers_noise=isinstance(plan, InferredNoise),
    ) as problem:
        adapter = problem.adapter
        count = problem.observation.count
        _check_room(plan, adapter.latent_size, adapter.output_shape, count, adapter.device)
        run, complete = Loop(plan, problem, path, interval).anneal(observation_ids, progress)
        outcome = plan.outcome(problem, run, complete)
        fit_settings = fits.NONE
        if fitting is not None and complete:
            try:
                outcome, fit_settings = fits.found(
                    outcome, problem, fitting, int(seed), observation_ids
                )
            except KeyboardInterrupt:
                if path is not None:
                    raise  # the checkpoint holds the samples
                outcome.notes.append("polishing was interrupted: there are no fits")
        settings = plan.settings() | fit_settings
        settings |= precision.settings() | {"compile": compile, "cuda_graphs": cuda_graphs}
        if budget is not None:
            settings["budget"] = int(budget)  # as it was asked for, polishing included
        return assemble(settings, outcome, complete, problem)


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


def _fits(
    polish: fits.Polish, budget: Any, chains: Any, populations: Any
) -> tuple[Fits | None, Any]:
    """The fits, and the budget of the annealing."""
    if budget is not None:
        budget = check_count("budget", budget)
    each = POPULATION if chains is None else check_count("chains", chains)
    apart = 1 if populations is None else check_count("populations", populations)
    return fits.planned(polish, budget, each * apart)


def _chosen_method(
    method: str | None,
    preset: str | None,
    only_paper: Mapping[str, Any],
    only_adaptive: Mapping[str, Any],
) -> str:
    """The method, once nothing is given that belongs to the other one."""
    if method is not None:
        check_choice("method", method, METHODS)
    chosen = method or ("adaptive" if preset is None else "paper")
    foreign = only_paper if chosen == "adaptive" else only_adaptive
    for name, value in foreign.items():
        if value is not None:
            other = "paper" if chosen == "adaptive" else "adaptive"
            raise ValueError(
                f"{name}: only method={other!r} takes it, expected none with {chosen!r}, got "
                f"{shown(value)}"
            )
    return chosen


def _adaptive(given: Mapping[str, Any], running: Mapping[str, Any]) -> Adaptive:
    """The adaptive method's settings, checked."""
    step_size, chains = given["step_size"], given["chains"]
    return Adaptive(
        chains=POPULATION if chains is None else chains,
        populations=1 if given["populations"] is None else given["populations"],
        annealing=Annealing(
            kept=Annealing.kept if given["kept"] is None else given["kept"],
            leapfrog_steps=given["leapfrog_steps"],
            hmc_steps=given["hmc_steps"],
            mass=Annealing.mass if given["mass"] is None else given["mass"],
        ),
        budget=given["budget"],
        evidence="consistent" if given["evidence"] is None else given["evidence"],
        step_size=None if step_size is None else check_number("step_size", step_size, above=0.0),
        **running,
    )


def _paper(
    base: Preset,
    preset: str | None,
    adaptation: AdaptationRule | str | None,
    ais_steps: int | None,
    schedule: Any,
    form: Form | None,
    common: Mapping[str, Any],
    running: Mapping[str, Any],
) -> Paper:
    """Settings from the preset and from what was given beside it, checked."""
    chosen = {k: getattr(base, k) if v is None else v for k, v in common.items()}
    if isinstance(adaptation, str):
        adaptation = replace(base.adaptation, per_chain=adaptation == "per-chain")
    schedule = base.schedule if schedule is None else schedule
    moves = ais.Moves(
        hmc_steps=chosen["hmc_steps"],
        leapfrog_steps=chosen["leapfrog_steps"],
        form=base.form if form is None else form,
        adaptation=adaptation,
    )
    steps = check_count("ais_steps", _steps(base, ais_steps, schedule))
    check_room({"ais_steps": steps}, _OF_TEMPERATURE, "a number of temperatures")
    paper = Paper(
        chains=check_count("chains", chosen["chains"]),
        moves=moves,
        betas=ais.checked_betas(schedule, steps),
        step_size=check_number("step_size", chosen["step_size"], above=0.0),
        seed=running["seed"],
        keep_trace=running["keep_trace"],
        max_batch=running["max_batch"],
        schedule=_schedule_name(schedule),
        preset=preset,
    )
    if moves.form == "paper" and paper.betas[-1] == 1.0:
        warn_user(
            "form: in the paper form beta = 1 removes the prior, and exp(-E) alone need not be a "
            "density; latents may drift away. Use form='posterior', or a schedule that ends "
            "below 1"
        )
    return paper


def _steps(base: Preset, ais_steps: int | None, schedule: Any) -> int:
    if ais_steps is not None:
        return ais_steps
    values = getattr(as_schedule(schedule), "values", None)
    return base.ais_steps if values is None else len(values)


def _schedule_name(schedule: Any) -> str:
    return schedule if isinstance(schedule, str) else repr(as_schedule(schedule))[:200]


def _checked_adaptation(adaptation: Any) -> AdaptationRule | str | None:
    if adaptation is None or isinstance(adaptation, AdaptationRule):
        return adaptation
    if isinstance(adaptation, str):
        return check_choice("adaptation", adaptation, ADAPTATIONS)
    raise TypeError(
        f"adaptation: expected one of {ADAPTATIONS}, a rule or None, got {shown(adaptation)}"
    )
