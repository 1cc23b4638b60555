"""Algorithm 1 against closed forms: posterior, evidence, weights, step sizes, presets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from runs import both_backends
from torch import Tensor, nn

from cogen_fast import (
    PRESETS,
    AdaptationRule,
    AveragePool,
    Compute,
    DiagnosisWarning,
    Operator,
    Paper,
    Result,
    Stride,
    cogenerate,
)
from cogen_fast.methods.settings import keywords
from cogen_fast.problem.problem import prepared
from cogen_fast.sampler import ais
from cogen_fast.sampler.schedule import Sigmoid
from cogen_fast.sampler.weights import effective_sample_size, log_mean_weight, normalised_weights
from cogen_fast.support.arguments import check_number

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET: dict[str, Any] = {"method": "paper", "progress": False}
D, CHAINS = 3, 1000


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_generator(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """``x = A z + b`` as an image (1, 4, 4)."""
    linear = nn.Linear(D, 16)
    linear.weight.data, linear.bias.data = normal(16, D, seed=1), 0.3 * normal(16, seed=2)
    return nn.Sequential(linear, nn.Unflatten(1, (1, 4, 4))).to(dtype)


def pooling(k: int) -> Tensor:
    """The matrix that averages k x k blocks of a 4 x 4 image."""
    rows = []
    for r in range(0, 4, k):
        for c in range(0, 4, k):
            image = torch.zeros(4, 4, dtype=torch.float64)
            image[r : r + k, c : c + k] = 1.0 / k**2
            rows.append(image.flatten())
    return torch.stack(rows)


MASK = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
STRIDED = torch.eye(16, dtype=torch.float64)[[0, 2, 8, 10]]
MIXING = normal(5, 16, seed=3) / 4.0


@dataclass(frozen=True)
class Case:
    """A way to observe a 4 x 4 image: the argument, its matrix, shapes, and noise of entries."""

    mask: Any
    matrix: Tensor
    shape: tuple[int, ...]
    noise: Any
    sigma: Tensor

    def measure(self, seed: int) -> Tensor:
        """Measurements of an output of the model itself, ``(M,)``."""
        linear = linear_generator()[0]
        x = linear(normal(D, seed=seed)).detach()
        clean = self.matrix @ x
        return clean + self.sigma * normal(len(clean), seed=seed + 100)

    def x_obs(self, seed: int) -> Tensor:
        values = self.measure(seed)
        if self.shape != (1, 4, 4):
            return values.reshape(self.shape)
        image = torch.full((16,), torch.nan, dtype=torch.float64)
        image[self.matrix.argmax(1)] = values
        return image.reshape(1, 4, 4)


POINT_THREE, POINT_FOUR = torch.tensor([0.3, 0.4], dtype=torch.float64)
SEEN = torch.eye(16, dtype=torch.float64)[MASK.flatten().bool()]
NOISE_MAP = torch.linspace(0.2, 0.8, 16, dtype=torch.float64).reshape(1, 4, 4)
CASES = {
    "mask": Case(MASK, SEEN, (1, 4, 4), 0.4, POINT_FOUR),
    "mask-noise-map": Case(MASK, SEEN, (1, 4, 4), NOISE_MAP, SEEN @ NOISE_MAP.flatten()),
    "pool": Case(AveragePool(2), pooling(2), (1, 2, 2), 0.3, POINT_THREE),
    "stride": Case(Stride(2), STRIDED, (1, 2, 2), 0.3, POINT_THREE),
    "operator": Case(
        Operator(lambda x: x.flatten(1) @ MIXING.to(x.dtype).T), MIXING, (5,), 0.3,
        POINT_THREE,
    ),
}  # fmt: skip


def closed_form(case: Case, y: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor, float]:
    """Posterior mean and covariance of z, and ``log E_prior[exp(-beta E)]``."""
    linear = linear_generator()[0]
    a, b = case.matrix @ linear.weight.detach(), case.matrix @ linear.bias.detach()
    precision = beta / case.sigma.double().expand(len(y)) ** 2
    covariance = torch.linalg.inv(torch.eye(D).double() + a.T @ (precision[:, None] * a))
    mean = covariance @ (a.T @ (precision * (y - b)))
    # The marginal of y - b is N(0, A A' + 1 / precision). The normaliser lacks the constant of the
    # noise's density.
    marginal = a @ a.T + torch.diag(1.0 / precision)
    residual = y - b
    quadratic = residual @ torch.linalg.solve(marginal, residual)
    log_ratio = torch.logdet(marginal) + precision.log().sum()
    return mean, covariance, float(-0.5 * quadratic - 0.5 * log_ratio)


def log_evidence(case: Case, y: Tensor) -> float:
    constant = -0.5 * torch.log(2 * math.pi * case.sigma.double().expand(len(y)) ** 2).sum()
    return closed_form(case, y)[2] + float(constant)


def assert_weighted_moments(
    latents: Tensor, log_weights: Tensor, mean: Tensor, covariance: Tensor
) -> None:
    """Weighted first and second moments within 5 standard errors (delta method: the variance of a
    self-normalised mean is sum w^2 (f - mean)^2)."""
    w = torch.softmax(log_weights, 0)
    centred = latents.double() - mean
    pairs = (centred[:, :, None] * centred[:, None, :]).flatten(1)
    values = torch.cat([centred, pairs], dim=1)
    expected = torch.cat([torch.zeros_like(mean), covariance.flatten()])
    found = (w[:, None] * values).sum(0)
    errors = (w[:, None] ** 2 * (values - found) ** 2).sum(0).sqrt()
    assert ((found - expected).abs() <= 5.0 * errors).all()


def log_mean_error(log_weights: Tensor) -> float:
    """Standard error of the log mean weight: the relative error of the mean of N weights."""
    w = torch.softmax(log_weights, 0)
    return math.sqrt(float((w * w).sum()) - 1.0 / len(w))


# --- closed forms -------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize(
    "adaptation", ["published", pytest.param("per-chain", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", CASES)
def test_linear_gaussian_posterior_and_evidence(name: str, adaptation: Any, backend: str) -> None:
    case = CASES[name]
    result = cogenerate(
        linear_generator(torch.float32),
        case.x_obs(5),
        case.mask,
        method=Paper(ais_steps=40, leapfrog_steps=6, step_size=0.08, adaptation=adaptation),
        noise_std=case.noise,
        chains=CHAINS,
        seed=1,
        progress=False,
        compute=Compute(backend=backend),
    )
    mean, covariance, log_normaliser = closed_form(case, case.measure(5))
    assert result.log_weights is not None
    assert result.log_normaliser is not None
    assert result.log_evidence is not None
    assert result.effective_sample_size is not None
    assert_weighted_moments(result.latents[0], result.log_weights[0], mean, covariance)
    error = log_mean_error(result.log_weights[0])
    assert error < 0.1
    assert abs(result.log_normaliser.item() - log_normaliser) <= 5.0 * error
    assert abs(result.log_evidence.item() - log_evidence(case, case.measure(5))) <= 5.0 * error
    assert result.reasons.keys().isdisjoint({"log_weights", "log_normaliser", "log_evidence"})


@both_backends
@pytest.mark.parametrize("name", CASES)
def test_energies_and_gradients_are_those_of_the_formula(name: str, backend: str) -> None:
    # A wrong gradient would leave the posterior exact and only lower the acceptance, so gradients
    # are compared here.
    case, net = CASES[name], linear_generator()
    with prepared(
        net, case.x_obs(5), case.mask, noise_std=case.noise, compute=Compute(backend=backend)
    ) as problem:
        z = normal(1, 6, D, seed=8)
        energy, grad = problem.potential.energy_and_grad(z)
    a, b = case.matrix @ net[0].weight.detach(), case.matrix @ net[0].bias.detach()
    weighted = (z @ a.T + b - case.measure(5)) / case.sigma.double() ** 2
    by_hand = 0.5 * (weighted**2 * case.sigma.double() ** 2).sum(-1)
    torch.testing.assert_close(energy, by_hand, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad, weighted @ a, rtol=1e-10, atol=1e-12)


@both_backends
def test_each_observation_of_a_batch_has_its_own_posterior(backend: str) -> None:
    case = CASES["mask"]
    seeds = (5, 6, 7)
    result = cogenerate(
        linear_generator(),
        torch.stack([case.x_obs(s) for s in seeds]),
        case.mask,
        method=Paper(ais_steps=40, leapfrog_steps=6, step_size=0.08),
        noise_std=case.noise,
        chains=500,
        progress=False,
        compute=Compute(backend=backend),
    )
    assert result.log_weights is not None
    assert result.log_evidence is not None
    for row, seed in enumerate(seeds):
        mean, covariance, _ = closed_form(case, case.measure(seed))
        assert_weighted_moments(result.latents[row], result.log_weights[row], mean, covariance)
        difference = result.log_evidence[row].item() - log_evidence(case, case.measure(seed))
        assert abs(difference) <= 5.0 * log_mean_error(result.log_weights[row])


@both_backends
def test_images_and_their_weighted_mean_are_those_of_the_posterior(backend: str) -> None:
    case = CASES["mask"]
    result = cogenerate(
        linear_generator(),
        case.x_obs(5),
        case.mask,
        method=Paper(ais_steps=40, leapfrog_steps=6, step_size=0.08),
        noise_std=case.noise,
        chains=CHAINS,
        progress=False,
        compute=Compute(backend=backend),
    )
    linear = linear_generator()[0]
    mean, covariance, _ = closed_form(case, case.measure(5))
    expected = linear(mean).detach().reshape(1, 1, 4, 4)
    spread = (linear.weight @ covariance @ linear.weight.T).detach().diagonal().sqrt()
    w = result.weights[0]
    values = result.images[0]
    found = result.mean(weighted=True)
    error = (w[:, None, None, None] ** 2 * (values - found) ** 2).sum(0).sqrt()
    assert ((found - expected).abs() <= 5.0 * error).all()
    # The relative error of a standard deviation is near sqrt(1 / (2 ESS)) for Gaussian outputs.
    ess = float(1.0 / (w * w).sum())
    ratio = result.std(weighted=True).flatten() / spread
    assert ((ratio - 1.0).abs() <= 5.0 * math.sqrt(0.5 / ess)).all()


@both_backends
def test_a_raw_schedule_estimates_the_normaliser_at_its_last_temperature(backend: str) -> None:
    case = CASES["mask"]
    schedule = Sigmoid(-4.0, 0.0, normalised=False)  # betas from just above 0.018 to 0.5
    result = cogenerate(
        linear_generator(),
        case.x_obs(5),
        case.mask,
        method=Paper(ais_steps=40, schedule=schedule, leapfrog_steps=6, step_size=0.08),
        noise_std=case.noise,
        chains=CHAINS,
        progress=False,
        compute=Compute(backend=backend),
    )
    assert result.beta_reached == pytest.approx(0.5, rel=1e-15)
    mean, covariance, log_normaliser = closed_form(case, case.measure(5), beta=0.5)
    assert result.log_weights is not None
    assert result.log_normaliser is not None
    assert_weighted_moments(result.latents[0], result.log_weights[0], mean, covariance)
    error = log_mean_error(result.log_weights[0])
    assert abs(result.log_normaliser.item() - log_normaliser) <= 5.0 * error
    # An estimate without the term from beta_0 = 0 to the first beta would fail:
    first = float(result.betas[0]) * closed_form(case, case.measure(5), beta=1e-6)[2] / 1e-6
    assert abs(first) > 5.0 * error
    assert result.log_evidence is None
    assert "0.5" in result.reasons["log_evidence"]


def test_a_bare_weight_gives_a_normaliser_but_no_evidence() -> None:
    case = CASES["mask"]
    settings: dict[str, Any] = {"chains": 6, "ais_steps": 5, **QUIET}
    by_noise = cogenerate(
        linear_generator(), case.x_obs(5), case.mask, **keywords({"noise_std": 0.4, **settings})
    )
    by_weight = cogenerate(
        linear_generator(),
        case.x_obs(5),
        case.mask,
        **keywords({"weight": 0.5 / 0.4**2, **settings}),
    )
    assert by_weight.log_normaliser is not None
    assert by_noise.log_normaliser is not None
    torch.testing.assert_close(by_weight.log_normaliser, by_noise.log_normaliser)
    assert by_weight.log_evidence is None
    assert "noise_std" in by_weight.reasons["log_evidence"]


# --- weights ------------------------------------------------------------------------------------


def energies_by_hand(latents: Tensor, y: Tensor, sigma: float) -> Tensor:
    linear = linear_generator()[0]
    x = latents @ linear.weight.detach().T + linear.bias.detach()
    return ((x @ SEEN.T - y) ** 2).sum(-1) / (2.0 * sigma**2)


@both_backends
@pytest.mark.parametrize(
    "schedule",
    [[0.3], [1.0], [0.0, 0.4], Sigmoid(-10.0, 2.0, normalised=False), "linear"],
    ids=["one-of-0.3", "one-of-1", "leading-zero", "raw-sigmoid", "linear"],
)
def test_log_weights_by_hand_from_the_recorded_latents(schedule: Any, backend: str) -> None:
    case = CASES["mask"]
    steps = None if isinstance(schedule, list) else 6
    result = cogenerate(
        linear_generator(),
        case.x_obs(5),
        MASK,
        method=Paper(
            ais_steps=steps, schedule=schedule, leapfrog_steps=3, step_size=0.1, keep_trace=True
        ),
        noise_std=0.4,
        chains=7,
        progress=False,
        compute=Compute(backend=backend),
    )
    assert result.trace is not None
    assert result.log_weights is not None
    betas = [0.0, *result.betas[:, 0].tolist()]  # the first term goes from beta_0 = 0
    assert result.trace.shape == (len(betas), 1, 7, D)
    expected = torch.zeros(1, 7, dtype=torch.float64)
    for t in range(1, len(betas)):
        energy = energies_by_hand(result.trace[t - 1], case.measure(5), 0.4)
        expected -= (betas[t] - betas[t - 1]) * energy
    torch.testing.assert_close(result.log_weights, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        result.energies, energies_by_hand(result.latents, case.measure(5), 0.4)
    )
    assert torch.equal(result.trace[-1], result.latents)
    history = torch.stack(
        [energies_by_hand(z, case.measure(5), 0.4).mean(-1) for z in result.trace[1:]]
    )
    torch.testing.assert_close(result.energy_history, history)


def test_the_trace_starts_at_the_prior() -> None:
    result = cogenerate(
        linear_generator(),
        CASES["mask"].x_obs(5),
        MASK,
        method=Paper(ais_steps=1, leapfrog_steps=1, keep_trace=True),
        noise_std=0.4,
        chains=4000,
        progress=False,
    )
    assert result.trace is not None
    start = result.trace[0, 0]
    # 4,000 standard normals have means within 5 / sqrt(n) and second moments within 5 sqrt(2 / n).
    assert (start.mean(0).abs() < 5.0 / math.sqrt(4000)).all()
    assert ((start**2).mean(0) - 1.0).abs().max() < 5.0 * math.sqrt(2.0 / 4000)


def test_diagnostics_by_hand() -> None:
    logs = torch.log(torch.tensor([[1.0, 2.0, 5.0], [1.0, 1.0, 1.0]], dtype=torch.float64)) - 900.0
    shares = torch.tensor([[0.125, 0.25, 0.625], [1 / 3] * 3], dtype=torch.float64)
    torch.testing.assert_close(normalised_weights(logs), shares)
    expected = torch.tensor([64.0 / 30.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(effective_sample_size(logs), expected)
    means = torch.tensor([math.log(8 / 3), 0.0], dtype=torch.float64) - 900.0
    torch.testing.assert_close(log_mean_weight(logs), means)


# --- step size ----------------------------------------------------------------------------------


def published_rule(
    start: float, acceptance: list[float], increase: float, target: float = 0.65
) -> list[float]:
    """The step sizes by the published rule, which compares the running rate *before* its update."""
    used, step, running = [], start, target
    for rate in acceptance:
        used.append(step)
        step = step * (increase if running > target else 0.98)
        step = min(max(step, 1e-4), 0.5)
        running = 0.9 * running + 0.1 * rate
    return used


@both_backends
@pytest.mark.parametrize(
    ("rule", "increase", "start"),
    [
        ("published", 1.02, 0.25),
        (AdaptationRule(increase=1.021), 1.021, 0.2),
        ("published", 1.02, 0.45),
        (AdaptationRule(target=0.9), 1.02, 0.3),
    ],
    ids=["program", "paper", "to-the-maximum", "other-target"],
)
def test_step_size_follows_the_published_rule(
    rule: Any, increase: float, start: float, backend: str
) -> None:
    # For the start 0.45 the misfit is so flat that all proposals are accepted and the step grows to
    # its largest value, 0.5. Otherwise the two observations must have different steps.
    levels = [30.0, 30.0] if start == 0.45 else [0.4, 4.0]
    noise = torch.tensor(levels).reshape(2, 1, 1, 1)
    result = cogenerate(
        linear_generator(),
        torch.stack([CASES["mask"].x_obs(s) for s in (5, 6)]),
        MASK,
        method=Paper(ais_steps=60, leapfrog_steps=3, step_size=start, adaptation=rule),
        noise_std=noise,
        chains=4,
        progress=False,
        compute=Compute(backend=backend),
    )
    target = 0.65 if isinstance(rule, str) else rule.target
    for row in range(2):
        rates = result.acceptance[:, row].tolist()
        expected = published_rule(start, rates, increase, target)
        np.testing.assert_allclose(result.step_size[:, row].numpy(), expected, rtol=1e-12)
    assert result.step_size[1, 0].item() == pytest.approx(0.98 * start, rel=1e-15)
    if start == 0.45:
        assert result.step_size.max().item() == 0.5
    else:
        assert not torch.equal(result.step_size[:, 0], result.step_size[:, 1])


def test_no_adaptation_keeps_the_step() -> None:
    result = cogenerate(
        linear_generator(),
        CASES["mask"].x_obs(5),
        MASK,
        method=Paper(ais_steps=20, step_size=0.03, adaptation=None),
        noise_std=0.4,
        progress=False,
    )
    assert (result.step_size == 0.03).all()
    assert result.settings["adaptation"] is None


@both_backends
def test_a_result_tells_that_its_chains_adapted_by_themselves(backend: str) -> None:
    results = {
        name: cogenerate(
            linear_generator(),
            CASES["mask"].x_obs(5),
            MASK,
            method=Paper(
                ais_steps=40, hmc_steps=2, step_size=0.4, leapfrog_steps=3, adaptation=name
            ),
            noise_std=0.4,
            chains=6,
            progress=False,
            compute=Compute(backend=backend),
        )
        for name in ("published", "per-chain")
    }
    shared, own = results["published"], results["per-chain"]
    assert own.step_size.shape == (40, 1)
    assert not torch.equal(own.step_size, shared.step_size)
    assert any("biases samples" in note for note in own.notes)
    assert not any("biases samples" in note for note in shared.notes)
    assert own.settings["adaptation"] == shared.settings["adaptation"] | {"per_chain": True}


def test_every_one_of_m_transitions_adapts_the_step() -> None:
    result = cogenerate(
        linear_generator(),
        CASES["mask"].x_obs(5),
        MASK,
        method=Paper(ais_steps=2, hmc_steps=3, step_size=0.02, leapfrog_steps=2),
        noise_std=0.4,
        progress=False,
    )
    factors = result.step_size[:, 0] / 0.02
    # The running rate starts at the target and not above it, so that the first transition shrinks
    # the step. Nearly all proposals are accepted at this step size, so the next ones let it grow.
    assert factors[0].item() == pytest.approx(0.98 * 1.02, rel=1e-12)
    assert factors[1].item() == pytest.approx(0.98 * 1.02**4, rel=1e-12)


# --- forms --------------------------------------------------------------------------------------


def test_paper_form_has_no_weights_and_says_why() -> None:
    result = cogenerate(
        linear_generator(),
        CASES["mask"].x_obs(5),
        MASK,
        method=Paper(ais_steps=5, schedule="sigmoid-raw", form="paper"),
        noise_std=0.4,
        progress=False,
    )
    for name in ("log_weights", "log_normaliser", "log_evidence"):
        assert getattr(result, name) is None
        assert "paper form" in result.reasons[name]
    assert result.effective_sample_size is None
    with pytest.raises(ValueError, match=r"weighted: .*paper form"):
        result.mean(weighted=True)
    assert "paper form" in repr(result)


def test_paper_form_at_beta_one_warns_where_it_was_called() -> None:
    with pytest.warns(UserWarning, match="form: .*beta = 1") as caught:
        cogenerate(
            linear_generator(),
            CASES["mask"].x_obs(5),
            MASK,
            method=Paper(ais_steps=2, form="paper"),
            noise_std=0.4,
            progress=False,
        )
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("form", "schedule"), [("paper", "sigmoid-raw"), ("posterior", "sigmoid")])
def test_no_warning_without_a_reason(form: Any, schedule: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DiagnosisWarning)
        cogenerate(
            linear_generator(),
            CASES["mask"].x_obs(5),
            MASK,
            method=Paper(ais_steps=2, form=form, schedule=schedule),
            noise_std=0.4,
            progress=False,
        )


def test_paper_form_samples_its_own_density() -> None:
    # At beta the paper form's density is exp(-beta E - (1 - beta) |z|^2 / 2), here a Gaussian of
    # precision beta A' A / sigma^2 + 1 - beta. A long annealing at a stable step brings the chains
    # to it. They are independent, so unweighted moments have plain standard errors.
    case, beta = CASES["mask"], 0.8
    target = torch.full((40,), beta)
    result = cogenerate(
        linear_generator(),
        case.x_obs(5),
        MASK,
        method=Paper(
            schedule=target, form="paper", leapfrog_steps=10, step_size=0.08, adaptation=None
        ),
        noise_std=0.4,
        chains=CHAINS,
        progress=False,
    )
    linear = linear_generator()[0]
    a, b = SEEN @ linear.weight.detach(), SEEN @ linear.bias.detach()
    scale = float(result.betas[-1]) / 0.4**2
    covariance = torch.linalg.inv(scale * a.T @ a + (1.0 - beta) * torch.eye(D))
    mean = covariance @ (scale * a.T @ (case.measure(5) - b))
    assert_weighted_moments(result.latents[0], torch.zeros(CHAINS), mean, covariance)


# --- presets ------------------------------------------------------------------------------------

TWO_D, IMAGES = Sigmoid(-10.0, 2.0, normalised=False), Sigmoid(-5.0, 5.0, normalised=False)
# The columns are chains, T, L, step size, schedule, form, weight and growth of the step.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "five-gaussians": (100, 9999, 20, 0.01, TWO_D, "posterior", 1e4, 1.02),
    "five-gaussians-paper": (100, 6000, 10, 0.01, TWO_D, "posterior", 1e4, 1.021),
    "celeba-128": (1, 499, 20, 0.01, IMAGES, "paper", 1.0, 1.02),
    "celeba-128-program": (10, 499, 20, 0.01, IMAGES, "paper", 1.0, 1.02),
    "lsun-256": (5, 499, 20, 0.01, IMAGES, "paper", 1.0, 1.02),
    "celebahq-1024-sisr": (3, 499, 20, 0.01, IMAGES, "paper", 1.0, 1.02),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_runs(name: str) -> None:
    preset = PRESETS[name]
    found = (
        preset.chains, preset.ais_steps, preset.leapfrog_steps, preset.step_size, preset.schedule,
        preset.form, preset.weight, preset.adaptation.increase,
    )  # fmt: skip
    assert found == PUBLISHED[name]
    rule = preset.adaptation
    assert (rule.target, rule.decay, rule.decrease) == (0.65, 0.9, 0.98)
    assert (rule.minimum, rule.maximum) == (1e-4, 0.5)
    assert preset.hmc_steps == 1
    assert preset.description


def test_no_preset_is_unpublished() -> None:
    assert set(PRESETS) == set(PUBLISHED)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings with which the loop would be run; nothing is sampled."""
    calls: list[dict[str, Any]] = []

    def run(target: Any, betas: Any, steps: int, moves: ais.Moves, **how: Any) -> ais.Run:
        calls.append({"betas": betas, "steps": steps, "moves": moves, "start": how["start"]})
        return how["start"]

    monkeypatch.setattr(ais, "run", run)
    return calls


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_runs_with_its_settings(name: str, recorded: list[dict[str, Any]]) -> None:
    chains, steps, leapfrog_steps, step, schedule, form, weight, growth = PUBLISHED[name]
    case = CASES["mask"]
    result = cogenerate(
        linear_generator(), case.x_obs(5), MASK, method=Paper(preset=name), progress=False
    )
    (call,) = recorded
    np.testing.assert_array_equal(call["betas"], schedule.betas(steps))
    assert call["steps"] == steps
    assert call["moves"].leapfrog_steps == leapfrog_steps
    assert call["moves"].hmc_steps == 1
    assert call["moves"].form == form
    assert call["moves"].adaptation.increase == growth
    assert call["start"].state.adaptation.step_size.tolist() == [step]
    latents = call["start"].state.hmc.latents
    assert latents.shape == (1, chains, D)
    by_hand = energies_by_hand(latents, case.measure(5), 1.0) * 2.0 * weight
    torch.testing.assert_close(call["start"].state.hmc.energy, by_hand)
    assert result.settings["preset"] == name


