"""The JAX twins against torch, and BlackJAX's SMC against a posterior known in closed form.

    pytest benchmarks/peers/test_twins.py

Skipped where JAX and BlackJAX (the extra ``peers``) or the checkpoints are absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from dcgan import data_folder, load_faces
from torch import Tensor, nn

from cogen_fast import load_generator
from cogen_fast.experiments.calibration import z_scores
from cogen_fast.experiments.exact_models import LinearGaussian
from cogen_fast.generators import ProgressiveGenerator

jax = pytest.importorskip("jax", reason="the twins need jax (extra `peers`)")
pytest.importorskip("blackjax", reason="the rival needs blackjax (extra `peers`)")

import jax.numpy as jnp  # noqa: E402
from peers import jax_generators, nuts, tempered_smc  # noqa: E402
from peers.tempered_smc import Outcome, sample  # noqa: E402

_ROWS = 7
_WEIGHT = 50.0


class _Pair(NamedTuple):
    """A torch module on rows of latents, the maker of its twin, and what is observed."""

    module: nn.Module
    rows_to_input: Callable[[Tensor], Tensor]
    twin: Callable[[nn.Module], jax_generators.Generator]
    latent_size: int
    mask: np.ndarray


def _file(name: str) -> Path:
    path = data_folder() / name
    if not path.exists():
        pytest.skip(f"{path} is absent (set COGEN_FAST_TEST_DATA)")
    return path


def _mlp() -> _Pair:
    module = load_generator(_file("five_gaussians_generator_15000.npz"))
    return _Pair(
        module,
        lambda z: z,
        lambda m: jax_generators.mlp(m.state_dict()),
        2,
        np.array([0.0, 1.0]),
    )


def _dcgan() -> _Pair:
    module = load_faces(_file("dcgan_faces_64px.pth").parent)
    mask = np.ones((64, 64))
    mask[17:47, 17:47] = 0
    return _Pair(module, lambda z: z[:, :, None, None], jax_generators.dcgan, 100, mask)


def _progressive() -> _Pair:
    torch.manual_seed(0)
    module = ProgressiveGenerator(32, latent_size=20, fmap_base=512, fmap_max=64)
    mask = np.ones((32, 32))
    mask[8:24, 8:24] = 0
    return _Pair(module.requires_grad_(False), lambda z: z, jax_generators.progressive, 20, mask)


_PAIRS = {"mlp": _mlp, "dcgan": _dcgan, "progressive": _progressive}


def _precision(dtype: torch.dtype) -> AbstractContextManager[Any]:
    return jax.enable_x64(True) if dtype == torch.float64 else nullcontext()


def _torch_side(pair: _Pair, rows: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Outputs, and z-gradients ``(n, d)`` of the misfit."""
    z = rows.clone().requires_grad_()
    x = pair.module(pair.rows_to_input(z))
    residual = torch.from_numpy(pair.mask).to(x) * (x - target)
    (grad,) = torch.autograd.grad(_WEIGHT * (residual**2).sum(), z)
    return x.detach().numpy(), grad.numpy()


def _jax_side(
    pair: _Pair, twin: jax_generators.Generator, rows: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same, as the sampler has it: row by row under vmap, in a compiled function."""
    mask = jnp.asarray(pair.mask, target.dtype)

    def misfit(z: jax.Array) -> jax.Array:
        return _WEIGHT * jnp.sum((mask * (twin(z[None])[0] - target)) ** 2)

    grad = jax.jit(jax.vmap(jax.grad(misfit)))(rows)
    return np.asarray(jax.jit(twin)(rows)), np.asarray(grad)


def _relative_error(ours: np.ndarray, exact: np.ndarray) -> float:
    """Largest error of a row against the largest row, in the Euclidean norm."""
    assert ours.shape == exact.shape and ours.dtype == exact.dtype
    error = np.linalg.norm((ours - exact).reshape(len(exact), -1), axis=1)
    return float(error.max() / np.linalg.norm(exact.reshape(len(exact), -1), axis=1).max())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"]
)
@pytest.mark.parametrize("name", _PAIRS)
def test_twin_equals_torch(name: str, dtype: torch.dtype, tolerance: float) -> None:
    pair = _PAIRS[name]()
    pair.module.to(dtype)
    # Not any seed: where a ReLU's input is within rounding of 0, torch's own float32 gradient is
    # 7e-5 from its float64 one.
    rng = torch.Generator().manual_seed(4)
    rows = torch.randn(_ROWS, pair.latent_size, generator=rng).to(dtype)
    with torch.no_grad():
        target = pair.module(pair.rows_to_input(-rows[:1]))[0]
    exact = _torch_side(pair, rows, target)
    with _precision(dtype):
        ours = _jax_side(pair, pair.twin(pair.module), rows.numpy(), target.numpy())
    for twin, torch_ in zip(ours, exact, strict=True):
        assert _relative_error(twin, torch_) < tolerance


def test_mlp_reads_the_npz_as_it_reads_the_module() -> None:
    path = _file("five_gaussians_generator_15000.npz")
    z = np.random.default_rng(0).standard_normal((_ROWS, 2), dtype=np.float32)
    from_npz = jax_generators.mlp(dict(np.load(path)))(z)
    np.testing.assert_array_equal(
        from_npz, jax_generators.mlp(load_generator(path).state_dict())(z)
    )


class _Linear(NamedTuple):
    """``G(z) = A z``, all observed with noise of precision ``2 weight``: a Gaussian posterior."""

    matrix: np.ndarray
    x_obs: np.ndarray
    weight: float

    def posterior(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance."""
        d = self.matrix.shape[1]
        covariance = np.linalg.inv(np.eye(d) + 2 * self.weight * self.matrix.T @ self.matrix)
        return covariance @ (2 * self.weight * self.matrix.T @ self.x_obs), covariance

    def log_evidence(self) -> float:
        """``log E[exp(-weight ||A z - x_obs||^2)]`` over the prior."""
        m = len(self.x_obs)
        spread = np.eye(m) / (2 * self.weight) + self.matrix @ self.matrix.T
        density = -0.5 * (
            self.x_obs @ np.linalg.solve(spread, self.x_obs) + np.linalg.slogdet(spread)[1]
        )
        return density - 0.5 * m * np.log(2 * self.weight)

    def run(self, **settings: Any) -> Outcome:
        matrix = jnp.asarray(self.matrix, jnp.float32)
        return sample(
            lambda z: z @ matrix.T,
            lambda x: x,
            np.float32(self.x_obs),
            self.weight,
            self.matrix.shape[1],
            **settings,
        )


_LINEAR = _Linear(np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), np.array([1.5, -0.7]), 50.0)


