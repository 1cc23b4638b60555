"""Annealed importance sampling with resampling, tuning itself: a tempered SMC sampler.

Algorithm 1 with three changes (Del Moral, Doucet and Jasra 2006): the next inverse temperature is
the one that keeps a set share of the conditional effective sample size (Zhou, Johansen and Aston
2016); particles are resampled where their weights have become uneven; and moves are tuned by
earlier moves (`tuning`, `pace`). Each observation has a schedule of its own and is frozen when it
is done. ``init``, ``step(state) -> (state, info)`` and ``run`` are public, for loops of your own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cogen_fast.arguments import check_count, check_number
from cogen_fast.density import Potential, forwards, replayed
from cogen_fast.ops import dispatch
from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.philox import NoiseStream, Purpose
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.sampler import fallback, hmc, lone, pace, stiffness, tuning
from cogen_fast.sampler.hmc import Energy, HMCState
from cogen_fast.sampler.lone import Spread
from cogen_fast.sampler.pace import Annealing, Standing, least_kept
from cogen_fast.sampler.tuning import POPULATION, Tuning, TuningRule
from cogen_fast.sampler.weights import (
    effective_sample_size,
    genealogical_variance,
    log_mean_weight,
    surviving_roots,
)

_SHARPNESS_GAIN = 0.3
_MASS_SHRINKAGE = 8.0
_TIE = 1e-6  # from even weights a step keeps exactly what was asked: no matter for rounding
_BLIND = math.e  # beta grows by no more where energies that are all alike cannot tell


@dataclass(frozen=True)
class SMCState:
    """Where B observations with N particles each stand.

    ``beta`` ``(B,)`` is the inverse temperature reached. ``log_weights`` ``(B, N)`` float64 hold
    the mean weight up to the last resampling and each particle's own since, so that their log mean
    is the log normaliser. ``roots`` ``(B, N)`` int64 is the prior draw each particle descends from.
    ``resamplings`` ``(B,)`` counts resamplings and ``variance`` ``(B,)`` is the relative variance
    of the normaliser's estimate by the genealogy. ``rounds`` ``(B,)`` counts temperatures spent at
    beta = 1; ``finished`` ``(B,)`` marks what stands still. ``sharpness`` ``(B,)`` is a running
    mean of the steps, each keeping ``exp(-1)``, that an e-fold of beta takes; ``jumped`` ``(B,)``
    marks what a short budget drove to the end too fast; ``non_finite`` ``(B, N)`` counts proposals
    that were not finite; ``spent`` the gradient evaluations of a particle, and ``forwards`` its
    forwards beside them. ``curvature`` ``(B, d, d)`` is what `stiffness` knows; ``spread`` is there
    for chains too few to be a population.
    """

    hmc: HMCState
    tuning: Tuning
    beta: Tensor
    log_weights: Tensor
    roots: Tensor
    resamplings: Tensor
    variance: Tensor
    rounds: Tensor
    finished: Tensor
    sharpness: Tensor
    jumped: Tensor
    non_finite: Tensor
    spent: int
    forwards: int
    curvature: Tensor
    spread: Spread | None = None


@dataclass(frozen=True)
class Choice:
    """What one temperature is done with; enough to do the same again.

    ``(B,)`` each: ``active`` observations move, to inverse temperature ``beta``, after resampling
    where ``resampled``, with ``step_size`` (before its jitter): of the first move when it is made,
    of the last once it is done, which is what another run should repeat. ``kept`` is
    the share of the conditional effective sample size that was asked for, NaN where all particles
    were copies of one another.
    ``inverse_mass`` is ``(B, d)`` or None. L is common to all; ``moves`` ``(B,)`` int64 is each
    one's M, and ``hmc_steps`` the largest of them.
    """

    active: Tensor
    kept: Tensor
    beta: Tensor
    resampled: Tensor
    step_size: Tensor
    inverse_mass: Tensor | None
    stiff: Tensor | None
    moves: Tensor
    leapfrog_steps: int
    hmc_steps: int


@dataclass(frozen=True)
class SMCInfo:
    """How one temperature went.

    ``effective_sample_size`` ``(B,)`` is that of the weights before resampling, ``acceptance``
    ``(B,)`` the mean over the moves, ``energy`` and ``energy_std`` ``(B,)`` the misfit energies'
    mean and standard deviation after them; NaN where not active. ``ancestors`` ``(B, N)`` int64 is
    the particle each took the place of.
    """

    choice: Choice
    effective_sample_size: Tensor
    acceptance: Tensor
    energy: Tensor
    energy_std: Tensor
    ancestors: Tensor


def init(
    target: Potential | Energy,
    *,
    chains: int = POPULATION,
    step_size_start: float | None = None,
    alone: bool = False,
    starts: int = POPULATION,
    **how: Any,
) -> SMCState:
    """Prior draws at beta_0 = 0; ``how`` goes to `hmc.init`. Costs one gradient.

    ``latents`` ``(B, N, d)`` in their place (N = ``chains``) must be prior draws too. ``alone``:
    the ``chains`` are no population. They are not resampled, and the inverse temperature grows by
    what their own energies' recent spread allows; ``starts`` prior draws give the first.
    """
    if step_size_start is not None:
        check_number("step_size", step_size_start, above=0.0)
    check_count("chains", chains)
    given = how.get("latents")
    if given is not None and (given.ndim != 3 or given.shape[1] != chains):
        raise ValueError(f"latents: expected shape (B, {chains}, d), got {tuple(given.shape)}")
    drawn = max(chains, starts) if alone and given is None else chains
    potential = hmc.as_potential(target)
    state = hmc.init(potential, chains=drawn, **how)
    spread = lone.init(state.energy, chains) if alone else None
    state = HMCState(
        state.latents[:, :chains].contiguous(),
        state.energy[:, :chains].contiguous(),
        state.grad[:, :chains].contiguous(),
        state.stream,
    )
    count, _, size = state.latents.shape
    device = state.latents.device
    zeros = torch.zeros(count, dtype=torch.float64, device=device)
    nothing = torch.zeros_like(zeros, dtype=torch.bool)
    none_yet = torch.zeros_like(zeros, dtype=torch.int64)
    return SMCState(
        hmc=state,
        tuning=tuning.init(count, size, step_size_start, device),
        beta=zeros,
        log_weights=torch.zeros_like(state.energy),
        roots=torch.arange(chains, device=device).repeat(count, 1),
        resamplings=none_yet,
        variance=zeros.clone(),
        rounds=none_yet.clone(),
        finished=nothing,
        sharpness=zeros.clone(),
        jumped=nothing.clone(),
        non_finite=torch.zeros_like(state.energy, dtype=torch.int64),
        spent=-(-drawn // chains),
        forwards=-(-drawn // chains) * forwards(potential),
        curvature=stiffness.init(state.latents),
        spread=spread,
    )


def step(
    state: SMCState,
    target: Potential | Energy,
    annealing: Annealing,
    *,
    choice: Choice | None = None,
    backend: str = "auto",
) -> tuple[SMCState, SMCInfo]:
    """One temperature: choose it, weigh, resample, move. Costs M L gradients.

    ``choice`` takes the choices of another run instead; then nothing is tuned, and the estimate of
    the normaliser is unbiased. The given state stays as it is.
    """
    potential = hmc.as_potential(target)
    ops = dispatch.resolve(backend, state.hmc.latents.device)
    adapts = choice is None
    if choice is None:
        choice = choose(state, annealing, ops)
    weighed = _weigh(state, choice.beta)
    resampled, ancestors = _resample(weighed, choice.resampled, ops)
    log_step = torch.where(choice.active, choice.step_size.log(), state.tuning.log_step)
    start = replace(resampled, tuning=replace(state.tuning, log_step=log_step))
    moved, choice, acceptance = _move(start, potential, choice, annealing, adapts, ops)
    info = SMCInfo(
        choice,
        effective_sample_size(weighed.log_weights),
        torch.where(choice.active & (choice.moves > 0), acceptance, torch.nan),
        torch.where(choice.active, moved.hmc.energy.mean(-1), torch.nan),
        torch.where(choice.active, moved.hmc.energy.std(-1, correction=0), torch.nan),
        ancestors,
    )
    closed = _close(moved, choice, annealing)
    return replace(closed, sharpness=_sharpness(state, choice, annealing)), info


def choose(state: SMCState, annealing: Annealing, ops: Ops) -> Choice:
    """What the population itself asks for; ValueError where every observation is finished."""
    active, beta, size = ~state.finished, state.beta, state.hmc.latents.shape[-1]
    standing = Standing(
        active, beta, state.sharpness, state.rounds, state.tuning, size, state.spent
    )
    chosen = pace.choose(standing, annealing)
    kept = chosen.kept
    if state.spread is None:
        new_beta = ops.next_beta(state.hmc.energy, state.log_weights, beta, chosen.kept, active)
        blind = _collapsed(state) & (chosen.kept > 0.0)
        new_beta = torch.where(blind, torch.minimum(new_beta, _BLIND * beta), new_beta)
        kept = torch.where(blind, torch.nan, kept)
    else:
        new_beta = torch.where(active, lone.next_beta(state.spread, beta, chosen.kept), beta)
    weighed = _weigh(state, new_beta)
    share = effective_sample_size(weighed.log_weights) / weighed.log_weights.shape[-1]
    # At the end weights are made even, so that particles are draws as they stand.
    arrived = (new_beta >= 1.0) & (beta < 1.0)
    uneven = arrived | (share < annealing.resample_below + _TIE)
    stiff, inverse_mass = _mass(state, weighed, annealing, new_beta)
    return Choice(
        active,
        kept,
        new_beta,
        active & uneven & (state.spread is None),
        tuning.sharpen(state.tuning, beta, new_beta, size).log_step.exp(),
        inverse_mass,
        stiff,
        chosen.moves,
        chosen.leapfrog_steps,
        chosen.hmc_steps,
    )


def _collapsed(state: SMCState) -> Tensor:
    """Whether all particles are copies of one another, ``(B,)``: their weights tell nothing."""
    energy = state.hmc.energy
    alike = (energy == energy[:, :1]).all(-1)
    return alike & (surviving_roots(state.roots) < energy.shape[-1])


def _weigh(state: SMCState, beta: Tensor) -> SMCState:
    """The state at ``beta``: log weights grow by ``log p_beta(z) - log p_old(z)`` before moves."""
    increment = (beta - state.beta)[:, None] * state.hmc.energy
    log_weights = state.log_weights - increment
    variance = genealogical_variance(log_weights, state.roots)
    variance = torch.where(beta > state.beta, variance, state.variance)
    return replace(state, beta=beta, log_weights=log_weights, variance=variance)


def _resample(state: SMCState, wanted: Tensor, ops: Ops) -> tuple[SMCState, Tensor]:
    """Systematic resampling where ``wanted``; the mean weight stays. Copies states, never noise."""
    stream = state.hmc.stream
    uniform = ops.observation_uniforms(stream, Purpose.RESAMPLE)
    ancestors = ops.systematic_ancestors(state.log_weights, uniform, wanted)
    rows = ancestors[..., None].expand_as(state.hmc.latents)
    chains = HMCState(
        state.hmc.latents.gather(1, rows),
        state.hmc.energy.gather(1, ancestors),
        state.hmc.grad.gather(1, rows),
        stream,
    )
    even = log_mean_weight(state.log_weights)[:, None]
    log_weights = torch.where(wanted[:, None], even, state.log_weights)
    roots = state.roots.gather(1, ancestors)
    counted = state.resamplings + wanted
    resampled = replace(
        state, hmc=chains, log_weights=log_weights, roots=roots, resamplings=counted
    )
    return resampled, ancestors


def _mass(
    state: SMCState, weighed: SMCState, annealing: Annealing, beta: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Stiff directions and inverse mass, as ``annealing.mass`` says."""
    if annealing.mass == "diagonal":
        return None, _diagonal_mass(weighed)
    directions = stiffness.count(state.hmc.latents.shape[-1])
    if annealing.mass == "low-rank" and directions > 0 and state.spread is None:
        stiff, inverse_mass = stiffness.directions(state.curvature, beta)
        return stiff, inverse_mass.to(state.hmc.latents.dtype)
    return None, None


