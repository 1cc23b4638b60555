"""A 3x3 convolution of the extension, with bias, leaky ReLU and pixel norm behind it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cogen_fast.ops.checks import require_float
from cogen_fast.ops.native import address, extension, suffixed
from cogen_fast.ops.normed import Normed
from cogen_fast.ops.packed import PackedKernel, Workspace

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
        getattr(extension(), suffixed(self._op, require_float("x", x.dtype)))(
            *cells,
            x.data_ptr(),
            *self._there.arguments,
            self._bias.data_ptr(),
            self._slope,
            found.out.data_ptr(),
            found.scale_address,
            self._arena(cells, self._there),
            torch.get_num_threads(),
        )
        return found

    def _backward(
        self,
        grad: Tensor,
        cells: Cells,
        before: Normed,
        spent: bool,
        arena: int,
        extra: Tensor | None = None,
    ) -> Tensor:
        """The gradient by what ``before`` was made of, given that by the convolution's output."""
        target = before.target(spent)
        getattr(extension(), suffixed(f"{self._op}_grad", require_float("grad", grad.dtype)))(
            *cells,
            grad.data_ptr(),
            *self._back.arguments,
            before.slope,
            before.out.data_ptr(),
            before.scale_address,
            address(extra),
            target.data_ptr(),
            arena,
            torch.get_num_threads(),
        )
        return target

    def _arena(self, cells: Cells, kernel: PackedKernel) -> int:
        """Scratch memory for a product with ``kernel``."""
        size = suffixed(f"{self._op}_arena", require_float("kernel", kernel.packed.dtype))
        return self._work.address(getattr(extension(), size)(*cells, kernel.inputs, kernel.outputs))
