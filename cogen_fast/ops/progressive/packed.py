"""What convolutions in C++ need beside images: weights packed for their products, and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PANEL_BYTES = 64  # outputs side by side in the innermost loop, see matrix_products.h


@dataclass(frozen=True)
class PackedKernel:
    """The matrices that a 3x3 convolution is made of, one way, ``(n,)``, and its channels."""

    packed: Tensor
    inputs: int
    outputs: int


def pack(matrices: Tensor) -> Tensor:
    """Matrices ``(P, K, N)`` in panels: ``(P, ceil(N / p), K, p)`` with zeros for what N lacks."""
    panel = _PANEL_BYTES // matrices.element_size()
    count, inputs, outputs = matrices.shape
    panels = -(-outputs // panel)
    full = matrices.new_zeros(count, inputs, panels * panel)
    full[:, :, :outputs] = matrices
    return full.view(count, inputs, panels, panel).transpose(1, 2).contiguous()


class Workspace:
    """Memory for what is soon used up, as large as the largest wish so far."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype, device="cpu")

    def at_least(self, size: int) -> Tensor:
        """``size`` numbers or more that may be overwritten; the next call may give the same."""
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=self._memory.dtype, device="cpu")
        return self._memory
