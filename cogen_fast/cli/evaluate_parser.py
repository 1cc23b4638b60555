"""The parser of `cogen-fast evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cogen_fast.cli.help import (
    GENERATOR_HELP,
    add_device,
    add_latent_shape,
    add_quiet,
    add_seed,
    command,
)
from cogen_fast.cli.training_parser import add_reading
from cogen_fast.experiments.evaluate.methods import METHODS
from cogen_fast.experiments.evaluate.tasks import PUBLISHED

_HELP = """\
Compare methods on many images: hide a part of each image, let every method fill
it in, and measure how close the result is to the truth. If the study is
stopped, the same command continues it and repeats no finished group of images.
"""
_METHODS_HELP = """\
what --methods takes, separated by commas:
  paper             the published method; with --preset a published run
  adaptive          the adaptive method, which is the default of other commands
  adaptive-polish   best fits that start from samples of the adaptive method
  gd, adam, lbfgs   an optimiser of the misfit from one random start
  gd-multi, adam-multi, lbfgs-multi
                    the same from the best of many starts (the paper: gd-multi)
  sir               sampling-importance-resampling
A learning rate which is not given is chosen from a grid by the error on the
last images of the data. These images are not evaluated.

what --task takes:
  block             a hidden block of the paper's size (8-15 px at 32, 30-60 at
                    128)
  block-LOW-HIGH    a hidden block with sides of LOW to HIGH pixels
  half-left         a hidden half; also half-right, half-top, half-bottom
  pixels-SHARE      all pixels hidden but a random share, such as 0.1
  average-K, stride-K
                    super-resolution by K: means of blocks, or every K-th pixel

"""
_EPILOG = """\
examples: 100 images of a test set, in one process and in four, each with a GPU
  cogen-fast evaluate --generator fashion-32 --fit pad --images 100 --out study \\
      --data t10k-images-idx3-ubyte.gz --methods paper,gd,gd-multi,sir
  torchrun --nproc-per-node 4 -m cogen_fast evaluate --generator fashion-32 ...
The processes share the images; on several machines they need a common folder
DIR. The results do not depend on the number of processes, if each has the same
number of threads.

"""
_WRITTEN = """\
what is written to DIR:
  records.jsonl     one line per image: errors, energies and cost of all methods
  table.txt, table.csv
                    means over the images, and coverage of credible intervals
  grid-000000.png ...
                    truth, observation, and each method's best chain by energy
  METHOD/           records and pictures of the finished groups of images, and
                    tuning.json: the learning rate, and the rates tried

exit status: 0 success; 2 error, whose cause is shown; 130 interrupted (Ctrl-C)
"""


def add_evaluate(commands: Any) -> None:
    """Add `cogen-fast evaluate`."""
    parser = command(
        commands,
        "evaluate",
        "compare methods on many images",
        description=_HELP,
        epilog=_EPILOG + _METHODS_HELP + GENERATOR_HELP + _WRITTEN,
    )
    add = parser.add_argument_group("what to do").add_argument
    add("--generator", required=True, metavar="WHAT", help="the trained generator (see below)")
    add(
        "--data",
        required=True,
        metavar="PATH",
        help="images, preferably ones on which the generator was not trained: a folder, an IDX "
        "file (also .gz) or an .npz; or own: images of the generator, which it can reproduce "
        "exactly",
    )
    add_reading(add)
    add("--task", help="what is hidden (see below; default: block, or the preset's)")
    add(
        "--methods",
        type=_names,
        default=("paper", "gd", "gd-multi", "sir"),
        metavar="M,M,...",
        help=f"{', '.join(METHODS)} (see below; default: paper,gd,gd-multi,sir)",
    )
    add(
        "--images",
        type=int,
        metavar="N",
        help="number of images, from the first one (default: all but those for tuning)",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the study (see below)")
    _add_settings(parser)
    _add_running(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings")
    add = group.add_argument
    add(
        "--preset",
        metavar="NAME",
        help=f"task, and settings of paper, of a published run: {', '.join(PUBLISHED)}; with "
        "--task only its settings are taken",
    )
    add(
        "--noise-std",
        type=float,
        metavar="S",
        help="standard deviation of the noise which the methods assume in the observed pixels, "
        "where black is -1 and white is 1 (default: 0.1, or by the preset's weight)",
    )
    add(
        "--added-noise",
        type=float,
        default=0.0,
        metavar="S",
        help="standard deviation of noise which is added to the observed pixels; coverage is "
        "correct only if it is the assumed one (default: 0)",
    )
    add(
        "--chains",
        type=int,
        metavar="N",
        help="number of chains per image (default: paper 4 or the preset's, adaptive 16, others 1)",
    )
    add(
        "--budget",
        type=int,
        metavar="G",
        help="largest number of gradient evaluations per chain, for all methods but sir; the "
        "images of a group share it, as one evaluation counts for all of them (default: the "
        "methods' own, for optimisers 5000 steps)",
    )
    add(
        "--starts",
        type=int,
        metavar="K",
        help="number of random starts of the -multi methods, of which the best is taken, and of "
        "draws of sir (default: 5000)",
    )
    _add_tuning(add)
    add_seed(add)


def _add_tuning(add: Any) -> None:
    add(
        "--learning-rates",
        type=_rates,
        default=(),
        metavar="M=E,M=E,...",
        help="learning rates of optimisers, such as gd=0.01,adam=0.1 (default: tuned)",
    )
    add(
        "--tuning-images",
        type=int,
        default=4,
        metavar="N",
        help="number of images, from the last one, on which learning rates are tuned (default: 4)",
    )
    add(
        "--tuning-steps",
        type=int,
        metavar="N",
        help="number of steps of each tuning trial (default: the method's own)",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("running").add_argument
    add(
        "--group",
        type=int,
        default=4,
        metavar="N",
        help="number of images that are computed together; after a stop, an unfinished group is "
        "repeated (default: 4)",
    )
    add(
        "--pictures",
        type=int,
        default=16,
        metavar="N",
        help="number of images in the PNG files (default: 16)",
    )
    add_latent_shape(add)
    add(
        "--max-batch",
        type=int,
        metavar="N",
        help="largest number of images computed at once, to save memory (default: all of a group)",
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
            f"expected METHOD=RATE, separated by commas, got {text!r}"
        ) from None
