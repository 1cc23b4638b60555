"""From the layers of a foreign network to a `ProgressiveGenerator`'s configuration and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

Config = dict[str, Any]
Tensors = dict[str, Tensor]


class Layer(NamedTuple):
    """Weight in units of the He constant (dense (out, in), conv (out, in, k, k)), bias in full."""

    weight: Tensor
    bias: Tensor


class Network(NamedTuple):
    """A whole generator: `convs` holds one at 4 px, then two per resolution.

    `to_rgb` has one entry per resolution, None where the file does not hold it.
    """

    dense: Layer
    convs: list[Layer]
    to_rgb: list[Layer | None]


class State:
    """The tensors of a foreign generator by name; each is taken once, none may be left over."""

    def __init__(self, tensors: object) -> None:
        if not isinstance(tensors, Mapping):
            raise ValueError(f"checkpoint: expected named tensors, got {type(tensors).__name__}")
        self._left: dict[str, Any] = dict(tensors)

    def count(self, pattern: str) -> int:
        """How many of the names `pattern.format(0)`, `pattern.format(1)`, ... are there."""
        number = 0
        while pattern.format(number) in self._left:
            number += 1
        return number

    def take(self, name: str, ndim: int) -> Tensor:
        """The tensor of that name; ValueError where it is missing or not of `ndim` dimensions."""
        if name not in self._left:
            raise ValueError(f"checkpoint: expected a tensor {name!r}, got {some(self._left)}")
        value = self._left.pop(name)
        if not isinstance(value, Tensor) or value.ndim != ndim or not value.is_floating_point():
            shape = tuple(value.shape) if isinstance(value, Tensor) else ()
            got = f"{getattr(value, 'dtype', type(value).__name__)} {shape}"
            raise ValueError(f"{name}: expected {ndim} dimensions of a float type, got {got}")
        return value

    def take_layer(self, name: str, ndim: int) -> Layer:
        """`name.weight` of `ndim` dimensions with `name.bias`."""
        return Layer(self.take(f"{name}.weight", ndim), self.take(f"{name}.bias", 1))

    def finish(self) -> None:
        """Raise ValueError where tensors are left: the network has parts that we do not know."""
        if self._left:
            raise ValueError(f"checkpoint: expected no further tensors, got {some(self._left)}")


def some(names: Mapping[str, Any], limit: int = 6) -> str:
    """Up to `limit` names, for a message."""
    shown = ", ".join(repr(name) for name in list(names)[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "none"


def expect_equal(name: str, written: object, found: object) -> None:
    """Raise ValueError where a file's own configuration contradicts its tensors."""
    if written != found:
        raise ValueError(f"{name}: expected {found!r}, as the tensors have it, got {written!r}")


def pack(
    network: Network, *, resolution: int | None, alpha: float | None
) -> tuple[Config, Tensors]:
    """Cut the network at `resolution` (None: all of it) with fade-in weight `alpha` (None: 1).

    alpha is the weight of the highest resolution kept. Raises ValueError where the file lacks the
    colour layers that the wish needs.
    """
    stage = _stage(network.to_rgb, resolution)
    alpha = 1.0 if alpha is None else alpha
    layers = _named(network, stage)
    if alpha < 1.0:
        layers["to_rgb_previous"] = _previous_rgb(network.to_rgb, stage, alpha)
    convs = network.convs[: 1 + 2 * stage : 2]
    config: Config = {
        "resolution": 4 << stage,
        "channels": layers["to_rgb"].weight.shape[0],
        "latent_size": network.dense.weight.shape[1],
        "feature_maps": [conv.weight.shape[0] for conv in convs],
        "alpha": alpha,
    }
    tensors = {
        f"{name}.{part}": tensor.contiguous()
        for name, layer in layers.items()
        for part, tensor in layer._asdict().items()
    }
    return config, tensors


def _stage(to_rgb: list[Layer | None], resolution: int | None) -> int:
    offered = {4 << stage: stage for stage, layer in enumerate(to_rgb) if layer is not None}
    if resolution is None and offered:
        return max(offered.values())
    if resolution not in offered:
        raise ValueError(
            f"resolution: expected one that the file has a colour layer for {list(offered)}, "
            f"got {resolution!r}"
        )
    return offered[resolution]


def _named(network: Network, stage: int) -> dict[str, Layer]:
    to_rgb = network.to_rgb[stage]
    assert to_rgb is not None  # `_stage` offers no other
    layers = {"base.dense": network.dense, "base.conv": network.convs[0], "to_rgb": to_rgb}
    for block in range(stage):
        layers[f"blocks.{block}.conv0"] = network.convs[1 + 2 * block]
        layers[f"blocks.{block}.conv1"] = network.convs[2 + 2 * block]
    return layers


def _previous_rgb(to_rgb: list[Layer | None], stage: int, alpha: float) -> Layer:
    previous = to_rgb[stage - 1] if stage > 0 else None
    if previous is None:
        raise ValueError(
            f"alpha: expected 1, as the file has no colour layer below {4 << stage} px, got {alpha}"
        )
    return previous
