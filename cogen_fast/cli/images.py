"""Pictures of the command line: reading, fitting to a generator, and writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cogen_fast.problem.operators import LUMA
from cogen_fast.results.plots import to_pixels
from cogen_fast.support.files import open_regular, size_of, write_atomically
from cogen_fast.support.pictures import formats, most_bytes, open_picture

Levels = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
_OBSERVED_FROM = 128
# Largest share of hidden pixels in a scaled pixel which still counts as observed.
_HIDDEN_SHARE = 0.01
_GREY_8 = ("1", "L", "LA", "La")
_COLOUR_8 = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "HSV")
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_SHARES = np.array(LUMA, dtype=np.float32)


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
            return Picture(self.name, _grey(self.levels)[None])
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
        return torch.from_numpy(self.to_channels(1).levels[0] >= _OBSERVED_FROM)


def read_picture(name: str, path: Path) -> Picture:
    """Read a picture and turn it upright. ValueError or OSError, naming ``name``, if impossible."""
    image, png = _decoded(name, path)
    # Older Pillow opens 16-bit PNG as 32-bit integers.
    if image.mode in _GREY_16 or (png and image.mode == "I"):
        deep = np.array(image, dtype=np.float32)
        deep /= 257.0
        return Picture(name, deep[None])
    _check_mode(name, image)
    if (see_through := int((_alpha(image) < 255).sum())) > 0:
        raise ValueError(
            f"{name}: expected an opaque picture, got {see_through} transparent pixels; flatten it "
            "first, or fill them in: inpaint --mask alpha"
        )
    return _picture(name, image)


def read_with_alpha(name: str, path: Path) -> tuple[Picture, Picture]:
    """Read a picture, and where it is opaque: a mask that is white there and black elsewhere.

    Raises as `read_picture` does, and ValueError for a picture that is opaque everywhere.
    """
    image, _ = _decoded(name, path)
    _check_mode(name, image)
    alpha = _alpha(image)
    if bool((alpha == 255).all()):
        raise ValueError(
            f"mask: expected a picture with transparent pixels for alpha, got {path}, which is "
            "opaque"
        )
    mask = np.where(alpha == 255, np.uint8(255), np.uint8(0))
    return _picture(name, image), Picture("mask", mask[None])


def _decoded(name: str, path: Path) -> tuple[Image.Image, bool]:
    """The picture, upright, and whether it is a PNG."""
    with open_regular(name, path) as file:
        if size_of(file) > most_bytes():
            raise ValueError(
                f"{name}: expected a picture of at most {most_bytes():,} bytes, got {path} of "
                f"{size_of(file):,}"
            )
        try:
            image = open_picture(file)
            png = image.format == "PNG"
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
        except UnidentifiedImageError:
            raise ValueError(
                f"{name}: expected a picture ({', '.join(formats())}), got {path}, of an unknown "
                "format"
            ) from None
        except Exception as error:  # decoders raise almost anything on a damaged file
            raise ValueError(f"{name}: {path} is damaged or too large: {error}") from error
    return image, png


def _check_mode(name: str, image: Image.Image) -> None:
    if image.mode not in _GREY_8 + _COLOUR_8:
        raise ValueError(
            f"{name}: expected 8-bit grey or colour or 16-bit grey, got Pillow's mode {image.mode}"
        )


def _alpha(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The opacity of each pixel ``(H, W)``, from 0 to 255."""
    if not image.has_transparency_data:
        return np.full((image.height, image.width), 255, np.uint8)
    return np.asarray(image.convert("RGBA").getchannel("A"))


def _picture(name: str, image: Image.Image) -> Picture:
    """The colours of an 8-bit picture, without its opacity."""
    mode = "L" if image.mode in _GREY_8 else "RGB"
    plain = image if image.mode == mode else image.convert(mode)
    return Picture(name, np.atleast_3d(np.asarray(plain)).transpose(2, 0, 1))


def _grey(levels: Levels) -> npt.NDArray[np.float32]:
    """Luma ``(H, W)`` of colours ``(3, H, W)``, computed row by row to save memory."""
    grey = np.empty(levels.shape[1:], np.float32)
    for y in range(len(grey)):
        grey[y] = np.tensordot(_SHARES, levels[:, y].astype(np.float32), axes=1)
    return grey


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
