"""The default sampler against posteriors known exactly, in the dimensions in which it is used.

``benchmarks/exact_posteriors.py`` is the long version. Repetitions are independent, so every bound
is one on a mean of known deviation: 4.5 of its standard errors, which 32 repetitions break with a
probability of 9e-5 (Student's t), 96 with 2e-5. An error of log evidence comes from a jackknife
over weights that are skewed; by simulation of log-normal ones with a deviation of 1 in the
logarithm, 5 of its errors are broken with 2e-4 (96 repetitions) to 1e-3 (32). All bounds together:
below 2 %, once, for seeds are fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from cogen_fast import Adaptive, Result
from cogen_fast.experiments.calibration import z_scores
from cogen_fast.experiments.exact_models import (
    FOLDS,
    MAPS,
    SCALES,
    Elementwise,
    LinearGaussian,
    TwoModes,
    draws,
    log_mean_and_error,
    share_and_error,
)
from cogen_fast.sampler import curvature, islands, smc, tuning
from cogen_fast.sampler.curvature import Curvature

pytestmark = pytest.mark.usefixtures("one_thread")

BOUND, EVIDENCE_BOUND = 4.5, 5.0
F64 = torch.float64


# --- the models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCALES)
def test_linear_models_by_exact_draws(name: str) -> None:
    # Expected moments follow from the textbook's formulas for ``x = A z + noise``, without rotated
    # coordinates.
    model = LinearGaussian.named(name, 12, 0.3)
    x, unit = model.data(range(4000)).double(), torch.eye(12, dtype=F64)
    matrix = (model.rotation * model.scales).T
    covariance = torch.linalg.inv(unit + matrix.T @ matrix / 0.3**2)
    means = x @ (covariance @ matrix.T / 0.3**2).T
    random = torch.Generator().manual_seed(3)
    spread = torch.randn(4000, 5, 12, generator=random, dtype=F64)
    latents = means[:, None] + spread @ torch.linalg.cholesky(covariance).T
    outputs = model.generator(latents.float()).double()
    energy = ((outputs - x[:, None]) ** 2).sum(-1).mean(-1) / (2.0 * 0.3**2)
    assert abs(z_scores(energy - model.mean_energy(x), 0.0)) < BOUND
    for found in model.relative_variances(latents, x).values():
        assert abs(z_scores(found, 1.0)) < BOUND
    law = torch.distributions.MultivariateNormal(torch.zeros(12, dtype=F64), _marginal(matrix))
    torch.testing.assert_close(model.log_evidence(x), law.log_prob(x))
    squares = (x * torch.linalg.solve(_marginal(matrix), x.T).T).sum(-1)
    assert abs(z_scores(squares, 12.0)) < BOUND


def _marginal(matrix: Tensor) -> Tensor:
    """Covariance of data ``A z + noise`` of a model at noise 0.3."""
    return matrix @ matrix.T + 0.3**2 * torch.eye(len(matrix), dtype=F64)


def test_data_are_a_function_of_their_numbers() -> None:
    for model in (LinearGaussian.named("decay", 5, 0.3), TwoModes("smooth", 5)):
        x = model.data(range(8))
        assert torch.equal(x[[3, 6]], model.data([3, 6]))
        assert len({float(each) for each in x[:, -1]}) == 8
    assert torch.equal(x[:, 0], torch.zeros(8))


def test_no_axis_is_special() -> None:
    turn = LinearGaussian.named("iso", 20, 0.1).rotation
    torch.testing.assert_close(turn @ turn.T, torch.eye(20, dtype=F64))
    assert turn.abs().max() < 0.9


def test_two_modes_by_their_closed_form() -> None:
    # Each half of the line belongs to one mode, except for exp(-100). There x is Gaussian, with the
    # variance of the noise and of the prior scaled by the slope.
    def density(x: float, variance: float) -> float:
        return math.exp(-0.5 * x * x / variance) / math.sqrt(2.0 * math.pi * variance)

    left, right = density(1.5, 1.0 + 0.1**2), density(1.0, 1.0 + (0.1 / 4.0) ** 2) / 4.0
    model = TwoModes("two-modes", 20)
    assert model.right == pytest.approx(right / (left + right), rel=1e-6)
    assert model.right == pytest.approx(0.317, abs=5e-4)
    others = 19 * math.log(density(0.0, 1.0 + 0.1**2))
    found = float(model.log_evidence(torch.zeros(1, 20)))
    assert found == pytest.approx(math.log(left + right) + others, rel=1e-6)
    assert found == pytest.approx(-19.21, abs=5e-3)


def prior_draws(model: TwoModes | Elementwise, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """100 sets of draws of two latents, their energies, and the density of ``x`` given each."""
    random = torch.Generator().manual_seed(5)
    z = torch.randn(100, 20_000, 2, generator=random, dtype=F64)
    off = model.generator(z.reshape(-1, 2)).reshape(z.shape) - x
    energy = 0.5 * (off**2).sum(-1) / model.noise**2
    return z, energy, torch.exp(-energy) / (2.0 * math.pi * model.noise**2)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDS)
def test_two_modes_by_prior_draws(name: str) -> None:
    model = TwoModes(name, 2, noise=0.4)
    x = torch.tensor([[0.0, 0.7]])
    z, _, density = prior_draws(model, x)
    evidence = math.exp(float(model.log_evidence(x)))
    assert abs(z_scores(density.mean(-1), evidence)) < BOUND
    right = (density * (z[..., 0] >= 0.0)).mean(-1)
    assert abs(z_scores(right, model.right * evidence)) < BOUND


def test_jackknife_errors() -> None:
    # Both estimates are means of 400 values, whose standard errors theory gives. A jackknife
    # estimate of these has a relative error of about 4 %.
    random = torch.Generator().manual_seed(6)
    weights = 1.0 + 0.2 * torch.randn(400, generator=random, dtype=F64)
    log_mean, error = log_mean_and_error(weights.log())
    assert log_mean == pytest.approx(math.log(float(weights.mean())))
    assert error == pytest.approx(float(weights.std() / weights.mean()) / 20.0, rel=0.02)
    shares = torch.rand(400, generator=random, dtype=F64)
    share, error = share_and_error(shares, torch.zeros(400, dtype=F64))
    assert share == pytest.approx(float(shares.mean()))
    assert error == pytest.approx(float(shares.std()) / 20.0)


# --- the sampler ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A linear model, and the number of repetitions of a default run."""

    name: str
    size: int
    noise: float
    repetitions: int
    centred: bool = False  # the data are 0, so that the posterior is centred at the prior's mean

    @property
    def model(self) -> LinearGaussian:
        return LinearGaussian.named(self.name, self.size, self.noise)

    @property
    def x(self) -> Tensor:
        """Data sets, one for each repetition."""
        drawn = self.model.data(range(self.repetitions))
        return torch.zeros_like(drawn) if self.centred else drawn

    def __str__(self) -> str:
        return f"{'centred-' * self.centred}{self.name}-{self.size}"

    def run(self) -> Result:
        return draws(self.model, range(self.repetitions), self.x)


