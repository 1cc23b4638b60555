"""Tuning of the moves: step size, trajectory length, and the number of moves of a temperature.

Stochastic approximation with constant gains continues across temperatures, so that it follows the
changing density. What is estimated from the moves of an island is used by the other islands
(`islands`). Moves at the posterior itself (beta = 1) change no estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.philox import NoiseStream, Purpose
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.sampler import islands
from cogen_fast.sampler.hmc import HMCInfo, HMCState
from cogen_fast.support.arguments import check_count, check_number
from cogen_fast.support.layout import Array, Rows, Shares

POPULATION = 16
"""The least number of particles of a population."""
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Values of L that tuning can choose: few, so that a GPU can replay a recording of each."""
_LOG_LONGEST = math.log(16.0)  # longest trajectory, in units where pi / 2 crosses a Gaussian
_UNIT = 1.0 + 1e-9  # bound of a correlation, with rounding
_LENGTH_POWER = 0.5  # ChEES is maximised relative to this power of the trajectory length
_START_LENGTH = 1.4  # the optimum for a Gaussian of scale 1, which solves tan x = 4 x
_MOST_SLOPE = 2.0
# Pull of the log length to its start: what few particles show of its optimum is mostly noise.
_PULL_TO_START = 0.5
_RECOVERY_GAIN = 0.1  # gain of `Tuning.further_decorrelation` towards 1 after single moves
_LEAST_CORRELATION, _MOST_CORRELATION = 0.001, 0.999
_EDGE = 8  # an eighth of the directions are the stiffest, an eighth the softest
POOR_ACCEPTANCE = 0.5
"""Acceptance below which the moves' autocorrelations are not used; also its initial value."""
STATISTICS = 4
"""The number of statistics whose autocorrelations `Tuning.autocorrelation` holds."""
OVERALL, OF_LATENTS = slice(0, 2), slice(1, STATISTICS)
"""The columns of energies and of all latents; the columns of latents."""


@dataclass(frozen=True)
class TuningRule:
    """Constants of the tuning.

    After each move the log step size changes by ``step_gain (acceptance - target)``, with a smaller
    gain where there are fewer than 16 chains to average over. The log trajectory length changes by
    ``length_gain`` times a slope: the gradient of ``log(ChEES / sqrt(length))`` by the log length,
    minus half of its distance from its start. In each move the step size is multiplied by a random
    factor from ``1 - jitter`` to ``1 + jitter``.

    The number of moves follows from the correlation r that one move leaves of energies and latents.
    One move is enough where r is at most ``remembered``. Else a temperature has the moves that
    reduce the correlation to ``left`` (at the posterior: to ``remembered``) if each reduces it by
    the factor r, but at most ``most_moves``. There are fewer where moves after the first have
    reduced it by less (`Tuning.further_decorrelation`), as between modes. There are ``most_moves``
    while the acceptance is below 0.5, because r then does not show how many are needed.
    ``memory_gain`` is the weight of the last move in the running means of r and of the acceptance.

    Raises TypeError or ValueError naming the argument.
    """

    target: float = 0.9
    step_gain: float = 0.5
    length_gain: float = 0.05
    memory_gain: float = 0.3
    jitter: float = 0.2
    remembered: float = 0.7
    left: float = 0.2
    most_moves: int = 8

    def __post_init__(self) -> None:
        for name in ("target", "remembered", "left", "memory_gain"):
            check_number(name, getattr(self, name), above=0.0, below=1.0)
        for name, below in (("step_gain", math.inf), ("length_gain", math.inf), ("jitter", 1.0)):
            check_number(name, getattr(self, name), above=0.0, below=below, zero=True)
        check_count("most_moves", self.most_moves)


@dataclass(frozen=True)
class Tuning:
    """Estimates from the moves of B islands.

    ``log_step`` and ``log_length`` ``(B,)`` float64 are the logarithms of the step size and the
    trajectory length, as corrected by these moves. ``autocorrelation`` ``(B, 4)`` float64 holds
    running means of lag-one autocorrelations, over one move: of the energies, of all latent
    coordinates, and of the stiffest and the softest eighth of them in the coordinates of the mass.
    ``acceptance`` ``(B,)`` float64 is the running mean acceptance probability.
    ``further_decorrelation`` ``(B,)`` float64, from 0 to 1, is the loss of correlation by the moves
    of a temperature after its first, as a share of the loss if each reduced it by the factor of the
    first.
    """

    log_step: Rows
    log_length: Rows
    autocorrelation: Annotated[Tensor, Array("B 4", low=-_UNIT, high=_UNIT)]
    acceptance: Shares
    further_decorrelation: Shares


