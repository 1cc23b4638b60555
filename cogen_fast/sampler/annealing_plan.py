"""The annealing plan: the next inverse temperature, and L and M, the latter within a budget.

`choose` plans one temperature of the adaptive method: the share of the conditional effective sample
size (CESS) that the step of the inverse temperature keeps, the number L of leapfrog steps and the
number M of moves. Without a budget the first is a setting, and the others follow from `tuning`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

import torch
from torch import Tensor

from cogen_fast.sampler import islands, tuning
from cogen_fast.sampler.tuning import LADDER, Tuning, TuningRule
from cogen_fast.support.arguments import check_choice, check_count, check_number, shown

_LEAST_FINAL_ROUNDS, _MODERATE_FINAL_ROUNDS = 2, 8
_ROUND_DIVISOR = 3  # a round at the posterior has this many times fewer moves
_LEAST_LENGTH = 3  # leapfrog steps: shorter trajectories are random walks
# A step that keeps less of the CESS leaves one particle in ten with nearly all weight. Down to this
# share, larger steps cost less than shorter trajectories, which mix slowly in wide directions.
_LEAST_KEPT = 0.1
_ROUNDING = 1e-9
_UNKNOWN_E_FOLDS = 10.0  # e-folds of beta that are assumed to remain from beta = 0
_LEAST_E_FOLDS = 0.3  # e-folds that are planned for where beta has passed ``aim``
_MOST_GROWTH = math.e  # the largest factor by which beta grows in one step
MASSES = ("curvature", "identity")


@dataclass(frozen=True)
class Annealing:
    """Settings of the adaptive method: how particles go from the prior to the posterior.

    A step of the inverse temperature keeps the share ``target_cess`` of the conditional effective
    sample size if energies are Gaussian. Particles are resampled where their effective sample size
    falls below ``resample_below`` of N. ``leapfrog_steps`` and ``hmc_steps`` fix L and M (None:
    tuned; L is common to all observations of a call). ``mass`` is "curvature", the posterior's
    precision as estimated from gradients (`curvature`), or "identity".

    ``budget`` bounds the gradient evaluations of a particle. All observations of a call share it:
    they move together, so one gradient evaluation counts for each of them. Where the budget is
    short, there are fewer moves, then larger steps of the inverse temperature, then shorter
    trajectories. ``final_rounds`` rounds of moves at beta = 1 remove the bias of a small
    population. Their number does not depend on energies, because stopping where these look settled
    would bias the samples. What a budget has left after these rounds is spent on further ones. A
    round has a third of the moves that reduce correlations to ``rule.remembered`` (within a budget:
    a third of those that a temperature has). ``rule`` holds the constants of the tuning.

    Raises TypeError or ValueError naming the argument.
    """

    target_cess: float = 0.97
    resample_below: float = 0.5
    leapfrog_steps: int | None = None
    hmc_steps: int | None = None
    mass: str = "curvature"
    budget: int | None = None
    final_rounds: int = 30
    rule: TuningRule = field(default_factory=TuningRule)

    def __post_init__(self) -> None:
        for name in ("target_cess", "resample_below"):
            share = check_number(name, getattr(self, name), above=0.0, below=1.0)
            object.__setattr__(self, name, share)
        for name in ("leapfrog_steps", "hmc_steps", "budget"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_count(name, getattr(self, name)))
        object.__setattr__(self, "final_rounds", check_count("final_rounds", self.final_rounds))
        if not isinstance(self.rule, TuningRule):
            raise TypeError(f"rule: expected a TuningRule, got {shown(self.rule)}")
        check_choice("mass", self.mass, MASSES)


def least_kept(annealing: Annealing) -> float:
    """The least share of a regular step: a short budget forces smaller ones, with poor weights."""
    return min(_LEAST_KEPT, annealing.target_cess * (1.0 - _ROUNDING))


@dataclass(frozen=True)
class AnnealingStatus:
    """What the plan depends on: the progress of B islands.

    ``(B,)`` each: ``active`` marks islands that are not finished, ``beta`` is the inverse
    temperature reached, ``sharpness`` is ``beta sd(E)``, the number of steps per e-fold of beta if
    each keeps ``exp(-1)`` of the CESS, ``rounds`` counts the rounds made at beta = 1, and ``aim``
    is the beta that a budget is planned to reach. ``sharpness`` and ``tuning`` are the means over
    the other islands. ``size`` is d; ``spent`` counts a particle's gradient evaluations so far.
    """

    active: Tensor
    beta: Tensor
    sharpness: Tensor
    rounds: Tensor
    aim: Tensor
    tuning: Tuning
    size: int
    spent: int


@dataclass(frozen=True)
class TemperaturePlan:
    """How the next temperature is made.

    ``kept`` ``(B,)`` float64 is the share of the CESS that each island's step keeps (0: a step to
    beta = 1 at once), and ``moves`` ``(B,)`` int64 is each island's M. ``hmc_steps`` is the largest
    M (0: the budget affords no move); ``leapfrog_steps`` is L, which is common to all.
    """

    kept: Tensor
    moves: Tensor
    leapfrog_steps: int
    hmc_steps: int


@dataclass(frozen=True)
class IslandStatus:
    """One island's row of `AnnealingStatus`, on the host."""

    active: bool
    log_ratio: float  # log of trajectory length over step size
    autocorrelation: float
    acceptance: float
    further_decorrelation: float
    beta: float
    sharpness: float
    rounds: float
    aim: float


