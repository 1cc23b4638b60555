"""What can be typed after `cogen-fast`, and its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cogen_fast
from cogen_fast.cli.evaluate_parser import add_evaluate
from cogen_fast.cli.help import GENERATOR_HELP, Formatter, Parser, command
from cogen_fast.cli.training_parser import add_sample, add_swd, add_train
from cogen_fast.experiments import demo
from cogen_fast.experiments.evaluate.tasks import PUBLISHED
from cogen_fast.generators.pretrained import HELD_OUT, VARIANCES
from cogen_fast.methods.adaptive import EVIDENCE
from cogen_fast.methods.settings import ADAPTATIONS, METHODS
from cogen_fast.problem.density import FORMS
from cogen_fast.problem.precision import ENERGY_DTYPES, GRADIENT_DTYPES
from cogen_fast.sampler.annealing_plan import MASSES
from cogen_fast.sampler.schedule import NAMED

_T = TypeVar("_T")
_INPAINT_HELP = """\
Fill in the hidden part of an image: draw images of a trained generator that
agree with the visible part. What is hidden is told by --mask or by --box.
"""
_SUPER_RESOLVE_HELP = """\
Draw images of a trained generator that look like a small image when they are
reduced by a factor.
"""
_DEMO_HELP = """\
Hide a block of a photograph from Fashion-MNIST's test set, draw eight images of
the shipped generator that agree with the rest, and show them side by side with
their mean and with a map of where they disagree. Under a minute on two cores.
"""
_INPAINT_EXAMPLE = """\
example: hide a block of 20 x 24 pixels whose top left corner is x = 30, y = 12
  cogen-fast inpaint --generator faces.safetensors --image me.png \\
      --box 30 12 20 24 --out filled

"""
_SUPER_RESOLVE_EXAMPLE = """\
example: from 16 x 16 to a generator's 64 x 64
  cogen-fast super-resolve --generator faces.safetensors --image small.png \\
      --factor 4 --out large

"""
_FILES_HELP = """\
what is written to DIR:
  grid.png          what was observed, the chains by energy, mean and spread
  chain_000.png ... one image per chain, in the order of their numbers
  result.npz        latents, energies, weights, history;
                    cogen_fast.Result.load("DIR") reads it
  result.json       settings and numbers, as text

exit status: 0 done; 2 something is wrong with what was given; 130 Ctrl-C
"""
_SYNTHETIC_HELP = """\
The paper's 2-D study: points near five places on a circle, of which only the
second coordinate is known to be 0, so that the first should be 1. How many
chains find it: gradient descent, importance resampling, the published AIS-HMC
and the adaptive default, on a small GAN at four stages of its training. Takes
about a minute; needs matplotlib (pip install 'cogen-fast[plots]').
"""
_SYNTHETIC_FILES = """\
example:
  cogen-fast reproduce synthetic --out study

what is written to DIR:
  table.csv     share of chains near the answer, per generator and method, with
                the cost of a chain and every setting
  figure-1.png  the loss over the latent plane, paths of gradient descent, and
                their errors over the iterations
  figure-2.png  samples of the generators, where gradient descent and AIS-HMC
                end, and histograms of their errors
  figure-3.png  the chains of AIS-HMC after 100 to 6,000 loops
