"""The progressive generator: its function, its configuration, its cost, its refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cogen_fast.generators import ProgressiveGenerator
from cogen_fast.generators.progressive import pixel_norm

SMALL: dict[str, Any] = {"latent_size": 7, "feature_maps": [5, 6, 3]}


def seeded(resolution: int = 16, **options: Any) -> ProgressiveGenerator:
    torch.manual_seed(0)
    generator = ProgressiveGenerator(resolution, **options).double()
    for parameter in generator.parameters():
        parameter.data = torch.randn_like(parameter)
    return generator.requires_grad_(False)


def written_out(generator: ProgressiveGenerator, z: Tensor, rgb: str = "to_rgb") -> Tensor:
    """The network, computed from the method and the state dict without code of the module."""
    state = generator.state_dict()

    def norm(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(dim=1, keepdim=True) + 1e-8).sqrt()

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.weight"]
        scale = (2.0 / weight[0].numel()) ** 0.5
        return F.conv2d(x * scale, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def act(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    dense = state["base.dense.weight"] * (2.0 / z.shape[1]) ** 0.5
    x = norm(act(norm(z) @ dense.T + state["base.dense.bias"]).view(len(z), -1, 4, 4))
    x = norm(act(conv(x, "base.conv")))
    blocks = len(generator.blocks) - (rgb == "to_rgb_previous")
    for block in range(blocks):
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        for number in (0, 1):
            x = norm(act(conv(x, f"blocks.{block}.conv{number}")))
    return conv(x, rgb)


def test_forward_is_the_published_network() -> None:
    generator = seeded(**SMALL)
    z = torch.randn(3, 7, dtype=torch.float64)
    image = generator(z)
    assert image.dtype == torch.float64
    assert image.shape == (3, *generator.output_shape) == (3, 3, 16, 16)
    torch.testing.assert_close(image, written_out(generator, z), rtol=1e-12, atol=1e-12)


def test_alpha_is_the_weight_of_the_new_resolution() -> None:
    generator = seeded(**SMALL, alpha=0.3)
    z = torch.randn(2, 7, dtype=torch.float64)
    new = written_out(generator, z)
    old = written_out(generator, z, "to_rgb_previous")
    old = old.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(generator(z), 0.3 * new + 0.7 * old, rtol=1e-12, atol=1e-12)
    generator.alpha = 0.0
    torch.testing.assert_close(generator(z), old, rtol=1e-12, atol=1e-12)
    generator.alpha = 1.0
    torch.testing.assert_close(generator(z), new, rtol=1e-12, atol=1e-12)


def test_tanh_comes_last_of_all() -> None:
    linear, bounded = seeded(**SMALL, alpha=0.3), seeded(**SMALL, alpha=0.3, final="tanh")
    z = torch.randn(2, 7, dtype=torch.float64)
    torch.testing.assert_close(bounded(z), torch.tanh(linear(z)), rtol=0, atol=0)


def test_each_norm_can_be_left_out() -> None:
    z = 3.0 * torch.randn(2, 7, dtype=torch.float64)
    with_latent, without_latent = seeded(**SMALL), seeded(**SMALL, normalise_latent=False)
    torch.testing.assert_close(with_latent(z), without_latent(pixel_norm(z)), rtol=0, atol=0)
    assert not torch.allclose(with_latent(z), without_latent(z))
    without_dense = seeded(**SMALL, normalise_dense=False)
    base, z = without_dense.base, pixel_norm(z)
    x = F.leaky_relu(base.dense(z), 0.2).reshape(2, 5, 4, 4)
    expected = pixel_norm(F.leaky_relu(base.conv(x), 0.2))
    torch.testing.assert_close(base(z), expected, rtol=0, atol=0)
    assert not torch.allclose(base(z), with_latent.base(z))


def test_latent_may_carry_two_empty_dimensions() -> None:
    generator = seeded(**SMALL)
    z = torch.randn(2, 7, dtype=torch.float64)
    torch.testing.assert_close(generator(z[:, :, None, None]), generator(z), rtol=0, atol=0)
    assert generator(z[:0]).shape == (0, 3, 16, 16)


@pytest.mark.slow
def test_gradient_of_the_latent() -> None:
    generator = seeded(8, latent_size=5, feature_maps=[4, 3], alpha=0.4)
    z = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(generator, (z,))


@pytest.mark.parametrize(
    ("fmap_base", "maps", "giga"),
    [
        (8192, [512, 512, 512, 512, 256, 128], 20.9),
        (2048, [512, 512, 256, 128, 64, 32], 2.16),
    ],
)
def test_feature_maps_and_cost_at_128_px(fmap_base: int, maps: list[int], giga: float) -> None:
    with torch.device("meta"):
        generator = ProgressiveGenerator(128, fmap_base=fmap_base)
    assert generator.feature_maps == maps
    assert float(f"{generator.multiply_adds() / 1e9:.3g}") == giga


def test_cost_counts_what_is_run() -> None:
    generator = seeded(8, latent_size=7, feature_maps=[5, 6], fades=True)
    grown = 7 * 80 + 9 * 25 * 16 + 9 * (30 + 36) * 64 + 18 * 64
    assert generator.multiply_adds() == grown
    generator.alpha = 0.5
    assert generator.multiply_adds() == grown + 15 * 16


def test_full_size_network_has_the_published_feature_maps() -> None:
    with torch.device("meta"):
        generator = ProgressiveGenerator(1024)
    assert generator.feature_maps == [512, 512, 512, 512, 256, 128, 64, 32, 16]


@pytest.mark.parametrize("resolution", [4, 8, pytest.param(64, marks=pytest.mark.slow)])
def test_equalised_weights_keep_the_signal_at_unit_scale(resolution: int) -> None:
    torch.manual_seed(1)
    generator = ProgressiveGenerator(resolution, latent_size=64, fmap_base=256, fmap_max=64)
    generator.double().requires_grad_(False)
    before_norm: list[float] = []
    generator.base.conv.register_forward_hook(lambda *io: before_norm.append(io[2].std().item()))
    image = generator(torch.randn(64, 64, dtype=torch.float64))
    # Inputs of unit variance and weights times sqrt(2 / fan_in) give a variance of 2 at most.
    assert 0.7 < before_norm[0] < 1.5
    assert 0.4 < image.std().item() < 3.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 0.25},
        {"alpha": 1.0, "fades": True},
        {"normalise_latent": False, "normalise_dense": False, "negative_slope": 0.1},
        {"channels": 1, "final": "tanh"},
    ],
    ids=str,
)
def test_config_rebuilds_an_equal_module(options: dict[str, Any]) -> None:
    generator = seeded(**SMALL, **options)
    config = json.loads(json.dumps(generator.config))
    again = ProgressiveGenerator(**config).double()
    again.load_state_dict(generator.state_dict())
    assert again.config == generator.config
    z = torch.randn(2, 7, dtype=torch.float64)
    torch.testing.assert_close(again(z), generator(z), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 24}, "resolution: expected a power of two in 4 ... 1024, got 24"),
        ({"resolution": 2048}, "resolution: expected a power of two"),
        ({"resolution": 16.0}, "resolution: expected an integer of at least 1, got 16.0"),
        ({"resolution": True}, "resolution: expected an integer of at least 1, got True"),
        ({"channels": 0}, "channels: expected an integer of at least 1, got 0"),
        ({"latent_size": -1}, "latent_size: expected"),
        ({"fmap_base": 4}, "fmap_base: expected at least 8 for resolution 16, got 4"),
        ({"fmap_max": 0}, "fmap_max: expected"),
        ({"feature_maps": [4, 4]}, r"feature_maps: expected 3 numbers .* got \[4, 4\]"),
        ({"feature_maps": [4, 0, 4]}, "feature_maps: expected an integer of at least 1, got 0"),
        ({"alpha": 1.5}, r"alpha: expected a number in \[0, 1\], got 1.5"),
        ({"alpha": float("nan")}, r"alpha: expected a number in \[0, 1\], got nan"),
        ({"alpha": 0.5, "fades": False}, "alpha: expected 1.0, .* got 0.5"),
        ({"resolution": 4, "alpha": 0.5}, "fades: expected False at resolution 4"),
        ({"normalise_latent": 1}, "normalise_latent: expected True or False, got 1"),
        ({"negative_slope": -0.2}, "negative_slope: expected"),
        ({"final": "relu"}, "final: expected one of .* got 'relu'"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ProgressiveGenerator(**{"resolution": 16, "fmap_base": 64, **arguments})


@pytest.mark.parametrize("shape", [(7,), (2, 8), (2, 7, 2, 1), (2, 7, 1)], ids=str)
def test_latent_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^z: expected shape \(N, 7\) or \(N, 7, 1, 1\), got"):
        seeded(**SMALL)(torch.zeros(shape, dtype=torch.float64))


def test_alpha_cannot_be_lowered_without_the_previous_colours() -> None:
    generator = seeded(**SMALL)
    with pytest.raises(ValueError, match=r"^alpha: expected 1.0"):
        generator.alpha = 0.9
    assert generator.alpha == 1.0
