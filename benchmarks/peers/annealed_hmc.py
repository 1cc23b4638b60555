"""The published annealed run in JAX, whole in one jit, and BlackJAX's HMC: rivals of the fused run.

Both take ``energy``: rows ``(n, d)`` to misfit energies ``(n,)``, and make transitions of
``leapfrog_steps`` gradients each, all chains side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from jax import Array, lax

Energy = Callable[[Array], Array]
_TARGET, _DECAY, _INCREASE, _DECREASE = 0.65, 0.9, 1.02, 0.98
_UNROLL = 5  # leapfrog steps; all 20 compile for long and run no faster


class Chains(NamedTuple):
    """N chains under way: latents ``(N, d)``, energies ``(N,)``, their gradients; the shared step.

    ``running`` is the running acceptance rate, ``log_weights`` ``(N,)``.
    """

    latents: Array
    energy: Array
    grad: Array
    step_size: Array
    running: Array
    log_weights: Array


def annealed(energy: Energy, chains: int, latent_size: int, leapfrog_steps: int, step_size: float):
    """A jitted function of a key and inverse temperatures ``(T,)``: the run's last `Chains`.

    Algorithm 1 of Fang and Schwing 2019, one transition per temperature, with the published rule
    for the step size that all chains share.
    """

    def energy_and_grad(z: Array) -> tuple[Array, Array]:
        value, pull = jax.vjp(energy, z)
        (grad,) = pull(jnp.ones_like(value))
        return value, grad

    def transition(state: Chains, beta: Array, key: Array) -> Chains:
        momentum_key, accept_key = jax.random.split(key)
        v = jax.random.normal(momentum_key, state.latents.shape)

        def hamiltonian(e: Array, z: Array, v: Array) -> Array:
            return beta * e + 0.5 * (z * z).sum(-1) + 0.5 * (v * v).sum(-1)

        def leapfrog(_: int, at: tuple[Array, ...]) -> tuple[Array, ...]:
            z, v, _, grad = at
            v = v - 0.5 * state.step_size * (beta * grad + z)
            z = z + state.step_size * v
            e, grad = energy_and_grad(z)
            v = v - 0.5 * state.step_size * (beta * grad + z)
            return z, v, e, grad

        start = (state.latents, v, state.energy, state.grad)
        z, end_v, e, grad = lax.fori_loop(0, leapfrog_steps, leapfrog, start, unroll=_UNROLL)
        change = hamiltonian(e, z, end_v) - hamiltonian(state.energy, state.latents, v)
        probability = jnp.where(jnp.isfinite(change), jnp.exp(-jnp.maximum(change, 0.0)), 0.0)
        accepted = jax.random.uniform(accept_key, e.shape) < probability
        factor = jnp.where(state.running > _TARGET, _INCREASE, _DECREASE)
        return Chains(
            jnp.where(accepted[:, None], z, state.latents),
            jnp.where(accepted, e, state.energy),
            jnp.where(accepted[:, None], grad, state.grad),
            state.step_size * factor,
            _DECAY * state.running + (1.0 - _DECAY) * probability.mean(),
            state.log_weights,
        )

    @jax.jit
    def run(key: Array, betas: Array) -> Chains:
        key, prior_key = jax.random.split(key)
        z = jax.random.normal(prior_key, (chains, latent_size))
        e, grad = energy_and_grad(z)
        state = Chains(z, e, grad, jnp.array(step_size), jnp.array(_TARGET), jnp.zeros(chains))

        def temperature(carry: tuple[Chains, Array], at: tuple[Array, Array]):
            state, before = carry
            beta, key = at
            weights = state.log_weights - (beta - before) * state.energy
            return (transition(state._replace(log_weights=weights), beta, key), beta), None

        keys = jax.random.split(key, len(betas))
        (state, _), _ = lax.scan(temperature, (state, jnp.array(0.0)), (betas, keys))
        return state

    return run


def blackjax_hmc(
    energy: Energy, chains: int, latent_size: int, leapfrog_steps: int, step_size: float
):
    """A jitted function of keys ``(T,)``: latents ``(N, d)`` after T transitions of BlackJAX's HMC.

    At the posterior itself and with a fixed step, since BlackJAX has no annealed run of this kind:
    the cost of a transition is all that is compared.
    """
    kernel = blackjax.hmc(
        lambda z: -energy(z[None])[0] - 0.5 * jnp.sum(z * z),
        step_size=step_size,
        inverse_mass_matrix=jnp.ones(latent_size),
        num_integration_steps=leapfrog_steps,
    )

    @jax.jit
    def run(key: Array, keys: Array) -> Array:
        z = jax.random.normal(key, (chains, latent_size))

        def transition(state, key: Array):
            return jax.vmap(kernel.step)(jax.random.split(key, chains), state)[0], None

        return lax.scan(transition, jax.vmap(kernel.init)(z), keys)[0].position

    return run
