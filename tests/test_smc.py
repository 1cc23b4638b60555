"""The adaptive loop by itself, on known energies: weights, resampling, tuning, pace, estimates."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from runs import both_backends
from torch import Tensor

from cogen_fast.ops import dispatch
from cogen_fast.ops.dispatch import Ops
from cogen_fast.ops.philox import Purpose, normals, uniforms
from cogen_fast.ops.reference import Proposal
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.sampler import hmc, lone, pace, smc, stiffness, tuning
from cogen_fast.sampler.hmc import HMCInfo, HMCState
from cogen_fast.sampler.pace import MASSES, Annealing, Standing
from cogen_fast.sampler.smc import Choice, Run, SMCState
from cogen_fast.sampler.tuning import LADDER, Tuning, TuningRule
from cogen_fast.sampler.weights import (
    effective_sample_size,
    genealogical_variance,
    log_mean_weight,
    surviving_roots,
)

pytestmark = pytest.mark.usefixtures("one_thread")

Array = npt.NDArray[np.float64]
all_masses = pytest.mark.parametrize("mass", MASSES)
F64 = torch.float64
ROUNDING: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}  # float64 over a few hundred operations


def _ops(backend: str = "native") -> Ops:
    return dispatch.resolve(backend, torch.device("cpu"))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class LinearGaussian:
    """``E(z) = |A z - y|^2 / (2 sigma^2)``, whose tempered posteriors are known Gaussians."""

    def __init__(self, d: int = 3, measured: int = 2, sigma: float = 0.5) -> None:
        self.a, self.y, self.sigma = normal(measured, d, seed=7), normal(measured, seed=8), sigma
        self.calls = 0

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        residual = z.double() @ self.a.T - self.y
        grad = residual @ self.a / self.sigma**2
        return (residual**2).sum(-1) / (2.0 * self.sigma**2), grad.to(z.dtype)

    def posterior(self) -> tuple[Tensor, Tensor]:
        precision = self.a.T @ self.a / self.sigma**2 + torch.eye(self.a.shape[1], dtype=F64)
        covariance = torch.linalg.inv(precision)
        return covariance @ self.a.T @ self.y / self.sigma**2, covariance

    def log_normaliser(self) -> float:
        """``log E_prior[exp(-E)]``: y is N(0, A A' + sigma^2) without its noise's constant."""
        ratio = torch.eye(len(self.y), dtype=F64) + self.a @ self.a.T / self.sigma**2
        quadratic = self.y @ torch.linalg.solve(ratio, self.y) / self.sigma**2
        return float(-0.5 * quadratic - 0.5 * torch.logdet(ratio))


class Bowls:
    """``E(z) = sum_i k_i (z_i - c)^2 / 2`` with ``k`` and ``c`` of each observation's own."""

    def __init__(self, precisions: list[list[float]], centres: list[float]) -> None:
        self.k = torch.tensor(precisions, dtype=F64)[:, None]
        self.c = torch.tensor(centres, dtype=F64)[:, None, None]
        self.calls = 0

    def rows(self, chosen: list[int]) -> Bowls:
        return Bowls(self.k[chosen, 0].tolist(), self.c[chosen, 0, 0].tolist())

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        away = z.double() - self.c
        return 0.5 * (self.k * away * away).sum(-1), (self.k * away).to(z.dtype)


def sample(target: Any, annealing: Annealing | None = None, **how: Any) -> Run:
    usual: dict[str, Any] = {"chains": 16, "latent_size": 3, "dtype": F64, "seed": 3}
    return smc.run(target, annealing, **usual | how)


def recorded(target: Any, annealing: Annealing | None = None, **how: Any) -> list[SMCState]:
    """The state at the start of a run and after each temperature."""
    kinds = {
        name: how[name] for name in ("observations", "observation_ids", "alone") if name in how
    }
    usual: dict[str, Any] = {"chains": 16, "latent_size": 3, "dtype": F64, "seed": 3}
    usual = usual | {k: v for k, v in how.items() if k in usual} | kinds
    states = [smc.init(target, **usual)]
    smc.run(target, annealing, start=Run(states[0]), on_step=lambda run: states.append(run.state))
    return states


MIXED = Bowls([[4.0, 1.0, 0.0], [400.0, 90.0, 30.0], [1e4, 1e4, 1.0]], [1.0, -0.7, 0.3])
"""Three observations, from mild to sharp."""


# --- weights --------------------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("below", [1e-9, 0.5, 0.95], ids=["never", "usual", "often"])
def test_weights_by_hand_from_the_recorded_latents(backend: str, below: float) -> None:
    target, n = LinearGaussian(sigma=0.2), 64
    annealing = Annealing(kept=0.6, resample_below=below)
    how: dict[str, Any] = {"chains": n, "observations": 2, "backend": backend}
    run = sample(target, annealing, keep_trace=True, **how)
    assert run.trace is not None
    assert len(run.trace) == len(run.infos) + 1
    logs, beta = np.zeros((2, n)), np.zeros(2)
    resampled, temperatures, drift = 0, 0, 0.0
    roots, variance = torch.arange(n).repeat(2, 1), torch.zeros(2, dtype=F64)
    for t, info in enumerate(run.infos):
        before, after = (target.energy_and_grad(run.trace[t + i])[0].numpy() for i in (0, 1))
        # Weights grow by the energies *before* the move.
        step = info.choice.beta.numpy() - beta
        logs, beta = logs - step[:, None] * before, info.choice.beta.numpy()
        drift = max(drift, float(np.abs(step[:, None] * (after - before)).max()))
        # The genealogy tells the error as long as the weights change, before they are made even.
        told = genealogical_variance(torch.from_numpy(logs.copy()), roots)
        variance = torch.where(torch.from_numpy(step > 0.0), told, variance)
        roots = roots.gather(1, info.ancestors)
        share = np.exp(logs - np.logaddexp.reduce(logs, -1, keepdims=True))
        np.testing.assert_allclose(info.effective_sample_size, 1.0 / (share**2).sum(-1), rtol=1e-9)
        for b in range(2):
            uneven = 1.0 / (share[b] ** 2).sum() < below * n
            arrives = beta[b] == 1.0 and step[b] > 0.0
            assert bool(info.choice.resampled[b]) == (uneven or arrives)
            temperatures += int(step[b] > 0.0)
            if info.choice.resampled[b]:
                logs[b] = np.logaddexp.reduce(logs[b]) - math.log(n)
                resampled += 1
            else:
                assert info.ancestors[b].tolist() == list(range(n))
        moves = info.choice.active.numpy()
        np.testing.assert_allclose(info.energy.numpy()[moves], after.mean(-1)[moves], rtol=1e-9)
        spread = after.std(-1)[moves]
        np.testing.assert_allclose(info.energy_std.numpy()[moves], spread, rtol=1e-9)
        for told in (info.energy, info.energy_std):
            assert np.isnan(told.numpy()[~moves]).all()
    assert beta.tolist() == [1.0, 1.0]
    np.testing.assert_allclose(run.state.log_weights.numpy(), logs, rtol=1e-9)
    torch.testing.assert_close(run.state.variance, variance, equal_nan=True, **ROUNDING)
    assert variance.isfinite().any() or below > 0.9
    assert drift > 1.0  # with the energies after the move the weights would have been others
    # At the end all are even; before that the rule asks for none, some or many.
    assert resampled == int(run.state.resamplings.sum())
    usual = {1e-9: (2, 2), 0.5: (4, temperatures - 4), 0.95: (temperatures - 2, temperatures)}
    assert usual[below][0] <= resampled <= usual[below][1]


@both_backends
def test_temperatures_keep_the_share_asked_for(backend: str) -> None:
    # Conditional effective sample size of each step but the last, from the recorded latents.
    target = LinearGaussian(sigma=0.1)
    run = sample(target, Annealing(kept=0.7), chains=50, keep_trace=True, backend=backend)
    assert run.trace is not None
    logs, beta = np.zeros(50), 0.0
    steps = 0
    for t, info in enumerate(run.infos):
        energy = target.energy_and_grad(run.trace[t])[0][0].numpy()
        step = info.choice.beta.item() - beta
        beta = info.choice.beta.item()
        share = np.exp(logs - np.logaddexp.reduce(logs))
        w = np.exp(-step * (energy - energy.min()))
        kept = (share * w).sum() ** 2 / (share * w * w).sum()
        logs = np.zeros(50) if info.choice.resampled.item() else logs - step * energy
        if beta < 1.0:
            assert kept == pytest.approx(0.7, abs=1e-9)
            steps += 1
        else:
            assert kept >= 0.7 - 1e-9
    assert steps >= 6


@both_backends
def test_rounding_does_not_decide_on_resampling(backend: str) -> None:
    how: dict[str, Any] = {"chains": 16, "latent_size": 3, "dtype": F64, "backend": backend}
    state = smc.init(LinearGaussian(sigma=0.2), observations=2000, **how)
    resampled = smc.choose(state, Annealing(), _ops(backend)).resampled
    assert not resampled.any() or bool(resampled.all())


def systematic_by_hand(log_weights: Array, u: float) -> list[int]:
    upto = np.cumsum(np.exp(log_weights - np.logaddexp.reduce(log_weights)))
    count = len(upto)
    return [int(np.searchsorted(upto, (n + u) / count, side="right")) for n in range(count)]


@both_backends
@pytest.mark.parametrize("scaled", [False, True], ids=["unit-mass", "diagonal-mass"])
def test_a_temperature_is_the_written_one(backend: str, scaled: bool) -> None:
    """Weigh, resample some, jitter the step, move twice and once: by hand, noise included."""
    how: dict[str, Any] = {"chains": 9, "latent_size": 3, "observations": 3, "dtype": F64}
    state = smc.init(MIXED, seed=5, observation_ids=[4, 0, 7], backend=backend, **how)
    choice = Choice(
        active=torch.tensor([True, True, False]),
        kept=torch.full((3,), 0.5, dtype=F64),
        beta=torch.tensor([0.4, 0.03, 0.0], dtype=F64),
        resampled=torch.tensor([False, True, False]),
        step_size=torch.tensor([0.3, 0.2, 0.1], dtype=F64),
        inverse_mass=normal(3, 3, seed=2).abs() + 0.5 if scaled else None,
        stiff=None,
        moves=torch.tensor([2, 1, 0]),
        leapfrog_steps=3,
        hmc_steps=2,
    )
    annealing = Annealing(rule=TuningRule(jitter=0.2))
    after, info = smc.step(state, MIXED, annealing, choice=choice, backend=backend)
    logs = -choice.beta[:, None] * state.hmc.energy
    u = uniforms(state.hmc.stream, Purpose.RESAMPLE, 1, F64)
    ancestors = torch.arange(9).repeat(3, 1)
    ancestors[1] = torch.tensor(systematic_by_hand(logs[1].numpy(), u[1].item()))
    assert 1 < len(ancestors[1].unique()) < 9
    assert torch.equal(info.ancestors, ancestors)
    rows = torch.arange(3)[:, None]
    chains = HMCState(
        state.hmc.latents[rows, ancestors],
        state.hmc.energy[rows, ancestors],
        state.hmc.grad[rows, ancestors],
        state.hmc.stream,  # noise stays with the place, not with the state
    )
    accepted = []
    for moving in ([True, True, False], [True, False, False]):
        turn = 2.0 * uniforms(chains.stream, Purpose.JITTER, 1, F64)[:, 0] - 1.0
        chains, moved = hmc.step(
            chains,
            MIXED,
            beta=choice.beta,
            step_size=choice.step_size * (1.0 + 0.2 * turn),
            leapfrog_steps=3,
            inverse_mass=choice.inverse_mass,
            active=torch.tensor(moving),
            backend=backend,
        )
        accepted.append(moved.acceptance_probability.mean(-1))
    acceptance = torch.stack([0.5 * (accepted[0] + accepted[1])[0], accepted[0][1]])
    torch.testing.assert_close(after.hmc.latents, chains.latents, **ROUNDING)
    torch.testing.assert_close(after.hmc.energy, chains.energy, **ROUNDING)
    torch.testing.assert_close(after.hmc.grad, chains.grad, **ROUNDING)
    torch.testing.assert_close(info.acceptance[:2], acceptance, **ROUNDING)
    assert info.acceptance[2].isnan()
    assert info.energy[2].isnan() and info.energy_std[2].isnan()
    assert after.hmc.stream.transition.tolist() == [2, 1, 0]
    assert torch.equal(after.hmc.stream.observation, torch.tensor([4, 0, 7]))
    even = torch.logsumexp(logs[1], 0) - math.log(9)
    torch.testing.assert_close(after.log_weights[0], logs[0], **ROUNDING)
    torch.testing.assert_close(after.log_weights[1], even.expand(9), **ROUNDING)
    assert torch.equal(after.log_weights[2], state.log_weights[2])
    assert torch.equal(after.roots, ancestors)
    assert after.resamplings.tolist() == [0, 1, 0]
    assert after.spent == state.spent + 6  # a clock for all
    # Given choices tune nothing.
    assert torch.equal(after.curvature, state.curvature)
    for name in ("log_length", "memory"):
        assert torch.equal(getattr(after.tuning, name), getattr(state.tuning, name))


def test_copies_of_one_particle_part_in_their_first_move() -> None:
    state = smc.init(MIXED, chains=9, latent_size=3, observations=3, dtype=F64)
    heir = state.hmc.energy.argmin(-1)
    choice = smc.choose(state, Annealing(kept=0.5), _ops())
    one = torch.full((3,), 1e3, dtype=F64)  # so large a step leaves one with all the weight
    choice = dataclasses.replace(
        choice, beta=one, resampled=torch.ones(3, dtype=torch.bool), step_size=0.01 / one.sqrt()
    )
    after, info = smc.step(state, MIXED, Annealing(), choice=choice)
    assert torch.equal(info.ancestors, heir[:, None].expand(-1, 9))
    assert info.acceptance.min() > 0.9
    for b in range(3):
        assert len(after.hmc.latents[b].unique(dim=0)) >= 7


def test_roots_follow_ancestors() -> None:
    target = LinearGaussian(sigma=0.05)
    run = sample(target, chains=40, observations=2, keep_trace=True)
    roots = torch.arange(40).expand(2, -1)
    for info in run.infos:
        roots = roots.gather(1, info.ancestors)
    assert torch.equal(run.state.roots, roots)
    counts = [len(set(row)) for row in roots.tolist()]
    assert surviving_roots(run.state.roots).tolist() == counts
    assert max(counts) < 30


# --- who moves ------------------------------------------------------------------------------------


def everything(state: SMCState, row: int) -> dict[str, Tensor]:
    """All that a state says of one observation, by name."""
    found = {f"hmc.{name}": getattr(state.hmc, name)[row] for name in ("latents", "energy", "grad")}
    found["hmc.stream.transition"] = state.hmc.stream.transition[row]
    for prefix, part in (("", state.tuning), ("spread.", state.spread)):
        if part is not None:
            for field in dataclasses.fields(part):
                found[prefix + field.name] = getattr(part, field.name)[row]
    for field in dataclasses.fields(SMCState):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            found[field.name] = value[row]
    return found


def changed_when_finished(states: list[SMCState]) -> tuple[set[str], int]:
    """What changes of an observation once it is finished, and over how many temperatures."""
    changed: set[str] = set()
    watched = 0
    for before, after in itertools.pairwise(states):
        for row in before.finished.nonzero().flatten().tolist():
            old, new = everything(before, row), everything(after, row)
            changed |= {
                name
                for name in old
                if not torch.equal(old[name].nan_to_num(), new[name].nan_to_num())
            }
            watched += 1
    return changed, watched


@pytest.mark.parametrize("alone", [False, True], ids=["population", "lone-chains"])
def test_finished_observations_stand_still_to_the_last_bit(alone: bool) -> None:
    states = recorded(MIXED, observations=3, alone=alone, chains=4 if alone else 16)
    changed, watched = changed_when_finished(states)
    assert watched >= 5
    assert changed == set()
    assert states[-1].finished.all()
    transitions = states[-1].hmc.stream.transition
    assert transitions[0] < transitions[2]


PACES = {
    "all-fixed": Annealing(kept=0.6, leapfrog_steps=4, hmc_steps=2),
    "tuned-moves": Annealing(kept=0.6, leapfrog_steps=4),
}


@both_backends
@all_masses
@pytest.mark.parametrize("pace_name", PACES)
def test_an_observation_does_not_depend_on_its_batch_mates(
    backend: str, mass: str, pace_name: str
) -> None:
    # Where L is fixed and there is no budget: these are common to all.
    annealing = dataclasses.replace(PACES[pace_name], mass=mass)
    common: dict[str, Any] = {"seed": 11, "backend": backend}
    together = sample(MIXED, annealing, observations=3, observation_ids=[5, 0, 9], **common)
    for row, identity in enumerate([5, 0, 9]):
        alone = sample(MIXED.rows([row]), annealing, observation_ids=[identity], **common)
        mine, theirs = everything(alone.state, 0), everything(together.state, row)
        for name, value in mine.items():
            torch.testing.assert_close(
                value, theirs[name], rtol=1e-11, atol=1e-12, equal_nan=True, msg=name
            )
        length = len(alone.infos)
        for info, theirs_info in zip(alone.infos, together.infos, strict=False):
            for name in ("beta", "kept", "step_size"):
                ours, other = (getattr(i.choice, name) for i in (info, theirs_info))
                torch.testing.assert_close(ours[0], other[row], rtol=1e-11, atol=0)
            assert info.choice.moves[0] == theirs_info.choice.moves[row]
        assert all(not info.choice.active[row] for info in together.infos[length:])
    assert len(together.infos) > 8
    different = [len(set(i.choice.moves[i.choice.active].tolist())) > 1 for i in together.infos]
    assert any(different) == (pace_name == "tuned-moves")
    other = sample(MIXED.rows([0]), annealing, observation_ids=[6], **common)
    assert (other.state.hmc.latents[0] - together.state.hmc.latents[0]).abs().max() > 0.01


@all_masses
def test_backends_agree_over_a_few_temperatures(mass: str) -> None:
    # In float64; later rounding grows with the moves.
    target = LinearGaussian(sigma=0.3)
    states = []
    for backend in ("reference", "native"):
        how: dict[str, Any] = {"chains": 16, "latent_size": 3, "observations": 2, "dtype": F64}
        state = smc.init(target, seed=8, backend=backend, **how)
        for _ in range(3):
            annealing = Annealing(kept=0.6, mass=mass)
            state, _ = smc.step(state, target, annealing, backend=backend)
        states.append(state)
    for row in (0, 1):
        first, second = (everything(state, row) for state in states)
        for name, value in first.items():
            torch.testing.assert_close(
                value, second[name], rtol=1e-9, atol=1e-11, equal_nan=True, msg=name
            )
    assert (states[0].beta > 0.1).all()


@all_masses
def test_a_step_leaves_the_given_state_as_it_is(mass: str) -> None:
    target = LinearGaussian()
    state = smc.init(target, chains=16, latent_size=3, observations=2, dtype=F64)
    before = [{k: v.clone() for k, v in everything(state, row).items()} for row in (0, 1)]
    first, _ = smc.step(state, target, Annealing(mass=mass))
    again, _ = smc.step(state, target, Annealing(mass=mass))
    for row in (0, 1):
        for name, value in everything(state, row).items():
            assert torch.equal(value, before[row][name]), name
    assert torch.equal(first.hmc.latents, again.hmc.latents)


def test_steps_of_ones_own_are_a_run_and_a_run_goes_on_where_another_ended() -> None:
    target, annealing = LinearGaussian(), Annealing(kept=0.6)
    state = smc.init(target, chains=16, latent_size=3, dtype=F64, seed=3)
    runs: list[Run] = []
    whole = sample(target, annealing, on_step=runs.append)
    for info in whole.infos:
        state, mine = smc.step(state, target, annealing)
        assert torch.equal(mine.choice.beta, info.choice.beta)
    assert state.finished.all()
    assert torch.equal(state.hmc.latents, whole.state.hmc.latents)
    assert [len(run.infos) for run in runs] == list(range(1, len(whole.infos) + 1))
    assert not runs[2].done
    resumed = smc.run(target, annealing, start=runs[2])
    assert resumed.done
    assert torch.equal(resumed.state.hmc.latents, whole.state.hmc.latents)
    assert torch.equal(resumed.state.log_weights, whole.state.log_weights)
    assert len(resumed.infos) == len(whole.infos)


@pytest.mark.parametrize("mass", ["low-rank", "diagonal"])
def test_float32_latents_keep_float64_weights(mass: str) -> None:
    run = sample(LinearGaussian(), dtype=torch.float32, annealing=Annealing(mass=mass))
    assert run.state.curvature.dtype is F64
    assert run.state.hmc.latents.dtype is torch.float32
    assert run.state.log_weights.dtype is F64
    assert run.infos[0].choice.inverse_mass is not None
    assert run.infos[0].choice.inverse_mass.dtype is torch.float32


@pytest.mark.parametrize("annealing", [Annealing(), Annealing(hmc_steps=3, leapfrog_steps=5)])
def test_every_gradient_is_counted(annealing: Annealing) -> None:
    target = LinearGaussian(sigma=0.1)
    calls: list[int] = []
    run = sample(target, annealing, on_step=lambda _: calls.append(target.calls))
    # One at the start, then M L with one L at each temperature.
    each = [i.choice.leapfrog_steps * i.choice.hmc_steps for i in run.infos]
    assert calls == (1 + np.cumsum(each)).tolist()
    assert run.state.spent == target.calls
    energy, _ = target.energy_and_grad(run.state.hmc.latents)
    torch.testing.assert_close(run.state.hmc.energy, energy, **ROUNDING)


def test_whoever_moves_costs_a_gradient_of_all() -> None:
    states: list[SMCState] = []
    target = MIXED.rows([0, 1, 2])
    run = sample(target, observations=3, on_step=lambda run: states.append(run.state))
    spent, moved = 1, torch.zeros(3, dtype=torch.int64)
    for state, info in zip(states, run.infos, strict=True):
        moves = info.choice.moves
        assert moves.dtype is torch.int64
        assert (moves[~info.choice.active] == 0).all()
        assert info.choice.hmc_steps == int(moves.max())
        spent, moved = spent + info.choice.leapfrog_steps * info.choice.hmc_steps, moved + moves
        assert state.spent == spent
        assert torch.equal(state.hmc.stream.transition, moved)
    assert target.calls == spent
    assert len(set(moved.tolist())) == 3


def test_proposals_that_are_not_finite_are_counted_and_stay_out() -> None:
    class Cliff(LinearGaussian):
        def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
            energy, grad = super().energy_and_grad(z)
            beyond = z[..., 0] > 2.5
            if self.calls == 1:
                beyond &= False  # prior draws may start there
            return torch.where(beyond, torch.nan, energy), grad

    run = sample(Cliff(), chains=200, annealing=Annealing(hmc_steps=2))
    assert int(run.state.non_finite.sum()) > 0
    for name, value in everything(run.state, 0).items():
        assert value.double().isfinite().all(), name


# --- estimates over many populations --------------------------------------------------------------


@all_masses
def test_the_same_choices_under_the_same_seed_are_the_same_run(mass: str) -> None:
    target, annealing = LinearGaussian(sigma=0.2), Annealing(hmc_steps=1, mass=mass)
    pilot = sample(target, annealing, observations=3)
    again = sample(target, annealing, observations=3, repeats=pilot.choices)
    assert again.done
    for row in range(3):
        mine, theirs = everything(pilot.state, row), everything(again.state, row)
        for name in ("hmc.latents", "hmc.energy", "log_weights", "roots", "variance", "beta"):
            assert torch.equal(mine[name].nan_to_num(), theirs[name].nan_to_num()), name
    assert again.state.spent == pilot.state.spent


@all_masses
@pytest.mark.parametrize("moves", [3, None], ids=["three-moves", "tuned-moves"])
def test_repeats_are_made_of_the_same_choices(mass: str, moves: int | None) -> None:
    # Where a temperature has several moves, a repetition makes all with the last one's step size,
    # and a repetition of the repetition is the same to the last bit.
    annealing = Annealing(hmc_steps=moves, mass=mass)
    how: dict[str, Any] = {"target": MIXED, "annealing": annealing, "observations": 3}
    pilot = sample(**how)
    first = sample(**how, repeats=pilot.choices)
    second = sample(**how, repeats=first.choices)
    other = sample(**how, repeats=pilot.choices, seed=4)
    assert torch.equal(first.state.hmc.latents, second.state.hmc.latents)
    assert torch.equal(first.state.log_weights, second.state.log_weights)
    assert (other.state.hmc.latents != first.state.hmc.latents).any(-1).all()
    for each in (first, second, other):
        for mine, theirs in zip(each.choices, pilot.choices, strict=True):
            for name in ("active", "beta", "resampled", "kept", "moves"):
                assert torch.equal(getattr(mine, name), getattr(theirs, name)), name
            assert mine.stiff is theirs.stiff
            assert mine.inverse_mass is theirs.inverse_mass
            torch.testing.assert_close(mine.step_size, theirs.step_size, rtol=1e-14, atol=0)
            assert mine.hmc_steps == theirs.hmc_steps


@dataclasses.dataclass(frozen=True)
class Many:
    """A pilot of B populations and its repetition under another seed."""

    target: LinearGaussian
    pilot: Run
    again: Run

    def ratios(self) -> Tensor:
        """Estimated over exact normaliser, ``(B,)``, of the repetition."""
        logs = log_mean_weight(self.again.state.log_weights) - self.target.log_normaliser()
        return logs.exp()


def many(populations: int, chains: int, annealing: Annealing, **model: Any) -> Many:
    target = LinearGaussian(**model)
    how: dict[str, Any] = {"chains": chains, "observations": populations}
    how["latent_size"] = target.a.shape[1]
    pilot = sample(target, annealing, seed=1, **how)
    again = sample(target, annealing, seed=2, repeats=pilot.choices, **how)
    return Many(target, pilot, again)


@pytest.fixture(scope="module")
def usual() -> Many:
    """1,500 populations of 32 with every default."""
    return many(1500, 32, Annealing())


@pytest.fixture(scope="module")
def plain() -> Many:
    """As many of unit mass."""
    return many(1500, 32, Annealing(mass="identity"))


@pytest.fixture(scope="module")
def scaled() -> Many:
    """As many with the population's variances for a mass."""
    return many(1500, 32, Annealing(mass="diagonal"))


@pytest.fixture(scope="module")
def turned() -> Many:
    """600 populations of 32 in a basis turned to two of six directions."""
    return many(600, 32, Annealing(kept=0.7), d=6, measured=3)


@pytest.fixture(scope="module")
def fine() -> Many:
    """500 populations of 64 in small steps, often resampled."""
    return many(500, 64, Annealing(kept=0.9, resample_below=0.9))


def assert_mean(values: Tensor, expected: float, errors: float = 4.0) -> None:
    """Independent values: their mean within ``errors`` standard errors."""
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean().item() - expected) <= errors * error


