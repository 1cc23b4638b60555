"""Convolutions one after the other as one module, without gradients of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cogen_fast.ops.progressive.layers import Layer, Layers, channels_first, channels_last
from cogen_fast.ops.progressive.normed import NormedActivation


class ConvolutionChain(nn.Module):
    """Layers one after the other: images ``(n, in, H, W)`` to ``(n, out, H', W')``.

    A call is differentiable once, with respect to the images alone, and keeps nothing but the
    activation of each layer. The layers share scratch memory, so only one thread may use it at a
    time. ``norms`` go back through the last activation. ``contiguous`` says whether the result is;
    otherwise it is a view of channels-last images.
    """

    def __init__(self, layers: Sequence[Layer], norms: Layers, contiguous: bool) -> None:
        super().__init__()
        self.layers, self.norms, self.contiguous = tuple(layers), norms, contiguous

    def forward(self, x: Tensor) -> Tensor:
        """The last activation."""
        if torch.is_grad_enabled() and x.requires_grad:
            images: Tensor = _Chain.apply(x, self)  # type: ignore[no-untyped-call]
        else:
            images = self._images(x)
        return images.contiguous() if self.contiguous else images

    def _images(self, x: Tensor) -> Tensor:
        out = channels_last(x)
        for layer in self.layers:
            out = layer.forward(out).out
        return channels_first(out)

    def activations(self, x: Tensor) -> list[NormedActivation]:
        """What each layer makes of images, channels last."""
        out, found = channels_last(x), []
        for layer in self.layers:
            found.append(layer.forward(out))
            out = found[-1].out
        return found

    def vjp(self, grad: Tensor, found: list[NormedActivation], shape: torch.Size) -> Tensor:
        """The gradient by images ``shape``, given that by the last activation and `activations`."""
        n, channels, height, width = shape
        # The images were not kept: any finite numbers do where no activation has to be undone.
        first = NormedActivation(grad.new_zeros(n, height, width, channels), None, 1.0)
        before = [first, *found[:-1]]
        grad = self.norms.norm_grad(channels_last(grad), found[-1], False)
        for layer, preceding in zip(reversed(self.layers), reversed(before), strict=True):
            grad = layer.backward(grad, preceding, preceding is first)
        return channels_first(grad)


class _Chain(torch.autograd.Function):
    """The chain as a function that autograd can differentiate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chain: ConvolutionChain) -> Tensor:
        found = chain.activations(x)
        ctx.chain, ctx.shape, ctx.contiguous = chain, x.shape, x.is_contiguous()
        ctx.slopes = [each.slope for each in found]
        ctx.save_for_backward(*(each.out for each in found))
        return channels_first(found[-1].out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        saved = zip(ctx.saved_tensors, ctx.slopes, strict=True)
        found = [NormedActivation(out, None, slope) for out, slope in saved]
        grad = ctx.chain.vjp(grad, found, ctx.shape)
        # As torch gives it: of one image, torch's instance norm takes no other layout the way back.
        return grad.contiguous() if ctx.contiguous else grad, None
