"""Schedules: values by hand, the point that stands for beta_0, and every refusal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cogen_fast.sampler import ais
from cogen_fast.sampler.schedule import NAMED, Custom, Geometric, Linear, Sigmoid, as_schedule


def sigmoid(s: float) -> float:
    return 1.0 / (1.0 + math.exp(-s))


def test_raw_sigmoid_skips_the_first_of_its_points() -> None:
    betas = Sigmoid(-2.0, 2.0, normalised=False).betas(4)  # the points are s = -2, -1, 0, 1, 2
    expected = [0.2689414213699951, 0.5, 0.7310585786300049, 0.8807970779778823]
    np.testing.assert_allclose(betas, expected, rtol=1e-15)


def test_normalised_sigmoid_by_hand() -> None:
    g = [sigmoid(s) for s in (-2, -1, 0, 1, 2)]
    expected = [(v - g[0]) / (g[4] - g[0]) for v in g[1:]]
    betas = Sigmoid(-2.0, 2.0).betas(4)
    np.testing.assert_allclose(betas, expected, rtol=1e-14)
    assert betas[1] == pytest.approx(0.5, abs=1e-15)
    assert betas[-1] == 1.0


def test_program_schedule_of_the_2d_study_has_ten_thousand_points() -> None:
    points = [sigmoid(-10.0 + 12.0 * i / 9999) for i in range(10_000)]
    betas = Sigmoid(-10.0, 2.0, normalised=False).betas(9999)
    assert betas.shape == (9999,)
    assert betas.dtype == np.float64
    np.testing.assert_allclose(betas, points[1:], rtol=1e-11)
    assert betas[0] > sigmoid(-10.0)  # the first point is skipped
    assert betas[-1] == pytest.approx(0.8807970779778823, rel=1e-14)  # a raw schedule ends below 1


def test_program_schedule_of_the_image_runs() -> None:
    betas = Sigmoid(-5.0, 5.0, normalised=False).betas(499)
    points = [sigmoid(-5.0 + 10.0 * i / 499) for i in range(500)]
    np.testing.assert_allclose(betas, points[1:], rtol=1e-12)


def test_linear_by_hand() -> None:
    np.testing.assert_array_equal(Linear().betas(4), [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(Linear().betas(1), [1.0])


def test_geometric_by_hand() -> None:
    np.testing.assert_allclose(Geometric(1e-3).betas(4), [1e-3, 1e-2, 1e-1, 1.0], rtol=1e-14)
    assert Geometric(1e-3).betas(4)[-1] == 1.0
    np.testing.assert_array_equal(Geometric(1e-3).betas(1), [1.0])


def test_names() -> None:
    assert as_schedule("sigmoid") == Sigmoid(-5.0, 5.0, normalised=True)
    assert as_schedule("sigmoid-raw") == Sigmoid(-5.0, 5.0, normalised=False)
    assert as_schedule("linear") == Linear()
    assert as_schedule("geometric") == Geometric()
    assert set(NAMED) == {"sigmoid", "sigmoid-raw", "linear", "geometric"}


@pytest.mark.parametrize(
    "values",
    [[0.1, 0.5, 1.0], (0.1, 0.5, 1.0), np.array([0.1, 0.5, 1.0]), torch.tensor([0.1, 0.5, 1.0])],
    ids=["list", "tuple", "numpy", "torch"],
)
def test_given_values_are_beta_1_to_beta_t(values: Any) -> None:
    np.testing.assert_allclose(as_schedule(values).betas(3), [0.1, 0.5, 1.0], rtol=1e-7)


def test_a_leading_zero_is_beta_0_and_dropped_once() -> None:
    np.testing.assert_array_equal(as_schedule([0.0, 0.5, 1.0]).betas(2), [0.5, 1.0])
    np.testing.assert_array_equal(as_schedule([0.0, 0.0, 1.0]).betas(2), [0.0, 1.0])


def test_a_schedule_is_itself() -> None:
    schedule = Sigmoid(-3.0, 1.0)
    assert as_schedule(schedule) is schedule


@given(
    low=st.floats(-20.0, 19.0),
    width=st.floats(0.5, 30.0),
    steps=st.integers(1, 200),
    normalised=st.booleans(),
)
def test_any_sigmoid_rises_within_zero_and_one(
    low: float, width: float, steps: int, normalised: bool
) -> None:
    betas = ais.checked_betas(Sigmoid(low, low + width, normalised), steps)
    assert betas.shape == (steps,)
    assert (np.diff(betas) >= 0).all()
    assert betas[0] > 0.0
    assert betas[-1] == 1.0 if normalised else betas[-1] <= 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "schedule: expected finite, non-decreasing"),
        ([0.0], "schedule: expected finite, non-decreasing"),
        ([0.5, 0.4], "schedule: expected finite, non-decreasing"),
        ([0.5, math.nan], "schedule: expected finite, non-decreasing"),
        ([math.nan, 0.5], "schedule: expected finite, non-decreasing"),
        ([0.5, math.inf], "schedule: expected finite, non-decreasing"),
        ([-0.1, 0.5], r"schedule: .*\[0, 1\].*got -0.1 to 0.5"),
        ([0.5, 1.5], r"schedule: .*\[0, 1\].*got 0.5 to 1.5"),
        ([0.0, 0.0], "schedule: .*the last above 0"),
        ([[0.5, 1.0]], r"schedule: expected one dimension, got shape \(1, 2\)"),
    ],
    ids=[
        "empty", "only-zero", "falling", "nan-last", "nan-first", "inf", "negative", "above-one",
        "all-zero", "two-dimensional",
    ],
)  # fmt: skip
def test_values_that_are_no_schedule(values: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_schedule(values)


def test_a_given_array_has_its_own_number_of_temperatures() -> None:
    with pytest.raises(ValueError, match=r"ais_steps: expected 2, .* got 3"):
        Custom((0.5, 1.0)).betas(3)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"schedule: .*geometric.*linear.*sigmoid.*'cosine'"):
        as_schedule("cosine")


@pytest.mark.parametrize(
    "value", [3, None, object(), ["a", "b"]], ids=["number", "none", "object", "texts"]
)
def test_things_that_are_no_schedule(value: Any) -> None:
    with pytest.raises(TypeError, match="schedule: expected"):
        as_schedule(value)


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0), (2.0, 1.0), (-math.inf, 1.0), (0.0, math.nan)], ids=str
)
def test_sigmoid_refuses_a_range_that_is_none(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="schedule: expected finite low < high"):
        Sigmoid(low, high)


@pytest.mark.parametrize("first", [0.0, -1.0, 1.5, math.nan])
def test_geometric_refuses_a_first_value_outside_zero_and_one(first: float) -> None:
    with pytest.raises(ValueError, match=r"schedule: expected first in \(0, 1\]"):
        Geometric(first)


@pytest.mark.parametrize("steps", [0, -1, 2.0, "3", True], ids=repr)
def test_number_of_temperatures_is_checked(steps: Any) -> None:
    with pytest.raises(ValueError, match="ais_steps: expected a whole number of at least 1"):
        ais.checked_betas("linear", steps)


class Scripted:
    """A schedule object of a user's own."""

    def __init__(self, values: list[float]) -> None:
        self.script = values

    def betas(self, steps: int) -> Any:
        return np.array(self.script)


def test_a_schedule_object_of_ones_own_is_used_as_it_is() -> None:
    np.testing.assert_array_equal(ais.checked_betas(Scripted([0.2, 0.9]), 2), [0.2, 0.9])


@pytest.mark.parametrize(
    "schedule",
    [
        Scripted([0.5, 1.0, 1.0]),
        Scripted([0.5]),
        Scripted([1.0, 0.5]),
        Scripted([0.5, 2.0]),
        Scripted([-0.5, 1.0]),
        Scripted([0.5, math.nan]),
        Sigmoid(40.0, 50.0),  # the same float64 at both ends: 0 / 0
    ],
    ids=["too-many", "too-few", "falling", "above-one", "negative", "nan", "flat-sigmoid"],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_what_a_schedule_object_gives_is_checked(schedule: Any) -> None:
    with pytest.raises(ValueError, match="schedule"):
        ais.checked_betas(schedule, 2)
