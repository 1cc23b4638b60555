"""Checks of the tensors that a fast op takes, the same for every device.

A wrong tensor raises an error that names the argument, what was expected and what came; a right one
is returned, as a copy if it is not contiguous. Nothing here reads values on a device, because that
would wait for it.

These checks run hundreds of thousands of times on tensors of a few hundred numbers, so they are
written to cost little where nothing is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

CPU = torch.device("cpu")


def check(
    name: str,
    value: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> Tensor:
    """``value``, or a contiguous copy of it.

    Raises:
        TypeError: it is not a dense tensor of that dtype.
        ValueError: it has another shape or lies on another device.
    """
    try:
        if (
            value.shape == shape
            and value.dtype is dtype
            and value.device == device
            and value.is_contiguous()
            and not value.is_neg()
        ):
            return value
    except (AttributeError, RuntimeError):  # no tensor, or a sparse one: `_require` names it
        pass
    _require(name, value, shape, dtype, device)
    return value.resolve_neg().contiguous()


def check_in_place(
    name: str,
    value: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> Tensor:
    """``value``, which must be contiguous already; raises as `check` does."""
    if check(name, value, shape, dtype, device) is not value:
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {value.stride()}")
    return value


def require_tensor(name: str, value: Tensor) -> Tensor:
    """``value``; TypeError if it is not a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {value.layout}")
    return value


def require_float(name: str, dtype: torch.dtype) -> torch.dtype:
    """``dtype``; TypeError if it is neither float32 nor float64."""
    if dtype is not torch.float32 and dtype is not torch.float64:
        raise TypeError(f"{name}: expected dtype torch.float32 or torch.float64, got {dtype}")
    return dtype


def _require(
    name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    require_tensor(name, value)
    if value.device != device and not (value.is_cpu and device.type == "cpu"):
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {value.device}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(value.shape)}")
    if value.dtype is not dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {value.dtype}")


def shape_of(name: str, value: Tensor) -> tuple[int, int, int]:
    """The shape ``(B, N, d)`` of latents, or of a tensor of the same shape."""
    shape = require_tensor(name, value).shape
    if len(shape) != 3 or shape[2] == 0:
        raise ValueError(f"{name}: expected shape (B, N, d) with d > 0, got {tuple(shape)}")
    return shape[0], shape[1], shape[2]


def per_chain_shape_of(name: str, value: Tensor) -> tuple[int, int]:
    """The shape ``(B, N)`` of a tensor with one number per chain; N must be at least 1."""
    shape = require_tensor(name, value).shape
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"{name}: expected shape (B, N) with N > 0, got {tuple(shape)}")
    return shape[0], shape[1]


def check_sizes(chains: int, size: int) -> None:
    """ValueError if no latents can have these sizes."""
    if chains < 0 or size <= 0:
        raise ValueError(f"chains, size: expected at least 0 and 1, got {chains} and {size}")


def check_active(
    name: str, active: Tensor | None, observations: int, device: torch.device = CPU
) -> Tensor | None:
    """Flags ``(B,)`` bool of observations, or None for all."""
    return None if active is None else check(name, active, (observations,), torch.bool, device)


def check_rows(
    name: str,
    value: Tensor,
    observations: int,
    widths: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """A tensor of 1 or B rows, whose width is one of ``widths``."""
    rows, width = value.shape if require_tensor(name, value).dim() == 2 else (-1, -1)
    if rows not in (1, observations) or width not in widths:
        expected = " or ".join(str(w) for w in widths)
        raise ValueError(
            f"{name}: expected shape (1 or {observations}, {expected}), got {tuple(value.shape)}"
        )
    return check(name, value, (rows, width), dtype, device)
