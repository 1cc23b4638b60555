"""The parsers of `cogen-fast train`, `sample` and `swd`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cogen_fast.cli.help import GENERATOR_HELP, add_device, add_latent_shape, add_quiet, command
from cogen_fast.training.config import PRECISIONS, TrainingConfig
from cogen_fast.training.datasets import FITS
from cogen_fast.training.losses import LOSSES

_TRAIN_HELP = """\
Train a progressive GAN (Karras et al. 2018) on a folder of images, an IDX file
(MNIST family) or an .npz of 8-bit images. Ctrl-C writes a checkpoint and ends
the training; the same command continues from the last checkpoint.
"""
_TRAIN_EPILOG = """\
examples: colour images of 64 x 64 pixels, on one GPU and on four
  cogen-fast train --data photos --resolution 64 --out run
  torchrun --nproc-per-node 4 -m cogen_fast train --data photos --resolution 64 \\
      --out run

what is written to DIR:
  snapshots/N-average.safetensors, N-raw.safetensors, N.png
                    the moving average of the generator after N images, the
                    generator itself, and samples of the average
  log.jsonl         losses and images per second, one line per 50 steps
  checkpoint.pt     the state of the training
  config.json       the settings of the training

exit status: 0 success; 2 error, whose cause is shown; 130 interrupted (Ctrl-C)
"""
_GENERATOR_HELP = GENERATOR_HELP.replace("--generator", "WHAT")
_SAMPLE_HELP = "Draw images of a trained generator, as one PNG and, with --each, one PNG each."
_SWD_HELP = """\
Measure the sliced Wasserstein distance between generated and real images on
patches of a Laplacian pyramid (Karras et al. 2018, section 5), times 1,000, for
each generator given. Smaller is better. The last row is the distance between
two disjoint sets of real images.
"""


def add_train(commands: Any) -> None:
    """Add `cogen-fast train`."""
    parser = command(
        commands,
        "train",
        "train a progressive GAN",
        description=_TRAIN_HELP,
        epilog=_TRAIN_EPILOG,
    )
    data = parser.add_argument_group("what to do").add_argument
    _add_data(data, "images to train on")
    data(
        "--resolution",
        type=int,
        required=True,
        metavar="R",
        help="width and height of the generator's images, a power of two from 4 to 1024",
    )
    data(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the training (see below)"
    )
    data(
        "--held-out",
        type=int,
        default=0,
        metavar="N",
        help="number of images which are not trained on, the same ones for equal N (default: 0)",
    )
    data("--flips", action="store_true", help="mirror images at random")
    _add_network(parser)
    _add_recipe(parser)
    running = parser.add_argument_group("running").add_argument
    running(
        "--snapshots",
        type=_counts,
        default=(),
        metavar="N,N,...",
        help="numbers of images after which the generator is saved, in addition to the end",
    )
    running(
        "--checkpoint-seconds",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds between checkpoints (default: 600)",
    )
    add_device(running)
    add_quiet(running)


def _add_network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "networks",
        "The defaults are those of the paper.",
    ).add_argument
    add(
        "--latent-size",
        type=int,
        default=TrainingConfig.latent_size,
        metavar="D",
        help="number of latents (default: 512)",
    )
    add(
        "--fmap-base",
        type=int,
        default=TrainingConfig.fmap_base,
        metavar="B",
        help="there are min(B / 2^s, M) feature maps, with s = 1 at 4 px (default: 8192)",
    )
    add(
        "--fmap-max",
        type=int,
        default=TrainingConfig.fmap_max,
        metavar="M",
        help="largest number of feature maps (default: 512)",
    )
    add(
        "--feature-maps",
        type=_counts,
        metavar="N,N,...",
        help="the generator's numbers of feature maps from 4 px up, in place of the formula",
    )
    add(
        "--discriminator-maps",
        type=_counts,
        metavar="N,N,...",
        help="the discriminator's numbers of feature maps (default: the generator's)",
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("recipe").add_argument
    add(
        "--phase-images",
        type=int,
        default=TrainingConfig.phase_images,
        metavar="N",
        help="images shown while a new resolution fades in, and again afterwards (default: 600000)",
    )
    add(
        "--total-images",
        type=int,
        default=TrainingConfig.total_images,
        metavar="N",
        help="total number of images shown (default: 12000000)",
    )
    add(
        "--batch",
        type=_batches,
        metavar="N | R:N,R:N,...",
        help="images per step, for all resolutions or from resolution R up (default: 16; 14 from "
        "256 px, 6 from 512 px, 3 at 1024 px)",
    )
    add(
        "--learning-rate",
        type=float,
        default=TrainingConfig.learning_rate,
        metavar="E",
        help="learning rate of Adam (default: 0.001)",
    )
    _add_loss(add)
    add(
        "--average-decay",
        type=float,
        default=TrainingConfig.average_decay,
        metavar="A",
        help="decay of the moving average of the generator's weights per step (default: 0.999)",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default=TrainingConfig.precision,
        help="bfloat16: mixed precision, which is faster on GPUs (default: float32)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="random seed: equal inputs and seeds give equal runs (default: 0)",
    )


def _add_loss(add: Any) -> None:
    add(
        "--loss",
        choices=LOSSES,
        default=TrainingConfig.loss,
        help="r1: non-saturating loss with a penalty in every 16th step, which is cheaper "
        "(default: wgan-gp)",
    )
    add(
        "--r1-gamma",
        type=float,
        default=TrainingConfig.r1_gamma,
        metavar="G",
        help="weight of the penalty of r1 (default: 10)",
    )


def add_sample(commands: Any) -> None:
    """Add `cogen-fast sample`."""
    parser = command(
        commands,
        "sample",
        "draw images of a generator",
        description=_SAMPLE_HELP,
        epilog=_GENERATOR_HELP,
    )
    add = parser.add_argument
    add("generator", metavar="WHAT", help="the trained generator (see below)")
    add("--out", type=Path, required=True, metavar="FILE.png", help="picture of all images")
    add("--count", type=int, default=64, metavar="N", help="number of images to draw (default: 64)")
    add(
        "--columns", type=int, default=8, metavar="N", help="number of images in a row (default: 8)"
    )
    add(
        "--each",
        type=Path,
        metavar="DIR",
        help="folder to which each image is also written on its own, as sample_000.png",
    )
    add("--seed", type=int, default=0, metavar="S", help="random seed (default: 0)")
    add_latent_shape(add)
    add_device(add)
    add("--overwrite", action="store_true", help="replace existing files")
    add_quiet(add)


def add_swd(commands: Any) -> None:
    """Add `cogen-fast swd`."""
    parser = command(
        commands,
        "swd",
        "measure how far generated images are from real ones",
        description=_SWD_HELP,
        epilog=_GENERATOR_HELP,
    )
    add = parser.add_argument
    add(
        "what",
        nargs="+",
        metavar="WHAT | DIR",
        help="a generator (see below), or the folder of a training, for all averaged snapshots in "
        "it",
    )
    _add_data(add, "real images")
    add(
        "--held-out",
        type=int,
        metavar="N",
        help="compare only with the N images which train --held-out N did not train on",
    )
    add(
        "--count",
        type=int,
        default=8192,
        metavar="N",
        help="number of images of each kind, at most half of the real ones (default: 8192)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="random seed of latents and patches (default: 0)",
    )
    add("--out", type=Path, metavar="FILE.json", help="file to which the numbers are also written")
    add_device(add)
    add_quiet(add)


def _add_data(add: Any, what: str) -> None:
    add(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help=f"{what}: a folder, an IDX file (also .gz) or an .npz",
    )
    add(
        "--channels",
        type=int,
        choices=(1, 3),
        help="convert all images to grey (1) or colour (3) (default: as they are)",
    )
    add_reading(add)


def add_reading(add: Any) -> None:
    """Add the options which say how ``--data`` is read."""
    add(
        "--fit",
        choices=tuple(FITS),
        default="crop",
        help="how images of other sizes are fitted: cropped at the centre and scaled, or padded "
        "with a black border (default: crop)",
    )
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder for decoded images (default: the user's cache)",
    )


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers separated by commas, got {text!r}"
        ) from None


def _batches(text: str) -> int | dict[int, int]:
    try:
        if ":" not in text:
            return int(text)
        pairs = (part.split(":") for part in text.split(","))
        return {int(resolution): int(count) for resolution, count in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected N or R:N,R:N,... with whole numbers, got {text!r}"
        ) from None
