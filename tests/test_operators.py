"""Operators of inverse problems and robust misfits, each against a few lines of its definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cogen_fast import (
    Blur,
    Fourier,
    Huber,
    Luminance,
    Magnitudes,
    Matrix,
    Operator,
    StudentT,
    bound_evidence,
    cogenerate,
)
from cogen_fast.problem.problem import prepared

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=F64)


@pytest.mark.parametrize("border", ["replicate", "zeros", "valid"])
@pytest.mark.parametrize("shape", [(3, 3), (1, 5), (5, 3)])
def test_a_blur_is_a_convolution(border: Any, shape: tuple[int, int]) -> None:
    x, kernel = normal(2, 3, 9, 7), normal(*shape, seed=1)
    found = Blur(kernel, border).apply(x)
    pad = [(n // 2, n // 2) for n in shape]
    for one, image in zip(found.flatten(0, 1), x.flatten(0, 1).numpy(), strict=True):
        if border != "valid":
            image = np.pad(image, pad, mode="edge" if border == "replicate" else "constant")
        windows = np.lib.stride_tricks.sliding_window_view(image, shape)
        expected = np.einsum("ijab,ab->ij", windows, kernel.numpy()[::-1, ::-1])
        np.testing.assert_allclose(one.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_gaussian_blur_keeps_brightness_and_spreads_by_its_deviation() -> None:
    x = torch.zeros(1, 1, 41, 41, dtype=F64)
    x[..., 20, 20] = 1.0
    y = Blur.gaussian(2.0).apply(x)[0, 0]
    place = torch.arange(41.0, dtype=F64) - 20
    assert float(y.sum()) == pytest.approx(1.0)
    variance = float((y.sum(0) * place**2).sum())
    # The kernel is cut off at three standard deviations.
    assert variance == pytest.approx(4.0, rel=0.05)


def test_a_matrix_multiplies_flat_outputs() -> None:
    x, matrix = normal(2, 3, 4), normal(5, 12, seed=1)
    np.testing.assert_allclose(Matrix(matrix).apply(x), x.flatten(1) @ matrix.T)
    phases = torch.complex(matrix, normal(5, 12, seed=2))
    found = torch.view_as_complex(Matrix(phases).apply(x))
    np.testing.assert_allclose(found, x.flatten(1).to(phases.dtype) @ phases.T)
    np.testing.assert_allclose(Magnitudes(phases).apply(x), found.abs())
    gaussian = Matrix.gaussian(400, 50, seed=3)
    norms = gaussian.apply(x.new_ones(1, 50)).square().sum()
    assert float(norms) == pytest.approx(50.0, rel=5.0 * math.sqrt(2 / 400))
    assert torch.equal(
        Matrix.gaussian(400, 50, seed=3).apply(x.new_ones(1, 50)), gaussian.apply(x.new_ones(1, 50))
    )


def test_observed_frequencies_are_those_of_the_transform() -> None:
    x = normal(2, 3, 6, 5)
    mask = (normal(6, 5, seed=1) > 0).numpy()
    found = torch.view_as_complex(Fourier(mask).apply(x))
    expected = np.fft.fft2(x.numpy(), norm="ortho")[:, :, mask]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_grey_values_weigh_colours() -> None:
    x = normal(2, 3, 4, 4)
    expected = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    np.testing.assert_allclose(Luminance().apply(x), expected)


def test_robust_misfits_are_minus_log_densities() -> None:
    a, b = normal(4, 3, 5), 3.0 * normal(4, 3, 5, seed=1)
    energy = StudentT(0.7, degrees=3.0)(a, b)
    density = torch.distributions.StudentT(3.0).log_prob((a - b) / 0.7)
    density = density - torch.distributions.StudentT(3.0).log_prob(torch.zeros(()))
    np.testing.assert_allclose(energy, -density.sum((1, 2)), rtol=1e-6)
    u = np.abs((a - b).numpy() / 0.5)
    expected = np.where(u < 2.0, u**2 / 2, 2.0 * (u - 1.0)).sum((1, 2))
    np.testing.assert_allclose(Huber(0.5, threshold=2.0)(a, b), expected, rtol=1e-10)


class Linear(nn.Module):
    """Images ``(1, 4, 4)`` that are linear in three latents."""

    latent_size = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(3, 16))

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.weight).reshape(-1, 1, 4, 4)


def posterior(measured: Tensor, x_obs: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of latents whose measurement is ``z measured`` plus noise."""
    precision = torch.eye(3, dtype=F64) + measured @ measured.T / std**2
    covariance = torch.linalg.inv(precision)
    return covariance @ measured @ x_obs / std**2, covariance


