"""Compressed files: what they may unpack to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from cogen_fast.support.files import size_of

MOST_UNPACKED = 2**28
"""Bytes that any file may unpack to, however small it is."""
MOST_RATIO = 16
"""How many times a file's own size it may unpack to beyond that: images and weights do less."""


def check_unpacked(name: str, packed: int, unpacked: int) -> None:
    """ValueError naming ``name`` where a file of ``packed`` bytes says it unpacks to too many."""
    most = max(MOST_UNPACKED, MOST_RATIO * packed)
    if unpacked > most:
        raise ValueError(
            f"{name}: expected at most {most:,} bytes in a compressed file of {packed:,}, got "
            f"{unpacked:,}; files that are not compressed may be of any size"
        )


@contextmanager
def opened_npz(name: str, file: BinaryIO) -> Iterator[Any]:
    """NumPy's archive of plain arrays, of a size that its file can promise.

    ValueError naming ``name`` where it is larger or no archive; what else is wrong with it is
    NumPy's or zipfile's error.
    """
    loaded = np.load(file, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError(f"{name}: expected an npz archive, got a single array")
    with loaded as archive:
        assert archive.zip is not None
        # zipfile unpacks no more of a member than its directory says.
        check_unpacked(name, size_of(file), sum(each.file_size for each in archive.zip.infolist()))
        yield archive


def array_of(name: str, archive: Any, member: str) -> npt.NDArray[Any]:
    """An array of an archive; ValueError naming ``name`` where the member is something else."""
    value = archive[member]
    if not isinstance(value, np.ndarray):  # NumPy hands over the bytes
        raise ValueError(f"{name}: expected an array {member!r}, got other bytes")
    return value
