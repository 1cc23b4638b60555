"""One HMC transition: the integrator, the accept test, and the distribution that it must keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from runs import both_backends
from torch import Tensor, nn

from cogen_fast.ops import dispatch
from cogen_fast.ops.philox import Purpose, normals, uniforms
from cogen_fast.ops.reference import Proposal
from cogen_fast.ops.spec import AdaptationRule, TransitionSettings
from cogen_fast.problem.density import GeneratorPotential
from cogen_fast.problem.observation import Mask, observe
from cogen_fast.sampler import ais, hmc

pytestmark = pytest.mark.usefixtures("one_thread")

Array = npt.NDArray[np.float64]
Grad = Callable[[Tensor], Tensor]
CPU = torch.device("cpu")
ROUNDING = {"rtol": 1e-9, "atol": 1e-11}  # float64 over a few dozen operations


def bowl(z: Tensor) -> Tensor:
    """An energy that is not quadratic and has coupled coordinates and bounded curvature."""
    return torch.cos(2.0 * z[:, 0] + z[:, 1]) + torch.log1p(z.pow(2).sum(-1)) + 0.1 * z.sum(-1)


def gradient(energy: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """The gradient by autograd, for ``(B, N, d)``."""
    leaf = z.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(energy(leaf.flatten(0, 1)).sum(), leaf)
    return grad


def settings(
    eps: Sequence[float],
    beta: Sequence[float],
    prior: Sequence[float] | None = None,
    inverse_mass: Tensor | None = None,
) -> TransitionSettings:
    def double(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    weight = [1.0] * len(beta) if prior is None else prior
    return TransitionSettings(double(beta), double(weight), double(eps), inverse_mass)


def latents(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def half_kick(v: Tensor, z: Tensor, grad: Tensor, s: TransitionSettings) -> Tensor:
    force = s.beta[:, None, None] * grad + s.prior_weight[:, None, None] * z
    return v - 0.5 * s.step_size[:, None, None] * force


def first_drift(v: Tensor, z: Tensor, s: TransitionSettings) -> Tensor:
    velocity = v if s.inverse_mass is None else v * s.inverse_mass[:, None]
    return z + s.step_size[:, None, None] * velocity


def trajectory(
    z: Tensor, v: Tensor, grad: Grad, s: TransitionSettings, steps: int, ops: Any
) -> tuple[Tensor, Tensor]:
    """A trajectory from a given momentum: half kick and drift are made here, the rest by the op."""
    v = half_kick(v, z, grad(z), s)
    proposal = Proposal(first_drift(v, z, s), v.clone(), torch.zeros(z.shape[:2]))
    return finish(proposal, grad, s, steps, ops)


def finish(
    proposal: Proposal, grad: Grad, s: TransitionSettings, steps: int, ops: Any
) -> tuple[Tensor, Tensor]:
    """Steps 2 to L by the op, and the last half kick."""
    for _ in range(steps - 1):
        ops.continue_trajectory(proposal, grad(proposal.position), s)
    z = proposal.position
    return z, half_kick(proposal.momentum, z, grad(z), s)


# --- the integrator ---------------------------------------------------------------------------


@both_backends
@pytest.mark.parametrize("mass", [None, "diagonal"])
def test_a_trajectory_runs_back_to_where_it_came_from(backend: str, mass: str | None) -> None:
    ops = dispatch.resolve(backend, CPU)
    z = latents(2, 5, 3)
    inverse_mass = None if mass is None else latents(2, 3, seed=1).abs() + 0.5
    s = settings([0.13, 0.07], [0.8, 0.4], [1.0, 0.6], inverse_mass)
    stream = hmc.noise_stream(4, 2, CPU)

    def grad(x: Tensor) -> Tensor:
        return gradient(bowl, x)

    energy = bowl(z.flatten(0, 1)).reshape(2, 5)
    v = normals(stream, Purpose.MOMENTUM, 5, 3, torch.float64)
    if inverse_mass is not None:
        v = v / inverse_mass.sqrt()[:, None]
    there, momentum = finish(ops.begin_trajectory(z, energy, grad(z), s, stream), grad, s, 25, ops)
    back, reversed_momentum = trajectory(there, -momentum, grad, s, 25, ops)
    assert (there - z).abs().min() > 1e-3  # the trajectory has moved every chain
    torch.testing.assert_close(back, z, **ROUNDING)
    torch.testing.assert_close(reversed_momentum, -v, **ROUNDING)


@both_backends
def test_energy_error_is_of_second_order_in_the_step(backend: str) -> None:
    state = hmc.init(bowl, latents(1, 200, 2), seed=3, backend=backend)
    lengths = np.array([0.08, 0.04, 0.02, 0.01])
    errors = []
    for eps in lengths:  # all trajectories are 0.8 long, with the same momenta
        _, info = hmc.step(
            state, bowl, step_size=eps, leapfrog_steps=round(0.8 / eps), beta=0.7, backend=backend
        )
        errors.append(info.energy_change.abs().max().item())
    slope = np.polyfit(np.log(lengths), np.log(errors), 1)[0]
    assert 1.9 < slope < 2.1


@both_backends
@pytest.mark.parametrize("frequency", [1.0, 3.0])
def test_harmonic_orbit_is_the_closed_form_one(backend: str, frequency: float) -> None:
    # The potential is w^2 |z|^2 / 2: the prior beside beta E with E = |z|^2 / 2 and beta = w^2 - 1.
    # Leapfrog turns (w z, v) by the angle theta with cos(theta) = 1 - (w eps)^2 / 2, on an ellipse
    # whose one axis is shorter by the factor sqrt(1 - (w eps)^2 / 4).
    eps, steps = 0.05, 40
    ops = dispatch.resolve(backend, CPU)
    z = latents(1, 6, 2)
    s = settings([eps], [frequency**2 - 1.0])
    stream = hmc.noise_stream(1, 1, CPU)
    v = normals(stream, Purpose.MOMENTUM, 6, 2, torch.float64)
    start = ops.begin_trajectory(z, 0.5 * (z * z).sum(-1), z, s, stream)
    position, momentum = finish(start, lambda x: x, s, steps, ops)
    theta = math.acos(1.0 - (frequency * eps) ** 2 / 2.0)
    axis = math.sqrt(1.0 - (frequency * eps) ** 2 / 4.0)
    c, sine = math.cos(steps * theta), math.sin(steps * theta)
    torch.testing.assert_close(position, z * c + v * sine / (frequency * axis), **ROUNDING)
    torch.testing.assert_close(momentum, v * c - z * sine * frequency * axis, **ROUNDING)


@both_backends
def test_a_trajectory_preserves_volume(backend: str) -> None:
    # Central differences of step h have errors near h^2 = 1e-10 and 1e-16 / h = 1e-11 in each
    # entry. The determinant of a 6 x 6 matrix with entries of order 1 increases these by some tens.
    ops = dispatch.resolve(backend, CPU)
    d, h = 3, 1e-5
    s = settings([0.2], [0.9], [0.5], torch.tensor([[0.5, 1.0, 2.0]], dtype=torch.float64))
    point = latents(2 * d)

    def flow(points: Tensor) -> Tensor:
        z, v = (p.contiguous()[None] for p in points.split(d, dim=-1))
        return torch.cat(trajectory(z, v, lambda x: gradient(bowl, x), s, 8, ops), dim=-1)[0]

    shift = h * torch.eye(2 * d, dtype=torch.float64)
    jacobian = (flow(point + shift) - flow(point - shift)) / (2.0 * h)
    assert (jacobian - torch.eye(2 * d)).abs().max() > 0.1  # the map is not the identity
    assert torch.linalg.det(jacobian).item() == pytest.approx(1.0, abs=1e-8)


class Counted:
    """A potential that counts its gradients."""

    def __init__(self) -> None:
        self.calls = 0

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return 0.5 * (z.double() ** 2).sum(-1), z.clone()


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_a_transition_costs_exactly_its_leapfrog_steps(steps: int) -> None:
    target = Counted()
    state = hmc.init(target, chains=3, latent_size=2)
    assert target.calls == 1
    for moves in (1, 2):
        state, _ = hmc.step(state, target, step_size=0.1, leapfrog_steps=steps, beta=0.1 * moves)
        assert target.calls == 1 + moves * steps


def test_annealing_costs_m_times_l_gradients_per_temperature() -> None:
    target = Counted()
    ais.run(target, "linear", 5, ais.Moves(hmc_steps=3, leapfrog_steps=4), latent_size=2)
    assert target.calls == 1 + 5 * 3 * 4


# --- a whole transition against one written by hand ---------------------------------------------


def transition_by_hand(
    z: Array, v: Array, u: float, beta: float, prior: float, eps: float, steps: int, mass: Array
) -> tuple[Array, float, float]:
    """One chain on `bowl` in NumPy: its end, acceptance probability and change of energy."""

    def total(position: Array) -> tuple[float, Array]:
        leaf = torch.tensor(position[None], requires_grad=True)
        energy = bowl(leaf).sum()
        (grad,) = torch.autograd.grad(energy, leaf)
        value = beta * energy.item() + prior * 0.5 * float(position @ position)
        return value, beta * grad[0].numpy() + prior * position

    before = total(z)[0] + 0.5 * float(v @ (v / mass))
    position, momentum = z, v
    for _ in range(steps):
        momentum = momentum - 0.5 * eps * total(position)[1]
        position = position + eps * momentum / mass
        momentum = momentum - 0.5 * eps * total(position)[1]
    change = total(position)[0] + 0.5 * float(momentum @ (momentum / mass)) - before
    probability = min(1.0, math.exp(-change))
    return (position if u < probability else z), probability, change


@both_backends
@pytest.mark.parametrize("scaled", [False, True], ids=["unit-mass", "diagonal-mass"])
@pytest.mark.parametrize(
    ("form", "prior"), [("posterior", 1.0), ("paper", 1.0 - 0.7)], ids=["posterior", "paper"]
)
def test_a_transition_equals_one_written_out_in_numpy(
    backend: str, form: Any, prior: float, scaled: bool
) -> None:
    state = hmc.init(bowl, latents(1, 30, 3), seed=12, backend=backend)
    mass = np.array([0.5, 2.0, 1.3]) if scaled else np.ones(3)
    inverse = torch.from_numpy(1.0 / mass)[None] if scaled else None
    v = normals(state.stream, Purpose.MOMENTUM, 30, 3, torch.float64)[0].numpy() * np.sqrt(mass)
    u = uniforms(state.stream, Purpose.ACCEPT, 30, torch.float64)[0].numpy()
    after, info = hmc.step(
        state,
        bowl,
        step_size=0.9,  # so that some proposals are rejected
        leapfrog_steps=3,
        beta=0.7,
        form=form,
        inverse_mass=inverse,
        backend=backend,
    )
    assert 3 <= int(info.accepted.sum()) <= 29
    for n in range(30):
        end, probability, change = transition_by_hand(
            state.latents[0, n].numpy(), v[n], u[n], 0.7, prior, 0.9, 3, mass
        )
        np.testing.assert_allclose(after.latents[0, n].numpy(), end, rtol=1e-10, atol=1e-12)
        assert info.acceptance_probability[0, n].item() == pytest.approx(probability, rel=1e-10)
        assert info.energy_change[0, n].item() == pytest.approx(change, rel=1e-9, abs=1e-11)
        assert bool(info.accepted[0, n]) == (u[n] < probability)
    torch.testing.assert_close(after.energy, bowl(after.latents[0])[None], **ROUNDING)
    torch.testing.assert_close(after.grad, gradient(bowl, after.latents), **ROUNDING)


def test_forms_differ_by_the_weight_of_the_prior() -> None:
    # With E = 0 the potential is that of the prior, with the weight 1 - beta in the paper form. At
    # beta = 1 there is no force, and a chain moves in a straight line to z + L eps v.
    def nothing(z: Tensor) -> Tensor:
        return 0.0 * z.sum(-1)

    state = hmc.init(nothing, latents(1, 4, 2))
    v = normals(state.stream, Purpose.MOMENTUM, 4, 2, torch.float64)
    flown, info = hmc.step(state, nothing, step_size=0.1, leapfrog_steps=5, beta=1.0, form="paper")
    torch.testing.assert_close(flown.latents, state.latents + 0.5 * v, **ROUNDING)
    assert info.energy_change.abs().max() < 1e-12
    bent, _ = hmc.step(state, nothing, step_size=0.1, leapfrog_steps=5, beta=1.0)
    assert (bent.latents - flown.latents).abs().max() > 0.01


# --- the distribution ---------------------------------------------------------------------------


class LinearGaussian:
    """``E(z) = |A z - y|^2 / (2 sigma^2)``; at beta the posterior is a known Gaussian."""

    def __init__(self, d: int = 3, measured: int = 2, sigma: float = 0.5) -> None:
        self.matrix = latents(measured, d, seed=7)
        self.y, self.sigma = latents(measured, seed=8), sigma

    def __call__(self, z: Tensor) -> Tensor:
        residual = z.double() @ self.matrix.T - self.y
        return (residual**2).sum(-1) / (2.0 * self.sigma**2)

    def posterior(self, beta: float, prior: float = 1.0) -> tuple[Tensor, Tensor]:
        scaled = beta / self.sigma**2 * self.matrix.T
        eye = torch.eye(self.matrix.shape[1], dtype=torch.float64)
        covariance = torch.linalg.inv(scaled @ self.matrix + prior * eye)
        return covariance @ scaled @ self.y, covariance

    def draws(self, count: int, beta: float, seed: int, prior: float = 1.0) -> Tensor:
        mean, covariance = self.posterior(beta, prior)
        return mean + latents(count, len(mean), seed=seed) @ torch.linalg.cholesky(covariance).T


def assert_moments(draws: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Means and second moments of independent draws within 5 of their own standard errors."""
    centred = draws.double() - mean
    pairs = (centred[:, :, None] * centred[:, None, :]).flatten(1)
    values = torch.cat([centred, pairs], dim=1)
    expected = torch.cat([torch.zeros_like(mean), covariance.flatten()])
    errors = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - expected).abs() <= 5.0 * errors).all()