CELLS = (
    Cell("iso", 20, 0.1, 96, centred=True),
    *(Cell(name, 20, 0.1, 96) for name in SCALES),
    *(Cell(name, 64, 0.1, 48) for name in SCALES),
    Cell("iso", 100, 0.3, 32),
    Cell("decay", 100, 0.1, 32),
)


QUICK, *LONG = CELLS


@pytest.fixture(
    scope="module",
    params=[QUICK, *(pytest.param(cell, marks=pytest.mark.slow) for cell in LONG)],
    ids=str,
)
def drawn(request: pytest.FixtureRequest) -> tuple[LinearGaussian, Result]:
    """A model, and independent default runs on it."""
    return request.param.model, request.param.run()


@pytest.mark.slow
def test_mean_energy_is_exact(drawn: tuple[LinearGaussian, Result]) -> None:
    model, result = drawn
    assert abs(z_scores(result.energies.mean(1) - model.mean_energy(result.x_obs), 0.0)) < BOUND


def test_variances_are_exact_in_every_direction(drawn: tuple[LinearGaussian, Result]) -> None:
    model, result = drawn
    chains = result.energies.shape[1]
    scores = {}
    for name, found in model.relative_variances(result.latents, result.x_obs).items():
        # Means of squares are skewed: if a few of them are small by chance, their spread is small,
        # too. A spread below that of independent draws is therefore replaced by the latter.
        squares = chains * (model.size if name == "all" else 1)
        spread = max(float(found.std()), math.sqrt(2.0 / squares))
        scores[name] = (float(found.mean()) - 1.0) / (spread / math.sqrt(len(found)))
    assert max(map(abs, scores.values())) < BOUND, scores


