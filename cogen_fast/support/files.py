"""Reading of regular files, and atomic writing, after which no file is half-written."""

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

WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.2
# A writer touches its file more often; an older temporary file is left by a killed writer.
_ABANDONED_SECONDS = 3600.0
_RANDOM = r"[a-z0-9_]{8}"  # the random part of a name by `tempfile`
# Without O_NONBLOCK, opening a named pipe waits for a writer.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def open_regular(name: str, path: Path) -> BinaryIO:
    """Open the regular file at ``path``, or to which it links, for reading.

    A pipe, a socket, a device, a loop of links or an invalid name raises ValueError at once. A
    folder, or a file that is missing or not readable, raises the corresponding OSError. All errors
    name the argument ``name``.
    """
    # Checked before opening, as opening a device can have effects, and after it, in case another
    # file has taken its place in between.
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
    """Raise the errors of `open_regular`, before any work is done which needs the file."""
    open_regular(name, path).close()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | _FLAGS)


def _check_regular(name: str, path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{name}: expected a file, got the folder {path}")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name}: expected a regular file, got {kind_of_file(mode)}, {path}")


def size_of(file: BinaryIO) -> int:
    """The size of an open regular file, in bytes."""
    return os.fstat(file.fileno()).st_size


def read_text(name: str, path: Path) -> str:
    """The text of a regular file in UTF-8. ValueError for other bytes; errors of `open_regular`."""
    with open_regular(name, path) as file:
        content = file.read()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: expected text in {path}, got other bytes ({error})") from None


def parse_json(name: str, text: str) -> Any:
    """The value of JSON text. ValueError, naming ``name``, if invalid or nested too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected JSON, got {abbreviated(text)} ({error})") from None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` a temporary file beside ``path``, flush it to disk, then rename it to ``path``.

    Whatever goes wrong, ``path`` has either its old content or all of the new. Temporary files left
    by earlier, killed writes to ``path`` are removed once they are an hour old.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    now = os.fstat(handle).st_mtime  # by the same clock as other files in the folder
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


def write_new(path: Path, write: Callable[[Path], object]) -> bool:
    """`write_atomically`, but only where there is nothing at ``path``; whether it was written."""
    try:
        path.open("x").close()  # takes the name, which another process may want too
    except FileExistsError:
        return False
    try:
        write_atomically(path, write)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _remove_abandoned(path: Path, now: float) -> None:
    """Remove old temporary files of ``path``. As names are random, no writer uses them again."""
    pattern = re.compile(re.escape(f".{path.name}.") + _RANDOM + re.escape(path.suffix))
    for name in filter(pattern.fullmatch, os.listdir(path.parent)):
        with suppress(OSError):  # another process removed it, or it belongs to another user
            found = os.lstat(path.parent / name)
            if stat.S_ISREG(found.st_mode) and found.st_mtime < now - _ABANDONED_SECONDS:
                os.unlink(path.parent / name)


def wait_for_files(missing: Callable[[], Path | None]) -> None:
    """Wait until ``missing`` returns None instead of a file that another process has written.

    A file in a common folder may take a while to appear on other machines. FileNotFoundError after
    `WAIT_SECONDS`.
    """
    end = time.monotonic() + WAIT_SECONDS
    while (path := missing()) is not None:
        if time.monotonic() > end:
            raise FileNotFoundError(
                f"out: expected a common folder of all processes, but another's {path} is missing"
            )
        time.sleep(_POLL_SECONDS)
