"""A tempered SMC sampler: annealed importance sampling with resampling, which tunes itself.

Algorithm 1 with three changes (Del Moral, Doucet and Jasra 2006): the next inverse temperature is
the one that keeps a set share of the conditional effective sample size (Zhou, Johansen and Aston
2016); particles are resampled where their weights have become uneven; and moves tune themselves
(`tuning`, `curvature`, `annealing_plan`). The particles of an observation are divided into islands
that never exchange particles: what decides how the particles of an island move is estimated from
other islands (`islands`). Each island has its own temperatures and stands still when it is done.

`run` repeats `step`, one for each temperature: choose the next inverse temperature, reweight the
particles, resample them, move them, and note which islands are done. ``init``, ``step(state) ->
(state, info)`` and ``run`` are public, for loops of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from cogen_fast.ops import dispatch
from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.philox import NoiseStream, Purpose
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.problem.density import Potential, forwards, replayed
from cogen_fast.sampler import (
    annealing_plan,
    bases,
    curvature,
    fallback,
    hmc,
    independent_chains,
    islands,
    pool,
    tuning,
)
from cogen_fast.sampler.annealing_plan import Annealing, AnnealingStatus, least_kept
from cogen_fast.sampler.bases import Basis
from cogen_fast.sampler.curvature import Curvature, Directions
from cogen_fast.sampler.hmc import Energy, HMCState
from cogen_fast.sampler.independent_chains import EnergyMoments
from cogen_fast.sampler.tuning import POPULATION, Tuning, TuningRule
from cogen_fast.sampler.weights import (
    effective_sample_size,
    log_mean_weight,
    normalised_weights,
    robust_deviation,
)
from cogen_fast.support.arguments import check_count, check_number
from cogen_fast.support.layout import (
    Array,
    Count,
    Counts,
    CountsOfEach,
    Estimates,
    Flags,
    Latents,
    MoveCounts,
    NotNegative,
    OfEach,
    Roots,
    Shares,
    Whole,
)

_SHARPNESS_GAIN = 0.3
# Directions are found anew once every d / 64 temperatures, and at least once in 8.
_REFRESHED, _STALE = 64, 8
_MOST_RETAINED = 0.99
_LEAST_AIM = torch.finfo(torch.float64).tiny
_MOST_IDS = 2**32  # rows that have random number streams of their own


@dataclass(frozen=True)
class SMCState:
    """The state of all islands: B rows of N particles each.

    ``islands`` T is the number of neighbouring rows that belong to one observation. ``beta``
    ``(B,)`` is the inverse temperature reached, ``first_beta`` the one at which the particles were
    drawn from the prior pool, ``aim`` the one that a budget is planned to reach (1, unless the run
    is known to end before). ``best_draw`` ``(B, d)`` is the pool's draw of lowest energy,
    ``best_energy`` ``(B,)``. ``log_weights`` ``(B, N)`` float64 contain the mean weight up to the
    last resampling and each particle's own weight since, so that their log mean is the log
    normaliser. ``variance`` ``(B,)`` is the first-order relative variance of that estimate by the
    particles' lineages, ``expected_variance`` ``(B,)`` the one expected from the autocorrelation
    that moves leave. `weigh` computes both from ``lineage`` ``(B, N)``, the sum of what a
    particle's ancestors have contributed, and from ``retained`` ``(B,)``, a running mean of the
    correlation between the energies before and after all moves of a temperature. ``roots``
    ``(B, N)`` int64 is the prior draw that each particle descends from. ``resamplings`` ``(B,)``
    counts resamplings, ``rounds`` ``(B,)`` temperatures at beta = 1; ``finished`` ``(B,)`` marks
    rows that stand still.

    ``tuning``, ``curvature`` and ``sharpness`` are estimates from each row's particles, for other
    islands to use; ``sharpness`` ``(B,)`` is a running mean of the number of steps of beta that
    keep ``exp(-1)`` of the conditional effective sample size, for an e-fold of beta.
    ``directions`` are those that the moves of a row use, and ``turn`` is the basis made of them.
    ``oversized_steps`` ``(B,)`` marks rows whose budget allowed no smaller steps of beta;
    ``non_finite`` ``(B, N)`` counts proposals that were not finite; ``spent`` counts a particle's
    gradient evaluations, ``forwards`` its further forward passes, and ``temperatures`` the steps so
    far.
    ``spread`` is there only for independent chains, which are too few to be a population.
    """

    hmc: HMCState
    islands: Annotated[int, Whole("islands", "islands")]
    tuning: Tuning
    curvature: Curvature
    directions: Directions
    turn: Basis
    sharpness: NotNegative
    beta: Shares
    first_beta: Shares
    aim: Annotated[Tensor, Array("B", low=_LEAST_AIM, high=1.0)]
    best_draw: Annotated[Tensor, Array("B d", None)]
    best_energy: Estimates
    log_weights: OfEach
    variance: Estimates
    expected_variance: Estimates
    retained: Estimates
    lineage: OfEach
    roots: Roots
    resamplings: Counts
    rounds: Counts
    finished: Flags
    oversized_steps: Flags
    non_finite: CountsOfEach
    spent: Count
    forwards: Count
    temperatures: Count
    spread: EnergyMoments | None = None


@dataclass(frozen=True)
class Choice:
    """Every choice of one temperature, so that another run can repeat it.

    ``(B,)`` each: ``active`` rows are resampled where ``resampled``, and move at the inverse
    temperature ``beta`` with ``step_size``, before its jitter: that of the first move when the
    choice is made, and that of the last move afterwards, which is what a repeating run uses.
    ``kept`` is the share of the conditional effective sample size that was asked for; ``slow``
    marks rows where one move leaves too much correlation (`TuningRule.remembered`).
    ``inverse_mass`` ``(B, d)`` is in the coordinates that `bases.from_directions` makes of
    ``stiff`` ``(B, d, k)``; both are None for a mass of 1. L is common to all rows; ``moves``
    ``(B,)`` int64 is each row's M, and ``hmc_steps`` the largest of them.
    """

    active: Flags
    kept: Shares
    beta: Shares
    resampled: Flags
    slow: Flags
    step_size: NotNegative
    inverse_mass: Annotated[Tensor, Array("B d", None, low=0.0)] | None
    stiff: Annotated[Tensor, Array("B d k")] | None
    moves: MoveCounts
    leapfrog_steps: Annotated[int, Whole(high="L")]
    hmc_steps: Annotated[int, Whole(high="M")]


@dataclass(frozen=True)
class SMCInfo:
    """What happened at one temperature.

    ``effective_sample_size`` ``(B,)`` is that of the weights before resampling, ``acceptance``
    ``(B,)`` the mean over the moves, ``energy`` and ``energy_std`` ``(B,)`` the misfit energies'
    mean and standard deviation after them; NaN for rows that are not active. ``ancestors``
    ``(B, N)`` int64 is the particle that each particle is a copy of.
    """

    choice: Choice
    effective_sample_size: Estimates
    acceptance: Estimates
    energy: Estimates
    energy_std: Estimates
    ancestors: Annotated[Tensor, Array("B N", torch.int64, low=0, below="N")]


def init(
    target: Potential | Energy,
    *,
    chains: int = POPULATION // 2,
    islands: int = 2,
    draws: int = pool.DRAWS,
    latent_size: int | None = None,
    latents: Tensor | None = None,
    observations: int = 1,
    observation_ids: Sequence[int] | None = None,
    seed: int = 0,
    step_size_start: float | None = None,
    first_beta: Tensor | None = None,
    furthest: Tensor | None = None,
    alone: bool = False,
    starts: int = POPULATION,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> SMCState:
    """The first state: ``islands`` T of ``chains`` N particles for each observation, B T rows.

    For each particle ``draws`` prior draws are scored with a forward pass each. The particles are
    resampled from them at the inverse temperature that the draws of the other islands allow
    (`pool`), which is at most ``furthest`` ``(B T,)``, or at ``first_beta`` ``(B T,)``. Then each
    particle takes one gradient. ``latents`` ``(B T, K, d)`` may replace the draws and must be prior
    draws, too. With ``alone`` the ``chains`` are independent: they are not resampled, and the
    inverse temperature follows from the recent standard deviation of their own energies; they are
    the first of ``starts`` prior draws. The other arguments are those of `hmc.init`.

    Raises TypeError or ValueError naming the argument.
    """
    observations = _check_start(chains, islands, draws, step_size_start, latents, observations)
    potential = hmc.as_potential(target)
    ids = _rows_of(observation_ids, observations, islands)
    where = torch.device(device) if latents is None else latents.device
    stream = hmc.noise_stream(seed, len(ids), where, ids)
    ops = dispatch.resolve(backend, where)
    if latents is None:
        count = max(chains, starts) if alone else chains * draws
        latents = _prior_draws(stream, count, latent_size, dtype, ops)
    hmc.check_dtype(latents.dtype)
    scored = latents.shape[1]
    energy = pool.scores(potential, latents)
    spread: EnergyMoments | None = None
    if alone:
        latents, energy = pool.finite_first(latents, energy)
        spread = independent_chains.init(energy, chains)
        begun = pool.at_prior(latents, energy, chains)
    else:
        begun = pool.start(latents, energy, chains, stream, islands, first_beta, furthest, ops)
    how: dict[str, Any] = {"seed": seed, "observation_ids": ids, "backend": backend}
    state = hmc.init(potential, begun.latents, **how)
    return _begun(
        state,
        begun,
        spread,
        islands=islands,
        step_size=step_size_start,
        forwards=-(-scored // chains) + forwards(potential),
    )


def _check_start(
    chains: int,
    islands: int,
    draws: int,
    step_size: float | None,
    latents: Tensor | None,
    observations: int,
) -> int:
    """The number of observations; TypeError or ValueError naming the argument of `init`."""
    if step_size is not None:
        check_number("step_size", step_size, above=0.0)
    for name, value in (("chains", chains), ("islands", islands), ("draws", draws)):
        check_count(name, value)
    if latents is None:
        return check_count("observations", observations)
    if latents.ndim != 3 or latents.shape[1] < chains or len(latents) % islands:
        raise ValueError(
            f"latents: expected shape (B, K, d), B a multiple of {islands} islands and K at "
            f"least {chains}, got {tuple(latents.shape)}"
        )
    return check_count("observations", len(latents) // islands)


def _prior_draws(
    stream: NoiseStream, count: int, latent_size: int | None, dtype: torch.dtype, ops: Ops
) -> Tensor:
    """``count`` prior draws of each row, ``(B T, count, latent_size)``."""
    if latent_size is None:
        raise ValueError("latent_size: expected a number where no latents are given, got None")
    size = check_count("latent_size", latent_size)
    return ops.initial_latents(stream, count, size, hmc.check_dtype(dtype))


def _rows_of(observation_ids: Sequence[int] | None, count: int, islands: int) -> list[int]:
    """The ids of B T rows in the random number streams; those of an observation are neighbours."""
    given = hmc.noise_stream(0, count, torch.device("cpu"), observation_ids)
    ids = given.observation.tolist()
    if max(ids) >= _MOST_IDS // islands:
        raise ValueError(
            f"observation_ids: expected numbers below 2^32 / {islands} islands, got {max(ids)}"
        )
    return [i * islands + island for i in ids for island in range(islands)]


def _begun(
    state: HMCState,
    begun: pool.Start,
    spread: EnergyMoments | None,
    *,
    islands: int,
    step_size: float | None,
    forwards: int,
) -> SMCState:
    """The state at the inverse temperature of ``begun``."""
    count, _, size = state.latents.shape
    nothing = torch.zeros_like(begun.beta, dtype=torch.bool)
    none_yet = torch.zeros_like(begun.beta, dtype=torch.int64)
    even = torch.zeros_like(state.energy)
    # The first gradients are used, so that the first moves have a mass matrix.
    seen = curvature.update(curvature.init(state.latents), state.grad, begun.beta, ~nothing)
    unknown = curvature.no_directions(state.latents)
    return SMCState(
        hmc=state,
        islands=islands,
        tuning=tuning.init(count, size, step_size, begun.beta.device),
        curvature=seen,
        directions=unknown,
        turn=bases.identity(state.latents, unknown.vectors.shape[-1]),
        sharpness=begun.beta * begun.deviation,
        beta=begun.beta,
        first_beta=begun.beta,
        aim=torch.ones_like(begun.beta),
        best_draw=begun.best_draw,
        best_energy=begun.best_energy,
        log_weights=even + begun.log_normaliser[:, None],
        variance=begun.variance,
        expected_variance=begun.variance,
        retained=torch.zeros_like(begun.variance),
        lineage=even.clone(),
        roots=begun.roots,
        resamplings=none_yet,
        rounds=none_yet.clone(),
        finished=nothing,
        oversized_steps=nothing.clone(),
        non_finite=torch.zeros_like(state.energy, dtype=torch.int64),
        spent=1,
        forwards=forwards,
        temperatures=0,
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
    """One temperature: choose it, reweight, resample, move. It costs M L gradients.

    With ``choice``, the choice of another run is repeated: then nothing is tuned, and the estimate
    of the normaliser is unbiased. The given state is not modified.
    """
    potential = hmc.as_potential(target)
    ops = dispatch.resolve(backend, state.hmc.latents.device)
    adapts = choice is None
    if choice is None:
        state, choice = choose(state, annealing)
    else:
        state = _turned_as_in(state, choice)
    weighed = weigh(state, choice.beta, choice.slow)
    resampled, ancestors = resample(weighed, choice.resampled, ops)
    moved, choice, acceptance = move(resampled, potential, choice, annealing, adapts, ops)
    info = SMCInfo(
        choice,
        effective_sample_size(weighed.log_weights),
        torch.where(choice.active & (choice.moves > 0), acceptance, torch.nan),
        torch.where(choice.active, moved.hmc.energy.mean(-1), torch.nan),
        torch.where(choice.active, moved.hmc.energy.std(-1, correction=0), torch.nan),
        ancestors,
    )
    return _close(moved, choice, annealing), info


def _turned_as_in(state: SMCState, choice: Choice) -> SMCState:
    """The state with the directions of another run's ``choice``."""
    if choice.stiff is None or choice.stiff is state.directions.vectors:
        return state
    directions = replace(state.directions, vectors=choice.stiff)
    return replace(state, directions=directions, turn=bases.from_directions(choice.stiff))