@both_backends
def test_mean_of_exp_minus_energy_change_is_one(backend: str) -> None:
    # E[exp(-dH)] = 1 holds for exact draws and any step size. The bound is five standard errors of
    # the sample, in which exp(-dH) has a standard deviation of order 1.
    target = LinearGaussian()
    state = hmc.init(target, target.draws(40_000, 0.8, seed=1)[None], seed=9, backend=backend)
    _, info = hmc.step(state, target, step_size=0.3, leapfrog_steps=4, beta=0.8, backend=backend)
    values = torch.exp(-info.energy_change[0])
    assert values.std() > 0.05  # the step is so coarse that dH varies
    assert abs(values.mean().item() - 1.0) < 5.0 * values.std().item() / math.sqrt(40_000)
    assert info.acceptance_probability.mean().item() < 0.99


@both_backends
@pytest.mark.parametrize(
    ("form", "beta", "prior", "eps", "dtype"),
    [
        ("posterior", 1.0, 1.0, 0.3, torch.float64),
        ("posterior", 0.3, 1.0, 0.5, torch.float32),
        ("paper", 0.6, 0.4, 0.45, torch.float64),
    ],
    ids=["posterior", "tempered-float32", "paper"],
)
def test_exact_draws_stay_exact(
    backend: str, form: Any, beta: float, prior: float, eps: float, dtype: torch.dtype
) -> None:
    target = LinearGaussian()
    draws = target.draws(20_000, beta, seed=2, prior=prior).to(dtype)
    state = hmc.init(target, draws[None], seed=5, backend=backend)
    accepted = 0.0
    for _ in range(4):
        state, info = hmc.step(
            state, target, step_size=eps, leapfrog_steps=3, beta=beta, form=form, backend=backend
        )
        accepted += info.accepted.double().mean().item() / 4
    assert 0.3 < accepted < 0.95  # without the accept test the moments would be wrong
    assert_moments(state.latents[0], *target.posterior(beta, prior))


