"""What a function of tensors does, as a list of steps that can be repeated with other tensors.

A function is called with tensors that record every torch operation on them
(``__torch_function__``), once for each of two batch sizes. The steps that both calls share are the
recording; a number that differs in proportion to the batch size is kept as a multiple of it. A
function that depends on its inputs in another way than through these operations, such as by a
branch on their values, cannot be recorded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Functions that read values, or whose output has a shape that depends on values: later steps may
# depend on these.
_READS = frozenset(
    (
        *("__bool__", "__float__", "__int__", "__index__", "__complex__", "item", "tolist"),
        *("numpy", "__array__", "__dlpack__", "__contains__", "equal", "allclose", "is_nonzero"),
        *("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive"),
    )
)
_RANDOM = frozenset(
    (
        *("rand_like", "randn_like", "randint_like", "bernoulli", "multinomial", "normal"),
        *("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_"),
        *("cauchy_", "geometric_", "poisson", "gumbel_softmax"),
    )
)
# Functions whose number of results depends on the size of a dimension.
_SPLITS = frozenset({"split", "chunk", "tensor_split", "split_with_sizes", "unsafe_chunk"})

_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout)


class Unrecordable(ValueError):
    """A function that is not a fixed list of operations."""


@dataclass(frozen=True)
class Place:
    """The result of step ``step``, or its item ``item``; the inputs are the steps -1, -2, ..."""

    step: int
    item: int | None = None


@dataclass(frozen=True)
class Multiple:
    """An integer argument that is ``times`` the number of rows of the batch."""

    times: int


@dataclass(frozen=True, eq=False)
class Rows:
    """A constant ``(1, ...)``, repeated for each row of the batch."""

    row: Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """A call of ``function``; arguments may hold `Place`, `Multiple` and `Rows`, also in lists."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def mapped(self, change: Callable[[Any], Any]) -> Step:
        """The same with each argument changed, in lists and tuples too."""
        return Step(self.function, _mapped(change, self.args), _mapped(change, self.kwargs))

    def places(self) -> Iterator[Place]:
        """The results that the arguments refer to."""
        yield from (each for each in _leaves((self.args, self.kwargs)) if isinstance(each, Place))

    def named(self, signature: Callable[..., Any]) -> dict[str, Any]:
        """The arguments by the names that they have in ``signature``, with defaults."""
        return _named(signature, self.args, self.kwargs)


@dataclass(frozen=True, eq=False)
class Recording:
    """The steps in order, the place of the output, and the results' shapes in the first call."""

    steps: list[Step]
    output: Place
    shapes: dict[Place, torch.Size]

    def users(self) -> dict[Place, list[int]]:
        """Which steps read each result; the output is read by the step after the last one."""
        found: dict[Place, list[int]] = {}
        for number, step in enumerate(self.steps):
            for place in step.places():
                found.setdefault(place, []).append(number)
        found.setdefault(self.output, []).append(len(self.steps))
        return found


class Replay:
    """A recording as a function of its inputs; a result is freed after its last reader."""

    def __init__(self, recording: Recording) -> None:
        self.steps, self._output = tuple(recording.steps), recording.output
        last: dict[int, int] = {}
        for place, users in recording.users().items():
            last[place.step] = max(last.get(place.step, 0), *users)
        self._done: list[list[int]] = [[] for _ in range(len(self.steps) + 1)]
        for step, user in last.items():
            self._done[user].append(step)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output for inputs whose first dimension is the batch."""
        rows = len(inputs[0])
        known: dict[int, Any] = {-1 - k: each for k, each in enumerate(inputs)}

        def value(each: Any) -> Any:
            if isinstance(each, Place):
                found = known[each.step]
                return found if each.item is None else found[each.item]
            if isinstance(each, Multiple):
                return rows * each.times
            return each.row.expand(rows, *each.row.shape[1:]) if isinstance(each, Rows) else each

        for number, step in enumerate(self.steps):
            args, kwargs = _mapped(value, step.args), _mapped(value, step.kwargs)
            known[number] = step.function(*args, **kwargs)
            for each in self._done[number]:
                del known[each]
        output: Tensor = value(self._output)
        return output


def record(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Recording:
    """The steps of ``function`` of tensors whose first dimension is the batch, at least 3 rows.

    It is called twice, with all rows and without the last. Tensors that it has stored are ordinary
    ones afterwards. Raises `Unrecordable` with the reason where the steps depend on anything but
    the number of rows, and whatever the function raises.
    """
    with torch.enable_grad(), _Seen():  # type: ignore[no-untyped-call]
        first = _Recorder(function, [each.clone() for each in inputs])
        second = _Recorder(function, [each[:-1].clone() for each in inputs])
    return _merged(first, second)


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that reach torch unrecorded, such as those of a compiled function."""


def _refuse_unseen(
    mode: Any, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
) -> Any:
    # Recorded operations are computed with the ordinary tensors.
    if any(isinstance(each, _Recorded) and each.open for each in _leaves((args, kwargs or {}))):
        raise Unrecordable(f"it has operations that cannot be recorded ({func})")
    return func(*args, **(kwargs or {}))


