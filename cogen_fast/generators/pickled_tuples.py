"""How many values tuples in files of `torch.save` have, counted before torch reads the file.

A pair of one tuple twice takes a few bytes, and so does a pair of that: after sixty of them there
are 2^60 values. torch's weights-only reader computes hashes of keys, and would not come to an end.
"""

from __future__ import annotations

import pickletools
import zipfile
from typing import IO, Any, BinaryIO

_MOST = 4096  # values of a tuple, those of tuples in it included
_PICKLES = 5  # that a file begins with which is no zip archive
_ZIP = b"PK\x03\x04"
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_CALLS = ("REDUCE", "NEWOBJ", "BUILD")  # results may be tuples


class TooLargeTuple(ValueError):
    """A tuple of more values than the files of any known program have."""


def check_tuples(file: BinaryIO) -> None:
    """Raise `TooLargeTuple` where a pickle of the file has a tuple of more than 4096 values.

    Damaged bytes can raise nearly anything. The file is at its start afterwards.
    """
    file.seek(0)
    zipped = file.read(len(_ZIP)) == _ZIP  # torch decides by this, too
    file.seek(0)
    if zipped:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.filename.lower().endswith(".pkl"):  # torch finds names in any case
                    with archive.open(member) as pickled:
                        _check_pickle(pickled)
    else:
        for _ in range(_PICKLES):
            _check_pickle(file)
    file.seek(0)


def _check_pickle(file: IO[bytes]) -> None:
    """Follow the operations of a pickle with the number of values of each object in its place."""
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    place: Any
    for operation, place, _ in pickletools.genops(file):
        name = operation.name
        if name == "MARK":
            marks.append(len(stack))
        elif name in _PUTS:
            memo[int(place)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _GETS:
            stack.append(memo[int(place)])
        else:
            taken = _taken(operation, stack, marks)
            made = 1 + sum(taken) if name in (*_TUPLES, *_CALLS, "DUP") else 1
            if name in _TUPLES and made > _MOST:
                raise TooLargeTuple(
                    f"expected tuples of at most {_MOST:,} values, got one of more, which may be "
                    "tuples within tuples"
                )
            stack += [made] * len(operation.stack_after)


def _taken(operation: pickletools.OpcodeInfo, stack: list[int], marks: list[int]) -> list[int]:
    """What an operation takes from the stack."""
    before = operation.stack_before
    start = len(stack) - len(before)
    if pickletools.markobject in before:
        start = marks.pop() - before.index(pickletools.markobject)
    if start < 0:
        raise ValueError("an operation takes more values than there are")
    taken = stack[start:]
    del stack[start:]
    return taken