@both_backends
def test_beta_zero_leaves_the_prior(backend: str) -> None:
    target = LinearGaussian(sigma=0.01)
    state = hmc.init(
        target, chains=20_000, latent_size=3, seed=6, dtype=torch.float64, backend=backend
    )
    zero, eye = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    assert_moments(state.latents[0], zero, eye)
    before = state.latents
    for _ in range(3):
        state, info = hmc.step(
            state, target, step_size=0.8, leapfrog_steps=3, beta=0.0, backend=backend
        )
    assert (state.latents - before).abs().mean() > 0.3
    assert info.energy_change.abs().max() < 10  # E, of order 1e4 here, does not enter dH
    assert_moments(state.latents[0], zero, eye)


def test_inverse_mass_moves_a_badly_scaled_gaussian() -> None:
    # Posterior precisions are 1 + k. If the inverse mass holds the variances, all axes have the
    # same scale, and leapfrog is stable up to a step of 2; with a unit mass only up to 2 / 100.
    k = torch.tensor([0.0, 99.0, 9999.0], dtype=torch.float64)
    variance = 1.0 / (1.0 + k)

    def energy(z: Tensor) -> Tensor:
        return 0.5 * (k * z * z).sum(-1)

    start = latents(1, 20_000, 3) * variance.sqrt()
    common: dict[str, Any] = {"step_size": 0.5, "leapfrog_steps": 3}
    _, crude = hmc.step(hmc.init(energy, start), energy, **common)
    assert crude.acceptance_probability.mean() < 0.01
    state = hmc.init(energy, start)
    for _ in range(3):
        state, info = hmc.step(state, energy, inverse_mass=variance[None], **common)
    assert info.acceptance_probability.mean() > 0.9
    moved = ((state.latents - start).abs() / variance.sqrt()).mean((0, 1))
    assert (moved > 0.5).all()
    assert_moments(state.latents[0], torch.zeros(3).double(), torch.diag(variance))


