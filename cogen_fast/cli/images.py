"""Pictures of the command line: reading, fitting to a generator, and writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cogen_fast.problem.pictures import (
    OBSERVED_FROM,
    Levels,
    check_mask_levels,
    colours_and_alpha,
    grey,
    levels_of,
    read_image,
)
from cogen_fast.results.grids import to_pixels
from cogen_fast.support.files import write_atomically

Box = tuple[float, float, float, float]
# Largest share of hidden pixels in a scaled pixel which still counts as observed.
_HIDDEN_SHARE = 0.01


@dataclass(frozen=True)
class Picture:
    """A picture's brightness from 0 to 255, ``(C, H, W)`` with C = 1 or 3.

    A picture that was read from a file has 8 bits where possible, as a large photograph takes a
    gigabyte in float32. ``name`` is the argument which gave the picture, for errors.
    """

    name: str
    levels: Levels

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.levels.shape[2], self.levels.shape[1]

    def to_channels(self, channels: int) -> Picture:
        """The picture with 1 or 3 channels: grey by luma (ITU-R 601), or colour by repetition."""
        if channels == 1 and len(self.levels) == 3:
            return Picture(self.name, grey(self.levels)[None])
        if channels == 3 and len(self.levels) == 1:
            return Picture(self.name, self.levels.repeat(3, axis=0))
        return self

    def fit(self, size: tuple[int, int], *, resize: bool) -> Picture:
        """The picture at ``size``. With ``resize`` it is cropped at the centre and scaled smoothly.

        ValueError where it has another size and ``resize`` is False.
        """
        if self.size == size:
            return self
        if not resize:
            raise ValueError(
                f"{self.name}: expected {_shown(size)}, got {_shown(self.size)}; give --resize"
            )
        # A kernel with negative lobes can overshoot.
        return Picture(self.name, self._scaled(size).levels.clip(0.0, 255.0))

    def fit_like(self, size: tuple[int, int], partner: Picture) -> Picture:
        """This mask at ``size``, cropped and scaled as `fit` crops and scales its ``partner``.

        A scaled pixel counts as observed only if at most 1 percent of it is from hidden pixels.
        """
        if self.size == size:
            return self
        if self.size != partner.size:
            or_partner = (
                "" if partner.size == size else f" or the {partner.name}'s {_shown(partner.size)}"
            )
            raise ValueError(
                f"{self.name}: expected {_shown(size)}{or_partner}, got {_shown(self.size)}"
            )
        hidden = Picture(self.name, 1.0 - self.to_mask().numpy()[None].astype(np.float32))
        share = np.abs(hidden._scaled(size).levels)
        return Picture(self.name, np.where(share <= _HIDDEN_SHARE, np.float32(255), np.float32(0)))

    def _scaled(self, size: tuple[int, int]) -> Picture:
        box = centre_box(self.size, size)
        lanczos = Image.Resampling.LANCZOS
        planes = (Image.fromarray(plane).convert("F") for plane in self.levels)
        scaled = [np.asarray(plane.resize(size, lanczos, box)) for plane in planes]
        return Picture(self.name, np.stack(scaled))

    def to_tensor(self) -> Tensor:
        """The picture as the library takes it: float32 ``(C, H, W)`` in [-1, 1]."""
        return torch.from_numpy(self.levels / np.float32(127.5) - np.float32(1.0))

    def to_mask(self) -> Tensor:
        """Bool ``(H, W)``: True (observed) where white, False (hidden) where black."""
        return torch.from_numpy(self.to_channels(1).levels[0] >= OBSERVED_FROM)


def read_picture(name: str, path: Path) -> Picture:
    """Read a picture and turn it upright. ValueError or OSError, naming ``name``, if impossible."""
    return Picture(name, levels_of(name, read_image(name, path)))


def read_mask(path: Path) -> Picture:
    """Read a mask. ValueError or OSError, naming ``mask``, if impossible."""
    levels = levels_of("mask", read_image("mask", path))
    check_mask_levels(levels)
    return Picture("mask", levels)


def read_with_alpha(name: str, path: Path) -> tuple[Picture, Picture]:
    """Read a picture, and where it is opaque: a mask that is white there and black elsewhere.

    Raises as `read_picture` does, and ValueError for a picture that is opaque everywhere.
    """
    image = read_image(name, path)
    colours, alpha = colours_and_alpha(name, image)
    if bool((alpha == 255).all()):
        raise ValueError(
            f"mask: expected a picture with transparent pixels for alpha, got {path}, which is "
            "opaque"
        )
    mask = np.where(alpha == 255, np.uint8(255), np.uint8(0))
    return Picture(name, colours), Picture("mask", mask[None])


def centre_box(size: tuple[int, int], target: tuple[int, int]) -> Box:
    """The largest centred box within ``size`` which has the aspect ratio of ``target``."""
    scale = min(size[0] / target[0], size[1] / target[1])
    width, height = target[0] * scale, target[1] * scale
    left, top = max(0.0, size[0] - width) / 2, max(0.0, size[1] - height) / 2
    return left, top, min(left + width, size[0]), min(top + height, size[1])


def box_mask(box: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Bool ``(H, W)``, False (hidden) inside the block ``x, y, width, height``."""
    x, y, width, height = box
    inside = x >= 0 and y >= 0 and x + width <= size[0] and y + height <= size[1]
    if width < 1 or height < 1 or not inside:
        raise ValueError(
            f"box: expected X Y W H of a block inside {_shown(size)}, got {x} {y} {width} {height}"
        )
    mask = torch.ones(size[1], size[0], dtype=torch.bool, device="cpu")
    mask[y : y + height, x : x + width] = False
    return mask


def numbered_names(stem: str, count: int) -> list[str]:
    """``count`` names ``stem_000.png`` and so on, of equal length."""
    digits = max(3, len(str(count - 1)))
    return [f"{stem}_{i:0{digits}}.png" for i in range(count)]


def write_png(path: Path, image: npt.NDArray[Any]) -> None:
    """Write an image ``(C, H, W)`` in [-1, 1] as an 8-bit PNG, grey for C = 1."""
    write_levels(path, to_pixels(image).transpose(2, 0, 1)[: image.shape[0]])


def write_levels(path: Path, levels: npt.NDArray[np.uint8]) -> None:
    """Write brightness ``(C, H, W)`` from 0 to 255 as an 8-bit PNG, grey for C = 1."""
    pixels = levels.transpose(1, 2, 0)
    picture = Image.fromarray(pixels if len(levels) == 3 else pixels[:, :, 0])
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
