"""Gradients and energies in types of their own: what is sampled, what is counted, what is refused.

Bounds on z-scores are 4.5: one of 150,000 is beyond, and no check here has as many as 30. Seeds are
fixed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_a_process
from runs import Failing, assert_same
from torch import Tensor, nn

from cogen_fast import Adaptive, Compute, Operator, Paper, Result, cogenerate
from cogen_fast.experiments.calibration import (
    linear_gaussian,
    linear_posterior,
    mean_misfit,
    z_scores,
)
from cogen_fast.generators import ProgressiveGenerator
from cogen_fast.methods.settings import keywords
from cogen_fast.problem import tf32
from cogen_fast.problem.compute import gathered
from cogen_fast.problem.density import SplitPotential
from cogen_fast.problem.exact_float32 import ExactFloat32
from cogen_fast.problem.precision import Autocast, Precision, full_precision
from cogen_fast.problem.problem import Problem, prepared
from cogen_fast.sampler import fallback, hmc
from cogen_fast.sampler.fallback import WINDOW

pytestmark = pytest.mark.usefixtures("one_thread")

BOUND = 4.5
CUDA = torch.device("cuda")
HALVES = ("bfloat16", "float16")
reduced = pytest.mark.parametrize("half", ("tf32", *HALVES))
PAPER: dict[str, Any] = {"method": "paper", "progress": False, "noise_std": 0.3}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(sizes: tuple[int, ...] = (3, 16, 6)) -> nn.Sequential:
    """A small nonlinear network."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        layer = nn.Linear(before, after)
        layer.weight.data = seeded(after, before, seed=i) / before**0.5
        layer.bias.data = 0.3 * seeded(after, seed=10 + i)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@contextmanager
def problem_of(
    generator: Any, x_obs: Tensor, noise_std: float = 0.3, gradient: str | None = None, **how: Any
) -> Iterator[Problem]:
    precision = Precision(gradient, how.pop("energy", None))
    mask = how.pop("mask", torch.ones(x_obs.shape[-1]))
    with prepared(
        generator, x_obs, mask, **gathered({"noise_std": noise_std, **precision.settings(), **how})
    ) as p:
        yield p


# --- what is sampled ------------------------------------------------------------------------------


def drift(half: str, by_reduced_energies: bool = False) -> Tensor:
    """Twenty transitions from exact draws of a linear-Gaussian posterior: z-scores of moments.

    The moments are of standard normal coordinates, of their squares, and of the misfit; chains are
    independent.
    """
    model, chains = replace(linear_gaussian(), noise=0.02), 10_000
    _, x = model.simulate(1, seed=3)
    mean, covariance, _ = linear_posterior(model, x)
    root = torch.linalg.cholesky(covariance)
    z = mean + seeded(chains, 5, seed=4).double() @ root.T
    with problem_of(model.generator, x, model.noise, half, mask=model.mask) as p:
        target: Any = p.target
        assert isinstance(target, SplitPotential)
        if by_reduced_energies:
            target = target.field
        state = hmc.init(target, z.float()[None], seed=5)
        for _ in range(20):
            state, info = hmc.step(state, target, step_size=0.014, leapfrog_steps=6)
            assert float(info.acceptance_probability.mean()) > 0.6
        energy = p.potential.energy(state.latents)[0]
    white = torch.linalg.solve_triangular(root, (state.latents[0].double() - mean).T, upper=False).T
    excess = (energy - mean_misfit(model, x))[:, None]
    columns = (white, white**2 - 1.0, excess)
    return z_scores(torch.cat(columns, -1), 0.0)


@pytest.mark.slow
@reduced
def test_reduced_gradients_leave_a_known_posterior_as_it_is(half: str) -> None:
    assert float(drift(half).abs().max()) < BOUND


def test_energies_of_reduced_precision_would_be_noticed() -> None:
    assert float(drift("bfloat16", by_reduced_energies=True).abs().max()) > BOUND


