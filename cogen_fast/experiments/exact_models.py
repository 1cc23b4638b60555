"""Models whose posterior, mean energy and log evidence are known, in any number of dimensions.

All outputs are observed, with Gaussian noise. `LinearGaussian` has one mode and any scales.
`TwoModes` has two modes along its first latent, whose masses are computed by quadrature.
`Elementwise` maps each latent separately, and is known by quadrature too; its maps are flat over
most of the prior, as networks of ReLUs are, or give each latent two modes or more.

`draws` runs a sampler on many data sets, which are drawn from the model, so that each is an
independent repetition. (Data of 0 alone would be too easy: their posterior has the prior's mean, so
annealing would not have to move the particles far.) `log_mean_and_error` estimates the evidence
from such repetitions, with its error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cogen_fast.ops.philox import Purpose, normals
from cogen_fast.results.result import Result
from cogen_fast.sampler.hmc import noise_stream
from cogen_fast.sampler.weights import log_mean_weight
from cogen_fast.support.warnings import without_diagnoses
from cogen_fast.tasks import cogenerate

_STIFFEST, _STIFF, _SOFT = (10.0, 3.0), 6, 0.3
_DECAY = 9.0
_DIRECTIONS = 4
_FURTHEST, _POINTS = 9.0, 2_000_001  # of the quadrature; both modes are at least 0.02 wide
_FEWER_POINTS = 20_001  # each of `MAPS` is smooth or linear over ten neighbouring points


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
    """A linear generator ``G(z) = (z Q) * a``, with Gaussian noise.

    ``scales`` ``(d,)`` float64 are the singular values a, ``noise`` is the noise's standard
    deviation. Q is a fixed random rotation, so that no axis of z is special. In the rotated
    coordinates ``y = z Q`` the posterior given data x is ``N(x a / noise^2 / (1 + r), 1 / (1 +
    r))``, with ``r = (a / noise)^2``. Data ``x`` are ``(B, d)``; the closed forms for them are
    ``(B,)`` float64.
    """

    scales: Tensor
    noise: float

    @classmethod
    def named(cls, name: str, size: int, noise: float) -> LinearGaussian:
        """The model with the scales of that name in `SCALES`."""
        return cls(SCALES[name](size), noise)

    @property
    def size(self) -> int:
        """The number of latents, and of outputs."""
        return len(self.scales)

    @cached_property
    def rotation(self) -> Tensor:
        """Q, ``(d, d)`` float64."""
        random = torch.Generator().manual_seed(0)
        square = torch.randn(self.size, self.size, generator=random, dtype=torch.float64)
        rotation: Tensor = torch.linalg.qr(square).Q
        return rotation

    @property
    def generator(self) -> Callable[[Tensor], Tensor]:
        """The generator, of rows of float32 latents."""
        rotation, scales = self.rotation.float(), self.scales.float()
        return lambda z: (z @ rotation.to(z.device)) * scales.to(z.device)

    @property
    def _ratios(self) -> Tensor:
        return (self.scales / self.noise) ** 2

    @property
    def variances(self) -> Tensor:
        """Variances of the posterior in the rotated coordinates, ``(d,)``."""
        return 1.0 / (1.0 + self._ratios)

    @property
    def _marginal(self) -> Tensor:
        """Variances of the data, ``(d,)``."""
        return self.scales**2 + self.noise**2

    def data(self, ids: Sequence[int]) -> Tensor:
        """A data set for each of ``ids``, drawn from the model, float32."""
        return (_normals(ids, self.size) * self._marginal.sqrt()).float()

    def means(self, x: Tensor) -> Tensor:
        """Means of the posterior in the rotated coordinates, ``(B, d)``."""
        return x.double() * self.scales / self.noise**2 * self.variances

    def mean_energy(self, x: Tensor) -> Tensor:
        """The posterior mean of the misfit energy."""
        residual = (x.double() - self.means(x) * self.scales) / self.noise
        return 0.5 * (residual**2 + self._ratios * self.variances).sum(-1)

    def log_evidence(self, x: Tensor) -> Tensor:
        """The log evidence of the data."""
        squares = x.double() ** 2 / self._marginal
        return -0.5 * (squares + torch.log(2.0 * math.pi * self._marginal)).sum(-1)

    def relative_variances(self, latents: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Mean squared deviations from the exact means over the exact variances, ``(B,)`` each.

        ``latents`` are ``(B, N, d)``. The mean is over chains, and its expected value is 1 for
        exact posterior draws. The keys are "all", over all directions, "stiffest", for the
        direction with the smallest variance, and four fixed random directions.
        """
        rotated = latents.double() @ self.rotation - self.means(x)[:, None]
        return _relative_variances(rotated, self.variances, "stiffest")


