"""Best fits beside the samples: how many, how many steps each, and from which starts."""

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
_LEAST, _MOST, _MOST_EXTENDED = 30, 120, 400  # gradients of a fit
_EXTENSION = 3  # factor of a fit's gradients, where a budget and many measurements are given
_MANY = 4  # measurements per latent
_PART_OF_RUN = 8  # without a budget, a fit takes at least this part (1/8) of the run's gradients
# Of a budget; of a small one more, until two fits of the largest usual length can be made.
_SHARE_OF_BUDGET, _SHARE_OF_SMALL = 0.4, 0.55
_KEPT_FOR_SAMPLES = 2  # gradients of each chain, at least
_PART_FOR_DRAWS = 4  # of independent chains, this part (1/4) goes to prior draws to start from
_SEED = 0xD1B54A32D192ED03


@dataclass(frozen=True)
class Fits:
    """A plan of fits: ``steps`` of L-BFGS from every sample, or ``spend`` gradients in total.

    With neither, the number of steps follows from the gradients which the run has taken.
    """

    steps: int | None = None
    spend: int | None = None


@dataclass(frozen=True)
class _Decided:
    """``polish`` steps from each of ``fits`` starts; ``fit_draws`` prior draws are candidates."""

    polish: int
    fits: int
    fit_draws: int = 0


NO_FITS: dict[str, int] = vars(_Decided(0, 0))
"""The settings of a result without fits."""


def checked(polish: Any) -> Polish:
    """``polish`` as an integer or "auto". ValueError, naming the argument, for anything else."""
    if isinstance(polish, str):
        if polish != "auto":
            raise ValueError(f'polish: expected a whole number or "auto", got {shown(polish)}')
        return "auto"
    return check_whole("polish", polish, 0)


def planned(polish: Polish, budget: int | None, chains: int) -> tuple[Fits | None, int | None]:
    """The plan of fits (None: no fits), and the rest of ``budget``, in gradients per chain."""
    if polish == "auto":
        if budget is None:
            return Fits(), None
        whole = budget * chains
        spend = max(int(_SHARE_OF_BUDGET * whole), min(int(_SHARE_OF_SMALL * whole), 2 * _MOST))
        spend = min(spend, max(budget - _KEPT_FOR_SAMPLES, 0) * chains)
        return (Fits(spend=spend) if spend else None), budget - -(-spend // chains)
    steps = int(polish)
    if budget is not None:
        if budget <= steps:
            raise ValueError(f"polish: expected less than budget={budget}, got {steps}")
        budget -= steps
    return (Fits(steps) if steps else None), budget


def with_fits(
    outcome: Outcome,
    problem: Problem,
    fits: Fits,
    seed: int,
    observation_ids: Sequence[int] | None,
) -> tuple[Outcome, dict[str, int]]:
    """The outcome with fits beside the samples, and the settings which describe the fits.

    The fits start from the samples of lowest energy, in that order. If not all samples are starts,
    the best prior draws of the run are candidates as well.
    """
    decided = _decided(fits, outcome, problem)
    starts, energy = outcome.latents, outcome.energies
    if decided.fits < energy.shape[1] and outcome.best_draws is not None:
        assert outcome.best_energies is not None
        starts = torch.cat([starts, outcome.best_draws], 1)
        energy = torch.cat([energy, outcome.best_energies], 1)
    if decided.fit_draws:
        stream = prior_draws.noise(problem, (seed + _SEED) % 2**64, observation_ids)
        draws, scores = prior_draws.scored(problem, stream, decided.fit_draws)
        starts = torch.cat([starts, draws[:, 0]], 1)
        energy = torch.cat([energy, scores[:, 0]], 1)
    chosen = energy.argsort(stable=True, dim=-1)[:, : decided.fits, None]
    starts = starts.gather(1, chosen.expand(-1, -1, starts.shape[-1]))
    latents, energies = lbfgs(problem.potential, starts, decided.polish)
    if outcome.energy_unit is not None:
        energies = energies * outcome.energy_unit[:, None]
    starting = _starts_in_words(decided, outcome)
    note = f"Fits were made with {decided.polish} gradients of L-BFGS from {starting}."
    notes = [*outcome.notes, note]
    fitted = replace(outcome, fit_latents=latents, fit_energies=energies, notes=notes)
    return fitted, vars(decided)


def _decided(fits: Fits, outcome: Outcome, problem: Problem) -> _Decided:
    chains = outcome.energies.shape[1]
    if fits.steps is not None:
        return _Decided(fits.steps, chains)
    if fits.spend is None:
        return _Decided(max(_steps(problem), outcome.gradients // _PART_OF_RUN), chains)
    # A few gradients of independent chains are worth no more than prior draws at the same cost.
    for_draws = fits.spend // _PART_FOR_DRAWS if outcome.log_weights is None else 0
    left = fits.spend - for_draws
    count = min(max(left // _extended_steps(problem), 1), chains)
    return _Decided(left // count, count, GRADIENT_COST * for_draws)


def _steps(problem: Problem) -> int:
    """Steps of a fit: twice the number of latent directions which the data determine."""
    directions = min(_measured(problem), problem.adapter.latent_size)
    return min(_MOST, max(_LEAST, 2 * directions))


def _extended_steps(problem: Problem) -> int:
    """Steps of a fit; more where many measurements determine its weakest directions, too."""
    usual, many = _steps(problem), _MANY * problem.adapter.latent_size
    return min(_MOST_EXTENDED, _EXTENSION * usual) if _measured(problem) >= many else usual


def _measured(problem: Problem) -> int:
    return int(problem.observation.num_observed.max())


def _starts_in_words(decided: _Decided, outcome: Outcome) -> str:
    if decided.fit_draws:
        return f"the best {decided.fits} of the samples and of {decided.fit_draws} prior draws"
    if decided.fits == outcome.energies.shape[1]:
        return "every sample"
    return f"the best {decided.fits} of the samples and of the run's best prior draws"
