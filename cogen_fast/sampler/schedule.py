"""Annealing schedules: the inverse temperatures ``beta_1 .. beta_T`` of the AIS loop.

``beta_0 = 0`` (the prior) always precedes ``beta_1`` and is not part of a schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Betas = npt.NDArray[np.float64]


class Schedule(Protocol):
    """An object that gives T inverse temperatures."""

    def betas(self, steps: int) -> Betas:
        """``beta_1 .. beta_T`` for T = ``steps``: non-decreasing, in [0, 1], float64."""
        ...


@dataclass(frozen=True)
class Sigmoid:
    """``sigmoid(s)`` for T + 1 values of ``s`` evenly spaced over ``[low, high]``.

    With ``normalised`` (the paper's text) the values are rescaled to run from exactly 0 to exactly
    1; without (the authors' program) they are used as they are, so that the last is below 1. In
    both cases the first of the T + 1 values stands for ``beta_0`` and has no transition.
    """

    low: float = -5.0
    high: float = 5.0
    normalised: bool = True

    def __post_init__(self) -> None:
        if not np.isfinite([self.low, self.high]).all() or not self.low < self.high:
            raise ValueError(f"schedule: expected finite low < high, got {self.low}, {self.high}")

    def betas(self, steps: int) -> Betas:
        """``beta_1 .. beta_T``, shape ``(steps,)``."""
        g = 1.0 / (1.0 + np.exp(-np.linspace(self.low, self.high, steps + 1)))
        if self.normalised:
            g = (g - g[0]) / (g[-1] - g[0])
        return np.asarray(g[1:], dtype=np.float64)


@dataclass(frozen=True)
class Linear:
    """``beta_t = t / T``."""

    def betas(self, steps: int) -> Betas:
        """``beta_1 .. beta_T``, shape ``(steps,)``."""
        return np.arange(1, steps + 1, dtype=np.float64) / steps


@dataclass(frozen=True)
class Geometric:
    """Inverse temperatures whose logarithms are evenly spaced, from ``first`` to 1."""

    first: float = 1e-4

    def __post_init__(self) -> None:
        if not 0.0 < self.first <= 1.0:
            raise ValueError(f"schedule: expected first in (0, 1], got {self.first}")

    def betas(self, steps: int) -> Betas:
        """``beta_1 .. beta_T``, shape ``(steps,)``; for T = 1 the single value 1."""
        return np.geomspace(self.first, 1.0, steps) if steps > 1 else np.ones(1)


@dataclass(frozen=True)
class Custom:
    """Given values ``beta_1 .. beta_T``; a leading 0 is taken for ``beta_0`` and dropped."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        values = self.values[1:] if self.values and self.values[0] == 0.0 else self.values
        array = np.asarray(values)
        ordered = bool(np.all(np.diff(array) >= 0))
        if array.size == 0 or not np.isfinite(array).all() or not ordered:
            raise ValueError("schedule: expected finite, non-decreasing inverse temperatures")
        if array[0] < 0.0 or array[-1] > 1.0 or array[-1] == 0.0:
            raise ValueError(
                "schedule: expected inverse temperatures in [0, 1], the last above 0, got "
                f"{array[0]:g} to {array[-1]:g}"
            )
        object.__setattr__(self, "values", tuple(float(v) for v in array))

    def betas(self, steps: int) -> Betas:
        """The given values; raises ValueError where ``steps`` is not their number."""
        if steps != len(self.values):
            raise ValueError(
                f"ais_steps: expected {len(self.values)}, the schedule's own number of "
                f"temperatures, got {steps}"
            )
        return np.array(self.values)


NAMED: dict[str, Schedule] = {
    "sigmoid": Sigmoid(),
    "sigmoid-raw": Sigmoid(normalised=False),
    "linear": Linear(),
    "geometric": Geometric(),
}


def as_schedule(value: Any) -> Schedule:
    """A schedule from its name or from an array of inverse temperatures; a schedule stays itself.

    Raises TypeError or ValueError naming ``schedule``.
    """
    if isinstance(value, str):
        if value not in NAMED:
            raise ValueError(f"schedule: expected one of {sorted(NAMED)}, got {value!r}")
        return NAMED[value]
    if callable(getattr(value, "betas", None)):
        schedule: Schedule = value
        return schedule
    if isinstance(value, Sequence) or hasattr(value, "__array__"):
        try:
            given = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
            if np.iscomplexobj(given):
                raise TypeError("complex")
            array = given.astype(np.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"schedule: expected real numbers, got {value!r}") from error
        if array.ndim != 1:
            raise ValueError(f"schedule: expected one dimension, got shape {array.shape}")
        return Custom(tuple(array.tolist()))
    raise TypeError(
        f"schedule: expected a name, an array or a schedule, got {type(value).__name__}"
    )
