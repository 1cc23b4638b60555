"""Checks of plain arguments, each with an error that names the argument."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

_MOST = 2**31 - 1


def shown(value: object) -> str:
    """A value in an error message: its type where its text is long or costly."""
    if value is None or isinstance(value, str | bool | float | complex | bytes):
        return repr(value)[:80]
    if isinstance(value, Integral):
        number = int(value)
        return str(number) if abs(number) < 10**30 else "a number of more than 30 digits"
    return f"{type(value).__name__} {value!r}"[:80]


def check_whole(name: str, value: Any, least: int, most: int = _MOST) -> int:
    """A whole number from ``least`` to ``most``; NumPy's are taken too."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {shown(value)}")
    number = int(value)
    if number < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {shown(value)}")
    if number > most:
        raise ValueError(f"{name}: expected at most {most}, got {shown(value)}")
    return number


def check_count(name: str, value: Any) -> int:
    """A whole number of at least 1 (and at most 2^31 - 1)."""
    return check_whole(name, value, 1)


def check_path(name: str, value: Any) -> Path:
    """A path, from text or a path."""
    if not isinstance(value, str | Path):
        raise TypeError(f"{name}: expected a path, got {shown(value)}")
    return Path(value)


def check_folder(name: str, value: Any) -> Path:
    """The path of a folder that can be written to, there or to be made."""
    path = check_path(name, value)
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise ValueError(f"{name}: expected a folder, got the file {nearest}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}: {nearest} cannot be written to")
    return path


def check_seed(seed: Any) -> int:
    """The seed, if it is a whole number of 64 bits."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**64:
        raise ValueError(f"seed: expected a whole number in [0, 2^64), got {shown(seed)}")
    return int(seed)


def check_number(
    name: str, value: Any, above: float, below: float = math.inf, zero: bool = False
) -> float:
    """A finite number above ``above`` and below ``below``, both excluded; or 0, with ``zero``."""
    wanted = "0 or " if zero else ""
    if below < math.inf:
        wanted += f"a number between {above:g} and {below:g}"
    else:
        wanted += f"a finite number above {above:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}: expected {wanted}, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (above < number < below or (zero and number == 0.0)):
        raise ValueError(f"{name}: expected {wanted}, got {shown(value)}")
    return number


def check_choice(name: str, value: Any, options: Sequence[str]) -> str:
    """One of ``options``."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected one of {tuple(options)}, got {shown(value)}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return value
