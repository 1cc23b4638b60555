"""Islands: groups of particles that exchange no particles, so that each can be tuned by the others.

If the moves, the inverse temperatures and the mass of an island come from other islands alone, then
the island is, given those, an ordinary SMC sampler with fixed kernels (the term "island" is that of
Vergé et al. 2015). An island tuned by its own particles is not: a particle far out in some
direction has a large gradient there, which increases the mass of that direction, so that the
particle stays where it is.

For the mass and the inverse temperatures an island uses statistics of the other islands' particles
only, which contain nothing of its own. Step size and trajectory length are handed on: each move
corrects the values that it was made with, so that with two islands half of an island's values
derive from itself, some moves ago. These are two numbers averaged over all particles, and
``tests/test_exact_posteriors.py`` compares an island that tunes only these by itself with closed
forms. An island at beta = 1, where samples are made, no longer adapts by its own moves; other
islands that are still below beta = 1 may change its step size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of_others(values: Tensor, islands: int) -> Tensor:
    """For each island the mean of ``values`` over the other islands of the same observation.

    ``values`` ``(B T, ...)`` has the T = ``islands`` islands of an observation as neighbouring
    rows. The only island of an observation keeps its own value.
    """
    if islands == 1:
        return values
    each = values.reshape(-1, islands, *values.shape[1:])
    # The islands before and after it are summed apart: subtracting an island's own value from the
    # sum over all would leave a rounding error that depends on that value.
    none = torch.zeros_like(each[:, :1])
    before = torch.cat([none, each[:, :-1].cumsum(1)], 1)
    after = torch.cat([each[:, 1:].flip(1).cumsum(1).flip(1), none], 1)
    return ((before + after) / (islands - 1)).reshape(values.shape)


def pairs(values: Tensor, islands: int) -> tuple[Tensor, Tensor]:
    """Each island's own value ``(B, T, 1)``, and the values of all islands ``(B, 1, T)``."""
    each = values.reshape(-1, islands)
    return each[:, :, None], each[:, None, :]


def mean_of_others_pairwise(table: Tensor) -> Tensor:
    """For each row of ``table`` ``(B, T, T)`` the mean over other islands' columns, ``(B T,)``."""
    islands = table.shape[-1]
    if islands == 1:
        return table.flatten()
    own = torch.eye(islands, dtype=torch.bool, device=table.device)
    return (table.masked_fill(own, 0.0).sum(-1) / (islands - 1)).flatten()
