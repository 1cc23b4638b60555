"""Both methods for generators of dense layers, many temperatures per call of the extension.

`ais_run` and `smc_run` continue the runs of `cogen_fast.sampler.ais` and `smc`, which define them:
states, infos and noise are the same, so either can go on where the other stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cogen_fast.ops import dense
from cogen_fast.ops.dense import DenseLayers, Packed
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.ops.spec import MisfitSpec
from cogen_fast.sampler import ais, smc, stiffness
from cogen_fast.sampler.hmc import HMCState
from cogen_fast.sampler.pace import MASSES, Annealing
from cogen_fast.sampler.schedule import Betas
from cogen_fast.sampler.smc import Choice, SMCInfo, SMCState
from cogen_fast.sampler.step_size import StepSizeState
from cogen_fast.sampler.tuning import Tuning

_SECONDS = 0.1  # a call takes about as long, so that progress is seen and Ctrl-C is heard
_MOST = 256  # temperatures of an adaptive call, for what each leaves is kept in memory
_MOST_APART = 1 << 22  # temperatures times chains that adapt by themselves, for the same reason
_MASS_CODES = {"identity": 0, "diagonal": 1, "low-rank": 2}
assert set(_MASS_CODES) == set(MASSES)
_WRITTEN = (
    "beta",
    "log_weights",
    "roots",
    "resamplings",
    "variance",
    "rounds",
    "finished",
    "sharpness",
    "jumped",
    "non_finite",
    "curvature",
)


@dataclass(frozen=True)
class DenseProblem:
    """A generator of dense layers, packed, and what is observed of it."""

    packed: Packed
    spec: MisfitSpec

    @classmethod
    def of(cls, layers: DenseLayers, spec: MisfitSpec) -> DenseProblem:
        """A copy of the weights beside the observation."""
        return cls(dense.pack(layers), spec)


class _Stretch:
    """How many temperatures the next call takes, by how long the last one took."""

    def __init__(self) -> None:
        self.count = 1

    def timed(self, work: Callable[[int], int], left: int) -> int:
        """The temperatures made by ``work(count)``, at most ``left`` asked for."""
        asked = min(self.count, left)
        start = time.monotonic()
        made = work(asked)
        seconds = max(time.monotonic() - start, 1e-9)
        self.count = max(1, min(10 * asked, int(asked * _SECONDS / seconds)))
        return made


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

        def work(count: int) -> int:
            nonlocal progress
            progress = _ais_stretch(problem, betas, moves, progress, count)
            return count

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
        problem.packed,
        problem.spec,
        tensors,
        _size(state.hmc)
        | {name: 0 if t is None else t.data_ptr() for name, t in optional.items()}
        | {
            "seed": state.hmc.stream.seed,
            "beta": float(state.beta[0]),
            "steps": count,
            "hmc_steps": moves.hmc_steps,
            "leapfrog_steps": moves.leapfrog_steps,
            "paper_form": moves.form == "paper",
            "step_per_chain": state.adaptation.per_chain,
            "rule": []
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


def smc_run(
    problem: DenseProblem,
    annealing: Annealing,
    start: smc.Run,
    on_step: Callable[[smc.Run], None] | None = None,
) -> smc.Run:
    """`smc.run` from ``start`` on; ``on_step`` sees the run every tenth of a second or so."""
    progress, stretch = start, _Stretch()
    while not progress.done:
        left = _MOST
        if progress.repeats is not None:
            left = min(left, len(progress.repeats) - len(progress.infos))

        def work(count: int) -> int:
            nonlocal progress
            before = len(progress.infos)
            progress = _smc_stretch(problem, annealing, progress, count)
            return len(progress.infos) - before

        stretch.timed(work, left)
        if on_step is not None:
            on_step(progress)
    return progress


def _smc_stretch(problem: DenseProblem, annealing: Annealing, run: smc.Run, count: int) -> smc.Run:
    state, stream = run.state, run.state.hmc.stream
    tensors = _chains(state.hmc) | {
        "log_step": state.tuning.log_step.clone(),
        "log_length": state.tuning.log_length.clone(),
        "memory": state.tuning.memory.clone(),
        "transition": stream.transition.clone(),
    }
    tensors |= {name: getattr(state, name).clone() for name in _WRITTEN}
    out = _room(state, count)
    if run.repeats is not None:
        _write_choices(out, run.repeats[len(run.infos) :][:count])
    rows, _, size = state.hmc.latents.shape
    trace = None
    if run.trace is not None:
        trace = state.hmc.latents.new_empty(count, *state.hmc.latents.shape)
    filler = stiffness.filler(size).to(state.beta.device)
    steps, spent = dense.adapt(
        problem.packed,
        problem.spec,
        tensors | {f"out_{name}": tensor for name, tensor in out.items()} | {"filler": filler},
        _size(state.hmc)
        | _plan(annealing)
        | {
            "each": rows // problem.spec.target.shape[0],
            "seed": stream.seed,
            "repeats": run.repeats is not None,
            "spent": state.spent,
            "steps": count,
            "trace": 0 if trace is None else trace.data_ptr(),
        },
    )
    out |= {name: out[name].cpu() for name in ("leapfrog_steps", "hmc_steps")}
    infos = tuple(_info(out, t, annealing) for t in range(steps))
    written: dict[str, Any] = {name: tensors[name] for name in _WRITTEN}
    after = replace(
        state,
        hmc=_moved(tensors, NoiseStream(stream.seed, tensors["transition"], stream.observation)),
        tuning=Tuning(tensors["log_step"], tensors["log_length"], tensors["memory"]),
        spent=spent,
        **written,
    )
    seen = run.trace
    if seen is not None and trace is not None:  # the run's is on the CPU
        seen = (*seen, *trace[:steps].cpu().unbind())
    return replace(run, state=after, infos=(*run.infos, *infos), trace=seen)


def _chains(state: HMCState) -> dict[str, Tensor]:
    """Copies to be changed, and the noise's place, which is not."""
    return {
        "latents": state.latents.clone(),
        "energy": state.energy.clone(),
        "grad": state.grad.clone(),
        "transition": state.stream.transition,
        "observation": state.stream.observation,
    }


