"""Islands: each is tuned by the others, and at the posterior nothing is tuned."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from annealed import F64, INDEPENDENT, MIXED, all_masses, begun, changed, normal, recorded
from torch import Tensor

from cogen_fast.sampler import annealing_plan, bases, curvature, islands, smc, tuning
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.smc import SMCState

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, params=[bases.WHOLE, 0], ids=["whole", "sketch"])
def few_or_many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat all sizes as small, then all as large ones, for which no d x d matrix is made."""
    monkeypatch.setattr(bases, "WHOLE", request.param)


# --- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
        (2, [2.0, 1.0, 8.0, 4.0, 32.0, 16.0]),
        (3, [3.0, 2.5, 1.5, 24.0, 20.0, 12.0]),
        (6, [12.4, 12.2, 11.8, 11.0, 9.4, 6.2]),
    ],
)
def test_means_of_others_by_hand(count: int, expected: list[float]) -> None:
    values = 2.0 ** torch.arange(6, dtype=F64)
    found = islands.mean_of_others(values, count)
    assert found.tolist() == pytest.approx(expected, rel=1e-14)
    # Further dimensions are averaged entry by entry.
    deep = torch.stack([values, -values], -1)[:, None].expand(-1, 3, -1)
    for column, sign in ((0, 1.0), (1, -1.0)):
        mean = islands.mean_of_others(deep, count)[:, 2, column]
        torch.testing.assert_close(mean, sign * found)


def test_pairs_by_hand() -> None:
    own, each = islands.pairs(torch.arange(6.0), 3)
    assert own.tolist() == [[[0.0], [1.0], [2.0]], [[3.0], [4.0], [5.0]]]
    assert each.tolist() == [[[0.0, 1.0, 2.0]], [[3.0, 4.0, 5.0]]]


def test_pairwise_means_of_others_by_hand() -> None:
    table = torch.tensor([[[100.0, 1.0, 2.0], [3.0, 100.0, 5.0], [7.0, 11.0, 100.0]]])
    assert islands.mean_of_others_pairwise(table).tolist() == [1.5, 4.0, 9.0]
    assert islands.mean_of_others_pairwise(torch.tensor([[[3.0]], [[4.0]]])).tolist() == [3.0, 4.0]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pairwise_means_equal_means_where_the_pair_does_not_matter(count: int) -> None:
    values = normal(10, seed=1)
    table = islands.pairs(values, count)[1].expand(-1, count, -1)
    torch.testing.assert_close(
        islands.mean_of_others_pairwise(table), islands.mean_of_others(values, count)
    )


# --- whose choices they are -----------------------------------------------------------------------

CHOSEN = ("beta", "step_size", "moves", "inverse_mass", "stiff", "kept")
FIXED = Annealing(leapfrog_steps=4)  # L is common to all rows of a call, so it is fixed


def choices(state: SMCState, annealing: Annealing) -> dict[str, Tensor]:
    """The choices for each row's next temperature; resampling follows its own weights."""
    after, choice = smc.choose(state, annealing)
    found = {name: getattr(choice, name) for name in CHOSEN}
    found["directions"] = after.directions.values
    return {name: value for name, value in found.items() if value is not None}


def differ(one: dict[str, Tensor], other: dict[str, Tensor], row: int) -> set[str]:
    return {name for name in one if not torch.equal(one[name][row], other[name][row])}


def under_way(count: int, mass: str, temperatures: int = 6) -> SMCState:
    """The state of three observations before the end of the annealing."""
    target = MIXED.rows([1, 2, 2])
    state = begun(target, observations=3, islands=count)
    for _ in range(temperatures):
        state, _ = smc.step(state, target, annealing(mass))
    assert (state.beta < 0.5).all()
    return state


def at_ease(state: SMCState) -> SMCState:
    """The state as if all moves had been accepted, and one had removed all correlation."""
    tuned = state.tuning
    tuned = dataclasses.replace(
        tuned, autocorrelation=0.0 * tuned.autocorrelation, acceptance=0.9 + 0.0 * tuned.acceptance
    )
    return dataclasses.replace(state, tuning=tuned)


def annealing(mass: str) -> Annealing:
    return dataclasses.replace(FIXED, mass=mass)


