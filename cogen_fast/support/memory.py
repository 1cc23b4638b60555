"""Memory: telling when there is or was too little, and how much a call needs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

# Where Linux tells how much a group of processes may have, such as a container's.
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SIZE = "a size of latents"
_FEW, _MORE = 2, 8
_SHARE = 0.8  # of what is free: workspaces and fragments take the rest


def is_out_of_memory(error: Exception) -> bool:
    """CUDA has an exception of its own; the CPU allocator only says so in words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def check_room(
    counts: Mapping[str, int], each: int, what: str, device: torch.device | None = None
) -> None:
    """ValueError naming the largest of ``counts`` where their product is more than memory holds.

    ``each`` is how many bytes go with one of them at the very least: what fits by this may still
    not fit. ``what`` says what they count. On a CUDA ``device`` its own memory counts.
    """
    cuda = device is not None and device.type == "cuda"
    there = torch.cuda.mem_get_info(device)[1] if cuda else _main_memory()
    needed = each * math.prod(counts.values())
    if there is None or needed <= there:
        return
    name = max(counts, key=lambda name: counts[name])
    raise ValueError(
        f"{name}: expected {what} that fits into memory, which is {_gigabytes(there)}, got "
        f"{counts[name]}, which takes {_gigabytes(needed)} or more"
    )


def check_samples(
    counts: Mapping[str, int],
    latents: int,
    latent_size: int,
    *,
    outputs: int = 0,
    device: torch.device | None = None,
) -> None:
    """ValueError where as many samples as the product of ``counts`` cannot be held in memory.

    Each has ``latents`` latents of ``latent_size`` and ``outputs`` numbers beside them, in float32
    at least. The error names the largest count, or ``latent_shape`` where that is larger than all.
    """
    each = 4 * (latents * latent_size + outputs)
    samples = math.prod(counts.values())
    if latent_size > samples:
        check_room({"latent_shape": latent_size}, -(-each * samples // latent_size), _SIZE, device)
    else:
        check_room(counts, each, "a number of samples", device)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


def _main_memory() -> int | None:
    """Bytes of main memory that this process can have at most; None where nothing tells."""
    limits = [_number(Path(path)) for path in _GROUP_LIMITS]
    if resource is not None:
        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((limit for limit in limits if limit is not None), default=None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file; or "max", which is no limit
        return None


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
