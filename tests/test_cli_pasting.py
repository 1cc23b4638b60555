"""Completions pasted back into pictures of the full size, and the pictures without pasting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

import cogen_fast
from cogen_fast.cli.images import Picture
from cogen_fast.cli.main import main
from cogen_fast.cli.pasting import full_mask, paste_back, share_outside
from cogen_fast.generators import ProgressiveGenerator

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 16
QUICK = ["--method", "paper", "--chains", "2", "--ais-steps", "2", "--leapfrog-steps", "2"]
QUICK += ["--step-size", "0.00003", "--resize", "--quiet"]
Levels = npt.NDArray[np.float32]


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "grey"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("generator") / "g.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = ProgressiveGenerator(
            resolution=SIDE, feature_maps=[8, 8, 8], latent_size=6, channels=request.param
        )
    cogen_fast.save_generator(generator, path)
    return str(path)


def photograph(width: int, height: int, channels: int) -> npt.NDArray[np.uint8]:
    """Smooth colours with a little noise."""
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    waves = [np.sin(x + k) * np.cos(y - k) for k in range(channels)]
    noise = np.random.default_rng(1).normal(0, 0.03, (height, width, channels))
    return ((np.stack(waves, -1) + noise).clip(-1, 1) * 127 + 128).astype(np.uint8)


def save(path: Path, pixels: npt.NDArray[np.uint8]) -> str:
    Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(
        path
    )
    return str(path)


def pixels_of(path: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def disc(width: int, height: int, x: float, y: float, radius: float) -> npt.NDArray[np.bool_]:
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


# --- on the command line --------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 1])
def test_the_photograph_comes_back_at_its_size(
    checkpoint: str, tmp_path: Path, channels: int
) -> None:
    given = photograph(90, 70, channels)
    hidden = disc(90, 70, 44, 33, 15)
    image = save(tmp_path / "photo.png", given)
    mask = save(tmp_path / "mask.png", np.where(hidden, np.uint8(0), np.uint8(255)))
    out = tmp_path / "out"
    files = ["--generator", checkpoint, "--image", image, "--mask", mask, "--out", str(out)]
    assert main(["inpaint", *files, *QUICK]) == 0
    completed = pixels_of(out / "completed.png").reshape(given.shape)
    assert np.array_equal(completed[~hidden], given[~hidden])
    changed = (completed != given).any(-1)
    assert changed[hidden].mean() > 0.9


def test_pictures_without_pasting_are_kept(checkpoint: str, tmp_path: Path) -> None:
    image = save(tmp_path / "photo.png", photograph(SIDE, SIDE, 3))
    out = tmp_path / "out"
    arguments = ["inpaint", "--generator", checkpoint, "--image", image, "--box", "3", "4", "5"]
    arguments += ["6", "--out", str(out), *QUICK]
    assert main(arguments) == 0
    result = cogen_fast.Result.load(out)
    assert result.completed is not None
    pictures = {
        "raw/chain_001.png": result.images[0, 1],
        "chain_001.png": result.completed[0, 1],
        "raw/estimate.png": result.estimate[0],
        "estimate.png": result.pasted(result.estimate)[0],
    }
    for name, expected in pictures.items():
        levels = ((expected.double().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
        assert np.array_equal(pixels_of(out / name).reshape(levels.shape), levels.numpy()), name
    assert main([*arguments, "--overwrite", "--chains", "1"]) == 0
    assert {path.name for path in (out / "raw").iterdir()} == {"chain_000.png", "estimate.png"}


def test_a_box_is_where_the_generator_sees_it(checkpoint: str, tmp_path: Path) -> None:
    given = photograph(80, 64, 3)  # 4 pixels for each of the generator's, cropped by 8 on each side
    image, out = save(tmp_path / "photo.png", given), tmp_path / "out"
    arguments = ["inpaint", "--generator", checkpoint, "--image", image, "--box", "3", "4", "5"]
    assert main([*arguments, "6", "--out", str(out), *QUICK]) == 0
    changed = (pixels_of(out / "completed.png") != given).any(-1)
    block = np.zeros_like(changed)
    block[16:40, 8 + 12 : 8 + 32] = True
    assert not changed[~block].any() and changed[block].mean() > 0.9


def test_hidden_pixels_outside_the_crop_are_told(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = photograph(96, 32, 3)
    mask = np.full((32, 96), 255, np.uint8)
    mask[8:16, 0:16] = mask[8:16, 40:56] = 0
    files = ["--image", save(tmp_path / "photo.png", given)]
    files += ["--mask", save(tmp_path / "mask.png", mask), "--out", str(tmp_path / "out")]
    assert main(["inpaint", "--generator", checkpoint, *files, *QUICK]) == 0
    assert "warning: mask: 50.0% of the hidden pixels are outside" in capsys.readouterr().err
    changed = (pixels_of(tmp_path / "out" / "completed.png") != given).any(-1)
    assert not changed[:, :32].any() and changed[8:16, 40:56].any()


def test_super_resolution_pastes_nothing(checkpoint: str, tmp_path: Path) -> None:
    image, out = save(tmp_path / "small.png", photograph(4, 4, 3)), tmp_path / "out"
    files = ["--generator", checkpoint, "--image", image, "--out", str(out), "--factor", "4"]
    assert main(["super-resolve", *files, *QUICK]) == 0
    assert not (out / "completed.png").exists() and not (out / "raw").exists()


@pytest.mark.parametrize("name", ["raw", "completed.png", "raw/chain_000.png"])
def test_what_is_in_the_way_is_told_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    place = tmp_path / "out" / name
    place.parent.mkdir(parents=True)
    if name == "raw":
        place.write_text("mine")
    else:
        place.mkdir()
    files = ["--generator", "none", "--image", "none", "--out", str(tmp_path / "out")]
    assert main(["inpaint", *files, "--box", "0", "0", "1", "1"]) == 2
    kind = "no file in place of the folder" if name == "raw" else "no folder in place of the file"
    assert f"out: expected {kind} {place}" in capsys.readouterr().err


# --- the function ---------------------------------------------------------------------------------


def ramp(width: int, height: int) -> Levels:
    """A linear function of the place, from about 20 to 200, ``(3, H, W)``."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.stack([20 + 180 * x, 40 + 100 * y, 200 - 90 * x - 60 * y]).astype(np.float32)


