"""A test of whether groups of particles that ran apart agree, from plain tensors."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_DRAWS = 64  # draws of an island that are used, so that the test is quick
_SHUFFLES = 999


def disagreement(latents: Tensor, islands: int, least: float) -> tuple[Tensor, Tensor]:
    """Largest R-hat of a coordinate over S islands (Gelman and Rubin 1992), and its p-value.

    ``latents`` are ``(B, S N, d)``, with the draws of an island side by side; both results are
    ``(B,)``. The p-value is that of a permutation test: the share of random assignments of draws to
    islands whose largest R-hat is as large. Few draws can never make it small. It is computed only
    where R-hat exceeds ``least``, and is 1 elsewhere, to save time. For one island, or for one draw
    of each, both results are 1.
    """
    ones = torch.ones(len(latents), device="cpu")
    if islands < 2 or latents.shape[1] < 2 * islands:
        return ones, ones.clone()
    random = torch.Generator().manual_seed(0)
    found = [_of_one(each, islands, least, random) for each in latents.double()]
    largest, p = torch.tensor(found, device="cpu").T
    return largest, p


def _of_one(
    latents: Tensor, islands: int, least: float, random: torch.Generator
) -> tuple[float, float]:
    draws = latents.reshape(islands, -1, latents.shape[-1])
    draws = draws[:, :: -(-draws.shape[1] // _MOST_DRAWS)]
    r_hat = _largest(draws)
    if r_hat <= least:
        return r_hat, 1.0
    pooled = draws.flatten(0, 1)
    shuffled = 0
    for _ in range(_SHUFFLES):
        order = torch.randperm(len(pooled), generator=random, device="cpu")
        shuffled += _largest(pooled[order].reshape(draws.shape)) >= r_hat
    return r_hat, (1 + shuffled) / (1 + _SHUFFLES)


def _largest(draws: Tensor) -> float:
    """The largest R-hat of ``(S, N, d)`` over coordinates."""
    count = draws.shape[1]
    within = draws.var(1).mean(0)
    between = draws.mean(1).var(0)
    ratio = between / within.clamp(min=1e-300)
    return float((ratio + (count - 1) / count).max().sqrt())
