"""Opening picture files of a few formats, all of which Pillow decodes within this process.

Pillow reads more: PostScript, for which it starts Ghostscript, and formats that hardly any program
has tested against damaged files. What a file is is told by its content, so that its name is no
protection.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

from PIL import Image

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_HEAVY = ("AVIF", "JPEG2000", "WEBP")  # whose decoders hold a picture twice over
# Of a pixel in a file that is not compressed: four channels of 16 bits.
_MOST_BYTES = 8
_SIDE_BY_SIDE = 2**26  # pixels, each of which takes up to 16 bytes while it is decoded
_ROOM = 2**20  # for what else a file holds, such as a profile of colours


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def endings() -> frozenset[str]:
    """What names of files in these formats end in, in small letters."""
    known = Image.registered_extensions()  # after `formats`, of all plugins
    return frozenset(ending for ending, name in known.items() if name in formats())


def open_picture(file: BinaryIO) -> Image.Image:
    """The picture in an open file, not decoded yet.

    Pillow raises nearly anything for a damaged file and `PIL.UnidentifiedImageError` for other
    formats; ValueError where there are more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or half as
    many in AVIF, JPEG 2000 and WebP, whose decoders take twice the memory.
    """
    image = Image.open(file, formats=formats())
    check_pixels(*image.size, share=2 if image.format in _HEAVY else 1)
    return image


def check_pixels(width: int, height: int, share: int = 1) -> None:
    """ValueError for too large a picture. Pillow by itself warns only, up to twice its limit.

    One ``share``-th of its limit is allowed.
    """
    most = None if Image.MAX_IMAGE_PIXELS is None else Image.MAX_IMAGE_PIXELS // share
    if most is not None and width * height > most:
        raise ValueError(f"expected at most {most:,} pixels, got {width} x {height}")


def most_bytes() -> float:
    """The size of the largest picture's file. Some decoders begin by reading all of it."""
    most = Image.MAX_IMAGE_PIXELS
    return math.inf if most is None else _MOST_BYTES * most + _ROOM


class _Share:
    """So many pixels at a time, by whichever threads."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._changed = threading.Condition()

    @contextmanager
    def __call__(self, pixels: int) -> Iterator[None]:
        taken = min(pixels, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= taken)
            self._left -= taken
        try:
            yield
        finally:
            with self._changed:
                self._left += taken
                self._changed.notify_all()


side_by_side = _Share(_SIDE_BY_SIDE)
"""A context for decoding that waits while other threads decode too much: files can be all large."""
