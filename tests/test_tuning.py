"""Moves that tune themselves: step size, trajectory length, and moves for each temperature."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from annealed import F64, MIXED, ROUNDING, LinearGaussian, begun, changed, native, normal, sample
from torch import Tensor

from cogen_fast.ops.reference import Proposal
from cogen_fast.ops.spec import TransitionSettings
from cogen_fast.sampler import hmc, smc, tuning
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.hmc import HMCInfo, HMCState
from cogen_fast.sampler.tuning import LADDER, Tuning, TuningRule

pytestmark = pytest.mark.usefixtures("one_thread")

Array = npt.NDArray[np.float64]
ONE = torch.ones(1, dtype=F64)
LEARNS = torch.tensor([True])
AT_ONCE = TransitionSettings(0.0 * ONE, ONE, ONE)


def nothing(z: Tensor) -> Tensor:
    return 0.0 * z.sum(-1)


def tuned(
    step: float | Tensor, length: float | Tensor = 1.0, memory: float = 0.0, count: int = 1
) -> Tuning:
    ones = torch.ones(count, dtype=F64)
    return Tuning(
        (ones * step).log(),
        (ones * length).log(),
        torch.full((count, tuning.STATISTICS), memory, dtype=F64),
        ones * tuning.POOR_ACCEPTANCE,
        ones,
    )


def some_state(b: int, n: int, d: int) -> HMCState:
    stream = hmc.noise_stream(0, b, torch.device("cpu"))
    return HMCState(normal(b, n, d, seed=1), normal(b, n, seed=2), normal(b, n, d, seed=3), stream)


def some_move(b: int, n: int, d: int) -> tuple[HMCState, HMCState, HMCInfo, TransitionSettings]:
    state = some_state(b, n, d)
    energy, latents = (x + 0.5 * normal(*x.shape, seed=4) for x in (state.energy, state.latents))
    after = dataclasses.replace(state, energy=energy, latents=latents)
    probability = normal(b, n, seed=5).abs().clamp(max=1.0)
    position, momentum = (normal(b, n, d, seed=seed) for seed in (6, 7))
    proposal = Proposal(position, momentum, probability)
    info = HMCInfo(probability, probability > 0.5, probability, proposal)
    step = torch.linspace(0.1, 0.3, b, dtype=F64)
    return state, after, info, TransitionSettings(step, step, step)


# --- what a move teaches --------------------------------------------------------------------------


def test_the_start_suits_a_standard_normal() -> None:
    start = tuning.init(2, 16, None, torch.device("cpu"))
    assert start.log_step.exp().tolist() == pytest.approx([0.35, 0.35])
    assert start.log_length.exp().tolist() == pytest.approx([1.4, 1.4])
    assert torch.equal(start.autocorrelation, torch.zeros(2, 4, dtype=F64))
    assert start.acceptance.tolist() == [0.5, 0.5]
    given = tuning.init(1, 16, 0.3, torch.device("cpu"))
    assert given.log_step.exp().item() == pytest.approx(0.3)


@pytest.mark.parametrize("n", [4, 15, 16, 100])
def test_the_step_follows_the_acceptance_by_hand(n: int) -> None:
    # The step size changes from the one that the move used, 0.2, and not from the known one, 5. The
    # change is smaller where fewer than 16 chains estimate the acceptance.
    before, after, info, settings = some_move(2, n, 3)
    used, both = tuned(0.2, count=2), torch.tensor([True, True])
    known = tuned(5.0, count=2)
    rule = TuningRule(target=0.8, step_gain=0.3)
    found = tuning.update(known, used, before, after, info, settings, 6, rule, both)
    change = 0.3 * min(1.0, n / 16) * (info.acceptance_probability.mean(-1) - 0.8)
    torch.testing.assert_close(found.log_step, math.log(0.2) + change, **ROUNDING)
    assert change.abs().min() > 1e-3


def test_autocorrelations_by_hand() -> None:
    # The statistics are the energies, all 17 latents, and the stiffest and the softest eighth of
    # these: the first three columns and the last three.
    before, after, info, settings = some_move(2, 30, 17)
    known, both = tuned(0.1, memory=0.3, count=2), torch.tensor([True, True])
    found = tuning.update(known, tuned(0.1, memory=0.9, count=2), before, after, info, settings, 3,
                          TuningRule(memory_gain=0.25), both)  # fmt: skip
    for row in range(2):
        expected = [np.corrcoef(before.energy[row], after.energy[row])[0, 1]]
        for columns in (slice(None), slice(0, 3), slice(14, 17)):
            a, b = (x.latents[row, :, columns].numpy() for x in (before, after))
            a, b = a - a.mean(0), b - b.mean(0)
            expected.append((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))
        wanted = 0.75 * 0.3 + 0.25 * np.array(expected)
        np.testing.assert_allclose(found.autocorrelation[row], wanted, rtol=1e-10)
        assert len(set(expected)) == 4


def test_the_mean_acceptance_by_hand() -> None:
    before, after, info, settings = some_move(2, 30, 3)
    known, both = tuned(0.1, count=2), torch.tensor([True, True])
    rule = TuningRule(memory_gain=0.25)
    found = tuning.update(known, known, before, after, info, settings, 3, rule, both)
    expected = 0.75 * 0.5 + 0.25 * info.acceptance_probability.mean(-1)
    torch.testing.assert_close(found.acceptance, expected, **ROUNDING)


def test_further_decorrelation_by_hand() -> None:
    # In order, the rows are: every move reduces the correlation by the same factor; moves after the
    # first reduce nothing; they reduce half of what is possible; the latents are the slower
    # statistic; the moves reduce more than is possible; there is a single move; the row does not
    # learn.
    one = torch.tensor(
        [[0.9, 0.1], [0.9, 0.1], [0.8, 0.1], [0.1, 0.8], [0.5, 0.1], [0.9, 0], [0.9, 0]]
    )
    whole = torch.tensor(
        [
            [0.9**4, 0.1],
            [0.9, 0.0],
            [0.8 - 0.5 * 0.16, 0.1],
            [0.9, 0.64],
            [-0.3, 0],
            [0.9, 0],
            [0.9, 0],
        ]
    )
    moves = torch.tensor([4, 3, 2, 2, 5, 1, 3])
    known = dataclasses.replace(
        tuned(0.1, count=7), further_decorrelation=torch.full((7,), 0.4, dtype=F64)
    )
    learns = torch.arange(7) < 6
    rule = TuningRule(memory_gain=0.5)
    after = tuning.update_further_decorrelation(
        known, one.double(), whole.double(), moves, rule, learns
    )
    expected = [0.7, 0.2, 0.45, 0.7, 0.7, 0.4 + 0.1 * 0.6, 0.4]
    assert after.further_decorrelation.tolist() == pytest.approx(expected, rel=1e-5)
    assert {f for r in range(7) for f in changed(known, after, r)} == {"further_decorrelation"}


def test_further_decorrelation_compares_the_first_move_with_all_moves() -> None:
    # Two steps start from one state with the same random numbers, so that the single move of one is
    # the first of the four moves of the other. Their correlations give the expected update.
    target = LinearGaussian(sigma=0.1)
    state = begun(target, observations=2)
    for _ in range(5):
        state, _ = smc.step(state, target, Annealing())
    ends = [smc.step(state, target, Annealing(hmc_steps=m))[0] for m in (1, 4)]
    _, choice = smc.choose(state, Annealing(hmc_steps=4))
    start = smc.resample(smc.weigh(state, choice.beta, choice.slow), choice.resampled, native())[0]
    one, whole = (tuning.correlations(start.hmc, end.hmc)[:, :2] for end in ends)
    moves, learns = torch.full((4,), 4), torch.ones(4, dtype=torch.bool)
    found = tuning.update_further_decorrelation(
        state.tuning, one, whole, moves, TuningRule(), learns
    )
    torch.testing.assert_close(
        found.further_decorrelation, ends[1].tuning.further_decorrelation, rtol=1e-6, atol=1e-8
    )
    assert (found.further_decorrelation < 1.0).any()


def test_correlations_are_those_of_constructed_moves() -> None:
    # z' = c z + sqrt(1 - c^2) x has the correlation c, which differs by direction. Estimated from n
    # = 20,000 chains it has a standard error of (1 - c^2) / sqrt(n), at most 1 / sqrt(n); the bound
    # is four of these.
    n = 20_000
    state = some_state(1, n, 16)
    kept = torch.linspace(0.9, 0.1, 16, dtype=F64)
    moved = kept * state.latents + (1.0 - kept**2).sqrt() * normal(1, n, 16, seed=8)
    found = tuning.correlations(state, dataclasses.replace(state, latents=moved))[0]
    expected = [1.0, kept.mean(), kept[:2].mean(), kept[-2:].mean()]
    assert found.tolist() == pytest.approx([float(e) for e in expected], abs=4.0 / math.sqrt(n))


def test_values_that_do_not_vary_have_a_correlation_of_one() -> None:
    state = some_state(1, 8, 3)
    alike = dataclasses.replace(state, latents=state.latents[:, :1].expand(-1, 8, -1) / 3.0)
    for before, after in ((state, alike), (alike, state), (alike, alike)):
        assert tuning.correlations(before, after)[0, 1:].tolist() == [1.0, 1.0, 1.0]
    assert tuning.correlations(state, state)[0].tolist() == pytest.approx([1.0] * 4)


def test_rows_that_do_not_learn_keep_their_estimates() -> None:
    before, after, info, settings = some_move(3, 20, 3)
    known, used = tuned(0.1, 0.5, 0.3, count=3), tuned(0.2, 0.9, 0.4, count=3)
    learns = torch.tensor([True, False, True])
    found = tuning.update(known, used, before, after, info, settings, 6, TuningRule(), learns)
    assert changed(known, found, 1) == set()
    assert changed(known, found, 0) == {"log_step", "log_length", "autocorrelation", "acceptance"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_estimates_of_other_islands_are_averaged(count: int) -> None:
    each = Tuning(
        normal(6, seed=1),
        normal(6, seed=2),
        normal(6, 4, seed=3),
        *(normal(6, seed=s) for s in (4, 5)),
    )
    found = tuning.mean_of_others(each, count)
    for field in dataclasses.fields(Tuning):
        values = getattr(each, field.name)
        mates = [k for k in range(count) if k != 0] or [0]
        torch.testing.assert_close(getattr(found, field.name)[0], values[mates].mean(0))


# --- the length -----------------------------------------------------------------------------------


def leapfrog_turn(length: float, steps: int) -> Array:
    """The matrix from ``(z, v)`` to ``(z', v')`` on a scale of 1, v' before its last half kick."""
    eps = length / steps
    zv = np.eye(2)
    zv[1] -= 0.5 * eps * zv[0]
    for k in range(steps):
        zv[0] += eps * zv[1]
        if k < steps - 1:
            zv[1] -= eps * zv[0]
    return zv


