"""Weights and what they tell of the normaliser's error, by hand and by closed forms."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from annealed import F64, LinearGaussian, begun, native, normal

from cogen_fast.sampler import smc
from cogen_fast.sampler.annealing_plan import Annealing
from cogen_fast.sampler.tuning import correlations
from cogen_fast.sampler.weights import (
    deviation_of_mean,
    effective_sample_size,
    error_of_log,
    log_mean_weight,
    nan_where_unknown,
    robust_deviation,
    second_order,
    surviving_roots,
    variance_between,
    variance_is_reliable,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


@pytest.mark.parametrize("level", [0.0, -900.0, 900.0])
def test_weights_count_as_many_as_they_are_worth(level: float) -> None:
    logs = torch.stack([tensor(1, 1, 1, 1), tensor(3, 1, 1, 1), tensor(1, 0, 0, 0)]).log() + level
    assert effective_sample_size(logs).tolist() == pytest.approx([4.0, 36.0 / 12.0, 1.0])
    expected = [level, level + math.log(1.5), level - math.log(4.0)]
    assert log_mean_weight(logs).tolist() == pytest.approx(expected, rel=1e-14, abs=1e-14)


def test_surviving_roots_by_hand() -> None:
    roots = torch.tensor([[3, 3, 3, 3], [7, 0, 7, 1], [900, 2, 1, 5]])
    assert surviving_roots(roots).tolist() == [1, 3, 4]


def test_second_order_by_hand() -> None:
    # 0.2 and a tenth more for 20 particles: 0.22, and half its square.
    assert second_order(tensor(0.0, 0.2), 20).tolist() == pytest.approx([0.0, 0.22 + 0.5 * 0.0484])


def test_second_order_is_the_variance_of_a_product_of_many_factors() -> None:
    # exp(v) - 1, but for the third order of v.
    v = tensor(0.01, 0.1, 0.3)
    assert ((second_order(v, 10**9) - v.expm1()).abs() < 0.2 * v**3).all()


def test_the_variance_between_estimates_by_hand() -> None:
    # Of R independent numbers, that of their mean over its square.
    values = torch.stack([tensor(1, 2, 6), tensor(4, 4, 4)])
    expected = values.var(-1) / 3.0 / values.mean(-1) ** 2
    for level in (0.0, -5000.0):
        found = variance_between(values.log() + level)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert (variance_between(values.log()) >= 0.0).all()
    assert variance_between(tensor(3.0, -2.0)[:, None]).tolist() == [0.0, 0.0]
    one_of_all = tensor(0.0, -1e9, -1e9)[None]
    assert variance_between(one_of_all).item() == pytest.approx(1.0)


def test_the_deviation_of_a_mean_by_hand() -> None:
    # Logarithms: unlike the relative variance of weights it has no bound.
    found = deviation_of_mean(torch.stack([tensor(1, 3, 5, 7), tensor(-40, 40, -40, 40)]))
    expected = [math.sqrt(20.0 / 3.0 / 4.0), math.sqrt(6400.0 / 3.0 / 4.0)]
    assert found.tolist() == pytest.approx([expected[0], 20.0 * math.sqrt(16.0 / 12.0)])
    assert found[1].item() == pytest.approx(expected[1])
    assert deviation_of_mean(tensor(3.0, -5.0)[:, None]).tolist() == [0.0, 0.0]


def test_the_variance_between_estimates_is_unbiased_to_first_order() -> None:
    # 20,000 times eight numbers with a relative deviation of 0.1: E[m^2 V] is the variance of the
    # mean m, 0.1^2 / 8, exactly. Four standard errors: one of 16,000 fails.
    values = 1.0 + 0.1 * normal(20_000, 8, seed=1)
    found = values.mean(-1) ** 2 * variance_between(values.log())
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(found.mean().item() - 0.01 / 8.0) < 4.0 * error
    assert error < 0.01 * 0.01 / 8.0


@pytest.mark.parametrize("size", [4, 16, 100])
def test_an_effective_two_roots_tell_their_variance(size: int) -> None:
    # k of N equal weights are an effective k.
    least = math.ceil(2.0 * math.sqrt(size))
    for k in range(1, size + 1):
        logs = torch.full((1, size), -math.inf, dtype=F64)
        logs[0, :k] = 3.0
        if k != least:  # equality is for rounding to decide
            assert variance_is_reliable(logs).tolist() == [k > least]


def test_the_error_of_a_logarithm_by_hand() -> None:
    # Variance v and a bias of minus half of it.
    assert error_of_log(tensor(0.0, 0.09, 4.0)).tolist() == pytest.approx(
        [0.0, math.hypot(0.3, 0.045), math.hypot(2.0, 2.0)]
    )


def test_the_error_of_a_logarithm_is_that_of_a_log_normal_mean() -> None:
    # W = exp(s x - s^2 / 2) has mean 1, relative variance exp(s^2) - 1, and the log the variance
    # s^2 and the bias -s^2 / 2: the same to second order of s^2.
    for s in (0.05, 0.2, 0.4):
        exact = math.hypot(s, 0.5 * s**2)
        assert error_of_log(tensor(math.expm1(s**2))).item() == pytest.approx(exact, rel=0.4 * s**2)


def test_errors_are_told_where_they_are_known() -> None:
    error = tensor(0.1, 0.2)
    found = nan_where_unknown(error, torch.tensor([False, True]))
    assert found is not None
    assert found[0].isnan() and found[1] == 0.2
    assert nan_where_unknown(error, torch.tensor([False, False])) is None


def test_the_robust_deviation_by_hand() -> None:
    # Median 3, distances 2 1 0 1 97, of which the median is 1: at most 3 * 1.4826 of it counts.
    found = robust_deviation(tensor(1, 2, 3, 4, 100))
    assert found.item() == pytest.approx(math.sqrt((4.0 + 1.0 + 1.0 + 4.4478**2) / 4.0))
    assert robust_deviation(tensor(7.0)).item() == 0.0
    assert robust_deviation(tensor(2.0, 2.0, 2.0)).item() == 0.0
    # Most alike: the distances' median says nothing, and all count.
    assert robust_deviation(tensor(2.0, 2.0, 2.0, 4.0)).item() == pytest.approx(math.sqrt(4 / 3))


def test_the_robust_deviation_is_that_of_a_gaussian() -> None:
    # Of 100,000: the standard error is sigma / sqrt(2 n), 0.0022 sigma, and the distances beyond
    # three deviations are 0.5 % of the variance longer than that.
    values = 5.0 + 3.0 * normal(2, 100_000, seed=1)
    found = robust_deviation(values)
    assert ((found / 3.0 - 0.9975).abs() < 4.0 * 0.0023).all()
    far = values.clone()
    far[:, :1000] = 1e12
    assert (robust_deviation(far) / found < 1.05).all()


# --- what a state knows of its normaliser's variance ----------------------------------------------


@pytest.mark.parametrize("betas", [(0.3,), (0.01, 0.3), (0.02, 0.05, 0.11, 0.3)])
def test_without_resampling_the_variance_is_that_of_a_mean(betas: tuple[float, ...]) -> None:
    # However many steps the weights have grown in: of N independent ones, var(w) / N / mean(w)^2.
    target = LinearGaussian(sigma=0.7)
    zeros, fast = torch.zeros(4, dtype=F64), torch.zeros(4, dtype=torch.bool)
    state = begun(target, observations=2, first_beta=zeros, draws=1)
    assert torch.equal(state.variance, zeros)
    for beta in betas:
        state = smc.weigh(state, zeros + beta, fast)
    weights = (-0.3 * state.hmc.energy).exp()
    expected = weights.var(-1) / 16.0 / weights.mean(-1) ** 2
    torch.testing.assert_close(state.variance, expected, rtol=1e-10, atol=0)
    if len(betas) == 1:  # nothing to be related to
        torch.testing.assert_close(state.expected_variance, expected, rtol=1e-10, atol=0)
    assert (expected > 0.005).all()


@pytest.mark.parametrize("level", [0.0, 7.0])
def test_what_ancestors_have_contributed_counts_again(level: float) -> None:
    # Twice the covariance of this factor with what came before, less what all share.
    state = begun(LinearGaussian(sigma=0.7), islands=1, first_beta=torch.zeros(1, dtype=F64))
    past, beta = normal(1, 16, seed=1), tensor(0.1)
    after = smc.weigh(dataclasses.replace(state, lineage=past + level), beta, beta > 1.0)
    own = 16.0 * torch.softmax(-0.1 * state.hmc.energy, -1) - 1.0
    both = torch.stack([own[0], past[0]]).cov()
    expected = both[0, 0] + 2.0 * both[0, 1]
    torch.testing.assert_close(after.variance[0], expected / 16.0, rtol=1e-9, atol=0)
    torch.testing.assert_close(after.lineage, past + level + own)


def test_what_moves_retain_counts_where_they_are_slow_by_hand() -> None:
    # (1 + r) / (1 - r) for r within [0, 0.99].
    state = begun(LinearGaussian(sigma=0.7), islands=4, first_beta=torch.zeros(4, dtype=F64))
    state = dataclasses.replace(state, retained=tensor(0.5, 0.6, -0.3, 1.0))
    for slow in (True, False):
        after = smc.weigh(state, 0.3 + state.beta, torch.full((4,), slow))
        alone = after.variance  # nothing came before
        factors = tensor(3.0, 4.0, 1.0, 199.0) if slow else 1.0
        torch.testing.assert_close(after.expected_variance, factors * alone, rtol=1e-10, atol=0)


def test_what_a_temperature_retains_is_a_running_mean() -> None:
    # Of the correlations over all its moves; nothing at the posterior, and nothing of who is done.
    target, annealing = LinearGaussian(sigma=0.05), Annealing(hmc_steps=3)
    state = begun(target, observations=2)
    known = torch.zeros(4, dtype=F64)
    for number in range(200):
        if state.finished.all():
            break
        before = state
        state, info = smc.step(state, target, annealing)
        start = smc.resample(
            smc.weigh(before, info.choice.beta, info.choice.slow), info.choice.resampled, native()
        )[0]
        found = correlations(start.hmc, state.hmc)[:, 0]
        learns = info.choice.active & (info.choice.beta < 1.0)
        mean = known + (0.3 if number else 1.0) * (found - known)
        known = torch.where(learns, mean, known)
        torch.testing.assert_close(state.retained, known, rtol=1e-9, atol=1e-9)
    assert state.finished.all()
    assert (known != 0.0).all()
