"""How the layers of a progressive GAN are computed: in C++ on the CPU, by torch elsewhere.

Images are channels last, ``(n, S, S, C)``. A layer is a convolution with bias, leaky ReLU and pixel
norm behind it, forwards, and backwards as far as the activation before it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cogen_fast.ops import native
from cogen_fast.ops.checks import check
from cogen_fast.ops.progressive import normed
from cogen_fast.ops.progressive.normed import Normed
from cogen_fast.ops.progressive.packed import Workspace
from cogen_fast.ops.progressive.to_rgb import ToRGB, to_rgb_misfit
from cogen_fast.ops.progressive.upsampled import UpsampledConvolution
from cogen_fast.ops.progressive.winograd import Convolution
from cogen_fast.ops.spec import MisfitSpec


class Layer(Protocol):
    """A 3x3 convolution that keeps the side, and what follows it."""

    def forward(self, x: Tensor) -> Normed:
        """The activation ``(n, S, S, out)`` of images ``(n, S, S, in)``."""
        ...

    def backward(self, grad: Tensor, before: Normed, spent: bool) -> Tensor:
        """The gradient by what ``before`` was made of, given that by the convolution's output.

        With ``spent`` the memory of ``before.out`` may be taken.
        """
        ...


class UpsamplingLayer(Protocol):
    """Nearest upsampling by 2 before it."""

    def forward(self, x: Tensor) -> Normed:
        """The activation ``(n, 2 S, 2 S, out)`` of images ``(n, S, S, in)``."""
        ...

    def backward(
        self, grad: Tensor, before: Normed, spent: bool, extra: Tensor | None = None
    ) -> Tensor:
        """As that of `Layer`; ``extra`` is added to the gradient by ``before.out``."""
        ...


class Layers(Protocol):
    """The parts that a network is built of; activations are of type ``dtype``."""

    dtype: torch.dtype

    def convolution(self, kernel: Tensor, bias: Tensor, slope: float) -> Layer:
        """A layer with ``kernel`` ``(out, in, 3, 3)`` and ``bias`` ``(out,)``."""
        ...

    def upsampled(self, kernel: Tensor, bias: Tensor, slope: float) -> UpsamplingLayer:
        """The same with upsampling before it."""
        ...

    def norm(self, x: Tensor, bias: Tensor, slope: float, normalise: bool) -> Normed:
        """`reference.norm`."""
        ...

    def norm_grad(self, grad: Tensor, before: Normed, spent: bool = False) -> Tensor:
        """`reference.norm_grad`; with ``spent`` the memory of ``before.out`` may be taken."""
        ...

    def to_rgb_misfit(
        self, last: Normed, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`reference.to_rgb_misfit`; the memory of ``last.out`` may be taken."""
        ...

    def misfit(self, image: Tensor, spec: MisfitSpec, observation: Tensor) -> tuple[Tensor, Tensor]:
        """`reference.misfit`."""
        ...

    def checked(self, z: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Latents, contiguous; TypeError or ValueError naming ``z``."""
        ...


class NativeLayers:
    """In C++ on the CPU, float32 or float64."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self._work = dtype, Workspace(dtype)

    def convolution(self, kernel: Tensor, bias: Tensor, slope: float) -> Layer:
        """Winograd's."""
        return Convolution(kernel, bias, slope, self._work)

    def upsampled(self, kernel: Tensor, bias: Tensor, slope: float) -> UpsamplingLayer:
        """With nine products in place of 36."""
        return UpsampledConvolution(kernel, bias, slope, self._work)

    def norm(self, x: Tensor, bias: Tensor, slope: float, normalise: bool) -> Normed:
        """`normed.norm`."""
        return normed.norm(x, bias, slope, normalise)

    def norm_grad(self, grad: Tensor, before: Normed, spent: bool = False) -> Tensor:
        """`normed.norm_grad`."""
        return normed.norm_grad(grad, before, spent)

    def to_rgb_misfit(
        self, last: Normed, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`to_rgb.to_rgb_misfit`."""
        return to_rgb_misfit(last, to_rgb, spec, observation)

    def misfit(self, image: Tensor, spec: MisfitSpec, observation: Tensor) -> tuple[Tensor, Tensor]:
        """`native.misfit`."""
        return native.misfit(image, spec, observation)

    def checked(self, z: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The extension's own check."""
        return check("z", z, shape, dtype)
