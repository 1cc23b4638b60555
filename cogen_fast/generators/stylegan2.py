"""The StyleGAN2 generator of Karras et al. 2020 (arXiv:1912.04958).

Latent (normalised) -> mapping network -> style w -> synthesis: a learnt 4 x 4 constant, then two
modulated convolutions for each further resolution, each followed by noise, a bias and a leaky ReLU.
The image is the sum of up-sampled contributions of all resolutions ("skip"), or one projection of
the last features ("residual", "original").

Weights are those by which a layer multiplies in fact: equalised learning rates and gains of public
programs are absorbed when a checkpoint is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogen_fast.generators.checks import flat_latents, fraction, positive_int
from cogen_fast.generators.progressive import (
    RESOLUTIONS,
    checked_maps,
    checked_resolution,
    pixel_norm,
)
from cogen_fast.support.arguments import abbreviated, shown

ARCHITECTURES = ("skip", "residual", "original")
_SLOPE, _GAIN = 0.2, math.sqrt(2.0)  # of every leaky ReLU
_EPSILON = 1e-8
_HALF = math.sqrt(0.5)  # keeps the variance of a sum of two branches
Noise = Literal["stored", "none"] | Sequence[Tensor]


def activated(x: Tensor, bias: Tensor, gain: float, clamp: float | None) -> Tensor:
    """`gain * leaky_relu(x + bias)` within +-`clamp`; bias (C,) along dimension 1."""
    x = F.leaky_relu(x + bias.reshape(-1, *[1] * (x.ndim - 2)), _SLOPE) * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def filtered(x: Tensor, taps: Tensor, before: int, after: int) -> Tensor:
    """Convolution of each channel (N, C, H, W) with `taps` (k, k), zeros around it.

    `before` zeros are added above and to the left, `after` below and to the right (negative numbers
    crop), so that H becomes H + before + after - k + 1.
    """
    channels = x.shape[1]
    padded = F.pad(x, [before, after, before, after])
    kernel = taps.flip(0, 1).to(x.dtype).expand(channels, 1, -1, -1)
    return F.conv2d(padded, kernel, groups=channels)


def upsampled(x: Tensor, taps: Tensor) -> Tensor:
    """Twice the side: zeros between the pixels, then the filter, with the brightness kept.

    x: (N, C, H, W), taps: (k, k) with sum 1; returns (N, C, 2 H, 2 W).
    """
    n, channels, height, width = x.shape
    sparse = x.new_zeros(n, channels, height, 2, width, 2)
    sparse[:, :, :, 0, :, 0] = x
    size = taps.shape[0]
    sparse = sparse.reshape(n, channels, 2 * height, 2 * width)
    return filtered(sparse, 4.0 * taps, (size + 1) // 2, (size - 2) // 2)


class Modulated(nn.Module):
    """Convolution whose input channels are scaled by the style (their section 2.2).

    x (N, in, H, W), w (N, style) -> (N, out, H, W), or twice the side where `up`. The kernel is
    (out, in, k, k), the affine map from w to the scales (in, style) and (in,). Where `demodulated`,
    outputs have unit variance if inputs have. The paper scales the kernel of each image (equations
    1 to 3); scaling inputs and outputs instead is the same, and all images share one kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_size: int,
        kernel: int,
        *,
        up: bool = False,
        demodulated: bool = True,
    ) -> None:
        super().__init__()
        fan_in = in_channels * kernel * kernel
        scale = 1.0 if demodulated else 1.0 / math.sqrt(fan_in)
        self.weight = nn.Parameter(scale * torch.randn(out_channels, in_channels, kernel, kernel))
        self.style_weight = nn.Parameter(
            torch.randn(in_channels, style_size) / math.sqrt(style_size)
        )
        self.style_bias = nn.Parameter(torch.ones(in_channels))
        self.up, self.demodulated = up, demodulated

    def forward(self, x: Tensor, w: Tensor, taps: Tensor) -> Tensor:
        style = F.linear(w, self.style_weight, self.style_bias)
        x = x * style[:, :, None, None]
        padding = self.weight.shape[-1] // 2
        if self.up:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            size, side = taps.shape[0], self.weight.shape[-1]
            before = padding + (size + 1) // 2 - (side - 1)
            after = padding + (size - 2) // 2 - (side - 2)
            x = filtered(x, 4.0 * taps, before, after)
        else:
            x = F.conv2d(x, self.weight, padding=padding)
        return x * self._demodulation(style)[:, :, None, None] if self.demodulated else x

    def _demodulation(self, style: Tensor) -> Tensor:
        """One over the standard deviation of each output channel, (N, out) (equation 3)."""
        power = self.weight.square().sum((2, 3))
        return torch.rsqrt(F.linear(style.square(), power) + _EPSILON)


