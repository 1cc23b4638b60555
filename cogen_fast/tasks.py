"""The front door: `cogenerate`, and `inpaint` and `super_resolve` on top of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cogen_fast.density import Form
from cogen_fast.diagnostics import log_mean_weight
from cogen_fast.loop import Loop, Plan
from cogen_fast.observation import AveragePool, Mask, Observation, Stride, UserMisfit, as_operator
from cogen_fast.ops.spec import AdaptationRule
from cogen_fast.presets import DEFAULTS, Preset, find_preset
from cogen_fast.problem import Problem, prepared
from cogen_fast.result import Result
from cogen_fast.sampler import ais, hmc
from cogen_fast.sampler.schedule import as_schedule
from cogen_fast.warn import warn_user

METHODS = ("paper",)
_PAPER_FORM_REASON = (
    "paper form: the prior fades out with the temperature, so exp(-E) need not have a finite "
    "integral and the weights mean nothing; use form='posterior'"
)


def cogenerate(
    G: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    method: Literal["paper"] = "paper",
    preset: str | None = None,
    chains: int | None = None,
    ais_steps: int | None = None,
    hmc_steps: int | None = None,
    leapfrog_steps: int | None = None,
    step_size: float | None = None,
    adaptation: AdaptationRule | Literal["published"] | None = "published",
    schedule: Any = None,
    form: Form | None = None,
    noise_std: Any = None,
    weight: Any = None,
    misfit: UserMisfit | None = None,
    latent_shape: Any = None,
    seed: int = 0,
    observation_ids: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    backend: str = "auto",
    max_batch: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
    keep_trace: bool = False,
) -> Result:
    """Draw samples of ``G(z)`` given what is observed of it (Algorithm 1 of Fang and Schwing 2019).

    Args:
        G: callable or module, latents ``(n, d)`` or ``(n, d, 1, 1)`` to outputs ``(n, ...)``. It
            must be a function; its weights, modes and gradient flags come back as they were.
        x_obs: one observation or a batch ``(B, ...)``, torch or NumPy, floating point. Hidden
            entries may hold anything, NaN too.
        mask: 1 = observed, 0 = hidden, broadcastable over channels and batch; or an operator:
            `Mask`, `AveragePool`, `Stride`, `Operator`, or any object with a callable ``A(x)``.
        method: "paper", Algorithm 1 with the published step-size adaptation.
        preset: settings of a published run by name (`cogen_fast.PRESETS`); what is given beside it
            wins.
        chains: samples N per observation (4).
        ais_steps: number T of inverse temperatures (500; a given array has its own number).
        hmc_steps: transitions M per temperature (1).
        leapfrog_steps: leapfrog steps L per transition (20).
        step_size: leapfrog step at the start (0.01).
        adaptation: "published", an `AdaptationRule`, or None to keep the step size.
        schedule: "sigmoid" (default), "sigmoid-raw", "linear", "geometric", an array of inverse
            temperatures ``beta_1 .. beta_T``, or a schedule object.
        form: "posterior" (default), ``beta E + |z|^2 / 2``; or "paper",
            ``beta E + (1 - beta) |z|^2 / 2``, without weights and evidence.
        noise_std: noise standard deviation in units of ``x_obs``, a number or broadcastable to the
            measurements. 0.1 for images in [-1, 1]; must be given (or ``weight``) otherwise.
        weight: factor of the squared error in place of ``1 / (2 noise_std^2)``.
        misfit: ``misfit(prediction, target) -> (n,)`` in place of the squared error; both arguments
            have hidden entries set to 0.
        latent_shape: ``d`` or a tuple, where it cannot be found out from ``G``.
        seed: whole number of 64 bits; a run is a pure function of its inputs and the seed.
        observation_ids: numbers that name the observations in the noise (0 .. B-1).
        device: where to run (the device of G's weights). "cpu" or "cuda".
        backend: "auto", "native" or "reference"; see `cogen_fast.backends`.
        max_batch: most latents in one call to G (all; halved when memory runs out).
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
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {method!r}")
    if preset is not None and noise_std is None and weight is None and misfit is None:
        weight = base.weight
    plan = _plan(
        base,
        preset,
        chains=chains,
        ais_steps=ais_steps,
        hmc_steps=hmc_steps,
        leapfrog_steps=leapfrog_steps,
        step_size=step_size,
        adaptation=adaptation,
        schedule=schedule,
        form=form,
        seed=seed,
        max_batch=max_batch,
        keep_trace=keep_trace,
    )
    path = None if checkpoint is None else _checkpoint_path(checkpoint)
    if not checkpoint_seconds >= 0.0:
        raise ValueError(f"checkpoint_seconds: expected 0 or more, got {checkpoint_seconds!r}")
    _warn_about_form(plan)
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
        max_batch=plan.max_batch,
    ) as problem:
        loop = Loop(plan, problem, path, checkpoint_seconds)
        run, complete = loop.anneal(observation_ids, progress)
        return _assemble(plan, run, complete, problem)


