"""StyleGAN2 networks of NVIDIA's stylegan2-ada-pytorch and of the StyleGAN3 repository.

A pickle of `{G, D, G_ema, ...}` whose networks are objects of those programs (`pickles`). Each
layer says what it multiplies its weights by; sizes follow from the weights. In "skip" networks
every resolution has a projection to colours, in others only the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cogen_fast.generators.checks import weight
from cogen_fast.generators.foreign import Config, Tensors, some_names
from cogen_fast.generators.pickles import Persistent
from cogen_fast.generators.resampling import taps_of
from cogen_fast.support.arguments import abbreviated

_ARCHITECTURES = {"skip": "skip", "resnet": "residual", "orig": "original"}
_GAIN = math.sqrt(2.0)  # of the leaky ReLU, the only activation that we have
_TOLERANCE = 1e-6


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether the content of a pickle has this layout."""
    return isinstance(content.get("G_ema", content.get("G")), Persistent)


def convert(content: Mapping[str, Any], *, average: bool) -> tuple[Config, Tensors]:
    """Configuration and tensors of `G_ema` (or of `G`: average False, or no average kept).

    Raises ValueError where the network is of a kind that we do not have, or lacks a part.
    """
    if not average and "G" not in content:
        raise ValueError("average: expected True, as the file holds no raw generator, got False")
    network = content["G_ema" if average and "G_ema" in content else "G"]
    if not isinstance(network, Persistent):
        raise ValueError(f"G: expected a pickled network, got {abbreviated(network)}")
    parts = network.modules()
    if not {"mapping", "synthesis"} <= parts.keys():
        raise ValueError(f"G: expected mapping and synthesis, got {some_names(parts)}")
    if "input" in parts["synthesis"].modules():
        raise ValueError("G: expected a StyleGAN2 network, got a StyleGAN3 one, which is not read")
    tensors: Tensors = {}
    mapping = _mapping(parts["mapping"], tensors)
    return mapping | _synthesis(parts["synthesis"], tensors), tensors


def _mapping(network: Persistent, tensors: Tensors) -> Config:
    layers = network.modules()
    config: Config = {"classes": 0}
    if "embed" in layers:
        _dense(layers["embed"], "linear", tensors, "mapping.embed")
        embedding, classes = tensors["mapping.embed.weight"].shape
        config = {"classes": classes, "embedding": embedding}
    widths, number = [], 0
    while f"fc{number}" in layers:
        _dense(layers[f"fc{number}"], "lrelu", tensors, f"mapping.layers.{number}")
        widths.append(len(tensors[f"mapping.layers.{number}.bias"]))
        number += 1
    if not widths:
        raise ValueError(f"G.mapping: expected layers fc0, fc1, ..., got {some_names(layers)}")
    if (mean := network.tensors("buffers").get("w_avg")) is not None:
        tensors["style_mean"] = weight("G.mapping.w_avg", mean, 1)
    latent = tensors["mapping.layers.0.weight"].shape[1] - config.get("embedding", 0)
    return config | {"latent_size": latent, "mapping": widths}


def _synthesis(network: Persistent, tensors: Tensors) -> Config:
    blocks = network.modules()
    kernels: list[Tensor] = []
    clamps: list[float | None] = []
    architecture, stage = None, 0
    while (block := blocks.get(f"b{4 << stage}")) is not None:
        _block(block, tensors, f"blocks.{stage}", kernels, clamps)
        architecture, stage = block.attribute("architecture"), stage + 1
    if not stage or len(blocks) != stage:
        raise ValueError(f"G.synthesis: expected blocks b4, b8, ..., got {some_names(blocks)}")
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"G.synthesis.architecture: expected one of {list(_ARCHITECTURES)}, got "
            f"{abbreviated(architecture)}"
        )
    if len(set(clamps)) > 1:
        raise ValueError("G.synthesis.conv_clamp: expected the same in all layers, got several")
    constant = blocks["b4"].tensors("parameters").get("const")
    tensors["constant"] = weight("G.synthesis.b4.const", constant, 3)[None]
    return {
        "resolution": 4 << (stage - 1),
        "channels": len(tensors[f"blocks.{stage - 1}.to_rgb.bias"]),
        "feature_maps": [len(tensors[f"blocks.{n}.conv1.bias"]) for n in range(stage)],
        "architecture": _ARCHITECTURES[architecture],
        "taps": taps_of(kernels),
        "clamp": clamps[0],
    }


