"""From a method's outcome to the `Result`: outputs, evidence, and reasons for absent values."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from cogen_fast.methods.loop import INTERRUPTED, Outcome
from cogen_fast.problem.observation import Mask, Observation
from cogen_fast.problem.problem import Problem
from cogen_fast.results.result import NOISE_GIVEN, Result

OF_SAMPLES = ("log_weights", "log_normaliser", "log_normaliser_error", "log_evidence")
"""Attributes which only samples have. They are None, with a reason, where fits are returned."""
_OF_FITS = ("fit_images", "fit_latents", "fit_energies")
# Frames of an animation, particles in each, and output values in all of them together at most.
_MOST_FRAMES, _SHOWN, _MOST_VALUES = 40, 6, 2**27
_NO_FITS = "Only a complete run whose samples are polished (polish) has fits."


def assemble(
    settings: dict[str, Any], outcome: Outcome, stopped: str | None, problem: Problem
) -> Result:
    """The `Result` of an outcome, on the CPU; ``stopped`` is why a run is unfinished."""
    observation, potential = problem.observation, problem.potential
    images = potential.outputs(outcome.latents).cpu()
    values, observed = observation.measured_values.cpu(), observation.observed
    observed = None if observed is None else observed.cpu()
    fits = None
    if outcome.fit_latents is not None:
        fits = potential.outputs(outcome.fit_latents).cpu()
    completed = None
    if isinstance(observation.operator, Mask) and observed is not None:
        completed = torch.where(observed[:, None], values[:, None], images)
    evidence, reasons = _evidence(outcome, observation)
    reasons |= _absent(outcome, observation, completed, stopped)
    bounds = observation.noise_bounds
    used = ("reasons", "notes", "energy_unit", "best_draws", "best_energies")
    found: dict[str, Any] = {
        f.name: getattr(outcome, f.name) for f in fields(outcome) if f.name not in used
    }
    found = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in found.items()}
    frame_steps, frames = _frames(outcome.trace, problem)
    return Result(
        images=images,
        frames=frames,
        frame_steps=frame_steps,
        completed=completed,
        fit_images=fits,
        noise_bounds=None if bounds is None else torch.stack(bounds, -1).cpu(),
        log_evidence=evidence,
        x_obs=values,
        observed=observed,
        complete=stopped is None,
        reasons=reasons,
        settings=settings
        | {
            "noise": observation.noise,
            "backend": problem.backend,
            "threads": torch.get_num_threads(),
        },
        notes=_notes(outcome, problem),
        **found,
    )


def _absent(
    outcome: Outcome, observation: Observation, completed: Tensor | None, stopped: str | None
) -> dict[str, str]:
    """The reasons why a run is unfinished, and why attributes other than the evidence are None."""
    reasons = {} if stopped is None else {"complete": stopped}
    if completed is None:
        reasons["completed"] = "Only with a mask can the observed entries be pasted back."
    inferred = observation.noise_bounds is not None
    if not inferred:
        reasons["noise_bounds"] = NOISE_GIVEN
    if outcome.noise_std is None:
        reasons["noise_std"] = INTERRUPTED if inferred else NOISE_GIVEN
    if outcome.fit_latents is None:
        reasons |= dict.fromkeys(_OF_FITS, _NO_FITS)
    return reasons


def _notes(outcome: Outcome, problem: Problem) -> list[str]:
    """What was decided for the user: the noise, the backend, and what problem and method note."""
    backend = f"The backend is {problem.backend}."
    notes = [problem.observation.noise, backend, *problem.notes, *outcome.notes]
    halvings, most = problem.halvings
    if halvings:
        notes.append(f"Memory ran out, so max_batch was lowered to {most}.")
    if problem.graphs is not None:
        notes.append(problem.graphs.note)
    return notes


def _frames(trace: Tensor | None, problem: Problem) -> tuple[Tensor | None, Tensor | None]:
    """Steps ``(F,)`` of a trace, and the outputs of a few of its particles at each of them.

    As many as `_MOST_FRAMES` and `_SHOWN`, or fewer where their outputs would take much memory.
    """
    if trace is None:
        return None, None
    there = trace.isfinite().flatten(1).all(-1).nonzero().flatten()  # until the run ended
    _, count, particles, size = trace.shape
    shown = min(particles, _SHOWN)
    each = count * shown * math.prod(problem.adapter.output_shape)
    most = min(max(_MOST_VALUES // each, 2), _MOST_FRAMES, len(there))
    steps = there[torch.linspace(0, len(there) - 1, most, device="cpu").round().long()]
    chosen = torch.linspace(0, particles - 1, shown, device="cpu").round().long()
    latents = trace[steps][:, :, chosen].movedim(0, 1).reshape(count, -1, size)
    outputs = problem.potential.outputs(latents.to(problem.adapter.device)).cpu()
    frames = outputs.reshape(count, len(steps), shown, *outputs.shape[2:]).movedim(1, 0)
    return steps, frames.contiguous()


def _evidence(outcome: Outcome, observation: Observation) -> tuple[Tensor | None, dict[str, str]]:
    """Log evidence ``(B,)``, and the reason for each attribute which is None (or NaN)."""
    reasons = dict(outcome.reasons)
    if outcome.log_normaliser is None or "log_evidence" in reasons:
        return None, reasons
    if observation.log_noise_constant is None:
        reasons["log_evidence"] = (
            "It needs Gaussian noise (noise_std) and the squared error; see log_normaliser."
        )
        return None, reasons
    if "log_normaliser" in reasons:  # NaN for some observations
        reasons["log_evidence"] = reasons["log_normaliser"]
    return (outcome.log_normaliser + observation.log_noise_constant).cpu(), reasons
