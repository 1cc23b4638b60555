"""Writing files so that nothing is ever half-written, finding those of others, reading arrays."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SEEN_SECONDS = 120.0
_POLL_SECONDS = 0.2


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


def until_seen(missing: Callable[[], Path | None]) -> None:
    """Until no file is ``missing`` of those that other processes have written in a common folder.

    Several machines may take a while to see them. Raises FileNotFoundError after `SEEN_SECONDS`.
    """
    end = time.monotonic() + SEEN_SECONDS
    while (path := missing()) is not None:
        if time.monotonic() > end:
            raise FileNotFoundError(
                f"out: expected one folder for all processes, but {path} of another is not there"
            )
        time.sleep(_POLL_SECONDS)


@contextmanager
def opened_npz(path: Path) -> Iterator[Any]:
    """NumPy's archive of plain arrays; its file is closed also where it is damaged.

    NumPy by itself leaves the file of a damaged archive open. What is wrong with it is NumPy's or
    zipfile's error.
    """
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        yield archive
