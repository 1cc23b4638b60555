"""Plain pickles of networks, as NVIDIA's StyleGAN2-ADA and StyleGAN3 programs write them.

Their networks carry their source text and are pickled through a function of the program. Nothing
of a file is ever imported or run: each name that such files ask for has an inert stand-in of its
own here, made anew for each file so that no file can change what the next one meets, and any other
name is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cogen_fast.generators.checks import FLOATS
from cogen_fast.support.arguments import abbreviated

# Python hashes tuples by recursion: deeper nests than so many could exhaust the C stack.
_MOST_TUPLES = 20_000
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"})
_NUMBERS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "b1": "?"}
_TENSORFLOW = "dnnlib.tflib"


@dataclass(frozen=True)
class Persistent:
    """What a file says of one object of its program: the name of its class, and its attributes."""

    class_name: str
    state: Mapping[str, Any]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or ``default`` where the file has none of that name."""
        return self.state.get(name, default)

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Its parameters or buffers (``kind``), without those that are None."""
        held = self.state.get(f"_{kind}", {})
        if not isinstance(held, Mapping):
            raise ValueError(f"{self.class_name}._{kind}: expected named tensors, got {type(held)}")
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}

    def modules(self) -> dict[str, Persistent]:
        """Its sub-modules by name."""
        held = self.state.get("_modules", {})
        if not isinstance(held, Mapping):
            raise ValueError(f"{self.class_name}._modules: expected modules, got {type(held)}")
        return {name: value for name, value in held.items() if isinstance(value, Persistent)}


class _Refused(ValueError):
    """A file that asks for what has no stand-in."""


def read_pickle(file: BinaryIO, size: int) -> Any:
    """Content of a pickle of ``size`` bytes: plain data, tensors on the CPU, `Persistent` objects.

    Raises ValueError where the file is damaged, where it asks for any object that has no stand-in,
    or where its tensors claim more memory than it has.
    """
    try:
        file.seek(0)
        _check_nesting(file)
        file.seek(0)
        content = _Reader(file, size).load()
    except _Refused:
        raise
    except Exception as error:  # damaged bytes can raise nearly anything inside the unpickler
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise ValueError(f"expected a pickle of networks, got damaged data ({reason})") from None
    return content


def _check_nesting(file: BinaryIO) -> None:
    tuples = sum(operation.name in _TUPLES for operation, _, _ in pickletools.genops(file))
    if tuples > _MOST_TUPLES:
        raise _Refused(f"expected at most {_MOST_TUPLES:,} tuples in a pickle, got {tuples:,}")


class _Reader(pickle.Unpickler):
    """An unpickler that knows the stand-ins and nothing else."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file)
        self._left = size  # bytes that tensors may still claim
        self._stand_ins = {
            "torch_utils.persistence._reconstruct_persistent_obj": _fresh(_persistent),
            "torch._utils._rebuild_parameter": _fresh(_parameter),
            "torch._utils._rebuild_tensor_v2": _fresh(_tensor),
            "torch._utils._rebuild_tensor": _fresh(_tensor),
            "torch.storage._load_from_bytes": self._storage,
            "_codecs.encode": _fresh(_bytes),
            "collections.OrderedDict": OrderedDict,
            "builtins.set": set,
            "__builtin__.set": set,
            "dnnlib.util.EasyDict": type("EasyDict", (dict,), {}),
            "numpy.dtype": type("DType", (_DType,), {}),
            "numpy.core.multiarray.scalar": _fresh(_scalar),
            "numpy._core.multiarray.scalar": _fresh(_scalar),
        }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name; ValueError for any other."""
        asked = f"{module}.{name}"
        if asked.startswith(_TENSORFLOW):
            raise _Refused(
                "expected a network of PyTorch, got one of the original TensorFlow program; its "
                "successor stylegan2-ada-pytorch converts it (legacy.py)"
            )
        if asked not in self._stand_ins:
            raise _Refused(
                f"expected tensors and plain data only, got a pickle that asks for "
                f"{abbreviated(asked)}; refused, as loading it could run code of the file"
            )
        return self._stand_ins[asked]

    def persistent_load(self, pid: Any) -> Any:
        """None are in such files."""
        raise _Refused("expected a pickle in one file, got one that refers to others")

    def _storage(self, content: Any) -> Any:
        """The storage that `torch.save` wrote into ``content``."""
        if not isinstance(content, bytes):
            raise _Refused(f"expected bytes of a storage, got {type(content).__name__}")
        if content.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > len(content):
                raise _Refused(
                    f"expected storages that are not compressed, got {unpacked:,} bytes in "
                    f"{len(content):,}"
                )
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.storage.TypedStorage):
            raise _Refused(f"expected a storage, got {type(storage).__name__}")
        claimed = storage._untyped_storage.nbytes()  # public names of it only warn
        self._left -= claimed
        if claimed > len(content) or self._left < 0:
            raise _Refused("expected tensors of at most the file's size, got larger ones")
        return storage


def _fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """A new function that calls this one: a pickle may set attributes of what it is given."""
    return lambda *arguments: function(*arguments)


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes as the pickle protocol 2 of Python 3 writes them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"expected bytes written as latin1 text, got {abbreviated(text)}")
    return text.encode("latin1")


class _DType:
    """A NumPy type by its name, in this machine's or in a stated order of bytes."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.code, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]


def _scalar(kind: Any, raw: Any = b"") -> float:
    if not isinstance(kind, _DType) or kind.code not in _NUMBERS or not isinstance(raw, bytes):
        raise _Refused(f"expected a plain number, got {abbreviated(raw)}")
    (value,) = struct.unpack(f"{kind.order}{_NUMBERS[kind.code]}", raw)
    return float(value)


def _persistent(meta: Any) -> Persistent:
    if (
        not isinstance(meta, Mapping)
        or meta.get("type") != "class"
        or not isinstance(meta.get("class_name"), str)
        or not isinstance(meta.get("state"), Mapping)
    ):
        raise _Refused(f"expected a pickled object with class_name and state, got {type(meta)}")
    return Persistent(meta["class_name"], meta["state"])


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise _Refused(f"expected a tensor in a parameter, got {type(tensor).__name__}")
    return tensor


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """The tensor, if its entries all lie in the storage."""
    whole = (offset, *_numbers(size), *_numbers(stride))
    if not isinstance(storage, torch.storage.TypedStorage) or storage.dtype not in (
        *FLOATS,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    ):
        raise _Refused(f"expected a tensor of plain numbers, got {abbreviated(storage)}")
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in whole):
        raise _Refused(f"expected a shape and strides, got {abbreviated(size)}")
    if len(size) != len(stride):
        raise _Refused(f"expected as many strides as sizes, got {len(stride)} and {len(size)}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    room = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    if math.prod(size) > room or (math.prod(size) and last >= room):
        raise _Refused(f"expected a tensor within its storage, got shape {abbreviated(size)}")
    empty = torch.empty(0, dtype=storage.dtype, device="cpu")
    return empty.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


def _numbers(value: Any) -> Sequence[Any]:
    if not isinstance(value, tuple):
        raise _Refused(f"expected a tuple of numbers, got {abbreviated(value)}")
    return value
