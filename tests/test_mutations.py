"""Planted bugs: each must be found by a check that the unmodified code passes.

Bounds are the checks' own: |z| below 4.5 for every score, which correct code breaks in fewer than
one of 10,000 runs of a check (nine scores, 7e-6 each; of the islands three, 6e-5 each, by Student's
t with 39 degrees of freedom). Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from cogen_fast import cogenerate
from cogen_fast.experiments.calibration import (
    exact_draws,
    frozen_evidence,
    joint_distribution,
    z_scores,
)
from cogen_fast.ops import dispatch, reference
from cogen_fast.ops.philox import Purpose
from cogen_fast.sampler import hmc, islands, smc
from cogen_fast.sampler.annealing_plan import Annealing

pytestmark = pytest.mark.usefixtures("one_thread")

BOUND = 4.5
Plant = Callable[[pytest.MonkeyPatch], None]


def ops() -> Any:
    return dispatch.resolve("reference", torch.device("cpu"))


def draws() -> Tensor:
    return exact_draws("reference")


def joint() -> Tensor:
    return joint_distribution("reference")


def weights() -> Tensor:
    # Each temperature has one short move, so that the positions of particles still depend on the
    # weights.
    annealing = Annealing(target_cess=0.7, hmc_steps=1, leapfrog_steps=4, final_rounds=1)
    return frozen_evidence("reference", annealing=annealing, particles=32)


def tuned_by_others() -> Tensor:
    """Three z-scores of default runs in 64 dimensions, each narrower than the next.

    Of the mean misfit, of the latents' variance, and of the log evidence, where it is above the
    exact one: the logarithm of an unbiased estimate lies below on average, by Jensen's inequality.
    """
    size, noise, count = 64, 0.1, 40
    scale = 9.0 / torch.arange(1, size + 1)
    ratio = (scale.double() / noise) ** 2
    result = cogenerate(
        lambda z: z * scale, torch.zeros(count, size), torch.ones(size), latent_shape=size,
        noise_std=noise, seed=3, progress=False,
    )  # fmt: skip
    assert result.log_evidence is not None
    exact = -0.5 * torch.log(2.0 * math.pi * (scale.double() ** 2 + noise**2)).sum()
    misfit = z_scores(result.energies.mean(-1), float(0.5 * (ratio / (1.0 + ratio)).sum()))
    variance = (result.latents.double() ** 2 * (1.0 + ratio)).mean((1, 2))
    above = z_scores(result.log_evidence, float(exact)).clamp(min=0.0)
    return torch.stack([misfit, z_scores(variance, 1.0), above])


CHECKS: dict[str, Callable[[], Tensor]] = {
    "draws": draws,
    "joint": joint,
    "weights": weights,
    "islands": tuned_by_others,
}


def worst(check: str) -> float:
    return float(CHECKS[check]().abs().max())


@cache
def worst_of_the_code_as_it_is(check: str) -> float:
    return worst(check)


# --- the plants -----------------------------------------------------------------------------------


def with_kicks_of(function: Any, part_of: Callable[[float], float]) -> Callable[..., Any]:
    """An op whose kicks cover another share of a step."""
    kick = reference.kick

    def changed(momentum: Any, position: Any, grad: Any, settings: Any, part: float) -> Any:
        return kick(momentum, position, grad, settings, part_of(part))

    def op(*arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, "kick", changed)
            return function(*arguments)

    return op


def wrong_first_kick(part: float) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        changed = with_kicks_of(ops().begin_trajectory, lambda _: part)
        patch.setattr(ops(), "begin_trajectory", changed)

    return plant


def no_last_half_step(patch: pytest.MonkeyPatch) -> None:
    changed = with_kicks_of(ops().accept_select, lambda _: 0.0)
    patch.setattr(ops(), "accept_select", changed)


def accept_by_potential_energies(patch: pytest.MonkeyPatch) -> None:
    hamiltonian = reference.hamiltonian

    def potential(energy: Any, position: Any, momentum: Any, settings: Any) -> Any:
        return hamiltonian(energy, position, torch.zeros_like(momentum), settings)

    patch.setattr(reference, "hamiltonian", potential)


def accept_all(patch: pytest.MonkeyPatch) -> None:
    uniforms = reference.uniforms

    def never_large(stream: Any, purpose: Purpose, *shape: Any) -> Any:
        drawn = uniforms(stream, purpose, *shape)
        return torch.zeros_like(drawn) if purpose == Purpose.ACCEPT else drawn

    patch.setattr(reference, "uniforms", never_large)


def momenta_of_one_sign(patch: pytest.MonkeyPatch) -> None:
    normals = reference.normals

    def positive(stream: Any, purpose: Purpose, *shape: Any) -> Any:
        drawn = normals(stream, purpose, *shape)
        return drawn.abs() if purpose == Purpose.MOMENTUM else drawn

    patch.setattr(reference, "normals", positive)


def steps_by_the_state(patch: pytest.MonkeyPatch) -> None:
    """Steps grow with the distance from 0, so that the reverse trajectory has other steps."""
    transition = hmc.transition

    def jittered(state: Any, potential: Any, settings: Any, *rest: Any) -> Any:
        far = (state.latents[:, 0].double() ** 2).sum(-1) > state.latents.shape[-1]
        step_size = settings.step_size * torch.where(far, 1.5, 0.75)
        return transition(state, potential, replace(settings, step_size=step_size), *rest)

    patch.setattr(hmc, "transition", jittered)


def weights_after_the_move(patch: pytest.MonkeyPatch) -> None:
    weigh, move = smc.weigh, smc.move
    came_from: list[Tensor] = []

    def later(state: Any, beta: Any, slow: Any) -> Any:
        came_from[:] = [state.beta]
        even = torch.zeros_like(state.hmc.energy)
        with_none = replace(state, hmc=replace(state.hmc, energy=even))
        return replace(weigh(with_none, beta, slow), hmc=state.hmc)

    def moved(state: Any, *rest: Any) -> Any:
        after, choice, acceptance = move(state, *rest)
        increment = (choice.beta - came_from[0])[:, None] * after.hmc.energy
        return replace(after, log_weights=after.log_weights - increment), choice, acceptance

    patch.setattr(smc, "weigh", later)
    patch.setattr(smc, "move", moved)


def resampling_by_no_weights(patch: pytest.MonkeyPatch) -> None:
    systematic = ops().systematic_ancestors

    def even(log_weights: Tensor, uniform: Tensor, wanted: Any) -> Any:
        return systematic(torch.zeros_like(log_weights), uniform, wanted)

    patch.setattr(ops(), "systematic_ancestors", even)


def learning_from_ones_own_gradients(patch: pytest.MonkeyPatch) -> None:
    """A particle's own large gradient increases the mass along it, so that the particle stays."""
    patch.setattr(islands, "mean_of_others", lambda values, count: values)


