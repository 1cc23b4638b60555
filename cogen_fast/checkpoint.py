"""Unfinished runs on disk: written atomically, refused where they belong to another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cogen_fast.files import write_atomically
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.sampler.ais import AISState, History, Run
from cogen_fast.sampler.hmc import HMCState
from cogen_fast.sampler.step_size import StepSizeState

_FORMAT = "cogen-fast run 1"


def save(path: Path, run: Run, identity: Mapping[str, str], probe: Tensor) -> None:
    """Write ``run``.

    ``identity`` names the inputs and settings that it belongs to; ``probe`` holds outputs of the
    generator at fixed latents, which tell one function from another where no weights can be hashed.
    """
    state, history = run.state, run.history
    tensors: dict[str, Tensor | None] = {
        "latents": state.hmc.latents,
        "energy": state.hmc.energy,
        "grad": state.hmc.grad,
        "transition": state.hmc.stream.transition,
        "observation": state.hmc.stream.observation,
        "step_size": state.adaptation.step_size,
        "running_acceptance": state.adaptation.running_acceptance,
        "beta": state.beta,
        "log_weights": state.log_weights,
        "non_finite": state.non_finite,
        "history.acceptance": history.acceptance,
        "history.step_size": history.step_size,
        "history.energy": history.energy,
        "history.trace": history.trace,
        "probe": probe,
    }
    kept = {name: t.contiguous().cpu() for name, t in tensors.items() if t is not None}
    metadata = {
        "format": _FORMAT,
        "seed": str(state.hmc.stream.seed),
        "done": str(run.done),
        "identity": json.dumps(dict(identity), sort_keys=True),
    }
    write_atomically(path, lambda file: save_file(kept, file, metadata))


def load(path: Path, identity: Mapping[str, str], probe: Tensor) -> Run:
    """The run in ``path``, on the device of ``probe``.

    ValueError where it is damaged or belongs to other inputs, or where the generator's outputs at
    the fixed latents differ beyond rounding.
    """
    try:
        with safe_open(path, framework="pt", device=str(probe.device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"checkpoint: {path} is damaged or no checkpoint: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"checkpoint: {path} is no {_FORMAT!r} file")
    _check_identity(path, json.loads(metadata["identity"]), identity)
    if not _same_outputs(tensors["probe"], probe):
        raise ValueError(f"checkpoint: {path} belongs to another generator: its outputs differ")
    return _restore(tensors, int(metadata["seed"]), int(metadata["done"]))


def _check_identity(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    keys = sorted(set(found) | set(wanted))
    differing = [k for k in keys if found.get(k) != wanted.get(k)]
    if differing:
        changes = "; ".join(
            f"{k}: {_shorten(found.get(k))} there, {_shorten(wanted.get(k))} here"
            for k in differing
        )
        raise ValueError(
            f"checkpoint: {path} belongs to another run ({changes}); remove it or give another path"
        )


def _same_outputs(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-3 * b.abs().max())


def _shorten(value: str | None) -> str:
    return "nothing" if value is None else value if len(value) <= 24 else f"{value[:12]}..."


def _restore(tensors: dict[str, Tensor], seed: int, done: int) -> Run:
    stream = NoiseStream(seed, tensors["transition"], tensors["observation"])
    state = AISState(
        HMCState(tensors["latents"], tensors["energy"], tensors["grad"], stream),
        StepSizeState(tensors["step_size"], tensors["running_acceptance"]),
        tensors["beta"],
        tensors.get("log_weights"),
        tensors["non_finite"],
    )
    trace = tensors.get("history.trace")
    history = History(
        tensors["history.acceptance"],
        tensors["history.step_size"],
        tensors["history.energy"],
        None if trace is None else trace.cpu(),
    )
    return Run(state, history, done)