"""
_IMAGES_HELP = """\
The paper's image study on the shipped generator of 32 x 32 garments: gradient
descent and Adam from one start and from the best of 5,000, L-BFGS from these,
importance resampling, the published AIS-HMC (and with its weight scaled to the
image's size), the adaptive default, and it polished; all at the published run's
cost. Inpainting of a block and super-resolution by 4 and by 8, on real images
and, apart from them, on images of the generator's own. About 35 minutes on two
idle cores, a process on each (OMP_NUM_THREADS says how many); needs matplotlib
and pytorch-msssim
(pip install 'cogen-fast[plots,metrics]').

Stopped at any point, the same command goes on.
"""
_IMAGES_FILES = """\
examples:
  cogen-fast reproduce images --out study --quick
  cogen-fast reproduce images --out study --images 64 \\
      --data t10k-images-idx3-ubyte.gz

what is written to DIR:
  report.md         the settings, a table for each kind of images and task, and
                    which methods differ from Adam with many starts
  figure4_*.png     MSE, SSIM and MS-SSIM over the generator's training
  panels_*.png      ground truth, observed, and each method's best chain
  misfit_*.png      error of what is hidden over error of what is observed
  table.txt, .csv   every metric, per chain, best, oracle and mean
  tuning.json       learning rates, and the grids that they come from
  runs              records of each image
"""
_PRESETS_HELP = """\
The paper's image runs on CelebA, LSUN and CelebA-HQ as presets: task, settings and
the whole network, with random weights and two temperatures of one leapfrog step.
Shows that they work here, and what they cost; for results train or convert a
checkpoint, and name the preset with `inpaint` or `super-resolve`. Needs
pytorch-msssim (pip install 'cogen-fast[metrics]').
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser; mistakes raise ValueError. The command's name is in ``command``."""
    parser = Parser(
        prog="cogen-fast",
        description="Fill in what is missing from an image with a trained GAN as the prior.",
        epilog="cogen-fast COMMAND --help tells the options of a command.",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"cogen-fast {cogen_fast.__version__}"
    )
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    _add_inpaint(commands)
    _add_super_resolve(commands)
    _add_convert(commands)
    add_train(commands)
    add_sample(commands)
    add_swd(commands)
    add_evaluate(commands)
    command(commands, "info", "tell the version, the backends and the presets")
    _add_demo(commands)
    _add_reproduce(commands)
    return parser


def _add_inpaint(commands: Any) -> None:
    parser = command(
        commands,
        "inpaint",
        "fill in the hidden part of an image",
        description=_INPAINT_HELP,
        epilog=_INPAINT_EXAMPLE + GENERATOR_HELP + _FILES_HELP,
    )
    group = _start_files(parser, "the image; its hidden part may hold anything")
    hidden = group.add_mutually_exclusive_group(required=True)
    hidden.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="picture of the image's size: white (128 to 255) = observed, black = hidden",
    )
    hidden.add_argument(
        "--box",
        type=int,
        nargs=4,
        metavar=("X", "Y", "W", "H"),
        help="the HIDDEN block, in pixels of the generator's output: left edge and upper edge, "
        "counted from the top left corner, width, height",
    )
    _end_files(
        group,
        masks=", and a mask of the image's size goes along; pixels that scaling mixes with hidden "
        "ones count as hidden",
    )
    _add_options(parser)


def _add_super_resolve(commands: Any) -> None:
    parser = command(
        commands,
        "super-resolve",
        "enlarge a small image",
        description=_SUPER_RESOLVE_HELP,
        epilog=_SUPER_RESOLVE_EXAMPLE + GENERATOR_HELP + _FILES_HELP,
    )
    group = _start_files(
        parser, "the small image, of the generator's width and height divided by the factor"
    )
    group.add_argument(
        "--factor",
        type=int,
        required=True,
        metavar="K",
        help="how many times smaller the image is than the generator's output, on each side",
    )
    group.add_argument(
        "--downsample",
        choices=("average", "stride"),
        default="average",
        help="how the small image came about: the average of each K x K block, or every K-th "
        "pixel (default: average)",
    )
    _end_files(group)
    _add_options(parser)


def _start_files(parser: argparse.ArgumentParser, image: str) -> Any:
    group = parser.add_argument_group("what to do")
    group.add_argument(
        "--generator", required=True, metavar="WHAT", help="the trained generator, see below"
    )
    group.add_argument(
        "--image",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"{image}; 8-bit, or 16-bit grey, without transparency; made grey or colour as the "
        "generator is",
    )
    return group


def _end_files(group: Any, masks: str = "") -> None:
    group.add_argument(
        "--resize",
        action="store_true",
        help="an image of another size is cut at its centre to the right shape and scaled "
        f"smoothly{masks}; without this it is refused",
    )
    group.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the results, see below"
    )
    group.add_argument(
        "--overwrite", action="store_true", help="replace a result that is in DIR already"
    )


def _count_or_auto(text: str) -> int | str:
    return text if text == "auto" else _parsed(int, text, "whole number")


def _number_or_auto(text: str) -> float | str:
    return text if text == "auto" else _parsed(float, text, "number")


def _parsed(kind: Callable[[str], _T], text: str, name: str) -> _T:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a {name} or auto, got {text!r}") from None


def _add_options(parser: Parser) -> None:
    """What `cogenerate` takes, grouped as there."""
    _add_sampling(parser)
    _add_running(parser)
    _add_adaptive(parser)
    _add_published(parser)
    _add_moves(parser)
    _add_machine(parser)