@pytest.mark.parametrize("setting", ["usual", "plain", "scaled", "turned", "fine"])
def test_a_repetition_estimates_the_normaliser_without_bias(
    setting: str, request: pytest.FixtureRequest
) -> None:
    found: Many = request.getfixturevalue(setting)
    ratios = found.ratios()
    assert_mean(ratios, 1.0)
    assert ratios.std() / math.sqrt(len(ratios)) < 0.02  # the bound says something
    assert found.again.state.resamplings.double().mean() > 1.5


@pytest.mark.parametrize("setting", ["usual", "plain", "scaled", "turned", "fine"])
def test_populations_weighted_by_their_normalisers_have_the_posterior_moments(
    setting: str, request: pytest.FixtureRequest
) -> None:
    # Estimate of the normaliser times a population's mean of f is unbiased for the exact product
    # (Del Moral 2004, theorem 7.4.2), however small the populations; the ratio's standard error is
    # by the delta method, over populations.
    found: Many = request.getfixturevalue(setting)
    mean, covariance = found.target.posterior()
    centred = found.again.state.hmc.latents - mean
    pairs = (centred[..., :, None] * centred[..., None, :]).flatten(2)
    values = torch.cat([centred, pairs], -1).mean(1)
    expected = torch.cat([torch.zeros_like(mean), covariance.flatten()])
    share = found.ratios() / found.ratios().sum()
    average = (share[:, None] * values).sum(0)
    errors = (share[:, None] ** 2 * (values - average) ** 2).sum(0).sqrt()
    assert ((average - expected).abs() <= 4.0 * errors).all()
    assert (errors[: len(mean)] < 0.1 * covariance.diagonal().sqrt()).all()


