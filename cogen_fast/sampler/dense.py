"""The published method for generators of dense layers, many temperatures per call in C++.

`cogen_fast.sampler.ais` defines the run. `ais_run` uses the same states, histories and noise, so
that either can continue a run that the other has begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cogen_fast.ops import dense
from cogen_fast.ops.dense import DenseProblem
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.sampler import ais
from cogen_fast.sampler.hmc import HMCState
from cogen_fast.sampler.schedule import Betas
from cogen_fast.sampler.step_size import StepSizeState

_SECONDS = 0.1  # intended duration of a call, so that progress is shown and Ctrl-C works
# Temperatures times chains per call where each chain has a step size: their records take memory.
_MOST_PER_CHAIN = 1 << 22
_RULE = ("target", "decay", "increase", "decrease", "minimum", "maximum")


class _CallLength:
    """The number of temperatures of the next call, by the duration of the last one."""

    def __init__(self) -> None:
        self.count = 1

    def timed(self, work: Callable[[int], None], left: int) -> None:
        """Call ``work(count)`` with a number of temperatures, at most ``left``, and time it."""
        asked = min(self.count, left)
        start = time.monotonic()
        work(asked)
        seconds = max(time.monotonic() - start, 1e-9)
        self.count = max(1, min(10 * asked, int(asked * _SECONDS / seconds)))


def ais_run(
    problem: DenseProblem,
    betas: Betas,
    moves: ais.Moves,
    start: ais.Run,
    on_step: Callable[[ais.Run], None] | None = None,
) -> ais.Run:
    """Continue ``start`` as `ais.run` does; ``on_step`` is called about every 0.1 seconds."""
    progress, length = start, _CallLength()
    most = len(betas)
    if start.state.adaptation.per_chain:
        most = max(1, _MOST_PER_CHAIN // start.state.hmc.energy.numel())
    while progress.done < len(betas):

        def work(count: int) -> None:
            nonlocal progress
            progress = ais_call(problem, betas, moves, progress, count)

        length.timed(work, min(most, len(betas) - progress.done))
        if on_step is not None:
            on_step(progress)
    return progress


_HISTORY = {
    "acceptance": "acceptance",
    "step_used": "step_size",
    "energy_mean": "energy",
    "energy_std": "energy_std",
}
"""Columns of `ais.History`, by the names that the extension has for them."""


def ais_call(
    problem: DenseProblem, betas: Betas, moves: ais.Moves, run: ais.Run, count: int
) -> ais.Run:
    """The run after ``count`` further temperatures; its history is changed in place."""
    if moves.adaptation is not None:
        run.state.adaptation.check(moves.adaptation)
    rows = slice(run.done, run.done + count)
    tensors = _tensors(run, betas, rows)
    dense.anneal(problem, tensors, _numbers(run.state, moves))
    _keep(run.history, rows, tensors)
    state = _after(run.state, tensors, count * moves.hmc_steps, float(betas[rows][-1]))
    return replace(run, state=state, done=run.done + count)


def _tensors(run: ais.Run, betas: Betas, rows: slice) -> dict[str, Tensor | None]:
    """Copies of the state and of ``rows`` of the history, for the extension to read and write."""
    state, history = run.state, run.history
    device = state.beta.device
    trace = history.trace  # kept on the CPU; the extension writes its rows on the device
    return {
        **_chains(state.hmc),
        "step_size": state.adaptation.step_size.clone(),
        "running": state.adaptation.running_acceptance.clone(),
        "non_finite": state.non_finite.clone(),
        "log_weights": None if state.log_weights is None else state.log_weights.clone(),
        "betas": torch.from_numpy(betas[rows].copy()).to(device),
        "trace": None if trace is None else trace[1:][rows].to(device).contiguous(),
        **{name: getattr(history, column)[rows].contiguous() for name, column in _HISTORY.items()},
    }


def _numbers(state: ais.AISState, moves: ais.Moves) -> dict[str, Any]:
    rule = moves.adaptation
    return {
        "seed": state.hmc.stream.seed,
        "beta": float(state.beta[0]),
        "hmc_steps": moves.hmc_steps,
        "leapfrog_steps": moves.leapfrog_steps,
        "paper_form": moves.form == "paper",
        "rule": None if rule is None else [getattr(rule, name) for name in _RULE],
    }


def _keep(history: ais.History, rows: slice, tensors: Mapping[str, Any]) -> None:
    for name, column in _HISTORY.items():
        getattr(history, column)[rows] = tensors[name]
    if history.trace is not None:
        history.trace[1:][rows] = tensors["trace"]


def _after(
    state: ais.AISState, tensors: Mapping[str, Any], transitions: int, beta: float
) -> ais.AISState:
    stream = state.hmc.stream
    made = NoiseStream(stream.seed, stream.transition + transitions, stream.observation)
    return ais.AISState(
        HMCState(tensors["latents"], tensors["energy"], tensors["grad"], made),
        StepSizeState(tensors["step_size"], tensors["running"]),
        torch.full_like(state.beta, beta),
        tensors["log_weights"],
        tensors["non_finite"],
    )


def _chains(state: HMCState) -> dict[str, Tensor]:
    """Copies of what the extension changes, and the position in the noise, which it does not."""
    return {
        "latents": state.latents.clone(),
        "energy": state.energy.clone(),
        "grad": state.grad.clone(),
        "transition": state.stream.transition,
        "observation": state.stream.observation,
    }
