"""The data of the 2-D study, and its plain GAN (paper, section 4.1).

The data are five equally weighted Gaussians with means at 0, 72, 144, 216 and 288 degrees on the
unit circle; their variance is 0.02 in the paper's text and 0.002 in the authors' program. ``python
-m cogen_fast.training.five_gaussians FOLDER`` trains the generators that are shipped in
``cogen_fast/generators/weights``, in two minutes. Matrix products round differently on other CPUs,
and the training of a GAN amplifies that: there, the later stages are other generators of the same
kind.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cogen_fast.generators import MLPGenerator, save_generator
from cogen_fast.generators.pretrained import PRETRAINED, STAGES, VARIANCES

PROGRAM_VARIANCE, PAPER_VARIANCE = VARIANCES
_MODES = 5
_BATCH = 256
_WIDTH = 64


def sample_data(count: int, variance: float, generator: torch.Generator) -> Tensor:
    """Draws of the data, ``(count, 2)`` float32."""
    mode = torch.randint(_MODES, (count,), generator=generator)
    angle = 2.0 * math.pi / _MODES * mode
    means = torch.stack([angle.cos(), angle.sin()], dim=-1)
    return means + math.sqrt(variance) * torch.randn(count, 2, generator=generator)


def train(
    snapshots: Sequence[int], variance: float = PROGRAM_VARIANCE, seed: int = 0
) -> Iterator[tuple[int, MLPGenerator]]:
    """Train the 2-20-20-2 generator, and yield it at each iteration of ``snapshots``, in order.

    The loss is the non-saturating GAN loss, the optimiser Adam(1e-3, beta1 0.5) for both networks,
    the discriminator a ReLU network of width 64, the batch size 256. Training goes on with the
    module that is yielded, so save it before asking for the next.
    """
    torch_rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = MLPGenerator()
        discriminator = nn.Sequential(
            nn.Linear(2, _WIDTH),
            nn.ReLU(),
            nn.Linear(_WIDTH, _WIDTH),
            nn.ReLU(),
            nn.Linear(_WIDTH, 1),
        )
    optimisers = [
        torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.999))
        for m in (generator, discriminator)
    ]
    for iteration in range(1, max(snapshots) + 1):
        real = sample_data(_BATCH, variance, torch_rng)
        latents = torch.randn(_BATCH, generator.latent_size, generator=torch_rng)
        _update_both(generator, discriminator, real, latents, *optimisers)
        if iteration in snapshots:
            yield iteration, generator


def _update_both(
    generator: nn.Module,
    discriminator: nn.Module,
    real: Tensor,
    latents: Tensor,
    generator_step: torch.optim.Optimizer,
    discriminator_step: torch.optim.Optimizer,
) -> None:
    """One update of the discriminator, then one of the generator."""
    loss = nn.functional.softplus
    fake = generator(latents)
    discriminator_step.zero_grad()
    scores = loss(-discriminator(real)).mean() + loss(discriminator(fake.detach())).mean()
    torch.autograd.backward(scores)
    discriminator_step.step()
    generator_step.zero_grad()
    torch.autograd.backward(loss(-discriminator(fake)).mean())
    generator_step.step()


def main() -> None:
    """Train the shipped generators at every stage, for both variances, and save them in FOLDER."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # layers of 20 to 64 units are too small to share among threads
    options.folder.mkdir(parents=True, exist_ok=True)
    for variance in VARIANCES:
        for stage, generator in train(STAGES, variance, options.seed):
            name = PRETRAINED[f"five-gaussians-{variance}-{stage}"]
            save_generator(generator, options.folder / name, card=False)
            print(options.folder / name, flush=True)


if __name__ == "__main__":
    main()
