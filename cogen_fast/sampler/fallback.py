"""Finer gradients, once those of reduced precision have cost too much acceptance.

Any gradient field keeps the target, so this is about speed alone. It is adaptation, like that of a
step size: moves follow a field that earlier moves have chosen, one for a whole trajectory. A call
falls back once, all of its observations together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cogen_fast.problem.density import Potential, finer, forwards
from cogen_fast.sampler.hmc import HMCState

LEAST_ACCEPTANCE = 0.3
"""An observation below this asks for finer gradients, by the published step-size rule."""
LEAST_TUNED = 0.6
"""The same of moves that tune themselves, whose target is 0.9: sooner, for they make up for poor
gradients by shorter steps and more moves, which costs more than finer gradients would."""
WINDOW = 5
"""For so many temperatures."""


def in_use(potential: Potential, refined: int | None) -> Potential:
    """The potential that moves follow by now; ``refined`` is a run's."""
    better = finer(potential)
    return potential if refined is None or better is None else better


def is_due(potential: Potential, acceptance: Tensor | Sequence[Tensor], least: float) -> bool:
    """Whether to fall back from ``potential``, given the acceptance ``(B,)`` of each temperature.

    Where it is below ``least`` on average over the last few. Reads from the device, where there is
    something to fall back to.
    """
    if finer(potential) is None or len(acceptance) < WINDOW:
        return False
    last = torch.stack(tuple(acceptance[-WINDOW:]))
    return bool((last.mean(0) < least).any())  # false for NaN: not moving


def refined(state: HMCState, potential: Potential) -> tuple[HMCState, int]:
    """The state by what ``potential`` falls back to, and its forwards; costs one gradient.

    Energies too, so that both ends of the next trajectory have theirs from one function.
    """
    better = finer(potential)
    assert better is not None
    energy, grad = better.energy_and_grad(state.latents)
    state = replace(state, energy=energy, grad=grad.to(state.latents.dtype))
    return state, forwards(better)