def test_complex_measurements_have_the_posterior_of_their_parts() -> None:
    generator = Linear()
    mask = torch.zeros(4, 4)
    mask[0, :2] = mask[1, 2] = 1
    operator = Fourier(mask)
    rows = operator.apply(generator.weight.detach().reshape(3, 1, 4, 4)).flatten(1)
    truth = normal(1, 3, seed=5)
    x_obs = torch.view_as_complex((truth @ rows).reshape(1, 1, 3, 2))
    chains = 400
    result = cogenerate(
        generator, x_obs, operator, noise_std=0.5, chains=chains, seed=2, progress=False
    )
    mean, covariance = posterior(rows, (truth @ rows)[0], 0.5)
    latents = result.latents[0].double()
    error = covariance.diagonal().sqrt() / math.sqrt(chains)
    assert ((latents.mean(0) - mean).abs() < 5.0 * error).all()
    assert (
        (latents.var(0) / covariance.diagonal()).log().abs() < 5.0 * math.sqrt(2 / chains)
    ).all()


def test_complex_and_real_data_are_not_mixed_up() -> None:
    generator, x = Linear(), torch.zeros(1, 4, 4)
    with pytest.raises(TypeError, match=r"x_obs: expected complex values for Fourier"):
        cogenerate(generator, torch.zeros(1, 16), Fourier(torch.ones(4, 4)), noise_std=1.0)
    with pytest.raises(TypeError, match=r"x_obs: expected real values for Mask"):
        cogenerate(generator, x.to(torch.complex64), torch.ones(4, 4), noise_std=1.0)


@pytest.mark.parametrize("misfit", [Huber(0.1), StudentT(0.1)])
def test_outliers_count_little_with_a_robust_misfit(misfit: Any) -> None:
    generator = Linear()
    truth = generator(normal(1, 3, seed=7)).detach()
    x_obs = truth.clone()
    x_obs[0, 0, 1, 1] += 30.0
    options: dict[str, Any] = {"budget": 150, "progress": False, "seed": 1}
    robust = cogenerate(generator, x_obs, torch.ones(4, 4), misfit=misfit, **options)
    squared = cogenerate(generator, x_obs, torch.ones(4, 4), noise_std=0.1, **options)
    error = (robust.mean() - truth).abs().max()
    assert error < 0.5
    assert (squared.mean() - truth).abs().max() > 4.0 * error


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(torch.ones(2, 2)), "kernel: expected odd sizes"),
        (lambda: Blur(torch.ones(2, 2, 2)), r"kernel: expected shape \(k,\)"),
        (lambda: Blur([1.0, float("nan"), 1.0]), "kernel: expected finite numbers"),
        (lambda: Blur([1.0], "mirror"), "border: expected"),  # type: ignore[arg-type]
        (lambda: Blur.gaussian(0.0), "std: expected"),
        (lambda: Matrix(torch.ones(3)), r"matrix: expected shape \(m, n\)"),
        (lambda: Matrix.gaussian(0, 5), "measurements: expected"),
        (lambda: Matrix(torch.ones(2, 3)).apply(torch.ones(1, 4)), "matrix: expected 4 columns"),
        (lambda: Fourier(torch.ones(3)), r"mask: expected shape \(H, W\)"),
        (lambda: Fourier(torch.full((2, 2), 0.5)), r"mask: expected shape \(H, W\) of 0 and 1"),
        (lambda: Fourier(torch.zeros(2, 2)), "mask: expected at least one"),
        (lambda: Fourier(torch.ones(2, 2)).apply(torch.ones(1, 1, 3, 3)), r"expected shape \(3, 3"),
        (lambda: Luminance().apply(torch.ones(1, 1, 3, 3)), "reads 3 colours, got 1"),
        (lambda: Luminance().apply(torch.ones(1, 3)), r"reads images \(C, H, W\)"),
        (lambda: Huber(-1.0), "noise_std: expected"),
        (lambda: StudentT(1.0, degrees=0.0), "degrees: expected"),
    ],
)
def test_arguments_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Physics(nn.Module):
    """The interface of a physics of deepinv: `A` measures, and a call measures and adds noise.

    Like deepinv's own, it keeps what it measures with as a buffer, and `A` takes new values of it
    as keywords. ``weights`` are ``(m, 16)``, real or complex.
    """

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights: Tensor
        self.register_buffer("weights", weights)

    def A(self, x: Tensor, weights: Tensor | None = None, **kwargs: Any) -> Tensor:
        used = self.weights if weights is None else weights
        return x.flatten(1).to(used.dtype) @ used.T

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        x: Tensor = (y @ self.weights.conj()).real.reshape(-1, 1, 4, 4)
        return x

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        measured = self.A(x, **kwargs)
        return measured + 0.1 * torch.randn_like(measured)


