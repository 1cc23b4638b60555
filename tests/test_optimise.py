"""Gradient descent, Adam and L-BFGS of many starts at once: where they end, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from cogen_fast.methods.optimise import adam, gradient_descent, lbfgs

pytestmark = pytest.mark.usefixtures("one_thread")

Optimiser = Callable[[Any, Tensor, int], tuple[Tensor, Tensor]]
Array = npt.NDArray[np.float64]
F64 = torch.float64


def descend(potential: Any, latents: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    return gradient_descent(potential, latents, steps, learning_rate=1e-3)


polishers = pytest.mark.parametrize("optimiser", [adam, lbfgs], ids=["adam", "lbfgs"])
all_three = pytest.mark.parametrize(
    "optimiser", [descend, adam, lbfgs], ids=["descent", "adam", "lbfgs"]
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Quadratic:
    """``E(z) = (z - c)' A (z - c) / 2 + 0.7``, one for all chains; counts and records its calls."""

    def __init__(self, precision: Tensor, centre: Tensor) -> None:
        self.precision, self.centre = precision, centre
        self.seen: list[Tensor] = []

    @classmethod
    def random(cls, d: int = 4) -> Quadratic:
        """Eigenvalues from 1 to 30, in directions of their own."""
        turn, _ = torch.linalg.qr(normal(d, d, seed=3))
        values = torch.logspace(0.0, math.log10(30.0), d, dtype=F64)
        return cls(turn @ torch.diag(values) @ turn.T, normal(d, seed=4))

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(z.clone())
        away = (z.double() - self.centre)[..., None, :]
        # Summed row by row, so that rounding does not depend on B or N.
        grad = (away * self.precision).sum(-1)
        return 0.5 * (away[..., 0, :] * grad).sum(-1) + 0.7, grad.to(z.dtype)


class Rosenbrock:
    """``(1 - x)^2 + 20 (y - x^2)^2``: a bent valley with its minimum, 0, at (1, 1)."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(z.clone())
        x, y = z.double().unbind(-1)
        bend = y - x * x
        grad = torch.stack([2.0 * (x - 1.0) - 80.0 * x * bend, 40.0 * bend], -1)
        return (1.0 - x) ** 2 + 20.0 * bend**2, grad.to(z.dtype)


# --- where they end -------------------------------------------------------------------------------


def test_gradient_descent_is_a_power_of_its_matrix() -> None:
    target, start = Quadratic.random(), normal(2, 3, 4, seed=1)
    end, energy = gradient_descent(target, start, 25, learning_rate=0.05)
    shrink = torch.linalg.matrix_power(torch.eye(4, dtype=F64) - 0.05 * target.precision, 25)
    expected = target.centre + (start - target.centre) @ shrink
    torch.testing.assert_close(end, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(energy, target.energy_and_grad(end)[0], rtol=0, atol=0)


def test_gradient_descent_reaches_the_minimum() -> None:
    # Along the slowest direction, of precision 1, each step multiplies the distance by 1 - 0.05,
    # and 0.95^600 < 1e-13.
    target = Quadratic.random()
    end, energy = gradient_descent(target, normal(2, 3, 4, seed=1), 600, learning_rate=0.05)
    assert (end - target.centre).abs().max() < 1e-11
    assert (energy - 0.7).abs().max() < 1e-12


def adam_by_hand(target: Any, start: Tensor, steps: int, rate: float) -> list[Tensor]:
    """The points that Kingma and Ba's algorithm 1 visits, its rate falling along a cosine."""
    z, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    visited = []
    for k in range(steps):
        visited.append(z)
        grad = target.energy_and_grad(z)[1]
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        corrected, scale = m / (1.0 - 0.9 ** (k + 1)), v / (1.0 - 0.999 ** (k + 1))
        now = rate * 0.5 * (1.0 + math.cos(math.pi * k / steps))
        z = z - now * corrected / (scale.sqrt() + 1e-8)
    return visited


