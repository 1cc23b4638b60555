"""Calls made by several processes at once, which form a group as those of ``torchrun`` do."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from confined import start_server

SECONDS = 120.0  # a call that takes longer counts as hanging


@dataclass(frozen=True)
class Came:
    """How a call ended in one process: its value, or its error; neither where it was killed.

    ``out`` and ``err`` are what it printed.
    """

    value: Any = None
    error: BaseException | None = None
    exitcode: int | None = None
    out: str = ""
    err: str = ""


class Crew:
    """Processes that make calls together, one call after another."""

    def __init__(self, size: int) -> None:
        start_server()
        context = multiprocessing.get_context("forkserver")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        for rank in range(size):
            here, there = context.Pipe()
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            process = context.Process(target=_serve, args=(there, place), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> list[Came]:
        """``call(rank, *arguments)``, of a module of this folder, in each of the processes.

        Raises AssertionError where one of them neither returns nor ends.
        """
        for pipe in self._pipes:
            pipe.send((call, arguments))
        return [
            self._came(process, pipe)
            for process, pipe in zip(self._processes, self._pipes, strict=True)
        ]

    def end(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()

    def _came(self, process: Any, pipe: Connection) -> Came:
        assert pipe.poll(SECONDS), f"{process.name}: still running after {SECONDS} s"
        try:
            came: Came = pickle.loads(pipe.recv_bytes())
        except EOFError:
            process.join()
            return Came(exitcode=process.exitcode)
        return came


@contextlib.contextmanager
def crew(size: int) -> Iterator[Crew]:
    """A `Crew`, whose processes are ended."""
    found = Crew(size)
    try:
        yield found
    finally:
        found.end()


def _serve(pipe: Connection, place: dict[str, str]) -> None:
    os.environ |= place
    torch.set_num_threads(1)
    while True:
        call, arguments = pipe.recv()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                came = Came(value=call(int(place["RANK"]), *arguments))
            except BaseException as error:  # the caller examines any exception
                came = Came(error=error)
        pipe.send_bytes(pickle.dumps(replace(came, out=out.getvalue(), err=err.getvalue())))
