"""Magnetic resonance imaging: a sixth of an image's frequencies, measured with noise.

Frequencies come in lines. The lowest lines are all measured, and a few of the others at random, as
scanners do. Measurements are complex; the noise level is that of each of their two parts.
"""

import torch
from report import draw, error, noise, prior_mean, samples, target, tell

from cogen_fast import Fourier, cogenerate, held_out_images, pretrained

NOISE, NOISE_STD = 0.1, 0.2  # the second counts the generator's own error, too
LINES = [0, 1, 31, 5, 26]  # of 32, counted from frequency 0; 31 is frequency -1
path = target(__file__)
generator = pretrained("fashion-32")
truth = held_out_images("fashion-32")["dress"]

mask = torch.zeros(32, 32)
mask[LINES] = 1
scanner = Fourier(mask)
measured = scanner.measure(truth[None])[0]
measured = measured + torch.complex(
    noise(measured.shape, NOISE), noise(measured.shape, NOISE, seed=1)
)

result = cogenerate(generator, measured, scanner, noise_std=NOISE_STD, budget=800, progress=False)

# What scanners show at first: frequencies that were not measured are set to 0.
spectrum = torch.zeros(1, 32, 32, dtype=measured.dtype)
spectrum[:, mask.bool()] = measured
zero_filled = torch.fft.ifft2(spectrum, norm="ortho").real
mean, blind = result.mean()[0], prior_mean(generator)
tell(result, error(mean, truth), error(blind, truth))
print(f"error of the zero-filled image: {error(zero_filled, truth):.3f}")
draw(
    path,
    [
        [
            ("truth", truth),
            ("lines measured", 2.0 * torch.fft.fftshift(mask)[None] - 1.0),
            ("zero-filled", zero_filled),
            *samples(result.images[0], 3),
            ("mean", mean),
        ]
    ],
    "Magnetic resonance imaging. Five of 32 lines of frequencies were measured (white; frequency "
    "0 is in the middle). Setting the others to 0 smears the image; the samples do not.",
)