def test_adam_is_the_written_one() -> None:
    target, start = Rosenbrock(), 0.5 * normal(2, 3, 2, seed=1)
    best, energy = adam(target, start, 30, learning_rate=0.05)
    visited = adam_by_hand(Rosenbrock(), start, 30, 0.05)
    torch.testing.assert_close(
        torch.stack(target.seen), torch.stack(visited), rtol=1e-9, atol=1e-11
    )
    energies = torch.stack([target.energy_and_grad(z)[0] for z in visited])
    torch.testing.assert_close(energy, energies.min(0).values, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(target.energy_and_grad(best)[0], energy, rtol=1e-12, atol=0)
    assert (energy < energies[0]).all()


def test_adam_comes_close_to_the_minimum() -> None:
    # The rate falls to 0, so that the steps stop fluctuating. 1,000 steps of up to 0.2 reach the
    # minimum from any start.
    target = Quadratic.random()
    end, energy = adam(target, normal(2, 3, 4, seed=1), 1000, learning_rate=0.2)
    assert (energy - 0.7).abs().max() < 1e-6
    # An energy of 1e-6 at precision 1 is a distance of 1.4e-3.
    assert (end - target.centre).abs().max() < 2e-3
    _, energy = adam(Rosenbrock(), 0.5 * normal(2, 3, 2, seed=1), 1500, learning_rate=0.05)
    assert energy.max() < 1e-3


def test_lbfgs_reaches_the_minimum_of_quadratics() -> None:
    for d in (1, 2, 4, 8):
        target = Quadratic.random(d)
        end, energy = lbfgs(target, normal(2, 3, d, seed=1), 60)
        assert (end - target.centre).abs().max() < 1e-6
        assert (energy - 0.7).abs().max() < 1e-12


def test_lbfgs_reaches_the_minimum_of_a_bent_valley() -> None:
    end, energy = lbfgs(Rosenbrock(), 0.5 * normal(2, 3, 2, seed=1), 120)
    assert energy.max() < 1e-12
    assert (end - 1.0).abs().max() < 1e-5
    # Gradient descent with as many steps, at a rate near the largest stable one, does not get
    # there.
    _, slow = gradient_descent(Rosenbrock(), 0.5 * normal(2, 3, 2, seed=1), 120, 2e-3)
    assert slow.min() > 1e-4


def two_loops_by_hand(grad: Array, pairs: list[tuple[Array, Array]]) -> Array:
    """``-H grad`` by the dense inverse update of Nocedal and Wright, equation 7.16."""
    newest, change = pairs[-1]
    h = np.eye(len(grad)) * (newest @ change) / (change @ change)
    for s, y in pairs:
        v = np.eye(len(grad)) - np.outer(y, s) / (s @ y)
        h = v.T @ h @ v + np.outer(s, s) / (s @ y)
    direction: Array = -h @ grad
    return direction


def test_lbfgs_directions_are_those_of_the_inverse_update() -> None:
    """After a successful step, the next point is the last one plus the textbook's direction."""
    target = Quadratic.random()
    lbfgs(target, normal(1, 1, 4, seed=2), 12)
    points = [z[0, 0].numpy() for z in target.seen]
    centre, precision = target.centre.numpy(), target.precision.numpy()

    def look(z: Array) -> tuple[float, Array]:
        grad = precision @ (z - centre)
        return float(0.5 * (z - centre) @ grad), grad

    pairs: list[tuple[Array, Array]] = []
    here, checked, backtracking = points[0], 0, False
    energy, grad = look(here)
    for trial in points[1:]:
        step = trial - here
        if pairs:
            direction = two_loops_by_hand(grad, pairs)
            if direction @ grad < 0.0 and not backtracking:
                np.testing.assert_allclose(step, direction, rtol=1e-6, atol=1e-9)
                checked += 1
        new_energy, new_grad = look(trial)
        backtracking = new_energy > energy + 1e-4 * step @ grad
        if not backtracking:
            pairs.append((step, new_grad - grad))
            here, energy, grad = trial, new_energy, new_grad
    assert checked >= 6


def test_the_first_step_has_a_length_of_a_tenth_prior_deviation() -> None:
    target, start = Quadratic.random(), normal(1, 5, 4, seed=2)
    lbfgs(target, start, 2)
    step = target.seen[1] - target.seen[0]
    torch.testing.assert_close(step.norm(dim=-1), torch.full((1, 5), 0.2, dtype=F64))
    grad = target.energy_and_grad(start)[1]
    cosine = (step * grad).sum(-1) / (step.norm(dim=-1) * grad.norm(dim=-1))
    torch.testing.assert_close(cosine, -torch.ones(1, 5, dtype=F64))


def test_adam_makes_steps_of_its_rate() -> None:
    target, start = Quadratic.random(), normal(1, 5, 4, seed=2)
    adam(target, start, 2)
    # Adam's first step is as large as its rate in every coordinate.
    assert ((target.seen[1] - target.seen[0]).abs() - 0.01).abs().max() < 1e-6


# --- each chain on its own ------------------------------------------------------------------------


@all_three
@pytest.mark.parametrize("make", [Quadratic.random, Rosenbrock], ids=["quadratic", "rosenbrock"])
def test_a_chain_goes_its_way_whatever_its_neighbours(
    optimiser: Optimiser, make: Callable[[], Any]
) -> None:
    d = 4 if make is not Rosenbrock else 2
    start = normal(2, 5, d, seed=6)
    start[0, 1] *= 30.0  # a chain that has to backtrack
    together = make()
    end, energy = optimiser(together, start, 40)
    for row, chain in ((0, 0), (0, 1), (1, 4)):
        alone = make()
        mine, mine_energy = optimiser(alone, start[row : row + 1, chain : chain + 1], 40)
        for all_points, my_points in zip(together.seen, alone.seen, strict=True):
            torch.testing.assert_close(
                my_points[0, 0], all_points[row, chain], rtol=1e-12, atol=1e-12
            )
        torch.testing.assert_close(mine[0, 0], end[row, chain], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mine_energy[0, 0], energy[row, chain], rtol=1e-12, atol=1e-12)


class Walled(Quadratic):
    """A quadratic that is not finite, in one of several ways, below ``wall`` in z_0."""

    def __init__(self, energy: float | None, grad: float | None, wall: float = -0.2) -> None:
        super().__init__(torch.eye(2, dtype=F64) * 4.0, torch.tensor([-1.0, 0.5], dtype=F64))
        self.bad_energy, self.bad_grad, self.wall = energy, grad, wall

    def energy_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        energy, grad = super().energy_and_grad(z)
        beyond = z[..., 0] < self.wall
        if self.bad_energy is not None:
            energy = torch.where(beyond, self.bad_energy, energy)
        if self.bad_grad is not None:
            grad = grad.clone()
            grad[..., 0] = torch.where(beyond, self.bad_grad, grad[..., 0])
        return energy, grad


bad = pytest.mark.parametrize(
    ("energy", "grad"),
    [(math.nan, None), (math.inf, None), (None, math.nan), (None, -math.inf), (math.nan, math.nan)],
    ids=["nan-energy", "inf-energy", "nan-grad", "inf-grad", "both"],
)


def behind_a_wall() -> Tensor:
    """Starts on the good side of the wall, with the minimum beyond it."""
    start = normal(1, 6, 2, seed=7).abs() + 0.5
    return start


@polishers
@bad
def test_what_is_not_finite_is_left_behind(
    optimiser: Optimiser, energy: float | None, grad: float | None
) -> None:
    target, start = Walled(energy, grad), behind_a_wall()
    steps = 200 if optimiser is adam else 60
    before = target.energy_and_grad(start)[0]
    target.seen.clear()
    end, found = optimiser(target, start, steps)
    reached = torch.stack(target.seen)[..., 0].min()
    assert reached < target.wall  # some points beyond the wall were evaluated
    assert end.isfinite().all()
    assert found.isfinite().all()
    assert (found < before).all()
    if energy is not None:
        assert (end[..., 0] >= target.wall).all()
        value = Walled(None, None).energy_and_grad(end)[0]
        torch.testing.assert_close(found, value, rtol=1e-12, atol=0)
    if optimiser is lbfgs:
        # Backtracking halves the step, so that chains stay on the good side of the wall.
        assert (end[..., 0] >= target.wall).all()


@polishers
@bad
def test_a_chain_that_is_not_finite_troubles_no_other(
    optimiser: Optimiser, energy: float | None, grad: float | None
) -> None:
    # One chain starts where nothing is finite; the others do not come near the wall.
    start = torch.tensor([[[-5.0, 0.0], [3.0, 1.0], [4.0, -1.0]]], dtype=F64)
    broken, sound = Walled(energy, grad, wall=-4.0), Walled(None, None)
    end, found = optimiser(broken, start, 30)
    good_end, good_found = optimiser(sound, start[:, 1:], 30)
    torch.testing.assert_close(end[:, 1:], good_end, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[:, 1:], good_found, rtol=1e-12, atol=1e-12)
    assert end[0, 0].isfinite().all()
    if energy is not None:
        assert not found[0, 0].isnan()


@bad
def test_gradient_descent_stays_where_the_gradient_is_not_finite(
    energy: float | None, grad: float | None
) -> None:
    target, start = Walled(energy, grad), behind_a_wall()
    end, _ = gradient_descent(target, start, 50, learning_rate=0.1)
    assert end.isfinite().all()
    if grad is None:
        assert (end[..., 0] < target.wall).all()  # gradient descent does not look at the energy
        return
    # A chain stops at the first point beyond the wall.
    free = Walled(None, None)
    gradient_descent(free, start, 50, learning_rate=0.1)
    path = torch.stack(free.seen)
    first = (path[..., 0] < target.wall).double().argmax(0)
    expected = path.gather(0, first[None, ..., None].expand(1, -1, -1, 2))[0]
    torch.testing.assert_close(end, expected, rtol=1e-12, atol=1e-12)


@polishers
@pytest.mark.parametrize("make", [Quadratic.random, Rosenbrock], ids=["quadratic", "rosenbrock"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 57])
def test_nothing_ends_worse_than_it_started(
    optimiser: Optimiser, make: Callable[[], Any], steps: int
) -> None:
    target = make()
    start = normal(2, 20, 4 if make is not Rosenbrock else 2, seed=9) * 2.0
    # Some chains start at the minimum, from which every step goes up.
    start[0, 0] = target.centre if make is not Rosenbrock else 1.0
    before = target.energy_and_grad(start)[0]
    target.seen.clear()
    end, energy = optimiser(target, start, steps)
    assert (energy <= before).all()
    assert torch.equal(target.energy_and_grad(end)[0], energy)
    # The result is the best of all points that were evaluated.
    seen = [make().energy_and_grad(z)[0] for z in target.seen[:steps]]
    torch.testing.assert_close(energy, torch.stack(seen).min(0).values, rtol=1e-12, atol=0)


# --- what they cost and leave alone ---------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 31])
def test_gradients_are_counted_exactly(steps: int) -> None:
    for optimiser, expected in ((descend, steps + 1), (adam, steps), (lbfgs, steps)):
        target = Quadratic.random()
        optimiser(target, normal(2, 3, 4, seed=1), steps)
        assert len(target.seen) == expected
        assert all(z.shape == (2, 3, 4) for z in target.seen)


@all_three
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
def test_starts_keep_shape_type_and_values(optimiser: Optimiser, dtype: torch.dtype) -> None:
    target, start = Quadratic.random(), normal(2, 3, 4, seed=1).to(dtype)
    before = start.clone()
    end, energy = optimiser(target, start, 7)
    assert torch.equal(start, before)
    assert end.shape == start.shape
    assert end.dtype is dtype
    assert not end.requires_grad
    assert energy.shape == (2, 3)
    assert energy.dtype is F64
    assert all(z.dtype is dtype for z in target.seen)


@all_three
def test_float32_chains_come_down_as_well(optimiser: Optimiser) -> None:
    # float32 must reach the energy of float64 up to its rounding error relative to the first
    # energy.
    start = normal(2, 3, 4, seed=1)
    wide = optimiser(Quadratic.random(), start, 50)[1]
    narrow = optimiser(Quadratic.random(), start.float(), 50)[1]
    first = Quadratic.random().energy_and_grad(start)[0]
    assert (narrow - wide).abs().max() < 1e-4 * first.max()
    assert (narrow < first).all()


@all_three
def test_no_global_random_state_is_touched(optimiser: Optimiser) -> None:
    state = torch.get_rng_state()
    with torch.no_grad():
        optimiser(Quadratic.random(), normal(1, 2, 4, seed=1), 3)
    assert torch.equal(torch.get_rng_state(), state)