def as_completion(levels: Levels) -> Tensor:
    return torch.from_numpy(levels / np.float32(127.5) - np.float32(1.0))


@pytest.mark.parametrize("shift", [0.0, 35.0])
@pytest.mark.parametrize("width", [96, 131])
def test_a_constant_difference_leaves_no_trace(width: int, shift: float) -> None:
    """Cubic interpolation reproduces a linear function, and Laplace's equation a constant."""
    truth = ramp(width, 96)
    left = (width - 96) / 2
    at = (np.arange(24) + 0.5) * 4  # centres of the smaller pixels, in those of the crop
    x, y = np.meshgrid((left + at) / width, at / 96)
    small = np.stack([20 + 180 * x, 40 + 100 * y, 200 - 90 * x - 60 * y]).astype(np.float32)
    hidden = disc(width, 96, width / 2 + 5, 50, 22)
    spoiled = np.where(hidden, np.float32(255.0), truth)
    observed = torch.from_numpy(~hidden)
    pasted = paste_back(Picture("image", spoiled), observed, as_completion(small + shift))
    assert pasted.dtype == np.uint8
    assert np.abs(pasted - truth).max() <= 0.5 + 0.01  # rounding to whole levels


def test_a_smooth_difference_leaves_little_trace() -> None:
    """A linear function solves Laplace's equation, too; the sweeps come close to it."""
    truth = ramp(96, 96)
    small = np.full((3, 24, 24), 100.0, np.float32)
    hidden = disc(96, 96, 48, 50, 22)
    picture = Picture("image", truth)
    pasted = paste_back(picture, torch.from_numpy(~hidden), as_completion(small))
    left = np.abs(pasted - truth)[:, hidden].max()
    assert left < 0.1 * np.abs(100.0 - truth)[:, hidden].max()


def step_across(picture: npt.NDArray[np.uint8], hidden: npt.NDArray[np.bool_]) -> float:
    """The root mean square difference between neighbours in a row of which one is hidden."""
    pairs = hidden[:, 1:] != hidden[:, :-1]
    steps = np.diff(picture.astype(float), axis=1)[pairs]
    return float(np.sqrt((steps**2).mean()))


def test_no_seam_is_seen() -> None:
    """Of a photograph with noise, and a completion of another brightness."""
    given = photograph(90, 70, 3)
    hidden = disc(90, 70, 44, 33, 15)
    picture = Picture("image", given.transpose(2, 0, 1))
    pasted = paste_back(picture, torch.from_numpy(~hidden), torch.zeros(3, 16, 16))
    assert step_across(pasted.transpose(1, 2, 0), hidden) < step_across(given, hidden)
    alone = np.where(hidden[:, :, None], np.uint8(128), given)
    assert step_across(alone, hidden) > 5.0 * step_across(given, hidden)


def test_where_everything_is_hidden_the_completion_is_enlarged() -> None:
    small = ramp(8, 8)
    picture = Picture("image", np.zeros((3, 32, 32), np.uint8))
    pasted = paste_back(picture, torch.zeros(32, 32, dtype=torch.bool), as_completion(small))
    inside = slice(8, 24)  # cubic interpolation is exact away from the edges
    expected = ramp(32, 32)[:, inside, inside]
    assert np.abs(pasted[:, inside, inside] - expected).max() <= 0.5 + 0.01


def test_where_nothing_is_hidden_the_picture_is_kept() -> None:
    given = photograph(33, 20, 3).transpose(2, 0, 1)
    everything = torch.ones(20, 33, dtype=torch.bool)
    pasted = paste_back(Picture("image", given), everything, torch.zeros(3, 8, 8))
    assert np.array_equal(pasted, given)


def test_masks_are_enlarged_to_the_crop() -> None:
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[0, 0] = mask[2, 3] = False
    full = full_mask(mask, (20, 12))  # 3 pixels for each, cropped by 4 on each side
    expected = torch.ones(12, 20, dtype=torch.bool)
    expected[0:3, 4:7] = expected[6:9, 13:16] = False
    assert torch.equal(full, expected)
    assert share_outside(full, (4, 4)) == 0.0
    full[0, :4] = False
    assert share_outside(full, (4, 4)) == pytest.approx(4 / 22)
