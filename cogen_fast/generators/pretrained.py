"""Generators that come with the package."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from torch import nn

from cogen_fast.generators.checkpoints import load_generator

# name: file in `weights`, made by the command in its comment
PRETRAINED: dict[str, str] = {
    # python -m cogen_fast.training.five_gaussians FILE
    "five-gaussians": "five_gaussians.safetensors",
}


def pretrained(name: str) -> nn.Module:
    """A shipped generator in eval mode.

    "five-gaussians": 2-D latents to points of the 2-D study, 15,000 iterations of
    `cogen_fast.training.five_gaussians` on data of variance 0.002. ValueError for unknown names.
    """
    if name not in PRETRAINED:
        raise ValueError(f"name: expected one of {sorted(PRETRAINED)}, got {name!r}")
    with as_file(files("cogen_fast.generators") / "weights" / PRETRAINED[name]) as path:
        return load_generator(Path(path))
