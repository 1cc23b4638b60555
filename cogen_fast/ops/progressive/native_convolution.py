"""A 3x3 convolution in C++, followed by bias, leaky ReLU and pixel norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from cogen_fast.ops.native import extension
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.packed import PackedKernel, Workspace

CellGrid = tuple[int, int, int]
"""The number of images, and of cells vertically and horizontally.

A cell is what the algorithm computes at once: 2 x 2 pixels of a convolution by Winograd's
algorithm, one input pixel of an upsampling convolution.
"""


class NativeConvolution:
    """What convolutions with packed kernels share: calls of the extension, forward and backward.

    ``op`` is the name of the extension's function; ``kernels`` are the one of the forward pass and
    the one of the backward pass. Without ``normalise`` there is no pixel norm.
    """

    def __init__(
        self,
        op: Literal["convolve", "upsample"],
        kernels: tuple[PackedKernel, PackedKernel],
        bias: Tensor,
        slope: float,
        work: Workspace,
        normalise: bool = True,
    ) -> None:
        self._op, self._work, self._normalise = op, work, normalise
        self._forward_kernel, self._backward_kernel = kernels
        self._bias, self._slope = bias.contiguous(), slope

    def _forward(self, x: Tensor, cells: CellGrid, side: tuple[int, int]) -> NormedActivation:
        """The activation, ``side`` pixels high and wide."""
        found = NormedActivation.empty(
            (len(x), *side, self._forward_kernel.outputs), x.dtype, self._slope, self._normalise
        )
        self._call("")(
            x=x,
            out=found.out,
            bias=self._bias,
            slope=self._slope,
            scale=found.scale,
            kernel=self._forward_kernel.packed,
            arena=self._scratch(cells, self._forward_kernel),
            threads=torch.get_num_threads(),
        )
        return found

    def _backward(
        self,
        grad: Tensor,
        preceding: NormedActivation,
        overwrite: bool,
        arena: Tensor,
        **more: Tensor | None,
    ) -> Tensor:
        """The gradient with respect to the pre-activation of ``preceding``.

        ``grad`` is the gradient with respect to the output of the convolution.
        """
        target = preceding.gradient_buffer(overwrite)
        self._call("_grad")(
            grad=grad,
            out=preceding.out,
            slope=preceding.slope,
            scale=preceding.scale,
            out_grad=target,
            **more,
            kernel=self._backward_kernel.packed,
            arena=arena,
            threads=torch.get_num_threads(),
        )
        return target

    def _scratch(self, cells: CellGrid, kernel: PackedKernel) -> Tensor:
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
        return self._work.at_least(size)

    def _call(self, suffix: Literal["", "_grad", "_arena"]) -> Callable[..., Any]:
        """The extension's function."""
        found: Callable[..., Any] = getattr(extension(), self._op + suffix)
        return found
