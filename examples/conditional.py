"""A conditional generator: photographs with different known exposures.

`G(z, c)` is a garment as a camera sees it at exposure c: dim for small c, burnt out for large c.
The exposure of each photograph is known and is handed over as its condition. The latents then give
the garment as it is at any other exposure.
"""

import torch
from report import draw, error, noise, prior_mean, target, tell
from torch import Tensor

from cogen_fast import Prior, cogenerate, held_out_images, pretrained

NOISE, NOISE_STD = 0.05, 0.2  # the second counts the generator's own error, too
EXPOSURES = torch.tensor([0.4, 4.0])
path = target(__file__)
generator = pretrained("fashion-32")
garments = held_out_images("fashion-32")
truths = torch.stack([garments[name] for name in ("t-shirt", "boot")])


def exposed(images: Tensor, exposure: Tensor) -> Tensor:
    """Images in [-1, 1] as a film saturates: 1 - exp(-exposure * light), in [-1, 1] again."""
    light = 0.5 * (images + 1.0)
    return 1.0 - 2.0 * torch.exp(-exposure[:, None, None, None] * light)


def camera(z: Tensor, exposure: Tensor) -> Tensor:
    """The conditional generator: latents ``(n, 64)`` and exposures ``(n,)``, a row for each."""
    return exposed(generator(z), exposure)


observed = exposed(truths, EXPOSURES) + noise(truths.shape, NOISE)
result = cogenerate(
    Prior(camera, conditions=EXPOSURES),  # a condition for each observation
    observed,
    torch.ones(32, 32),
    noise_std=NOISE_STD,
    latent_shape=64,
    budget=400,
    progress=False,
)

blind = prior_mean(generator)
rows = []
for b, exposure in enumerate(EXPOSURES.tolist()):
    with torch.no_grad():
        garment = generator(result.latents[b]).mean(0)
    print(f"exposure {exposure:g}:")
    tell(result, error(garment, truths[b]), error(blind, truths[b]))
    seen = (f"exposure {exposure:g}", observed[b])
    again = ("mean, exposed", result.mean()[b])
    rows.append([("truth", truths[b]), seen, again, ("garment", garment)])
draw(
    path,
    rows,
    "Conditions. Two photographs of known exposure, the mean of the samples as the camera sees "
    "them, and the garment itself.",
)