@both_backends
@all_masses
def test_large_populations_have_the_posterior_moments(backend: str, mass: str) -> None:
    # As they stand, of a run that tunes itself: 40 populations, whose means are independent. The
    # bias of a population of N is of order 1 / N, well below these errors.
    target = LinearGaussian(sigma=0.2)
    annealing = Annealing(mass=mass)
    run = sample(target, annealing, chains=1000, observations=40, backend=backend)
    mean, covariance = target.posterior()
    centred = run.state.hmc.latents - mean
    pairs = (centred[..., :, None] * centred[..., None, :]).flatten(2)
    values = torch.cat([centred, pairs], -1).mean(1)
    expected = torch.cat([torch.zeros_like(mean), covariance.flatten()])
    errors = values.std(0) / math.sqrt(40)
    assert ((values.mean(0) - expected).abs() <= 5.0 * errors).all()
    assert (errors[:3] < 0.05 * covariance.diagonal().sqrt()).all()


@all_masses
@pytest.mark.parametrize("sigma", [1.0, 0.3, 0.1, 0.03, 0.01], ids=lambda s: f"noise-{s:g}")
def test_any_noise_level_without_another_setting(sigma: float, mass: str) -> None:
    target = LinearGaussian(sigma=sigma)
    run = sample(target, Annealing(mass=mass), chains=400, observations=25, seed=6)
    mean, covariance = target.posterior()
    # In coordinates that make the posterior a standard normal: sharp and wide directions alike.
    root = torch.linalg.cholesky(torch.linalg.inv(covariance))
    z = (run.state.hmc.latents - mean) @ root
    values = torch.cat([z, z**2], -1).mean(1)
    expected = torch.tensor([0.0] * 3 + [1.0] * 3, dtype=F64)
    errors = values.std(0) / math.sqrt(25)
    assert ((values.mean(0) - expected).abs() <= 5.0 * errors).all()
    assert not run.state.jumped.any()


def test_without_relatives_the_variance_is_that_of_a_mean() -> None:
    w = torch.tensor([[1.0, 2.0, 3.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0]], dtype=F64)
    relative = w.var(-1) / 5.0 / w.mean(-1) ** 2
    for level in (0.0, -900.0):
        found = genealogical_variance(w.log() + level, torch.arange(5).repeat(2, 1))
        torch.testing.assert_close(found, relative, rtol=1e-12, atol=1e-15)


def test_even_weights_of_any_number_have_no_error() -> None:
    for n in range(4, 300):
        found = genealogical_variance(torch.zeros(1, n, dtype=F64), torch.arange(n)[None])
        assert found.item() == pytest.approx(0.0, abs=1e-14), n


def test_relatives_count_as_one() -> None:
    # Six particles of five roots, whose shares are 2, 3, 3, 2, 2 and 0 of 12: the variance of the
    # mean of these six.
    logs = torch.tensor([[1.0, 1.0, 3.0, 3.0, 2.0, 2.0]], dtype=F64).log() - 50.0
    shares = torch.tensor([2.0, 3.0, 3.0, 2.0, 2.0, 0.0], dtype=F64)
    found = genealogical_variance(logs, torch.tensor([[5, 5, 0, 2, 3, 4]]))
    assert found.item() == pytest.approx(float(shares.var() / 6.0 / shares.mean() ** 2), rel=1e-12)
    apart = genealogical_variance(logs, torch.arange(6)[None])
    assert 0.0 < apart.item() < found.item()


@pytest.mark.parametrize(("families", "known"), [(1, False), (3, False), (4, True), (16, True)])
def test_four_roots_are_the_fewest_that_tell(families: int, known: bool) -> None:
    logs = normal(1, 16, seed=1) * 1e-3
    if families == 4:
        logs = torch.zeros(1, 16, dtype=F64)  # exactly a quarter each
    found = genealogical_variance(logs, torch.arange(16)[None] % families)
    assert bool(found.isfinite()) == known


@all_masses
def test_the_genealogy_tells_the_error_where_nothing_was_resampled_on_the_way(mass: str) -> None:
    # Then the estimate of the variance is unbiased in this sense: E[Z^2 V] = Var(Z). Of 800
    # populations of 64, one or none has a quarter of its weight on one particle.
    found = many(800, 128, Annealing(resample_below=1e-9, mass=mass))
    assert (found.again.state.resamplings == 1).all()  # at the end, after the variance was taken
    assert_variance_told(found.ratios(), found.again.state.variance, 0.0, 0.0)


def assert_variance_told(ratios: Tensor, variance: Tensor, below: float, above: float) -> None:
    """``E[Z^2 V]`` from ``(1 - below) Var(Z)`` to ``(1 + above) Var(Z)``, to 4 standard errors."""
    assert variance.isfinite().all()
    squares, told = (ratios - 1.0) ** 2, ratios**2 * variance
    for room in (told - (1.0 - below) * squares, (1.0 + above) * squares - told):
        assert room.mean() >= -4.0 * room.std() / math.sqrt(len(room))


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_the_genealogy_never_promises_less_than_the_error(kept: float) -> None:
    # Systematic resampling errs less than multinomial, so that the estimate may be too large.
    found = many(500, 128, Annealing(kept=kept, resample_below=0.7))
    assert found.again.state.resamplings.double().mean() > 2.0
    assert_variance_told(found.ratios(), found.again.state.variance, 0.0, 1.5)


# --- budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annealing", "how"),
    [
        (Annealing(), {}),
        (Annealing(mass="diagonal"), {"observations": 3}),
        (Annealing(mass="identity", hmc_steps=3), {"observations": 3}),
        (Annealing(leapfrog_steps=1), {"observations": 3}),
        (Annealing(leapfrog_steps=5, hmc_steps=2), {}),
        (Annealing(leapfrog_steps=40), {}),
        (Annealing(kept=0.9), {"chains": 3, "alone": True}),
    ],
    ids=[
        "tuned", "three-observations", "three-moves", "one-step", "five-steps-twice",
        "forty-steps", "lone",
    ],
)  # fmt: skip
def test_a_budget_is_kept_and_the_posterior_reached(
    annealing: Annealing, how: dict[str, Any]
) -> None:
    least = 6 if "alone" in how else 1  # lone chains draw 16 starts between the three of them
    every = annealing == Annealing() and not how
    for budget in range(least, 301) if every else (*range(least, 25), *range(25, 301, 25), 97, 211):
        target = MIXED.rows([0, 1, 2] if "observations" in how else [1])
        run = sample(target, dataclasses.replace(annealing, budget=budget), **how)
        starts = target.calls - run.state.spent
        assert starts == (-5 if "alone" in how else 0)  # one call for six gradients a chain
        assert run.state.spent <= budget
        assert (run.state.beta == 1.0).all()
        assert run.state.finished.all()
        assert (run.state.rounds >= 1).all()
        lengths = {info.choice.leapfrog_steps for info in run.infos if info.choice.hmc_steps}
        if annealing.leapfrog_steps is None:
            assert lengths <= {*LADDER, 1, 2, 3}  # less than the ladder with the last few only
        else:
            assert max(lengths, default=0) <= annealing.leapfrog_steps