def exact_slope(length: float, steps: int) -> float:
    """The slope of ``log(ChEES / sqrt(length))`` by log length, in one dimension.

    With ``change = z'^2 - z^2``: ``4 length E[change z' v] / E[change^2] - 1 / 2``, by the moments
    of jointly Gaussian numbers (Isserlis).
    """
    (a, b), (c, e) = leapfrog_turn(length, steps)
    s, k = a * a + b * b, a * c + b * e
    gain = 3.0 * s * k - (k + 2.0 * a * c)
    criterion = 3.0 * s * s - 2.0 * (s + 2.0 * a * a) + 3.0
    return float(4.0 * length * gain / criterion - 0.5)


BEST = 1.39325  # solves tan x = 4 x: the best trajectory length of the exact flow


@pytest.mark.parametrize("length", [0.3, 0.8, BEST, 1.5])
def test_the_slope_of_the_length_is_that_of_the_closed_form(length: float) -> None:
    # Chains are exact draws in one dimension, and steps so short that all are accepted. The slope
    # is a ratio of means, whose standard error is by the delta method. In the limit of short steps
    # it is 2 x cot x - 1 / 2 for the length x, which is 0 where tan x = 4 x.
    n, steps = 20_000, 64
    state = hmc.init(nothing, normal(1, n, 1, seed=9), seed=9)
    settings = dataclasses.replace(AT_ONCE, step_size=length / steps * ONE)
    _, info = hmc.transition(state, hmc.as_potential(nothing), settings, steps, native())
    found = tuning.length_slope(state, info, settings, steps).item()
    z, end = state.latents[0, :, 0].numpy(), info.proposal.position[0, :, 0].numpy()
    change, speed = end**2 - z**2, info.proposal.momentum[0, :, 0].numpy()
    ratio = (change * end * speed).mean() / (change**2).mean()
    spread = (change * end * speed - ratio * change**2).std() / math.sqrt(n)
    error = 4.0 * length * spread / (change**2).mean()
    assert abs(found - exact_slope(length, steps)) <= 4.0 * error
    assert error < 0.05
    limit = 2.0 * length / math.tan(length) - 0.5
    # The velocity is taken before the last half kick, half a step too early. With h = x / (2 L) the
    # slope is then 2 x (cot x cos h + sin h) - 1 / 2, so the first-order difference is 2 x h.
    assert abs(exact_slope(length, steps) - limit) < 2.0 * length * (length / (2 * steps)) * 1.1


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("start", [0.3, 1.9])
def test_the_length_maximises_chees_over_its_square_root(d: int, start: float) -> None:
    # Every move starts from exact draws of scale 1 and has 16 leapfrog steps. Near the optimum the
    # slope falls by about 2.5 per unit of length, so that the mean of the lengths has the standard
    # deviation of the mean of the slopes, divided by 2.5. The slope of 2,000 chains has a standard
    # deviation of 0.06 at most (by the delta method, as above).
    steps, chains = 16, 2000
    rule = TuningRule(step_gain=0.0, length_gain=0.2)
    now = tuned(0.07, start)
    path = []
    for k in range(60):
        state = hmc.init(nothing, normal(1, chains, d, seed=k), seed=k)
        settings = dataclasses.replace(AT_ONCE, step_size=now.log_length.exp() / steps)
        after, info = hmc.transition(state, hmc.as_potential(nothing), settings, steps, native())
        now = tuning.update(now, now, state, after, info, settings, steps, rule, LEARNS)
        path.append(now.log_length.exp().item())
    found = float(np.mean(path[-40:]))
    low, high = 0.5, 2.0
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if exact_slope(middle, steps) > 0.0 else (low, middle)
    # 0.01: a bias of order 1 / chains
    assert abs(found - low) < 4.0 * 0.06 / 2.5 / math.sqrt(40) + 0.01
    # BEST is the optimum of the exact flow. The velocity, taken half a step too early, adds about
    # x^2 / L = 0.12 to a slope that falls by 2.5 per unit, so the optimum is less than 0.05 larger.
    assert math.tan(BEST) == pytest.approx(4 * BEST, rel=1e-4)
    assert 0.0 < low - BEST < 0.05


