"""A resumable run around a sampler's loop: progress, checkpoints, Ctrl-C and other ends.

The loops themselves are `cogen_fast.sampler.ais.run` and `cogen_fast.sampler.smc.run`. A `Method`
calls one of them with its settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from cogen_fast.methods import checkpoint as checkpoints
from cogen_fast.methods.checkpoint import Checkpoint
from cogen_fast.problem.problem import Problem
from cogen_fast.support.layout import Layout
from cogen_fast.support.reporting import Report
from cogen_fast.support.warnings import warn_user

INTERRUPTED = "The run was interrupted before its last moves."
"""The reason why an unfinished outcome lacks a value."""
CTRL_C = "Ctrl-C ended the run; run it to its end, with checkpoint= so that it can be continued."
"""The reason why an interrupted run is unfinished."""


@dataclass(frozen=True)
class Position:
    """Progress of a run, for the progress bar: ``done`` of ``total`` units (None: unknown)."""

    done: int
    total: int | None
    unit: str


@dataclass(frozen=True)
class Outcome:
    """What a method returns; `cogen_fast.Result` documents the fields.

    ``energy_unit`` ``(B,)`` is the factor between the energies of the problem's potential and those
    reported here; None where they are equal. ``best_draws`` ``(B, T, d)``, with energies
    ``best_energies`` ``(B, T)``, are the best scored prior draws of each island, from which fits
    may start.
    """

    latents: Tensor
    energies: Tensor
    log_weights: Tensor | None
    log_normaliser: Tensor | None
    log_normaliser_error: Tensor | None
    roots: Tensor
    surviving_roots: Tensor
    non_finite: Tensor
    betas: Tensor
    acceptance: Tensor
    step_size: Tensor
    energy_history: Tensor
    energy_std: Tensor
    leapfrog_steps: Tensor
    hmc_steps: Tensor
    trace: Tensor | None
    oversized_steps: Tensor
    rounds: Tensor
    beta_reached: float
    gradients: int
    forwards: int
    fit_latents: Tensor | None = None
    fit_energies: Tensor | None = None
    noise_std: Tensor | None = None
    energy_unit: Tensor | None = None
    best_draws: Tensor | None = None
    best_energies: Tensor | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Method(Protocol):
    """A sampling method with all settings, checked, but without the generator and the data."""

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, for the result and for the checkpoint's identity."""
        ...

    def identity(self) -> Mapping[str, str]:
        """Further values with which a checkpoint must agree."""
        ...

    def layout(self, problem: Problem) -> Layout:
        """The layout of a run with these settings, for reading one from a file."""
        ...

    def begin(self, problem: Problem, observation_ids: Sequence[int] | None) -> Any:
        """Start a run."""
        ...

    def go(self, problem: Problem, run: Any, on_step: Callable[[Any], None]) -> Any:
        """Continue ``run`` to its end; ``on_step`` is called with it after each temperature."""
        ...

    def position(self, run: Any) -> Position:
        """How far the run has come."""
        ...

    def facts(self, run: Any) -> Mapping[str, str]:
        """Numbers to show beside the progress bar. They are read from the device."""
        ...

    def outcome(self, problem: Problem, run: Any, complete: bool) -> Outcome:
        """The outcome of the run."""
        ...


class Observer(Protocol):
    """What looks at a run after each temperature, beside the `Loop`."""

    def start(self) -> None:
        """Start the clock."""
        ...

    def after_step(self, run: Any) -> str | None:
        """Look at the run; a reason ends it there."""
        ...

    def facts(self) -> Mapping[str, str]:
        """Numbers to show beside those of the method."""
        ...


class _Stopped(Exception):
    """The run ends before its time, for a reason other than Ctrl-C."""


class Loop:
    """A method's loop which can be resumed, interrupted and stopped, and shows its progress.

    ``stopped`` is the reason why an unfinished run ended.
    """

    def __init__(
        self, method: Method, problem: Problem, saving: Checkpoint | None, observer: Observer
    ) -> None:
        self.method, self.problem, self.observer = method, problem, observer
        self.path = None if saving is None else saving.file
        self.interval = 0.0 if saving is None else saving.seconds
        self.saved_at = time.monotonic()
        self.stopped: str | None = None

    def anneal(self, observation_ids: Sequence[int] | None, progress: bool) -> Any:
        """Run or resume the method. Returns the run, which is unfinished if it was stopped."""
        if self.path is not None:
            self.identity = self._identity(observation_ids)
            self.probes = self.problem.probes()
        self.latest = self._start(observation_ids)
        self._check_path()
        position = self.method.position(self.latest)
        self.report = Report(progress, position.unit, position.total, position.done)
        self.observer.start()
        try:
            self.latest = self.method.go(self.problem, self.latest, self._after_step)
        except KeyboardInterrupt:
            if self.path is not None and self._save():
                raise
            self.stopped = CTRL_C
        except ConnectionError:  # another process of the run has ended
            if self.path is not None:
                self._save()
            raise
        except _Stopped as reason:
            self.stopped = str(reason)
        finally:
            self.report.close()
        if self.path is not None and self.stopped != CTRL_C:
            self._save()
        return self.latest

    def _start(self, observation_ids: Sequence[int] | None) -> Any:
        if self.path is not None and self.path.exists():
            device, layout = self.problem.adapter.device, self.method.layout(self.problem)
            return checkpoints.load(self.path, self.identity, self.probes, device, layout)
        return self.method.begin(self.problem, observation_ids)

    def _after_step(self, run: Any) -> None:
        self.latest = run
        reason = self.observer.after_step(run)
        self.report.update(self.method.position(run).done, self._facts)
        if reason is not None:
            raise _Stopped(reason)
        if self.path is not None and time.monotonic() - self.saved_at >= self.interval:
            self._save()

    def _facts(self) -> Mapping[str, str]:
        return {**self.method.facts(self.latest), **self.observer.facts()}

    def _check_path(self) -> None:
        """Write the start of the run, so that a path which cannot be written fails before any work.

        Raises OSError naming the argument.
        """
        if self.path is None or self.path.exists():
            return
        try:
            checkpoints.save(self.path, self.latest, self.identity, self.probes)
        except OSError as error:
            raise OSError(f"checkpoint: {self.path} cannot be written: {error}") from error

    def _save(self) -> bool:
        """Save the run. Returns False, after a warning, if it could not be saved."""
        assert self.path is not None
        self.saved_at = time.monotonic()
        try:
            checkpoints.save(self.path, self.latest, self.identity, self.probes)
        except OSError as error:
            warn_user(
                f"checkpoint: {self.path} could not be written ({error}). The file keeps its old "
                "content, and the run continues, or is returned in its present state."
            )
            return False
        return True

    def _identity(self, observation_ids: Sequence[int] | None) -> dict[str, str]:
        """Values of generator, data and settings with which a checkpoint must agree."""
        settings = {k: str(v) for k, v in self.method.settings().items()}
        ids = str(None if observation_ids is None else list(observation_ids))
        own = settings | dict(self.method.identity()) | {"observation_ids": ids}
        return own | self.problem.identity()
