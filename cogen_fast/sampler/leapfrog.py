"""The proposal: L leapfrog steps from a fresh momentum (Algorithm 1, step 2b)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.ops.reference import Proposal
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.problem.density import Potential, gradients


class Trajectory(NamedTuple):
    """The end of a trajectory before its last half kick, with energy and gradient there."""

    proposal: Proposal
    energy: Tensor
    grad: Tensor


def leapfrog(
    potential: Potential,
    latents: Tensor,
    energy: Tensor,
    grad: Tensor,
    settings: TransitionSettings,
    stream: NoiseStream,
    steps: int,
    ops: Ops,
) -> Trajectory:
    """Draw a fresh momentum and take ``steps`` leapfrog steps: half kick, drift, (kick, drift) ....

    This costs exactly ``steps`` gradients, because ``grad`` is the one at the start. The accept
    test makes the last half kick, because it needs the same numbers.
    """
    proposal = ops.begin_trajectory(latents, energy, grad, settings, stream)
    for _ in range(steps - 1):
        ops.continue_trajectory(proposal, gradients(potential, proposal.position), settings)
    return Trajectory(proposal, *potential.energy_and_grad(proposal.position))
