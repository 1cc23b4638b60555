"""The paper's studies at a small size, also for processes of their own."""

from __future__ import annotations

from pathlib import Path

import torch

from cogen_fast.experiments.images import study as image_study
from cogen_fast.experiments.images.plan import Effort, Scope, Snapshot
from cogen_fast.experiments.synthetic import runs as synthetic_runs
from cogen_fast.experiments.synthetic import study as synthetic
from cogen_fast.generators.progressive import ProgressiveGenerator

TINY = Effort(images=2, curve_images=1, ais_steps=12, leapfrog_steps=5, starts=20, tuning_steps=2)
QUICK = synthetic_runs.Effort(
    chains=12,
    repeats=2,
    populations=4,
    program_steps=60,
    text_steps=50,
    loops=(1, 20, 50),
    descent_steps=40,
    tuning_steps=10,
    starts=20,
    grid=101,
)


def network(seed: int) -> ProgressiveGenerator:
    """A generator of 32 x 32 pictures with few features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ProgressiveGenerator(
            32, channels=1, latent_size=6, feature_maps=(4, 4, 4, 4), final="tanh"
        )
    return made.eval().requires_grad_(False)


SNAPSHOTS = (Snapshot("early", 1_000, network(1)), Snapshot("late", 3_000, network(2)))
SCOPE = Scope(SNAPSHOTS)


def images(out: Path) -> None:
    """The image study."""
    torch.set_num_threads(1)
    image_study.reproduce(out, effort=TINY, scope=SCOPE, progress=False, processes=1)


def of_plane(out: Path) -> None:
    """The 2-D study."""
    synthetic.reproduce(out, effort=QUICK, progress=False)
