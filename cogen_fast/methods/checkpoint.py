"""Unfinished runs on disk: written atomically, refused where they belong to another run.

The annotations of a run's dataclasses declare once what is written, how it is read, and which
values a file may hold (`cogen_fast.support.layout`). A digest over the whole content detects
damage; the annotations detect content which no run with these settings could have written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cogen_fast.support.arguments import abbreviated, check_file, check_number
from cogen_fast.support.digests import digest_of
from cogen_fast.support.files import parse_json, write_atomically
from cogen_fast.support.layout import Array, Layout, Sizes, Whole, check_array, check_integer
from cogen_fast.support.tensor_files import to_bytes

_FORMAT = "cogen-fast run 12"
_PROBE = "probe."
_ON_HOST = "trace"  # the field whose tensors stay on the CPU
_Held = dict[tuple[int, bool], tuple[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A file in which an unfinished run is saved, every ``seconds`` (default: 60) and on Ctrl-C.

    With 0 seconds it is saved after every temperature. Raises TypeError or ValueError naming
    ``checkpoint`` or ``checkpoint_seconds``.
    """

    path: str | Path
    seconds: float = 60.0

    def __post_init__(self) -> None:
        check_file("checkpoint", self.path)
        seconds = check_number("checkpoint_seconds", self.seconds, above=0.0, zero=True)
        object.__setattr__(self, "seconds", seconds)

    @property
    def file(self) -> Path:
        """The path as a `Path`."""
        return Path(self.path)


def save(path: Path, run: Any, identity: Mapping[str, str], probes: Mapping[str, Tensor]) -> None:
    """Write ``run``, a run of `ais`, `smc` or `noise_level`.

    ``identity`` describes the inputs and settings to which the run belongs. ``probes`` holds the
    values of generator, operator and misfit at fixed latents, which identify functions that have no
    weights to hash.
    """
    held: _Held = {}
    tree = _encode(run, "run", held)
    tensors = dict(held.values()) | {_PROBE + name: value for name, value in probes.items()}
    # Copies, as the format refuses tensors which share memory.
    kept = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    metadata = {
        "format": _FORMAT,
        "run": json.dumps(tree),
        "identity": json.dumps(dict(identity), sort_keys=True),
    }
    metadata["digest"] = digest_of(kept, metadata)
    content = to_bytes(kept, metadata)
    write_atomically(path, lambda file: file.write_bytes(content))


def load(
    path: Path,
    identity: Mapping[str, str],
    probes: Mapping[str, Tensor],
    device: torch.device,
    layout: Layout,
) -> Any:
    """Read a run with ``layout`` from ``path``, onto ``device`` (traces stay on the CPU).

    ValueError where the file is damaged or belongs to other inputs, where ``probes`` differ by more
    than rounding, or, naming the field, where a value is one that no such run can have.
    """
    texts, tensors = _read(path)
    try:
        tree = parse_json("run", texts["run"])
        found = parse_json("identity", texts["identity"])
        if not isinstance(found, dict) or not all(type(v) is str for v in found.values()):
            raise ValueError("identity: expected a JSON object of strings, got something else")
    except (KeyError, ValueError) as error:
        raise ValueError(f"checkpoint: {path} is damaged: {error!r:.80}") from error
    _check_identity(path, found, identity)
    _check_probes(path, tensors, probes)
    try:
        reading = _Reading(tensors, device, layout)
        run = reading.value(tree, layout.kind, "run", dict(layout.sizes))
        layout.check(run)
    except ValueError as error:
        raise ValueError(f"checkpoint: {path} is damaged: {error}") from error
    return run


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of the file, whose digest is checked."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            # Cloned into aligned memory, as the instructions that a matrix product uses, and so its
            # last bits, depend on the alignment.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"checkpoint: {path} is damaged or is no checkpoint: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"checkpoint: {path} is not a {_FORMAT!r} file")
    given = metadata.pop("digest", None)
    if given != digest_of(tensors, metadata):
        raise ValueError(f"checkpoint: {path} is damaged: its content does not match its digest")
    return metadata, tensors


def _encode(value: Any, name: str, held: _Held) -> Any:
    """A tree of plain values and names of tensors, each of which is put into ``held`` once."""
    if isinstance(value, Tensor):
        key = (id(value), _ON_HOST in name.split("."))
        return {"tensor": held.setdefault(key, (name, value))[0]}
    if isinstance(value, tuple):
        return [_encode(each, f"{name}.{i}", held) for i, each in enumerate(value)]
    if is_dataclass(value):
        return {
            f.name: _encode(getattr(value, f.name), f"{name}.{f.name}", held) for f in fields(value)
        }
    return value


