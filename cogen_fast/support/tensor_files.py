"""Safetensors files whose bytes depend on their content only."""

from __future__ import annotations

import json
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

_LENGTH = 8  # bytes of the field with the header's length; the header's end is aligned to them


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file with ``tensors`` and ``metadata``, the latter sorted by name.

    The safetensors library itself writes metadata in an order that changes between processes.
    """
    content = save({name: value.detach().contiguous() for name, value in tensors.items()})
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    named = {"__metadata__": dict(sorted(metadata.items()))}
    header = named | json.loads(content[_LENGTH:start])
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    values = memoryview(content)[start:]  # avoids a second copy, as a trace may be large
    return b"".join((len(text).to_bytes(_LENGTH, "little"), text, values))
