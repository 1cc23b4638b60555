"""The prior pool and the state that begins from it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from annealed import (
    F64,
    INDEPENDENT,
    MIXED,
    ROUNDING,
    LinearGaussian,
    assert_mean,
    begun,
    native,
    normal,
)
from runs import both_backends
from torch import Tensor

from cogen_fast.sampler import hmc, pool, smc
from cogen_fast.sampler.pool import Start
from cogen_fast.sampler.weights import effective_sample_size, log_mean_weight

pytestmark = pytest.mark.usefixtures("one_thread")

STEEP = LinearGaussian(sigma=0.05)
"""An energy so sharp that no pool of some hundreds of draws reaches the largest first beta."""


def started(
    energy: Tensor,
    particles: int,
    count: int = 2,
    beta: Tensor | None = None,
    seed: int = 0,
    furthest: Tensor | None = None,
) -> Start:
    """A start from draws whose values are their indices, so that roots can be read off."""
    rows, size = energy.shape
    draws = torch.arange(size, dtype=F64).expand(rows, -1)[..., None].contiguous()
    stream = hmc.noise_stream(seed, rows, torch.device("cpu"))
    return pool.start(draws, energy, particles, stream, count, beta, furthest, native())


def scored(rows: int, size: int, target: LinearGaussian = STEEP, seed: int = 1) -> Tensor:
    return target.energy(normal(rows, size, 3, seed=seed))


# --- how far it goes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("particles", "draws"), [(8, 64), (16, 64), (16, 16), (16, 8), (16, 2)])
def test_a_pool_goes_as_far_as_its_effective_sample_size_allows(particles: int, draws: int) -> None:
    # The first beta is the one at which the pool's effective sample size is four for each particle,
    # but half of the pool at most.
    size = particles * draws
    energy = scored(3, size)
    found = started(energy, particles, count=1)
    effective = effective_sample_size(-found.beta[:, None] * energy)
    expected = min(4.0 * particles, 0.5 * size)
    assert effective.tolist() == pytest.approx([expected] * 3, rel=1e-6)
    assert (found.beta < 0.05).all()


@pytest.mark.parametrize("count", [2, 3])
def test_an_island_goes_as_far_as_the_others_pools_allow(count: int) -> None:
    energy = scored(2 * count, 256)
    own = started(energy, 8, count=1).beta.reshape(-1, count)
    found = started(energy, 8, count).beta.reshape(-1, count)
    for island in range(count):
        others = [k for k in range(count) if k != island]
        mean = own[:, others].log().mean(-1).exp()
        torch.testing.assert_close(found[:, island], mean)
    assert (own[:, 0] / own[:, 1] - 1.0).abs().min() > 0.01


def test_no_pool_goes_further_than_a_twentieth() -> None:
    for mild in (LinearGaussian(sigma=2.0).energy(normal(4, 256, 3, seed=1)), torch.zeros(4, 256)):
        assert started(mild.double(), 8).beta.tolist() == [0.05] * 4


def test_a_given_temperature_is_taken_as_it_is() -> None:
    beta = torch.tensor([0.0, 0.3, 1.0, 1e-4], dtype=F64)
    found = started(scored(4, 64), 8, beta=beta)
    assert torch.equal(found.beta, beta)


def test_it_goes_no_further_than_asked() -> None:
    energy = scored(4, 256)
    free = started(energy, 8).beta
    furthest = free * torch.tensor([0.5, 2.0, 1e-3, 1.0], dtype=F64)
    assert torch.equal(started(energy, 8, furthest=furthest).beta, torch.minimum(free, furthest))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_best_draw_is_kept(bad: float) -> None:
    energy = scored(4, 50)
    best = energy.argmin(-1)
    energy[0, 3], energy[2, 4] = bad, bad
    found = started(energy, 8)
    assert found.best_draw[:, 0].tolist() == best.tolist()
    assert torch.equal(found.best_energy, energy.gather(1, best[:, None])[:, 0])


# --- what it estimates ----------------------------------------------------------------------------


def test_the_estimates_of_a_pool_by_hand() -> None:
    energy, beta = scored(4, 50), torch.tensor([1e-3, 0.01, 0.05, 0.0], dtype=F64)
    found = started(energy, 8, beta=beta)
    w = (-beta[:, None] * energy).exp()
    torch.testing.assert_close(found.log_normaliser, w.mean(-1).log(), **ROUNDING)
    # The relative variance of a mean of n weights, with the sample variance that divides by n.
    variance = w.var(-1, correction=0) / w.mean(-1) ** 2 / 50.0
    torch.testing.assert_close(found.variance, variance, **ROUNDING)
    share = w / w.sum(-1, keepdim=True)
    mean = (share * energy).sum(-1)
    deviation = ((share * energy**2).sum(-1) - mean**2).sqrt()
    torch.testing.assert_close(found.deviation, deviation, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    "given", [pytest.param(True, marks=pytest.mark.slow), False], ids=["given", "by-the-others"]
)
def test_the_mean_weight_of_a_pool_is_unbiased(given: bool) -> None:
    # 40,000 pools have 16 draws each. Their betas are given, or follow from the draws of the other
    # island; in neither case do they depend on the pool's own draws.
    beta = torch.full((40_000,), 2e-3, dtype=F64) if given else None
    found = started(scored(40_000, 16), 2, beta=beta)
    ratios = (found.log_normaliser - STEEP.log_normaliser(found.beta)).exp()
    assert_mean(ratios, 1.0)
    assert ratios.std() / math.sqrt(len(ratios)) < 0.002
    # The squared ratio times the reported relative variance is unbiased but for the divisor n = 16,
    # where n - 1 = 15 is right.
    excess = (ratios - 1.0) ** 2 - ratios**2 * found.variance * 16.0 / 15.0
    assert_mean(excess, 0.0)
    assert excess.std() / math.sqrt(len(ratios)) < 0.05 * ratios.var()


@pytest.mark.slow
def test_a_beta_that_follows_from_its_own_draws_gives_a_bias() -> None:
    # This shows that the test above can fail: a single island must use its own draws.
    found = started(scored(40_000, 16), 2, count=1)
    ratios = (found.log_normaliser - STEEP.log_normaliser(found.beta)).exp()
    assert abs(ratios.mean() - 1.0) > 8.0 * ratios.std() / math.sqrt(len(ratios))


@pytest.mark.parametrize("count", [2, 4])
def test_particles_weighted_by_the_mean_weight_are_draws_at_their_temperature(count: int) -> None:
    # The mean weight of the pool times a mean over resampled particles is an unbiased estimate of
    # the normaliser times the exact mean.
    beta = torch.full((6000,), 0.01, dtype=F64)
    state = begun(
        STEEP, observations=6000 // count, islands=count, chains=4, draws=8, first_beta=beta
    )
    z = STEEP.standardised(state.hmc.latents, 0.01)
    ratios = (state.log_weights[:, 0] - STEEP.log_normaliser(0.01)).exp()
    for values, expected in ((z, 0.0), (z**2, 1.0)):
        for column in (values.mean(1) - expected).unbind(-1):
            assert_mean(ratios * column, 0.0)
            assert (ratios * column).std() / math.sqrt(6000) < 0.02


# --- who is taken ---------------------------------------------------------------------------------


def test_draws_are_taken_as_often_as_their_weights_say() -> None:
    # Systematic resampling takes a draw of share w either floor(N w) or ceil(N w) times.
    energy = scored(500, 40)
    found = started(energy, 24)
    assert found.roots.dtype is torch.int64
    assert torch.equal(found.latents[..., 0], found.roots.double())
    share = torch.softmax(-found.beta[:, None] * energy, -1)
    counts = torch.stack([(found.roots == k).sum(-1) for k in range(40)], -1)
    assert ((counts - 24.0 * share).abs() < 1.0).all()
    # The expected number is N w exactly. A count differs from it by less than 1, with a standard
    # deviation of at most 0.5, so that this bounds the mean over 500 rows; 40 draws are compared,
    # hence 4.5 standard errors.
    rest = (counts - 24.0 * share).mean(0)
    assert (rest.abs() < 4.5 * 0.5 / math.sqrt(500)).all()


def test_even_weights_take_every_draw() -> None:
    found = started(scored(50, 16), 16, beta=torch.zeros(50, dtype=F64))
    assert torch.equal(found.roots, torch.arange(16).expand(50, -1))
    assert found.log_normaliser.abs().max() < 1e-14
    assert found.variance.abs().max() < 1e-14


# --- scoring --------------------------------------------------------------------------------------


class Counting:
    """The energy ``|z|^2``, and the sizes of the batches it was asked for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.gradients = 0

    def energy(self, z: Tensor) -> Tensor:
        self.sizes.append(z.shape[0] * z.shape[1])
        return (z.double() ** 2).sum(-1)

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.gradients += 1
        return (z.double() ** 2).sum(-1), 2.0 * z


