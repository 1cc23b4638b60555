"""Estimates of many independent populations together: normalisers, their errors, and moments."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from annealed import LinearGaussian, all_masses, assert_mean, begun, sample
from runs import both_backends
from torch import Tensor

from cogen_fast.sampler import smc
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.smc import Run
from cogen_fast.sampler.weights import log_mean_weight

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclasses.dataclass(frozen=True)
class Many:
    """A pilot of many islands, in pairs, and its repetition under another seed."""

    target: LinearGaussian
    how: dict[str, Any]
    pilot: Run
    again: Run

    def ratios(self) -> Tensor:
        """Estimated over exact normaliser, of each island of the repetition.

        They are independent, with a mean of 1, whatever the pilot has chosen.
        """
        logs = log_mean_weight(self.again.state.log_weights) - self.target.log_normaliser()
        return logs.exp()

    def assert_mean(self, values: Tensor, expected: float, within: float) -> None:
        """Assert that the mean over islands is within four standard errors, which must be small."""
        assert_mean(values, expected)
        assert values.std() / math.sqrt(len(values)) < within


def many(observations: int, chains: int, annealing: Annealing, **model: Any) -> Many:
    target = LinearGaussian(**model)
    how: dict[str, Any] = {"chains": chains, "observations": observations}
    how["latent_size"] = target.a.shape[1]
    pilot = sample(target, annealing, seed=1, **how)
    how |= {"seed": 2, "first_beta": pilot.state.first_beta}
    again = sample(target, annealing, repeats=pilot.choices, **how)
    return Many(target, how, pilot, again)


@pytest.fixture(scope="module")
def usual() -> Many:
    """1,500 islands of 16 particles with default settings."""
    return many(750, 16, Annealing())


@pytest.fixture(scope="module")
def plain() -> Many:
    """1,000 islands with a unit mass."""
    return many(500, 16, Annealing(mass="identity"))


@pytest.fixture(scope="module")
def turned() -> Many:
    """800 islands in six dimensions, with large steps of beta."""
    return many(400, 16, Annealing(target_cess=0.7), d=6, measured=3)


@pytest.fixture(scope="module")
def fine() -> Many:
    """500 islands of 64 particles, which are resampled often."""
    return many(250, 64, Annealing(target_cess=0.9, resample_below=0.9))


every_setting = pytest.mark.parametrize("setting", ["usual", "plain", "turned", "fine"])


@pytest.mark.slow
@every_setting
def test_a_repetition_estimates_the_normaliser_without_bias(
    setting: str, request: pytest.FixtureRequest
) -> None:
    found: Many = request.getfixturevalue(setting)
    found.assert_mean(found.ratios(), 1.0, 0.015)
    assert (found.again.state.resamplings >= 1).all()


@pytest.mark.slow
@every_setting
def test_islands_weighted_by_their_normalisers_have_the_posterior_moments(
    setting: str, request: pytest.FixtureRequest
) -> None:
    # An island's estimate of the normaliser times its mean of f is unbiased for the exact product
    # (Del Moral 2004, theorem 7.4.2), however few particles it has.
    found: Many = request.getfixturevalue(setting)
    z, ratios = found.target.standardised(found.again.state.hmc.latents), found.ratios()
    size = z.shape[-1]
    products = (z[..., :, None] * z[..., None, :]).flatten(2)
    for values, expected in ((z, torch.zeros(size)), (products, torch.eye(size).flatten())):
        for column in (values.mean(1) - expected).unbind(-1):
            found.assert_mean(ratios * column, 0.0, 0.06)


@pytest.mark.slow
@every_setting
def test_an_island_estimates_the_variance_of_its_normaliser(
    setting: str, request: pytest.FixtureRequest
) -> None:
    # E[Z^2 V] is Var(Z) to first order in V. What is neglected is about V times V, below 0.04 of it
    # here, and is allowed for beside four standard errors.
    found: Many = request.getfixturevalue(setting)
    ratios, variance = found.ratios(), found.again.state.variance
    excess = ratios**2 * variance - (ratios - 1.0) ** 2
    error = float(excess.std()) / math.sqrt(len(excess))
    told = (ratios**2 * variance).mean().item()
    assert abs(excess.mean().item()) < 4.0 * error + told**2
    assert error < 0.12 * told


@pytest.mark.slow
def test_without_lineages_slow_moves_would_give_too_small_a_variance() -> None:
    # Without lineages, the variances of the factors are summed as if these were independent. They
    # are not: between two factors there is one move of a single leapfrog step.
    slow = Annealing(target_cess=0.9, leapfrog_steps=1, hmc_steps=1, mass="identity")
    found = many(200, 64, slow, sigma=0.3)
    state = begun(found.target, **found.how)
    for choice in found.pilot.choices:
        forgetful = dataclasses.replace(state, lineage=torch.zeros_like(state.lineage))
        state, _ = smc.step(forgetful, found.target, slow, choice=choice)
    assert torch.equal(state.log_weights, found.again.state.log_weights)
    ratios = found.ratios()
    alone, told = ((ratios**2 * v).mean() for v in (state.variance, found.again.state.variance))
    # The variance of 400 numbers has a relative standard error of about 7 %; the bound is four of
    # these.
    assert alone < 0.5 * ratios.var()
    assert abs(told / ratios.var() - 1.0) < 0.28


# --- runs that tune themselves --------------------------------------------------------------------


@pytest.mark.slow
@both_backends
@all_masses
def test_large_populations_have_the_posterior_moments(backend: str, mass: str) -> None:
    # The particles' means are taken without weights. Only means over the two islands of an
    # observation are independent, 40 of them. The bias of N particles is of order 1 / N, well below
    # the errors of these means.
    target = LinearGaussian(sigma=0.2)
    annealing = Annealing(mass=mass, target_cess=0.8)
    run = sample(target, annealing, chains=500, observations=40, backend=backend)
    mean, covariance = target.posterior()
    centred = run.state.hmc.latents - mean
    pairs = (centred[..., :, None] * centred[..., None, :]).flatten(2)
    values = torch.cat([centred, pairs], -1).mean(1).reshape(40, 2, -1).mean(1)
    expected = torch.cat([torch.zeros_like(mean), covariance.flatten()])
    errors = values.std(0) / math.sqrt(40)
    assert ((values.mean(0) - expected).abs() <= 5.0 * errors).all()
    assert (errors[:3] < 0.05 * covariance.diagonal().sqrt()).all()


@pytest.mark.slow
@all_masses
@pytest.mark.parametrize("sigma", [1.0, 0.3, 0.1, 0.03, 0.01], ids=lambda s: f"noise-{s:g}")
def test_any_noise_level_without_another_setting(sigma: float, mass: str) -> None:
    target = LinearGaussian(sigma=sigma)
    run = sample(target, Annealing(mass=mass), chains=100, observations=30, seed=6)
    z = target.standardised(run.state.hmc.latents)  # sharp and wide directions get the same scale
    values = torch.cat([z, z**2], -1).mean(1).reshape(30, 2, -1).mean(1)
    expected = torch.tensor([0.0] * 3 + [1.0] * 3, dtype=torch.float64)
    errors = values.std(0) / math.sqrt(30)
    assert ((values.mean(0) - expected).abs() <= 5.0 * errors).all()
    assert (errors < 0.06).all()
    assert not run.state.oversized_steps.any()


class Isotropic:
    """``E(z) = |z|^2 / (2 sigma^2)``: every direction is as narrow as every other."""

    def __init__(self, sigma: float) -> None:
        self.precision = sigma**-2

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * self.precision * (z.double() ** 2).sum(-1), self.precision * z


@pytest.mark.slow
@all_masses
def test_small_islands_are_right_in_more_dimensions_than_they_have_particles(mass: str) -> None:
    # 150 observations have two islands of eight particles each in 20 dimensions. With r = 1 /
    # sigma^2 the mean energy is d r / (1 + r) / 2 and the log normaliser -d log(1 + r) / 2.
    d, r = 20, 100.0
    how: dict[str, Any] = {"chains": 8, "latent_size": d, "observations": 150}
    state = sample(Isotropic(0.1), Annealing(mass=mass), **how).state
    energy = state.hmc.energy.mean(-1).reshape(150, 2).mean(-1)
    assert_mean(energy, 0.5 * d * r / (1.0 + r))
    assert energy.std() / math.sqrt(150) < 0.01 * d
    width = (state.hmc.latents**2).mean((1, 2)).reshape(150, 2).mean(-1)
    assert_mean(width * (1.0 + r), 1.0)
    ratios = (log_mean_weight(state.log_weights) + 0.5 * d * math.log(1.0 + r)).exp()
    error = float(ratios.std()) / math.sqrt(300)
    assert abs(ratios.mean().item() - 1.0) < 4.0 * error
    assert error < 0.15
