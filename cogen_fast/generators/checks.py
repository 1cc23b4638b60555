"""Checks of arguments and tensors that the generators share: `name: expected X, got Y`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cogen_fast.support.arguments import abbreviated

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The types that weights may have."""


def positive_int(name: str, value: object) -> int:
    """Return `value` if it is an integer of at least 1; otherwise raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, got {abbreviated(value)}")
    return int(value)


def fraction(name: str, value: object) -> float:
    """Return `value` as a float if it lies in [0, 1]; otherwise raise ValueError."""
    if not (isinstance(value, int | float | np.floating) and 0.0 <= value <= 1.0):
        raise ValueError(f"{name}: expected a number in [0, 1], got {abbreviated(value)}")
    return float(value)


def boolean(name: str, value: object) -> bool:
    """Return `value` if it is True or False; otherwise raise ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {abbreviated(value)}")
    return value


def flat_latents(z: Tensor, size: int) -> Tensor:
    """Latents (N, size) of z (N, size) or (N, size, 1, 1); ValueError for another shape."""
    if tuple(z.shape[1:]) not in ((size,), (size, 1, 1)):
        raise ValueError(
            f"z: expected shape (N, {size}) or (N, {size}, 1, 1), got {tuple(z.shape)}"
        )
    return z.flatten(1)


def is_plain(tensor: Tensor) -> bool:
    """Whether the values lie in a storage on the CPU: not sparse, nested or on the meta device."""
    return not tensor.is_nested and tensor.layout == torch.strided and tensor.device.type == "cpu"


def weight(name: str, value: object, dimensions: int) -> Tensor:
    """Return `value` if it is a tensor that can hold the weights of a layer.

    It must have `dimensions` dimensions, none of size 0, a type of `FLOATS`, and a stored value for
    each entry; otherwise raise ValueError.
    """
    if (
        not isinstance(value, Tensor)
        or not is_plain(value)
        or value.dtype not in FLOATS
        or value.ndim != dimensions
        or 0 in value.shape
        or value.numel() * value.element_size() > value.untyped_storage().nbytes()
    ):
        raise ValueError(
            f"{name}: expected {dimensions} dimensions of a float type of 16, 32 or 64 bits, "
            f"got {_described(value)}"
        )
    return value


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_nested:
        return "a nested tensor"
    kind = f"{value.dtype} {tuple(value.shape)}"
    if not is_plain(value):
        return f"{kind} of layout {value.layout} on {value.device}"
    stored = value.untyped_storage().nbytes()
    if math.prod(value.shape) * value.element_size() > stored:
        return f"{kind}, of which {stored} bytes are stored"
    return kind
