"""The fallback to finer gradients where those of reduced precision cost too much acceptance.

Leapfrog with any gradient field leaves the target invariant, so the field affects speed only. The
fallback is adaptation, like that of a step size: earlier moves choose the field of later ones, and
a trajectory follows one field. All observations of a call fall back together, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cogen_fast.problem.density import Potential, finer, forwards
from cogen_fast.sampler.hmc import HMCState

LEAST_ACCEPTANCE = 0.3
"""Mean acceptance below which the published method falls back to finer gradients."""
LEAST_TUNED = 0.6
"""The same for the adaptive method. It is larger, because tuning to an acceptance of 0.9 makes up
for poor gradients by shorter steps and more moves, which cost more than finer gradients."""
WINDOW = 5
"""The number of temperatures over which the acceptance is averaged."""


def in_use(potential: Potential, refined: int | None) -> Potential:
    """The potential that moves follow; ``refined`` is that of the run, None before a fallback."""
    better = finer(potential)
    return potential if refined is None or better is None else better


def is_due(potential: Potential, acceptance: Tensor | Sequence[Tensor], least: float) -> bool:
    """Whether to fall back from ``potential``, given the acceptance ``(B,)`` of each temperature.

    True where the mean acceptance of any observation over the last `WINDOW` temperatures is below
    ``least``. Where there is a finer potential, this reads from the device.
    """
    if finer(potential) is None or len(acceptance) < WINDOW:
        return False
    last = torch.stack(tuple(acceptance[-WINDOW:]))
    return bool((last.mean(0) < least).any())  # false for NaN, where an observation did not move


def refined(state: HMCState, potential: Potential) -> tuple[HMCState, int]:
    """The state with energies and gradients of the finer potential, and the forwards that it cost.

    The cost is one gradient. Energies are computed anew too, so that both ends of the next
    trajectory have theirs from the same function.
    """
    better = finer(potential)
    assert better is not None
    energy, grad = better.energy_and_grad(state.latents)
    state = replace(state, energy=energy, grad=grad.to(state.latents.dtype))
    return state, forwards(better)