def test_what_is_affordable_fits_and_leaves_something_for_the_posterior() -> None:
    travels = (0.0, 0.3, 2.0, 8.3, 40.0)
    cases = itertools.product((None, 1, 5, 24), range(301), travels, (1, 3, 8), (8.0, 1.0, 0.0))
    for fixed, remaining, travel, moves, rounds in cases:
        annealing = Annealing(leapfrog_steps=fixed)
        plan = pace._Plan(remaining, travel, rounds)
        for length in LADDER if fixed is None else (fixed,):
            count, made, steps = pace._fit(plan, length, moves, annealing)
            assert 0 <= made <= moves
            assert 1 <= count <= length
            assert count * made <= remaining
            assert made > 0 or remaining < (fixed or 1)
            # A step that does not end the way leaves one more trajectory at least, as does any
            # where all rounds are missing.
            if travel > 0.0 and steps > (0.0 if rounds == 8.0 else 1.0):
                assert remaining - count * made >= count
            # Nobody jumps who has a trajectory for the way and two for the end.
            assert steps > 0.0 or travel == 0.0 or remaining < 3 * (fixed or 4)


@all_masses
def test_short_budgets_say_that_they_jumped(mass: str) -> None:
    for budget, jumped in ((1, True), (8, True), (400, False)):
        run = sample(MIXED.rows([1]), Annealing(budget=budget, mass=mass))
        assert run.state.jumped.tolist() == [jumped]
    # From 0.6 sqrt(3 / 2) for ten e-folds, and two of the trajectories at the end: 1.75 steps are
    # a jump for all, 5.75 are not yet. Of three observations, the mild one arrives without.
    for budget, jumps in ((16, [True, True, True]), (32, [False, False, True])):
        annealing = Annealing(budget=budget, leapfrog_steps=4, mass=mass)
        run = sample(MIXED, annealing, observations=3)
        first = math.exp(-((6.0 * math.sqrt(1.5) / ((budget - 1) / 4 - 2)) ** 2))
        assert run.infos[0].choice.kept.tolist() == pytest.approx([first] * 3, rel=1e-12)
        assert run.state.jumped.tolist() == jumps
        moving = torch.ones(3, dtype=torch.bool)
        forced = torch.zeros(3, dtype=torch.bool)
        for info in run.infos:
            forced |= moving & (info.choice.kept < 0.1)
            moving = info.choice.beta < 1.0
        assert torch.equal(run.state.jumped, forced)
    assert not sample(MIXED, Annealing(mass=mass), observations=3).state.jumped.any()


def test_a_small_share_that_was_asked_for_is_no_jump() -> None:
    assert pace.least_kept(Annealing()) == 0.1
    assert pace.least_kept(Annealing(kept=0.1)) == pytest.approx(0.1)
    assert pace.least_kept(Annealing(kept=0.02)) == pytest.approx(0.02)
    for budget in (None, 10**6):
        run = sample(MIXED, Annealing(kept=0.08, budget=budget), observations=3)
        assert not run.state.jumped.any()
    assert (run.state.sharpness[1:] > 0.0).all()  # such steps teach something too
    assert sample(MIXED, Annealing(kept=0.08, budget=8), observations=3).state.jumped.all()


def test_more_budget_means_smaller_steps_then_more_moves() -> None:
    kept, moves = [], []
    for budget in (10, 20, 40, 80, 160, 320, 640, 10**6):
        annealing = Annealing(budget=budget, leapfrog_steps=4)
        state = smc.init(MIXED.rows([2]), chains=16, latent_size=3, dtype=F64, seed=3)
        forgetful = dataclasses.replace(state.tuning, memory=0.9 + 0.0 * state.beta)
        state = dataclasses.replace(state, tuning=forgetful)
        choice = smc.choose(state, annealing, _ops())
        kept.append(choice.kept.item())
        moves.append(choice.hmc_steps)
    assert kept == sorted(kept)
    assert moves == sorted(moves)
    assert kept[0] == 0.0
    assert kept[-1] == 0.5
    assert moves[0] == 1
    assert moves[-1] == 7
    assert moves[kept.index(0.5) - 1] == 1  # steps first, then moves
    how: dict[str, Any] = {"target": MIXED.rows([2])}
    free, ample = sample(**how), sample(**how, annealing=Annealing(budget=10**6))
    assert torch.equal(free.state.hmc.latents, ample.state.hmc.latents)


STEP = math.sqrt(math.log(2.0))  # of the energies' deviation, that keeps half
FITS: dict[str, tuple[int, float, int, int, int, int | None, tuple[int, int, float]]] = {
    # remaining, travel, L, M, rounds missing, fixed L: 10 steps of the asked share and 5 rounds at
    # the end.
    "all-affordable": (8 * 15 * 3, 10 * STEP, 8, 3, 5, None, (8, 3, 10.0)),
    "not-all-moves": (8 * 15 * 3 - 1, 10 * STEP, 8, 3, 5, None, (8, 2, 10.0)),
    "one-move": (8 * 15, 10 * STEP, 8, 3, 5, None, (8, 1, 10.0)),
    "larger-steps": (8 * 15 - 1, 10 * STEP, 8, 3, 5, None, (8, 1, 119 / 8 - 2)),
    # exp(-log 2 (10 / s)^2) >= 0.3 to s = 7.588, so from 76.7 gradients on.
    "largest-steps": (77, 10 * STEP, 8, 3, 5, None, (8, 1, 77 / 8 - 2)),
    "shorter": (76, 10 * STEP, 8, 3, 5, None, (4, 1, 76 / 4 - 2)),
    "shorter-if-it-may": (76, 10 * STEP, 8, 3, 5, 8, (8, 1, 76 / 8 - 2)),
    # 0.1 is kept to s = 5.487.
    "too-large-steps": (30, 10 * STEP, 8, 3, 5, None, (4, 1, 30 / 4 - 2)),
    "anything-below": (27, 10 * STEP, 8, 3, 5, None, (8, 1, 27 / 8 - 2)),
    "a-single-step": (12, 10 * STEP, 8, 3, 5, None, (4, 1, 1.0)),
    "a-jump": (11, 10 * STEP, 8, 3, 5, None, (8, 1, 0.0)),
    "a-short-jump": (7, 10 * STEP, 8, 3, 5, None, (4, 1, 0.0)),
    "three-left": (3, 10 * STEP, 8, 3, 5, None, (3, 1, 0.0)),
    "one-left": (1, 10 * STEP, 8, 3, 5, None, (1, 1, 0.0)),
    "nothing-left": (0, 10 * STEP, 8, 3, 5, None, (1, 0, 0.0)),
    "too-little-left": (7, 10 * STEP, 8, 3, 5, 8, (1, 0, 0.0)),
    "at-the-end": (8 * 5 * 3, 0.0, 8, 3, 5, None, (8, 3, 0.0)),
    # Only the rounds still missing need gradients; there is one at least.
    "two-rounds-missing": (8 * 2 * 3, 0.0, 8, 3, 2, None, (8, 3, 0.0)),
    "not-for-all-their-moves": (8 * 2 * 3 - 1, 0.0, 8, 3, 2, None, (8, 2, 0.0)),
    "the-last-round": (8 * 3, 0.0, 8, 3, 1, None, (8, 3, 0.0)),
    "a-round-too-many": (8 * 3, 0.0, 8, 3, 0, None, (8, 3, 0.0)),
}


@pytest.mark.parametrize("name", FITS)
def test_what_fits_into_a_budget_by_hand(name: str) -> None:
    remaining, travel, length, moves, rounds, fixed, expected = FITS[name]
    annealing = Annealing(leapfrog_steps=fixed, final_rounds=9)
    found = pace._fit(pace._Plan(remaining, travel, rounds), length, moves, annealing)
    assert found[:2] == expected[:2]
    assert found[2] == pytest.approx(expected[2], rel=1e-12, abs=1e-12)


def test_the_share_that_steps_keep_by_hand() -> None:
    assert pace._kept(0.0, 3.0) == 1.0
    assert pace._kept(0.0, 0.0) == 1.0
    assert pace._kept(5.0, 0.0) == 0.0
    assert pace._kept(10 * STEP, 10.0) == pytest.approx(0.5, rel=1e-12)


def test_the_way_to_the_posterior_by_hand() -> None:
    def travel(beta: float, sharpness: float) -> float:
        return pace._travel(pace._Row(True, 0.0, 0.5, beta, sharpness, 0.0), 8)

    assert travel(1.0, 3.0) == 0.0
    assert travel(math.exp(-2.0), 3.0) == pytest.approx(6.0)  # known: 3 steps an e-fold
    floor = 0.6 * 2.0  # sqrt(8 / 2), nearly
    assert travel(math.exp(-2.0), 0.0) == pytest.approx(2.0 * floor)
    assert travel(math.exp(-2.0), 0.1) == pytest.approx(2.0 * floor)
    assert travel(0.0, 3.0) == pytest.approx(30.0)  # ten e-folds before one is known


def standing(**changes: Any) -> Standing:
    tuned = Tuning(
        torch.tensor([0.1, 0.05, 0.9], dtype=F64).log(),
        torch.tensor([1.6, 0.2, 0.9], dtype=F64).log(),
        torch.tensor([0.8, 0.6, 0.99], dtype=F64),
    )
    values: dict[str, Any] = {
        "active": torch.tensor([True, True, False]),
        "beta": torch.tensor([0.1, 0.5, 1.0], dtype=F64),
        "sharpness": torch.zeros(3, dtype=F64),
        "rounds": torch.tensor([0, 0, 8]),
        "tuning": tuned,
        "size": 8,
        "spent": 10,
    }
    return Standing(**values | changes)


def test_the_pace_is_chosen_by_those_that_move() -> None:
    # Ratios 16 and 4 (1 for the one that stands still): 8. Memories 0.8 and 0.6: 0.8^4 and 0.6^2
    # are the first below a half.
    chosen = pace.choose(standing(), Annealing(kept=0.7))
    assert (chosen.leapfrog_steps, chosen.hmc_steps) == (8, 4)
    assert chosen.moves.tolist() == [4, 2, 0]
    assert chosen.moves.dtype is torch.int64
    assert chosen.kept.tolist() == [0.7, 0.7, 0.7]
    fixed = pace.choose(standing(), Annealing(leapfrog_steps=6, hmc_steps=5))
    assert (fixed.leapfrog_steps, fixed.hmc_steps) == (6, 5)
    assert fixed.moves.tolist() == [5, 5, 0]


# Ways of 0.6 sqrt(8 / 2) times log 10 and log 2; the finished one is not on its way.
WAYS = [1.2 * math.log(10.0), 1.2 * math.log(2.0)]


def test_steps_are_planned_for_the_one_farthest_off() -> None:
    annealing = Annealing(kept=0.9, budget=10 + 60)
    chosen = pace.choose(standing(), annealing)
    steps = 60 / 8 - 2.0
    assert WAYS[0] / math.sqrt(-math.log(0.9)) > steps
    assert (chosen.leapfrog_steps, chosen.moves.tolist()) == (8, [1, 1, 0])
    expected = [min(0.9, math.exp(-((way / steps) ** 2))) for way in WAYS]
    assert chosen.kept[:2].tolist() == pytest.approx(expected, rel=1e-12)
    assert expected[0] < 0.9


def test_moves_within_a_budget_are_common() -> None:
    # By the mean of the memories, 0.7: two moves, where 8.5 steps of the farthest and 8 rounds of
    # 2 L = 16 gradients are affordable.
    least = math.ceil(16.0 * (WAYS[0] / math.sqrt(-math.log(0.9)) + 8.0))
    assert least == 265
    for left, moves in ((10**6, 2), (265, 2), (264, 1)):
        chosen = pace.choose(standing(), Annealing(kept=0.9, budget=10 + left))
        assert (chosen.leapfrog_steps, chosen.moves.tolist()) == (8, [moves, moves, 0])
        assert chosen.kept[:2].tolist() == [0.9, 0.9]
        assert chosen.hmc_steps == moves


