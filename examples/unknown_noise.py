"""Unknown noise: how noisy the photograph is, is inferred together with the photograph.

The inferred level counts all that the generator does not explain: the noise, and its own error.

The diagnosis says that moves are missing. Without `budget` the run takes as many as it needs, more
than a minute's worth, and then nothing is wrong; the level it finds is about the same.
"""

import torch
from report import draw, error, noise, prior_mean, samples, target, tell

from cogen_fast import cogenerate, held_out_images, pretrained

NOISE = 0.4
path = target(__file__)
generator = pretrained("fashion-32")
truth = held_out_images("fashion-32")["dress"]

seen = torch.ones(32, 32)
seen[12:20] = 0
observed = truth + noise(truth.shape, NOISE)

result = cogenerate(generator, observed, seen, noise_std="auto", budget=1000, progress=False)

mean, blind = result.mean()[0], prior_mean(generator)
tell(result, error(mean, truth), error(blind, truth))
levels = result.noise_std[0]
print(f"noise: inferred {levels.mean():.3f}, standard deviation {levels.std():.3f}; true {NOISE}")
draw(
    path,
    [
        [
            ("truth", truth),
            ("observed", torch.where(seen == 0, 0.0, observed)),
            *samples(result.images[0]),
            ("mean", mean),
        ]
    ],
    f"Unknown noise. Noise of standard deviation {NOISE} was added and a band hidden; the run was "
    f"not told the level. The samples say {levels.mean():.2f}.",
)