def _relative_variances(away: Tensor, variances: Tensor, first: str) -> dict[str, Tensor]:
    """Mean squares of ``away`` ``(B, N, d)`` over ``variances`` ``(d,)`` or ``(B, 1, d)``.

    ``away`` are deviations from the exact means; ``first`` is the key for the first coordinate.
    """
    random = torch.Generator().manual_seed(1)
    directions = torch.randn(away.shape[-1], _DIRECTIONS, generator=random, dtype=torch.float64)
    along = (away @ directions) ** 2 / (variances @ directions**2)
    each = away**2 / variances
    found = {"all": each.mean((1, 2)), first: each[..., 0].mean(1)}
    return found | {f"random {i}": along[..., i].mean(1) for i in range(_DIRECTIONS)}


def _kinked(z: Tensor) -> Tensor:
    return torch.where(z < 0.0, z + 1.5, 4.0 * (z - 1.0))


def _smooth(z: Tensor) -> Tensor:
    return (z + 1.5) * (z - 1.0) * (1.0 + 0.5 * torch.tanh(z))


FOLDS: dict[str, Callable[[Tensor], Tensor]] = {"two-modes": _kinked, "smooth": _smooth}
"""Maps of one latent that are 0 at -1.5, where they are flat, and at 1, where they are steep.

The prior prefers the mode at 1, and the greater width of the other mode makes up for that, so the
masses of the modes are decided late in the annealing. The first map is discontinuous at 0.
"""


@dataclass(frozen=True)
class TwoModes:
    """The first of d latents is observed through a map of `FOLDS`, as 0; the others directly."""

    name: str
    size: int
    noise: float = 0.1

    def generator(self, z: Tensor) -> Tensor:
        """The generator, of rows of latents."""
        return torch.cat([FOLDS[self.name](z[:, :1]), z[:, 1:]], 1)

    @cached_property
    def _masses(self) -> tuple[float, float]:
        """Integrals of the joint density with the first measurement, over z < 0 and over z >= 0."""
        z = torch.linspace(-_FURTHEST, _FURTHEST, _POINTS, dtype=torch.float64)
        squares = z**2 + (FOLDS[self.name](z) / self.noise) ** 2
        density = torch.exp(-0.5 * squares) / (2.0 * math.pi * self.noise)
        cell = 2.0 * _FURTHEST / (_POINTS - 1)
        return float(density[z < 0.0].sum()) * cell, float(density[z >= 0.0].sum()) * cell

    @property
    def right(self) -> float:
        """The mass of the posterior where the first latent is at least 0."""
        left, right = self._masses
        return right / (left + right)

    @property
    def _other_latents(self) -> LinearGaussian:
        return LinearGaussian(_iso(self.size - 1), self.noise)

    def data(self, ids: Sequence[int]) -> Tensor:
        """A data set ``(d,)`` for each of ``ids``: the first value is 0, the others are drawn."""
        return torch.nn.functional.pad(self._other_latents.data(ids), (1, 0))

    def log_evidence(self, x: Tensor) -> Tensor:
        """The log evidence ``(B,)`` of data ``(B, d)``."""
        return math.log(sum(self._masses)) + self._other_latents.log_evidence(x[:, 1:])


def _relu(z: Tensor) -> Tensor:
    return torch.relu(z - 1.0)


def _relu_deep(z: Tensor) -> Tensor:
    return torch.relu(2.0 * torch.relu(z - 0.3) - 0.5)


def _sigmoid(z: Tensor) -> Tensor:
    return torch.sigmoid(30.0 * (z - 1.0))


def _sine(z: Tensor) -> Tensor:
    return torch.sin(4.0 * z)


MAPS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "relu": (_relu, 0.5),
    "relu-deep": (_relu_deep, 0.5),
    "sigmoid": (_sigmoid, 0.5),
    "step": (_sigmoid, 1.0),
    "abs": (torch.abs, 0.5),
    "sine": (_sine, 0.5),
}
"""Maps of one latent, and the value around which the data lie.

The first four are flat over most of the prior, and only the remaining prior draws come near the
data. The last two reach the data at two values of each latent or more, between which no move goes.
"""


