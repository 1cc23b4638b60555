"""How fast a population is annealed: L, M and the size of the next step, within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cogen_fast.arguments import check_choice, check_count, check_number
from cogen_fast.sampler import tuning
from cogen_fast.sampler.tuning import LADDER, Tuning, TuningRule

_LEAST_FINAL_ROUNDS = 2
LEAST_KEPT = 0.1
"""Where a step keeps less, one particle in ten carries it and the weights say little."""
_MODERATE_KEPT = 0.3  # longer trajectories are worth steps as large as this
_UNKNOWN_TRAVEL = 10.0  # e-folds of beta assumed before the first is known
MASSES = ("diagonal",)


@dataclass(frozen=True)
class Annealing:
    """How a population goes from the prior to the posterior.

    ``kept`` is the share of the conditional effective sample size that a step of the inverse
    temperature keeps; particles are resampled where their effective number falls below
    ``resample_below`` of N. ``leapfrog_steps`` and ``hmc_steps`` fix L and M (None: tuned, and
    common to all observations of a call). ``mass`` "diagonal" follows the population's variances.
    ``budget`` bounds the gradient evaluations of a particle; where it is short there are fewer
    moves, then larger steps, then shorter trajectories. There are ``final_rounds`` of moves at the
    posterior itself, where a small population's bias is forgotten: a number that looks at no
    energies, for to stop where they look settled would be to choose among samples.
    """

    kept: float = 0.5
    resample_below: float = 0.5
    leapfrog_steps: int | None = None
    hmc_steps: int | None = None
    mass: str | None = None
    budget: int | None = None
    final_rounds: int = 8
    rule: TuningRule = field(default_factory=TuningRule)

    def __post_init__(self) -> None:
        for name in ("kept", "resample_below"):
            share = check_number(name, getattr(self, name), above=0.0, below=1.0)
            object.__setattr__(self, name, share)
        for name in ("leapfrog_steps", "hmc_steps", "budget"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_count(name, getattr(self, name)))
        check_count("final_rounds", self.final_rounds)
        if self.mass is not None:
            check_choice("mass", self.mass, MASSES)


@dataclass(frozen=True)
class Standing:
    """What the pace is chosen by: where B observations stand.

    ``active``, ``beta`` and ``sharpness`` (steps that keep ``exp(-1)`` per e-fold of beta, 0 where
    unknown) are ``(B,)``; ``size`` is the latents' d, ``spent`` the gradient evaluations of a
    particle so far.
    """

    active: Tensor
    beta: Tensor
    sharpness: Tensor
    tuning: Tuning
    size: int
    spent: int


@dataclass(frozen=True)
class Pace:
    """``kept`` ``(B,)`` float64 (0 goes to the end at once), L and M (0: none is affordable)."""

    kept: Tensor
    leapfrog_steps: int
    hmc_steps: int


def choose(standing: Standing, annealing: Annealing) -> Pace:
    """The pace of the next temperature. Reads from the device once."""
    tuned = standing.tuning
    columns = torch.stack(
        [
            standing.active.double(),
            tuned.log_length - tuned.log_step,
            tuned.memory,
            standing.beta,
            standing.sharpness,
        ],
        dim=-1,
    ).tolist()
    rows = [row for row in columns if row[0] > 0.0]
    length = annealing.leapfrog_steps or tuning.leapfrog_steps([row[1] for row in rows])
    moves = annealing.hmc_steps or tuning.moves_needed([row[2] for row in rows], annealing.rule)
    if annealing.budget is None:
        return Pace(torch.full_like(standing.beta, annealing.kept), length, moves)
    travels = [_travel(row[3], row[4], standing.size) for row in columns]
    farthest = max(t for t, row in zip(travels, columns, strict=True) if row[0] > 0.0)
    remaining = annealing.budget - standing.spent
    length, moves, steps = _fit(remaining, farthest, length, moves, annealing)
    kept = [min(annealing.kept, _kept(travel, steps)) for travel in travels]
    return Pace(torch.tensor(kept, dtype=torch.float64).to(standing.beta.device), length, moves)


def _travel(beta: float, sharpness: float, size: int) -> float:
    """How far an observation still is from beta = 1, in steps that keep ``exp(-1)``.

    A step keeps about ``exp(-(step sd(E))^2)``, and ``beta sd(E)`` of a Gaussian posterior in d
    dimensions, the steps per e-fold, goes to ``sqrt(d / 2)`` from below.
    """
    if beta >= 1.0:
        return 0.0
    e_folds = -math.log(beta) if beta > 0.0 else _UNKNOWN_TRAVEL
    return max(sharpness, 0.6 * math.sqrt(size / 2.0)) * e_folds


def _kept(travel: float, steps: float) -> float:
    """The share that ``steps`` equal steps over ``travel`` keep; 0 where there are none."""
    if travel == 0.0:
        return 1.0
    return math.exp(-((travel / steps) ** 2)) if steps > 0.0 else 0.0


def _fit(
    remaining: int, travel: float, length: int, moves: int, annealing: Annealing
) -> tuple[int, int, float]:
    """L, M and the number of steps of the temperature that fit into ``remaining`` gradients.

    Fewer moves first, then larger steps, then shorter trajectories, then steps larger still.
    """
    wanted = travel / math.sqrt(-math.log(annealing.kept))
    affordable = int(remaining / ((wanted + annealing.final_rounds) * length))
    if affordable >= 1:
        return length, min(moves, affordable), wanted
    for least in (_MODERATE_KEPT, LEAST_KEPT, 0.0):
        for shorter in _shorter(length, annealing):
            steps = remaining / shorter - _LEAST_FINAL_ROUNDS
            if steps >= 1.0 and _kept(travel, steps) >= least:
                return shorter, 1, steps
    fixed = annealing.leapfrog_steps is not None
    lengths = (*_shorter(length, annealing), *(() if fixed else range(3, 0, -1)))
    last = next((n for n in lengths if n <= remaining), 0)
    return max(last, 1), min(last, 1), 0.0


def _shorter(length: int, annealing: Annealing) -> Sequence[int]:
    if annealing.leapfrog_steps is not None:
        return (length,)
    return [n for n in reversed(LADDER) if n <= length]
