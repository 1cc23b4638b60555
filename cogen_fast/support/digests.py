"""What a file holds, as one number by which damage shows."""

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
    flat = whole.as_strided((whole.numel(),), (1,))  # one value that was expanded has a stride of 0
    return flat.view(torch.uint8).numpy().data


def digest_of(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, and of texts, in the order of their names."""
    found = hashlib.sha256()
    for name, text in sorted(texts.items()):
        found.update(repr((name, text)).encode())
    for name, value in sorted(tensors.items()):
        found.update(repr((name, str(value.dtype), tuple(value.shape))).encode())
        found.update(tensor_bytes(value))
    return found.hexdigest()


def digest_of_tree(value: Any) -> str:
    """The same of tensors and plain values in dictionaries, lists and tuples."""
    tensors: dict[str, Tensor] = {}
    texts: dict[str, str] = {}
    _spread(value, "", tensors, texts)
    return digest_of(tensors, texts)


def with_digest(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A record of plain values as JSON has them, and beside them a digest of them and ``place``.

    ``place`` says what the record is and whose, so that it counts nowhere else.
    """
    return {**record, _DIGEST: _of_plain(record, place)}


def without_digest(name: str, record: Any, place: str) -> dict[str, Any]:
    """What `with_digest` was given; ValueError naming ``name`` where it is anything else."""
    if not isinstance(record, dict):
        raise ValueError(f"{name} is damaged: expected a JSON object, got {abbreviated(record)}")
    found = {key: value for key, value in record.items() if key != _DIGEST}
    try:
        digest = _of_plain(found, place)
    except RecursionError:  # JSON is written with a little more of the stack than it is read with
        raise ValueError(f"{name} is damaged: it is nested too deep") from None
    if record.get(_DIGEST) != digest:
        raise ValueError(f"{name} is damaged: it is not as it was written; remove it")
    return found


def _of_plain(record: Mapping[str, Any], place: str) -> str:
    return digest_of({}, {"record": json.dumps(record, sort_keys=True), "place": place})


def _spread(value: Any, name: str, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
    if isinstance(value, Tensor):
        tensors[name] = value
        return
    if not isinstance(value, Mapping | list | tuple):
        texts[name] = repr(value)
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, each in items:
        _spread(each, f"{name}/{key!r}", tensors, texts)
