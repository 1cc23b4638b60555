"""Functions of tensors as CUDA graphs: recorded once for each shape, then replayed.

A move of the sampler makes hundreds to thousands of kernel launches, always the same ones; a replay
makes one. A recorded function must do all its work on the device: a value that Python computes
during the recording is the same in every replay.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cogen_fast.support.memory import is_out_of_memory

_T = TypeVar("_T")
Recorder = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
"""Runs and records a function; gives its outputs, and a call that recomputes them in place."""
_ROUNDING = 1e3  # relative difference that counts as rounding, in units of the type's precision
_ATEN = torch.ops.aten
# Ops that wait for the device: they give numbers to Python, or outputs sized by values.
_READS = {
    _ATEN._local_scalar_dense.default,
    _ATEN.equal.default,
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.bincount.default,
    _ATEN._unique2.default,
    _ATEN.unique_dim.default,
    _ATEN.unique_consecutive.default,
}
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default}
_COPIES = {_ATEN._to_copy.default, _ATEN.copy_.default}


class HostReadError(RuntimeError):
    """A function waited for the device, to read a number or to copy to or from the host."""


class Graphs:
    """Records functions of tensors and replays them, while what they close over exists.

    The first call of a case runs without recording. The second runs once to check that it never
    waits for the device, and is then recorded. The third runs beside a replay, which must give the
    same outputs. All further calls are replays. Where a step fails, all functions run without
    recordings from then on, and ``failure`` says why. ``version`` gives a value on which the
    allocations of the functions depend: when it changes, they are recorded again.
    """

    def __init__(self, recorder: Recorder, version: Callable[[], Hashable]) -> None:
        self.failure: str | None = None
        self._recorder, self._version, self._known = recorder, version, version()
        self._seen: set[Hashable] = set()
        self._recordings: dict[Hashable, _Recording] = {}

    @property
    def note(self) -> str:
        """A note for the result on whether moves were replayed."""
        if self.failure is not None:
            return f"CUDA graphs: not used: {self.failure}"
        if not self._recordings:
            return "CUDA graphs: none were recorded, because too few moves had the same shapes"
        lengths = len(self._recordings)
        plural = "s" if lengths > 1 else ""
        return f"CUDA graphs: moves were replayed from {lengths} recording{plural}"

    def __call__(self, key: Hashable, function: Callable[..., _T], *args: Any) -> _T:
        """``function(*args)``; ``args`` are dataclasses and tuples of tensors and plain values.

        Different functions must have different ``key``s. The outputs are in memory of their own.
        """
        if self.failure is not None:
            return function(*args)
        if self._version() != self._known:
            self._known = self._version()
            self._forget()
        tensors: list[Tensor] = []
        case = (key, _flatten(args, tensors))
        recording = self._recordings.get(case)
        if recording is None:
            return self._first_calls(case, function, args)
        if recording.checked:
            found: _T = recording.replay(tensors)
            return found
        return self._checked(recording, tensors, function(*args))

    def _first_calls(self, case: Hashable, function: Callable[..., _T], args: Any) -> _T:
        if case not in self._seen:
            self._seen.add(case)
            return function(*args)
        try:
            with _NoHostReads():  # type: ignore[no-untyped-call]
                found = function(*args)
        except HostReadError as error:
            self._fail(str(error))
            return function(*args)
        try:
            self._recordings[case] = _Recording(self._recorder, function, args)
        except Exception as error:  # user code may fail in any way during a capture
            # A potential that ran out of memory has halved its calls and is recorded again.
            if not is_out_of_memory(error) or self._version() == self._known:
                self._fail(f"a move could not be recorded ({error!s:.200})")
        return found

    def _checked(self, recording: _Recording, tensors: list[Tensor], found: _T) -> _T:
        replayed = recording.replay(tensors)
        recording.checked = _agree(found, replayed)
        if not recording.checked:
            self._fail("a replay gave other numbers than the move itself")
        return found

    def _fail(self, why: str) -> None:
        self.failure = why
        self._forget()

    def _forget(self) -> None:
        """Drop all recordings, and so free their memory."""
        self._recordings.clear()
        self._seen.clear()


class _Recording:
    """A recorded function with memory of its own for inputs and outputs."""

    def __init__(self, recorder: Recorder, function: Callable[..., Any], args: Any) -> None:
        given: list[Tensor] = []
        shape = _flatten(args, given)
        self._inputs = [tensor.clone() for tensor in given]
        own = _unflatten(shape, iter(self._inputs))
        outputs, self._play = recorder(lambda: function(*own))
        self._outputs: list[Tensor] = []
        self._shape = _flatten(outputs, self._outputs)
        self.checked = False

    def replay(self, tensors: list[Tensor]) -> Any:
        """The function's outputs for other inputs of the same shapes, in memory of their own."""
        _copy(self._inputs, tensors)
        self._play()
        found = [torch.empty_like(tensor) for tensor in self._outputs]
        _copy(found, self._outputs)
        return _unflatten(self._shape, iter(found))


