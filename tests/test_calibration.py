"""The samples follow the posterior: calibration, and exact values of small models.

Seeds are fixed. Each bound states its share of false alarms among seeds, for correct code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from runs import both_backends
from torch import Tensor

from cogen_fast import Adaptive, cogenerate
from cogen_fast.experiments import calibration
from cogen_fast.experiments.calibration import (
    MODELS,
    AdaptiveDraw,
    Design,
    Model,
    PaperDraw,
    calibrate,
    exact_draws,
    five_gaussians,
    frozen_evidence,
    joint_distribution,
    linear_gaussian,
    linear_posterior,
    mean_misfit,
    one_per_population,
    p_chi_square,
    p_ecdf,
    z_scores,
)
from cogen_fast.methods.settings import keywords
from cogen_fast.sampler.annealing_plan import Annealing

pytestmark = pytest.mark.usefixtures("one_thread")

Array = npt.NDArray[np.float64]
FALSE_ALARM = 1e-3
SIMULATIONS = {"linear": 300, "gan-2d": 200, "conv-8": 48, "conv-8-noise": 24}
DRAWS = 7


# --- simulation-based calibration -----------------------------------------------------------------


def assert_calibrated(model: Model, draw: Any, count: int, tests: int) -> None:
    """Assert that every p-value exceeds one test's share of `FALSE_ALARM` (Bonferroni)."""
    found = calibrate(model, draw, Design(count, DRAWS), seed=4)
    low = {c.statistic: (c.p, c.histogram) for c in found if c.p < FALSE_ALARM / tests}
    assert not low


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMULATIONS)
def test_the_adaptive_method_is_calibrated(name: str) -> None:
    model = MODELS[name]()
    assert_calibrated(model, AdaptiveDraw(), SIMULATIONS[name], 4 * 2 * len(model.statistics))


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [AdaptiveDraw(evidence="frozen"), PaperDraw(chains=8, ais_steps=100)],
    ids=["frozen", "paper"],
)
def test_other_ways_are_calibrated_on_the_linear_model(draw: Any) -> None:
    model = linear_gaussian()
    assert_calibrated(model, draw, 200, 2 * 2 * len(model.statistics))


