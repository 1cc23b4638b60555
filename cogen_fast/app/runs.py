"""Runs of the page's users: one after another, each in a thread, seen while it goes on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cogen_fast.app.setup import Setup
from cogen_fast.methods.progress import Snapshot
from cogen_fast.problem.compute import DEFAULT, Compute
from cogen_fast.results.result import Result
from cogen_fast.support.reporting import LOGGER
from cogen_fast.tasks import inpaint, super_resolve

_SECONDS_BETWEEN = 0.5  # of two views of the samples, each of which evaluates the generator
_SECONDS_TO_END = 30.0  # of a temperature
_STOPPED = "You stopped the run."


@dataclass(frozen=True)
class Waiting:
    """The run has not begun: ``ahead`` others are done first."""

    ahead: int


@dataclass(frozen=True)
class Moment:
    """A run at one temperature; the attributes are those of `cogen_fast.Snapshot`.

    ``images`` are the samples as they are now, ``(N, C, H, W)``.
    """

    images: Tensor
    beta: float
    misfit: float | None
    gradients: int
    seconds: float
    seconds_left: float | None


@dataclass(frozen=True)
class Failure:
    """The run ended with an error."""

    text: str


View = Waiting | Moment | Failure | Result


class Runs:
    """All runs of a server. They run one at a time, in the order in which they were asked for.

    ``session`` identifies a user's page; it has one run at a time. A run ends after
    ``time_limit`` seconds, not counting what it waits for others.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        self._compute = replace(DEFAULT, time_limit=time_limit)
        self._turns = _Turns()
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def views(self, session: str, setup: Setup) -> Iterator[View]:
        """Start a run and look at it until it ends; the last view is a `Result` or a `Failure`.

        If nobody looks any more (the iterator is closed), the run is stopped.
        """
        stop = threading.Event()
        with self._lock:
            if session in self._stops:
                raise ValueError("A run of this page is still going on: stop it first.")
            self._stops[session] = stop
        try:
            with self._turns.taken() as ahead:
                while (others := ahead()) > 0 and not stop.wait(_SECONDS_BETWEEN):
                    yield Waiting(others)
                if stop.is_set():
                    yield Failure("The run was stopped before it began.")
                else:
                    yield from self._watched(setup, stop)
        finally:
            with self._lock:
                del self._stops[session]

    def _watched(self, setup: Setup, stop: threading.Event) -> Iterator[View]:
        views: queue.SimpleQueue[View] = queue.SimpleQueue()
        given = (setup, self._compute, stop, views)
        thread = self._thread = threading.Thread(target=_work, args=given, daemon=True)
        thread.start()
        try:
            while True:
                view = views.get()
                yield view
                if isinstance(view, Result | Failure):
                    return
        finally:
            stop.set()
            thread.join()

    def close(self) -> None:
        """End all runs, and wait for the one that goes on, in which no process may end."""
        with self._lock:
            for stop in self._stops.values():
                stop.set()
        if self._thread is not None:
            self._thread.join(_SECONDS_TO_END)

    def stop(self, session: str) -> None:
        """End the run of ``session`` after its present temperature, if there is one."""
        with self._lock:
            stop = self._stops.get(session)
        if stop is not None:
            stop.set()


class _Turns:
    """Whose turn it is, first come first served."""

    def __init__(self) -> None:
        self._line: list[object] = []
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[Callable[[], int]]:
        """Stand in line; gives a function that tells how many are ahead."""
        ticket = object()
        with self._lock:
            self._line.append(ticket)
        try:
            yield lambda: self._line.index(ticket)
        finally:
            with self._lock:
                self._line.remove(ticket)


def _work(
    setup: Setup, compute: Compute, stop: threading.Event, views: queue.SimpleQueue[View]
) -> None:
    shown_at = 0.0

    def look(snapshot: Snapshot) -> bool:
        nonlocal shown_at
        if time.monotonic() - shown_at >= _SECONDS_BETWEEN:
            views.put(_moment(snapshot))
            shown_at = time.monotonic()
        return stop.is_set()

    try:
        result = sample(setup, compute=compute, on_temperature=look, progress=False)
        views.put(_in_words(result) if stop.is_set() and not result.complete else result)
    except BaseException as error:  # a generator of the user's own may even end its thread
        LOGGER.warning("app: a run failed", exc_info=error)
        views.put(Failure(f"The run failed. {type(error).__name__}: {error}"))


def sample(setup: Setup, **options: Any) -> Result:
    """Run ``setup``; ``options`` are further ones of `cogen_fast.cogenerate`."""
    image, hidden = setup.picture.image, setup.picture.hidden
    options |= setup.options()
    if hidden is not None:
        return inpaint(setup.offer.generator, image, ~hidden, **options)
    return super_resolve(setup.offer.generator, image, setup.settings.factor, **options)


def _moment(snapshot: Snapshot) -> Moment:
    return Moment(
        images=shown_images(snapshot.result())[0],
        beta=float(snapshot.beta[0]),
        misfit=None if snapshot.misfit is None else float(snapshot.misfit[0]),
        gradients=snapshot.gradients,
        seconds=snapshot.seconds,
        seconds_left=snapshot.seconds_left,
    )


def shown_images(result: Result) -> Tensor:
    """The samples, ``(1, N, C, H, W)``; where a part was hidden, with the rest pasted in."""
    return result.images if result.completed is None else result.completed


def _in_words(result: Result) -> Result:
    """The result, which says to the page's user, not to a program's, why it is unfinished."""
    return replace(result, reasons={**result.reasons, "complete": _STOPPED})
