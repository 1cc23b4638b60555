"""The mass from curvature: estimates from gradients, their noise, and moves in the basis."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from annealed import (
    F64,
    ROUNDING,
    LinearGaussian,
    assert_mean,
    begun,
    native,
    normal,
    rotation,
    sample,
)
from runs import both_backends
from torch import Tensor

from cogen_fast.ops.philox import Purpose, normals, uniforms
from cogen_fast.sampler import bases, curvature, smc
from cogen_fast.sampler.annealing_plan import MASSES, Annealing
from cogen_fast.sampler.curvature import Curvature, Directions
from cogen_fast.sampler.sketches import Sketch
from cogen_fast.sampler.smc import Choice
from cogen_fast.sampler.tuning import TuningRule

pytestmark = pytest.mark.usefixtures("one_thread")

NONE_FORGOTTEN = torch.zeros(1, dtype=F64)


@pytest.fixture(autouse=True, params=[bases.WHOLE, 0], ids=["whole", "sketch"])
def few_or_many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat all sizes as small, then all as large ones, for which no d x d matrix is made."""
    monkeypatch.setattr(bases, "WHOLE", request.param)


def known(mean: Tensor, inverse_count: float = 0.0) -> Curvature:
    """An estimate with this mean. An ``inverse_count`` of 0 stands for one without noise."""
    count = torch.full_like(mean[:, 0, 0], inverse_count)
    if bases.WHOLE:
        return Curvature(mean, count)
    values, vectors = torch.linalg.eigh(mean)
    factor = vectors.flip(-1) * values.flip(-1).clamp(min=0.0).sqrt()[:, None]
    return Curvature(None, count, Sketch(factor, 0.0 * count))


def mean_of(seen: Curvature) -> Tensor:
    """The running mean as a matrix, also where there is a sketch of it."""
    if seen.mean is not None:
        return seen.mean
    assert seen.sketch is not None
    assert (seen.sketch.tail < 1e-12 * (1.0 + seen.sketch.factor.square().sum((1, 2)))).all()
    return seen.sketch.factor @ seen.sketch.factor.mT


def whole(directions: Tensor) -> Tensor:
    """The basis that begins with these directions, as a matrix."""
    found = bases.from_directions(directions)
    assert (found.whole is None) == (bases.WHOLE == 0)
    rows, size, _ = directions.shape
    return found.rotated(torch.eye(size, dtype=F64).expand(rows, -1, -1))


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


# --- the running mean -----------------------------------------------------------------------------


def covariance(grad: Tensor) -> Tensor:
    """The covariance of gradients ``(B, N, d)``, with divisor N - 1."""
    return torch.stack([torch.cov(each.double().T) for each in grad])


def test_the_first_moves_count_alike() -> None:
    # Moves have equal weights until a mean over all of them would give each less than the gain, 0.5
    # / sqrt(25) = 0.1: this is so for the first ten. A move of four particles counts three
    # gradients.
    grads = [normal(2, 4, 25, seed=k).float() for k in range(10)]
    beta, both = tensor(0.1, 0.7), torch.tensor([True, True])
    found = curvature.init(grads[0])
    assert found.inverse_count.tolist() == [math.inf, math.inf]
    for number, grad in enumerate(grads, 1):
        found = curvature.update(found, grad, beta, both)
        mean = torch.stack([covariance(each) for each in grads[:number]]).mean(0)
        torch.testing.assert_close(mean_of(found), beta[:, None, None] * mean, **ROUNDING)
        assert found.inverse_count.tolist() == pytest.approx([1.0 / (3.0 * number)] * 2)


def test_later_moves_count_by_the_gain() -> None:
    # Later moves have the weights g (1 - g)^k, so that n moves with equal gradients give the share
    # 1 - (1 - g)^n of their covariance to a mean that starts at 0. The noise of such a mean is that
    # of (2 - g) / g moves with equal weights.
    size, particles = 16, 4
    gain = curvature.gain(size)
    assert gain == 0.125
    grad, active = normal(1, particles, size, seed=1), torch.tensor([True])
    found = known(torch.zeros(1, size, size, dtype=F64))
    for number in range(1, 300):
        found = curvature.update(found, grad, tensor(1.0), active)
        if number in (1, 7):
            expected = (1.0 - (1.0 - gain) ** number) * covariance(grad)
            torch.testing.assert_close(mean_of(found), expected, **ROUNDING)
    count = (particles - 1) * (2.0 - gain) / gain
    assert found.inverse_count.item() == pytest.approx(1.0 / count, rel=1e-9)


