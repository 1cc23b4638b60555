"""How fast a population is annealed: L, M and the size of the next step, within a budget."""

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
_ROUND_DIVISOR = 3  # times fewer moves in a round at the posterior
_LEAST_LENGTH = 3  # of a trajectory: shorter ones walk at random
# Where a step keeps less, one particle in ten carries it. Steps down to this size cost less than
# shorter trajectories, which do not reach across what the posterior leaves open.
_LEAST_KEPT = 0.1
_ROUNDING = 1e-9
_UNKNOWN_E_FOLDS = 10.0  # e-folds of beta assumed before the first is known
_LEAST_E_FOLDS = 0.3  # e-folds that are planned for where beta is past what was aimed at
_MOST_GROWTH = math.e  # beta grows by no larger factor in one step
MASSES = ("curvature", "identity")


@dataclass(frozen=True)
class Annealing:
    """How a population goes from the prior to the posterior.

    ``kept`` is the share of the conditional effective sample size that a step of the inverse
    temperature keeps, if energies are Gaussian; particles are resampled where their effective
    number falls below ``resample_below`` of N. ``leapfrog_steps`` and ``hmc_steps`` fix L and M
    (None: tuned; L is common to all observations of a call). ``mass`` "curvature" is what gradients
    have shown of the posterior's precision (`curvature`).
    ``budget`` bounds the gradient evaluations of a particle; where it is short there are fewer
    moves, then larger steps, then shorter trajectories. There are ``final_rounds`` of moves at the
    posterior itself, where a small population's bias is forgotten: a number that looks at no
    energies, for to stop where they look settled would be to choose among samples. What a budget
    has left after these buys more of them. A round has a third of the moves that leave
    ``rule.remembered`` of correlations (or, within a budget, of those that temperatures have).
    """

    kept: float = 0.97
    resample_below: float = 0.5
    leapfrog_steps: int | None = None
    hmc_steps: int | None = None
    mass: str = "curvature"
    budget: int | None = None
    final_rounds: int = 30
    rule: TuningRule = field(default_factory=TuningRule)

    def __post_init__(self) -> None:
        for name in ("kept", "resample_below"):
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
    """Steps that keep less are forced by the budget: their weights say little."""
    return min(_LEAST_KEPT, annealing.kept * (1.0 - _ROUNDING))


@dataclass(frozen=True)
class AnnealingStatus:
    """What the pace is chosen by: where B observations stand.

    ``(B,)`` each: ``active``, ``beta``, ``sharpness`` (steps that keep ``exp(-1)`` per e-fold of
    beta) and ``rounds`` made at beta = 1; sharpness and ``tuning`` as others have found them.
    ``aim`` is the beta that a budget is planned to reach. ``size`` is the latents' d, ``spent`` the
    gradient evaluations of a particle so far.
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
    """``kept`` ``(B,)`` float64 (0 goes to the end at once) and M, ``moves`` ``(B,)`` int64.

    ``hmc_steps`` is the largest M (0: none is affordable), L common to all.
    """

    kept: Tensor
    moves: Tensor
    leapfrog_steps: int
    hmc_steps: int


@dataclass(frozen=True)
class _IslandStatus:
    """One observation's share of `AnnealingStatus`, on the host."""

    active: bool
    log_ratio: float  # of trajectory length to step size
    autocorrelation: float
    acceptance: float
    further_decorrelation: float
    beta: float
    sharpness: float
    rounds: float
    aim: float