@pytest.mark.parametrize(("rows", "size"), [(1, 1000), (3, 100), (300, 5), (2, 1)])
def test_draws_are_scored_a_few_at_a_time_without_gradients(rows: int, size: int) -> None:
    target, z = Counting(), normal(rows, size, 2, seed=1)
    found = pool.scores(target, z)
    torch.testing.assert_close(found, (z**2).sum(-1), rtol=1e-14, atol=0)
    assert sum(target.sizes) == rows * size
    assert max(target.sizes) <= max(256, rows)
    assert target.gradients == 0


def test_a_potential_without_energies_alone_is_scored_by_its_gradients() -> None:
    target, z = Counting(), normal(2, 7, 2, seed=1)
    target.energy = None  # type: ignore[assignment]
    torch.testing.assert_close(pool.scores(target, z), (z**2).sum(-1), rtol=1e-14, atol=0)


# --- the state that begins from it ----------------------------------------------------------------


@both_backends
def test_a_state_begins_at_its_pool(backend: str) -> None:
    target = LinearGaussian(sigma=0.1)
    state = begun(target, observations=3, chains=8, draws=10, backend=backend)
    drawn = hmc.init(
        target, chains=80, latent_size=3, observations=6, dtype=F64, seed=3, backend=backend
    )
    rows = torch.arange(6)[:, None]
    assert state.hmc.latents.shape == (6, 8, 3)
    assert torch.equal(state.hmc.latents, drawn.latents[rows, state.roots])
    torch.testing.assert_close(state.hmc.energy, drawn.energy[rows, state.roots], **ROUNDING)
    torch.testing.assert_close(state.hmc.grad, drawn.grad[rows, state.roots], **ROUNDING)
    assert torch.equal(state.beta, state.first_beta)
    assert ((state.beta > 0.0) & (state.beta <= 0.05)).all()
    logs = -state.beta[:, None] * drawn.energy
    mean = log_mean_weight(logs)[:, None].expand(-1, 8)
    torch.testing.assert_close(state.log_weights, mean, **ROUNDING)
    assert (state.variance > 0.0).all()
    assert (state.lineage == 0.0).all()
    w = torch.softmax(logs, -1)
    deviation = ((w * drawn.energy**2).sum(-1) - (w * drawn.energy).sum(-1) ** 2).sqrt()
    torch.testing.assert_close(state.sharpness, state.beta * deviation, rtol=1e-8, atol=0)
    # Each draw costs a forward, then each particle a gradient.
    assert (state.spent, state.forwards) == (1, 10)
    assert not state.finished.any()


