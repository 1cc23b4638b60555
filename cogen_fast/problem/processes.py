"""One run by several processes: the first runs the method, all of them evaluate the generator.

The process of rank 0 samples as if it were alone. Wherever it evaluates a potential for many
latents, each process evaluates a contiguous share of them, and the first one puts the values
together. So there is one sampler, one clock and one set of files, and it does not matter whether
two machines round alike. The others call the same function with the same arguments, answer until
the run ends, and are given its result or its error.
"""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from cogen_fast.problem.compute import Compute
from cogen_fast.problem.density import GeneratorPotential, What
from cogen_fast.support.arguments import abbreviated
from cogen_fast.support.processes import Channel, Message, joined, packed

_T = TypeVar("_T")
# Messages. The first one of a helper is _READY or _FAILED. Then it is sent _WORK, which it answers
# by _VALUES or _FAILED, any number of times, and _DONE or _FAILED at the end.
_READY, _WORK, _VALUES, _DONE, _FAILED = range(5)
_WHAT: tuple[What, ...] = get_args(What)
LEAST_ROWS = 4
"""The fewest latents of a share, as matrix products of fewer rows are often computed otherwise."""
_SAME = 1e-3  # relative difference of values that counts as rounding


def shares(rows: int, processes: int, max_batch: int | None = None) -> list[tuple[int, int]]:
    """The first and the last row (excluded) of each process's share, in the order of their ranks.

    Calls of ``max_batch`` rows stay whole where there are enough of them or they are very small, so
    that the generator is called with the same latents as by one process. Otherwise a share has at
    least `LEAST_ROWS` rows. Shares of the last processes may be missing.
    """
    call = rows if max_batch is None else max_batch
    whole = call <= LEAST_ROWS or call * processes <= rows
    unit = call if whole else 1
    units = -(-rows // unit)
    parts = min(processes, units if whole else max(rows // LEAST_ROWS, 1))
    bounds = [min(rows, unit * -(-units * part // parts)) for part in range(parts + 1)]
    return list(pairwise(bounds))


class Alone:
    """A process that makes a run without others."""


class Several:
    """This process and the others of a run, of which the one of rank 0 leads.

    ``max_batch`` is that of the run. Used inside `team`, which tells errors to the others.
    """

    def __init__(self, channel: Channel, max_batch: int | None) -> None:
        self.channel, self.max_batch = channel, max_batch
        self._listening: set[int] | None = None  # helpers that wait for word; None before they met
        self._told = False  # whether the leader knows that this helper has failed, or has ended
        self._interrupts = _Interrupts()

    def note(self, whole_runs: object) -> str:
        """A note for the result; ``whole_runs``, if there are any, are made in one call each."""
        if whole_runs is not None:
            return f"processes: one of {self.channel.size} made the run, in one call in C++"
        return f"processes: {self.channel.size} processes share the evaluations of G"

    def led(
        self,
        arguments: Mapping[str, str],
        values: Tensor,
        potentials: Sequence[GeneratorPotential],
        like: Tensor,
        work: Callable[[], _T],
    ) -> _T:
        """``work()`` of the leader, for which all evaluate ``potentials`` of rows ``like`` others.

        Returns its value in every process. ``arguments`` are what all processes must have in
        common, and ``values`` what their generators give up to rounding; ValueError where they
        differ.
        """
        if not self.channel.leads:
            self.channel.send(0, _READY, content=packed((dict(arguments), values)))
            return self._helped(potentials, like)  # type: ignore[no-any-return]
        self._meet(arguments, values)
        for number, potential in enumerate(potentials):
            potential.spread = partial(self._spread, number)
        value = work()
        self._end(_DONE, packed(value))
        return value

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others of an error; Ctrl-C waits until nobody is in the middle of an answer."""
        try:
            with self._interrupts.held():
                yield
            if self.channel.leads:
                self._interrupts.deliver()
        except BaseException as error:
            self._tell(error)
            raise

    def _tell(self, error: BaseException) -> None:
        self.channel.told = error
        if self.channel.leads:
            if self._listening is None:
                self._openings()
            self._end(_FAILED, packed(_portable(error)))
        elif not self._told:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._told = True
        with suppress(ConnectionError):
            self.channel.send(0, _FAILED, content=packed(_portable(error)))

    def _meet(self, arguments: Mapping[str, str], values: Tensor) -> None:
        """Wait for the helpers; raise the first error of one, and ValueError where they differ."""
        openings = self._openings()
        for opening in openings.values():
            _raise_failure(opening)
        for rank, opening in openings.items():
            assert isinstance(opening, Message)
            found, theirs = opening.value
            if difference := _difference(arguments, found) or _otherwise(values, theirs):
                raise ValueError(
                    "processes: expected the same generator, data and settings in every process, "
                    f"got {difference} in process {rank}"
                )

    def _openings(self) -> dict[int, Message | ConnectionError]:
        openings = {rank: self._received(rank) for rank in self.channel.others}
        self._listening = {rank for rank, each in openings.items() if _kind(each) == _READY}
        return openings

    def _received(self, rank: int) -> Message | ConnectionError:
        try:
            return self.channel.receive(rank)
        except ConnectionError as error:
            return error

    def _end(self, kind: int, content: Tensor) -> None:
        """Send a last message to the helpers that wait for one."""
        waiting, self._listening = self._listening or set(), set()
        for rank in sorted(waiting):
            with suppress(ConnectionError):
                self.channel.send(rank, kind, content=content)

    def _spread(
        self, number: int, potential: GeneratorPotential, what: What, rows: Tensor
    ) -> tuple[Tensor, ...]:
        """What all processes compute of ``rows``. Errors are raised when everybody has answered."""
        self._interrupts.deliver()
        (_, mine), *others = shares(len(rows), self.channel.size, self.max_batch)
        if not others:
            return potential.of_rows(what, rows, 0, len(rows))
        kind = _WHAT.index(what) + len(_WHAT) * number
        asked = {
            rank: self._asked(rank, (kind, len(rows), start), rows[start:stop])
            for rank, (start, stop) in enumerate(others, 1)
        }
        own = _tried(lambda: potential.of_rows(what, rows[:mine], 0, len(rows)))
        answers = [self._answer(rank, wait) for rank, wait in asked.items()]
        if isinstance(own, BaseException):
            raise own
        for answer in answers:
            _raise_failure(answer)
        parts = [own]
        for answer, (start, stop) in zip(answers, others, strict=True):
            assert isinstance(answer, Message)
            parts.append(_unpacked(answer.content, own, stop - start))
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    def _asked(self, rank: int, numbers: tuple[int, int, int], rows: Tensor) -> Callable[[], None]:
        """Begin to ask a helper; the function that is returned waits until it has been asked."""
        try:
            return self.channel.post(rank, _WORK, numbers, _bytes(rows))
        except ConnectionError as error:
            return partial(_raise, error)

    def _answer(self, rank: int, wait: Callable[[], None]) -> Message | ConnectionError:
        try:
            wait()
            answer = self.channel.receive(rank)
        except ConnectionError as error:
            self._forget(rank)
            return error
        if answer.kind == _FAILED:
            self._forget(rank)
        return answer

    def _forget(self, rank: int) -> None:
        assert self._listening is not None
        self._listening.discard(rank)

    def _helped(self, potentials: Sequence[GeneratorPotential], like: Tensor) -> Any:
        """Answer the leader until it ends. Returns its value or raises its error."""
        while True:
            try:
                message = self.channel.receive(0)
            except ConnectionError:
                self._told = True
                raise
            if message.kind != _WORK:
                self._told = True
                _raise_failure(message)
                return message.value
            kind, total, start = message.numbers
            number, what = divmod(kind, len(_WHAT))
            rows = message.content.view(like.dtype).reshape(-1, like.shape[1]).to(like.device)
            values = potentials[number].of_rows(_WHAT[what], rows, start, total)
            self.channel.send(0, _VALUES, content=torch.cat([_bytes(each) for each in values]))


Team = Alone | Several


@contextmanager
def team(compute: Compute) -> Iterator[Team]:
    """The processes that share a run, if ``compute`` asks for it and there are several."""
    channel = joined() if compute.processes else None
    if channel is None:
        yield Alone()
        return
    found = Several(channel, compute.max_batch)
    with found.telling():
        yield found


def _bytes(values: Tensor) -> Tensor:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8)


def _unpacked(content: Tensor, like: tuple[Tensor, ...], rows: int) -> tuple[Tensor, ...]:
    """The tensors in a content, which have ``rows`` rows and are otherwise ``like`` others."""
    sizes = [rows * each[0].numel() * each.element_size() for each in like]
    return tuple(
        part.clone().view(each.dtype).reshape(rows, *each.shape[1:]).to(each.device)
        for part, each in zip(torch.split(content, sizes), like, strict=True)
    )


def _tried(work: Callable[[], _T]) -> _T | BaseException:
    """The value of ``work()``, or its error."""
    try:
        return work()
    except BaseException as error:
        return error


def _kind(answer: Message | ConnectionError) -> int:
    return answer.kind if isinstance(answer, Message) else _FAILED


def _raise_failure(answer: Message | ConnectionError) -> None:
    """Raise the error of a process that has failed or ended."""
    if isinstance(answer, ConnectionError):
        raise answer
    if answer.kind == _FAILED:
        raise answer.value


def _raise(error: BaseException) -> None:
    raise error


def _portable(error: BaseException) -> BaseException:
    """The error, or one that says the same where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of a class that the user has defined
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """The first argument that differs, in words."""
    for name in sorted({*ours, *theirs}):
        mine, other = ours.get(name), theirs.get(name)
        if mine != other:
            return f"{name} {abbreviated(mine)} in process 0 and {abbreviated(other)}"
    return None


def _otherwise(ours: Tensor, theirs: Tensor) -> str | None:
    """What to say where the values differ by more than rounding."""
    if ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= _SAME * ours.abs().max()):
        return None
    return "a generator, operator or misfit with other values"


class _Interrupts:
    """Ctrl-C while processes talk: it is noted, and raised at most once, where `deliver` is called.

    ``torchrun`` passes Ctrl-C on to processes that a terminal has told of it already.
    """

    def __init__(self) -> None:
        self._came = self._given = False
        self._before: Any = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Note Ctrl-C instead of raising it, in the main thread, which alone is given signals."""
        self._before = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        if not main or not callable(self._before):
            yield
            return
        signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._before)

    def deliver(self) -> None:
        """Raise KeyboardInterrupt, or do what the script does at Ctrl-C, if it has come."""
        if self._came and not self._given:
            self._given = True
            self._before(signal.SIGINT, None)

    def _note(self, *_: Any) -> None:
        self._came = True
