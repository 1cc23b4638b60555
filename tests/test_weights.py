"""Weights, and the errors of the normaliser that follow from them: by hand and closed forms."""

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
def test_the_effective_sample_size_and_the_mean_weight_by_hand(level: float) -> None:
    logs = torch.stack([tensor(1, 1, 1, 1), tensor(3, 1, 1, 1), tensor(1, 0, 0, 0)]).log() + level
    assert effective_sample_size(logs).tolist() == pytest.approx([4.0, 36.0 / 12.0, 1.0])
    expected = [level, level + math.log(1.5), level - math.log(4.0)]
    assert log_mean_weight(logs).tolist() == pytest.approx(expected, rel=1e-14, abs=1e-14)


def test_surviving_roots_by_hand() -> None:
    roots = torch.tensor([[3, 3, 3, 3], [7, 0, 7, 1], [900, 2, 1, 5]])
    assert surviving_roots(roots).tolist() == [1, 3, 4]


def test_second_order_by_hand() -> None:
    # For 20 particles the variance 0.2 is increased by a tenth, 2 / N, to 0.22, and half of its
    # square is added.
    assert second_order(tensor(0.0, 0.2), 20).tolist() == pytest.approx([0.0, 0.22 + 0.5 * 0.0484])


def test_second_order_is_the_variance_of_a_product_of_many_factors() -> None:
    # With many particles it is v + v^2 / 2, which differs from exp(v) - 1 by the third order of v.
    v = tensor(0.01, 0.1, 0.3)
    assert ((second_order(v, 10**9) - v.expm1()).abs() < 0.2 * v**3).all()


def test_the_variance_between_estimates_by_hand() -> None:
    # The relative variance of the mean of R independent numbers is their variance over R and over
    # the squared mean.
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
    # The numbers are logarithms. Unlike the relative variance of weights, the error of their mean
    # has no bound.
    found = deviation_of_mean(torch.stack([tensor(1, 3, 5, 7), tensor(-40, 40, -40, 40)]))
    expected = [math.sqrt(20.0 / 3.0 / 4.0), math.sqrt(6400.0 / 3.0 / 4.0)]
    assert found.tolist() == pytest.approx([expected[0], 20.0 * math.sqrt(16.0 / 12.0)])
    assert found[1].item() == pytest.approx(expected[1])
    assert deviation_of_mean(tensor(3.0, -5.0)[:, None]).tolist() == [0.0, 0.0]


def test_the_variance_between_estimates_is_unbiased_to_first_order() -> None:
    # Each of 20,000 repetitions has eight numbers with a relative deviation of 0.1. With m their
    # mean and V the relative variance that is estimated, E[m^2 V] is the variance of m, 0.1^2 / 8,
    # exactly. The bound is four standard errors, which one seed of 16,000 exceeds.
    values = 1.0 + 0.1 * normal(20_000, 8, seed=1)
    found = values.mean(-1) ** 2 * variance_between(values.log())
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(found.mean().item() - 0.01 / 8.0) < 4.0 * error
    assert error < 0.01 * 0.01 / 8.0


@pytest.mark.parametrize("size", [4, 16, 100])
def test_a_variance_is_reliable_from_an_effective_two_roots_on(size: int) -> None:
    # k equal weights of N have an effective sample size of k.
    least = math.ceil(2.0 * math.sqrt(size))
    for k in range(1, size + 1):
        logs = torch.full((1, size), -math.inf, dtype=F64)
        logs[0, :k] = 3.0
        if k != least:  # whether equality counts depends on rounding
            assert variance_is_reliable(logs).tolist() == [k > least]


def test_the_error_of_a_logarithm_by_hand() -> None:
    # The root mean square error combines the variance v and the bias -v / 2.
    assert error_of_log(tensor(0.0, 0.09, 4.0)).tolist() == pytest.approx(
        [0.0, math.hypot(0.3, 0.045), math.hypot(2.0, 2.0)]
    )


def test_the_error_of_a_logarithm_is_that_of_a_log_normal_mean() -> None:
    # W = exp(s x - s^2 / 2) has mean 1 and relative variance exp(s^2) - 1. Its logarithm has the
    # variance s^2 and the bias -s^2 / 2. The error that follows from the former must agree with
    # that of the latter to second order of s^2.
    for s in (0.05, 0.2, 0.4):
        exact = math.hypot(s, 0.5 * s**2)
        assert error_of_log(tensor(math.expm1(s**2))).item() == pytest.approx(exact, rel=0.4 * s**2)


def test_errors_are_nan_where_they_are_unknown_and_none_if_everywhere() -> None:
    error = tensor(0.1, 0.2)
    found = nan_where_unknown(error, torch.tensor([False, True]))
    assert found is not None
    assert found[0].isnan() and found[1] == 0.2
    assert nan_where_unknown(error, torch.tensor([False, False])) is None