def linear_run(**options: Any) -> tuple[Result, Tensor, Tensor]:
    """A published run on the linear model; the exact posterior mean and log evidence."""
    # At this noise the weights of 1,000 chains are even enough to estimate their own error.
    model = replace(linear_gaussian(), noise=0.2)
    _, x = model.simulate(2, seed=6)
    mean, _, ratio = linear_posterior(model, x)
    result = cogenerate(
        model.generator,
        x,
        model.mask,
        **keywords(
            {
                "noise_std": model.noise,
                "method": "paper",
                "chains": 1000,
                "ais_steps": 120,
                "leapfrog_steps": 4,
                "step_size": 0.1,
                "progress": False,
                **options,
            }
        ),
    )
    return result, mean, ratio


@pytest.mark.slow
@reduced
def test_evidence_and_means_are_those_of_the_closed_form(half: str) -> None:
    result, mean, ratio = linear_run(gradient_dtype=half)
    assert result.log_normaliser is not None and result.log_normaliser_error is not None
    scores = (result.log_normaliser - ratio) / result.log_normaliser_error
    assert float(scores.abs().max()) < BOUND
    weights = result.weights.double()[..., None]
    found = (weights * result.latents).sum(1)
    # The variance of a self-normalised mean is the sum of squares of the weighted deviations.
    error = ((weights * (result.latents - found[:, None])) ** 2).sum(1).sqrt()
    assert float(((found - mean) / error).abs().max()) < BOUND


@pytest.mark.slow
@reduced
def test_a_nonlinear_posterior_is_that_of_the_float32_run(half: str) -> None:
    generator = dense()
    x = generator(seeded(1, 3, seed=7)).detach()
    runs = [
        cogenerate(
            generator,
            x,
            torch.tensor([1, 1, 0, 1, 0, 0]),
            method=Paper(ais_steps=80, leapfrog_steps=4, step_size=0.1),
            chains=1500,
            seed=seed,
            progress=False,
            noise_std=0.3,
            compute=Compute(gradient_dtype=dtype),
        )
        for seed, dtype in ((0, half), (1, None))
    ]
    evidence, errors = (
        torch.cat([getattr(run, name) for run in runs])
        for name in ("log_normaliser", "log_normaliser_error")
    )
    assert float((evidence[0] - evidence[1]).abs() / errors.norm()) < BOUND
    means, variances = [], []
    for run in runs:
        weights = run.weights.double()[..., None]
        values = torch.cat([run.latents, run.latents**2, run.energies[..., None]], -1).double()
        means.append((weights * values).sum(1))
        variances.append(((weights * (values - means[-1][:, None])) ** 2).sum(1))
    scores = (means[0] - means[1]) / sum(variances).sqrt()
    assert float(scores.abs().max()) < BOUND


@reduced
def test_energies_are_those_of_a_float32_forward(half: str) -> None:
    generator = dense()
    x = generator(seeded(2, 3, seed=7)).detach()
    result = cogenerate(
        generator,
        x,
        torch.ones(6),
        method=Paper(ais_steps=8),
        chains=7,
        progress=False,
        noise_std=0.3,
        compute=Compute(gradient_dtype=half),
    )
    with problem_of(generator, x, gradient=half) as p:
        exact = p.potential.energy(result.latents)
        reduced, _ = p.split.field.energy_and_grad(result.latents)
        if p.split.scale is not None:
            reduced = reduced / p.split.scale[:, None]
    torch.testing.assert_close(result.energies, exact, rtol=1e-6, atol=0)
    assert float(((reduced - exact) / exact).abs().max()) > 1e-4


def test_float64_energies_are_those_of_a_copy_in_float64() -> None:
    generator = dense()
    x = generator(seeded(2, 3, seed=7)).detach()
    result = cogenerate(
        generator,
        x,
        torch.ones(6),
        method=Paper(ais_steps=8),
        chains=7,
        progress=False,
        noise_std=0.3,
        compute=Compute(energy_dtype="float64"),
    )
    assert next(generator.parameters()).dtype == torch.float32
    with torch.no_grad():
        outputs = dense().double()(result.latents.double())
    exact = 0.5 / 0.3**2 * ((outputs - x[:, None].double()) ** 2).sum(-1)
    # The weight 0.5 / 0.3^2 is rounded to float32.
    torch.testing.assert_close(result.energies, exact, rtol=2.0**-24, atol=0)
    assert result.images.dtype == torch.float32