def choose(standing: AnnealingStatus, annealing: Annealing) -> TemperaturePlan:
    """The plan of the next temperature. Reads from the device once.

    Raises ValueError where no island is active.
    """
    rows = _to_host(standing)
    moving = [row for row in rows if row.active]
    if not moving:
        raise ValueError("state: expected an observation that is not finished, all are")
    length = annealing.leapfrog_steps or tuning.leapfrog_steps([row.log_ratio for row in moving])
    count = annealing.hmc_steps
    moves = [count or _moves_wanted(row, annealing.rule) for row in rows]
    kept = [annealing.target_cess] * len(rows)
    if annealing.budget is not None:
        # All observations move together: one gradient evaluation counts for each of them, so that
        # they share the budget, and the plan fits the island that has furthest to go.
        plan = BudgetPlan(
            annealing.budget - standing.spent,
            max(distance_left(row, standing.size) for row in moving),
            annealing.final_rounds - min(row.rounds for row in moving),
        )
        wanted = count or _moves_wanted(_mean(moving), annealing.rule)
        length, common, steps = fit_budget(plan, length, wanted, annealing)
        moves = [common] * len(rows)
        kept = [
            min(annealing.target_cess, share_kept(distance_left(row, standing.size), steps))
            for row in rows
        ]
    moves = [_moves_of(each, row, annealing) for each, row in zip(moves, rows, strict=True)]
    device = standing.beta.device
    return TemperaturePlan(
        torch.tensor(kept, dtype=torch.float64, device="cpu").to(device),
        torch.tensor(moves, device="cpu").to(device),
        length,
        max(moves),
    )


def next_beta(beta: Tensor, sharpness: Tensor, kept: Tensor, count: int, active: Tensor) -> Tensor:
    """The next inverse temperature ``(B,)``, where each observation has ``count`` islands.

    With Gaussian energies of standard deviation s, a step keeps ``exp(-(step s)^2)`` of the CESS;
    the step is such that this is ``kept``. An island takes for s the mean of ``sharpness / beta``
    over the other islands. An island that is ahead takes their s at their own, smaller beta, where
    it is larger, so that it waits for them; one that is behind takes ``sharpness`` over its own
    beta. Where ``kept`` is 0 the next beta is 1. Islands that are not ``active`` keep theirs.
    """
    own, each = islands.pairs(beta, count)
    deviation = islands.pairs(sharpness, count)[1] / torch.minimum(own, each)
    others = islands.mean_of_others_pairwise(deviation)
    step = torch.sqrt(-torch.log(kept)) / others.clamp(min=1e-300)
    grown = torch.minimum(beta + step, _MOST_GROWTH * beta).clamp(max=1.0)
    grown = torch.where(kept > 0.0, grown, 1.0)
    return torch.where(active & (beta < 1.0), grown, beta)


def _to_host(standing: AnnealingStatus) -> list[IslandStatus]:
    tuned = standing.tuning
    # Before beta = 1 weights correct for slow directions of the latents; at beta = 1 nothing does.
    there = standing.beta >= 1.0
    slowest = torch.where(
        there, tuned.autocorrelation.amax(-1), tuning.overall_autocorrelation(tuned)
    )
    columns = (
        standing.active,
        tuned.log_length - tuned.log_step,
        slowest,
        tuned.acceptance,
        tuned.further_decorrelation,
        standing.beta,
        standing.sharpness,
        standing.rounds,
        standing.aim,
    )
    stacked = torch.stack([column.double() for column in columns], dim=-1)
    return [IslandStatus(bool(active), *numbers) for active, *numbers in stacked.tolist()]


def _mean(rows: Sequence[IslandStatus]) -> IslandStatus:
    """The mean of the rows."""
    columns = zip(*(astuple(row)[1:] for row in rows), strict=True)
    return IslandStatus(True, *(sum(column) / len(rows) for column in columns))