def choose(state: SMCState, annealing: Annealing) -> tuple[SMCState, Choice]:
    """The next temperature's choice, from the other islands, and the state with its directions.

    Raises ValueError if every observation is finished.
    """
    active, size = ~state.finished, state.hmc.latents.shape[-1]
    sharpness = islands.mean_of_others(state.sharpness, state.islands)
    known = tuning.mean_of_others(state.tuning, state.islands)
    chosen = annealing_plan.choose(
        AnnealingStatus(
            active, state.beta, sharpness, state.rounds, state.aim, known, size, state.spent
        ),
        annealing,
    )
    beta = _next_beta(state, chosen.kept)
    resampled = active & _uneven(state, beta, annealing)
    stiff: Tensor | None = None
    inverse_mass: Tensor | None = None
    if _follows_curvature(state, annealing):
        state = turned(state, known.autocorrelation[:, tuning.OF_LATENTS].amax(-1))
        stiff = state.directions.vectors
        inverse_mass = curvature.inverse_mass(state.directions, beta)
        inverse_mass = inverse_mass.to(state.hmc.latents.dtype)
    else:
        # The step size shrinks by this row's own step of beta, because the steps of the other
        # islands were computed from this row's energies.
        known = tuning.shrink_step_size(known, state.beta, beta, size)
        state = replace(state, tuning=tuning.shrink_step_size(state.tuning, state.beta, beta, size))
    choice = Choice(
        active,
        chosen.kept,
        beta,
        resampled,
        _slow(state.tuning, annealing.rule) | _slow(known, annealing.rule),
        known.log_step.exp(),
        inverse_mass,
        stiff,
        chosen.moves,
        chosen.leapfrog_steps,
        chosen.hmc_steps,
    )
    return state, choice