# --- state, noise, observations -----------------------------------------------------------------


@both_backends
def test_inactive_observations_keep_state_and_noise(backend: str) -> None:
    target = LinearGaussian()
    state = hmc.init(target, latents(3, 8, 3), seed=2, backend=backend)
    active = torch.tensor([True, False, True])
    common: dict[str, Any] = {"step_size": 0.2, "leapfrog_steps": 3, "backend": backend}
    after, info = hmc.step(state, target, active=active, **common)
    for name in ("latents", "energy", "grad"):
        old, new = getattr(state, name), getattr(after, name)
        assert torch.equal(old[1], new[1])
        assert not torch.equal(old[0], new[0])
    assert after.stream.transition.tolist() == [1, 0, 1]
    assert not info.accepted[1].any()
    assert not info.non_finite[1].any()
    assert torch.equal(info.acceptance_probability[1], torch.zeros(8, dtype=torch.float64))
    everyone, _ = hmc.step(state, target, **common)
    # The other observations move as if all were active.
    assert torch.equal(everyone.latents[0], after.latents[0])
    later, _ = hmc.step(after, target, **common)  # the frozen one resumes with its own noise
    assert torch.equal(later.latents[1], everyone.latents[1])


@both_backends
def test_a_step_leaves_the_given_state_as_it_is(backend: str) -> None:
    target = LinearGaussian()
    state = hmc.init(target, latents(2, 5, 3), backend=backend)
    before = [t.clone() for t in (state.latents, state.energy, state.grad)]
    first, _ = hmc.step(state, target, step_size=0.2, leapfrog_steps=3, backend=backend)
    again, _ = hmc.step(state, target, step_size=0.2, leapfrog_steps=3, backend=backend)
    assert all(map(torch.equal, before, (state.latents, state.energy, state.grad)))
    assert state.stream.transition.tolist() == [0, 0]
    assert torch.equal(first.latents, again.latents)


def test_given_latents_are_copied() -> None:
    start = latents(1, 4, 2)
    state = hmc.init(LinearGaussian(d=2), start)
    start.zero_()
    assert (state.latents != 0).all()


class Bad:
    """A potential that is fine where ``z_0 <= 0`` and broken beyond, in one of many ways."""

    def __init__(self, energy: float | None, grad: float | None) -> None:
        self.energy, self.grad = energy, grad

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        energy, grad = (z.double() ** 2).sum(-1), 2.0 * z
        broken = z[..., 0] > 0
        if self.energy is not None:
            energy = torch.where(broken, self.energy, energy)
        if self.grad is not None:
            grad = torch.where(broken[..., None], self.grad, grad)
        return energy, grad


