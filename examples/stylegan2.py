"""A StyleGAN2 in two of its latent spaces: z, for which the prior is exact, and w.

The network has random weights, so that no file is needed: its images are patterns of colours. The
middle of one is hidden and filled in, once with G's own latents z as the unknowns, and once with
the styles w that its mapping network makes of them, whose prior is a Gaussian in whitened
coordinates. A trained network is read by `load_generator` and stands in the same place.
"""

import torch
from report import draw, error, noise, prior_mean, samples, target, tell

from cogen_fast import Prior, cogenerate
from cogen_fast.generators import StyleGAN2Generator

NOISE = 0.2
path = target(__file__)


def network() -> StyleGAN2Generator:
    """Latents ``(n, 24)`` to ``(n, 3, 32, 32)``, with weights that are the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = StyleGAN2Generator(
            32, latent_size=24, mapping=(24, 24), feature_maps=(32, 32, 24, 16)
        )
    for name, weights in generator.state_dict().items():
        if name.endswith("style_weight"):
            weights.mul_(3.0)  # so that images differ more
        elif name.endswith("to_rgb.conv.weight"):
            weights.mul_(0.4)  # so that most of their values are in [-1, 1]
    return generator.eval().requires_grad_(False)


generator = network()
truth = generator(torch.randn(1, 24, generator=torch.Generator().manual_seed(1)))[0]
blind = prior_mean(generator, 24)
seen = torch.ones(32, 32)
seen[8:24, 8:24] = 0
hidden = seen == 0
observed = truth + noise(truth.shape, NOISE)

rows = []
for space in ("z", "w"):
    prior = Prior(generator, space=space)
    result = cogenerate(
        prior, observed, seen, noise_std=NOISE, chains=8, budget=300, progress=False
    )
    mean = result.mean()[0]
    found = error(mean[:, hidden], truth[:, hidden])
    tell(result, found, error(blind[:, hidden], truth[:, hidden]), f"mean in {space}")
    rows.append(
        [
            ("truth", truth),
            ("observed", torch.where(hidden, 0.0, observed)),
            *samples(result.images[0], 3),
            (f"mean in {space}", mean),
        ]
    )
draw(
    path,
    rows,
    "A StyleGAN2 with random weights, of which the middle was hidden: sampled in its latents z, "
    "and in its styles w.",
)
