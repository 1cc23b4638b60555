"""Models whose posterior, mean energy and log evidence are known, in any number of dimensions.

Everything is observed and is 0, with Gaussian noise. `LinearGaussian` has one mode and any scales;
`TwoModes` has two along its first latent, of a mass that is told by quadrature. `draws` runs a
sampler on many equal observations, each a repetition of its own; `log_mean_and_error` tells how
far such repetitions fix the evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cogen_fast.result import Result
from cogen_fast.sampler.weights import log_mean_weight
from cogen_fast.tasks import cogenerate

_STIFFEST, _STIFF, _SOFT = (10.0, 3.0), 6, 0.3
_DECAY = 9.0
_DIRECTIONS = 4
_FURTHEST, _POINTS = 9.0, 2_000_001  # of the quadrature: both modes are at least 0.02 wide


def _iso(size: int) -> Tensor:
    return torch.ones(size, dtype=torch.float64)


def _stiff(size: int) -> Tensor:
    scales = torch.full((size,), _SOFT, dtype=torch.float64)
    count = min(_STIFF, size)
    scales[:count] = torch.linspace(*_STIFFEST, count, dtype=torch.float64)
    return scales


def _decay(size: int) -> Tensor:
    return _DECAY / torch.arange(1, size + 1, dtype=torch.float64)


SCALES: dict[str, Callable[[int], Tensor]] = {"iso": _iso, "stiff": _stiff, "decay": _decay}
"""Singular values of a linear generator of d latents, the largest first."""


@dataclass(frozen=True)
class LinearGaussian:
    """``G(z) = (z Q) * a`` for singular values ``a`` ``(d,)`` float64, and the noise's deviation.

    Q is a fixed random rotation, so that no axis of z is special. In the turned coordinates
    ``y = z Q`` the posterior is ``N(0, 1 / (1 + r))``, ``r = (a / noise)^2``.
    """

    scales: Tensor
    noise: float

    @classmethod
    def named(cls, name: str, size: int, noise: float) -> LinearGaussian:
        """The model with the scales of that name in `SCALES`."""
        return cls(SCALES[name](size), noise)

    @property
    def size(self) -> int:
        """Latents, and outputs."""
        return len(self.scales)

    @cached_property
    def turn(self) -> Tensor:
        """Q, ``(d, d)`` float64."""
        random = torch.Generator().manual_seed(0)
        square = torch.randn(self.size, self.size, generator=random, dtype=torch.float64)
        rotation: Tensor = torch.linalg.qr(square).Q
        return rotation

    @property
    def generator(self) -> Callable[[Tensor], Tensor]:
        """Of rows of float32 latents."""
        turn, scales = self.turn.float(), self.scales.float()
        return lambda z: (z @ turn) * scales

    @property
    def _ratios(self) -> Tensor:
        return (self.scales / self.noise) ** 2

    @property
    def variances(self) -> Tensor:
        """Of the posterior in the turned coordinates, ``(d,)``."""
        return 1.0 / (1.0 + self._ratios)

    @property
    def mean_energy(self) -> float:
        """Of the misfit, under the posterior."""
        return 0.5 * float((self._ratios * self.variances).sum())

    @property
    def log_evidence(self) -> float:
        """Of the measurements."""
        return -0.5 * float(torch.log(2.0 * math.pi * (self.scales**2 + self.noise**2)).sum())

    def relative_variances(self, latents: Tensor) -> dict[str, Tensor]:
        """Second moments of latents ``(B, N, d)`` over the exact ones, ``(B,)`` each; all are 1.

        Means over the chains: of all directions together, of the stiffest one, and of four fixed
        random ones.
        """
        turned = latents.double() @ self.turn
        random = torch.Generator().manual_seed(1)
        directions = torch.randn(self.size, _DIRECTIONS, generator=random, dtype=torch.float64)
        along = (turned @ directions) ** 2 / (self.variances @ directions**2)
        each = turned**2 / self.variances
        found = {"all": each.mean((1, 2)), "stiffest": each[..., 0].mean(1)}
        return found | {f"random {i}": along[..., i].mean(1) for i in range(_DIRECTIONS)}


def _kinked(z: Tensor) -> Tensor:
    return torch.where(z < 0.0, z + 1.5, 4.0 * (z - 1.0))


def _smooth(z: Tensor) -> Tensor:
    return (z + 1.5) * (z - 1.0) * (1.0 + 0.5 * torch.tanh(z))


FOLDS: dict[str, Callable[[Tensor], Tensor]] = {"two-modes": _kinked, "smooth": _smooth}
"""Maps of one latent that are 0 at -1.5, where they are flat, and at 1, where they are steep.

The prior prefers the mode at 1, the width of the other one makes up for it: what decides between
them comes late. The first jumps at 0.
"""


@dataclass(frozen=True)
class TwoModes:
    """The first of d latents is seen through a map of `FOLDS`, the others directly."""

    name: str
    size: int
    noise: float = 0.1

    def generator(self, z: Tensor) -> Tensor:
        """Of rows of latents."""
        return torch.cat([FOLDS[self.name](z[:, :1]), z[:, 1:]], 1)

    @cached_property
    def _masses(self) -> tuple[float, float]:
        """Joint density of the first measurement with a latent left and right of 0, integrated."""
        z = torch.linspace(-_FURTHEST, _FURTHEST, _POINTS, dtype=torch.float64)
        squares = z**2 + (FOLDS[self.name](z) / self.noise) ** 2
        density = torch.exp(-0.5 * squares) / (2.0 * math.pi * self.noise)
        cell = 2.0 * _FURTHEST / (_POINTS - 1)
        return float(density[z < 0.0].sum()) * cell, float(density[z >= 0.0].sum()) * cell

    @property
    def right(self) -> float:
        """Mass of the posterior right of 0."""
        left, right = self._masses
        return right / (left + right)

    @property
    def log_evidence(self) -> float:
        """Of the measurements."""
        others = LinearGaussian(_iso(self.size - 1), self.noise).log_evidence
        return math.log(sum(self._masses)) + others


def draws(model: LinearGaussian | TwoModes, ids: range, **options: Any) -> Result:
    """`cogenerate` on as many equal observations as there are ``ids``, which name their noise.

    What ``options`` do not say has its default.
    """
    return cogenerate(
        model.generator,
        torch.zeros(len(ids), model.size),
        torch.ones(model.size),
        noise_std=model.noise,
        latent_shape=model.size,
        observation_ids=ids,
        progress=False,
        **options,
    )


def log_mean_and_error(log_weights: Tensor) -> tuple[float, float]:
    """The log of the mean of independent weights ``(n,)``, and its jackknife standard error."""
    without = _without_each(log_weights)
    return float(log_mean_weight(log_weights)), _jackknife(without)


def share_and_error(shares: Tensor, log_weights: Tensor) -> tuple[float, float]:
    """The weighted mean of shares ``(n,)`` of independent populations, and its jackknife error."""
    weights = torch.softmax(log_weights, -1)
    total = (weights * shares).sum()
    without = (total - weights * shares) / (1.0 - weights)
    return float(total), _jackknife(without)


def _without_each(log_weights: Tensor) -> Tensor:
    """Log means of all but one, ``(n,)``."""
    top = log_weights.max()
    weights = torch.exp(log_weights - top)
    return torch.log((weights.sum() - weights) / (len(weights) - 1)) + top


def _jackknife(without: Tensor) -> float:
    """The standard error of a statistic from its values with each observation left out."""
    return float(without.std(correction=0)) * math.sqrt(len(without) - 1)
