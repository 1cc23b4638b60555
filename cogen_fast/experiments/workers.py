"""Threads and processes of the experiments."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one torch thread: small networks gain nothing from a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_in_processes(
    work: Callable[[int], None], pieces: int, processes: int, bar: tqdm[Any]
) -> None:
    """Call ``work(0) .. work(pieces - 1)``, in ``processes`` processes of one torch thread each.

    With one process the calls are made in this process. Otherwise ``work`` has to be picklable. The
    workers end when the process that started them ends, however it ends. An exception of ``work``
    is raised here.
    """
    if processes == 1:
        with one_thread():
            for piece in range(pieces):
                work(piece)
                bar.update()
        return
    with workers(processes, _start_worker) as pool:
        try:
            for done in as_completed([pool.submit(work, piece) for piece in range(pieces)]):
                done.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def workers(processes: int, begin: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """New processes, which do not depend on what this process has done with its threads."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), begin)


def _start_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Wait until the parent process ends, then end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
