"""The DCGAN of 64 x 64 faces that the benchmarks use, in the form in which a user would have it."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

_WIDTHS = (100, 512, 256, 128, 64)


class DCGAN(nn.Module):
    """Latents ``(N, 100, 1, 1)`` to images ``(N, 3, 64, 64)`` in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(_WIDTHS)):
            stride, padding = (1, 0) if i == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(_WIDTHS[-1], 3, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Images of latents."""
        images: Tensor = self.main(z)
        return images


def data_folder() -> Path:
    """Where the checkpoints lie: ``COGEN_FAST_TEST_DATA``, else beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("COGEN_FAST_TEST_DATA", beside))


def own_faces(generator: nn.Module, count: int, seed: int) -> Tensor:
    """The first ``count`` faces drawn with ``seed``, ``(count, 3, 64, 64)``."""
    z = torch.randn(count, 100, 1, 1, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        faces: Tensor = generator(z)
    return faces


def block_mask() -> Tensor:
    """A face's mask ``(64, 64)``, 1 = observed, with a block of 30 x 30 hidden."""
    mask = torch.ones(64, 64)
    mask[17:47, 17:47] = 0
    return mask


def load_faces(folder: Path | None = None) -> DCGAN:
    """The generator with its published weights, evaluating; FileNotFoundError without them."""
    path = (folder or data_folder()) / "dcgan_faces_64px.pth"
    weights = torch.load(path, map_location="cpu", weights_only=True)["netG_state_dict"]
    generator = DCGAN()
    generator.load_state_dict(weights)
    return generator.eval()
