"""The squared error of measured values, for the Triton kernels that compute misfits.

Unobserved entries may be NaN, so they are left out by selection, not multiplied by zero.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def observed_values(m, read, target, mask):
    """The observed values of number ``m`` where they are to be ``read``, and which are observed.

    ``target`` and ``mask`` are the rows of one observation; None for ``mask``: all are observed.
    """
    seen = read
    if mask is not None:
        seen = read & (tl.load(mask + m, mask=read, other=0) != 0)
    return tl.load(target + m, mask=seen, other=0.0), seen


@triton.jit
def weighted_square(value, aim, seen, weight):
    """``weight (value - aim)^2`` in float64, and its derivative in ``value``; 0 if not ``seen``."""
    residual = tl.where(seen, value - aim, 0.0)
    r = residual.to(tl.float64)
    return weight.to(tl.float64) * r * r, 2.0 * weight * residual
