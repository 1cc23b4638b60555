"""The generators that come with the package, and images to try them on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cogen_fast.generators.checkpoints import load_generator
from cogen_fast.support.files import open_regular
from cogen_fast.support.pictures import open_picture

VARIANCES = (0.002, 0.02)
"""Variances of the 2-D study's data: that of the authors' program, and that of the paper's text."""
STAGES = (500, 1_500, 2_500, 15_000)
"""Iterations of training after which the 2-D study keeps a generator."""
FASHION_STAGES = (480_000, 600_000, 1_000_000, 1_600_000)
"""Numbers of training images after which "fashion-32" was saved.

After the first of them its 32 pixels have just faded in.
"""

# Name: file in `weights`, made by the command in the comment or in the model card beside the file.
PRETRAINED: dict[str, str] = {
    # python -m cogen_fast.training.five_gaussians FOLDER
    "five-gaussians": "five_gaussians_0.002_15000.safetensors",
    **{
        f"five-gaussians-{variance}-{stage}": f"five_gaussians_{variance}_{stage}.safetensors"
        for variance in VARIANCES
        for stage in STAGES
    },
    **{f"fashion-32-{stage}": f"fashion_32_{stage}.safetensors" for stage in FASHION_STAGES},
    "fashion-32": f"fashion_32_{FASHION_STAGES[-1]}.safetensors",
}
# Name: a file in `weights` with a row of images (the model card has the command that made it), and
# what the images show.
HELD_OUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "fashion-32": (
        "fashion_32_held_out.png",
        (
            "t-shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "boot",
        ),
    ),
}


def pretrained(name: str) -> nn.Module:
    """A generator that comes with the package: eval mode, float32, weights without gradients.

    "fashion-32": latents (n, 64) to grey images of garments (n, 1, 32, 32) in [-1, 1]. It is a
    progressive GAN that this package has trained on Fashion-MNIST; its model card is
    `weights/fashion_32.md`.
    "fashion-32-N": the same after N of `FASHION_STAGES` training images, such as
    "fashion-32-480000", for studies over the training; the last of them is "fashion-32".
    "five-gaussians": latents (n, 2) to points (n, 2) of the 2-D study, after 15,000 iterations of
    `cogen_fast.training.five_gaussians` on data of variance 0.002.
    "five-gaussians-V-N": the same after N of `STAGES` iterations on data of variance V of
    `VARIANCES`, such as "five-gaussians-0.02-500".

    Raises ValueError for unknown names.
    """
    if name not in PRETRAINED:
        raise ValueError(f"name: expected one of {sorted(PRETRAINED)}, got {name!r}")
    with _shipped(PRETRAINED[name]) as path:
        return load_generator(path).float()


def held_out_images(name: str) -> dict[str, Tensor]:
    """Real images that the generator ``name`` was not trained on, by what they show.

    Each is float32 (1, R, R) in [-1, 1], of the generator's size. Raises ValueError for other names
    than "fashion-32".
    """
    if name not in HELD_OUT:
        raise ValueError(f"name: expected one of {sorted(HELD_OUT)}, got {name!r}")
    file, names = HELD_OUT[name]
    with _shipped(file) as path, open_regular("name", path) as row:
        pixels = torch.from_numpy(np.array(open_picture(row), dtype=np.float32))
    side = len(pixels)
    images = pixels.reshape(side, len(names), 1, side).permute(1, 2, 0, 3)
    return dict(zip(names, images / 127.5 - 1.0, strict=True))


def _shipped(file: str) -> AbstractContextManager[Path]:
    return as_file(files("cogen_fast.generators") / "weights" / file)
