"""Annealed importance sampling with resampling, tuning itself: a tempered SMC sampler.

Algorithm 1 with three changes (Del Moral, Doucet and Jasra 2006): the next inverse temperature is
the one that keeps a set share of the conditional effective sample size (Zhou, Johansen and Aston
2016); particles are resampled where their weights have become uneven; and moves tune themselves
(`tuning`, `curvature`, `annealing_plan`). The particles of an observation live on islands that
exchange none: whatever an island's particles move by was learnt from other islands (`islands`).
Each island has a schedule of its own and is frozen when it is done. ``init``,
``step(state) -> (state, info)`` and ``run`` are public, for loops of your own.
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
    islands,
    lone_chains,
    pool,
    tuning,
)
from cogen_fast.sampler.annealing_plan import Annealing, AnnealingStatus, least_kept
from cogen_fast.sampler.bases import Basis
from cogen_fast.sampler.curvature import Curvature, Directions
from cogen_fast.sampler.hmc import Energy, HMCState
from cogen_fast.sampler.lone_chains import EnergyMoments
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
_REFRESHED = 64  # dimensions for each temperature that directions stay as they are,
_STALE = 8  # which are at most so many
_MOST_RETAINED = 0.99
_LEAST_AIM = torch.finfo(torch.float64).tiny
_MOST_IDS = 2**32  # of rows that the noise can name


@dataclass(frozen=True)
class SMCState:
    """Where the islands of some observations stand: B rows of N particles each.

    ``islands`` T is how many neighbouring rows are of one observation. ``beta`` ``(B,)`` is the
    inverse temperature reached, ``first_beta`` the one that the prior pool allowed, ``aim`` the one
    that a budget is planned to reach (1, unless something is known to end before). ``best_draw``
    ``(B, d)`` is the pool's draw of lowest energy, ``best_energy`` ``(B,)``. ``log_weights``
    ``(B, N)`` float64 hold the mean weight up to the last resampling and each particle's own since,
    so that their log mean is the log normaliser; ``variance`` ``(B,)`` is the first-order relative
    variance of that estimate as lineages show it, ``expected_variance`` ``(B,)`` what one expects
    by how much moves forget. For these (`_weigh`) ``lineage`` ``(B, N)`` is what particles have
    contributed in the past, and ``retained`` ``(B,)`` a running mean of the correlation between
    energies before and after all moves of a temperature. ``roots`` ``(B, N)`` int64 is the prior
    draw each particle descends from. ``resamplings`` ``(B,)`` counts resamplings,
    ``rounds`` ``(B,)`` temperatures spent at beta = 1; ``finished`` ``(B,)`` marks what stands
    still. ``tuning``, ``curvature`` and ``sharpness`` ``(B,)``, a running mean of the steps, each
    keeping ``exp(-1)``, that an e-fold of beta takes, are what each row's particles have taught,
    for others to use; ``directions`` what a row's moves follow, and ``turn`` the basis
    made of them. ``jumped`` ``(B,)`` marks what a short budget drove to the end too fast;
    ``non_finite`` ``(B, N)`` counts proposals that were not finite; ``spent`` the gradient
    evaluations of a particle, ``forwards`` its forwards beside them, and ``temperatures`` the steps
    so far. ``spread`` is there for chains too few to be a population.
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
    jumped: Flags
    non_finite: CountsOfEach
    spent: Count
    forwards: Count
    temperatures: Count
    spread: EnergyMoments | None = None