@both_backends
@pytest.mark.parametrize(
    ("energy", "grad"),
    [
        (math.nan, None), (math.inf, None), (-math.inf, None), (None, math.nan), (None, math.inf),
        (math.nan, math.nan),
    ],
    ids=["nan-energy", "inf-energy", "minus-inf-energy", "nan-grad", "inf-grad", "both"],
)  # fmt: skip
@pytest.mark.parametrize("beta", [0.5, 0.0])
def test_a_non_finite_proposal_is_a_rejection(
    backend: str, energy: float | None, grad: float | None, beta: float
) -> None:
    target = Bad(energy, grad)
    start = latents(1, 400, 2)
    start[..., 0] = -start[..., 0].abs() - 1e-3
    state = hmc.init(target, start, seed=3, backend=backend)
    after, info = hmc.step(
        state, target, step_size=0.3, leapfrog_steps=1, beta=beta, backend=backend
    )
    v = normals(state.stream, Purpose.MOMENTUM, 400, 2, torch.float64)
    force = beta * 2.0 * start + start
    broken = (start + 0.3 * (v - 0.15 * force))[..., 0] > 0
    assert 20 < int(broken.sum()) < 200
    assert torch.equal(info.non_finite, broken)
    assert torch.equal(info.energy_change[broken], torch.full((int(broken.sum()),), math.inf))
    assert (info.acceptance_probability[broken] == 0.0).all()
    assert not info.accepted[broken].any()
    assert torch.equal(after.latents[broken], state.latents[broken])
    assert torch.equal(after.energy[broken], state.energy[broken])
    assert torch.equal(after.grad[broken], state.grad[broken])
    assert all(t.isfinite().all() for t in (after.latents, after.energy, after.grad))
    assert info.accepted[~broken].double().mean() > 0.5


@both_backends
def test_non_finite_proposals_are_counted_and_shrink_the_step(backend: str) -> None:
    target = Bad(math.nan, math.nan)
    moves = ais.Moves(leapfrog_steps=3, adaptation=AdaptationRule())
    start = latents(1, 50, 2)
    start[..., 0] = -start[..., 0].abs() - 0.5
    state = ais.init(target, moves, latents=start, step_size_start=0.3, backend=backend)
    running, counted = 0.65, torch.zeros(1, 50, dtype=torch.int64)
    for beta in (0.1, 0.2, 0.3):
        state, info = ais.step(state, target, beta, moves, backend=backend)
        counted = counted + info.last.non_finite
        # Non-finite proposals count as acceptance 0 in the mean over all 50 chains.
        finite = info.last.acceptance_probability[~info.last.non_finite]
        running = 0.9 * running + 0.1 * finite.sum().item() / 50
        assert state.adaptation.running_acceptance.item() == pytest.approx(running, rel=1e-12)
    assert int(counted.sum()) > 10
    assert torch.equal(state.non_finite, counted)
    assert state.log_weights is not None
    assert state.log_weights.isfinite().all()


def test_only_non_finite_proposals_bring_the_step_to_its_minimum() -> None:
    class Fine(Bad):
        calls = 0

        def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
            self.calls += 1
            value = math.nan if self.calls > 1 else 0.0
            return torch.full(z.shape[:2], value, dtype=torch.float64), torch.zeros_like(z)

    run = ais.run(
        Fine(None, None), "linear", 60, ais.Moves(leapfrog_steps=1), latent_size=2, chains=4,
        step_size_start=2e-4,
    )  # fmt: skip
    assert run.state.adaptation.step_size.item() == 1e-4  # 2e-4 * 0.98^60 is below it
    assert run.state.non_finite.tolist() == [[60] * 4]
    assert run.history.acceptance.tolist() == [[0.0]] * 60


def bumpy(z: Tensor) -> Tensor:
    return torch.cos(3.0 * z).sum(-1) + 0.25 * (z**4).sum(-1)


@both_backends
def test_an_observation_does_not_depend_on_its_batch_mates(backend: str) -> None:
    torch_generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=torch_generator, dtype=torch.float64)
    x_obs = latents(3, 6, seed=4)
    ops = dispatch.resolve(backend, CPU)

    def potential(rows: list[int]) -> GeneratorPotential:
        bound = observe(Mask([1, 1, 0, 1, 0, 1]), x_obs[rows], x_obs, noise_std=0.5)
        return GeneratorPotential(net, bound, ops)

    moves = ais.Moves(leapfrog_steps=3)
    common: dict[str, Any] = {
        "chains": 4, "latent_size": 3, "seed": 11, "dtype": torch.float64, "backend": backend,
        "step_size_start": 0.2,
    }  # fmt: skip
    together = ais.run(
        potential([0, 1, 2]),
        "linear",
        4,
        moves,
        observations=3,
        observation_ids=[5, 0, 9],
        **common,
    )
    for row, identity in enumerate([5, 0, 9]):
        alone = ais.run(potential([row]), "linear", 4, moves, observation_ids=[identity], **common)
        torch.testing.assert_close(
            alone.state.hmc.latents[0], together.state.hmc.latents[row], **ROUNDING
        )
        assert alone.state.log_weights is not None
        assert together.state.log_weights is not None
        torch.testing.assert_close(
            alone.state.log_weights[0], together.state.log_weights[row], **ROUNDING
        )
        torch.testing.assert_close(
            alone.history.step_size[:, 0], together.history.step_size[:, row], **ROUNDING
        )
    other = ais.run(potential([0]), "linear", 4, moves, observation_ids=[6], **common)
    assert (other.state.hmc.latents[0] - together.state.hmc.latents[0]).abs().max() > 0.01


