"""Optimisation of the misfit from many starts at once."""

from __future__ import annotations

import torch
from torch import Tensor

from cogen_fast.density import Potential


def gradient_descent(
    potential: Potential, latents: Tensor, steps: int, learning_rate: float
) -> tuple[Tensor, Tensor]:
    """Plain gradient descent ``z <- z - learning_rate grad E(z)`` from every start.

    ``latents`` ``(B, N, d)``; returns the last latents and their energies ``(B, N)``. A chain whose
    next gradient is not finite stays where it is. Costs ``steps + 1`` gradients, the last one for
    the energy alone.
    """
    position = latents.clone()
    for _ in range(steps):
        _, grad = potential.energy_and_grad(position)
        sound = grad.isfinite().all(-1, keepdim=True)
        position = torch.where(sound, position - learning_rate * grad, position)
    energy, _ = potential.energy_and_grad(position)
    return position, energy