class Widened:
    """Posterior draws of the linear model whose standard deviation is wrong by a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, problem: Any, draws: int, seed: int, ids: Any) -> Tensor:
        mean, covariance, _ = linear_posterior(linear_gaussian(), problem.observation.spec.target)
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(mean), draws, len(covariance), generator=random).double()
        return (mean[:, None] + self.factor * noise @ torch.linalg.cholesky(covariance).T).float()


def test_exact_draws_are_calibrated_and_too_wide_ones_are_not() -> None:
    model = linear_gaussian()
    assert_calibrated(model, Widened(1.0), 1000, 2 * len(model.statistics))
    wide = calibrate(model, Widened(1.2), Design(1000, DRAWS), seed=4)
    assert min(c.p for c in wide) < FALSE_ALARM / (2 * len(model.statistics))


def test_p_values_by_hand() -> None:
    design = Design(40, 3)
    ranks = torch.tensor([0] * 16 + [1] * 8 + [2] * 8 + [3] * 8)
    assert design.bins == 4
    # Expected are 10 ranks in each bin. Chi square is (36 + 3 * 4) / 10 = 4.8, which with 3 degrees
    # of freedom has the p-value 0.187 in a table.
    assert p_chi_square(ranks, design) == pytest.approx(0.1870, abs=5e-4)
    # After the first bin the distribution function is 0.4, where 0.25 is expected.
    assert p_ecdf(ranks, design) == pytest.approx(2.0 * math.exp(-2.0 * 40 * 0.15**2))
    assert p_chi_square(torch.arange(40) % 4, design) == 1.0
    assert p_ecdf(torch.arange(40) % 4, design) == 1.0


@pytest.mark.parametrize(("count", "draws", "bins"), [(1000, 15, 16), (48, 7, 8), (30, 7, 4)])
def test_bins_expect_at_least_five(count: int, draws: int, bins: int) -> None:
    assert Design(count, draws).bins == bins
    assert count / bins >= calibration.LEAST_EXPECTED


def test_particles_are_chosen_by_their_weights() -> None:
    weights = torch.tensor([0.1, 0.0, 0.6, 0.3]).expand(1, 20_000, 4)
    latents = torch.arange(4.0)[:, None].expand(1, 20_000, 4, 1)
    shares = (
        torch.bincount(one_per_population(latents, weights, 1).flatten().long(), minlength=4)
        / 20_000
    )
    # The standard errors are at most sqrt(0.24 / 20,000) = 0.0035; the bound is five of these.
    torch.testing.assert_close(shares, weights[0, 0], rtol=0.0, atol=0.0175)
    assert shares[1] == 0.0


@pytest.mark.parametrize(("arguments", "name"), [((5, 7), "simulations"), ((100, 0), "draws")])
def test_a_design_names_the_argument_at_fault(arguments: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Design(*arguments)


# --- parts ----------------------------------------------------------------------------------------
# One score exceeds 4.5 for 7e-6 of seeds, and one of nine for 6e-5.


@both_backends
def test_the_joint_distribution_of_latents_and_data_stays(backend: str) -> None:
    assert joint_distribution(backend).abs().max() < 4.5


@both_backends
def test_one_move_keeps_exact_draws_exact(backend: str) -> None:
    assert exact_draws(backend).abs().max() < 4.5


@pytest.mark.slow
@both_backends
def test_frozen_evidence_is_unbiased_on_the_linear_model(backend: str) -> None:
    annealing = Annealing(target_cess=0.7, final_rounds=1)
    assert frozen_evidence(backend, annealing=annealing, particles=32).abs() < 4.5


def test_z_scores_by_hand() -> None:
    values = torch.tensor([[1.0, 3.0], [2.0, 3.0], [3.0, 6.0]])
    expected = torch.tensor([2.0 * 3**0.5, 3**0.5 * 4.0 / 3**0.5])
    torch.testing.assert_close(z_scores(values, 0.0), expected)


# --- the misfit, which says first where moves are too few or a stop has chosen --------------------


@pytest.mark.slow
@pytest.mark.parametrize("chains", [16, 64])
def test_the_misfit_of_the_samples_is_that_of_the_posterior(chains: int) -> None:
    # All particles enter, and only the means over data sets are independent. A rule that stopped a
    # population where its energies look settled would shift the mean by 0.07 (16 particles) or 0.04
    # (64), which is eight standard errors.
    model, populations = linear_gaussian(), 4
    _, x = model.simulate(300, 5)
    result = cogenerate(
        model.generator,
        x,
        model.mask,
        method=Adaptive(populations=populations),
        noise_std=model.noise,
        chains=chains,
        seed=6,
        progress=False,
    )
    means = result.energies.mean(-1) - mean_misfit(model, x)
    # A finite population has a bias of order 1 / N; 0.1 / N is allowed beside four standard errors.
    error = float(means.std()) / len(means) ** 0.5
    assert abs(float(means.mean())) < 4.0 * error + 0.1 / chains


def test_the_mean_misfit_is_that_of_exact_draws() -> None:
    model = linear_gaussian()
    _, x = model.simulate(1, 5)
    mean, covariance, _ = linear_posterior(model, x)
    noise = torch.randn(50_000, 5, generator=torch.Generator().manual_seed(0)).double()
    z = mean + noise @ torch.linalg.cholesky(covariance).T
    output = torch.nn.functional.linear(
        z, model.generator.weight.double(), model.generator.bias.double()
    )
    misfit = ((output - x.double())[:, :3] ** 2).sum(-1) / (2.0 * model.noise**2)
    assert z_scores(misfit, mean_misfit(model, x)).abs() < 4.0


# --- the 2-D GAN against quadrature ---------------------------------------------------------------

OBSERVED = 0.309  # cos 72 degrees, which is x1 of two of the five Gaussians
EDGES = np.linspace(-1.4, 1.4, 29)


class Exact:
    """Posterior of the hidden coordinate by quadrature: shares of bins and modes, and evidence."""

    def __init__(self, observed: float) -> None:
        model = five_gaussians()
        line = torch.linspace(-6.0, 6.0, 1201)
        z = torch.cartesian_prod(line, line)
        with torch.no_grad():
            x = model.generator(z).double()
        log_prior = -0.5 * (z.double() ** 2).sum(-1) - math.log(2.0 * math.pi)
        misfit = 0.5 * ((x[:, 0] - observed) / model.noise) ** 2
        mass = (torch.exp(log_prior - misfit) * float(line[1] - line[0]) ** 2).numpy()
        hidden = x[:, 1].numpy()
        self.shares = self.bins(hidden, mass)
        self.modes = np.array([mass[hidden < -0.5].sum(), mass[hidden > 0.5].sum()]) / mass.sum()
        self.log_normaliser = float(np.log(mass.sum()))

    @staticmethod
    def bins(hidden: Array, mass: Array) -> Array:
        counts, _ = np.histogram(hidden, EDGES, weights=mass)
        return counts / mass.sum()


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(OBSERVED)


def sample_plane(**options: Any) -> Any:
    model = five_gaussians()
    known = np.array([OBSERVED, np.nan], dtype=np.float32)
    return cogenerate(
        model.generator,
        known,
        model.mask,
        **keywords({"noise_std": model.noise, "progress": False, **options}),
    )


@pytest.mark.slow
@pytest.mark.parametrize("chains", [100, 1000, 10_000])
def test_the_hidden_coordinate_comes_nearer_with_more_particles(chains: int, exact: Exact) -> None:
    # With E|error| = sd sqrt(2 / pi), N independent draws have a mean total variation distance of
    # sum_b sqrt(p_b (1 - p_b) / (2 pi N)). Particles share ancestors: about a third as many roots
    # are left, so that the distance is up to sqrt(3) times as large. The factor 2.5 leaves room for
    # its own scatter.
    result = sample_plane(chains=chains, seed=1)
    hidden = result.images[0, :, 1].double().numpy()
    distance = 0.5 * np.abs(exact.bins(hidden, np.ones(chains)) - exact.shares).sum()
    p = exact.shares
    assert distance < 2.5 * np.sqrt(p * (1.0 - p) / (2.0 * math.pi * chains)).sum()


@pytest.mark.slow
def test_modes_are_kept_in_their_shares(exact: Exact) -> None:
    # The standard error follows from the scatter of 400 independent populations of 32.
    populations, chains = 400, 32
    assert (exact.modes > 0.1).all()  # both modes have a considerable share
    result = sample_plane(chains=chains, populations=populations, seed=2)
    hidden = result.images[0, :, 1].double().reshape(populations, chains)
    shares = torch.stack([(hidden < -0.5), (hidden > 0.5)], -1).double().mean(1)
    assert z_scores(shares, torch.from_numpy(exact.modes)).abs().max() < 4.0


@pytest.mark.slow
def test_frozen_evidence_is_unbiased_on_the_plane(exact: Exact) -> None:
    # One population's estimate has an error of some tens of percent. 400 observations, equal except
    # for their random numbers, give the mean of 400 independent unbiased estimates.
    model = five_gaussians()
    known = np.tile(np.array([OBSERVED, np.nan], dtype=np.float32), (400, 1))
    result = cogenerate(
        model.generator,
        known,
        model.mask,
        method=Adaptive(evidence="frozen"),
        noise_std=model.noise,
        chains=32,
        seed=3,
        progress=False,
    )
    ratios = (result.log_normaliser - exact.log_normaliser).exp()
    assert z_scores(ratios, 1.0).abs() < 4.0
    error = float(ratios.std()) / len(ratios) ** 0.5
    assert error < 0.05
