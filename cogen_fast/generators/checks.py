"""Argument checks that the generators share: `name: expected X, got Y`."""

from __future__ import annotations

import numpy as np


def positive_int(name: str, value: object) -> int:
    """Return `value` where it is an integer of at least 1; otherwise raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    return int(value)


def fraction(name: str, value: object) -> float:
    """Return `value` as a float where it lies in [0, 1]; otherwise raise ValueError."""
    if not (isinstance(value, int | float | np.floating) and 0.0 <= value <= 1.0):
        raise ValueError(f"{name}: expected a number in [0, 1], got {value!r}")
    return float(value)


def boolean(name: str, value: object) -> bool:
    """Return `value` where it is True or False; otherwise raise ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return value
