"""Optimisation of the misfit from many starts at once, each start independently."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from cogen_fast.problem.density import Potential

_ADAM_RATE = 0.01
_MEMORY = 10  # pairs of steps and gradient changes that L-BFGS keeps
_FIRST_STEP = 0.1  # length of the first L-BFGS step, in units of sqrt(d)
_SHRINK, _ARMIJO = 0.5, 1e-4  # of backtracking: step factor and sufficient decrease


def gradient_descent(
    potential: Potential,
    latents: Tensor,
    steps: int,
    learning_rate: float | Tensor,
    visit: Callable[[Tensor], object] | None = None,
    keep_best: bool = False,
) -> tuple[Tensor, Tensor]:
    """Plain gradient descent ``z <- z - learning_rate grad E(z)`` from every start.

    ``latents`` is ``(B, N, d)``; ``learning_rate`` is a number, or one per chain, ``(N, 1)``.
    Returns the last latents and their energies ``(B, N)``, or with ``keep_best`` those of the best
    point which each chain visited. ``visit`` is called with the latents after every step. A chain
    whose gradient is not finite does not move. The cost is ``steps + 1`` gradients; the last one is
    needed for its energy only.
    """
    position, best = latents.clone(), _Best(latents)
    for _ in range(steps):
        energy, grad = potential.energy_and_grad(position)
        if keep_best:
            best.update(position, energy)
        sound = grad.isfinite().all(-1, keepdim=True)
        position = torch.where(sound, position - learning_rate * grad, position)
        if visit is not None:
            visit(position)
    energy, _ = potential.energy_and_grad(position)
    if keep_best:
        best.update(position, energy)
        return best.latents, best.energy
    return position, energy


class _Best:
    """The point of lowest energy which each chain has visited so far."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents.clone()
        self.energy = torch.full(
            latents.shape[:2], torch.inf, dtype=torch.float64, device="cpu"
        ).to(latents.device)

    def update(self, position: Tensor, energy: Tensor) -> None:
        better = energy < self.energy  # false for NaN
        self.latents = torch.where(better[..., None], position, self.latents)
        self.energy = torch.where(better, energy, self.energy)


def adam(
    potential: Potential, latents: Tensor, steps: int, learning_rate: float = _ADAM_RATE
) -> tuple[Tensor, Tensor]:
    """Adam (Kingma and Ba 2015) with a learning rate that falls to 0 along a cosine.

    ``latents`` is ``(B, N, d)``. Returns the best point which each chain visited and its energy
    ``(B, N)``. The cost is ``steps`` gradients. A gradient which is not finite counts as 0.
    """
    position = latents.detach().clone()
    optimiser = torch.optim.Adam([position], lr=learning_rate)
    best = _Best(latents)
    for k in range(steps):
        energy, grad = potential.energy_and_grad(position)
        best.update(position, energy)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * 0.5 * (1.0 + math.cos(math.pi * k / steps))
        sound = grad.isfinite().all(-1, keepdim=True)
        position.grad = torch.where(sound, grad, 0.0).to(position.dtype)
        optimiser.step()
    return best.latents, best.energy


def lbfgs(
    potential: Potential, latents: Tensor, steps: int, first_step: float = _FIRST_STEP
) -> tuple[Tensor, Tensor]:
    """L-BFGS (Nocedal and Wright 2006, algorithm 7.4) of every chain, with backtracking.

    ``latents`` is ``(B, N, d)``. ``first_step`` is the length of the first step, and of the first
    step after each restart along the negative gradient, in units of ``sqrt(d)``, the length of a
    prior draw. Returns the best point which each chain visited and its energy ``(B, N)``. The cost
    is ``steps`` gradients. Each of them evaluates one trial point per chain; the chain moves there
    if the energy has decreased sufficiently, and halves its step otherwise.
    """
    position = latents.detach().clone()
    energy, grad = _finite(*potential.energy_and_grad(position))
    best = _Best(latents)
    best.update(position, energy)
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=_MEMORY)
    direction = _first_direction(grad, first_step)
    scale = torch.ones_like(energy)
    for _ in range(steps - 1):
        step = scale[..., None].to(position.dtype) * direction
        trial = position + step
        trial_energy, trial_grad = _finite(*potential.energy_and_grad(trial))
        best.update(trial, trial_energy)
        slope = _dot(step, grad)
        taken = trial_energy <= energy + _ARMIJO * slope
        chosen = taken[..., None]
        change = torch.where(chosen, trial_grad - grad, 0.0)
        pairs.append((torch.where(chosen, step, 0.0), change))
        position = torch.where(chosen, trial, position)
        grad = torch.where(chosen, trial_grad, grad)
        energy = torch.where(taken, trial_energy, energy)
        proposed = _two_loops(grad, pairs)
        downhill = _dot(proposed, grad) < 0.0
        proposed = torch.where(downhill[..., None], proposed, _first_direction(grad, first_step))
        direction = torch.where(chosen, proposed, direction)
        scale = torch.where(taken, 1.0, scale * _SHRINK)
    return best.latents, best.energy


def _finite(energy: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The energies, +inf where energy or gradient is not finite, and the gradients, 0 there."""
    sound = energy.isfinite() & grad.isfinite().all(-1)
    return torch.where(sound, energy, torch.inf), torch.where(sound[..., None], grad, 0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = (a.double() * b.double()).sum(-1)
    return product


def _first_direction(grad: Tensor, length: float) -> Tensor:
    """The direction of the negative gradient, with length ``length * sqrt(d)``."""
    norm = grad.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    direction: Tensor = grad * (-length * math.sqrt(grad.shape[-1])) / norm
    return direction


def _two_loops(grad: Tensor, pairs: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """``-H grad`` by the two-loop recursion; pairs without positive curvature are skipped."""
    q = grad.double()
    kept = []
    gamma = torch.ones_like(q[..., :1])
    scaled = torch.zeros_like(gamma, dtype=torch.bool)  # by the newest pair of positive curvature
    for step, change in reversed(pairs):
        curvature = _dot(step, change)[..., None]
        fine = curvature > 0.0
        rho = torch.where(fine, 1.0 / curvature.clamp(min=1e-300), 0.0)
        alpha = rho * _dot(step, q)[..., None]
        q = q - alpha * change
        kept.append((rho, alpha, step, change))
        newest = fine & ~scaled
        scaled = scaled | fine
        gamma = torch.where(newest, curvature / _dot(change, change)[..., None], gamma)
    r = gamma * q
    for rho, alpha, step, change in reversed(kept):
        beta = rho * _dot(change, r)[..., None]
        r = r + step * (alpha - beta)
    return torch.neg(r).to(grad.dtype)
