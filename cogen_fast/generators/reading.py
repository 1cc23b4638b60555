"""Reading checkpoint files of unknown origin without ever running code that they bring."""

from __future__ import annotations

import re
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from cogen_fast.files import opened_npz

FileKind = Literal["safetensors", "npz", "torch"]

# Stand-ins are registered with torch process-wide while a file is read: one reader at a time, so
# that none removes them under another one's feet.
_stand_in_lock = threading.Lock()


def file_kind(path: Path) -> FileKind:
    """Container of the file, told by its content, not by its name.

    Raises OSError where it cannot be opened, ValueError where it is empty or a broken zip archive.
    """
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        raise ValueError("expected a checkpoint, got an empty file")
    if head[8:] == b"{":
        return "safetensors"
    return _zip_kind(path) if head.startswith(b"PK") else "torch"


def _zip_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"expected a checkpoint, got a damaged zip archive ({error})") from error
    return "npz" if any(name.endswith(".npy") for name in names) else "torch"


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors (on the CPU, independent of the file).

    Raises ValueError where the file is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), tensors
    except Exception as error:
        raise _damaged("a safetensors file", error) from error


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz archive; raises ValueError where it is damaged or holds Python objects."""
    try:
        with opened_npz(path) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:
        raise _damaged("an npz archive of plain arrays", error) from error


def read_torch(path: Path, stand_ins: Sequence[tuple[type, str]] = ()) -> Any:
    """Content of a file of `torch.save`, tensors on the CPU, by torch's weights-only reader.

    Args:
        stand_ins: (class, full name in the file): inert classes to put in place of pickled ones.
            They are known to torch only during this call.

    Raises:
        ValueError: the file asks for any other Python object (nothing of it is run), or is damaged.
    """
    try:
        with _stand_in_lock, torch.serialization.safe_globals(list(stand_ins)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise _damaged("a torch checkpoint", error) from None
        raise ValueError(
            f"expected tensors and plain data only, got a pickle that asks for {refused[1]}; "
            "refused, as loading it could run code of the file"
        ) from None  # torch's own text advises to switch the protection off


def _damaged(expected: str, error: Exception) -> ValueError:
    # Damaged bytes can raise nearly anything inside a parser, hence the broad `except`s above.
    text = str(error)
    unpickler = re.search(r"WeightsUnpickler error: (.*)", text)
    reason = unpickler[1] if unpickler else (text.strip() or "no reason given").splitlines()[0]
    return ValueError(
        f"expected {expected}, got damaged or unsupported data ({type(error).__name__}: {reason})"
    )
