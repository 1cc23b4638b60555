"""A perceptual misfit, the LPIPS distance (Zhang et al. 2018): ``misfit="lpips"``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogen_fast.support.arguments import check_choice, check_number, shown
from cogen_fast.support.extras import imported

NETS = ("alex", "vgg", "squeeze")
_PARTS = ("net", "scaling_layer", "L", "lpips", "version")
_PATCH = 64  # side of the patches on which the distance was calibrated (Zhang et al., section 3)
_LARGEST = 2.0  # largest size of a value that may be noise on an image in [-1, 1]

Features = list[Tensor]


@dataclass(frozen=True)
class Lpips:
    """The LPIPS distance of images (Zhang et al. 2018) over ``scale``: what looks alike is near.

    Images are ``(1, H, W)`` or ``(3, H, W)`` in [-1, 1]; grey ones are given to the network three
    times. Measurements of an operator, such as `AveragePool`, are compared as they are, so they
    have to be such images, too. Hidden pixels of a mask are set to 0, mid-grey, in both images:
    they add nothing themselves, but the distance is a mean over the whole image, so that it shrinks
    with the share of observed pixels. Where the smaller side is below 64, both images are enlarged
    bilinearly by the least whole factor that makes it 64 or more, as the distance was calibrated on
    patches of that size. The features of the observations are computed once.

    Args:
        net: "alex", "vgg" or "squeeze", which the package ``lpips`` loads (with ImageNet's weights
            from torchvision, which may download them); or an ``lpips.LPIPS`` of your own, of which
            a copy is used.
        scale: the distance that costs an energy of 1. Near its least value the energy of a
            posterior is about half a unit for each latent that the data determine: with 64 of them
            and the default of 0.001, distances of about 0.03 are expected. It is no noise level, so
            there is no evidence.

    Raises:
        TypeError, ValueError: naming the argument; for images of other shapes or ranges, ``misfit``
            or ``x_obs``, before any sampling.
        ImportError: the package ``lpips`` is needed and missing.
    """

    net: str | nn.Module = "alex"
    scale: float = 0.001

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_number("scale", self.scale, above=0.0))
        if isinstance(self.net, str):
            check_choice("net", self.net, NETS)
        elif missing := [name for name in _PARTS if not hasattr(self.net, name)]:
            raise TypeError(
                f"net: expected one of {', '.join(NETS)} or an lpips.LPIPS, got {shown(self.net)} "
                f"without {', '.join(missing)}"
            )

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Energies ``(n,)`` of predictions ``(n, C, H, W)`` of the targets ``(n, C, H, W)``."""
        index = torch.arange(len(target), device=target.device)
        return self.bind_targets(target)(prediction, index)

    def bind_targets(self, targets: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """``f(prediction, index) -> (n,)``, whose row k is compared with ``targets[index[k]]``."""
        _check_images(targets)
        network = _loaded(self.net) if isinstance(self.net, str) else self.net
        return _Bound(network, targets, self.scale)


class _Bound:
    """Distances from ``targets`` ``(B, C, H, W)``, whose features are kept for each float type."""

    def __init__(self, network: nn.Module, targets: Tensor, scale: float) -> None:
        self._network, self._targets, self._scale = network, targets, scale
        self._held: dict[tuple[torch.device, torch.dtype], tuple[_Trunk, Features]] = {}
        self._beside(targets)

    def __call__(self, prediction: Tensor, index: Tensor) -> Tensor:
        trunk, features = self._beside(prediction)
        if len(self._targets) > 1:
            features = [each[index] for each in features]
        return trunk.distance(trunk.features(prediction), features) / self._scale

    def _beside(self, x: Tensor) -> tuple[_Trunk, Features]:
        key = x.device, x.dtype
        if key not in self._held:
            with torch.no_grad():
                network = copy.deepcopy(self._network).eval().requires_grad_(False)
                trunk = _Trunk(network.to(*key))
                self._held[key] = trunk, trunk.features(self._targets.to(*key))
        return self._held[key]


class _Trunk:
    """What an ``lpips.LPIPS`` computes, apart for each of the two images."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def features(self, images: Tensor) -> Features:
        """The layers' activations, each pixel's normed to length 1."""
        x = _enlarged(images.expand(-1, 3, -1, -1))
        if self._network.version == "0.1":  # version 0.0 took images as they are
            x = self._network.scaling_layer(x)
        return [_normed(each) for each in self._network.net(x)]

    def distance(self, a: Features, b: Features) -> Tensor:
        """Distances ``(n,)``: means over pixels of weighted squared differences, summed."""
        total: Tensor | float = 0.0
        for n in range(self._network.L):
            squares = (a[n] - b[n]) ** 2
            weigh = self._network.lins[n] if self._network.lpips else _summed
            total = total + weigh(squares).mean((1, 2, 3))
        assert isinstance(total, Tensor)
        return total


def _summed(x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True)


def _normed(x: Tensor) -> Tensor:
    # Where all activations of a pixel are 0 the square root's gradient is NaN, which ReLU stops.
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _enlarged(images: Tensor) -> Tensor:
    factor = -(-_PATCH // min(images.shape[2:]))
    if factor == 1:
        return images
    size = [factor * side for side in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _check_images(targets: Tensor) -> None:
    shape = tuple(targets.shape[1:])
    if targets.is_complex() or len(shape) != 3 or shape[0] not in (1, 3):
        kind = "complex " if targets.is_complex() else ""
        raise ValueError(
            "misfit: Lpips compares images (1, H, W) or (3, H, W), got "
            f"{kind}measurements of shape {shape}"
        )
    if (most := float(targets.abs().max())) > _LARGEST:
        raise ValueError(
            f"x_obs: expected images in [-1, 1] for the misfit Lpips, got values up to {most:.3g}"
        )


def _loaded(net: str) -> nn.Module:
    """An ``lpips.LPIPS``; ImportError says how to install it."""
    package = imported("lpips", what="misfit", package="lpips", extra="lpips")
    with torch.random.fork_rng(devices=[]):  # its layers draw weights before they are loaded
        network: nn.Module = package.LPIPS(net=net, verbose=False)
    return network
