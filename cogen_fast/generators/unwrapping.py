"""What programs put around a network's tensors: wrappers, and prefixes of every name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_PREFIX = "module."  # of DataParallel and DistributedDataParallel
_WRAPPERS = ("state_dict", "model_state_dict", "generator_state_dict", "model", "generator", "G")
_DEPTH = 6


def unwrapped(content: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
    """The content of a file, then each mapping in it that may hold a network, outermost first.

    Prefixes `module.` that all names of a mapping share are taken off at every depth.
    """
    level = [_without_prefix(content, _DEPTH)]
    for _ in range(_DEPTH):
        yield from level
        level = [
            inner
            for each in level
            for name in _WRAPPERS
            if isinstance(inner := each.get(name), Mapping)
        ]


def _without_prefix(content: Mapping[Any, Any], depth: int) -> Mapping[Any, Any]:
    if depth == 0:
        return content
    start = 0
    while content and all(
        isinstance(name, str) and name.startswith(_PREFIX, start) for name in content
    ):
        start += len(_PREFIX)
    return {
        name[start:] if start else name: (
            _without_prefix(value, depth - 1) if isinstance(value, Mapping) else value
        )
        for name, value in content.items()
    }