def test_rounds_are_planned_for_the_one_with_most_missing() -> None:
    # At the end: 8 - 3 rounds of 2 L = 16 gradients; the finished one's 8 do not count.
    there: dict[str, Any] = {"beta": torch.ones(3, dtype=F64), "rounds": torch.tensor([3, 6, 8])}
    for left, moves in ((80, 2), (79, 1), (40, 1)):
        chosen = pace.choose(standing(**there), Annealing(budget=10 + left))
        assert (chosen.leapfrog_steps, chosen.moves.tolist()) == (8, [moves, moves, 0])
    # With one more made they are four.
    there["rounds"] = torch.tensor([4, 6, 8])
    assert pace.choose(standing(**there), Annealing(budget=10 + 64)).moves.tolist() == [2, 2, 0]


# --- chains that are no population ----------------------------------------------------------------


@both_backends
def test_lone_chains_follow_their_own_energies(backend: str) -> None:
    target, annealing = LinearGaussian(sigma=0.2), Annealing(kept=0.8, hmc_steps=1)
    how: dict[str, Any] = {"latent_size": 3, "observations": 2, "dtype": F64, "seed": 3}
    run = smc.run(target, annealing, chains=3, alone=True, keep_trace=True, backend=backend, **how)
    assert run.trace is not None
    drawn = hmc.init(target, chains=16, backend=backend, **how)
    assert torch.equal(run.trace[0], drawn.latents[:, :3])
    mean = drawn.energy[:, :3].numpy()
    variance = drawn.energy.numpy().var(-1, ddof=1, keepdims=True).repeat(3, -1)
    c, beta = math.sqrt(-math.log(0.8)), np.zeros(2)
    increments = 0
    for t, info in enumerate(run.infos):
        assert not info.choice.resampled.any()
        assert torch.equal(info.ancestors, torch.arange(3).expand(2, -1))
        beta = np.minimum(beta + c / np.sqrt(variance.mean(-1)), 1.0)
        moving = info.choice.active.numpy()
        np.testing.assert_allclose(info.choice.beta.numpy()[moving], beta[moving], rtol=1e-9)
        increments += int((beta < 1.0).sum())
        change = target.energy_and_grad(run.trace[t + 1])[0].numpy() - mean
        mean = mean + 0.2 * change
        variance = 0.8 * (variance + 0.2 * change**2)
    assert increments > 20
    assert torch.equal(run.state.roots, torch.arange(3).expand(2, -1))
    assert (run.state.resamplings == 0).all()
    moved = sum(info.choice.leapfrog_steps * info.choice.hmc_steps for info in run.infos)
    assert run.state.spent == 6 + moved  # 16 starts, shared by 3 chains
    assert all(info.choice.inverse_mass is None for info in run.infos)  # no population, no mass


def test_lone_chains_reach_the_posterior() -> None:
    # Two chains each for 400 independent runs with the default pace. Nothing makes such chains
    # exact: they are held to a tenth of a posterior deviation and 15 % of a variance, beside 4
    # standard errors of the runs' own spread.
    target = LinearGaussian(sigma=0.2)
    run = sample(target, chains=2, alone=True, observations=400, annealing=Annealing(kept=0.8))
    mean, covariance = target.posterior()
    root = torch.linalg.cholesky(torch.linalg.inv(covariance))
    z = (run.state.hmc.latents - mean) @ root
    for values, expected, slack in ((z, 0.0, 0.1), (z**2, 1.0, 0.15)):
        each = values.mean(1)
        errors = each.std(0) / math.sqrt(400)
        assert ((each.mean(0) - expected).abs() <= slack + 4.0 * errors).all()
        assert (errors < 0.1).all()


@pytest.mark.parametrize(
    ("chains", "starts", "drawn"), [(3, 16, 16), (3, 5, 5), (3, 2, 3), (1, 1, 1)]
)
def test_lone_chains_are_the_first_of_their_starts(chains: int, starts: int, drawn: int) -> None:
    target = LinearGaussian()
    how: dict[str, Any] = {"latent_size": 3, "observations": 2, "dtype": F64, "seed": 3}
    state = smc.init(target, chains=chains, alone=True, starts=starts, **how)
    all_drawn = hmc.init(target, chains=drawn, **how)
    assert torch.equal(state.hmc.latents, all_drawn.latents[:, :chains])
    assert torch.equal(state.hmc.energy, all_drawn.energy[:, :chains])
    assert torch.equal(state.hmc.grad, all_drawn.grad[:, :chains])
    assert state.spent == math.ceil(drawn / chains)
    assert state.spread is not None
    # One energy is taken for its own deviation.
    spread = all_drawn.energy.var(-1, keepdim=True) if drawn > 1 else all_drawn.energy**2
    torch.testing.assert_close(state.spread.variance, spread.expand(-1, chains), **ROUNDING)


def test_the_spread_of_energies_by_hand() -> None:
    drawn = torch.tensor([[1.0, 2.0, 6.0, 3.0]], dtype=F64)
    spread = lone.init(drawn, 2)
    assert spread.mean.tolist() == [[1.0, 2.0]]
    assert spread.variance[0].tolist() == pytest.approx([14.0 / 3.0] * 2)
    energy = torch.tensor([[2.0, 0.0]], dtype=F64)
    after = lone.update(spread, energy, torch.tensor([True]))
    still = lone.update(spread, energy, torch.tensor([False]))
    assert torch.equal(still.mean, spread.mean)
    assert torch.equal(still.variance, spread.variance)
    assert after.mean[0].tolist() == pytest.approx([1.2, 1.6])
    assert after.variance[0].tolist() == pytest.approx(
        [0.8 * (14.0 / 3.0 + 0.2), 0.8 * (14.0 / 3.0 + 0.8)]
    )
    sd = math.sqrt(float(after.variance.mean()))
    assert lone.deviation(after).item() == pytest.approx(sd)
    kept, beta = torch.tensor([0.5], dtype=F64), torch.tensor([0.1], dtype=F64)
    assert lone.next_beta(after, beta, kept).item() == pytest.approx(0.1 + STEP / sd)
    assert lone.next_beta(after, 0.9 + beta, kept).item() == 1.0
    assert lone.next_beta(after, beta, 0.0 * kept).item() == 1.0


# --- mass -----------------------------------------------------------------------------------------


def test_the_inverse_mass_by_hand() -> None:
    run = sample(LinearGaussian(sigma=0.3), chains=20, annealing=Annealing(mass="diagonal"))
    state = run.state
    uneven = dataclasses.replace(state, log_weights=0.5 * normal(1, 20, seed=4))
    w = np.exp(uneven.log_weights[0].numpy())
    w = w / w.sum()
    z = state.hmc.latents[0].numpy()
    variance = (w[:, None] * (z - w @ z) ** 2).sum(0)
    shrunk = (20 * variance + 8.0 * variance.mean()) / 28.0
    expected = shrunk / np.exp(np.log(shrunk).mean())
    np.testing.assert_allclose(smc._diagonal_mass(uneven)[0].numpy(), expected, rtol=1e-10)
    # A population in one point has no variances.
    point = dataclasses.replace(
        state, hmc=dataclasses.replace(state.hmc, latents=torch.zeros_like(state.hmc.latents))
    )
    assert smc._diagonal_mass(point).tolist() == [[1.0, 1.0, 1.0]]


def test_lone_chains_have_even_weights_for_the_mass() -> None:
    run = sample(MIXED, Annealing(mass="diagonal"), observations=3, chains=9, alone=True)
    even = dataclasses.replace(run.state, log_weights=torch.zeros(3, 9, dtype=F64))
    uneven = dataclasses.replace(run.state, log_weights=5.0 * normal(3, 9, seed=4))
    expected = smc._diagonal_mass(dataclasses.replace(even, spread=None))
    assert torch.equal(smc._diagonal_mass(uneven), expected)
    population = smc._diagonal_mass(dataclasses.replace(uneven, spread=None))
    assert (population - expected).abs().max() > 0.1


def test_the_inverse_mass_has_a_geometric_mean_of_one_at_any_scale() -> None:
    run = sample(MIXED, Annealing(mass="diagonal"), observations=3)
    for info in run.infos:
        assert info.choice.inverse_mass is not None
        logs = info.choice.inverse_mass.log()
        assert logs.mean(-1).abs().max() < 1e-12
    assert logs[2].max() > 1.0  # the last observation is badly scaled
    state = run.state
    scaled = dataclasses.replace(
        state, hmc=dataclasses.replace(state.hmc, latents=1e-3 * state.hmc.latents)
    )
    torch.testing.assert_close(smc._diagonal_mass(scaled), smc._diagonal_mass(state), **ROUNDING)


def test_the_inverse_mass_helps_where_scales_differ() -> None:
    # Posterior deviations 1, 0.1 and 0.01. Both runs tune the step and make 8 of them a move; jumps
    # in the last round, in units of each deviation. Plain chains cross the widest direction in
    # steps of the narrowest: 8 of 0.02 at most, a squared jump below 0.03. The stiffest direction
    # of the three is slowed to the second: 8 steps of 0.2 at most.
    target = Bowls([[0.0, 99.0, 9999.0]], [0.0])
    deviations = torch.tensor([1.0, 0.1, 0.01], dtype=F64)
    jumps = {}
    for mass in MASSES:
        annealing = Annealing(mass=mass, leapfrog_steps=8, hmc_steps=1)
        run = sample(target, annealing, chains=200, keep_trace=True)
        assert run.trace is not None
        jump = ((run.trace[-1] - run.trace[-2]) / deviations) ** 2
        jumps[mass] = jump.mean((0, 1))
    assert jumps["identity"][0] < 0.03
    for mass in ("diagonal", "low-rank"):
        assert jumps[mass][0] > 10.0 * jumps["identity"][0]
        assert jumps[mass].min() > 2.0 * jumps["identity"].min()


# --- stiff directions -----------------------------------------------------------------------------


def rotation(size: int, seed: int) -> Tensor:
    turn: Tensor = torch.linalg.qr(normal(size, size, seed=seed)).Q
    return turn


def test_the_running_curvature_by_hand() -> None:
    latents = torch.zeros(3, 5, 4)
    curvature = stiffness.init(latents)
    assert torch.equal(curvature, torch.zeros(3, 4, 4, dtype=F64))
    active, beta = torch.tensor([True, True, False]), torch.tensor([0.1, 0.5, 0.3], dtype=F64)
    grads = [normal(3, 5, 4, seed=k).float() for k in (1, 2)]
    seen = [np.einsum("bni,bnj->bij", *(2 * [g.double().numpy()])) / 5.0 for g in grads]
    seen = [beta.numpy()[:, None, None] * s for s in seen]
    once = stiffness.update(curvature, grads[0], beta, active)
    np.testing.assert_allclose(once[:2], seen[0][:2], rtol=1e-12)  # the first counts in full
    assert torch.equal(once[2], curvature[2])
    twice = stiffness.update(once, grads[1], beta, active)
    np.testing.assert_allclose(twice[:2], (0.9 * seen[0] + 0.1 * seen[1])[:2], rtol=1e-12)
    assert torch.equal(stiffness.update(twice, grads[0], beta, ~active)[:2], twice[:2])


def test_the_running_curvature_is_the_hessian_at_equilibrium() -> None:
    # Of E(z) = (k z)^2 / 2 at beta, whose deviation without a prior is beta^(-1/2) / k: the mean of
    # beta k^4 z^2 is k^2, whatever beta. Variance of a square of n normals: 2 / n.
    k, n = torch.tensor([1.0, 30.0], dtype=F64), 100_000
    for beta in (0.01, 1.0):
        z = normal(1, n, 2, seed=3) / (k * math.sqrt(beta))
        one = torch.tensor([beta], dtype=F64)
        zeros, active = stiffness.init(z), torch.tensor([True])
        ratio = stiffness.update(zeros, k * k * z, one, active)[0].diagonal() / k**2
        assert (ratio - 1.0).abs().max() < 4.0 * math.sqrt(2.0 / n)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (95, 31), (96, 32), (99, 32), (4096, 32)],
)
def test_how_many_directions_are_told_apart(size: int, expected: int) -> None:
    assert stiffness.count(size) == expected


