"""Generators that come with the package."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from torch import nn

from cogen_fast.generators.checkpoints import load_generator

VARIANCES = (0.002, 0.02)
"""Of the 2-D study's data: the authors' program, the paper's text."""
STAGES = (500, 1_500, 2_500, 15_000)
"""Iterations of training after which the 2-D study keeps a generator."""

# name: file in `weights`, all made by python -m cogen_fast.training.five_gaussians FOLDER
PRETRAINED: dict[str, str] = {
    "five-gaussians": "five_gaussians_0.002_15000.safetensors",
    **{
        f"five-gaussians-{variance}-{stage}": f"five_gaussians_{variance}_{stage}.safetensors"
        for variance in VARIANCES
        for stage in STAGES
    },
}


def pretrained(name: str) -> nn.Module:
    """A shipped generator in eval mode.

    "five-gaussians": 2-D latents to points of the 2-D study, 15,000 iterations of
    `cogen_fast.training.five_gaussians` on data of variance 0.002. "five-gaussians-V-N": after N of
    `STAGES` on data of variance V of `VARIANCES`, such as "five-gaussians-0.02-500". ValueError for
    unknown names.
    """
    if name not in PRETRAINED:
        raise ValueError(f"name: expected one of {sorted(PRETRAINED)}, got {name!r}")
    with as_file(files("cogen_fast.generators") / "weights" / PRETRAINED[name]) as path:
        return load_generator(Path(path))
