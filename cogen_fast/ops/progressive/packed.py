"""What convolutions in C++ need besides images: weights packed for their products, and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_PANEL_BYTES = 64  # of the outputs that the innermost loop computes at once: matrix_products.h


@dataclass(frozen=True)
class PackedKernel:
    """The packed matrices ``(n,)`` of a 3x3 convolution in one direction, and its channels."""

    packed: Tensor
    inputs: int
    outputs: int


def pack(matrices: Tensor) -> Tensor:
    """Pack matrices ``(P, K, N)`` into panels of p columns: ``(P, ceil(N / p), K, p)``.

    Columns beyond N are zeros.
    """
    panel = _PANEL_BYTES // matrices.element_size()
    count, inputs, outputs = matrices.shape
    panels = -(-outputs // panel)
    full = matrices.new_zeros(count, inputs, panels * panel)
    full[:, :, :outputs] = matrices
    return full.view(count, inputs, panels, panel).transpose(1, 2).contiguous()


class Workspace:
    """Scratch memory, as large as the largest size that was asked for so far."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, dtype=dtype, device="cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return self._memory.dtype

    def at_least(self, size: int) -> Tensor:
        """``size`` numbers or more that may be overwritten; the next call may return the same."""
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=self._memory.dtype, device="cpu")
        return self._memory

    def tensors(self, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Tensors of those shapes side by side in the memory of `at_least`."""
        sizes = [math.prod(shape) for shape in shapes]
        pieces = torch.split(self.at_least(sum(sizes))[: sum(sizes)], sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
