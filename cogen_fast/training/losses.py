"""The losses of both networks: WGAN-GP as published, and the non-saturating loss with R1.

Each is a module with one ``forward``, so that DistributedDataParallel finds one forward pass for
one backward pass; the inner gradient of a penalty is part of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOSSES = ("wgan-gp", "r1")
GRADIENT_PENALTY = 10.0
DRIFT = 1e-3
R1_GAMMA = 10.0
R1_EVERY = 16
"""Steps between penalties (lazy regularisation, Karras et al. 2020, appendix B)."""


class DiscriminatorLoss(nn.Module):
    """The loss of the discriminator, on real and generated images ``(n, C, R, R)``.

    "wgan-gp" is the loss of Gulrajani et al. 2017 with the drift term of Karras et al. 2018,
    appendix A.1. "r1" is the non-saturating loss of Goodfellow et al. 2014, plus, with
    ``penalise``, half of ``r1_gamma`` times the squared gradient at real images (Mescheder et al.
    2018).
    """

    def __init__(self, discriminator: nn.Module, loss: str, r1_gamma: float = R1_GAMMA) -> None:
        super().__init__()
        self.discriminator, self.loss, self.r1_gamma = discriminator, loss, r1_gamma

    def forward(
        self, real: Tensor, fake: Tensor, mix: Tensor, penalise: bool
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the mean score of real images minus that of generated ones; both scalars.

        ``mix`` ``(n, 1, 1, 1)`` in [0, 1] says where between the two the penalty of WGAN-GP takes
        the gradient.
        """
        if penalise and self.loss == "r1":
            real = real.detach().requires_grad_(True)
        of_real, of_fake = self.discriminator(real).float(), self.discriminator(fake).float()
        gap = (of_real.mean() - of_fake.mean()).detach()
        if self.loss == "wgan-gp":
            value = of_fake.mean() - of_real.mean() + DRIFT * of_real.square().mean()
            if penalise:
                value = value + GRADIENT_PENALTY * self._gradient_penalty(real, fake, mix)
            return value, gap
        value = F.softplus(of_fake).mean() + F.softplus(-of_real).mean()
        if penalise:
            value = value + 0.5 * self.r1_gamma * squared_gradient(of_real, real).mean()
        return value, gap

    def _gradient_penalty(self, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
        between = torch.lerp(real, fake, mix).detach().requires_grad_(True)
        squared = squared_gradient(self.discriminator(between).float(), between)
        # The square root has no gradient at 0.
        return ((squared + 1e-12).sqrt() - 1.0).square().mean()


class GeneratorLoss(nn.Module):
    """The loss of the generator: how poorly its images of latents ``(n, d)`` are scored.

    The discriminator is not a submodule, because a data-parallel wrapper must find the generator's
    weights alone.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module, loss: str) -> None:
        super().__init__()
        self.generator, self.loss = generator, loss
        self._discriminator = (discriminator,)

    def forward(self, latents: Tensor) -> Tensor:
        scores: Tensor = self._discriminator[0](self.generator(latents)).float()
        return -scores.mean() if self.loss == "wgan-gp" else F.softplus(-scores).mean()


def squared_gradient(scores: Tensor, images: Tensor) -> Tensor:
    """``|grad|^2`` of each score with respect to its image, ``(n,)``, itself differentiable."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.float().square().sum((1, 2, 3))