@pytest.mark.parametrize("max_batch", [1, 3, 5, 12, 100])
def test_splitting_the_calls_to_the_generator_changes_nothing(max_batch: int) -> None:
    weights = latents(3, 5, seed=3)
    largest = 0

    def generator(z: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(z))
        return torch.tanh(z @ weights)

    bound = observe(Mask([1, 0, 1, 1, 1]), latents(2, 5, seed=4), weights, noise_std=0.3)
    ops = dispatch.resolve("reference", CPU)
    states = []
    for limit in (None, max_batch):
        largest = 0
        run = ais.run(
            GeneratorPotential(generator, bound, ops, limit), "linear", 4,
            ais.Moves(leapfrog_steps=3), chains=6, latent_size=3, observations=2,
            dtype=torch.float64, step_size_start=0.1,
        )  # fmt: skip
        states.append(run.state.hmc)
    assert largest == min(max_batch, 12)
    torch.testing.assert_close(states[1].latents, states[0].latents, **ROUNDING)
    torch.testing.assert_close(states[1].energy, states[0].energy, **ROUNDING)


def test_per_observation_beta_and_step_size() -> None:
    start = latents(2, 6, 2)
    state = hmc.init(bumpy, start, observation_ids=[3, 4])
    both, _ = hmc.step(
        state,
        bumpy,
        beta=torch.tensor([0.2, 0.9]),
        step_size=torch.tensor([0.05, 0.1]),
        leapfrog_steps=4,
    )
    for row, (beta, eps) in enumerate([(0.2, 0.05), (0.9, 0.1)]):
        single = hmc.init(bumpy, start[row : row + 1], observation_ids=[3 + row])
        alone, _ = hmc.step(
            single,
            bumpy,
            beta=torch.tensor([beta]),
            step_size=torch.tensor([eps]),
            leapfrog_steps=4,
        )
        torch.testing.assert_close(both.latents[row], alone.latents[0], **ROUNDING)


@both_backends
def test_step_sizes_of_chains(backend: str) -> None:
    """A chain with a step size of its own moves as with the same step size for all."""
    start, sizes = latents(2, 3, 2), torch.tensor([[0.05, 0.1, 0.3], [0.3, 0.2, 0.05]])
    state = hmc.init(bumpy, start)
    common: dict[str, Any] = {"leapfrog_steps": 4, "backend": backend}
    own, info = hmc.step(state, bumpy, step_size=sizes, **common)
    for b in range(2):
        for n in range(3):
            shared, seen = hmc.step(state, bumpy, step_size=float(sizes[b, n]), **common)
            torch.testing.assert_close(own.latents[b, n], shared.latents[b, n], **ROUNDING)
            torch.testing.assert_close(
                info.acceptance_probability[b, n], seen.acceptance_probability[b, n], **ROUNDING
            )


@both_backends
def test_each_chain_adapts_by_its_own_acceptance(backend: str) -> None:
    moves = ais.Moves(leapfrog_steps=3, adaptation=AdaptationRule(per_chain=True))
    state = ais.init(
        banana, moves, chains=5, latent_size=2, observations=2, step_size_start=0.45,
        backend=backend,
    )  # fmt: skip
    step, running = np.full((2, 5), 0.45), np.full((2, 5), 0.65)
    for beta in np.linspace(0.1, 1.0, 12):
        used = state.adaptation.step_size
        state, info = ais.step(state, banana, beta, moves, backend=backend)
        assert torch.equal(info.step_size, used.mean(-1))
        step = np.clip(np.where(running > 0.65, 1.02, 0.98) * step, 1e-4, 0.5)
        running = 0.9 * running + 0.1 * info.last.acceptance_probability.numpy()
        adapted = state.adaptation
        np.testing.assert_allclose(adapted.step_size.numpy(), step, rtol=1e-13)
        np.testing.assert_allclose(adapted.running_acceptance.numpy(), running, rtol=1e-13)
    assert (step.max(-1) > step.min(-1)).all()


@pytest.mark.parametrize("per_chain", [False, True])
def test_a_run_keeps_the_kind_of_its_adaptation(per_chain: bool) -> None:
    moves, other = (
        ais.Moves(leapfrog_steps=1, adaptation=AdaptationRule(per_chain=p))
        for p in (per_chain, not per_chain)
    )
    state = ais.init(banana, moves, chains=2, latent_size=2, observations=2)
    with pytest.raises(ValueError, match=f"adaptation: .*per_chain={per_chain}.*{not per_chain}"):
        ais.step(state, banana, 0.5, other)
    ais.step(state, banana, 0.5, ais.Moves(leapfrog_steps=1, adaptation=None))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["energy", "grad"])
def test_a_non_finite_start_says_which_chain(what: str) -> None:
    start = latents(2, 3, 2)
    start[..., 0] = -1.0
    start[1, 2, 0] = 1.0
    target = Bad(math.nan, None) if what == "energy" else Bad(None, math.inf)
    with pytest.raises(ValueError, match=r"energy: .*1 of 6 chains.*\(1, 2\)"):
        hmc.init(target, start)