def test_inactive_rows_learn_nothing() -> None:
    grad, active = normal(3, 4, 5, seed=1), torch.tensor([True, False, True])
    none = curvature.init(grad)
    some = curvature.update(none, grad, tensor(0.1, 0.2, 0.3), torch.tensor([True, True, True]))
    for start in (none, some):
        found = curvature.update(start, 2.0 * grad, tensor(0.1, 0.2, 0.3), active)
        assert torch.equal(mean_of(found)[1], mean_of(start)[1])
        assert torch.equal(found.inverse_count[1], start.inverse_count[1])
        assert (mean_of(found)[::2] != mean_of(start)[::2]).all()


@pytest.mark.slow
def test_the_mean_is_the_hessian_at_equilibrium_where_the_data_decide() -> None:
    # E(z) = k^2 (z - x)^2 / 2 has gradients k^2 (z - x), and at beta the posterior's precision is 1
    # + beta k^2. So beta times the variance of the gradients is k^2, the Hessian, times beta k^2 /
    # (1 + beta k^2), whatever x is. A variance estimated from n normals has the relative variance 2
    # / n.
    k, x, n = tensor(1.0, 30.0, 1000.0), tensor(3.0, -2.0, 1.0), 100_000
    for beta in (0.01, 1.0):
        data = beta * k * k
        z = x * data / (1.0 + data) + normal(1, n, 3, seed=3) / (1.0 + data).sqrt()
        found = curvature.update(
            curvature.init(z), k * k * (z - x), tensor(beta), torch.tensor([True])
        )
        ratio = mean_of(found)[0].diagonal() / k**2 * (1.0 + data) / data
        assert (ratio - 1.0).abs().max() < 4.0 * math.sqrt(2.0 / n)


def test_a_single_particle_shows_nothing() -> None:
    z = normal(2, 1, 3, seed=1)
    found = curvature.update(curvature.init(z), z, tensor(0.5, 1.0), torch.tensor([True, True]))
    assert torch.equal(mean_of(found), torch.zeros(2, 3, 3, dtype=F64))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_mean_of_other_islands_counts_all_their_gradients(count: int) -> None:
    root = normal(4, 3, 3, seed=1)
    each = dataclasses.replace(known(root @ root.mT), inverse_count=tensor(0.1, 0.2, 0.3, 0.6))
    found = curvature.mean_of_others(each, count)
    if count == 1:
        assert torch.equal(mean_of(found), mean_of(each))
        assert torch.equal(found.inverse_count, each.inverse_count)
    elif count == 2:
        assert torch.equal(mean_of(found), mean_of(each)[[1, 0, 3, 2]])
        assert found.inverse_count.tolist() == [0.2, 0.1, 0.6, 0.3]
    else:
        for row in range(4):
            others = [other for other in range(4) if other != row]
            expected = mean_of(each)[others].mean(0)
            torch.testing.assert_close(mean_of(found)[row], expected)
        counts = [1.1 / 9.0, 1.0 / 9.0, 0.9 / 9.0, 0.6 / 9.0]
        assert found.inverse_count.tolist() == pytest.approx(counts)


# --- what is noise --------------------------------------------------------------------------------


def of_spikes(spikes: list[float], size: int, gradients: int, seed: int) -> Tensor:
    """Descending eigenvalues of the mean of g g', for spikes in noise of variance 1."""
    scale = torch.ones(size, dtype=F64)
    scale[: len(spikes)] = tensor(*spikes)
    drawn = normal(gradients, size, seed=seed) * scale.sqrt()
    values: Tensor = torch.linalg.eigvalsh(drawn.T @ drawn / gradients)
    return values.flip(-1)