class Layer(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU: (N, in, H, W) -> (N, out, S, S).

    `noise` (S, S) is what the checkpoint holds, `noise_strength` its factor.
    """

    def __init__(
        self, in_channels: int, out_channels: int, style_size: int, side: int, *, up: bool
    ) -> None:
        super().__init__()
        self.conv = Modulated(in_channels, out_channels, style_size, 3, up=up)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.noise: Tensor
        self.register_buffer("noise", torch.randn(side, side))

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        taps: Tensor,
        noise: Tensor | None,
        clamp: float | None,
        gain: float = 1.0,
    ) -> Tensor:
        x = self.conv(x, w, taps)
        if noise is not None:
            x = x + noise.to(x.dtype) * self.noise_strength
        return activated(x, self.bias, gain * _GAIN, None if clamp is None else gain * clamp)


class ToRGB(nn.Module):
    """Modulated 1 x 1 convolution to the colours of the image, without demodulation."""

    def __init__(self, in_channels: int, channels: int, style_size: int) -> None:
        super().__init__()
        self.conv = Modulated(in_channels, channels, style_size, 1, demodulated=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, w: Tensor, taps: Tensor, clamp: float | None) -> Tensor:
        x = self.conv(x, w, taps) + self.bias[:, None, None]
        return x if clamp is None else x.clamp(-clamp, clamp)


class Block(nn.Module):
    """The layers of one resolution: one at 4 px, two above; `to_rgb` and `skip` where they are."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style_size: int,
        side: int,
        channels: int | None,
        *,
        residual: bool,
    ) -> None:
        super().__init__()
        first = side == RESOLUTIONS[0]
        self.conv0 = None if first else Layer(in_channels, out_channels, style_size, side, up=True)
        self.conv1 = Layer(out_channels, out_channels, style_size, side, up=False)
        self.to_rgb = None if channels is None else ToRGB(out_channels, channels, style_size)
        self.skip = None
        if residual and not first:
            weight = torch.randn(out_channels, in_channels, 1, 1) / math.sqrt(in_channels)
            self.skip = nn.Parameter(weight)

    @property
    def layers(self) -> list[Layer]:
        """Those with noise, in order."""
        return [self.conv1] if self.conv0 is None else [self.conv0, self.conv1]

    def forward(
        self,
        x: Tensor,
        styles: Sequence[Tensor],
        taps: Tensor,
        noise: Sequence[Tensor | None],
        clamp: float | None,
    ) -> Tensor:
        if self.conv0 is None:
            only: Tensor = self.conv1(x, styles[0], taps, noise[0], clamp)
            return only
        before = x
        gain = 1.0 if self.skip is None else _HALF
        x = self.conv0(x, styles[0], taps, noise[0], clamp)
        x = self.conv1(x, styles[1], taps, noise[1], clamp, gain)
        if self.skip is None:
            return x
        return upsampled(F.conv2d(before, self.skip), taps) * _HALF + x