@dataclass(frozen=True)
class Choice:
    """What one temperature is done with; enough to do the same again.

    ``(B,)`` each: ``active`` observations move, to inverse temperature ``beta``, after resampling
    where ``resampled``, with ``step_size`` (before its jitter): of the first move when it is made,
    of the last once it is done, which is what another run should repeat. ``kept`` is
    the share of the conditional effective sample size that was asked for; ``slow`` marks where one
    move is not enough to forget (`TuningRule.remembered`). ``inverse_mass`` ``(B, d)`` holds in the
    coordinates that `bases.from_directions` makes of ``stiff`` ``(B, d, k)``; both None for a mass
    of 1. L is common to all; ``moves`` ``(B,)`` int64 is each one's M, and ``hmc_steps`` the
    largest of them.
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
    """How one temperature went.

    ``effective_sample_size`` ``(B,)`` is that of the weights before resampling, ``acceptance``
    ``(B,)`` the mean over the moves, ``energy`` and ``energy_std`` ``(B,)`` the misfit energies'
    mean and standard deviation after them; NaN where not active. ``ancestors`` ``(B, N)`` int64 is
    the particle each took the place of.
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
    """The start of ``islands`` T of ``chains`` N particles for each observation, B T rows in all.

    ``draws`` prior draws for each particle are scored, a forward each, and particles resampled from
    them at the inverse temperature that the other islands' draws allow (`pool`), ``furthest``
    ``(B T,)`` at most, or at ``first_beta`` ``(B T,)``; then one gradient each. ``latents``
    ``(B T, K, d)`` in the place of those draws must be prior draws too. ``alone``: the ``chains``
    are no population. They are not resampled, and the inverse temperature grows by what their own
    energies' recent spread allows; ``starts`` prior draws give the first. Other arguments as for
    `hmc.init`.

    Raises TypeError or ValueError naming the argument.
    """
    if step_size_start is not None:
        check_number("step_size", step_size_start, above=0.0)
    for name, value in (("chains", chains), ("islands", islands), ("draws", draws)):
        check_count(name, value)
    if latents is not None:
        if latents.ndim != 3 or latents.shape[1] < chains or len(latents) % islands:
            raise ValueError(
                f"latents: expected shape (B, K, d), B a multiple of {islands} islands and K at "
                f"least {chains}, got {tuple(latents.shape)}"
            )
        observations = len(latents) // islands
    potential = hmc.as_potential(target)
    ids = _rows_of(observation_ids, check_count("observations", observations), islands)
    where = torch.device(device) if latents is None else latents.device
    stream = hmc.noise_stream(seed, len(ids), where, ids)
    ops = dispatch.resolve(backend, where)
    if latents is None:
        if latent_size is None:
            raise ValueError("latent_size: expected a number where no latents are given, got None")
        count = max(chains, starts) if alone else chains * draws
        size = check_count("latent_size", latent_size)
        latents = ops.initial_latents(stream, count, size, hmc.check_dtype(dtype))
    hmc.check_dtype(latents.dtype)
    scored = latents.shape[1]
    energy = pool.scores(potential, latents)
    if alone:
        latents, energy = pool.finite_first(latents, energy)
    spread = lone_chains.init(energy, chains) if alone else None
    if alone:
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


def _rows_of(observation_ids: Sequence[int] | None, count: int, islands: int) -> list[int]:
    """The numbers that name B T rows in the noise, those of an observation side by side."""
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
    """The first state: at the inverse temperature of ``begun``."""
    count, _, size = state.latents.shape
    nothing = torch.zeros_like(begun.beta, dtype=torch.bool)
    none_yet = torch.zeros_like(begun.beta, dtype=torch.int64)
    even = torch.zeros_like(state.energy)
    # So that the first moves have a mass.
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
        jumped=nothing.clone(),
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
    """One temperature: choose it, weigh, resample, move. Costs M L gradients.

    ``choice`` takes the choices of another run instead; then nothing is tuned, and the estimate of
    the normaliser is unbiased. The given state stays as it is.
    """
    potential = hmc.as_potential(target)
    ops = dispatch.resolve(backend, state.hmc.latents.device)
    adapts = choice is None
    if choice is None:
        state, choice = choose(state, annealing)
    elif choice.stiff is not None and choice.stiff is not state.directions.vectors:
        directions = replace(state.directions, vectors=choice.stiff)
        state = replace(state, directions=directions, turn=bases.from_directions(choice.stiff))
    weighed = _weigh(state, choice.beta, choice.slow)
    resampled, ancestors = _resample(weighed, choice.resampled, ops)
    moved, choice, acceptance = _move(resampled, potential, choice, annealing, adapts, ops)
    info = SMCInfo(
        choice,
        effective_sample_size(weighed.log_weights),
        torch.where(choice.active & (choice.moves > 0), acceptance, torch.nan),
        torch.where(choice.active, moved.hmc.energy.mean(-1), torch.nan),
        torch.where(choice.active, moved.hmc.energy.std(-1, correction=0), torch.nan),
        ancestors,
    )
    return _close(moved, choice, annealing), info


