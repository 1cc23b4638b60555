"""CUDA graphs: the recordings of a CUDA device, and what is left of one that fails."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from cogen_fast.problem.graphs import Recorder

_T = TypeVar("_T")


def recorder(device: torch.device) -> Recorder | None:
    """The recorder of a CUDA device; None for other devices, which have no graphs."""
    return _CudaRecorder(device) if device.type == "cuda" else None


class _CudaRecorder:
    """Makes recordings that share memory for intermediate results: no two run at a time.

    The memory is given up with the last recording, and the next one begins with memory and a stream
    of its own: what libraries keep for a stream, such as the workspaces of cuBLAS, would otherwise
    lie in memory that was given up.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: Any = None
        self._living: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, function: Callable[[], _T]) -> tuple[_T, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), _own_workspaces():
            if not self._living:
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            outputs = _captured(graph, self._pool, self._stream, function)
        self._living.add(graph)
        return outputs, graph.replay


def _captured(
    graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream, function: Callable[[], _T]
) -> _T:
    """The function's outputs, recorded in ``graph``; nothing is left behind where this fails."""
    before, begun = torch.cuda.current_stream(), False
    try:
        # In this mode other threads may use the device during the capture.
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            begun = True
            return function()
    except BaseException:
        _abandon(graph, pool, begun)
        raise
    finally:
        torch.cuda.set_stream(before)  # a failed capture leaves its own stream set


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """The workspaces of cuBLAS are made anew inside, and again afterwards."""
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


_ABANDONED: list[torch.cuda.CUDAGraph] = []
"""Failed captures whom torch's allocator of host memory goes on asking."""


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any, begun: bool) -> None:
    """Undo a capture that failed.

    Torch does so itself if the capture can end. If it was invalidated, torch 2.14 releases the
    pool, 2.13 ends what is allocated from it only (pull request 180395), and older versions do
    neither: all memory that is given back later would then be an internal error. The generator of
    random numbers expects to be captured until its state is set.
    """
    try:
        graph.pool()
    except RuntimeError:
        ended = _ends_allocation(pool)
        graph.reset()
        if ended:
            _ABANDONED.append(graph)
        if ended or (begun and torch.__version__ < "2.14"):
            torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
    else:
        graph.reset()


def _ends_allocation(pool: Any) -> bool:
    """End what is allocated from a pool; False where nothing is."""
    names = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")  # the new, the old
    end = next(getattr(torch._C, name) for name in names if hasattr(torch._C, name))
    try:
        end(torch.cuda.current_device(), pool)
    except RuntimeError:
        return False
    return True
