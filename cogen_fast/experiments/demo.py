"""The demo: an image of a garment that the generator was not trained on, a hole, completions."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from cogen_fast.generators.pretrained import held_out_images, pretrained
from cogen_fast.results.result import Result
from cogen_fast.support.arguments import check_choice, check_folder
from cogen_fast.tasks import inpaint

GENERATOR = "fashion-32"
GARMENT = "boot"
NOISE_STD = 0.3  # well above the generator's own error on a boot, so that samples differ
# Sixteen particles run for these chains, with 400 gradients each, 32 of which pay for prior draws.
CHAINS, BUDGET = 8, 800
_SIDE = 32
_HOLE = (slice(3, 22), slice(3, 29))


def run(out: Path, garment: str = GARMENT, seed: int = 0, progress: bool = True) -> str:
    """Complete a held-out ``garment``, draw it in ``out / "demo.png"``, and return a summary.

    Raises ValueError if there is no such garment, or if ``out`` is not a folder, before any work.
    """
    start = time.monotonic()
    check_folder("out", out)
    images = held_out_images(GENERATOR)
    truth = images[check_choice("garment", garment, tuple(images))]
    result = complete(truth, seed, progress)
    out.mkdir(parents=True, exist_ok=True)
    picture = result.grid(out / "demo.png", tiles=CHAINS, truth=truth)
    return "\n".join(
        [
            result.overview(),
            f"  root mean square error: {_errors(result, truth)}",
            f"  {time.monotonic() - start:.0f} s; picture: {out / 'demo.png'} "
            f"({picture.width} x {picture.height})",
        ]
    )


def complete(truth: Tensor, seed: int = 0, progress: bool = True) -> Result:
    """Samples of what may be in the hole of ``truth`` ``(1, 32, 32)``."""
    return inpaint(
        pretrained(GENERATOR),
        truth,
        mask(),
        noise_std=NOISE_STD,
        chains=CHAINS,
        budget=BUDGET,
        seed=seed,
        progress=progress,
    )


def mask() -> Tensor:
    """The mask of what is observed, ``(32, 32)``: 0 in a block from the top down to two thirds."""
    observed = torch.ones(_SIDE, _SIDE)
    observed[_HOLE] = 0
    return observed


def _errors(result: Result, truth: Tensor) -> str:
    """Errors of the samples, and of the estimate, which is meant to have the lowest one."""
    assert result.observed is not None
    seen = result.observed[0]
    off = result.images[0] - truth
    observed, hidden = (off[:, pixels].square().mean(-1).sqrt() for pixels in (seen, ~seen))
    estimate = (result.estimate[0] - truth)[~seen].square().mean().sqrt()
    return (
        f"observed pixels {observed.min():.2f} to {observed.max():.2f}, hidden pixels "
        f"{hidden.min():.2f} to {hidden.max():.2f}, of the estimate {estimate:.2f}"
    )
