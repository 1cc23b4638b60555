"""Small pictures to learn from: bright discs on a dark ground."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cogen_fast.training.datasets import Images


def discs(count: int = 96, side: int = 16, channels: int = 1, seed: int = 0) -> Images:
    random = np.random.default_rng(seed)
    centre = random.uniform(0.35, 0.65, (count, 2, 1, 1)) * side
    radius = random.uniform(0.15, 0.35, (count, 1, 1)) * side
    level = random.uniform(120, 250, (count, channels, 1, 1))
    y, x = np.mgrid[:side, :side] + 0.5
    inside = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2
    pixels: npt.NDArray[np.uint8] = (level * inside[:, None]).astype(np.uint8)
    return Images(pixels)
