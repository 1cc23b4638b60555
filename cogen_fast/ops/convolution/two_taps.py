"""Transposed convolutions of stride 2 with a 4x4 kernel, in fewer products, on the CPU.

The outputs whose rows (or columns) have one parity are a correlation with two taps of the input:
along a line with weights k0 k1 k2 k3, ``out[2 i] = k3 x[i-1] + k1 x[i]`` and ``out[2 i + 1] = k2
x[i] + k0 x[i+1]``. Each is computed by tiles, m outputs of a line from m + 1 products: Winograd's
F(m, 2) (Lavin and Gray 2016, arXiv:1509.09308), which in the plane takes 9/16 of the products with
m = 2 and 25/64 with m = 4. The extension transforms images, in ``csrc/convolution/two_taps.h``, and
`torch.bmm` multiplies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from cogen_fast.ops.native import extension
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.packed import Workspace

Outputs = Literal[2, 4]
_PARITIES = (0, 1)
# The kernel's transform G for the points that csrc/convolution/two_taps.h names, by m.
_KERNEL_TRANSFORMS: dict[int, tuple[tuple[float, float], ...]] = {
    2: ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),
    4: ((2.0, 0.0), (1.0, 1.0), (-1 / 3, 1 / 3), (-8 / 3, -4 / 3), (0.0, 1.0)),
}
# The taps of the outputs of even and odd parity, and of the gradient by the input that those give.
_TAPS = ((3, 1), (2, 0))
_TAPS_BACK = ((1, 3), (0, 2))
_LEAST_SIDE = 8  # for tiles of four: for fewer pixels their many products have too few rows


@dataclass(frozen=True)
class _Grid:
    """Tiles of ``outputs`` pixels along each side, ``high`` times ``wide`` of them an image."""

    outputs: int
    high: int
    wide: int

    @classmethod
    def over(cls, height: int, width: int, outputs: int) -> _Grid:
        return cls(outputs, -(-height // outputs), -(-width // outputs))

    @property
    def slots(self) -> int:
        return (self.outputs + 1) ** 2

    def how(self, step: int, top: int, left: int) -> dict[str, int]:
        """What the extension's functions take."""
        return {
            "high": self.high,
            "wide": self.wide,
            "outputs": self.outputs,
            "step": step,
            "top": top,
            "left": left,
        }


class TiledTaps:
    """A transposed convolution of stride 2, padding 1 and a 4x4 kernel; bias and leaky ReLU follow.

    ``kernel`` is ``(in, out, 4, 4)``, as in `torch.nn.ConvTranspose2d`, and ``bias`` ``(out,)``,
    float32 or float64 on the CPU. Images are channels last, ``(n, H, W, in)`` and ``(n, 2 H, 2 W,
    out)``, of the same type. ``slope`` is that of the leaky ReLU; 1 for none.
    """

    def __init__(self, kernel: Tensor, bias: Tensor, slope: float, work: Workspace) -> None:
        self._kernel, self._bias, self._slope = kernel, bias.contiguous(), slope
        self._work = work
        self._matrices: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> NormedActivation:
        """The activation ``(n, 2 H, 2 W, out)`` of images ``(n, H, W, in)``."""
        n, height, width, inputs = x.shape
        grid = _grid(height, width)
        matrices, _ = self._transformed(grid.outputs)
        outputs = matrices.shape[-1]
        found = NormedActivation.empty(
            (n, 2 * height, 2 * width, outputs), x.dtype, self._slope, normalise=False
        )
        tiles = n * grid.high * grid.wide
        operands, results = self._scratch((grid.slots, tiles, inputs), (grid.slots, tiles, outputs))
        threads = torch.get_num_threads()
        for (a, b), each in zip(product(_PARITIES, _PARITIES), matrices, strict=True):
            extension().fill_two_taps(
                x=x, **grid.how(1, a - 1, b - 1), operands=operands, first=0, threads=threads
            )
            torch.bmm(operands, each, out=results)
            extension().finish_two_taps(
                results=results,
                out=found.out,
                bias=self._bias,
                slope=self._slope,
                scale=None,
                **grid.how(2, a, b),
                threads=threads,
            )
        return found

    def backward(self, grad: Tensor, preceding: NormedActivation, overwrite: bool) -> Tensor:
        """The gradient with respect to the pre-activation of ``preceding``, ``(n, H, W, in)``.

        ``grad`` ``(n, 2 H, 2 W, out)`` is that with respect to the output of the convolution. With
        ``overwrite`` the result takes the memory of ``preceding.out``.
        """
        n, height, width, _ = preceding.out.shape
        grid = _grid(height, width)
        _, matrices = self._transformed(grid.outputs)
        tiles, outputs = n * grid.high * grid.wide, grad.shape[-1]
        operands, results = self._scratch(
            (grid.slots, tiles, 4 * outputs), (grid.slots, tiles, matrices.shape[2])
        )
        threads = torch.get_num_threads()
        for number, (a, b) in enumerate(product(_PARITIES, _PARITIES)):
            extension().fill_two_taps(
                x=grad, **grid.how(2, -a, -b), operands=operands, first=number * outputs,
                threads=threads,
            )  # fmt: skip
        target = preceding.gradient_buffer(overwrite)
        extension().finish_two_taps_grad(
            results=torch.bmm(operands, matrices, out=results),
            out=preceding.out,
            slope=preceding.slope,
            scale=preceding.scale,
            out_grad=target,
            **grid.how(1, 0, 0),
            threads=threads,
        )
        return target

    def _scratch(self, *shapes: tuple[int, ...]) -> list[Tensor]:
        sizes = [math.prod(shape) for shape in shapes]
        pieces = torch.split(self._work.at_least(sum(sizes))[: sum(sizes)], sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def _transformed(self, outputs: int) -> tuple[Tensor, Tensor]:
        """The matrices of each product: ``(4, slots, in, out)``, and ``(slots, 4 out, in)``."""
        if outputs not in self._matrices:
            g = torch.tensor(_KERNEL_TRANSFORMS[outputs], dtype=torch.float64, device="cpu")
            kernel = self._kernel.double()
            there = [self._product(g, kernel, _TAPS[a], _TAPS[b]) for a in (0, 1) for b in (0, 1)]
            back = [
                self._product(g, kernel, _TAPS_BACK[a], _TAPS_BACK[b]).mT
                for a in (0, 1)
                for b in (0, 1)
            ]
            made = torch.stack(there), torch.cat(back, 1).contiguous()
            self._matrices[outputs] = made[0].to(self._kernel.dtype), made[1].to(self._kernel.dtype)
        return self._matrices[outputs]

    @staticmethod
    def _product(
        g: Tensor, kernel: Tensor, rows: tuple[int, int], columns: tuple[int, int]
    ) -> Tensor:
        taps = kernel[:, :, rows][:, :, :, columns]
        return torch.einsum("us,iost,vt->uvio", g, taps, g).flatten(0, 1)


def _grid(height: int, width: int) -> _Grid:
    return _Grid.over(height, width, 4 if min(height, width) >= _LEAST_SIDE else 2)