def init(count: int, size: int, start: float | None, device: torch.device) -> Tuning:
    """The first values: step size ``start``, or one for a standard normal of that ``size``."""
    step = 0.7 * size**-0.25 if start is None else start
    zeros = torch.zeros(count, dtype=torch.float64, device=device)
    autocorrelation = torch.zeros(count, STATISTICS, dtype=torch.float64, device=device)
    return Tuning(
        zeros + math.log(step),
        zeros + math.log(_START_LENGTH),
        autocorrelation,
        zeros + POOR_ACCEPTANCE,
        zeros + 1.0,
    )


def jittered_step(step_size: Tensor, rule: TuningRule, stream: NoiseStream, ops: Ops) -> Tensor:
    """Step sizes ``(B,)``, each multiplied by the random factor of one move."""
    turn = 2.0 * ops.observation_uniforms(stream, Purpose.JITTER) - 1.0
    return step_size * (1.0 + rule.jitter * turn)


def overall_autocorrelation(tuning: Tuning) -> Tensor:
    """The larger lag-one autocorrelation of energies and of all latents, ``(B,)``."""
    return tuning.autocorrelation[:, OVERALL].amax(-1)


def mean_of_others(tuning: Tuning, count: int) -> Tuning:
    """For each of ``count`` islands the mean of the other islands' estimates."""
    return Tuning(
        islands.mean_of_others(tuning.log_step, count),
        islands.mean_of_others(tuning.log_length, count),
        islands.mean_of_others(tuning.autocorrelation, count),
        islands.mean_of_others(tuning.acceptance, count),
        islands.mean_of_others(tuning.further_decorrelation, count),
    )


def shrink_step_size(tuning: Tuning, beta: Tensor, new_beta: Tensor, size: int) -> Tuning:
    """The tuning for the first move at ``new_beta``: step sizes shrink with the density's scale.

    This is for a mass that does not follow that scale. Where the misfit determines the step size,
    the scale is proportional to ``beta^(-1/2)``. To what extent it does is estimated from how much
    smaller the step size has become than that of a standard normal.
    """
    share = (1.0 - torch.exp(2.0 * tuning.log_step) * math.sqrt(size)).clamp(0.0, 1.0)
    shrink = 0.5 * share * torch.log(new_beta / beta)
    return replace(tuning, log_step=tuning.log_step - torch.where(beta > 0.0, shrink, 0.0))


def update(
    known: Tuning,
    used: Tuning,
    before: HMCState,
    after: HMCState,
    info: HMCInfo,
    settings: TransitionSettings,
    leapfrog_steps: int,
    rule: TuningRule,
    learns: Tensor,
) -> Tuning:
    """The estimates after one move with ``settings``, whose step size and length are of ``used``.

    ``log_step`` and ``log_length`` are those of ``used``, corrected by this move; autocorrelations
    and acceptance continue the running means of ``known``. Rows of ``known`` where ``learns``
    ``(B,)`` is false do not change.
    """
    acceptance = info.acceptance_probability.mean(-1)
    # The mean acceptance of few chains is noisy, so it changes the step size by less.
    gain = rule.step_gain * min(1.0, before.energy.shape[-1] / POPULATION)
    log_step = used.log_step + gain * (acceptance - rule.target)
    slope = length_slope(before, info, settings, leapfrog_steps)
    slope = slope - _PULL_TO_START * (used.log_length - math.log(_START_LENGTH))
    log_length = used.log_length + rule.length_gain * slope
    # The length stays near what `LADDER` can make: beyond its end it would drift without effect.
    low, high = log_step + math.log(0.7 * LADDER[0]), log_step + math.log(1.4 * LADDER[-1])
    log_length = log_length.clamp(max=_LOG_LONGEST).maximum(low).minimum(high)
    autocorrelation = known.autocorrelation.lerp(correlations(before, after), rule.memory_gain)
    accepted = known.acceptance.lerp(acceptance, rule.memory_gain)
    return Tuning(
        torch.where(learns, log_step, known.log_step),
        torch.where(learns, log_length, known.log_length),
        torch.where(learns[:, None], autocorrelation, known.autocorrelation),
        torch.where(learns, accepted, known.acceptance),
        known.further_decorrelation,
    )


