"""Generators z -> x: progressive GANs, StyleGAN2, dense networks, and loading and saving them.

`load_generator` reads public checkpoints of progressive GANs and of StyleGAN2, and this package's
own files, without running any code that they hold; `save_generator` writes the latter.
`pretrained` gives what comes with the package, `held_out_images` pictures to try it on.
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
