"""3x3 convolutions, and transposed ones with 4x4 kernels, in fewer products on the CPU.

By tiles, m outputs of a line take m + r - 1 products with r taps, in place of m r: Winograd's
F(m, r) (Lavin and Gray 2016, arXiv:1509.09308). In the plane a 3x3 convolution takes 4/9 of the
products with m = 2, and 1/4 with m = 4. The extension transforms images, in
``csrc/convolution/winograd_tiles.h``, and `torch.bmm` multiplies.

The outputs of a transposed convolution of stride 2 whose rows (or columns) have one parity are a
correlation with two taps of the input: along a line with weights k0 k1 k2 k3, ``out[2 i] = k3
x[i-1] + k1 x[i]`` and ``out[2 i + 1] = k2 x[i] + k0 x[i+1]``. So all take 9/16 of the products with
m = 2, and 25/64 with m = 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from cogen_fast.ops.native import extension
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.packed import Workspace

# The kernel's transform G for the points that csrc/convolution/winograd_tiles.h names, by taps and
# outputs.
_KERNEL_TRANSFORMS: dict[tuple[int, int], tuple[tuple[float, ...], ...]] = {
    (2, 2): ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),
    (2, 4): ((2.0, 0.0), (1.0, 1.0), (-1 / 3, 1 / 3), (-8 / 3, -4 / 3), (0.0, 1.0)),
    (3, 2): ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0)),
    (3, 4): (
        (1.0, 0.0, 0.0),
        (1 / 3, 1 / 3, 1 / 3),
        (-1 / 3, 1 / 3, -1 / 3),
        (-16 / 15, -8 / 15, -4 / 15),
        (1 / 15, -2 / 15, 4 / 15),
        (0.0, 0.0, 1.0),
    ),
}
_PARITIES = tuple(product((0, 1), (0, 1)))
# The weights of the taps for outputs of even and odd parity, and for the gradient that those give.
_TAPS = ((3, 1), (2, 0))
_TAPS_BACK = ((1, 3), (0, 2))
# Tiles of four are for images of this side at least, as products of fewer pixels have too few rows,
# and for at most so many weights a tap: their matrices take 8 to 12.5 times the kernel's memory.
_LEAST_SIDE, _MOST_WEIGHTS = 8, 2**16
_LINES = 32  # of a kernel that are transformed at once


@dataclass(frozen=True)
class _Grid:
    """The tiles of images: ``high`` x ``wide`` for each, of ``outputs`` pixels along each side."""

    taps: int
    outputs: int
    images: int
    high: int
    wide: int

    def size(self, channels: int) -> tuple[int, int, int]:
        """The shape of operands or results."""
        slots = (self.outputs + self.taps - 1) ** 2
        return slots, self.images * self.high * self.wide, channels

    def how(self, step: int, top: int, left: int) -> dict[str, int]:
        """What the extension's functions take."""
        return {
            "high": self.high,
            "wide": self.wide,
            "taps": self.taps,
            "outputs": self.outputs,
            "step": step,
            "top": top,
            "left": left,
            "threads": torch.get_num_threads(),
        }


