"""The progressive GAN for sampling: its images, and their gradient with respect to the latent.

It is the same function as `ProgressiveGenerator`, without autograd and without gradients of the
weights. He constants are folded into the weights; each upsampling and the convolution after it are
one operation; bias, leaky ReLU and pixel norm are one pass in each direction.
`cogen_fast.ops.progressive.layers` computes them: in C++ on the CPU, by torch and Triton on CUDA.
Of every activation only the normalised output and one number per pixel are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cogen_fast.ops.progressive.layers import Layers
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.progressive.to_rgb import ToRGB
from cogen_fast.ops.spec import MisfitSpec

LayerWeights = tuple[Tensor, Tensor]
"""A weight, He constant included, and a bias."""


@dataclass(frozen=True)
class NetworkWeights:
    """The weights and settings of a progressive GAN, as plain data; dtype float32 or float64.

    ``dense`` has a weight ``(16 C, d)``, whose row ``c * 16 + y * 4 + x`` is pixel (c, y, x);
    ``convolutions`` ``(out, in, 3, 3)`` are the one at 4 px and two for each further resolution;
    ``to_rgb`` and, while fading, ``faded`` (of the resolution before) are ``(channels, C, 1, 1)``.
    The rest is as in `ProgressiveGenerator`.
    """

    dense: LayerWeights
    convolutions: Sequence[LayerWeights]
    to_rgb: LayerWeights
    faded: LayerWeights | None
    alpha: float
    normalise_latent: bool
    normalise_dense: bool
    slope: float
    bounded: bool


class FastProgressive:
    """A progressive GAN for sampling: z ``(n, d)`` to images ``(n, channels, R, R)``.

    A call is differentiable once, with respect to z alone. The weights are those that it was made
    with. Latents, images and z-gradients have their type, activations that of ``layers``. Only one
    thread may use it at a time. Raises TypeError if the weights are neither float32 nor float64.
    """

    def __init__(self, network: NetworkWeights, layers: Layers) -> None:
        weight, bias = network.dense
        if weight.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"network: expected float32 or float64 weights, got {weight.dtype}")
        self.network, self.layers = network, layers
        maps = len(bias) // 16
        self._maps = maps
        # Images are channels last, so rows are ordered by pixel, then by channel.
        self._dense = weight.view(maps, 16, -1).transpose(0, 1).flatten(0, 1).contiguous()
        self._dense_bias = bias.view(maps, 16).T.flatten().contiguous()
        slope = network.slope
        first, *rest = network.convolutions
        self._base = layers.convolution(*first, slope)
        self._blocks = [
            (layers.upsampled(*rest[i], slope), layers.convolution(*rest[i + 1], slope))
            for i in range(0, len(rest), 2)
        ]
        self._to_rgb = _to_rgb(network.to_rgb, network.bounded)
        self._faded = None if network.faded is None else _to_rgb(network.faded, False)

    def __call__(self, z: Tensor) -> Tensor:
        """Images ``(n, channels, R, R)`` of z ``(n, d)``; TypeError or ValueError naming z."""
        if torch.is_grad_enabled() and z.requires_grad:
            image: Tensor = _Image.apply(z, self)  # type: ignore[no-untyped-call]
            return image
        return self._image(self._forward(z))

    def energy_and_grad(
        self, z: Tensor, spec: MisfitSpec, observation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Misfit energies ``(n,)`` float64 and their gradients ``(n, d)``, for z ``(n, d)``.

        ``observation`` ``(n,)`` int64 is the row of ``spec`` that each z belongs to. No image is
        written, except during a fade-in. Raises TypeError or ValueError naming the argument.
        """
        trace = self._forward(z.detach())
        if self._faded is None:
            energy, grad = self.layers.to_rgb_misfit(trace[-1], self._to_rgb, spec, observation)
            return energy, self._back(grad, trace, overwrite=True)
        image = self._image(trace).contiguous()
        energy, by_image = self.layers.misfit(image, spec, observation)
        return energy, self._vjp(by_image, trace, overwrite=True)

    def _forward(self, z: Tensor) -> list[NormedActivation]:
        """The activations of every layer, the latent first; images are ``(n, S, S, C)``."""
        network, norm = self.network, self.layers.norm
        z = self.layers.checked(z, (len(z), self._dense.shape[1]), self._dense.dtype)
        x = norm(z, z.new_zeros(z.shape[1]), 1.0, True) if network.normalise_latent else None
        latent = NormedActivation(z, None, 1.0) if x is None else x
        dense = torch.addmm(self._dense_bias, latent.out, self._dense.T).view(-1, 4, 4, self._maps)
        zero = dense.new_zeros(self._maps)
        dense = dense.to(self.layers.dtype)
        trace = [latent, norm(dense, zero, network.slope, network.normalise_dense)]
        for layer in (self._base, *(each for block in self._blocks for each in block)):
            trace.append(layer.forward(trace[-1].out))
        return trace

    def _image(self, trace: Sequence[NormedActivation]) -> Tensor:
        image = _to_image(trace[-1].out, self._to_rgb)
        if self._faded is not None:
            alpha = self.network.alpha
            before = _to_image(trace[-3].out, self._faded)
            image = alpha * image + (1.0 - alpha) * _upsampled(before)
        return (torch.tanh(image) if self.network.bounded else image).permute(0, 3, 1, 2)

    def _vjp(self, grad: Tensor, trace: list[NormedActivation], overwrite: bool) -> Tensor:
        """The gradient with respect to z, from the one of the image ``(n, channels, R, R)``."""
        grad = grad.permute(0, 2, 3, 1)
        if self.network.bounded:
            grad = grad * (1.0 - self._image(trace).permute(0, 2, 3, 1) ** 2)
        extra = None
        if self._faded is not None:
            extra = (1.0 - self.network.alpha) * _upsampled_adjoint(grad) @ self._faded.weight
            grad = self.network.alpha * grad
        grad = self.layers.norm_grad(grad @ self._to_rgb.weight, trace[-1], overwrite)
        return self._back(grad, trace, overwrite, extra)

    def _back(
        self,
        grad: Tensor,
        trace: list[NormedActivation],
        overwrite: bool,
        extra: Tensor | None = None,
    ) -> Tensor:
        """The gradient with respect to z, from the one of the last convolution's output.

        ``grad`` is ``(n, R, R, C)``; ``extra`` is added to the gradient with respect to the
        activation of the resolution before.
        """
        before = iter(trace[-2::-1])
        for up, plain in reversed(self._blocks):
            grad = plain.backward(grad, next(before), overwrite)
            grad = up.backward(grad, next(before), overwrite, extra)
            extra = None
        grad = self._base.backward(grad, next(before), overwrite)
        grad = grad.flatten(1).to(self._dense.dtype) @ self._dense
        latent = next(before)
        return grad if latent.scale is None else self.layers.norm_grad(grad, latent)