@pytest.mark.parametrize("adapt_mass", [False, True])
def test_smc_recovers_a_linear_gaussian_posterior(adapt_mass: bool) -> None:
    outcome = _LINEAR.run(
        particles=2000, seed=1, mcmc_steps=5, steps_at_one=4, adapt_mass=adapt_mass
    )
    mean, covariance = _LINEAR.posterior()
    # A fifth of the particles as independent draws is a cautious guess after 20 moves at 1.
    error = np.sqrt(np.diag(covariance) / (len(outcome.latents) / 5))
    assert outcome.temperatures[-1] == 1
    assert np.all(np.abs(outcome.latents.mean(0) - mean) < 4 * error)
    np.testing.assert_allclose(np.cov(outcome.latents.T), covariance, atol=0.15)
    assert outcome.log_evidence == pytest.approx(_LINEAR.log_evidence(), abs=0.2)


def test_smc_counts_what_it_evaluates() -> None:
    counts: Counter[str] = Counter()

    def count(kind: str) -> None:
        # Without arguments it is called once for all rows under vmap, not once per row.
        jax.debug.callback(lambda: counts.update([kind]))

    @jax.custom_vjp
    def generator(z: jax.Array) -> jax.Array:
        count("forward")
        return z

    def backward(_: None, grad: jax.Array) -> tuple[jax.Array]:
        count("gradient")
        return (grad,)

    generator.defvjp(lambda z: (z, None), backward)
    outcome = sample(
        generator,
        lambda x: x,
        np.ones(2, np.float32),
        9.0,
        2,
        20,
        0,
        mcmc_steps=3,
        leapfrog_steps=4,
    )
    jax.effects_barrier()
    assert len(outcome.temperatures) > 2
    assert counts["gradient"] == outcome.gradients_per_chain
    assert counts["forward"] == outcome.forwards_per_chain


def test_smc_keeps_to_its_budget() -> None:
    outcome = _LINEAR.run(particles=50, seed=0, target_ess=0.9, max_gradients=50)
    assert outcome.gradients_per_chain <= 50
    assert outcome.temperatures[-1] < 1
    assert outcome.log_evidence is None
    with pytest.raises(ValueError, match="max_gradients"):
        _LINEAR.run(particles=50, seed=0, max_gradients=5)


_EXACT = LinearGaussian.named("stiff", 8, 0.3)


_DATA = _EXACT.data(range(16))


def _exact_log_likelihood(z: jax.Array, x: jax.Array) -> jax.Array:
    residual = jax_generators.linear_gaussian(_EXACT)(z[None])[0] - x
    return -0.5 / _EXACT.noise**2 * jnp.sum(residual**2)


def test_twin_of_an_exact_model() -> None:
    rows = torch.randn(_ROWS, 8, generator=torch.Generator().manual_seed(4))
    ours = np.asarray(jax_generators.linear_gaussian(_EXACT)(rows.numpy()))
    assert _relative_error(ours, _EXACT.generator(rows).numpy()) < 1e-5


def test_repetitions_recover_an_exact_model() -> None:
    # Sixteen independent runs: correct ones break 4.5 errors with a probability of 4e-4.
    outcomes = tempered_smc.repetitions(
        _exact_log_likelihood,
        _DATA.numpy(),
        8,
        64,
        target_ess=0.8,
        steps_at_one=10,
        max_gradients=2000,
    )
    energies = torch.tensor([float(outcome.energies[-10:].mean()) for outcome in outcomes])
    assert abs(z_scores(energies - _EXACT.mean_energy(_DATA), 0.0)) < 4.5
    assert all(outcome.temperatures[-10] >= tempered_smc.NEARLY_ONE for outcome in outcomes)
    assert len({outcome.log_evidence for outcome in outcomes}) == 16


def test_nuts_recovers_an_exact_model_with_the_gradients_it_is_given() -> None:
    outcome = nuts.repetitions(
        _exact_log_likelihood, _DATA.numpy(), 8, 4, 4000, nuts.Settings(0.05, doublings=6)
    )
    energies = torch.from_numpy(outcome.energies)
    assert abs(z_scores(energies - _EXACT.mean_energy(_DATA), 0.0)) < 4.5
    assert (outcome.gradients <= 4000).all()
    assert (outcome.gradients > 3000).all()
    assert (outcome.draws > outcome.warmup / 4).all()
