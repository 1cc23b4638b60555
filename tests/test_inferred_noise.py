"""Noise that is inferred with the latents: against exact posteriors, in whole runs, and misuse.

The posterior of a linear model's noise is known up to an integral over one number, which a grid
does. Runs are independent, so that a chain of each, chosen by its weight, has a rank among the
exact distribution that is uniform: 4.5 standard errors of a mean of uniforms are one chance in
100,000, and so is the bound on the chi-square statistic of 8 bins.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cogen_fast import Result, UnknownNoise, bound_evidence, cogenerate
from cogen_fast.experiments.exact_models import LinearGaussian, log_mean_and_error
from cogen_fast.methods.baselines import reconstruct
from cogen_fast.methods.settings import keywords
from cogen_fast.problem.compute import gathered
from cogen_fast.sampler import noise_level

pytestmark = pytest.mark.usefixtures("one_thread")

BOUND, EVIDENCE_BOUND = 4.5, 5.0
CHI_SQUARE = 36.0  # with 7 degrees of freedom it is larger for 7e-6 of seeds
F64 = torch.float64
LOW, HIGH = 0.03, 3.0


# --- the noise of a chain, given its latents ------------------------------------------------------


@pytest.mark.parametrize("count", [1.0, 5.0, 64.0, 3072.0])
@pytest.mark.parametrize("where", ["inside", "below", "above", "far below", "far above"])
def test_the_noise_given_latents_is_a_truncated_gamma(count: float, where: str) -> None:
    # The density ``beta^(n/2 - 1) exp(-beta E)`` between two bounds is compared by its distribution
    # function, the incomplete gamma function.
    least, half = 1e-4, 0.5 * count
    likeliest = {"inside": 0.02, "below": 1.1e-4, "above": 0.8, "far below": 4e-5, "far above": 3.0}
    energy = half / likeliest[where]
    uniform = (torch.arange(2000, dtype=F64) + 0.5) / 2000

    def every(value: float) -> Tensor:
        return torch.full_like(uniform, value)

    beta = noise_level.beta_given_energy(every(energy), every(count), every(least), uniform)
    assert beta.min() >= least * (1.0 - 1e-9)
    assert beta.max() <= 1.0 + 1e-9

    def below(x: Tensor) -> Tensor:
        return torch.special.gammainc(every(half), energy * x)

    def above(x: Tensor) -> Tensor:
        return torch.special.gammaincc(every(half), energy * x)

    law = above if below(every(least)).min() > 0.5 else below  # the tail that float64 resolves
    first, last = law(every(least)), law(every(1.0))
    if abs(float(last[0] - first[0])) < 1e-12:
        pytest.skip("nothing of the gamma distribution lies between the bounds in float64")
    found = (law(beta) - first) / (last - first)
    assert (found - uniform).abs().max() < 2e-3


# --- against what is known ------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A linear model whose outputs are seen ``copies`` times, each with noise of its own."""

    name: str
    size: int
    copies: int = 1
    repetitions: int = 64
    budget: int | None = None

    @property
    def model(self) -> LinearGaussian:
        return LinearGaussian.named(self.name, self.size, 0.1)

    @property
    def x(self) -> Tensor:
        """Data ``(B, copies d)``, each with noise drawn from its prior."""
        random = torch.Generator().manual_seed(5)
        share = torch.rand(self.repetitions, 1, generator=random, dtype=F64)
        noise = LOW * (HIGH / LOW) ** share
        z = torch.randn(self.repetitions, self.size, generator=random)
        outputs = self.outputs(z)
        return (outputs + noise * torch.randn(outputs.shape, generator=random)).float()

    def outputs(self, z: Tensor) -> Tensor:
        return self.model.generator(z).repeat(1, self.copies)

    def run(self) -> Result:
        return cogenerate(
            self.outputs,
            self.x,
            torch.ones(self.size * self.copies),
            noise_std=UnknownNoise(LOW, HIGH),
            latent_shape=self.size,
            budget=self.budget,
            progress=False,
        )

    def exact(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log noise levels, their posterior ``(B, K)``, and the log evidence ``(B,)``."""
        levels = torch.linspace(math.log(LOW), math.log(HIGH), 2001, dtype=F64)
        squares = torch.exp(2.0 * levels)[:, None]
        x = self.x.double().reshape(self.repetitions, self.copies, self.size)
        mean, spread = x.mean(1), x.var(1, correction=0).sum(-1) * self.copies
        marginal = self.model.scales**2 + squares / self.copies
        log_density = -0.5 * (mean[:, None] ** 2 / marginal + (2.0 * math.pi * marginal).log())
        free = self.size * (self.copies - 1)
        rest = -0.5 * (spread[:, None] / squares.T + free * (2.0 * math.pi * squares.T).log())
        log_density = log_density.sum(-1) + rest - 0.5 * self.size * math.log(self.copies)
        evidence = torch.logsumexp(log_density, -1) - math.log(len(levels))
        return levels, torch.softmax(log_density, -1), evidence

    def __str__(self) -> str:
        return f"{self.name}-{self.size}-{self.copies}-{self.budget}"


CELLS = (
    Cell("iso", 20, repetitions=48),
    Cell("stiff", 64, repetitions=32),
    Cell("decay", 64, copies=4, repetitions=32),
    Cell("decay", 20, copies=4, budget=400),
)


@pytest.fixture(scope="module", params=CELLS, ids=str)
def drawn(request: pytest.FixtureRequest) -> tuple[Cell, Result]:
    return request.param, request.param.run()


def chosen(result: Result) -> Tensor:
    """The index of a chain of each run, drawn by its weight, ``(B,)``."""
    random = torch.Generator().manual_seed(6)
    return torch.multinomial(result.weights, 1, generator=random)[:, 0]


def test_the_noise_is_calibrated(drawn: tuple[Cell, Result]) -> None:
    cell, result = drawn
    assert result.noise_std is not None
    levels, posterior, _ = cell.exact()
    noise = result.noise_std[torch.arange(cell.repetitions), chosen(result)]
    below = torch.searchsorted(levels, noise.log()).clamp(max=len(levels) - 1)
    ranks = posterior.cumsum(-1).gather(1, below[:, None])[:, 0]
    assert abs(float(ranks.mean()) - 0.5) < BOUND / math.sqrt(12 * cell.repetitions)
    expected = cell.repetitions / 8
    counts = torch.histc(ranks, 8, 0.0, 1.0)
    assert float(((counts - expected) ** 2).sum()) / expected < CHI_SQUARE


def test_latents_are_exact_whatever_the_noise(drawn: tuple[Cell, Result]) -> None:
    # The expected squared norm of the latents is that of the posterior at each noise level,
    # averaged over the levels.
    cell, result = drawn
    levels, posterior, _ = cell.exact()
    x = cell.x.double().reshape(cell.repetitions, cell.copies, cell.size).mean(1)
    ratio = cell.model.scales**2 * cell.copies / torch.exp(2.0 * levels)[:, None]
    variances = 1.0 / (1.0 + ratio)
    means = x[:, None] * (ratio * variances / cell.model.scales)
    expected = (posterior * (variances.sum(-1) + (means**2).sum(-1))).sum(-1)
    squares = (result.latents.double() ** 2).sum(-1)
    off = (result.weights * squares).sum(-1) - expected
    assert abs(float(off.mean() / off.std())) * math.sqrt(len(off)) < BOUND


def test_the_evidence_is_exact(drawn: tuple[Cell, Result]) -> None:
    cell, result = drawn
    assert result.log_evidence is not None
    together, error = log_mean_and_error(result.log_evidence - cell.exact()[2])
    assert abs(together) < EVIDENCE_BOUND * error
    assert error < 0.5


def test_errors_of_the_evidence_cover_it(drawn: tuple[Cell, Result]) -> None:
    cell, result = drawn
    error, found = result.log_normaliser_error, result.log_evidence
    assert error is not None and found is not None
    given = int(error.isfinite().sum())
    assert given >= 0.75 * len(error)
    within = int(((found - cell.exact()[2]).abs() <= 2.0 * error).sum())
    assert within >= 0.9 * given - 3.1 * math.sqrt(0.09 * given)


@pytest.mark.slow
def test_forgetting_the_measurements_number_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    weigh = noise_level.integrand
    monkeypatch.setattr(noise_level, "integrand", lambda state, count: weigh(state, 0.8 * count))
    cell = CELLS[0]
    result = cell.run()
    assert result.log_evidence is not None
    together, error = log_mean_and_error(result.log_evidence - cell.exact()[2])
    assert abs(together) > EVIDENCE_BOUND * error


# --- a run as users have it -----------------------------------------------------------------------


W = torch.randn(10, 30, generator=torch.Generator().manual_seed(1))


def generator(z: Tensor) -> Tensor:
    return z @ W


def x_obs(*noise: float) -> Tensor:
    random = torch.Generator().manual_seed(2)
    outputs = generator(torch.randn(len(noise), 10, generator=random))
    return outputs + torch.tensor(noise)[:, None] * torch.randn(outputs.shape, generator=random)


def run(G: Any = generator, noise: tuple[float, ...] = (0.1, 0.5), **changes: Any) -> Result:
    options: dict[str, Any] = {"noise_std": "auto", "latent_shape": 10, "progress": False}
    return cogenerate(G, x_obs(*noise), torch.ones(30), **keywords(options | changes))


@pytest.mark.slow
def test_each_observation_has_its_own_noise() -> None:
    result = run()
    assert result.noise_std is not None
    assert result.noise_std.shape == result.energies.shape
    # With 20 measurements the log of a standard deviation has a standard error of 1 / sqrt(40).
    found = result.noise_std.log().mean(1)
    assert (found - torch.tensor([0.1, 0.5], dtype=F64).log()).abs().max() < 4.0 / math.sqrt(40.0)
    assert result.diagnose() == []
    assert result.betas[-1].eq(1.0).all()
    assert result.betas.max() > 1.0
    assert result.settings["noise"].startswith("noise_std inferred, at least ")
    assert 0.3 * 15 < result.energies.mean() < 3 * 15


@pytest.mark.slow
def test_energies_are_those_at_the_mean_precision() -> None:
    result = run(noise=(0.2,))
    assert result.noise_std is not None
    squares = ((result.images - result.x_obs[:, None]) ** 2).sum(-1).double()
    precision = 2.0 * result.energies / squares
    assert precision.std() < 1e-4 * precision.mean()  # all chains have the same precision
    each = result.noise_std**-2
    assert each.min() < precision.mean() < each.max()


@pytest.mark.slow
def test_a_given_noise_is_not_inferred() -> None:
    result = run(noise_std=0.1)
    assert result.noise_std is result.noise_bounds is None
    assert result.reasons["noise_std"] == result.reasons["noise_bounds"] == "the noise was given"


@pytest.mark.slow
def test_it_comes_back_from_disk(tmp_path: Path) -> None:
    result = run()
    loaded = Result.load(result.save(tmp_path))
    assert result.noise_std is not None and loaded.noise_std is not None
    assert torch.equal(loaded.noise_std, result.noise_std)
    assert loaded.noise_bounds is not None and result.noise_bounds is not None
    assert torch.equal(loaded.noise_bounds, result.noise_bounds)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [7, 12, 30, 60, 100, 300, 2000])
def test_a_budget_is_kept(budget: int) -> None:
    result = run(budget=budget)
    assert result.gradients + result.forwards / 2 <= budget
    assert result.noise_std is not None
    assert result.noise_std.isfinite().all()
    assert result.latents.isfinite().all()


class Stopping:
    """The generator, interrupted at call number ``at``."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.calls = at, 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return generator(z)


@pytest.mark.slow
@pytest.mark.parametrize("at", [30, 120, 10**6])
def test_an_interrupted_run_goes_on_bit_for_bit(at: int, tmp_path: Path) -> None:
    # The run is interrupted in the annealing, or in the rounds, a few calls before the end.
    counted = Stopping()
    whole = run(counted)
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(Stopping(min(at, counted.calls - 3)), checkpoint=path)
    again = run(Stopping(), checkpoint=path)
    assert again.noise_std is not None and whole.noise_std is not None
    assert torch.equal(again.noise_std, whole.noise_std)
    assert torch.equal(again.latents, whole.latents)


@pytest.mark.slow
def test_a_trace_has_the_rounds_too() -> None:
    result = run(keep_trace=True)
    assert result.trace is not None
    assert len(result.trace) == len(result.betas) + 1
    torch.testing.assert_close(result.trace[-1], result.latents)


@pytest.mark.slow
def test_data_without_noise_lead_to_the_least_noise() -> None:
    # The data are an output of G without noise: the posterior is at the least noise of the bounds.
    result = run(noise=(0.0,))
    assert result.noise_std is not None
    low = float(x_obs(0.0).std(correction=0)) / 100
    assert result.noise_std.min() >= low * (1.0 - 1e-6)
    assert result.noise_std.median() < 1.5 * low


@pytest.mark.slow
def test_the_pool_begins_at_the_largest_noise() -> None:
    # The pool must begin at the beta of the largest noise. Without that rule it would begin at a
    # smaller noise.
    result = run(noise_std=UnknownNoise(0.01, 100.0))
    assert result.noise_std is not None
    # Turns the reported betas into multiples of the beta of the least noise.
    unit = (0.01 / result.noise_std).square().mean(1)
    first = result.betas[0].reshape(2, 2) * unit[:, None]
    assert (first < 3.0 * (0.01 / 100.0) ** 2).all()
    assert result.forwards == result.settings["draws"] // 16


@pytest.mark.parametrize(("budget", "rounds"), [(5, 1), (8, 2), (20, 4)])
def test_a_few_rounds_are_kept_of_the_smallest_budgets(budget: int, rounds: int) -> None:
    result = run(budget=budget)
    assert result.rounds.min() >= rounds
    assert result.noise_std is not None
    low = float(x_obs(0.1).std(correction=0)) / 100
    assert result.noise_std.min() > 1.5 * low
    assert result.gradients + result.forwards / 2 <= budget


@pytest.mark.slow
def test_a_budget_buys_rounds() -> None:
    few, many = run(budget=600), run(budget=6_000)
    assert many.rounds.min() > 30
    assert many.gradients + many.forwards / 2 > 0.98 * 6_000
    rounds = int(many.rounds.min())
    note = f"The budget sufficed for {rounds} rounds of moves at the posterior."
    assert note in many.notes
    assert many.rounds.min() > few.rounds.min()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((1.0, 5.0), "noise at its bound: half of the samples have the low end .* smaller low"),
        ((1e-4, 1e-3), "noise at its bound: half of the samples have the high end .* larger high"),
    ],
    ids=["low", "high"],
)
def test_noise_at_a_bound_is_diagnosed(bounds: tuple[float, float], words: str) -> None:
    result = run(noise_std=UnknownNoise(*bounds))
    assert result.noise_bounds is not None
    assert result.noise_bounds.tolist() == [list(bounds)] * 2
    assert any(re.search(words, line) for line in result.diagnose())


