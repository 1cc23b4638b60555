"""Data of the package: generators, held-out images, and the demo that uses both."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from discs import discs
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import cogen_fast
from cogen_fast.experiments import demo
from cogen_fast.generators.pretrained import FASHION_STAGES, HELD_OUT, PRETRAINED
from cogen_fast.training.datasets import open_images
from cogen_fast.training.held_out import save_row

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = Path(str(files("cogen_fast.generators"))) / "weights"
MOST_BYTES, MOST_MULTIPLY_ADDS = 2**19, 20_000_000  # as the model card says


@pytest.fixture(scope="module")
def generator() -> nn.Module:
    return cogen_fast.pretrained("fashion-32")


def samples(generator: nn.Module, count: int = 64) -> Tensor:
    z = torch.randn(count, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images: Tensor = generator(z)
    return images


def test_fashion_is_ready_for_use(generator: nn.Module) -> None:
    assert not generator.training
    assert {p.dtype for p in generator.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in generator.parameters())
    images = samples(generator, 3)
    assert (images.shape, images.dtype) == ((3, 1, 32, 32), torch.float32)


def test_fashion_looks_like_its_data(generator: nn.Module) -> None:
    """Black borders, bright garments of many brightnesses, no two alike: not noise, no collapse."""
    images = samples(generator)
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    assert images[..., border].mean() < -0.95
    brightness = images[..., 8:24, 8:24].mean((-1, -2))
    assert brightness.std() > 0.2
    distances = torch.cdist(images.flatten(1), images.flatten(1))
    assert distances[~torch.eye(len(images), dtype=torch.bool)].min() > 1.0


@pytest.mark.parametrize("stage", FASHION_STAGES)
def test_fashion_is_half_precision_that_plain_safetensors_reads(stage: int) -> None:
    path = WEIGHTS / PRETRAINED[f"fashion-32-{stage}"]
    assert path.stat().st_size <= MOST_BYTES
    stored = load_file(path)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    state = cogen_fast.pretrained(f"fashion-32-{stage}").state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in stored.items())


def test_stages_of_fashion_are_one_training(generator: nn.Module) -> None:
    """The same latents give other images at each stage; the last stage is the generator."""
    stages = [samples(cogen_fast.pretrained(f"fashion-32-{stage}")) for stage in FASHION_STAGES]
    assert torch.equal(stages[-1], samples(generator))
    far = [float((images - stages[-1]).square().mean()) for images in stages]
    assert far == sorted(far, reverse=True)
    assert far[-2] > 0.0


def test_fashion_is_small_enough_for_two_cores(generator: nn.Module) -> None:
    """Multiply-adds of one forward pass: a layer's weights times the places they are used in."""
    counts = []

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        places = output[0, 0].numel() if weight.ndim == 4 else 1
        counts.append(weight.numel() * places)

    layers = [
        m
        for m in generator.modules()
        if dict(m.named_parameters(recurse=False)).keys() >= {"weight"}
    ]
    handles = [layer.register_forward_hook(count) for layer in layers]
    samples(generator, 1)
    for handle in handles:
        handle.remove()
    assert len(counts) == len(layers) > 5
    assert sum(counts) <= MOST_MULTIPLY_ADDS


def test_held_out_images() -> None:
    images = cogen_fast.held_out_images("fashion-32")
    assert list(images)[-2:] == ["bag", "boot"]
    assert len(images) == 10
    for image in images.values():
        assert (image.shape, image.dtype) == ((1, 32, 32), torch.float32)
        assert image.min() == -1.0
        assert 0.3 < image.max() <= 1.0


@pytest.mark.parametrize("ask", [cogen_fast.pretrained, cogen_fast.held_out_images])
def test_unknown_names(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(ValueError, match=r"name: expected one of .*'fashion-32'.*, got 'celeba'"):
        ask("celeba")


def test_held_out_images_are_those_of_the_test_set(tmp_path: Path) -> None:
    home = os.environ.get("COGEN_FAST_FASHION_MNIST", "/usr/share/datasets/fashion-mnist")
    path = Path(home) / "t10k-images-idx3-ubyte.gz"
    if not path.is_file():
        pytest.skip(f"no Fashion-MNIST at {path} (set COGEN_FAST_FASHION_MNIST)")
    known = open_images(path, 32, fit="pad", cache=tmp_path)
    save_row(known, [19, 2, 1, 13, 6, 8, 4, 9, 18, 0], tmp_path / "row.png")
    shipped = WEIGHTS / HELD_OUT["fashion-32"][0]
    with Image.open(tmp_path / "row.png") as made, Image.open(shipped) as row:
        assert np.array_equal(np.array(made), np.array(row))


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_of_images(tmp_path: Path, channels: int) -> None:
    images = discs(5, 8, channels)
    save_row(images, [3, 1], tmp_path / "row.png")
    with Image.open(tmp_path / "row.png") as row:
        pixels = np.array(row).reshape(8, 2, 8, channels)
    expected = images.pixels[[3, 1]].transpose(2, 0, 3, 1)
    assert np.array_equal(pixels, expected)


@pytest.mark.slow
def test_demo_draws_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "BUDGET", 120)
    folder = tmp_path / "new" / "folder"
    told = demo.run(folder, "sandal", progress=False)
    assert [path.name for path in folder.iterdir()] == ["demo.png"]
    with Image.open(folder / "demo.png") as picture:
        tiles = demo.CHAINS + 5  # the truth, the observation, the estimate, the mean and the spread
        assert picture.size[0] > 112 * tiles
    truth = cogen_fast.held_out_images("fashion-32")["sandal"]
    result = demo.complete(truth, progress=False)
    assert result.images.shape == (1, demo.CHAINS, 1, 32, 32)
    hidden = demo.mask().expand(1, 32, 32) == 0
    assert hidden.sum() == 19 * 26
    assert result.observed is not None
    assert torch.equal(result.observed[0], ~hidden)
    estimate = (result.estimate[0] - truth)[hidden].square().mean().sqrt()
    assert f", of the estimate {estimate:.2f}\n" in told
    samples = (result.images[0] - truth)[:, ~hidden].square().mean(-1).sqrt()
    assert f"error: observed pixels {samples.min():.2f} to {samples.max():.2f}, hidden" in told
    assert str(folder / "demo.png") in told


def test_demo_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"garment: expected one of .*'sandal'.*, got 'hat'"):
        demo.run(tmp_path / "out", "hat", progress=False)
    assert not (tmp_path / "out").exists()