class _Image(torch.autograd.Function):
    """The images as a function that autograd can differentiate."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, fast: FastProgressive) -> Tensor:
        trace = fast._forward(z)
        ctx.fast, ctx.slopes = fast, [each.slope for each in trace]
        ctx.save_for_backward(*(t for each in trace for t in (each.out, each.scale)))
        return fast._image(trace)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        saved = ctx.saved_tensors
        trace = [
            NormedActivation(*each)
            for each in zip(saved[::2], saved[1::2], ctx.slopes, strict=True)
        ]
        return ctx.fast._vjp(grad, trace, overwrite=False), None


def _to_rgb(layer: LayerWeights, bounded: bool) -> ToRGB:
    weight, bias = layer
    return ToRGB(weight.flatten(1).contiguous(), bias.contiguous(), bounded)


def _to_image(x: Tensor, to_rgb: ToRGB) -> Tensor:
    """``(n, S, S, C)`` to ``(n, S, S, channels)``, before any tanh."""
    return x.to(to_rgb.weight.dtype) @ to_rgb.weight.T + to_rgb.bias


def _upsampled(x: Tensor) -> Tensor:
    """Nearest upsampling by 2 of ``(n, S, S, C)``."""
    return x.repeat_interleave(2, 1).repeat_interleave(2, 2)


def _upsampled_adjoint(x: Tensor) -> Tensor:
    """The adjoint of `_upsampled`: sums over 2 x 2 pixels."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).sum((2, 4))
