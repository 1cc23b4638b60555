"""Nearest upsampling by 2 and a 3x3 convolution in one, with 9 products in place of 36 per pixel.

Along a line with weights k0 k1 k2, let ``s = k0 + k1 + k2`` and ``D[i] = x[i-1] - x[i]``. Then the
convolution of the upsampled line is ``out[2 i] = s x[i] + k0 D[i]`` and ``out[2 i + 1] = s x[i] -
k2 D[i+1]``: three products for two outputs, and in the plane nine products for four outputs. (A
transposed convolution with a 4x4 kernel needs sixteen.) The C++ code is in
``csrc/progressive/upsampled.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cogen_fast.ops.progressive.native_convolution import NativeConvolution
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.packed import PackedKernel, Workspace, pack

# The factors of x, and of the differences D at the upper and the lower side, in k0 k1 k2.
_FACTORS = ((1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
# The products with the image, its differences along lines, across lines, and along both.
_PARTS = (
    ((0, 0),),
    ((0, 1), (0, 2)),
    ((1, 0), (2, 0)),
    ((1, 1), (1, 2), (2, 1), (2, 2)),
)


class UpsampledConvolution(NativeConvolution):
    """Upsampling by 2, a 3x3 convolution, then bias, leaky ReLU and pixel norm.

    ``kernel`` is ``(out, in, 3, 3)`` and ``bias`` ``(out,)``, float32 or float64; images are ``(n,
    S, S, in)`` and ``(n, 2 S, 2 S, out)`` of the same type. Layers may share ``work``. Without
    ``normalise`` there is no pixel norm.
    """

    def __init__(
        self,
        kernel: Tensor,
        bias: Tensor,
        slope: float,
        work: Workspace,
        normalise: bool = True,
    ) -> None:
        outputs, inputs = kernel.shape[:2]
        t = torch.tensor(_FACTORS, dtype=torch.float64, device="cpu")
        w = torch.einsum("ui,ocij,vj->uvco", t, kernel.double(), t).to(kernel.dtype)
        forward = [pack(torch.stack([w[at] for at in part])) for part in _PARTS]
        # The backward pass adds up all parts of an image in one product.
        backward = [pack(torch.cat([w[at].T for at in part])[None]) for part in _PARTS]
        kernels = (
            PackedKernel(torch.cat([p.flatten() for p in forward]), inputs, outputs),
            PackedKernel(torch.cat([p.flatten() for p in backward]), outputs, inputs),
        )
        super().__init__("upsample", kernels, bias, slope, work, normalise)

    def forward(self, x: Tensor) -> NormedActivation:
        """The activation ``(n, 2 S, 2 S, out)`` of images ``(n, S, S, in)``."""
        n, height, width, _ = x.shape
        return self._forward(x, (n, height, width), (2 * height, 2 * width))

    def backward(
        self,
        grad: Tensor,
        preceding: NormedActivation,
        overwrite: bool,
        extra: Tensor | None = None,
    ) -> Tensor:
        """The gradient with respect to the pre-activation of ``preceding``, ``(n, S, S, in)``.

        ``grad`` ``(n, 2 S, 2 S, out)`` is that with respect to the output of the convolution;
        ``extra`` ``(n, S, S, in)`` is added to the gradient with respect to ``preceding.out``. With
        ``overwrite`` the result takes the memory of ``preceding.out``.
        """
        n, height, width, _ = preceding.out.shape
        # The extension sizes the scratch memory of both directions by the forward kernel.
        arena = self._scratch((n, height, width), self._forward_kernel)
        return self._backward(grad, preceding, overwrite, arena, extra=extra)
