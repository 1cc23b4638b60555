"""The baselines of the 2-D study: descents and importance resampling, many runs in one batch.

They are simpler than `cogen_fast.methods.baselines`: they return where each run ended, and its
trace, in place of a `Result`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cogen_fast.methods import optimise, prior_draws
from cogen_fast.problem.problem import prepared
from cogen_fast.results.result import GRADIENT_COST
from cogen_fast.support.arguments import check_count, check_flag, check_number, check_seed


@dataclass(frozen=True)
class EndPoints:
    """The end points of N runs for each of B observations, on the CPU.

    ``images`` are ``(B, N, ...)``, ``latents`` ``(B, N, d)``, ``energies`` ``(B, N)`` float64.
    ``cost`` is that of one run in forwards (a z-gradient counts as 2). ``trace`` ``(steps + 1, B,
    N, d)`` has the latents from the start on, where it is asked for.
    """

    images: Tensor
    latents: Tensor
    energies: Tensor
    cost: int
    trace: Tensor | None = None


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
    keep_trace: bool = False,
    **options: Any,
) -> EndPoints:
    """Gradient descent on ``E(z)`` from one random latent, or from the best of ``starts``.

    Each of ``runs`` independent runs draws ``starts`` latents from the prior, keeps the one of
    lowest energy (the paper's multi-start has 5,000) and takes ``steps`` steps. The other arguments
    are those of `cogenerate`. Raises ValueError or TypeError naming the argument.
    """
    learning_rate = check_number("learning_rate", learning_rate, above=0.0)
    (ends,) = try_learning_rates(
        G,
        x_obs,
        mask,
        learning_rates=[learning_rate],
        steps=steps,
        starts=starts,
        runs=runs,
        seed=seed,
        keep_trace=keep_trace,
        **options,
    )
    return ends


def try_learning_rates(
    G: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    learning_rates: Sequence[float],
    steps: int,
    starts: int = 1,
    runs: int = 1,
    seed: int = 0,
    keep_trace: bool = False,
    **options: Any,
) -> list[EndPoints]:
    """Run `gradient_descent` at each learning rate, from the same starts and in one batch."""
    rates = [check_number("learning_rates", rate, above=0.0) for rate in learning_rates]
    check_count("steps", steps)
    check_flag("keep_trace", keep_trace)
    check_count("starts", starts)
    check_count("runs", runs)
    seed = check_seed(seed)
    visited: list[Tensor] = []
    with prepared(G, x_obs, mask, **options) as problem:
        stream = prior_draws.noise(problem, seed, None)
        first = prior_draws.best(problem, stream, starts, runs)[0].repeat(1, len(rates), 1)
        each = torch.tensor(rates, device="cpu").repeat_interleave(runs)[:, None].to(first)
        visited.append(first)
        latents, energy = optimise.gradient_descent(
            problem.potential, first, steps, each, visited.append if keep_trace else None
        )
        images = problem.potential.outputs(latents)
    cost = (starts if starts > 1 else 0) + GRADIENT_COST * (steps + 1)
    ends = EndPoints(images.cpu(), latents.cpu(), energy.cpu(), cost)
    if keep_trace:
        ends = replace(ends, trace=torch.stack(visited).cpu())
    return [_of_rate(ends, slice(i * runs, (i + 1) * runs)) for i in range(len(rates))]


def _of_rate(ends: EndPoints, runs: slice) -> EndPoints:
    return replace(
        ends,
        images=ends.images[:, runs],
        latents=ends.latents[:, runs],
        energies=ends.energies[:, runs],
        trace=None if ends.trace is None else ends.trace[:, :, runs],
    )


def importance_resampling(
    G: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    draws: int,
    runs: int = 1,
    seed: int = 0,
    **options: Any,
) -> EndPoints:
    """Sampling-importance-resampling: of ``draws`` prior latents, one by its weight ``exp(-E)``.

    Each of ``runs`` independent runs has draws of its own, and costs ``draws`` forwards. The other
    arguments are those of `cogenerate`. Raises ValueError or TypeError naming the argument.
    """
    check_count("draws", draws)
    check_count("runs", runs)
    seed = check_seed(seed)
    with prepared(G, x_obs, mask, **options) as problem:
        stream = prior_draws.noise(problem, seed, None)
        pools, energy = prior_draws.scored(problem, stream, draws, runs)
        chosen = prior_draws.by_weight(energy, stream, 1)
        latents = prior_draws.picked(pools, chosen).squeeze(2)
        images = problem.potential.outputs(latents)
    kept = energy.gather(-1, chosen).squeeze(-1)
    return EndPoints(images.cpu(), latents.cpu(), kept.cpu(), draws)
