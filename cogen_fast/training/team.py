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

_Made = TypeVar("_Made")
# A process may have hours of work when the others wait already. One that ends is noticed at once,
# by its closed connections or by torchrun.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Team:
    """Process ``rank`` of ``size``, working on ``device``; ``group`` is where they `wait`."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the team."""
        if self.size == 1:
            return module
        places = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=places)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process; all of them must ask."""
        if self.size == 1:
            return flag
        told = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told.item())

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

    def one_first(self, work: Callable[[], _Made]) -> _Made:
        """``work()`` in every process, the leading one before the others."""
        if not self.leads:
            self.wait()
        made = work()
        if self.leads:
            self.wait()
        return made


@contextmanager
def assembled(device: str | torch.device | None = None) -> Iterator[Team]:
    """This process's place in the team that the environment tells of (``torchrun`` sets it).

    ``device`` is "cpu" or "cuda"; None: a GPU per process where there is one. Processes talk
    through NCCL on GPUs and gloo on CPUs. Raises ValueError for a device that is not here.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0)) if size > 1 else 0
    team = Team(rank, size, _device(device))
    if size == 1:
        yield team
        return
    dist.init_process_group("nccl" if team.device.type == "cuda" else "gloo")
    try:
        yield replace(team, group=dist.new_group(timeout=_PATIENCE))
    finally:
        dist.destroy_process_group()


def _device(wanted: str | torch.device | None) -> torch.device:
    found = checked_device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    if found.type == "cuda" and found.index is None:
        found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(found)
    return found
