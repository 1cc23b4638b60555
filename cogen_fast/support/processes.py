"""Processes that ``torchrun`` started, and messages between the first one and each of the others.

The first process, of rank 0, has a conversation with each other one: a message from either side is
received by the other side's next call of `Channel.receive`.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ENDED = (
    "another process ended before its work was done; run the same command again, which continues "
    "from a checkpoint if there is one"
)
"""What is told where a process does not answer any more."""
# One side may compute for hours while the other waits. If a process ends, the others notice at
# once, by its closed connections.
_TIMEOUT = timedelta(days=7)


def rank_and_size() -> tuple[int, int]:
    """This process's rank, and the number of processes, as ``torchrun`` sets them: 0 of 1 alone."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    return (int(os.environ.get("RANK", 0)) if size > 1 else 0), size


def own_gpu() -> torch.device:
    """The GPU of this process among those of its machine."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@dataclass(frozen=True)
class Message:
    """What ``kind`` of message it is, three ``numbers``, and a ``content`` of bytes."""

    kind: int
    numbers: tuple[int, int, int]
    content: Tensor

    @property
    def value(self) -> Any:
        """The value of a content that `packed` made."""
        return pickle.loads(self.content.numpy().tobytes())


def packed(value: Any) -> Tensor:
    """Any value as the content of a message."""
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


_NOTHING = torch.empty(0, dtype=torch.uint8, device="cpu")


class Channel:
    """Messages between the process of rank 0 and each other one.

    ``told`` is the last error that all processes know of. A process that has ended is a
    ConnectionError for those that talk to it.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.told: BaseException | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process of rank 0."""
        return self.rank == 0

    @property
    def others(self) -> range:
        """The ranks of the processes that this one talks to."""
        return range(1, self.size) if self.leads else range(1)

    def send(
        self,
        to: int,
        kind: int,
        numbers: tuple[int, int, int] = (0, 0, 0),
        content: Tensor = _NOTHING,
    ) -> None:
        """Send a message, and wait until it is received."""
        self.post(to, kind, numbers, content)()

    def post(
        self, to: int, kind: int, numbers: tuple[int, int, int], content: Tensor
    ) -> Callable[[], None]:
        """Begin to send a message. The function that is returned waits until it is received."""
        header = torch.tensor([kind, *numbers, content.numel()], device="cpu")
        parts = [header, content] if content.numel() else [header]
        with _ended_told():
            works = [dist.isend(part, to, group=self._group) for part in parts]

        def wait() -> None:
            with _ended_told():
                for work in works:
                    assert work is not None
                    work.wait()

        return wait

    def receive(self, sender: int) -> Message:
        """Wait for the next message of a process."""
        with _ended_told():
            header = torch.empty(5, dtype=torch.int64, device="cpu")
            dist.recv(header, sender, group=self._group)
            kind, first, second, third, size = header.tolist()
            content = torch.empty(size, dtype=torch.uint8, device="cpu")
            if size:
                dist.recv(content, sender, group=self._group)
        return Message(kind, (first, second, third), content)


@contextmanager
def _ended_told() -> Iterator[None]:
    """ConnectionError in place of torch's errors of closed connections."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(ENDED) from error


def joined() -> Channel | None:
    """The channel to the processes that ``torchrun`` started with this one; None without others.

    They meet at the first call, which all of them have to make. A process group that a script has
    initialised is used; it may be of any backend.
    """
    if not dist.is_available():
        return None
    if not dist.is_initialized():
        if rank_and_size()[1] == 1:
            return None
        dist.init_process_group("gloo")
    return _channel(dist.group.WORLD) if dist.get_world_size() > 1 else None


@lru_cache(maxsize=1)
def _channel(_: dist.ProcessGroup) -> Channel:
    with _ended_told():
        return Channel(dist.new_group(backend="gloo", timeout=_TIMEOUT))
