"""Misfits for data with outliers, to take the place of the squared error: ``misfit=Huber(0.1)``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cogen_fast.support.arguments import check_number


@dataclass(frozen=True)
class Huber:
    """Squared error near 0, absolute error beyond ``threshold`` noise deviations (Huber 1964).

    ``noise_std`` is the standard deviation of the Gaussian part, in units of the observation. The
    energy is ``sum h(r / noise_std)`` with ``h(u) = u^2 / 2`` up to the threshold and ``threshold
    (|u| - threshold / 2)`` beyond. 1.345 keeps 95 % of the efficiency for Gaussian noise. Raises
    ValueError naming the argument.
    """

    noise_std: float
    threshold: float = 1.345

    def __post_init__(self) -> None:
        for name in ("noise_std", "threshold"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), above=0.0))

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Energies ``(n,)`` of predictions ``(n, ...)`` of the targets ``(n, ...)``."""
        u = ((prediction - target) / self.noise_std).flatten(1).abs()
        beyond = self.threshold * (u - 0.5 * self.threshold)
        return torch.where(u <= self.threshold, 0.5 * u * u, beyond).sum(-1)


@dataclass(frozen=True)
class StudentT:
    """Minus the log density of Student's t, up to a constant: single wild values count little.

    ``scale`` is in units of the observation, ``degrees`` the degrees of freedom (4): the energy is
    ``(degrees + 1) / 2 sum log(1 + (r / scale)^2 / degrees)``. Raises ValueError naming the
    argument.
    """

    scale: float
    degrees: float = 4.0

    def __post_init__(self) -> None:
        for name in ("scale", "degrees"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), above=0.0))

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Energies ``(n,)`` of predictions ``(n, ...)`` of the targets ``(n, ...)``."""
        u = ((prediction - target) / self.scale).flatten(1)
        return 0.5 * (self.degrees + 1.0) * torch.log1p(u * u / self.degrees).sum(-1)