def _size(state: HMCState) -> dict[str, int]:
    rows, chains, _ = state.latents.shape
    return {"observations": rows, "chains": chains}


def _moved(tensors: dict[str, Tensor], stream: NoiseStream) -> HMCState:
    return HMCState(tensors["latents"], tensors["energy"], tensors["grad"], stream)


def _plan(annealing: Annealing) -> dict[str, float | int]:
    rule = annealing.rule
    return {
        "kept": annealing.kept,
        "resample_below": annealing.resample_below,
        "plan_leapfrog_steps": annealing.leapfrog_steps or 0,
        "plan_hmc_steps": annealing.hmc_steps or 0,
        "budget": annealing.budget or 0,
        "final_rounds": annealing.final_rounds,
        "mass": _MASS_CODES[annealing.mass],
        "target_acceptance": rule.target,
        "step_gain": rule.step_gain,
        "length_gain": rule.length_gain,
        "memory_gain": rule.memory_gain,
        "jitter": rule.jitter,
        "remembered": rule.remembered,
        "most_moves": rule.most_moves,
    }


def _room(state: SMCState, count: int) -> dict[str, Tensor]:
    """What a call writes of each temperature."""
    rows, chains, size = state.hmc.latents.shape
    per_row, device = (count, rows), state.beta.device

    def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    numbers = ("kept", "beta", "step_size", "effective_size", "acceptance")
    room = {name: zeros(*per_row) for name in (*numbers, "energy_mean", "energy_std")}
    room |= {name: zeros(*per_row, dtype=torch.bool) for name in ("active", "resampled")}
    room |= {name: zeros(count, dtype=torch.int64) for name in ("leapfrog_steps", "hmc_steps")}
    room["moves"] = zeros(*per_row, dtype=torch.int64)
    room["inverse_mass"] = state.hmc.latents.new_ones(*per_row, size)
    room["stiff"] = zeros(*per_row, size, max(stiffness.count(size), 1))
    room["ancestors"] = zeros(*per_row, chains, dtype=torch.int64)
    return room


def _write_choices(out: dict[str, Tensor], choices: tuple[Choice, ...]) -> None:
    for t, choice in enumerate(choices):
        for name in ("active", "resampled", "kept", "beta", "step_size", "moves"):
            out[name][t] = getattr(choice, name)
        if choice.inverse_mass is not None:
            out["inverse_mass"][t] = choice.inverse_mass
        if choice.stiff is not None:
            out["stiff"][t] = choice.stiff
        out["leapfrog_steps"][t] = choice.leapfrog_steps
        out["hmc_steps"][t] = choice.hmc_steps


def _info(out: dict[str, Tensor], t: int, annealing: Annealing) -> SMCInfo:
    size = out["inverse_mass"].shape[-1]
    turns = annealing.mass == "low-rank" and stiffness.count(size) > 0
    choice = Choice(
        out["active"][t],
        out["kept"][t],
        out["beta"][t],
        out["resampled"][t],
        out["step_size"][t],
        out["inverse_mass"][t] if turns or annealing.mass == "diagonal" else None,
        out["stiff"][t] if turns else None,
        out["moves"][t],
        int(out["leapfrog_steps"][t]),
        int(out["hmc_steps"][t]),
    )
    return SMCInfo(
        choice,
        out["effective_size"][t],
        out["acceptance"][t],
        out["energy_mean"][t],
        out["energy_std"][t],
        out["ancestors"][t],
    )
