"""How the layers of a progressive GAN are computed: in C++ on the CPU, by torch elsewhere.

Images are channels last, ``(n, S, S, C)``. A layer is a convolution with bias, followed by leaky
ReLU and pixel norm. Its backward pass goes from the output of the convolution, through the
convolution, to the pre-activation (the input of the leaky ReLU) of the preceding layer.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cogen_fast.ops import native
from cogen_fast.ops.checks import check
from cogen_fast.ops.progressive import normed
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.packed import Workspace
from cogen_fast.ops.progressive.to_rgb import ToRGB, to_rgb_misfit
from cogen_fast.ops.progressive.upsampled import UpsampledConvolution
from cogen_fast.ops.progressive.winograd import WinogradConvolution
from cogen_fast.ops.spec import MisfitSpec


def channels_first(x: Tensor) -> Tensor:
    """``(n, H, W, C)`` with the axes in the order of torch's convolutions: a view."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """The inverse, contiguous: a view where the convolution kept the layout."""
    return x.permute(0, 2, 3, 1).contiguous()


class Layer(Protocol):
    """A 3x3 convolution that keeps the side, followed by leaky ReLU and pixel norm."""

    def forward(self, x: Tensor) -> NormedActivation:
        """The activation ``(n, S, S, out)`` of images ``(n, S, S, in)``."""
        ...

    def backward(self, grad: Tensor, preceding: NormedActivation, overwrite: bool) -> Tensor:
        """The gradient with respect to the pre-activation of ``preceding``, ``(n, S, S, in)``.

        ``preceding`` is the activation that was this layer's input; ``grad`` ``(n, S, S, out)`` is
        the gradient with respect to the output of the convolution. With ``overwrite`` the result
        may use the memory of ``preceding.out``.
        """
        ...


class UpsamplingLayer(Protocol):
    """Nearest upsampling by 2, then a `Layer`."""

    def forward(self, x: Tensor) -> NormedActivation:
        """The activation ``(n, 2 S, 2 S, out)`` of images ``(n, S, S, in)``."""
        ...

    def backward(
        self,
        grad: Tensor,
        preceding: NormedActivation,
        overwrite: bool,
        extra: Tensor | None = None,
    ) -> Tensor:
        """As `Layer.backward`, with another term of the gradient.

        ``extra`` ``(n, S, S, in)`` is added to the gradient with respect to ``preceding.out``.
        """
        ...


class Layers(Protocol):
    """The operations that a network is built from; activations have the type ``dtype``."""

    dtype: torch.dtype

    def convolution(self, kernel: Tensor, bias: Tensor, slope: float) -> Layer:
        """A layer with ``kernel`` ``(out, in, 3, 3)`` and ``bias`` ``(out,)``."""
        ...

    def upsampled(self, kernel: Tensor, bias: Tensor, slope: float) -> UpsamplingLayer:
        """The same, after upsampling."""
        ...

    def norm(self, x: Tensor, bias: Tensor, slope: float, normalise: bool) -> NormedActivation:
        """See `reference.norm`."""
        ...

    def norm_grad(
        self, grad: Tensor, preceding: NormedActivation, overwrite: bool = False
    ) -> Tensor:
        """See `reference.norm_grad`; with ``overwrite`` the result may use ``preceding.out``."""
        ...

    def to_rgb_misfit(
        self, last: NormedActivation, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`reference.to_rgb_misfit`; the memory of ``last.out`` may be taken."""
        ...

    def misfit(self, image: Tensor, spec: MisfitSpec, observation: Tensor) -> tuple[Tensor, Tensor]:
        """See `reference.misfit`."""
        ...

    def checked(self, z: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Latents, contiguous; TypeError or ValueError naming ``z`` if they do not fit."""
        ...


class NativeLayers:
    """Layers in C++ on the CPU, in float32 or float64."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.work = dtype, Workspace(dtype)

    def convolution(self, kernel: Tensor, bias: Tensor, slope: float) -> Layer:
        """A convolution by Winograd's algorithm."""
        return WinogradConvolution(kernel, bias, slope, self.work)

    def upsampled(self, kernel: Tensor, bias: Tensor, slope: float) -> UpsamplingLayer:
        """Upsampling and a convolution in one, with 9 products in place of 36 per pixel."""
        return UpsampledConvolution(kernel, bias, slope, self.work)

    def norm(self, x: Tensor, bias: Tensor, slope: float, normalise: bool) -> NormedActivation:
        """See `normed.norm`."""
        return normed.norm(x, bias, slope, normalise)

    def norm_grad(
        self, grad: Tensor, preceding: NormedActivation, overwrite: bool = False
    ) -> Tensor:
        """See `normed.norm_grad`."""
        return normed.norm_grad(grad, preceding, overwrite)

    def to_rgb_misfit(
        self, last: NormedActivation, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`to_rgb.to_rgb_misfit`."""
        return to_rgb_misfit(last, to_rgb, spec, observation)

    def misfit(self, image: Tensor, spec: MisfitSpec, observation: Tensor) -> tuple[Tensor, Tensor]:
        """See `native.misfit`."""
        return native.misfit(image, spec, observation)

    def checked(self, z: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Latents, contiguous, in this type, on the CPU."""
        return check("z", z, shape, dtype)
