"""The published runs by name, with all settings of method and schedule as plain data.

Where the paper's text and the authors' public program differ, each has its own preset, and the
description names the source.
"""

from __future__ import annotations

from dataclasses import dataclass

from cogen_fast.ops.spec import AdaptationRule
from cogen_fast.problem.density import Form
from cogen_fast.sampler.schedule import Schedule, Sigmoid
from cogen_fast.sampler.step_size import PAPER_RULE, PROGRAM_RULE
from cogen_fast.support.arguments import check_choice

_IMAGES = Sigmoid(-5.0, 5.0, normalised=False)
_TWO_D = Sigmoid(-10.0, 2.0, normalised=False)


@dataclass(frozen=True)
class Preset:
    """Settings of one published run (Fang and Schwing 2019)."""

    description: str
    chains: int
    ais_steps: int
    schedule: Schedule
    form: Form
    weight: float
    leapfrog_steps: int = 20
    hmc_steps: int = 1
    step_size: float = 0.01
    adaptation: AdaptationRule = PROGRAM_RULE


PRESETS: dict[str, Preset] = {
    "five-gaussians": Preset(
        "2-D study, the authors' program: variance 5e-5, 10,000 schedule points",
        chains=100,
        ais_steps=9999,
        schedule=_TWO_D,
        form="posterior",
        weight=1e4,
    ),
    "five-gaussians-paper": Preset(
        "2-D study, the paper's text: 6,000 AIS loops of 10 leapfrog steps, step size increased by "
        "1.021; schedule and variance, which the text does not state, are the program's",
        chains=100,
        ais_steps=6000,
        schedule=_TWO_D,
        form="posterior",
        weight=1e4,
        leapfrog_steps=10,
        adaptation=PAPER_RULE,
    ),
    "celeba-128": Preset(
        "CelebA 128 x 128, one block of sides 30-60 hidden, the paper's text: 1 chain",
        chains=1,
        ais_steps=499,
        schedule=_IMAGES,
        form="paper",
        weight=1.0,
    ),
    "celeba-128-program": Preset(
        "CelebA 128 x 128, one block of sides 30-60 hidden, the authors' program: 10 chains",
        chains=10,
        ais_steps=499,
        schedule=_IMAGES,
        form="paper",
        weight=1.0,
    ),
    "lsun-256": Preset(
        "LSUN 256 x 256, one block of sides 50-80 hidden: 5 chains, of which the paper keeps the "
        "one closest to the ground truth (an oracle)",
        chains=5,
        ais_steps=499,
        schedule=_IMAGES,
        form="paper",
        weight=1.0,
    ),
    "celebahq-1024-sisr": Preset(
        "CelebA-HQ 1024 x 1024 from 128 x 128: 3 chains; the observation is AveragePool(8) in the "
        "paper's text and Stride(8) in the authors' program",
        chains=3,
        ais_steps=499,
        schedule=_IMAGES,
        form="paper",
        weight=1.0,
    ),
}

DEFAULTS = Preset(
    "defaults of the paper's method, where no preset is named",
    chains=4,
    ais_steps=500,
    schedule=Sigmoid(),
    form="posterior",
    weight=1.0,
)


def find_preset(name: str) -> Preset:
    """The preset of that name. ValueError, listing the known names, where there is none."""
    return PRESETS[check_choice("preset", name, sorted(PRESETS))]
