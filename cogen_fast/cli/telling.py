"""What a command tells on stderr, one line each, and its exit status."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from PIL import Image

OK, FAULTY, MISTAKE, NOT_SAMPLES, INTERRUPTED = 0, 1, 2, 3, 130
# ImportError: a requested backend or library is not available.
MISTAKES = (ValueError, TypeError, OSError, ImportError, OverflowError, MemoryError)
"""The exceptions by which users are told of their mistakes."""

_AS_OPTIONS = (
    (r"\blatent_shape=(\d+)", r"--latent-shape \1"),
    (r"\blatent_shape=\((\d+), (\d+), (\d+)\)", r"--latent-shape \1 \2 \3"),
    (r"^latent_shape: ", "--latent-shape: "),
    (
        r"Prior\(G, conditions=[\w.]+\)( or lambda z: G\(z, \w+\))?( in its place)?",
        "--condition N (of inpaint and super-resolve)",
    ),
    (
        r"Prior\(G, output='?(\w+)'?\)( in its place)?",
        r"--output-part \1 (of inpaint and super-resolve)",
    ),
)


def say(text: str) -> None:
    """Tell a line."""
    print(f"cogen-fast: {text}", file=sys.stderr)


def one_line(message: object) -> str:
    """The text of a message in one line, with options where the library names its arguments."""
    text = " ".join(str(message).split())
    for pattern, option in _AS_OPTIONS:
        text = re.sub(pattern, option, text)
    return text


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