def test_the_slope_is_in_units_of_the_mass() -> None:
    # Coordinates multiplied by k and an inverse mass multiplied by k^2 give the same move, so that
    # the slope must not change.
    before, _, info, settings = some_move(2, 20, 3)
    plain = tuning.length_slope(before, info, settings, 5)
    k = 7.0
    wide = dataclasses.replace(before, latents=k * before.latents)
    proposal = Proposal(
        k * info.proposal.position, info.proposal.momentum / k, info.acceptance_probability
    )
    mass = dataclasses.replace(settings, inverse_mass=torch.full((2, 3), k * k, dtype=F64))
    found = tuning.length_slope(wide, dataclasses.replace(info, proposal=proposal), mass, 5)
    torch.testing.assert_close(found, plain)
    assert (plain.abs() < 2.0).all()


def test_proposals_that_are_not_finite_say_nothing_of_the_length() -> None:
    before, _, info, settings = some_move(1, 20, 3)
    info.acceptance_probability[0, 2] = 0.0
    slopes = []
    for lost in (torch.nan, torch.inf, None):
        position = info.proposal.position.clone()
        position[0, 2] = before.latents[0, 2] if lost is None else lost
        momentum = info.proposal.momentum.clone()
        momentum[0, 2] = 0.0 if lost is None else lost
        proposal = Proposal(position, momentum, info.acceptance_probability)
        change = dataclasses.replace(info, proposal=proposal)
        slopes.append(tuning.length_slope(before, change, settings, 5).item())
    assert slopes[0] == slopes[1] == slopes[2]
    assert abs(slopes[0]) < 2.0


