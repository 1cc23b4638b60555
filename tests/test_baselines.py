"""The baselines behind the front door: results, costs and refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cogen_fast import AveragePool, Paper, Result, cogenerate
from cogen_fast.generators.pretrained import pretrained
from cogen_fast.methods.baselines import BASELINES, Tuning, reconstruct, tune
from cogen_fast.methods.optimise import adam, gradient_descent, lbfgs
from cogen_fast.methods.settings import keywords
from cogen_fast.ops import reference
from cogen_fast.problem.compute import gathered
from cogen_fast.sampler import hmc

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.tensor([0.4, -0.3, 0.8, 0.1, -0.6], dtype=torch.float64)
MASK = torch.tensor([1, 0, 1, 1, 0])
WEIGHT = 2.0
DESCENTS = [name for name in BASELINES if name != "sir"]
descents = pytest.mark.parametrize("method", DESCENTS)
OPTIMISERS = {
    "gd": lambda *given: gradient_descent(*given, keep_best=True),
    "adam": adam,
    "lbfgs": lbfgs,
}


def network() -> nn.Sequential:
    random = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    for p in net.parameters():
        p.data = 0.7 * torch.randn(p.shape, generator=random, dtype=torch.float64)
    return net


def solve(method: Any = "gd", G: Any = None, **changes: Any) -> Result:
    given: dict[str, Any] = {"x_obs": X, "mask": MASK, "weight": WEIGHT, "method": method}
    if method != "sir":
        given |= {"steps": 12, "learning_rate": 0.05}
    if method == "sir" or "multi" in method:
        given |= {"starts": 40}
    return reconstruct(network() if G is None else G, **gathered(given | changes))


def draws_of(count: int, ids: Sequence[int] = (0,), seed: int = 0) -> Tensor:
    stream = hmc.noise_stream(seed, len(ids), torch.device("cpu"), ids)
    return reference.initial_latents(stream, count, 3, torch.float64)


class Energy:
    """The misfit ``w |G(z) - x|^2`` over the observed entries, computed directly."""

    def __init__(self, x: Tensor = X) -> None:
        self.net, self.x = network(), x

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            energy = WEIGHT * (((self.net(z) - self.x) ** 2)[..., MASK.bool()]).sum(-1)
            (grad,) = torch.autograd.grad(energy.sum(), z)
        return energy.detach(), grad


# --- what they give -------------------------------------------------------------------------------


@descents
def test_a_descent_is_the_written_one_from_the_written_start(method: str) -> None:
    starts = draws_of(3) if "multi" not in method else draws_of(120)
    numbers = torch.arange(3)
    if "multi" in method:
        energy = Energy().energy_and_grad(starts)[0].reshape(3, 40)
        numbers = energy.argmin(-1) + 40 * torch.arange(3)
    optimiser = OPTIMISERS[method.removesuffix("-multi")]
    latents, energies = optimiser(Energy(), starts[:, numbers], 12, 0.05)
    result = solve(method, chains=3)
    torch.testing.assert_close(result.latents, latents, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.energies, energies, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.roots[0], numbers)
    with torch.no_grad():
        torch.testing.assert_close(result.images, network()(latents), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["gd", "adam", "lbfgs"])
def test_single_starts_are_the_prior_draws_of_the_sampler(method: str) -> None:
    sampled = cogenerate(
        network(),
        X,
        MASK,
        method=Paper(ais_steps=1, keep_trace=True),
        weight=WEIGHT,
        chains=3,
        seed=5,
        progress=False,
    )
    assert sampled.trace is not None
    found = solve(method, chains=3, seed=5, steps=1, learning_rate=1e-12)
    torch.testing.assert_close(found.latents, sampled.trace[0], rtol=0, atol=1e-10)


def test_the_best_visited_point_is_kept_also_where_descent_diverges() -> None:
    wild = solve("gd", learning_rate=1.5, steps=40, chains=4)
    start = Energy().energy_and_grad(draws_of(4))[0]
    last = gradient_descent(Energy(), draws_of(4), 40, 1.5)[1]
    # The factor allows for float32 rounding, which on some processors depends on the number of
    # rows.
    assert (wild.energies <= start * (1.0 + 1e-6)).all()
    assert (wild.energies < last).any()


@pytest.mark.parametrize("method", BASELINES)
def test_an_observation_does_not_depend_on_its_batch_mates(method: str) -> None:
    others = torch.stack([X, -X, 0.5 * X])
    together = solve(method, x_obs=others, chains=3, observation_ids=[4, 7, 2])
    alone = solve(method, x_obs=others[1], chains=3, observation_ids=[7])
    torch.testing.assert_close(together.latents[1], alone.latents[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together.energies[1], alone.energies[0], rtol=1e-9, atol=1e-9)
    assert torch.equal(together.roots[1], alone.roots[0])
    renamed = solve(method, x_obs=others[1], chains=3)
    assert not torch.equal(renamed.latents, alone.latents)


@pytest.mark.parametrize("method", BASELINES)
def test_a_run_is_a_function_of_its_inputs_and_the_seed(method: str) -> None:
    net = network()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = solve(method, net, seed=2**63, chains=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first.latents, solve(method, net, seed=2**63, chains=2).latents)
    assert not torch.equal(first.latents, solve(method, net, seed=1, chains=2).latents)


def linear() -> nn.Linear:
    """``x = (z1, z2)``: with x2 seen under noise 1 the posterior is N(0, 1) x N(x2 / 2, 1 / 2)."""
    layer = nn.Linear(2, 2).double()
    layer.weight.data, layer.bias.data = torch.eye(2).double(), torch.zeros(2).double()
    return layer


def test_resampling_gives_the_posterior_and_its_evidence() -> None:
    seen, draws, samples = 1.2, 20_000, 4_000
    x = torch.tensor([math.nan, seen], dtype=torch.float64)
    result = reconstruct(
        linear(), x, [0, 1], noise_std=1.0, method="sir", starts=draws, chains=samples, seed=4
    )
    first, second = result.latents[0].unbind(-1)
    # Weighting N(0, 1) to N(x2 / 2, 1 / 2) leaves an effective share of 0.8 of the draws, so that
    # the pool's error is that of about 16,000 draws (0.7 of them are counted to be safe). The error
    # of 4,000 samples is added.
    for values, mean, variance in ((first, 0.0, 1.0), (second, seen / 2, 0.5)):
        error = math.sqrt(variance * (1 / samples + 1 / (0.7 * draws)))
        assert abs(float(values.mean()) - mean) < 4 * error
        spread = variance * math.sqrt(2.0 * (1 / samples + 1 / (0.7 * draws)))
        assert abs(float(values.var()) - variance) < 4 * spread
    exact = -0.5 * math.log(2 * math.pi * 2.0) - seen**2 / 4  # the marginal of x2 is N(0, 2)
    assert result.log_evidence is not None and result.log_normaliser_error is not None
    error = float(result.log_normaliser_error[0])
    assert 0.0 < error < 0.01
    assert abs(float(result.log_evidence[0]) - exact) < 4 * error
    fits = {"fit_images", "fit_latents", "fit_energies"}
    assert set(result.reasons) == {"log_weights", "noise_std", "noise_bounds"} | fits
    torch.testing.assert_close(result.energies[0], 0.5 * (second - seen) ** 2)


def test_resampling_takes_draws_by_their_weights() -> None:
    result = solve("sir", weight=0.3, starts=6, chains=20_000)
    energy = 0.3 / WEIGHT * Energy().energy_and_grad(draws_of(6))[0][0]
    shares = torch.bincount(result.roots[0], minlength=6) / 20_000
    expected = torch.softmax(-energy, 0)
    assert expected.max() < 0.9  # no draw has nearly all the weight
    error = (expected * (1 - expected) / 20_000).sqrt()
    assert ((shares - expected).abs() < 4.5 * error + 1e-12).all()
    assert torch.equal(result.latents[0], draws_of(6)[0][result.roots[0]])
    assert int(result.surviving_roots[0]) == len(result.roots[0].unique())


def test_resampling_says_when_few_draws_carry_the_weights() -> None:
    result = solve("sir", weight=1e5)
    assert result.log_normaliser_error is None
    assert "Too few draws" in result.reasons["log_normaliser_error"]
    energy = 1e5 / WEIGHT * Energy().energy_and_grad(draws_of(40))[0][0]
    weights = torch.softmax(-energy, 0)
    assert f"40 draws is {1.0 / float((weights**2).sum()):.3g}." in " ".join(result.notes)


def test_what_is_not_finite_is_neither_chosen_nor_kept() -> None:
    calls = 0
    net = network().float()

    def broken(z: Tensor) -> Tensor:  # fails after the few calls of the checks
        nonlocal calls
        calls += 1
        return torch.where((z[:, :1] > 0.5) & (calls > 3), torch.nan, net(z))

    for method in ("gd-multi", "sir"):
        calls = 0
        x = X.float()
        found = solve(method, broken, x_obs=x, latent_shape=3, chains=5, starts=100)
        assert found.energies.isfinite().all()
        start = draws_of(100 * (5 if method != "sir" else 1))[0][found.roots[0]]
        assert (start[:, 0] <= 0.5).all()


# --- the result -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", BASELINES)
def test_results_are_whole(method: str, tmp_path: Path) -> None:
    result = solve(method, x_obs=torch.stack([X, -X]), chains=3)
    assert result.images.shape == (2, 3, 5) and result.latents.shape == (2, 3, 3)
    assert result.completed is not None
    seen = MASK.bool()
    expected = torch.stack([X, -X])[:, None, seen].expand(2, 3, 3)
    torch.testing.assert_close(result.completed[..., seen], expected)
    assert result.log_weights is None and result.complete
    assert result.betas.shape == (0, 2) and result.acceptance.shape == (0, 2)
    assert result.settings["method"] == method and result.settings["chains"] == 3
    assert (result.mean().shape, result.std().shape) == ((2, 5), (2, 5))
    assert method in repr(result)
    loaded = Result.load(result.save(tmp_path / method))
    assert torch.equal(loaded.latents, result.latents)
    assert loaded.cost == result.cost == loaded.summary()["cost"]


def test_a_fit_has_no_weights_and_says_why() -> None:
    result = solve("adam", noise_std=0.1, weight=None)
    assert result.log_evidence is None and result.log_normaliser is None
    for name in ("log_weights", "log_normaliser", "log_evidence", "log_normaliser_error"):
        assert "best fits" in result.reasons[name]
    with pytest.raises(ValueError, match="best fits"):
        _ = result.weights


def test_diagnosis_says_what_is_far_and_nothing_of_moves() -> None:
    far = solve("gd", noise_std=1e-3, weight=None, steps=1, learning_rate=1e-9)
    assert [line.split(":")[0] for line in far.diagnose()] == ["far from x_obs"]
    assert solve("lbfgs", noise_std=2.0, weight=None, steps=80).diagnose() == []


# --- the cost -------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A generator that counts latents with a gradient, and those without."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.forwards, self.gradients = network(), 0, 0

    def forward(self, z: Tensor) -> Tensor:
        if z.requires_grad:
            self.gradients += len(z)
        else:
            self.forwards += len(z)
        x: Tensor = self.net(z)
        return x


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize("method", BASELINES)
def test_cost_is_what_was_spent(method: str, chains: int) -> None:
    checks = Counting()
    solve("gd", checks, steps=1, chains=1)
    checks.forwards -= 1  # the output
    checks.gradients -= 2
    counted = Counting()
    result = solve(method, counted, chains=chains)
    forwards = counted.forwards - checks.forwards - chains
    gradients = counted.gradients - checks.gradients
    assert result.cost == forwards + 2 * gradients
    assert forwards == {"sir": 40}.get(method, 40 * chains if "multi" in method else 0)
    particles = 40 if method == "sir" else chains
    assert (result.forwards * particles, result.gradients * particles) == (forwards, gradients)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"method": "paper", "chains": 3, "ais_steps": 4, "leapfrog_steps": 5},
        {"method": "paper", "chains": 3, "ais_steps": 4, "leapfrog_steps": 5, "polish": 7},
        {"chains": 5, "populations": 2, "leapfrog_steps": 3, "hmc_steps": 2},
        {"chains": 5, "leapfrog_steps": 3, "hmc_steps": 2, "polish": 11},
    ],
    ids=["paper", "paper-polished", "adaptive", "adaptive-polished"],
)
def test_the_samplers_count_in_the_same_unit(options: dict[str, Any]) -> None:
    checks = Counting()
    solve("gd", checks, steps=1, chains=1)
    counted = Counting()
    result = cogenerate(
        counted,
        X,
        MASK,
        **keywords({"noise_std": 0.5, "backend": "native", "progress": False, **options}),
    )
    outputs = result.energies.numel() * (2 if result.settings["polish"] else 1)
    forwards = counted.forwards - (checks.forwards - 1) - outputs
    assert result.cost == forwards + 2 * (counted.gradients - checks.gradients + 2)
    assert forwards == result.settings.get("draws", 0)


# --- tuning ---------------------------------------------------------------------------------------


def found_by(method: str, rate: float, **changes: Any) -> float:
    return float(solve(method, learning_rate=rate, **changes).energies.mean())


@descents
def test_the_tuned_rate_is_the_best_of_its_log(method: str) -> None:
    rates = (0.3, 0.03, 1e-5)
    given: dict[str, Any] = {"weight": WEIGHT, "chains": 4, "steps": 12, "seed": 9}
    if "multi" in method:
        given["starts"] = 30
    tuning = tune(
        network(), X, MASK, **gathered({"method": method, "learning_rates": rates, **given})
    )
    assert [rate for rate, _ in tuning.log] == list(rates)
    for rate, score in tuning.log:
        assert score == pytest.approx(found_by(method, rate, **given), rel=1e-9)
    assert tuning.learning_rate == min(tuning.log, key=lambda pair: pair[1])[0]
    assert tuning.method == method


def test_tuning_counts_the_starts_once() -> None:
    counted, checks = Counting(), Counting()
    solve("gd", checks, steps=1, chains=1)
    tuning = tune(
        counted, X, MASK, weight=WEIGHT, method="adam-multi", learning_rates=[0.1, 0.01],
        chains=3, starts=30, steps=5,
    )  # fmt: skip
    forwards = counted.forwards - (checks.forwards - 1) - 2 * 3
    gradients = counted.gradients - (checks.gradients - 2)
    assert (forwards, gradients) == (3 * 30, 2 * 3 * 5)
    assert tuning.cost == forwards + 2 * gradients


def test_a_score_of_ones_own_decides() -> None:
    given: dict[str, Any] = {"weight": WEIGHT, "steps": 20, "chains": 2, "method": "gd"}
    rates = (0.1, 0.01, 1e-6)
    least = tune(network(), X, MASK, **gathered({"learning_rates": rates, **given}))
    most = tune(
        network(),
        X,
        MASK,
        **gathered({"learning_rates": rates, "score": lambda r: -r.energies.mean(), **given}),
    )
    assert most.learning_rate == max(least.log, key=lambda pair: pair[1])[0] == 1e-6
    assert most.at_the_edge
    assert not Tuning("gd", 0.1, ((1.0, 2.0), (0.1, 1.0), (0.01, 3.0)), 1).at_the_edge


def test_a_score_that_is_not_finite_never_wins() -> None:
    def score(result: Result) -> float:
        return math.nan if result.settings["learning_rate"] > 0.05 else 1.0

    tuning = tune(
        network(), X, MASK, weight=WEIGHT, method="gd", learning_rates=[0.1, 0.01], score=score,
        steps=2,
    )  # fmt: skip
    assert tuning.learning_rate == 0.01
    assert tuning.as_dict()["log"] == [[0.1, None], [0.01, 1.0]]
    with pytest.raises(ValueError, match=r"^learning_rates: none of \[0.1\]"):
        tune(
            network(), X, MASK, weight=WEIGHT, method="gd", learning_rates=[0.1], score=score,
            steps=2,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gd", "adam", "lbfgs"])
def test_the_default_grids_serve_images(method: str) -> None:
    """At the paper's weight, the best rate for the shipped garments is within the grid."""
    generator = pretrained("fashion-32")
    with torch.no_grad():
        truth = generator(torch.randn(1, 64, generator=torch.Generator().manual_seed(1)))
    tuning = tune(
        generator, torch.nn.functional.avg_pool2d(truth, 4), AveragePool(4), weight=1.0,
        method=method, steps=25, chains=2,
    )  # fmt: skip
    assert not tuning.at_the_edge


