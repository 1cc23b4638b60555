"""How much resident memory a call adds at its peak, on Linux with glibc."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")


def _resident(field: str) -> float:
    """Bytes by a field of the process's status."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024.0 * float(line.split()[1])
    raise OSError(f"{_STATUS} has no {field}")


def rise(call: Callable[[], Any]) -> float:
    """Bytes at the peak during a call above those before it. Use a process of its own."""
    ctypes.CDLL(None).malloc_trim(0)  # otherwise memory that was freed before is reused
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    call()
    return _resident("VmHWM") - before
