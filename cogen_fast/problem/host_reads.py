"""Whether a function waits for the device, which a CUDA graph cannot record.

Torch is asked twice: for each op, by a mode of its dispatcher, and by its own check of what waits,
which sees more but belongs to the whole process.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
# Ops that wait for the device: they give numbers to Python, look at them, or size outputs by them.
_READS = {
    _ATEN._local_scalar_dense.default,
    _ATEN.equal.default,
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.bincount.default,
    _ATEN._unique2.default,
    _ATEN.unique_dim.default,
    _ATEN.unique_consecutive.default,
    _ATEN.allclose.default,
    _ATEN._linalg_check_errors.default,
    _ATEN._linalg_eigh.default,
    _ATEN._linalg_svd.default,
    _ATEN.linalg_eig.default,
}
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default}
_COPIES = {_ATEN._to_copy.default, _ATEN.copy_.default}
_WAITED = "synchronizing CUDA operation"  # of the error that torch raises when it is asked to


class HostReadError(RuntimeError):
    """A function waited for the device, to read a number or to copy to or from the host."""


def rounding_of(dtype: torch.dtype) -> float:
    """The relative difference that counts as rounding: half of the digits of a type."""
    return math.sqrt(torch.finfo(dtype).eps)


class NoHostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises `HostReadError` where torch would wait for the device; in this thread only.

    ``coarsest`` becomes the coarsest float type that the ops take or give; TF32 counts as float16,
    which has as many digits.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.coarsest = torch.float64

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Whether `torch.compile` may go on; otherwise it gives up what it calls, for good."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _reads(func, args, kwargs) or _crosses_devices(func, args, kwargs):
            raise HostReadError(f"G, the operator or the misfit waits for the device ({func})")
        found = func(*args, **kwargs)
        self._note((*args, found))
        return found

    def _note(self, values: Iterable[Any]) -> None:
        if torch.get_float32_matmul_precision() != "highest":
            self.coarsest = max(self.coarsest, torch.float16, key=rounding_of)
        for value in values:
            if isinstance(value, Tensor) and value.is_floating_point():
                self.coarsest = max(self.coarsest, value.dtype, key=rounding_of)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises `HostReadError` where CUDA itself waits for the device, as far as torch can tell.

    The setting belongs to the process, so it is left alone where there are other threads, which may
    well wait.
    """
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if not initialized or _other_threads():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    try:
        _set_waiting("error")
        yield
    except RuntimeError as error:
        if _WAITED not in str(error):
            raise
        raise HostReadError("G, the operator or the misfit waits for the device") from error
    finally:
        _set_waiting(before)


def _other_threads() -> bool:
    """Whether there are other threads of Python than tqdm's, which never waits for a device."""
    others = [each for each in threading.enumerate() if each is not threading.current_thread()]
    return any(not type(each).__module__.startswith("tqdm") for each in others)


def _set_waiting(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it does not notice all
        torch.cuda.set_sync_debug_mode(mode)


def _reads(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether ``func`` reads values of the device, or copies values of Python to it."""
    if func is _ATEN.lift_fresh.default:  # the last step of `torch.tensor` and its like
        return bool(args[0].device.type != "cpu")
    if func is _ATEN.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return func in _READS or _indexes_by_flags(func, args)


def _indexes_by_flags(func: Any, args: Sequence[Any]) -> bool:
    """Whether ``func`` indexes by flags, so that the size of its output depends on values."""
    flags = (torch.bool, torch.uint8)
    return func in _INDEXING and any(each is not None and each.dtype in flags for each in args[1])


def _crosses_devices(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether ``func`` copies from one device to another, or indexes by what is on another."""
    if func in _INDEXING:
        indices = [each for each in args[1] if each is not None]
        return any(each.device.type != args[0].device.type for each in indices)
    if func not in _COPIES:
        return False
    devices = [each.device for each in args if isinstance(each, Tensor)]
    wanted = kwargs.get("device")
    devices += [] if wanted is None else [torch.device(wanted)]
    return len({device.type for device in devices}) > 1
