"""BlackJAX's adaptive tempered SMC with HMC moves on a generator's posterior: a rival's baseline.

Prior ``N(0, I)``, log likelihood ``-weight * || observe(G(z)) - x_obs ||^2``: at temperature 1 the
same posterior as ours. The whole run is one compiled ``while_loop``.

A step of BlackJAX 1.7's ``adaptive_tempered_smc`` resamples by the weights of the step before,
moves the particles at the present temperature, and weighs them for the next, which it chose from
the particles as they were before. So the schedule is one step behind, and keeps more effective than
``target_ess`` says: lower it. And the particles that come with temperature 1 have not been moved
there, nor resampled: it takes one more step, which we make (``steps_at_one``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc import ess, extend_params, resampling, solver
from blackjax.smc.tempered import TemperedSMCState
from blackjax.smc.tuning.from_kernel_info import update_scale_from_acceptance_rate
from jax import Array
from jax.scipy.special import logsumexp

# 1 - t rounds below t = 1/2, so that the last temperature may be a rounding error short of 1.
NEARLY_ONE = 1.0 - 1e-6


@dataclass(frozen=True)
class Outcome:
    """What a run gave, and what it took.

    Attributes:
        latents: ``(particles, d)`` float32, equally weighted, at the last temperature.
        temperatures: ``(steps,)`` at which the particles were moved; the last is 1 unless
            ``max_gradients`` came first.
        acceptance, step_sizes: ``(steps,)`` means over particles and moves.
        energies: ``(steps,)`` means over particles of ``weight ||...||^2`` after the moves.
        gradients_per_chain: value-and-gradient evaluations of one particle.
        forwards_per_chain: evaluations of one particle without a gradient, on top of those.
        seconds_compile, seconds_run: tracing and compiling; running.
        log_evidence: estimate of ``log E_prior[exp(-weight ||...||^2)]``, without the Gaussian's
            constant ``(n_obs / 2) log(weight / pi)``; None where temperature 1 was not reached.
    """

    latents: np.ndarray
    temperatures: np.ndarray
    acceptance: np.ndarray
    step_sizes: np.ndarray
    energies: np.ndarray
    gradients_per_chain: int
    forwards_per_chain: int
    seconds_compile: float
    seconds_run: float
    log_evidence: float | None


class _Trace(NamedTuple):
    """Per step, ``(max_steps,)`` each; what lies behind the last step is not used."""

    temperatures: Array
    acceptance: Array
    step_sizes: Array
    energies: Array


class _Carry(NamedTuple):
    """What goes from one SMC step to the next."""

    key: Array
    steps: Array
    steps_at_one: Array
    smc: TemperedSMCState
    step_sizes: Array
    inverse_mass: Array
    log_evidence: Array
    trace: _Trace


@dataclass(frozen=True)
class _Settings:
    particles: int
    latent_size: int
    target_ess: float = 0.5
    mcmc_steps: int = 2
    leapfrog_steps: int = 10
    step_size: float = 0.1
    target_acceptance: float = 0.8
    adapt_mass: bool = False
    steps_at_one: int = 1
    max_gradients: int = 10_000

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            needed = self.gradients_per_step
            raise ValueError(f"max_gradients: expected at least {needed}, got {self.max_gradients}")

    @property
    def gradients_per_step(self) -> int:
        """Of one particle in one SMC step.

        BlackJAX begins the moves of each temperature with ``hmc.init``, one gradient, because the
        tempered density is a new one. Then every leapfrog step takes one: the gradient at the
        start of a trajectory is carried over from the end of the trajectory before.
        """
        return 1 + self.mcmc_steps * self.leapfrog_steps

    @property
    def forwards_per_step(self) -> int:
        """Of one particle: its likelihood for the next temperature, its weight, and the trace."""
        return 3

    @property
    def max_steps(self) -> int:
        return self.max_gradients // self.gradients_per_step


def sample(
    generator: Callable[[Array], Array],
    observe: Callable[[Array], Array],
    x_obs: Any,
    weight: float,
    latent_size: int,
    particles: int,
    seed: int,
    *,
    target_ess: float = 0.5,
    mcmc_steps: int = 2,
    leapfrog_steps: int = 10,
    step_size: float = 0.1,
    target_acceptance: float = 0.8,
    adapt_mass: bool = False,
    steps_at_one: int = 1,
    max_gradients: int = 10_000,
) -> Outcome:
    """Particles of the posterior by ``blackjax.adaptive_tempered_smc`` with ``blackjax.hmc``.

    Args:
        generator: rows ``(n, d)`` to outputs ``(n, ...)``.
        observe: outputs ``(n, ...)`` to what is observed of them, ``(n, ...)``.
        x_obs: the observation, shaped as one row of ``observe``.
        weight: ``1 / (2 sigma^2)`` of the noise.
        latent_size: d.
        particles: number of particles.
        seed: of everything random.
        target_ess: share of particles that the next temperature is to leave effective.
        mcmc_steps: HMC moves per temperature.
        leapfrog_steps: per HMC move.
        step_size: of the first temperature; each particle's own from then on.
        target_acceptance: towards which the step sizes are tuned between temperatures.
        adapt_mass: diagonal inverse mass from the particles' variances at each temperature.
        steps_at_one: steps (resampling and moves) at temperature 1 itself.
        max_gradients: bound on ``gradients_per_chain``; no step is begun that would break it.

    Raises:
        ValueError: ``max_gradients`` leaves no room for one step.
    """
    settings = _Settings(
        particles,
        latent_size,
        target_ess,
        mcmc_steps,
        leapfrog_steps,
        step_size,
        target_acceptance,
        adapt_mass,
        steps_at_one,
        max_gradients,
    )
    target = jnp.asarray(x_obs)

    def log_likelihood(z: Array) -> Array:
        residual = observe(generator(z[None]))[0] - target
        return -weight * jnp.sum(residual * residual)

    start = time.perf_counter()
    run = jax.jit(partial(_run, log_likelihood, settings)).lower(jax.random.key(seed)).compile()
    compiled = time.perf_counter()
    end = jax.block_until_ready(run(jax.random.key(seed)))
    return _outcome(end, settings, compiled - start, time.perf_counter() - compiled)


def repetitions(
    log_likelihood: Callable[[Array, Array], Array],
    data: np.ndarray,
    latent_size: int,
    particles: int,
    **how: Any,
) -> list[Outcome]:
    """Independent runs on ``data`` ``(R, ...)``, a seed each, in one compiled call.

    ``log_likelihood(z, x)`` is of one row of latents and one of ``data``; ``how`` as for `sample`.
    Seconds are each one's share.
    """
    settings = _Settings(particles, latent_size, **how)
    keys = jax.vmap(jax.random.key)(jnp.arange(len(data)))

    def one(key: Array, x: Array) -> _Carry:
        return _run(partial(log_likelihood, x=x), settings, key)

    start = time.perf_counter()
    run = jax.jit(jax.vmap(one)).lower(keys, jnp.asarray(data)).compile()
    compiled = time.perf_counter()
    ends = jax.block_until_ready(run(keys, jnp.asarray(data)))
    done = time.perf_counter()
    share = (compiled - start) / len(data), (done - compiled) / len(data)
    each = (jax.tree.map(lambda leaf, i=i: leaf[i], ends) for i in range(len(data)))
    return [_outcome(end, settings, *share) for end in each]


def _run(log_likelihood: Callable[[Array], Array], settings: _Settings, key: Array) -> _Carry:
    """SMC steps until temperature 1 has had its share, or the budget is spent."""

    def unfinished(carry: _Carry) -> Array:
        return (carry.steps < settings.max_steps) & (carry.steps_at_one < settings.steps_at_one)

    step = partial(_step, log_likelihood, settings)
    return jax.lax.while_loop(unfinished, step, _start(log_likelihood, settings, key))


def _start(log_likelihood: Callable[[Array], Array], settings: _Settings, key: Array) -> _Carry:
    """Prior draws, already weighted for the first temperature above 0.

    BlackJAX's own first step would move the draws at temperature 0, from prior to prior; this is
    what it comes to without the gradients for that.
    """
    key, prior_key = jax.random.split(key)
    z = jax.random.normal(prior_key, (settings.particles, settings.latent_size))
    likelihoods = jax.vmap(log_likelihood)
    first = ess.ess_solver(likelihoods, z, settings.target_ess, 1.0, solver.dichotomy)
    log_weights = first * likelihoods(z)
    empty = jnp.zeros(settings.max_steps)
    return _Carry(
        key=key,
        steps=jnp.array(0),
        steps_at_one=jnp.array(0),
        smc=TemperedSMCState(z, jax.nn.softmax(log_weights), first),
        step_sizes=jnp.full(settings.particles, settings.step_size),
        inverse_mass=jnp.ones(settings.latent_size),
        log_evidence=logsumexp(log_weights) - jnp.log(settings.particles),
        trace=_Trace(empty, empty, empty, empty),
    )


def _step(log_likelihood: Callable[[Array], Array], settings: _Settings, carry: _Carry) -> _Carry:
    """Resample, move at the present temperature, weigh for the next; then tune the moves.

    At temperature 1 the next one is 1 again, the weights are equal and the evidence stays.
    """
    key, step_key = jax.random.split(carry.key)
    smc, info = _algorithm(log_likelihood, settings, carry).step(step_key, carry.smc)
    rates = info.update_info.acceptance_rate  # (particles, mcmc_steps)
    now = carry.smc.tempering_param
    energy = -jax.vmap(log_likelihood)(smc.particles).mean()
    row = _Trace(now, rates.mean(), carry.step_sizes.mean(), energy)
    return _Carry(
        key=key,
        steps=carry.steps + 1,
        steps_at_one=carry.steps_at_one + (now >= NEARLY_ONE),
        smc=smc,
        step_sizes=update_scale_from_acceptance_rate(
            carry.step_sizes, rates.mean(1), settings.target_acceptance
        ),
        # The floor is for particles that are all copies of one, none of which has moved.
        inverse_mass=smc.particles.var(0) + 1e-10 if settings.adapt_mass else carry.inverse_mass,
        log_evidence=carry.log_evidence + info.log_likelihood_increment,
        trace=_Trace(
            *(all_.at[carry.steps].set(v) for all_, v in zip(carry.trace, row, strict=True))
        ),
    )


def _algorithm(
    log_likelihood: Callable[[Array], Array], settings: _Settings, carry: _Carry
) -> blackjax.base.SamplingAlgorithm:
    """BlackJAX's sampler with the present step sizes and mass.

    Built anew at each step as ``blackjax.inner_kernel_tuning`` builds it; that one's update
    function does not see the step sizes it is to change.
    """
    # Bound here, not passed as a parameter, so that the number of leapfrog steps is static.
    move = partial(blackjax.hmc.build_kernel(), num_integration_steps=settings.leapfrog_steps)
    return blackjax.adaptive_tempered_smc(
        logprior_fn=lambda z: -0.5 * jnp.sum(z * z),
        loglikelihood_fn=log_likelihood,
        mcmc_step_fn=move,
        mcmc_init_fn=blackjax.hmc.init,
        mcmc_parameters=extend_params({"inverse_mass_matrix": carry.inverse_mass})
        | {"step_size": carry.step_sizes},
        resampling_fn=resampling.systematic,
        target_ess=settings.target_ess,
        num_mcmc_steps=settings.mcmc_steps,
    )


def _outcome(end: _Carry, settings: _Settings, compile_: float, run: float) -> Outcome:
    steps = int(end.steps)
    done = int(end.steps_at_one) > 0
    temperatures, acceptance, step_sizes, energies = (np.asarray(a)[:steps] for a in end.trace)
    return Outcome(
        latents=np.asarray(end.smc.particles),
        temperatures=temperatures,
        acceptance=acceptance,
        step_sizes=step_sizes,
        energies=energies,
        gradients_per_chain=steps * settings.gradients_per_step,
        # The start finds the first temperature and the weights for it in the same way.
        forwards_per_chain=(steps + 1) * settings.forwards_per_step - 1,
        seconds_compile=compile_,
        seconds_run=run,
        log_evidence=float(end.log_evidence) if done else None,
    )
