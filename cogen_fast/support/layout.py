"""What the fields of a saved state hold: dtype, dimensions and range, as annotations of its types.

A field is ``Annotated[Tensor, Array("B N", low=0.0)]``, or one of the names below. Dimensions are
named; a `Layout` says what sizes the names stand for in a run. A name that it does not know is
bound by the first tensor of its dataclass.
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
    """A tensor of ``dims``, names and numbers with spaces between, and of ``dtype``.

    ``dtype`` None is that of the latents. Values lie from ``low`` to ``high``, a number or the name
    of a size, or below the size named ``below``; ``infinite`` ones and NaN are refused unless they
    may be there.
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
    """An integer from ``low`` to ``high``, numbers or names of sizes."""

    low: int | str = 0
    high: int | str = 2**63 - 1


@dataclass(frozen=True)
class Sizes:
    """Of a dataclass within another: its own names of dimensions, by those of the outer one."""

    names: Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """The ``kind`` of a run, the ``sizes`` of its dimensions, and the ``dtype`` of its latents.

    ``present``: by name, whether an optional field is there, where settings decide it. ``check``
    raises ValueError where a run's parts do not go together.
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
    """ValueError naming what is wrong; ``sizes`` takes up those that are not known before.

    ``dtype`` is that of the latents.
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


def check_whole(name: str, value: object, whole: Whole, sizes: Mapping[str, int]) -> None:
    """ValueError naming what is wrong."""
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
