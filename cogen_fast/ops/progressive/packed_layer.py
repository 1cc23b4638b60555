"""A 3x3 convolution of the extension, with bias, leaky ReLU and pixel norm behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cogen_fast.ops.native import extension
from cogen_fast.ops.progressive.normed import Normed
from cogen_fast.ops.progressive.packed import PackedKernel, Workspace

Cells = tuple[int, int, int]
"""Images, and the cells of each side."""


class PackedLayer:
    """What layers have in common whose kernels are packed, one way and back."""

    def __init__(
        self,
        op: Literal["convolve", "upsample"],
        kernels: tuple[PackedKernel, PackedKernel],
        bias: Tensor,
        slope: float,
        work: Workspace,
    ) -> None:
        self._op, self._work = op, work
        self._there, self._back = kernels
        self._bias, self._slope = bias.contiguous(), slope

    def _forward(self, x: Tensor, cells: Cells, side: tuple[int, int]) -> Normed:
        """The activation, ``side`` pixels high and wide."""
        found = Normed.empty((len(x), *side, self._there.outputs), x.dtype, self._slope)
        self._call("")(
            x=x,
            out=found.out,
            bias=self._bias,
            slope=self._slope,
            scale=found.scale,
            kernel=self._there.packed,
            arena=self._arena(cells, self._there),
            threads=torch.get_num_threads(),
        )
        return found

    def _backward(
        self, grad: Tensor, before: Normed, spent: bool, arena: Tensor, **more: Tensor | None
    ) -> Tensor:
        """The gradient by what ``before`` was made of, given that by the convolution's output."""
        target = before.target(spent)
        self._call("_grad")(
            grad=grad,
            out=before.out,
            slope=before.slope,
            scale=before.scale,
            out_grad=target,
            **more,
            kernel=self._back.packed,
            arena=arena,
            threads=torch.get_num_threads(),
        )
        return target

    def _arena(self, cells: Cells, kernel: PackedKernel) -> Tensor:
        """Scratch memory for a product with ``kernel``."""
        images, height, width = cells
        size = self._call("_arena")(
            images=images,
            height=height,
            width=width,
            inputs=kernel.inputs,
            outputs=kernel.outputs,
            is_double=kernel.packed.dtype is torch.float64,
        )
        return self._work.room(size)

    def _call(self, suffix: Literal["", "_grad", "_arena"]) -> Callable[..., Any]:
        """The extension's function."""
        found: Callable[..., Any] = getattr(extension(), self._op + suffix)
        return found
