"""Energies whose tempered posteriors are known, and runs of the adaptive sampler on them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cogen_fast.ops import dispatch
from cogen_fast.ops.dispatch import Ops
from cogen_fast.sampler import smc
from cogen_fast.sampler.annealing_plan import MASSES, Annealing
from cogen_fast.sampler.smc import Run, SMCState

all_masses = pytest.mark.parametrize("mass", MASSES)
F64 = torch.float64
ROUNDING: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}  # float64 over a few hundred operations


def native(backend: str = "native") -> Ops:
    return dispatch.resolve(backend, torch.device("cpu"))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def rotation(size: int, seed: int) -> Tensor:
    turn: Tensor = torch.linalg.qr(normal(size, size, seed=seed)).Q
    return turn


def assert_mean(values: Tensor, expected: float, errors: float = 4.0) -> None:
    """Assert that the mean of independent values is ``expected`` within so many standard errors.

    With 4 of them one correct test in 16,000 fails.
    """
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean().item() - expected) <= errors * error


class LinearGaussian:
    """``E(z) = |A z - y|^2 / (2 sigma^2)``, whose tempered posteriors are known Gaussians.

    ``calls`` counts the batches of gradients, ``scored`` the rows of energies without gradients.
    """

    def __init__(self, d: int = 3, measured: int = 2, sigma: float = 0.5) -> None:
        self.a, self.y, self.sigma = normal(measured, d, seed=7), normal(measured, seed=8), sigma
        self.calls = self.scored = 0

    def _residual(self, z: Tensor) -> Tensor:
        return z.double() @ self.a.T - self.y

    def energy(self, z: Tensor) -> Tensor:
        self.scored += z.shape[0] * z.shape[1]
        return (self._residual(z) ** 2).sum(-1) / (2.0 * self.sigma**2)

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        residual = self._residual(z)
        grad = residual @ self.a / self.sigma**2
        return (residual**2).sum(-1) / (2.0 * self.sigma**2), grad.to(z.dtype)

    def hessian(self) -> Tensor:
        return self.a.T @ self.a / self.sigma**2

    def posterior(self, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        covariance = torch.linalg.inv(beta * self.hessian() + torch.eye(self.a.shape[1], dtype=F64))
        return beta * covariance @ self.a.T @ self.y / self.sigma**2, covariance

    def log_normaliser(self, beta: Tensor | float = 1.0) -> Tensor:
        """``log E_prior[exp(-beta E)]``, of the shape of ``beta``.

        It is the log density of y under N(0, A A' + sigma^2 / beta), without the noise's constant.
        """
        ratio = torch.as_tensor(beta, dtype=F64)[..., None] / self.sigma**2
        seen, axes = torch.linalg.eigh(self.a @ self.a.T)
        along = (axes.T @ self.y) ** 2
        spread = 1.0 + ratio * seen
        return -0.5 * (ratio * along / spread + spread.log()).sum(-1)

    def standardised(self, z: Tensor, beta: float = 1.0) -> Tensor:
        """The latents in coordinates in which the posterior is a standard normal."""
        mean, covariance = self.posterior(beta)
        return (z - mean) @ torch.linalg.cholesky(torch.linalg.inv(covariance))


class Bowls:
    """``E(z) = sum_i k_i (z_i - c)^2 / 2``, where each observation has its own ``k`` and ``c``.

    Rows are the islands of the observations; those of one observation are neighbours.
    """

    def __init__(self, precisions: list[list[float]], centres: list[float]) -> None:
        self.k = torch.tensor(precisions, dtype=F64)[:, None]
        self.c = torch.tensor(centres, dtype=F64)[:, None, None]
        self.calls = 0

    def rows(self, chosen: list[int]) -> Bowls:
        return Bowls(self.k[chosen, 0].tolist(), self.c[chosen, 0, 0].tolist())

    def _at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        islands = len(z) // len(self.k)
        k, c = (each.repeat_interleave(islands, 0) for each in (self.k, self.c))
        away = z.double() - c
        return 0.5 * (k * away * away).sum(-1), (k * away).to(z.dtype)

    def energy(self, z: Tensor) -> Tensor:
        return self._at(z)[0]

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self._at(z)


MIXED = Bowls([[4.0, 1.0, 0.0], [400.0, 90.0, 30.0], [1e4, 1e4, 1.0]], [1.0, -0.7, 0.3])
"""Three observations, from mild to sharp."""

USUAL: dict[str, Any] = {"chains": 16, "latent_size": 3, "dtype": F64, "seed": 3}
INDEPENDENT: dict[str, Any] = {"alone": True, "islands": 1}


def sample(target: Any, annealing: Annealing | None = None, **how: Any) -> Run:
    return smc.run(target, annealing, **USUAL | how)


def begun(target: Any, **how: Any) -> SMCState:
    return smc.init(target, **USUAL | how)


def recorded(target: Any, annealing: Annealing | None = None, **how: Any) -> list[SMCState]:
    """The state at the start of a run and after each temperature."""
    states = [begun(target, **how)]
    smc.run(target, annealing, start=Run(states[0]), on_step=lambda run: states.append(run.state))
    return states


def everything(state: Any, row: int, prefix: str = "") -> dict[str, Tensor]:
    """The entries for one row of all tensors of a state, or of a part of it, by name."""
    found = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            found[prefix + field.name] = value[row]
        elif dataclasses.is_dataclass(value):
            found |= everything(value, row, f"{prefix}{field.name}.")
    return found


def changed(before: Any, after: Any, row: int) -> set[str]:
    """The names of the tensors that differ in one row; NaNs count as equal."""
    old, new = everything(before, row), everything(after, row)
    assert old.keys() == new.keys()
    return {n for n in old if not torch.equal(old[n].nan_to_num(), new[n].nan_to_num())}
