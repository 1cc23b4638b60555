"""Transposed convolutions of stride 2 with a 4x4 kernel to few channels, on the CPU.

Each input pixel is multiplied by all 16 weights in one matrix product, and every output pixel adds
up its four terms, in ``csrc/convolution/tap_sums.h``. The way back is a convolution by torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cogen_fast.ops.native import extension
from cogen_fast.ops.progressive.layers import channels_first, channels_last
from cogen_fast.ops.progressive.normed import NormedActivation, norm_grad
from cogen_fast.ops.progressive.packed import Workspace


class SummedTaps:
    """A transposed convolution of stride 2, padding 1 and a 4x4 kernel; bias and leaky ReLU follow.

    Arguments and shapes are those of `winograd.TiledTransposed`.
    """

    def __init__(self, kernel: Tensor, bias: Tensor, slope: float, work: Workspace) -> None:
        self._products = kernel.permute(0, 2, 3, 1).flatten(1).contiguous()
        self._kernel = kernel.contiguous(memory_format=torch.channels_last)
        self._bias, self._slope, self._work = bias.contiguous(), slope, work

    def forward(self, x: Tensor) -> NormedActivation:
        """The activation ``(n, 2 H, 2 W, out)`` of images ``(n, H, W, in)``."""
        n, height, width, _ = x.shape
        outputs = len(self._bias)
        found = NormedActivation.empty(
            (n, 2 * height, 2 * width, outputs), x.dtype, self._slope, normalise=False
        )
        (products,) = self._work.tensors((n, height, width, 16, outputs))
        torch.mm(x.flatten(0, 2), self._products, out=products.flatten(0, 2).flatten(1))
        extension().sum_taps(
            products=products,
            out=found.out,
            bias=self._bias,
            slope=self._slope,
            threads=torch.get_num_threads(),
        )
        return found

    def backward(self, grad: Tensor, preceding: NormedActivation, overwrite: bool) -> Tensor:
        """The gradient with respect to the pre-activation of ``preceding``, ``(n, H, W, in)``."""
        by_input = F.conv2d(channels_first(grad), self._kernel, stride=2, padding=1)
        return norm_grad(channels_last(by_input), preceding, overwrite)