def off(model: LinearGaussian | TwoModes | Elementwise, result: Result) -> Tensor:
    """Differences of the log evidence from the exact one."""
    assert result.log_evidence is not None
    return result.log_evidence - model.log_evidence(result.x_obs)


def test_evidence_is_exact(drawn: tuple[LinearGaussian, Result]) -> None:
    together, error = log_mean_and_error(off(*drawn))
    assert abs(together) < EVIDENCE_BOUND * error
    assert error < 0.5  # a larger error would make the bound meaningless


def test_errors_of_evidence_cover_it(drawn: tuple[LinearGaussian, Result]) -> None:
    assert len(told(*drawn, least=0.5)) == len(drawn[1].energies)


def told(model: LinearGaussian | Elementwise, result: Result, least: float = 0.75) -> Tensor:
    """Errors of the evidence, told for that share of the runs at ``least``, which cover it.

    At a coverage of 90 %, 3.1 binomial deviations below are one chance in a thousand.
    """
    error, found = result.log_normaliser_error, off(model, result)
    assert error is not None
    given = int(error.isfinite().sum())
    assert given >= least * len(error)
    within = int((found.abs() <= 2.0 * error).sum())
    assert within >= 0.9 * given - 3.1 * math.sqrt(0.09 * given)
    return error


FLAT_CELLS = (
    ("relu", 8, 1),
    ("relu", 20, 1),
    ("relu-deep", 4, 1),
    ("relu-deep", 20, 1),
    ("sigmoid", 4, 1),
    ("step", 8, 1),
    ("relu", 8, 8),
    ("sigmoid", 8, 8),
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "populations"), FLAT_CELLS)
def test_evidence_of_generators_that_are_flat(name: str, size: int, populations: int) -> None:
    # The distribution of the evidence is skewed here, so that a sample mean cannot show whether it
    # is unbiased; the median is tested.
    model, count = Elementwise(name, size), 96 if populations == 1 else 32
    result = draws(model, range(count), method=Adaptive(populations=populations))
    told(model, result)
    assert off(model, result).abs().median() < (1.5 if populations == 1 else 0.6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "populations"), [("abs", 4, 1), ("abs", 20, 1), ("sine", 8, 1), ("abs", 20, 8)]
)
def test_equal_modes_between_which_no_move_leads(name: str, size: int, populations: int) -> None:
    # The modes are equal, so that particles which stay in theirs are correct samples, and the error
    # of the evidence must not be larger than with one mode.
    model, count = Elementwise(name, size), 96 if populations == 1 else 32
    result = draws(model, range(count), method=Adaptive(populations=populations))
    found = off(model, result)
    assert told(model, result).nanmedian() < 2.0 * float((found**2).mean().sqrt())
    together, error = log_mean_and_error(found)
    assert abs(together) < EVIDENCE_BOUND * error
    assert abs(z_scores(result.energies.mean(1) - model.mean_energy(result.x_obs), 0.0)) < BOUND
    for each in model.relative_variances(result.latents, result.x_obs).values():
        assert abs(z_scores(each, 1.0)) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_elementwise_models_by_prior_draws(name: str) -> None:
    model = Elementwise(name, 2, noise=0.4)
    x = torch.tensor([[0.4, 0.9]])
    z, energy, density = prior_draws(model, x)
    evidence = math.exp(float(model.log_evidence(x)))
    assert abs(z_scores(density.mean(-1), evidence)) < BOUND
    expected = float(model.mean_energy(x)) * evidence
    assert abs(z_scores((density * energy).mean(-1), expected)) < BOUND
    random = torch.Generator().manual_seed(6)
    chosen = torch.multinomial(density, 500, replacement=True, generator=random)
    latents = z.gather(1, chosen[..., None].expand(-1, -1, 2))
    for found in model.relative_variances(latents, x.expand(100, -1)).values():
        assert abs(z_scores(found, 1.0)) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDS)
