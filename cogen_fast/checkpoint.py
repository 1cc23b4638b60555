"""Unfinished runs on disk: written atomically, refused where they belong to another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cogen_fast.files import write_atomically
from cogen_fast.ops.philox import NoiseStream
from cogen_fast.sampler import ais, curvature, hmc, lone, noise_level, smc, step_size, tuning

_FORMAT = "cogen-fast run 8"
_PROBE = "probe."
_ON_HOST = "trace"
_CLASSES: dict[str, type[Any]] = {
    f"{c.__module__.rsplit('.', 1)[-1]}.{c.__name__}": c
    for c in (
        ais.Run,
        ais.AISState,
        ais.History,
        curvature.Curvature,
        curvature.Directions,
        hmc.HMCState,
        lone.Spread,
        smc.Run,
        smc.SMCState,
        smc.SMCInfo,
        smc.Choice,
        noise_level.Chains,
        noise_level.Levels,
        noise_level.Moves,
        noise_level.NoiseRun,
        step_size.StepSizeState,
        tuning.Tuning,
        NoiseStream,
    )
}
_NAMES = {c: name for name, c in _CLASSES.items()}
_Held = dict[tuple[int, bool], tuple[str, Tensor]]


def save(path: Path, run: Any, identity: Mapping[str, str], probes: Mapping[str, Tensor]) -> None:
    """Write ``run``, of `ais` or `smc`.

    ``identity`` names the inputs and settings that it belongs to; ``probes`` holds what functions
    give at fixed latents, which tells one from another where there are no weights to hash.
    """
    held: _Held = {}
    tree = _encode(run, "run", held)
    tensors = dict(held.values()) | {_PROBE + name: value for name, value in probes.items()}
    # Copies: the format refuses tensors that share memory.
    kept = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    metadata = {
        "format": _FORMAT,
        "run": json.dumps(tree),
        "identity": json.dumps(dict(identity), sort_keys=True),
    }
    write_atomically(path, lambda file: save_file(kept, file, metadata))


def load(
    path: Path, identity: Mapping[str, str], probes: Mapping[str, Tensor], device: torch.device
) -> Any:
    """The run in ``path``, on ``device`` (traces stay on the CPU).

    ValueError where it is damaged or belongs to other inputs, or where ``probes`` differ beyond
    rounding.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
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
        run = _decode(json.loads(metadata["run"]), tensors, device)
        found_probes = {name: tensors[_PROBE + name].to(device) for name in probes}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint: {path} is damaged: {error} is missing or bad") from error
    _check_identity(path, found, identity)
    for name, probe in probes.items():
        if not _same_values(found_probes[name], probe):
            raise ValueError(
                f"checkpoint: {path} belongs to another run: its {name} gives other values; "
                "remove it or give another path"
            )
    return run


def _encode(value: Any, name: str, held: _Held) -> Any:
    """A tree of plain values that names the tensors, which are put into ``held`` once each."""
    if isinstance(value, Tensor):
        key = (id(value), _ON_HOST in name.split("."))
        return {"tensor": held.setdefault(key, (name, value))[0]}
    if isinstance(value, tuple):
        return [_encode(each, f"{name}.{i}", held) for i, each in enumerate(value)]
    if is_dataclass(value):
        inner = {
            f.name: _encode(getattr(value, f.name), f"{name}.{f.name}", held) for f in fields(value)
        }
        return {"class": _NAMES[type(value)], "fields": inner}
    return {"plain": value}


def _decode(tree: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if isinstance(tree, list):
        return tuple(_decode(each, tensors, device) for each in tree)
    if "tensor" in tree:
        name = tree["tensor"]
        return tensors[name] if _ON_HOST in name.split(".") else tensors[name].to(device)
    if "class" in tree:
        inner = {key: _decode(each, tensors, device) for key, each in tree["fields"].items()}
        return _CLASSES[tree["class"]](**inner)
    return tree["plain"]


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
