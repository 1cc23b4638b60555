"""The prior pool: many scored prior draws, from which the first particles are drawn by weight.

Scoring a draw costs one forward pass. The draws are weighted for the inverse temperature at which
their effective sample size is a few times the number of particles, and the particles are resampled
from them: importance sampling, which is exact, and not a selection of the best. The mean weight of
the pool is the first factor of the estimate of the normaliser, and is unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cogen_fast.ops import reference
from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.philox import NoiseStream, Purpose
from cogen_fast.problem.density import Potential, energies
from cogen_fast.sampler import islands
from cogen_fast.sampler.weights import effective_sample_size, log_mean_weight

DRAWS = 64
"""Prior draws in the pool for each particle."""
_EFFECTIVE = 4.0  # effective sample size of the pool, in numbers of resampled particles
_MOST_KEPT = 0.5  # largest effective sample size that is asked for, as a share of the draws
_FURTHEST = 0.05  # largest first inverse temperature, so that moves are tuned before beta = 1
_SCORED_AT_ONCE = 256
_LARGEST = 1e150  # larger energies have squares that are not finite
_BISECTIONS, _RANGE = 50, 40.0  # the binary logarithm of beta is bisected between -40 and 0


@dataclass(frozen=True)
class Start:
    """The first particles of B islands, at the inverse temperature that their pools allow.

    ``latents`` ``(B, N, d)`` are prior draws, and ``roots`` ``(B, N)`` int64 their indices in the
    pool. ``(B,)`` float64 each: the inverse temperature ``beta``, the log mean weight
    ``log_normaliser``, its relative ``variance``, and ``deviation``, the standard deviation of the
    energies at ``beta``. ``best_draw`` ``(B, d)`` is the draw of lowest energy, ``best_energy``
    ``(B,)`` its energy.
    """

    latents: Tensor
    roots: Tensor
    beta: Tensor
    log_normaliser: Tensor
    variance: Tensor
    deviation: Tensor
    best_draw: Tensor
    best_energy: Tensor


def scores(potential: Potential, latents: Tensor) -> Tensor:
    """Energies ``(B, K)`` of many draws, computed in parts: their outputs need not fit in memory.

    Raises ValueError where a row has no energy below 1e150 in magnitude.
    """
    rows = max(1, _SCORED_AT_ONCE // len(latents))
    energy = torch.cat([energies(potential, part) for part in torch.split(latents, rows, 1)], 1)
    if not bool(_sound(energy).any(-1).all()):
        raise ValueError(
            f"energy: expected finite energies below {_LARGEST:g} of prior draws, got none of "
            f"{energy.shape[-1]} on an island; check that the outputs of G are finite and that "
            "noise_std has the scale of x_obs"
        )
    return energy


def _sound(energy: Tensor) -> Tensor:
    return energy.abs() < _LARGEST


def at_prior(draws: Tensor, energy: Tensor, particles: int) -> Start:
    """The first ``particles`` of ``draws`` ``(B, K, d)`` unweighted, at beta = 0."""
    zero = draws.new_zeros(len(draws), dtype=torch.float64)
    roots = torch.arange(particles, device=draws.device).repeat(len(draws), 1)
    first = draws[:, :particles].contiguous()
    return Start(first, roots, zero, zero, zero, zero, *_best(draws, energy))


def finite_first(draws: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """``draws`` ``(B, K, d)`` and ``energy`` reordered: draws with finite energies come first."""
    order = (~energy.isfinite()).long().argsort(dim=-1, stable=True)
    return draws.gather(1, order[..., None].expand_as(draws)), energy.gather(1, order)


def _best(draws: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Each island's draw of lowest energy, ``(B, d)``, and that energy, ``(B,)``."""
    lowest, index = torch.where(energy.isfinite(), energy, torch.inf).min(-1)
    rows = index[:, None, None].expand(-1, -1, draws.shape[-1])
    return draws.gather(1, rows)[:, 0], lowest


def start(
    draws: Tensor,
    energy: Tensor,
    particles: int,
    stream: NoiseStream,
    count: int,
    beta: Tensor | None,
    furthest: Tensor | None,
    ops: Ops,
) -> Start:
    """Resample ``particles`` for each island from its own ``draws`` ``(B, K, d)``, by weight.

    The inverse temperature of an island is ``beta`` ``(B,)`` where that is given. Else it is the
    geometric mean of those that the pools of the other islands of its observation (``count`` in
    all) allow, at most 0.05 and at most ``furthest`` ``(B,)``. ``energy`` ``(B, K)`` is that of the
    draws; a draw whose energy is not finite, or not below 1e150 in magnitude, has weight 0.
    """
    sound = _sound(energy)
    energy, finite = torch.where(sound, energy, torch.inf), torch.where(sound, energy, 0.0)
    scored = energy.shape[-1]
    if beta is None:
        share = min(_MOST_KEPT, _EFFECTIVE * particles / scored)
        beta = (
            islands.mean_of_others(_largest_beta(energy, share).log(), count)
            .exp()
            .clamp(max=_FURTHEST)
        )
        beta = beta if furthest is None else torch.minimum(beta, furthest)
    log_weights = -beta[:, None] * energy
    weights = torch.softmax(log_weights, -1)
    mean = (weights * finite).sum(-1, keepdim=True)
    deviation = (weights * (finite - mean) ** 2).sum(-1).sqrt()
    uniform = ops.observation_uniforms(stream, Purpose.POOL)
    roots = reference.systematic(log_weights, uniform, particles)
    return Start(
        draws.gather(1, roots[..., None].expand(-1, -1, draws.shape[-1])),
        roots,
        beta,
        log_mean_weight(log_weights),
        1.0 / effective_sample_size(log_weights) - 1.0 / scored,
        deviation,
        *_best(draws, energy),
    )


def _largest_beta(energy: Tensor, share: float) -> Tensor:
    """The largest beta ``(B,)`` at which the effective sample size is ``share`` of the draws.

    It is found by bisection between 2^-40 and 1, so that the result is never 0 for any energies.
    """

    def enough(beta: Tensor) -> Tensor:
        effective = effective_sample_size(-beta[:, None] * energy)
        return effective >= share * energy.shape[-1]

    below, above = torch.full_like(energy[:, 0], -_RANGE), torch.zeros_like(energy[:, 0])
    for _ in range(_BISECTIONS):
        middle = 0.5 * (below + above)
        fine = enough(torch.exp2(middle))
        below, above = torch.where(fine, middle, below), torch.where(fine, above, middle)
    return torch.exp2(below)
