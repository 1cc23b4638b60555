"""Functions of tensors as CUDA graphs: recorded once for each shape, replayed ever after.

A move of the sampler is hundreds to thousands of launches, always the same ones; a replay is one.
Recorded functions must do all their work on the device: whatever Python computes while they are
recorded stays as it was then.
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
"""Runs a function while recording it; gives its outputs, and what computes them anew in place."""
_ROUNDING = 1e3  # relative, times the type's precision
_ATEN = torch.ops.aten
# What is waited for: numbers that Python sees, and outputs whose size is a matter of values.
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
    """A function waited for the device, to look at a number or to copy to or from the host."""


class Graphs:
    """Replays functions of tensors; for as long as what they close over lives.

    The first call of a case runs as it is, the second once more, to see that it never waits for the
    device, and is recorded. The third runs beside its recording, which must give the same; from
    then on there are replays alone. Where that fails everything runs as it is, and ``failure`` says
    why. ``version`` tells how functions allocate: when it changes, they are recorded anew.
    """

    def __init__(self, recorder: Recorder, version: Callable[[], Hashable]) -> None:
        self.failure: str | None = None
        self._recorder, self._version, self._known = recorder, version, version()
        self._seen: set[Hashable] = set()
        self._recordings: dict[Hashable, _Recording] = {}

    @property
    def note(self) -> str:
        """What is to be said of them in a result."""
        if self.failure is not None:
            return f"CUDA graphs: not used: {self.failure}"
        if not self._recordings:
            return "CUDA graphs: none, for too few moves were alike"
        lengths = len(self._recordings)
        return f"CUDA graphs: moves replayed from {lengths} recording{'s' if lengths > 1 else ''}"

    def __call__(self, key: Hashable, function: Callable[..., _T], *args: Any) -> _T:
        """``function(*args)``; ``args`` are dataclasses and tuples of tensors and plain values.

        ``key`` must tell functions apart. Outputs are the caller's own.
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
        except Exception as error:  # whatever a capture makes of user code
            # A potential that ran out of memory has halved its calls: they are recorded anew.
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
        """Give memory back."""
        self._recordings.clear()
        self._seen.clear()


class _Recording:
    """A function on inputs and outputs of its own."""

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
    """In few launches."""
    torch._foreach_copy_(there, tensors)


class _Leaf(NamedTuple):
    """The place of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Node(NamedTuple):
    """A dataclass or tuple without its tensors."""

    kind: type[Any]
    parts: tuple[Any, ...]


def _flatten(value: Any, tensors: list[Tensor]) -> Any:
    """What is left of a value without its tensors, which are put to the end of ``tensors``."""
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
    """The value that `_flatten` took apart, with other tensors."""
    if isinstance(shape, _Leaf):
        return next(tensors)
    if not isinstance(shape, _Node):
        return shape
    parts = [_unflatten(each, tensors) for each in shape.parts]
    return tuple(parts) if shape.kind is tuple else shape.kind(*parts)


def _agree(a: Any, b: Any) -> bool:
    """Whether most numbers agree but for rounding, of which a trajectory may make more.

    Memory that was read after its end, or a number that Python computed, spoils them all.
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
    """Whether it indexes by flags."""
    flags = (torch.bool, torch.uint8)
    return func in _INDEXING and any(each is not None and each.dtype in flags for each in args[1])


def _crosses_devices(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether it copies from one device to another."""
    if func not in _COPIES:
        return False
    devices = [each.device for each in args if isinstance(each, Tensor)]
    wanted = kwargs.get("device")
    devices += [] if wanted is None else [torch.device(wanted)]
    return len({device.type for device in devices}) > 1


def recorder(device: torch.device) -> Recorder | None:
    """That of CUDA; None for a device that has no graphs."""
    return _CudaRecorder(device) if device.type == "cuda" else None


class _CudaRecorder:
    """Recordings that share memory for what they compute on the way: no two run at a time."""

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
                # Other threads may use the device as they like.
                with torch.cuda.graph(
                    graph, self._pool, self._stream, capture_error_mode="thread_local"
                ):
                    outputs = function()
            finally:
                torch.cuda.set_stream(before)  # a failed capture leaves its own one in place
        return outputs, graph.replay