@pytest.mark.parametrize("turned_too", [False, True], ids=["axes", "rotated"])
def test_stiff_directions_by_hand(turned_too: bool) -> None:
    # Two of seven: 40 and 9, which are slowed to the third, 5. Beside the prior's 1, at beta.
    axes = rotation(7, seed=4) if turned_too else torch.eye(7, dtype=F64)
    found = torch.tensor([5.0, 1.0, 40.0, 0.0, 2.0, 9.0, 3.0], dtype=F64)
    curvature = (axes * found) @ axes.T
    beta = torch.tensor([0.5, 1.0], dtype=F64)
    stiff, inverse_mass = stiffness.directions(torch.stack([curvature, 2.0 * curvature]), beta)
    assert stiff.shape == (2, 7, 2)
    for row in range(2):
        assert (stiff[row].T @ axes[:, [2, 5]]).abs().flatten().tolist() == pytest.approx(
            [1.0, 0.0, 0.0, 1.0], abs=1e-12
        )
    expected = [3.5 / 21.0, 3.5 / 5.5], [11.0 / 81.0, 11.0 / 19.0]
    for slowed, mass in zip(expected, inverse_mass.tolist(), strict=True):
        assert mass == pytest.approx([*slowed, 1.0, 1.0, 1.0, 1.0, 1.0], rel=1e-12)


def test_directions_beyond_the_rank_are_not_left_to_rounding() -> None:
    axis = rotation(9, seed=4)[:, :1]
    one = 7.0 * axis @ axis.T
    random = torch.Generator().manual_seed(3)
    rounded = one + 1e-14 * torch.randn(9, 9, generator=random, dtype=F64)
    both = torch.stack([one, 0.5 * (rounded + rounded.T)])
    stiff, inverse_mass = stiffness.directions(both, torch.ones(2, dtype=F64))
    turn = stiffness.basis(stiff)
    assert turn is not None
    torch.testing.assert_close(turn[0], turn[1], rtol=0, atol=1e-11)
    torch.testing.assert_close(turn[0, :, :1] * turn[0, :, :1].mT, axis @ axis.T)
    expected = torch.tensor([1.0 / 8.0, *[1.0] * 8], dtype=F64)
    torch.testing.assert_close(inverse_mass, expected.expand(2, -1))


def test_the_basis_is_the_same_for_either_sign_of_a_direction() -> None:
    stiff = rotation(9, seed=4)[None, :, :3]
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=F64)
    turn, other = stiffness.basis(stiff), stiffness.basis(stiff * signs)
    torch.testing.assert_close(turn, other)


def test_where_nothing_is_stiff_the_inverse_mass_is_one() -> None:
    noise = -1e-12 * torch.eye(6, dtype=F64)  # rounding may leave less than nothing
    curvature = torch.stack([torch.zeros(6, 6, dtype=F64), noise, 3.0 * torch.eye(6, dtype=F64)])
    _, inverse_mass = stiffness.directions(curvature, torch.tensor([0.0, 1.0, 1.0], dtype=F64))
    assert torch.equal(inverse_mass, torch.ones(3, 6, dtype=F64))


@pytest.mark.parametrize(("size", "count"), [(3, 1), (6, 2), (30, 10), (100, 32)])
def test_the_basis_starts_with_the_stiff_directions(size: int, count: int) -> None:
    stiff = torch.stack([rotation(size, seed)[:, :count] for seed in (1, 2)])
    turn = stiffness.basis(stiff)
    assert turn is not None
    assert turn.shape == (2, size, size)
    torch.testing.assert_close(turn.mT @ turn, torch.eye(size, dtype=F64).expand(2, -1, -1))
    along = turn[:, :, :count].mT @ stiff
    signs = along.diagonal(dim1=1, dim2=2).sign()
    torch.testing.assert_close(along, torch.diag_embed(signs), rtol=1e-12, atol=1e-12)
    assert stiffness.basis(None) is None


def turned_choice(b: int, d: int, k: int, step_size: float, length: int, moves: int) -> Choice:
    """Any basis, any mass: what a temperature at beta = 0.4 and on might be done with."""
    return Choice(
        active=torch.ones(b, dtype=torch.bool),
        kept=torch.full((b,), 0.5, dtype=F64),
        beta=0.4 + 0.1 * torch.arange(b, dtype=F64),
        resampled=torch.zeros(b, dtype=torch.bool),
        step_size=torch.full((b,), step_size, dtype=F64),
        inverse_mass=normal(b, d, seed=2).abs() + 0.2,
        stiff=torch.stack([rotation(d, seed)[:, :k] for seed in range(b)]),
        moves=torch.full((b,), moves),
        leapfrog_steps=length,
        hmc_steps=moves,
    )


@both_backends
def test_a_turned_transition_is_one_with_a_dense_mass(backend: str) -> None:
    # In z throughout: the inverse mass Q diag(m) Q', momenta of the density N(0, Q diag(1 / m) Q').
    b, n, d = 2, 30, 6
    target = LinearGaussian(d=d, measured=4, sigma=4.0)
    state = smc.init(target, chains=n, latent_size=d, observations=b, dtype=F64, seed=4)
    choice = turned_choice(b, d, 2, 0.7, 3, 1)
    rule = Annealing(rule=TuningRule(jitter=0.0))
    after, info = smc.step(state, target, rule, choice=choice, backend=backend)
    assert choice.inverse_mass is not None
    turn = stiffness.basis(choice.stiff)
    assert turn is not None
    stream = state.hmc.stream
    drawn = normals(stream, Purpose.MOMENTUM, n, d, F64)
    u = uniforms(stream, Purpose.ACCEPT, n, F64)
    total = 0
    for row in range(b):
        beta, m, q = choice.beta[row], choice.inverse_mass[row], turn[row]
        inverse = q @ torch.diag(m) @ q.T
        z = state.hmc.latents[row]
        p = (drawn[row] / m.sqrt()) @ q.T

        def hamiltonian(z: Tensor, p: Tensor, beta: Tensor, inverse: Tensor) -> Tensor:
            energy, _ = target.energy_and_grad(z)
            return beta * energy + 0.5 * (z * z).sum(-1) + 0.5 * ((p @ inverse) * p).sum(-1)

        def force(z: Tensor, beta: Tensor) -> Tensor:
            return -beta * target.energy_and_grad(z)[1] - z

        start = hamiltonian(z, p, beta, inverse)
        end = z
        for _ in range(3):
            p = p + 0.35 * force(end, beta)
            end = end + 0.7 * p @ inverse
            p = p + 0.35 * force(end, beta)
        probability = (start - hamiltonian(end, p, beta, inverse)).exp().clamp(max=1.0)
        taken = u[row] < probability
        total += int(taken.sum())
        expected = torch.where(taken[:, None], end, z)
        energy, grad = target.energy_and_grad(expected)
        torch.testing.assert_close(after.hmc.latents[row], expected, **ROUNDING)
        torch.testing.assert_close(after.hmc.energy[row], energy, **ROUNDING)
        torch.testing.assert_close(after.hmc.grad[row], grad, **ROUNDING)
        torch.testing.assert_close(info.acceptance[row], probability.mean(), **ROUNDING)
    assert 0.2 * b * n < total < 0.95 * b * n


@both_backends
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_turning_leaves_refused_chains_as_they_are(backend: str, dtype: torch.dtype) -> None:
    target, d = LinearGaussian(d=6, measured=4, sigma=2.0), 6
    how: dict[str, Any] = {"chains": 40, "latent_size": d, "observations": 3, "dtype": dtype}
    state = smc.init(target, seed=4, **how)
    choice = turned_choice(3, d, 2, 1.1, 3, 1)
    assert choice.inverse_mass is not None
    choice = dataclasses.replace(
        choice,
        inverse_mass=choice.inverse_mass.to(dtype),
        active=torch.tensor([True, True, False]),
        step_size=torch.tensor([1.1, 100.0, 1.1], dtype=F64),
        moves=torch.tensor([1, 1, 0]),
    )
    before = state.hmc
    turn = stiffness.basis(choice.stiff)
    after = smc.step(state, target, Annealing(), choice=choice, backend=backend)[0].hmc
    ops = _ops(backend)
    settings = smc.jittered(choice, choice.step_size, TuningRule(), before.stream, ops)
    made = stiffness.transition(before, target, settings, 3, turn, ops)
    refused = ~made.info.accepted
    assert 2 < int(refused[0].sum()) < 38
    assert refused[1:].all()
    assert torch.equal(after.latents[refused], before.latents[refused])
    assert torch.equal(after.grad[refused], before.grad[refused])
    assert torch.equal(after.energy[refused], before.energy[refused])
    assert (after.latents[~refused] != before.latents[~refused]).any(-1).all()
    # Those that moved have the energy of where they are, not of where turning back would round to.
    energy, _ = target.energy_and_grad(after.latents)
    torch.testing.assert_close(after.energy, energy, rtol=1e-14, atol=0)


@both_backends
def test_the_low_rank_mass_leaves_exact_draws_exact(backend: str) -> None:
    # Forty moves at the posterior, whose basis, mass and steps were fixed before: 20,000
    # independent chains. A leapfrog step without its accept test would be off by a tenth.
    b, n, d = 40, 500, 6
    target = LinearGaussian(d=d, measured=4, sigma=2.0)
    mean, covariance = target.posterior()
    root = torch.linalg.cholesky(covariance)
    draws = mean + normal(b, n, d, seed=6) @ root.T
    state = smc.init(target, latents=draws, chains=n, seed=8, backend=backend)
    state = dataclasses.replace(state, beta=torch.ones(b, dtype=F64))
    pilot = turned_choice(b, d, 2, 0.6, 3, 1)
    acceptance = []
    for k in range(40):
        choice = dataclasses.replace(
            pilot,
            beta=state.beta,
            stiff=torch.stack([rotation(d, 100 * k + row)[:, :2] for row in range(b)]),
        )
        state, info = smc.step(state, target, Annealing(), choice=choice, backend=backend)
        acceptance.append(info.acceptance.mean().item())
    assert 0.5 < np.mean(acceptance) < 0.9
    assert (state.log_weights == 0.0).all()
    z = torch.linalg.solve_triangular(root, (state.hmc.latents - mean).mT, upper=False).mT
    start = torch.linalg.solve_triangular(root, (draws - mean).mT, upper=False).mT
    assert ((z * start).mean((0, 1)) < 0.1).all()  # nothing is left of the start
    pairs = (z[..., :, None] * z[..., None, :]).flatten(2)
    for values, expected in ((z, torch.zeros(d)), (pairs, torch.eye(d).flatten())):
        rows = values.flatten(0, 1)
        errors = rows.std(0) / math.sqrt(b * n)
        assert ((rows.mean(0) - expected).abs() <= 4.0 * errors).all()
        assert (errors < 0.015).all()


class Stiff:
    """``E(z) = |c (v z - y)|^2 / 2``: the direction v is c times narrower than the prior."""

    def __init__(self, size: int, precision: float) -> None:
        self.v, self.precision, self.centre = rotation(size, seed=3)[:, 0], precision, 0.7

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        away = z.double() @ self.v - self.centre
        grad = self.precision * away[..., None] * self.v
        return 0.5 * self.precision * away**2, grad.to(z.dtype)


def test_one_stiff_direction_does_not_hold_up_the_others() -> None:
    # 1,000 times narrower, of 30. A leapfrog step is stable below two deviations of the narrowest
    # direction, 0.002, and tuned ones stay within an update of that, a factor exp(0.5 (1 - 0.75)).
    # With the others alone, a standard normal in 30 dimensions takes some 0.5.
    d, b = 30, 60
    target = Stiff(d, 1000.0**2 - 1.0)
    steps = {}
    for mass in ("identity", "low-rank"):
        run = sample(target, Annealing(mass=mass), chains=64, observations=b, latent_size=d, seed=5)
        steps[mass] = run.infos[-1].choice.step_size
        if mass == "identity":
            continue
        z = run.state.hmc.latents
        along = 1000.0 * (z @ target.v - target.centre * (1.0 - 1e-6))
        across = z - (z @ target.v)[..., None] * target.v
        # Means of populations, which are independent: 29 directions of variance 1 beside.
        for values, expected in (
            (along, 0.0), (along**2, 1.0), ((across**2).sum(-1), 29.0),
        ):  # fmt: skip
            assert_mean(values.mean(-1), expected)
        assert along.mean(-1).std() / math.sqrt(b) < 0.05
    assert steps["identity"].max() < 0.002 * math.exp(0.125)
    assert steps["low-rank"].min() > 10.0 * steps["identity"].max()
    assert steps["low-rank"].median() > 0.1