# --- what they refuse -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("newton", {}, r"^method: expected one of \('gd', .*got 'newton'"),
        ("gd", {"starts": 3}, r"^starts: expected none with method='gd', got 3"),
        ("sir", {"steps": 3}, r"^steps: expected none with method='sir', got 3"),
        ("sir", {"learning_rate": 0.1}, r"^learning_rate: expected none with method='sir'"),
        ("adam", {"learning_rate": None}, r"^learning_rate: expected a number above 0"),
        ("adam", {"learning_rate": -1.0}, r"^learning_rate: expected"),
        ("gd", {"learning_rate": math.nan}, r"^learning_rate: expected"),
        ("gd", {"steps": 0}, r"^steps: expected"),
        ("gd-multi", {"starts": 0}, r"^starts: expected"),
        ("gd", {"chains": 1.5}, r"^chains: expected"),
        ("gd", {"seed": -1}, r"^seed: expected"),
        ("gd", {"observation_ids": [1, 2]}, r"^observation_ids: expected"),
        ("gd", {"max_batch": 0}, r"^max_batch: expected"),
        ("gd", {"mask": [1, 0]}, r"^mask: expected"),
        ("gd", {"x_obs": X[:4]}, r"^x_obs: expected"),
        ("gd", {"noise_std": 0.1}, r"^weight: expected either"),
    ],
    ids=lambda v: next(iter(v), "") if isinstance(v, dict) else "",
)
def test_errors_name_the_argument(method: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(method, **changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "sir"}, ValueError, r"^method: expected a method with a learning rate"),
        ({"method": "x"}, ValueError, r"^method: expected one of"),
        ({"learning_rates": []}, ValueError, r"^learning_rates: expected at least one"),
        ({"learning_rates": [0.1, 0.0]}, ValueError, r"^learning_rates: expected"),
        ({"score": 3}, TypeError, r"^score: expected a callable, got 3"),
    ],
    ids=lambda v: next(iter(v), "") if isinstance(v, dict) else "",
)
def test_tuning_names_the_argument(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    def untouched(z: Tensor) -> Tensor:
        raise AssertionError("work before the checks")

    with pytest.raises(error, match=message):
        tune(untouched, X, MASK, **gathered({"method": "gd"} | changes))


def test_operators_and_numpy_are_taken_too() -> None:
    generator = pretrained("fashion-32")
    low = np.zeros((1, 8, 8), dtype=np.float32)
    result = reconstruct(generator, low, AveragePool(4), method="adam", steps=2, learning_rate=0.1)
    assert result.images.shape == (1, 1, 1, 32, 32)
    assert result.completed is None and "noise_std 0.1" in result.settings["noise"]
