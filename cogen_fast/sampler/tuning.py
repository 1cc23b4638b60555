"""Self-tuning moves: step size, trajectory length and how many moves a temperature needs.

Constant-gain stochastic approximation, carried across temperatures, so that it follows a density
that changes. What the moves of an island have taught is for the moves of other islands (`islands`),
and nothing is learnt by moves at the posterior itself.
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
"""Fewer particles than this are no population."""
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Leapfrog steps that a tuned trajectory may have: few, so that a GPU can replay each."""
_LOG_LONGEST = math.log(16.0)  # in units of the mass, in which a Gaussian is crossed by pi / 2
_UNIT = 1.0 + 1e-9  # of correlations, which are rounded
_LENGTH_POWER = 0.5  # power of its length that a trajectory's jump must be worth
_START_LENGTH = 1.4  # where it is, at a scale of 1: tan x = 4 x
_MOST_SLOPE = 2.0
_PULL_TO_START = (
    0.5  # of the log length to where it started: what few particles show of it is mostly noise
)
_RECOVERY_GAIN = (
    0.1  # how fast `Tuning.forgetting` goes back to 1 where single moves tell nothing of it
)
_LEAST_CORRELATION, _MOST_CORRELATION = 0.001, 0.999
_EDGE = 8  # one part in so many of the directions is the stiffest, one the softest
POOR_ACCEPTANCE = 0.5
"""Acceptance below which moves are no guide to what they forget; what is assumed of the first."""
STATISTICS = 4
"""Of which `Tuning.memory` has the correlation."""
OVERALL, OF_LATENTS = slice(0, 2), slice(1, STATISTICS)
"""Those of energies and of all latents; those of latents."""


@dataclass(frozen=True)
class TuningRule:
    """Constants of the tuning.

    After each move the log step size changes by ``step_gain (acceptance - target)`` (by less where
    there are fewer than 16 chains to average over) and the log trajectory length by ``length_gain``
    times the gradient of the log of the ChEES criterion over the root of the length, less half of
    its distance from where it started. A step size is multiplied by a random factor from
    ``1 - jitter`` to ``1 + jitter`` in each move. One move is enough where it keeps at most
    ``remembered`` of the correlation of energies and latents with those before it; else a
    temperature has moves until they keep at most ``left``, and the posterior until they keep
    ``remembered``; at most ``most_moves``, and fewer where further moves have been seen to forget
    less than the first (`Tuning.forgetting`), as between modes. A temperature has ``most_moves``
    while moves are accepted less often than every other time, for then they are no guide to how
    many it takes. ``memory_gain`` is the weight of the last move in what is known of all these.
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
    """What the moves of B islands have taught.

    ``log_step`` and ``log_length`` ``(B,)`` float64 are logarithms of the step size and trajectory
    length that they ask for. ``memory`` ``(B, 4)`` float64 is the correlation, before and after one
    move, of the energies, of all latent coordinates, and of the stiffest and the softest eighth of
    them in the coordinates of the mass; ``acceptance`` ``(B,)`` float64 its acceptance probability.
    ``forgetting`` ``(B,)`` float64, from 0 to 1, is what several moves have forgotten beyond the
    first, as a share of what they would have, had each forgotten alike.
    """

    log_step: Rows
    log_length: Rows
    memory: Annotated[Tensor, Array("B 4", low=-_UNIT, high=_UNIT)]
    acceptance: Shares
    forgetting: Shares


def init(count: int, size: int, start: float | None, device: torch.device) -> Tuning:
    """The start: step size ``start``, or one that suits a standard normal of that ``size``."""
    step = 0.7 * size**-0.25 if start is None else start
    zeros = torch.zeros(count, dtype=torch.float64, device=device)
    memory = torch.zeros(count, STATISTICS, dtype=torch.float64, device=device)
    return Tuning(
        zeros + math.log(step),
        zeros + math.log(_START_LENGTH),
        memory,
        zeros + POOR_ACCEPTANCE,
        zeros + 1.0,
    )


def jittered_step(step_size: Tensor, rule: TuningRule, stream: NoiseStream, ops: Ops) -> Tensor:
    """Step sizes ``(B,)``, each times the random factor of one move."""
    turn = 2.0 * ops.observation_uniforms(stream, Purpose.JITTER) - 1.0
    return step_size * (1.0 + rule.jitter * turn)


def overall_autocorrelation(tuning: Tuning) -> Tensor:
    """What the moves of a temperature before the last keep at most, ``(B,)``."""
    return tuning.memory[:, OVERALL].amax(-1)


def mean_of_others(tuning: Tuning, count: int) -> Tuning:
    """What the other ones of ``count`` islands have learnt, in place of each one's own."""
    return Tuning(
        islands.mean_of_others(tuning.log_step, count),
        islands.mean_of_others(tuning.log_length, count),
        islands.mean_of_others(tuning.memory, count),
        islands.mean_of_others(tuning.acceptance, count),
        islands.mean_of_others(tuning.forgetting, count),
    )