def test_a_float64_generator_may_have_cheaper_gradients() -> None:
    generator = dense().double()
    x = generator(seeded(1, 3, seed=7).double()).detach()
    for gradient in ("float32", "bfloat16"):
        with problem_of(generator, x, gradient=gradient) as p:
            z = seeded(1, 5, 3).double()
            energy, grad = p.target.energy_and_grad(z)
            exact, by_energy = p.potential.energy_and_grad(z)
            torch.testing.assert_close(energy, exact, rtol=1e-14, atol=0)
            assert grad.dtype == torch.float64
            error = float((grad - by_energy).norm() / by_energy.norm())
            assert 0.0 < error < (1e-5 if gradient == "float32" else 0.05)


def test_naming_the_types_of_the_generator_changes_nothing() -> None:
    x, how = seeded(2, 6), {"method": "paper", "ais_steps": 6, "progress": False}
    usual, named = (
        cogenerate(
            dense(), x, torch.ones(6), **keywords({"noise_std": 0.3, "seed": 2, **how, **options})
        )
        for options in ({}, {"gradient_dtype": "float32", "energy_dtype": "float32"})
    )
    assert_same(usual, named, but=("settings",))
    assert named.settings["backend"] == "fused"
    assert named.forwards == 0


# --- float16 needs a scale ------------------------------------------------------------------------


@pytest.mark.parametrize("noise_std", [1e-5, 0.3, 1e6], ids=["sharp", "usual", "vague"])
def test_a_scale_keeps_float16_gradients_from_vanishing_and_overflowing(noise_std: float) -> None:
    generator, x = dense(), seeded(1, 6)
    z = seeded(1, 50, 3)
    with problem_of(generator, x, noise_std, "float16") as p:
        _, expected = p.potential.energy_and_grad(z)
        found = p.split.grad_alone(z)
        plain = p.potential.of(Autocast(p.adapter, torch.float16), p.observation)
        _, unscaled = plain.energy_and_grad(z)
    assert float((found - expected).norm() / expected.norm()) < 0.01
    if noise_std == 1e6:
        assert not bool(unscaled.any())
    if noise_std == 1e-5:
        assert not bool(unscaled.isfinite().any())


def test_a_scale_is_a_power_of_2_of_its_own_observation_alone() -> None:
    generator, x = dense(), seeded(3, 6) * torch.tensor([0.1, 1.0, 100.0])[:, None]
    with problem_of(generator, x, gradient="float16") as p:
        together = p.split.scale
    alone = []
    for row in x:
        with problem_of(generator, row, gradient="float16") as p:
            alone.append(p.split.scale)
    assert torch.equal(together, torch.cat(alone))
    assert len(set(together.tolist())) > 1
    assert bool((together.log2() == together.log2().round()).all())


def test_a_misfit_of_the_user_s_own_is_scaled_too() -> None:
    def absolute(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().sum(-1)

    generator, z = dense(), seeded(2, 50, 3)
    with problem_of(generator, seeded(2, 6), None, "float16", misfit=absolute, weight=1e-9) as p:
        _, expected = p.potential.energy_and_grad(z)
        found = p.split.grad_alone(z)
    assert float((found - expected).norm() / expected.norm()) < 0.01


# --- TF32 for gradients ---------------------------------------------------------------------------


def ten_bits(x: Tensor) -> Tensor:
    """Rounded to 10 bits of mantissa after the leading one, in float64."""
    mantissa, exponent = torch.frexp(x.double())
    scaled = mantissa * 2.0**11
    return torch.ldexp(scaled.sign() * (scaled.abs() + 0.5).floor(), exponent - 11)


def test_factors_are_rounded_to_ten_bits() -> None:
    x = seeded(1000) * torch.exp2(torch.linspace(-60.0, 60.0, 1000))
    halfway = torch.tensor([1.0 + 2.0**-11, -1.0 - 2.0**-11, 2.0 - 2.0**-12])
    for values in (x, halfway, x.reshape(20, 50).T):
        assert torch.equal(tf32.rounded(values).double(), ten_bits(values))
    assert torch.equal(tf32.rounded(tf32.rounded(x)), tf32.rounded(x))
    special = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan])
    assert torch.equal(tf32.rounded(special).nan_to_num(7.0), special.nan_to_num(7.0))


