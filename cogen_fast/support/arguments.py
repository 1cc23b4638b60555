"""Checks of plain arguments. Each error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from reprlib import Repr
from typing import Any

_MOST = 2**31 - 1
_SHOWN = 80
# Bounded in depth and width, as a file's content may be nested deeply or contain itself.
_BOUNDED = Repr()
_BOUNDED.maxlevel = 3
_BOUNDED.maxstring = _BOUNDED.maxother = _BOUNDED.maxlong = _SHOWN
_BOUNDED.maxlist = _BOUNDED.maxtuple = _BOUNDED.maxdict = _BOUNDED.maxset = 20


def shown(value: object) -> str:
    """A value as text for an error message, with its type unless it is a plain value."""
    if value is None or isinstance(value, str | bool | float | complex | bytes | Integral):
        return abbreviated(value)
    return f"{type(value).__name__} {abbreviated(value)}"[:_SHOWN]


def abbreviated(value: object) -> str:
    """The ``repr`` of a value, cut to a few dozen characters however large the value is."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        return str(number) if abs(number) < 10**30 else "a number of more than 30 digits"
    if isinstance(value, str | bytes):
        return repr(value[:_SHOWN])[:_SHOWN]
    try:
        return _BOUNDED.repr(value)[:_SHOWN]
    except (ValueError, RecursionError):  # thousands of digits, or deeply nested objects
        return f"a {type(value).__name__}"


def check_whole(name: str, value: Any, least: int, most: int = _MOST) -> int:
    """``value`` as int, if it is a whole number (NumPy's included) from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {shown(value)}")
    number = int(value)
    if number < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {shown(value)}")
    if number > most:
        raise ValueError(f"{name}: expected at most {most}, got {shown(value)}")
    return number


def check_count(name: str, value: Any) -> int:
    """``value`` as int, if it is a whole number from 1 to 2^31 - 1."""
    return check_whole(name, value, 1)


def check_path(name: str, value: Any) -> Path:
    """``value`` as a path, if it is a string or a path."""
    if not isinstance(value, str | Path):
        raise TypeError(f"{name}: expected a path, got {shown(value)}")
    return Path(value)


def check_folder(name: str, value: Any) -> Path:
    """The path of a folder which can be written to, whether it exists or is yet to be created."""
    path = check_path(name, value)
    nearest = next(p for p in (path, *path.absolute().parents) if path_mode(name, p) is not None)
    if not nearest.is_dir():
        raise ValueError(f"{name}: expected a folder, got the file {nearest}")
    _check_writable(name, nearest)
    return path


def check_file(name: str, value: Any) -> Path:
    """The path of a file which can be written: its folder exists, and it is no folder itself."""
    path = check_path(name, value)
    mode = path_mode(name, path)
    folder = path.absolute().parent
    if not folder.is_dir() or (mode is not None and not stat.S_ISREG(mode)):
        got = path if mode is None else f"{kind_of_file(mode)}, {path}"
        raise ValueError(f"{name}: expected a file in an existing folder, got {got}")
    _check_writable(name, folder)
    return path


def kind_of_file(mode: int) -> str:
    """The kind of a file which is not a regular one, in words, from its ``st_mode``."""
    return _KINDS.get(stat.S_IFMT(mode), "no regular file")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def path_mode(name: str, path: Path) -> int | None:
    """``st_mode`` of the file at ``path``; None where there is none. ValueError for a bad path."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise PermissionError(f"{name}: {path} cannot be accessed: {error.strerror}") from None
    except (OSError, ValueError) as error:  # too long a name, a loop of links, a null character
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{name}: expected a path, got {abbreviated(str(path))}: {reason}"
        ) from None


def _check_writable(name: str, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}: {folder} cannot be written to")


def check_seed(seed: Any) -> int:
    """``seed`` as int, if it is a whole number from 0 to 2^64 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**64:
        raise ValueError(f"seed: expected a whole number in [0, 2^64), got {shown(seed)}")
    return int(seed)


def check_number(
    name: str, value: Any, above: float, below: float = math.inf, zero: bool = False
) -> float:
    """``value`` as float, if it is in the open interval (above, below); or 0, with ``zero``."""
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
    """``value``, if it is one of ``options``."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected one of {tuple(options)}, got {shown(value)}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """``value``, if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return value


def names_of(kind: type) -> tuple[str, ...]:
    """The names of the fields of a dataclass, in their order."""
    return tuple(each.name for each in fields(kind))


def taken(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Remove the items with one of ``names`` from ``options`` and return them."""
    return {name: options.pop(name) for name in names if name in options}