def shrink_step_size(tuning: Tuning, beta: Tensor, new_beta: Tensor, size: int) -> Tuning:
    """The tuning for the first move at ``new_beta``: step sizes shrink with the density's scale.

    Where the misfit decides the step, its scale goes with ``beta^(-1/2)``; how far it does is told
    by how much smaller than a standard normal's the step has become. For moves whose mass does not
    follow the scale itself.
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
    """What is known after one move made with ``settings``, which came from ``used``.

    Step and length are what ``used`` had, moved by what this move has shown. Where ``learns``
    ``(B,)`` is false nothing is learnt.
    """
    acceptance = info.acceptance_probability.mean(-1)
    # What few chains show is noisy: the less of it, the fewer they are.
    gain = rule.step_gain * min(1.0, before.energy.shape[-1] / POPULATION)
    log_step = used.log_step + gain * (acceptance - rule.target)
    slope = _length_slope(before, info, settings, leapfrog_steps)
    slope = slope - _PULL_TO_START * (used.log_length - math.log(_START_LENGTH))
    log_length = used.log_length + rule.length_gain * slope
    # Kept near what the ladder can do, or it would run away while the ladder's end holds it.
    low, high = log_step + math.log(0.7 * LADDER[0]), log_step + math.log(1.4 * LADDER[-1])
    log_length = log_length.clamp(max=_LOG_LONGEST).maximum(low).minimum(high)
    memory = known.memory.lerp(correlations(before, after), rule.memory_gain)
    accepted = known.acceptance.lerp(acceptance, rule.memory_gain)
    return Tuning(
        torch.where(learns, log_step, known.log_step),
        torch.where(learns, log_length, known.log_length),
        torch.where(learns[:, None], memory, known.memory),
        torch.where(learns, accepted, known.acceptance),
        known.forgetting,
    )


def update_further_decorrelation(
    known: Tuning, one: Tensor, whole: Tensor, moves: Tensor, rule: TuningRule, learns: Tensor
) -> Tuning:
    """What is known after a temperature of ``moves`` ``(B,)``, of how several of them forget.

    ``one`` and ``whole`` ``(B, 2)`` are correlations over its first move and over all, of which the
    slower one counts. A single move tells nothing: then what is known goes back to 1, slowly, so
    that several are tried again.
    """
    slower = one.argmax(-1, keepdim=True)
    first = one.gather(-1, slower)[:, 0].clamp(_LEAST_CORRELATION, _MOST_CORRELATION)
    further = first - whole.gather(-1, slower)[:, 0]
    several = moves > 1
    share = further / torch.where(several, first - first**moves, 1.0)
    old = known.forgetting
    seen = torch.where(
        several,
        old.lerp(share.clamp(0.0, 1.0), rule.memory_gain),
        old + _RECOVERY_GAIN * (1.0 - old),
    )
    return replace(known, forgetting=torch.where(learns, seen, old))


def _length_slope(
    state: HMCState, info: HMCInfo, settings: TransitionSettings, leapfrog_steps: int
) -> Tensor:
    """Gradient of ``log(ChEES / sqrt(length))`` by ``log length``, ``(B,)``, within +-2.

    ChEES is ``E[(|z' - m|^2 - |z - m|^2)^2] / 4`` (Hoffman, Radul and Sountsov 2021, section 3), m
    the population's mean; proposals count by their acceptance probability. The velocity is that
    before the last half kick.
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
    """Correlations over particles of a state with that one move later, ``(B, 4)`` as in `Tuning`.

    Of latents it is that of all coordinates together, each about its mean.
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
    # Told by the values: their distances from a rounded mean need not be 0.
    alike = (a == a[:, :1]).all(-1).all(-1) | (b == b[:, :1]).all(-1).all(-1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    scale = ((a * a).sum((1, 2)) * (b * b).sum((1, 2))).sqrt()
    return torch.where(alike, 1.0, (a * b).sum((1, 2)) / scale.clamp(min=1e-300))


def leapfrog_steps(log_ratios: Sequence[float]) -> int:
    """The step count of the ladder nearest to length over step size.

    One for a whole call: the mean over observations, given the logarithms of their ratios.
    """
    wanted = sum(log_ratios) / len(log_ratios)
    return min(LADDER, key=lambda count: abs(math.log(count) - wanted))


def moves_needed(autocorrelation: float, left: float, rule: TuningRule) -> int:
    """How many moves keep at most ``left``, where one keeps a correlation ``memory``.

    One where that forgets enough by itself, and ``most_moves`` at most.
    """
    kept = min(max(autocorrelation, 0.0), _MOST_CORRELATION)
    if kept <= rule.remembered:
        return 1
    return min(rule.most_moves, math.ceil(math.log(left) / math.log(kept)))
