"""The progressive GAN generator of Karras et al. 2018 (arXiv:1710.10196).

Latent (pixel norm) -> dense to 4 x 4 -> conv 3x3 -> per further resolution: nearest upsampling by 2
and two conv 3x3 -> 1x1 conv to the image's channels. Leaky ReLU and then pixel norm follow each
layer except the last.

Public programs differ from this in few points, for which there are arguments: two flags, the slope
and the last activation. Differences of the weights alone (a bias that is scaled too, a scale of its
own per layer) are absorbed when a checkpoint is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogen_fast.generators.checks import boolean, flat_latents, fraction, positive_int
from cogen_fast.generators.fast_progressive import FastProgressive, NetworkWeights
from cogen_fast.ops.progressive.folded import FoldedLayers, Folding
from cogen_fast.ops.progressive.layers import Layers, NativeLayers
from cogen_fast.ops.reference import PIXEL_NORM_EPSILON
from cogen_fast.support.arguments import abbreviated

RESOLUTIONS = tuple(4 << stage for stage in range(9))
FINAL_ACTIVATIONS = (None, "tanh")


def he_constant(fan_in: int) -> float:
    """The factor that gives a layer with unit-variance weights the scale of He et al. 2015."""
    return math.sqrt(2.0 / fan_in)


def pixel_norm(x: Tensor) -> Tensor:
    """`x / sqrt(mean_c(x^2) + 1e-8)` over dimension 1 (Karras et al. 2018, section 4.2).

    x: (N, C, ...), any float type; returns the same shape and type.
    """
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + PIXEL_NORM_EPSILON)


def feature_maps_per_stage(resolution: int, fmap_base: int, fmap_max: int) -> list[int]:
    """`min(fmap_base / 2^s, fmap_max)` for s = 1 (4 px) up to `resolution`.

    Source: Karras et al. 2018, appendix A. Raises ValueError where a stage would have no maps.
    """
    stages = RESOLUTIONS.index(resolution) + 1
    if fmap_base < 2**stages:
        raise ValueError(
            f"fmap_base: expected at least {2**stages} for resolution {resolution}, "
            f"got {abbreviated(fmap_base)}"
        )
    return [min(fmap_base >> stage, fmap_max) for stage in range(1, stages + 1)]


class EqualisedLinear(nn.Module):
    """A dense layer with weights of unit variance, scaled at run time (Karras et al., section 4.1).

    weight: (out, in); bias: (out,), which is not scaled. x: (N, in) -> (N, out).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = he_constant(in_features)

    def scaled_weight(self) -> Tensor:
        """The weight (out, in) by which the input is actually multiplied."""
        return self.weight * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scaled_weight(), self.bias)

    def multiply_adds(self) -> int:
        """The number of multiply-adds for one latent."""
        return self.weight.numel()


