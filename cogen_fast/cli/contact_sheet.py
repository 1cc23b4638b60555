"""A picture of many results: what was observed of each image, and what it was completed to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cogen_fast.results import showing
from cogen_fast.results.grids import LabelledPicture, Pixels, draw_grid
from cogen_fast.results.result import Result
from cogen_fast.support.files import write_atomically

MOST = 96
"""The number of results that are shown; more would need a picture that viewers refuse."""
_SIDE = 112  # of a tile, in pixels
_PASTED = "Estimate: observed pixels pasted in. Mean and std: of G(z), nothing pasted."
_SEE = "the grid.png of each says why."
_ROWS = 24  # of results; further ones are placed beside these


def write_sheet(path: Path, folders: Sequence[Path]) -> None:
    """Draw the results in the first `MOST` folders, one row of four tiles each, as PNG.

    Those whose chains are not samples of the posterior are named below.
    """
    tiles, failed, pasted = [], [], False
    for folder in folders[:MOST]:
        result = Result.load(folder)
        tiles.append(_tiles(result, folder.name[:16]))
        pasted = pasted or result.completed is not None
        if result.failures():
            failed.append(folder.name)
    beside = -(-len(tiles) // _ROWS)
    groups = [tiles[at : at + beside] for at in range(0, len(tiles), beside)]
    rows = [[tile for each in group for tile in each] for group in groups]
    notices = [f"NOT SAMPLES: {', '.join(failed)}; {_SEE}"] if failed else []
    image = draw_grid(rows, notices, [_PASTED] if pasted else [])
    write_atomically(path, lambda file: image.save(file, format="PNG"))


def _tiles(result: Result, label: str) -> list[LabelledPicture]:
    """What was observed, the estimate, mean and standard deviation of a result."""
    tiles = showing.compact(result, label)
    return [LabelledPicture(tile.label, _small(tile.pixels)) for tile in tiles]


def _small(pixels: Pixels) -> Pixels:
    """``pixels`` reduced until both sides are at most `_SIDE`."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(image)
