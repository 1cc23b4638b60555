"""What can be typed after `cogen-fast evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cogen_fast.cli.help import GENERATOR_HELP, add_device, add_quiet, command
from cogen_fast.cli.training_parser import add_reading
from cogen_fast.experiments.evaluate.methods import METHODS
from cogen_fast.experiments.evaluate.tasks import PUBLISHED

_HELP = """\
Compare methods on many images: hide a part of each, let every method fill it
in, and measure how near it comes to the truth. Killed at any point, the same
command goes on from there and does nothing again.
"""
_METHODS_HELP = """\
what --methods takes, with commas between:
  ais               the published algorithm; with --preset a published run of it
  adaptive          the default of the other commands
  adaptive-polish   the best fits found from its samples
  gd, adam, lbfgs   an optimiser of the misfit from one random start
  gd-multi, adam-multi, lbfgs-multi
                    the same from the best of many (the paper: gd-multi)
  sir               sampling-importance-resampling
Learning rates of the optimisers, where none is given, come from a grid: each by
the error on the last images of the data, which are not among those evaluated.

what --task takes:
  block             a block of the paper's size (8-15 px at 32, 30-60 at 128)
  block-LOW-HIGH    a block of sides LOW to HIGH
  half-left         or right, top, bottom
  pixels-SHARE      all but a share of the pixels, at random
  average-K, stride-K
                    super-resolution by K: means of blocks, or every K-th pixel

"""
_EPILOG = """\
examples: 100 images of the test set, on one machine and on four GPUs of it
  cogen-fast evaluate --generator fashion-32 --fit pad --images 100 --out study \\
      --data t10k-images-idx3-ubyte.gz --methods ais,gd,gd-multi,sir
  torchrun --nproc-per-node 4 -m cogen_fast evaluate --generator fashion-32 ...
Processes share the images, and on several machines need a common folder DIR.
Results do not depend on their number, if each has as many threads.

"""
_WRITTEN = """\
what is written to DIR:
  records.jsonl     a line for each image: every method's errors, energies, cost
  table.txt, table.csv
                    means over the images, and coverage of credible intervals
  grid-000000.png ...
                    truth, observed, and each method's best by energy
  METHOD/           records and pictures of groups of images as they are done;
                    tuning.json: its learning rate, and those that were tried

exit status: 0 done; 2 something is wrong with what was given; 130 Ctrl-C
"""


def add_evaluate(commands: Any) -> None:
    """`cogen-fast evaluate`."""
    parser = command(
        commands,
        "evaluate",
        "compare methods on many images",
        description=_HELP,
        epilog=_EPILOG + _METHODS_HELP + GENERATOR_HELP + _WRITTEN,
    )
    add = parser.add_argument_group("what to do").add_argument
    add("--generator", required=True, metavar="WHAT", help="the trained generator, see below")
    add(
        "--data",
        required=True,
        metavar="PATH",
        help="images, best ones that the generator has not seen: a folder, an IDX file (also "
        ".gz) or an .npz; or own: the generator's, whose answer it can give exactly",
    )
    add_reading(add)
    add("--task", help="what is hidden, see below (block, or the preset's)")
    add(
        "--methods",
        type=_names,
        default=("ais", "gd", "gd-multi", "sir"),
        metavar="M,M,...",
        help=f"of {', '.join(METHODS)} (ais,gd,gd-multi,sir)",
    )
    add("--images", type=int, metavar="N", help="the first N images (all but those to tune on)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the study, see below")
    _add_settings(parser)
    _add_running(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings", "What stands in parentheses is the default.")
    add = group.add_argument
    add(
        "--preset",
        metavar="NAME",
        help=f"task and settings of ais as published: {', '.join(PUBLISHED)}; with --task its "
        "settings alone",
    )
    add(
        "--noise-std",
        type=float,
        metavar="S",
        help="standard deviation of the noise that methods assume in the observed pixels, where "
        "black is -1 and white is 1 (0.1, or what the preset's weight says)",
    )
    add(
        "--added-noise",
        type=float,
        default=0.0,
        metavar="S",
        help="noise that is added to them; coverage is only right where it is the assumed one (0)",
    )
    add(
        "--chains",
        type=int,
        metavar="N",
        help="images that a method draws for each image (ais 4 or the preset's, adaptive 16, "
        "others 1)",
    )
    add(
        "--budget",
        type=int,
        metavar="G",
        help="most gradients for each of them, of all methods but sir (as many as a method takes; "
        "5000 steps of an optimiser)",
    )
    add(
        "--starts",
        type=int,
        metavar="K",
        help="random starts of the multis, of which the best is taken, and draws of sir (5000)",
    )
    add(
        "--learning-rates",
        type=_rates,
        default=(),
        metavar="M=E,M=E,...",
        help="of optimisers, such as gd=0.01,adam=0.1 (tuned)",
    )
    add(
        "--tuning-images",
        type=int,
        default=4,
        metavar="N",
        help="images of the data's end to tune them on (4)",
    )
    add(
        "--tuning-steps",
        type=int,
        metavar="N",
        help="steps of each trial (the method's own)",
    )
    add("--seed", type=int, default=0, metavar="S", help="same inputs, same seed: same result (0)")


def _add_running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("running").add_argument
    add(
        "--group",
        type=int,
        default=4,
        metavar="N",
        help="images that are worked on at once, and lost when killed (4)",
    )
    add("--pictures", type=int, default=16, metavar="N", help="images in the PNG files (16)")
    add(
        "--latent-shape",
        type=int,
        nargs="+",
        metavar="D",
        help="shape of one latent (default: found out from the generator)",
    )
    add(
        "--max-batch",
        type=int,
        metavar="N",
        help="most images made at once, to save memory (default: all of a group)",
    )
    add_device(add)
    add_quiet(add)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _rates(text: str) -> tuple[tuple[str, float], ...]:
    try:
        pairs = (part.split("=") for part in text.split(","))
        return tuple((name, float(rate)) for name, rate in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected METHOD=RATE with commas between, got {text!r}"
        ) from None