def _block(
    block: Persistent,
    tensors: Tensors,
    target: str,
    kernels: list[Tensor],
    clamps: list[float | None],
) -> None:
    layers = block.modules()
    if unknown := layers.keys() - {"conv0", "conv1", "torgb", "skip"}:
        raise ValueError(f"{block.class_name}: expected known layers, got {sorted(unknown)}")
    for name in ("conv0", "conv1"):
        if name in layers:
            _layer(layers[name], tensors, f"{target}.{name}")
            clamps.append(_clamp(layers[name]))
    if (to_rgb := layers.get("torgb")) is not None:
        _modulated(to_rgb, tensors, f"{target}.to_rgb", _number(to_rgb, "weight_gain"))
        clamps.append(_clamp(to_rgb))
    if (skip := layers.get("skip")) is not None:
        kernel = weight("skip.weight", skip.tensors("parameters").get("weight"), 4)
        tensors[f"{target}.skip"] = kernel * _number(skip, "weight_gain")
    if (taps := block.tensors("buffers").get("resample_filter")) is not None:
        kernels.append(taps)


def _layer(layer: Persistent, tensors: Tensors, target: str) -> None:
    _check_activation(layer, "lrelu", _GAIN)
    _modulated(layer, tensors, target, 1.0)
    bias = tensors[f"{target}.bias"]
    side = layer.attribute("resolution")
    if layer.attribute("use_noise", True):
        strength = layer.tensors("parameters").get("noise_strength")
        noise = layer.tensors("buffers").get("noise_const")
        tensors[f"{target}.noise_strength"] = weight("noise_strength", strength, 0)
        tensors[f"{target}.noise"] = weight("noise_const", noise, 2)
    else:
        tensors[f"{target}.noise_strength"] = bias.new_zeros(())
        tensors[f"{target}.noise"] = bias.new_zeros(side, side)


def _modulated(layer: Persistent, tensors: Tensors, target: str, gain: float) -> None:
    parameters, layers = layer.tensors("parameters"), layer.modules()
    kernel = weight(f"{layer.class_name}.weight", parameters.get("weight"), 4)
    tensors[f"{target}.conv.weight"] = kernel * gain
    tensors[f"{target}.bias"] = weight(f"{layer.class_name}.bias", parameters.get("bias"), 1)
    if "affine" not in layers:
        raise ValueError(f"{layer.class_name}: expected a layer affine, got {some_names(layers)}")
    style = _scaled(layers["affine"], "linear")
    tensors[f"{target}.conv.style_weight"], tensors[f"{target}.conv.style_bias"] = style


def _dense(layer: Persistent, activation: str, tensors: Tensors, target: str) -> None:
    tensors[f"{target}.weight"], tensors[f"{target}.bias"] = _scaled(layer, activation)


def _scaled(layer: Persistent, activation: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a dense layer, as they act."""
    _check_activation(layer, activation)
    parameters = layer.tensors("parameters")
    matrix = weight(f"{layer.class_name}.weight", parameters.get("weight"), 2)
    bias = weight(f"{layer.class_name}.bias", parameters.get("bias"), 1)
    return matrix * _number(layer, "weight_gain"), bias * _number(layer, "bias_gain")


def _check_activation(layer: Persistent, expected: str, gain: float | None = None) -> None:
    if layer.attribute("activation") != expected:
        raise ValueError(
            f"{layer.class_name}.activation: expected {expected!r}, got "
            f"{abbreviated(layer.attribute('activation'))}"
        )
    if gain is not None and abs(_number(layer, "act_gain") - gain) > _TOLERANCE:
        raise ValueError(
            f"{layer.class_name}.act_gain: expected sqrt(2), got {layer.attribute('act_gain')}"
        )


def _number(layer: Persistent, name: str) -> float:
    value = layer.attribute(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(
            f"{layer.class_name}.{name}: expected a number above 0, got {abbreviated(value)}"
        )
    return float(value)


def _clamp(layer: Persistent) -> float | None:
    return None if layer.attribute("conv_clamp") is None else _number(layer, "conv_clamp")