def _add_sampling(parser: Parser) -> None:
    group = parser.add_argument_group("sampling", "What stands in parentheses is the default.")
    add = group.add_argument
    add("--chains", type=int, metavar="N", help="number of images to draw (16; paper: 4)")
    add(
        "--budget",
        type=int,
        metavar="G",
        help="gradient evaluations per image drawn, polishing included: all are spent, and no more "
        "(as many as it takes)",
    )
    add(
        "--polish",
        type=_count_or_auto,
        default="auto",
        metavar="K",
        help="gradients of L-BFGS from every sample in the end: best fits beside them, of which "
        "estimate.png is made (auto: by the run's length, or two fifths of the budget)",
    )
    noise = group.add_mutually_exclusive_group()
    noise.add_argument(
        "--noise-std",
        type=_number_or_auto,
        metavar="S",
        help="standard deviation of the noise in the observed pixels, where black is -1 and white "
        "is 1 (0.1); smaller: follows the observed pixels more closely; auto: inferred",
    )
    noise.add_argument(
        "--weight",
        type=float,
        metavar="W",
        help="factor of the squared error, in place of 1 / (2 S^2)",
    )
    add(
        "--method",
        choices=METHODS,
        help="adaptive finds its own temperatures; paper is the algorithm as published (adaptive)",
    )
    add("--seed", type=int, default=0, metavar="S", help="same inputs, same seed: same result (0)")


def _add_running(parser: Parser) -> None:
    add = parser.add_argument_group("running").add_argument
    add(
        "--device",
        metavar="D",
        help="cpu, cuda or cuda:N (default: for a FILE the GPU, if there is one; for your own code "
        "where the generator is)",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="save the unfinished run here every minute and on Ctrl-C; the same command again "
        "goes on from there (without it, Ctrl-C keeps what there is as the result)",
    )
    add(
        "--quiet",
        action="store_true",
        help="no progress bar and no summary; warnings and errors are still told",
    )


def _add_adaptive(parser: Parser) -> None:
    add = parser.rare_group("the adaptive method").add_argument
    add(
        "--populations",
        type=int,
        metavar="R",
        help="populations of N images each, to tell how far they agree (1, which is two halves)",
    )
    add(
        "--evidence",
        choices=EVIDENCE,
        help="frozen: a second run with all choices of the first, for an unbiased estimate of the "
        "evidence (consistent)",
    )
    add(
        "--kept",
        type=float,
        metavar="S",
        help="share of the effective sample size that a step of the temperature keeps; nearer to "
        "1: smaller steps (0.97)",
    )
    add("--mass", choices=MASSES, help="mass of the moves, learnt or not (curvature)")


def _add_published(parser: Parser) -> None:
    group = parser.rare_group("the published method", "With --method paper, or --preset.")
    add = group.add_argument
    add("--preset", metavar="NAME", help="settings of a published run; cogen-fast info lists them")
    add(
        "--ais-steps",
        type=int,
        metavar="T",
        help="temperatures from the prior to the posterior (500); more: better and slower",
    )
    add("--schedule", metavar="NAME", help=f"{', '.join(NAMED)} (sigmoid)")
    add(
        "--adaptation",
        choices=ADAPTATIONS,
        help="of the step size: by the mean acceptance of all images, which share it, or "
        "per-chain, each by its own (published)",
    )
    add(
        "--form",
        choices=FORMS,
        help="posterior: the prior stays throughout; paper: it fades out, and there are no weights "
        "(posterior)",
    )


def _add_moves(parser: Parser) -> None:
    add = parser.rare_group("the moves of both methods").add_argument
    add("--hmc-steps", type=int, metavar="M", help="moves per temperature (tuned; paper: 1)")
    add("--leapfrog-steps", type=int, metavar="L", help="gradients in a move (tuned; paper: 20)")
    add("--step-size", type=float, metavar="E", help="first leapfrog step (tuned; paper: 0.01)")


def _add_latent_shape(add: Any) -> None:
    add(
        "--latent-shape",
        type=int,
        nargs="+",
        metavar="D",
        help="shape of one latent, such as 512 or 100 1 1 (default: found out from the generator)",
    )


