"""Pictures of Pillow, paths and lists as images and masks, and the errors of other layouts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cogen_fast import Paper, Result, inpaint, super_resolve
from cogen_fast.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 6, 8
FAST: dict[str, Any] = {
    "method": Paper(ais_steps=2, leapfrog_steps=2, step_size=1e-3),
    "chains": 2,
    "noise_std": 3.0,
    "latent_shape": 4,
    "progress": False,
}


class Net(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.dense = nn.Linear(4, channels * HEIGHT * WIDTH)
        self.shape = (channels, HEIGHT, WIDTH)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.dense(z)).reshape(-1, *self.shape)


def pixels(seed: int = 0, channels: int = 3) -> npt.NDArray[np.uint8]:
    shape = (HEIGHT, WIDTH, channels)
    found = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return found if channels == 3 else found[:, :, 0]


def tensor(seed: int = 0) -> Tensor:
    return torch.from_numpy(pixels(seed)).permute(2, 0, 1) / 127.5 - 1.0


def block(seed: int = 0) -> Tensor:
    """A mask ``(H, W)``, False in a block."""
    mask = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    mask[1:4, 2 + seed : 5 + seed] = False
    return mask


def saved(path: Path, image: Any) -> Path:
    Image.fromarray(np.asarray(image)).save(path)
    return path


def as_picture(mask: Tensor) -> npt.NDArray[np.uint8]:
    return np.where(mask.numpy(), np.uint8(255), np.uint8(0))


def same(a: Result, b: Result) -> bool:
    assert a.observed is not None and b.observed is not None
    return all(
        torch.equal(x, y)
        for x, y in ((a.x_obs, b.x_obs), (a.observed, b.observed), (a.latents, b.latents))
    )


@pytest.mark.parametrize("kind", ["pillow", "path", "text"])
def test_pictures_are_read_as_images_and_masks(tmp_path: Path, kind: str) -> None:
    image, mask = (
        saved(tmp_path / "a.png", pixels()),
        saved(tmp_path / "m.png", as_picture(block())),
    )
    as_kind: Callable[[Path], Any] = {"pillow": Image.open, "path": Path, "text": str}[kind]
    expected = inpaint(Net(), tensor(), block(), **FAST)
    found = inpaint(Net(), as_kind(image), as_kind(mask), **FAST)
    assert same(found, expected)


def test_lists_of_pictures_are_batches(tmp_path: Path) -> None:
    images = [Image.fromarray(pixels(0)), saved(tmp_path / "b.png", pixels(1))]
    masks = [Image.fromarray(as_picture(block(k))) for k in (0, 1)]
    batch = torch.stack([tensor(0), tensor(1)])
    each = torch.stack([block(0), block(1)])[:, None]
    expected = inpaint(Net(), batch, each, **FAST)
    assert same(inpaint(Net(), images, masks, **FAST), expected)
    assert same(inpaint(Net(), batch, [block(0), block(1).numpy()], **FAST), expected)
    assert same(inpaint(Net(), batch, (block(0)[None], block(1)[None]), **FAST), expected)


def test_a_nested_list_is_still_one_mask() -> None:
    expected = inpaint(Net(), tensor(), block(), **FAST)
    assert same(inpaint(Net(), tensor(), block().int().tolist(), **FAST), expected)


def test_small_pictures_are_enlarged() -> None:
    small = pixels()[::2, ::2]
    expected = super_resolve(Net(), torch.from_numpy(small).permute(2, 0, 1) / 127.5 - 1, 2, **FAST)
    found = super_resolve(Net(), Image.fromarray(small), 2, **FAST)
    assert torch.equal(found.x_obs, expected.x_obs) and torch.equal(found.latents, expected.latents)


def test_pictures_are_turned_upright() -> None:
    image = Image.fromarray(np.rot90(pixels()).copy())
    image.getexif()[0x0112] = 6  # to be turned back by a quarter
    assert torch.equal(inpaint(Net(), image, block(), **FAST).x_obs[0, :, 0], tensor()[:, 0])


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (pixels(), block(), r"x_obs: .*uint8.*subtract 1\); its channels are last: give torch.as"),
        (tensor().permute(1, 2, 0), block(), r"got \(6, 8, 3\); its channels are last: give"),
        (tensor().permute(1, 2, 0)[None], block(), r"got \(1, 6, 8, 3\); its channels are last"),
        (tensor()[:1], block(), r"got \(1, 6, 8\); give x_obs.repeat_interleave\(3, -3\)"),
        (tensor()[None].repeat(2, 1, 1, 1), torch.stack([block(), block()]), r"give mask\[:, None"),
        (
            tensor()[None].repeat(3, 1, 1, 1),
            torch.stack([block(), block(), ~block()]),
            r"each observation or one for each channel; give mask\[:, None\] or mask\[None\]",
        ),
        (tensor(), as_picture(block()), "255; of a picture, give mask >= 128$"),
        (tensor(), Image.fromarray(block().numpy().astype(np.uint8)), "mask: .*of at most 1; mult"),
        ("nothing.png", block(), "image: expected a file, found none at nothing.png"),
        (tensor(), "nothing.png", "mask: expected a file, found none at nothing.png"),
        ([Image.fromarray(pixels()), Image.fromarray(pixels()[1:])], block(), "image: .*at 1"),
        (Image.fromarray(pixels()).convert("RGBA").crop((0, 0, 9, 6)), block(), "image: .*opaque"),
    ],
)
def test_other_layouts_are_told_what_mends_them(image: Any, mask: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        inpaint(Net(), image, mask, **FAST)


def test_equal_masks_of_channels_or_of_observations_are_the_same() -> None:
    images = tensor()[None].repeat(3, 1, 1, 1)
    result = inpaint(Net(), images, torch.stack([block()] * 3), **FAST)
    assert torch.equal(result.latents, inpaint(Net(), images, block(), **FAST).latents)


@pytest.mark.parametrize(
    ("image", "mends"),
    [
        (torch.full((HEIGHT, WIDTH), -0.5), lambda x: x[None]),
        (torch.full((2, HEIGHT, WIDTH), -0.5), lambda x: x[:, None]),
        (torch.full((3, HEIGHT, WIDTH), -0.5), lambda x: x.mean(-3, keepdim=True)),
        (torch.full((HEIGHT, WIDTH, 1), -0.5), lambda x: torch.as_tensor(x).movedim(-1, -3)),
    ],
)
def test_what_mends_a_grey_image_is_told(image: Tensor, mends: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"^x_obs: expected shape \(1, 6, 8\).*; .*give "):
        inpaint(Net(1), image, block(), **FAST)
    assert inpaint(Net(1), mends(image), block(), **FAST).images.shape[2:] == (1, HEIGHT, WIDTH)


def test_the_summary_says_what_share_is_observed() -> None:
    share = block().double().mean().item()
    both = torch.stack([block(), ~block()])[:, None]
    result = inpaint(Net(), torch.stack([tensor(), tensor()]), both, **FAST)
    assert f"  observed: {share:.1%}, {1 - share:.1%}\n" in result.overview()
    whole = super_resolve(Net(), tensor()[:, ::2, ::2], 2, **FAST)
    assert not re.search(r"^  observed", whole.overview(), re.MULTILINE)


def test_a_mask_file_of_0_and_1_is_no_black_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = saved(tmp_path / "a.png", np.zeros((32, 32), np.uint8))
    mask = np.ones((32, 32), np.uint8)
    mask[4:9, 4:9] = 0
    files = ["--image", str(image), "--mask", str(saved(tmp_path / "m.png", mask))]
    command = ["inpaint", "--generator", "fashion-32", *files, "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "got values of at most 1; multiply it by 255" in capsys.readouterr().err
