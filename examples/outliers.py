"""Outliers: three pixels in ten of a photograph are broken and read white.

The squared error takes broken pixels at their word. `Huber` and `StudentT` count large errors less;
neither is told which pixels are broken.
"""

from typing import Any

import torch
from report import draw, error, noise, prior_mean, target, tell
from torch import Tensor

from cogen_fast import Huber, Result, StudentT, cogenerate, held_out_images, pretrained

NOISE, NOISE_STD = 0.1, 0.15  # the second counts the generator's own error, too
BROKEN = 0.3
path = target(__file__)
generator = pretrained("fashion-32")
truth = held_out_images("fashion-32")["coat"]
blind = error(prior_mean(generator), truth)

observed = truth + noise(truth.shape, NOISE)
broken = torch.rand(truth.shape, generator=torch.Generator().manual_seed(2)) < BROKEN
observed[broken] = 1.0


def mean_with(**likelihood: Any) -> tuple[Result, Tensor]:
    """The run with the given noise or misfit, and the mean of its samples."""
    result = cogenerate(
        generator, observed, torch.ones(32, 32), budget=400, progress=False, **likelihood
    )
    return result, result.mean()[0]


_, squared = mean_with(noise_std=NOISE_STD)
print(f"error with the squared error: {error(squared, truth):.3f}")
tiles = [("truth", truth), ("observed", observed), ("squared error", squared)]
for name, misfit in (("Huber", Huber(NOISE_STD)), ("Student's t", StudentT(NOISE_STD))):
    result, mean = mean_with(misfit=misfit)
    tell(result, error(mean, truth), blind, f"mean ({name})")
    tiles.append((name, mean))
draw(
    path,
    [tiles],
    "Outliers. Three pixels in ten read white. With the squared error the mean of the samples is a "
    "bright bag; with two misfits for data with outliers it is a dark jacket.",
)
