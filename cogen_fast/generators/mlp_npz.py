"""Dense generators as plain arrays: w1 (in, out), b1 (out,), w2, b2, ..., with ReLU between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cogen_fast.generators.foreign import Config, Tensors

_FLOATS = (np.float16, np.float32, np.float64)


def recognises(arrays: Mapping[str, Any]) -> bool:
    """Whether the arrays of an npz file have this layout."""
    return bool(arrays) and arrays.keys() == _names(len(arrays) // 2)


def convert(arrays: Mapping[str, NDArray[Any]]) -> tuple[Config, Tensors]:
    """Configuration and tensors of `relu(relu(z w1 + b1) w2 + b2) w3 + b3`, for any depth.

    Raises ValueError where the arrays do not share a float type, or where their shapes do not fit
    together.
    """
    if len({array.dtype for array in arrays.values()}) > 1 or arrays["w1"].dtype not in _FLOATS:
        types = sorted({str(array.dtype) for array in arrays.values()})
        raise ValueError(
            f"npz: expected arrays of one float type, got {', '.join(types)}; supported are those "
            "of 16, 32 and 64 bits in this machine's byte order"
        )
    number = len(arrays) // 2
    tensors: Tensors = {}
    for layer in range(1, number + 1):
        weight, bias = arrays[f"w{layer}"], arrays[f"b{layer}"]
        if weight.ndim != 2 or bias.shape != weight.shape[1:]:
            raise ValueError(
                f"w{layer}, b{layer}: expected shapes (in, out) and (out,), "
                f"got {weight.shape} and {bias.shape}"
            )
        tensors[f"layers.{layer - 1}.weight"] = torch.from_numpy(np.ascontiguousarray(weight.T))
        tensors[f"layers.{layer - 1}.bias"] = torch.from_numpy(bias)
    widths = [arrays[f"w{layer}"].shape for layer in range(1, number + 1)]
    return {"sizes": [widths[0][0], *(width[1] for width in widths)]}, tensors


def _names(layers: int) -> set[str]:
    return {f"{kind}{layer}" for layer in range(1, layers + 1) for kind in "wb"}
