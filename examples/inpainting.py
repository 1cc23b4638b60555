"""Inpainting: all but the upper third of a photograph is hidden, and much remains possible.

What is hidden is not known, so the samples differ: their mean is a guess, and their standard
deviation says where it cannot be trusted.
"""

import torch
from report import draw, error, noise, prior_mean, samples, target, tell

from cogen_fast import Mask, cogenerate, held_out_images, pretrained

NOISE, NOISE_STD = 0.1, 0.2  # the second counts the generator's own error, too
path = target(__file__)
generator = pretrained("fashion-32")
truth = held_out_images("fashion-32")["dress"]

seen = torch.zeros(32, 32)
seen[:11] = 1
observed = truth + noise(truth.shape, NOISE)  # hidden pixels may hold anything, NaN included

result = cogenerate(
    generator, observed, Mask(seen), noise_std=NOISE_STD, budget=600, progress=False
)

mean, blind, hidden = result.mean()[0], prior_mean(generator), seen == 0
tell(result, error(mean[:, hidden], truth[:, hidden]), error(blind[:, hidden], truth[:, hidden]))
spread = result.std()[0]
draw(
    path,
    [
        [
            ("truth", truth),
            ("observed", torch.where(hidden, 0.0, observed)),
            *samples(result.images[0]),
            ("mean", mean),
            (f"std, 0 to {float(spread.max()):.2g}", 2.0 * spread / spread.max() - 1.0),
        ]
    ],
    "Inpainting. The upper third was observed. The samples agree there and differ below; the "
    "standard deviation of each pixel shows where. Errors are those of hidden pixels.",
)
