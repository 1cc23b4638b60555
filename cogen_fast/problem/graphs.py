"""Functions of tensors as CUDA graphs: recorded once for each shape, then replayed.

A move of the sampler makes hundreds to thousands of kernel launches, always the same ones; a replay
makes one. A recorded function must do all its work on the device: a value that Python computes
during the recording is the same in every replay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from cogen_fast.problem.host_reads import HostReadError, NoHostReads, no_waiting, rounding_of
from cogen_fast.support.memory import is_out_of_memory

_T = TypeVar("_T")
Recorder = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
"""Runs and records a function; gives its outputs, and a call that recomputes them in place."""


class Graphs:
    """Records functions of tensors and replays them, while what they close over exists.

    The first call of a case runs without recording. The second runs once to check that it never
    waits for the device, and is then recorded; a replay for the inputs of the first call must give
    the outputs of that call. All further calls are replays. Where a step fails, all functions run
    without recordings from then on, and ``failure`` says why. ``version`` gives a value on which
    the allocations of the functions depend: when it changes, they are recorded again.
    """

    def __init__(self, recorder: Recorder, version: Callable[[], Hashable]) -> None:
        self.failure: str | None = None
        self._recorder, self._version, self._known = recorder, version, version()
        self._first: dict[Hashable, _Call] = {}
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
        found: _T = recording.replay(tensors)
        return found

    def _first_calls(self, case: Hashable, function: Callable[..., _T], args: Any) -> _T:
        first = self._first.pop(case, None)
        if first is None:
            found = function(*args)
            self._first[case] = _Call.of(args, found)
            return found
        watch = NoHostReads()
        try:
            with watch, no_waiting():
                found = function(*args)
        except HostReadError as error:
            self._fail(str(error))
            return function(*args)
        try:
            recording = _Recording(self._recorder, function, args)
            differs = first.differs(recording, watch.coarsest)
        except Exception as error:  # user code may fail in any way during a capture
            # A potential that ran out of memory has halved its calls and is recorded again.
            if not is_out_of_memory(error) or self._version() == self._known:
                self._fail(f"a move could not be recorded ({error!s:.200})")
            return found
        if differs is None:
            self._recordings[case] = recording
        else:
            self._fail(differs)
        return found

    def _fail(self, why: str) -> None:
        self.failure = why
        self._forget()

    def _forget(self) -> None:
        """Drop all recordings, and so free their memory."""
        self._recordings.clear()
        self._first.clear()


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
        self._into, self._out = _alike(self._inputs), _alike(self._outputs)

    def replay(self, tensors: list[Tensor]) -> Any:
        """The function's outputs for other inputs of the same shapes, in memory of their own."""
        _copy(self._inputs, tensors, self._into)
        self._play()
        found = [torch.empty_like(tensor) for tensor in self._outputs]
        _copy(found, self._outputs, self._out)
        return _unflatten(self._shape, iter(found))


class _Call(NamedTuple):
    """Copies of the inputs and outputs of a call."""

    tensors: list[Tensor]
    outputs: Any

    @classmethod
    def of(cls, args: Any, outputs: Any) -> _Call:
        given: list[Tensor] = []
        made: list[Tensor] = []
        _flatten(args, given)
        shape = _flatten(outputs, made)
        copies = (tensor.clone() for tensor in made)
        return cls([tensor.clone() for tensor in given], _unflatten(shape, copies))

    def differs(self, recording: _Recording, coarsest: torch.dtype) -> str | None:
        """What is wrong where a replay gives other outputs than this call did; None if nothing."""
        if _agree(self.outputs, recording.replay(self.tensors), coarsest):
            return None
        return (
            "a replay gave other numbers than the move itself: at least half of them differ by a "
            f"share of more than {rounding_of(coarsest):.0e}, which is allowed for {coarsest}"
        )


def _alike(tensors: list[Tensor]) -> list[list[int]]:
    """The places of tensors of the same type and device, which one launch can copy."""
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        places[tensor.dtype, tensor.device].append(place)
    return list(places.values())


def _copy(there: list[Tensor], tensors: list[Tensor], alike: list[list[int]]) -> None:
    """Copy ``tensors`` to ``there``, in a launch for each list of places in ``alike``."""
    for places in alike:
        torch._foreach_copy_([there[i] for i in places], [tensors[i] for i in places])


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


def _agree(a: Any, b: Any, coarsest: torch.dtype) -> bool:
    """Whether more than half of the numbers of each tensor agree up to rounding.

    A trajectory may amplify rounding errors in some chains, while reading freed memory, or a number
    that Python computed, would change all of them. Some gradients of cuDNN are not the same twice,
    so rounding is that of the ``coarsest`` float type in which the function computes.
    """
    first: list[Tensor] = []
    second: list[Tensor] = []
    if _flatten(a, first) != _flatten(b, second):
        return False
    pairs = [pair for pair in zip(first, second, strict=True) if pair[0].is_floating_point()]
    return all(_close(x, y, rounding_of(coarsest)) for x, y in pairs if x.numel())


def _close(x: Tensor, y: Tensor, rounding: float) -> bool:
    near = (x == y) | ((x - y).abs() <= rounding * x.abs()) | (x.isnan() & y.isnan())
    return bool(near.double().mean() > 0.5)