def test_the_robust_deviation_by_hand() -> None:
    # The distances from the median, 3, are 2, 1, 0, 1 and 97, and their median is 1, so that a
    # distance counts as 3 * 1.4826 at most.
    found = robust_deviation(tensor(1, 2, 3, 4, 100))
    assert found.item() == pytest.approx(math.sqrt((4.0 + 1.0 + 1.0 + 4.4478**2) / 4.0))
    assert robust_deviation(tensor(7.0)).item() == 0.0
    assert robust_deviation(tensor(2.0, 2.0, 2.0)).item() == 0.0
    # Most values are equal, so the median distance is 0 and limits nothing.
    assert robust_deviation(tensor(2.0, 2.0, 2.0, 4.0)).item() == pytest.approx(math.sqrt(4 / 3))


def test_the_robust_deviation_is_that_of_a_gaussian() -> None:
    # The relative standard error of n = 100,000 is 1 / sqrt(2 n) = 0.0022. Limiting distances to
    # three standard deviations takes 0.5 % off the variance, 0.25 % off the standard deviation.
    values = 5.0 + 3.0 * normal(2, 100_000, seed=1)
    found = robust_deviation(values)
    assert ((found / 3.0 - 0.9975).abs() < 4.0 * 0.0023).all()
    far = values.clone()
    far[:, :1000] = 1e12
    assert (robust_deviation(far) / found < 1.05).all()


# --- what a state knows of its normaliser's variance ----------------------------------------------


@pytest.mark.parametrize("betas", [(0.3,), (0.01, 0.3), (0.02, 0.05, 0.11, 0.3)])
def test_without_resampling_the_variance_is_that_of_a_mean(betas: tuple[float, ...]) -> None:
    # The weights of N independent particles have a mean of relative variance var(w) / N /
    # mean(w)^2, in however many steps they have been accumulated.
    target = LinearGaussian(sigma=0.7)
    zeros, fast = torch.zeros(4, dtype=F64), torch.zeros(4, dtype=torch.bool)
    state = begun(target, observations=2, first_beta=zeros, draws=1)
    assert torch.equal(state.variance, zeros)
    for beta in betas:
        state = smc.weigh(state, zeros + beta, fast)
    weights = (-0.3 * state.hmc.energy).exp()
    expected = weights.var(-1) / 16.0 / weights.mean(-1) ** 2
    torch.testing.assert_close(state.variance, expected, rtol=1e-10, atol=0)
    if len(betas) == 1:  # there is no earlier factor to be correlated with
        torch.testing.assert_close(state.expected_variance, expected, rtol=1e-10, atol=0)
    assert (expected > 0.005).all()


@pytest.mark.parametrize("level", [0.0, 7.0])
def test_the_variance_includes_the_covariance_with_the_ancestors_factors(level: float) -> None:
    # A further factor adds its own variance and twice its covariance with what the ancestors
    # contributed. A part that all particles share has no covariance.
    state = begun(LinearGaussian(sigma=0.7), islands=1, first_beta=torch.zeros(1, dtype=F64))
    past, beta = normal(1, 16, seed=1), tensor(0.1)
    after = smc.weigh(dataclasses.replace(state, lineage=past + level), beta, beta > 1.0)
    own = 16.0 * torch.softmax(-0.1 * state.hmc.energy, -1) - 1.0
    both = torch.stack([own[0], past[0]]).cov()
    expected = both[0, 0] + 2.0 * both[0, 1]
    torch.testing.assert_close(after.variance[0], expected / 16.0, rtol=1e-9, atol=0)
    torch.testing.assert_close(after.lineage, past + level + own)


def test_the_expected_variance_of_slow_moves_by_hand() -> None:
    # A slow row's variance is multiplied by (1 + r) / (1 - r), with r limited to [0, 0.99].
    state = begun(LinearGaussian(sigma=0.7), islands=4, first_beta=torch.zeros(4, dtype=F64))
    state = dataclasses.replace(state, retained=tensor(0.5, 0.6, -0.3, 1.0))
    for slow in (True, False):
        after = smc.weigh(state, 0.3 + state.beta, torch.full((4,), slow))
        alone = after.variance  # there was no earlier factor
        factors = tensor(3.0, 4.0, 1.0, 199.0) if slow else 1.0
        torch.testing.assert_close(after.expected_variance, factors * alone, rtol=1e-10, atol=0)


def test_the_correlation_over_a_temperature_is_a_running_mean() -> None:
    # The correlation of energies over all moves of a temperature enters a running mean, with gain
    # 0.3 after the first. Temperatures at beta = 1 and finished rows do not change it.
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
