"""The processes that work together: one, or as many as ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cogen_fast.problem.adapter import checked_device

_Result = TypeVar("_Result")
# A process may have hours of work when the others wait already. One that ends is noticed at once,
# by its closed connections or by torchrun.
_BARRIER_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """Process ``rank`` of ``size``, working on ``device``; ``group`` is where they `wait`."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the processes."""
        if self.size == 1:
            return module
        places = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=places)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process; all of them must ask."""
        if self.size == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def wait(self) -> None:
        """Until all have come here. Raises ConnectionError where one of them has ended before."""
        if self.size == 1:
            return
        try:
            dist.barrier(self.group)
        except RuntimeError as error:
            raise ConnectionError(
                "another process has ended before its work was done; the same command again goes on"
            ) from error

    def main_first(self, work: Callable[[], _Result]) -> _Result:
        """``work()`` in every process, the leading one before the others."""
        if not self.is_main:
            self.wait()
        result = work()
        if self.is_main:
            self.wait()
        return result


@contextmanager
def process_group(device: str | torch.device | None = None) -> Iterator[Processes]:
    """This process's place in the processes that the environment tells of (``torchrun`` sets it).

    ``device`` is "cpu" or "cuda"; None: a GPU per process where there is one. Processes talk
    through NCCL on GPUs and gloo on CPUs. Raises ValueError for a device that is not here.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0)) if size > 1 else 0
    processes = Processes(rank, size, _device(device))
    if size == 1:
        yield processes
        return
    dist.init_process_group("nccl" if processes.device.type == "cuda" else "gloo")
    try:
        yield replace(processes, group=dist.new_group(timeout=_BARRIER_TIMEOUT))
    finally:
        dist.destroy_process_group()


def _device(wanted: str | torch.device | None) -> torch.device:
    found = checked_device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(found)
    return found
