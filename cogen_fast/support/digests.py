"""Digests of a file's content, by which damage is detected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cogen_fast.support.arguments import abbreviated

_DIGEST = "digest"


def tensor_bytes(value: Tensor) -> Any:
    """The raw bytes of a tensor, as a buffer to hash."""
    whole = value.detach().cpu().contiguous()
    flat = whole.as_strided((whole.numel(),), (1,))  # a single expanded value has a stride of 0
    return flat.view(torch.uint8).numpy().data


def digest_of(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """SHA-256 of tensors (names, dtypes, shapes, bytes) and texts, in the order of their names."""
    found = hashlib.sha256()
    for name, text in sorted(texts.items()):
        found.update(repr((name, text)).encode())
    for name, value in sorted(tensors.items()):
        found.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        found.update(tensor_bytes(value))
    return found.hexdigest()


def digest_of_tree(value: Any) -> str:
    """`digest_of` the tensors and plain values in nested dictionaries, lists and tuples."""
    tensors: dict[str, Tensor] = {}
    texts: dict[str, str] = {}
    _flatten(value, "", tensors, texts)
    return digest_of(tensors, texts)


def with_digest(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The record, of plain JSON values, with a digest of these values and of ``place``.

    ``place`` describes what the record is and where it belongs, so that it is refused elsewhere.
    """
    return {**record, _DIGEST: _of_plain(record, place)}


def without_digest(name: str, record: Any, place: str) -> dict[str, Any]:
    """The record which `with_digest` was given. ValueError, naming ``name``, if it has changed."""
    if not isinstance(record, dict):
        raise ValueError(f"{name} is damaged: expected a JSON object, got {abbreviated(record)}")
    found = {key: value for key, value in record.items() if key != _DIGEST}
    try:
        digest = _of_plain(found, place)
    except RecursionError:  # writing JSON needs slightly more of the stack than reading it
        raise ValueError(f"{name} is damaged: it is nested too deeply") from None
    if record.get(_DIGEST) != digest:
        raise ValueError(f"{name} is damaged: its content does not match its digest; remove it")
    return found


def _of_plain(record: Mapping[str, Any], place: str) -> str:
    return digest_of({}, {"record": json.dumps(record, sort_keys=True), "place": place})


def _flatten(value: Any, name: str, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
    if isinstance(value, Tensor):
        tensors[name] = value
        return
    if not isinstance(value, Mapping | list | tuple):
        texts[name] = repr(value)
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, each in items:
        _flatten(each, f"{name}/{key!r}", tensors, texts)