def test_what_is_given_beside_a_preset_wins(recorded: list[dict[str, Any]]) -> None:
    cogenerate(
        linear_generator(),
        CASES["mask"].x_obs(5),
        MASK,
        method=Paper(
            preset="celeba-128",
            ais_steps=7,
            leapfrog_steps=2,
            hmc_steps=4,
            step_size=0.05,
            adaptation=None,
            schedule="linear",
            form="posterior",
        ),
        chains=3,
        noise_std=0.4,
        progress=False,
    )
    (call,) = recorded
    np.testing.assert_allclose(call["betas"], np.arange(1, 8) / 7)
    assert call["moves"] == ais.Moves(4, 2, "posterior", None)
    assert call["start"].state.adaptation.step_size.tolist() == [0.05]
    latents = call["start"].state.hmc.latents
    expected = energies_by_hand(latents, CASES["mask"].measure(5), 0.4)
    torch.testing.assert_close(call["start"].state.hmc.energy, expected)


def test_defaults_are_the_published_moves_in_posterior_form(
    recorded: list[dict[str, Any]],
) -> None:
    cogenerate(linear_generator(), CASES["mask"].x_obs(5), MASK, noise_std=0.4, **QUIET)
    (call,) = recorded
    np.testing.assert_array_equal(call["betas"], Sigmoid(-5.0, 5.0).betas(500))
    assert call["moves"] == ais.Moves(1, 20, "posterior", AdaptationRule())
    assert call["start"].state.hmc.latents.shape == (1, 4, D)


