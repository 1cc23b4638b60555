"""Progressive GAN checkpoints of the PyTorch GAN Zoo (facebookresearch/pytorch_GAN_zoo).

A file has the keys `config` (a pickled object), `netG`, `netD` and, where it was kept, `avgG`.
There the output of a layer is multiplied by the He constant after the bias was added, so the bias
is scaled too; and its alpha is the weight of the OLD resolution. The colour layers of all
resolutions are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cogen_fast.generators.checks import boolean, fraction
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
from cogen_fast.support.arguments import abbreviated

# In the GAN Zoo the loss determines the activation of the image.
_FINAL = {"WGANGP": None, "Logistic": None, "MSE": "tanh", "DCGAN": "tanh"}
_LOSS = "WGANGP"


class InertConfig:
    """A class that takes the attributes of the pickled configuration, and does nothing."""


STAND_INS = ((InertConfig, "models.utils.config.BaseConfig"),)


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether the content of a torch file has this layout."""
    return isinstance(content.get("config"), InertConfig) and "netG" in content


def convert(
    content: Mapping[str, Any], *, average: bool, alpha: float | None, resolution: int | None
) -> tuple[Config, Tensors]:
    """Configuration and tensors of `avgG`; of `netG` if `average` is False or there is no `avgG`.

    If alpha is None and the full resolution is asked for, the alpha of the file is used. Raises
    ValueError where the network is of a kind that this package does not have, or contradicts its
    configuration.
    """
    settings = vars(content["config"])
    _refuse_unsupported(settings)
    key = "avgG" if average and "avgG" in content else "netG"
    equalised = boolean("config.equalizedlR", settings.get("equalizedlR", True))
    network = _network(_plain_names(content[key]), equalised)
    _check(settings, network)
    full = 4 << (len(network.to_rgb) - 1)
    if alpha is None and resolution in (None, full) and len(network.to_rgb) > 1:
        alpha = 1.0 - fraction("config.alpha", settings.get("alpha", 0.0))
    config, tensors = cut_network(network, resolution=resolution, alpha=alpha)
    config["negative_slope"] = settings.get("leakyReluLeak", 0.2)
    config["final"] = _FINAL[settings.get("lossCriterion", _LOSS)]
    return config, tensors


def _refuse_unsupported(settings: Mapping[str, Any]) -> None:
    classes = settings.get("categoryVectorDim", 0)
    if classes is not None and (not isinstance(classes, int | float) or classes != 0):
        raise ValueError(
            "config.categoryVectorDim: expected 0, as a latent with class labels is not normal, "
            f"got {abbreviated(classes)}"
        )
    if not boolean("config.perChannelNormalization", settings.get("perChannelNormalization", True)):
        raise ValueError("config.perChannelNormalization: expected True, got False")
    loss = settings.get("lossCriterion", _LOSS)
    if not isinstance(loss, str) or loss not in _FINAL:
        raise ValueError(
            f"config.lossCriterion: expected one of {list(_FINAL)}, got {abbreviated(loss)}"
        )


def _plain_names(tensors: object) -> ForeignTensors:
    # A wrapper adds `.module` to every layer name; older versions of the program removed it.
    if not isinstance(tensors, Mapping):
        return ForeignTensors(tensors)
    return ForeignTensors(
        {
            name.replace(".module.", ".") if isinstance(name, str) else name: value
            for name, value in tensors.items()
        }
    )


def _network(state: ForeignTensors, equalised: bool) -> ForeignNetwork:
    def layer(name: str, ndim: int) -> ForeignLayer:
        weight, bias = state.take_layer(name, ndim)
        scale = he_constant(math.prod(weight.shape[1:]))
        return (
            ForeignLayer(weight, bias * scale) if equalised else ForeignLayer(weight / scale, bias)
        )

    dense = layer("formatLayer", 2)
    convs = [layer("groupScale0.0", 4)]
    blocks = state.count("scaleLayers.{}.0.weight")
    for block in range(blocks):
        convs += [layer(f"scaleLayers.{block}.{number}", 4) for number in (0, 1)]
    to_rgb: list[ForeignLayer | None] = [layer(f"toRGBLayers.{n}", 4) for n in range(blocks + 1)]
    state.finish()
    return ForeignNetwork(dense, convs, to_rgb)


def _check(settings: Mapping[str, Any], network: ForeignNetwork) -> None:
    maps = [conv.weight.shape[0] for conv in network.convs[::2]]
    found = {
        "latentVectorDim": network.dense.weight.shape[1],
        "depthScale0": maps[0],
        "depthOtherScales": maps[1:],
    }
    for name, value in found.items():
        expect_equal(f"config.{name}", settings.get(name, value), value)
