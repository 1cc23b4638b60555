"""What can be typed after `cogen-fast train`, `sample` and `swd`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cogen_fast.cli.help import add_device, add_quiet, command
from cogen_fast.training.config import PRECISIONS, TrainingConfig
from cogen_fast.training.datasets import FITS
from cogen_fast.training.losses import LOSSES

_TRAIN_HELP = """\
Train a progressive GAN (Karras et al. 2018) on a folder of images, an IDX file
(MNIST family) or an .npz of 8-bit images. The same command again goes on from
the last checkpoint; Ctrl-C writes one and ends.
"""
_TRAIN_EPILOG = """\
example: colour pictures of 64 x 64, on one GPU and on four
  cogen-fast train --data photos --resolution 64 --out run
  torchrun --nproc-per-node 4 -m cogen_fast train --data photos --resolution 64 \\
      --out run

what is written to DIR:
  snapshots/N-average.safetensors, N-raw.safetensors, N.png
                    the generator's moving average after N images, the generator
                    itself, and samples of the average
  log.jsonl         losses and images/s, a line per 50 steps
  checkpoint.pt     where the training stands; config.json its settings

exit status: 0 done; 2 something is wrong with what was given; 130 Ctrl-C
"""
_SAMPLE_HELP = "Draw images of a trained generator, in one PNG and, with --each, one by one."
_SWD_HELP = """\
Measure the sliced Wasserstein distance between generated and real images on
patches of a Laplacian pyramid (Karras et al. 2018, section 5), times 1,000, for
each generator given. Smaller is better; the last row is what real images that
were not compared with give.
"""


def add_train(commands: Any) -> None:
    """`cogen-fast train`."""
    parser = command(
        commands,
        "train",
        "train a progressive GAN",
        description=_TRAIN_HELP,
        epilog=_TRAIN_EPILOG,
    )
    data = parser.add_argument_group("what to do").add_argument
    _add_data(data, "images to learn from")
    data(
        "--resolution",
        type=int,
        required=True,
        metavar="R",
        help="side of the generator's images, a power of two in 4 ... 1024",
    )
    data("--out", type=Path, required=True, metavar="DIR", help="folder of the training, see below")
    data(
        "--held-out",
        type=int,
        default=0,
        metavar="N",
        help="images that are not learnt from, the same at every call with the same N (0)",
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
        help="counts of images after which the generator is kept; always at the end",
    )
    running(
        "--checkpoint-seconds",
        type=float,
        default=600.0,
        metavar="S",
        help="time between checkpoints (600)",
    )
    add_device(running)
    add_quiet(running)


def _add_network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "networks",
        "What stands in parentheses is the default, which is that of the paper.",
    ).add_argument
    add(
        "--latent-size",
        type=int,
        default=TrainingConfig.latent_size,
        metavar="D",
        help="length of a latent (512)",
    )
    add(
        "--fmap-base",
        type=int,
        default=TrainingConfig.fmap_base,
        metavar="B",
        help="feature maps are min(B / 2^s, M), s = 1 at 4 px (8192)",
    )
    add(
        "--fmap-max",
        type=int,
        default=TrainingConfig.fmap_max,
        metavar="M",
        help="and at most M (512)",
    )
    add(
        "--feature-maps",
        type=_counts,
        metavar="N,N,...",
        help="the generator's, from 4 px up, in place of the formula",
    )
    add(
        "--discriminator-maps",
        type=_counts,
        metavar="N,N,...",
        help="the discriminator's (the generator's)",
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("recipe").add_argument
    add(
        "--phase-images",
        type=int,
        default=TrainingConfig.phase_images,
        metavar="N",
        help="images shown while a resolution fades in, and as many once it has (600000)",
    )
    add(
        "--total-images",
        type=int,
        default=TrainingConfig.total_images,
        metavar="N",
        help="images shown in all (12000000)",
    )
    add(
        "--batch",
        type=_batches,
        metavar="N | R:N,R:N,...",
        help="images per step, the same for all resolutions or from resolution R up (16; 14 from "
        "256 px, 6 from 512, 3 at 1024)",
    )
    add(
        "--learning-rate",
        type=float,
        default=TrainingConfig.learning_rate,
        metavar="E",
        help="of Adam (0.001)",
    )
    add(
        "--loss",
        choices=LOSSES,
        default=TrainingConfig.loss,
        help="r1: non-saturating with a penalty at every 16th step, cheaper (wgan-gp)",
    )
    add(
        "--r1-gamma",
        type=float,
        default=TrainingConfig.r1_gamma,
        metavar="G",
        help="weight of that penalty (10)",
    )
    add(
        "--average",
        type=float,
        default=TrainingConfig.average,
        metavar="A",
        help="share of the weights' mean that a step keeps (0.999)",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default=TrainingConfig.precision,
        help="bfloat16: mixed precision, faster on GPUs (float32)",
    )
    add("--seed", type=int, default=0, metavar="S", help="same inputs, same seed: same run (0)")


def add_sample(commands: Any) -> None:
    """`cogen-fast sample`."""
    parser = command(commands, "sample", "draw images of a generator", description=_SAMPLE_HELP)
    add = parser.add_argument
    add("generator", metavar="FILE", help="a checkpoint, as for inpaint --generator")
    add("--out", type=Path, required=True, metavar="FILE.png", help="the sheet of all images")
    add("--count", type=int, default=64, metavar="N", help="images to draw (64)")
    add("--columns", type=int, default=8, metavar="N", help="images in a row (8)")
    add("--each", type=Path, metavar="DIR", help="also write every image there, as sample_000.png")
    add("--seed", type=int, default=0, metavar="S", help="seed (0)")
    add_device(add)
    add("--overwrite", action="store_true", help="replace what is there")
    add_quiet(add)


def add_swd(commands: Any) -> None:
    """`cogen-fast swd`."""
    parser = command(
        commands,
        "swd",
        "measure how far generated images are from real ones",
        description=_SWD_HELP,
    )
    add = parser.add_argument
    add(
        "what",
        nargs="+",
        type=Path,
        metavar="FILE | DIR",
        help="generators, or folders of trainings: all averaged snapshots in them",
    )
    _add_data(add, "real images")
    add(
        "--held-out",
        type=int,
        metavar="N",
        help="compare with the N images only that train --held-out N left out",
    )
    add(
        "--count",
        type=int,
        default=8192,
        metavar="N",
        help="images of each kind, at most half of the real ones there are (8192)",
    )
    add("--seed", type=int, default=0, metavar="S", help="of latents and patches (0)")
    add("--out", type=Path, metavar="FILE.json", help="write the numbers there too")
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
        help="make all images grey (1) or coloured (3) (as they are)",
    )
    add_reading(add)


def add_reading(add: Any) -> None:
    """How ``--data`` is read."""
    add(
        "--fit",
        choices=tuple(FITS),
        default="crop",
        help="images of other sizes: cut at the centre and scaled, or with a black border (crop)",
    )
    add("--cache", type=Path, metavar="DIR", help="folder for decoded images (the user's cache)")


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers with commas between, got {text!r}"
        ) from None


def _batches(text: str) -> int | dict[int, int]:
    try:
        if ":" not in text:
            return int(text)
        pairs = (part.split(":") for part in text.split(","))
        return {int(resolution): int(count) for resolution, count in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected N or R:N,R:N,... of whole numbers, got {text!r}"
        ) from None
