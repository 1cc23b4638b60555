"""Opening of picture files in a few formats, all of which Pillow decodes within this process.

Pillow reads further formats: PostScript, for which it starts Ghostscript, and formats whose
decoders are rarely tested with damaged files. As Pillow identifies a file by its content, a check
of its name would give no protection.
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
_HEAVY = ("AVIF", "JPEG2000", "WEBP")  # their decoders hold a picture in memory twice
_MOST_BYTES = 8  # per pixel of an uncompressed file: four channels of 16 bits
_AT_ONCE = 2**26  # pixels decoded at a time, each of which takes up to 16 bytes meanwhile
_OTHER_BYTES = 2**20  # for other content of a file, such as a colour profile


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` which the installed Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def endings() -> frozenset[str]:
    """File name extensions of these formats, in lower case."""
    known = Image.registered_extensions()  # of all plugins
    return frozenset(ending for ending, name in known.items() if name in formats())


def open_picture(file: BinaryIO) -> Image.Image:
    """The picture in an open file, not decoded yet.

    Pillow raises almost any exception for a damaged file, and `PIL.UnidentifiedImageError` for
    other formats. ValueError where the picture has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels;
    for AVIF, JPEG 2000 and WebP, whose decoders need twice the memory, half of that.
    """
    image = Image.open(file, formats=formats())
    check_pixels(*image.size, share=2 if image.format in _HEAVY else 1)
    return image


def check_pixels(width: int, height: int, share: int = 1) -> None:
    """Raise ValueError if a picture has more pixels than Pillow's limit divided by ``share``.

    Pillow itself only warns up to twice its limit.
    """
    most = None if Image.MAX_IMAGE_PIXELS is None else Image.MAX_IMAGE_PIXELS // share
    if most is not None and width * height > most:
        raise ValueError(f"expected at most {most:,} pixels, got {width} x {height}")


def most_bytes() -> float:
    """Largest size of a picture's file, in bytes. Some decoders read the whole file first."""
    most = Image.MAX_IMAGE_PIXELS
    return math.inf if most is None else _MOST_BYTES * most + _OTHER_BYTES


class _PixelLimit:
    """A context which at most ``most`` pixels, of all threads together, are in at a time."""

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


limited_decoding = _PixelLimit(_AT_ONCE)
"""A context for decoding, which waits while other threads decode too many pixels."""