def test_lengths_stay_within_what_the_ladder_can_do() -> None:
    state = some_state(1, 4, 2)
    full = torch.ones(1, 4, dtype=F64)
    info = HMCInfo(full, full > 0, full, Proposal(state.latents, state.latents, full))
    rule = TuningRule(step_gain=0.0, length_gain=0.0)
    for eps, length, expected in (
        (0.1, 0.01, 0.1 * 0.7),
        (0.01, 1.9, 0.01 * 1.4 * 32),
        (1.0, 40.0, 16.0),  # the longest, about ten times pi / 2, which crosses a scale of 1
        (0.1, 1.0, 1.0),
    ):
        start = tuned(eps, length)
        # Proposals equal to the start have a slope of 0 and a correlation of 1, of which the gain
        # 0.3 enters the running mean.
        found = tuning.update(start, start, state, state, info, AT_ONCE, 4, rule, LEARNS)
        assert found.log_length.exp().item() == pytest.approx(expected, rel=1e-12)
        assert found.autocorrelation[0].tolist() == pytest.approx([0.3] * 4)


def test_without_a_slope_the_length_goes_back_to_where_it_started() -> None:
    state = some_state(1, 4, 2)
    full = torch.ones(1, 4, dtype=F64)
    info = HMCInfo(full, full > 0, full, Proposal(state.latents, state.latents, full))
    rule, begun = TuningRule(step_gain=0.0), tuning.init(1, 2, 0.3, torch.device("cpu")).log_length
    for length in (0.7, 2.8):
        now = tuned(0.3, length)
        distances = []
        for _ in range(200):
            now = tuning.update(now, now, state, state, info, AT_ONCE, 4, rule, LEARNS)
            distances.append((now.log_length - begun).abs().item())
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] == pytest.approx(math.log(2.0) * (1.0 - 0.5 * 0.05) ** 200)