@pytest.mark.slow
def test_noise_between_the_bounds_is_not_diagnosed() -> None:
    assert not any("bound" in line for line in run(noise=(0.1, 0.3)).diagnose())
    narrow = run(noise=(0.1,), noise_std=UnknownNoise(0.098, 0.104))
    assert not any("bound" in line for line in narrow.diagnose())


@pytest.mark.slow
def test_each_observation_at_a_bound_is_named() -> None:
    told = run(noise=(0.0, 3.0), noise_std=UnknownNoise(0.1, 0.5)).diagnose()
    assert any(re.search(r"low end .*\(observation 0\)", line) for line in told)
    assert any(re.search(r"high end .*\(observation 1\)", line) for line in told)


def test_a_single_step_of_all_levels_has_no_evidence() -> None:
    result = run(budget=8)
    assert result.oversized_steps.all()
    assert result.log_evidence is result.log_normaliser is result.log_normaliser_error is None
    assert "single step" in result.reasons["log_evidence"]
    assert not any("bound" in line for line in result.diagnose())


def test_a_single_step_of_one_observation_leaves_the_evidence_of_others() -> None:
    result = run(noise=(0.01, 1.0), budget=96)
    assert result.oversized_steps.reshape(2, 2).any(1).tolist() == [True, False]
    for name in ("log_normaliser", "log_normaliser_error", "log_evidence"):
        value = getattr(result, name)
        assert value.isfinite().tolist() == [False, True]
        assert "single step" in result.reasons[name] or name == "log_normaliser_error"


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{"leapfrog_steps": 5, "hmc_steps": 4}, {"leapfrog_steps": 20}, {"hmc_steps": 8}]
)
def test_a_few_rounds_are_kept_of_fixed_moves(how: dict[str, int]) -> None:
    result = run(budget=400, **how)
    assert result.rounds.min() >= 4
    assert result.gradients + result.forwards / 2 <= 400


