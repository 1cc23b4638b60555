"""A command by several processes: the first does everything except shares of the evaluations.

It alone reads pictures, writes files and tells what happens. For each picture it sends the others
the call of the library that it makes itself; they load the generator, and make that call too.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cogen_fast.cli.generator import Generator
from cogen_fast.cli.picture_tasks import Pictures, PictureTask, Posed, Shape
from cogen_fast.cli.sources import Source
from cogen_fast.cli.telling import MISTAKE
from cogen_fast.problem.compute import DEFAULT
from cogen_fast.problem.devices import checked_device
from cogen_fast.support.processes import Channel, joined, own_gpu, packed

# Messages of the first process: a call to make, or the end with the exit status.
_CALL, _END = range(2)


def shared(
    device: str | None,
    task: PictureTask,
    work: Callable[[PictureTask], int],
    load: Callable[[], Generator],
) -> int:
    """The exit status of ``work(task)``, shared by the processes that ``torchrun`` started.

    ``device`` is what the user asks for; each process has a GPU of its own unless one is named.
    """
    channel = joined()
    if channel is None:
        return work(task)
    if device in (None, "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(checked_device(own_gpu()))
    if channel.leads:
        return _lead(channel, task, work)
    return _follow(channel, task, load)


def _lead(channel: Channel, task: PictureTask, work: Callable[[PictureTask], int]) -> int:
    status = MISTAKE
    try:
        status = work(_Announced(task, channel))
    finally:
        for rank in channel.others:
            with suppress(ConnectionError):
                channel.send(rank, _END, (status, 0, 0))
    return status


def _follow(channel: Channel, task: PictureTask, load: Callable[[], Generator]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what Ctrl-C does
    warnings.simplefilter("ignore")  # it tells them, too
    generator: Generator | None = None
    while (message := channel.receive(0)).kind == _CALL:
        fitted, options = message.value
        if generator is None:
            generator = load()
        try:
            task.solve(generator, fitted, options)
        except (Exception, KeyboardInterrupt) as error:
            if error is not channel.told:
                raise
    return message.numbers[0]


@dataclass(frozen=True)
class _Announced:
    """A task whose calls of the library are announced to the other processes."""

    task: PictureTask
    channel: Channel

    def read(self, source: Source) -> Pictures:
        """Read the files."""
        return self.task.read(source)

    def shape(self, output: Tensor) -> Shape:
        """The shape of what is observed."""
        return self.task.shape(output)

    def pose(self, generator: Generator, output: Tensor, pictures: Pictures) -> Posed:
        """Fit the pictures to the generator; the call is announced when it is made."""
        posed = self.task.pose(generator, output, pictures)

        def solve(options: dict[str, Any]) -> Any:
            compute = replace(options.get("compute", DEFAULT), processes=True)
            options = {**options, "compute": compute}
            for rank in self.channel.others:
                self.channel.send(rank, _CALL, content=packed((posed.fitted, options)))
            return posed.solve(options)

        return replace(posed, solve=solve)

    def solve(self, generator: Generator, fitted: tuple[Tensor, ...], options: Any) -> Any:
        """Call the library."""
        return self.task.solve(generator, fitted, options)
