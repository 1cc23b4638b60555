"""A resumable run: what people want around a sampler's loop.

Progress bar, checkpoints and Ctrl-C. The loops themselves are `cogen_fast.sampler.ais.run` and
`cogen_fast.sampler.smc.run`; a `Method` says which, and how.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from tqdm import tqdm

from cogen_fast.methods import checkpoint as checkpoints
from cogen_fast.methods.checkpoint import Checkpoint
from cogen_fast.problem.problem import Problem
from cogen_fast.support.digests import tensor_bytes
from cogen_fast.support.layout import Layout
from cogen_fast.support.warnings import warn_user

INTERRUPTED = "the run was interrupted before its last moves"
"""Why there is no such thing in an unfinished outcome."""


@dataclass(frozen=True)
class Position:
    """Where a run stands, for the progress bar: ``done`` of ``total`` (None: nobody knows)."""

    done: int
    total: int | None
    unit: str


@dataclass(frozen=True)
class Outcome:
    """What a method hands back; `cogen_fast.Result` says what the fields mean.

    ``energy_unit`` ``(B,)`` is what energies are multiples of, in those of the problem's potential;
    None where they are these. ``best_draws`` ``(B, T, d)``, with ``best_energies`` ``(B, T)``, are
    the best of the prior draws that were scored, to fit from.
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
    jumped: Tensor
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
    """A way to sample: every setting, checked, but not the generator and the data."""

    def settings(self) -> dict[str, Any]:
        """As plain values, for the result and for the checkpoint's identity."""
        ...

    def identity(self) -> Mapping[str, str]:
        """What else a checkpoint must agree with."""
        ...

    def layout(self, problem: Problem) -> Layout:
        """What a run of these settings is made of, to read one from a file."""
        ...

    def begin(self, problem: Problem, observation_ids: Sequence[int] | None) -> Any:
        """A run at its start."""
        ...

    def go(self, problem: Problem, run: Any, on_step: Callable[[Any], None]) -> Any:
        """The run at its end; ``on_step`` sees it after each temperature."""
        ...

    def position(self, run: Any) -> Position:
        """How far the run is."""
        ...

    def facts(self, run: Any) -> Mapping[str, str]:
        """What the progress bar tells beside it; reads from the device."""
        ...

    def outcome(self, problem: Problem, run: Any, complete: bool) -> Outcome:
        """What the run has found."""
        ...


class Loop:
    """A method's loop with what people want around it: resume, progress bar, Ctrl-C."""

    def __init__(self, method: Method, problem: Problem, saving: Checkpoint | None) -> None:
        self.method, self.problem = method, problem
        self.path = None if saving is None else saving.file
        self.interval = 0.0 if saving is None else saving.seconds
        self.saved_at = time.monotonic()

    def anneal(self, observation_ids: Sequence[int] | None, progress: bool) -> tuple[Any, bool]:
        """The run, and whether it reached its end."""
        if self.path is not None:
            self.identity = self._identity(observation_ids)
            self.probes = self.problem.probes()
        self.latest = self._start(observation_ids)
        self._try_path()
        position = self.method.position(self.latest)
        with tqdm(
            total=position.total, initial=position.done, disable=not progress, unit=position.unit
        ) as self.bar:
            try:
                self.latest = self.method.go(self.problem, self.latest, self._after_step)
            except KeyboardInterrupt:
                if self.path is not None and self._saved():
                    raise
                return self.latest, False
        if self.path is not None:
            self._saved()
        return self.latest, True

    def _start(self, observation_ids: Sequence[int] | None) -> Any:
        if self.path is not None and self.path.exists():
            device, layout = self.problem.adapter.device, self.method.layout(self.problem)
            return checkpoints.load(self.path, self.identity, self.probes, device, layout)
        return self.method.begin(self.problem, observation_ids)

    def _after_step(self, run: Any) -> None:
        self.latest = run
        done = self.method.position(run).done
        if self.bar.update(done - self.bar.n):  # True when redrawn: only then are numbers read
            self.bar.set_postfix(self.method.facts(run), refresh=False)
        if self.path is not None and time.monotonic() - self.saved_at >= self.interval:
            self._saved()

    def _try_path(self) -> None:
        """Write the run's start: what cannot be written is found out before there is work to lose.

        OSError naming the argument.
        """
        if self.path is None or self.path.exists():
            return
        try:
            checkpoints.save(self.path, self.latest, self.identity, self.probes)
        except OSError as error:
            raise OSError(f"checkpoint: {self.path} cannot be written: {error}") from error

    def _saved(self) -> bool:
        """Whether the run could be saved; where not, a warning says so, and the run goes on."""
        assert self.path is not None
        self.saved_at = time.monotonic()
        try:
            checkpoints.save(self.path, self.latest, self.identity, self.probes)
        except OSError as error:
            warn_user(
                f"checkpoint: {self.path} could not be written ({error}); what it held before is "
                "still there, and the run is not lost: it goes on, or is returned as it is"
            )
            return False
        return True

    def _identity(self, observation_ids: Sequence[int] | None) -> dict[str, str]:
        """What a checkpoint must agree with: generator, data and every setting."""
        spec = self.problem.observation.spec
        digest = hashlib.sha256(repr((spec.kind, spec.output_shape, spec.factor)).encode())
        bounds = self.problem.observation.noise_bounds or ()
        for tensor in (spec.target, spec.mask, spec.weight, *bounds):
            digest.update(b"-" if tensor is None else tensor_bytes(tensor))
        settings = {k: str(v) for k, v in self.method.settings().items()}
        return (
            settings
            | dict(self.method.identity())
            | {k: str(v) for k, v in self.problem.precision.settings().items()}
            | {
                "generator": self.problem.adapter.fingerprint(),
                "observation": digest.hexdigest(),
                "operator": repr(self.problem.observation.operator),
                "misfit": self.problem.observation.noise,
                "observation_ids": str(None if observation_ids is None else list(observation_ids)),
                "backend": self.problem.backend,
                "compiled": str(self.problem.compiled),
            }
        )