def _next_beta(state: SMCState, kept: Tensor) -> Tensor:
    """The inverse temperature that keeps the share of the conditional effective sample size."""
    active = ~state.finished
    if state.spread is None:
        return annealing_plan.next_beta(state.beta, state.sharpness, kept, state.islands, active)
    return torch.where(
        active, independent_chains.next_beta(state.spread, state.beta, kept), state.beta
    )


def _uneven(state: SMCState, beta: Tensor, annealing: Annealing) -> Tensor:
    """Whether the weights at ``beta`` are to be resampled, ``(B,)``; independent chains never."""
    share = effective_sample_size(_log_weights(state, beta)) / state.log_weights.shape[-1]
    # At beta = 1 weights are made equal, so that the particles themselves are posterior draws.
    arrived = (beta >= 1.0) & (state.rounds == 0)
    return (arrived | (share < annealing.resample_below)) & (state.spread is None)


def _slow(known: Tuning, rule: TuningRule) -> Tensor:
    """Whether one move leaves too much correlation, ``(B,)``."""
    return tuning.overall_autocorrelation(known) > rule.remembered


def _follows_curvature(state: SMCState, annealing: Annealing) -> bool:
    """Whether the mass comes from the curvature; independent chains are too few to estimate it."""
    return annealing.mass == "curvature" and state.spread is None