def taught_otherwise(state: SMCState, row: int) -> SMCState:
    """The state with other estimates in one row, as if its particles had given them."""

    def put(values: Tensor, change: Any) -> Tensor:
        values = values.clone()
        values[row] = change(values[row])
        return values

    tuned, seen = state.tuning, state.curvature
    spike = 30.0 * normal(state.hmc.latents.shape[-1], 1, seed=4)
    if seen.mean is None:
        assert seen.sketch is not None
        factor = put(seen.sketch.factor, lambda x: torch.cat([spike, 1.7 * x[:, :-1]], -1))
        sketch, mean = dataclasses.replace(seen.sketch, factor=factor), None
    else:
        sketch, mean = None, put(seen.mean, lambda x: 3.0 * x + spike @ spike.T)
    return dataclasses.replace(
        state,
        tuning=tuning.Tuning(
            put(tuned.log_step, lambda x: x - 0.7),
            put(tuned.log_length, lambda x: x + 0.4),
            put(tuned.autocorrelation, lambda x: 0.0 * x + 0.95),
            put(tuned.acceptance, lambda x: 0.0 * x + 0.3),
            put(tuned.further_decorrelation, lambda x: 0.0 * x + 0.2),
        ),
        curvature=curvature.Curvature(mean, put(seen.inverse_count, lambda x: 2.0 * x), sketch),
        sharpness=put(state.sharpness, lambda x: 1.7 * x),
    )


@all_masses
@pytest.mark.parametrize("count", [2, 3])
def test_an_islands_estimates_change_other_islands_only(count: int, mass: str) -> None:
    state, rule = at_ease(under_way(count, mass)), annealing(mass)
    before = choices(state, rule)
    expected = {"beta", "step_size", "moves"}
    if mass == "curvature":
        expected |= {"inverse_mass", "stiff", "directions"}
    for row in range(3 * count):
        after = choices(taught_otherwise(state, row), rule)
        for each in range(3 * count):
            found = differ(before, after, each)
            sibling = each // count == row // count and each != row
            # Where an island has two others, a change of one of them need not change the rounded
            # number of moves that follows from their mean.
            assert expected - {"moves"} <= found <= expected if sibling else found == set()
        moves = {int(m) for m in after["moves"] - before["moves"]}
        assert moves > {0} or count > 2


def with_other_particles(state: SMCState, row: int, target: Any) -> SMCState:
    """The state with other particles and uneven weights in one row."""
    chains, weights = state.hmc, state.log_weights.clone()
    weights[row] += 0.3 * normal(weights.shape[1], seed=6)
    moved = 0.5 * chains.latents + 0.4 * normal(*chains.latents.shape, seed=5)
    this = (torch.arange(len(weights)) == row)[:, None]
    energy, grad = target.energy_and_grad(moved)
    other = dataclasses.replace(
        chains,
        latents=torch.where(this[..., None], moved, chains.latents),
        energy=torch.where(this, energy, chains.energy),
        grad=torch.where(this[..., None], grad, chains.grad),
    )
    return dataclasses.replace(state, hmc=other, log_weights=weights)


@all_masses
@pytest.mark.parametrize("count", [2, 3])
def test_an_islands_own_particles_do_not_change_its_moves(count: int, mass: str) -> None:
    target = MIXED.rows([1, 2, 2])
    # A temperature has a single move. With several, the answer of the other islands to what they
    # took from the changed row would come back to it within the temperature.
    state, rule = under_way(count, mass), dataclasses.replace(annealing(mass), hmc_steps=1)
    known = choices(state, rule)
    before = choices(smc.step(state, target, rule)[0], rule)
    for row in range(count):
        other = with_other_particles(state, row, target)
        assert all(differ(known, choices(other, rule), each) == set() for each in range(3 * count))
        after = choices(smc.step(other, target, rule)[0], rule)
        for each in range(3 * count):
            found = differ(before, after, each)
            if each // count == row // count and each != row:
                assert {"beta", "step_size"} <= found
                assert ("inverse_mass" in found) == (mass == "curvature")
            else:
                assert found == set()