@pytest.mark.parametrize("kind", ["products", "convolutions"])
def test_products_of_a_gradient_are_those_of_rounded_factors(kind: str) -> None:
    """Forwards and backwards; sums in float32 differ from these, in float64, by rounding."""
    x, weight = seeded(1, 6), seeded(6, 3, seed=1)
    if kind == "products":
        generator: nn.Module = nn.Linear(3, 6, bias=False)
        generator.weight.data = weight
    else:
        convolution = nn.Conv1d(3, 6, 1, bias=False)
        convolution.weight.data = weight[:, :, None]
        generator = nn.Sequential(nn.Unflatten(1, (3, 1)), convolution, nn.Flatten())
    z = seeded(1, 5, 3, seed=2)
    with problem_of(generator, x, gradient="tf32", latent_shape=3) as p:
        energy, grad = p.split.field.energy_and_grad(z)
        _, exact = p.potential.energy_and_grad(z)
    residual = ten_bits(z) @ ten_bits(weight).T - x.double()
    expected = ten_bits((residual / 0.3**2).float()) @ ten_bits(weight)
    torch.testing.assert_close(energy, 0.5 / 0.3**2 * (residual**2).sum(-1), rtol=1e-5, atol=0)
    # A residual that float32 rounds the other way differs by 2^-10.
    torch.testing.assert_close(grad.double(), expected, rtol=2.0**-9, atol=0.05)
    assert float((grad - expected).norm()) < 0.5 * float((grad - exact).norm())


def test_a_float64_generator_may_have_gradients_in_tf32() -> None:
    generator = dense().double()
    with problem_of(generator, seeded(1, 6).double(), gradient="tf32") as p:
        z = seeded(1, 5, 3).double()
        energy, grad = p.target.energy_and_grad(z)
        exact, by_energy = p.potential.energy_and_grad(z)
    torch.testing.assert_close(energy, exact, rtol=1e-14, atol=0)
    error = float((grad - by_energy).norm() / by_energy.norm())
    assert 1e-6 < error < 0.01


def test_a_fast_path_keeps_energies_and_leaves_tf32_to_torch() -> None:
    torch.manual_seed(0)
    generator = ProgressiveGenerator(8, latent_size=5, feature_maps=[4, 3]).requires_grad_(False)
    how = {"gradient": "tf32", "mask": torch.ones(8, 8)}
    with problem_of(generator, seeded(1, 3, 8, 8), **how) as p:
        assert p.backend == "fused"
        grad = p.split.grad_alone(seeded(1, 6, 5))
        _, exact = p.potential.energy_and_grad(seeded(1, 6, 5))
    assert 1e-5 < float((grad - exact).norm() / exact.norm()) < 0.01


def test_a_run_says_that_tf32_is_imitated() -> None:
    how = PAPER | {"ais_steps": 3, "leapfrog_steps": 2, "gradient_dtype": "tf32", "noise_std": 3.0}
    result = cogenerate(dense(), seeded(1, 6), torch.ones(6), **keywords(how))
    assert (
        "gradients are computed in float32 with factors rounded as in TF32, and energies in G's "
        "own type by a forward of their own"
    ) in result.notes
    assert result.forwards == 1 + 3
    assert result.settings["gradient_dtype"] == "tf32"


def test_settings_of_cuda_are_on_for_a_gradient_alone() -> None:
    with full_precision():
        with tf32.products(CUDA):
            assert flags()[:2] == (True, "high")
        assert flags()[:2] == (False, "highest")
        with pytest.raises(KeyError), tf32.products(CUDA):
            raise KeyError
        assert flags()[:2] == (False, "highest")


def test_no_other_thread_computes_where_settings_change() -> None:
    exact, found = ExactFloat32(), []

    def in_another_thread(work: Callable[[], object]) -> str:
        def tried() -> None:
            try:
                work()
                found.append("made")
            except RuntimeError as error:
                found.append(str(error))

        thread = threading.Thread(target=tried)
        thread.start()
        thread.join()
        return found[-1]

    def held() -> None:
        with exact.held():
            pass

    with exact.held():
        assert in_another_thread(held) == "made"
        assert in_another_thread(lambda: exact.claim("g")).startswith("g: TF32 on CUDA is a")
        exact.claim("g")
        held()
        assert in_another_thread(held).startswith("g: TF32 on CUDA is a setting of the whole")
    assert in_another_thread(held) == "made"


# --- falling back ---------------------------------------------------------------------------------