def _copy(there: list[Tensor], tensors: list[Tensor]) -> None:
    """Copy ``tensors`` to ``there`` in few launches."""
    torch._foreach_copy_(there, tensors)


class _Leaf(NamedTuple):
    """Stands for a tensor in a structure."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Node(NamedTuple):
    """A dataclass or tuple whose tensors are replaced by `_Leaf`s."""

    kind: type[Any]
    parts: tuple[Any, ...]


def _flatten(value: Any, tensors: list[Tensor]) -> Any:
    """The structure of ``value`` without its tensors, which are appended to ``tensors``."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Leaf(tuple(value.shape), value.dtype, value.device)
    if isinstance(value, tuple):
        return _Node(type(value), tuple(_flatten(each, tensors) for each in value))
    if is_dataclass(value) and not isinstance(value, type):
        each = tuple(_flatten(getattr(value, f.name), tensors) for f in fields(value))
        return _Node(type(value), each)
    return value


def _unflatten(shape: Any, tensors: Iterator[Tensor]) -> Any:
    """The inverse of `_flatten`: a value of structure ``shape`` with the given ``tensors``."""
    if isinstance(shape, _Leaf):
        return next(tensors)
    if not isinstance(shape, _Node):
        return shape
    parts = [_unflatten(each, tensors) for each in shape.parts]
    return tuple(parts) if shape.kind is tuple else shape.kind(*parts)


def _agree(a: Any, b: Any) -> bool:
    """Whether more than half of the numbers of each tensor agree up to rounding.

    A trajectory may amplify rounding errors in some chains, while reading freed memory, or a number
    that Python computed, would change all of them.
    """
    first: list[Tensor] = []
    second: list[Tensor] = []
    if _flatten(a, first) != _flatten(b, second):
        return False
    pairs = [pair for pair in zip(first, second, strict=True) if pair[0].is_floating_point()]
    return all(_close(x, y) for x, y in pairs if x.numel())


def _close(x: Tensor, y: Tensor) -> bool:
    rounding = _ROUNDING * torch.finfo(x.dtype).eps
    near = (x == y) | ((x - y).abs() <= rounding * x.abs()) | (x.isnan() & y.isnan())
    return bool(near.double().mean() > 0.5)


class _NoHostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises `HostReadError` where torch would wait for the device; in this thread only."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _READS or _indexes_by_flags(func, args) or _crosses_devices(func, args, kwargs):
            raise HostReadError(f"G, the operator or the misfit waits for the device ({func})")
        return func(*args, **kwargs)


def _indexes_by_flags(func: Any, args: Sequence[Any]) -> bool:
    """Whether ``func`` indexes by flags, so that the size of its output depends on values."""
    flags = (torch.bool, torch.uint8)
    return func in _INDEXING and any(each is not None and each.dtype in flags for each in args[1])


def _crosses_devices(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether ``func`` copies from one device to another."""
    if func not in _COPIES:
        return False
    devices = [each.device for each in args if isinstance(each, Tensor)]
    wanted = kwargs.get("device")
    devices += [] if wanted is None else [torch.device(wanted)]
    return len({device.type for device in devices}) > 1


def recorder(device: torch.device) -> Recorder | None:
    """The recorder of a CUDA device; None for other devices, which have no graphs."""
    return _CudaRecorder(device) if device.type == "cuda" else None


class _CudaRecorder:
    """Makes recordings that share memory for intermediate results: no two run at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, function: Callable[[], _T]) -> tuple[_T, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            try:
                # In this mode other threads may use the device during the capture.
                with torch.cuda.graph(
                    graph, self._pool, self._stream, capture_error_mode="thread_local"
                ):
                    outputs = function()
            finally:
                torch.cuda.set_stream(before)  # a failed capture leaves its own stream set
        return outputs, graph.replay
