"""The official networks of Karras et al. 2018, as they are commonly converted for PyTorch.

The tensors are `features.N.conv.weight` and `features.N.wscale.{scale,b}`, then `output.*`. Each
layer has the scale that its weights are multiplied by, in place of the He constant. Pixel norm
stands before each convolution. That is the same network as ours, because repeating a pixel does not
change its norm. The first layer is a 4 x 4 convolution of a latent padded by 3. The networks are
fully grown, and a file has one set of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cogen_fast.generators.foreign import (
    Config,
    ForeignLayer,
    ForeignNetwork,
    ForeignTensors,
    Tensors,
    cut_network,
)
from cogen_fast.generators.progressive import he_constant


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether the content of a torch file has this layout."""
    return {"features.0.conv.weight", "output.conv.weight"} <= content.keys()


def convert(
    content: Mapping[str, Any], *, average: bool, alpha: float | None, resolution: int | None
) -> tuple[Config, Tensors]:
    """Configuration and tensors of the one network in the file; `average` makes no difference.

    Raises ValueError where layers are missing, or where another resolution or an alpha below 1 is
    asked for: the file does not have the colour layers of lower resolutions.
    """
    state = ForeignTensors(content)
    stages = state.count("features.{}.conv.weight") // 2
    dense = _dense(_scaled(state, "features.0"))
    convs = [_in_he_units(_scaled(state, f"features.{n}")) for n in range(1, 2 * stages)]
    to_rgb: list[ForeignLayer | None] = [None] * (stages - 1)
    to_rgb.append(_in_he_units(_scaled(state, "output")))
    state.finish()
    return cut_network(ForeignNetwork(dense, convs, to_rgb), resolution=resolution, alpha=alpha)


def _scaled(state: ForeignTensors, name: str) -> ForeignLayer:
    scale = state.take(f"{name}.wscale.scale", 1)
    if scale.numel() != 1:
        raise ValueError(f"{name}.wscale.scale: expected one number, got {scale.numel()}")
    return ForeignLayer(
        state.take(f"{name}.conv.weight", 4) * scale, state.take(f"{name}.wscale.b", 1)
    )


def _in_he_units(layer: ForeignLayer) -> ForeignLayer:
    return ForeignLayer(layer.weight / he_constant(layer.weight[0].numel()), layer.bias)


def _dense(conv: ForeignLayer) -> ForeignLayer:
    # A kernel (out, in, 4, 4) over one pixel padded by 3: entry (3-y, 3-x) gives output (y, x).
    weight, bias = conv
    rows = weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2)
    return _in_he_units(
        ForeignLayer(rows, bias.repeat_interleave(weight.shape[2] * weight.shape[3]))
    )
