"""Pictures in files or of Pillow as observations and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cogen_fast.problem.observation import as_tensor
from cogen_fast.problem.operators import LUMA
from cogen_fast.support.files import open_regular, size_of
from cogen_fast.support.pictures import formats, most_bytes, open_picture

Levels = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
OBSERVED_FROM = 128
"""The least brightness, of 255, at which a mask says that a pixel is observed."""
_GREY_8 = ("1", "L", "LA", "La")
_COLOUR_8 = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "HSV")
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_SHARES = np.array(LUMA, dtype=np.float32)
_HALF = 127.5  # brightness from 0 to 255 is value * _HALF + _HALF


def as_images(name: str, value: Any) -> Any:
    """A picture of Pillow, or in the file at a path, as float32 ``(C, H, W)`` in [-1, 1].

    A sequence of these is a batch ``(B, C, H, W)``. Anything else is returned as it is. ValueError
    or OSError, naming ``name``, for pictures that cannot be read or have different sizes.
    """

    def convert(picture: Any) -> Tensor:
        levels = levels_of(name, _opened(name, picture))
        return torch.from_numpy(levels / np.float32(_HALF) - np.float32(1.0))

    if _is_picture(value):
        return convert(value)
    if _is_sequence(value, _is_picture):
        return _stacked(name, value, convert)
    return value


def as_masks(value: Any) -> Any:
    """A mask as a picture, white where observed, as bool ``(H, W)``.

    A sequence of such pictures, or of arrays ``(H, W)``, one for each image, is returned as ``(B,
    1, H, W)``; of arrays ``(C, H, W)`` as ``(B, C, H, W)``. Anything else is returned as it is.
    """

    def convert(each: Any) -> Tensor:
        mask = _mask_of(each) if _is_picture(each) else as_tensor("mask", each)
        return mask[None] if mask.ndim == 2 else mask

    if _is_picture(value):
        return _mask_of(value)
    if _is_sequence(value, lambda each: _is_picture(each) or _is_array(each)):
        return _stacked("mask", value, convert)
    return value


def _mask_of(value: Any) -> Tensor:
    levels = levels_of("mask", _opened("mask", value))
    check_mask_levels(levels)
    brightness = levels[0] if len(levels) == 1 else grey(levels)
    return torch.from_numpy(brightness >= OBSERVED_FROM)


def _is_picture(value: Any) -> bool:
    return isinstance(value, str | Path | Image.Image)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim in (2, 3)


def _is_sequence(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(of(each) for each in value)


def _opened(name: str, value: str | Path | Image.Image) -> Image.Image:
    if isinstance(value, Image.Image):
        return ImageOps.exif_transpose(value)
    return read_image(name, Path(value))


def _stacked(name: str, values: Sequence[Any], convert: Callable[[Any], Tensor]) -> Tensor:
    tensors = [convert(each) for each in values]
    for number, each in enumerate(tensors):
        if each.shape != tensors[0].shape:
            raise ValueError(
                f"{name}: expected pictures of equal shape, got {tuple(tensors[0].shape)} and, at "
                f"{number}, {tuple(each.shape)}"
            )
    return torch.stack(tensors)


def read_image(name: str, path: Path) -> Image.Image:
    """The picture in a file, upright. ValueError or OSError, naming ``name``, if impossible."""
    with open_regular(name, path) as file:
        if size_of(file) > most_bytes():
            raise ValueError(
                f"{name}: expected a picture of at most {most_bytes():,} bytes, got {path} of "
                f"{size_of(file):,}"
            )
        try:
            image = open_picture(file)
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
        except UnidentifiedImageError:
            raise ValueError(
                f"{name}: expected a picture ({', '.join(formats())}), got {path}, of an unknown "
                "format"
            ) from None
        except Exception as error:  # decoders raise almost anything on a damaged file
            raise ValueError(f"{name}: {path} is damaged or too large: {error}") from error
    return image


def levels_of(name: str, image: Image.Image) -> Levels:
    """Brightness from 0 to 255, ``(C, H, W)`` with C = 1 or 3, of a picture without transparency.

    It has 8 bits where the picture has no more. ValueError, naming ``name``, for other kinds.
    """
    # Older Pillow opens 16-bit PNG as 32-bit integers.
    if image.mode in _GREY_16 or (image.format == "PNG" and image.mode == "I"):
        deep = np.array(image, dtype=np.float32)
        deep /= 257.0
        return deep[None]
    colours, alpha = colours_and_alpha(name, image)
    if (see_through := int((alpha < 255).sum())) > 0:
        raise ValueError(
            f"{name}: expected an opaque picture, got {see_through} transparent pixels; flatten it "
            "first, or fill them in on the command line: inpaint --mask alpha"
        )
    return colours


def colours_and_alpha(
    name: str, image: Image.Image
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """The colours ``(C, H, W)`` of an 8-bit picture, and the opacity ``(H, W)``, from 0 to 255.

    ValueError, naming ``name``, for other kinds of pictures.
    """
    if image.mode not in _GREY_8 + _COLOUR_8:
        raise ValueError(
            f"{name}: expected 8-bit grey or colour, or opaque 16-bit grey, got Pillow's mode "
            f"{image.mode}"
        )
    alpha = np.full((image.height, image.width), 255, np.uint8)
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    mode = "L" if image.mode in _GREY_8 else "RGB"
    plain = image if image.mode == mode else image.convert(mode)
    return np.atleast_3d(np.asarray(plain)).transpose(2, 0, 1), alpha


def check_mask_levels(levels: Levels) -> None:
    """Raise ValueError for a mask whose values are 0 and 1 where 0 to 255 are meant."""
    if 0 < levels.max() <= 1:
        raise ValueError(
            "mask: expected a picture that is white (255) where observed, got values of at most 1; "
            "multiply it by 255"
        )


def grey(levels: Levels) -> npt.NDArray[np.float32]:
    """Luma ``(H, W)`` of colours ``(3, H, W)``, computed row by row to save memory."""
    found = np.empty(levels.shape[1:], np.float32)
    for y in range(len(found)):
        found[y] = np.tensordot(_SHARES, levels[:, y].astype(np.float32), axes=1)
    return found