# --- tuning ---------------------------------------------------------------------------------------


def some_state(b: int, n: int, d: int) -> HMCState:
    stream = hmc.noise_stream(0, b, torch.device("cpu"))
    return HMCState(normal(b, n, d, seed=1), normal(b, n, seed=2), normal(b, n, d, seed=3), stream)


def test_an_update_of_the_tuning_by_hand() -> None:
    b, n, d = 3, 7, 2
    state = some_state(b, n, d)
    after = dataclasses.replace(state, energy=state.energy + 0.5 * normal(b, n, seed=4))
    probability = normal(b, n, seed=5).abs().clamp(max=1.0)
    probability[0, 2] = 0.0
    position = state.latents + 0.5 * normal(b, n, d, seed=6)
    position[0, 2] = torch.nan  # that proposal was not finite
    momentum = normal(b, n, d, seed=7)
    info = HMCInfo(
        probability, probability > 0.5, probability, Proposal(position, momentum, probability)
    )
    mass = normal(b, d, seed=8).abs() + 0.5
    step = torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    settings = TransitionSettings(
        step, step, step, inverse_mass=mass, active=torch.tensor([True, True, False])
    )
    start = Tuning(step.log() + 0.01, torch.tensor([0.5, 0.9, 1.0], dtype=F64).log(), 0.3 * step)
    rule = TuningRule()
    tuned = tuning.update(start, state, after, info, settings, 6, rule)
    for row in range(2):
        p = probability[row].numpy()
        log_step = start.log_step[row].item() + 0.5 * min(1.0, n / 16) * (p.mean() - 0.75)
        assert tuned.log_step[row].item() == pytest.approx(log_step, rel=1e-12)
        z, to = state.latents[row].numpy(), position[row].numpy()
        to = np.where(p[:, None] > 0.0, to, z)
        velocity = np.where(p[:, None] > 0.0, (momentum[row] * mass[row]).numpy(), 0.0)
        centred, ends = z - z.mean(0), to - to.mean(0)
        change = (ends**2).sum(-1) - (centred**2).sum(-1)
        gain = (p * change * (ends * velocity).sum(-1)).sum() / (p * change**2).sum()
        slope = min(max(4.0 * 6 * step[row].item() * gain - 1.0, -2.0), 2.0)
        expected = start.log_length[row].item() + 0.05 * slope
        assert tuned.log_length[row].item() == pytest.approx(expected, rel=1e-10)
        correlation = np.corrcoef(state.energy[row], after.energy[row])[0, 1]
        memory = 0.8 * start.memory[row].item() + 0.2 * correlation
        assert tuned.memory[row].item() == pytest.approx(memory, rel=1e-10)
    for name in ("log_step", "log_length", "memory"):
        assert getattr(tuned, name)[2] == getattr(start, name)[2]


def test_lengths_stay_within_what_the_ladder_can_do() -> None:
    n = 4
    state = some_state(1, n, 2)
    full = torch.ones(1, n, dtype=F64)
    info = HMCInfo(full, full > 0, full, Proposal(state.latents, state.latents, full))
    step = torch.tensor([0.1], dtype=F64)
    settings = TransitionSettings(step, step, step)
    rule = TuningRule(step_gain=0.0)
    for eps, length, expected in (
        (0.1, 0.01, 0.1 * 0.7 * 4),
        (0.01, 1.9, 0.01 * 1.4 * 32),
        (0.2, 50.0, 2.0),  # a prior's scale is crossed by then
        (0.1, 1.0, 1.0),
    ):
        start = Tuning(
            torch.tensor([eps], dtype=F64).log(),
            torch.tensor([length], dtype=F64).log(),
            0.0 * step,
        )
        # Proposals that stay where they were have no slope, and forget nothing.
        tuned = tuning.update(start, state, state, info, settings, 4, rule)
        assert tuned.log_length.exp().item() == pytest.approx(expected, rel=1e-12)
        assert tuned.memory.item() == pytest.approx(0.2)


def nothing(z: Tensor) -> Tensor:
    return 0.0 * z.sum(-1)


def test_the_step_size_goes_to_the_target_from_both_sides() -> None:
    # Exact draws of a standard normal in 20 dimensions for every move: acceptance is a function of
    # the step size but for the noise of 3,000 chains.
    rule, d, chains = TuningRule(), 20, 3000
    ends, means = [], []
    for start in (1e-2, 1.8):
        tuned = tuning.init(1, d, start, torch.device("cpu"))
        path = []
        for k in range(60):
            state = hmc.init(nothing, normal(1, chains, d, seed=k), seed=k)
            settings = TransitionSettings(*(3 * [torch.ones(1, dtype=F64)]))
            settings = dataclasses.replace(settings, step_size=tuned.log_step.exp())
            after, info = hmc.transition(state, hmc.as_potential(nothing), settings, 4, _ops())
            tuned = tuning.update(tuned, state, after, info, settings, 4, rule)
            path.append((tuned.log_step.item(), info.acceptance_probability.mean().item()))
        steps = [step for step, _ in path]
        towards = np.diff([math.log(start), *steps[:5]])
        assert (towards > 0).all() if start < 0.1 else (towards < 0).all()
        ends.append(steps[-1])
        means.append(np.mean([rate for _, rate in path[-20:]]))
        # A mean acceptance has a deviation below 0.5 / sqrt(3000) = 0.009; over 20 moves the mean
        # misses the target by the way of the log step over 20 gains, which is of that size too.
        assert abs(means[-1] - 0.75) < 0.009
    # Each end has the deviation gain 0.009 / sqrt(1 - (1 - gain slope)^2), which for slopes of
    # acceptance by log step from 0.5 to 2 is below 0.007: five of the difference of two.
    assert abs(ends[0] - ends[1]) < 5.0 * 0.007 * math.sqrt(2.0)


def leapfrog_turn(length: float, steps: int) -> Array:
    """The matrix of ``(z, v)`` to ``(z', v)``, v before its last half kick, at a scale of 1."""
    eps = length / steps
    zv = np.eye(2)
    zv[1] -= 0.5 * eps * zv[0]
    for k in range(steps):
        zv[0] += eps * zv[1]
        if k < steps - 1:
            zv[1] -= eps * zv[0]
    return zv


def exact_slope(length: float, steps: int) -> float:
    """Of the log ChEES criterion per length by log length, in one dimension.

    With ``change = z'^2 - z^2``: ``4 length E[change z' v] / E[change^2] - 1``, by the moments of
    jointly Gaussian numbers (Isserlis).
    """
    (a, b), (c, e) = leapfrog_turn(length, steps)
    s, k = a * a + b * b, a * c + b * e
    gain = 3.0 * s * k - (k + 2.0 * a * c)
    criterion = 3.0 * s * s - 2.0 * (s + 2.0 * a * a) + 3.0
    return float(4.0 * length * gain / criterion - 1.0)


@pytest.mark.parametrize("length", [0.3, 0.8, 1.1656, 1.5])
def test_the_slope_of_the_length_is_that_of_the_closed_form(length: float) -> None:
    # One dimension, exact draws; steps fine enough that all are accepted. Delta method for the
    # ratio of means. In the limit of fine steps it is 2 x cot x - 1, 0 where tan x = 2 x.
    n, steps = 20_000, 64
    state = hmc.init(nothing, normal(1, n, 1, seed=9), seed=9)
    ones = torch.ones(1, dtype=F64)
    settings = TransitionSettings(0.0 * ones, ones, length / steps * ones)
    _, info = hmc.transition(state, hmc.as_potential(nothing), settings, steps, _ops())
    found = tuning._length_slope(state, info, settings, steps).item()
    z, end = state.latents[0, :, 0].numpy(), info.proposal.position[0, :, 0].numpy()
    change, speed = end**2 - z**2, info.proposal.momentum[0, :, 0].numpy()
    ratio = (change * end * speed).mean() / (change**2).mean()
    spread = (change * end * speed - ratio * change**2).std() / math.sqrt(n)
    error = 4.0 * length * spread / (change**2).mean()
    assert abs(found - exact_slope(length, steps)) <= 4.0 * error
    assert error < 0.05
    limit = 2.0 * length / math.tan(length) - 1.0
    # The velocity is half a step old: 2 x sin(h) more, for h = x / (2 L), and cos(h).
    assert abs(exact_slope(length, steps) - limit) < 2.0 * length * (length / (2 * steps)) * 1.1


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("start", [0.3, 1.9])
def test_the_length_goes_to_the_best_jump_per_gradient(d: int, start: float) -> None:
    # A scale of 1, exact draws for every move, 16 steps of length / 16. The slope falls by about
    # 1.9 per unit of length at the optimum, so that averaged lengths have the deviation of averaged
    # slopes over 1.9; the slope of 2,000 chains has one of 0.06 at most (delta method, above).
    steps, chains = 16, 2000
    rule = TuningRule(step_gain=0.0, length_gain=0.2)
    ones = torch.ones(1, dtype=F64)
    tuned = Tuning((0.07 * ones).log(), (start * ones).log(), 0.0 * ones)
    path = []
    for k in range(60):
        state = hmc.init(nothing, normal(1, chains, d, seed=k), seed=k)
        settings = TransitionSettings(0.0 * ones, ones, tuned.log_length.exp() / steps)
        after, info = hmc.transition(state, hmc.as_potential(nothing), settings, steps, _ops())
        tuned = tuning.update(tuned, state, after, info, settings, steps, rule)
        path.append(tuned.log_length.exp().item())
    found = float(np.mean(path[-40:]))
    low, high = 0.5, 1.6
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if exact_slope(middle, steps) > 0.0 else (low, middle)
    assert abs(found - low) < 4.0 * 0.06 / 1.9 / math.sqrt(40) + 0.01  # and of order 1 / chains
    # The optimum of the exact flow; a velocity half a step old adds x^2 / L to a slope that falls
    # by 1.9: less than 0.05.
    assert math.tan(1.16556) == pytest.approx(2 * 1.16556, rel=1e-4)
    assert 0.0 < low - 1.16556 < 0.05


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.0], 4), ([5.6], 4), ([5.7], 8), ([11.3], 8), ([11.4], 16), ([22.7], 32), ([1e9], 32),
        ([4.0, 16.0], 8), ([1.0, 1.0, 64.0], 4),
    ],
    ids=str,
)  # fmt: skip
def test_lengths_of_the_ladder_by_hand(ratios: list[float], expected: int) -> None:
    assert tuning.leapfrog_steps([math.log(r) for r in ratios]) == expected


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (0.0, 1), (-0.9, 1), (0.5, 1), (0.51, 2), (0.7, 2), (0.71, 3), (0.9, 7), (0.92, 8),
        (0.999, 8), (1.5, 8),
    ],
    ids=str,
)  # fmt: skip
def test_moves_needed_by_hand(memory: float, expected: int) -> None:
    # The least M with memory^M <= 0.5, at most 8.
    assert tuning.moves_needed(memory, TuningRule()) == expected


def test_moves_of_other_rules_by_hand() -> None:
    assert tuning.moves_needed(0.9, TuningRule(remembered=0.1, most_moves=50)) == 22
    assert tuning.moves_needed(0.9, TuningRule(remembered=0.1, most_moves=5)) == 5


def test_a_step_shrinks_with_the_scale_by_hand() -> None:
    # Half a log of the beta ratio, by how far the step is below a standard normal's: 1 - step^2
    # sqrt(d).
    step = torch.tensor([0.01, 0.5, 0.9, 0.01], dtype=F64)
    tuned = Tuning(step.log(), 0.0 * step, 0.0 * step)
    beta = torch.tensor([0.1, 0.1, 0.1, 0.0], dtype=F64)
    sharper = tuning.sharpen(tuned, beta, 4.0 * beta + 0.0, 4)
    shares = [1.0 - 2.0 * 1e-4, 0.5, 0.0]
    expected = [s * 0.5**share for s, share in zip(step.tolist(), shares, strict=False)]
    assert sharper.log_step.exp()[:3].tolist() == pytest.approx(expected, rel=1e-12)
    first = tuning.sharpen(tuned, beta, beta + 0.2, 4)  # nothing is known of the way from 0
    assert first.log_step[3] == tuned.log_step[3]


