"""3x3 convolutions of channels-last images with 16 products in place of 36 for 2 x 2 pixels.

This is Winograd's F(2x2, 3x3), after Lavin and Gray 2016 (arXiv:1509.09308), together with what
follows a convolution (see `cogen_fast.ops.progressive.normed`). The C++ code is in
``csrc/progressive/winograd.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cogen_fast.ops.progressive.native_convolution import CellGrid, NativeConvolution
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.packed import PackedKernel, Workspace, pack

# The matrix G of Lavin and Gray, which transforms a kernel: U = G g G'.
_KERNEL_TRANSFORM = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


class WinogradConvolution(NativeConvolution):
    """A 3x3 convolution that keeps the side, followed by bias, leaky ReLU and pixel norm.

    ``kernel`` is ``(out, in, 3, 3)`` and ``bias`` ``(out,)``, float32 or float64; images are ``(n,
    S, S, C)`` of the same type, with S even. Layers may share ``work``.
    """

    def __init__(self, kernel: Tensor, bias: Tensor, slope: float, work: Workspace) -> None:
        forward, backward = _packed(kernel), _packed(kernel.flip(2, 3).transpose(0, 1))
        super().__init__("convolve", (forward, backward), bias, slope, work)

    def forward(self, x: Tensor) -> NormedActivation:
        """The activation ``(n, S, S, out)`` of images ``(n, S, S, in)``."""
        return self._forward(x, _cells(x), (x.shape[1], x.shape[2]))

    def backward(self, grad: Tensor, preceding: NormedActivation, overwrite: bool) -> Tensor:
        """The gradient with respect to the pre-activation of ``preceding``, ``(n, S, S, in)``.

        ``grad`` ``(n, S, S, out)`` is that with respect to the output of the convolution. With
        ``overwrite`` the result takes the memory of ``preceding.out``.
        """
        return self._backward(
            grad, preceding, overwrite, self._scratch(_cells(grad), self._backward_kernel)
        )


def _packed(kernel: Tensor) -> PackedKernel:
    g = torch.tensor(_KERNEL_TRANSFORM, dtype=torch.float64, device="cpu")
    products = torch.einsum("ai,ocij,bj->abco", g, kernel.double(), g).to(kernel.dtype)
    return PackedKernel(pack(products.flatten(0, 1)).flatten(), kernel.shape[1], kernel.shape[0])


def _cells(x: Tensor) -> CellGrid:
    """The number of images, and of cells of 2 x 2 pixels vertically and horizontally."""
    return x.shape[0], x.shape[1] // 2, x.shape[2] // 2