def _diagonal_mass(state: SMCState) -> Tensor:
    """Inverse mass ``(B, d)``: the population's variances, drawn towards their mean.

    Scaled to a geometric mean of 1, so that a step size keeps its meaning when the mass changes.
    """
    z = state.hmc.latents
    trusted = state.log_weights if state.spread is None else torch.zeros_like(state.log_weights)
    weights = torch.softmax(trusted, -1)[..., None].to(z.dtype)
    variance = (weights * (z - (weights * z).sum(1, keepdim=True)) ** 2).sum(1)
    particles = z.shape[1]
    mean = variance.mean(-1, keepdim=True)
    shrunk = (particles * variance + _MASS_SHRINKAGE * mean) / (particles + _MASS_SHRINKAGE)
    shrunk = torch.where(mean > 0.0, shrunk, torch.ones_like(shrunk))
    return shrunk / shrunk.log().mean(-1, keepdim=True).exp()


def _move(
    state: SMCState,
    potential: Potential,
    choice: Choice,
    annealing: Annealing,
    adapts: bool,
    ops: Ops,
) -> tuple[SMCState, Choice, Tensor]:
    """Each observation's M transitions, what they were, and their mean acceptance ``(B,)``."""
    turn = stiffness.basis(choice.stiff)
    total, step_size = torch.zeros_like(choice.beta), choice.step_size
    made = replace(state, spent=0, forwards=0)  # what Python counts is no part of a recording
    for number in range(choice.hmc_steps):
        now = replace(choice, active=choice.active & (number < choice.moves), hmc_steps=1)
        step_size = torch.where(now.active, made.tuning.log_step.exp(), step_size)
        made, acceptance = replayed(
            potential,
            (annealing, adapts, ops.name),
            partial(_one_move, potential, annealing, adapts, ops),
            made,
            now,
            turn,
        )
        total = total + torch.where(now.active, acceptance, 0.0)
    made = replace(
        made,
        spent=state.spent + choice.hmc_steps * choice.leapfrog_steps,
        forwards=state.forwards + choice.hmc_steps * forwards(potential),
    )
    return made, replace(choice, step_size=step_size), total / choice.moves.clamp(min=1)


