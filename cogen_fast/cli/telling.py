"""What a command tells on stderr, one line each, and its exit status."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from PIL import Image

OK, MISTAKE, NOT_SAMPLES, INTERRUPTED = 0, 2, 3, 130
# ImportError: a requested backend or library is not available.
MISTAKES = (ValueError, TypeError, OSError, ImportError, OverflowError, MemoryError)
"""The exceptions by which users are told of their mistakes."""


def say(text: str) -> None:
    """Tell a line."""
    print(f"cogen-fast: {text}", file=sys.stderr)


def one_line(message: object) -> str:
    """The text of a message in one line."""
    return " ".join(str(message).split())


@contextmanager
def one_line_warnings(about: str = "") -> Iterator[None]:
    """Tell each warning as a line, which begins with ``about``."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        say(f"{about}warning: {one_line(message)}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # raised as an error here
        warnings.showwarning = show
        yield