class Mapping(nn.Module):
    """The mapping network: latents (N, d) and class labels (N, classes) to styles (N, style).

    `sizes` are the widths of the layers' outputs, the last one that of the style. Labels pass a
    linear layer of `embedding` outputs, normalised, and stand beside the normalised latents.
    """

    def __init__(
        self, latent_size: int, sizes: Sequence[int], classes: int, embedding: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(classes, embedding) if classes else None
        widths = [latent_size + (embedding if classes else 0), *sizes]
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        x = pixel_norm(z)
        if self.embed is not None:
            assert labels is not None
            x = torch.cat([x, pixel_norm(self.embed(labels))], 1)
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            x = activated(F.linear(x, layer.weight), layer.bias, _GAIN, None)
        return x


class StyleGAN2Generator(nn.Module):
    """StyleGAN2 generator: z (N, latent_size) -> (N, channels, resolution, resolution).

    Args:
        resolution: side of the image, a power of two in 4 ... 1024.
        channels: colours of the image.
        latent_size: length of z.
        mapping: widths of the mapping network's layers; the last one is the length of w.
        feature_maps: one number for each resolution from 4 px up.
        classes: number of class labels (0: unconditional).
        embedding: length of a label's embedding, where there are labels.
        architecture: "skip", "residual", or "original" (neither: figure 7 a).
        taps: one-dimensional resampling filter, symmetric or not; its sum is set to 1.
        clamp: bound of activations, None for none.
        truncation: psi of the truncation trick, in [0, 1]: `w_mean + psi (w - w_mean)`.

    Attributes: `mapping` (a `Mapping`), `constant` (1, C, 4, 4), `blocks` (a `Block` for each
    resolution), `style_mean` (style,), `latent_size`, `style_size`, `style_layers` (how many places
    take a style), `output_shape`. Works in any float type.

    Raises:
        ValueError: an argument is out of range; names it, what was expected and what came.

    Source: Karras et al. 2020, figure 2 and section 2; appendix B for "skip" and "residual".
    """

    def __init__(
        self,
        resolution: int,
        *,
        channels: int = 3,
        latent_size: int = 512,
        mapping: Sequence[int] = (512,) * 8,
        feature_maps: Sequence[int],
        classes: int = 0,
        embedding: int = 512,
        architecture: Literal["skip", "residual", "original"] = "skip",
        taps: Sequence[float] = (1.0, 3.0, 3.0, 1.0),
        clamp: float | None = None,
        truncation: float = 1.0,
    ) -> None:
        super().__init__()
        self.resolution = checked_resolution(resolution)
        self.channels = positive_int("channels", channels)
        self.latent_size = positive_int("latent_size", latent_size)
        self.mapping_sizes = [positive_int("mapping", size) for size in mapping]
        if not self.mapping_sizes:
            raise ValueError("mapping: expected at least one layer, got none")
        self.style_size = self.mapping_sizes[-1]
        self.feature_maps = checked_maps(feature_maps, resolution)
        self.classes = _checked_classes(classes)
        self.embedding = positive_int("embedding", embedding)
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture: expected one of {ARCHITECTURES}, got {abbreviated(architecture)}"
            )
        self.architecture = architecture
        self.clamp = None if clamp is None else _positive("clamp", clamp)
        self.truncation = truncation
        self._build(_checked_taps(taps))

    def _build(self, taps: list[float]) -> None:
        self.taps_1d = taps
        row = torch.tensor(taps, dtype=torch.float64, device="cpu")
        row = row / row.sum()
        # No buffer: in float64, which not every device has, it can be rounded to any type, once.
        self.taps = torch.outer(row, row)
        self._taps: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self.mapping = Mapping(self.latent_size, self.mapping_sizes, self.classes, self.embedding)
        self.style_mean: Tensor
        self.register_buffer("style_mean", torch.zeros(self.style_size))
        self.constant = nn.Parameter(torch.randn(1, self.feature_maps[0], 4, 4))
        blocks, residual = [], self.architecture == "residual"
        before = self.feature_maps[0]
        for maps, side in zip(self.feature_maps, RESOLUTIONS, strict=False):
            shows = self.architecture == "skip" or side == self.resolution
            channels = self.channels if shows else None
            block = Block(before, maps, self.style_size, side, channels, residual=residual)
            blocks.append(block)
            before = maps
        self.blocks = nn.ModuleList(blocks)

    @property
    def truncation(self) -> float:
        """Psi of the truncation trick, in [0, 1]; 1 changes nothing. It may be set."""
        return self._truncation

    @truncation.setter
    def truncation(self, value: float) -> None:
        self._truncation = fraction("truncation", value)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, resolution, resolution)."""
        return (self.channels, self.resolution, self.resolution)

    @property
    def style_layers(self) -> int:
        """Places of the synthesis network that take a style, `to_rgb` of the last one included."""
        return 2 * len(self.feature_maps)

    @property
    def noise_sides(self) -> list[int]:
        """Side of each layer's noise, in order."""
        return [layer.noise.shape[0] for layer in self._layers()]

    @property
    def config(self) -> dict[str, Any]:
        """JSON-ready arguments: `StyleGAN2Generator(**config)` is equal but for the weights."""
        return {
            "resolution": self.resolution,
            "channels": self.channels,
            "latent_size": self.latent_size,
            "mapping": list(self.mapping_sizes),
            "feature_maps": list(self.feature_maps),
            "classes": self.classes,
            "embedding": self.embedding,
            "architecture": self.architecture,
            "taps": list(self.taps_1d),
            "clamp": self.clamp,
            "truncation": self.truncation,
        }

    def forward(
        self, z: Tensor, labels: Tensor | None = None, *, noise: Noise = "stored"
    ) -> Tensor:
        """Images (N, channels, resolution, resolution) of latents z (N, latent_size[, 1, 1]).

        Args:
            labels: of a conditional network, (N, classes) numbers (one-hot), or (N,) or one whole
                number in [0, classes); they are broadcast.
            noise: "stored" (what the file held: the output is a function of z), "none", or one
                tensor for each layer, (S, S), (1, 1, S, S) or (N, 1, S, S), S from `noise_sides`.

        Raises:
            ValueError: a shape or a label is not as above.
        """
        return self.synthesise(self.styles(z, labels), noise=noise)

    def styles(
        self, z: Tensor, labels: Tensor | None = None, *, truncation: float | None = None
    ) -> Tensor:
        """Styles w (N, style_size) of latents (N, latent_size[, 1, 1]), `truncated`.

        Raises ValueError as `forward` does.
        """
        z = flat_latents(z, self.latent_size)
        w: Tensor = self.mapping(z, self._one_hot(labels, z))
        return self.truncated(w, truncation)

    def truncated(self, w: Tensor, truncation: float | None = None) -> Tensor:
        """Styles (..., style_size) by the truncation trick, with the generator's psi or another."""
        psi = self.truncation if truncation is None else fraction("truncation", truncation)
        return w if psi == 1.0 else self.style_mean + psi * (w - self.style_mean)

    def estimated_style_mean(self, draws: int = 10_000) -> Tensor:
        """Mean style of ``draws`` latents from fixed noise, (style_size,).

        Of a conditional network, with labels drawn evenly.
        """
        random = torch.Generator().manual_seed(0)
        z = torch.randn(draws, self.latent_size, generator=random, device="cpu").to(self.constant)
        labels = None
        if self.classes:
            labels = torch.randint(self.classes, (draws,), generator=random, device="cpu")
        with torch.no_grad():
            return self.styles(z, labels, truncation=1.0).mean(0)

    def synthesise(self, w: Tensor, *, noise: Noise = "stored") -> Tensor:
        """Images of styles w: (N, style_size), or (N, style_layers, style_size) for one each.

        `noise` is that of `forward`. Raises ValueError for other shapes.
        """
        styles = self._styles_of_layers(w)
        noises = self._noises(noise, len(w))
        x = self.constant.expand(len(w), -1, -1, -1)
        taps = self._taps_beside(self.constant)
        image: Tensor | None = None
        place = 0
        for block in self.blocks:
            assert isinstance(block, Block)
            count = len(block.layers)
            x = block(x, styles[place : place + count], taps, noises[:count], self.clamp)
            place, noises = place + count, noises[count:]
            if image is not None:
                image = upsampled(image, taps)
            if block.to_rgb is not None:
                colours = block.to_rgb(x, styles[place], taps, self.clamp)
                image = colours if image is None else image + colours
        assert image is not None
        return image

    def _taps_beside(self, weights: Tensor) -> Tensor:
        """The filter on the device and in the type of ``weights``, moved there once."""
        key = weights.device, weights.dtype
        if key not in self._taps:
            with torch.inference_mode(False):  # it may be needed for a gradient later
                self._taps[key] = self.taps.to(weights.dtype).to(weights.device)
        return self._taps[key]

    def _layers(self) -> list[Layer]:
        return [layer for block in self.blocks for layer in block.layers]  # type: ignore[union-attr]

    def _styles_of_layers(self, w: Tensor) -> list[Tensor]:
        if w.ndim == 2 and w.shape[1] == self.style_size:
            return [w] * self.style_layers
        if w.ndim != 3 or tuple(w.shape[1:]) != (self.style_layers, self.style_size):
            raise ValueError(
                f"w: expected shape (N, {self.style_size}) or (N, {self.style_layers}, "
                f"{self.style_size}), got {tuple(w.shape)}"
            )
        return list(w.unbind(1))

    def _noises(self, noise: Noise, count: int) -> list[Tensor | None]:
        layers = self._layers()
        if isinstance(noise, str):
            if noise not in ("stored", "none"):
                raise ValueError(f"noise: expected 'stored', 'none' or tensors, got {noise!r}")
            return [layer.noise if noise == "stored" else None for layer in layers]
        if not isinstance(noise, list | tuple) or len(noise) != len(layers):
            got = len(noise) if isinstance(noise, list | tuple) else shown(noise)
            raise ValueError(f"noise: expected {len(layers)} tensors, got {got}")
        for number, (each, side) in enumerate(zip(noise, self.noise_sides, strict=True)):
            shape = tuple(each.shape)
            if shape not in ((side, side), (1, 1, side, side), (count, 1, side, side)):
                raise ValueError(
                    f"noise[{number}]: expected shape ({side}, {side}), (1, 1, {side}, {side}) or "
                    f"({count}, 1, {side}, {side}), got {shape}"
                )
        return list(noise)

    def _one_hot(self, labels: Tensor | None, z: Tensor) -> Tensor | None:
        if not self.classes:
            if labels is not None:
                raise ValueError("labels: expected none for an unconditional generator, got some")
            return None
        if labels is None:
            raise ValueError(f"labels: expected those of {self.classes} classes, got none")
        try:
            labels = torch.as_tensor(labels, device=z.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"labels: expected numbers, got {abbreviated(labels)}") from error
        if labels.numel() == 0 or labels.is_complex():
            raise ValueError(f"labels: expected numbers, got {shown(labels)}")
        if not labels.is_floating_point():
            if labels.ndim > 1 or int(labels.min()) < 0 or int(labels.max()) >= self.classes:
                raise ValueError(
                    f"labels: expected whole numbers in [0, {self.classes}), got {shown(labels)}"
                )
            labels = F.one_hot(labels.long(), self.classes)
        if (
            labels.ndim not in (1, 2)
            or labels.shape[-1] != self.classes
            or (labels.ndim == 2 and len(labels) not in (1, len(z)))
        ):
            raise ValueError(
                f"labels: expected those of {len(z)} latents, shape ({len(z)}, {self.classes}), "
                f"got {tuple(labels.shape)}"
            )
        return labels.to(z.dtype).expand(len(z), -1)


def _checked_classes(value: object) -> int:
    return 0 if value == 0 and not isinstance(value, bool) else positive_int("classes", value)


def _positive(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a number above 0, got {abbreviated(value)}")
    return float(value)


def _checked_taps(taps: Sequence[float]) -> list[float]:
    numbers = [float(tap) for tap in taps]
    total = sum(numbers)
    if len(numbers) < 2 or not math.isfinite(total) or total <= 0.0:
        raise ValueError(
            f"taps: expected at least two finite numbers whose sum is above 0, got "
            f"{abbreviated(list(taps))}"
        )
    return numbers
