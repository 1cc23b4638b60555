"""BlackJAX's NUTS with window adaptation, at the posterior itself: a rival's baseline.

Chains begin at prior draws and adapt alone, as BlackJAX's own examples have it. How many gradients
a step takes is not known before, so the number of steps that half of the gradients pay for is told
by a pilot under another seed; the other half goes to draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_PILOT_STEPS, _PILOT_CHAINS, _PILOT_KEY = 40, 64, 10_000
_CHEAPEST = 3  # gradients that a draw takes at least, on average


@dataclass(frozen=True)
class Outcome:
    """What R runs of C chains gave, and what they took.

    Attributes:
        energies: ``(R,)``, minus the mean log likelihood of all draws of a run.
        gradients: ``(R,)``, of a chain on average: adaptation, and draws that count.
        warmup: adaptation steps.
        draws: ``(R,)``, of each chain.
    """

    energies: np.ndarray
    gradients: np.ndarray
    warmup: int
    draws: np.ndarray


@dataclass(frozen=True)
class Settings:
    """Of window adaptation and of NUTS."""

    step_size: float = 0.1
    target_acceptance: float = 0.8
    doublings: int = 10


def repetitions(
    log_likelihood: Callable[[Array, Array], Array],
    data: np.ndarray,
    latent_size: int,
    chains: int,
    gradients: int,
    settings: Settings,
) -> Outcome:
    """Independent runs on ``data`` ``(R, ...)``, each chain of which may spend ``gradients``.

    On average over a run. ``log_likelihood(z, x)`` is of one row of latents, whose prior is
    standard normal, and one of ``data``.
    """
    pilot_keys = jax.random.split(jax.random.key(_PILOT_KEY), _PILOT_CHAINS)
    pilot_data = jnp.asarray(data)[jnp.arange(_PILOT_CHAINS) % len(data)]

    def warm(steps: int, key: Array, x: Array) -> tuple[Adapted, Array]:
        return _warm(partial(log_likelihood, x=x), latent_size, settings, steps, key)

    _, cost = jax.jit(jax.vmap(partial(warm, _PILOT_STEPS)))(pilot_keys, pilot_data)
    warmup = max(1, int(0.5 * gradients / float(cost.mean()) * _PILOT_STEPS))
    keys = jax.random.split(jax.random.key(0), len(data) * chains)
    each = jnp.repeat(jnp.asarray(data), chains, 0)
    adapted, spent = jax.jit(jax.vmap(partial(warm, warmup)))(keys, each)
    most = max(1, int(gradients) // _CHEAPEST)

    def draw(key: Array, x: Array, adapted: Adapted) -> tuple[Array, Array]:
        return _draw(partial(log_likelihood, x=x), settings, most, key, adapted)

    energy, steps = jax.jit(jax.vmap(draw))(keys, each, adapted)
    shape = (len(data), chains, -1)
    energy, steps = (np.asarray(found).reshape(shape).mean(1) for found in (energy, steps))
    spent = np.asarray(spent).reshape(len(data), chains).mean(1)
    return _outcome(energy, spent[:, None] + steps.cumsum(1), gradients, warmup)


def _outcome(energy: np.ndarray, spent: np.ndarray, gradients: int, warmup: int) -> Outcome:
    """From energies and gradients spent, ``(R, draws)``: the draws that the gradients pay for.

    The first is there in any case: without one there is no estimate.
    """
    count = np.maximum((spent <= gradients).sum(1), 1)
    rows = np.arange(len(count))
    means = energy.cumsum(1)[rows, count - 1] / count
    return Outcome(means, spent[rows, count - 1], warmup, count)


Adapted = tuple[Any, Array, Array]
"""A state of NUTS, its step size and inverse mass."""


def _warm(
    log_likelihood: Callable[[Array], Array],
    latent_size: int,
    settings: Settings,
    steps: int,
    key: Array,
) -> tuple[Adapted, Array]:
    """A chain that has adapted, and the gradients that took."""
    start_key, key = jax.random.split(key)
    adaptation = blackjax.window_adaptation(
        blackjax.nuts,
        _posterior(log_likelihood),
        initial_step_size=settings.step_size,
        target_acceptance_rate=settings.target_acceptance,
        max_num_doublings=settings.doublings,
    )
    found, info = adaptation.run(key, jax.random.normal(start_key, (latent_size,)), steps)
    tuned = found.parameters["step_size"], found.parameters["inverse_mass_matrix"]
    return (found.state, *tuned), info.info.num_integration_steps.sum()


def _draw(
    log_likelihood: Callable[[Array], Array],
    settings: Settings,
    count: int,
    key: Array,
    adapted: Adapted,
) -> tuple[Array, Array]:
    """Energies of draws and the gradients of each, ``(count,)``."""
    kernel = blackjax.nuts.build_kernel()
    state, *tuned = adapted
    posterior = _posterior(log_likelihood)

    def one(state: Any, key: Array) -> tuple[Any, tuple[Array, Array]]:
        state, info = kernel(key, state, posterior, *tuned, settings.doublings)
        return state, (-log_likelihood(state.position), info.num_integration_steps)

    keys = jax.random.split(jax.random.fold_in(key, 1), count)
    return jax.lax.scan(one, state, keys)[1]


def _posterior(log_likelihood: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda z: log_likelihood(z) - 0.5 * jnp.sum(z * z)
