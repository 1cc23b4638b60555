"""Reading regular files only, and writing them so that nothing is ever half-written."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from cogen_fast.support.arguments import abbreviated, kind_of_file, path_mode

SEEN_SECONDS = 120.0
_POLL_SECONDS = 0.2
# A writer touches its file more often than this: an older temporary file is of one that was killed.
_ABANDONED_SECONDS = 3600.0
_RANDOM = r"[a-z0-9_]{8}"  # what `tempfile` puts into a name
# Without O_NONBLOCK, opening a named pipe waits for a writer.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def open_regular(name: str, path: Path) -> BinaryIO:
    """The regular file at ``path``, behind links too, opened for reading.

    A pipe, socket or device is a ValueError at once, as are a loop of links and a name that cannot
    be; a folder, a file that is missing or must not be read is the OSError that Python has for it.
    All name the argument ``name``.
    """
    # Looked at before, as opening a device can do something, and after, for what has taken its
    # place meanwhile.
    mode = path_mode(name, path)
    if mode is None:
        raise FileNotFoundError(f"{name}: expected a file, found none at {path}")
    _check_regular(name, path, mode)
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    except OSError as error:
        raise type(error)(f"{name}: {path} cannot be read: {error.strerror}") from None
    try:
        _check_regular(name, path, os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def check_readable(name: str, path: Path) -> None:
    """Raise what `open_regular` raises, before any work is done that needs the file."""
    open_regular(name, path).close()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | _FLAGS)


def _check_regular(name: str, path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{name}: expected a file, got the folder {path}")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name}: expected a regular file, got {kind_of_file(mode)}, {path}")


def size_of(file: BinaryIO) -> int:
    """Bytes of an open regular file."""
    return os.fstat(file.fileno()).st_size


def read_text(name: str, path: Path) -> str:
    """The text of a regular file in UTF-8; ValueError for other bytes, or as `open_regular`."""
    with open_regular(name, path) as file:
        content = file.read()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: expected text in {path}, got other bytes ({error})") from None


def parse_json(name: str, text: str) -> Any:
    """What JSON from a file says; ValueError naming ``name`` for none, or one nested too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected JSON, got {abbreviated(text)} ({error})") from None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` a temporary file beside ``path``, flush it to disk, then rename it to ``path``.

    Whatever goes wrong, ``path`` holds either what it held or all of the new. What earlier writes
    to ``path`` that were killed have left beside it is removed, once it is an hour old.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    now = os.fstat(handle).st_mtime  # by the clock that other files in the folder have
    os.close(handle)
    temporary = Path(name)
    try:
        _remove_abandoned(path, now)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_abandoned(path: Path, now: float) -> None:
    """Old temporary files of ``path``. Their names are random: none is ever another writer's."""
    pattern = re.compile(re.escape(f".{path.name}.") + _RANDOM + re.escape(path.suffix))
    for name in filter(pattern.fullmatch, os.listdir(path.parent)):
        with suppress(OSError):  # another process has removed it, or it belongs to another user
            found = os.lstat(path.parent / name)
            if stat.S_ISREG(found.st_mode) and found.st_mtime < now - _ABANDONED_SECONDS:
                os.unlink(path.parent / name)


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
