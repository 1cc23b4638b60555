"""BlackJAX on exact models, with as many gradients per particle as this package took.

The figures are errors of one run. Each repetition has a data set of its own, drawn from the model:
the first data sets that this package has too. Tempered SMC continues at temperature 1 until its
gradients are used up, and its estimate of the mean energy is the mean over all steps there, as
here; that of NUTS is the mean over all draws. Two things favour BlackJAX: forwards that it needs
besides its gradients are not counted, and its settings are the best of a small grid by the same
runs that are reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers import jax_generators, nuts, tempered_smc
from torch import Tensor

from cogen_fast.experiments.exact_models import LinearGaussian

RIVALS = ("tempered SMC", "NUTS")
REPETITIONS = 40
_SMC = {"target_ess": (0.5, 0.8, 0.9), "mcmc_steps": (1, 4), "leapfrog_steps": (4, 10)}
_SMC_LEAST_STEPS = 12  # settings that leave fewer temperatures than this are not tried
_NUTS = {"step_size": (0.02, 0.1), "doublings": (4, 7)}


def settings(rival: str, gradients: int) -> Iterator[dict[str, Any]]:
    """The grid of a rival."""
    grid = _NUTS if rival == "NUTS" else _SMC
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        if rival == "NUTS" or gradients // _of_a_step(chosen) >= _SMC_LEAST_STEPS:
            yield chosen


def _of_a_step(chosen: dict[str, Any]) -> int:
    return 1 + chosen["mcmc_steps"] * chosen["leapfrog_steps"]


def run(
    rival: str, model: LinearGaussian, chains: int, gradients: int, how: dict[str, Any]
) -> dict[str, Any]:
    """Root mean square errors of the mean energy and the log evidence, over repetitions."""
    found = _nuts if rival == "NUTS" else _tempered
    return found(model, chains, gradients, how)


def _log_likelihood(model: LinearGaussian) -> Callable[[jax.Array, jax.Array], jax.Array]:
    twin, weight = jax_generators.linear_gaussian(model), 0.5 / model.noise**2
    return lambda z, x: -weight * jnp.sum((twin(z[None])[0] - x) ** 2)


def _nuts(
    model: LinearGaussian, chains: int, gradients: int, how: dict[str, Any]
) -> dict[str, Any]:
    x = model.data(range(REPETITIONS))
    outcome = nuts.repetitions(
        _log_likelihood(model), x.numpy(), model.size, chains, gradients, nuts.Settings(**how)
    )
    return _energy(outcome.energies, model, x) | {
        "gradients": float(outcome.gradients.mean()),
        "remark": f"{outcome.warmup} steps of adaptation, then {outcome.draws.mean():.0f} draws",
    }


def _tempered(
    model: LinearGaussian, chains: int, gradients: int, how: dict[str, Any]
) -> dict[str, Any]:
    x = model.data(range(REPETITIONS))
    outcomes = tempered_smc.repetitions(
        _log_likelihood(model),
        x.numpy(),
        model.size,
        chains,
        step_size=model.size**-0.25,
        steps_at_one=gradients,
        max_gradients=gradients,
        **how,
    )
    temperatures = np.stack([outcome.temperatures for outcome in outcomes])
    there = temperatures >= tempered_smc.NEARLY_ONE
    spent = {
        "gradients": outcomes[0].gradients_per_chain,
        "remark": f"at 1 for {there.sum(1).mean():.0f} of {there.shape[1]} steps",
    }
    if not there.any(1).all():
        return spent | {"energy": math.inf, "energy_bias": math.inf, "log_evidence": math.inf}
    energies = np.stack([outcome.energies for outcome in outcomes])
    constant = 0.5 * model.size * math.log(2.0 * math.pi * model.noise**2)
    estimates = np.array([outcome.log_evidence or math.nan for outcome in outcomes])
    off = estimates - constant - model.log_evidence(x).numpy()
    found = _energy((energies * there).sum(1) / there.sum(1), model, x)
    return spent | found | {"log_evidence": math.sqrt(np.mean(np.square(off)))}


def _energy(estimates: np.ndarray, model: LinearGaussian, x: Tensor) -> dict[str, float]:
    off = estimates.astype(np.float64) - model.mean_energy(x).numpy()
    return {"energy": math.sqrt(np.mean(off**2)), "energy_bias": float(off.mean())}
