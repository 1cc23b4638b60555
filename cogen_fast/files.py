"""Writing files so that nothing is ever half-written, and reading arrays."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` a temporary file beside ``path``, flush it to disk, then rename it to ``path``.

    Whatever goes wrong, ``path`` holds either what it held or all of the new.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def opened_npz(path: Path) -> Iterator[Any]:
    """NumPy's archive of plain arrays; its file is closed also where it is damaged.

    NumPy by itself leaves the file of a damaged archive open. What is wrong with it is NumPy's or
    zipfile's error.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        yield archive
