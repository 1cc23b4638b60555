"""Prior draws of a problem: scored by their energies, and selected by energy or by weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cogen_fast.ops import dispatch
from cogen_fast.ops.philox import NoiseStream, Purpose, uniforms
from cogen_fast.problem.problem import Problem
from cogen_fast.sampler import hmc, pool


def noise(problem: Problem, seed: int, observation_ids: Sequence[int] | None) -> NoiseStream:
    """The random number streams of the problem's observations."""
    count, device = problem.observation.count, problem.adapter.device
    return hmc.noise_stream(seed, count, device, observation_ids)


def drawn(problem: Problem, stream: NoiseStream, count: int) -> Tensor:
    """Prior draws ``(B, count, d)``, equal to those of `cogenerate` with ``count`` chains."""
    adapter = problem.adapter
    ops = dispatch.resolve(problem.backend, adapter.device)
    return ops.initial_latents(stream, count, adapter.latent_size, adapter.dtype)


def scored(
    problem: Problem, stream: NoiseStream, draws: int, runs: int = 1
) -> tuple[Tensor, Tensor]:
    """Prior draws ``(B, runs, draws, d)``, and their energies; each costs one forward.

    An energy which is not finite is replaced by the largest finite number.
    """
    latents = drawn(problem, stream, runs * draws)
    energy = pool.scores(problem.potential, latents)
    energy = torch.where(energy.isfinite(), energy, torch.finfo(energy.dtype).max)
    shape = (problem.observation.count, runs, draws)
    return latents.reshape(*shape, -1), energy.reshape(shape)


def forwards(draws: int) -> int:
    """How many forwards `best` needs for this number of draws: a single draw is not scored."""
    return draws if draws > 1 else 0


def best(problem: Problem, stream: NoiseStream, draws: int, runs: int) -> tuple[Tensor, Tensor]:
    """The lowest-energy one of ``draws`` prior draws for each run, ``(B, runs, d)``, and its index.

    Indices ``(B, runs)`` count through the draws of all runs of an observation. A single draw is
    not scored.
    """
    if draws == 1:
        latents = drawn(problem, stream, runs)
        return latents, torch.arange(runs, device=latents.device).repeat(len(latents), 1)
    pools, energy = scored(problem, stream, draws, runs)
    chosen = energy.argmin(-1)
    first = draws * torch.arange(runs, device=chosen.device)
    return picked(pools, chosen[..., None]).squeeze(2), chosen + first


def by_weight(energy: Tensor, stream: NoiseStream, count: int) -> Tensor:
    """Indices of ``count`` independent draws per pool, with probabilities as ``exp(-energy)``.

    ``energy`` is ``(B, R, K)``; returns ``(B, R, count)`` int64.
    """
    batch, pools, _ = energy.shape
    uniform = uniforms(stream, Purpose.RESAMPLE, pools * count, torch.float64)
    below = torch.softmax(-energy, -1).cumsum(-1)
    place = uniform.reshape(batch, pools, count) * below[..., -1:]
    return torch.searchsorted(below, place).clamp(max=energy.shape[-1] - 1)


def picked(pools: Tensor, chosen: Tensor) -> Tensor:
    """The draws of ``pools`` ``(B, R, K, d)`` with indices ``chosen`` ``(B, R, n)``."""
    return pools.gather(2, chosen[..., None].expand(-1, -1, -1, pools.shape[-1]))
