"""The annealing plan: the next inverse temperature, and L, M and steps within a budget."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from annealed import F64, INDEPENDENT, MIXED, LinearGaussian, all_masses, begun, normal, sample
from torch import Tensor

from cogen_fast.sampler import annealing_plan, smc
from cogen_fast.sampler.annealing_plan import Annealing, AnnealingStatus
from cogen_fast.sampler.tuning import LADDER, Tuning, TuningRule

pytestmark = pytest.mark.usefixtures("one_thread")


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


# --- the next temperature -------------------------------------------------------------------------


def after(beta: Tensor, sharpness: Tensor, kept: float = 0.96, count: int = 2) -> list[float]:
    every = torch.ones_like(beta, dtype=torch.bool)
    share = torch.full_like(beta, kept)
    found: list[float] = annealing_plan.next_beta(beta, sharpness, share, count, every).tolist()
    return found


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.96])
def test_gaussian_energies_keep_the_share_asked_for(kept: float) -> None:
    # The share is that of the conditional effective sample size, (E w)^2 / E w^2. It is estimated
    # from 400,000 Gaussian energies of standard deviation 25, with the standard error of the delta
    # method; the bound is four of these.
    beta, deviation, n = 0.02, 25.0, 400_000
    (there, _) = after(tensor(beta, beta), tensor(beta * deviation, beta * deviation), kept)
    w = (-(there - beta) * deviation * normal(n, seed=1)).exp()
    found = w.mean() ** 2 / (w * w).mean()
    spread = found * (2.0 * w / w.mean() - w * w / (w * w).mean())
    error = float(spread.std()) / math.sqrt(n)
    assert abs(found.item() - kept) < 4.0 * error
    assert error < 0.01


@pytest.mark.slow
def test_a_large_run_keeps_the_share_asked_for() -> None:
    # At equilibrium beta E is half a chi square of k = 40 degrees of freedom at most. With c^2 =
    # -log(kept) the share is then exp(-c^2 + c^3 sqrt(8 / k)) to the next order, which is 0.014
    # more than 0.9. The step is made with a mean of beta sd(E) over about three steps, while beta
    # sd(E) grows, so that steps are a little too large and the share is expected at 0.91. The
    # bounds allow for the noise of 1,000 particles: 0.02 for the mean over steps, 0.06 for each
    # step.
    target = LinearGaussian(d=40, measured=40, sigma=0.3)
    how: dict[str, Any] = {"chains": 1000, "latent_size": 40, "keep_trace": True}
    run = sample(target, Annealing(target_cess=0.9, resample_below=0.999), **how)
    assert run.trace is not None
    beta, shares = run.infos[0].choice.beta, []
    for number, info in enumerate(run.infos[1:], 1):
        step = info.choice.beta - beta
        if info.choice.beta.max() == 1.0:
            break
        logs = -step[:, None] * target.energy(run.trace[number])
        w = (logs - logs.amax(-1, keepdim=True)).exp()
        shares.append(w.mean(-1) ** 2 / (w * w).mean(-1))
        beta = info.choice.beta
    # The first steps still use the standard deviation of the pool's energies.
    found = torch.stack(shares[3:])
    assert len(found) > 10
    assert (found.mean(0) - 0.91).abs().max() < 0.02
    assert (found - 0.9).abs().max() < 0.06


def test_the_next_temperature_by_hand() -> None:
    # The standard deviations of the energies, sharpness / beta, are 20 and 40. Each island divides
    # c by that of the other one.
    c = math.sqrt(-math.log(0.96))
    assert after(tensor(0.1, 0.1), tensor(2.0, 4.0)) == pytest.approx([0.1 + c / 40, 0.1 + c / 20])
    # The island behind divides the other's sharpness by its own beta, the island ahead by the
    # other's smaller beta: by 0.1 in both cases.
    found = after(tensor(0.1, 0.4), tensor(2.0, 2.0))
    assert found == pytest.approx([0.1 + c / 20.0, 0.4 + c / 20.0])
    # With several others, an island takes the mean of their standard deviations.
    found = after(tensor(0.1, 0.2, 0.4), tensor(2.0, 4.0, 8.0), count=3)
    expected = [0.1 + c / 60.0, 0.2 + c / ((20.0 + 40.0) / 2.0), 0.4 + c / 20.0]
    assert found == pytest.approx(expected)
    # Observations of one island each take their own standard deviation, and nothing from each
    # other.
    assert after(tensor(0.1, 0.1), tensor(2.0, 4.0), count=1) == pytest.approx(
        [0.1 + c / 20, 0.1 + c / 40]
    )


def test_an_island_ahead_waits_for_the_others() -> None:
    # Two islands start far apart in log beta and follow the same rule: their ratio must fall to 1.
    beta, sharp = tensor(0.001, 0.02), tensor(3.0, 3.0)
    ratios = []
    for _ in range(60):
        beta = tensor(*after(beta, sharp))
        ratios.append((beta[1] / beta[0]).item())
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 1.5
    assert beta.max() < 1.0


def test_no_step_is_larger_than_an_e_fold() -> None:
    assert after(tensor(0.01, 0.01), tensor(0.0, 1e-9)) == pytest.approx([0.01 * math.e] * 2)
    assert after(tensor(0.5, 0.01), tensor(0.0, 0.0)) == pytest.approx([1.0, 0.01 * math.e])


def test_no_inverse_temperature_exceeds_one() -> None:
    for beta in (0.37, 0.9, 0.999999, 1.0):
        assert after(tensor(beta, beta), tensor(0.01, 0.01)) == [1.0, 1.0]


def test_a_kept_share_of_zero_jumps_to_the_end_and_inactive_islands_stay() -> None:
    beta, sharp = tensor(0.1, 0.1, 0.3, 1.0), tensor(1.0, 1.0, 1.0, 1.0)
    kept, active = tensor(0.0, 0.96, 0.0, 0.96), torch.tensor([True, True, False, True])
    found = annealing_plan.next_beta(beta, sharp, kept, 2, active)
    assert found[0] == 1.0
    assert 0.1 < found[1] < 0.4
    assert found[2:].tolist() == [0.3, 1.0]


# --- budgets --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("annealing", "how"),
    [
        (Annealing(), {}),
        (Annealing(), {"observations": 3}),
        (Annealing(mass="identity", hmc_steps=3), {"observations": 3, "islands": 3}),
        (Annealing(leapfrog_steps=1), {"observations": 3}),
        (Annealing(leapfrog_steps=5, hmc_steps=2), {}),
        (Annealing(leapfrog_steps=40), {}),
        (Annealing(target_cess=0.9), {"chains": 3, **INDEPENDENT}),
    ],
    ids=[
        "tuned", "three-observations", "three-moves", "one-step", "five-steps-twice",
        "forty-steps", "independent",
    ],
)  # fmt: skip
def test_a_budget_is_kept_and_the_posterior_reached(
    annealing: Annealing, how: dict[str, Any]
) -> None:
    every = annealing == Annealing() and not how
    for budget in (*range(1, 61 if every else 25), *range(61, 302, 60), 97):
        target = MIXED.rows([0, 1, 2] if "observations" in how else [1])
        run = sample(target, dataclasses.replace(annealing, budget=budget), draws=8, **how)
        assert target.calls == run.state.spent
        assert run.state.spent <= budget
        assert (run.state.beta == 1.0).all()
        assert run.state.finished.all()
        made = [i.choice.active & (i.choice.beta >= 1.0) & (i.choice.moves > 0) for i in run.infos]
        assert torch.equal(run.state.rounds, torch.stack(made).sum(0))
        assert (run.state.rounds >= 1).all() or run.infos[-1].choice.hmc_steps == 0
        lengths = {info.choice.leapfrog_steps for info in run.infos if info.choice.hmc_steps}
        if annealing.leapfrog_steps is None:
            assert lengths <= {*LADDER}
        else:
            assert max(lengths, default=0) <= annealing.leapfrog_steps


@pytest.mark.slow
def test_what_is_affordable_fits_and_leaves_something_for_the_posterior() -> None:
    travels = (0.0, 0.3, 2.0, 8.3, 40.0)
    cases = itertools.product((None, 1, 5, 24), range(301), travels, (1, 3, 8), (8.0, 1.0, 0.0))
    for fixed, remaining, travel, moves, rounds in cases:
        annealing = Annealing(leapfrog_steps=fixed, target_cess=0.5)
        plan = annealing_plan.BudgetPlan(remaining, travel, rounds)
        for length in LADDER if fixed is None else (fixed,):
            count, made, steps = annealing_plan.fit_budget(plan, length, moves, annealing)
            assert 0 <= made <= moves
            assert 1 <= count <= length
            spent = count * (
                made if travel > 0.0 else annealing_plan.moves_per_round(made, annealing)
            )
            assert spent <= remaining
            assert made > 0 or remaining < (fixed or 1)
            # Where more than one step is to come, or where eight rounds are missing, the budget
            # must afford at least one further trajectory after this temperature.
            if travel > 0.0 and steps > (0.0 if rounds == 8.0 else 1.0):
                assert remaining - spent >= count
            # A jump to beta = 1 (no steps) is allowed only where the budget cannot pay three of the
            # shortest trajectories: one for the step and two for the reserved rounds.
            assert steps > 0.0 or travel == 0.0 or remaining < 3 * (fixed or min(length, 3))


@pytest.mark.slow
@all_masses
def test_short_budgets_report_oversized_steps(mass: str) -> None:
    for budget, oversized_steps in ((1, True), (8, True), (400, False)):
        run = sample(MIXED.rows([1]), Annealing(budget=budget, mass=mass))
        assert run.state.oversized_steps.tolist() == [oversized_steps] * 2
    # The budget pays the first gradient and seven trajectories of L = 4: two reserved rounds, and
    # five steps that must cover the distance of the sharpest observation.
    annealing = Annealing(budget=1 + 4 * 7, leapfrog_steps=4, mass=mass)
    run = sample(MIXED, annealing, observations=3)
    moving = torch.ones(6, dtype=torch.bool)
    forced = torch.zeros(6, dtype=torch.bool)
    for info in run.infos:
        forced |= moving & (info.choice.kept < 0.1)
        moving = info.choice.beta < 1.0
    assert torch.equal(run.state.oversized_steps, forced)
    assert forced.any()
    assert not sample(MIXED, Annealing(mass=mass), observations=3).state.oversized_steps.any()


@pytest.mark.slow
def test_a_small_share_that_was_asked_for_is_not_an_oversized_step() -> None:
    assert annealing_plan.least_kept(Annealing()) == 0.1
    assert annealing_plan.least_kept(Annealing(target_cess=0.1)) == pytest.approx(0.1)
    assert annealing_plan.least_kept(Annealing(target_cess=0.02)) == pytest.approx(0.02)
    for budget in (None, 2_000):
        run = sample(MIXED, Annealing(target_cess=0.08, budget=budget), observations=3)
        assert not run.state.oversized_steps.any()
    assert (run.state.sharpness > 0.0).all()  # such large steps estimate beta sd(E), too
    # Seven gradients after the first one force steps that keep even less than 0.08.
    short = sample(MIXED, Annealing(target_cess=0.08, budget=8), observations=3)
    assert short.state.oversized_steps.all()


@pytest.mark.slow
def test_more_budget_means_smaller_steps_then_more_moves() -> None:
    kept, moves = [], []
    for budget in (3, 10, 20, 40, 80, 160, 320, 640, 10**6):
        annealing = Annealing(budget=budget, leapfrog_steps=4, target_cess=0.5)
        state = begun(MIXED.rows([2]))
        forgetful = dataclasses.replace(
            state.tuning, autocorrelation=0.95 + 0.0 * state.tuning.autocorrelation
        )
        _, choice = smc.choose(dataclasses.replace(state, tuning=forgetful), annealing)
        kept.append(choice.kept[0].item())
        moves.append(choice.hmc_steps)
    assert kept == sorted(kept)
    assert moves == sorted(moves)
    assert kept[0] == 0.0
    assert kept[-1] == 0.5
    assert moves[0] == 0
    assert moves[-1] == 8
    assert moves[kept.index(0.5) - 1] == 1  # the steps become small before M exceeds 1
    how: dict[str, Any] = {"target": MIXED.rows([2])}
    free, ample = sample(**how), sample(**how, annealing=Annealing(budget=3_000))
    assert free.infos[0].choice.kept.tolist() == [Annealing.target_cess] * 2
    assert torch.equal(free.infos[0].choice.beta, ample.infos[0].choice.beta)


STEP = math.sqrt(math.log(2.0))  # a step of STEP / sd(E) keeps half of the CESS
FITS: dict[str, tuple[int, float, int, int, int, int | None, tuple[int, int, float]]] = {
    # Columns: remaining gradients, distance, L, M, rounds missing, fixed L; expected (L, M, steps).
    # With the share asked for, the distance takes 10 steps. A round at beta = 1 has a third of the
    # M moves, rounded up.
    "all-affordable": (8 * 35, 10 * STEP, 8, 3, 5, None, (8, 3, 10.0)),
    "not-all-moves": (8 * 35 - 1, 10 * STEP, 8, 3, 5, None, (8, 2, 10.0)),
    "one-move": (8 * 15, 10 * STEP, 8, 3, 5, None, (8, 1, 10.0)),
    "larger-steps": (8 * 15 - 1, 10 * STEP, 8, 3, 5, None, (8, 1, 119 / 8 - 4)),
    # s steps keep exp(-log 2 (10 / s)^2), which is at least 0.1 from s = 5.487 on. With four
    # reserved rounds, which make eight with those already made, L = 8 needs 75.9 gradients for
    # that.
    "largest-steps": (76, 10 * STEP, 8, 3, 5, None, (8, 1, 76 / 8 - 4)),
    "shorter": (75, 10 * STEP, 8, 3, 5, None, (6, 1, 75 / 6 - 4)),
    "eight-rounds-at-most": (100, 10 * STEP, 8, 3, 9, None, (6, 1, 100 / 6 - 8)),
    "shorter-if-it-may": (75, 10 * STEP, 8, 3, 5, 8, (8, 1, 75 / 8 - 2)),
    "much-shorter": (37, 10 * STEP, 8, 3, 5, None, (3, 1, 37 / 3 - 4)),
    # Where even L = 3, the least length, has no room for four rounds, two are reserved.
    "fewer-rounds": (28, 10 * STEP, 8, 3, 5, None, (3, 1, 28 / 3 - 2)),
    # With these, L = 3 keeps 0.1 from 22.5 gradients on. Below, steps of any size are taken.
    "too-large-steps": (23, 10 * STEP, 8, 3, 5, None, (3, 1, 23 / 3 - 2)),
    "anything-below": (22, 10 * STEP, 8, 3, 5, None, (6, 1, 22 / 6 - 2)),
    "a-single-step": (9, 10 * STEP, 8, 3, 5, None, (3, 1, 1.0)),
    "shorter-from-the-start": (3, 10 * STEP, 1, 3, 5, None, (1, 1, 1.0)),
    "too-little-for-a-way": (8, 10 * STEP, 8, 3, 5, None, (8, 1, 0.0)),
    "a-jump": (2, 10 * STEP, 8, 3, 5, None, (2, 1, 0.0)),
    "a-jump-of-fixed-length": (23, 10 * STEP, 8, 3, 5, 8, (8, 1, 0.0)),
    "one-left": (1, 10 * STEP, 8, 3, 5, None, (1, 1, 0.0)),
    "nothing-left": (0, 10 * STEP, 8, 3, 5, None, (8, 0, 0.0)),
    "too-little-left": (7, 10 * STEP, 8, 3, 5, 8, (8, 0, 0.0)),
    "at-the-end": (8 * 5 * 2, 0.0, 8, 6, 5, None, (8, 6, 0.0)),
    # At beta = 1 only the rounds that are missing need gradients, but at least one is planned.
    "two-rounds-missing": (8 * 2 * 2, 0.0, 8, 6, 2, None, (8, 6, 0.0)),
    "not-for-all-their-moves": (8 * 2 * 2 - 1, 0.0, 8, 6, 2, None, (8, 3, 0.0)),
    "the-last-round": (8 * 2, 0.0, 8, 6, 1, None, (8, 6, 0.0)),
    "a-round-too-many": (8 * 2, 0.0, 8, 6, 0, None, (8, 6, 0.0)),
}


@pytest.mark.parametrize("name", FITS)
def test_what_fits_into_a_budget_by_hand(name: str) -> None:
    remaining, travel, length, moves, rounds, fixed, expected = FITS[name]
    annealing = Annealing(leapfrog_steps=fixed, final_rounds=9, target_cess=0.5)
    found = annealing_plan.fit_budget(
        annealing_plan.BudgetPlan(remaining, travel, rounds), length, moves, annealing
    )
    assert found[:2] == expected[:2]
    assert found[2] == pytest.approx(expected[2], rel=1e-12, abs=1e-12)


def test_the_share_that_steps_keep_by_hand() -> None:
    assert annealing_plan.share_kept(0.0, 3.0) == 1.0
    assert annealing_plan.share_kept(0.0, 0.0) == 1.0
    assert annealing_plan.share_kept(5.0, 0.0) == 0.0
    assert annealing_plan.share_kept(10 * STEP, 10.0) == pytest.approx(0.5, rel=1e-12)


def test_the_distance_to_the_posterior_by_hand() -> None:
    def travel(beta: float, sharpness: float, aim: float = 1.0) -> float:
        return annealing_plan.distance_left(
            annealing_plan.IslandStatus(True, 0.0, 0.5, 0.9, 1.0, beta, sharpness, 0.0, aim), 8
        )

    assert travel(1.0, 3.0) == 0.0
    assert travel(math.exp(-2.0), 3.0) == pytest.approx(6.0)  # 3 steps for each of two e-folds
    floor = 0.6 * 2.0  # the least steps per e-fold, 0.6 sqrt(d / 2) with d = 8
    assert travel(math.exp(-2.0), 0.0) == pytest.approx(2.0 * floor)
    assert travel(math.exp(-2.0), 0.1) == pytest.approx(2.0 * floor)
    assert travel(0.0, 3.0) == pytest.approx(30.0)  # at beta = 0 ten e-folds are assumed
    assert travel(math.exp(-3.0), 3.0, math.exp(-1.0)) == pytest.approx(6.0)
    # 0.3 e-folds beyond the aim
    assert travel(math.exp(-0.5), 3.0, math.exp(-1.0)) == pytest.approx(0.9)


# --- who chooses it -------------------------------------------------------------------------------


def standing(**changes: Any) -> AnnealingStatus:
    tuned = Tuning(
        tensor(0.1, 0.05, 0.9).log(),
        tensor(1.6, 0.2, 0.9).log(),
        torch.stack(
            [tensor(0.75, 0.3, 0.99, 0.99), tensor(0.2, 0.72, 0.95, 0.4), tensor(*4 * [0.99])]
        ),
        tensor(0.9, 0.5, 0.1),
        tensor(1.0, 1.0, 1.0),
    )
    values: dict[str, Any] = {
        "active": torch.tensor([True, True, False]),
        "beta": tensor(0.1, 0.5, 1.0),
        "sharpness": torch.zeros(3, dtype=F64),
        "rounds": torch.tensor([0, 0, 8]),
        "aim": torch.ones(3, dtype=F64),
        "tuning": tuned,
        "size": 8,
        "spent": 10,
    }
    return AnnealingStatus(**values | changes)


def test_the_plan_depends_on_active_rows_only() -> None:
    # L is the geometric mean of the ratios 16 and 4 of the two active rows. Before beta = 1 the
    # larger correlation of energies and of all latents counts, 0.75 and 0.72; 0.75^6 and 0.72^5 are
    # their first powers below 0.2.
    chosen = annealing_plan.choose(standing(), Annealing(target_cess=0.7))
    assert (chosen.leapfrog_steps, chosen.hmc_steps) == (8, 6)
    assert chosen.moves.tolist() == [6, 5, 0]
    assert chosen.moves.dtype is torch.int64
    assert chosen.kept.tolist() == [0.7, 0.7, 0.7]
    fixed = annealing_plan.choose(standing(), Annealing(leapfrog_steps=6, hmc_steps=5))
    assert (fixed.leapfrog_steps, fixed.hmc_steps) == (6, 5)
    assert fixed.moves.tolist() == [5, 5, 0]


def test_there_are_fewer_moves_where_further_ones_forget_little() -> None:
    # The moves beyond the first, five and four, are multiplied by the further decorrelation. This
    # is not done at the posterior, where no weights correct for moves that are left out.
    for forgetting, moves in ((0.5, [3, 3, 0]), (0.0, [1, 1, 0]), (0.7, [5, 4, 0])):
        tuned = dataclasses.replace(
            standing().tuning, further_decorrelation=tensor(*3 * [forgetting])
        )
        assert annealing_plan.choose(standing(tuning=tuned), Annealing()).moves.tolist() == moves
        there = standing(tuning=tuned, beta=tensor(1.0, 1.0, 1.0))
        assert annealing_plan.choose(there, Annealing()).moves.tolist() == [3, 3, 0]


def test_rejected_moves_do_not_tell_how_many_are_needed() -> None:
    # Where the acceptance is below 0.5, there are the most moves, 8, but not at the posterior.
    tuned = dataclasses.replace(standing().tuning, acceptance=tensor(0.499, 0.501, 0.1))
    assert annealing_plan.choose(standing(tuning=tuned), Annealing()).moves.tolist() == [8, 5, 0]
    there = standing(tuning=tuned, beta=tensor(1.0, 1.0, 1.0))
    at_ease = standing(beta=tensor(1.0, 1.0, 1.0))
    for patience in (8, 100):
        rule = Annealing(rule=TuningRule(most_moves=patience))
        assert torch.equal(
            annealing_plan.choose(there, rule).moves, annealing_plan.choose(at_ease, rule).moves
        )


def test_at_the_posterior_the_slowest_directions_count_too() -> None:
    # At the posterior the largest correlation counts, here 0.99 and 0.95. Below 0.7 they take more
    # than the eight moves allowed, and seven; a round has a third of these, rounded up.
    there = standing(beta=tensor(1.0, 1.0, 1.0))
    assert annealing_plan.choose(there, Annealing()).moves.tolist() == [3, 3, 0]
    patient = Annealing(rule=TuningRule(most_moves=100))
    assert annealing_plan.choose(there, patient).moves.tolist() == [12, 3, 0]


def test_a_plan_without_active_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^state: expected an observation that is not finished"):
        annealing_plan.choose(standing(active=torch.zeros(3, dtype=torch.bool)), Annealing())


# Distances are 0.6 sqrt(8 / 2) = 1.2 steps per e-fold, times log 10 and log 2 e-folds. The third
# row is finished and has none.
WAYS = [1.2 * math.log(10.0), 1.2 * math.log(2.0)]


def test_steps_are_planned_for_the_row_with_the_longest_distance() -> None:
    annealing = Annealing(target_cess=0.9, budget=10 + 120)
    chosen = annealing_plan.choose(standing(), annealing)
    steps = 120 / 8 - 8.0
    assert WAYS[0] / math.sqrt(-math.log(0.9)) > steps
    assert (chosen.leapfrog_steps, chosen.moves.tolist()) == (8, [1, 1, 0])
    expected = [min(0.9, math.exp(-((way / steps) ** 2))) for way in WAYS]
    assert chosen.kept[:2].tolist() == pytest.approx(expected, rel=1e-12)
    assert expected[0] < 0.9


def test_moves_within_a_budget_are_common() -> None:
    # M follows from the mean correlation of the active rows, 0.735, which takes six moves. The
    # budget needed is 8.5 steps of M L = 48 gradients for the longest distance, and 30 rounds of
    # two moves, 2 L = 16 gradients each.
    least = math.ceil(48.0 * WAYS[0] / math.sqrt(-math.log(0.9)) + 16.0 * 30.0)
    assert least == 889
    for left, moves in ((10**6, 6), (889, 6), (888, 5)):
        chosen = annealing_plan.choose(standing(), Annealing(target_cess=0.9, budget=10 + left))
        assert (chosen.leapfrog_steps, chosen.moves.tolist()) == (8, [moves, moves, 0])
        assert chosen.kept[:2].tolist() == [0.9, 0.9]
        assert chosen.hmc_steps == moves


def test_rounds_are_planned_for_the_row_that_misses_most() -> None:
    # At beta = 1 the row with fewest rounds has made 3 of 30, and a round costs 3 L = 24 gradients.
    # The finished row, with 28 rounds, does not count.
    there: dict[str, Any] = {"beta": torch.ones(3, dtype=F64), "rounds": torch.tensor([3, 6, 28])}
    for left, moves in ((648, 3), (647, 2), (432, 2), (431, 1), (216, 1)):
        chosen = annealing_plan.choose(standing(**there), Annealing(budget=10 + left))
        assert (chosen.leapfrog_steps, chosen.moves.tolist()) == (8, [moves, moves, 0])
    # After one more round of that row 26 rounds are missing.
    there["rounds"] = torch.tensor([4, 6, 28])
    chosen = annealing_plan.choose(standing(**there), Annealing(budget=10 + 624))
    assert chosen.moves.tolist() == [3, 3, 0]


def test_rounds_at_the_posterior_are_reserved_once() -> None:
    # Eight rounds of L = 3 use 24 gradients exactly. Each call plans one round, and must leave the
    # gradients that the rounds after it need.
    remaining, lengths = 24, []
    for rounds in range(30, 22, -1):
        length, moves, _ = annealing_plan.fit_budget(
            annealing_plan.BudgetPlan(remaining, 0.0, rounds), 8, 1, Annealing()
        )
        lengths.append(length * moves)
        remaining -= length * moves
    assert lengths == [3] * 8


def test_a_fixed_number_of_moves_is_kept_within_a_budget() -> None:
    annealing = Annealing(hmc_steps=4, final_rounds=9, target_cess=0.5)
    for remaining, expected in (
        (8 * 4 * (10 + 9), (8, 4, 10.0)),
        (8 * 4 * (10 + 9) - 1, (8, 4, 607 / 32 - 8)),
        # Six steps beside two rounds keep more than 0.1, as do all from 5.487 on.
        (3 * 4 * 8, (3, 4, 6.0)),
        (3 * 4, (3, 4, 0.0)),
        (3, (3, 1, 0.0)),  # too few for four moves even of L = 1
    ):
        found = annealing_plan.fit_budget(
            annealing_plan.BudgetPlan(remaining, 10 * STEP, 9), 8, 4, annealing
        )
        assert found[:2] == expected[:2]
        assert found[2] == pytest.approx(expected[2], rel=1e-12, abs=1e-12)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("target_cess", v) for v in (0.0, 1.0, -0.1, 1.5, math.nan, "0.5", None, True)),
        *(("resample_below", v) for v in (0.0, 1.0, -1, math.inf, "often", None, True)),
        *(("leapfrog_steps", v) for v in (0, -1, 2.0, True, "4")),
        *(("hmc_steps", v) for v in (0, -1, 2.0, True)),
        *(("budget", v) for v in (0, -5, 1e3, True)),
        *(("final_rounds", v) for v in (0, 1.5, None, True)),
        *(("mass", v) for v in ("full", "diagonal", "low-rank", 1, False, None)),
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
