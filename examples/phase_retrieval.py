"""Phase retrieval: the magnitudes of an image's frequencies, without their phases.

Magnitudes do not change when an image is shifted across the border, turned by 180 degrees or
multiplied by -1, so that by the measurements alone the answer is one of thousands. The posterior
has a mode for each of them that the generator can make. This generator makes garments that stand
upright in the middle, on black, which excludes most. With a generator of shifted and turned images
the samples would show but a few of many modes, and which ones would be chance.

Smaller ambiguities remain, and particles may end in different modes. Four populations are run for
that reason: where they disagree, there are several modes, and the evidence weighs them.
"""

import torch
from report import draw, error, noise, prior_mean, target, tell

from cogen_fast import Adaptive, Magnitudes, cogenerate, held_out_images, pretrained

NOISE, NOISE_STD = 0.05, 0.2  # the second counts the generator's own error, too
POPULATIONS, CHAINS = 4, 8
path = target(__file__)
generator = pretrained("fashion-32")
truth = held_out_images("fashion-32")["boot"]

# The matrix of the two-dimensional Fourier transform; any real or complex matrix may be given.
line = torch.fft.fft(torch.eye(32, dtype=torch.float64), norm="ortho")
magnitudes = Magnitudes(torch.kron(line, line))
measured = magnitudes.measure(truth[None])[0]
measured = measured + noise(measured.shape, NOISE)

result = cogenerate(
    generator,
    measured,
    magnitudes,
    noise_std=NOISE_STD,
    method=Adaptive(populations=POPULATIONS),
    chains=CHAINS,
    budget=400,
    progress=False,
)

mean, blind = result.mean(weighted=True)[0], prior_mean(generator)
tell(result, error(mean, truth), error(blind, truth), "weighted mean")
images = result.images[0].reshape(POPULATIONS, CHAINS, *truth.shape)
energies = result.energies[0].reshape(POPULATIONS, CHAINS).mean(1)
shares = result.weights[0].reshape(POPULATIONS, CHAINS).sum(1)
for number in range(POPULATIONS):
    own = error(images[number].mean(0), truth)
    print(
        f"population {number + 1}: mean energy {energies[number]:.0f}, share of the weight "
        f"{shares[number]:.3f}, error of its mean {own:.3f}"
    )
means = [(f"mean {n + 1}, E {energies[n]:.0f}", images[n].mean(0)) for n in range(POPULATIONS)]
# One of the images that no measurement tells from the truth.
twin = torch.roll(truth.flip(1, 2), (10, 4), dims=(1, 2))
off = error(magnitudes.measure(twin[None])[0], magnitudes.measure(truth[None])[0])
print(f"a turned and shifted twin: its magnitudes differ by {off:.1e}")
draw(
    path,
    [[("truth", truth), ("a twin of it", twin), *means, ("weighted", mean)]],
    "Phase retrieval. Only magnitudes of frequencies were measured; the twin, turned and shifted, "
    "has the same. The generator makes upright garments in the middle alone, so that the means of "
    "four populations stand upright (E: their mean energies). They differ in detail.",
)
