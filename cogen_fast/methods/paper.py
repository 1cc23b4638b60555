"""``method="paper"``: Algorithm 1 as published, from settings to outcome."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from cogen_fast.methods.loop import INTERRUPTED, Outcome, Position
from cogen_fast.problem.problem import Problem
from cogen_fast.sampler import ais, dense, smc
from cogen_fast.sampler.fallback import LEAST_ACCEPTANCE, LEAST_TUNED, WINDOW
from cogen_fast.sampler.schedule import Betas
from cogen_fast.sampler.tuning import POPULATION
from cogen_fast.sampler.weights import (
    error_of_log,
    log_mean_weight,
    nan_where_unknown,
    surviving_roots,
    variance_between,
    variance_if_gaussian,
)
from cogen_fast.support.layout import Layout

_FORM_REASON = (
    "The paper form removes the prior as beta grows, so exp(-E) need not have a finite integral "
    "and its weights have no meaning; use form='posterior'."
)
_ERROR_REASON = (
    f"Fewer than {POPULATION} chains, or weights as uneven as those of some observations (NaN "
    "there), cannot give an error; run with more chains."
)
# Relative variance of the mean weight, above which so few weights cannot estimate it.
_MOST_VARIANCE = 1.0
_PER_CHAIN_NOTE = (
    "Each chain adapted its own step size, which biases samples and weights; more chains do not "
    "remove the bias."
)


def refined_note(run: ais.Run | smc.Run) -> list[str]:
    """The note about a change to finer gradients during a run, as a list."""
    if run.refined is None:
        return []
    least = LEAST_TUNED if isinstance(run, smc.Run) else LEAST_ACCEPTANCE
    return [
        f"The acceptance was below {least} over {WINDOW} temperatures, so gradients were computed "
        f"in the finer type after {run.refined} temperatures."
    ]


@dataclass(frozen=True)
class PaperPlan:
    """All settings of a published run, without the generator and the data."""

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
        """The settings as plain values, for the result and for the checkpoint's identity."""
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

    def identity(self) -> Mapping[str, str]:
        """Further values with which a checkpoint must agree."""
        return {
            "betas": hashlib.sha256(self.betas.tobytes()).hexdigest(),
            "keep_trace": str(self.keep_trace),
        }

    def layout(self, problem: Problem) -> Layout:
        """The layout of a run with these settings, for reading one from a file."""
        sizes = {
            "B": problem.observation.count,
            "N": self.chains,
            "d": problem.adapter.latent_size,
            "T": len(self.betas),
            "T+1": len(self.betas) + 1,
        }
        present = {"trace": self.keep_trace, "log_weights": self.moves.form == "posterior"}
        return Layout(ais.Run, sizes, problem.adapter.dtype, present)

    def begin(self, problem: Problem, observation_ids: Sequence[int] | None) -> ais.Run:
        """A run at its start, with chains drawn from the prior."""
        state = ais.init(
            problem.target,
            self.moves,
            step_size_start=self.step_size,
            chains=self.chains,
            observations=problem.observation.count,
            observation_ids=observation_ids,
            seed=self.seed,
            **problem.how(),
        )
        history = ais.History.empty(len(self.betas), state, self.keep_trace)
        return ais.Run(state, history, 0)

    def go(self, problem: Problem, run: ais.Run, on_step: Callable[[ais.Run], None]) -> ais.Run:
        """Run the loop of Algorithm 1 to its end."""
        if problem.dense is not None:
            return dense.ais_run(problem.dense, self.betas, self.moves, run, on_step)
        return ais.run(
            problem.target,
            self.betas,
            len(self.betas),
            self.moves,
            start=run,
            backend=problem.backend,
            on_step=on_step,
        )

    def position(self, run: ais.Run) -> Position:
        """The position, in temperatures."""
        return Position(run.done, len(self.betas), "beta")

    def facts(self, run: ais.Run) -> Mapping[str, str]:
        """Inverse temperature, acceptance and step size of the last temperature."""
        last = run.done - 1
        return {
            "beta": f"{self.betas[last]:.3g}",
            "accept": f"{run.history.acceptance[last].mean().item():.2f}",
            "step": f"{run.history.step_size[last].mean().item():.2g}",
        }

    def outcome(self, problem: Problem, run: ais.Run, complete: bool) -> Outcome:
        """The outcome of the run."""
        state, history = run.state, run.history
        steps, (count, chains) = len(self.betas), state.hmc.energy.shape
        roots = torch.arange(chains, device=state.beta.device).repeat(count, 1)
        log_normaliser, error, reasons = self._normaliser(state, roots, complete)
        each = torch.ones(steps, dtype=torch.int64, device="cpu")
        return Outcome(
            latents=state.hmc.latents,
            energies=state.hmc.energy,
            log_weights=state.log_weights,
            log_normaliser=log_normaliser,
            log_normaliser_error=error,
            roots=roots,
            surviving_roots=surviving_roots(roots),
            non_finite=state.non_finite,
            betas=torch.from_numpy(self.betas)[:, None].repeat(1, count),
            acceptance=history.acceptance,
            step_size=history.step_size,
            energy_history=history.energy,
            leapfrog_steps=self.moves.leapfrog_steps * each,
            hmc_steps=self.moves.hmc_steps * each,
            trace=history.trace,
            oversized_steps=torch.zeros(count, dtype=torch.bool, device="cpu"),
            rounds=(torch.from_numpy(self.betas[: run.done]) >= 1.0).sum().repeat(count),
            energy_std=history.energy_std,
            beta_reached=float(state.beta.min()),
            gradients=self._gradients(run),
            forwards=state.forwards,
            reasons=reasons,
            notes=([_PER_CHAIN_NOTE] if state.adaptation.per_chain else []) + refined_note(run),
        )

    def _gradients(self, run: ais.Run) -> int:
        """Gradients of a chain: the first, those of moves, and one for a change to finer ones."""
        moves = run.done * self.moves.hmc_steps * self.moves.leapfrog_steps
        return 1 + moves + (run.refined is not None)

    def _normaliser(
        self, state: ais.AISState, roots: Tensor, complete: bool
    ) -> tuple[Tensor | None, Tensor | None, dict[str, str]]:
        names = ("log_normaliser", "log_normaliser_error", "log_evidence")
        if state.log_weights is None:
            return None, None, dict.fromkeys(("log_weights", *names), _FORM_REASON)
        if not complete:
            return None, None, dict.fromkeys(names, INTERRUPTED)
        log_normaliser = log_mean_weight(state.log_weights)
        variance = variance_between(state.log_weights)
        variance = variance.maximum(variance_if_gaussian(state.log_weights))
        known = (variance <= _MOST_VARIANCE) & (state.log_weights.shape[-1] >= POPULATION)
        reasons = {}
        if not bool(known.all()):
            reasons["log_normaliser_error"] = _ERROR_REASON
        if self.betas[-1] < 1.0:
            reasons["log_evidence"] = (
                f"The last inverse temperature is {self.betas[-1]:.6g}, not 1; see log_normaliser."
            )
        return log_normaliser, nan_where_unknown(error_of_log(variance), known), reasons
