"""Plain pickles of networks, as NVIDIA's StyleGAN2-ADA and StyleGAN3 programs write them.

Their networks carry their source text and are pickled through a function of the program. Nothing of
a file is ever imported, called or run: a small machine of our own carries out the operations of the
pickle on plain data. A name that the file asks for is only a text; the few that such files need
have a meaning here, and any other is refused.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cogen_fast.generators.checks import FLOATS
from cogen_fast.generators.pickled_tuples import check_tuples
from cogen_fast.support.arguments import abbreviated

_NUMBERS = {"f8": "d", "f4": "f", "i8": "q", "i4": "i", "b1": "?"}
_TENSORS = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)
_TENSORFLOW = "dnnlib.tflib"
_IGNORED = frozenset({"PROTO", "FRAME"})
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
_ARGUMENTS = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    ]
)
_MOST_DIMENSIONS, _LARGEST = 8, 2**48  # of a tensor, and of its sizes and strides


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
        return self._held(f"_{kind}", Tensor)

    def modules(self) -> dict[str, Persistent]:
        """Its sub-modules by name."""
        return self._held("_modules", Persistent)

    def _held(self, name: str, kind: type) -> dict[str, Any]:
        held = self.state.get(name, {})
        if not isinstance(held, Mapping):
            raise ValueError(
                f"{self.class_name}.{name}: expected values by name, got {abbreviated(held)}"
            )
        return {each: value for each, value in held.items() if isinstance(value, kind)}


class _Refused(ValueError):
    """A file that asks for what has no meaning here."""


@dataclass(frozen=True)
class _Name:
    """A name that the file asks for: a text, which is looked up in the table below only."""

    text: str


@dataclass
class _DType:
    """A NumPy type: its code, and the order of bytes."""

    code: Any
    order: str = "="


def read_pickle(file: BinaryIO, size: int) -> Any:
    """Content of a pickle of ``size`` bytes: plain data, tensors on the CPU, `Persistent` objects.

    Raises ValueError where the file is damaged, where it asks for any object that has no meaning
    here, or where its tensors claim more memory than it has.
    """
    try:
        file.seek(0)
        return _Machine(size).run(file)
    except _Refused:
        raise
    except Exception as error:  # damaged bytes can raise nearly anything
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise ValueError(f"expected a pickle of networks, got damaged data ({reason})") from None


class _Machine:
    """Carries out the operations of one pickle.

    Time and memory grow with the file alone: keys and members of sets are texts and whole numbers,
    whose hashes cost nothing, and bytes that are decoded again are counted again.
    """

    def __init__(self, size: int) -> None:
        # Bytes that storages and texts turned into bytes may still have, however often they occur.
        self._left = {"tensors": size, "texts": size}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._calls: dict[str, Callable[..., Any]] = {
            "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_tensor": _tensor,
            "torch.storage._load_from_bytes": self._storage,
            "_codecs.encode": self._bytes,
            "collections.OrderedDict": _mapping,
            "dnnlib.util.EasyDict": _mapping,
            "builtins.set": _set,
            "__builtin__.set": _set,
            "numpy.dtype": lambda code, *_: _DType(code),
            "numpy.core.multiarray.scalar": _scalar,
            "numpy._core.multiarray.scalar": _scalar,
        }

    def run(self, file: BinaryIO) -> Any:
        """What is on the stack when the pickle stops."""
        for operation, argument, _ in pickletools.genops(file):
            name = operation.name
            if name == "STOP":
                return self._stack.pop()
            if name in _IGNORED:
                continue
            if name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name in _ARGUMENTS:
                self._stack.append(argument)
            elif (step := getattr(self, f"_op_{name.lower()}", None)) is not None:
                step(argument)
            else:
                raise _Refused(f"expected a pickle of plain data, got its operation {name}")
        raise ValueError("it ends before its last operation")

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _op_mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _op_pop(self, _: Any) -> None:
        self._stack.pop()

    def _op_pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _op_dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _op_put(self, place: Any) -> None:
        self._memo[int(place)] = self._stack[-1]

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _op_get(self, place: Any) -> None:
        self._stack.append(self._memo[int(place)])

    _op_binget = _op_long_binget = _op_get

    def _op_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _op_list(self, _: Any) -> None:
        self._stack.append(self._since_mark())

    def _op_dict(self, _: Any) -> None:
        made: dict[Any, Any] = {}
        self._fill(made, self._since_mark())
        self._stack.append(made)

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise ValueError("too few values on its stack")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _op_tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def _op_tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def _op_tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def _op_append(self, _: Any) -> None:
        value = self._stack.pop()
        self._target(list).append(value)

    def _op_appends(self, _: Any) -> None:
        items = self._since_mark()
        self._target(list).extend(items)

    def _op_setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._fill(self._target(dict), [key, value])

    def _op_setitems(self, _: Any) -> None:
        items = self._since_mark()
        self._fill(self._target(dict), items)

    def _op_additems(self, _: Any) -> None:
        items = self._since_mark()
        self._target(set).update(map(_key, items))

    def _op_frozenset(self, _: Any) -> None:
        self._stack.append(frozenset(map(_key, self._since_mark())))

    def _target(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise _Refused(f"expected a {kind.__name__}, got {abbreviated(self._stack[-1])}")
        return self._stack[-1]

    @staticmethod
    def _fill(target: dict[Any, Any], items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _op_global(self, names: str) -> None:
        self._stack.append(self._named(*names.split(" ", 1)))

    def _op_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise _Refused(f"expected a name as text, got {abbreviated(name)}")
        self._stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> _Name:
        """The name; ValueError where it has no meaning here."""
        asked = f"{module}.{name}"
        if asked.startswith(_TENSORFLOW):
            raise _Refused(
                "expected a network of PyTorch, got one of the original TensorFlow program; its "
                "successor stylegan2-ada-pytorch converts it (legacy.py)"
            )
        if asked not in self._calls:
            raise _Refused(
                f"expected tensors and plain data only, got a pickle that asks for "
                f"{abbreviated(asked)}; refused, as loading it could run code of the file"
            )
        return _Name(asked)

    def _op_reduce(self, _: Any) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise _Refused(f"expected a call of a name, got {abbreviated(name)}")
        self._stack.append(self._calls[name.text](*arguments))

    _op_newobj = _op_reduce

    def _op_build(self, _: Any) -> None:
        state, built = self._stack.pop(), self._stack[-1]
        if isinstance(built, _DType):
            if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
                built.order = state[1]
        elif type(built) is not dict:  # attributes of mappings say nothing of a network
            raise _Refused(f"expected plain data, got attributes for {abbreviated(built)}")

    def _spend(self, kind: str, count: int) -> None:
        self._left[kind] -= count
        if self._left[kind] < 0:
            raise _Refused(f"expected {kind} of at most the file's size, got larger ones")

    def _bytes(self, text: Any, encoding: Any = "latin1") -> bytes:
        """Bytes as protocol 2 of Python 3 writes them."""
        if not isinstance(text, str) or encoding != "latin1":
            raise _Refused(f"expected bytes written as latin1 text, got {abbreviated(text)}")
        self._spend("texts", len(text))
        return text.encode("latin1")

    def _storage(self, content: Any) -> Any:
        """The storage that `torch.save` wrote into ``content``."""
        if not isinstance(content, bytes):
            raise _Refused(f"expected bytes of a storage, got {type(content).__name__}")
        self._spend("tensors", len(content))
        if content.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > len(content):
                raise _Refused(
                    f"expected storages that are not compressed, got {unpacked:,} bytes in "
                    f"{len(content):,}"
                )
        check_tuples(io.BytesIO(content))
        storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(storage, torch.storage.TypedStorage):
            raise _Refused(f"expected a storage, got {type(storage).__name__}")
        if storage._untyped_storage.nbytes() > len(content):  # public names of it only warn
            raise _Refused("expected tensors of at most the file's size, got larger ones")
        return storage


def _key(value: Any) -> Any:
    if type(value) not in (str, int, bool):
        raise _Refused(f"expected a text or a whole number as key, got {abbreviated(value)}")
    return value


def _mapping(*items: Any) -> dict[Any, Any]:
    if items and items != ([],):
        raise _Refused(f"expected an empty mapping, got {abbreviated(items)}")
    return {}


def _set(members: Any = ()) -> set[Any]:
    if not isinstance(members, list | tuple):
        raise _Refused(f"expected members of a set, got {abbreviated(members)}")
    return set(map(_key, members))


def _scalar(kind: Any, raw: Any = b"") -> float:
    if (
        not isinstance(kind, _DType)
        or not isinstance(kind.code, str)
        or kind.code not in _NUMBERS
        or not isinstance(raw, bytes)
    ):
        raise _Refused(f"expected a plain number, got {abbreviated(raw)}")
    (value,) = struct.unpack(f"{kind.order}{_NUMBERS[kind.code]}", raw)
    return float(value)


def _persistent(meta: Any) -> Persistent:
    if (
        type(meta) is not dict
        or meta.get("type") != "class"
        or not isinstance(meta.get("class_name"), str)
        or type(meta.get("state")) is not dict
    ):
        raise _Refused(f"expected an object with class_name and state, got {abbreviated(meta)}")
    return Persistent(meta["class_name"], meta["state"])


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise _Refused(f"expected a tensor in a parameter, got {type(tensor).__name__}")
    return tensor


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """The tensor, if its entries all lie in the storage."""
    if not isinstance(storage, torch.storage.TypedStorage) or storage.dtype not in _TENSORS:
        raise _Refused(f"expected a tensor of plain numbers, got {type(storage).__name__}")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise _Refused(f"expected a shape and as many strides, got {abbreviated(size)}")
    whole = (offset, *size, *stride)
    if len(size) > _MOST_DIMENSIONS or any(
        type(number) is not int or not 0 <= number < _LARGEST for number in whole
    ):
        raise _Refused(f"expected a shape and strides, got {abbreviated(whole)}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    room = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    if math.prod(size) > room or (math.prod(size) and last >= room):
        raise _Refused(f"expected a tensor within its storage, got shape {abbreviated(size)}")
    empty = torch.empty(0, dtype=storage.dtype, device="cpu")
    return empty.set_(storage._untyped_storage, offset, size, stride)
