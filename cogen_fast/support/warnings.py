"""Warnings which point at the user's line instead of a line of this package."""

from __future__ import annotations

import sys
import warnings

_OURS = ("cogen_fast", "contextlib")


def warn_user(message: str) -> None:
    """Issue a UserWarning at the first caller outside this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
