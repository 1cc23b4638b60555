"""Compressed files: written, and read with limits on their unpacked size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from cogen_fast.support.files import size_of

MOST_UNPACKED = 2**28
"""Bytes to which any file may unpack, however small it is."""
MOST_RATIO = 16
"""A larger file may unpack to this multiple of its size; images and weights need less."""


def check_unpacked(name: str, packed: int, unpacked: int) -> None:
    """Raise ValueError, naming ``name``, if ``packed`` bytes would unpack to too many bytes."""
    most = max(MOST_UNPACKED, MOST_RATIO * packed)
    if unpacked > most:
        raise ValueError(
            f"{name}: expected at most {most:,} bytes in a compressed file of {packed:,}, got "
            f"{unpacked:,}; uncompressed files may have any size"
        )


@contextmanager
def opened_npz(name: str, file: BinaryIO) -> Iterator[Any]:
    """NumPy's archive of plain arrays in ``file``, closed at the end of the context.

    ValueError, naming ``name``, where it would unpack to too many bytes or is not an archive. Other
    defects raise the errors of NumPy or zipfile.
    """
    loaded = np.load(file, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError(f"{name}: expected an npz archive, got a single array")
    with loaded as archive:
        assert archive.zip is not None
        # zipfile unpacks no more of a member than the archive's directory declares.
        check_unpacked(name, size_of(file), sum(each.file_size for each in archive.zip.infolist()))
        yield archive


def array_of(name: str, archive: Any, member: str) -> npt.NDArray[Any]:
    """An array of an archive. ValueError, naming ``name``, where the member is not an array."""
    value = archive[member]
    if not isinstance(value, np.ndarray):  # NumPy returns other members as bytes
        raise ValueError(f"{name}: expected an array {member!r}, got other bytes")
    return value


def write_npz(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """Write ``arrays`` by name as a compressed archive, whatever the suffix of ``path``."""
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