def choose(standing: AnnealingStatus, annealing: Annealing) -> TemperaturePlan:
    """The pace of the next temperature. Reads from the device once."""
    rows = _to_host(standing)
    moving = [row for row in rows if row.active]
    if not moving:
        raise ValueError("state: expected an observation that is not finished, all are")
    length = annealing.leapfrog_steps or tuning.leapfrog_steps([row.log_ratio for row in moving])
    count = annealing.hmc_steps
    moves = [count or _moves_wanted(row, annealing.rule) for row in rows]
    kept = [annealing.kept] * len(rows)
    if annealing.budget is not None:
        # Whoever moves costs a gradient of all: a budget is a clock that a call shares.
        plan = _BudgetPlan(
            annealing.budget - standing.spent,
            max(_distance(row, standing.size) for row in moving),
            annealing.final_rounds - min(row.rounds for row in moving),
        )
        wanted = count or _moves_wanted(_mean(moving), annealing.rule)
        length, common, steps = _fit_budget(plan, length, wanted, annealing)
        moves = [common] * len(rows)
        kept = [
            min(annealing.kept, _kept_over(_distance(row, standing.size), steps)) for row in rows
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
    """The next inverse temperature ``(B,)`` of each of ``count`` islands of an observation.

    Energies that are Gaussian with standard deviation s keep ``exp(-(step s)^2)`` of the
    conditional effective sample size; s is the mean of what the other islands have found, as
    ``sharpness``, ``beta s`` at their own beta. One that is ahead of others has their deviation at
    their beta, where it is larger, and waits for them; one that is behind has it at its own.
    """
    own, each = islands.pairs(beta, count)
    deviation = islands.pairs(sharpness, count)[1] / torch.minimum(own, each)
    others = islands.mean_of_others_pairwise(deviation)
    step = torch.sqrt(-torch.log(kept)) / others.clamp(min=1e-300)
    grown = torch.minimum(beta + step, _MOST_GROWTH * beta).clamp(max=1.0)
    grown = torch.where(kept > 0.0, grown, 1.0)
    return torch.where(active & (beta < 1.0), grown, beta)


def _to_host(standing: AnnealingStatus) -> list[_IslandStatus]:
    tuned = standing.tuning
    # Weights correct for what is slow on the way; at the posterior itself nothing does.
    there = standing.beta >= 1.0
    slowest = torch.where(there, tuned.memory.amax(-1), tuning.overall_autocorrelation(tuned))
    columns = (
        standing.active,
        tuned.log_length - tuned.log_step,
        slowest,
        tuned.acceptance,
        tuned.forgetting,
        standing.beta,
        standing.sharpness,
        standing.rounds,
        standing.aim,
    )
    stacked = torch.stack([column.double() for column in columns], dim=-1)
    return [_IslandStatus(bool(active), *numbers) for active, *numbers in stacked.tolist()]


def _mean(rows: Sequence[_IslandStatus]) -> _IslandStatus:
    """What the rows are on average."""
    columns = zip(*(astuple(row)[1:] for row in rows), strict=True)
    return _IslandStatus(True, *(sum(column) / len(rows) for column in columns))


def _moves_wanted(row: _IslandStatus, rule: TuningRule) -> int:
    """How many a temperature needs, or a round at the posterior before it is divided."""
    if row.beta >= 1.0:
        return tuning.moves_needed(row.autocorrelation, rule.remembered, rule)
    if row.acceptance < tuning.POOR_ACCEPTANCE:
        return rule.most_moves
    further = tuning.moves_needed(row.autocorrelation, rule.left, rule) - 1
    return 1 + round(row.further_decorrelation * further)


def _moves_of(moves: int, row: _IslandStatus, annealing: Annealing) -> int:
    """How many of a temperature's ``moves`` are made where the observation stands."""
    if not row.active:
        return 0
    return moves_per_round(moves, annealing) if row.beta >= 1.0 else moves


def moves_per_round(moves: int, annealing: Annealing) -> int:
    """Those of one round at the posterior, where a temperature would have ``moves``, unless fixed.

    There are rounds enough, and more of them tell more about the posterior than longer ones.
    """
    return moves if annealing.hmc_steps is not None else -(-moves // _ROUND_DIVISOR)


def _distance(row: _IslandStatus, size: int) -> float:
    """How far an observation still is from where it is to go, in steps that keep ``exp(-1)``.

    A step keeps about ``exp(-(step sd(E))^2)``, and ``beta sd(E)`` of a Gaussian posterior in d
    dimensions, the steps per e-fold, goes to ``sqrt(d / 2)`` from below.
    """
    if row.beta >= 1.0:
        return 0.0
    e_folds = _UNKNOWN_E_FOLDS
    if row.beta > 0.0:
        least = _LEAST_E_FOLDS if row.aim < 1.0 else 0.0
        e_folds = max(math.log(row.aim) - math.log(row.beta), least)
    return max(row.sharpness, 0.6 * math.sqrt(size / 2.0)) * e_folds


def _kept_over(distance: float, steps: float) -> float:
    """The share that ``steps`` equal steps over ``distance`` keep; 0 where there are none."""
    if distance == 0.0:
        return 1.0
    return math.exp(-((distance / steps) ** 2)) if steps > 0.0 else 0.0


@dataclass(frozen=True)
class _BudgetPlan:
    """What must fit into the ``remaining`` gradients of a budget."""

    remaining: int
    distance: float
    rounds: float  # at the posterior, still to come


def _fit_budget(
    plan: _BudgetPlan, length: int, moves: int, annealing: Annealing
) -> tuple[int, int, float]:
    """L, M and the number of steps of the temperature that fit.

    Fewer moves first (unless M is fixed), then larger steps, then shorter trajectories, then steps
    larger still. Trajectories are shortened before less than eight rounds at the posterior, those
    already made among them, are left; where that does not suffice two are kept.
    """
    remaining, distance = plan.remaining, plan.distance
    wanted = distance / math.sqrt(-math.log(annealing.kept))
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
            if steps >= least_steps and _kept_over(distance, steps) >= least:
                return shorter, fewest, steps
    for each in (fewest, 1):
        for shorter in _lengths(length, annealing, 1):
            if shorter * each <= remaining:
                return shorter, each, 0.0
    return length, 0, 0.0


def _lengths(length: int, annealing: Annealing, least: int = _LEAST_LENGTH) -> Sequence[int]:
    """Lengths to choose from, the longest first: down to ``least``, unless L is fixed."""
    if annealing.leapfrog_steps is not None:
        return (length,)
    return [n for n in reversed(LADDER) if min(least, length) <= n <= length]