@dataclass(frozen=True)
class Elementwise:
    """Each of d latents is observed through one of the `MAPS`.

    If that map is flat over most of the prior, every latent must leave the flat part, on which
    gradients are 0 until a particle happens to be near its end.
    """

    name: str
    size: int
    noise: float = 0.1

    def generator(self, z: Tensor) -> Tensor:
        """The generator, of rows of latents."""
        return MAPS[self.name][0](z)

    def data(self, ids: Sequence[int]) -> Tensor:
        """A data set ``(d,)`` for each of ``ids``: the value of `MAPS`, plus noise."""
        return (MAPS[self.name][1] + self.noise * _normals(ids, self.size)).float()

    def _integrals(self, x: Tensor) -> Tensor:
        """Integrals over each latent of its joint density with ``x``: times 1, z, z^2 and E.

        ``x`` is ``(B, d)``, and the result ``(B, d, 4)``.
        """
        z = torch.linspace(-_FURTHEST, _FURTHEST, _FEWER_POINTS, dtype=torch.float64)
        outputs, log_prior = MAPS[self.name][0](z), -0.5 * z**2
        constant = 2.0 * _FURTHEST / (_FEWER_POINTS - 1) / (2.0 * math.pi * self.noise)
        rows = []
        for row in x.double():
            energy = 0.5 * ((row[:, None] - outputs) / self.noise) ** 2
            density = torch.exp(log_prior - energy) * constant
            parts = torch.stack([torch.ones_like(z), z, z**2])
            rows.append(torch.cat([density @ parts.T, (density * energy).sum(-1)[:, None]], -1))
        return torch.stack(rows)

    def mean_energy(self, x: Tensor) -> Tensor:
        """The posterior mean of the misfit energy."""
        found = self._integrals(x)
        return (found[..., 3] / found[..., 0]).sum(-1)

    def log_evidence(self, x: Tensor) -> Tensor:
        """The log evidence of the data."""
        return self._integrals(x)[..., 0].log().sum(-1)

    def relative_variances(self, latents: Tensor, x: Tensor) -> dict[str, Tensor]:
        """As `LinearGaussian.relative_variances`, but with "first", the first latent, as a key."""
        found = self._integrals(x)
        means = found[..., 1] / found[..., 0]
        variances = found[..., 2] / found[..., 0] - means**2
        return _relative_variances(latents.double() - means[:, None], variances[:, None], "first")


def _normals(ids: Sequence[int], size: int) -> Tensor:
    """Standard normals ``(B, d)`` float64, each row a function of its id alone."""
    stream = noise_stream(0, len(ids), torch.device("cpu"), ids)
    return normals(stream, Purpose.TASK, 1, size, torch.float64)[:, 0]


def draws(
    model: LinearGaussian | TwoModes | Elementwise,
    ids: Sequence[int],
    x: Tensor | None = None,
    **options: Any,
) -> Result:
    """Run `cogenerate` on the model's data of ``ids``, or on ``x`` ``(B, d)``.

    The ids select the noise of the run too. Arguments that ``options`` do not have take their
    defaults.
    """
    with without_diagnoses():
        return cogenerate(
            model.generator,
            model.data(ids) if x is None else x,
            torch.ones(model.size),
            noise_std=model.noise,
            latent_shape=model.size,
            observation_ids=ids,
            progress=False,
            **options,
        )


def log_mean_and_error(log_weights: Tensor) -> tuple[float, float]:
    """The log of the mean of independent weights ``(n,)``, and its jackknife standard error."""
    without = _leave_one_out(log_weights)
    return float(log_mean_weight(log_weights)), _jackknife(without)


def share_and_error(shares: Tensor, log_weights: Tensor) -> tuple[float, float]:
    """The weighted mean of shares ``(n,)`` of independent populations, and its jackknife error."""
    weights = torch.softmax(log_weights, -1)
    total = (weights * shares).sum()
    without = (total - weights * shares) / (1.0 - weights)
    return float(total), _jackknife(without)


def _leave_one_out(log_weights: Tensor) -> Tensor:
    """Log means of all weights except one, ``(n,)``."""
    top = log_weights.max()
    weights = torch.exp(log_weights - top)
    return torch.log((weights.sum() - weights) / (len(weights) - 1)) + top


def _jackknife(without: Tensor) -> float:
    """The standard error of a statistic, from its values with each observation left out."""
    return float(without.std(correction=0)) * math.sqrt(len(without) - 1)