class _Tiled:
    """What convolutions by tiles share; ``bias`` ``(out,)`` and a leaky ReLU follow.

    Images are channels last, float32 or float64 on the CPU, and ``side`` pixels high and wide.
    ``slope`` is that of the leaky ReLU; 1 for none. Layers may share ``work``. ``matrices`` are
    those of the products, forward and backward; the kernel is not kept.
    """

    _taps: int

    def __init__(
        self, kernel: Tensor, bias: Tensor, slope: float, work: Workspace, side: tuple[int, int]
    ) -> None:
        self._bias, self._slope, self._work = bias.contiguous(), slope, work
        narrow = kernel.shape[0] * kernel.shape[1] <= _MOST_WEIGHTS
        self._outputs = 4 if narrow and min(side) >= _LEAST_SIDE else 2
        self.matrices = self._made(kernel)

    def _grid(self, images: int, height: int, width: int) -> _Grid:
        outputs = self._outputs
        return _Grid(self._taps, outputs, images, -(-height // outputs), -(-width // outputs))

    def _made(self, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices of a kernel, in its type."""
        raise NotImplementedError

    @property
    def _slots(self) -> int:
        return (self._outputs + self._taps - 1) ** 2

    def _transform(self, taps: Tensor, out: Tensor) -> None:
        """Write the matrices of taps ``(K, N, r, r)`` to ``out`` ``(slots, K, N)``.

        They are computed in float64, a few lines at a time to save memory.
        """
        transform = _KERNEL_TRANSFORMS[self._taps, self._outputs]
        g = torch.tensor(transform, dtype=torch.float64, device="cpu")
        for some, into in zip(torch.split(taps, _LINES), torch.split(out, _LINES, 1), strict=True):
            into.copy_(torch.einsum("us,kost,vt->uvko", g, some.double(), g).flatten(0, 1))

    def _scratch(self, grid: _Grid, *channels: int) -> list[Tensor]:
        """Memory for operands and results of so many channels."""
        return self._work.tensors(*(grid.size(each) for each in channels))

    def _activation(self, shape: Sequence[int], dtype: torch.dtype) -> NormedActivation:
        return NormedActivation.empty(tuple(shape), dtype, self._slope, normalise=False)

    def _finish(self, results: Tensor, found: NormedActivation, how: dict[str, int]) -> None:
        extension().finish_tiles(
            results=results, out=found.out, bias=self._bias, slope=self._slope, scale=None, **how
        )

    def _finish_grad(
        self, results: Tensor, preceding: NormedActivation, overwrite: bool, how: dict[str, int]
    ) -> Tensor:
        target = preceding.gradient_buffer(overwrite)
        extension().finish_tiles_grad(
            results=results,
            out=preceding.out,
            slope=preceding.slope,
            scale=preceding.scale,
            out_grad=target,
            **how,
        )
        return target


class TiledConvolution(_Tiled):
    """A 3x3 convolution that keeps the side; ``kernel`` is ``(out, in, 3, 3)``."""

    _taps = 3

    def forward(self, x: Tensor) -> NormedActivation:
        """The activation ``(n, H, W, out)`` of images ``(n, H, W, in)``."""
        grid, matrices = self._grid(*x.shape[:3]), self.matrices[0]
        found = self._activation((*x.shape[:3], matrices.shape[2]), x.dtype)
        self._finish(self._multiplied(x, matrices, grid), found, grid.how(1, 0, 0))
        return found

    def backward(self, grad: Tensor, preceding: NormedActivation, overwrite: bool) -> Tensor:
        """The gradient with respect to the pre-activation of ``preceding``, ``(n, H, W, in)``.

        ``grad`` ``(n, H, W, out)`` is that with respect to the output of the convolution. With
        ``overwrite`` the result takes the memory of ``preceding.out``.
        """
        grid = self._grid(*grad.shape[:3])
        results = self._multiplied(grad, self.matrices[1], grid)
        return self._finish_grad(results, preceding, overwrite, grid.how(1, 0, 0))

    def _multiplied(self, x: Tensor, matrices: Tensor, grid: _Grid) -> Tensor:
        operands, results = self._scratch(grid, matrices.shape[1], matrices.shape[2])
        extension().fill_tiles(x=x, operands=operands, first=0, **grid.how(1, -1, -1))
        return torch.bmm(operands, matrices, out=results)

    def _made(self, kernel: Tensor) -> tuple[Tensor, Tensor]:
        outputs, inputs = kernel.shape[:2]
        there = kernel.new_empty(self._slots, inputs, outputs)
        back = kernel.new_empty(self._slots, outputs, inputs)
        self._transform(kernel.transpose(0, 1), there)
        self._transform(kernel.flip(2, 3), back)
        return there, back


class TiledTransposed(_Tiled):
    """A transposed convolution of stride 2, padding 1 and a 4x4 kernel.

    ``kernel`` is ``(in, out, 4, 4)``, as in `torch.nn.ConvTranspose2d`.
    """

    _taps = 2

    def forward(self, x: Tensor) -> NormedActivation:
        """The activation ``(n, 2 H, 2 W, out)`` of images ``(n, H, W, in)``."""
        n, height, width, inputs = x.shape
        grid, matrices = self._grid(n, height, width), self.matrices[0]
        found = self._activation((n, 2 * height, 2 * width, matrices.shape[3]), x.dtype)
        operands, results = self._scratch(grid, inputs, matrices.shape[3])
        for (a, b), each in zip(_PARITIES, matrices, strict=True):
            extension().fill_tiles(x=x, operands=operands, first=0, **grid.how(1, a - 1, b - 1))
            self._finish(torch.bmm(operands, each, out=results), found, grid.how(2, a, b))
        return found

    def backward(self, grad: Tensor, preceding: NormedActivation, overwrite: bool) -> Tensor:
        """The gradient with respect to the pre-activation of ``preceding``, ``(n, H, W, in)``.

        ``grad`` ``(n, 2 H, 2 W, out)`` is that with respect to the output of the convolution. With
        ``overwrite`` the result takes the memory of ``preceding.out``.
        """
        grid, outputs = self._grid(*preceding.out.shape[:3]), grad.shape[-1]
        matrices = self.matrices[1]
        operands, results = self._scratch(grid, matrices.shape[1], matrices.shape[2])
        for number, (a, b) in enumerate(_PARITIES):
            first = number * outputs
            extension().fill_tiles(x=grad, operands=operands, first=first, **grid.how(2, -a, -b))
        torch.bmm(operands, matrices, out=results)
        return self._finish_grad(results, preceding, overwrite, grid.how(1, 0, 0))

    def _made(self, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """``(4, slots, in, out)``, and ``(slots, 4 out, in)``, whose products add up parities."""
        inputs, outputs = kernel.shape[:2]
        there = kernel.new_empty(len(_PARITIES), self._slots, inputs, outputs)
        back = kernel.new_empty(self._slots, len(_PARITIES), outputs, inputs)
        for number, (a, b) in enumerate(_PARITIES):
            self._transform(kernel[:, :, _TAPS[a]][:, :, :, _TAPS[b]], there[number])
            taps = kernel[:, :, _TAPS_BACK[a]][:, :, :, _TAPS_BACK[b]]
            self._transform(taps, back[:, number].mT)
        return there, back.flatten(1, 2)
