"""The adaptive loop by itself, on known energies: weights, active rows, costs and repetitions."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from annealed import (
    F64,
    INDEPENDENT,
    MIXED,
    ROUNDING,
    LinearGaussian,
    all_masses,
    begun,
    changed,
    everything,
    recorded,
    sample,
)
from runs import both_backends
from torch import Tensor

from cogen_fast.sampler import smc
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.smc import Run, SMCState
from cogen_fast.sampler.tuning import TuningRule
from cogen_fast.sampler.weights import effective_sample_size, log_mean_weight, surviving_roots

pytestmark = pytest.mark.usefixtures("one_thread")


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.slow
@both_backends
@pytest.mark.parametrize("below", [1e-9, 0.5, 0.95], ids=["never", "usual", "often"])
def test_weights_grow_by_the_energies_before_the_move(backend: str, below: float) -> None:
    target = LinearGaussian(sigma=0.2)
    annealing = Annealing(target_cess=0.6, resample_below=below)
    states = recorded(target, annealing, chains=64, observations=2, backend=backend)
    run = sample(target, annealing, chains=64, observations=2, backend=backend)
    drift, resampled, steps = 0.0, 0, 0
    for before, after, info in zip(states, states[1:], run.infos, strict=False):
        step = (info.choice.beta - before.beta)[:, None]
        logs = before.log_weights - step * before.hmc.energy
        drift = max(drift, float((step * (after.hmc.energy - before.hmc.energy)).abs().max()))
        effective = effective_sample_size(logs)
        torch.testing.assert_close(info.effective_sample_size, effective, **ROUNDING)
        # Resampling keeps the mean weight and makes all weights equal. It is always done on arrival
        # at beta = 1.
        torch.testing.assert_close(log_mean_weight(after.log_weights), log_mean_weight(logs))
        taken, arrives = info.choice.resampled, (info.choice.beta == 1.0) & (step[:, 0] > 0.0)
        assert torch.equal(taken, arrives | (effective < below * 64))
        assert (after.log_weights[taken] == after.log_weights[taken][:, :1]).all()
        torch.testing.assert_close(after.log_weights[~taken], logs[~taken], **ROUNDING)
        own = torch.arange(64).expand(int((~taken).sum()), -1)
        assert torch.equal(info.ancestors[~taken], own)
        resampled, steps = resampled + int(taken.sum()), steps + int((step > 0.0).sum())
    assert drift > 1.0  # weights by the energies after the move would differ by this much
    assert resampled == int(run.state.resamplings.sum())
    usual = {1e-9: (4, 4), 0.5: (5, steps - 8), 0.95: (steps - 4, steps)}
    assert usual[below][0] <= resampled <= usual[below][1]


@pytest.mark.slow
def test_the_info_of_a_temperature() -> None:
    for state, info in _steps(MIXED, observations=3):
        moves = info.choice.active
        energy = state.hmc.energy
        torch.testing.assert_close(info.energy[moves], energy.mean(-1)[moves])
        spread = energy.std(-1, correction=0)[moves]
        torch.testing.assert_close(info.energy_std[moves], spread)
        for told in (info.energy, info.energy_std, info.acceptance):
            assert torch.equal(told.isnan(), ~moves)
    assert moves.sum() < 6


def _steps(target: Any, **how: Any) -> list[tuple[SMCState, smc.SMCInfo]]:
    found: list[tuple[SMCState, smc.SMCInfo]] = []
    sample(target, on_step=lambda run: found.append((run.state, run.infos[-1])), **how)
    return found


def test_copies_of_one_particle_separate_in_their_first_move() -> None:
    state = begun(MIXED, chains=9, observations=3)
    heir = state.hmc.energy.argmin(-1)
    _, choice = smc.choose(state, Annealing(mass="identity"))
    one = torch.full((6,), 1e6, dtype=F64)  # so large a step gives one particle all the weight
    choice = dataclasses.replace(
        choice, beta=one, resampled=torch.ones(6, dtype=torch.bool), step_size=0.01 / one.sqrt()
    )
    after, info = smc.step(state, MIXED, Annealing(), choice=choice)
    # All particles descend from the particle of least energy, or from another that the pool made of
    # the same prior draw.
    taken, best = state.roots.gather(1, info.ancestors), state.roots.gather(1, heir[:, None])
    assert torch.equal(taken, best.expand(-1, 9))
    assert info.acceptance.min() > 0.9
    for b in range(6):
        assert len(after.hmc.latents[b].unique(dim=0)) >= 7


def test_roots_and_lineages_follow_ancestors() -> None:
    target = LinearGaussian(sigma=0.05)
    state = begun(target, chains=40, observations=2)
    while not state.finished.all():
        before = state
        state, info = smc.step(state, target, Annealing())
        weighed = smc.weigh(before, info.choice.beta, info.choice.slow)
        for name in ("roots", "lineage"):
            old, new = getattr(weighed, name), getattr(state, name)
            assert torch.equal(new, old.gather(1, info.ancestors)), name
    assert state.resamplings.sum() > 4  # there are more than the four at beta = 1
    counts = [len(set(row)) for row in state.roots.tolist()]
    assert surviving_roots(state.roots).tolist() == counts
    assert max(counts) < 30


# --- who moves ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True], ids=["population", "independent-chains"])
def test_finished_rows_stand_still_to_the_last_bit(alone: bool) -> None:
    how = {"chains": 4, **INDEPENDENT} if alone else {}
    states = recorded(MIXED, observations=3, **how)
    watched = 0
    for before, after in itertools.pairwise(states):
        for row in before.finished.nonzero().flatten().tolist():
            assert changed(before, after, row) == set()
            watched += 1
    assert watched >= 5
    assert states[-1].finished.all()
    transitions = states[-1].hmc.stream.transition
    assert transitions[0] < transitions[-1]


PACES = {
    "all-fixed": Annealing(target_cess=0.6, leapfrog_steps=4, hmc_steps=2),
    "tuned-moves": Annealing(target_cess=0.6, leapfrog_steps=2, rule=TuningRule(remembered=0.3)),
}


@pytest.mark.slow
@both_backends
@all_masses
@pytest.mark.parametrize("pace_name", PACES)
def test_an_observation_does_not_depend_on_its_batch_mates(
    backend: str, mass: str, pace_name: str
) -> None:
    # This holds without a budget and with a fixed L, which all observations would share.
    annealing = dataclasses.replace(PACES[pace_name], mass=mass)
    common: dict[str, Any] = {"seed": 11, "backend": backend}
    together = sample(MIXED, annealing, observations=3, observation_ids=[5, 0, 9], **common)
    for number, identity in enumerate([5, 0, 9]):
        alone = sample(MIXED.rows([number]), annealing, observation_ids=[identity], **common)
        length = len(alone.infos)
        for island, row in enumerate((2 * number, 2 * number + 1)):
            mine, theirs = everything(alone.state, island), everything(together.state, row)
            for name, value in mine.items():
                torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-10, msg=name)
            for info, theirs_info in zip(alone.infos, together.infos, strict=False):
                for name in ("beta", "kept", "step_size"):
                    ours, other = (getattr(i.choice, name) for i in (info, theirs_info))
                    torch.testing.assert_close(ours[island], other[row], rtol=1e-10, atol=0)
                assert info.choice.moves[island] == theirs_info.choice.moves[row]
            assert all(not info.choice.active[row] for info in together.infos[length:])
    assert len(together.infos) > 8
    different = [len(set(i.choice.moves[i.choice.active].tolist())) > 1 for i in together.infos]
    assert any(different) == (pace_name == "tuned-moves")
    other = sample(MIXED.rows([0]), annealing, observation_ids=[6], **common)
    assert (other.state.hmc.latents[0] - together.state.hmc.latents[0]).abs().max() > 0.01


@all_masses
def test_backends_agree_over_a_few_temperatures(mass: str) -> None:
    # Rounding errors grow with the number of moves, so that float64 results agree over a few
    # temperatures only.
    target = LinearGaussian(sigma=0.3)
    states = []
    for backend in ("reference", "native"):
        state = begun(target, observations=2, seed=8, backend=backend)
        for _ in range(3):
            annealing = Annealing(target_cess=0.6, mass=mass)
            state, _ = smc.step(state, target, annealing, backend=backend)
        states.append(state)
    for row in range(4):
        first, second = (everything(state, row) for state in states)
        for name, value in first.items():
            torch.testing.assert_close(value, second[name], rtol=1e-9, atol=1e-11, msg=name)
    assert (states[0].beta > 3.0 * states[0].first_beta).all()


@all_masses
def test_a_step_leaves_the_given_state_as_it_is(mass: str) -> None:
    target = LinearGaussian()
    state = begun(target, observations=2)
    before = [{k: v.clone() for k, v in everything(state, row).items()} for row in range(4)]
    first, _ = smc.step(state, target, Annealing(mass=mass))
    again, _ = smc.step(state, target, Annealing(mass=mass))
    for row in range(4):
        for name, value in everything(state, row).items():
            assert torch.equal(value, before[row][name]), name
    assert torch.equal(first.hmc.latents, again.hmc.latents)


@pytest.mark.slow
def test_steps_of_ones_own_are_a_run_and_a_run_goes_on_where_another_ended() -> None:
    target, annealing = LinearGaussian(), Annealing(target_cess=0.6)
    state = begun(target)
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
    for row in range(2):
        assert changed(resumed.state, whole.state, row) == set()
    assert len(resumed.infos) == len(whole.infos)


def test_float32_latents_keep_float64_weights() -> None:
    run = sample(LinearGaussian(), dtype=torch.float32)
    assert run.state.hmc.latents.dtype is torch.float32
    for value in (run.state.curvature.mean, run.state.log_weights, run.state.variance):
        assert value.dtype is F64
    assert run.infos[0].choice.inverse_mass is not None
    assert run.infos[0].choice.inverse_mass.dtype is torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("annealing", [Annealing(), Annealing(hmc_steps=3, leapfrog_steps=5)])
def test_every_gradient_is_counted(annealing: Annealing) -> None:
    target = LinearGaussian(sigma=0.1)
    calls: list[int] = []
    run = sample(target, annealing, on_step=lambda _: calls.append(target.calls))
    # The start takes one gradient, and a temperature M L of them.
    each = [i.choice.leapfrog_steps * i.choice.hmc_steps for i in run.infos]
    assert calls == (1 + np.cumsum(each)).tolist()
    assert run.state.spent == target.calls
    energy, _ = target.energy_and_grad(run.state.hmc.latents)
    torch.testing.assert_close(run.state.hmc.energy, energy, **ROUNDING)


@pytest.mark.slow
def test_every_move_costs_a_gradient_of_all_rows() -> None:
    target = MIXED.rows([0, 1, 2])
    spent, moved = 1, torch.zeros(6, dtype=torch.int64)
    for state, info in _steps(target, observations=3):
        moves = info.choice.moves
        assert moves.dtype is torch.int64
        assert (moves[~info.choice.active] == 0).all()
        assert info.choice.hmc_steps == int(moves.max())
        spent, moved = spent + info.choice.leapfrog_steps * info.choice.hmc_steps, moved + moves
        assert state.spent == spent
        assert torch.equal(state.hmc.stream.transition, moved)
    assert target.calls == spent
    assert len(set(moved.tolist())) >= 3


def test_proposals_that_are_not_finite_are_counted_and_stay_out() -> None:
    class Cliff(LinearGaussian):
        def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
            energy, grad = super().energy_and_grad(z)
            beyond = z[..., 0] > 2.0
            if self.calls == 1:
                beyond &= False  # so that prior draws may start there
            return torch.where(beyond, torch.nan, energy), grad

    run = sample(Cliff(sigma=1.0), chains=200, annealing=Annealing(hmc_steps=2))
    assert int(run.state.non_finite.sum()) > 0
    for row in range(2):
        for name, value in everything(run.state, row).items():
            assert value.double().isfinite().all(), name


# --- repeats --------------------------------------------------------------------------------------


@pytest.mark.slow
@all_masses
def test_the_same_choices_under_the_same_seed_are_the_same_run(mass: str) -> None:
    target, annealing = LinearGaussian(sigma=0.2), Annealing(hmc_steps=1, mass=mass)
    pilot = sample(target, annealing, observations=3)
    how: dict[str, Any] = {"observations": 3, "first_beta": pilot.state.first_beta}
    again = sample(target, annealing, repeats=pilot.choices, **how)
    assert again.done
    learnt = ("tuning.", "curvature.", "directions.", "sharpness")
    for row in range(6):
        assert all(name.startswith(learnt) for name in changed(pilot.state, again.state, row))
    assert again.state.spent == pilot.state.spent


@pytest.mark.slow
@all_masses
@pytest.mark.parametrize("moves", [3, None], ids=["three-moves", "tuned-moves"])
def test_repeats_are_made_of_the_same_choices(mass: str, moves: int | None) -> None:
    # A temperature of several moves is recorded with the step size of its last move. A repetition
    # makes all moves with it, so that it differs from the pilot, but a repetition of the repetition
    # is the same to the last bit.
    annealing = Annealing(hmc_steps=moves, mass=mass)
    how: dict[str, Any] = {"target": MIXED, "annealing": annealing, "observations": 3}
    pilot = sample(**how)
    how["first_beta"] = pilot.state.first_beta
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


@pytest.mark.slow
@all_masses
def test_a_repetition_learns_nothing(mass: str) -> None:
    pilot = sample(MIXED, Annealing(mass=mass), observations=3)
    how: dict[str, Any] = {"observations": 3, "first_beta": pilot.state.first_beta}
    start = begun(MIXED, seed=4, **how)
    again = sample(MIXED, Annealing(mass=mass), repeats=pilot.choices, seed=4, **how)
    for row in range(6):
        found = changed(start, again.state, row)
        learnt = ("tuning.", "curvature.", "directions.values", "directions.rest")
        assert not any(name.startswith(learnt) for name in found)


# --- ends and errors ------------------------------------------------------------------------------

SHAPES = ((16, 3), (2, 15, 3), (3, 16, 3), (2, 16, 3, 1))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"latent_size": 0}, "latent_size: "),
        ({"latent_size": None}, "latent_size: "),
        *(
            ({name: v}, f"{name}: expected a whole number")
            for name in ("chains", "islands", "draws")
            for v in (-1, 0, 2.0, True, None)
        ),
        *(({"latents": torch.zeros(s)}, r"latents: expected shape \(B, K, d\), B") for s in SHAPES),
        ({"latents": torch.zeros(2, 16, 3).long()}, "dtype: "),
        ({"observations": 0}, "observations: "),
        ({"observations": 2, "observation_ids": [1, 1]}, "observation_ids: "),
        ({"observation_ids": [2**31]}, "observation_ids: expected numbers below"),
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
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        sample(LinearGaussian(), **how)


def test_the_largest_observation_id() -> None:
    # Every island has a random number stream of its own, of 2^32.
    state = begun(LinearGaussian(), islands=4, observation_ids=[2**30 - 1])
    assert state.hmc.stream.observation.tolist() == [2**32 - 4 + k for k in range(4)]


@pytest.mark.slow
def test_a_finished_state_takes_no_step() -> None:
    run = sample(MIXED, observations=3)
    assert run.done
    with pytest.raises(ValueError, match=r"^state: expected an observation that is not finished"):
        smc.step(run.state, MIXED, Annealing())
    # A single row that is not finished is enough for a step.
    last = torch.arange(6) == 5
    some = dataclasses.replace(run.state, finished=~last)
    after, info = smc.step(some, MIXED, Annealing())
    assert torch.equal(info.choice.active, last)
    assert torch.equal(after.hmc.latents[:5], run.state.hmc.latents[:5])


@pytest.mark.parametrize(
    "given", [{"repeats": ()}, {"keep_trace": True}, {"chains": 16}, {"seed": 3, "latent_size": 3}]
)
def test_a_continued_run_refuses_arguments_of_a_start(given: dict[str, Any]) -> None:
    target = LinearGaussian()
    start = Run(begun(target))
    if "repeats" in given:
        given = {"repeats": sample(target).choices}
    with pytest.raises(ValueError, match=r"^start: takes these from the run it continues"):
        smc.run(target, start=start, **given)


@pytest.mark.parametrize("alone", [False, True], ids=["population", "independent-chains"])
def test_constant_energies_need_no_annealing(alone: bool) -> None:
    # The energy is constant, so that the posterior is the prior, the normaliser is exp(-3) exactly,
    # and no step of beta loses weight. Beta grows by the largest factor, e, from 0.05, or for
    # independent chains in one step.
    how = {"chains": 3, **INDEPENDENT} if alone else {"draws": 1}
    run = sample(lambda z: 0.0 * z.sum(-1) + 3.0, **how)
    way = [] if alone else [0.05 * math.e, 0.05 * math.e**2]
    betas = [info.choice.beta[0].item() for info in run.infos]
    assert betas == pytest.approx(way + [1.0] * Annealing().final_rounds)
    rows, chains = (1, 3) if alone else (2, 16)
    torch.testing.assert_close(run.state.log_weights, torch.full((rows, chains), -3.0, dtype=F64))
    assert all(len(set(row)) == chains for row in run.state.roots.tolist())
    assert alone or run.state.variance.abs().max() < 1e-15
    assert run.infos[-1].acceptance.min() > 0.5


def test_plain_functions_are_targets_too() -> None:
    def energy(z: Tensor) -> Tensor:
        return 8.0 * (z - 0.5).pow(2).sum(-1)

    function: Callable[[Tensor], Tensor] = energy
    run = smc.run(function, latent_size=2, dtype=F64, chains=250)
    # The posterior has precision 1 + 16 = 17 and mean 8 / 17. The bound is five standard errors of
    # a mean over 500 particles.
    error = math.sqrt(1.0 / 17.0 / 500.0)
    assert (run.state.hmc.latents.mean((0, 1)) - 8.0 / 17.0).abs().max() < 5.0 * error


@pytest.mark.slow
def test_copies_of_one_point_separate_into_posterior_draws() -> None:
    # On each of 200 pairs of islands, all eight particles are put on one point at a low beta. The
    # moves must separate them, and reach the posterior as they do from the prior.
    target = LinearGaussian(sigma=0.1)
    state = begun(target, chains=8, observations=200)
    first = state.hmc
    copies = dataclasses.replace(
        first,
        latents=first.latents[:, :1].expand(-1, 8, -1).contiguous(),
        energy=first.energy[:, :1].expand(-1, 8).contiguous(),
        grad=first.grad[:, :1].expand(-1, 8, -1).contiguous(),
    )
    beta = torch.full((400,), 1e-4, dtype=F64)
    state = dataclasses.replace(state, hmc=copies, beta=beta)
    run = smc.run(target, start=Run(state))
    assert all(len(row.unique(dim=0)) == 8 for row in run.state.hmc.latents)
    means = target.standardised(run.state.hmc.latents).mean(1).reshape(200, 2, 3).mean(1)
    # A tenth of a standard deviation is allowed for the bias of a small population, beside four
    # standard errors.
    errors = means.std(0) / math.sqrt(200)
    assert (means.mean(0).abs() <= 0.1 + 4.0 * errors).all()
    assert (errors < 0.1).all()
