"""Colourisation: the grey values of a picture, and then a few of its colours besides.

No generator of coloured images comes with the package. This one is made of the shipped generator of
grey garments and three more latents, which dye the garment. The truth is a held-out photograph in
a dye, so what is shown is a principle and no restoration of a real colour photograph.

Grey values say nothing about the hue, and the samples have all kinds. Where four pixels are known
in colour, too, they agree. The second operator is made of the first and a function.
"""

import torch
from report import draw, error, noise, samples, target, tell
from torch import Tensor, nn

from cogen_fast import Luminance, Operator, cogenerate, held_out_images, pretrained

NOISE, NOISE_STD = 0.05, 0.1  # the second counts the generator's own error, too
DYE = torch.tensor([0.2, 0.45, 0.9])  # blue: the shares of red, green and blue that it reflects
ROWS, COLUMNS = [8, 12, 20, 24], [14, 18, 12, 18]  # of the pixels that are known in colour
path = target(__file__)


def dyed(images: Tensor, dye: Tensor) -> Tensor:
    """Grey images ``(n, 1, H, W)`` in colour, ``(n, 3, H, W)``; dyes are ``(n, 3)`` in [0, 1]."""
    return (images + 1.0) * dye[:, :, None, None] - 1.0


def dye_of(z: Tensor) -> Tensor:
    """The dye of latents, the last three of them: ``(n, 67)`` to ``(n, 3)`` in [0, 1]."""
    return torch.sigmoid(1.5 * z[:, 64:])


class DyedGarments(nn.Module):
    """Latents ``(n, 67)`` to coloured garments ``(n, 3, 32, 32)``."""

    latent_size = 67

    def __init__(self) -> None:
        super().__init__()
        self.garments = pretrained("fashion-32")

    def forward(self, z: Tensor) -> Tensor:
        """A grey garment, and its dye."""
        return dyed(self.garments(z[:, :64]), dye_of(z))


generator = DyedGarments()
photograph = held_out_images("fashion-32")["t-shirt"]
truth = dyed(photograph[None], DYE[None])[0]
grey = Luminance()


def with_colours(x: Tensor) -> Tensor:
    """Grey values, and all three colours of the known pixels."""
    return torch.cat([grey.measure(x).flatten(1), x[:, :, ROWS, COLUMNS].flatten(1)], dim=1)


with torch.no_grad():
    draws = torch.randn(2000, generator.latent_size, generator=torch.Generator().manual_seed(0))
    blind = generator(draws).mean(0)
rows = []
for name, operator in (("grey values", grey), ("and 4 colours", Operator(with_colours))):
    measured = operator.measure(truth[None])[0]
    measured = measured + noise(measured.shape, NOISE)
    result = cogenerate(
        generator, measured, operator, noise_std=NOISE_STD, budget=400, progress=False
    )
    mean = result.mean()[0]
    # Of grey values alone, colours cannot be expected: the error is that of grey values, too.
    compared = grey.measure if operator is grey else torch.clone
    found, own, first = compared(torch.stack([mean, truth, blind]))
    tell(result, error(found, own), error(first, own), f"mean ({name})")
    dyes = dye_of(result.latents[0])
    print(f"standard deviation of the share of blue: {dyes[:, 2].std():.2f}")
    shown = measured.flatten()[: 32 * 32].reshape(1, 32, 32).repeat(3, 1, 1)
    if operator is not grey:
        shown[:, ROWS, COLUMNS] = measured[32 * 32 :].reshape(3, -1)
    rows.append([("truth", truth), (name, shown), *samples(result.images[0]), ("mean", mean)])
draw(
    path,
    rows,
    "Colourisation. Above, grey values were observed, and the hue is open: the mean has a colour "
    "of no sample. Below, four pixels are known in colour as well, and the samples agree.",
)
