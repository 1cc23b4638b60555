"""The accept test, with probability ``min(1, exp(H_old - H_new))`` (Algorithm 1, step 2c)."""

from __future__ import annotations

from torch import Tensor

from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.ops.reference import Selected
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.sampler.leapfrog import Trajectory


def accept(
    latents: Tensor,
    energy: Tensor,
    grad: Tensor,
    trajectory: Trajectory,
    settings: TransitionSettings,
    stream: NoiseStream,
    ops: Ops,
) -> Selected:
    """Make the last half kick and accept or reject each chain's proposal.

    A proposal that is not finite is rejected.
    """
    return ops.accept_select(
        latents,
        energy,
        grad,
        trajectory.proposal,
        trajectory.energy,
        trajectory.grad,
        settings,
        stream,
    )
