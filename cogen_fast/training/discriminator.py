"""The progressive GAN discriminator of Karras et al. 2018 (arXiv:1710.10196), table 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogen_fast.generators.progressive import RESOLUTIONS, EqualisedConv2d, EqualisedLinear

_SLOPE = 0.2
_GROUP = 4
_STD_EPSILON = 1e-8


def minibatch_std(x: Tensor, group: int = _GROUP) -> Tensor:
    """Add a feature map of how much the images of a group differ (Karras et al. 2018, section 3).

    x: (N, C, H, W) -> (N, C + 1, H, W). The size of a group is the largest divisor of N up to
    ``group``; the standard deviation within it is averaged over channels and pixels.
    """
    count = len(x)
    size = next(s for s in range(min(group, count), 0, -1) if count % s == 0)
    # Groups are strided, so neighbouring images belong to different groups.
    members = x.float().reshape(size, count // size, *x.shape[1:])
    deviation = (members.var(0, correction=0) + _STD_EPSILON).sqrt().mean((1, 2, 3))
    column = deviation.repeat(size).to(x.dtype)[:, None, None, None]
    return torch.cat([x, column.expand(-1, 1, *x.shape[2:])], dim=1)


class Halving(nn.Module):
    """One resolution less: twice conv and leaky ReLU, then the mean of 2 x 2 pixels.

    x: (N, in, 2 S, 2 S) -> (N, out, S, S).
    """

    def __init__(self, in_maps: int, out_maps: int) -> None:
        super().__init__()
        self.conv0 = EqualisedConv2d(in_maps, in_maps, 3)
        self.conv1 = EqualisedConv2d(in_maps, out_maps, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv0(x), _SLOPE)
        return F.avg_pool2d(F.leaky_relu(self.conv1(x), _SLOPE), 2)


class Head(nn.Module):
    """The score of 4 x 4 maps: minibatch deviation, conv, dense, dense. (N, C, 4, 4) -> (N,)."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.conv = EqualisedConv2d(maps + 1, maps, 3)
        self.dense = EqualisedLinear(maps * 16, maps)
        self.score = EqualisedLinear(maps, 1)
        self.score.scale /= math.sqrt(2.0)  # no ReLU follows

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv(minibatch_std(x)), _SLOPE)
        x = F.leaky_relu(self.dense(x.flatten(1)), _SLOPE)
        scores: Tensor = self.score(x)
        return scores[:, 0]


class ProgressiveDiscriminator(nn.Module):
    """Progressive GAN discriminator: images (N, channels, R, R) -> scores (N,), high if real.

    It mirrors `ProgressiveGenerator`: a 1x1 conv from the image to ``feature_maps[-1]`` maps, a
    `Halving` per resolution down to 4 px, then a `Head`. While a resolution fades in (``fades``),
    its maps are mixed with those of the halved image; ``alpha`` in [0, 1] is the weight of the new
    ones.

    Args:
        resolution: the side of the image, a power of two in 4 ... 1024.
        channels: the number of colour channels of the image.
        feature_maps: one number per resolution, from 4 px up.
        fades: whether there is a colour layer of the previous resolution.

    Weights start as draws from N(0, 1), multiplied by the He constant at run time; biases start as
    0.
    """

    def __init__(
        self, resolution: int, channels: int, feature_maps: Sequence[int], fades: bool = False
    ) -> None:
        super().__init__()
        maps = list(feature_maps)
        assert resolution == RESOLUTIONS[len(maps) - 1] and (len(maps) > 1 or not fades)
        self.resolution = resolution
        self.feature_maps = maps
        self.alpha = 0.0 if fades else 1.0
        self.from_rgb = EqualisedConv2d(channels, maps[-1], 1)
        self.from_rgb_previous = EqualisedConv2d(channels, maps[-2], 1) if fades else None
        self.blocks = nn.ModuleList(Halving(above, below) for below, above in pairwise(maps))
        self.head = Head(maps[0])

    def forward(self, images: Tensor) -> Tensor:
        x = F.leaky_relu(self.from_rgb(images), _SLOPE)
        for place, block in enumerate(reversed(self.blocks)):
            x = block(x)
            if place == 0 and self.from_rgb_previous is not None and self.alpha < 1.0:
                before = F.leaky_relu(self.from_rgb_previous(F.avg_pool2d(images, 2)), _SLOPE)
                x = self.alpha * x + (1.0 - self.alpha) * before
        scores: Tensor = self.head(x)
        return scores
