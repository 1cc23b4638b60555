"""A public DCGAN of faces, with the weights that a package on PyPI has.

Either of two will do; both say that their licence is MIT (the faces that they were trained on have
terms of their own), and neither has dependencies that are needed here:

    pip install --no-deps gan-face-generate    # 13 MB; rendered faces (DigiFace-1M)
    pip install --no-deps generateme           # 31 MB; photographs, it does not say which

The middle of a face of the generator's own is hidden and filled in. As latents are 100 and the rest
of the face is observed without noise, hardly more than one face is possible. Eight samples do not
always find it within this budget, which the diagnosis then says; best fits from them come nearer.
"""

import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from report import draw, error, prior_mean, samples, target, tell
from torch import nn

from cogen_fast import inpaint

FILES = {
    "gan_face_generate": "weights.tar",
    "generateme": "static/Models/dcGanGeneratorModel.pt",
}
WIDTHS = (100, 512, 256, 128, 64)


def dcgan() -> nn.Sequential:
    """Radford, Metz and Chintala (2016): latents ``(n, 100, 1, 1)`` to ``(n, 3, 64, 64)``."""
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(WIDTHS):
        stride, padding = (2, 1) if layers else (1, 0)
        layers += [nn.ConvTranspose2d(narrow, wide, 4, stride, padding, bias=False)]
        layers += [nn.BatchNorm2d(wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(WIDTHS[-1], 3, 4, 2, 1, bias=False), nn.Tanh())


path = target(__file__)
packages = [name for name in FILES if find_spec(name) is not None]
if not packages:
    sys.exit("needs the weights of a package: pip install --no-deps gan-face-generate")
file = Path(find_spec(packages[0]).submodule_search_locations[0]) / FILES[packages[0]]
weights = torch.load(file, map_location="cpu", weights_only=True)  # runs no code of the file
weights = weights.get("netG_state_dict", weights)
generator = dcgan().eval()
names = generator.state_dict()  # each file has names of its own, in the same order
generator.load_state_dict(dict(zip(names, weights.values(), strict=True)))

with torch.no_grad():
    latents = torch.randn(8, 100, 1, 1, generator=torch.Generator().manual_seed(0))
    truth = generator(latents)[6]
    blind = prior_mean(lambda z: generator(z[:, :, None, None]), 100, draws=200)
seen = torch.ones(64, 64)
seen[17:47, 17:47] = 0
hidden = seen == 0

result = inpaint(generator, truth, seen, noise_std=0.1, chains=8, budget=400, progress=False)

estimate = result.estimate[0]
print(f"weights: {packages[0]}")
tell(
    result,
    error(estimate[:, hidden], truth[:, hidden]),
    error(blind[:, hidden], truth[:, hidden]),
    "estimate",
)
mean = error(result.mean()[0][:, hidden], truth[:, hidden])
print(f"error of the mean of the samples: {mean:.3f}")
draw(
    path,
    [
        [
            ("truth", truth),
            ("observed", torch.where(hidden, 0.0, truth)),
            *samples(result.images[0], 3),
            ("mean", result.mean()[0]),
            ("estimate", estimate),
        ]
    ],
    f"Faces of a public DCGAN ({packages[0]}): the middle was hidden. Samples, their mean, and the "
    "estimate, which is made of best fits.",
)