@all_masses
@pytest.mark.parametrize("count", [2, 3])
def test_later_moves_use_the_estimates_of_other_islands_too(count: int, mass: str) -> None:
    # Of two moves, the second has the step size that the first moves of the other islands ask for.
    # So other particles in one row change the recorded step sizes of its siblings only.
    target = MIXED.rows([1, 2, 2])
    state, rule = under_way(count, mass), dataclasses.replace(annealing(mass), hmc_steps=2)
    before = smc.step(state, target, rule)[1].choice.step_size
    for row in range(count):
        other = with_other_particles(state, row, target)
        after = smc.step(other, target, rule)[1].choice.step_size
        mates = [each for each in range(count) if each != row]
        assert (after != before).nonzero().flatten().tolist() == mates


@all_masses
def test_the_first_move_has_the_step_size_that_was_chosen(mass: str) -> None:
    # Islands whose betas grow by different factors have scales that shrink by different factors.
    # The first move must still have the step size that was chosen.
    state = taught_otherwise(under_way(3, mass), 1)
    rule = dataclasses.replace(annealing(mass), hmc_steps=1)
    _, chosen = smc.choose(state, rule)
    _, info = smc.step(state, MIXED.rows([1, 2, 2]), rule)
    torch.testing.assert_close(info.choice.step_size, chosen.step_size, rtol=1e-13, atol=0)


@pytest.mark.slow
def test_an_island_alone_learns_from_itself() -> None:
    state = at_ease(recorded(MIXED.rows([2]), FIXED, islands=1)[6])
    found = differ(choices(state, FIXED), choices(taught_otherwise(state, 0), FIXED), 0)
    assert found >= {"beta", "step_size", "inverse_mass", "moves"}


@pytest.mark.slow
@all_masses
@pytest.mark.parametrize("count", [1, 2, 3])
def test_nothing_is_learnt_at_the_posterior(count: int, mass: str) -> None:
    states = recorded(MIXED, Annealing(mass=mass), observations=3, islands=count)
    learnt = ("tuning.", "curvature.", "sharpness", "directions.")
    watched = taught = 0
    for before, after in itertools.pairwise(states):
        for row in range(3 * count):
            found = changed(before, after, row)
            if before.beta[row] < 1.0:
                taught += any(name.startswith(learnt) for name in found)
            elif not before.finished[row]:
                assert "hmc.latents" in found
                assert not any(name.startswith(learnt) for name in found), found
                watched += 1
    # Each row has `final_rounds` temperatures at beta = 1. The first is the one in which it
    # arrives, whose state before it was still below.
    assert watched == 3 * count * (Annealing().final_rounds - 1)
    assert taught > 3 * count


@pytest.mark.slow
def test_independent_chains_go_on_learning() -> None:
    states = recorded(MIXED.rows([1]), Annealing(), chains=3, **INDEPENDENT)
    there = [state for state in states if state.beta[0] == 1.0]
    for before, after in itertools.pairwise(there):
        assert {"tuning.log_step", "tuning.autocorrelation"} <= changed(before, after, 0)


def test_moves_of_the_temperature_that_reaches_the_posterior_teach_nothing() -> None:
    # Both rows are placed at beta = 0.9, so that this temperature brings them to 1. Their moves are
    # then at the posterior and must teach nothing.
    state = begun(MIXED.rows([1]))
    gone = dataclasses.replace(state, beta=torch.full_like(state.beta, 0.9))
    after, choice = smc.choose(gone, FIXED)
    assert choice.beta.tolist() == [1.0, 1.0]
    moved, _ = smc.step(gone, MIXED.rows([1]), FIXED)
    for row in range(2):
        assert not {n for n in changed(after, moved, row) if n.startswith(("tuning", "curvature"))}
    assert torch.equal(moved.sharpness, state.sharpness)


def test_temperatures_follow_the_others_energies_and_not_ones_own() -> None:
    beta = torch.full((6,), 0.01, dtype=F64)
    sharp = torch.tensor([1.0, 2.0, 4.0, 3.0, 3.0, 3.0], dtype=F64)
    kept, active = torch.full_like(beta, 0.96), torch.ones(6, dtype=torch.bool)
    step = (annealing_plan.next_beta(beta, sharp, kept, 3, active) - beta) / beta
    relative = step / step[3]
    assert relative.tolist() == pytest.approx([3.0 / 3.0, 3.0 / 2.5, 3.0 / 1.5, 1.0, 1.0, 1.0])
