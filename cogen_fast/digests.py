"""What a file holds, as one number by which damage shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


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
