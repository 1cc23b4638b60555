"""Pictures of a result, drawn with Pillow alone: labelled tiles in a grid, and a colour map."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cogen_fast.support.files import write_atomically

Pixels = npt.NDArray[np.uint8]
_SMALLEST_TILE = 112
_GAP = 4
_LABEL_HEIGHT = 18
_HIDDEN_COLOUR = (128, 128, 160)
_NOTICE_COLOUR = "#be0000"
# Dark blue to pale yellow: lightness increases throughout, so that the map is legible in grey.
_HEAT = np.array([[8, 12, 60], [76, 30, 120], [170, 50, 100], [240, 125, 50], [252, 245, 170]])


@dataclass(frozen=True)
class LabelledPicture:
    """One labelled picture, RGB ``(H, W, 3)`` uint8."""

    label: str
    pixels: Pixels


def to_pixels(image: npt.NDArray[Any]) -> Pixels:
    """An image ``(C, H, W)`` in [-1, 1], C = 1 or 3, as RGB ``(H, W, 3)`` uint8."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"images: expected images (1 or 3, H, W) to draw, got shape {image.shape}")
    clipped = np.clip(np.nan_to_num(image.astype(np.float64)), -1.0, 1.0)
    pixels = np.rint((clipped + 1.0) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def hide(pixels: Pixels, observed: npt.NDArray[np.bool_]) -> Pixels:
    """``pixels`` with everything not ``observed`` (``(H, W)``) in one flat colour."""
    return np.where(observed[:, :, None], pixels, np.array(_HIDDEN_COLOUR)).astype(np.uint8)


def heat(values: npt.NDArray[Any], top: float) -> Pixels:
    """A map ``(H, W)`` of values from 0 to ``top`` in colours, ``(H, W, 3)`` uint8."""
    position = np.clip(values / top if top > 0 else values * 0.0, 0.0, 1.0)
    stops = np.linspace(0.0, 1.0, len(_HEAT))
    channels = [np.interp(position, stops, _HEAT[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _enlarge(pixels: Pixels, size: int) -> Image.Image:
    """A tile enlarged by the largest integer that keeps its longer side within ``size``."""
    image = Image.fromarray(pixels)
    factor = size // max(image.size)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def draw_grid(
    rows: Sequence[Sequence[LabelledPicture]],
    notices: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Image.Image:
    """Labelled tiles in rows, each cell as large as the largest tile.

    Below are notes in black, and notices in red.
    """
    largest = max(max(tile.pixels.shape[:2]) for row in rows for tile in row)
    size = largest * max(1, -(-_SMALLEST_TILE // largest))
    images = [[_enlarge(tile.pixels, size) for tile in row] for row in rows]
    width = max(i.width for row in images for i in row) + _GAP
    height = max(i.height for row in images for i in row) + _GAP + _LABEL_HEIGHT
    columns = max(len(row) for row in rows)
    font = ImageFont.load_default(12)
    across, down = columns * width + _GAP, len(rows) * height + _GAP
    texts = [(note, "black") for note in notes] + [(notice, _NOTICE_COLOUR) for notice in notices]
    lines = [
        (line, colour) for text, colour in texts for line in _wrapped(text, across - 2 * _GAP, font)
    ]
    canvas = Image.new("RGB", (across, down + len(lines) * _LABEL_HEIGHT), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (line, colour) in enumerate(lines):
        draw.text((_GAP, down + number * _LABEL_HEIGHT), line, fill=colour, font=font)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            left, top = _GAP + c * width, _GAP + r * height
            draw.text((left, top), tile.label, fill="black", font=font)
            canvas.paste(images[r][c], (left, top + _LABEL_HEIGHT))
    return canvas


def data_url(image: Image.Image) -> str:
    """A picture as PNG in the address of a picture in HTML."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def animated(
    frames: Sequence[Image.Image], path: Path, kind: str, seconds: float, pause: float
) -> None:
    """Write frames of equal size as an animation that repeats, ``pause`` seconds after its end."""
    each = max(20, round(1000.0 * seconds / len(frames)))
    durations = [each] * (len(frames) - 1) + [each + round(1000.0 * pause)]

    def write(file: Any) -> None:
        first, *rest = frames
        first.save(file, format=kind, save_all=True, append_images=rest, duration=durations, loop=0)

    write_atomically(path, write)


def _wrapped(text: str, width: int, font: Any) -> list[str]:
    """``text`` in lines of at most ``width`` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def sheet(images: npt.NDArray[Any], columns: int = 8) -> Image.Image:
    """Images ``(N, C, H, W)`` in [-1, 1], C = 1 or 3, in rows of ``columns``, without labels."""
    pixels = [to_pixels(image) for image in images]
    height, width = pixels[0].shape[:2]
    size = max(height, width) * max(1, -(-_SMALLEST_TILE // (2 * max(height, width))))
    tiles = [_enlarge(tile, size) for tile in pixels]
    across, down = tiles[0].width + 1, tiles[0].height + 1
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (columns * across - 1, rows * down - 1), "white")
    for place, tile in enumerate(tiles):
        canvas.paste(tile, (place % columns * across, place // columns * down))
    return canvas