def turned(state: SMCState, autocorrelation: Tensor) -> SMCState:
    """The state with the directions estimated from the other islands' gradients.

    In many dimensions they are computed only every few temperatures; at the posterior itself they
    no longer change.
    """
    if state.temperatures % min(-(-state.hmc.latents.shape[-1] // _REFRESHED), _STALE):
        return state
    learns, old = ~state.finished & (state.beta < 1.0), state.directions
    if not bool(learns.any()):
        return state
    seen = curvature.directions(
        curvature.mean_of_others(state.curvature, state.islands), autocorrelation
    )
    directions = Directions(
        torch.where(learns[:, None, None], seen.vectors, old.vectors),
        torch.where(learns[:, None], seen.values, old.values),
        torch.where(learns, seen.rest, old.rest),
    )
    return replace(state, directions=directions, turn=bases.from_directions(directions.vectors))


def _log_weights(state: SMCState, beta: Tensor) -> Tensor:
    """The log weights at ``beta``; before moves they grow by ``log p_beta(z) - log p_old(z)``."""
    return state.log_weights - (beta - state.beta)[:, None] * state.hmc.energy


def weigh(state: SMCState, beta: Tensor, slow: Tensor) -> SMCState:
    """The state at ``beta``, before the moves.

    The log normaliser grows by the mean of the particles' contributions w. To first order, the
    variance of the sum of such means is the sum of their variances and of twice the covariances of
    each with all before it. Particles have only their ancestors in common, so the sum over
    particles of ``w (w + 2 a)``, divided by ``N (N - 1)``, estimates the growth of the variance; a
    is the sum of what a particle's ancestors have contributed. Where few ancestors are left this is
    too small, because the contributions of the lineages that died out are missing. So where moves
    are ``slow`` ``(B,)``, ``(1 + r) / (1 - r)`` times the variance of independent means is
    expected, where r is the correlation of energies that all moves of a temperature leave. The
    correlation of latents would be misleading: between modes of equal weight it stays 1 without any
    harm.
    """
    log_weights = _log_weights(state, beta)
    count = log_weights.shape[-1]
    new, old = normalised_weights(log_weights), normalised_weights(state.log_weights)
    contributed = count * (new - old)
    past = state.lineage - state.lineage.mean(-1, keepdim=True)
    pairs = count * max(count - 1, 1)
    alone = (contributed * contributed).sum(-1) / pairs
    seen = alone + 2.0 * (contributed * past).sum(-1) / pairs
    retained = torch.where(slow, state.retained.clamp(0.0, _MOST_RETAINED), 0.0)
    return replace(
        state,
        beta=beta,
        log_weights=log_weights,
        variance=state.variance + seen,
        expected_variance=state.expected_variance + alone * (1.0 + retained) / (1.0 - retained),
        lineage=state.lineage + contributed,
    )


def resample(state: SMCState, wanted: Tensor, ops: Ops) -> tuple[SMCState, Tensor]:
    """Systematic resampling where ``wanted``. It keeps the mean weight and copies no noise."""
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
    resampled = replace(
        state,
        hmc=chains,
        log_weights=torch.where(wanted[:, None], even, state.log_weights),
        lineage=state.lineage.gather(1, ancestors),
        roots=state.roots.gather(1, ancestors),
        resamplings=state.resamplings + wanted,
    )
    return resampled, ancestors


def move(
    state: SMCState,
    potential: Potential,
    choice: Choice,
    annealing: Annealing,
    adapts: bool,
    ops: Ops,
) -> tuple[SMCState, Choice, Tensor]:
    """M transitions of each row, the choice as it was made, and mean acceptances ``(B,)``."""
    total, step_size = torch.zeros_like(choice.beta), choice.step_size
    # Counters of the host are set to 0, so that they do not enter a recording's key.
    made = replace(state, spent=0, forwards=0, temperatures=0)
    after_first = made.hmc
    for number in range(choice.hmc_steps):
        now = replace(choice, active=choice.active & (number < choice.moves), hmc_steps=1)
        used = tuning.mean_of_others(made.tuning, made.islands)
        if number == 0:
            used = replace(used, log_step=choice.step_size.log())
        moved = replayed(
            potential,
            (annealing, adapts, ops.name),
            partial(_one_move, potential, annealing, adapts, ops),
            made,
            now,
            used,
        )
        made = moved.state
        if made.curvature.mean is None and choice.stiff is not None and adapts:
            # Eigenvectors cannot be computed within a recording.
            seen = curvature.update(made.curvature, made.hmc.grad, now.beta, moved.learns)
            made = replace(made, curvature=seen)
        if number == 0:
            after_first = made.hmc
        step_size = torch.where(now.active, moved.step_size, step_size)
        total = total + torch.where(now.active, moved.acceptance, 0.0)
    made = replace(
        made,
        spent=state.spent + choice.hmc_steps * choice.leapfrog_steps,
        forwards=state.forwards + choice.hmc_steps * forwards(potential),
        temperatures=state.temperatures,
    )
    if choice.hmc_steps:
        made = _learn(state, after_first, made, choice, annealing.rule, adapts)
    return made, replace(choice, step_size=step_size), total / choice.moves.clamp(min=1)


def jittered(
    choice: Choice, step_size: Tensor, rule: TuningRule, stream: NoiseStream, ops: Ops
) -> TransitionSettings:
    """The settings of one transition, its ``step_size`` ``(B,)`` times a random factor near 1."""
    step_size = tuning.jittered_step(step_size, rule, stream, ops)
    weight = torch.ones_like(choice.beta)
    return TransitionSettings(choice.beta, weight, step_size, choice.inverse_mass, choice.active)


@dataclass(frozen=True)
class _Moved:
    """The state after one transition, its mean acceptance and its step size before the jitter.

    ``learns`` marks the rows whose estimates use this transition. All but the state are ``(B,)``.
    """

    state: SMCState
    acceptance: Tensor
    step_size: Tensor
    learns: Tensor


def _one_move(
    potential: Potential,
    annealing: Annealing,
    adapts: bool,
    ops: Ops,
    state: SMCState,
    choice: Choice,
    used: Tuning,
) -> _Moved:
    """One transition with a jittered step size; estimates are updated where the run adapts."""
    tuned, seen, spread = state.tuning, state.curvature, state.spread
    rule, length = annealing.rule, choice.leapfrog_steps
    step_size = used.log_step.exp() if adapts else choice.step_size
    settings = jittered(choice, step_size, rule, state.hmc.stream, ops)
    turn = None if choice.stiff is None else state.turn
    made = curvature.transition(state.hmc, potential, settings, length, turn, ops)
    chains, info = made.after, made.info
    # At the posterior itself only independent chains adapt, which are not samples.
    learns = choice.active & ((choice.beta < 1.0) | (spread is not None))
    if adapts:
        tuned = tuning.update(
            tuned, used, made.start, made.end, info, settings, length, rule, learns
        )
    if adapts and turn is not None and seen.mean is not None:
        seen = curvature.update(seen, chains.grad, choice.beta, learns)
    if spread is not None:
        spread = independent_chains.update(spread, chains.energy, choice.active)
    moved = replace(
        state,
        hmc=chains,
        tuning=tuned,
        spread=spread,
        curvature=seen,
        non_finite=state.non_finite + info.non_finite,
    )
    return _Moved(moved, info.acceptance_probability.mean(-1), step_size, learns)


def _learn(
    before: SMCState,
    after_first: HMCState,
    after: SMCState,
    choice: Choice,
    rule: TuningRule,
    adapts: bool,
) -> SMCState:
    """The state with the autocorrelations after the first and after all moves of a temperature."""
    left = tuning.correlations(before.hmc, after.hmc)[:, tuning.OVERALL]
    gain = rule.memory_gain if before.temperatures else 1.0
    moved = choice.active & (choice.beta < 1.0)
    retained = torch.where(moved, before.retained.lerp(left[:, 0], gain), before.retained)
    tuned = after.tuning
    if adapts:
        one = tuning.correlations(before.hmc, after_first)[:, tuning.OVERALL]
        tuned = tuning.update_further_decorrelation(tuned, one, left, choice.moves, rule, moved)
    return replace(after, retained=retained, tuning=tuned)


def _sharpness(state: SMCState, learns: Tensor) -> Tensor:
    """The running mean of ``beta`` times the standard deviation of energies."""
    if state.spread is None:
        deviation = robust_deviation(state.hmc.energy)
    else:
        deviation = independent_chains.deviation(state.spread)
    seen = state.beta * deviation
    mean = torch.where(state.sharpness > 0.0, state.sharpness.lerp(seen, _SHARPNESS_GAIN), seen)
    return torch.where(learns, mean, state.sharpness)


def _close(after: SMCState, choice: Choice, annealing: Annealing) -> SMCState:
    """The state at the end of a temperature, with counters, sharpness, and who is finished."""
    active = choice.active
    there = active & (choice.beta >= 1.0)
    rounds = after.rounds + (there & (choice.moves > 0))
    enough, over = rounds >= annealing.final_rounds, choice.moves == 0
    if annealing.budget is not None:
        left = annealing.budget - after.spent
        over = over | (left <= 0)
        enough = enough & (left < choice.hmc_steps * choice.leapfrog_steps)
    ended = there & (over | enough)
    oversized_steps = active & (choice.kept < least_kept(annealing)) & (rounds <= 1)
    return replace(
        after,
        sharpness=_sharpness(after, active & (choice.beta < 1.0)),
        rounds=rounds,
        oversized_steps=after.oversized_steps | oversized_steps,
        finished=after.finished | (active & ended),
        temperatures=after.temperatures + 1,
    )


@dataclass(frozen=True)
class Run:
    """A run, finished or not: its state, and the info of each temperature.

    ``trace`` has the latents ``(B, N, d)`` from the prior draws on, on the CPU, if they were asked
    for; ``repeats`` the choices of another run that this one repeats; ``refined`` the number of
    temperatures after which gradients of higher precision were needed, None if they were not.
    """

    state: SMCState
    infos: tuple[SMCInfo, ...] = ()
    trace: tuple[Latents, ...] | None = None
    repeats: tuple[Choice, ...] | None = None
    refined: Count | None = None

    @property
    def done(self) -> bool:
        """Whether every observation is finished."""
        if self.repeats is not None:
            return len(self.infos) >= len(self.repeats)
        return bool(self.state.finished.all())

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The choices of each temperature, for a run that repeats them."""
        return tuple(info.choice for info in self.infos)


def check_run(progress: Run, run: str = "run") -> None:
    """Check a run that was read from a file, where it has the name ``run``.

    Raises ValueError if its history has another length than its state says, or its basis is not
    orthogonal.
    """
    steps = progress.state.temperatures
    for name, rows, count in (
        ("infos", progress.infos, steps),
        ("trace", progress.trace, steps + 1),
    ):
        if rows is not None and len(rows) != count:
            raise ValueError(
                f"{run}.{name}: expected {count} after {steps} temperatures, got {len(rows)}"
            )
    bases.check(f"{run}.state.turn", progress.state.turn)


def run(
    target: Potential | Energy,
    annealing: Annealing | None = None,
    *,
    repeats: Sequence[Choice] | None = None,
    start: Run | None = None,
    keep_trace: bool = False,
    backend: str = "auto",
    on_step: Callable[[Run], None] | None = None,
    keep_masses: bool = True,
    **how: Any,
) -> Run:
    """Sample from the prior to the posterior, one temperature after the other.

    ``repeats`` are the choices of another run, of the same shapes, which this run repeats with its
    own noise. The estimate of the normaliser is then unbiased, if that run had another seed and
    this one begins at its ``first_beta``. ``start`` continues an unfinished run. ``on_step`` is
    called with the run after each temperature and may raise to end it. With ``keep_masses=False``
    the choices of all but the last temperature lose their mass matrix, which needs most of the
    memory; they can then not be repeated. ``how`` are arguments of `init`: ``chains``,
    ``latent_size``, ``observations``, ``seed``, ....
    """
    annealing = annealing or Annealing()
    potential = hmc.as_potential(target)
    if start is not None and (repeats is not None or keep_trace or how):
        raise ValueError("start: takes these from the run it continues: repeats, keep_trace, how")
    progress = start or _started(potential, repeats, keep_trace, backend, how)
    while not progress.done:
        progress = advance(progress, potential, annealing, backend, keep_masses)
        if on_step is not None:
            on_step(progress)
    return progress


def _started(
    potential: Potential,
    repeats: Sequence[Choice] | None,
    keep_trace: bool,
    backend: str,
    how: dict[str, Any],
) -> Run:
    """A run before its first temperature; ``how`` is for `init`."""
    state = init(potential, backend=backend, **how)
    trace = (state.hmc.latents.cpu(),) if keep_trace else None
    return Run(state, (), trace, None if repeats is None else tuple(repeats))


def advance(
    progress: Run, potential: Potential, annealing: Annealing, backend: str, keep_masses: bool
) -> Run:
    """One temperature of a run, after which gradients may change to higher precision."""
    infos = progress.infos if keep_masses else _without_last_mass(progress.infos)
    choice = None if progress.repeats is None else progress.repeats[len(infos)]
    field = fallback.in_use(potential, progress.refined)
    state, info = step(progress.state, field, annealing, choice=choice, backend=backend)
    trace = progress.trace
    trace = None if trace is None else (*trace, state.hmc.latents.cpu())
    progress = replace(progress, state=state, infos=(*infos, info), trace=trace)
    return _refined(progress, field) if choice is None else progress


def _without_last_mass(infos: tuple[SMCInfo, ...]) -> tuple[SMCInfo, ...]:
    """``infos`` without the mass matrix of the last temperature, which needs most memory."""
    if not infos:
        return infos
    *before, last = infos
    return (*before, replace(last, choice=replace(last.choice, inverse_mass=None, stiff=None)))


def _refined(progress: Run, field: Potential) -> Run:
    """The run, with more precise gradients if those of ``field`` cost too much acceptance."""
    last = [each.acceptance for each in progress.infos[-fallback.WINDOW :]]
    if not fallback.is_due(field, last, fallback.LEAST_TUNED):
        return progress
    state = progress.state
    chains, cost = fallback.refined(state.hmc, field)
    state = replace(state, hmc=chains, spent=state.spent + 1, forwards=state.forwards + cost)
    return replace(progress, state=state, refined=len(progress.infos))
