"""Pictures of an evaluation: ground truth, what was observed, and each method's best chain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cogen_fast.experiments.evaluate.data import Data
from cogen_fast.experiments.evaluate.evaluate import Method, Study, posed, shard_of
from cogen_fast.experiments.evaluate.shards import pictures_beside
from cogen_fast.problem.observation import Mask
from cogen_fast.results.grids import LabelledPicture, Pixels, draw_grid, hide, to_pixels


def draw(data: Data, study: Study, out: Path, images: Sequence[int]) -> Image.Image:
    """A row for each of the ``images``: truth, observed, and each method's chain of lowest energy.

    ``data``, ``study`` and ``out`` are those of `evaluate`. Raises ValueError for an image that a
    method has not done.
    """
    return draw_grid([_row(data, study, out, number) for number in images])


def _row(data: Data, study: Study, out: Path, number: int) -> list[LabelledPicture]:
    shown = [
        LabelledPicture(method.name, _best(study, out, method, number)) for method in study.methods
    ]
    case = posed(study, {number: data.load(number)})
    observed = to_pixels(case.x_obs[0].numpy())
    if isinstance(case.operator, Mask):
        observed = hide(observed, ~case.hidden[0, 0].numpy())
    return [
        LabelledPicture("truth", to_pixels(case.truth[0].numpy())),
        LabelledPicture("observed", observed),
        *shown,
    ]


def _best(study: Study, out: Path, method: Method, number: int) -> Pixels:
    shard = shard_of(out, study, method, number)
    if shard.with_suffix(".npz").exists():
        pictures = pictures_beside(shard)
        for place in np.flatnonzero(pictures["image"] == number):
            return to_pixels(pictures["best"][place] / 127.5 - 1.0)
    raise ValueError(
        f"images: expected images that {method.name} has evaluated in {out}, got {number}"
    )