class EqualisedConv2d(nn.Module):
    """A convolution that keeps the side, with weights of unit variance, scaled at run time.

    weight: (out, in, k, k), with k odd; bias: (out,), which is not scaled. x: (N, in, H, W) -> (N,
    out, H, W). Source: Karras et al. 2018, section 4.1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = he_constant(in_channels * kernel * kernel)
        self.padding = kernel // 2

    def scaled_weight(self) -> Tensor:
        """The kernel (out, in, k, k) with which the input is actually convolved."""
        return self.weight * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.scaled_weight(), self.bias, padding=self.padding)

    def multiply_adds(self, side: int) -> int:
        """The number of multiply-adds for one image of `side` x `side`."""
        return self.weight.numel() * side * side


class Base(nn.Module):
    """Latent to 4 x 4: dense, leaky ReLU, pixel norm (optional), conv, leaky ReLU, pixel norm.

    z: (N, latent) -> (N, C, 4, 4). Row `c * 16 + y * 4 + x` of the dense layer is pixel (c, y, x).
    """

    def __init__(self, latent_size: int, maps: int, slope: float, normalise_dense: bool) -> None:
        super().__init__()
        self.dense = EqualisedLinear(latent_size, maps * 16)
        self.conv = EqualisedConv2d(maps, maps, 3)
        self.maps = maps
        self.slope = slope
        self.normalise_dense = normalise_dense

    def forward(self, z: Tensor) -> Tensor:
        x = F.leaky_relu(self.dense(z), self.slope).reshape(-1, self.maps, 4, 4)
        if self.normalise_dense:
            x = pixel_norm(x)
        return pixel_norm(F.leaky_relu(self.conv(x), self.slope))

    def multiply_adds(self) -> int:
        """The number of multiply-adds for one latent."""
        return self.dense.multiply_adds() + self.conv.multiply_adds(4)


class Block(nn.Module):
    """One further resolution: nearest upsampling by 2, then twice conv, leaky ReLU, pixel norm.

    x: (N, in, S, S) -> (N, out, 2 S, 2 S).
    """

    def __init__(self, in_maps: int, out_maps: int, slope: float) -> None:
        super().__init__()
        self.conv0 = EqualisedConv2d(in_maps, out_maps, 3)
        self.conv1 = EqualisedConv2d(out_maps, out_maps, 3)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        x = upsample(x)
        x = pixel_norm(F.leaky_relu(self.conv0(x), self.slope))
        return pixel_norm(F.leaky_relu(self.conv1(x), self.slope))

    def multiply_adds(self, side: int) -> int:
        """The number of multiply-adds for one image; `side` is the side after upsampling."""
        return self.conv0.multiply_adds(side) + self.conv1.multiply_adds(side)


def upsample(x: Tensor) -> Tensor:
    """Nearest upsampling by 2: (N, C, H, W) -> (N, C, 2 H, 2 W)."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class ProgressiveGenerator(nn.Module):
    """Progressive GAN generator: z (N, latent_size) -> (N, channels, resolution, resolution).

    Args:
        resolution: the side of the image, a power of two in 4 ... 1024.
        channels: the number of colour channels of the image.
        latent_size: the length of z.
        fmap_base, fmap_max: there are `min(fmap_base / 2^s, fmap_max)` feature maps, s = 1 at 4 px.
        feature_maps: one number per resolution from 4 px up, in place of the formula.
        alpha: the weight of the NEW (highest) resolution in the fade-in, in [0, 1]: `alpha *
            to_rgb(x) + (1 - alpha) * upsample(to_rgb_previous(x_previous))`. 1, the default, is the
            fully grown network; 0 shows the previous resolution only. It may be set later.
        fades: whether the module has the layer `to_rgb_previous`, without which alpha can only be
            1. None: it has the layer if alpha is below 1.
        normalise_latent: whether pixel norm is applied to z.
        normalise_dense: whether pixel norm stands between the dense layer and the first
            convolution.
        negative_slope: the slope of the leaky ReLU, in [0, 1].
        final: the activation of the image, None (linear) or "tanh".

    Attributes: `base` (a `Base`), `blocks` (a `Block` per further resolution), `to_rgb`,
    `to_rgb_previous` (or None), `latent_size`, `output_shape` = (channels, resolution, resolution).
    Weights start as draws from N(0, 1), biases as 0. It works in any float type (`.double()` ...).

    Raises:
        ValueError: an argument is out of range; the message names it, what was expected and what
            came.

    Source: Karras et al. 2018, figure 2 (fade-in), section 4 and appendix A.
    """

    def __init__(
        self,
        resolution: int,
        *,
        channels: int = 3,
        latent_size: int = 512,
        fmap_base: int = 8192,
        fmap_max: int = 512,
        feature_maps: Sequence[int] | None = None,
        alpha: float = 1.0,
        fades: bool | None = None,
        normalise_latent: bool = True,
        normalise_dense: bool = True,
        negative_slope: float = 0.2,
        final: str | None = None,
    ) -> None:
        super().__init__()
        self.resolution = checked_resolution(resolution)
        self.channels = positive_int("channels", channels)
        self.latent_size = positive_int("latent_size", latent_size)
        self.feature_maps = (
            feature_maps_per_stage(
                resolution, positive_int("fmap_base", fmap_base), positive_int("fmap_max", fmap_max)
            )
            if feature_maps is None
            else checked_maps(feature_maps, resolution)
        )
        self.normalise_latent = boolean("normalise_latent", normalise_latent)
        self.normalise_dense = boolean("normalise_dense", normalise_dense)
        self.negative_slope = fraction("negative_slope", negative_slope)
        self.final = _checked_final(final)
        self.fades = _checked_fades(fades, fraction("alpha", alpha), resolution)
        self.alpha = alpha
        self._build_layers()

    def _build_layers(self) -> None:
        maps = self.feature_maps
        self.base = Base(self.latent_size, maps[0], self.negative_slope, self.normalise_dense)
        self.blocks = nn.ModuleList(
            Block(before, after, self.negative_slope) for before, after in pairwise(maps)
        )
        self.to_rgb = EqualisedConv2d(maps[-1], self.channels, 1)
        self.to_rgb_previous = EqualisedConv2d(maps[-2], self.channels, 1) if self.fades else None

    @property
    def alpha(self) -> float:
        """The weight of the new resolution, in [0, 1]; 1 is fully grown.

        It may be set below 1 only where the generator `fades`.
        """
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        value = fraction("alpha", value)
        if value < 1.0 and not self.fades:
            raise ValueError(
                f"alpha: expected 1.0, as this generator has no colour layer of the previous "
                f"resolution, got {value}"
            )
        self._alpha = value

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """The shape of one image: (channels, resolution, resolution)."""
        return (self.channels, self.resolution, self.resolution)

    @property
    def config(self) -> dict[str, Any]:
        """JSON-ready arguments: `ProgressiveGenerator(**config)` differs in the weights alone."""
        return {
            "resolution": self.resolution,
            "channels": self.channels,
            "latent_size": self.latent_size,
            "feature_maps": list(self.feature_maps),
            "alpha": self.alpha,
            "fades": self.fades,
            "normalise_latent": self.normalise_latent,
            "normalise_dense": self.normalise_dense,
            "negative_slope": self.negative_slope,
            "final": self.final,
        }

    def forward(self, z: Tensor) -> Tensor:
        """Images (N, channels, resolution, resolution) of z (N, latent_size[, 1, 1]), in z's type.

        Raises ValueError if z has another shape.
        """
        z = flat_latents(z, self.latent_size)
        x = self.base(pixel_norm(z) if self.normalise_latent else z)
        previous = x
        for block in self.blocks:
            previous, x = x, block(x)
        image: Tensor = self.to_rgb(x)
        if self.to_rgb_previous is not None and self.alpha < 1.0:
            faded = upsample(self.to_rgb_previous(previous))
            image = self.alpha * image + (1.0 - self.alpha) * faded
        return torch.tanh(image) if self.final == "tanh" else image

    def fast_path(
        self, dtype: torch.dtype | None = None, folding: Folding = "transposed"
    ) -> FastProgressive:
        """The same function, differentiable with respect to z alone.

        It copies the weights and alpha as they are now. On the CPU it runs in C++. On CUDA it runs
        by torch and Triton, with activations of type ``dtype`` (the weights' own type, bfloat16 or
        float16) and upsampling folded into convolutions as ``folding`` says
        (`cogen_fast.ops.progressive.folded`).

        Raises:
            TypeError: the weights are neither float32 nor float64.
            ValueError: the weights are neither on the CPU nor on CUDA, or ``dtype`` is another type
                than theirs on the CPU.
            ImportError: there is no Triton, for CUDA; or, when the result is called on the CPU, the
                package's extension is missing.
        """
        weight = self.to_rgb.weight
        layers = _layers(weight.device, weight.dtype, dtype or weight.dtype, folding)
        return FastProgressive(self.network(), layers)

    def network(self) -> NetworkWeights:
        """The weights and alpha as they are now, He constants included, as plain data."""
        faded = self.to_rgb_previous if self.alpha < 1.0 else None
        convolutions = [self.base.conv]
        for block in self.blocks:
            assert isinstance(block, Block)
            convolutions += [block.conv0, block.conv1]
        return NetworkWeights(
            dense=_layer_weights(self.base.dense),
            convolutions=[_layer_weights(convolution) for convolution in convolutions],
            to_rgb=_layer_weights(self.to_rgb),
            faded=None if faded is None else _layer_weights(faded),
            alpha=self.alpha,
            normalise_latent=self.normalise_latent,
            normalise_dense=self.normalise_dense,
            slope=self.negative_slope,
            bounded=self.final == "tanh",
        )

    def multiply_adds(self) -> int:
        """Multiply-adds of a forward pass for one latent, in dense and convolution layers."""
        total = self.base.multiply_adds() + self.to_rgb.multiply_adds(self.resolution)
        for block, side in zip(self.blocks, RESOLUTIONS[1:], strict=False):
            assert isinstance(block, Block)
            total += block.multiply_adds(side)
        if self.to_rgb_previous is not None and self.alpha < 1.0:
            total += self.to_rgb_previous.multiply_adds(self.resolution // 2)
        return total


def _layers(
    device: torch.device, weights: torch.dtype, dtype: torch.dtype, folding: Folding
) -> Layers:
    """The implementation of the layers on ``device``.

    ``weights`` is the type of the weights, ``dtype`` that of the activations.
    """
    if device.type == "cuda":
        from cogen_fast.ops.progressive import normed_triton  # raises ImportError without Triton

        return FoldedLayers(dtype, normed_triton, folding)
    if device.type != "cpu":
        raise ValueError(f"network: expected weights on cpu or cuda, got them on {device}")
    if dtype != weights:
        raise ValueError(f"dtype: expected {weights} on the CPU, that of the weights, got {dtype}")
    return NativeLayers(dtype)


def _layer_weights(module: EqualisedLinear | EqualisedConv2d) -> tuple[Tensor, Tensor]:
    return module.scaled_weight().detach(), module.bias.detach().clone()


def checked_resolution(resolution: object) -> int:
    """A side of `RESOLUTIONS`; ValueError for any other value."""
    side = positive_int("resolution", resolution)
    if side not in RESOLUTIONS:
        raise ValueError(
            f"resolution: expected a power of two in 4 ... 1024, got {abbreviated(resolution)}"
        )
    return side


def checked_maps(feature_maps: Sequence[int], resolution: int) -> list[int]:
    """One positive number for each resolution from 4 px up to `resolution`, else ValueError."""
    maps = [positive_int("feature_maps", maps) for maps in feature_maps]
    stages = RESOLUTIONS.index(resolution) + 1
    if len(maps) != stages:
        raise ValueError(
            f"feature_maps: expected {stages} numbers for resolution {resolution}, "
            f"got {abbreviated(maps)}"
        )
    return maps


def _checked_final(final: str | None) -> str | None:
    if final not in FINAL_ACTIVATIONS:
        raise ValueError(f"final: expected one of {FINAL_ACTIVATIONS}, got {abbreviated(final)}")
    return final


def _checked_fades(fades: bool | None, alpha: float, resolution: int) -> bool:
    fades = alpha < 1.0 if fades is None else boolean("fades", fades)
    if fades and resolution == RESOLUTIONS[0]:
        raise ValueError(
            f"fades: expected False at resolution {resolution}, where no lower one exists, "
            f"got {fades} (alpha {alpha})"
        )
    return fades
