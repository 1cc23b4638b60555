"""The parser of `cogen-fast`, with the help of its commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cogen_fast
from cogen_fast.cli.app_parser import add_app
from cogen_fast.cli.evaluate_parser import add_evaluate
from cogen_fast.cli.help import (
    GENERATOR_HELP,
    Formatter,
    Parser,
    add_latent_shape,
    add_seed,
    command,
)
from cogen_fast.cli.reproduce_parser import add_reproduce
from cogen_fast.cli.training_parser import add_sample, add_swd, add_train
from cogen_fast.experiments import demo
from cogen_fast.generators.pretrained import HELD_OUT
from cogen_fast.methods.adaptive import EVIDENCE
from cogen_fast.methods.settings import ADAPTATIONS, METHODS
from cogen_fast.problem.density import FORMS
from cogen_fast.problem.precision import ENERGY_DTYPES, GRADIENT_DTYPES
from cogen_fast.problem.prior import NOISE_MAPS, SPACES
from cogen_fast.sampler.annealing_plan import MASSES
from cogen_fast.sampler.schedule import NAMED

_T = TypeVar("_T")
_DOCTOR_HELP = """\
Check the installation, in about ten seconds: torch, the compiled module, a GPU
and what it needs, the speed of torch's threads, the fast operations against
their definition, and runs of the sampler against posteriors that are known
exactly. Each line begins with ok, warning (results are right, but slow, or the
GPU is not used) or fault (something is missing or wrong), and says what to do.

exit status: 0 no fault; 1 a fault
"""
_INPAINT_HELP = """\
Fill in the hidden part of an image: draw images of a trained generator which
agree with the visible part. Give the hidden part with --mask or with --box.
Several images, or all in a folder, are completed one after the other.
"""
_SUPER_RESOLVE_HELP = """\
Enlarge a small image: draw images of a trained generator which agree with the
small image when they are reduced by a factor. Several images, or all in a
folder, are enlarged one after the other.
"""
_DEMO_HELP = """\
Hide a block of a photograph from Fashion-MNIST's test set, draw eight images of
the shipped generator which agree with the rest, and show them side by side with
their mean and a map of their standard deviation. It takes less than a minute on
two cores.
"""
_INPAINT_EXAMPLE = """\
example: hide a block of 20 x 24 pixels whose top left corner is x = 30, y = 12
  cogen-fast inpaint --generator faces.safetensors --image me.png \\
      --box 30 12 20 24 --out filled
example: all photographs in a folder, with masks of the same names in another
  cogen-fast inpaint --generator faces.safetensors --image photos \\
      --mask masks --resize --out filled
example: a run that the four GPUs of a machine share
  torchrun --nproc-per-node 4 -m cogen_fast inpaint --chains 64 ...

"""
_SUPER_RESOLVE_EXAMPLE = """\
example: from 16 x 16 pixels to the generator's 64 x 64
  cogen-fast super-resolve --generator faces.safetensors --image small.png \\
      --factor 4 --out large

"""
_INPAINT_FILES = """\
what is written to DIR:
  completed.png     your image at its own size, whose hidden part is taken from
                    the estimate, enlarged and blended in
  estimate.png      the one image to show if only one can be shown, of the
                    generator's size, with the observed pixels pasted in
  chain_000.png ... one image per chain, pasted in the same way
  raw/              the same images without pasting, G(z)
"""
_SUPER_RESOLVE_FILES = """\
what is written to DIR:
  estimate.png      the one image to show if only one can be shown
  chain_000.png ... one image per chain
"""
_RESULT_FILES = """\
  grid.png          the observation, up to eight chains in order of energy, the
                    estimate (if polished), and mean and standard deviation
  result.npz        latents, energies, weights, history;
                    cogen_fast.Result.load("DIR") reads it
  result.json       settings, numbers and a diagnosis, as text; also the options
                    and the paths of the files that were given

