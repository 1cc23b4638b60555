"""The last step of a generator of images in one pass on the CPU: to RGB, misfit, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cogen_fast.ops.checked import Observed
from cogen_fast.ops.checks import check, require_float
from cogen_fast.ops.native import extension
from cogen_fast.ops.progressive.normed import NormedActivation
from cogen_fast.ops.spec import MisfitSpec


@dataclass(frozen=True)
class ToRGB:
    """The 1x1 convolution from C channels to an image, Karras et al.'s toRGB.

    ``weight`` is ``(image channels, C)`` and ``bias`` ``(image channels,)``, three for RGB and one
    for grey. ``bounded`` says whether tanh follows.
    """

    weight: Tensor
    bias: Tensor
    bounded: bool


def to_rgb_misfit(
    normed: NormedActivation, to_rgb: ToRGB, spec: MisfitSpec, observation: Tensor
) -> tuple[Tensor, Tensor]:
    """Misfit of the image of ``normed`` ``(n, H, W, C)``; see `reference.to_rgb_misfit`.

    Energies ``(n,)`` float64, and the gradient with respect to the input of `norm`, which takes the
    memory of ``normed.out``. ``observation`` ``(n,)`` int64 says which row of ``spec`` each image
    belongs to. No image is written. Raises TypeError or ValueError naming the argument.
    """
    rows, height, width, channels = normed.out.shape
    dtype = require_float("normed.out", normed.out.dtype)
    count = len(to_rgb.bias)
    if tuple(spec.output_shape) != (count, height, width):
        raise ValueError(
            f"spec.output_shape: expected {(count, height, width)}, got {spec.output_shape}"
        )
    observed = Observed.of(spec, rows, dtype)
    observation = check("observation", observation, (rows,), torch.int64)
    weight = check("to_rgb.weight", to_rgb.weight, (count, channels), dtype)
    bias = check("to_rgb.bias", to_rgb.bias, (count,), dtype)
    energy = torch.empty(rows, dtype=torch.float64, device="cpu")
    extension().to_rgb_misfit(
        out=normed.out,
        slope=normed.slope,
        scale=normed.scale,
        out_grad=normed.out,
        rgb_weight=weight,
        rgb_bias=bias,
        bounded=to_rgb.bounded,
        kind=spec.kind,
        factor=1 if spec.kind == "mask" else spec.factor,
        target=observed.target,
        mask=observed.mask,
        weight=observed.weight,
        observation=observation,
        energy=energy,
        threads=torch.get_num_threads(),
    )
    return energy, normed.out
