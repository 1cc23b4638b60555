"""A generator of your own: garments that may be turned, by an angle that is inferred.

Any module or function from standard normal latents to outputs will do. This one has the usual
peculiarities: a latent more than the network that it is built on, values in [0, 1], and a tuple for
its result, of which `Prior(..., output=0)` takes the first part.
"""

import math

import torch
from report import draw, error, noise, prior_mean, samples, target, tell
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from cogen_fast import Prior, cogenerate, held_out_images, pretrained

NOISE, NOISE_STD = 0.05, 0.1  # in units of [0, 1]; the second counts the generator's own error
ANGLE = 35.0  # degrees, which the run is not told
path = target(__file__)


def turned(images: Tensor, radians: Tensor) -> Tensor:
    """Images ``(n, 1, H, W)``, each turned by its own angle ``(n,)``."""
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    rows = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).reshape(-1, 2, 3)
    grid = affine_grid(rows, list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="zeros", align_corners=False)


class TurnedGarments(nn.Module):
    """Latents ``(n, 65)`` to brightness in [0, 1] ``(n, 1, 32, 32)`` and angles ``(n,)``."""

    latent_size = 65

    def __init__(self) -> None:
        super().__init__()
        self.garments = pretrained("fashion-32")

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The last latent is the angle, normal with a standard deviation of 30 degrees."""
        radians = math.radians(30.0) * z[:, 64]
        return turned(0.5 * (self.garments(z[:, :64]) + 1.0), radians), radians


generator = TurnedGarments()
photograph = 0.5 * (held_out_images("fashion-32")["boot"] + 1.0)
truth = turned(photograph[None], torch.tensor([math.radians(ANGLE)]))[0]
seen = torch.ones(32, 32)
seen[:, 16:] = 0
observed = truth + noise(truth.shape, NOISE)

prior = Prior(generator, output=0)
result = cogenerate(prior, observed, seen, noise_std=NOISE_STD, budget=600, progress=False)

mean, blind, hidden = result.mean()[0], prior_mean(prior, 65), seen == 0
found = error(2.0 * mean[:, hidden], 2.0 * truth[:, hidden])
tell(result, found, error(2.0 * blind[:, hidden], 2.0 * truth[:, hidden]))
angles = 30.0 * result.latents[0, :, 64]
print(f"angle: {angles.mean():.1f} degrees, standard deviation {angles.std():.1f}; true {ANGLE}")
tiles = [
    ("truth", truth),
    ("observed", torch.where(hidden, 0.5, observed)),
    *samples(result.images[0]),
    ("mean", mean),
]
draw(
    path,
    [[(label, 2.0 * image - 1.0) for label, image in tiles]],
    f"A generator of one's own, which turns its garments. The boot was turned by {ANGLE:.0f} "
    f"degrees and its right half hidden; the samples' angle is {angles.mean():.0f} degrees. Errors "
    "are those of hidden pixels.",
)
