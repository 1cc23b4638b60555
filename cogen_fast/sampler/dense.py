"""The published run for generators of dense layers, many temperatures per call of the extension.

`ais_run` continues the run of `cogen_fast.sampler.ais`, which defines it: states, histories and
noise are the same, so either can go on where the other stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cogen_fast.ops import dense
from cogen_fast.ops.dense import DenseProblem
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.sampler import ais
from cogen_fast.sampler.hmc import HMCState
from cogen_fast.sampler.schedule import Betas
from cogen_fast.sampler.step_size import StepSizeState

_SECONDS = 0.1  # a call takes about as long, so that progress is seen and Ctrl-C is heard
# Temperatures times chains that adapt by themselves, for what each leaves is kept in memory.
_MOST_APART = 1 << 22


class _Stretch:
    """How many temperatures the next call takes, by how long the last one took."""

    def __init__(self) -> None:
        self.count = 1

    def timed(self, work: Callable[[int], None], left: int) -> None:
        """``work(count)`` of temperatures, at most ``left``."""
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
    """`ais.run` from ``start`` on; ``on_step`` sees the run every tenth of a second or so."""
    progress, stretch = start, _Stretch()
    most = len(betas)
    if start.state.adaptation.per_chain:
        most = max(1, _MOST_APART // start.state.hmc.energy.numel())
    while progress.done < len(betas):

        def work(count: int) -> None:
            nonlocal progress
            progress = _ais_stretch(problem, betas, moves, progress, count)

        stretch.timed(work, min(most, len(betas) - progress.done))
        if on_step is not None:
            on_step(progress)
    return progress


def _ais_stretch(
    problem: DenseProblem, betas: Betas, moves: ais.Moves, run: ais.Run, count: int
) -> ais.Run:
    state, history, done = run.state, run.history, run.done
    if moves.adaptation is not None:
        state.adaptation.check(moves.adaptation)
    rows = slice(done, done + count)
    chosen = torch.from_numpy(betas[rows].copy()).to(state.beta.device)
    tensors = _chains(state.hmc) | {
        "step_size": state.adaptation.step_size.clone(),
        "running": state.adaptation.running_acceptance.clone(),
        "non_finite": state.non_finite.clone(),
        "betas": chosen,
        "acceptance": history.acceptance[rows].contiguous(),
        "step_used": history.step_size[rows].contiguous(),
        "energy_mean": history.energy[rows].contiguous(),
        "energy_std": history.energy_std[rows].contiguous(),
    }
    optional = {"log_weights": None if state.log_weights is None else state.log_weights.clone()}
    if history.trace is None:
        optional["trace"] = None
    else:  # on the CPU; the device has its own while it is written
        optional["trace"] = history.trace[1:][rows].to(state.beta.device).contiguous()
    rule = moves.adaptation
    dense.anneal(
        problem,
        tensors | optional,
        {
            "seed": state.hmc.stream.seed,
            "beta": float(state.beta[0]),
            "hmc_steps": moves.hmc_steps,
            "leapfrog_steps": moves.leapfrog_steps,
            "paper_form": moves.form == "paper",
            "rule": None
            if rule is None
            else [
                rule.target,
                rule.decay,
                rule.increase,
                rule.decrease,
                rule.minimum,
                rule.maximum,
            ],
        },
    )
    for name, column in (
        ("acceptance", history.acceptance),
        ("step_used", history.step_size),
        ("energy_mean", history.energy),
        ("energy_std", history.energy_std),
    ):
        column[rows] = tensors[name]
    if history.trace is not None and optional["trace"] is not None:
        history.trace[1:][rows] = optional["trace"]
    stream = state.hmc.stream
    made = stream.transition + count * moves.hmc_steps
    after = ais.AISState(
        _moved(tensors, NoiseStream(stream.seed, made, stream.observation)),
        StepSizeState(tensors["step_size"], tensors["running"]),
        torch.full_like(state.beta, float(chosen[-1])),
        optional["log_weights"],
        tensors["non_finite"],
    )
    return replace(run, state=after, done=done + count)


def _chains(state: HMCState) -> dict[str, Tensor]:
    """Copies to be changed, and the noise's place, which is not."""
    return {
        "latents": state.latents.clone(),
        "energy": state.energy.clone(),
        "grad": state.grad.clone(),
        "transition": state.stream.transition,
        "observation": state.stream.observation,
    }


def _moved(tensors: dict[str, Tensor], stream: NoiseStream) -> HMCState:
    return HMCState(tensors["latents"], tensors["energy"], tensors["grad"], stream)