# --- the step -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_step_size_goes_to_the_target_from_both_sides() -> None:
    # Every move starts from exact draws of a standard normal in 20 dimensions, so that the
    # acceptance is a function of the step size, except for the noise of 3,000 chains. For one
    # leapfrog step it decreases throughout; for several it would rise again where they cross the
    # Gaussian in half a period.
    rule, d, chains = TuningRule(), 20, 3000
    ends = []
    for start in (1e-1, 1.8):
        now = tuning.init(1, d, start, torch.device("cpu"))
        path = []
        for k in range(90):  # a step size 6 times too small grows by exp(0.05) at most per move
            state = hmc.init(nothing, normal(1, chains, d, seed=k), seed=k)
            settings = dataclasses.replace(AT_ONCE, step_size=now.log_step.exp())
            after, info = hmc.transition(state, hmc.as_potential(nothing), settings, 1, native())
            now = tuning.update(now, now, state, after, info, settings, 1, rule, LEARNS)
            path.append((now.log_step.item(), info.acceptance_probability.mean().item()))
        steps = [step for step, _ in path]
        towards = np.diff([math.log(start), *steps[:5]])
        assert (towards > 0).all() if start < 0.2 else (towards < 0).all()
        ends.append(steps[-1])
        # The mean acceptance of a move has a standard deviation below 0.3 / sqrt(3000) = 0.006. The
        # mean over the last 20 moves differs from the target by the change of the log step size
        # over these moves, divided by 20 gains, which is of that size too.
        assert abs(np.mean([rate for _, rate in path[-20:]]) - 0.9) < 0.009
    # At the end the log step size has the standard deviation gain 0.006 / sqrt(1 - (1 - gain
    # slope)^2), which is below 0.006 if the acceptance falls by 0.3 to 1 per unit of log step size.
    # The bound is five standard deviations of the difference of two ends.
    assert abs(ends[0] - ends[1]) < 5.0 * 0.006 * math.sqrt(2.0)


