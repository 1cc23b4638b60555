"""Annealed importance sampling with HMC moves: the loop of Algorithm 1, and its log weights.

Algorithm 1 of Fang and Schwing (2019): draw from the prior (step 1, `init`); then for each inverse
temperature of a schedule (step 2, `run`) update the log weights and make M HMC transitions
(`step`). ``init``, ``step(state) -> (state, info)`` and ``run`` are public, for loops of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from cogen_fast.ops import dispatch
from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.spec import AdaptationRule, TransitionSettings
from cogen_fast.problem.density import FORMS, Form, Potential, forwards, prior_weight, replayed
from cogen_fast.sampler import fallback, hmc, step_size
from cogen_fast.sampler.hmc import Energy, HMCInfo, HMCState
from cogen_fast.sampler.schedule import Betas, as_schedule
from cogen_fast.sampler.step_size import StepSizeState
from cogen_fast.support.arguments import check_count, check_number
from cogen_fast.support.layout import Array, Count, CountsOfEach, OfEach, Shares, Whole

_PerTemperature = Annotated[Tensor, Array("T B", infinite=True, nan=True)]


@dataclass(frozen=True)
class Moves:
    """How chains move at one inverse temperature: M transitions of L leapfrog steps.

    ``hmc_steps`` is M and ``leapfrog_steps`` L. ``form`` is the annealed density
    (`cogen_fast.problem.density.prior_weight`). ``adaptation`` is the step-size rule, None for a
    fixed step size. Raises TypeError or ValueError naming the argument.
    """

    hmc_steps: int = 1
    leapfrog_steps: int = 20
    form: Form = "posterior"
    adaptation: AdaptationRule | None = field(default=step_size.PROGRAM_RULE)

    def __post_init__(self) -> None:
        for name in ("hmc_steps", "leapfrog_steps"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        if self.form not in FORMS:
            raise ValueError(f"form: expected one of {FORMS}, got {self.form!r}")
        if not isinstance(self.adaptation, AdaptationRule | None):
            raise TypeError(
                f"adaptation: expected an AdaptationRule or None, got {self.adaptation!r}"
            )


@dataclass(frozen=True)
class AISState:
    """The state of B observations in the AIS loop.

    ``beta`` ``(B,)`` float64 is the inverse temperature reached (0 before the first).
    ``log_weights`` ``(B, N)`` float64 is None in the paper form, which has no valid weights.
    ``non_finite`` ``(B, N)`` int64 counts proposals that were rejected because they were not
    finite. ``forwards`` counts a chain's forward passes apart from those of its gradients.
    """

    hmc: HMCState
    adaptation: StepSizeState
    beta: Shares
    log_weights: OfEach | None
    non_finite: CountsOfEach
    forwards: Count = 0


@dataclass(frozen=True)
class AISInfo:
    """One temperature: mean ``acceptance`` and the ``step_size`` used last, both ``(B,)``.

    Where each chain has a step size of its own, ``step_size`` is their mean. ``last`` is the
    outcome of the last transition.
    """

    acceptance: Tensor
    step_size: Tensor
    last: HMCInfo


def init(
    target: Potential | Energy,
    moves: Moves,
    *,
    step_size_start: float = 0.01,
    **how: Any,
) -> AISState:
    """Prior draws at ``beta_0 = 0`` (step 1 of Algorithm 1); ``how`` is passed to `hmc.init`."""
    start = check_number("step_size", step_size_start, above=0.0)
    potential = hmc.as_potential(target)
    state = hmc.init(potential, **how)
    rule = moves.adaptation or step_size.PROGRAM_RULE
    count, chains, _ = state.latents.shape
    adaptation = step_size.init(count, chains, start, rule, state.latents.device)
    zeros = torch.zeros_like(state.energy)
    return AISState(
        state,
        adaptation,
        torch.zeros_like(zeros[:, 0]),
        zeros if moves.form == "posterior" else None,
        torch.zeros_like(zeros, dtype=torch.int64),
        forwards(potential),
    )


def step(
    state: AISState,
    target: Potential | Energy,
    beta: Tensor | float,
    moves: Moves,
    *,
    backend: str = "auto",
) -> tuple[AISState, AISInfo]:
    """One pass of the AIS loop: weigh at the new ``beta``, then make M transitions at it.

    Each log weight grows by ``log p_beta(z) - log p_old(z)`` *before* the transitions (Neal 2001).
    The cost is ``M L`` gradients. The given state is not changed.
    """
    potential = hmc.as_potential(target)
    ops = dispatch.resolve(backend, state.hmc.latents.device)
    betas = torch.as_tensor(beta, dtype=torch.float64, device=state.beta.device)
    betas = betas.expand(state.beta.shape).contiguous()
    log_weights = state.log_weights
    if log_weights is not None:
        log_weights = log_weights - (betas - state.beta)[:, None] * state.hmc.energy
    weight = prior_weight(moves.form, betas)
    chains, adaptation, non_finite = state.hmc, state.adaptation, state.non_finite
    acceptance = torch.zeros_like(betas)
    for _ in range(moves.hmc_steps):
        used = adaptation.step_size
        chains, adaptation, info = replayed(
            potential,
            (moves, ops.name),
            partial(_move, potential, moves, ops),
            chains,
            adaptation,
            TransitionSettings(betas, weight, used),
        )
        acceptance = acceptance + info.acceptance_probability.mean(-1) / moves.hmc_steps
        non_finite = non_finite + info.non_finite
    cost = state.forwards + moves.hmc_steps * forwards(potential)
    after = AISState(chains, adaptation, betas, log_weights, non_finite, cost)
    if adaptation.per_chain:
        used = used.mean(-1)
    return after, AISInfo(acceptance, used, info)


def _move(
    potential: Potential,
    moves: Moves,
    ops: Ops,
    chains: HMCState,
    adaptation: StepSizeState,
    settings: TransitionSettings,
) -> tuple[HMCState, StepSizeState, HMCInfo]:
    """One transition and the update of the step size that follows it."""
    chains, info = hmc.transition(chains, potential, settings, moves.leapfrog_steps, ops)
    if moves.adaptation is not None:
        probability = info.acceptance_probability
        adaptation = step_size.update(adaptation, probability, None, moves.adaptation, ops)
    return chains, adaptation, info


@dataclass
class History:
    """What is recorded of each temperature, float64 ``(T, B)``.

    ``acceptance`` is the mean acceptance probability of the chains, ``step_size`` the one used last
    (the mean where each chain has its own), ``energy`` and ``energy_std`` are mean and standard
    deviation of the misfit energies. Rows from the first unfinished temperature on are NaN.
    ``trace`` ``(T + 1, B, N, d)`` on the CPU holds the latents, beginning with the prior draws; it
    is None unless asked for.
    """

    acceptance: _PerTemperature
    step_size: _PerTemperature
    energy: _PerTemperature
    energy_std: _PerTemperature
    trace: Annotated[Tensor, Array("T+1 B N d", None, infinite=True, nan=True)] | None = None

    @classmethod
    def empty(cls, steps: int, state: AISState, keep_trace: bool) -> History:
        """A history of ``steps`` temperatures, none of which is recorded yet, after ``state``."""
        row = torch.full_like(state.beta, torch.nan).expand(steps, -1)
        trace = None
        if keep_trace:
            latents = state.hmc.latents
            trace = torch.full(
                (steps + 1, *latents.shape), torch.nan, dtype=latents.dtype, device="cpu"
            )
            trace[0] = latents.cpu()
        return cls(row.clone(), row.clone(), row.clone(), row.clone(), trace)

    def record(self, t: int, state: AISState, info: AISInfo) -> None:
        """Record temperature ``t``, counted from 0; recording it twice is harmless."""
        self.acceptance[t] = info.acceptance
        self.step_size[t] = info.step_size
        self.energy[t] = state.hmc.energy.mean(-1)
        self.energy_std[t] = state.hmc.energy.std(-1, correction=0)
        if self.trace is not None:
            self.trace[t + 1] = state.hmc.latents.cpu()


@dataclass(frozen=True)
class Run:
    """An AIS run, finished or not: its state after ``done`` temperatures, and its history.

    ``refined`` is the number of temperatures after which the run fell back to finer gradients
    (`fallback`), None where it did not.
    """

    state: AISState
    history: History
    done: Annotated[int, Whole(high="T")]
    refined: Count | None = None


def run(
    target: Potential | Energy,
    schedule: Any,
    steps: int,
    moves: Moves | None = None,
    *,
    start: Run | None = None,
    keep_trace: bool = False,
    backend: str = "auto",
    on_step: Callable[[Run], None] | None = None,
    step_size_start: float = 0.01,
    observation_ids: Sequence[int] | None = None,
    **how: Any,
) -> Run:
    """Algorithm 1: prior draws, then T = ``steps`` temperatures of ``schedule``.

    ``schedule`` is a name, an array of ``beta_1 .. beta_T`` or a schedule. ``start`` is an
    unfinished run to continue. ``on_step`` is called with the run after each temperature and may
    raise an exception to end it. ``how`` is passed to `hmc.init`. A run is a pure function of its
    inputs and the seed. Raises TypeError or ValueError naming the argument.
    """
    moves = moves or Moves()
    betas = checked_betas(schedule, steps)
    potential = hmc.as_potential(target)
    if start is None:
        state = init(
            potential,
            moves,
            step_size_start=step_size_start,
            observation_ids=observation_ids,
            backend=backend,
            **how,
        )
        start = Run(state, History.empty(steps, state, keep_trace), 0)
    progress = start
    while progress.done < steps:
        beta = float(betas[progress.done])
        field = fallback.in_use(potential, progress.refined)
        state, info = step(progress.state, field, beta, moves, backend=backend)
        progress.history.record(progress.done, state, info)
        progress = replace(progress, state=state, done=progress.done + 1)
        acceptance = progress.history.acceptance[: progress.done]
        if fallback.is_due(field, acceptance, fallback.LEAST_ACCEPTANCE):
            chains, cost = fallback.refined(state.hmc, field)
            state = replace(state, hmc=chains, forwards=state.forwards + cost)
            progress = replace(progress, state=state, refined=progress.done)
        if on_step is not None:
            on_step(progress)
    return progress


def checked_betas(schedule: Any, steps: int) -> Betas:
    """``beta_1 .. beta_T`` of ``schedule`` for T = ``steps``.

    Raises TypeError or ValueError naming ``ais_steps`` or ``schedule``.
    """
    count = check_count("ais_steps", steps)
    betas = np.asarray(as_schedule(schedule).betas(count), dtype=np.float64)
    if betas.shape != (count,):
        raise ValueError(f"schedule: expected {count} inverse temperatures, got {betas.shape}")
    if not np.isfinite(betas).all() or np.any(np.diff(betas, prepend=0.0, append=1.0) < 0.0):
        raise ValueError(
            "schedule: expected finite, non-decreasing inverse temperatures in [0, 1], got "
            f"{betas[0]:g} to {betas[-1]:g}"
        )
    return betas
