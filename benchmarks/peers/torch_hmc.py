"""The published transition as one writes it in PyTorch: eager, or with a compiled trajectory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Energy = Callable[[Tensor], Tensor]
_TARGET, _DECAY, _INCREASE, _DECREASE = 0.65, 0.9, 1.02, 0.98


def annealed(energy: Energy, chains: int, size: int, steps: int, step_size: float, compiled: bool):
    """A function of inverse temperatures (T,): latents (N, d) after a transition at each."""

    def grad_of(z: Tensor) -> Tensor:
        if compiled:
            return torch.func.grad(lambda z: energy(z).sum())(z)
        z = z.detach().requires_grad_()
        return torch.autograd.grad(energy(z).sum(), z)[0]

    def trajectory(z: Tensor, v: Tensor, grad: Tensor, beta: Tensor, step: Tensor):
        for _ in range(steps):
            v = v - 0.5 * step * (beta * grad + z)
            z = z + step * v
            grad = grad_of(z)
            v = v - 0.5 * step * (beta * grad + z)
        return z, v, grad

    move = torch.compile(trajectory, dynamic=False) if compiled else trajectory

    def run(betas: Tensor) -> Tensor:
        z = torch.randn(chains, size)
        e, grad = energy(z).detach(), grad_of(z)
        step, running = torch.tensor(step_size), torch.tensor(_TARGET)
        weights, before = torch.zeros(chains), torch.tensor(0.0)
        for beta in betas:
            weights -= (beta - before) * e
            before = beta
            v = torch.randn(chains, size)
            new_z, new_v, new_grad = move(z, v, grad, beta, step)
            with torch.no_grad():
                new_e = energy(new_z)
                start = beta * e + 0.5 * (z * z).sum(-1) + 0.5 * (v * v).sum(-1)
                end = beta * new_e + 0.5 * (new_z * new_z).sum(-1) + 0.5 * (new_v * new_v).sum(-1)
                probability = (start - end).exp().clamp(max=1.0).nan_to_num(0.0)
                accepted = torch.rand(chains) < probability
                z = torch.where(accepted[:, None], new_z, z)
                grad = torch.where(accepted[:, None], new_grad, grad)
                e = torch.where(accepted, new_e, e)
                step = step * (_INCREASE if running > _TARGET else _DECREASE)
                running = _DECAY * running + (1.0 - _DECAY) * probability.mean()
        return z

    return run
