"""Generators z -> x: progressive GANs, StyleGAN2, a dense one, and functions to load and save them.

`load_generator` reads public checkpoints of progressive GANs and of StyleGAN2, and this package's
own files, without running any code that they hold; `save_generator` writes the latter. `pretrained`
gives the generators that come with the package, `held_out_images` images to try one of them on.
"""

from __future__ import annotations

from cogen_fast.generators.checkpoints import load_generator, save_generator
from cogen_fast.generators.mlp import MLPGenerator
from cogen_fast.generators.pretrained import held_out_images, pretrained
from cogen_fast.generators.progressive import ProgressiveGenerator
from cogen_fast.generators.stylegan2 import StyleGAN2Generator

__all__ = [
    "MLPGenerator",
    "ProgressiveGenerator",
    "StyleGAN2Generator",
    "held_out_images",
    "load_generator",
    "pretrained",
    "save_generator",
]
