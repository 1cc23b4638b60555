"""Telling an out-of-memory error from others."""

from __future__ import annotations

import torch


def is_out_of_memory(error: Exception) -> bool:
    """CUDA has an exception of its own; the CPU allocator only says so in words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
