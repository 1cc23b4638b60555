"""NUTS from the best of many starts, for comparison: Pyro's no-U-turn sampler at the posterior.

The method is that of Hoffman and Gelman (2014), with step size and diagonal mass adapted over the
first steps. It draws from the same posterior as the annealed samplers, but from one start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cogen_fast.methods import prior_draws
from cogen_fast.methods.assembly import OF_SAMPLES, assemble
from cogen_fast.methods.baselines import STARTS, unannealed
from cogen_fast.problem.density import GeneratorPotential
from cogen_fast.problem.problem import prepared
from cogen_fast.results.result import Result
from cogen_fast.support.arguments import check_count, check_seed
from cogen_fast.support.extras import imported

NUTS = "nuts-multi"
DRAWS = 32
"""The number of samples that are kept of a chain, evenly spaced."""
_WARMUP = 100  # steps in which step size and mass are adapted
_NO_WEIGHTS = "the samples are draws of one chain, which have no weights"
_SEED_FACTOR, _SEED_LIMIT = 0x9E3779B97F4A7C15, 2**63


def pyro_nuts() -> Any:
    """Pyro's ``NUTS``; ImportError says how to install it."""
    return imported("pyro.infer.mcmc", what=NUTS, package="Pyro", extra="peers").NUTS


def nuts_multi(
    G: Callable[[Tensor], Tensor],
    x_obs: Any,
    mask: Any,
    *,
    gradients: int,
    starts: int = STARTS,
    seed: int = 0,
    observation_ids: Sequence[int] | None = None,
    **options: Any,
) -> Result:
    """Samples of each observation, by one NUTS chain from the best of ``starts`` prior draws.

    A chain has ``gradients`` gradients. In its first hundred steps it adapts, and these are not
    samples (except the last state, if there are no others). The result has `DRAWS` samples, evenly
    spaced over the remaining steps. ``options`` are those of
    `cogen_fast.methods.baselines.reconstruct`.

    Raises ImportError without Pyro (extra ``peers``), and TypeError or ValueError naming the
    argument.
    """
    sampler = pyro_nuts()
    check_count("gradients", gradients)
    check_count("starts", starts)
    with prepared(G, x_obs, mask, **options) as problem:
        stream = prior_draws.noise(problem, check_seed(seed), observation_ids)
        first, numbers = prior_draws.best(problem, stream, starts, 1)
        drawn = []
        for b, number in enumerate(stream.observation.tolist()):
            target = _Target(_single_observation(problem.potential, b), gradients, first.dtype)
            with torch.enable_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed((_SEED_FACTOR * seed + number) % _SEED_LIMIT)
                drawn.append(_chain(sampler, target, first[b, 0]))
        latents = torch.stack(drawn)
        outcome = unannealed(
            latents,
            problem.potential.energy(latents),
            numbers.expand(-1, DRAWS),
            gradients=gradients,
            forwards=prior_draws.forwards(starts),
            reasons=dict.fromkeys(OF_SAMPLES, _NO_WEIGHTS),
        )
        settings = {"method": NUTS, "chains": DRAWS, "particles": 1, "starts": starts, "seed": seed}
        return assemble(settings | {"gradients": gradients}, outcome, None, problem)


def _single_observation(potential: GeneratorPotential, b: int) -> GeneratorPotential:
    """The potential of observation ``b`` alone."""
    observation, spec = potential.observation, potential.observation.spec
    spec = replace(
        spec,
        target=_row(spec.target, b),
        mask=None if spec.mask is None else _row(spec.mask, b),
        weight=_row(spec.weight, b),
    )
    return potential.of(potential.generator, replace(observation, spec=spec))


def _row(values: Tensor, b: int) -> Tensor:
    """Row ``b``, or the only row."""
    return values[min(b, len(values) - 1)][None]


class _GradientsUsedUp(Exception):
    """All gradients have been used."""


class _Target:
    """Minus the log density of latents ``{"z": (d,)}``, for a limited number of gradients."""

    def __init__(self, potential: GeneratorPotential, gradients: int, dtype: torch.dtype) -> None:
        self.potential, self.left, self.dtype = potential, gradients, dtype

    def __call__(self, parameters: dict[str, Tensor]) -> Tensor:
        if self.left == 0:
            raise _GradientsUsedUp
        self.left -= 1
        apply: Callable[..., Tensor] = _Energy.apply
        energy = apply(parameters["z"], self.potential, self.dtype)
        return energy + 0.5 * parameters["z"].double().square().sum()


class _Energy(torch.autograd.Function):
    """A misfit energy with its gradient; Pyro's latents may have another type."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, potential: GeneratorPotential, dtype: torch.dtype) -> Tensor:
        energy, grad = potential.energy_and_grad(z[None, None].to(dtype))
        ctx.save_for_backward(grad[0, 0].to(z.dtype))
        return energy[0, 0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return upstream.to(grad.dtype) * grad, None, None


def _chain(sampler: Any, target: _Target, start: Tensor) -> Tensor:
    """`DRAWS` states ``(DRAWS, d)`` of a chain that runs until its gradients are used up."""
    kernel = sampler(potential_fn=target)
    kernel.initial_params = {"z": start.clone()}
    states = [start]
    try:
        kernel.setup(_WARMUP)
        parameters = kernel.initial_params
        while True:
            parameters = kernel.sample(parameters)
            states.append(parameters["z"].detach().to(start.dtype))
    except _GradientsUsedUp:
        pass
    kept = states[1 + _WARMUP :] or states[-1:]
    index = torch.linspace(0, len(kept) - 1, DRAWS).round().long()
    return torch.stack([kept[i] for i in index.tolist()])
