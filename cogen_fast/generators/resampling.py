"""The resampling filter of StyleGAN2, read from the kernels that a file repeats in every layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_TOLERANCE = 1e-4  # relative: kernels are stored in the file's float type


def taps_of(kernels: Sequence[Tensor], gain: float = 1.0) -> list[float]:
    """One-dimensional taps with sum 1 whose outer product, times ``gain``, all ``kernels`` are.

    kernels: (k, k), or (k,) for one that was kept one-dimensional. ValueError where they differ, do
    not have that sum, or are no outer product; [1, 3, 3, 1] / 8 where there are none.
    """
    if not kernels:
        return [0.125, 0.375, 0.375, 0.125]
    first = kernels[0].double()
    for kernel in kernels[1:]:
        if kernel.shape != first.shape or not _close(kernel.double(), first):
            raise ValueError("resampling filter: expected the same in all layers, got several")
    taps = first.sum(-1) if first.ndim == 2 else first
    total = float(taps.sum())
    scale = gain if first.ndim == 2 else gain**0.5
    if first.ndim == 2 and first.shape[0] != first.shape[1]:
        raise ValueError(f"resampling filter: expected a square, got {tuple(first.shape)}")
    if len(taps) < 2 or abs(total - scale) > _TOLERANCE * scale:
        raise ValueError(f"resampling filter: expected taps of sum {scale}, got {total}")
    taps = taps / total
    if first.ndim == 2 and not _close(gain * torch.outer(taps, taps), first):
        raise ValueError("resampling filter: expected an outer product of taps, got another")
    return [float(tap) for tap in taps]


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _TOLERANCE * float(b.abs().max()))