@pytest.mark.slow
def test_denoised_spikes_have_their_true_size() -> None:
    # Each of 200 repetitions has 200 gradients in 100 dimensions. The apparent size of a spike s
    # has a standard deviation of about s sqrt(2 / 200) = 0.1 s, and its mean over the repetitions
    # one of 0.007 s. The correction neglects terms of order 1 / 200 = 0.005.
    spikes = [100.0, 20.0, 5.0]
    raw = torch.stack([of_spikes(spikes, 100, 200, seed) for seed in range(200)])
    found = curvature.denoised(raw, torch.full((200,), 1.0 / 200.0, dtype=F64))
    ratio = found[:, :3].mean(0) / tensor(*spikes)
    assert ((ratio - 1.0).abs() < 4.0 * 0.007 + 0.005).all()
    # Uncorrected, s = 5 appears 1 + g / (s - 1) = 1.125 times as large, for g = 1 / 2.
    assert raw[:, 2].mean() > 1.08 * spikes[2]
    # All other eigenvalues are noise and must become 1, except that in about one repetition of five
    # the largest of the noise seems to be a spike.
    assert (found[:, 4:] - 1.0).abs().mean() < 0.05
    flat = (found[:, 3:] == found[:, -1:]).all(-1).double().mean()
    assert flat > 0.7


def test_a_spike_by_the_closed_form() -> None:
    # A spike s among d - 1 eigenvalues of 1 appears as s (1 + g / (s - 1)), with g = (d - 1) / n.
    spike = tensor(4.0, 10.0, 1e4)
    for size, gradients in ((20, 40), (20, 1000), (100, 80)):
        share = (size - 1.0) / gradients
        shown = spike * (1.0 + share / (spike - 1.0))
        values = torch.cat([shown[:, None], torch.ones(3, size - 1, dtype=F64)], -1)
        found = curvature.denoised(7.0 * values, torch.full((3,), 1.0 / gradients, dtype=F64))
        expected = torch.cat([spike[:, None], torch.ones(3, size - 1, dtype=F64)], -1)
        torch.testing.assert_close(found, 7.0 * expected, rtol=1e-12, atol=0)


def test_noise_alone_becomes_its_mean() -> None:
    # Eigenvalues below the edge of Marchenko and Pastur, (1 + sqrt(g))^2 = 2.25 for g = 64 / 256,
    # are noise; one just above it is a spike.
    size, gradients = 64, 256
    edge = 2.25
    below = torch.linspace(edge, 0.25, size, dtype=F64)
    values = below / below.mean()
    assert values[0] < edge
    one = torch.full((1,), 1.0 / gradients, dtype=F64)
    found = curvature.denoised(values[None], one)
    torch.testing.assert_close(found, torch.ones(1, size, dtype=F64))
    values = torch.ones(1, size, dtype=F64)
    values[0, 0] = 2.31  # the mean is then 1 + 1.31 / 64, and the edge 2.30
    found = curvature.denoised(values, one)
    assert 1.5 < found[0, 0] < 1.9  # a spike at the edge has the true size 1 + sqrt(g) = 1.5
    assert torch.equal(found[0, 1:], torch.ones(size - 1, dtype=F64))


def test_denoising_without_gradients_and_with_infinitely_many() -> None:
    values = tensor(9.0, 4.0, 2.0, 2.0, 1.0, 0.0)[None]
    everything = curvature.denoised(values, NONE_FORGOTTEN)
    torch.testing.assert_close(everything, values)
    # An estimate without gradients is treated as one of a single gradient, for which g = 6. An
    # eigenvalue would stand out above (1 + sqrt(6))^2 = 11.9 means, so all become the mean, 3.
    nothing = curvature.denoised(values, torch.full((1,), math.inf, dtype=F64))
    torch.testing.assert_close(nothing, torch.full((1, 6), 3.0, dtype=F64))
    assert (curvature.denoised(0.0 * values, NONE_FORGOTTEN) == 0.0).all()


def spiked(spike: float) -> Tensor:
    """A mean in 20 dimensions that is 1 except in one direction."""
    axes, values = rotation(20, seed=1), torch.ones(20, dtype=F64)
    values[0] = spike
    return (axes * values) @ axes.T


def test_particles_that_share_ancestors_count_as_half_as_many() -> None:
    # In 20 dimensions with a mean of 1.02 the edge is 1.33 for 1,000 gradients and 1.47 for 500, so
    # that 1.4 is a spike for the former and noise for the latter. Particles share ancestors:
    # `directions` counts half of the gradients.
    values = torch.ones(1, 20, dtype=F64)
    values[0, 0] = 1.4
    assert curvature.denoised(values, tensor(1.0 / 1000.0))[0, 0] > 1.3
    found = curvature.directions(known(spiked(1.4)[None], 1.0 / 1000.0), NONE_FORGOTTEN).values
    torch.testing.assert_close(found, torch.full((1, 20), 1.02, dtype=F64))
    found = curvature.directions(known(spiked(1.4)[None], 1.0 / 2000.0), NONE_FORGOTTEN).values
    assert found[0, 0] > 1.3