# Set here because torch wraps a method of the class's body in one that imports its compiler, which
# takes some 100 MiB.
_Seen.__torch_dispatch__ = _refuse_unseen  # type: ignore[method-assign]


class _Recorded(Tensor):
    """A tensor whose operations are recorded; ``time`` is the step that last wrote to it."""

    recorder: _Recorder
    plain: Tensor
    place: Place
    time: int

    @property
    def open(self) -> bool:
        """Whether the recorded call is still running, in this thread."""
        return self.recorder.open

    def become_plain(self) -> None:
        """Become the ordinary tensor that the function would have stored without a recorder."""
        plain = self.plain
        self.__dict__.clear()
        self.__class__ = Tensor  # type: ignore[assignment]
        if self.shape != plain.shape or self.stride() != plain.stride():
            self.data = plain.data  # its shape was changed in place

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = (args, kwargs or {})
        recorders = [each.recorder for each in _leaves(given) if isinstance(each, _Recorded)]
        return next((each for each in recorders if each.open), recorders[0]).call(func, *given)


class _Recorder:
    """Records one call of a function."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
        self.steps: list[Step] = []
        self.shapes: dict[Place, torch.Size] = {}
        # The last two steps that wrote into a memory, by its address.
        self._writes: dict[int, tuple[int, int]] = {}
        self._made: list[ref[_Recorded]] = []
        self._thread = get_ident()
        self.rows, self._open = len(inputs[0]), True
        try:
            output = function(*(self._wrapped(x, Place(-1 - k)) for k, x in enumerate(inputs)))
            if not isinstance(output, _Recorded) or output.recorder is not self:
                raise Unrecordable(
                    "its output does not come from operations of torch on its inputs"
                )
            self.output: Place = self._placed(output)
        finally:
            self._open = False
            for each in self._made:
                if (made := each()) is not None:
                    made.become_plain()
            self._made.clear()

    @property
    def open(self) -> bool:
        """Whether the call is still running, in this thread: others may use tensors it stored."""
        return self._open and get_ident() == self._thread

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(function, "__name__", "")
        if not self.open:
            return function(*_mapped(_plain, args), **_mapped(_plain, kwargs))
        if function in _DROPOUTS and not _named(function, args, kwargs)["training"]:
            return args[0]
        if name in _READS or _finds(name, args):
            raise Unrecordable(f"it reads numbers that depend on the latents ({name})")
        if not torch.is_grad_enabled():
            raise Unrecordable("it computes without gradients, or with gradients of its own")
        if name in _RANDOM:
            raise Unrecordable(f"it draws random numbers ({name})")
        if name == "__iter__":
            return iter(torch.unbind(args[0]))
        if name == "__setitem__":
            return self._item_set(args)
        result = function(*_mapped(_plain, args), **_mapped(_plain, kwargs))
        if not any(isinstance(each, Tensor) for each in _leaves(result)):
            return result  # a shape, a type, a device
        place = Place(len(self.steps))
        if args and isinstance(args[0], _Recorded) and result is args[0].plain:
            changes = _out_of_place(function, args, kwargs)
            self._write(*changes)
            self._move(args[0], place, wrote=name.endswith("_") or changes[2] is not kwargs)
            return args[0]
        self._write(function, args, kwargs)
        if isinstance(result, Tensor):
            return self._wrapped(result, place)
        items = [
            self._wrapped(each, Place(place.step, k)) if isinstance(each, Tensor) else each
            for k, each in enumerate(result)
        ]
        # Some results are named tuples.
        return items if isinstance(result, list) else type(result)(items)

    def _item_set(self, args: tuple[Any, ...]) -> None:
        if not isinstance(args[0], _Recorded):
            raise Unrecordable("it writes what depends on the latents into a tensor that does not")
        images, index, value = args
        if isinstance(value, _Recorded) and _memory(value) == _memory(images):
            # x[i] += y changes x[i] in place, and then sets it.
            last, before = self._writes.get(_memory(images), (-1, -1))
            if value.time == last and images.time >= before:
                images.time = last
        images.plain[_mapped(_plain, index)] = _plain(value)
        self._write(_with_item, args, {})
        self._move(images, Place(len(self.steps) - 1), wrote=True)

    def _move(self, value: _Recorded, place: Place, wrote: bool) -> None:
        """Make ``value`` the result of another step, which may have written into its memory."""
        value.place, self.shapes[place] = place, value.plain.shape
        if wrote:
            value.time = place.step
            last, _ = self._writes.get(_memory(value), (-1, -1))
            self._writes[_memory(value)] = place.step, last

    def _write(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.steps.append(
            Step(function, _mapped(self._placed, args), _mapped(self._placed, kwargs))
        )

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, _Recorded):
            return value
        if value.recorder is not self:
            return value.plain  # of a call that is running in another thread
        if self._writes.get(_memory(value), (-1, -1))[0] > value.time:
            raise Unrecordable("it changes a part of a tensor in place")
        return value.place

    def _wrapped(self, value: Tensor, place: Place) -> _Recorded:
        made = value.as_subclass(_Recorded)
        made.recorder, made.plain, made.place, made.time = self, value, place, max(place.step, -1)
        self.shapes[place] = value.shape
        self._made.append(ref(made))
        return made


def _memory(value: _Recorded) -> int:
    return value.plain.untyped_storage().data_ptr()


def _finds(name: str, args: tuple[Any, ...]) -> bool:
    """Whether the shape of a call's result depends on values: ``where(x)`` or ``x[flags]``."""
    if name == "where":
        return len(args) == 1
    return name == "__getitem__" and any(
        isinstance(each, _Recorded) and each.plain.dtype in (torch.bool, torch.uint8)
        for each in _leaves(args[1])
    )


