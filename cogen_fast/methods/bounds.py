"""Bounds of the log evidence on simulated data, for which an exact posterior draw is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogen_fast.methods.adaptive import AdaptivePlan
from cogen_fast.ops import dispatch, reference
from cogen_fast.problem.adapter import GeneratorAdapter, frozen
from cogen_fast.problem.compute import DEFAULT, Compute, as_compute
from cogen_fast.problem.observation import MeasurementOperator, as_operator, positive
from cogen_fast.problem.precision import full_precision
from cogen_fast.problem.prior import Prior
from cogen_fast.problem.problem import Problem, prepared
from cogen_fast.sampler import hmc, reverse, smc
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.tuning import POPULATION
from cogen_fast.sampler.weights import log_mean_weight
from cogen_fast.support.arguments import check_count
from cogen_fast.support.memory import check_samples

_SIMULATION, _REVERSE = 0xD1B54A32D192ED03, 0x8CB92BA72F3D8DD7


@dataclass(frozen=True, repr=False)
class EvidenceBounds:
    """Stochastic lower and upper bounds of the log evidence of S simulated data sets, on the CPU.

    ``lower`` and ``upper`` ``(S,)`` float64 are estimates whose expectations lie below and above
    the log evidence; better annealing brings them closer to it. The probability that either is on
    the wrong side by more than b nats is at most ``exp(-b)``. ``latents`` ``(S, d)`` and ``x_obs``
    ``(S, ...)`` are the simulated latents and measurements.
    """

    lower: Tensor
    upper: Tensor
    latents: Tensor
    x_obs: Tensor

    @property
    def gap(self) -> Tensor:
        """``upper - lower``, ``(S,)``: its expectation is the sum of the biases of both estimates.

        A single gap is noisy and may be negative, so look at the mean.
        """
        return self.upper - self.lower

    def __repr__(self) -> str:
        count = len(self.gap)
        error = float(self.gap.std()) / math.sqrt(count) if count > 1 else math.nan
        return (
            f"EvidenceBounds: {count} data sets, log evidence {float(self.lower.mean()):.4g} to "
            f"{float(self.upper.mean()):.4g} on average, gap {float(self.gap.mean()):.3g} "
            f"(standard error {error:.2g})"
        )


def bound_evidence(
    G: Callable[[Tensor], Tensor],
    mask: Any,
    *,
    noise_std: Any,
    simulations: int = 8,
    chains: int = POPULATION,
    target_cess: float = 0.9,
    seed: int = 0,
    latent_shape: Any = None,
    compute: Compute = DEFAULT,
) -> EvidenceBounds:
    """Bound the log evidence of simulated data by bidirectional Monte Carlo.

    Latents and noise are drawn, so that each of the S data sets comes with one exact posterior
    draw. Annealing from the prior to the posterior, with every choice fixed by a pilot run (as with
    ``evidence="frozen"``), bounds the log evidence from below. Annealing from the exact draw back
    to the prior by the same schedule bounds it from above (Grosse, Ghahramani and Adams 2015). The
    mean gap shows how large the error of the evidence is for this generator, mask and noise.

    ``simulations`` is S; the other arguments are those of `cogenerate` and `Adaptive`. Raises
    ValueError or TypeError naming the argument.
    """
    check_count("simulations", simulations)
    if isinstance(G, Prior):
        G.check_count(1)  # simulations have no conditions of their own
    operator = as_operator(mask)
    method = AdaptivePlan(
        chains=check_count("chains", chains),
        populations=1,
        annealing=Annealing(target_cess=target_cess),
        budget=None,
        evidence="frozen",
        step_size=None,
        seed=seed,
        keep_trace=False,
        max_batch=as_compute(compute).max_batch,
        most_draws=1,  # a reverse run would have to go from the pool's temperature to 0 in one step
    )
    seed = method.seed
    with full_precision(), frozen(G):
        adapter = GeneratorAdapter(G, latent_shape, compute.device, compute.max_batch)
        dispatch.resolve(compute.backend, adapter.device)
        counts = {"simulations": simulations, "chains": method.chains}
        check_samples(counts, 1, adapter.latent_size, device=adapter.device)
        latents, x_obs = _simulate(adapter, operator, noise_std, simulations, seed)
    with prepared(
        G,
        x_obs,
        operator,
        noise_std=noise_std,
        latent_shape=latent_shape,
        compute=compute,
    ) as problem:
        forward = method.go(problem, method.begin(problem, None), lambda run: None)
        assert forward.repeats is not None
        below = log_mean_weight(forward.state.log_weights.reshape(simulations, -1))
        above = _upper(problem, forward, latents, seed)
        constant = problem.observation.log_noise_constant
        assert constant is not None
    return EvidenceBounds(
        (below + constant).cpu(), (above + constant).cpu(), latents.cpu(), x_obs.cpu()
    )


def _simulate(
    adapter: GeneratorAdapter,
    operator: MeasurementOperator,
    noise_std: Any,
    simulations: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Latents ``(S, d)`` from the prior, and their noisy measurements ``(S, ...)``."""
    pairs = operator.is_complex(adapter.probe_output)
    shape = operator.measured_shape(adapter.probe_output)
    sigma = positive("noise_std", noise_std, simulations, shape, adapter.device, pairs=pairs)
    own_seed = (seed + _SIMULATION) % 2**64
    stream = hmc.noise_stream(own_seed, 1, adapter.device)
    latents = reference.initial_latents(stream, simulations, adapter.latent_size, adapter.dtype)[0]
    exact = torch.cat([operator.measure(adapter(row)) for row in torch.split(latents, 1)])
    exact = torch.view_as_real(exact) if pairs else exact
    random = torch.Generator().manual_seed(own_seed % 2**63)
    noise = torch.randn(exact.flatten(1).shape, generator=random, dtype=torch.float64, device="cpu")
    x_obs = exact + (sigma * noise.to(sigma)).reshape(exact.shape).to(exact)
    return latents, torch.view_as_complex(x_obs) if pairs else x_obs


def _upper(problem: Problem, forward: smc.Run, latents: Tensor, seed: int) -> Tensor:
    """Minus the log mean reciprocal weight of reverse runs from the exact draws, ``(S,)``."""
    assert forward.repeats is not None
    rows, each, size = forward.state.hmc.latents.shape
    start = latents.repeat_interleave(rows // len(latents), 0)[:, None]
    log_weights = reverse.run(
        problem.potential,
        forward.repeats,
        start.expand(-1, each, size).contiguous(),
        backend=problem.backend,
        seed=(seed + _REVERSE) % 2**64,
    ).reshape(len(latents), -1)
    return math.log(log_weights.shape[1]) - torch.logsumexp(-log_weights, -1)