def test_autocorrelated_gradients_count_as_fewer() -> None:
    # Where moves leave a correlation c, from 0 to 0.99, only (1 - c^2) / (1 + c^2) of the gradients
    # count as independent. With 0.9 or more, 1.5 is therefore noise and becomes part of the mean,
    # 1.025.
    memory = tensor(-0.5, 0.0, 0.9, 1.0)
    found = curvature.directions(known(spiked(1.5).expand(4, -1, -1), 1.0 / 1000.0), memory).values
    assert torch.equal(found[0], found[1])
    assert found[0, 0] > 1.3
    torch.testing.assert_close(found[2:], torch.full((2, 20), 1.025, dtype=F64))


def test_eigenvalues_may_be_of_any_size() -> None:
    values = torch.stack([of_spikes([30.0, 9.0], 20, 200, seed) for seed in range(3)])
    few = torch.full((3,), 1.0 / 200.0, dtype=F64)
    for scale in (1e200, 1e287):
        found = curvature.denoised(scale * values, few)
        torch.testing.assert_close(found, scale * curvature.denoised(values, few))


def test_gradients_of_any_size_have_directions() -> None:
    grad = 1e200 * normal(1, 8, 20, seed=1)
    seen = curvature.update(curvature.init(grad), grad, tensor(1.0), torch.tensor([True]))
    found = curvature.directions(seen, NONE_FORGOTTEN)
    assert found.values.isfinite().all()
    assert found.vectors.isfinite().all()


# --- directions and the mass ----------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.01, 1.0])
@pytest.mark.parametrize("d", [2, 7, 30])
def test_the_mass_is_the_posterior_where_the_hessian_is_known(d: int, beta: float) -> None:
    # The inverse mass holds variances in the rotated coordinates. Rotated back, they must be the
    # posterior's covariance.
    target = LinearGaussian(d=d, measured=max(1, d - 2), sigma=0.3)
    found = curvature.directions(known(target.hessian()[None]), NONE_FORGOTTEN)
    turn = whole(found.vectors)
    variances = curvature.inverse_mass(found, tensor(beta))
    _, covariance = target.posterior(beta)
    back = (turn[0] * variances[0]) @ turn[0].T
    torch.testing.assert_close(back, covariance, rtol=1e-8, atol=1e-10)
    assert (found.values.diff() <= 0.0).all()  # the stiffest direction comes first


def test_beyond_the_most_directions_there_is_one_mean() -> None:
    size = curvature.MAX_DIRECTIONS + 12
    values = torch.linspace(90.0, 1.0, size, dtype=F64)
    found = curvature.directions(known(torch.diag(values)[None]), NONE_FORGOTTEN)
    assert found.vectors.shape == (1, size, curvature.MAX_DIRECTIONS)
    torch.testing.assert_close(found.values[0], values[: curvature.MAX_DIRECTIONS])
    assert found.rest.item() == pytest.approx(values[curvature.MAX_DIRECTIONS :].mean().item())
    mass = curvature.inverse_mass(found, tensor(0.5))
    expected = 1.0 / (
        1.0 + 0.5 * torch.cat([values[: curvature.MAX_DIRECTIONS], found.rest.expand(12)])
    )
    torch.testing.assert_close(mass[0], expected)


def test_without_curvature_the_inverse_mass_is_one() -> None:
    latents = normal(3, 4, 6, seed=1)
    noise = -1e-12 * torch.eye(6, dtype=F64)  # rounding can make eigenvalues slightly negative
    found = curvature.directions(known(noise.expand(3, -1, -1)), tensor(0.0, 0.0, 0.0))
    for nothing in (curvature.no_directions(latents), found):
        mass = curvature.inverse_mass(nothing, tensor(0.0, 0.3, 1.0))
        assert torch.equal(mass, torch.ones(3, 6, dtype=F64))
        turn = whole(nothing.vectors)
        torch.testing.assert_close(turn.mT @ turn, torch.eye(6, dtype=F64).expand(3, -1, -1))


