"""A mass that knows the stiff directions of a population, in coordinates turned to them.

At equilibrium the mean of ``grad U grad U'`` is the mean Hessian of U, so the gradients that a
population has already paid for tell in which directions the density is narrow. The few
stiffest become the first coordinates of an orthogonal basis, where a diagonal mass can slow them
down: the step size is then bounded by the rest. The prior is the same in every such basis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cogen_fast.density import Potential, gradients
from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.sampler import hmc
from cogen_fast.sampler.hmc import HMCInfo, HMCState

_GAIN = 0.1  # of the running mean, per move
_RANK = 1e-9  # of the largest eigenvalue: below it there is no direction
MOST = 32
"""Directions at most."""


def init(latents: Tensor) -> Tensor:
    """No curvature known yet, ``(B, d, d)`` float64."""
    count, _, size = latents.shape
    return latents.new_zeros(count, size, size, dtype=torch.float64)


def update(curvature: Tensor, grad: Tensor, beta: Tensor, active: Tensor) -> Tensor:
    """The running mean of ``beta grad E grad E'`` ``(B, d, d)``, at equilibrium E's Hessian.

    ``grad`` ``(B, N, d)`` is E's at ``beta`` ``(B,)``; only ``active`` observations learn.
    """
    g = grad.double()
    seen = beta[:, None, None] * (g.mT @ g) / g.shape[1]
    known = curvature.diagonal(dim1=-2, dim2=-1).sum(-1) > 0.0
    mean = torch.where(known[:, None, None], curvature.lerp(seen, _GAIN), seen)
    return torch.where(active[:, None, None], mean, curvature)


def count(size: int) -> int:
    """How many directions are told apart in ``size`` dimensions: a third, at most `MOST`."""
    return min(MOST, size // 3)


def directions(curvature: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """The stiffest directions ``(B, d, k)`` at ``beta``, and the inverse mass ``(B, d)`` there.

    k is `count` of d, the stiffest first; the others keep an inverse mass of 1. Columns beyond the
    rank of ``curvature`` are fixed ones, of inverse mass 1 too.
    """
    size, most = curvature.shape[-1], count(curvature.shape[-1])
    ascending, vectors = torch.linalg.eigh(curvature)
    values, stiff = ascending.flip(-1), vectors.flip(-1)[..., :most]
    hessian = beta[:, None] * values.clamp(min=0.0) + 1.0
    inverse_mass = torch.ones_like(values)
    inverse_mass[:, :most] = hessian[:, most, None] / hessian[:, :most]
    # Where gradients span fewer directions, rounding would choose the others.
    known = values[:, :most] > _RANK * values[:, :1]
    stiff = torch.where(known[:, None], stiff, filler(size).to(stiff.device))
    return stiff, inverse_mass


def filler(size: int) -> Tensor:
    """Fixed columns ``(d, k)`` float64 in general position."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(size, count(size), generator=random, dtype=torch.float64)


def basis(stiff: Tensor | None) -> Tensor | None:
    """An orthogonal ``(B, d, d)`` whose first columns span ``stiff``, one after the other.

    It is the same for either sign of a column, which is an eigenvector's freedom.
    """
    if stiff is None:
        return None
    turn: Tensor = torch.linalg.qr(stiff, mode="complete").Q
    return turn


class TurnedPotential:
    """A potential in coordinates ``y = z Q``."""

    def __init__(self, potential: Potential, turn: Tensor) -> None:
        self.potential, self.turn = potential, turn

    def energy_and_grad(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """As the potential's, of and by y."""
        energy, grad = self.potential.energy_and_grad(times(latents, self.turn.mT))
        return energy, times(grad, self.turn)

    def grad_alone(self, latents: Tensor) -> Tensor:
        """The gradients alone."""
        return times(gradients(self.potential, times(latents, self.turn.mT)), self.turn)


def times(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows @ matrix``, rounded once."""
    return (rows.double() @ matrix).to(rows.dtype)


@dataclass(frozen=True)
class Moved:
    """One transition: the state ``after`` it, and ``start`` and ``end`` as the moves saw them."""

    after: HMCState
    start: HMCState
    end: HMCState
    info: HMCInfo


def transition(
    state: HMCState,
    potential: Potential,
    settings: TransitionSettings,
    leapfrog_steps: int,
    turn: Tensor | None,
    ops: Ops,
) -> Moved:
    """`hmc.transition` in the coordinates ``y = z Q`` of ``turn`` (None: in z itself)."""
    if turn is None:
        after, info = hmc.transition(state, potential, settings, leapfrog_steps, ops)
        return Moved(after, state, after, info)
    latents, grad = times(state.latents, turn), times(state.grad, turn)
    start = HMCState(latents, state.energy, grad, state.stream)
    target = TurnedPotential(potential, turn)
    end, info = hmc.transition(start, target, settings, leapfrog_steps, ops)
    return Moved(_turned_back(end, start, state, turn), start, end, info)


def _turned_back(end: HMCState, start: HMCState, before: HMCState, turn: Tensor) -> HMCState:
    """``end`` in z again; chains that stand where they stood keep every bit."""
    still = (end.latents == start.latents).all(-1, keepdim=True)
    return HMCState(
        torch.where(still, before.latents, times(end.latents, turn.mT)),
        end.energy,
        torch.where(still, before.grad, times(end.grad, turn.mT)),
        end.stream,
    )
