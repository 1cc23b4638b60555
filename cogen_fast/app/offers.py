"""What the page offers: generators, and pictures to begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cogen_fast.app.picture import Flags, Painted, Shape, from_image

GREY = "plain grey"
SAMPLE = "an image of the generator"
_FACTORS = (2, 4, 8, 16)

ReadPicture = Callable[[Path, Shape], Tensor]
"""Reads an uploaded picture of any size: an image of the given shape, in [-1, 1]."""


@dataclass(frozen=True)
class Offer:
    """A generator of images that can be chosen on the page.

    Attributes:
        name: what the page calls it.
        generator: latents to images in [-1, 1].
        shape: ``(C, H, W)`` of its images.
        sample: an image of it, of ``shape``.
        code: lines of Python that make the same generator, as ``G``.
        examples: images of ``shape`` to begin with, by name.
        latent_shape: the shape of a latent, where it cannot be found out.
    """

    name: str
    generator: Callable[[Tensor], Tensor]
    shape: Shape
    sample: Tensor
    code: Sequence[str]
    examples: dict[str, Tensor] = field(default_factory=dict)
    latent_shape: tuple[int, ...] | None = None

    @property
    def factors(self) -> list[int]:
        """The factors by which a smaller picture can be enlarged to ``shape``."""
        return [f for f in _FACTORS if not (self.shape[1] % f or self.shape[2] % f)]

    @property
    def usual_factor(self) -> int:
        """The factor to begin with: 4 where that is possible, else the largest."""
        return 4 if 4 in self.factors else max(self.factors, default=1)

    @property
    def begun_factor(self) -> int | None:
        """The same for the page's choice of factors, which has none where ``factors`` is empty."""
        return self.usual_factor if self.factors else None

    @property
    def sources(self) -> list[str]:
        """Names of the pictures to begin with."""
        return [*self.examples, SAMPLE, GREY]

    def small_shape(self, factor: int) -> Shape:
        """The shape of a picture that is to be enlarged by ``factor``."""
        return self.shape[0], self.shape[1] // factor, self.shape[2] // factor

    def begin(self, source: str) -> Painted:
        """The picture ``source`` with its lower half hidden. ValueError for unknown names."""
        return from_image(self._image(source), lower_half(self.shape))

    def begin_small(self, source: str, factor: int) -> Painted:
        """The picture ``source``, reduced by ``factor``. ValueError for unknown names."""
        return from_image(F.avg_pool2d(self._image(source)[None], factor)[0], None)

    def _image(self, source: str) -> Tensor:
        pictures = {**self.examples, SAMPLE: self.sample, GREY: torch.zeros(self.shape)}
        if source not in pictures:
            raise ValueError(f"picture: expected one of {', '.join(pictures)}, got another name")
        return pictures[source]


def lower_half(shape: Shape) -> Flags:
    """The hidden pixels to begin with, ``(H, W)``."""
    _, height, width = shape
    hidden: Flags = torch.zeros(height, width, dtype=torch.bool).numpy()
    hidden[height // 2 :] = True
    return hidden