def update_further_decorrelation(
    known: Tuning, one: Tensor, whole: Tensor, moves: Tensor, rule: TuningRule, learns: Tensor
) -> Tuning:
    """The estimates after a temperature of ``moves`` ``(B,)``: updates ``further_decorrelation``.

    ``one`` and ``whole`` ``(B, 2)`` are the correlations of energies and latents over its first
    move and over all its moves; the statistic that decorrelates more slowly counts. A single move
    shows nothing: the value then slowly returns to 1, so that several moves are tried again. Rows
    where ``learns`` ``(B,)`` is false do not change.
    """
    slower = one.argmax(-1, keepdim=True)
    first = one.gather(-1, slower)[:, 0].clamp(_LEAST_CORRELATION, _MOST_CORRELATION)
    further = first - whole.gather(-1, slower)[:, 0]
    several = moves > 1
    share = further / torch.where(several, first - first**moves, 1.0)
    old = known.further_decorrelation
    new = torch.where(
        several,
        old.lerp(share.clamp(0.0, 1.0), rule.memory_gain),
        old + _RECOVERY_GAIN * (1.0 - old),
    )
    return replace(known, further_decorrelation=torch.where(learns, new, old))


def length_slope(
    state: HMCState, info: HMCInfo, settings: TransitionSettings, leapfrog_steps: int
) -> Tensor:
    """Gradient of ``log(ChEES / sqrt(length))`` by ``log length``, ``(B,)``, within +-2.

    ChEES is ``E[(|z' - m|^2 - |z - m|^2)^2] / 4`` (Hoffman, Radul and Sountsov 2021, section 3),
    with m the mean over particles. Proposals are weighted by their acceptance probability. The
    velocity is the one before the last half kick.
    """
    length = settings.step_size * leapfrog_steps
    probability = info.acceptance_probability
    z, proposed = state.latents.double(), info.proposal.position.double()
    velocity = info.proposal.momentum.double()
    if settings.inverse_mass is not None:
        velocity = velocity * settings.inverse_mass[:, None]
    sound = (probability > 0.0)[..., None]  # a proposal that is not finite has probability 0
    proposed, velocity = torch.where(sound, proposed, z), torch.where(sound, velocity, 0.0)
    from_mean = z - z.mean(1, keepdim=True)
    proposed = proposed - proposed.mean(1, keepdim=True)
    change = (proposed**2).sum(-1) - (from_mean**2).sum(-1)
    gain = (probability * change * (proposed * velocity).sum(-1)).sum(-1)
    criterion = (probability * change**2).sum(-1)
    slope = 4.0 * length * gain / criterion.clamp(min=1e-300) - _LENGTH_POWER
    slope = slope.clamp(-_MOST_SLOPE, _MOST_SLOPE)
    return torch.where(criterion > 0.0, slope, 0.0)


def correlations(before: HMCState, after: HMCState) -> Tensor:
    """Correlations over particles between two states, ``(B, 4)`` as `Tuning.autocorrelation`.

    ``after`` is the state one or several moves after ``before``. The correlation of latents is that
    of all coordinates together, each about its mean over particles.
    """
    a, b = before.latents.double(), after.latents.double()
    edge = -(-a.shape[-1] // _EDGE)
    parts = (
        (before.energy[..., None], after.energy[..., None]),
        (a, b),
        (a[..., :edge], b[..., :edge]),
        (a[..., -edge:], b[..., -edge:]),
    )
    return torch.stack([_correlation(x, y) for x, y in parts], -1)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlation over particles of ``(B, N, n)``, ``(B,)``; 1 where either does not vary."""
    # The values themselves are compared: their distances from a rounded mean need not be 0.
    alike = (a == a[:, :1]).all(-1).all(-1) | (b == b[:, :1]).all(-1).all(-1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    scale = ((a * a).sum((1, 2)) * (b * b).sum((1, 2))).sqrt()
    return torch.where(alike, 1.0, (a * b).sum((1, 2)) / scale.clamp(min=1e-300))


def leapfrog_steps(log_ratios: Sequence[float]) -> int:
    """The L of `LADDER` nearest to trajectory length over step size, on a logarithmic scale.

    It is common to a whole call: ``log_ratios``, the logarithms of the ratios, are averaged.
    """
    wanted = sum(log_ratios) / len(log_ratios)
    return min(LADDER, key=lambda count: abs(math.log(count) - wanted))


def moves_needed(autocorrelation: float, left: float, rule: TuningRule) -> int:
    """The moves that reduce a correlation to ``left``, if one reduces it to ``autocorrelation``.

    The number is 1 where the latter is at most ``rule.remembered``, and at most ``most_moves``.
    """
    kept = min(max(autocorrelation, 0.0), _MOST_CORRELATION)
    if kept <= rule.remembered:
        return 1
    return min(rule.most_moves, math.ceil(math.log(left) / math.log(kept)))
