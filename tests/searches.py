"""Settings of the property tests: the number of examples, and a time limit for each call."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hypothesis import HealthCheck, settings

EFFORT = int(os.environ.get("COGEN_FAST_PROPERTY_EFFORT", "1"))
SECONDS = 30  # limit of a call or command, which should take a few dozen milliseconds


def search(examples: int) -> settings:
    """Settings with so many examples, the same ones in every run.

    With COGEN_FAST_PROPERTY_EFFORT = k above 1 there are k times as many, new ones in every run.
    """
    return settings(
        max_examples=examples * EFFORT,
        deadline=None,
        derandomize=EFFORT == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def limited() -> Iterator[None]:
    """Fail where the body takes longer than `SECONDS` (on systems that have SIGALRM)."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still running after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