def test_modes_have_their_masses(name: str) -> None:
    model, populations = TwoModes(name, 5), 32
    result = draws(model, range(4), method=Adaptive(populations=populations))
    assert result.log_weights is not None
    right = (result.latents[..., 0] >= 0.0).double().reshape(-1, 16)
    log_weights = result.log_weights.reshape(-1, 16)
    shares = (torch.softmax(log_weights, -1) * right).sum(-1)
    # The exact evidence is subtracted, so that the four data sets have equal weights.
    exact = model.log_evidence(result.x_obs).repeat_interleave(populations)
    relative = torch.logsumexp(log_weights, -1) - exact
    share, error = share_and_error(shares, relative)
    assert abs(share - model.right) < BOUND * error
    assert error < 0.05
    _, error = log_mean_and_error(relative)
    together, _ = log_mean_and_error(off(model, result))
    assert abs(together) < EVIDENCE_BOUND * error
    assert result.log_normaliser_error is not None
    assert (off(model, result).abs() < BOUND * result.log_normaliser_error).all()


# --- what the sampler must not do, planted --------------------------------------------------------


def learn_from_oneself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(islands, "mean_of_others", lambda values, count: values)


def go_on_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a bug: tuning continues at the posterior itself."""
    tune, learn, find = tuning.update, curvature.update, smc.turned

    def always(known: Curvature, grad: Tensor, beta: Tensor, active: Tensor) -> Curvature:
        return learn(known, grad, beta, torch.ones_like(active))

    def anew(state: smc.SMCState, memory: Tensor) -> smc.SMCState:
        turned = find(replace(state, beta=torch.zeros_like(state.beta)), memory)
        return replace(turned, beta=state.beta)

    monkeypatch.setattr(tuning, "update", lambda *a: tune(*a[:-1], torch.ones_like(a[-1])))
    monkeypatch.setattr(curvature, "update", always)
    monkeypatch.setattr(smc, "turned", anew)


@pytest.mark.slow
def test_a_mean_gradient_taken_for_curvature_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # The mean gradient then counts as curvature and increases the mass along the direction in which
    # the density moves. In 64 latents the evidence scatters by 5 nats.
    learn = curvature.update

    def about_zero(known: Curvature, grad: Tensor, beta: Tensor, active: Tensor) -> Curvature:
        return learn(known, torch.cat([grad, -grad], 1), beta, active)

    monkeypatch.setattr(curvature, "update", about_zero)
    cell = Cell("iso", 64, 0.1, 48)
    assert off(cell.model, cell.run()).std() > 2.0


PLANTED = Cell("decay", 20, 0.1, 240, centred=True)


@pytest.mark.slow
def test_step_size_and_length_of_ones_own_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    # With two islands, half of the corrections of an island's step size and length come from its
    # own moves, by way of the other island. Here all of them do.
    of_others = tuning.mean_of_others

    def own(known: tuning.Tuning, count: int) -> tuning.Tuning:
        theirs = of_others(known, count)
        return replace(theirs, log_step=known.log_step, log_length=known.log_length)

    monkeypatch.setattr(tuning, "mean_of_others", own)
    for cell in (PLANTED, Cell("stiff", 64, 0.1, 64)):
        result = cell.run()
        together, error = log_mean_and_error(off(cell.model, result))
        assert abs(together) < EVIDENCE_BOUND * error
        energy = result.energies.mean(1) - cell.model.mean_energy(result.x_obs)
        assert abs(z_scores(energy, 0.0)) < BOUND
        for found in cell.model.relative_variances(result.latents, result.x_obs).values():
            assert abs(z_scores(found, 1.0)) < BOUND


@pytest.mark.slow
def test_islands_that_learn_from_themselves_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    learn_from_oneself(monkeypatch)
    together, error = log_mean_and_error(off(PLANTED.model, PLANTED.run()))
    assert together > EVIDENCE_BOUND * error


@pytest.mark.slow
def test_self_tuning_at_the_posterior_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    learn_from_oneself(monkeypatch)
    go_on_learning(monkeypatch)
    # In 20 latents moves decorrelate so fast that no bias can be found, so 64 stiff ones are used.
    cell = Cell("stiff", 64, 0.1, 32)
    result = cell.run()
    energy = result.energies.mean(1) - cell.model.mean_energy(result.x_obs)
    assert abs(z_scores(energy, 0.0)) > BOUND