of several images, or a folder:
  NAME/             the same files, in a folder for each image with its name
  sheet.png         the first 96 images: what is observed of each, its estimate,
                    mean and standard deviation
An image that cannot be read is named and left out. The same command continues
after a stop: finished images are skipped if options and files are the same, and
an unfinished one goes on from NAME/unfinished.safetensors, which is removed at
its end.

exit status: 0 success; 2 error, whose cause is shown, also if images were left
out; 3 the files were written, but the chains are not samples (warnings and
grid.png say why); 130 interrupted (Ctrl-C)
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser, which raises ValueError for mistakes; it gives the command as ``command``."""
    parser = Parser(
        prog="cogen-fast",
        description="Fill in what is missing from an image with a trained GAN as the prior.",
        epilog="cogen-fast COMMAND --help shows the options of a command.",
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
    add_app(commands)
    _add_convert(commands)
    add_train(commands)
    add_sample(commands)
    add_swd(commands)
    add_evaluate(commands)
    command(commands, "info", "show the version, the backends and the presets")
    command(commands, "doctor", "check the installation", description=_DOCTOR_HELP)
    _add_demo(commands)
    add_reproduce(commands)
    return parser


def _add_inpaint(commands: Any) -> None:
    parser = command(
        commands,
        "inpaint",
        "fill in the hidden part of an image",
        description=_INPAINT_HELP,
        epilog=_INPAINT_EXAMPLE + GENERATOR_HELP + _INPAINT_FILES + _RESULT_FILES,
    )
    group = _start_files(
        parser,
        "the image, whose hidden pixels may have any values",
        "with transparency only for --mask alpha",
    )
    hidden = group.add_mutually_exclusive_group(required=True)
    hidden.add_argument(
        "--mask",
        metavar="FILE | DIR | alpha",
        help="picture of the image's size: white (128 to 255) = observed, black = hidden; or a "
        "folder with such a picture for each image, of the same name; or alpha: pixels of the "
        "image that are not fully opaque = hidden",
    )
    hidden.add_argument(
        "--box",
        type=int,
        nargs=4,
        metavar=("X", "Y", "W", "H"),
        help="the HIDDEN block, in pixels of the generator's output: its left edge and its upper "
        "edge, counted from the top left corner of the image, its width and its height",
    )
    _end_files(
        group,
        masks=", and so is a mask of the image's size; pixels which scaling mixes with hidden ones "
        "count as hidden",
    )
    _add_options(parser)


def _add_super_resolve(commands: Any) -> None:
    parser = command(
        commands,
        "super-resolve",
        "enlarge a small image",
        description=_SUPER_RESOLVE_HELP,
        epilog=_SUPER_RESOLVE_EXAMPLE + GENERATOR_HELP + _SUPER_RESOLVE_FILES + _RESULT_FILES,
    )
    group = _start_files(
        parser, "the small image, with the generator's width and height divided by the factor"
    )
    group.add_argument(
        "--factor",
        type=int,
        required=True,
        metavar="K",
        help="the generator's width and height, divided by those of the image",
    )
    group.add_argument(
        "--downsample",
        choices=("average", "stride"),
        default="average",
        help="how the small image was reduced: to the average of each K x K block, or to every "
        "K-th pixel (default: average)",
    )
    _end_files(group)
    _add_options(parser)


def _start_files(
    parser: argparse.ArgumentParser, image: str, opaque: str = "without transparency"
) -> Any:
    group = parser.add_argument_group("what to do")
    group.add_argument(
        "--generator", required=True, metavar="WHAT", help="the trained generator (see below)"
    )
    group.add_argument(
        "--image",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE | DIR",
        help=f"{image}; 8-bit grey or colour or 16-bit grey, {opaque}; it is converted to grey or "
        "colour as the generator's images are. Several files, or a folder: all pictures in it",
    )
    return group


def _end_files(group: Any, masks: str = "") -> None:
    group.add_argument(
        "--resize",
        action="store_true",
        help="accept an image of another size: it is cropped at its centre to the right shape and "
        f"scaled smoothly{masks}",
    )
    group.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the results (see below)"
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a result which is already in DIR (of several images: results of other "
        "options or files; unfinished runs start again)",
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
    """Add the options of `cogenerate` and of `Prior`."""
    _add_sampling(parser)
    _add_running(parser)
    _add_prior(parser)
    _add_adaptive(parser)
    _add_published(parser)
    _add_moves(parser)
    _add_machine(parser)


def _add_sampling(parser: Parser) -> None:
    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add("--chains", type=int, metavar="N", help="number of images to draw (default: 16; paper: 4)")
    add(
        "--budget",
        type=int,
        metavar="G",
        help="gradient evaluations of the adaptive method per image drawn, polishing included; all "
        "of them are spent, and no more (default: as many as needed)",
    )
    add(
        "--polish",
        type=_count_or_auto,
        default="auto",
        metavar="K",
        help="gradient evaluations of L-BFGS from every sample, after the sampling; estimate.png "
        "is the weighted mean of these fits, or with K = 0 the mean of the samples (default: auto, "
        "by the length of the run, or two fifths of the budget)",
    )
    noise = group.add_mutually_exclusive_group()
    noise.add_argument(
        "--noise-std",
        type=_number_or_auto,
        metavar="S",
        help="standard deviation of the noise in the observed pixels, where black is -1 and white "
        "is 1, or auto to infer it; with a smaller one the samples follow the observed pixels more "
        "closely (default: 0.1)",
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
        help="adaptive chooses its own temperatures; paper is the published algorithm (default: "
        "adaptive)",
    )
    add_seed(add)


def _add_running(parser: Parser) -> None:
    add = parser.add_argument_group("running").add_argument
    add(
        "--device",
        metavar="D",
        help="cpu, cuda or cuda:N; or mps or xpu, on which only the generator runs (default: for a "
        "FILE or NAME the CUDA GPU, if there is one; for your own code the generator's device)",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="save the unfinished run in this file every minute and on Ctrl-C; the same command "
        "continues from it (without it, Ctrl-C writes the unfinished run as the result); not for "
        "several images, whose runs are saved in DIR",
    )
    add(
        "--quiet",
        action="store_true",
        help="show no progress bar and no summary; warnings and errors are still shown",
    )


def _add_prior(parser: Parser) -> None:
    add = parser.rare_group("StyleGAN2 and conditional generators").add_argument
    add(
        "--space",
        choices=SPACES,
        help="the latent space of a StyleGAN2 which is sampled: its own latents, one style for all "
        "layers, or a style for each layer (default: z)",
    )
    add(
        "--noise-maps",
        choices=NOISE_MAPS,
        help="fixed: a StyleGAN2's noise maps are those of its file; latent: they are sampled, too "
        "(default: fixed)",
    )
    add(
        "--condition",
        type=int,
        metavar="N",
        help="the class which a conditional generator is given beside the latents",
    )
    add(
        "--output-part",
        type=_index_or_name,
        metavar="NAME",
        help="which part of what a generator returns is the image: the index in a tuple, a key, or "
        "an attribute",
    )


def _index_or_name(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _add_adaptive(parser: Parser) -> None:
    add = parser.rare_group("the adaptive method").add_argument
    add(
        "--populations",
        type=int,
        metavar="R",
        help="number of populations of N images each, which are compared with each other (default: "
        "1, whose two halves are compared)",
    )
    add(
        "--evidence",
        choices=EVIDENCE,
        help="frozen: a second run repeats all choices of the first, for an unbiased estimate of "
        "the evidence (default: consistent)",
    )
    add(
        "--target-cess",
        type=float,
        metavar="S",
        help="fraction of the conditional effective sample size which a step of the temperature "
        "keeps; closer to 1: more and smaller steps (default: 0.97)",
    )
    add(
        "--mass",
        choices=MASSES,
        help="mass matrix of the moves: estimated from gradients, or the identity (default: "
        "curvature)",
    )


def _add_published(parser: Parser) -> None:
    group = parser.rare_group("the published method (--method paper, or --preset)")
    add = group.add_argument
    add(
        "--preset",
        metavar="NAME",
        help="settings of a published run, with its weight unless the noise is given; cogen-fast "
        "info lists the names",
    )
    add(
        "--ais-steps",
        type=int,
        metavar="T",
        help="number of temperatures from the prior to the posterior; more are better and slower "
        "(default: 500)",
    )
    add("--schedule", metavar="NAME", help=f"{', '.join(NAMED)} (default: sigmoid)")
    add(
        "--adaptation",
        choices=ADAPTATIONS,
        help="published: all images share a step size, which follows their mean acceptance; "
        "per-chain: each has its own, which follows its own acceptance (default: published)",
    )
    add(
        "--form",
        choices=FORMS,
        help="posterior: the annealed density contains the prior throughout; paper: the prior is "
        "removed on the way, and there are no weights (default: posterior)",
    )


def _add_moves(parser: Parser) -> None:
    add = parser.rare_group("the moves of both methods").add_argument
    add(
        "--hmc-steps",
        type=int,
        metavar="M",
        help="transitions per temperature (default: tuned; paper: 1)",
    )
    add(
        "--leapfrog-steps",
        type=int,
        metavar="L",
        help="leapfrog steps per transition, one gradient each (default: tuned; paper: 20)",
    )
    add(
        "--step-size",
        type=float,
        metavar="E",
        help="first leapfrog step size (default: by the size of the latent; paper: 0.01)",
    )
    add(
        "--keep-trace",
        action="store_true",
        default=None,
        help="keep the latents after every temperature, in result.npz",
    )


def _add_machine(parser: Parser) -> None:
    add = parser.rare_group("the generator and the machine").add_argument
    add_latent_shape(add)
    add(
        "--backend",
        default="auto",
        metavar="NAME",
        help="auto, or a backend which cogen-fast info lists (default: auto)",
    )
    add(
        "--gradient-dtype",
        choices=GRADIENT_DTYPES,
        help="type in which gradients are computed; TF32 and half precision are meant for GPUs and "
        "do not change the posterior (default: the generator's type)",
    )
    add(
        "--energy-dtype",
        choices=ENERGY_DTYPES,
        help="type in which energies are computed (default: the generator's type)",
    )
    add(
        "--compile",
        action="store_true",
        help="compile a generator of your own with torch.compile, which takes time at the start",
    )
    add(
        "--no-cuda-graphs",
        dest="cuda_graphs",
        action="store_false",
        help="do not record moves as CUDA graphs",
    )
    add(
        "--max-batch",
        type=int,
        metavar="N",
        help="largest number of images computed at once, to save memory (default: all chains; on "
        "CUDA as many as fit in memory)",
    )
    add(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="end the run unfinished after so long; with --checkpoint the same command goes on",
    )


def _add_convert(commands: Any) -> None:
    parser = command(
        commands,
        "convert",
        "convert a public checkpoint into a safetensors file of cogen_fast",
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a progressive GAN of the PyTorch GAN Zoo (.pth), of pro-gan-pth (.bin or .pth) or "
        "converted from Karras et al. (.pth); a StyleGAN2 of rosinality/stylegan2-pytorch (.pt) "
        "or of NVIDIA's PyTorch programs (.pkl); or an .npz of dense layers w1, b1, w2, ...",
    )
    parser.add_argument("target", type=Path, metavar="TARGET.safetensors", help="file to write")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="take the last weights instead of their moving average, where SOURCE has both",
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="store weights in half precision, for a file of half the size",
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="identifier of the licence, such as apache-2.0, for the model card: TARGET.md, which "
        "is written beside TARGET.safetensors unless it is there already",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")


def _add_demo(commands: Any) -> None:
    parser = command(
        commands,
        "demo",
        "fill in a garment with the generator that comes with the package",
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
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="random seed (default: 0)")