class Distant(nn.Module):
    """Outputs so far from 0 that they are equal in bfloat16, which makes its gradients useless."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 6)
        self.layer.weight.data, self.layer.bias.data = seeded(6, 3), torch.full((6,), 1000.0)

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.layer(z)
        return x


def distant_run(**options: Any) -> Result:
    settings: dict[str, Any] = {"noise_std": 0.3, "progress": False}
    if options.get("method") == "paper":
        settings |= {"ais_steps": 40, "leapfrog_steps": 8, "step_size": 0.05, "chains": 8}
    x = Distant()(seeded(1, 3, seed=1)).detach()
    return cogenerate(
        options.pop("G", None) or Distant(),
        x,
        torch.ones(6),
        **keywords({"gradient_dtype": "bfloat16", **(settings | options)}),
    )


def refined_after(result: Result) -> int:
    (note,) = [note for note in result.notes if "finer type" in note]
    return int(note.split()[-2])


def test_gradients_become_finer_where_acceptance_is_low() -> None:
    result = distant_run(method="paper")
    after = refined_after(result)
    assert WINDOW <= after < 30
    low = result.acceptance[after - WINDOW : after].mean()
    assert float(low) < 0.3 < float(result.acceptance[after:].mean())
    # Changing the gradients costs one further gradient. Since then no forwards beside the gradients
    # are needed for energies.
    assert result.gradients == 1 + 40 * 8 + 1
    assert result.forwards == 1 + after
    # If the energies have a type of their own, forwards for them go on.
    result = distant_run(method="paper", energy_dtype="float64")
    assert refined_after(result) > 0
    assert result.forwards == 1 + 40 + 1


def test_the_finer_type_is_taken_for_energies_too() -> None:
    """The energies at both ends of the next trajectory come from the same function."""
    with problem_of(Distant(), torch.full((6,), 1000.0), gradient="bfloat16") as p:
        marked = replace_energies(p.split, 7.0)
        state = hmc.init(marked, seeded(1, 4, 3))
        assert bool((state.energy == 7.0).all())
        after, cost = fallback.refined(state, marked)
        assert cost == 0
        energy, grad = p.potential.energy_and_grad(state.latents)
    torch.testing.assert_close(after.energy, energy, rtol=0, atol=0)
    torch.testing.assert_close(after.grad, grad, rtol=0, atol=0)


def replace_energies(split: SplitPotential, value: float) -> SplitPotential:
    class Constant:
        def energy(self, latents: Tensor) -> Tensor:
            return torch.full(latents.shape[:2], value, dtype=torch.float64)

    energies: Any = Constant()
    return SplitPotential(energies, split.field, split.scale, split.finer)


@pytest.mark.slow
def test_a_frozen_run_keeps_to_what_its_pilot_chose() -> None:
    result = distant_run(method="adaptive", evidence="frozen", chains=16)
    assert refined_after(result) == 0
    coarse = distant_run(method="adaptive", chains=16)
    assert refined_after(coarse) > 0
    # The pilot is the same run as `coarse`. The second run makes no forwards but those of its 64
    # prior draws.
    assert result.forwards == coarse.forwards + 64


@pytest.mark.slow
@pytest.mark.parametrize("method", ["paper", "adaptive"])
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_run_goes_on_bit_for_bit_before_and_after(
    method: str, share: float, tmp_path: Path
) -> None:
    class Breaking(Distant):
        calls, at = 0, 0

        def forward(self, z: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == self.at:
                raise KeyboardInterrupt
            return super().forward(z)

    whole = Breaking()
    expected = distant_run(method=method, G=whole)
    broken = Breaking()
    broken.at = int(share * whole.calls)
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        distant_run(method=method, G=broken, checkpoint=path)
    found = distant_run(method=method, G=broken, checkpoint=path)
    assert_same(found, expected)


# --- what is counted and said ---------------------------------------------------------------------


def test_forwards_are_counted_beside_gradients() -> None:
    generator = Failing()  # it does not fail here, but counts calls
    result = cogenerate(
        generator,
        seeded(1, 5),
        torch.ones(5),
        method=Paper(ais_steps=6, hmc_steps=2, leapfrog_steps=3),
        progress=False,
        noise_std=0.3,
        compute=Compute(gradient_dtype="bfloat16"),
    )
    assert (result.gradients, result.forwards) == (1 + 6 * 2 * 3, 1 + 6 * 2)
    assert result.summary()["forwards"] == 13
    assert "37 gradients and 13 forwards per chain" in repr(result)
    note = (
        "gradients are computed in bfloat16, and energies in G's own type by a forward of their own"
    )
    assert note in result.notes
    assert result.settings["gradient_dtype"] == "bfloat16"
    assert result.settings["backend"] == "native"
    with problem_of(Failing(), seeded(1, 5), gradient="bfloat16") as p:
        before = p.adapter.generator.calls
        state = hmc.init(p.target, seeded(1, 4, 4))
        assert p.adapter.generator.calls == before + 2
        hmc.step(state, p.target, step_size=0.1, leapfrog_steps=3)
        assert p.adapter.generator.calls == before + 2 + 4


def test_the_adaptive_method_counts_them_too() -> None:
    result = cogenerate(
        dense(),
        seeded(1, 6),
        torch.ones(6),
        method=Adaptive(hmc_steps=2),
        noise_std=0.3,
        progress=False,
        compute=Compute(gradient_dtype="float16"),
    )
    moves = int(result.hmc_steps.sum())
    assert moves == 2 * len(result.hmc_steps)
    # Those of the prior draws, of the start, and of each move.
    assert result.forwards == 64 + 1 + moves


def test_a_progressive_generator_keeps_its_fast_path_for_energies() -> None:
    torch.manual_seed(0)
    generator = ProgressiveGenerator(8, latent_size=5, feature_maps=[4, 3]).requires_grad_(False)
    z = seeded(1, 6, 5)
    with problem_of(generator, seeded(1, 3, 8, 8), gradient="bfloat16", mask=torch.ones(8, 8)) as p:
        assert p.backend == "fused"
        energy, grad = p.target.energy_and_grad(z)
        exact, by_energy = p.potential.energy_and_grad(z)
    torch.testing.assert_close(energy, exact, rtol=1e-6, atol=0)
    assert float((grad - by_energy).norm() / by_energy.norm()) < 0.1


def test_memory_that_runs_out_in_either_is_told() -> None:
    with problem_of(dense(), seeded(1, 6), gradient="bfloat16") as p:
        p.split.field.halvings, p.split.field.max_batch = 2, 8
        assert p.halvings == (2, 8)


# --- what is refused ------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gradient": (
        {"gradient_dtype": "int8"},
        r"^gradient_dtype: expected one of \('float32', 'tf32', .*'float16'\), got 'int8'",
    ),
    "energy": (
        {"energy_dtype": "bfloat16"},
        r"^energy_dtype: expected one of \('float32', 'float64'\), got 'bfloat16'",
    ),
    "fused": (
        {"gradient_dtype": "bfloat16", "backend": "fused"},
        r"^backend: fused .* got gradients or energies of another type than the generator's",
    ),
}


@pytest.mark.parametrize(("options", "match"), REFUSED.values(), ids=REFUSED)
def test_wrong_types_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        cogenerate(dense(), seeded(1, 6), torch.ones(6), **keywords({"noise_std": 0.3, **options}))


def test_a_function_has_no_weights_to_convert() -> None:
    generator = dense()
    with (
        pytest.raises(ValueError, match=r"^energy_dtype: expected None for a G that is no nn.Mod"),
        problem_of(lambda z: generator(z), seeded(1, 6), energy="float64", latent_shape=3),
    ):
        pass


def test_a_generator_that_does_not_fit_the_type_is_refused() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 6)

        def forward(self, z: Tensor) -> Tensor:
            return self.layer(z.float())

    with (
        pytest.raises(
            ValueError,
            match=r"^energy_dtype: G, the operator .* computed in torch.float64",
        ),
        problem_of(Stubborn(), seeded(1, 6), energy="float64"),
    ):
        pass
    matrix = seeded(6, 6)
    with (
        pytest.raises(ValueError, match=r"^energy_dtype: G, the operator or the misfit cannot be"),
        problem_of(dense(), seeded(1, 6), energy="float64", mask=Operator(lambda x: x @ matrix)),
    ):
        pass
    large = Distant()
    large.layer.bias.data.fill_(1e6)
    with (
        pytest.raises(ValueError, match=r"^gradient_dtype: expected a type that holds G's values"),
        problem_of(large, torch.full((6,), 1e6), gradient="float16"),
    ):
        pass


# --- TF32 -----------------------------------------------------------------------------------------

OPERATIONS: dict[str, Any] = {
    "products": torch.backends.cuda.matmul,
    "convolutions": getattr(torch.backends.cudnn, "conv", None),
    "recurrence": getattr(torch.backends.cudnn, "rnn", None),
    "products on the CPU": getattr(torch.backends.mkldnn, "matmul", None),
    "convolutions on the CPU": getattr(torch.backends.mkldnn, "conv", None),
}
by_operation = pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"),
    reason="needs a torch that has a precision for each operation (2.9)",
)


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def flags() -> tuple[bool, str, bool]:
    cudnn = torch.backends.cudnn
    return cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.enabled


def precisions() -> dict[str, str]:
    return {name: operation.fp32_precision for name, operation in OPERATIONS.items()}


@pytest.mark.usefixtures("tf32_allowed")
def test_tf32_is_off_inside_and_cudnn_stays_on() -> None:
    with full_precision():
        assert flags() == (False, "highest", True)
    assert flags() == (True, "high", True)


@pytest.mark.usefixtures("tf32_allowed")
def test_tf32_comes_back_with_the_last_of_several_threads() -> None:
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with full_precision():
            entered.set()
            assert leave.wait(10)
            seen.append(flags())

    thread = threading.Thread(target=other)
    with full_precision():
        thread.start()
        assert entered.wait(10)
    seen.append(flags())  # this thread has left `full_precision`, the other one has not
    leave.set()
    thread.join()
    assert seen == [(False, "highest", True)] * 2
    assert flags() == (True, "high", True)


@pytest.mark.usefixtures("tf32_allowed")
def test_settings_come_back_where_entering_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(precision: str) -> None:
        raise RuntimeError("not now")

    with monkeypatch.context() as patched:
        # It is called with "high" on leaving, too.
        patched.setattr(torch, "set_float32_matmul_precision", refused)
        with pytest.raises(RuntimeError, match="not now"), full_precision():
            pass
    assert flags() == (True, "high", True)
    with full_precision():
        assert flags() == (False, "highest", True)
    assert flags() == (True, "high", True)


SETTINGS: dict[str, dict[str, str]] = {
    "all": {"all": "tf32"},
    "all exact": {"all": "ieee"},
    "products": {"products": "tf32"},
    "exact convolutions": {"convolutions": "ieee"},
    "convolutions among exact": {"all": "ieee", "convolutions": "tf32"},
    "on the CPU": {"products on the CPU": "bf16", "convolutions on the CPU": "bf16"},
}


def set_each(settings: dict[str, str]) -> None:
    """Set the precision of operations, or of "all"."""
    for name, value in settings.items():
        holder = torch.backends if name == "all" else OPERATIONS[name]
        holder.fp32_precision = value


class Watching(nn.Module):
    """A network that notes the precisions with which it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = dense(), []

    def forward(self, z: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):  # which reads and sets the older flag, too
            pass
        self.seen.append((*flags()[:2], *set(precisions().values())))
        x: Tensor = self.net(z)
        return x


def run_with_each_setting() -> None:
    for name, settings in SETTINGS.items():
        set_each(settings)
        before, generator = precisions(), Watching()
        how = keywords(PAPER | {"ais_steps": 2, "leapfrog_steps": 2})
        cogenerate(generator, seeded(1, 6), torch.ones(6), **how)
        assert set(generator.seen) == {(False, "highest", "ieee")}, (name, generator.seen)
        assert precisions() == before, name
        # What an operation has of its own stays, and what it has from "all" follows it.
        set_each({"all": "ieee"})
        after = precisions()
        own = {key: value for key, value in settings.items() if key != "all"}
        assert {key: after[key] for key in own} == own, name
        assert "products" in own or after["products"] == "ieee", name
        set_each({"all": "none"} | dict.fromkeys(OPERATIONS, "none"))


@by_operation
@pytest.mark.slow
def test_runs_with_precisions_by_operation() -> None:
    """In a process of its own, as no setting of torch brings back how it starts."""
    in_a_process(__file__, "run_with_each_setting")