def test_a_step_shrinks_with_the_scale_by_hand() -> None:
    # As beta grows by 4, the step size is multiplied by 0.5^share. The share is 1 - step^2 sqrt(d),
    # within [0, 1]: how far the step size is below that of a standard normal.
    step = torch.tensor([0.01, 0.5, 0.9, 0.01], dtype=F64)
    before = tuned(step, count=4)
    beta = torch.tensor([0.1, 0.1, 0.1, 0.0], dtype=F64)
    sharper = tuning.shrink_step_size(before, beta, 4.0 * beta, 4)
    shares = [1.0 - 2.0 * 1e-4, 0.5, 0.0]
    expected = [s * 0.5**share for s, share in zip(step.tolist(), shares, strict=False)]
    assert sharper.log_step.exp()[:3].tolist() == pytest.approx(expected, rel=1e-12)
    # Growth from beta = 0 has no ratio, so that the step size does not change.
    first = tuning.shrink_step_size(before, beta, beta + 0.2, 4)
    assert first.log_step[3] == before.log_step[3]


def test_the_step_size_to_repeat_is_that_of_the_last_move() -> None:
    # The first step size, 300, is far too large, so that every refused move shrinks it. A choice
    # must record the step size of each row's last move: rows with fewer moves keep a larger one.
    state = begun(MIXED, observations=3, step_size_start=300)
    memory = torch.tensor([0.0, 0.71, 0.75], dtype=F64)  # for one, five and six moves
    memory = memory.repeat_interleave(2)[:, None].expand(-1, 4)
    state = dataclasses.replace(
        state, tuning=dataclasses.replace(state.tuning, autocorrelation=memory)
    )
    _, chosen = smc.choose(state, Annealing())
    _, info = smc.step(state, MIXED, Annealing())
    assert info.choice.moves.tolist() == [1, 1, 5, 5, 6, 6]
    first, last = (choice.step_size.reshape(3, 2) for choice in (chosen, info.choice))
    torch.testing.assert_close(first, torch.full((3, 2), 300.0, dtype=F64))
    torch.testing.assert_close(last[0], first[0], rtol=1e-14, atol=0)
    assert (last[2] < last[1]).all() and (last[1] < last[0]).all()


# --- how far and how often ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1e-9], 1), ([1.41], 1), ([1.42], 2), ([2.44], 2), ([2.46], 3), ([9.79], 8), ([9.81], 12),
        ([1e9], 32), ([4.0, 16.0], 8), ([1.0, 1.0, 64.0], 4),
    ],
    ids=str,
)  # fmt: skip
def test_lengths_of_the_ladder_by_hand(ratios: list[float], expected: int) -> None:
    assert tuning.leapfrog_steps([math.log(r) for r in ratios]) == expected