def jittered(
    choice: Choice, step_size: Tensor, rule: TuningRule, stream: NoiseStream, ops: Ops
) -> TransitionSettings:
    """The settings of one transition, its ``step_size`` ``(B,)`` times a random factor near 1."""
    turn = 2.0 * ops.observation_uniforms(stream, Purpose.JITTER) - 1.0
    step_size = step_size * (1.0 + rule.jitter * turn)
    weight = torch.ones_like(choice.beta)
    return TransitionSettings(choice.beta, weight, step_size, choice.inverse_mass, choice.active)


def _one_move(
    potential: Potential,
    annealing: Annealing,
    adapts: bool,
    ops: Ops,
    state: SMCState,
    choice: Choice,
    turn: Tensor | None,
) -> tuple[SMCState, Tensor]:
    """One transition with a jittered step size, and its mean acceptance ``(B,)``."""
    tuned, curvature, spread, rule = state.tuning, state.curvature, state.spread, annealing.rule
    settings = jittered(choice, tuned.log_step.exp(), rule, state.hmc.stream, ops)
    length = choice.leapfrog_steps
    made = stiffness.transition(state.hmc, potential, settings, length, turn, ops)
    chains, info = made.after, made.info
    if adapts:
        tuned = tuning.update(tuned, made.start, made.end, info, settings, length, rule)
        if turn is not None:
            curvature = stiffness.update(curvature, chains.grad, choice.beta, choice.active)
    if spread is not None:
        spread = lone.update(spread, chains.energy, choice.active)
    moved = replace(
        state,
        hmc=chains,
        tuning=tuned,
        spread=spread,
        curvature=curvature,
        non_finite=state.non_finite + info.non_finite,
    )
    return moved, info.acceptance_probability.mean(-1)


