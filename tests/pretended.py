"""A pretended device of torch's: without float64, like MPS, and strict about where tensors are.

Its tensors hold others on the CPU, so that it computes what the CPU computes, bit for bit. It is
made of torch's place for backends of others, of which a process has one; call `use` in a process of
its own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, library, nn
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
_ABSENT = (torch.float64, torch.complex128)


class Held(Tensor):
    """A tensor on the pretended device."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Any:
        if raw.dtype in _ABSENT:
            raise TypeError(f"{NAME} has no {raw.dtype}")
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.shape, strides=raw.stride(), dtype=raw.dtype, device=torch.device(NAME, 0)
        )
        made.raw = raw
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Held({self.raw})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


CALLS: Counter[str] = Counter()
"""How often each function was computed on the device."""
_COPIES = ("aten::_to_copy", "aten::copy_")
_INDEXING = ("aten::index", "aten::index_put_")  # devices take places from the CPU


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    here = [isinstance(each, Held) for each in tensors]
    wanted = kwargs.get("device")
    onto = any(here) if wanted is None else torch.device(wanted).type == NAME
    name = func._schema.name
    if any(here) and name not in (*_COPIES, *_INDEXING):
        strangers = [t for t, held in zip(tensors, here, strict=True) if not held and t.ndim]
        if strangers:
            raise RuntimeError(f"{name}: expected all tensors on {NAME}, got one on the CPU")
    for each in tensors:
        if onto and each.dtype in _ABSENT:  # a conversion after the copy to the device is allowed
            raise TypeError(f"{NAME} has no {each.dtype}")
    CALLS[name] += onto
    plain_args, plain = tree_map(_raw, args), tree_map(_raw, kwargs)
    if wanted is not None and torch.device(wanted).type == NAME:
        plain["device"] = torch.device("cpu")
    out = func(*plain_args, **plain)
    if name.endswith("_") and not name.endswith("__"):  # an op in place returns the same tensor
        return args[0]
    return tree_map(lambda t: Held(t) if isinstance(t, Tensor) else t, out) if onto else out


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, Held) else value


def _empty(size: Any, *args: Any, dtype: Any = None, device: Any = None, **options: Any) -> Held:
    return Held(torch.empty(size, dtype=dtype))


def _empty_strided(
    size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **options: Any
) -> Held:
    return Held(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, there: Tensor, non_blocking: bool = False) -> Tensor:
    """The copy within `torch.tensor` and its kind, which no dispatch mode sees."""
    _raw(there).copy_(_raw(source))
    return there


_LIBRARIES: list[library.Library] = []  # registrations must last as long as the process


def use() -> None:
    """Make the device in this process."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    # All other functions arrive at `Held`. These two make its tensors, also for copies from the
    # CPU.
    registered = library.Library("aten", "IMPL")
    registered.impl("empty.memory_format", _empty, "PrivateUse1")
    registered.impl("empty_strided", _empty_strided, "PrivateUse1")
    registered.impl("_copy_from", _copy_from, "PrivateUse1")
    _LIBRARIES.append(registered)


def moved(module: nn.Module) -> nn.Module:
    """The module with its weights on the device."""
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            part.register_parameter(name, nn.Parameter(weight.detach().to(NAME)))
        for name, value in list(part.named_buffers(recurse=False)):
            setattr(part, name, value.to(NAME))
    return module
