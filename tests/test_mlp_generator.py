"""The dense generator: the authors' own 2-D one from plain arrays, activations, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cogen_fast.generators import MLPGenerator, load_generator

FIVE_GAUSSIANS = "five_gaussians_generator_15000.npz"
BY_HAND: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(x, 0.0),
    "leaky_relu": lambda x: x if x > 0 else 0.2 * x,
    "tanh": math.tanh,
    "sigmoid": lambda x: 1.0 / (1.0 + math.exp(-x)),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "identity": lambda x: x,
}


def layer_arrays(**changes: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    shapes = {"w1": (2, 5), "b1": (5,), "w2": (5, 3), "b2": (3,)}
    arrays = {name: random.normal(size=shape) for name, shape in shapes.items()}
    return arrays | changes


def test_published_generator_is_the_written_formula(data_dir: Path) -> None:
    with np.load(data_dir / FIVE_GAUSSIANS, allow_pickle=False) as file:
        p = {name: file[name].astype(np.float64) for name in file.files}
    z = np.random.default_rng(1).normal(size=(50, 2))
    hidden = np.maximum(np.maximum(z @ p["w1"] + p["b1"], 0) @ p["w2"] + p["b2"], 0)
    generator = load_generator(data_dir / FIVE_GAUSSIANS)
    assert isinstance(generator, MLPGenerator)
    assert generator.sizes == (2, 20, 20, 2)
    assert not generator.training
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    assert {parameter.dtype for parameter in generator.parameters()} == {torch.float32}
    x = generator.double()(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(x, hidden @ p["w3"] + p["b3"], rtol=1e-12, atol=1e-12)


def test_published_generator_draws_from_the_unit_circle(data_dir: Path) -> None:
    z = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    radius = load_generator(data_dir / FIVE_GAUSSIANS)(z).norm(dim=1)
    assert radius.mean().item() == pytest.approx(1.02, abs=0.01)
    assert radius.std().item() == pytest.approx(0.04, abs=0.01)


def test_any_depth_and_float_type_of_npz(tmp_path: Path) -> None:
    arrays = layer_arrays()
    np.savez(tmp_path / "two.npz", **arrays)
    generator = load_generator(tmp_path / "two.npz")
    z = np.random.default_rng(2).normal(size=(4, 2))
    expected = np.maximum(z @ arrays["w1"] + arrays["b1"], 0) @ arrays["w2"] + arrays["b2"]
    x = generator(torch.from_numpy(z))
    assert x.dtype == torch.float64
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w2": np.zeros((4, 3))}, r"layers\.1\.weight: expected shape \(3, 5\) .* got \(3, 4\)"),
        ({"b1": np.zeros(4)}, r"w1, b1: expected shapes \(in, out\) and \(out,\), got \(2, 5\)"),
        ({"b2": np.zeros(3, dtype=np.float32)}, "expected arrays of one float type, got float32,"),
        ({"w3": np.zeros((3, 3))}, "got an npz archive, with keys 'w1', 'b1', 'w2', 'b2', 'w3'"),
    ],
)
def test_npz_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "bad.npz", **layer_arrays(**changes))
    with pytest.raises(ValueError, match=message):
        load_generator(tmp_path / "bad.npz")


def test_npz_of_integers_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **{k: v.astype(int) for k, v in layer_arrays().items()})
    with pytest.raises(ValueError, match="expected arrays of one float type, got int64"):
        load_generator(tmp_path / "bad.npz")


@pytest.mark.parametrize("name", BY_HAND)
def test_activations(name: str) -> None:
    generator = MLPGenerator((1, 1, 1), activation=name, final=name).double()
    for parameter in generator.parameters():
        parameter.data.fill_(-0.7 if parameter.ndim == 2 else 0.2)
    act = BY_HAND[name]
    for z in (-1.5, 0.4, 2.0):
        expected = act(0.2 - 0.7 * act(0.2 - 0.7 * z))
        x = generator(torch.tensor([[z]], dtype=torch.float64)).item()
        assert x == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_config_rebuilds_an_equal_module() -> None:
    generator = MLPGenerator((3, 8, 4), activation="elu", final="tanh")
    again = MLPGenerator(**json.loads(json.dumps(generator.config)))
    again.load_state_dict(generator.state_dict())
    assert again.config == generator.config
    assert (again.latent_size, again.output_shape) == (3, (4,))
    z = torch.randn(5, 3)
    torch.testing.assert_close(again(z), generator(z), rtol=0, atol=0)


def test_final_none_is_identity() -> None:
    assert MLPGenerator().config == {
        "sizes": [2, 20, 20, 2],
        "activation": "relu",
        "final": "identity",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": (2,)}, r"sizes: expected at least two widths, got \(2,\)"),
        ({"sizes": (2, 0, 2)}, "sizes: expected an integer of at least 1, got 0"),
        ({"activation": "gelu"}, "activation: expected one of relu, .* got 'gelu'"),
        ({"activation": None}, "activation: expected one of relu, .* got None"),
        ({"final": "gelu"}, "final: expected one of relu, .* got 'gelu'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        MLPGenerator(**arguments)


@pytest.mark.parametrize("shape", [(2,), (4, 3), (4, 2, 1)], ids=str)
def test_latent_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^z: expected shape \(N, 2\), got"):
        MLPGenerator()(torch.zeros(shape))
