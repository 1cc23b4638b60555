"""Noise of unknown standard deviation, inferred together with the latents.

For a misfit ``S / (2 low^2)`` the posterior at inverse temperature beta is the posterior with noise
``sigma = low / sqrt(beta)``, and ``beta^(n/2) Z(beta)`` is, up to a constant, the marginal
likelihood of that sigma given n measurements. So one annealing from the prior to the least noise
passes every noise level and estimates the marginal likelihood of each. Meanwhile `NoiseLevels`
collects draws of the joint posterior of latents and noise, under a prior on sigma that is uniform
in its logarithm. From these draws a Gibbs sampler starts: each chain in turn draws its noise given
its latents (`beta_given_energy`), and its latents given its noise (`hmc.transition`).

Annealing the misfit with the noise integrated out, ``(n / 2) log S``, would not do: where G can fit
the data exactly, that density jumps from the prior to the fit at one temperature, near
``beta = d / n``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.philox import NoiseStream, Purpose, uniforms
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.problem.density import Potential, gradients
from cogen_fast.sampler import annealing_plan, curvature, hmc, tuning
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.bases import Basis, RotatedPotential
from cogen_fast.sampler.curvature import Directions
from cogen_fast.sampler.hmc import HMCState
from cogen_fast.sampler.smc import Run, SMCInfo, SMCState
from cogen_fast.sampler.tuning import TuningRule
from cogen_fast.sampler.weights import log_mean_weight
from cogen_fast.support.layout import (
    Array,
    CountsOfEach,
    Estimates,
    Latents,
    NotNegative,
    OfEach,
    Roots,
    Sizes,
    Whole,
)

_DROP = 15.0  # annealing ends this many nats below the most likely noise level
_RUSHED = 3.0  # a larger growth of beta than by this factor is a step that a budget forced
_POINTS = 512  # points of the grid on log beta
_WIDTH, _FALL = 24.0, 40.0  # half-width of the grid, in standard deviations or, at a bound, nats


@dataclass(frozen=True)
class NoiseLevels:
    """Draws of latents and noise from the noise levels that B islands have passed.

    ``latents`` ``(B, N, d)``, their misfit ``energy`` for the least noise and their inverse
    temperature ``beta`` ``(B, N)`` float64; ``roots`` are the prior draws that they descend from.
    ``(B,)`` each: ``log_mass`` is the log of the integral of ``beta^(n/2) Z(beta)`` over
    ``log beta``, ``variance`` and ``expected_variance`` are the relative variances of its estimate
    (as in `SMCState`), and ``last`` and ``top`` are the logarithms of the integrand at the present
    level and at its largest.
    """

    latents: Latents
    energy: OfEach
    beta: OfEach
    roots: Roots
    log_mass: Estimates
    variance: Estimates
    expected_variance: Estimates
    last: Estimates
    top: Estimates


def init(state: SMCState, count: Tensor) -> NoiseLevels:
    """The state before the first step, for ``count`` ``(B,)`` measurements."""
    last = integrand(state, count)
    nothing = torch.full_like(last, -math.inf)
    return NoiseLevels(
        latents=state.hmc.latents,
        energy=state.hmc.energy,
        beta=state.beta[:, None].expand_as(state.hmc.energy),
        roots=state.roots,
        log_mass=nothing,
        variance=state.variance,
        expected_variance=state.expected_variance,
        last=last,
        top=nothing.clone(),
    )


def integrand(state: SMCState, count: Tensor) -> Tensor:
    """The log of ``beta^(n/2) Z(beta)``, ``(B,)``."""
    return log_mean_weight(state.log_weights) + 0.5 * count * state.beta.log()


def update(
    levels: NoiseLevels, before: SMCState, after: SMCState, count: Tensor, least: Tensor, ops: Ops
) -> NoiseLevels:
    """The levels after a step from ``before`` to ``after``, as far as above ``least`` ``(B,)``.

    Each draw is replaced by a particle of this step with a probability that is the step's share of
    the integral so far. A step that a short budget forced, by more than a factor of 3, counts only
    where there is no other.
    """
    now = integrand(after, count)
    width = after.beta.log() - torch.maximum(before.beta, least).log()
    rushed = (after.beta > _RUSHED * before.beta) & (levels.log_mass > -math.inf)
    counts = (width > 0.0) & ~before.finished & ~rushed
    mass = torch.logaddexp(levels.last, now) + (0.5 * width.clamp(min=1e-300)).log()
    mass = torch.where(counts, mass, -math.inf)
    total = torch.logaddexp(levels.log_mass, mass)
    share = torch.where(counts, torch.exp(mass - total), 0.0)
    stream = after.hmc.stream
    uniform = uniforms(stream, Purpose.LEVEL, 2, torch.float64)
    ancestors = ops.systematic_ancestors(after.log_weights, uniform[:, 0], None)
    taken = _systematic(share, uniform[:, 1], levels.energy.shape[-1])
    rows = ancestors[..., None].expand_as(levels.latents)
    return NoiseLevels(
        latents=torch.where(taken[..., None], after.hmc.latents.gather(1, rows), levels.latents),
        energy=torch.where(taken, after.hmc.energy.gather(1, ancestors), levels.energy),
        beta=torch.where(taken, after.beta[:, None], levels.beta),
        roots=torch.where(taken, after.roots.gather(1, ancestors), levels.roots),
        log_mass=total,
        variance=levels.variance.lerp(after.variance, share),
        expected_variance=levels.expected_variance.lerp(after.expected_variance, share),
        last=now,
        top=torch.where(counts, torch.maximum(levels.top, now), levels.top),
    )


def _systematic(share: Tensor, uniform: Tensor, count: int) -> Tensor:
    """Which of ``count`` draws are replaced, ``(B, N)`` bool: each with probability ``share``."""
    number = torch.arange(count + 1, device=share.device)
    steps = torch.floor(uniform[:, None] + number * share[:, None])
    return steps[:, 1:] > steps[:, :-1]


def finished(levels: NoiseLevels, state: SMCState) -> Tensor:
    """Which islands have passed all likely noise levels, ``(B,)`` bool.

    They are at beta = 1, or their integrand has fallen 15 nats below its largest value. A second
    likely level beyond such a drop would not be found.
    """
    return (state.beta >= 1.0) | (levels.last < levels.top - _DROP)


def beta_given_energy(energy: Tensor, count: Tensor, least: Tensor, uniform: Tensor) -> Tensor:
    """Draws of beta given misfit energies for the least noise, all ``(n,)`` float64.

    The density of ``u = log beta`` is proportional to ``exp(count u / 2 - exp(u) energy)`` between
    ``log least`` and 0. Its distribution function is inverted at ``uniform`` on a grid, between
    whose points the density is taken to be linear.
    """
    half, low = 0.5 * count, least.log()
    mode = (half / energy.clamp(min=1e-300)).log()
    mode = torch.minimum(torch.maximum(mode, low), torch.zeros_like(mode))
    # The width follows from the curvature at the mode, or from the slope where that is at a bound.
    slope = (half - mode.exp() * energy).abs()
    reach = torch.minimum(_WIDTH / half.sqrt(), _FALL / slope.clamp(min=1e-300))
    lower, upper = torch.maximum(low, mode - reach), (mode + reach).clamp(max=0.0)
    grid = torch.linspace(0.0, 1.0, _POINTS, dtype=torch.float64, device=energy.device)
    u = lower[:, None] + (upper - lower)[:, None] * grid
    log_density = half[:, None] * u - u.exp() * energy[:, None]
    density = torch.exp(log_density - log_density.amax(-1, keepdim=True))
    cell = 0.5 * (density[:, 1:] + density[:, :-1])
    whole = cell.cumsum(-1)
    target = uniform * whole[:, -1]
    index = torch.searchsorted(whole, target[:, None]).clamp(max=_POINTS - 2)
    begun = whole.gather(1, index) - cell.gather(1, index)
    a, b = density.gather(1, index), density.gather(1, index + 1)
    inside = _within_cell(a, b, target[:, None] - begun)
    start, step = u.gather(1, index), (upper - lower)[:, None] / (_POINTS - 1)
    return (start + step * inside).exp()[:, 0]


def _within_cell(a: Tensor, b: Tensor, mass: Tensor) -> Tensor:
    """The point in [0, 1] below which a density, linear from ``a`` to ``b``, has this ``mass``."""
    slope = b - a
    root = (a * a + 2.0 * slope * mass).clamp(min=0.0).sqrt()
    return (2.0 * mass / (a + root).clamp(min=1e-300)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class Moves:
    """The settings of the chains' moves on B islands, as tuned by the other islands.

    ``step_size`` is ``(B,)``. ``directions`` and the basis ``turn`` made of them are None where the
    mass is the identity. A round has ``moves`` ``(B,)`` int64 transitions of ``leapfrog_steps``.
    """

    step_size: NotNegative
    leapfrog_steps: Annotated[int, Whole(low=1, high="L")]
    moves: Annotated[Tensor, Array("B", torch.int64, low=1, high="M")]
    directions: Directions | None
    turn: Basis | None


def fixed_moves(progress: Run, annealing: Annealing) -> Moves:
    """The moves after a run that has passed all noise levels; they are tuned no further."""
    state, rule = progress.state, annealing.rule
    known = tuning.mean_of_others(state.tuning, state.islands)
    moves = []
    for slowest in known.autocorrelation.amax(-1).tolist():
        needed = annealing.hmc_steps or tuning.moves_needed(slowest, rule.remembered, rule)
        moves.append(annealing_plan.moves_per_round(needed, annealing))
    last = progress.infos[-1].choice
    followed = last.stiff is not None
    return Moves(
        known.log_step.exp(),
        last.leapfrog_steps,
        torch.tensor(moves, device="cpu").to(known.log_step.device),
        state.directions if followed else None,
        state.turn if followed else None,
    )


@dataclass(frozen=True)
class Chains:
    """N chains of each of B islands, each with a noise level of its own.

    ``hmc`` holds them as ``B N`` rows of one chain, ``(B N, 1, d)``, in the coordinates of their
    moves; each row has its own noise stream. ``beta`` ``(B N,)`` gives the chains' noise levels,
    ``acceptance`` ``(B,)`` is that of the last round, and ``non_finite`` ``(B, N)`` counts the
    proposals that were not finite.
    """

    hmc: Annotated[HMCState, Sizes({"B": "BN", "N": "1"})]
    beta: Annotated[Tensor, Array("BN", low=0.0, high=1.0)]
    acceptance: Estimates
    non_finite: CountsOfEach


def start_chains(
    levels: NoiseLevels, potential: Potential, moves: Moves, state: SMCState, seed: int
) -> Chains:
    """The draws of ``levels`` as chains, at a cost of one gradient.

    ``seed`` must differ from the run's.
    """
    count, each, size = levels.latents.shape
    rows = state.hmc.stream.observation[:, None] * each
    ids = (rows + torch.arange(each, device=rows.device)).flatten()
    stream = NoiseStream(seed, torch.zeros_like(ids), ids)
    latents = levels.latents
    if moves.turn is not None:
        latents = moves.turn.rotated(latents)
    latents = latents.reshape(count * each, 1, size)
    energy, grad = _PerChainPotential(potential, moves.turn, each).energy_and_grad(latents)
    return Chains(
        HMCState(latents, energy, grad, stream),
        levels.beta.flatten(),
        torch.ones_like(levels.log_mass),
        state.non_finite,
    )


def as_particles(chains: Chains, moves: Moves) -> HMCState:
    """The chains in the form of an `SMCState`'s particles: latents ``(B, N, d)``, in z."""
    count = len(moves.step_size)
    latents, grad = (
        each.reshape(count, -1, each.shape[-1]) for each in (chains.hmc.latents, chains.hmc.grad)
    )
    if moves.turn is not None:
        latents = moves.turn.rotated_back(latents)
        grad = moves.turn.rotated_back(grad)
    energy = chains.hmc.energy.reshape(count, -1)
    return HMCState(latents, energy, grad, chains.hmc.stream)


