"""The processes that train or evaluate together: one, or as many as ``torchrun`` started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cogen_fast.problem.devices import checked_device
from cogen_fast.support.processes import own_gpu, rank_and_size

_Result = TypeVar("_Result")
# A process may still have hours of work while the others wait. If one ends, the others notice at
# once, by its closed connections or through torchrun.
_BARRIER_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process's ``rank`` among ``size`` processes, and its ``device``.

    ``group`` is the process group in which they `wait` for one another.
    """

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes the files."""
        return self.rank == 0

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """The module, with gradients that are averaged over the processes."""
        if self.size == 1:
            return module
        places = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=places)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process; all of them must call this."""
        if self.size == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def wait(self) -> None:
        """Wait until all processes have called this.

        Raises ConnectionError if one of them has ended before.
        """
        if self.size == 1:
            return
        try:
            dist.barrier(self.group)
        except RuntimeError as error:
            raise ConnectionError(
                "another process ended before its work was done; run the same command again to "
                "continue"
            ) from error

    def main_first(self, work: Callable[[], _Result]) -> _Result:
        """Call ``work()`` in every process, in the main one before the others."""
        if not self.is_main:
            self.wait()
        result = work()
        if self.is_main:
            self.wait()
        return result


@contextmanager
def process_group(device: str | torch.device | None = None) -> Iterator[Processes]:
    """Join the processes that the environment describes (``torchrun`` sets it).

    ``device`` is "cpu" or "cuda"; None: a GPU per process if there is one. Processes communicate
    through NCCL on GPUs and gloo on CPUs. Raises ValueError for a device that this machine does not
    have.
    """
    rank, size = rank_and_size()
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
        found = own_gpu()
        torch.cuda.set_device(found)
    return found