def test_a_checkpoint_belongs_to_its_bounds(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(Stopping(40), noise_std=UnknownNoise(0.01, 1.0), checkpoint=path)
    with pytest.raises(ValueError, match="checkpoint: "):
        run(Stopping(), noise_std=UnknownNoise(0.01, 1.0 + 1e-12), checkpoint=path)


@pytest.mark.slow
def test_an_observation_without_entries_does_not_affect_another() -> None:
    x, mask = x_obs(0.1, 0.1), torch.ones(2, 30)
    mask[0] = 0.0
    with pytest.warns(UserWarning, match="nothing of observation 0 is observed"):
        result = cogenerate(
            generator,
            x,
            mask,
            noise_std=UnknownNoise(0.01, 1.0),
            latent_shape=10,
            budget=600,
            progress=False,
        )
    assert not result.oversized_steps[2:].any()
    assert result.latents.isfinite().all()


def test_a_fixed_length_is_kept_in_the_rounds() -> None:
    result = run(leapfrog_steps=10, budget=300)
    assert result.leapfrog_steps.unique().tolist() == [10]


def test_observation_ids_too_large_for_every_chain_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^observation_ids: expected numbers below 268435456 "):
        run(observation_ids=[5, 2**28])


BAD = {
    "method": ({"method": "paper"}, ValueError, "noise_std: expected a number, as only"),
    "evidence": ({"evidence": "frozen"}, ValueError, "noise_std: .*frozen"),
    "weight": ({"weight": 1.0}, ValueError, "weight: expected none with noise_std to infer"),
    "misfit": ({"misfit": lambda a, b: a}, ValueError, "misfit: expected none with noise_std"),
    "alone": ({"chains": 1, "budget": 20}, ValueError, "noise_std: .*independent chains"),
    "budget": ({"budget": 4}, ValueError, "budget: expected at least 5 .* particle .*, got 4"),
    "word": ({"noise_std": "Auto"}, TypeError, 'noise_std: expected .*"auto".* got .Auto'),
}


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_noise_to_infer_is_refused(name: str) -> None:
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        run(**changes)


@pytest.mark.parametrize(
    "bounds", [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.5), (1.0, 1.0), (float("nan"), 1.0), ("a", 1.0)]
)
def test_bad_bounds_are_refused(bounds: tuple[Any, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"low|high"):
        UnknownNoise(*bounds)


def test_values_that_are_all_alike_have_no_scale() -> None:
    with pytest.raises(ValueError, match=r"noise_std: .*give UnknownNoise\(low, high\)"):
        cogenerate(generator, torch.ones(30), torch.ones(30), noise_std="auto", latent_shape=10)
    tenth = torch.full((30,), 0.1)
    tenth[0] += 1e-8
    with pytest.raises(ValueError, match=r"noise_std: .*give UnknownNoise\(low, high\)"):
        cogenerate(generator, tenth, torch.ones(30), noise_std="auto", latent_shape=10)


def test_other_methods_need_a_given_noise() -> None:
    how: dict[str, Any] = {"noise_std": "auto", "latent_shape": 10}
    with pytest.raises(ValueError, match="noise_std: expected a number"):
        reconstruct(
            generator, x_obs(0.1), torch.ones(30), **gathered({"method": "sir", "starts": 2, **how})
        )
    with pytest.raises((ValueError, TypeError), match="noise_std"):
        bound_evidence(generator, torch.ones(30), **gathered(how))
