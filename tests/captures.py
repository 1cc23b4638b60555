"""A stand-in for torch's CUDA graphs, and for the accounts that its allocator of memory keeps.

It follows what `CUDAGraph` does in three versions of torch where a capture fails: which pools the
allocator believes to be in use, which captures to be underway, and whether the generator of random
numbers can still be used. What would be an internal error of torch is an AssertionError.
"""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion


class Device:
    """A device that records graphs as the given version of torch does."""

    def __init__(self, version: str) -> None:
        self.version = TorchVersion(version)
        self.pools: Counter[int] = Counter()  # uses of those that exist
        self.underway: list[int] = []
        self.workspaces: dict[Any, int] = {}  # the pool in which that of each stream lies
        self.valid, self.healthy, self.refuses = True, True, False
        self.stream: Any = "usual"
        self.handles = 0

    def make_pool(self) -> int:
        self.handles += 1
        return self.handles

    def product(self) -> None:
        """A matrix product, which needs a workspace for its stream."""
        self.workspaces.setdefault(self.stream, self.underway[-1])

    def invalidate(self) -> None:
        """What waiting for the device does to a capture."""
        self.valid = False
        raise RuntimeError("operation not permitted when stream is capturing")

    def begin(self, pool: int) -> None:
        if self.refuses:
            raise RuntimeError("out of streams")
        assert self.pools[pool] > 0 or pool not in self.pools, "a pool that was given up"
        self.pools[pool] += 1
        self.underway.append(pool)
        self.valid, self.healthy = True, False

    def end_allocation(self, device: int, pool: int) -> None:
        if pool not in self.underway:
            raise RuntimeError("not currently recording to mempool_id")
        self.underway.remove(pool)

    def release(self, device: int, pool: int) -> None:
        assert self.pools[pool] > 0, "a pool that is released twice"
        self.pools[pool] -= 1

    def empty_cache(self) -> None:
        gc.collect()
        assert not self.underway, "a capture is underway"
        for pool, uses in list(self.pools.items()):
            if uses == 0 and pool not in self.workspaces.values():
                del self.pools[pool]

    def clone_state(self) -> str:
        return "state"

    def graphsafe_set_state(self, state: str) -> None:
        self.healthy = True


def use(device: Device, patched: pytest.MonkeyPatch) -> None:
    """Put the device in the place of torch's."""

    class Graph:
        def __init__(self) -> None:
            self.of: int | None = None
            self.complete = False

        def capture_end(self) -> None:
            assert self.of is not None
            if device.valid:
                device.healthy = self.complete = True
            if device.valid or device.version >= (2, 13):
                device.underway.remove(self.of)
            if not device.valid:
                raise RuntimeError("operation failed due to a previous error during capture")

        def pool(self) -> int | None:
            if not self.complete:
                raise RuntimeError("called pool() without a preceding successful capture")
            return self.of

        def replay(self) -> None:
            assert self.complete

        def reset(self) -> None:
            if self.of is not None and (self.complete or device.version >= (2, 14)):
                device.release(0, self.of)
            self.of, self.complete = None, False

        def __del__(self) -> None:
            self.reset()

    class Capture:
        def __init__(self, graph: Graph, pool: int, stream: Any, capture_error_mode: str) -> None:
            self.graph, self.pool, self.stream = graph, pool, stream

        def __enter__(self) -> None:
            device.empty_cache()
            self.before, device.stream = device.stream, self.stream
            device.begin(self.pool)
            self.graph.of = self.pool

        def __exit__(self, *_: object) -> None:
            self.graph.capture_end()
            device.stream = self.before

    def move_to(stream: Any) -> None:
        device.stream = stream

    patched.setattr(torch, "__version__", device.version)
    for name, value in {
        "CUDAGraph": Graph,
        "graph": Capture,
        "Stream": object,
        "device": lambda _: nullcontext(),
        "current_device": lambda: 0,
        "current_stream": lambda: device.stream,
        "set_stream": move_to,
        "graph_pool_handle": device.make_pool,
        "default_generators": (device,),
    }.items():
        patched.setattr(torch.cuda, name, value)
    older = device.version < (2, 8)
    end = "_cuda_endAllocateCurrentStreamToPool" if older else "_cuda_endAllocateToPool"
    patched.delattr("torch._C._cuda_endAllocateToPool", raising=False)
    for name, function in {
        end: device.end_allocation,
        "_cuda_releasePool": device.release,
        "_cuda_clearCublasWorkspaces": device.workspaces.clear,
    }.items():
        patched.setattr(f"torch._C.{name}", function, raising=False)