def _sharpness(state: SMCState, choice: Choice, annealing: Annealing) -> Tensor:
    """The running mean after a step from ``state``; what came too fast teaches nothing."""
    e_folds = torch.log(choice.beta / state.beta)
    seen = torch.sqrt(-torch.log(choice.kept)) / e_folds
    known = torch.where(state.sharpness > 0.0, state.sharpness, seen)
    slow = choice.kept >= least_kept(annealing)
    learns = choice.active & (state.beta > 0.0) & (e_folds > 0.0) & slow
    return torch.where(learns, known.lerp(seen, _SHARPNESS_GAIN), state.sharpness)


def _close(after: SMCState, choice: Choice, annealing: Annealing) -> SMCState:
    """Counts at the end of a temperature, and who is finished."""
    active = choice.active
    rounds = after.rounds + (active & (choice.beta >= 1.0))
    spent = annealing.budget is not None and after.spent >= annealing.budget
    over = (choice.moves == 0) | spent
    ended = (rounds >= annealing.final_rounds) | ((rounds >= 1) & over)
    jumped = active & (choice.kept < least_kept(annealing)) & (rounds <= 1)
    return replace(
        after,
        rounds=rounds,
        jumped=after.jumped | jumped,
        finished=after.finished | (active & ended),
    )


