"""Calls in processes of their own, with a limit on their time and a measure of their memory.

Processes are forked from one that has imported the package, which is quick and shares no threads.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

SECONDS = 20.0  # a call that takes longer counts as hanging
SPACE = 3 * 2**30  # bytes of address space beyond those of the package itself

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the peak of a process's memory is read from /proc"
)


@dataclass(frozen=True)
class Ended:
    """How a call ended: its exception (None and "" if it returned), and the bytes that it took."""

    error: type[BaseException] | None
    message: str
    warnings: tuple[str, ...]
    grew: int
    trace: str


def confined(call: Callable[..., Any], *arguments: Any, seconds: float = SECONDS) -> Ended:
    """Run ``call(*arguments)``, of a module of this folder, in a process of its own.

    Raises AssertionError if it takes longer than ``seconds``, or if the process dies.
    """
    start_server()
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(there, call, arguments), daemon=True)
    process.start()
    there.close()
    try:
        # The first process waits until the package has been imported.
        assert here.poll(60.0) and here.recv() == "begins", "the process did not start"
        assert here.poll(seconds), f"{call.__name__}{arguments}: still running after {seconds} s"
        ended: Ended = here.recv()
        return ended
    except EOFError:
        process.join()
        message = f"{call.__name__}{arguments}: died with {process.exitcode}"
        raise AssertionError(message) from None
    finally:
        process.kill()
        process.join()


def start_server() -> None:
    """Start the server once, from this folder: the checkout would hide the installed package."""
    multiprocessing.set_forkserver_preload(["cogen_fast", "cogen_fast.cli.training", "pytest"])
    before = os.getcwd()
    os.chdir(Path(__file__).parent)
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(before)


def _run(pipe: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send("begins")
    before = status("VmHWM")
    limit = status("VmSize") + SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    error, message, trace = None, "", ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call(*arguments)
        except BaseException as raised:  # the caller examines any exception
            error, message = type(raised), str(raised)
            trace = traceback.format_exc(-4)[-4000:]
    told = tuple(str(warning.message) for warning in caught)
    pipe.send(Ended(error, message, told, status("VmHWM") - before, trace))


def status(key: str) -> int:
    """A number of bytes from this process's entry in /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])
