"""Compressed sensing: 128 random projections of a photograph of 1,024 pixels.

The noise level counts what the generator itself cannot reproduce of a photograph, about 0.1 for
each pixel. A projection is a sum over 1,024 pixels with weights of variance 1 / 128, so that in a
measurement it amounts to 0.1 * sqrt(1024 / 128), which is more than the noise that is added.
"""

from math import hypot, sqrt

import torch
from report import draw, error, noise, prior_mean, samples, target, tell

from cogen_fast import Matrix, cogenerate, held_out_images, pretrained

NOISE, GENERATORS_ERROR = 0.1, 0.1
MEASUREMENTS, PIXELS = 128, 32 * 32
path = target(__file__)
generator = pretrained("fashion-32")
truth = held_out_images("fashion-32")["trouser"]

projections = Matrix.gaussian(MEASUREMENTS, PIXELS, seed=1)  # Matrix(A) takes any matrix
measured = projections.measure(truth[None])[0]
measured = measured + noise(measured.shape, NOISE)

noise_std = hypot(NOISE, GENERATORS_ERROR * sqrt(PIXELS / MEASUREMENTS))
result = cogenerate(
    generator, measured, projections, noise_std=noise_std, budget=600, progress=False
)

# What linear algebra says alone: the image of the least norm that fits the measurements.
rows = projections.measure(torch.eye(PIXELS).reshape(PIXELS, 1, 32, 32)).T
least_norm = (torch.linalg.pinv(rows) @ measured).reshape(truth.shape)
mean, blind = result.mean()[0], prior_mean(generator)
tell(result, error(mean, truth), error(blind, truth))
print(f"error of the image of least norm: {error(least_norm, truth):.3f}")
draw(
    path,
    [[("truth", truth), ("least norm", least_norm), *samples(result.images[0]), ("mean", mean)]],
    "Compressed sensing. 128 random projections were measured of 1,024 pixels. Beside the truth: "
    "the image of least norm that fits them, then samples and their mean.",
)
