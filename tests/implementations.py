"""The implementations of the ops that a test runs on, all of which take tensors on the CPU.

Under ``TRITON_INTERPRET=1`` that is Triton's interpreter alone (`test_triton` starts such a run);
otherwise the extension with each instruction set that this CPU has, and Triton where there is a
CUDA device.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cogen_fast.ops import dispatch, native, reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Of avx512, only the layers of progressive GANs differ from avx2: test_fast_progressive.py.
ISAS = [isa for isa in native.extension().build_info()["isa_usable"] if isa != "avx512"]


def names() -> list[str]:
    """The names of the fast implementations."""
    if INTERPRETED:
        return ["triton"]
    on_gpu = torch.cuda.is_available() and dispatch.triton_failure() is None
    return [*ISAS, *(["triton"] if on_gpu else [])]


FAST = names()
EVERY = FAST if INTERPRETED else [*FAST, "reference"]


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """The extension with the kernels of one of its instruction sets."""
    module = native.extension()
    before = module.build_info()["isa"]
    module.set_isa(name)
    try:
        yield
    finally:
        module.set_isa(before)


@contextmanager
def implementation(name: str) -> Iterator[Any]:
    """The ops of one of ``EVERY``."""
    if name == "reference":
        yield reference
    elif name == "triton":
        ops = dispatch.resolve("triton", torch.device("cpu" if INTERPRETED else "cuda"))
        yield ops if INTERPRETED else Moved(ops, torch.device("cuda", 0))
    else:
        with instruction_set(name):
            yield native


class Moved:
    """Ops of another device for tensors on the CPU, which are moved there and back."""

    def __init__(self, ops: Any, device: torch.device) -> None:
        self.ops, self.device = ops, device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = getattr(self.ops, name)

        def moved(*args: Any, **kwargs: Any) -> Any:
            there: list[tuple[Tensor, Tensor]] = []

            def move(value: Tensor) -> Tensor:
                if not value.is_cpu:
                    return value
                there.append((value, self._there(value)))
                return there[-1][1]

            given = [_mapped(value, move) for value in args]
            named = {key: _mapped(value, move) for key, value in kwargs.items()}
            found = _mapped(op(*given, **named), Tensor.cpu)
            for here, away in there:
                if here.is_contiguous():  # the op may have changed it in place
                    here.copy_(away)
            return found

        return moved

    def _there(self, value: Tensor) -> Tensor:
        if 0 in value.stride():
            return value.to(self.device)
        there = torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=self.device
        )
        return there.copy_(value)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with the tensors in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        parts = [_mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _mapped(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        return type(value)(**parts)
    return value
