"""Best fits beside the samples: how many, how deep, and from where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from cogen_fast.methods import prior_draws
from cogen_fast.methods.loop import Outcome
from cogen_fast.methods.optimise import lbfgs
from cogen_fast.problem.problem import Problem
from cogen_fast.results.result import GRADIENT_COST
from cogen_fast.support.arguments import check_whole, shown

Polish = int | Literal["auto"]
_SHALLOW, _DEEP, _DEEPEST = 30, 120, 400  # gradients of L-BFGS from a sample
_MUCH_DEEPER = 3  # times, where there are many measurements and a budget
_MANY = 4  # measurements for each latent
_OF_RUN = 8  # without a budget, one part of what the run took, at least
_OF_BUDGET, _OF_SMALL = 0.4, 0.55  # up to 240 gradients, what a deep fit is worth
_LEFT = 2  # gradients of each chain, at least, for samples
_OF_FITS = 4  # of lone chains, one part goes to prior draws to start from
_SEED = 0xD1B54A32D192ED03


@dataclass(frozen=True)
class Fits:
    """``steps`` of L-BFGS from every sample, or what ``spend`` gradients of all are enough for.

    With neither given, both are decided by what the run has taken.
    """

    steps: int | None = None
    spend: int | None = None


@dataclass(frozen=True)
class _Made:
    """``polish`` steps from each of ``fits`` starts, some of them of ``fit_draws`` prior draws."""

    polish: int
    fits: int
    fit_draws: int = 0


NONE: dict[str, int] = vars(_Made(0, 0))
"""The settings of a result without fits."""


def checked(polish: Any) -> Polish:
    """A whole number of steps, or "auto". TypeError or ValueError naming the argument."""
    if isinstance(polish, str):
        if polish != "auto":
            raise ValueError(f'polish: expected a whole number or "auto", got {shown(polish)}')
        return "auto"
    return check_whole("polish", polish, 0)


def planned(polish: Polish, budget: int | None, chains: int) -> tuple[Fits | None, int | None]:
    """The fits, and what they leave of ``budget``, in gradients of each of ``chains`` chains."""
    if polish == "auto":
        if budget is None:
            return Fits(), None
        whole = budget * chains
        spend = max(int(_OF_BUDGET * whole), min(int(_OF_SMALL * whole), 2 * _DEEP))
        spend = min(spend, max(budget - _LEFT, 0) * chains)
        return (Fits(spend=spend) if spend else None), budget - -(-spend // chains)
    steps = int(polish)
    if budget is not None:
        if budget <= steps:
            raise ValueError(f"polish: expected less than budget={budget}, got {steps}")
        budget -= steps
    return (Fits(steps) if steps else None), budget


def found(
    outcome: Outcome,
    problem: Problem,
    fits: Fits,
    seed: int,
    observation_ids: Sequence[int] | None,
) -> tuple[Outcome, dict[str, int]]:
    """The outcome with fits beside the samples, and how they were made, as settings.

    From the samples of lowest energy, in that order; where these are not all, from the best prior
    draws of the run, too.
    """
    made = _decided(fits, outcome, problem)
    starts, energy = outcome.latents, outcome.energies
    if made.fits < energy.shape[1] and outcome.best_draws is not None:
        assert outcome.best_energies is not None
        starts = torch.cat([starts, outcome.best_draws], 1)
        energy = torch.cat([energy, outcome.best_energies], 1)
    if made.fit_draws:
        stream = prior_draws.noise(problem, (seed + _SEED) % 2**64, observation_ids)
        draws, scores = prior_draws.scored(problem, stream, made.fit_draws)
        starts = torch.cat([starts, draws[:, 0]], 1)
        energy = torch.cat([energy, scores[:, 0]], 1)
    chosen = energy.argsort(stable=True, dim=-1)[:, : made.fits, None]
    starts = starts.gather(1, chosen.expand(-1, -1, starts.shape[-1]))
    latents, energies = lbfgs(problem.potential, starts, made.polish)
    if outcome.energy_unit is not None:
        energies = energies * outcome.energy_unit[:, None]
    note = f"fits beside the samples: {made.polish} gradients of L-BFGS from {_of(made, outcome)}"
    notes = [*outcome.notes, note]
    found = replace(outcome, fit_latents=latents, fit_energies=energies, notes=notes)
    return found, vars(made)


def _decided(fits: Fits, outcome: Outcome, problem: Problem) -> _Made:
    chains = outcome.energies.shape[1]
    if fits.steps is not None:
        return _Made(fits.steps, chains)
    if fits.spend is None:
        return _Made(max(_deep(problem), outcome.gradients // _OF_RUN), chains)
    # Few gradients of lone chains do not outdo as many prior draws.
    for_draws = fits.spend // _OF_FITS if outcome.log_weights is None else 0
    left = fits.spend - for_draws
    count = min(max(left // _deepest(problem), 1), chains)
    return _Made(left // count, count, GRADIENT_COST * for_draws)


def _deep(problem: Problem) -> int:
    """Steps that find a fit: twice as many as the directions that the data decide."""
    directions = min(_measured(problem), problem.adapter.latent_size)
    return min(_DEEP, max(_SHALLOW, 2 * directions))


def _deepest(problem: Problem) -> int:
    """More where data are many, for then a fit is decided in its weakest directions too."""
    deep, many = _deep(problem), _MANY * problem.adapter.latent_size
    return min(_DEEPEST, _MUCH_DEEPER * deep) if _measured(problem) >= many else deep


def _measured(problem: Problem) -> int:
    return int(problem.observation.num_observed.max())


def _of(made: _Made, outcome: Outcome) -> str:
    if made.fit_draws:
        return f"the best {made.fits} of them and of {made.fit_draws} prior draws"
    return "each" if made.fits == outcome.energies.shape[1] else f"the best {made.fits} of them"