# --- errors of the loop's own settings ------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ais.Moves(hmc_steps=0), ValueError, "hmc_steps: "),
        (lambda: ais.Moves(leapfrog_steps=0), ValueError, "leapfrog_steps: "),
        (lambda: ais.Moves(form="prior"), ValueError, "form: .*posterior.*paper.*'prior'"),  # type: ignore[arg-type]
        (lambda: ais.Moves(adaptation="slow"), TypeError, "adaptation: .*'slow'"),  # type: ignore[arg-type]
        (lambda: check_number("step_size", 0.0, above=0.0), ValueError, "step_size: "),
        (lambda: check_number("step_size", -1.0, above=0.0), ValueError, "step_size: "),
        (lambda: check_number("step_size", math.nan, above=0.0), ValueError, "step_size: "),
        (lambda: check_number("step_size", math.inf, above=0.0), ValueError, "step_size: "),
        (lambda: check_number("step_size", "0.1", above=0.0), ValueError, "step_size: "),  # type: ignore[arg-type]
    ],
    ids=["M", "L", "form", "adaptation", "zero", "negative", "nan", "inf", "text"],
)
def test_settings_name_the_argument_at_fault(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_result_is_a_result() -> None:
    result = cogenerate(
        linear_generator(),
        CASES["mask"].x_obs(5),
        MASK,
        method=Paper(ais_steps=2),
        noise_std=0.4,
        progress=False,
    )
    assert isinstance(result, Result)
    assert result.images.shape == (1, 4, 1, 4, 4)
    assert result.latents.shape == (1, 4, D)
    assert result.betas[:, 0].tolist() == Sigmoid().betas(2).tolist()
    for history in (result.acceptance, result.step_size, result.energy_history):
        assert history.shape == (2, 1)
    assert result.complete
    assert result.beta_reached == 1.0
