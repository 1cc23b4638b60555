"""The last step of a generator of images in one pass on the CPU: colours, misfit, and back."""

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
class Colours:
    """A 1x1 convolution to colours: ``weight`` ``(colours, C)``, ``bias`` ``(colours,)``.

    ``bounded`` says whether tanh follows.
    """

    weight: Tensor
    bias: Tensor
    bounded: bool


def colour_misfit(
    normed: NormedActivation, colours: Colours, spec: MisfitSpec, observation: Tensor
) -> tuple[Tensor, Tensor]:
    """Misfit of the colours of ``normed`` ``(n, H, W, C)``; see `reference.colour_misfit`.

    Energies ``(n,)`` float64, and the gradient by what ``normed`` was made of, which takes the
    memory of ``normed.out``. ``observation`` ``(n,)`` int64 says which row of ``spec`` each image
    belongs to. No image is written. Raises TypeError or ValueError naming the argument.
    """
    rows, height, width, channels = normed.out.shape
    dtype = require_float("normed.out", normed.out.dtype)
    count = len(colours.bias)
    if tuple(spec.output_shape) != (count, height, width):
        raise ValueError(
            f"spec.output_shape: expected {(count, height, width)}, got {spec.output_shape}"
        )
    observed = Observed.of(spec, rows, dtype)
    observation = check("observation", observation, (rows,), torch.int64)
    weight = check("colours.weight", colours.weight, (count, channels), dtype)
    bias = check("colours.bias", colours.bias, (count,), dtype)
    energy = torch.empty(rows, dtype=torch.float64, device="cpu")
    extension().colour_misfit(
        out=normed.out,
        slope=normed.slope,
        scale=normed.scale,
        out_grad=normed.out,
        colour_weight=weight,
        colour_bias=bias,
        bounded=colours.bounded,
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
