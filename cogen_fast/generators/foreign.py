"""From the layers of another program's network to the arguments of a `ProgressiveGenerator`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from cogen_fast.generators.checks import weight
from cogen_fast.support.arguments import abbreviated

Config = dict[str, Any]
Tensors = dict[str, Tensor]


class ForeignLayer(NamedTuple):
    """A layer: the weight in units of the He constant, and the bias as it is added.

    The weight is (out, in) if the layer is dense, (out, in, k, k) if it is a convolution.
    """

    weight: Tensor
    bias: Tensor


class ForeignNetwork(NamedTuple):
    """A whole generator: `convs` has one convolution at 4 px, then two per resolution.

    `to_rgb` has one entry per resolution, None where the file does not have the layer.
    """

    dense: ForeignLayer
    convs: list[ForeignLayer]
    to_rgb: list[ForeignLayer | None]


class ForeignTensors:
    """The tensors of another program's generator, by name.

    Each is taken once, and none may be left over.
    """

    def __init__(self, tensors: object) -> None:
        if not isinstance(tensors, Mapping):
            raise ValueError(f"checkpoint: expected named tensors, got {type(tensors).__name__}")
        if unnamed := [name for name in tensors if not isinstance(name, str)]:
            raise ValueError(f"checkpoint: expected names as text, got {abbreviated(unnamed[0])}")
        self._left: dict[str, Any] = dict(tensors)
        self._taken: dict[int, int] = {}  # bytes of each storage

    def count(self, pattern: str) -> int:
        """How many of the names `pattern.format(0)`, `pattern.format(1)`, ... there are."""
        number = 0
        while pattern.format(number) in self._left:
            number += 1
        return number

    def holds(self, name: str) -> bool:
        """Whether a tensor of that name is left."""
        return name in self._left

    def take(self, name: str, ndim: int) -> Tensor:
        """The tensor of that name; ValueError if it is missing or has not `ndim` dimensions."""
        if name not in self._left:
            raise ValueError(
                f"checkpoint: expected a tensor {name!r}, got {some_names(self._left)}"
            )
        value = weight(name, self._left.pop(name), ndim)
        storage = value.untyped_storage()
        taken = self._taken.get(storage.data_ptr(), 0) + value.numel() * value.element_size()
        if taken > storage.nbytes():
            raise ValueError(
                f"{name}: expected a tensor of its own, got one that shares memory with another"
            )
        self._taken[storage.data_ptr()] = taken
        return value

    def take_layer(self, name: str, ndim: int) -> ForeignLayer:
        """`name.weight` of `ndim` dimensions, with `name.bias`."""
        return ForeignLayer(self.take(f"{name}.weight", ndim), self.take(f"{name}.bias", 1))

    def finish(self) -> None:
        """Raise ValueError if tensors are left: the network then has parts that are not known."""
        if self._left:
            raise ValueError(
                f"checkpoint: expected no further tensors, got {some_names(self._left)}"
            )


def some_names(names: Mapping[str, Any], limit: int = 6) -> str:
    """Up to `limit` names, for a message."""
    shown = ", ".join(abbreviated(name) for name in islice(names, limit))
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "none"


def expect_equal(name: str, written: object, found: object) -> None:
    """Raise ValueError if a value of the file's own configuration contradicts its tensors."""
    if not _same(written, found):
        got = abbreviated(written)
        raise ValueError(f"{name}: expected {found!r}, which the tensors have, got {got}")


def _same(written: object, found: object) -> bool:
    """Whether plain numbers or lists are equal; a tensor in their place counts as different."""
    if isinstance(found, list):
        return (
            isinstance(written, list)
            and len(written) == len(found)
            and all(map(_same, written, found))
        )
    return isinstance(written, int | float) and written == found


def cut_network(
    network: ForeignNetwork, *, resolution: int | None, alpha: float | None
) -> tuple[Config, Tensors]:
    """Cut the network at `resolution` (None: keep all), with fade-in weight `alpha` (None: 1).

    alpha is the weight of the highest resolution that is kept. Raises ValueError if the file does
    not have the colour layers that this needs.
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


def _stage(to_rgb: list[ForeignLayer | None], resolution: int | None) -> int:
    offered = {4 << stage: stage for stage, layer in enumerate(to_rgb) if layer is not None}
    if resolution is None and offered:
        return max(offered.values())
    if resolution not in offered:
        raise ValueError(
            f"resolution: expected one of {list(offered)}, for which the file has a colour layer, "
            f"got {resolution!r}"
        )
    return offered[resolution]


def _named(network: ForeignNetwork, stage: int) -> dict[str, ForeignLayer]:
    to_rgb = network.to_rgb[stage]
    assert to_rgb is not None  # `_stage` only gives stages with a colour layer
    layers = {"base.dense": network.dense, "base.conv": network.convs[0], "to_rgb": to_rgb}
    for block in range(stage):
        layers[f"blocks.{block}.conv0"] = network.convs[1 + 2 * block]
        layers[f"blocks.{block}.conv1"] = network.convs[2 + 2 * block]
    return layers


def _previous_rgb(to_rgb: list[ForeignLayer | None], stage: int, alpha: float) -> ForeignLayer:
    previous = to_rgb[stage - 1] if stage > 0 else None
    if previous is None:
        raise ValueError(
            f"alpha: expected 1, as the file has no colour layer below {4 << stage} px, got {alpha}"
        )
    return previous
