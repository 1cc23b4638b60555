"""Reading checkpoint files of unknown origin without ever running code that they hold."""

from __future__ import annotations

import re
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from cogen_fast.generators.checks import is_plain
from cogen_fast.generators.pickled_tuples import TooLargeTuple, check_tuples
from cogen_fast.support.archives import array_of, opened_npz
from cogen_fast.support.files import size_of

_REASON = 300  # most characters of a parser's message, which may quote the file
FileKind = Literal["safetensors", "npz", "pickle", "torch"]
# Files of torch.save that are not zip archives begin with a pickle of one large number.
_LEGACY_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")

# Stand-ins are registered with torch for the whole process while a file is read. One thread reads
# at a time, so that none removes the stand-ins of another.
_stand_in_lock = threading.Lock()


def file_kind(file: BinaryIO) -> FileKind:
    """The container format of the file, recognised by its content and not by its name.

    Raises ValueError where it is empty, a broken zip archive, or a compressed archive of torch.
    """
    file.seek(0)
    head = file.read(len(_LEGACY_TORCH))
    if not head:
        raise ValueError("expected a checkpoint, got an empty file")
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK"):
        return _zip_kind(file)
    return "pickle" if _is_pickle(head) else "torch"


def _is_pickle(head: bytes) -> bool:
    """Whether a plain pickle begins so: by its protocol, and not as torch's own files do."""
    return (
        head[:1] == b"\x80"
        and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
        and (head != _LEGACY_TORCH)
    )


def _zip_kind(file: BinaryIO) -> FileKind:
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"expected a checkpoint, got a damaged zip archive ({error})") from error
    if any(member.filename.endswith(".npy") for member in members):
        return "npz"
    unpacked = sum(member.file_size for member in members)
    if unpacked > size_of(file):
        raise ValueError(
            "expected a torch checkpoint, which torch.save never compresses, got "
            f"{unpacked:,} bytes in a file of {size_of(file):,}"
        )
    return "torch"


def read_safetensors(file: BinaryIO) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors (on the CPU, independent of the file).

    Raises ValueError where the file is damaged.
    """
    try:
        with safe_open(_name_of(file), framework="pt") as content:
            tensors = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
            return dict(content.metadata() or {}), tensors
    except Exception as error:
        raise _damaged("a safetensors file", error) from error


def _name_of(file: BinaryIO) -> str:
    """A name of this open file, where the system has one, even if its path now leads elsewhere."""
    descriptor = Path(f"/proc/self/fd/{file.fileno()}")
    return str(descriptor if descriptor.exists() else file.name)


def read_npz(file: BinaryIO) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz archive.

    Raises ValueError where it is damaged or holds Python objects.
    """
    file.seek(0)
    try:
        with opened_npz("npz", file) as archive:
            return {name: array_of("npz", archive, name) for name in archive.files}
    except Exception as error:
        raise _damaged("an npz archive of plain arrays", error) from error


def read_torch(file: BinaryIO, stand_ins: Sequence[tuple[type, str]] = ()) -> Any:
    """The content of a file of `torch.save`, tensors on the CPU, by torch's weights-only reader.

    Args:
        stand_ins: pairs of a class and a full name in the file: inert classes that take the place
            of pickled ones. torch knows them only during this call.

    Raises:
        ValueError: the file is damaged, or asks for any other Python object (nothing of which is
            run).
    """
    try:
        check_tuples(file)
        with _stand_in_lock, torch.serialization.safe_globals(list(stand_ins)):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except TooLargeTuple:
        raise
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise _damaged("a torch checkpoint", error) from None
        raise ValueError(
            "expected tensors and plain data only, got a pickle that asks for "
            f"{refused[1][:_REASON]}; refused, as loading it could run code of the file"
        ) from None  # torch's own message advises to switch the protection off
    _check_sizes(content, size_of(file))
    return content


def _check_sizes(content: Any, size: int) -> None:
    """ValueError where tensors claim more memory than their file has: a pickle can ask for any."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    left = [content]  # no recursion: pickled content may be nested to any depth
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if is_plain(value):
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            left.extend(value.values())
        elif isinstance(value, list | tuple | set):
            left.extend(value)
    if (claimed := sum(storages.values())) > size:
        raise ValueError(
            f"expected tensors of at most the file's {size:,} bytes, got some of {claimed:,}"
        )


def _damaged(expected: str, error: Exception) -> ValueError:
    # Damaged bytes can raise nearly any exception inside a parser, hence `except Exception` above.
    text = str(error)
    unpickler = re.search(r"WeightsUnpickler error: (.*)", text)
    reason = unpickler[1] if unpickler else (text.strip() or "no reason given").splitlines()[0]
    reason = reason[:_REASON]
    return ValueError(
        f"expected {expected}, got damaged or unsupported data ({type(error).__name__}: {reason})"
    )
