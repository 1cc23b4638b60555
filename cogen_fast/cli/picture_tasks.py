"""What `inpaint` and `super-resolve` do with a picture: from files to a call of the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

import cogen_fast
from cogen_fast.cli.generator import Generator
from cogen_fast.cli.images import Picture, box_mask, read_mask, read_picture, read_with_alpha
from cogen_fast.cli.pasting import full_mask, paste_back, share_outside
from cogen_fast.cli.sources import ALPHA, Source
from cogen_fast.problem.observation import AveragePool, Stride
from cogen_fast.results.result import Result
from cogen_fast.support.warnings import warn_user

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Posed:
    """A picture that is fitted to the generator.

    ``fitted`` are the tensors with which ``solve`` calls the library, beside its options.
    ``pasted`` gives the picture, at its own size, with the result's estimate pasted in,
    ``(C, H, W)`` from 0 to 255; None without a mask.
    """

    fitted: tuple[Tensor, ...]
    solve: Callable[[dict[str, Any]], Result]
    pasted: Callable[[Result], npt.NDArray[np.uint8]] | None


@dataclass(frozen=True)
class Pictures:
    """What was read from files: the picture and, where one was given, its mask."""

    image: Picture
    mask: Picture | None


class PictureTask(Protocol):
    """What a command does with each picture."""

    def read(self, source: Source) -> Pictures:
        """Read the files. ValueError or OSError if impossible."""
        ...

    def shape(self, output: Tensor) -> Shape:
        """The shape ``(C, H, W)`` of what is observed of outputs; ValueError for wrong options."""
        ...

    def pose(self, generator: Generator, output: Tensor, pictures: Pictures) -> Posed:
        """Fit the pictures to the generator."""
        ...

    def solve(
        self, generator: Generator, fitted: tuple[Tensor, ...], options: dict[str, Any]
    ) -> Result:
        """Call the library with a fitted picture and its options."""
        ...


@dataclass(frozen=True)
class Inpainting:
    """A picture of which a mask or a box hides a part."""

    box: Sequence[int] | None
    resize: bool

    def read(self, source: Source) -> Pictures:
        """Read the picture and its mask."""
        if source.mask == ALPHA:
            return Pictures(*read_with_alpha("image", source.image))
        image = read_picture("image", source.image)
        if source.mask is None:
            return Pictures(image, None)
        return Pictures(image, read_mask(Path(source.mask)))

    def shape(self, output: Tensor) -> Shape:
        """The shape of an output, inside which the box has to be."""
        shape = tuple(output.shape[1:])
        if self.box is not None:
            box_mask(self.box, (shape[2], shape[1]))
        return shape

    def pose(self, generator: Generator, output: Tensor, pictures: Pictures) -> Posed:
        """Fit the picture and its mask to the generator."""
        channels, height, width = output.shape[1:]
        size = (width, height)
        picture = pictures.image.fit(size, resize=self.resize)
        image = picture.to_channels(channels).to_tensor()
        if pictures.mask is not None:
            mask = pictures.mask.fit_like(size, pictures.image).to_mask()
        else:
            assert self.box is not None
            mask = box_mask(self.box, size)
        whole = _whole_mask(pictures, mask)
        fitted = (image, mask)
        return Posed(
            fitted,
            partial(self.solve, generator, fitted),
            lambda result: paste_back(pictures.image, whole, result.estimate[0]),
        )

    def solve(
        self, generator: Generator, fitted: tuple[Tensor, ...], options: dict[str, Any]
    ) -> Result:
        """Fill in what the mask hides of the image."""
        image, mask = fitted
        return cogen_fast.inpaint(generator, image, mask, **options)


@dataclass(frozen=True)
class SuperResolution:
    """A picture that is smaller than the generator's images by a factor."""

    factor: int
    downsample: Literal["average", "stride"]
    resize: bool

    def read(self, source: Source) -> Pictures:
        """Read the picture."""
        return Pictures(read_picture("image", source.image), None)

    def shape(self, output: Tensor) -> Shape:
        """The shape of an output that is reduced by the factor."""
        operators = {"average": AveragePool, "stride": Stride}
        return operators[self.downsample](self.factor).measured_shape(output)

    def pose(self, generator: Generator, output: Tensor, pictures: Pictures) -> Posed:
        """Fit the picture to the generator."""
        channels, height, width = self.shape(output)
        picture = pictures.image.fit((width, height), resize=self.resize)
        fitted = (picture.to_channels(channels).to_tensor(),)
        return Posed(fitted, partial(self.solve, generator, fitted), None)

    def solve(
        self, generator: Generator, fitted: tuple[Tensor, ...], options: dict[str, Any]
    ) -> Result:
        """Enlarge the small image."""
        (small,) = fitted
        return cogen_fast.super_resolve(
            generator, small, self.factor, downsample=self.downsample, **options
        )


def _whole_mask(pictures: Pictures, mask: Tensor) -> Tensor:
    """The mask at the picture's own size. Warns of hidden pixels that the generator does not see.

    ``mask`` is the mask that is fitted to the generator.
    """
    size = pictures.image.size
    if pictures.mask is None or pictures.mask.size != size:
        return full_mask(mask, size)
    whole = pictures.mask.to_mask()
    outside = share_outside(whole, (mask.shape[1], mask.shape[0]))
    if outside > 0.0:
        warn_user(
            f"mask: {outside:.1%} of the hidden pixels are outside the part of the image that is "
            "cropped for the generator; they are left as they are"
        )
    return whole