def _moves_wanted(row: IslandStatus, rule: TuningRule) -> int:
    """The moves that a temperature needs; at beta = 1, those of which a round has a third."""
    if row.beta >= 1.0:
        return tuning.moves_needed(row.autocorrelation, rule.remembered, rule)
    if row.acceptance < tuning.POOR_ACCEPTANCE:
        return rule.most_moves
    further = tuning.moves_needed(row.autocorrelation, rule.left, rule) - 1
    return 1 + round(row.further_decorrelation * further)


def _moves_of(moves: int, row: IslandStatus, annealing: Annealing) -> int:
    """The moves that this island makes, where a temperature before beta = 1 has ``moves``."""
    if not row.active:
        return 0
    return moves_per_round(moves, annealing) if row.beta >= 1.0 else moves


def moves_per_round(moves: int, annealing: Annealing) -> int:
    """The moves of a round at beta = 1: a third of ``moves``, unless ``hmc_steps`` fixes M.

    With many rounds, more of them give more information on the posterior than longer ones.
    """
    return moves if annealing.hmc_steps is not None else -(-moves // _ROUND_DIVISOR)


def distance_left(row: IslandStatus, size: int) -> float:
    """The distance from ``beta`` to ``aim`` in steps that keep ``exp(-1)`` of the CESS each.

    A step keeps about ``exp(-(step sd(E))^2)``, so there are ``beta sd(E)`` such steps per e-fold
    of beta; for a Gaussian posterior in d = ``size`` dimensions that rises to ``sqrt(d / 2)``.
    """
    if row.beta >= 1.0:
        return 0.0
    e_folds = _UNKNOWN_E_FOLDS
    if row.beta > 0.0:
        least = _LEAST_E_FOLDS if row.aim < 1.0 else 0.0
        e_folds = max(math.log(row.aim) - math.log(row.beta), least)
    return max(row.sharpness, 0.6 * math.sqrt(size / 2.0)) * e_folds


def share_kept(distance: float, steps: float) -> float:
    """The share that each of ``steps`` equal steps over ``distance`` keeps; 0 without steps."""
    if distance == 0.0:
        return 1.0
    return math.exp(-((distance / steps) ** 2)) if steps > 0.0 else 0.0


@dataclass(frozen=True)
class BudgetPlan:
    """The ``remaining`` gradients of a budget, and the distance and rounds that they must cover."""

    remaining: int
    distance: float
    rounds: float  # at beta = 1, still to be made


def fit_budget(
    plan: BudgetPlan, length: int, moves: int, annealing: Annealing
) -> tuple[int, int, float]:
    """L, M and the number of steps of the inverse temperature that fit into a budget.

    Where the budget is short, there are fewer moves first (unless M is fixed), then larger steps
    that keep at least 0.1 of the CESS, then shorter trajectories, then steps that keep even less.
    Eight rounds at beta = 1, including those already made, are reserved as long as shorter
    trajectories make room for them; else two. Where not even these fit, the number of steps is 0.
    """
    remaining, distance = plan.remaining, plan.distance
    wanted = distance / math.sqrt(-math.log(annealing.target_cess))
    rounds, least_steps = max(plan.rounds, 1.0), 1.0 if distance > 0.0 else 0.0
    fewest = 1 if annealing.hmc_steps is None else moves
    for fewer in range(moves, fewest - 1, -1):
        spent = max(wanted, least_steps) * fewer + rounds * moves_per_round(fewer, annealing)
        if spent * length <= remaining:
            return length, fewer, wanted
    made = annealing.final_rounds - rounds
    enough = max(min(annealing.final_rounds, _MODERATE_FINAL_ROUNDS) - made, 1.0)
    for least, reserved in (
        (_LEAST_KEPT, enough),
        (_LEAST_KEPT, _LEAST_FINAL_ROUNDS),
        (0.0, _LEAST_FINAL_ROUNDS),
    ):
        for shorter in _lengths(length, annealing):
            steps = remaining / (shorter * fewest) - reserved
            if steps >= least_steps and share_kept(distance, steps) >= least:
                return shorter, fewest, steps
    for each in (fewest, 1):
        for shorter in _lengths(length, annealing, 1):
            if shorter * each <= remaining:
                return shorter, each, 0.0
    return length, 0, 0.0


def _lengths(length: int, annealing: Annealing, least: int = _LEAST_LENGTH) -> Sequence[int]:
    """The values of L to try, the largest first, down to ``least``; L itself if it is fixed."""
    if annealing.leapfrog_steps is not None:
        return (length,)
    return [n for n in reversed(LADDER) if min(least, length) <= n <= length]