class _PerChainPotential:
    """A potential of chains in rows of their own, ``(B N, 1, d)``, in coordinates ``y = z Q``."""

    def __init__(self, potential: Potential, turn: Basis | None, chains: int) -> None:
        if turn is not None:
            potential = RotatedPotential(potential, turn)
        self.potential, self.chains = potential, chains

    def energy_and_grad(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(B N, 1)`` and gradients ``(B N, 1, d)``."""
        energy, grad = self.potential.energy_and_grad(self._together(latents))
        return energy.reshape(-1, 1), grad.reshape(latents.shape)

    def grad_alone(self, latents: Tensor) -> Tensor:
        """Gradients ``(B N, 1, d)`` without energies."""
        return gradients(self.potential, self._together(latents)).reshape(latents.shape)

    def _together(self, latents: Tensor) -> Tensor:
        return latents.reshape(-1, self.chains, latents.shape[-1])


def gibbs_round(
    chains: Chains,
    potential: Potential,
    moves: Moves,
    rule: TuningRule,
    count: Tensor,
    least: Tensor,
    ops: Ops,
) -> Chains:
    """Each chain draws its noise given its latents, then its latents given that noise.

    ``count`` ``(B,)`` is the number of measured values, and beta is at least ``least`` ``(B,)``.
    The cost is M L gradients.
    """
    each = len(chains.beta) // len(moves.step_size)
    counts, lowest, step_size, wanted = (
        values.repeat_interleave(each) for values in (count, least, moves.step_size, moves.moves)
    )
    state, wrong = chains.hmc, chains.non_finite
    uniform = ops.observation_uniforms(state.stream, Purpose.LEVEL)
    beta = beta_given_energy(state.energy[:, 0], counts, lowest, uniform)
    inverse_mass = None
    if moves.directions is not None:
        inverse_mass = _inverse_mass(moves.directions, beta).to(state.latents.dtype)
    target, accepted = _PerChainPotential(potential, moves.turn, each), torch.zeros_like(beta)
    for number in range(int(moves.moves.max())):
        step = tuning.jittered_step(step_size, rule, state.stream, ops)
        active = wanted > number
        settings = TransitionSettings(beta, torch.ones_like(beta), step, inverse_mass, active)
        state, info = hmc.transition(state, target, settings, moves.leapfrog_steps, ops)
        accepted = accepted + torch.where(active, info.acceptance_probability[:, 0], 0.0)
        wrong = wrong + (info.non_finite[:, 0] & active).reshape(wrong.shape)
    acceptance = (accepted / wanted).reshape(-1, each).mean(-1)
    return Chains(state, beta, acceptance, wrong)


def _inverse_mass(known: Directions, beta: Tensor) -> Tensor:
    """The inverse mass ``(B N, d)`` of each chain at its own ``beta`` ``(B N,)``."""
    each = len(beta) // len(known.rest)
    values = known.values.repeat_interleave(each, 0)
    rest = known.rest.repeat_interleave(each)
    vectors = known.vectors[:1].expand(len(beta), -1, -1)  # only their shape is used
    return curvature.inverse_mass(Directions(vectors, values, rest), beta)


@dataclass(frozen=True)
class NoiseRun:
    """A run, finished or not: the annealing through the noise levels, then the Gibbs sampler.

    ``levels`` are the draws from the levels passed so far. ``moves`` and ``chains`` are None until
    the annealing ends; ``infos`` are the outcomes of the rounds of the chains so far.
    """

    annealing: Run
    levels: NoiseLevels
    moves: Moves | None = None
    chains: Chains | None = None
    infos: tuple[SMCInfo, ...] = ()