def test_tuned_runs_take_their_length_from_the_ladder() -> None:
    run = sample(MIXED, observations=3)
    lengths = [info.choice.leapfrog_steps for info in run.infos]
    assert set(lengths) <= set(LADDER)
    assert len(set(lengths)) > 1
    moves = {info.choice.hmc_steps for info in run.infos}
    assert moves <= set(range(1, 9))
    assert len(moves) > 1


@pytest.mark.parametrize("start", [None, 3.0], ids=["usual", "refused-at-first"])
def test_moves_follow_from_earlier_moves_alone(start: float | None) -> None:
    # Whatever becomes of a temperature's own moves: a first step of 3 is far too long.
    target = LinearGaussian(sigma=0.01)
    state = smc.init(
        target, chains=16, latent_size=3, observations=2, dtype=F64, seed=3, step_size_start=start
    )
    counts: list[int] = []
    first = None
    while not state.finished.all():
        expected = [tuning.moves_needed(m, TuningRule()) for m in state.tuning.memory.tolist()]
        moving = ~state.finished
        state, info = smc.step(state, target, Annealing())
        first = info if first is None else first
        assert info.choice.moves.tolist() == (torch.tensor(expected) * moving).tolist()
        counts += info.choice.moves.tolist()
    assert len(set(counts)) > 2
    assert first is not None
    assert first.choice.moves.tolist() == [1, 1]  # nothing is known to be remembered
    assert bool((first.acceptance < 0.3).all()) == (start is not None)


def test_the_step_size_to_repeat_is_that_of_the_last_move() -> None:
    # Moves that were refused shrink it; an observation that moves less often keeps its own.
    state = smc.init(MIXED, observations=3, chains=16, latent_size=3, dtype=F64, step_size_start=3)
    memory = torch.tensor([0.0, 0.7, 0.9], dtype=F64)  # for M of 1, 2 and 7
    state = dataclasses.replace(state, tuning=dataclasses.replace(state.tuning, memory=memory))
    _, info = smc.step(state, MIXED, Annealing())
    assert info.choice.moves.tolist() == [1, 2, 7]
    assert info.choice.step_size[0] == pytest.approx(3.0, rel=1e-14)
    assert info.choice.step_size[2] < info.choice.step_size[1] < info.choice.step_size[0]


def test_rounds_and_moves_that_were_fixed() -> None:
    patient = sample(MIXED, Annealing(final_rounds=2), observations=3)
    assert patient.state.rounds.tolist() == [2, 2, 2]
    target = LinearGaussian(sigma=0.01)
    run = sample(target, Annealing(hmc_steps=1), step_size_start=3.0)
    assert {info.choice.hmc_steps for info in run.infos} == {1}
    assert run.state.rounds.tolist() == [Annealing().final_rounds]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("kept", v) for v in (0.0, 1.0, -0.1, 1.5, math.nan, "0.5", None, True)),
        *(("resample_below", v) for v in (0.0, 1.0, -1, math.inf, "often", None, True)),
        *(("leapfrog_steps", v) for v in (0, -1, 2.0, True, "4")),
        *(("hmc_steps", v) for v in (0, -1, 2.0, True)),
        *(("budget", v) for v in (0, -5, 1e3, True)),
        *(("final_rounds", v) for v in (0, 1.5, None, True)),
        *(("mass", v) for v in ("full", "unit", 1, False, None)),
    ],
    ids=lambda v: v if isinstance(v, str) and v in Annealing.__dataclass_fields__ else repr(v),
)
def test_annealing_names_the_argument_at_fault(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .*got {value!r}"):
        Annealing(**{name: value})


def test_a_rule_must_be_a_tuning_rule() -> None:
    for value in (None, 0.75, {"target": 0.8}, TuningRule):
        with pytest.raises(TypeError, match=r"^rule: expected a TuningRule, got "):
            Annealing(rule=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((n, v) for n in ("target", "remembered", "memory_gain") for v in (0.0, 1.0, -0.5, "1")),
        *((n, v) for n in ("step_gain", "length_gain") for v in (-0.1, math.inf, math.nan, None)),
        *(("jitter", v) for v in (-0.1, 1.0, 2.0, math.nan, "0.1")),
        *(("most_moves", v) for v in (0, -1, 2.0, None, True)),
    ],
)
def test_a_tuning_rule_names_the_argument_at_fault(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .*got {value!r}"):
        TuningRule(**{name: value})


def test_nothing_is_a_gain_and_a_jitter_too() -> None:
    rule = TuningRule(step_gain=0.0, length_gain=0.0, jitter=0.0)
    assert (rule.step_gain, rule.length_gain, rule.jitter) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"latent_size": 0}, "latent_size: "),
        ({"chains": 0}, "chains: "),
        *(({"chains": v}, "chains: expected a whole number") for v in (-1, 2.0, True, None)),
        *(
            ({"latents": torch.zeros(shape)}, r"latents: expected shape \(B, 16, d\), got \(")
            for shape in ((16, 3), (1, 15, 3), (16, 1, 3), (1, 16, 3, 1))
        ),
        ({"observations": 0}, "observations: "),
        ({"seed": -1}, "seed: "),
        ({"backend": "fast"}, "backend: "),
        *(({"step_size_start": v}, "step_size: ") for v in (0.0, -1.0, math.nan, math.inf)),
    ],
    ids=lambda v: (
        "-".join(f"{k}={list(x.shape) if isinstance(x, Tensor) else x}" for k, x in v.items())
        if isinstance(v, dict)
        else ""
    ),
)
def test_init_names_the_argument_at_fault(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(LinearGaussian(), **how)


def test_given_latents_are_the_prior_draws() -> None:
    latents = normal(2, 16, 3, seed=1)
    state = smc.init(LinearGaussian(), chains=16, latents=latents)
    assert torch.equal(state.hmc.latents, latents)
    assert state.curvature.shape == (2, 3, 3)


def test_a_finished_state_takes_no_step() -> None:
    run = sample(MIXED, observations=3)
    assert run.done
    with pytest.raises(ValueError, match=r"^state: expected an observation that is not finished"):
        smc.step(run.state, MIXED, Annealing())
    # One that is not is enough.
    some = dataclasses.replace(run.state, finished=torch.tensor([True, True, False]))
    after, info = smc.step(some, MIXED, Annealing())
    assert info.choice.active.tolist() == [False, False, True]
    assert torch.equal(after.hmc.latents[:2], run.state.hmc.latents[:2])


@pytest.mark.parametrize(
    "given", [{"repeats": ()}, {"keep_trace": True}, {"chains": 16}, {"seed": 3, "latent_size": 3}]
)
def test_a_run_that_goes_on_takes_nothing_anew(given: dict[str, Any]) -> None:
    target = LinearGaussian()
    start = Run(smc.init(target, chains=16, latent_size=3, dtype=F64))
    if "repeats" in given:
        given = {"repeats": sample(target).choices}
    with pytest.raises(ValueError, match=r"^start: takes these from the run it continues"):
        smc.run(target, start=start, **given)


def collapsed(beta: float, roots: Tensor) -> SMCState:
    """Three observations at ``beta``: all copies of one particle, the same energies, neither."""
    energies = torch.full((3, 16), 3.0, dtype=F64)
    energies[2] += 1e-3 * normal(16, seed=1)
    state = smc.init(lambda z: z[..., 0] ** 2, latents=normal(3, 16, 6, seed=2))
    chains = dataclasses.replace(state.hmc, energy=energies)
    at = torch.full((3,), beta, dtype=F64)
    return dataclasses.replace(state, hmc=chains, beta=at, roots=roots)


@both_backends
def test_a_collapsed_population_goes_on_by_a_factor_e(backend: str) -> None:
    # Its energies say nothing of those between them; prior draws that are all alike do.
    roots = torch.arange(16).repeat(3, 1)
    roots[0], roots[2] = 5, 5
    for beta, expected in ((0.01, 0.01 * math.e), (1e-9, 1e-9 * math.e), (0.5, 1.0)):
        choice = smc.choose(collapsed(beta, roots), Annealing(), _ops(backend))
        assert choice.beta.tolist() == pytest.approx([expected, 1.0, 1.0], rel=1e-14)
        assert choice.resampled[0].item() == (expected == 1.0)
    # One root less is enough to know that it was resampled.
    roots[1, 3] = 4
    choice = smc.choose(collapsed(0.01, roots), Annealing(), _ops(backend))
    assert choice.beta[1].item() == pytest.approx(0.01 * math.e, rel=1e-14)
    # A budget that is at its end goes to the posterior all the same.
    spent = dataclasses.replace(collapsed(0.01, roots), spent=95)
    choice = smc.choose(spent, Annealing(budget=100), _ops(backend))
    assert choice.kept.tolist() == [0.0, 0.0, 0.0]
    assert choice.beta.tolist() == [1.0, 1.0, 1.0]


def test_a_collapsed_population_recovers() -> None:
    # Sixteen copies of one point at a low temperature: the same posterior as from the prior.
    target, count = LinearGaussian(sigma=0.1), 400
    state = smc.init(target, chains=16, latent_size=3, observations=count, dtype=F64, seed=2)
    first = state.hmc
    copies = HMCState(
        first.latents[:, :1].expand(-1, 16, -1).contiguous(),
        first.energy[:, :1].expand(-1, 16).contiguous(),
        first.grad[:, :1].expand(-1, 16, -1).contiguous(),
        first.stream,
    )
    beta = torch.full((count,), 1e-4, dtype=F64)
    state = dataclasses.replace(state, hmc=copies, beta=beta, roots=torch.zeros_like(state.roots))
    run = smc.run(target, Annealing(kept=0.8), start=Run(state))
    assert run.infos[0].choice.beta.tolist() == pytest.approx([1e-4 * math.e] * count)
    assert len(run.infos) > 10
    assert all(len(row.unique(dim=0)) == 16 for row in run.state.hmc.latents)
    mean, covariance = target.posterior()
    root = torch.linalg.cholesky(torch.linalg.inv(covariance))
    means = ((run.state.hmc.latents - mean) @ root).mean(1)
    # A small population's bias is below a tenth of a deviation, beside 4 standard errors.
    errors = means.std(0) / math.sqrt(count)
    assert (means.mean(0).abs() <= 0.1 + 4.0 * errors).all()
    assert (errors < 0.1).all()


@pytest.mark.parametrize("alone", [False, True], ids=["population", "lone-chains"])
def test_energies_that_are_all_alike_say_nothing(alone: bool) -> None:
    # One step to the posterior, which is the prior; its normaliser is exp(-3) exactly.
    chains = 3 if alone else 16
    run = sample(lambda z: 0.0 * z.sum(-1) + 3.0, chains=chains, alone=alone)
    rounds = Annealing().final_rounds
    assert [info.choice.beta.item() for info in run.infos] == [1.0] * rounds
    assert torch.equal(run.state.log_weights, torch.full((1, chains), -3.0, dtype=F64))
    assert len(run.state.roots.unique()) == chains
    assert run.state.variance.item() == 0.0 or alone
    assert run.infos[-1].acceptance.item() > 0.5


def test_plain_functions_are_targets_too() -> None:
    def energy(z: Tensor) -> Tensor:
        return 8.0 * (z - 0.5).pow(2).sum(-1)

    function: Callable[[Tensor], Tensor] = energy
    run = smc.run(function, latent_size=2, dtype=F64, chains=500)
    # Posterior precision 17, mean 8 / 17; five standard errors of 500 draws.
    deviation = math.sqrt(1.0 / 17.0)
    error = deviation / math.sqrt(float(effective_sample_size(run.state.log_weights)))
    assert (run.state.hmc.latents.mean((0, 1)) - 8.0 / 17.0).abs().max() < 5.0 * error