def test_every_draw_costs_a_forward_and_every_particle_a_gradient() -> None:
    target = LinearGaussian()
    state = begun(target, observations=3, chains=8, islands=2, draws=7)
    assert target.scored == 3 * 2 * 8 * 7
    assert target.calls == state.spent == 1
    assert state.forwards == 7


def test_draws_depend_on_the_observation_and_the_islands_place_only() -> None:
    # Draws depend on the observation's id and the island's place, not on the batch.
    together = begun(MIXED, observations=3, islands=2, observation_ids=[5, 0, 9])
    for row, name in enumerate([5, 0, 9]):
        alone = begun(MIXED.rows([row]), islands=2, observation_ids=[name])
        assert torch.equal(alone.hmc.latents, together.hmc.latents[2 * row : 2 * row + 2])
        assert alone.hmc.stream.observation.tolist() == [2 * name, 2 * name + 1]
    assert (together.hmc.latents[0] != together.hmc.latents[1]).all()


def test_given_latents_are_the_pool() -> None:
    latents = normal(4, 48, 3, seed=1)
    state = smc.init(STEEP, chains=16, islands=2, latents=latents)
    rows = torch.arange(4)[:, None]
    assert torch.equal(state.hmc.latents, latents[rows, state.roots])
    assert state.forwards == 3
    whole = smc.init(
        STEEP, chains=16, latents=latents[:, :16], first_beta=torch.zeros(4, dtype=F64)
    )
    assert torch.equal(whole.hmc.latents, latents[:, :16])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_draws_that_are_not_finite_have_no_weight(bad: float) -> None:
    # All finite energies are 0, so that the normaliser is the share of draws that have one.
    def energy(z: Tensor) -> Tensor:
        return torch.where(z[..., 0] > 0.5, bad, 0.0 * z.sum(-1))

    how: dict[str, Any] = {"chains": 160, "latent_size": 2, "observations": 2}
    drawn = hmc.init(lambda z: 0.0 * z.sum(-1), **how).latents
    state = smc.init(energy, latent_size=2, chains=16, draws=10)
    sound = drawn[..., 0] <= 0.5
    assert 0 < int(sound[0].sum()) < 160
    assert sound.gather(1, state.roots).all()
    expected = sound.double().mean(-1).log()
    torch.testing.assert_close(log_mean_weight(state.log_weights), expected, rtol=0, atol=1e-12)
    assert state.beta.tolist() == [0.05] * 2
    assert state.sharpness.tolist() == [0.0] * 2


@pytest.mark.parametrize("scale", [math.inf, 1e200])  # 1e200 is finite, but its square is not
@pytest.mark.parametrize("alone", [False, True])
def test_draws_of_which_none_is_finite_are_refused(scale: float, alone: bool) -> None:
    def energy(z: Tensor) -> Tensor:
        return z.double().square().sum(-1) * scale

    how: dict[str, Any] = {"starts": 160, "alone": True} if alone else {"draws": 10}
    with pytest.raises(ValueError, match=r"^energy: expected finite .* none of 160 on an island"):
        smc.init(energy, latent_size=2, chains=16, **how)


# --- independent chains have no pool --------------------------------------------------------------


def test_independent_chains_begin_at_the_prior() -> None:
    state = begun(MIXED, observations=3, chains=3, **INDEPENDENT)
    for name in ("beta", "first_beta", "log_weights", "variance", "sharpness"):
        assert (getattr(state, name) == 0.0).all()
    assert (state.best_energy <= state.hmc.energy.amin(-1)).all()
    torch.testing.assert_close(MIXED.energy(state.best_draw[:, None])[:, 0], state.best_energy)