@pytest.mark.parametrize(
    ("energy", "error"),
    [
        (lambda z: z.sum(), ValueError),
        (lambda z: z, ValueError),
        (lambda z: z.sum(-1).long(), TypeError),
        (lambda z: [1.0], TypeError),
        (3.0, TypeError),
    ],
    ids=["scalar", "two-dimensional", "integers", "list", "no-callable"],
)
def test_energies_must_be_one_real_number_per_row(energy: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="energy: "):
        hmc.init(energy, latents(1, 3, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "latent_size: .*got None"),
        ({"latent_size": 0}, ValueError, "latent_size: "),
        ({"latent_size": 2, "chains": 0}, ValueError, "chains: "),
        ({"latent_size": 2, "observations": -1}, ValueError, "observations: "),
        ({"latent_size": 2, "seed": -1}, ValueError, "seed: "),
        ({"latent_size": 2, "seed": 2**64}, ValueError, "seed: "),
        ({"latent_size": 2, "seed": 0.5}, ValueError, "seed: "),
        ({"latent_size": 2, "observation_ids": [1, 2]}, ValueError, "observation_ids: expected 1"),
        ({"latent_size": 2, "observation_ids": [2**32]}, ValueError, "observation_ids: "),
        (
            {"latent_size": 2, "observations": 2, "observation_ids": [1, 1]},
            ValueError,
            "observation_ids: expected 2 different",
        ),
        ({"latent_size": 2, "dtype": torch.float16}, TypeError, "dtype: .*float16"),
        ({"latent_size": 2, "backend": "fast"}, ValueError, "backend: .*fast"),
        ({"latents": torch.zeros(3, 2)}, ValueError, r"latents: .*\(3, 2\)"),
        ({"latents": torch.zeros(1, 3, 2, dtype=torch.int64)}, TypeError, "dtype: "),
    ],
    ids=lambda v: ",".join(v) or "nothing" if isinstance(v, dict) else "",
)
def test_init_names_the_argument_at_fault(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        hmc.init(bumpy, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"leapfrog_steps": 0}, "leapfrog_steps: "),
        ({"leapfrog_steps": 1.5}, "leapfrog_steps: "),
        ({"beta": torch.ones(3)}, "beta: "),
        ({"step_size": torch.ones(3)}, "step_size: "),
        ({"step_size": torch.ones(1, 2)}, r"step_size: .*\(1,\) or \(1, 3\).*\[1, 2\]"),
        ({"step_size": torch.tensor([[0.1, 0.1, 0.0]])}, "step_size: "),
        ({"step_size": 0.0}, "step_size: "),
        ({"step_size": -0.1}, "step_size: "),
        ({"step_size": math.nan}, "step_size: "),
        ({"form": "posteriour"}, "form: "),
        ({"inverse_mass": torch.ones(2)}, "inverse_mass: "),
        ({"inverse_mass": torch.ones(1, 3)}, "inverse_mass: "),
        ({"inverse_mass": torch.tensor([[1.0, -1.0]])}, "inverse_mass: "),
        ({"inverse_mass": torch.tensor([[1.0, 0.0]])}, "inverse_mass: "),
        ({"active": torch.ones(3, dtype=torch.bool)}, "active: "),
        ({"active": torch.ones(1)}, "active: "),
    ],
    ids=lambda v: "-".join(f"{k}={x}" for k, x in v.items()) if isinstance(v, dict) else "",
)
@both_backends
def test_step_names_the_argument_at_fault(
    backend: str, arguments: dict[str, Any], message: str
) -> None:
    state = hmc.init(bumpy, latents(1, 3, 2, dtype=torch.float32))
    usual: dict[str, Any] = {"step_size": 0.1, "leapfrog_steps": 2, "backend": backend}
    with pytest.raises((ValueError, TypeError), match=message):
        hmc.step(state, bumpy, **usual | arguments)


# --- loops of one's own: plain energies against quadrature ----------------------------------------


def banana(z: Tensor) -> Tensor:
    return 0.5 * ((z[:, 1] - z[:, 0] ** 2 + 1.0) / 0.3) ** 2


def funnel(z: Tensor) -> Tensor:
    """An energy in which the first coordinate sets the scale of the second."""
    return 0.5 * (z[:, 1] - 0.5) ** 2 * torch.exp(-2.0 * z[:, 0]) + z[:, 0]


