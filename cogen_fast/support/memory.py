"""Memory: whether there is or was too little, and how much a call needs."""

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

# Where Linux has the memory limit of a group of processes, such as those of a container.
GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SIZE = "a size of latents"
_FEW, _MORE = 2, 8
_SHARE = 0.8  # of the free memory; workspaces and fragmentation take the rest


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. Of the CPU's and of MPS' allocator only the text says so."""
    text = str(error)
    said = "can't allocate memory" in text or "MPS backend out of memory" in text
    return said or isinstance(error, torch.OutOfMemoryError)


def give_back_unused() -> None:
    """Return the memory of devices that torch holds but does not use."""
    for module in (torch.cuda, torch.xpu):
        if module.is_available():
            module.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def check_room(
    counts: Mapping[str, int], each: int, what: str, device: torch.device | None = None
) -> None:
    """Raise ValueError, naming the largest of ``counts``, if their product cannot fit in memory.

    ``each`` is a lower bound of the bytes per item, so even what passes may not fit. ``what``
    describes the counts in the message. For a CUDA ``device`` its own memory counts.
    """
    cuda = device is not None and device.type == "cuda"
    there = torch.cuda.mem_get_info(device)[1] if cuda else main_memory()
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
    """Raise ValueError if the samples, the product of ``counts``, cannot fit in memory.

    Each sample has ``latents`` vectors of ``latent_size`` numbers and ``outputs`` further numbers,
    in float32 or larger. The error names the largest count, or ``latent_shape`` if the latent size
    is larger than the number of samples.
    """
    each = 4 * (latents * latent_size + outputs)
    samples = math.prod(counts.values())
    if latent_size > samples:
        check_room({"latent_shape": latent_size}, -(-each * samples // latent_size), _SIZE, device)
    else:
        check_room(counts, each, "a number of samples", device)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


def main_memory() -> int | None:
    """Main memory, in bytes, which this process can use at most; None where it is not known."""
    limits = [_number(Path(path)) for path in GROUP_LIMITS]
    if resource is not None:
        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((limit for limit in limits if limit is not None), default=None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # there is no such file, or it says "max" (no limit)
        return None


def is_capturing() -> bool:
    """Whether the current stream records a CUDA graph; no memory can be freed while it does."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def rows_that_fit(
    work: Callable[[int], object], device: torch.device, times: int = 1
) -> int | None:
    """The largest number of rows for which ``work(rows)`` fits into a CUDA device's memory.

    It is extrapolated from the measured memory peaks of a few rows; None where memory cannot be
    measured. The memory must hold what the work takes ``times`` times. Resets the device's peak
    statistics.
    """
    if device.type != "cuda":
        return None
    try:
        work(_MORE)  # so that one-time allocations are not measured
        few, more = (peak_bytes(work, rows, device) for rows in (_FEW, _MORE))
    except RuntimeError as error:
        if is_out_of_memory(error):
            return 1
        raise
    each = (more - few) / (_MORE - _FEW)
    if each <= 0.0:
        return None
    fixed = max(few - _FEW * each, 0.0)
    return max(int((_SHARE * free_bytes(device) / times - fixed) / each), 1)


def peak_bytes(work: Callable[[int], object], rows: int, device: torch.device) -> int:
    """The peak number of bytes which a call allocates."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work(rows)
    return torch.cuda.max_memory_allocated(device) - before


def free_bytes(device: torch.device) -> int:
    """Bytes which can still be allocated, including those that torch holds but does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)
