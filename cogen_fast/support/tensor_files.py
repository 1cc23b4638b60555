"""Safetensors files whose bytes depend on nothing but what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

_LENGTH = 8  # bytes that tell the length of the header, whose end is aligned to as many


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file of ``tensors`` and ``metadata``, the latter in the order of its names.

    The library by itself writes metadata in an order that changes from process to process.
    """
    content = save({name: value.detach().contiguous() for name, value in tensors.items()})
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    named = {"__metadata__": dict(sorted(metadata.items()))}
    header = named | json.loads(content[_LENGTH:start])
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    values = memoryview(content)[start:]  # not copied twice: a trace may be large
    return b"".join((len(text).to_bytes(_LENGTH, "little"), text, values))
