"""The parser of `cogen-fast reproduce` and its studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cogen_fast.cli.help import GENERATOR_HELP, add_latent_shape, command
from cogen_fast.experiments.evaluate.tasks import PUBLISHED
from cogen_fast.generators.pretrained import VARIANCES

_SYNTHETIC_HELP = """\
The paper's 2-D study: points lie close to five places on a circle. Of one point
only the second coordinate is known, which is 0, so that the first should be 1.
The study counts how many chains of gradient descent, importance resampling, the
published AIS-HMC and the adaptive method (the default) find this answer, with a
small GAN at four stages of its training. It takes about a minute and needs
matplotlib (pip install 'cogen-fast[plots]').
"""
_SYNTHETIC_FILES = """\
example:
  cogen-fast reproduce synthetic --out study

what is written to DIR:
  table.csv     share of chains close to the answer, for each generator and
                method, with the cost of a chain and all settings
  figure-1.png  the loss over the latent plane, paths of gradient descent, and
                their errors over the iterations
  figure-2.png  samples of the generators, last points of gradient descent and
                AIS-HMC, and histograms of their errors
  figure-3.png  the chains of AIS-HMC after 100 to 6,000 loops
"""
_IMAGES_HELP = """\
The paper's image study on the shipped generator of 32 x 32 garments. The
methods are gradient descent and Adam from one start and from the best of 5,000,
L-BFGS from the best of 5,000, importance resampling, the published AIS-HMC (also
with its weight scaled to the image's size), and the adaptive method (the
default), with and without polishing; none costs more than the published run.
The tasks are inpainting of a block and super-resolution by 4 and by 8, on real
images and, separately, on images of the generator itself. It takes about 35
minutes on two idle cores, with one process on each (OMP_NUM_THREADS sets their
number), and needs matplotlib and pytorch-msssim
(pip install 'cogen-fast[plots,metrics]').

If it is stopped, the same command continues the study.
"""
_IMAGES_FILES = """\
examples:
  cogen-fast reproduce images --out study --quick
  cogen-fast reproduce images --out study --images 64 \\
      --data t10k-images-idx3-ubyte.gz

what is written to DIR:
  report.md         the settings, a table for each kind of images and task, and
                    which methods differ from the default's estimate
  figure4_*.png     MSE, SSIM and MS-SSIM over the generator's training
  panels_*.png      ground truth, observation, and each method's best chain
  misfit_*.png      error of hidden pixels against error of observed pixels
  table.txt, .csv   all metrics: per chain, of the best chain by energy, of the
                    best by the truth (oracle), and of the mean image
  tuning.json       learning rates, and the grids from which they were chosen
  runs              records of each image

"""
_PRESETS_HELP = """\
The paper's image runs on CelebA, LSUN and CelebA-HQ as presets, with their tasks
and settings and networks of full size, but with random weights, two
temperatures and one leapfrog step each. This shows that the presets work on this
machine, and what they cost. For real results train or convert a checkpoint, and
give the preset to `inpaint` or `super-resolve`. The command needs pytorch-msssim
(pip install 'cogen-fast[metrics]').
"""


def add_reproduce(commands: Any) -> None:
    """Add `cogen-fast reproduce`."""
    studies = command(commands, "reproduce", "reproduce a study of the paper").add_subparsers(
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
        help="variance of the five Gaussians on which the GAN was trained: 0.002 as in the "
        "authors' program, or 0.02 as in the paper's text (default: 0.002)",
    )
    add("--seed", type=int, default=0, metavar="S", help="random seed (default: 0)")
    add(
        "--generator",
        nargs="+",
        default=[],
        metavar="FILE",
        help="further generators of 2 numbers from 2 latents: .safetensors, .npz of dense layers "
        "w1, b1, w2, ..., or hf://owner/name/file.safetensors",
    )
    add("--overwrite", action="store_true", help="replace a study which is already in DIR")
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
        "images on which the generator was not trained; the last two are used to tune learning "
        "rates",
    )
    add(
        "--generator",
        metavar="WHAT",
        help="another generator of images (see below); its tasks are half of an image, a block, "
        "and super-resolution by 4, on its own images, and with --data on real ones",
    )
    add_latent_shape(add)
    add(
        "--images",
        type=int,
        metavar="N",
        help="images of each kind and task (default: 8; with --quick 4); a later call may add more",
    )
    add(
        "--quick",
        action="store_true",
        help="take a tenth of the published numbers, for a first look",
    )
    add(
        "--nuts",
        action="store_true",
        help="add NUTS from the best of many starts (needs pip install 'cogen-fast[peers]')",
    )
    add("--seed", type=int, default=0, metavar="S", help="random seed (default: 0)")


def _add_published_runs(studies: Any) -> None:
    parser = command(
        studies, "presets", "the image presets at a very small budget", description=_PRESETS_HELP
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for records")
    parser.add_argument(
        "--preset",
        nargs="+",
        default=[],
        choices=PUBLISHED,
        metavar="NAME",
        help=f"presets to run: {', '.join(PUBLISHED)} (default: all)",
    )
