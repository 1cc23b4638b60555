"""A completion pasted back into the picture that it belongs to, at the picture's full size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cogen_fast.cli.images import Box, Picture, centre_box

_MARGIN = 16  # pixels around the hidden part, which the patch is fitted to
# Sweeps of Jacobi at each resolution; with fewer, edges of coarse pixels are visible.
_SWEEPS = 10


@dataclass(frozen=True)
class _Part:
    """A part of a picture in whole pixels, and the box in a smaller image that it is made of."""

    rows: slice
    columns: slice
    box: Box

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels of the picture."""
        return self.columns.stop - self.columns.start, self.rows.stop - self.rows.start


def full_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask ``(h, w)`` of what a generator sees, True where observed, at the picture's ``size``.

    It is enlarged to the part of the picture that `Picture.fit` crops; the rest is True.
    """
    height, width = mask.shape
    full = torch.ones(size[1], size[0], dtype=torch.bool, device="cpu")
    part = _part(size, (width, height), full)
    hidden = Image.fromarray(np.where(mask.numpy(), np.uint8(0), np.uint8(255)))
    enlarged = np.asarray(hidden.resize(part.size, Image.Resampling.NEAREST, part.box))
    full[part.rows, part.columns] = torch.from_numpy(enlarged == 0)
    return full


def share_outside(observed: Tensor, target: tuple[int, int]) -> float:
    """The share of the hidden pixels that are outside the part that `Picture.fit` crops."""
    everything = torch.ones_like(observed)
    part = _part((observed.shape[1], observed.shape[0]), target, everything)
    inside = int((~observed[part.rows, part.columns]).sum())
    return 1.0 - inside / max(1, int((~observed).sum()))


def paste_back(picture: Picture, observed: Tensor, completion: Tensor) -> npt.NDArray[np.uint8]:
    """The picture ``(C, H, W)`` with its hidden part taken from a completion, from 0 to 255.

    ``observed`` ``(H, W)`` is True where the picture keeps its values, exactly. ``completion``
    ``(c, h, w)``, in [-1, 1], is of the part that `Picture.fit` crops; where pixels outside that
    part are hidden, they keep their values, too. The seam is hidden as in Poisson image editing
    (Pérez, Gangnet and Blake 2003): a smooth function is added to the enlarged completion, which on
    the seam is its difference from the picture.
    """
    height, width = completion.shape[1:]
    part = _part(picture.size, (width, height), observed)
    hidden = ~observed[part.rows, part.columns]
    shown = completion.numpy().astype(np.float32).clip(-1.0, 1.0)
    patch = Picture(picture.name, (shown + np.float32(1.0)) * np.float32(127.5))
    planes = (Image.fromarray(plane) for plane in patch.to_channels(len(picture.levels)).levels)
    cubic = Image.Resampling.BICUBIC
    enlarged = np.stack([np.asarray(plane.resize(part.size, cubic, part.box)) for plane in planes])
    seen = torch.from_numpy(picture.levels[:, part.rows, part.columns].astype(np.float32))
    made = torch.from_numpy(enlarged)
    blended = torch.where(hidden, made + _extended(seen - made, ~hidden), seen)
    levels = _rounded(picture.levels)  # whole, in 8 bits, as a large photograph takes a gigabyte
    levels[:, part.rows, part.columns] = _rounded(blended.numpy())
    return levels


def _rounded(levels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if levels.dtype == np.uint8:
        return levels.copy()
    rounded: npt.NDArray[np.uint8] = np.rint(levels).clip(0.0, 255.0).astype(np.uint8)
    return rounded


def _part(size: tuple[int, int], target: tuple[int, int], observed: Tensor) -> _Part:
    """What `Picture.fit` crops of a picture, around its hidden pixels if it has any there."""
    left, top, right, bottom = centre_box(size, target)
    scale = (right - left) / target[0]
    x = _around((~observed).any(0), math.ceil(left), math.floor(right))
    y = _around((~observed).any(1), math.ceil(top), math.floor(bottom))
    corners = (x.start - left, y.start - top, x.stop - left, y.stop - top)
    a, b, c, d = (corner / scale for corner in corners)
    # Rounding must not leave the smaller image.
    return _Part(y, x, (max(0.0, a), max(0.0, b), min(c, target[0]), min(d, target[1])))


def _around(marked: Tensor, first: int, end: int) -> slice:
    """The part of ``first`` to ``end`` with a margin around what is marked, or all of it."""
    found = marked[first:end].nonzero()
    if len(found) == 0:
        return slice(first, end)
    low, high = first + int(found[0]) - _MARGIN, first + int(found[-1]) + 1 + _MARGIN
    return slice(max(first, low), min(end, high))


def _extended(values: Tensor, known: Tensor) -> Tensor:
    """``values`` ``(C, H, W)`` where ``known`` ``(H, W)``, and smoothly continued elsewhere.

    Elsewhere it approximates the solution of Laplace's equation, from coarse to fine. Zero where
    nothing is known.
    """
    if not bool(known.any()):
        return torch.zeros_like(values)
    if bool(known.all()):
        return values
    height, width = known.shape
    even = (0, width % 2, 0, height % 2)
    weight = F.pad(known.to(values.dtype)[None], even)
    share = F.avg_pool2d(weight, 2)
    means = F.avg_pool2d(F.pad(values * known, even), 2) / share.clamp(min=0.25)
    coarse = _extended(means, share[0] > 0.0)
    fine = F.interpolate(coarse[None], scale_factor=2, mode="bilinear")[0, :, :height, :width]
    for _ in range(_SWEEPS):
        around = F.pad(torch.where(known, values, fine), (1, 1, 1, 1), mode="replicate")
        sides = (around[:, :-2, 1:-1], around[:, 2:, 1:-1])
        fine = (sides[0] + sides[1] + around[:, 1:-1, :-2] + around[:, 1:-1, 2:]) / 4.0
    return torch.where(known, values, fine)
