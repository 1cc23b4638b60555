"""Images per second of progressive training: ``python benchmarks/training_speed.py [--help]``.

The images are random pictures at the final resolution, after it has faded in. Each loss and
precision takes turns over several rounds; the figures are medians, one line of JSON for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch

from cogen_fast.training.config import PRECISIONS, TrainingConfig
from cogen_fast.training.datasets import Images
from cogen_fast.training.distributed import process_group
from cogen_fast.training.losses import LOSSES, R1_EVERY
from cogen_fast.training.progressive import Trainer

_ROUNDS = 5


def _grown(options: argparse.Namespace, loss: str, precision: str, images: Images) -> Trainer:
    """A trainer in its last phase, one step of each phase before it."""
    config = TrainingConfig(
        options.resolution,
        channels=images.channels,
        latent_size=options.latent_size,
        feature_maps=options.feature_maps,
        phase_images=options.batch,
        total_images=2**30,
        batch=options.batch,
        loss=loss,
        precision=precision,
    )
    with process_group(options.device) as processes:
        trainer = Trainer(config, images, processes)
    while trainer.phase != config.phases[-1]:
        trainer.step()
    return trainer


def _speed(trainer: Trainer, steps: int) -> float:
    start, shown = _now(trainer), trainer.shown
    for _ in range(steps):
        trainer.step()
    return (trainer.shown - shown) / (_now(trainer) - start)


def _now(trainer: Trainer) -> float:
    if trainer.processes.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--resolution", type=int, default=32)
    add("--channels", type=int, default=1)
    add("--latent-size", type=int, default=64)
    add("--feature-maps", type=int, nargs="+", help="from 4 px up (default: the published ones)")
    add("--batch", type=int, default=32)
    add("--precisions", nargs="+", choices=PRECISIONS, default=["float32"])
    add("--device")
    options = parser.parse_args()
    shape = (4 * options.batch, options.channels, options.resolution, options.resolution)
    images = Images(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    runs = {
        (loss, precision): _grown(options, loss, precision, images)
        for loss in LOSSES
        for precision in options.precisions
    }
    speeds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(_ROUNDS):
        for key, trainer in runs.items():
            speeds[key].append(_speed(trainer, R1_EVERY))  # steps with one lazy penalty
    for (loss, precision), found in speeds.items():
        trainer = runs[loss, precision]
        line = {
            "loss": loss,
            "precision": precision,
            "device_type": trainer.processes.device.type,
            "threads": torch.get_num_threads(),
            "feature_maps": list(trainer.config.feature_maps or ()),
            "batch": options.batch,
            "images_per_second": round(statistics.median(found), 1),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
