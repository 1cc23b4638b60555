"""3x3 convolutions of channels-last images with 16 products in place of 36 for 2 x 2 pixels.

F(2x2, 3x3) of Winograd, after Lavin and Gray 2016 (arXiv:1509.09308), together with what follows a
convolution (see `cogen_fast.ops.normed`): ``csrc/winograd.h``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cogen_fast.ops.checks import require_float
from cogen_fast.ops.native import extension, suffixed
from cogen_fast.ops.normed import Normed
from cogen_fast.ops.packed import PackedKernel, Workspace, pack

_BEFORE = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


class Convolution:
    """A 3x3 convolution that keeps the side, with bias, leaky ReLU and pixel norm behind it.

    ``kernel`` is ``(out, in, 3, 3)`` and ``bias`` ``(out,)``, float32 or float64; images are
    ``(n, S, S, C)`` of the same type, S even. ``work`` may be shared with other layers.
    """

    def __init__(self, kernel: Tensor, bias: Tensor, slope: float, work: Workspace) -> None:
        self._work = work
        self._there = _packed(kernel)
        self._back = _packed(kernel.flip(2, 3).transpose(0, 1))
        self._bias, self._slope = bias.contiguous(), slope

    def forward(self, x: Tensor) -> Normed:
        """The activation ``(n, S, S, out)`` of images ``(n, S, S, in)``."""
        found = Normed.empty((*x.shape[:3], self._there.outputs), x.dtype, self._slope)
        cells = _cells(x)
        getattr(extension(), suffixed("convolve", require_float("x", x.dtype)))(
            *cells,
            x.data_ptr(),
            *self._there.arguments,
            self._bias.data_ptr(),
            self._slope,
            found.out.data_ptr(),
            found.scale_address,
            _arena(cells, self._there, self._work),
            torch.get_num_threads(),
        )
        return found

    def backward(self, grad: Tensor, before: Normed, spent: bool) -> Tensor:
        """The gradient by what the activation ``before`` was made of, ``(n, S, S, in)``.

        ``grad`` ``(n, S, S, out)`` is that by the convolution's output. With ``spent`` the result
        takes the memory of ``before.out``.
        """
        target = before.target(spent)
        cells = _cells(grad)
        getattr(extension(), suffixed("convolve_grad", require_float("grad", grad.dtype)))(
            *cells,
            grad.data_ptr(),
            *self._back.arguments,
            before.slope,
            before.out.data_ptr(),
            before.scale_address,
            target.data_ptr(),
            _arena(cells, self._back, self._work),
            torch.get_num_threads(),
        )
        return target


def _packed(kernel: Tensor) -> PackedKernel:
    g = torch.tensor(_BEFORE, dtype=torch.float64)
    products = torch.einsum("ai,ocij,bj->abco", g, kernel.double(), g).to(kernel.dtype)
    return PackedKernel(pack(products.flatten(0, 1)), kernel.shape[1], kernel.shape[0])


def _cells(x: Tensor) -> tuple[int, int, int]:
    """Images, and the 2 x 2 pixels of each side."""
    return x.shape[0], x.shape[1] // 2, x.shape[2] // 2


def _arena(cells: tuple[int, int, int], kernel: PackedKernel, work: Workspace) -> int:
    size = suffixed("convolve_arena", require_float("kernel", kernel.packed.dtype))
    return work.address(getattr(extension(), size)(*cells, kernel.inputs, kernel.outputs))