def choose(state: SMCState, annealing: Annealing) -> tuple[SMCState, Choice]:
    """What the other islands' particles ask for, and the state with the directions of its moves.

    ValueError where every observation is finished.
    """
    active, beta, size = ~state.finished, state.beta, state.hmc.latents.shape[-1]
    sharpness = islands.mean_of_others(state.sharpness, state.islands)
    known = tuning.mean_of_others(state.tuning, state.islands)
    chosen = annealing_plan.choose(
        AnnealingStatus(active, beta, sharpness, state.rounds, state.aim, known, size, state.spent),
        annealing,
    )
    if state.spread is None:
        new_beta = annealing_plan.next_beta(
            beta, state.sharpness, chosen.kept, state.islands, active
        )
    else:
        new_beta = torch.where(active, lone_chains.next_beta(state.spread, beta, chosen.kept), beta)
    share = effective_sample_size(_log_weights(state, new_beta)) / state.log_weights.shape[-1]
    # At the end weights are made even, so that particles are draws as they stand.
    arrived = (new_beta >= 1.0) & (state.rounds == 0)
    uneven = arrived | (share < annealing.resample_below)
    stiff: Tensor | None = None
    inverse_mass: Tensor | None = None
    if _follows_curvature(state, annealing):
        memory = known.autocorrelation[:, tuning.OF_LATENTS].amax(-1)
        state = _turned(state, memory)
        stiff = state.directions.vectors
        inverse_mass = curvature.inverse_mass(state.directions, new_beta)
        inverse_mass = inverse_mass.to(state.hmc.latents.dtype)
    else:
        # By each row's own way: that of the others follows from this row's energies.
        known = tuning.shrink_step_size(known, beta, new_beta, size)
        state = replace(state, tuning=tuning.shrink_step_size(state.tuning, beta, new_beta, size))
    choice = Choice(
        active,
        chosen.kept,
        new_beta,
        active & uneven & (state.spread is None),
        _slow(state.tuning, annealing.rule) | _slow(known, annealing.rule),
        known.log_step.exp(),
        inverse_mass,
        stiff,
        chosen.moves,
        chosen.leapfrog_steps,
        chosen.hmc_steps,
    )
    return state, choice


def _slow(known: Tuning, rule: TuningRule) -> Tensor:
    return tuning.overall_autocorrelation(known) > rule.remembered


def _follows_curvature(state: SMCState, annealing: Annealing) -> bool:
    return annealing.mass == "curvature" and state.spread is None


