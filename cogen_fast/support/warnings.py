"""Warnings which point at the user's line instead of a line of this package."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_OURS = ("cogen_fast", "contextlib")


class DiagnosisWarning(UserWarning):
    """A result cannot be relied on as it is: a sentence of `cogen_fast.Result.diagnose`.

    `cogen_fast.cogenerate` issues one for each sentence. ``warnings.simplefilter("ignore",
    DiagnosisWarning)`` silences them.
    """


@contextmanager
def without_diagnoses() -> Iterator[None]:
    """Silence `DiagnosisWarning`, where diagnoses are evaluated or shown in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DiagnosisWarning)
        yield


def warn_user(message: str, category: type[UserWarning] = UserWarning) -> None:
    """Issue a warning at the first caller outside this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