@pytest.mark.parametrize(
    ("memory", "left", "expected"),
    [
        (0.0, 0.7, 1), (-0.9, 0.7, 1), (0.7, 0.7, 1), (0.71, 0.7, 2), (0.83, 0.7, 2),
        (0.84, 0.7, 3), (0.95, 0.7, 7), (0.96, 0.7, 8), (0.999, 0.7, 8), (1.5, 0.7, 8),
        (0.7, 0.2, 1), (0.71, 0.2, 5), (0.76, 0.2, 6), (0.77, 0.2, 7), (0.9, 0.2, 8),
    ],
    ids=str,
)  # fmt: skip
def test_moves_needed_by_hand(memory: float, left: float, expected: int) -> None:
    # Expected is 1 where the correlation is at most 0.7, else the least M with memory^M <= left, at
    # most 8.
    assert tuning.moves_needed(memory, left, TuningRule()) == expected


def test_moves_of_other_rules_by_hand() -> None:
    assert tuning.moves_needed(0.9, 0.1, TuningRule(remembered=0.1, most_moves=50)) == 22
    assert tuning.moves_needed(0.9, 0.1, TuningRule(remembered=0.1, most_moves=5)) == 5


@pytest.mark.slow
def test_tuned_runs_take_their_length_from_the_ladder() -> None:
    # The first step size is too large for sigma = 0.01. While moves are refused the number of moves
    # is at its maximum, so that it varies within the run.
    run = sample(LinearGaussian(sigma=0.01), Annealing(mass="identity"), observations=3)
    lengths = [info.choice.leapfrog_steps for info in run.infos]
    assert set(lengths) <= set(LADDER)
    assert len(set(lengths)) > 1
    moves = {info.choice.hmc_steps for info in run.infos}
    assert moves <= set(range(1, 9))
    assert len(moves) > 1


@pytest.mark.parametrize("start", [0.003, 3.0], ids=["accepted", "refused"])
def test_the_first_temperature_has_a_single_move(start: float) -> None:
    # The running correlations start at 0, so that one move is planned, whether it is then accepted
    # or refused.
    target = LinearGaussian(sigma=0.01)
    state = begun(target, observations=2, step_size_start=start)
    _, info = smc.step(state, target, Annealing())
    assert info.choice.moves.tolist() == [1] * 4
    assert ((info.acceptance < 0.3) == (start > 1.0)).all()


@pytest.mark.slow
def test_rounds_and_moves_that_were_fixed() -> None:
    patient = sample(MIXED, Annealing(final_rounds=2), observations=3)
    assert patient.state.rounds.tolist() == [2] * 6
    target = LinearGaussian(sigma=0.01)
    run = sample(target, Annealing(hmc_steps=1), step_size_start=3.0)
    assert {info.choice.hmc_steps for info in run.infos} == {1}
    assert run.state.rounds.tolist() == [Annealing().final_rounds] * 2


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (n, v)
            for n in ("target", "remembered", "left", "memory_gain")
            for v in (0.0, 1.0, -0.5, "1")
        ),
        *((n, v) for n in ("step_gain", "length_gain") for v in (-0.1, math.inf, math.nan, None)),
        *(("jitter", v) for v in (-0.1, 1.0, 2.0, math.nan, "0.1")),
        *(("most_moves", v) for v in (0, -1, 2.0, None, True)),
    ],
)
def test_a_tuning_rule_names_the_argument_at_fault(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .*got {value!r}"):
        TuningRule(**{name: value})


def test_gains_and_jitter_may_be_zero() -> None:
    rule = TuningRule(step_gain=0.0, length_gain=0.0, jitter=0.0)
    assert (rule.step_gain, rule.length_gain, rule.jitter) == (0.0, 0.0, 0.0)
