"""The prior pool: thousands of draws at a forward each, tempered exactly to where a few suffice.

Particles begin as the best of many prior draws, by weight and not by rank: the pool is weighed for
the inverse temperature at which its effective sample size is a few times the number of particles,
and these are resampled from it. The mean weight of the pool is the first factor of the estimate of
the normaliser, and unbiased.
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
"""Of the pool, for each particle."""
_EFFECTIVE = 4.0  # times the number of particles that are resampled
_MOST_KEPT = 0.5
_FURTHEST = 0.05  # inverse temperature: moves must learn what they are to be at the posterior
_SCORED_AT_ONCE = 256
_LARGEST = 1e150  # of energies: their squares are finite
_BISECTIONS, _RANGE = 50, 40.0  # of beta's binary logarithm


@dataclass(frozen=True)
class Start:
    """Particles of B islands at the inverse temperature that their pools allow.

    ``latents`` ``(B, N, d)`` and the prior draw ``roots`` ``(B, N)`` int64 that each is; ``beta``,
    the log mean weight ``log_normaliser`` and its relative ``variance``, and ``deviation``, the
    standard deviation of the energies there, ``(B,)`` float64 each. ``best_draw`` ``(B, d)`` is the
    draw of lowest energy, ``best_energy`` ``(B,)``.
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
    """Energies ``(B, K)`` of many draws, a few at a time: their outputs need not fit in memory.

    ValueError where a row has none that is finite, and whose square is.
    """
    rows = max(1, _SCORED_AT_ONCE // len(latents))
    energy = torch.cat([energies(potential, part) for part in torch.split(latents, rows, 1)], 1)
    if not bool(_sound(energy).any(-1).all()):
        raise ValueError(
            f"energy: expected finite energies of prior draws, below {_LARGEST:g}, got none of "
            f"{energy.shape[-1]} on an island; does G give finite outputs, and is noise_std right?"
        )
    return energy


def _sound(energy: Tensor) -> Tensor:
    return energy.abs() < _LARGEST


def at_prior(draws: Tensor, energy: Tensor, particles: int) -> Start:
    """The first ``particles`` of ``draws`` ``(B, K, d)`` as they are, at beta = 0."""
    zero = draws.new_zeros(len(draws), dtype=torch.float64)
    roots = torch.arange(particles, device=draws.device).repeat(len(draws), 1)
    first = draws[:, :particles].contiguous()
    return Start(first, roots, zero, zero, zero, zero, *_best(draws, energy))


def finite_first(draws: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """``draws`` ``(B, K, d)`` and their ``energy``, those with a finite one before the others."""
    order = (~energy.isfinite()).long().argsort(dim=-1, stable=True)
    return draws.gather(1, order[..., None].expand_as(draws)), energy.gather(1, order)


def _best(draws: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Of each island's ``draws`` ``(B, K, d)`` the one of lowest energy, and that energy."""
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
    """``particles`` of each of ``count`` islands from their own ``draws`` ``(B, K, d)``.

    Each island goes as far as the pools of the others allow on average (in ``log beta``), at most
    to 0.05 and to ``furthest``, or to ``beta`` where it is given (``(B,)`` each). ``energy``
    ``(B, K)`` is that of the draws; one that is not finite, or whose square is not, has no weight,
    like a proposal.
    """
    sound = _sound(energy)
    energy, seen = torch.where(sound, energy, torch.inf), torch.where(sound, energy, 0.0)
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
    mean = (weights * seen).sum(-1, keepdim=True)
    deviation = (weights * (seen - mean) ** 2).sum(-1).sqrt()
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
    """The largest beta, ``(B,)``, at which weights keep that ``share`` of their number effective.

    From 2^-40 to 1, by bisection: no energies can bring a run to a halt.
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
