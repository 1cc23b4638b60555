"""Independent chains: inverse temperatures for chains that are too few to be a population.

Independent chains are not resampled, and their weights are not used. Their next inverse temperature
follows from running means and variances of each chain's own energies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from cogen_fast.support.layout import Array, OfEach

_GAIN = 0.2  # weight of the last move: the running moments cover about five moves


@dataclass(frozen=True)
class EnergyMoments:
    """Running mean and variance of each chain's energy over its moves, ``(B, N)`` float64."""

    mean: OfEach
    variance: Annotated[Tensor, Array("B N", low=0.0)]


def init(drawn: Tensor, chains: int) -> EnergyMoments:
    """The moments of ``chains`` prior draws, from energies ``drawn`` ``(B, chains or more)``.

    The variance is that of all finite energies of an observation. Where there is one energy only,
    its square is the variance, so that the first step is a small one.
    """
    if not bool(drawn.isfinite().all()):
        return _of_finite(drawn, chains)
    one = drawn.shape[-1] == 1
    variance = drawn**2 if one else drawn.var(-1, keepdim=True).expand(-1, chains).clone()
    return EnergyMoments(drawn[:, :chains].clone(), variance)


def _of_finite(drawn: Tensor, chains: int) -> EnergyMoments:
    rows = [row[row.isfinite()] for row in drawn]
    variance = torch.stack([row.var() if len(row) > 1 else (row**2).mean() for row in rows])
    return EnergyMoments(drawn[:, :chains].clone(), variance[:, None].expand(-1, chains).clone())


def update(spread: EnergyMoments, energy: Tensor, active: Tensor) -> EnergyMoments:
    """The moments after one move that led to ``energy`` ``(B, N)``, where ``active`` ``(B,)``."""
    change = energy - spread.mean
    variance = (1.0 - _GAIN) * (spread.variance + _GAIN * change * change)
    rows = active[:, None]
    return EnergyMoments(
        torch.where(rows, spread.mean + _GAIN * change, spread.mean),
        torch.where(rows, variance, spread.variance),
    )


def deviation(spread: EnergyMoments) -> Tensor:
    """Standard deviation of a chain's energy, by the mean variance of the chains, ``(B,)``."""
    return spread.variance.mean(-1).sqrt()


def next_beta(spread: EnergyMoments, beta: Tensor, kept: Tensor) -> Tensor:
    """The next inverse temperature ``beta + c / sd(E)``, at most 1, ``(B,)``.

    ``c = sqrt(-log kept)``: if energies were Gaussian with standard deviation ``sd(E)``, weights
    would keep the share ``kept`` of the conditional effective sample size.
    """
    constant = torch.sqrt(-torch.log(kept))
    return torch.clamp(beta + constant / deviation(spread).clamp(min=1e-300), max=1.0)
