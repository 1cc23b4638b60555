"""A stand-in for CUDA graphs on the CPU: it records the calls of torch's ops and replays them.

As in a capture, every tensor keeps its memory, numbers that Python has computed are the same in
every replay, and reading a number from a tensor is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from implementations import INTERPRETED
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LOOKS = torch.ops.aten._local_scalar_dense.default


class Tape:
    """A `cogen_fast.problem.graphs.Recorder`; ``made`` counts recordings, ``played`` replays."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.made = self.played = 0
        self.recording = False

    def __call__(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        steps: list[Callable[[], object]] = []
        self.recording = True
        try:
            with _Writing(steps) as writing, _launches(writing):
                outputs = function()
        finally:
            self.recording = False
        self.made += 1

        def play() -> None:
            self.played += 1
            with torch.no_grad():
                for step in steps:
                    step()

        return outputs, play


class _Writing(TorchDispatchMode):
    """Records the ops that compute or change values; views need no replay, as they share memory."""

    def __init__(self, steps: list[Callable[[], object]]) -> None:
        super().__init__()
        self.steps, self.launching = steps, False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # a capture does not keep `torch.compile` from compiling

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is LOOKS:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if self.launching:
            return found
        if func._schema.is_mutable:
            self.steps.append(lambda: func(*args, **kwargs))
        elif not func.is_view:
            self.steps.append(lambda: _put(func(*args, **kwargs), found))
        return found


def _put(values: Any, there: Any) -> None:
    if isinstance(there, Tensor):
        there.copy_(values)
    elif isinstance(there, tuple | list):
        for value, place in zip(values, there, strict=True):
            _put(value, place)


@contextmanager
def _launches(writing: _Writing) -> Iterator[None]:
    """Records launches of Triton's kernels, in place of the torch ops of its interpreter."""
    if not INTERPRETED:  # without the interpreter no Triton kernel runs on the CPU
        yield
        return
    from cogen_fast.ops import triton_ops

    launch = triton_ops.launch

    def written(*args: Any, **constants: Any) -> None:
        writing.launching = True
        launch(*args, **constants)
        writing.launching = False
        writing.steps.append(lambda: launch(*args, **constants))

    triton_ops.launch = written
    try:
        yield
    finally:
        triton_ops.launch = launch
