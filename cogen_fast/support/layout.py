"""Annotations for the fields of a saved state: dtype, dimensions and range of values.

A field has a type such as ``Annotated[Tensor, Array("B N", low=0.0)]``, or one of the aliases
below. Dimensions have names; a `Layout` gives their sizes in a run. A name which the layout does
not have takes its size from the first tensor of the dataclass with that dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from cogen_fast.support.arguments import abbreviated


@dataclass(frozen=True)
class Array:
    """A tensor with dimensions ``dims``, names or numbers separated by spaces, and ``dtype``.

    ``dtype`` None means that of the latents. Values lie between ``low`` and ``high``, a number or
    the name of a size, or below the size named ``below``. Infinite values and NaN are refused
    unless ``infinite`` or ``nan`` allows them.
    """

    dims: str
    dtype: torch.dtype | None = torch.float64
    low: float = -math.inf
    high: float | str = math.inf
    below: str | None = None
    infinite: bool = False
    nan: bool = False


@dataclass(frozen=True)
class Whole:
    """An integer from ``low`` to ``high``, which are numbers or names of sizes."""

    low: int | str = 0
    high: int | str = 2**63 - 1


@dataclass(frozen=True)
class Sizes:
    """For a nested dataclass: maps its own names of dimensions to names or sizes outside."""

    names: Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """The type ``kind`` of a run, the ``sizes`` of its dimensions, and its latents' ``dtype``.

    ``present`` says, by name, whether an optional field has a value, where the settings determine
    it. ``check`` raises ValueError if the parts of a run are inconsistent.
    """

    kind: type
    sizes: Mapping[str, int]
    dtype: torch.dtype
    present: Mapping[str, bool] = field(default_factory=dict)
    check: Callable[[Any], None] = lambda run: None


Rows = Annotated[Tensor, Array("B")]
NotNegative = Annotated[Tensor, Array("B", low=0.0)]
Shares = Annotated[Tensor, Array("B", low=0.0, high=1.0)]
Estimates = Annotated[Tensor, Array("B", infinite=True, nan=True)]
Flags = Annotated[Tensor, Array("B", torch.bool)]
Counts = Annotated[Tensor, Array("B", torch.int64, low=0)]
OfEach = Annotated[Tensor, Array("B N")]
CountsOfEach = Annotated[Tensor, Array("B N", torch.int64, low=0)]
Latents = Annotated[Tensor, Array("B N d", None)]
Roots = Annotated[Tensor, Array("B N", torch.int64, low=0, below="K")]
MoveCounts = Annotated[Tensor, Array("B", torch.int64, low=0, high="M")]
Count = Annotated[int, Whole()]


def check_array(
    name: str, value: Tensor, array: Array, dtype: torch.dtype, sizes: dict[str, int]
) -> None:
    """Raise ValueError, naming ``name``, if ``value`` is not as declared in ``array``.

    ``sizes`` is extended by the sizes of names which it does not have yet. ``dtype`` is that of the
    latents.
    """
    dtype, shape = array.dtype or dtype, _shape(value, array, sizes)
    if value.dtype != dtype or tuple(value.shape) != shape:
        wanted, came = _shown(dtype, shape), _shown(value.dtype, tuple(value.shape))
        raise ValueError(f"{name}: expected {wanted}, got {came}")
    if dtype == torch.bool:
        return
    for what, where, allowed in (
        ("NaN", value.isnan(), array.nan),
        ("infinite numbers", value.isinf(), array.infinite),
    ):
        if not allowed and bool(where.any()):
            raise ValueError(f"{name}: expected no {what}, got {int(where.sum())}")
    known = value[value.isfinite()]
    high = sizes[array.high] if isinstance(array.high, str) else array.high
    high = high if array.below is None else sizes[array.below] - 1
    if known.numel() and (known.min() < array.low or known.max() > high):
        found = f"{known.min().item():.6g} to {known.max().item():.6g}"
        raise ValueError(f"{name}: expected {array.low:.6g} to {high:.6g}, got {found}")


def check_integer(name: str, value: object, whole: Whole, sizes: Mapping[str, int]) -> None:
    """Raise ValueError, naming ``name``, if ``value`` is not as declared in ``whole``."""
    low, high = (sizes[x] if isinstance(x, str) else x for x in (whole.low, whole.high))
    if type(value) is not int or not low <= value <= high:
        wanted = f"{low}" if low == high else f"an integer from {low} to {high}"
        raise ValueError(f"{name}: expected {wanted}, got {abbreviated(value)}")


def _shape(value: Tensor, array: Array, sizes: dict[str, int]) -> tuple[int, ...]:
    dims = array.dims.split()
    if len(dims) == value.ndim:
        for name, size in zip(dims, value.shape, strict=True):
            if not name.isdigit():
                sizes.setdefault(name, size)
    return tuple(int(name) if name.isdigit() else sizes.get(name, 0) for name in dims)


def _shown(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {shape}"
