"""Islands: groups of particles that never exchange any, so that each can be tuned by the others.

An island whose moves, temperatures and mass come from other islands alone is, given those, an
ordinary SMC sampler with fixed kernels (the term is that of Vergé et al. 2015). Tuned by its own
particles it would not be one: a particle far out in some direction has a large gradient there, by
which that direction becomes heavy, and the particle stays. The mass and the temperatures are taught
in one direction only: what an island has seen is for the others, who do not pass it on. Step size
and trajectory length are passed on, each move correcting what it was made with, so of two islands
either has half of these from itself, some moves old; they are two numbers over all particles, and
``tests/test_exact_posteriors.py`` holds an island that tunes itself in these alone to closed forms.
An island that has come to beta = 1, where samples are made, learns nothing more by its own moves,
while its mates may still be on their way and teach it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of_others(values: Tensor, islands: int) -> Tensor:
    """The mean over the other islands of the same observation, in place of each one's own value.

    ``values`` ``(B T, ...)`` has the T islands of an observation as neighbouring rows. An island
    that is alone has only its own.
    """
    if islands == 1:
        return values
    each = values.reshape(-1, islands, *values.shape[1:])
    # Those before it and those after it: a sum of all less its own would have its rounding.
    none = torch.zeros_like(each[:, :1])
    before = torch.cat([none, each[:, :-1].cumsum(1)], 1)
    after = torch.cat([each[:, 1:].flip(1).cumsum(1).flip(1), none], 1)
    return ((before + after) / (islands - 1)).reshape(values.shape)


def pairs(values: Tensor, islands: int) -> tuple[Tensor, Tensor]:
    """Of values ``(B T,)`` each island's own ``(B, T, 1)``, beside those of all ``(B, 1, T)``."""
    each = values.reshape(-1, islands)
    return each[:, :, None], each[:, None, :]


def mean_of_others_pairwise(table: Tensor) -> Tensor:
    """The mean over the other islands of what each has of them, ``(B, T, T)`` to ``(B T,)``."""
    islands = table.shape[-1]
    if islands == 1:
        return table.flatten()
    own = torch.eye(islands, dtype=torch.bool, device=table.device)
    return (table.masked_fill(own, 0.0).sum(-1) / (islands - 1)).flatten()