def _named(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, with defaults."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _out_of_place(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The out-of-place form of a call that changes its first argument, where there is one."""
    name = function.__name__
    if name.startswith("__i") and hasattr(Tensor, f"__{name[3:]}"):
        return getattr(Tensor, f"__{name[3:]}"), args, kwargs
    if not name.endswith("_"):
        named = _named(function, args, kwargs) if inspect.isfunction(function) else {}
        if not named.get("inplace"):
            return function, args, kwargs  # it returns its argument unchanged
        first = next(iter(named))
        return function, (named.pop(first),), named | {"inplace": False}
    homes = (Tensor,) if getattr(function, "__objclass__", None) else (torch, F)
    found = [each for home in homes if callable(each := getattr(home, name[:-1], None))]
    return (found or [function])[0], args, kwargs


def _with_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of ``x`` with ``x[index] = value``."""
    x = x.clone()
    x[index] = value
    return x


def _plain(value: Any) -> Any:
    return value.plain if isinstance(value, _Recorded) else value


def _merged(first: _Recorder, second: _Recorder) -> Recording:
    """The recording that both calls share, for any number of rows; raises `Unrecordable`."""
    if len(first.steps) != len(second.steps) or first.output != second.output:
        raise Unrecordable("its operations depend on the number of latents")

    def common(a: Any, b: Any) -> Any:
        if type(a) is not type(b):
            raise Unrecordable("its operations depend on the number of latents")
        if isinstance(a, tuple | list):
            if len(a) != len(b):
                raise Unrecordable("its operations depend on the number of latents")
            return type(a)([common(x, y) for x, y in zip(a, b, strict=True)])
        if isinstance(a, dict):
            return {name: common(value, b[name]) for name, value in a.items()}
        if isinstance(a, Tensor):
            return _constant(a, b, first.rows, second.rows)
        if type(a) is int and a != b and a * second.rows == b * first.rows and a % first.rows == 0:
            return Multiple(a // first.rows)
        if a != b:
            raise Unrecordable(f"it has arguments that depend on the number of latents: {a!r:.50}")
        return a

    steps = []
    for one, other in zip(first.steps, second.steps, strict=True):
        if one.function != other.function or one.kwargs.keys() != other.kwargs.keys():
            raise Unrecordable("its operations depend on the number of latents")
        if _takes_apart(one, first.shapes, second.shapes):
            raise Unrecordable("it splits the batch")
        args, kwargs = common(one.args, other.args), common(one.kwargs, other.kwargs)
        steps.append(Step(one.function, args, kwargs))
    return Recording(steps, first.output, first.shapes)


def _takes_apart(step: Step, *shapes: dict[Place, torch.Size]) -> bool:
    """Whether a step splits or slices a dimension whose size depends on the number of rows."""
    name = getattr(step.function, "__name__", "")
    if not step.args or not isinstance(step.args[0], Place):
        return False
    one, other = (each[step.args[0]] for each in shapes)
    if name in _SPLITS:
        by_position = step.args[2] if len(step.args) > 2 else 0
        dim = step.kwargs.get("dim", by_position)
        return bool(one[dim] != other[dim])
    if name != "__getitem__":
        return False
    index = step.args[1] if isinstance(step.args[1], tuple) else step.args[1:]
    cut = [isinstance(each, slice) and each != slice(None) for each in index]
    return any(here and m != n for here, m, n in zip(cut, one, other, strict=False))


def _constant(a: Tensor, b: Tensor, rows: int, fewer: int) -> Tensor | Rows:
    """A constant of both calls; `Rows` where it is one row, repeated for each row of the batch."""
    if a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b):
        return a.detach() if a.requires_grad else a
    repeated = a.shape[:1] == (rows,) and b.shape == (fewer, *a.shape[1:])
    if not repeated or not bool((a == b[:1]).all() and (b == a[:1]).all()):
        raise Unrecordable("it has constants that depend on the number of latents, or on chance")
    return Rows(a[:1].detach().clone())


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with everything in its tuples, lists and dictionaries changed."""
    if isinstance(value, tuple):
        return tuple(_mapped(change, each) for each in value)
    if isinstance(value, list):
        return [_mapped(change, each) for each in value]
    if isinstance(value, dict):
        return {name: _mapped(change, each) for name, each in value.items()}
    return change(value)