@pytest.mark.parametrize("imaginary", [0.0, 1.0])
def test_a_physics_measures_without_its_noise(imaginary: float) -> None:
    weights = normal(5, 16)
    if imaginary:
        weights = torch.complex(weights, imaginary * normal(5, 16, seed=1))
    generator, physics = Linear(), Physics(weights)
    measured = physics(generator(normal(1, 3, seed=5)).detach())
    options: dict[str, Any] = {"noise_std": 0.1, "budget": 60, "progress": False}
    by_physics = cogenerate(generator, measured, physics, **options)
    by_matrix = cogenerate(generator, measured, Matrix(weights), **options)
    torch.testing.assert_close(by_physics.latents, by_matrix.latents, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(by_physics.energies, by_matrix.energies, rtol=1e-6, atol=1e-6)


def test_a_physics_of_several_measurements_is_refused_or_joined() -> None:
    class Stacked:
        def A(self, x: Tensor) -> list[Tensor]:
            return [x.flatten(1)[:, :3], x.flatten(1)[:, 8:]]

    generator, stacked = Linear(), Stacked()
    x = generator(normal(1, 3, seed=5)).detach()
    joined = Operator(lambda x: torch.cat(stacked.A(x), dim=1))
    with pytest.raises(TypeError, match="the operator must return a float tensor, got list"):
        cogenerate(generator, joined.measure(x), stacked, noise_std=0.1)
    result = cogenerate(
        generator, joined.measure(x), joined, noise_std=0.01, budget=100, progress=False
    )
    assert (result.mean() - x).abs().max() < 0.1


def test_an_operator_without_a_tensor_is_told() -> None:
    with pytest.raises(TypeError, match="the operator must return a float tensor"):
        Operator(lambda x: None).apply(torch.ones(1, 2))  # type: ignore[arg-type, return-value]


def test_noise_of_complex_measurements_is_that_of_both_parts() -> None:
    generator, matrix = Linear(), torch.complex(normal(2, 16), normal(2, 16, seed=1))
    operator = Matrix(matrix)
    x_obs = operator.measure(generator(normal(1, 3)).detach())
    assert x_obs.dtype == torch.complex128
    assert x_obs.shape == (1, 2)
    with prepared(generator, x_obs, operator, noise_std=[0.1, 0.9]) as problem:
        weight = problem.observation.spec.weight.flatten()
    torch.testing.assert_close(weight, 0.5 / torch.tensor([0.1, 0.1, 0.9, 0.9]).double() ** 2)
    with pytest.raises(ValueError, match=r"noise_std: expected shape broadcastable to \(2,\)"):
        cogenerate(generator, x_obs, operator, noise_std=[0.1] * 4)


def test_evidence_of_complex_measurements_is_bounded() -> None:
    operator = Matrix(torch.complex(normal(2, 16), normal(2, 16, seed=1)))
    found = bound_evidence(Linear(), operator, noise_std=0.5, simulations=2, chains=16, seed=3)
    assert found.x_obs.is_complex()
    assert (found.gap > -1.0).all()


def test_an_operator_used_in_inference_mode_stays_usable() -> None:
    generator, blur = Linear(), Blur([0.25, 0.5, 0.25])
    with torch.inference_mode():
        x_obs = blur.measure(generator(normal(1, 3)))
    cogenerate(generator, x_obs.clone(), blur, noise_std=0.5, budget=40, progress=False)
