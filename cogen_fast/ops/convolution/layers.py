"""Which code computes a convolution of a user's generator, with the activation that follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cogen_fast.ops.convolution.tap_sums import SummedTaps
from cogen_fast.ops.convolution.winograd import TiledConvolution, TiledTransposed
from cogen_fast.ops.progressive import normed
from cogen_fast.ops.progressive.layers import (
    Layer,
    Layers,
    NativeLayers,
    channels_first,
    channels_last,
)
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.upsampled import UpsampledConvolution

Pair = tuple[int, int]
_FEW_CHANNELS = 8  # below this, tiles would waste most of their products
MANY_CHANNELS = 128
"""From here on, tiles pay where nothing is joined with the convolution."""


@dataclass(frozen=True)
class ConvolutionSpec:
    """A convolution with what surrounds it: maybe nearest upsampling by 2, a bias, a leaky ReLU.

    ``weight`` is that of `torch.nn.functional.conv2d` or, if ``transposed``, of
    `torch.nn.functional.conv_transpose2d`; ``bias`` is ``(out,)``. ``slope`` is that of the leaky
    ReLU: 0 for a ReLU, 1 for none. ``folded`` says that a batch norm is in the weights. The inputs
    are ``side`` pixels high and wide, before upsampling.
    """

    weight: Tensor
    bias: Tensor
    transposed: bool
    stride: Pair
    padding: Pair
    output_padding: Pair
    dilation: Pair
    groups: int
    slope: float
    folded: bool
    upsampled: bool
    side: Pair

    @property
    def plain(self) -> bool:
        """Whether it has one group and no dilation or output padding."""
        return self.groups == 1 and self.dilation == (1, 1) and self.output_padding == (0, 0)

    @property
    def products(self) -> int:
        """The multiply-adds of an image, as the convolution is written."""
        pixels = self.side[0] * self.side[1] * (4 if self.upsampled else 1)
        if not self.transposed:
            pixels = -(-pixels // (self.stride[0] * self.stride[1]))
        return pixels * self.weight.numel()


def layer_of(spec: ConvolutionSpec, layers: Layers) -> Layer | None:
    """The code for a convolution; None where a call of torch is as good.

    ``layers`` are what activations of other layers are computed by: in C++, where weights of
    another type are left to torch, or by torch.
    """
    work = layers.work if isinstance(layers, NativeLayers) else None
    if work is not None and spec.weight.dtype != work.dtype:
        return None
    joined = spec.folded or spec.slope != 1.0
    by_torch = joined and not spec.upsampled
    if work is None:
        return TorchConvolution(spec, layers) if by_torch else None
    kernel, by_tiles = tuple(spec.weight.shape[2:]), len(spec.bias) >= _FEW_CHANNELS
    where = (kernel, spec.stride, spec.padding) if spec.plain else None
    if spec.upsampled:
        if spec.transposed or where != ((3, 3), (1, 1), (1, 1)):
            return None
        return UpsampledConvolution(spec.weight, spec.bias, spec.slope, work, normalise=False)
    wide = min(spec.weight.shape[:2]) >= MANY_CHANNELS
    if not spec.transposed and where == ((3, 3), (1, 1), (1, 1)) and by_tiles and (joined or wide):
        return TiledConvolution(spec.weight, spec.bias, spec.slope, work, spec.side)
    if spec.transposed and where == ((4, 4), (2, 2), (1, 1)):
        if not by_tiles:
            return SummedTaps(spec.weight, spec.bias, spec.slope, work)
        return TiledTransposed(spec.weight, spec.bias, spec.slope, work, spec.side)
    if spec.transposed and where is not None and spec.side == (1, 1) and spec.padding == (0, 0):
        return OnePixel(spec.weight, spec.bias, spec.slope)
    return TorchConvolution(spec, layers) if by_torch else None


class OnePixel:
    """A transposed convolution of images of one pixel, ``(n, 1, 1, in)``: a dense layer.

    ``weight`` is ``(in, out, k, l)``, and images are ``(n, k, l, out)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor, slope: float) -> None:
        self._matrix = weight.permute(0, 2, 3, 1).flatten(1).contiguous()
        self._shape = (*weight.shape[2:], weight.shape[1])
        self._bias, self._slope = bias, slope

    def forward(self, x: Tensor) -> NormedActivation:
        """See `Layer`."""
        images = (x.flatten(1) @ self._matrix).view(-1, *self._shape)
        return normed.norm(images, self._bias, self._slope, False)

    def backward(self, grad: Tensor, preceding: NormedActivation, overwrite: bool) -> Tensor:
        """See `Layer`."""
        by_input = grad.flatten(1) @ self._matrix.T
        return normed.norm_grad(by_input.view_as(preceding.out), preceding, overwrite)


class TorchConvolution:
    """Any convolution by torch, of channels-last images, without gradients of its weights."""

    def __init__(self, spec: ConvolutionSpec, layers: Layers) -> None:
        self._weight = spec.weight.contiguous(memory_format=torch.channels_last)
        self._bias, self._slope, self._layers = spec.bias.contiguous(), spec.slope, layers
        self._how: dict[str, Any] = {
            "stride": spec.stride,
            "padding": spec.padding,
            "dilation": spec.dilation,
            "groups": spec.groups,
        }
        self._transposed, self._output_padding = spec.transposed, spec.output_padding

    def forward(self, x: Tensor) -> NormedActivation:
        """See `Layer`."""
        images = channels_first(x)
        if self._transposed:
            how = {**self._how, "output_padding": self._output_padding}
            out = F.conv_transpose2d(images, self._weight, **how)
        else:
            out = F.conv2d(images, self._weight, **self._how)
        return self._layers.norm(channels_last(out), self._bias, self._slope, False)

    def backward(self, grad: Tensor, preceding: NormedActivation, overwrite: bool) -> Tensor:
        """See `Layer`."""
        images = channels_first(preceding.out)
        by_input, _, _ = torch.ops.aten.convolution_backward(
            channels_first(grad),
            images,  # for its shape and layout alone
            self._weight,
            None,
            self._how["stride"],
            self._how["padding"],
            self._how["dilation"],
            self._transposed,
            self._output_padding,
            self._how["groups"],
            (True, False, False),
        )
        return self._layers.norm_grad(channels_last(by_input), preceding, overwrite)