def test_directions_beyond_the_rank_are_not_left_to_rounding() -> None:
    axis = rotation(9, seed=4)[:, :1]
    one = 7.0 * axis @ axis.T
    random = torch.Generator().manual_seed(3)
    rounded = one + 1e-14 * torch.randn(9, 9, generator=random, dtype=F64)
    both = torch.stack([one, 0.5 * (rounded + rounded.T)])
    found = curvature.directions(known(both), tensor(0.0, 0.0))
    turn = whole(found.vectors)
    torch.testing.assert_close(turn[0], turn[1], rtol=0, atol=1e-11)
    torch.testing.assert_close(turn[0, :, :1] * turn[0, :, :1].mT, axis @ axis.T)
    expected = torch.tensor([1.0 / 8.0, *[1.0] * 8], dtype=F64)
    mass = curvature.inverse_mass(found, tensor(1.0, 1.0))
    torch.testing.assert_close(mass, expected.expand(2, -1))


def test_the_basis_is_the_same_for_either_sign_of_a_direction() -> None:
    stiff = rotation(9, seed=4)[None, :, :3]
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=F64)
    turn, other = whole(stiff), whole(stiff * signs)
    torch.testing.assert_close(turn, other)


@pytest.mark.parametrize(("size", "count"), [(3, 1), (6, 6), (30, 10), (140, 128)])
def test_the_basis_starts_with_the_stiff_directions(size: int, count: int) -> None:
    stiff = torch.stack([rotation(size, seed)[:, :count] for seed in (1, 2)])
    turn = whole(stiff)
    assert turn.shape == (2, size, size)
    torch.testing.assert_close(turn.mT @ turn, torch.eye(size, dtype=F64).expand(2, -1, -1))
    along = turn[:, :, :count].mT @ stiff
    signs = along.diagonal(dim1=1, dim2=2).sign()
    torch.testing.assert_close(along, torch.diag_embed(signs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("d", "every"), [(20, 1), (64, 1), (65, 2), (130, 3)])
def test_many_dimensions_have_new_directions_less_often(d: int, every: int) -> None:
    target = LinearGaussian(d=d, measured=5, sigma=0.02)
    state = begun(target, latent_size=d, chains=4)
    seen: list[Directions] = []
    for _ in range(7):
        state, _ = smc.step(state, target, Annealing(leapfrog_steps=1, hmc_steps=1))
        seen.append(state.directions)
    assert (state.beta < 1.0).all()
    anew = [not torch.equal(a.values, b.values) for a, b in itertools.pairwise(seen)]
    # Temperatures count from 0. Directions are found anew at those that are multiples of `every`.
    assert anew == [number % every == 0 for number in range(1, 7)]


# --- moves in the basis ---------------------------------------------------------------------------


def turned_choice(b: int, d: int, k: int, step_size: float, length: int, moves: int) -> Choice:
    """A choice for a temperature near beta = 0.4 with an arbitrary basis and mass."""
    return Choice(
        active=torch.ones(b, dtype=torch.bool),
        kept=torch.full((b,), 0.5, dtype=F64),
        beta=0.4 + 0.1 * torch.arange(b, dtype=F64),
        resampled=torch.zeros(b, dtype=torch.bool),
        slow=torch.zeros(b, dtype=torch.bool),
        step_size=torch.full((b,), step_size, dtype=F64),
        inverse_mass=normal(b, d, seed=2).abs() + 0.2,
        stiff=torch.stack([rotation(d, seed)[:, :k] for seed in range(b)]),
        moves=torch.full((b,), moves),
        leapfrog_steps=length,
        hmc_steps=moves,
    )


@both_backends
def test_a_turned_transition_is_one_with_a_dense_mass(backend: str) -> None:
    # The expected transition is computed in z, without a rotation: with the dense inverse mass Q
    # diag(m) Q' and momenta drawn from N(0, Q diag(1 / m) Q').
    b, n, d = 2, 30, 6
    target = LinearGaussian(d=d, measured=4, sigma=4.0)
    state = begun(target, chains=n, latent_size=d, islands=b)
    choice = turned_choice(b, d, 2, 0.7, 3, 1)
    rule = Annealing(rule=TuningRule(jitter=0.0))
    after, info = smc.step(state, target, rule, choice=choice, backend=backend)
    assert choice.inverse_mass is not None
    assert choice.stiff is not None
    turn = whole(choice.stiff)
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
    state = begun(target, chains=40, latent_size=d, islands=3, dtype=dtype)
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
    assert choice.stiff is not None
    turn = bases.from_directions(choice.stiff)
    after = smc.step(state, target, Annealing(), choice=choice, backend=backend)[0].hmc
    ops = native(backend)
    settings = smc.jittered(choice, choice.step_size, TuningRule(), before.stream, ops)
    made = curvature.transition(before, target, settings, 3, turn, ops)
    refused = ~made.info.accepted
    assert 2 < int(refused[0].sum()) < 38
    assert refused[1:].all()
    assert torch.equal(after.latents[refused], before.latents[refused])
    assert torch.equal(after.grad[refused], before.grad[refused])
    assert torch.equal(after.energy[refused], before.energy[refused])
    assert (after.latents[~refused] != before.latents[~refused]).any(-1).all()
    # The energy of an accepted chain is that of its latents in z as returned, to the last digits.
    # It is not that of rotated latents, which differ by rounding.
    energy, _ = target.energy_and_grad(after.latents)
    torch.testing.assert_close(after.energy, energy, rtol=1e-14, atol=0)


@pytest.mark.slow
@both_backends
def test_a_turned_mass_leaves_exact_draws_exact(backend: str) -> None:
    # 20,000 independent chains start at exact draws from the posterior and make forty moves, with a
    # basis, mass and step size that do not depend on them. So their moments must stay exact.
    # Leapfrog steps without the accept test would change them by a tenth.
    b, n, d = 40, 500, 6
    target = LinearGaussian(d=d, measured=4, sigma=2.0)
    mean, covariance = target.posterior()
    root = torch.linalg.cholesky(covariance)
    draws = mean + normal(b, n, d, seed=6) @ root.T
    how: dict[str, Any] = {"chains": n, "seed": 8, "backend": backend}
    state = smc.init(target, latents=draws, first_beta=torch.zeros(b, dtype=F64), **how)
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
    assert state.log_weights.abs().max() < 1e-14
    z = torch.linalg.solve_triangular(root, (state.hmc.latents - mean).mT, upper=False).mT
    start = torch.linalg.solve_triangular(root, (draws - mean).mT, upper=False).mT
    assert ((z * start).mean((0, 1)) < 0.1).all()  # the moves have forgotten the start
    pairs = (z[..., :, None] * z[..., None, :]).flatten(2)
    for values, expected in ((z, torch.zeros(d)), (pairs, torch.eye(d).flatten())):
        rows = values.flatten(0, 1)
        errors = rows.std(0) / math.sqrt(b * n)
        assert ((rows.mean(0) - expected).abs() <= 4.0 * errors).all()
        assert (errors < 0.015).all()


# --- what it is for -------------------------------------------------------------------------------


class Stiff:
    """``E(z) = |c (v z - y)|^2 / 2``: the direction v is c times narrower than the prior."""

    def __init__(self, size: int, precision: float) -> None:
        self.v, self.precision, self.centre = rotation(size, seed=3)[:, 0], precision, 0.7

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        away = z.double() @ self.v - self.centre
        grad = self.precision * away[..., None] * self.v
        return 0.5 * self.precision * away**2, grad.to(z.dtype)


@pytest.mark.slow
def test_one_stiff_direction_does_not_hold_up_the_others() -> None:
    # One direction of 30 is 1,000 times narrower than the prior. Leapfrog is stable for steps below
    # two standard deviations of the narrowest direction, 0.002. A tuned step size exceeds that by
    # one update at most, a factor exp(0.5 (1 - 0.9)). With the curvature mass all scales are equal,
    # and a standard normal in 30 dimensions allows a step size of about 0.5.
    d, b = 30, 30
    target = Stiff(d, 1000.0**2 - 1.0)
    steps = {}
    for mass in MASSES:
        how: dict[str, Any] = {"chains": 32, "observations": b, "latent_size": d, "seed": 5}
        run = sample(target, Annealing(mass=mass), **how)
        steps[mass] = run.infos[-1].choice.step_size
        if mass == "identity":
            continue
        z = run.state.hmc.latents
        along = 1000.0 * (z @ target.v - target.centre * (1.0 - 1e-6))
        across = z - (z @ target.v)[..., None] * target.v
        # The two islands of an observation depend on each other, so that only means over both are
        # independent. Across the narrow direction there are 29 directions of variance 1.
        for values, expected in (
            (along, 0.0), (along**2, 1.0), ((across**2).sum(-1), 29.0),
        ):  # fmt: skip
            means = values.mean(-1).reshape(b, 2).mean(-1)
            assert_mean(means, expected)
            assert means.std() / math.sqrt(b) < 0.05 * max(expected, 1.0)
    assert steps["identity"].max() < 0.002 * math.exp(0.05)
    assert steps["curvature"].min() > 0.2
