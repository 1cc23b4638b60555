"""What the paper compares with: gradient descent from one and from many starts; and Adam."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogen_fast import optimise
from cogen_fast.arguments import check_count, check_number, check_seed
from cogen_fast.density import Potential
from cogen_fast.ops import dispatch
from cogen_fast.problem import Problem, prepared
from cogen_fast.sampler import hmc

_SCORING_BATCH = 256
FORWARD_COST, GRADIENT_COST = 1, 2


@dataclass(frozen=True)
class Descent:
    """Where optimisation ended: N runs for each of B observations, on the CPU.

    ``images`` ``(B, N, ...)``, ``latents`` ``(B, N, d)``, ``energies`` ``(B, N)`` float64; ``cost``
    of one run in forwards (a z-gradient counts as 2).
    """

    images: Tensor
    latents: Tensor
    energies: Tensor
    cost: int


def gradient_descent(
    G: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    steps: int,
    learning_rate: float,
    starts: int = 1,
    runs: int = 1,
    seed: int = 0,
    **options: Any,
) -> Descent:
    """Gradient descent on ``E(z)`` from one random latent, or from the best of ``starts``.

    Each of ``runs`` independent runs draws ``starts`` latents from the prior, keeps the one of
    lowest energy (the paper's multi-start has 5,000) and takes ``steps`` steps. Other arguments as
    for `cogenerate`. Raises ValueError or TypeError naming the argument.
    """
    learning_rate = check_number("learning_rate", learning_rate, above=0.0)

    def descend(potential: Potential, first: Tensor) -> tuple[Tensor, Tensor]:
        return optimise.gradient_descent(potential, first, steps, learning_rate)

    check_count("steps", steps)
    return _descent(G, x_obs, mask, descend, steps + 1, starts, runs, seed, options)


def adam(
    G: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    steps: int,
    learning_rate: float,
    starts: int = 1,
    runs: int = 1,
    seed: int = 0,
    **options: Any,
) -> Descent:
    """`gradient_descent` with Adam in its place, its rate falling to 0 along a cosine.

    The best point that a run visits is kept. Costs ``steps`` gradients a run.
    """
    learning_rate = check_number("learning_rate", learning_rate, above=0.0)

    def descend(potential: Potential, first: Tensor) -> tuple[Tensor, Tensor]:
        return optimise.adam(potential, first, steps, learning_rate)

    check_count("steps", steps)
    return _descent(G, x_obs, mask, descend, steps, starts, runs, seed, options)


def _descent(
    G: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    descend: Callable[[Potential, Tensor], tuple[Tensor, Tensor]],
    gradients: int,
    starts: int,
    runs: int,
    seed: int,
    options: Mapping[str, Any],
) -> Descent:
    check_count("starts", starts)
    check_count("runs", runs)
    seed = check_seed(seed)
    with prepared(G, x_obs, mask, **options) as problem:
        latents, energy = descend(problem.potential, _best_starts(problem, starts, runs, seed))
        images = problem.potential.outputs(latents)
    scoring = FORWARD_COST * starts if starts > 1 else 0
    cost = scoring + GRADIENT_COST * gradients
    return Descent(images.cpu(), latents.cpu(), energy.cpu(), cost)


def _best_starts(problem: Problem, starts: int, runs: int, seed: int) -> Tensor:
    """The best of ``starts`` prior draws for each run, ``(B, runs, d)``."""
    adapter, count = problem.adapter, problem.observation.count
    ops = dispatch.resolve(problem.backend, adapter.device)
    stream = hmc.noise_stream(seed, count, adapter.device)
    drawn = ops.initial_latents(stream, runs * starts, adapter.latent_size, adapter.dtype)
    if starts == 1:
        return drawn
    energy = _scores(problem, drawn).reshape(count, runs, starts)
    energy = torch.where(energy.isfinite(), energy, torch.inf)  # argmin would choose a NaN
    chosen = energy.argmin(-1)[..., None, None].expand(-1, -1, 1, adapter.latent_size)
    return drawn.reshape(count, runs, starts, -1).gather(2, chosen).squeeze(2)


def _scores(problem: Problem, drawn: Tensor) -> Tensor:
    """Energies of many draws, a few at a time: thousands of outputs need not fit in memory."""
    rows = max(1, _SCORING_BATCH // problem.observation.count)
    pieces = [problem.potential.energy(part) for part in torch.split(drawn, rows, dim=1)]
    return torch.cat(pieces, dim=1)