def quadrature(energy: Callable[[Tensor], Tensor], beta: float) -> tuple[Array, float]:
    """``E[z_0, z_1, z_0^2, z_1^2]`` and the log normaliser, by a fine grid over [-8, 8]^2."""
    line = torch.linspace(-8.0, 8.0, 1601, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    cell = float(line[1] - line[0]) ** 2
    log_density = -beta * energy(z) - 0.5 * (z * z).sum(-1) - math.log(2.0 * math.pi)
    mass = torch.exp(log_density) * cell
    total = mass.sum()
    return (statistics(z) * (mass / total)[:, None]).sum(0).numpy(), float(total.log())


def statistics(z: Tensor) -> Tensor:
    return torch.cat([z, z * z], dim=-1)


@pytest.mark.slow
@both_backends
@pytest.mark.parametrize("energy", [banana, funnel], ids=["banana", "funnel"])
def test_annealed_chains_agree_with_quadrature(
    backend: str, energy: Callable[[Tensor], Tensor]
) -> None:
    run = ais.run(
        energy, "linear", 60, ais.Moves(leapfrog_steps=8), chains=4000, latent_size=2, seed=8,
        dtype=torch.float64, step_size_start=0.2, backend=backend,
    )  # fmt: skip
    expected, log_normaliser = quadrature(energy, 1.0)
    logs = run.state.log_weights
    assert logs is not None
    w = torch.softmax(logs[0], 0)
    # Delta method: with normalised weights, the variance of a weighted mean is sum w^2 (f -
    # mean)^2, and that of the log of the mean weight is sum w^2 - 1 / N.
    values = statistics(run.state.hmc.latents[0])
    mean = (w[:, None] * values).sum(0)
    errors = (w[:, None] ** 2 * (values - mean) ** 2).sum(0).sqrt()
    assert (np.abs(mean.numpy() - expected) <= 5.0 * errors.numpy()).all()
    estimate = torch.logsumexp(logs[0], 0).item() - math.log(4000)
    error = math.sqrt((w * w).sum().item() - 1.0 / 4000)
    assert abs(estimate - log_normaliser) <= 5.0 * error
    assert error < 0.05


@pytest.mark.slow
def test_a_loop_of_ones_own_reaches_the_target() -> None:
    # 3,000 chains start from the prior and use init and step alone, without annealing. They are
    # independent, so that plain standard errors hold. The banana's steepest curvature is (1 + 4
    # z_0^2) / 0.3^2: a step of 0.05 is stable up to |z_0| = 6, beyond all starts.
    state = hmc.init(banana, chains=3000, latent_size=2, dtype=torch.float64, seed=1)
    for _ in range(80):
        state, _ = hmc.step(state, banana, step_size=0.05, leapfrog_steps=20)
    expected, _ = quadrature(banana, 1.0)
    values = statistics(state.latents[0]).numpy()
    errors = values.std(0) / math.sqrt(3000)
    assert (np.abs(values.mean(0) - expected) <= 5.0 * errors).all()


def test_ais_step_by_step_is_ais_run() -> None:
    moves = ais.Moves(hmc_steps=2, leapfrog_steps=3)
    state = ais.init(banana, moves, chains=5, latent_size=2, seed=3, step_size_start=0.1)
    for beta in (0.25, 0.5, 0.75, 1.0):
        state, _ = ais.step(state, banana, beta, moves)
    run = ais.run(banana, "linear", 4, moves, chains=5, latent_size=2, seed=3, step_size_start=0.1)
    assert torch.equal(state.hmc.latents, run.state.hmc.latents)
    assert state.log_weights is not None
    assert run.state.log_weights is not None
    assert torch.equal(state.log_weights, run.state.log_weights)
    assert state.hmc.stream.transition.tolist() == [8]


def test_a_run_goes_on_where_another_ended() -> None:
    common: dict[str, Any] = {"chains": 5, "latent_size": 2, "seed": 3}

    class Enough(Exception):
        pass

    kept: list[ais.Run] = []

    def stop(run: ais.Run) -> None:
        kept.append(run)
        if run.done == 3:
            raise Enough

    with pytest.raises(Enough):
        ais.run(banana, "linear", 7, on_step=stop, **common)
    whole = ais.run(banana, "linear", 7, **common)
    resumed = ais.run(banana, "linear", 7, start=kept[-1])
    assert resumed.done == 7
    assert torch.equal(resumed.state.hmc.latents, whole.state.hmc.latents)
    assert torch.equal(resumed.history.step_size, whole.history.step_size)


def test_prior_draws_without_a_finite_energy_are_drawn_again() -> None:
    """The new draws are from the prior where energies are finite; other draws do not change."""

    def energy(z: Tensor) -> Tensor:
        return torch.where(z[:, 0] > 0.5, torch.nan, 0.5 * (z**2).sum(-1))

    how: dict[str, Any] = {"chains": 2000, "latent_size": 3, "observations": 2, "seed": 7}
    before = hmc.init(lambda z: (z**2).sum(-1), **how).latents
    bad = before[..., 0] > 0.5
    assert 0.25 < bad.double().mean() < 0.35
    said = rf"^G: .* not finite for {int(bad.sum())} of 4000 prior draws, which were drawn again"
    with pytest.warns(UserWarning, match=said):
        state = hmc.init(energy, **how)
    assert torch.equal(state.latents[~bad], before[~bad])
    assert state.energy.isfinite().all()
    # The first coordinate has the mean of a normal truncated at 0.5, within four standard errors;
    # the other coordinates are still standard normal.
    found, normal = state.latents[..., 0], torch.distributions.Normal(0.0, 1.0)
    mean = -normal.log_prob(torch.tensor(0.5)).exp() / normal.cdf(torch.tensor(0.5))
    assert found.max() <= 0.5
    assert (found.mean() - mean).abs() < 4.0 * found.std() / found.numel() ** 0.5
    rest = state.latents[..., 1:]
    assert rest.mean().abs() < 4.0 / rest.numel() ** 0.5


def test_an_energy_that_is_never_finite_is_an_error_that_names_g() -> None:
    with pytest.raises(ValueError, match=r"^G: expected outputs.* finite .* 8 of 8 chains"):
        hmc.init(lambda z: (z**2).sum(-1) * torch.inf, chains=4, latent_size=3, observations=2)