def _add_machine(parser: Parser) -> None:
    add = parser.rare_group("the generator and the machine").add_argument
    _add_latent_shape(add)
    add(
        "--backend",
        default="auto",
        metavar="NAME",
        help="auto, or one of those that cogen-fast info lists (default: auto)",
    )
    add(
        "--gradient-dtype",
        choices=GRADIENT_DTYPES,
        help="what gradients are computed in; half precision is faster on a GPU and leaves the "
        "samples exact (default: the generator's own type)",
    )
    add(
        "--energy-dtype",
        choices=ENERGY_DTYPES,
        help="what energies are computed in (default: the generator's own type)",
    )
    add(
        "--compile",
        action="store_true",
        help="run a generator of your own through torch.compile, which takes a while at the start",
    )
    add(
        "--no-cuda-graphs",
        dest="cuda_graphs",
        action="store_false",
        help="on CUDA, do not record moves and replay them",
    )
    add(
        "--max-batch",
        type=int,
        metavar="N",
        help="most images made at once, to save memory (default: all chains)",
    )


def _add_convert(commands: Any) -> None:
    parser = command(
        commands,
        "convert",
        "turn a public checkpoint into a safetensors file of cogen_fast",
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a progressive GAN of the PyTorch GAN Zoo (.pth), of pro-gan-pth 3.x (.bin) or "
        "converted from Karras et al. (.pth), or an npz of dense layers w1, b1, w2, ...",
    )
    parser.add_argument("target", type=Path, metavar="TARGET.safetensors", help="file to write")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="the weights as trained last, not their moving average, where SOURCE has both",
    )
    parser.add_argument(
        "--half", action="store_true", help="weights of half precision: half the size, for sharing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")


def _add_demo(commands: Any) -> None:
    parser = command(
        commands,
        "demo",
        "complete a garment with the generator that comes with the package",
        description=_DEMO_HELP,
    )
    _, garments = HELD_OUT[demo.GENERATOR]
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("cogen-fast-demo"),
        metavar="DIR",
        help="folder for the picture (default: cogen-fast-demo)",
    )
    parser.add_argument(
        "--garment",
        choices=garments,
        default=demo.GARMENT,
        metavar="NAME",
        help=f"{', '.join(garments[:-1])} or {garments[-1]} (default: {demo.GARMENT})",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed (default: 0)")


def _add_reproduce(commands: Any) -> None:
    studies = command(commands, "reproduce", "run a study of the paper again").add_subparsers(
        title="studies", dest="study", metavar="STUDY", required=True
    )
    parser = command(
        studies,
        "synthetic",
        "the 2-D study, figures 1 to 3",
        description=_SYNTHETIC_HELP,
        epilog=_SYNTHETIC_FILES,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the table and figures")
    add(
        "--variance",
        type=float,
        choices=VARIANCES,
        default=VARIANCES[0],
        help="of the five Gaussians that the GAN learnt: 0.002 as in the authors' program, or 0.02 "
        "as in the paper's text (default: 0.002)",
    )
    add("--seed", type=int, default=0, metavar="S", help="seed (default: 0)")
    add(
        "--generator",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="further generators, from 2 latents to 2 numbers: .safetensors, or .npz of dense "
        "layers w1, b1, w2, ...",
    )
    add("--overwrite", action="store_true", help="replace a study that is in DIR already")
    _add_image_study(studies)
    _add_published_runs(studies)


def _add_image_study(studies: Any) -> None:
    parser = command(
        studies,
        "images",
        "the image study, figures 4 to 7",
        description=_IMAGES_HELP,
        epilog=_IMAGES_FILES + GENERATOR_HELP,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for tables and figures")
    add(
        "--data",
        type=Path,
        metavar="PATH",
        help="real images in place of the ten shipped ones: a folder, an IDX file or an .npz of "
        "images that the generator has not seen; the last two choose learning rates",
    )
    add(
        "--generator",
        metavar="WHAT",
        help="another generator of images, see below: half of an image, a block, and "
        "super-resolution by 4, on images of its own, and on real ones with --data",
    )
    _add_latent_shape(add)
    add(
        "--images",
        type=int,
        metavar="N",
        help="images of each kind and task (default: 8; with --quick 4). More may be added later",
    )
    add("--quick", action="store_true", help="a tenth of the published numbers, for a first look")
    add("--nuts", action="store_true", help="NUTS from the best of many starts, too (extra peers)")
    add("--seed", type=int, default=0, metavar="S", help="seed (default: 0)")


def _add_published_runs(studies: Any) -> None:
    parser = command(
        studies, "presets", "the image presets at a tiny budget", description=_PRESETS_HELP
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for records")
    parser.add_argument(
        "--preset",
        nargs="+",
        default=[],
        choices=PUBLISHED,
        help="those to run (default: all)",
    )