def inpaint(
    G: Callable[[Tensor], Tensor],
    image: Any,
    mask: Any,
    **options: Any,
) -> Result:
    """Fill the hidden part of an image: `cogenerate` with a mask, 1 = observed, 0 = hidden.

    ``image`` is ``(C, H, W)`` or a batch of it, in [-1, 1]; ``mask`` broadcasts to it, ``(H, W)``
    included. ``options`` are those of `cogenerate`.
    """
    if not isinstance(operator := as_operator(mask), Mask):
        raise TypeError(f"mask: expected an array of 0 and 1, got {operator!r}; use cogenerate")
    return cogenerate(G, image, operator, **options)


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
    (the authors' program). ``options`` are those of `cogenerate`.
    """
    operators = {"average": AveragePool, "stride": Stride}
    if downsample not in operators:
        raise ValueError(f"downsample: expected one of {list(operators)}, got {downsample!r}")
    return cogenerate(G, low_res, operators[downsample](factor), **options)


def _plan(
    base: Preset,
    preset: str | None,
    *,
    adaptation: AdaptationRule | Literal["published"] | None,
    seed: int,
    max_batch: int | None,
    keep_trace: bool,
    ais_steps: int | None,
    schedule: Any,
    **given: Any,
) -> Plan:
    """Settings from the preset and from what was given beside it, checked."""
    chosen = {k: getattr(base, k) if v is None else v for k, v in given.items()}
    if isinstance(adaptation, str):
        if adaptation != "published":
            raise ValueError(
                f"adaptation: expected 'published', a rule or None, got {adaptation!r}"
            )
        adaptation = base.adaptation
    schedule = base.schedule if schedule is None else schedule
    moves = ais.Moves(
        hmc_steps=chosen["hmc_steps"],
        leapfrog_steps=chosen["leapfrog_steps"],
        form=chosen["form"],
        adaptation=adaptation,
    )
    return Plan(
        chains=hmc.check_count("chains", chosen["chains"]),
        moves=moves,
        betas=ais.checked_betas(schedule, _steps(base, ais_steps, schedule)),
        step_size=ais.check_step_size(chosen["step_size"]),
        seed=hmc.check_seed(seed),
        keep_trace=keep_trace,
        max_batch=max_batch,
        schedule=_schedule_name(schedule),
        preset=preset,
    )


def _steps(base: Preset, ais_steps: int | None, schedule: Any) -> int:
    if ais_steps is not None:
        return ais_steps
    values = getattr(as_schedule(schedule), "values", None)
    return base.ais_steps if values is None else len(values)


def _schedule_name(schedule: Any) -> str:
    return schedule if isinstance(schedule, str) else repr(as_schedule(schedule))[:200]


def _checkpoint_path(checkpoint: str | Path) -> Path:
    path = Path(checkpoint)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"checkpoint: expected a file in an existing folder, got {path}")
    return path


def _warn_about_form(plan: Plan) -> None:
    if plan.moves.form == "paper" and plan.betas[-1] == 1.0:
        warn_user(
            "form: in the paper form beta = 1 removes the prior, and exp(-E) alone need not be a "
            "density; latents may drift away. Use form='posterior', or a schedule that ends "
            "below 1"
        )


def _assemble(plan: Plan, run: ais.Run, complete: bool, problem: Problem) -> Result:
    state, observation, potential = run.state, problem.observation, problem.potential
    backend = problem.backend
    images = potential.outputs(state.hmc.latents).cpu()
    values, observed = observation.measured_values.cpu(), observation.observed
    observed = None if observed is None else observed.cpu()
    completed = None
    if isinstance(observation.operator, Mask) and observed is not None:
        completed = torch.where(observed[:, None], values[:, None], images)
    last = float(plan.betas[-1])
    normaliser, evidence, reasons = _normalisers(state, complete, last, observation)
    if completed is None:
        reasons["completed"] = "only where a mask hides entries can observed ones be pasted back"
    notes = [observation.noise, f"backend {backend}"]
    if potential.halvings:
        notes.append(f"out of memory: max_batch was lowered to {potential.max_batch}")
    return Result(
        images=images,
        completed=completed,
        latents=state.hmc.latents.cpu(),
        energies=state.hmc.energy.cpu(),
        log_weights=None if state.log_weights is None else state.log_weights.cpu(),
        log_normaliser=normaliser,
        log_evidence=evidence,
        betas=torch.from_numpy(plan.betas),
        acceptance=run.history.acceptance.cpu(),
        step_size=run.history.step_size.cpu(),
        energy_history=run.history.energy.cpu(),
        non_finite=state.non_finite.cpu(),
        x_obs=values,
        observed=observed,
        trace=run.history.trace,
        complete=complete,
        beta_reached=float(state.beta[0]),
        reasons=reasons,
        settings=plan.settings() | {"noise": observation.noise, "backend": backend},
        notes=notes,
    )


def _normalisers(
    state: ais.AISState, complete: bool, last_beta: float, observation: Observation
) -> tuple[Tensor | None, Tensor | None, dict[str, str]]:
    """Log normaliser and log evidence ``(B,)``, and the reasons for each that is None."""
    if state.log_weights is None:
        names = ("log_weights", "log_normaliser", "log_evidence")
        return None, None, dict.fromkeys(names, _PAPER_FORM_REASON)
    if not complete:
        reason = "the run was interrupted before its last inverse temperature"
        return None, None, {"log_normaliser": reason, "log_evidence": reason}
    normaliser = log_mean_weight(state.log_weights)
    if last_beta < 1.0:
        reason = f"the last inverse temperature is {last_beta:.6g}, below 1; see log_normaliser"
        return normaliser.cpu(), None, {"log_evidence": reason}
    if observation.log_noise_constant is None:
        reason = "needs Gaussian noise (noise_std) and the squared error; see log_normaliser"
        return normaliser.cpu(), None, {"log_evidence": reason}
    return normaliser.cpu(), (normaliser + observation.log_noise_constant).cpu(), {}