def _turned(state: SMCState, memory: Tensor) -> SMCState:
    """With the directions that the other islands' gradients show by now.

    With many dimensions not every time; at the posterior itself they stay as they are.
    """
    if state.temperatures % min(-(-state.hmc.latents.shape[-1] // _REFRESHED), _STALE):
        return state
    learns, old = ~state.finished & (state.beta < 1.0), state.directions
    if not bool(learns.any()):
        return state
    seen = curvature.directions(curvature.mean_of_others(state.curvature, state.islands), memory)
    directions = Directions(
        torch.where(learns[:, None, None], seen.vectors, old.vectors),
        torch.where(learns[:, None], seen.values, old.values),
        torch.where(learns, seen.rest, old.rest),
    )
    return replace(state, directions=directions, turn=bases.from_directions(directions.vectors))


def _log_weights(state: SMCState, beta: Tensor) -> Tensor:
    """Those at ``beta``: they grow by ``log p_beta(z) - log p_old(z)`` before moves."""
    return state.log_weights - (beta - state.beta)[:, None] * state.hmc.energy


def _weigh(state: SMCState, beta: Tensor, slow: Tensor) -> SMCState:
    """The state at ``beta``, before moves.

    The log normaliser grows by the mean over particles of what each contributes, w. The variance of
    the sum of such means is, to first order, that of each and twice its covariance with all before
    it: particles share no more than their ancestors, so the sum over particles of ``w (w + 2 a)``
    over ``N (N - 1)`` estimates it, a being what a particle's ancestors have contributed. Where few
    ancestors are left it is too small: what was lost with the others does not show. So where moves
    are ``slow`` ``(B,)`` one expects ``(1 + r) / (1 - r)`` times that of independent means, r being
    the correlation that all moves of a temperature leave of energies, by which particles contribute
    (that of latents says less: between modes that are alike it stays 1, and does no harm).
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
    resampled = replace(
        state,
        hmc=chains,
        log_weights=torch.where(wanted[:, None], even, state.log_weights),
        lineage=state.lineage.gather(1, ancestors),
        roots=state.roots.gather(1, ancestors),
        resamplings=state.resamplings + wanted,
    )
    return resampled, ancestors


def _move(
    state: SMCState,
    potential: Potential,
    choice: Choice,
    annealing: Annealing,
    adapts: bool,
    ops: Ops,
) -> tuple[SMCState, Choice, Tensor]:
    """Each observation's M transitions, what they were, and their mean acceptance ``(B,)``."""
    total, step_size = torch.zeros_like(choice.beta), choice.step_size
    made = replace(state, spent=0, forwards=0, temperatures=0)  # no part of a recording
    for number in range(choice.hmc_steps):
        now = replace(choice, active=choice.active & (number < choice.moves), hmc_steps=1)
        used = tuning.mean_of_others(made.tuning, made.islands)
        if number == 0:
            used = replace(used, log_step=choice.step_size.log())
        made, acceptance, step_used = replayed(
            potential,
            (annealing, adapts, ops.name),
            partial(_one_move, potential, annealing, adapts, ops),
            made,
            now,
            used,
        )
        if made.curvature.mean is None and choice.stiff is not None and adapts:
            # Eigenvectors cannot be found within a recording.
            made = replace(made, curvature=_seen(made, now))
        if number == 0:
            one = tuning.correlations(state.hmc, made.hmc)[:, tuning.OVERALL]
        step_size = torch.where(now.active, step_used, step_size)
        total = total + torch.where(now.active, acceptance, 0.0)
    made = replace(
        made,
        spent=state.spent + choice.hmc_steps * choice.leapfrog_steps,
        forwards=state.forwards + choice.hmc_steps * forwards(potential),
        temperatures=state.temperatures,
    )
    if choice.hmc_steps:
        made = _learn(state, made, one, choice, annealing.rule, adapts)
    return made, replace(choice, step_size=step_size), total / choice.moves.clamp(min=1)


def jittered(
    choice: Choice, step_size: Tensor, rule: TuningRule, stream: NoiseStream, ops: Ops
) -> TransitionSettings:
    """The settings of one transition, its ``step_size`` ``(B,)`` times a random factor near 1."""
    step_size = tuning.jittered_step(step_size, rule, stream, ops)
    weight = torch.ones_like(choice.beta)
    return TransitionSettings(choice.beta, weight, step_size, choice.inverse_mass, choice.active)


def _one_move(
    potential: Potential,
    annealing: Annealing,
    adapts: bool,
    ops: Ops,
    state: SMCState,
    choice: Choice,
    used: Tuning,
) -> tuple[SMCState, Tensor, Tensor]:
    """One transition with a jittered step size; its mean acceptance and step size ``(B,)``."""
    tuned, seen, spread, rule = state.tuning, state.curvature, state.spread, annealing.rule
    step_size = used.log_step.exp() if adapts else choice.step_size
    settings = jittered(choice, step_size, rule, state.hmc.stream, ops)
    length = choice.leapfrog_steps
    turn = None if choice.stiff is None else state.turn
    made = curvature.transition(state.hmc, potential, settings, length, turn, ops)
    chains, info = made.after, made.info
    if adapts:
        # At the posterior itself nothing is learnt, but by lone chains, which are no samples.
        learns = _learns(choice, spread)
        tuned = tuning.update(
            tuned, used, made.start, made.end, info, settings, length, rule, learns
        )
        if turn is not None and seen.mean is not None:
            seen = _seen(replace(state, hmc=chains), choice)
    if spread is not None:
        spread = lone_chains.update(spread, chains.energy, choice.active)
    moved = replace(
        state,
        hmc=chains,
        tuning=tuned,
        spread=spread,
        curvature=seen,
        non_finite=state.non_finite + info.non_finite,
    )
    return moved, info.acceptance_probability.mean(-1), step_size


def _learns(choice: Choice, spread: EnergyMoments | None) -> Tensor:
    return choice.active & ((choice.beta < 1.0) | (spread is not None))


def _seen(state: SMCState, choice: Choice) -> Curvature:
    """The curvature with the gradients after a move."""
    learns = _learns(choice, state.spread)
    return curvature.update(state.curvature, state.hmc.grad, choice.beta, learns)


def _learn(
    before: SMCState,
    after: SMCState,
    one: Tensor,
    choice: Choice,
    rule: TuningRule,
    adapts: bool,
) -> SMCState:
    """With what a temperature's moves have shown; ``one`` ``(B, 2)`` is what the first retained."""
    left = tuning.correlations(before.hmc, after.hmc)[:, tuning.OVERALL]
    gain = rule.memory_gain if before.temperatures else 1.0
    moved = choice.active & (choice.beta < 1.0)
    retained = torch.where(moved, before.retained.lerp(left[:, 0], gain), before.retained)
    tuned = after.tuning
    if adapts:
        tuned = tuning.update_further_decorrelation(tuned, one, left, choice.moves, rule, moved)
    return replace(after, retained=retained, tuning=tuned)


def _sharpness(state: SMCState, learns: Tensor) -> Tensor:
    """The running mean of ``beta`` times the deviation of the energies after a temperature."""
    if state.spread is None:
        deviation = robust_deviation(state.hmc.energy)
    else:
        deviation = lone_chains.deviation(state.spread)
    seen = state.beta * deviation
    mean = torch.where(state.sharpness > 0.0, state.sharpness.lerp(seen, _SHARPNESS_GAIN), seen)
    return torch.where(learns, mean, state.sharpness)


def _close(after: SMCState, choice: Choice, annealing: Annealing) -> SMCState:
    """Counts and lessons at the end of a temperature, and who is finished."""
    active = choice.active
    there = active & (choice.beta >= 1.0)
    rounds = after.rounds + (there & (choice.moves > 0))
    enough, over = rounds >= annealing.final_rounds, choice.moves == 0
    if annealing.budget is not None:
        left = annealing.budget - after.spent
        over = over | (left <= 0)
        enough = enough & (left < choice.hmc_steps * choice.leapfrog_steps)
    ended = there & (over | enough)
    jumped = active & (choice.kept < least_kept(annealing)) & (rounds <= 1)
    return replace(
        after,
        sharpness=_sharpness(after, active & (choice.beta < 1.0)),
        rounds=rounds,
        jumped=after.jumped | jumped,
        finished=after.finished | (active & ended),
        temperatures=after.temperatures + 1,
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
    trace: tuple[Latents, ...] | None = None
    repeats: tuple[Choice, ...] | None = None
    refined: Count | None = None

    @property
    def done(self) -> bool:
        """Whether every observation has come to its end."""
        if self.repeats is not None:
            return len(self.infos) >= len(self.repeats)
        return bool(self.state.finished.all())

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What each temperature was done with, for a run that repeats it."""
        return tuple(info.choice for info in self.infos)


def check_run(progress: Run, run: str = "run") -> None:
    """ValueError where a run from a file has a past of another length, or no basis to move in.

    ``run`` is what it is called there.
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
    """From the prior to the posterior, one temperature after the other.

    ``repeats`` takes another run's choices (of the same shapes) under this run's noise: an
    unbiased estimate of the normaliser where that run had another seed, and this one begins at its
    ``first_beta``. ``start`` continues an
    unfinished run. ``on_step`` sees the run after each temperature and may raise to end it.
    ``keep_masses=False``: the choices of all but the last temperature are kept without their mass,
    which is most of what they take; then they cannot be repeated. ``how`` goes to `init`:
    ``chains``, ``latent_size``, ``observations``, ``seed``, ....
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
        progress = advance(progress, potential, annealing, backend, keep_masses)
        if on_step is not None:
            on_step(progress)
    return progress


def advance(
    progress: Run, potential: Potential, annealing: Annealing, backend: str, keep_masses: bool
) -> Run:
    """One temperature of a run; finer gradients follow where coarse ones cost acceptance."""
    infos = progress.infos
    if infos and not keep_masses:
        lighter = replace(infos[-1].choice, inverse_mass=None, stiff=None)
        infos = (*infos[:-1], replace(infos[-1], choice=lighter))
    choice = None
    if progress.repeats is not None:
        choice = progress.repeats[len(progress.infos)]
    field = fallback.in_use(potential, progress.refined)
    state, info = step(progress.state, field, annealing, choice=choice, backend=backend)
    trace = progress.trace
    trace = None if trace is None else (*trace, state.hmc.latents.cpu())
    progress = replace(progress, state=state, infos=(*infos, info), trace=trace)
    last = [each.acceptance for each in progress.infos[-fallback.WINDOW :]]
    if choice is None and fallback.is_due(field, last, fallback.LEAST_TUNED):
        chains, cost = fallback.refined(state.hmc, field)
        cost += state.forwards
        state = replace(state, hmc=chains, spent=state.spent + 1, forwards=cost)
        progress = replace(progress, state=state, refined=len(progress.infos))
    return progress
