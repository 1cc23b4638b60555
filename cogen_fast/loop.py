"""A resumable run of the AIS loop: what people want around Algorithm 1.

Progress bar, checkpoints and Ctrl-C. The loop itself is `cogen_fast.sampler.ais.run`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cogen_fast import checkpoint as checkpoints
from cogen_fast.adapter import tensor_bytes
from cogen_fast.problem import Problem
from cogen_fast.sampler import ais
from cogen_fast.sampler.schedule import Betas


@dataclass(frozen=True)
class Plan:
    """Everything about a run but the generator and the data, checked."""

    chains: int
    moves: ais.Moves
    betas: Betas
    step_size: float
    seed: int
    keep_trace: bool
    max_batch: int | None
    schedule: str
    preset: str | None

    def settings(self) -> dict[str, Any]:
        """As plain values, for the result and for the checkpoint's identity."""
        rule = self.moves.adaptation
        return {
            "method": "paper",
            "preset": self.preset,
            "chains": self.chains,
            "ais_steps": len(self.betas),
            "hmc_steps": self.moves.hmc_steps,
            "leapfrog_steps": self.moves.leapfrog_steps,
            "step_size": self.step_size,
            "adaptation": None if rule is None else asdict(rule),
            "schedule": self.schedule,
            "form": self.moves.form,
            "seed": self.seed,
            "max_batch": self.max_batch,
        }


class Loop:
    """The AIS loop with what people want around it: resume, progress bar, Ctrl-C."""

    def __init__(self, plan: Plan, problem: Problem, path: Path | None, interval: float) -> None:
        self.plan, self.problem = plan, problem
        self.path, self.interval = path, interval
        self.saved_at = time.monotonic()

    def anneal(self, observation_ids: Sequence[int] | None, progress: bool) -> tuple[ais.Run, bool]:
        """The run, and whether it reached the last temperature."""
        steps = len(self.plan.betas)
        if self.path is not None:
            self.identity = self._identity(observation_ids)
            self.probes = self.problem.probes()
        self.latest = self._start(observation_ids)
        with tqdm(
            total=steps, initial=self.latest.done, disable=not progress, unit="beta"
        ) as self.bar:
            try:
                self.latest = ais.run(
                    self.problem.potential,
                    self.plan.betas,
                    steps,
                    self.plan.moves,
                    start=self.latest,
                    backend=self.problem.backend,
                    on_step=self._after_step,
                )
            except KeyboardInterrupt:
                if self.path is not None:
                    self._save()
                    raise
                return self.latest, False
        if self.path is not None:
            self._save()
        return self.latest, True

    def _start(self, observation_ids: Sequence[int] | None) -> ais.Run:
        if self.path is not None and self.path.exists():
            return checkpoints.load(
                self.path, self.identity, self.probes, self.problem.adapter.device
            )
        state = ais.init(
            self.problem.potential,
            self.plan.moves,
            step_size_start=self.plan.step_size,
            chains=self.plan.chains,
            latent_size=self.problem.adapter.latent_size,
            observations=self.problem.observation.count,
            observation_ids=observation_ids,
            seed=self.plan.seed,
            device=self.problem.adapter.device,
            dtype=self.problem.adapter.dtype,
            backend=self.problem.backend,
        )
        history = ais.History.empty(len(self.plan.betas), state, self.plan.keep_trace)
        return ais.Run(state, history, 0)

    def _after_step(self, run: ais.Run) -> None:
        self.latest = run
        if self.bar.update():  # True when the bar was redrawn: only then are numbers read
            step = run.done - 1
            self.bar.set_postfix(
                beta=f"{self.plan.betas[step]:.3g}",
                accept=f"{run.history.acceptance[step].mean().item():.2f}",
                step=f"{run.history.step_size[step].mean().item():.2g}",
                refresh=False,
            )
        if self.path is not None and time.monotonic() - self.saved_at >= self.interval:
            self._save()

    def _save(self) -> None:
        assert self.path is not None
        checkpoints.save(self.path, self.latest, self.identity, self.probes)
        self.saved_at = time.monotonic()

    def _identity(self, observation_ids: Sequence[int] | None) -> dict[str, str]:
        """What a checkpoint must agree with: generator, data and every setting."""
        spec = self.problem.observation.spec
        digest = hashlib.sha256(repr((spec.kind, spec.output_shape, spec.factor)).encode())
        for tensor in (spec.target, spec.mask, spec.weight):
            digest.update(b"-" if tensor is None else tensor_bytes(tensor))
        settings = {k: str(v) for k, v in self.plan.settings().items()}
        return settings | {
            "generator": self.problem.adapter.fingerprint(),
            "observation": digest.hexdigest(),
            "operator": repr(self.problem.observation.operator),
            "misfit": self.problem.observation.noise,
            "betas": hashlib.sha256(self.plan.betas.tobytes()).hexdigest(),
            "observation_ids": str(None if observation_ids is None else list(observation_ids)),
            "backend": self.problem.backend,
            "keep_trace": str(self.plan.keep_trace),
        }
