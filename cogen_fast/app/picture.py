"""Pictures as the page holds them: 8-bit pixels and, for completion, which of them are hidden."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Shape = tuple[int, int, int]
Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
REFUSED = "refused"
"""The painter's value in answer to a file that is no picture: it keeps the one that it has."""
_OTHER_CHARACTERS = 200  # of the names and numbers in a painter's value


@dataclass(frozen=True)
class Painted:
    """Pixels ``(C, H, W)`` from 0 to 255, and the hidden ones, ``(H, W)``; None: nothing can be."""

    pixels: Bytes
    hidden: Flags | None

    @property
    def image(self) -> Tensor:
        """The pixels as the generator makes them: float32 in [-1, 1]."""
        return torch.from_numpy(self.pixels / np.float32(127.5) - np.float32(1.0))

    def to_value(self) -> str:
        """The text that the painter of the page takes."""
        channels, height, width = self.pixels.shape
        hidden = None if self.hidden is None else _text(packed(self.hidden))
        pixels = _text(self.pixels.transpose(1, 2, 0).tobytes())
        return json.dumps(
            {
                "channels": channels,
                "height": height,
                "width": width,
                "pixels": pixels,
                "hidden": hidden,
            }
        )


def painted(value: Any, shape: Shape, *, masked: bool) -> Painted:
    """The picture in a painter's ``value``. ValueError if it is not a picture of ``shape``."""
    channels, height, width = shape
    most = 2 * (height * width * (channels + 1)) + _OTHER_CHARACTERS
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"picture: expected a text of at most {most:,} characters")
    try:
        content = json.loads(value)
        found = tuple(content[name] for name in ("channels", "height", "width"))
        pixels = base64.b64decode(content["pixels"], validate=True)
        bits = base64.b64decode(content["hidden"], validate=True) if masked else None
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error):
        raise ValueError("picture: expected what the page's painter sends") from None
    if found != shape or len(pixels) != channels * height * width:
        raise ValueError(f"picture: expected {width} x {height} pixels, {channels} bytes each")
    levels = np.frombuffer(pixels, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
    return Painted(levels.copy(), None if bits is None else unpacked(bits, (height, width)))


def file_of(value: Any) -> bytes:
    """The content of a file that a painter sends. ValueError if it is none."""
    try:
        return base64.b64decode(json.loads(value)["file"], validate=True)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error):
        raise ValueError("picture: expected a file from the page's painter") from None


def packed(flags: Flags) -> bytes:
    """Eight pixels in a byte, row after row, the first in the highest bit."""
    return np.packbits(flags).tobytes()


def unpacked(bits: bytes, size: tuple[int, int]) -> Flags:
    """What `packed` has packed, ``(H, W)``. ValueError for another number of bytes."""
    count = size[0] * size[1]
    if len(bits) != -(-count // 8):
        raise ValueError(f"mask: expected {-(-count // 8):,} bytes, got {len(bits):,}")
    flags = np.unpackbits(np.frombuffer(bits, np.uint8), count=count)
    return flags.reshape(size).astype(np.bool_)


def from_image(image: Tensor, hidden: Flags | None) -> Painted:
    """The picture of an image ``(C, H, W)`` in [-1, 1], rounded to 8 bits."""
    levels = (image.clamp(-1.0, 1.0) + 1.0) * 127.5
    return Painted(levels.round().to(torch.uint8).numpy(), hidden)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