PLANTS: dict[str, tuple[Plant, str]] = {
    "first-kick-0.55": (wrong_first_kick(0.55), "draws"),
    "first-kick-whole": (wrong_first_kick(1.0), "joint"),
    "first-kick-whole-draws": (wrong_first_kick(1.0), "draws"),
    "no-last-half-step": (no_last_half_step, "draws"),
    "accept-without-momentum": (accept_by_potential_energies, "draws"),
    "accept-without-momentum-joint": (accept_by_potential_energies, "joint"),
    "accept-all": (accept_all, "joint"),
    "momenta-of-one-sign": (momenta_of_one_sign, "joint"),
    "steps-by-the-state": (steps_by_the_state, "joint"),
    "weights-after-the-move": (weights_after_the_move, "weights"),
    "resampling-by-no-weights": (resampling_by_no_weights, "weights"),
    "learning-from-ones-own-gradients": (learning_from_ones_own_gradients, "islands"),
}


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_the_code_as_it_is_passes(check: str) -> None:
    assert worst_of_the_code_as_it_is(check) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, check = PLANTS[name]
    as_it_is = worst_of_the_code_as_it_is(check)  # before the bug is planted
    plant(monkeypatch)
    found = worst(check)
    print(f"{name}: {check} {found:.1f}, as it is {as_it_is:.1f}")
    assert found > BOUND
