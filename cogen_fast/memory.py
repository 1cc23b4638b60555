"""Memory: telling when there was too little, and how much a call needs."""

from __future__ import annotations

from collections.abc import Callable

import torch

_FEW, _MORE = 2, 8
_SHARE = 0.8  # of what is free: workspaces and fragments take the rest


def is_out_of_memory(error: Exception) -> bool:
    """CUDA has an exception of its own; the CPU allocator only says so in words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def is_capturing() -> bool:
    """Whether the current stream records a CUDA graph, during which no memory can be given back."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def rows_that_fit(work: Callable[[int], object], device: torch.device) -> int | None:
    """The most rows of a call ``work(rows)`` on a CUDA device, by its measured peaks for few rows.

    None where memory cannot be measured. Resets the device's peak statistics.
    """
    if device.type != "cuda":
        return None
    try:
        work(_MORE)  # whatever is allocated once
        few, more = (_peak(work, rows, device) for rows in (_FEW, _MORE))
    except RuntimeError as error:
        if is_out_of_memory(error):
            return 1
        raise
    each = (more - few) / (_MORE - _FEW)
    if each <= 0.0:
        return None
    fixed = max(few - _FEW * each, 0.0)
    return max(int((_SHARE * _free(device) - fixed) / each), 1)


def _peak(work: Callable[[int], object], rows: int, device: torch.device) -> int:
    """Bytes that a call allocates at most at a time."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work(rows)
    return torch.cuda.max_memory_allocated(device) - before


def _free(device: torch.device) -> int:
    """Bytes that can still be allocated, torch's own unused ones among them."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)
