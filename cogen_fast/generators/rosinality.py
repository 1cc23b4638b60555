"""StyleGAN2 checkpoints of rosinality/stylegan2-pytorch.

Keys `g_ema` (the moving average), where kept `g`, and `latent_avg`. Sizes follow from the weights.
Equalised learning rates are constants of that program: a dense or modulation layer is multiplied by
`1 / sqrt(in)`, a kernel by one over the square root of its inputs, the mapping network's weights
and biases by 0.01 as well. Kernels of the resampling filter hold the gain of 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cogen_fast.generators.foreign import Config, ForeignTensors, Tensors
from cogen_fast.generators.resampling import taps_of
from cogen_fast.support.warnings import warn_user

_MAPPING_RATE = 0.01
_GAIN = 4.0  # of the filter, at each up-sampling


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether the content of a torch file has this layout."""
    part = content.get("g_ema", content.get("g", content))
    return isinstance(part, Mapping) and "input.input" in part


def convert(content: Mapping[str, Any], *, average: bool) -> tuple[Config, Tensors]:
    """Configuration and tensors of `g_ema` (or of `g`: average False, or no average kept).

    Without noise in the file it is 0, with a warning; without `latent_avg` the tensors lack
    "style_mean". Raises ValueError where tensors are missing or do not fit together.
    """
    if "input.input" in content:  # a generator's tensors alone
        state = ForeignTensors(content)
    elif not average and "g" not in content:
        raise ValueError("average: expected True, as the file holds no raw generator, got False")
    else:
        state = ForeignTensors(content["g_ema" if average and "g_ema" in content else "g"])
    tensors: Tensors = {}
    mapping = _mapping(state, tensors)
    constant = state.take("input.input", 4)
    tensors["constant"] = constant
    maps, channels, taps = _synthesis(state, tensors)
    state.finish()
    if (mean := content.get("latent_avg")) is not None and isinstance(mean, Tensor):
        if mean.numel() != mapping[-1]:
            raise ValueError(f"latent_avg: expected {mapping[-1]} numbers, got {mean.numel()}")
        tensors["style_mean"] = mean.reshape(-1).to(constant.dtype)
    config = {
        "resolution": 4 << (len(maps) - 1),
        "channels": channels,
        "latent_size": tensors["mapping.layers.0.weight"].shape[1],
        "mapping": mapping,
        "feature_maps": maps,
        "taps": taps,
    }
    return config, tensors


def _mapping(state: ForeignTensors, tensors: Tensors) -> list[int]:
    """The mapping network's layers; returns their widths."""
    number = 1
    while state.holds(f"style.{number}.weight"):
        weight, bias = _affine(state, f"style.{number}", _MAPPING_RATE)
        tensors[f"mapping.layers.{number - 1}.weight"] = weight
        tensors[f"mapping.layers.{number - 1}.bias"] = bias
        number += 1
    if number == 1:
        raise ValueError("checkpoint: expected layers style.1, style.2, ..., got none")
    return [len(tensors[f"mapping.layers.{n}.bias"]) for n in range(number - 1)]


def _synthesis(state: ForeignTensors, tensors: Tensors) -> tuple[list[int], int, list[float]]:
    """Layers of the synthesis network; returns feature maps, colours, and the filter's taps."""
    blocks = state.count("convs.{}.conv.weight") // 2
    noises = any(state.holds(f"noises.noise_{number}") for number in range(1 + 2 * blocks))
    if not noises:
        warn_user(
            "path: the file holds no noise, so the generator's noise is 0; give noise to "
            "`synthesise`, or set `noise` of its layers, for another"
        )
    kernels: list[Tensor] = []
    _layer(state, tensors, "conv1", "blocks.0.conv1", 4, 0 if noises else None)
    _to_rgb(state, tensors, "to_rgb1", "blocks.0.to_rgb")
    for block in range(blocks):
        target, side = f"blocks.{block + 1}", 8 << block
        for half in (0, 1):
            source = f"convs.{2 * block + half}"
            noise = 1 + 2 * block + half if noises else None
            _layer(state, tensors, source, f"{target}.conv{half}", side, noise)
        kernels.append(state.take(f"convs.{2 * block}.conv.blur.kernel", 2))
        kernels.append(state.take(f"to_rgbs.{block}.upsample.kernel", 2))
        _to_rgb(state, tensors, f"to_rgbs.{block}", f"{target}.to_rgb")
    maps = [len(tensors[f"blocks.{block}.conv1.bias"]) for block in range(blocks + 1)]
    return maps, len(tensors["blocks.0.to_rgb.bias"]), taps_of(kernels, _GAIN)


def _affine(state: ForeignTensors, name: str, rate: float = 1.0) -> tuple[Tensor, Tensor]:
    weight, bias = state.take_layer(name, 2)
    return weight * (rate / math.sqrt(weight.shape[1])), bias * rate


def _layer(
    state: ForeignTensors, tensors: Tensors, source: str, target: str, side: int, noise: int | None
) -> None:
    _modulated(state, tensors, f"{source}.conv", f"{target}.conv")
    tensors[f"{target}.bias"] = bias = state.take(f"{source}.activate.bias", 1)
    tensors[f"{target}.noise_strength"] = _only(state, f"{source}.noise.weight", 1)
    tensors[f"{target}.noise"] = (
        torch.zeros(side, side, dtype=bias.dtype, device="cpu")
        if noise is None
        else _only(state, f"noises.noise_{noise}", 4).squeeze(0)
    )


def _to_rgb(state: ForeignTensors, tensors: Tensors, source: str, target: str) -> None:
    _modulated(state, tensors, f"{source}.conv", f"{target}.conv")
    tensors[f"{target}.bias"] = state.take(f"{source}.bias", 4).flatten()


def _modulated(state: ForeignTensors, tensors: Tensors, source: str, target: str) -> None:
    weight = _only(state, f"{source}.weight", 5)
    tensors[f"{target}.weight"] = weight / math.sqrt(weight[0].numel())
    style = _affine(state, f"{source}.modulation")
    tensors[f"{target}.style_weight"], tensors[f"{target}.style_bias"] = style


def _only(state: ForeignTensors, name: str, ndim: int) -> Tensor:
    """The only row of a tensor; ValueError where it has several."""
    tensor = state.take(name, ndim)
    if len(tensor) != 1:
        raise ValueError(f"{name}: expected one row, got shape {tuple(tensor.shape)}")
    return tensor[0]