@dataclass(frozen=True)
class Run:
    """A run, finished or not: its state, and each temperature's info.

    ``trace`` holds the latents ``(B, N, d)`` from the prior draws on, on the CPU, None unless asked
    for; ``repeats`` the choices of another run that this one repeats; ``refined`` the number of
    temperatures after which gradients had to become finer, None where they did not.
    """

    state: SMCState
    infos: tuple[SMCInfo, ...] = ()
    trace: tuple[Tensor, ...] | None = None
    repeats: tuple[Choice, ...] | None = None
    refined: int | None = None

    @property
    def done(self) -> bool:
        """Whether every observation has come to its end."""
        if self.repeats is not None:
            return len(self.infos) == len(self.repeats)
        return bool(self.state.finished.all())

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What each temperature was done with, for a run that repeats it."""
        return tuple(info.choice for info in self.infos)


def run(
    target: Potential | Energy,
    annealing: Annealing | None = None,
    *,
    repeats: Sequence[Choice] | None = None,
    start: Run | None = None,
    keep_trace: bool = False,
    backend: str = "auto",
    on_step: Callable[[Run], None] | None = None,
    **how: Any,
) -> Run:
    """From the prior to the posterior, one temperature after the other.

    ``repeats`` takes another run's choices (of the same shapes) under this run's noise: an
    unbiased estimate of the normaliser where that run had another seed. ``start`` continues an
    unfinished run. ``on_step`` sees the run after each temperature and may raise to end it. ``how``
    goes to `init`: ``chains``, ``latent_size``, ``observations``, ``seed``, ....
    """
    annealing = annealing or Annealing()
    potential = hmc.as_potential(target)
    if start is not None and (repeats is not None or keep_trace or how):
        raise ValueError("start: takes these from the run it continues: repeats, keep_trace, how")
    if start is None:
        state = init(potential, backend=backend, **how)
        first = (state.hmc.latents.cpu(),) if keep_trace else None
        start = Run(state, (), first, None if repeats is None else tuple(repeats))
    progress = start
    while not progress.done:
        choice = None
        if progress.repeats is not None:
            choice = progress.repeats[len(progress.infos)]
        field = fallback.in_use(potential, progress.refined)
        state, info = step(progress.state, field, annealing, choice=choice, backend=backend)
        trace = progress.trace
        trace = None if trace is None else (*trace, state.hmc.latents.cpu())
        progress = replace(progress, state=state, infos=(*progress.infos, info), trace=trace)
        if choice is None and fallback.is_due(
            field, [i.acceptance for i in progress.infos[-fallback.WINDOW :]]
        ):
            chains, cost = fallback.refined(state.hmc, field)
            cost += state.forwards
            state = replace(state, hmc=chains, spent=state.spent + 1, forwards=cost)
            progress = replace(progress, state=state, refined=len(progress.infos))
        if on_step is not None:
            on_step(progress)
    return progress
