"""A schedule run backwards from exact posterior draws: it bounds the evidence from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cogen_fast.ops import dispatch
from cogen_fast.problem.density import Potential
from cogen_fast.sampler import bases, curvature, hmc, smc
from cogen_fast.sampler.hmc import Energy
from cogen_fast.sampler.smc import Choice
from cogen_fast.sampler.tuning import TuningRule


def run(
    target: Potential | Energy,
    choices: Sequence[Choice],
    latents: Tensor,
    rule: TuningRule | None = None,
    *,
    backend: str = "auto",
    **how: Any,
) -> Tensor:
    """Log weights ``(B, N)`` of chains that run a fixed schedule backwards.

    ``latents`` ``(B, N, d)`` are exact posterior draws; the N chains of an observation may start
    from the same draw. ``choices`` are those of a finished `smc.run` of B rows, whose moves are
    reversible. The mean of ``exp(-log_weights)`` is an unbiased estimate of ``1 / normaliser``, so
    that minus its logarithm lies above the log normaliser on average (Grosse, Ghahramani and Adams
    2015, section 3). ``how`` is passed to `hmc.init`; its seed must differ from that of the run.
    """
    potential, rule = hmc.as_potential(target), rule or TuningRule()
    ops = dispatch.resolve(backend, latents.device)
    state = hmc.init(potential, latents, backend=backend, **how)
    betas = [torch.zeros_like(choices[0].beta), *(choice.beta for choice in choices)]
    log_weights = torch.zeros_like(state.energy)
    stiff = turn = None
    for t in range(len(choices), 0, -1):
        choice = choices[t - 1]
        if choice.stiff is not None and choice.stiff is not stiff:  # shared by some temperatures
            stiff, turn = choice.stiff, bases.from_directions(choice.stiff)
        for made in range(choice.hmc_steps):
            now = replace(choice, active=choice.active & (made < choice.moves))
            settings = smc.jittered(now, choice.step_size, rule, state.stream, ops)
            length = choice.leapfrog_steps
            state = curvature.transition(state, potential, settings, length, turn, ops).after
        log_weights = log_weights - (betas[t] - betas[t - 1])[:, None] * state.energy
    return log_weights
