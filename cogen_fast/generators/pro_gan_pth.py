"""Checkpoints of pro-gan-pth 3.x and 2.x (akanimax/pro_gan_pytorch).

A file of 3.x has the keys `generator` and `shadow_generator` (the moving average), each with
`{conf, state_dict}`. There is no normalisation between the dense layer and the first convolution.
The file does not say how far training got, so the caller has to give `resolution` and `alpha` for a
network that is not fully grown. Its alpha is, like ours, the weight of the new resolution.

The tensors of a generator alone are read too, as 2.x saves them (`GAN_GEN_*.pth`) and as people
save those of 3.x. The size of the kernels then says whether learning rates were equalised: it is
about 1 if they were, and about the He constant if not. 2.x does not normalise latents.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cogen_fast.generators.checks import boolean, weight
from cogen_fast.generators.foreign import (
    Config,
    ForeignLayer,
    ForeignNetwork,
    ForeignTensors,
    Tensors,
    cut_network,
    expect_equal,
)
from cogen_fast.generators.progressive import he_constant

_RAW, _AVERAGE = "generator", "shadow_generator"


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether the content of a torch file has this layout."""
    return _has_parts(content) or _is_bare(content)


def _is_bare(content: Mapping[str, Any]) -> bool:
    firsts = ("layers.0.conv_1.weight", "initial_block.conv_1.weight")
    return "rgb_converters.0.weight" in content and any(name in content for name in firsts)


def _has_parts(content: Mapping[str, Any]) -> bool:
    parts = [content[key] for key in (_RAW, _AVERAGE) if key in content]
    return bool(parts) and all(
        isinstance(part, Mapping)
        and isinstance(part.get("conf"), Mapping)
        and isinstance(part.get("state_dict"), Mapping)
        for part in parts
    )


def convert(
    content: Mapping[str, Any], *, average: bool, alpha: float | None, resolution: int | None
) -> tuple[Config, Tensors]:
    """Configuration and tensors of the average, or of the raw generator, as in `load_generator`.

    Raises ValueError where the network contradicts its configuration, or does not have what is
    asked for.
    """
    if not _has_parts(content):
        return _bare(content, alpha=alpha, resolution=resolution)
    if not average and _RAW not in content:
        raise ValueError("average: expected True, as the file holds no raw generator, got False")
    part = content[_AVERAGE if average and _AVERAGE in content else _RAW]
    conf = part["conf"]
    equalised = boolean("conf.use_eql", conf.get("use_eql", True))
    network = _network(ForeignTensors(part["state_dict"]), equalised)
    _check(conf, network)
    config, tensors = cut_network(network, resolution=resolution, alpha=alpha)
    return config | {"normalise_dense": False}, tensors


def _bare(
    content: Mapping[str, Any], *, alpha: float | None, resolution: int | None
) -> tuple[Config, Tensors]:
    second = "initial_block.conv_1.weight" in content
    names = {name: _as_in_3(name) if second else name for name in content}
    state = ForeignTensors({names[name]: value for name, value in content.items()})
    network = _network(state, _are_equalised(content))
    config, tensors = cut_network(network, resolution=resolution, alpha=alpha)
    return config | {"normalise_dense": False, "normalise_latent": not second}, tensors


def _as_in_3(name: object) -> object:
    """The name in 3.x of a tensor of 2.x, whose first layers are apart from the others."""
    if not isinstance(name, str):
        return name
    if name.startswith("initial_block."):
        return name.replace("initial_block.", "layers.0.", 1)
    found = re.fullmatch(r"layers\.(\d{1,2})\.(.*)", name)
    return name if found is None else f"layers.{int(found[1]) + 1}.{found[2]}"


def _are_equalised(content: Mapping[str, Any]) -> bool:
    """Whether kernels have a size of about 1, and not of about the He constant."""
    kernels = {name: each for name, each in content.items() if str(name).endswith("conv_2.weight")}
    name, kernel = next(iter(kernels.items()), ("conv_2.weight", None))
    kernel = weight(name, kernel, 4)
    size = float(kernel.double().square().mean().sqrt())
    return size > math.sqrt(he_constant(kernel[0].numel()))


def _network(state: ForeignTensors, equalised: bool) -> ForeignNetwork:
    def conv(name: str) -> ForeignLayer:
        return _in_he_units(state.take_layer(name, 4), equalised)

    stages = state.count("layers.{}.conv_2.weight")
    dense = _in_he_units(_dense(state.take_layer("layers.0.conv_1", 4)), equalised)
    convs = [conv("layers.0.conv_2")]
    for block in range(1, stages):
        convs += [conv(f"layers.{block}.conv_{number}") for number in (1, 2)]
    to_rgb: list[ForeignLayer | None] = [conv(f"rgb_converters.{stage}") for stage in range(stages)]
    state.finish()
    return ForeignNetwork(dense, convs, to_rgb)


def _dense(transposed: ForeignLayer) -> ForeignLayer:
    # A transposed 4 x 4 convolution (in, out, y, x) of one pixel is the same as a dense layer.
    weight, bias = transposed
    rows: Tensor = weight.permute(1, 2, 3, 0).flatten(0, 2)
    return ForeignLayer(rows, bias.repeat_interleave(weight.shape[2] * weight.shape[3]))


def _in_he_units(layer: ForeignLayer, equalised: bool) -> ForeignLayer:
    if equalised:
        return layer
    return ForeignLayer(layer.weight / he_constant(layer.weight[0].numel()), layer.bias)


def _check(conf: Mapping[str, Any], network: ForeignNetwork) -> None:
    to_rgb = network.to_rgb[-1]
    assert to_rgb is not None  # `_network` takes them all
    found = {
        "depth": len(network.to_rgb) + 1,
        "num_channels": to_rgb.weight.shape[0],
        "latent_size": network.dense.weight.shape[1],
    }
    for name, value in found.items():
        expect_equal(f"conf.{name}", conf.get(name, value), value)