@dataclass(frozen=True)
class _Reading:
    """Decodes a tree into a run. ValueError for a value which the type of its field forbids."""

    tensors: Mapping[str, Tensor]
    device: torch.device
    layout: Layout

    def value(self, tree: Any, kind: Any, name: str, sizes: dict[str, int]) -> Any:
        """The value of type ``kind`` in ``tree``; ``sizes`` maps names of dimensions to sizes."""
        origin, parts = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            return self._optional(tree, parts, name, sizes)
        if origin is tuple:
            if not isinstance(tree, list):
                raise ValueError(f"{name}: expected a list, got {abbreviated(tree)}")
            rows = enumerate(tree)
            return tuple(self.value(each, parts[0], f"{name}.{i}", sizes) for i, each in rows)
        if origin is Annotated:
            return self._annotated(tree, parts[0], parts[1:], name, sizes)
        return self._dataclass(tree, kind, name, sizes)

    def _optional(self, tree: Any, kinds: tuple[Any, ...], name: str, sizes: dict[str, int]) -> Any:
        (kind,) = (each for each in kinds if each is not NoneType)
        present = self.layout.present.get(name.rsplit(".", 1)[-1])
        if present is not None and present != (tree is not None):
            wanted = "a value" if present else "none"
            raise ValueError(
                f"{name}: expected {wanted} with these settings, got {abbreviated(tree)}"
            )
        return None if tree is None else self.value(tree, kind, name, sizes)

    def _annotated(
        self, tree: Any, kind: Any, notes: tuple[Any, ...], name: str, sizes: dict[str, int]
    ) -> Any:
        if isinstance(notes[0], Whole):
            check_integer(name, tree, notes[0], sizes)
            return tree
        if isinstance(notes[0], Sizes):
            return self._dataclass(tree, kind, name, sizes, notes[0])
        return self._tensor(tree, notes, name, sizes)

    def _tensor(
        self, tree: Any, arrays: tuple[Array, ...], name: str, sizes: dict[str, int]
    ) -> Tensor:
        held = tree.get("tensor") if isinstance(tree, dict) else None
        if not isinstance(held, str) or held not in self.tensors:
            raise ValueError(f"{name}: expected a tensor of the file, got {abbreviated(tree)}")
        found = self.tensors[held]
        fitting = [each for each in arrays if len(each.dims.split()) == found.ndim]
        check_array(name, found, (fitting or arrays)[0], self.layout.dtype, sizes)
        return found if _ON_HOST in held.split(".") else found.to(self.device)

    def _dataclass(
        self, tree: Any, kind: Any, name: str, sizes: dict[str, int], renamed: Sizes | None = None
    ) -> Any:
        hints = _hints(kind)
        if not isinstance(tree, dict) or tree.keys() != hints.keys():
            raise ValueError(
                f"{name}: expected the fields {', '.join(hints)}, got {abbreviated(tree)}"
            )
        own = dict(sizes)
        for inner, outer in (renamed.names if renamed else {}).items():
            own[inner] = int(outer) if outer.isdigit() else sizes[outer]
        values = {n: self.value(tree[n], of, f"{name}.{n}", own) for n, of in hints.items()}
        return kind(**values)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _check_identity(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    keys = sorted(set(found) | set(wanted))
    differing = [k for k in keys if found.get(k) != wanted.get(k)]
    if differing:
        changes = "; ".join(
            f"{k}: {_shorten(found.get(k))} in the file, {_shorten(wanted.get(k))} in this call"
            for k in differing
        )
        raise ValueError(
            f"checkpoint: {path} belongs to another run ({changes}); remove it or give another path"
        )


def _check_probes(path: Path, tensors: Mapping[str, Tensor], probes: Mapping[str, Tensor]) -> None:
    for name, probe in probes.items():
        found = tensors.get(_PROBE + name)
        if found is None or not _same_values(found.to(probe.device), probe):
            raise ValueError(
                f"checkpoint: {path} belongs to another run, whose {name} gives other values; "
                "remove it or give another path"
            )


def _same_values(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool((a - b).abs().max() <= 1e-3 * b.abs().max())


def _shorten(value: str | None) -> str:
    return "nothing" if value is None else value if len(value) <= 24 else f"{value[:12]}..."
