"""Messages about generators and data that are not called or scaled as expected."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cogen_fast import DiagnosisWarning, Prior, cogenerate, inpaint, save_generator
from cogen_fast.cli.main import main
from cogen_fast.generators import ProgressiveGenerator, StyleGAN2Generator

QUICK: dict[str, Any] = {"budget": 60, "chains": 4, "progress": False, "noise_std": 0.5}


def linear(z: Tensor) -> Tensor:
    weight = torch.arange(12.0, dtype=z.dtype).reshape(3, 4).sin()
    return z @ weight


def run(generator: Any, **options: Any) -> Any:
    given: dict[str, Any] = {"latent_shape": 3} | QUICK | options
    return cogenerate(generator, torch.zeros(4), torch.ones(4), **given)


@pytest.mark.parametrize("latent_shape", [3, None])
def test_a_missing_argument_is_told_with_both_ways_to_give_it(latent_shape: Any) -> None:
    class Conditional(nn.Module):
        latent_size = 3

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return linear(z) + y

    message = (
        r"G: .*Conditional wants another argument beside the latents, 'y'; give "
        r"Prior\(G, conditions=y\) or lambda z: G\(z, y\) in its place"
    )
    with pytest.raises(TypeError, match=message):
        run(Conditional(), latent_shape=latent_shape)
    run(Prior(Conditional(), conditions=torch.zeros(1, 4)), latent_shape=latent_shape)


@pytest.mark.parametrize(
    ("wrap", "line"),
    [
        (lambda x: (x, None), "Prior(G, output=0)"),
        (lambda x: [None, x], "Prior(G, output=1)"),
        (lambda x: {"logits": x}, "Prior(G, output='logits')"),
        (lambda x: SimpleNamespace(sample=x), "Prior(G, output='sample')"),
        (lambda x: SimpleNamespace(images=x), "Prior(G, output='images')"),
    ],
)
def test_the_part_that_is_the_output_is_told(wrap: Any, line: str) -> None:
    def generator(z: Tensor) -> Any:
        return wrap(linear(z))

    with pytest.raises(TypeError) as error:
        run(generator)
    assert line in str(error.value)
    call = line.removeprefix("Prior(G, output=").removesuffix(")")
    run(Prior(generator, output=int(call) if call.isdigit() else call.strip("'")))


def test_a_generator_may_work_in_place_on_its_input() -> None:
    def in_place(z: Tensor) -> Tensor:
        return linear(z.mul_(2.0))

    found = run(in_place, seed=3)
    expected = run(lambda z: linear(2.0 * z), seed=3)
    assert torch.equal(found.latents, expected.latents)


def test_non_finite_outputs_are_counted() -> None:
    def sometimes(z: Tensor) -> Tensor:
        return torch.where(z[:, :1] > 0, linear(z), torch.nan)

    with pytest.raises(ValueError, match=r"got others for \d of 4 prior draws"):
        run(sometimes)


def test_a_number_of_conditions_that_does_not_fit_is_told() -> None:
    prior = Prior(lambda z, y: linear(z) + y[:, None], conditions=torch.zeros(3))
    with pytest.raises(ValueError, match=r"conditions: expected 1 or 1, .* got 3"):
        run(prior)


# --- ranges of values -----------------------------------------------------------------------------


def images(z: Tensor) -> Tensor:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), dtype=z.dtype)
    return torch.tanh(z @ weight).reshape(-1, 1, 8, 8)


def of_range(low: float, high: float) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return low + (high - low) * torch.rand(1, 8, 8, generator=random)


@pytest.mark.parametrize(
    ("low", "high", "generator", "hint"),
    [
        (0.0, 1.0, images, r"give 2 \* x_obs - 1"),
        (0.0, 255.0, images, r"give x_obs / 127\.5 - 1"),
        (-1.0, 1.0, lambda z: images(z).abs(), r"give \(x_obs \+ 1\) / 2"),
    ],
)
def test_another_range_than_the_generator_s_is_warned_of(
    low: float, high: float, generator: Any, hint: str
) -> None:
    with pytest.warns(UserWarning, match=hint):
        run_images(generator, of_range(low, high))


@pytest.mark.parametrize(
    ("x", "mask"),
    [
        (of_range(-1.0, 1.0), torch.ones(8, 8)),
        # Too few values are observed.
        (of_range(0.0, 1.0), torch.cat([torch.ones(4, 8), torch.zeros(4, 8)])),
    ],
)
def test_data_in_the_generator_s_own_range_give_no_warning(x: Tensor, mask: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DiagnosisWarning)
        run_images(images, x, mask)


def run_images(generator: Any, x: Tensor, mask: Any = None) -> None:
    mask = torch.ones(8, 8) if mask is None else mask
    cogenerate(generator, x, mask, latent_shape=3, **QUICK)


def test_an_image_without_a_hidden_part_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="nothing is left to fill in"):
        inpaint(images, of_range(-1.0, 1.0), torch.ones(8, 8), latent_shape=3, **QUICK)


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def command(*words: object) -> int:
    return main([str(word) for word in words])


def test_chains_that_stand_still_are_no_success(
    tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    generator = ProgressiveGenerator(8, latent_size=4, feature_maps=(4, 4), channels=1)
    save_generator(generator, tmp_path / "g.safetensors")
    files: tuple[object, ...] = (
        *("--generator", tmp_path / "g.safetensors", "--image", picture, "--box", 2, 2, 4, 4),
        *("--chains", 4, "--quiet", "--polish", 0),
    )
    still = ("--method", "paper", "--ais-steps", 20, "--step-size", 50.0, "--noise-std", 0.01)
    assert command("inpaint", *files, *still, "--out", tmp_path / "still") == 3
    *warned, last = capsys.readouterr().err.strip().splitlines()
    assert any(line.startswith("cogen-fast: warning: acceptance too low") for line in warned)
    assert last == "cogen-fast: the images are not samples of the posterior: see the warnings"
    moving = ("--method", "paper", "--ais-steps", 20, "--noise-std", 2.0)
    assert command("inpaint", *files, *moving, "--out", tmp_path / "moving") == 0
    heights = [Image.open(tmp_path / name / "grid.png").height for name in ("still", "moving")]
    assert heights[0] > heights[1], "the grid says so, too"


def test_a_stylegan2_is_sampled_in_the_space_that_is_asked_for(
    tmp_path: Path, picture: Path
) -> None:
    torch.manual_seed(0)
    generator = StyleGAN2Generator(
        8, channels=1, latent_size=4, mapping=(6, 6), feature_maps=(4, 4), classes=3
    )
    save_generator(generator, tmp_path / "g.safetensors")
    done = command(
        *("inpaint", "--generator", tmp_path / "g.safetensors", "--image", picture),
        *("--box", 2, 2, 4, 4, "--space", "w", "--condition", 1, "--budget", 60, "--quiet"),
        *("--noise-std", 1.0, "--out", tmp_path / "out"),
    )
    assert done == 0
    with np.load(tmp_path / "out" / "result.npz") as saved:
        assert saved["latents"].shape[-1] == 6
