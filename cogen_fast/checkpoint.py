"""Unfinished runs on disk: written atomically, refused where they belong to another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cogen_fast.files import write_atomically
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.sampler.ais import AISState, History, Run
from cogen_fast.sampler.hmc import HMCState
from cogen_fast.sampler.step_size import StepSizeState

_FORMAT = "cogen-fast run 1"
_PROBE = "probe."


def save(path: Path, run: Run, identity: Mapping[str, str], probes: Mapping[str, Tensor]) -> None:
    """Write ``run``.

    ``identity`` names the inputs and settings that it belongs to; ``probes`` holds what functions
    give at fixed latents, which tells one from another where there are no weights to hash.
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
    }
    # Copies: the format refuses tensors that share memory.
    tensors |= {_PROBE + name: value.clone() for name, value in probes.items()}
    kept = {name: t.contiguous().cpu() for name, t in tensors.items() if t is not None}
    metadata = {
        "format": _FORMAT,
        "seed": str(state.hmc.stream.seed),
        "done": str(run.done),
        "identity": json.dumps(dict(identity), sort_keys=True),
    }
    write_atomically(path, lambda file: save_file(kept, file, metadata))


def load(
    path: Path, identity: Mapping[str, str], probes: Mapping[str, Tensor], device: torch.device
) -> Run:
    """The run in ``path``, on ``device``.

    ValueError where it is damaged or belongs to other inputs, or where ``probes`` differ beyond
    rounding.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            # Cloned into aligned memory: alignment decides which instructions a matrix product
            # uses, and so its last bits.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"checkpoint: {path} is damaged or no checkpoint: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"checkpoint: {path} is no {_FORMAT!r} file")
    try:
        found = json.loads(metadata["identity"])
        run = _restore(tensors, int(metadata["seed"]), int(metadata["done"]))
        found_probes = {name: tensors[_PROBE + name] for name in probes}
    except (KeyError, ValueError) as error:
        raise ValueError(f"checkpoint: {path} is damaged: {error} is missing or bad") from error
    _check_identity(path, found, identity)
    for name, probe in probes.items():
        if not _same_values(found_probes[name], probe):
            raise ValueError(
                f"checkpoint: {path} belongs to another run: its {name} gives other values; "
                "remove it or give another path"
            )
    return run


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


def _same_values(a: Tensor, b: Tensor) -> bool:
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
